"""Tickets as they go out: one of them, or a page of a list.

A row goes out as it comes in: it is no `Ticket`, because making fifty of those takes longer than
finding them. It has the same fields, spelled as JSON spells them.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from itdesk.store import matching, narrowing, rows, tickets
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window, encode_cursor

TicketRow = Mapping[str, Any]

# The sub-selects hide how many there are: else the planner makes a new plan for each number.
_NAMES = """unnest((SELECT $1::{1}[]), (SELECT $2::uuid[]))
    WITH ORDINALITY AS w (name, scope, n) ON t.{0} = w.name"""
# What a ticket may be named by, and where these names are looked up.
COLUMNS: Mapping[str, str] = {
    "id": _NAMES.format("id", "uuid"),
    "key": _NAMES.format("key", "text"),
    "number": _NAMES.format("number", "bigint"),
}


async def list_page(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    sort: str = "-created_at",
    window: Window,
    matches: int | None = None,
) -> Page[TicketRow]:
    """Return one page of the tickets in scope, by keyset when a cursor is given.

    `matches` is what `matching.estimate` says, if that is known.
    """
    if wanted.q is None and wanted.whose(scope) is None:
        return await _plain_page(conn, wanted, sort=sort, window=window)
    page = await matching.find(conn, wanted, scope=scope, sort=sort, window=window, matches=matches)
    return Page([_without(dict(row), "value") for row in page.items], page.next_cursor)


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
    return {wanted[row["n"] - 1]: _without(dict(row), "n") for row in found}


async def _plain_page(conn: Any, wanted: Filter, *, sort: str, window: Window) -> Page[TicketRow]:
    """Return one page of everybody's tickets in one statement: the list that is asked most."""
    where = narrowing.conditions(wanted)
    where.add(matching.after(where, sort, matching.place(window, sort)))
    column, by = matching.column(sort), matching.direction(sort)
    query = f"""
        SELECT {rows.ROW}, {column} AS value FROM tickets t {rows.BESIDE}
        WHERE {where}
        ORDER BY {column} {by}, t.id {by} LIMIT {window.limit + 1:d} OFFSET {window.offset:d}
    """  # noqa: S608 - conditions are literals of this module, values are parameters
    found = await conn.fetch(query, *where.values)
    page = Page.cut(found, window.limit, lambda row: encode_cursor(sort, row["value"], row["id"]))
    return Page([_without(dict(row), "value") for row in page.items], page.next_cursor)


def _without(row: dict[str, Any], name: str) -> TicketRow:
    del row[name]
    return row
