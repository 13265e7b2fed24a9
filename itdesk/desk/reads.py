"""Connections for questions that may take long: few, for reading only, each statement bounded.

They are apart from those of the desk's daily work, which so never waits for a search or a report.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from itdesk.config import Settings
from itdesk.errors import Unavailable
from itdesk.store.db import Database, Limits
from itdesk.store.failures import Overdue

_NARROW: Final = "Narrow it: add a word, a status, a project or a time."


class Reads:
    """Lends connections for searches and reports."""

    def __init__(self, url: str, settings: Settings) -> None:
        self._report_ms = settings.tickets.report_seconds * 1000
        limits = Limits(
            connections=max(2, settings.database.pool_max // 4),
            connect_seconds=settings.database.connect_seconds,
            acquire_seconds=settings.database.acquire_seconds,
            command_seconds=settings.database.command_seconds + settings.tickets.report_seconds,
        )

        def reading(plans: str) -> Database:
            bounds = {
                "default_transaction_read_only": "on",
                "statement_timeout": str(settings.tickets.search_milliseconds),
                "plan_cache_mode": plans,
            }
            return Database(url, limits, settings=bounds)

        # How frequent a value is decides the plan.
        self._db = reading("force_custom_plan")
        # But for words alone, whose way is fixed in the statement: planning takes longer than most.
        self._for_words = reading("force_generic_plan")

    async def close(self) -> None:
        """Close the connections."""
        await self._db.close()
        await self._for_words.close()

    def searching(self, *, advice: str = _NARROW) -> AbstractAsyncContextManager[Any]:
        """Lend a connection for searching; Unavailable, with advice, when it takes too long."""
        return self._lent(self._db, advice)

    def searching_words(self) -> AbstractAsyncContextManager[Any]:
        """Lend one for words in everybody's tickets and nothing else, to be found the same way."""
        return self._lent(self._for_words, _NARROW)

    @asynccontextmanager
    async def _lent(self, db: Database, advice: str) -> AsyncIterator[Any]:
        try:
            async with db.connection() as conn:
                yield conn
        except Overdue as exc:
            raise Unavailable(
                f"The search took too long. {advice}",
                code="E_SEARCH_TOO_BROAD",
                retry_after=5,
            ) from exc

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Any]:
        """Lend a connection that sees one moment of the database, however much is asked."""
        try:
            async with (
                self._db.connection() as conn,
                conn.transaction(isolation="repeatable_read", readonly=True),
            ):
                await conn.execute(
                    "SELECT set_config('statement_timeout', $1, true)", str(self._report_ms)
                )
                yield conn
        except Overdue as exc:
            raise Unavailable(
                "The report took too long. Ask for fewer days or for one project.",
                code="E_REPORT_TOO_BROAD",
                retry_after=30,
            ) from exc
