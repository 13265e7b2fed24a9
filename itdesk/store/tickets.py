"""Tickets as rows: each function is one statement, and every read names whose eyes it is for.

`scope` is the user whose own tickets are all that may be seen, or None for every ticket.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.model import Category, Event, External, Priority, Role, Status, Ticket
from itdesk.store import jobs as queue
from itdesk.store.failures import Contention
from itdesk.store.jobs import NewJob

_COLUMNS = """
    t.id, t.number, t.key, t.project_id, p.key AS project, t.title, t.description, t.status,
    t.priority, t.category, t.department, t.tags, t.reporter_id, t.reporter_name, t.resolution,
    t.predicted_priority, t.predicted_category, t.external_source, t.external_id,
    t.external_assignee, t.external_updated_at, t.last_synced_at, t.first_action_at, t.closed_at,
    t.version, t.created_at, t.updated_at,
    ARRAY(SELECT a.user_id FROM ticket_assignees a
          WHERE a.ticket_id = t.id ORDER BY a.position) AS assignee_ids
"""

# Whose own a ticket is, for a parameter {n}.
OWN = """(t.reporter_id = {n} OR EXISTS (
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


def reference(ref: str) -> tuple[str, Any]:
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
    column, value = reference(ref)
    query = f"""
        SELECT {_COLUMNS} FROM tickets t JOIN projects p ON p.id = t.project_id
        WHERE t.{column} = $1 {"AND " + OWN.format(n="$2") if scope else ""}
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
        column, value = reference(ref)
        wanted[column].add(value)
    query = f"""
        SELECT t.id, t.key, t.number FROM tickets t
        WHERE (t.id = ANY ($1::uuid[]) OR t.key = ANY ($2::text[]) OR t.number = ANY ($3::bigint[]))
        {"AND " + OWN.format(n="$4") if scope else ""}
    """  # noqa: S608 - scope is a literal of this module
    lists = [list(wanted[column]) for column in ("id", "key", "number")]
    rows = await conn.fetch(query, *lists, *([scope] if scope else []))
    for column, values in wanted.items():
        if not values <= {row[column] for row in rows}:
            raise NotFound.of("ticket")
    return [row["id"] for row in rows]


# The parameters 1 to 21 are those of RECORDED.
_OPEN = f"""
    WITH t AS (
        INSERT INTO tickets (id, number, key, project_id, title, description, priority, category,
                             department, tags, reporter_id, reporter_name, created_at, updated_at)
        OVERRIDING SYSTEM VALUE
        VALUES ($22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $34)
        RETURNING id
    ), a AS (
        INSERT INTO ticket_assignees (ticket_id, user_id, position)
        SELECT t.id, u.id, u.position FROM t, unnest($35::uuid[])
            WITH ORDINALITY AS u (id, position)
    ), {queue.RECORDED}
"""  # noqa: S608 - literals of the store


async def create(
    conn: Any, events: Sequence[Event], jobs: Sequence[NewJob], *, ticket: Ticket
) -> int:
    """Write a new ticket with its events and jobs; return how many jobs.

    Raises Contention when its project or an assignee was deleted since one looked.
    """
    try:
        tag = await conn.execute(
            _OPEN,
            *queue.columns(events, jobs),
            ticket.id,
            ticket.number,
            ticket.key,
            ticket.project_id,
            ticket.title,
            ticket.description,
            ticket.priority,
            ticket.category,
            ticket.department,
            ticket.tags,
            ticket.reporter_id,
            ticket.reporter_name,
            ticket.created_at,
            ticket.assignee_ids,
        )
    except asyncpg.ForeignKeyViolationError as exc:
        raise Contention("What the ticket refers to is gone. Send the request again.") from exc
    return queue.queued(tag)


@frozen
class Taken:
    """What a ticket will be known by, and since when."""

    project_id: UUID
    key: str
    number: int
    at: datetime


async def take_number(conn: Any, project: str) -> Taken | None:
    """Take the next key of a local project, for good; None if there is no such project.

    The project is locked until the end of the transaction: see `Database.unsynced`.
    """
    query = """
        UPDATE projects SET next_number = next_number + 1 WHERE key = $1 AND source = 'local'
        RETURNING id, key || '-' || (next_number - 1) AS key,
                  nextval(pg_get_serial_sequence('tickets', 'number')) AS number, now() AS at
    """
    row = await conn.fetchrow(query, project)
    return Taken(row["id"], row["key"], row["number"], row["at"]) if row is not None else None


# What a change may set directly; everything else is set by the statement itself.
_SETTABLE = frozenset(
    {
        "title", "description", "status", "priority", "category", "department", "tags",
        "resolution", "project_id", "key", "reporter_id", "reporter_name", "external_id",
        "external_assignee",
    }
)  # fmt: skip

_UNDECIDED = """, undecided AS (
    UPDATE suggestions SET state = 'superseded' WHERE ticket_id = $1 AND state = 'open')
"""


async def update(
    conn: Any, ticket_id: UUID, fields: Mapping[str, Any], *, first_action: bool = False
) -> Ticket:
    """Set these columns and raise the version by one; closing and reopening set closed_at.

    What was suggested and not decided when a ticket is closed nobody needs to decide any more.
    """
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
    closing = _UNDECIDED if fields.get("status") == Status.CLOSED else ""
    query = f"""
        WITH t AS (UPDATE tickets SET {", ".join(sets)} WHERE id = $1 RETURNING *){closing}
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
    """Make these people, in this order, the assignees of a ticket that is written as well.

    Lists take one that was not written since for unchanged.
    """
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
