"""What happened while a plugin was off and leads to work of it all the same, once it is on again.

The journal knows what happened. An event that has its job already, because another daemon still had
the plugin, or caught up before, leads to no second one.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from itdesk.desk.jobs import Jobs
from itdesk.hookspecs import JobType
from itdesk.runtime.log import get_logger
from itdesk.store import events
from itdesk.store.db import Database

BATCH = 500
# A change may have begun before the switch was used, and be committed after the plugin was out.
SPARE = timedelta(minutes=1)

log = get_logger("plugin")


async def catch_up(db: Database, jobs: Jobs, kinds: Sequence[JobType], since: datetime) -> None:
    """Queue the jobs of those kinds that events since then did not lead to."""
    for kind in kinds:
        after: UUID | None = None
        queued = 0
        while True:
            async with db.transaction() as tx:
                await events.lock_catching_up(tx.conn)
                missed = await events.without_job(
                    tx.conn, kind.name, kind.on_events, since - SPARE, after=after, limit=BATCH
                )
                new = [job for job in jobs.of_events(missed) if job.type == kind.name]
                tx.jobs.extend(new)
            queued += len(new)
            if len(missed) < BATCH:
                break
            after = missed[-1].id
        if queued:
            log.info("changes made meanwhile are queued", type=kind.name, count=queued)
