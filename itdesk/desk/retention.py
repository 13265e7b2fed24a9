"""What is deleted because it is old and an operator asked for that; by default nothing is."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from itdesk.config import Settings
from itdesk.desk.attachments import Attachments
from itdesk.desk.jobs import Job
from itdesk.errors import NotFound
from itdesk.hookspecs import Schedule
from itdesk.model import SYSTEM, Event
from itdesk.runtime.log import get_logger
from itdesk.store import cleanup
from itdesk.store.db import Database

BATCH = 1000
FILES = 100
LONGEST_SECONDS = 3600.0

log = get_logger("retention")

Step = Callable[[Any, int], Awaitable[int]]


class Retention:
    """Deletes, a bounded batch at a time, what is older than the settings want it."""

    def __init__(self, db: Database, attachments: Attachments, settings: Settings) -> None:
        self._db = db
        self._attachments = attachments
        self._settings = settings

    def schedule(self) -> Schedule:
        """Return the schedule of deleting; off unless something is asked for."""
        asked = any(self._settings.retention.model_dump().values())
        seconds = self._settings.scheduler.token_cleanup_seconds if asked else 0

        async def run(job: Job) -> None:
            await self.apply()

        # Left as outbound: whoever has just restored a desk wants nothing removed by itself.
        return Schedule(name="retention", seconds=seconds, run=run, timeout_seconds=LONGEST_SECONDS)

    async def apply(self) -> dict[str, int]:
        """Delete what is due; return how much of each, which the journal keeps as well."""
        wanted = self._settings.retention
        done: dict[str, int] = {}
        if days := wanted.mail_bodies_days:
            done["mail_bodies"] = await self._all(partial(cleanup.forget_mail_bodies, days=days))
        if days := wanted.audit_days:
            done["audit"] = await self._all(partial(cleanup.delete_audit, days=days))
        if days := wanted.closed_attachments_days:
            done["attachments"] = await self._files(days)
        done = {name: count for name, count in done.items() if count}
        if done:
            async with self._db.transaction() as tx:
                tx.record(Event.by(SYSTEM, "retention.applied", data=done))
            log.info("retention applied", **done)
        return done

    async def _all(self, step: Step) -> int:
        total = 0
        while True:
            async with self._db.transaction() as tx:
                count = await step(tx.conn, BATCH)
            total += count
            if count < BATCH:
                return total

    async def _files(self, days: int) -> int:
        """Delete files as people do: with their objects, and told on their tickets."""
        total = 0
        while True:
            async with self._db.connection() as conn:
                due = await cleanup.files_of_closed(conn, FILES, days=days)
            for file_id in due:
                try:
                    await self._attachments.delete(SYSTEM, file_id)
                    total += 1
                except NotFound:
                    continue  # somebody else did it meanwhile
            if len(due) < FILES:
                return total
