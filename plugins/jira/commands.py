"""What `itdesk jira` does from the shell."""

from datetime import UTC, datetime
from typing import Any

import click

from itdesk.remote import Reconciled


@click.command(epilog="\b\nExample:\n  itdesk jira reconcile --since 2026-01-31T12:00:00Z")
@click.option("--since", help="Only what changed after this time, such as 2026-01-31T12:00:00Z.")
@click.option("--project-key", help="Only this project of Jira's [plugins.jira.project_key].")
@click.pass_obj
def reconcile(context: Any, since: str | None, project_key: str | None) -> None:
    """Compare the mirrored tickets with Jira now, and take over what changed there."""
    moment = _moment(since) if since is not None else None
    settings = context.settings()

    async def work() -> Reconciled:
        async with context.desk(settings) as desk:
            found: Reconciled = await desk.trackers["jira"].reconcile(
                since=moment, project_key=project_key
            )
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


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise click.BadParameter(
            "must be a time such as 2026-01-31T12:00:00Z", param_hint="--since"
        ) from exc


COMMANDS: list[click.Command] = [reconcile]
