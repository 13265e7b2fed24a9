"""Tickets as they go out: one of them, or a page of a list.

A row goes out as it comes in: it is no `Ticket`, because making fifty of those takes longer than
finding them. It has the same fields, spelled as JSON spells them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.store import matching, narrowing, tickets
from itdesk.store.matching import TIMES, count
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

__all__ = ["Filter", "TicketRow", "count", "list_page", "one", "rows"]

TicketRow = Mapping[str, Any]

_TIME = (
    """replace(to_char({0} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '.000000Z', 'Z')"""
)

# The fields of `model.Ticket`, in its order.
_ROW = f"""
    t.id::text AS id, t.number, t.key, t.project_id::text AS project_id, p.key AS project, t.title,
    t.description, t.status, t.priority, t.category, t.department, t.tags,
    t.reporter_id::text AS reporter_id, t.reporter_name, a.ids[1] AS assignee_id,
    a.ids AS assignee_ids, t.resolution, t.predicted_priority, t.predicted_category,
    CASE WHEN t.external_source IS NOT NULL THEN jsonb_build_object(
        'source', t.external_source, 'id', t.external_id, 'assignee', t.external_assignee,
        'updated_at', {_TIME.format("t.external_updated_at")},
        'last_synced_at', {_TIME.format("t.last_synced_at")}) END AS external,
    t.first_action_at, t.closed_at, t.version, t.created_at, t.updated_at
"""  # noqa: S608 - literals of this module
_FROM = """
    tickets t JOIN projects p ON p.id = t.project_id CROSS JOIN LATERAL (
        SELECT ARRAY(SELECT user_id::text FROM ticket_assignees
                     WHERE ticket_id = t.id ORDER BY position) AS ids
        -- Keeps it from being looked up once for each column that uses it.
        OFFSET 0) AS a
"""


async def list_page(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    sort: str = "-created_at",
    window: Window,
) -> Page[TicketRow]:
    """Return one page of the tickets in scope, by keyset when a cursor is given."""
    if wanted.q is None and wanted.whose(scope) is None:
        return await _plain_page(conn, wanted, sort=sort, window=window)
    page = await matching.find(conn, wanted, scope=scope, sort=sort, window=window)
    ids = [one.id for one in page.items]
    return Page(await rows(conn, ids), page.next_cursor)


async def one(conn: Any, ref: str, *, scope: UUID | None) -> TicketRow:
    """Return the ticket named by id, key or number as a list shows it; else NotFound."""
    column, value = tickets.reference(ref)
    query = f"""
        SELECT {_ROW} FROM {_FROM}
        WHERE t.{column} = $1 {"AND " + tickets.OWN.format(n="$2") if scope else ""}
    """  # noqa: S608 - column and scope are literals of the store
    row = await conn.fetchrow(query, value, *([scope] if scope else []))
    if row is None:
        raise NotFound.of("ticket")
    return dict(row)


async def rows(conn: Any, ids: Sequence[UUID]) -> list[TicketRow]:
    """Return these tickets as a list shows them, in the order of their ids; some may be gone."""
    query = f"""
        SELECT {_ROW} FROM {_FROM} WHERE t.id = ANY ($1::uuid[])
        ORDER BY array_position($1::uuid[], t.id)
    """  # noqa: S608 - a literal of this module
    return [dict(row) for row in await conn.fetch(query, ids)]


async def _plain_page(conn: Any, wanted: Filter, *, sort: str, window: Window) -> Page[TicketRow]:
    """Return one page of everybody's tickets in one statement: the list that is asked most."""
    name = sort.removeprefix("-")
    column = matching.SORTS[name]
    direction, beyond = ("DESC", "<") if sort.startswith("-") else ("ASC", ">")
    where = narrowing.conditions(wanted)
    if window.cursor is not None:
        # A cursor may hold any bigint, a rank is smaller: the cast keeps it comparable.
        kind, cast = (datetime, "") if name in TIMES else (int, "::bigint")
        value, last = decode_cursor(window.cursor, sort, (kind, UUID))
        where.add(f"({column}, t.id) {beyond} ({{0}}{cast}, {{1}})", value, last)
    query = f"""
        SELECT {_ROW}, {column} AS sort_value FROM {_FROM}
        WHERE {where}
        ORDER BY {column} {direction}, t.id {direction} LIMIT {window.limit + 1:d}
        OFFSET {window.offset:d}
    """  # noqa: S608 - conditions are literals of this module, values are parameters
    found = await conn.fetch(query, *where.values)
    page = Page.cut(
        found, window.limit, lambda row: encode_cursor(sort, row["sort_value"], row["id"])
    )
    listed: list[TicketRow] = [_without(dict(row), "sort_value") for row in page.items]
    return Page(listed, page.next_cursor)


def _without(row: dict[str, Any], name: str) -> TicketRow:
    del row[name]
    return row
