"""What `itdesk jira` does from the shell."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import click

from itdesk.errors import DeskError, Unavailable
from itdesk.remote import Reconciled

from .importer import Importer, Summary
from .plan import Options, Planner, Step, Target
from .settings import PROJECT_KEY

NOT_CONFIGURED: Final = 1
SOME_FAILED: Final = 2
LONGEST_CELL: Final = 48


@click.command(epilog="\b\nExample:\n  itdesk jira reconcile --since 2026-01-31T12:00:00Z")
@click.option("--since", help="Only what changed after this time, such as 2026-01-31T12:00:00Z.")
@click.option("--project-key", help="Only this project of Jira's [plugins.jira.project_key].")
@click.pass_obj
def reconcile(context: Any, since: str | None, project_key: str | None) -> None:
    """Compare the mirrored tickets with Jira now, and take over what changed there."""
    moment = _moment(since) if since is not None else None
    settings = _configured(context)

    async def work() -> Reconciled:
        async with context.desk(settings) as desk:
            found: Reconciled = await _plugin(desk).reconcile(since=moment, project_key=project_key)
            return found

    done = context.run(work())
    click.echo(
        f"status={done.status} project_key={done.project_key or '*'}"
        f" since={done.since:%Y-%m-%dT%H:%M:%SZ} fetched={done.fetched} created={done.created}"
        f" updated={done.updated} unchanged={done.unchanged} errors={len(done.errors)}"
    )
    for error in done.errors:
        click.echo(error, err=True)
    if done.errors:
        raise SystemExit(1)


@click.command(
    "import",
    epilog="\b\nExamples:\n  itdesk jira import --limit 80             # the plan\n"
    "  itdesk jira import --limit 80 --apply",
)
@click.option("--limit", type=click.IntRange(1), help="At most so many tickets.")
@click.option("--apply", is_flag=True, help="Do it; without, nothing is sent.")
@click.option(
    "--skip-existing", is_flag=True, default=True,
    help="Leave tickets alone that have their issue already; this is so anyway.",
)  # fmt: skip
@click.option(
    "--update-existing", is_flag=True,
    help="Set description, assignee, urgency and impact of issues that are there already.",
)  # fmt: skip
@click.option("--project-key", help="Where issues are opened [plugins.jira.project_key].")
@click.option("--issue-type", help="As what [Report an incident, Incident, Task, ...].")
@click.option("--max-comments", type=click.IntRange(0, 1000), default=8, show_default=True,
              help="How many comments go with each, the latest.")  # fmt: skip
@click.option("--sleep-ms", type=click.IntRange(0, 60_000), default=80, show_default=True,
              help="Pause after each ticket, in milliseconds.")  # fmt: skip
@click.option("--no-sync-users", is_flag=True, help="Do not look for people's accounts in Jira.")
@click.option("--no-auto-assign", is_flag=True,
              help="Leave issues unassigned whose assignee Jira does not know.")  # fmt: skip
@click.pass_obj
def import_(
    context: Any, *, limit: int | None, apply: bool, skip_existing: bool, update_existing: bool,
    project_key: str | None, issue_type: str | None, max_comments: int, sleep_ms: int,
    no_sync_users: bool, no_auto_assign: bool,
) -> None:  # fmt: skip
    """Open issues in Jira for the tickets of this desk. Shows a plan unless told to --apply.

    Ends with 0, with 1 when Jira is not configured, with 2 when some tickets failed or it was cut
    short: run it again, what is done is not done twice.
    """
    settings = _configured(context)

    async def work() -> tuple[Summary, bool]:
        async with context.desk(settings) as desk:
            plugin = _plugin(desk)
            project = project_key or plugin.settings.project_key
            if not plugin.connected or not project:
                _not_configured("JIRA_BASE_URL, JIRA_EMAIL, JIRA_API_TOKEN and JIRA_PROJECT_KEY")
            if not re.fullmatch(PROJECT_KEY, project):
                raise click.BadParameter("must be a key such as ITSM", param_hint="--project-key")
            options = Options(
                project=project, limit=limit, apply=apply, update_existing=update_existing,
                issue_type=issue_type, max_comments=max_comments, sleep_ms=sleep_ms,
                sync_users=not no_sync_users, auto_assign=not no_auto_assign,
            )  # fmt: skip
            return await _imported(plugin, desk, options)

    summary, whole = context.run(work())
    click.echo(str(summary))
    if summary.failed or not whole:
        sys.exit(SOME_FAILED)


async def _imported(plugin: Any, desk: Any, options: Options) -> tuple[Summary, bool]:
    """Plan and import; return what it came to, and whether it came to its end."""
    summary, failures = Summary(), list[str]()
    try:
        planner = Planner(plugin.client, desk, options)
        target = await planner.target()
        steps, summary.skipped = await planner.steps()
        summary.planned = len(steps)
        if not options.apply:
            for line in table(steps, target):
                click.echo(line)
            click.echo("Nothing was sent: this is the plan. Add --apply to do it.")
            return summary, True
        importer = Importer(plugin.client, desk, plugin.pusher, options, target)
        with click.progressbar(length=len(steps), label="importing", file=sys.stderr) as bar:

            def tell(step: Step, problem: str) -> None:
                bar.update(1)
                if problem:
                    failures.append(f"{step.ticket.key}: {problem}")

            await importer.run(steps, summary, tell)
    except DeskError as exc:
        failures.append(exc.message)
        return summary, False
    finally:
        for failure in failures:
            click.echo(failure, err=True)
    return summary, True


def _plugin(desk: Any) -> Any:
    """Return the plugin, or say why it is not there."""
    plugin = desk.trackers.get("jira")
    if plugin is None:
        status = desk.plugins.status().get("jira")
        why = f": {status.reason}" if status is not None and status.reason else ""
        state = status.state if status is not None else "off"
        raise Unavailable(
            f"The plugin jira is {state}{why}. See `itdesk plugins`.", code="E_PLUGIN_OFF"
        )
    return plugin


def table(steps: Sequence[Step], target: Target) -> list[str]:
    """Return a plan as lines with columns."""
    rows = [("ACTION", "TICKET", "ISSUE", "TYPE", "PRIORITY", "ASSIGNEE", "COMMENTS", "TITLE")]
    rows += [
        (
            step.action, step.ticket.key, step.issue or f"{target.project}-?", target.type_name,
            str(step.ticket.priority), step.who or "-", str(step.comments), step.ticket.title,
        )
        for step in steps
    ]  # fmt: skip
    cells = [[_cell(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cell(text: str) -> str:
    """Return a text as one short line; control characters would write over the terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST_CELL else line[: LONGEST_CELL - 1] + "…"


def _configured(context: Any) -> Any:
    """Return the settings, or end with 1 when they do not name Jira."""
    settings = context.settings()
    if "jira" not in settings.enabled_plugins():
        _not_configured("JIRA_BASE_URL, JIRA_EMAIL and JIRA_API_TOKEN")
    return settings


def _not_configured(names: str) -> NoReturn:
    click.echo(f"Jira is not configured: set {names}.", err=True)
    sys.exit(NOT_CONFIGURED)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "must be a time such as 2026-01-31T12:00:00Z", param_hint="--since"
        ) from exc


COMMANDS: list[click.Command] = [reconcile, import_]
