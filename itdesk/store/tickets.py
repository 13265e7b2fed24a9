"""Tickets as rows: each function is one statement, and every read names whose eyes it is for.

`scope` is the user whose own tickets are all that may be seen, or None for every ticket.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.model import Category, External, Priority, Role, Status, Ticket
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

_COLUMNS = """
    t.id, t.number, t.key, t.project_id, p.key AS project, t.title, t.description, t.status,
    t.priority, t.category, t.department, t.tags, t.reporter_id, t.reporter_name, t.resolution,
    t.predicted_priority, t.predicted_category, t.external_source, t.external_id,
    t.external_assignee, t.external_updated_at, t.last_synced_at, t.first_action_at, t.closed_at,
    t.version, t.created_at, t.updated_at,
    ARRAY(SELECT a.user_id FROM ticket_assignees a
          WHERE a.ticket_id = t.id ORDER BY a.position) AS assignee_ids
"""

_OWN = """(t.reporter_id = {n} OR EXISTS (
    SELECT 1 FROM ticket_assignees own WHERE own.ticket_id = t.id AND own.user_id = {n}))"""

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9]{1,9}-[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


def _ticket(row: Any) -> Ticket:
    assignees = row["assignee_ids"]
    category, predicted = row["category"], row["predicted_category"]
    predicted_priority = row["predicted_priority"]
    return Ticket(
        id=row["id"],
        number=row["number"],
        key=row["key"],
        project_id=row["project_id"],
        project=row["project"],
        title=row["title"],
        description=row["description"],
        status=Status(row["status"]),
        priority=Priority(row["priority"]),
        category=Category(category) if category is not None else None,
        department=row["department"],
        tags=row["tags"],
        reporter_id=row["reporter_id"],
        reporter_name=row["reporter_name"],
        assignee_id=assignees[0] if assignees else None,
        assignee_ids=assignees,
        resolution=row["resolution"],
        predicted_priority=Priority(predicted_priority) if predicted_priority is not None else None,
        predicted_category=Category(predicted) if predicted is not None else None,
        external=_external(row),
        first_action_at=row["first_action_at"],
        closed_at=row["closed_at"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _external(row: Any) -> External | None:
    if row["external_source"] is None:
        return None
    return External(
        source=row["external_source"],
        id=row["external_id"],
        assignee=row["external_assignee"],
        updated_at=row["external_updated_at"],
        last_synced_at=row["last_synced_at"],
    )


def _reference(ref: str) -> tuple[str, Any]:
    """Return the column and value that a ticket is named by: its id, key or number."""
    if _KEY.fullmatch(ref):
        return "key", ref.upper()
    if _NUMBER.fullmatch(ref):
        return "number", int(ref)
    try:
        return "id", UUID(ref)
    except ValueError:
        raise NotFound.of("ticket") from None


async def find(conn: Any, ref: str, *, scope: UUID | None, lock: bool = False) -> Ticket:
    """Read the ticket named by id, key or number; with `lock`, hold its row until the commit."""
    column, value = _reference(ref)
    query = f"""
        SELECT {_COLUMNS} FROM tickets t JOIN projects p ON p.id = t.project_id
        WHERE t.{column} = $1 {"AND " + _OWN.format(n="$2") if scope else ""}
        {"FOR NO KEY UPDATE OF t" if lock else ""}
    """  # noqa: S608 - column, scope and lock are literals of this module
    row = await conn.fetchrow(query, value, *([scope] if scope else []))
    if row is None:
        raise NotFound.of("ticket")
    return _ticket(row)


async def by_ids(conn: Any, ticket_ids: Sequence[UUID]) -> dict[UUID, Ticket]:
    """Read these tickets for all eyes, as they are now; those that are gone are left out."""
    query = f"""
        SELECT {_COLUMNS} FROM tickets t JOIN projects p ON p.id = t.project_id
        WHERE t.id = ANY ($1::uuid[])
    """  # noqa: S608 - a literal of this module
    return {row["id"]: _ticket(row) for row in await conn.fetch(query, ticket_ids)}


async def named(conn: Any, refs: Sequence[str], *, scope: UUID | None) -> list[UUID]:
    """Return the ids of the tickets named by id, key or number; all must be there to be seen."""
    wanted: dict[str, set[Any]] = {"id": set(), "key": set(), "number": set()}
    for ref in refs:
        column, value = _reference(ref)
        wanted[column].add(value)
    query = f"""
        SELECT t.id, t.key, t.number FROM tickets t
        WHERE (t.id = ANY ($1::uuid[]) OR t.key = ANY ($2::text[]) OR t.number = ANY ($3::bigint[]))
        {"AND " + _OWN.format(n="$4") if scope else ""}
    """  # noqa: S608 - scope is a literal of this module
    lists = [list(wanted[column]) for column in ("id", "key", "number")]
    rows = await conn.fetch(query, *lists, *([scope] if scope else []))
    for column, values in wanted.items():
        if not values <= {row[column] for row in rows}:
            raise NotFound.of("ticket")
    return [row["id"] for row in rows]


async def create(
    conn: Any,
    *,
    id: UUID,
    project: str,
    title: str,
    description: str,
    priority: Priority,
    category: Category | None,
    department: str | None,
    tags: Sequence[str],
    reporter_id: UUID | None,
    reporter_name: str,
    assignee_ids: Sequence[UUID],
) -> Ticket | None:
    """Take the project's next number and open a ticket under it; None if there is no project."""
    query = """
        WITH p AS (
            UPDATE projects SET next_number = next_number + 1
            WHERE key = $2 AND source = 'local'
            RETURNING id, key, next_number - 1 AS n
        ), t AS (
            INSERT INTO tickets (id, key, project_id, title, description, priority, category,
                                 department, tags, reporter_id, reporter_name)
            SELECT $1, p.key || '-' || p.n, p.id, $3, $4, $5, $6, $7, $8, $9, $10 FROM p
            RETURNING *
        ), a AS (
            INSERT INTO ticket_assignees (ticket_id, user_id, position)
            SELECT t.id, u.id, u.position FROM t, unnest($11::uuid[])
                WITH ORDINALITY AS u (id, position)
        )
        SELECT t.*, p.key AS project, $11::uuid[] AS assignee_ids FROM t, p
    """
    row = await conn.fetchrow(
        query,
        id,
        project,
        title,
        description,
        priority,
        category,
        department,
        list(tags),
        reporter_id,
        reporter_name,
        list(assignee_ids),
    )
    return _ticket(row) if row is not None else None


