"""Searching: tickets with the places of the words, and how the matches divide, in one answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from itdesk.desk.reads import Reads
from itdesk.model import Caller
from itdesk.store import findings, listing, matching
from itdesk.store.findings import Facets, Snippet
from itdesk.store.listing import TicketRow
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Window


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

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def find(
        self, caller: Caller, wanted: Filter, *, sort: str, window: Window, facets: bool
    ) -> Findings:
        """Return one page of the tickets found among those that the caller may see."""
        scope = caller.scope
        async with self._reads.searching() as conn:
            page = await matching.find(conn, wanted, scope=scope, sort=sort, window=window)
            ids = [one.id for one in page.items]
            rows = await listing.rows(conn, ids)
            marked = await findings.snippets(conn, wanted, ids, scope=scope)
            divided = await findings.facets(conn, wanted, scope=scope) if facets else None
        by_id = {str(id): found for id, found in marked.items()}
        hits = [Hit(row, by_id.get(row["id"], ())) for row in rows]
        return Findings(hits, divided, page.next_cursor)
