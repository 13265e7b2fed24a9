"""The numbers of each day, counted every now and then and kept."""

from datetime import date

from itdesk.errors import Invalid
from itdesk.model import Caller, Role
from itdesk.store import reports, stats
from itdesk.store.db import Database
from itdesk.store.stats import DailyStats


class Statistics:
    """Counts tickets into one row a day, and returns those rows."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def aggregate(self) -> DailyStats:
        """Count all tickets as they are now into the row of today (UTC), which is unique."""
        async with self._db.transaction() as tx:
            await stats.lock(tx.conn)
            return await stats.aggregate(tx.conn)

    async def sum_up(self) -> int:
        """Sum up what changes of tickets added to the counts; return how many rows that were."""
        async with self._db.transaction() as tx:
            return await reports.sum_up(tx.conn)

    async def days(
        self, caller: Caller, *, since: date | None = None, until: date | None = None
    ) -> list[DailyStats]:
        """Return the rows of the days from one to another, both included, in their order."""
        caller.require(Role.AGENT, "see statistics")
        if since is not None and until is not None and since > until:
            raise Invalid.field("from", "is after `to`")
        async with self._db.connection() as conn:
            return await stats.list_days(conn, since=since, until=until)
