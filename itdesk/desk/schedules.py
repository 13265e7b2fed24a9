"""What happens periodically, once for all daemons: each due run is a job, queued with its row.

What is due, only the database's clock decides.
"""

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import BaseModel

from itdesk.config import Settings
from itdesk.desk.contract import reason
from itdesk.desk.inventory import Inventory
from itdesk.desk.jobs import Job, Jobs
from itdesk.desk.recommendations import Recommendations
from itdesk.desk.stats import Statistics
from itdesk.hookspecs import JobType, Schedule
from itdesk.model import SYSTEM, Event
from itdesk.runtime.log import get_logger
from itdesk.store import cleanup, emails, mirrors, periodic, workflow_runs
from itdesk.store import jobs as jobs_store
from itdesk.store.db import Database, Transaction

ANSWER_HOURS = 48
NEVER_UPLOADED_DAYS = 7
EXPIRED_TOKEN_DAYS = 30
UNDECIDED_DAYS = 30
# Rows deleted by one statement: it shall be over long before its deadline.
BATCH = 2000

TOLD_OF_STORAGE = ("objects", "orphans", "missing", "removed", "parts", "held_back")

Step = Callable[[Any, int], Awaitable[int]]

log = get_logger("schedules")


class _Due(BaseModel):
    """What a run's job is told."""

    due_at: datetime


class Schedules:
    """The schedules of one daemon; any number of daemons may have the same."""

    def __init__(self, db: Database, jobs: Jobs) -> None:
        self._db = db
        self._jobs = jobs
        self._periods: dict[str, int] = {}

    @property
    def shortest(self) -> int | None:
        """Return the seconds of the most frequent schedule, or None when there is none."""
        return min(self._periods.values(), default=None)

    def register(self, *schedules: Schedule) -> None:
        """Add schedules; ValueError when a name is taken. One of no seconds is off."""
        for schedule in schedules:
            # Off or not: what was queued while it was on can still be done.
            self._jobs.register(self._kind(schedule))
            if schedule.seconds > 0:
                self._periods[schedule.name] = schedule.seconds

    def withdraw(self, names: Collection[str]) -> None:
        """Take schedules away: none of their runs becomes due, and what is queued of them waits."""
        self._jobs.withdraw(names)
        for name in names:
            self._periods.pop(name, None)

    async def start_due(self) -> int:
        """Queue what is due and was not begun by any daemon; return how many runs that are."""
        if not self._periods:
            return 0
        async with self._db.transaction() as tx:
            runs = await periodic.start(tx.conn, self._periods, self._jobs.owner)
            for run in runs:
                # The run before may still go on: then it is this one as well.
                name = f"schedule:{run.name}"
                tx.enqueue(run.name, {"due_at": run.due_at}, lane=name, dedupe=name)
        return len(runs)

    def _kind(self, schedule: Schedule) -> JobType:
        """Return the kind of job that a run of this schedule is."""

        async def handle(job: Job) -> None:
            run = periodic.Run(schedule.name, job.read(_Due).due_at)

            async def finish(tx: Transaction) -> None:
                await periodic.finish(tx.conn, run)

            job.closing = finish
            try:
                await schedule.run(job)
                if not job.finished:
                    async with job.transaction():
                        pass
            except Exception as exc:
                async with self._db.connection() as conn:
                    await periodic.note_error(conn, run, reason(exc))
                raise

        return JobType(
            name=schedule.name,
            handle=handle,
            attempts=schedule.attempts,
            timeout_seconds=schedule.timeout_seconds,
            outbound=schedule.outbound,
        )


def own_schedules(
    db: Database,
    stats: Statistics,
    inventory: Inventory,
    recommendations: Recommendations,
    settings: Settings,
) -> tuple[Schedule, ...]:
    """Return what the desk itself does periodically."""

    async def count(job: Job) -> None:
        await stats.aggregate()

    async def sum_up(job: Job) -> None:
        await stats.sum_up()

    async def clean(job: Job) -> None:
        await clean_up(
            db,
            days=settings.jobs.keep_days,
            workflow_days=settings.workflows.keep_days,
            mail_days=settings.mail.keep_days,
        )

    async def recommend(job: Job) -> None:
        await recommendations.refresh()

    async def verify(job: Job) -> None:
        report = await inventory.tidy()
        async with job.transaction() as tx:
            if report.removed or report.parts or report.missing or report.held_back:
                told = {name: getattr(report, name) for name in TOLD_OF_STORAGE}
                tx.record(Event.by(SYSTEM, "storage.verified", data=told))

    seconds = settings.scheduler
    return (
        Schedule(
            name="daily_stats", seconds=seconds.daily_stats_seconds, run=count, outbound=False
        ),
        Schedule(
            name="ticket_counts", seconds=seconds.ticket_counts_seconds, run=sum_up, outbound=False
        ),
        Schedule(
            name="recommendations",
            seconds=seconds.recommendations_seconds,
            run=recommend,
            outbound=False,
        ),
        Schedule(name="cleanup", seconds=seconds.token_cleanup_seconds, run=clean, outbound=False),
        # Left as outbound: whoever has just restored a desk wants nothing removed by itself.
        Schedule(
            name="storage_verify",
            seconds=seconds.storage_verify_seconds,
            run=verify,
            timeout_seconds=3600,
        ),
    )


async def clean_up(
    db: Database, *, days: int, workflow_days: int = 90, mail_days: int = 90
) -> dict[str, int]:
    """Delete what is over; jobs, runs and mails that ended are kept for so many days.

    What mails say whose links are over is forgotten. Return how many of each.
    """
    # A field of the log that is named after a secret shows no value.
    steps: dict[str, Step] = {
        "sessions": cleanup.delete_expired_sessions,
        "verifications": cleanup.delete_expired_verifications,
        "resets": cleanup.delete_expired_resets,
        "challenges": cleanup.delete_expired_challenges,
        "api_access": partial(cleanup.delete_expired_api_tokens, days=EXPIRED_TOKEN_DAYS),
        "sign_ins": cleanup.delete_expired_sign_ins,
        "answers": partial(cleanup.delete_old_answers, hours=ANSWER_HOURS),
        "counts": cleanup.delete_expired_counts,
        "guesses": cleanup.delete_expired_guesses,
        "files": partial(cleanup.delete_never_uploaded, days=NEVER_UPLOADED_DAYS),
        "suggestions": partial(cleanup.delete_undecided_suggestions, days=UNDECIDED_DAYS),
        "deliveries": partial(mirrors.forget_deliveries, days=days),
        "runs": partial(periodic.delete_older, days=days),
        "workflow_runs": partial(workflow_runs.delete_older, days=workflow_days),
        "jobs": partial(jobs_store.delete_finished, days=days),
        "mailed_links": emails.forget_secrets,
        "emails": partial(emails.delete_old, days=mail_days),
    }
    deleted = {name: await _all(db, step) for name, step in steps.items()}
    log.info("cleaned up", **{name: count for name, count in deleted.items() if count})
    return deleted


async def _all(db: Database, step: Step) -> int:
    total = 0
    while True:
        async with db.connection() as conn:
            count = await step(conn, BATCH)
        total += count
        if count < BATCH:
            return total
