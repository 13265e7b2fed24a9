"""Lists of tickets: what they are narrowed to, in which order, and one page of them.

A row of a list goes out as it comes in: it is no `Ticket`, because making fifty of those takes
longer than finding them. It has the same fields, spelled as JSON spells them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.model import Category, Priority, Status
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor
from itdesk.store.tickets import OWN

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
                     WHERE ticket_id = t.id ORDER BY position) AS ids) AS a
"""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list is narrowed to; an empty field narrows nothing."""

    status: Sequence[Status] = ()
    priority: Sequence[Priority] = ()
    category: Sequence[Category] = ()
    department: str | None = None
    project: str | None = None
    assignee_id: UUID | None = None
    reporter_id: UUID | None = None
    tag: Sequence[str] = ()
    q: str | None = None
    own: UUID | None = None


# The sort keys of the API, and the columns that they order by.
SORTS: Mapping[str, str] = {
    "created_at": "t.created_at",
    "updated_at": "t.updated_at",
    "priority": "t.priority_rank",
    "status": "t.status_rank",
    "number": "t.number",
}
_TIMES = frozenset({"created_at", "updated_at"})


class _Where:
    """The conditions of one list: literal SQL on one side, values on the other."""

    def __init__(self) -> None:
        self.sql: list[str] = []
        self.values: list[Any] = []

    def add(self, sql: str, *values: Any) -> None:
        """Add a condition in which {0}, {1} ... stand for the values."""
        first = len(self.values) + 1
        self.values.extend(values)
        self.sql.append(sql.format(*(f"${first + i}" for i in range(len(values)))))

    def __str__(self) -> str:
        return " AND ".join(self.sql) or "true"


def _where(wanted: Filter, scope: UUID | None) -> _Where:
    where = _Where()
    if scope is not None:
        where.add(OWN.format(n="{0}"), scope)
    if wanted.own is not None:
        where.add(OWN.format(n="{0}"), wanted.own)
    if wanted.status:
        where.add("t.status = ANY ({0}::text[])", list(wanted.status))
    if wanted.priority:
        where.add("t.priority = ANY ({0}::text[])", list(wanted.priority))
    if wanted.category:
        where.add("t.category = ANY ({0}::text[])", list(wanted.category))
    if wanted.department is not None:
        where.add("t.department = {0}", wanted.department)
    if wanted.project is not None:
        where.add("t.project_id = (SELECT id FROM projects WHERE key = {0})", wanted.project)
    if wanted.assignee_id is not None:
        where.add(
            "EXISTS (SELECT 1 FROM ticket_assignees f"
            " WHERE f.ticket_id = t.id AND f.user_id = {0})",
            wanted.assignee_id,
        )
    if wanted.reporter_id is not None:
        where.add("t.reporter_id = {0}", wanted.reporter_id)
    if wanted.tag:
        where.add("t.tags @> {0}::text[]", list(wanted.tag))
    if wanted.q is not None:
        _search(where, wanted.q, internal=scope is None)
    return where


def _search(where: _Where, words: str, *, internal: bool) -> None:
    """Find words in title, key, tags, description and comments; internal ones for agents only."""
    if internal:
        where.add(
            "(t.search @@ websearch_to_tsquery('english', {0})"
            " OR t.search_internal @@ websearch_to_tsquery('english', {0}))",
            words,
        )
    else:
        where.add("t.search @@ websearch_to_tsquery('english', {0})", words)


async def list_page(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    sort: str = "-created_at",
    window: Window,
) -> Page[TicketRow]:
    """Return one page of the tickets in scope, by keyset when a cursor is given."""
    name = sort.removeprefix("-")
    column = SORTS[name]
    direction, beyond = ("DESC", "<") if sort.startswith("-") else ("ASC", ">")
    where = _where(wanted, scope)
    if window.cursor is not None:
        # A cursor may hold any bigint, a rank is smaller: the cast keeps it comparable.
        kind, cast = (datetime, "") if name in _TIMES else (int, "::bigint")
        value, last = decode_cursor(window.cursor, sort, (kind, UUID))
        where.add(f"({column}, t.id) {beyond} ({{0}}{cast}, {{1}})", value, last)
    query = f"""
        SELECT {_ROW}, {column} AS sort_value FROM {_FROM}
        WHERE {where}
        ORDER BY {column} {direction}, t.id {direction} LIMIT {window.limit + 1:d}
        OFFSET {window.offset:d}
    """  # noqa: S608 - conditions are literals of this module, values are parameters
    rows = await conn.fetch(query, *where.values)
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(sort, row["sort_value"], row["id"])
    )
    rows = [dict(row) for row in page.items]
    for row in rows:
        del row["sort_value"]
    return Page(rows, page.next_cursor)


async def count(conn: Any, wanted: Filter, *, scope: UUID | None) -> int:
    """Return how many tickets a list has in all; costly on large desks, so only when asked."""
    where = _where(wanted, scope)
    query = f"SELECT count(*) FROM tickets t WHERE {where}"  # noqa: S608 - literals of this module
    total: int = await conn.fetchval(query, *where.values)
    return total
