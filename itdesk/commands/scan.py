"""Scanning from the shell: what waits, and again what was scanned."""

import asyncio
import re
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import click

from itdesk import daemon
from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import FAILURE
from itdesk.commands.progress import Bar
from itdesk.desk import Desk
from itdesk.desk.rescans import Again
from itdesk.model import ScanStatus
from itdesk.runtime import log
from itdesk.runtime.actor import TICK
from itdesk.runtime.clock import Clock

_AGO = re.compile(r"(\d{1,5})([hd])")


class _Since(click.ParamType):  # type: ignore[type-arg]
    """A time, a day, or how long ago: 2026-11-01, 2026-11-01T08:00:00Z, 36h, 7d."""

    name = "when"

    def convert(self, value: str, param: object, ctx: object) -> datetime:
        """Return the time that is meant; without a zone it is UTC."""
        if ago := _AGO.fullmatch(value):
            unit = timedelta(hours=1) if ago[2] == "h" else timedelta(days=1)
            return Clock().now() - int(ago[1]) * unit
        try:
            when = datetime.fromisoformat(value)
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is no time; write 2026-11-01, 2026-11-01T08:00:00Z, 36h or 7d"
            ) from None
        return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


@click.command(
    epilog=examples(
        "itdesk scan --once", "itdesk scan --rescan --since 7d     # with newer signatures"
    )
)
@click.option("--once", is_flag=True, help="Scan what waits now, then end.")
@click.option(
    "--rescan", is_flag=True, help="Scan again what was CLEAN or FAILED, then end; recalls."
)
@click.option("--since", type=_Since(), help="With --rescan: only what was uploaded since.")
@click.option("--infected", is_flag=True, help="With --rescan: what was INFECTED as well.")
@click.pass_obj
def scan(
    context: Context, once: bool, rescan: bool, since: datetime | None, infected: bool
) -> None:
    """Scan attachments that wait, beside the daemon or without it.

    A verdict that --rescan changes from CLEAN withdraws the file at once: see the README on
    recalls. Ends with 1 when an engine or the storage was out and files still wait.
    """
    if (since is not None or infected) and not rescan:
        raise click.UsageError("--since and --infected go with --rescan")
    settings = context.settings()
    log.set_level(settings.log.level)

    async def work() -> None:
        async with context.desk(settings) as desk:
            if not (once or rescan):
                await _go_on(desk)
            done = True
            if (once or rescan) and await desk.scans.trusted():
                again = await desk.rescans.everything(since)
                if rescan:
                    statuses = [ScanStatus.FAILED, *([ScanStatus.INFECTED] if infected else [])]
                    count = await desk.rescans.requeue(statuses, since)
                    click.echo(f"to be scanned anew: {count}")
                done = await _scan_waiting(desk)
                if done and rescan:
                    done = await _look_again(desk, again)
            if desk.scans.problems:
                click.echo("nothing could be scanned; `itdesk doctor` says why", err=True)
            elif not done:
                click.echo(
                    "files still wait: an engine or the storage was out; try again", err=True
                )
            if desk.scans.problems or not done:
                sys.exit(FAILURE)

    run(work())


async def _go_on(desk: Desk) -> None:
    supervisor = daemon.supervisor_of(desk)
    for actor in daemon.scanners(desk):
        supervisor.add(actor)
    await supervisor.run(daemon.signals()[0])


async def _scan_waiting(desk: Desk) -> bool:
    """Scan until nothing waits that can be scanned now; return whether everything could."""
    scanner, _ = daemon.scanners(desk)
    scanner.tell(TICK)
    with Bar() as bar:
        scanner.on_result = lambda: bar.count("scanned", scanner.results.total())
        await scanner.step()
    waits = scanner.results.pop("waits", 0)
    click.echo(_summary("scanned", scanner.results, waits))
    return waits == 0


async def _look_again(desk: Desk, again: Again) -> bool:
    """Look at every clean file again, one after the other; return whether all could be seen."""
    results: Counter[str] = Counter()
    with Bar() as bar:
        await _look_at_all(desk, again, results, bar)
    waits = results.pop("waits", 0)
    click.echo(_summary("scanned again", results, waits))
    return waits == 0


async def _look_at_all(desk: Desk, again: Again, results: Counter[str], bar: Bar) -> None:
    total = await desk.rescans.due(again) if bar.live else 0
    while held := await desk.rescans.claim(again):
        try:
            outcome = await desk.rescans.look(held)
        except asyncio.CancelledError:
            await asyncio.shield(desk.rescans.release(held))
            raise
        said = desk.rescans.said(outcome)
        results[said] += 1
        if said == "recalled":
            bar.echo(f"recalled {held.id} {outcome.signature or outcome.reason}")
        bar.count("files", results.total(), total)
        if desk.scans.problems:
            break


def _summary(what: str, results: Counter[str], waits: int) -> str:
    parts = [f"{count} {said}" for said, count in sorted(results.items())]
    told = f": {', '.join(parts)}" if parts else ""
    return f"{what} {results.total()}{told}" + (f"; {waits} wait" if waits else "")


COMMANDS: list[click.Command] = [scan]
