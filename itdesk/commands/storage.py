"""Holding stored objects and files against each other from the shell."""

import sys
from functools import partial

import click

from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import DIFFERENT
from itdesk.commands.progress import Bar
from itdesk.desk.inventory import Finding, Missing, Report


@click.group()
def storage() -> None:
    """Look after what is stored."""


@storage.command(epilog=examples("itdesk storage verify", "itdesk storage verify --delete-orphans"))
@click.option("--delete-orphans", is_flag=True, help="Remove the objects that no file names.")
@click.pass_obj
def verify(context: Context, delete_orphans: bool) -> None:
    """Print objects without a file and clean files without their object; 4 when there are any.

    A line each: `orphan`, key, size, age in seconds, why; or `missing`, attachment, ticket, key,
    file name. Only objects are listed that are older than whatever may still be on its way.
    """
    settings = context.settings()

    async def work() -> Report:
        report = Report()
        async with context.desk(settings) as desk:
            with Bar() as bar:
                async for finding in desk.inventory.look(report, partial(bar.count, "objects")):
                    bar.echo(_line(finding))
            if delete_orphans:
                await desk.inventory.remove(report)
        return report

    report = run(work())
    click.echo(_summary(report), err=True)
    for name, files in report.elsewhere.items():
        click.echo(f"{files} files were stored in {name}, which is not in use", err=True)
    if report.orphans or report.missing:
        if report.orphans:
            once = "add --delete-orphans to remove what no file names"
            click.echo("run it again for the rest" if delete_orphans else once, err=True)
        sys.exit(DIFFERENT)


def _line(finding: Finding) -> str:
    if isinstance(finding, Missing):
        return (
            f"missing\t{finding.attachment_id}\t{finding.ticket_key}\t{finding.key}"
            f"\t{finding.filename}"
        )
    return f"orphan\t{finding.key}\t{finding.size}\t{finding.age:.0f}\t{finding.why}"


def _summary(report: Report) -> str:
    said = (
        f"{report.objects} objects ({report.bytes} bytes): {report.orphans} orphans"
        f" ({report.orphan_bytes} bytes), {report.missing} missing, {report.young} too young to"
        " tell"
    )
    if report.foreign:
        said += f", {report.foreign} that itdesk did not make and leaves alone"
    return f"{said}; removed {report.removed}"


COMMANDS: list[click.Command] = [storage]
