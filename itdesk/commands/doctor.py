"""Every part of the desk, tried for real."""

import sys
from collections.abc import AsyncIterator

import click

from itdesk import assembly
from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import FAILURE
from itdesk.config import Settings
from itdesk.desk import doctor as doctors
from itdesk.store.opening import database_url


@click.command(epilog=examples("itdesk doctor"))
@click.pass_obj
def doctor(context: Context) -> None:
    """Try each configured part for real, and say what fails and how to mend it."""
    settings = context.settings()

    async def work() -> bool:
        well = True
        async for finding in findings(context, settings):
            mark = "ok  " if finding.ok else "FAIL"
            click.echo(f"{mark} {finding.part}: {finding.said}")
            if not finding.ok:
                click.echo(f"     -> {finding.remedy}")
            well = well and finding.ok
        return well

    if not run(work()):
        sys.exit(FAILURE)


async def findings(context: Context, settings: Settings) -> AsyncIterator[doctors.Finding]:
    """Try every configured part for real; the desk only when its database is well."""
    async with database_url(settings) as url:
        well = True
        findings = doctors.examine_database(url, production=settings.production)
        async for finding in findings:
            well = well and (finding.ok or finding.part == "accounts")
            yield finding
        if well:
            async with assembly.open_desk(settings, url) as desk:
                async for finding in doctors.examine(desk):
                    yield finding


COMMANDS: list[click.Command] = [doctor]
