"""Searching: tickets with the places of the words, and how the matches divide, in one answer."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any
from uuid import UUID

from itdesk.desk.reads import Reads
from itdesk.desk.remembered import Remembered
from itdesk.frozen import frozen
from itdesk.model import Caller
from itdesk.runtime.clock import Clock
from itdesk.store import findings, listing, matching
from itdesk.store.findings import Facets, Snippet
from itdesk.store.listing import TicketRow
from itdesk.store.matching import Asked
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window


@frozen
class Hit:
    """A ticket that was found, and where the words stand in it."""

    ticket: TicketRow
    snippets: Sequence[Snippet]


@frozen
class Findings:
    """One page of what was found; `next_cursor` leads to the next."""

    results: list[Hit]
    facets: Facets | None
    next_cursor: str | None


class Search:
    """Finds tickets on behalf of a caller."""

    def __init__(self, reads: Reads, clock: Clock) -> None:
        self._reads = reads
        # How frequent words are decides how they are looked for, and changes little in a minute.
        self._estimates = Remembered(self._estimate, clock, seconds=60.0, size=2000)

    async def page(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window
    ) -> Page[TicketRow]:
        """Return one page of the tickets found among those that the caller may see."""
        scope = caller.scope
        matches = await self._matches(wanted, scope)
        async with self._lent(wanted, scope) as conn:
            page = await listing.list_page(
                conn, wanted, scope=scope, sort=sort, window=window, matches=matches
            )
            total = await matching.count(conn, wanted, scope=scope) if window.count else None
        return replace(page, total=total)

    async def find(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window, facets: bool
    ) -> Findings:
        """Return such a page with the places of the words, and how all matches divide."""
        scope = caller.scope
        matches = await self._matches(wanted, scope)
        async with self._lent(wanted, scope) as conn:
            page = await listing.list_page(
                conn, wanted, scope=scope, sort=sort, window=window, matches=matches
            )
            ids = [UUID(row["id"]) for row in page.items]
            marked = await findings.snippets(conn, wanted, ids, scope=scope)
            divided = None
            if facets:
                divided = await findings.facets(conn, wanted, scope=scope, matches=matches)
        hits = [Hit(row, marked.get(id, ())) for id, row in zip(ids, page.items, strict=True)]
        return Findings(hits, divided, page.next_cursor)

    def _lent(self, wanted: Filter, scope: UUID | None) -> AbstractAsyncContextManager[Any]:
        if Asked(wanted, scope, 0).words_alone:
            return self._reads.searching_words()
        return self._reads.searching()

    async def _matches(self, wanted: Filter, scope: UUID | None) -> int | None:
        """Return about how many of everybody's tickets match, where that decides the way."""
        if not Asked(wanted, scope, 0).by_estimate:
            return None
        return await self._estimates.get(wanted)

    async def _estimate(self, wanted: Filter) -> int:
        async with self._reads.searching() as conn:
            return await matching.estimate(conn, wanted)
