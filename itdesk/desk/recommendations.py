"""Recommendations: what the tickets of the last days give reason to do, kept up to date."""

from dataclasses import replace
from typing import Final

from itdesk.desk.reads import Reads
from itdesk.model import Caller
from itdesk.runtime.log import get_logger
from itdesk.store import advice, recommendations
from itdesk.store.db import Database
from itdesk.store.paging import Page, Window
from itdesk.store.recommendations import Impact, Recommendation, RecommendationType

REPEATED_DAYS: Final = 7
REPEATED_LEAST: Final = 3
AGING_HOURS: Final = 24
REOPENED_DAYS: Final = 30
REOPENED_LEAST: Final = 2
OVERLOADED_LEAST: Final = 10
OVERLOADED_TIMES: Final = 2.0

log = get_logger("recommendations")


class Recommendations:
    """Shows recommendations to those who may read their tickets, and finds new ones."""

    def __init__(self, db: Database, reads: Reads) -> None:
        self._db = db
        self._reads = reads

    async def list(
        self,
        caller: Caller,
        window: Window,
        *,
        type: RecommendationType | None = None,
        impact: Impact | None = None,
    ) -> Page[Recommendation]:
        """Return one page of those that rest on tickets that the caller may see."""
        scope = caller.scope
        async with self._db.connection() as conn:
            page = await recommendations.list_page(
                conn, window, scope=scope, type=type, impact=impact
            )
            if not window.count:
                return page
            total = await recommendations.count(conn, scope=scope, type=type, impact=impact)
        return replace(page, total=total)

    async def refresh(self) -> tuple[int, int, int]:
        """Look for reasons anew; return how many recommendations are new, changed and gone."""
        async with self._reads.reporting() as conn:
            found = [
                *await advice.repeated(conn, days=REPEATED_DAYS, least=REPEATED_LEAST),
                *await advice.aging(conn, hours=AGING_HOURS),
                *await advice.reopened(conn, days=REOPENED_DAYS, least=REOPENED_LEAST),
                *await advice.overloaded(conn, least=OVERLOADED_LEAST, times=OVERLOADED_TIMES),
            ]
        async with self._db.transaction() as tx:
            numbers = await recommendations.replace_found(tx.conn, found)
        if any(numbers):
            new, changed, gone = numbers
            log.info("recommendations refreshed", new=new, changed=changed, gone=gone)
        return numbers
