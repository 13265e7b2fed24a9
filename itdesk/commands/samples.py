"""Sample data for a first look."""

import sys
from functools import partial

import click

from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import FAILURE
from itdesk.commands.progress import Bar
from itdesk.desk import seed as seeds
from itdesk.desk.passwords import Passwords


@click.command(epilog=examples("itdesk seed", "itdesk seed --demo"))
@click.option("--demo", is_flag=True, help="Also people (password `password`), tickets, comments.")
@click.pass_obj
def seed(context: Context, demo: bool) -> None:
    """Add recommendations, and with --demo a whole desk to play with; refused in production."""
    settings = context.settings()
    if settings.production:
        click.echo("seed is refused in production: its data is made up, its passwords known.",
                   err=True)  # fmt: skip
        sys.exit(FAILURE)

    async def work() -> dict[str, int]:
        async with context.desk(settings) as desk:
            await desk.projects.ensure_default(
                settings.tickets.default_project, settings.tickets.first_number
            )
            if not demo:
                return {"recommendations": await seeds.sow(desk)}
            passwords = Passwords(settings.auth.bcrypt_cost)
            try:
                with Bar() as bar:
                    return await seeds.sow_demo(desk, passwords, partial(bar.count, "tickets"))
            finally:
                passwords.close()

    for what, count in run(work()).items():
        click.echo(f"{count} new {what}")


COMMANDS: list[click.Command] = [seed]
