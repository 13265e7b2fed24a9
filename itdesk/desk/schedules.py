"""What happens periodically, once for all daemons: each due run is a job, queued with its row.

What is due, only the database's clock decides. Objects in the storage that no row knows of are
not cleaned up here: a storage cannot list what it holds.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel

from itdesk.config import Settings
from itdesk.desk.contract import reason
from itdesk.desk.jobs import Job, Jobs
from itdesk.desk.stats import Statistics
from itdesk.hookspecs import JobType, Schedule
from itdesk.runtime.log import get_logger
from itdesk.store import attachments, idempotency, periodic, sessions, users
from itdesk.store.db import Database, Transaction

IDEMPOTENCY_HOURS = 48
NEVER_UPLOADED_DAYS = 7
# Rows deleted by one statement: it shall be over long before its deadline.
BATCH = 2000

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
        )


@dataclass(frozen=True, slots=True)
class Cleanup:
    """Deletes what is over: sessions, tokens, kept answers, files that never came, old jobs."""

    db: Database
    jobs: Jobs
    keep_days: int

    async def run(self, job: Job) -> None:
        """Delete all of it, a batch a statement."""
        counts = {
            "sessions": await self._sessions(),
            "tokens": await self._all(users.delete_expired_tokens),
            "answers": await self._all(
                lambda conn, limit: idempotency.forget_older(conn, IDEMPOTENCY_HOURS, limit=limit)
            ),
            "files": await self._all(
                lambda conn, limit: attachments.delete_never_uploaded(
                    conn, days=NEVER_UPLOADED_DAYS, limit=limit
                )
            ),
            "runs": await self._all(
                lambda conn, limit: periodic.delete_older(conn, days=self.keep_days, limit=limit)
            ),
            "jobs": await self._jobs(),
        }
        log.info("cleaned up", **{name: count for name, count in counts.items() if count})


def own_schedules(
    db: Database, jobs: Jobs, stats: Statistics, settings: Settings
) -> tuple[Schedule, ...]:
    """Return what the desk itself does periodically."""