async def take_number(conn: Any, project: str) -> tuple[UUID, str] | None:
    """Take the next key of a local project: its id and the key, or None if there is none."""
    query = """
        UPDATE projects SET next_number = next_number + 1 WHERE key = $1 AND source = 'local'
        RETURNING id, key || '-' || (next_number - 1) AS key
    """
    row = await conn.fetchrow(query, project)
    return (row["id"], row["key"]) if row is not None else None


# What a change may set directly; everything else is set by the statement itself.
_SETTABLE = frozenset(
    {
        "title", "description", "status", "priority", "category", "department", "tags",
        "resolution", "project_id", "key",
    }
)  # fmt: skip


async def update(
    conn: Any, ticket_id: UUID, fields: Mapping[str, Any], *, first_action: bool = False
) -> Ticket:
    """Set these columns and raise the version by one; closing and reopening set closed_at."""
    values: list[Any] = [ticket_id]
    sets = ["version = version + 1", "updated_at = now()"]
    for column, value in fields.items():
        if column not in _SETTABLE:
            raise ValueError(f"tickets.{column} is not set this way")
        values.append(value)
        sets.append(f"{column} = ${len(values)}")
    if "status" in fields:
        sets.append(f"closed_at = {'now()' if fields['status'] == Status.CLOSED else 'NULL'}")
    if first_action:
        sets.append("first_action_at = coalesce(first_action_at, now())")
    query = f"""
        WITH t AS (UPDATE tickets SET {", ".join(sets)} WHERE id = $1 RETURNING *)
        SELECT {_COLUMNS} FROM t JOIN projects p ON p.id = t.project_id
    """  # noqa: S608 - columns come from the list above, values are parameters
    return _ticket(await conn.fetchrow(query, *values))


async def touch(conn: Any, ticket_id: UUID, *, first_action: bool = False) -> int:
    """Raise a ticket's version by one for something that hangs on it; return the version."""
    query = """
        UPDATE tickets SET version = version + 1, updated_at = now(),
               first_action_at = CASE WHEN $2 THEN coalesce(first_action_at, now())
                                      ELSE first_action_at END
        WHERE id = $1 RETURNING version
    """
    version: int = await conn.fetchval(query, ticket_id, first_action)
    return version


async def assign(conn: Any, ticket_id: UUID, assignee_ids: Sequence[UUID]) -> None:
    """Make these people, in this order, the ticket's assignees."""
    query = """
        WITH gone AS (
            DELETE FROM ticket_assignees WHERE ticket_id = $1 AND user_id <> ALL ($2::uuid[])
        )
        INSERT INTO ticket_assignees (ticket_id, user_id, position)
        SELECT $1, u.id, u.position FROM unnest($2::uuid[]) WITH ORDINALITY AS u (id, position)
        ON CONFLICT (ticket_id, user_id) DO UPDATE SET position = excluded.position
    """
    await conn.execute(query, ticket_id, list(assignee_ids))


async def assignable(conn: Any, user_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of these people may be given tickets."""
    query = "SELECT id FROM users WHERE id = ANY ($1::uuid[]) AND is_active AND role <> $2"
    return {row["id"] for row in await conn.fetch(query, list(user_ids), Role.USER)}


async def delete(conn: Any, ticket_id: UUID) -> None:
    """Remove a ticket with its comments, files' rows and assignees."""
    await conn.execute("DELETE FROM tickets WHERE id = $1", ticket_id)


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
        where.add(_OWN.format(n="{0}"), scope)
    if wanted.own is not None:
        where.add(_OWN.format(n="{0}"), wanted.own)
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
) -> Page[Ticket]:
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
        SELECT {_COLUMNS}, {column} AS sort_value
        FROM tickets t JOIN projects p ON p.id = t.project_id
        WHERE {where}
        ORDER BY {column} {direction}, t.id {direction} LIMIT {window.limit + 1:d}
        OFFSET {window.offset:d}
    """  # noqa: S608 - conditions are literals of this module, values are parameters
    rows = await conn.fetch(query, *where.values)
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(sort, row["sort_value"], row["id"])
    )
    return Page([_ticket(row) for row in page.items], page.next_cursor)


async def count(conn: Any, wanted: Filter, *, scope: UUID | None) -> int:
    """Return how many tickets a list has in all; costly on large desks, so only when asked."""
    where = _where(wanted, scope)
    query = f"SELECT count(*) FROM tickets t WHERE {where}"  # noqa: S608 - literals of this module
    total: int = await conn.fetchval(query, *where.values)
    return total
