"""What is known of a person, from the shell: handed out, or forgotten."""

import os
from pathlib import Path

import click

from itdesk.commands.accounts import user
from itdesk.commands.context import OPERATOR, Context, examples, run
from itdesk.desk.manifest import Sink


@user.command("export", epilog=examples("itdesk user export alice@example.org ./alice"))
@click.argument("email")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.pass_obj
def export_user(context: Context, email: str, directory: Path) -> None:
    """Write everything that the desk holds about EMAIL into the new DIRECTORY: JSON and files."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            user_id = await desk.people.find(OPERATOR, email)
            os.mkdir(directory, 0o700)
            async for part in desk.people.export(OPERATOR, user_id):
                await Sink(directory / part.name).take(part.chunks)
        click.echo(f"{directory} has all that is known of {email}: begin with index.json")

    run(work())


@user.command("erase", epilog=examples("itdesk user erase alice@example.org --yes"))
@click.argument("who")
@click.option("--yes", is_flag=True, help="Do it: there is no way back but a backup.")
@click.pass_obj
def erase_user(context: Context, who: str, yes: bool) -> None:
    """Close the account of WHO (an address, or the id of one closed before) and forget the name.

    Their tickets, comments and files stay, as those of an "Erased person". Run again with the id,
    it takes away what was written in their name meanwhile. Backups made before still know them.
    """
    settings = context.settings()
    if not yes:
        raise click.UsageError("This cannot be undone. Add --yes.")

    async def work() -> None:
        async with context.desk(settings) as desk:
            user_id = who if "@" not in who else await desk.people.find(OPERATOR, who)
            changed = await desk.people.erase(OPERATOR, user_id)
        click.echo(f"erased {user_id}; {changed} events of the journal named them")

    run(work())


# Registered here, so that these commands are below it too.
COMMANDS: list[click.Command] = [user]
