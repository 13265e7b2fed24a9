"""The routes of the API, for whoever reviews who may call what."""

import click
import orjson

from itdesk.api import ROUTES
from itdesk.api.openapi import routes_table
from itdesk.commands.context import examples


@click.command(epilog=examples("itdesk routes | grep attachments", "itdesk routes --json"))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def routes(as_json: bool) -> None:
    """Print the table of routes with who may call what."""
    table = routes_table(ROUTES)
    if as_json:
        click.echo(orjson.dumps(table, option=orjson.OPT_INDENT_2))
        return
    for row in table:
        click.echo(f"{row['id']:<4} {row['method']:<7} {row['path']:<55} {row['who']:<9} "
                   f"{row['summary']}")  # fmt: skip


COMMANDS: list[click.Command] = [routes]
