"""Looking after jobs from the shell, and counting the day's statistics now."""

import click

from itdesk.commands.context import OPERATOR, Context, examples, run
from itdesk.commands.progress import Bar
from itdesk.desk import restoring
from itdesk.store.jobs import JobState, QueuedJob
from itdesk.store.paging import Window


@click.group()
def jobs() -> None:
    """Look after work that waits or was given up."""


@jobs.command("list", epilog=examples("itdesk jobs list --state failed"))
@click.option("--state", type=click.Choice([state.value for state in JobState]), help="Only these.")
@click.option("--type", "kind", help="Only jobs of this type.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many."
)
@click.pass_obj
def list_jobs(context: Context, state: str | None, kind: str | None, limit: int) -> None:
    """Print jobs, the newest first: id, state, type, attempts, why the last one failed."""
    settings = context.settings()
    wanted = JobState(state) if state is not None else None

    async def work() -> None:
        async with context.desk(settings) as desk:
            page = await desk.jobs.list(OPERATOR, Window(limit=limit), state=wanted, type=kind)
            pause = await restoring.pause_of(desk.db)
        if pause is not None:
            click.echo("restored from a backup: what goes out waits for `itdesk resume`", err=True)
        for job in page.items:
            click.echo(_line(job))

    run(work())


@jobs.command(epilog=examples("itdesk jobs retry --all-failed"))
@click.argument("ids", nargs=-1)
@click.option("--all-failed", is_flag=True, help="Every job that was given up.")
@click.pass_obj
def retry(context: Context, ids: tuple[str, ...], all_failed: bool) -> None:
    """Let jobs that were given up begin anew."""
    if bool(ids) == all_failed:
        raise click.UsageError("name the jobs, or say --all-failed")
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            wanted = list(ids)
            window = Window(limit=200)
            while all_failed:
                page = await desk.jobs.list(OPERATOR, window, state=JobState.FAILED, type=None)
                wanted += [str(job.id) for job in page.items]
                if page.next_cursor is None:
                    break
                window = Window(limit=200, cursor=page.next_cursor)
            for job_id in wanted:
                click.echo(_line(await desk.jobs.retry(OPERATOR, job_id)))

    run(work())


@jobs.command(epilog=examples("itdesk jobs cancel 0198c0de-0000-7000-8000-000000000000"))
@click.argument("ids", nargs=-1, required=True)
@click.pass_obj
def cancel(context: Context, ids: tuple[str, ...]) -> None:
    """Give up jobs that wait."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            for job_id in ids:
                click.echo(_line(await desk.jobs.cancel(OPERATOR, job_id)))

    run(work())


def _line(job: QueuedJob) -> str:
    line = f"{job.id} {job.state:<7} {job.type} attempts={job.attempts}"
    return line if job.last_error is None else f"{line} {job.last_error}"


@click.group()
def stats() -> None:
    """Statistics of the day."""


@stats.command(epilog=examples("itdesk stats aggregate"))
@click.pass_obj
def aggregate(context: Context) -> None:
    """Count the tickets into today's row now."""
    settings = context.settings()

    async def work() -> None:
        async with context.desk(settings) as desk:
            with Bar() as bar:
                bar.say("counting the tickets")
                day = await desk.stats.aggregate()
        click.echo(
            f"{day.date} total={day.total} open={day.open} triaged={day.triaged}"
            f" in_progress={day.in_progress} blocked={day.blocked} closed={day.closed}"
            f" critical={day.critical_count} high={day.high_count} medium={day.medium_count}"
            f" low={day.low_count}"
        )

    run(work())


COMMANDS: list[click.Command] = [jobs, stats]
