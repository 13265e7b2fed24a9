"""Tickets as they go out: one of them, or a page of a list.

A row goes out as it comes in: it is no `Ticket`, because making fifty of those takes longer than
finding them. It has the same fields, spelled as JSON spells them. Lists show the same tickets all
day: what a ticket looks like is read once, and then again when it was written since.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from itdesk.runtime.clock import Clock
from itdesk.store import matching, rows, tickets
from itdesk.store.matching import Asked
from itdesk.store.paging import Page
from itdesk.store.rows import TicketRow

# The sub-selects hide how many there are: else the planner makes a new plan for each number.
_NAMES = """unnest((SELECT $1::{1}[]), (SELECT $2::uuid[]))
    WITH ORDINALITY AS w (name, scope, n) ON t.{0} = w.name"""
# What a ticket may be named by, and where these names are looked up.
COLUMNS: Mapping[str, str] = {
    "id": _NAMES.format("id", "uuid"),
    "key": _NAMES.format("key", "text"),
    "number": _NAMES.format("number", "bigint"),
}

# How long a ticket's looks are kept: twice as long at most. Transactions are numbered anew in a
# database that was put back.
KEPT_SECONDS: Final = 30.0
# Twice as many bytes are kept at most.
KEPT_BYTES: Final = 2 * 2**20


async def named(
    conn: Any, column: str, wanted: Sequence[tuple[Any, UUID | None]]
) -> Mapping[tuple[Any, UUID | None], TicketRow]:
    """Return the tickets named by a column's values, each as far as its scope may see it."""
    query = f"""
        SELECT w.n, {rows.ROW} FROM tickets t {rows.BESIDE}
        JOIN {COLUMNS[column]}
        WHERE w.scope IS NULL OR {tickets.OWN.format(n="w.scope")}
    """  # noqa: S608 - column, its type and the condition are literals of the store
    found = await conn.fetch(query, *map(list, zip(*wanted, strict=True)))
    return {wanted[row["n"] - 1]: rows.without(row, "n") for row in found}


class Listing:
    """Pages of lists of tickets, on any connection."""

    def __init__(self, clock: Clock) -> None:
        self._looks = _Looks(clock)

    async def page(self, conn: Any, asked: Asked, *, matches: int | None = None) -> Page[TicketRow]:
        """Return one page of the tickets that are asked for, by keyset when a cursor was given.

        Which tickets are on it, and where, is of one moment, what they look like of that or a later
        one; those that have left the list in between are not shown. It is for reading only: others
        are shown the same rows. `matches` is what `matching.estimate` says, if that is known.
        """
        found = await matching.find(conn, asked, matches=matches)
        known = self._looks.of(found.items)
        names = [one["name"] for one in found.items if one["name"] not in known]
        for stamp, row in await _read(conn, asked, names) if names else ():
            known[row["id"]] = row
            # Within a transaction several states bear its number, and maybe none will last.
            if not conn.is_in_transaction():
                self._looks.keep(stamp, row)
        # One that is not known by now has left the list since it was found.
        shown = [known[one["name"]] for one in found.items if one["name"] in known]
        return Page(shown, found.next_cursor)


async def _read(conn: Any, asked: Asked, names: Sequence[str]) -> Sequence[tuple[int, TicketRow]]:
    """Return these tickets of a list with their stamps, but for those that have just left it."""
    where = matching.still(asked, names)
    query = f"""
        SELECT t.xmin AS stamp, {rows.ROW} FROM tickets t {rows.BESIDE} WHERE {where}
    """  # noqa: S608 - conditions are literals of the store, values are parameters
    found = await conn.fetch(query, *where.values)
    return [(row["stamp"], rows.without(row, "stamp")) for row in found]


class _Looks:
    """What tickets looked like after the transactions that wrote them last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._recent: dict[str, tuple[int, TicketRow]] = {}
        self._before = self._recent
        self._bytes = 0
        self._until = 0.0

    def of(self, found: Sequence[Any]) -> dict[str, TicketRow]:
        """Return the known looks, by name, of tickets that were found with their stamps."""
        now = self._clock.monotonic()
        if now >= self._until + KEPT_SECONDS:
            self._recent = {}
            self._turn(now + KEPT_SECONDS)
        elif now >= self._until:
            # Counted from when it was due: nothing gets older for being asked for late.
            self._turn(self._until + KEPT_SECONDS)
        recent, before, known = self._recent, self._before, {}
        for name, stamp, _ in found:
            kept = recent.get(name) or before.get(name)
            if kept is not None and kept[0] == stamp:
                known[name] = kept[1]
        return known

    def keep(self, stamp: int, row: TicketRow) -> None:
        """Keep what a ticket looks like; what is kept longest is forgotten for it."""
        self._recent[row["id"]] = (stamp, row)
        values = (row, *row.values(), *row["tags"], *row["assignee_ids"])
        self._bytes += sum(map(sys.getsizeof, values))
        if self._bytes > KEPT_BYTES:
            self._turn(self._clock.monotonic() + KEPT_SECONDS)

    def _turn(self, until: float) -> None:
        self._before, self._recent, self._bytes = self._recent, {}, 0
        self._until = until
