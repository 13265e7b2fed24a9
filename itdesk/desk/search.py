"""Searching: tickets with the places of the words, and how the matches divide, in one answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from itdesk.desk.reads import Reads
from itdesk.model import Caller
from itdesk.store import findings, listing, matching
from itdesk.store.db import Database
from itdesk.store.findings import Facets, Snippet
from itdesk.store.listing import TicketRow
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window


@dataclass(frozen=True, slots=True)
class Hit:
    """A ticket that was found, and where the words stand in it."""

    ticket: TicketRow
    snippets: Sequence[Snippet]


@dataclass(frozen=True, slots=True)
class Findings:
    """One page of what was found; `next_cursor` leads to the next."""

    results: list[Hit]
    facets: Facets | None
    next_cursor: str | None


class Search:
    """Finds tickets on behalf of a caller."""

    def __init__(self, db: Database, reads: Reads) -> None:
        self._db = db
        self._reads = reads

    async def page(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window
    ) -> Page[TicketRow]:
        """Return one page of the tickets found among those that the caller may see."""
        scope = caller.scope
        async with self._reads.searching() as conn:
            page = await matching.find(conn, wanted, scope=scope, sort=sort, window=window)
            total = await matching.count(conn, wanted, scope=scope) if window.count else None
        return Page(await self._rows(page), page.next_cursor, total)

    async def find(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window, facets: bool
    ) -> Findings:
        """Return such a page with the places of the words, and how all matches divide."""
        scope = caller.scope
        async with self._reads.searching() as conn:
            page = await matching.find(conn, wanted, scope=scope, sort=sort, window=window)
            ids = [one.id for one in page.items]
            marked = await findings.snippets(conn, wanted, ids, scope=scope)
            divided = await findings.facets(conn, wanted, scope=scope) if facets else None
        by_id = {str(id): found for id, found in marked.items()}
        hits = [Hit(row, by_id.get(row["id"], ())) for row in await self._rows(page)]
        return Findings(hits, divided, page.next_cursor)

    async def _rows(self, page: Page[matching.Found]) -> list[TicketRow]:
        # On a connection of the daily work: there the statement is not planned anew each time.
        async with self._db.connection() as conn:
            return await listing.rows(conn, [one.id for one in page.items])
