"""The database: wait for it, bring its schema to head, compare, go back."""

import sys
from typing import cast

import click

from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import DIFFERENT, FAILURE, NO_URL, USAGE
from itdesk.config import Settings
from itdesk.store.migrations import Migrated, Migrations, Stamp, Verification
from itdesk.store.opening import database_url


@click.group()
def db() -> None:
    """Wait for, migrate and check the database."""


@db.command(epilog=examples("itdesk db wait --timeout 30 && itdesk db migrate"))
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait.",
)
@click.pass_obj
def wait(context: Context, timeout: float) -> None:
    """Return 0 when the database answers, 1 when it does not in time, 2 without a URL."""
    settings = context.settings()
    _require_database(context, settings, status=USAGE)

    async def work() -> str | None:
        async with database_url(settings) as url:
            return await Migrations(url).wait(timeout)

    problem = run(work())
    if problem is not None:
        click.echo(f"The database did not answer within {timeout:g} s: {problem}", err=True)
        sys.exit(FAILURE)
    click.echo("The database answers.")


@db.command(
    epilog=examples(
        "itdesk db migrate",
        "itdesk db migrate --stamp never    # refuse a schema that nobody recorded",
    )
)
@click.option(
    "--stamp",
    type=click.Choice(["auto", "never", "only"]),
    default="auto",
    show_default=True,
    help="What to do with a schema that has no record of its migrations.",
)
@click.pass_obj
def migrate(context: Context, stamp: str) -> None:
    """Bring the schema to head; safe to run again, and on several hosts at once."""
    settings = context.settings()

    async def work() -> Migrated:
        async with database_url(settings) as url:
            return await Migrations(url).migrate(cast(Stamp, stamp))

    done = run(work())
    for name in done.stamped:
        click.echo(f"recorded {name}, which was there already")
    for name in done.applied:
        click.echo(f"applied {name}")
    for name in done.pending:
        click.echo(f"left pending {name}")
    if not done.pending:
        click.echo("The schema is at head.")


@db.command(epilog=examples("itdesk db verify || itdesk db migrate"))
@click.pass_obj
def verify(context: Context) -> None:
    """Print current and expected head: 0 equal, 4 different, 3 without a URL."""
    settings = context.settings()
    _require_database(context, settings, status=NO_URL)

    async def work() -> Verification:
        async with database_url(settings) as url:
            return await Migrations(url).verify()

    found = run(work())
    click.echo(f"current:  {found.status.current or 'nothing'}")
    click.echo(f"expected: {found.status.expected or 'nothing'}")
    for name in found.status.pending:
        click.echo(f"pending: {name}")
    for name in found.status.unknown:
        click.echo(f"unknown to this version: {name}")
    for difference in found.differences:
        click.echo(f"different: {difference}")
    if not found.equal:
        sys.exit(DIFFERENT)


@db.command(epilog=examples("itdesk db downgrade --to 0001-accounts --yes"))
@click.option("--to", required=True, help="The migration to keep as the last one, or base.")
@click.option("--yes", is_flag=True, help="Do it: what the migrations held is lost.")
@click.pass_obj
def downgrade(context: Context, to: str, yes: bool) -> None:
    """Undo every migration after one (development)."""
    settings = context.settings()
    if not yes:
        raise click.UsageError(
            "This drops tables and what is in them. Make a backup, then add --yes."
        )

    async def work() -> tuple[str, ...]:
        async with database_url(settings) as url:
            return await Migrations(url).downgrade(to)

    for name in run(work()):
        click.echo(f"undid {name}")


@db.command(epilog=examples("itdesk db new 'Add colours'"))
@click.argument("name")
def new(name: str) -> None:
    """Write an empty migration and its rollback (development)."""

    async def work() -> None:
        path = Migrations("postgresql://").new(name)
        click.echo(f"{path}\n{path.with_suffix('.rollback.sql')}")

    run(work())


def _require_database(context: Context, settings: Settings, *, status: int) -> None:
    if settings.embedded and not context.has_embedded_database:
        click.echo(
            "database.url is not set (DATABASE_URL), and there is no embedded database in"
            f" {context.state_dir} either. Set it, or run `itdesk serve` once.",
            err=True,
        )
        sys.exit(status)


COMMANDS: list[click.Command] = [db]
