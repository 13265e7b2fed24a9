"""Searching: tickets with the places of the words, and how the matches divide, in one answer."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from itdesk.desk.reads import Reads
from itdesk.desk.remembered import Remembered
from itdesk.frozen import frozen
from itdesk.model import Caller
from itdesk.runtime.clock import Clock
from itdesk.store import findings, matching
from itdesk.store.findings import Facets, Snippet
from itdesk.store.listing import Listing
from itdesk.store.matching import Asked
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window
from itdesk.store.rows import TicketRow


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

    def __init__(self, reads: Reads, pages: Listing, clock: Clock) -> None:
        self._reads = reads
        self._pages = pages
        # How frequent words are decides how they are looked for, and changes little in a minute.
        self._estimates = Remembered(self._estimate, clock, seconds=60.0, size=2000)

    async def page(self, asked: Asked, *, count: bool) -> Page[TicketRow]:
        """Return one page of the tickets that are found, and how many there are if asked."""
        matches = await self._matches(asked)
        async with self._lent(asked) as conn:
            page = await self._pages.page(conn, asked, matches=matches)
            total = await matching.count(conn, asked) if count else None
        return replace(page, total=total)

    async def find(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window, facets: bool
    ) -> Findings:
        """Return one page of what is found, where the words stand, and how all matches divide."""
        asked = Asked.page(wanted, caller.scope, sort, window)
        matches = await self._matches(asked)
        async with self._lent(asked) as conn:
            page = await self._pages.page(conn, asked, matches=matches)
            marked = await findings.snippets(conn, asked, [row["id"] for row in page.items])
            divided = None
            if facets:
                divided = await findings.facets(conn, asked, matches=matches)
        hits = [Hit(row, marked.get(row["id"], ())) for row in page.items]
        return Findings(hits, divided, page.next_cursor)

    def _lent(self, asked: Asked) -> AbstractAsyncContextManager[Any]:
        return self._reads.searching_words() if asked.words_alone else self._reads.searching()

    async def _matches(self, asked: Asked) -> int | None:
        """Return about how many of everybody's tickets match, where that decides the way."""
        return await self._estimates.get(asked.wanted) if asked.by_estimate else None

    async def _estimate(self, wanted: Filter) -> int:
        async with self._reads.searching() as conn:
            return await matching.estimate(conn, wanted)
