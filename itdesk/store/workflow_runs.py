"""What rules did, as rows: at most one for each rule and event, whoever works and however often."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from itdesk.frozen import frozen
from itdesk.model import Entry, Role, new_id
from itdesk.store import events
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor


@frozen
class NewRun:
    """What came of one rule and one event."""

    rule_id: UUID
    ticket_id: UUID
    event_id: UUID
    root_id: UUID
    depth: int
    matched: bool
    why: Mapping[str, Any]
    result: Sequence[Mapping[str, Any]] | None = None
    error: str | None = None
    id: UUID = field(default_factory=new_id)


@frozen
class WorkflowRun:
    """One look of a rule at an event: whether its conditions held, why, and what it did."""

    id: UUID
    rule_id: UUID | None
    rule_name: str
    ticket_id: UUID | None
    event_id: UUID
    root_id: UUID | None
    depth: int
    matched: bool
    why: dict[str, Any]
    result: list[dict[str, Any]] | None
    error: str | None
    created_at: datetime


@frozen
class Cause:
    """Where an event comes from: how many rules lie between it and what somebody else did."""

    depth: int
    root_id: UUID


async def add(conn: Any, runs: Sequence[NewRun]) -> int:
    """Log runs of rules that are still there; return how many were not logged before."""
    # The rules are held, or one that is deleted right now would break the reference.
    query = """
        INSERT INTO workflow_runs (id, rule_id, rule_name, ticket_id, event_id, root_id, depth,
                                   matched, why, result, error)
        SELECT n.id, w.id, w.name, n.ticket_id, n.event_id, n.root_id, n.depth, n.matched,
               n.why::jsonb, n.result::jsonb, n.error
        FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::uuid[], $6::int[],
                    $7::bool[], $8::text[], $9::text[], $10::text[])
             AS n (id, rule_id, ticket_id, event_id, root_id, depth, matched, why, result, error)
        JOIN workflow_rules w ON w.id = n.rule_id
        WHERE EXISTS (SELECT 1 FROM tickets t WHERE t.id = n.ticket_id)
        FOR KEY SHARE OF w
        ON CONFLICT (rule_id, event_id) DO NOTHING
    """
    result: str = await conn.execute(
        query,
        [run.id for run in runs],
        [run.rule_id for run in runs],
        [run.ticket_id for run in runs],
        [run.event_id for run in runs],
        [run.root_id for run in runs],
        [run.depth for run in runs],
        [run.matched for run in runs],
        [orjson.dumps(run.why).decode() for run in runs],
        [None if run.result is None else orjson.dumps(run.result).decode() for run in runs],
        [run.error for run in runs],
    )
    return int(result.rpartition(" ")[2])


async def exists(conn: Any, rule_id: UUID, event_id: UUID) -> bool:
    """Return whether a rule has looked at an event."""
    query = "SELECT EXISTS (SELECT 1 FROM workflow_runs WHERE rule_id = $1 AND event_id = $2)"
    found: bool = await conn.fetchval(query, rule_id, event_id)
    return found


async def count_following(conn: Any, root_id: UUID) -> int:
    """Return how many rules have acted because of one event, directly or not."""
    query = """
        SELECT count(*) FROM workflow_runs WHERE root_id = $1 AND matched AND error IS NULL
    """
    total: int = await conn.fetchval(query, root_id)
    return total


async def cause(conn: Any, event_id: UUID, *, deepest: int) -> Cause:
    """Return where an event comes from; a chain is followed for so many events at most."""
    query = """
        WITH RECURSIVE chain AS (
            SELECT id, cause_id, source, 0 AS place FROM events WHERE id = $1
            UNION ALL
            SELECT e.id, e.cause_id, e.source, c.place + 1
            FROM chain c JOIN events e ON e.id = c.cause_id WHERE c.place < $2
        )
        SELECT count(*) FILTER (WHERE source = 'workflow') AS depth,
               (array_agg(id ORDER BY place DESC))[1] AS root_id
        FROM chain
    """
    row = await conn.fetchrow(query, event_id, deepest)
    return Cause(row["depth"], row["root_id"] or event_id)


async def roles(conn: Any, user_ids: Sequence[UUID]) -> dict[UUID, Role]:
    """Return the roles that people have now."""
    query = "SELECT id, role FROM users WHERE id = ANY ($1::uuid[])"
    return {row["id"]: Role(row["role"]) for row in await conn.fetch(query, list(user_ids))}


async def last_event(conn: Any, ticket_id: UUID, types: Sequence[str]) -> Entry | None:
    """Return the newest event of a ticket that is of one of these types, or of any."""
    query = f"""
        SELECT {events.ENTRY} FROM events e
        WHERE e.ticket_id = $1 AND (cardinality($2::text[]) = 0 OR e.type = ANY ($2))
        ORDER BY e.ticket_version DESC LIMIT 1
    """  # noqa: S608 - a literal of the store
    row = await conn.fetchrow(query, ticket_id, list(types))
    return events.entry(row) if row is not None else None


async def last_move(conn: Any, ticket_id: UUID) -> Entry | None:
    """Return the newest event by which a ticket got another status."""
    query = f"""
        SELECT {events.ENTRY} FROM events e
        WHERE e.ticket_id = $1 AND e.type = 'ticket.updated'
          AND e.changes @> '[{{"field": "status"}}]'
        ORDER BY e.ticket_version DESC LIMIT 1
    """  # noqa: S608 - a literal of the store
    row = await conn.fetchrow(query, ticket_id)
    return events.entry(row) if row is not None else None


async def unnumbered(conn: Any, limit: int) -> list[Entry]:
    """Return events of tickets that have no number yet, the newest of a ticket first."""
    query = f"""
        SELECT {events.ENTRY} FROM events e WHERE e.seq IS NULL AND e.ticket_id IS NOT NULL
        ORDER BY e.created_at DESC, e.ticket_version DESC LIMIT $1
    """  # noqa: S608 - a literal of the store
    return [events.entry(row) for row in await conn.fetch(query, limit)]


async def now(conn: Any) -> datetime:
    """Return what time it is for the database."""
    moment: datetime = await conn.fetchval("SELECT now()")
    return moment


async def hold_still(conn: Any) -> None:
    """Let a transaction that asked nothing yet see the database as of one moment, to read only."""
    await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


_SORT = "-created_at"
_RUN = """
    r.id, r.rule_id, r.rule_name, r.ticket_id, r.event_id, r.root_id, r.depth, r.matched, r.why,
    r.result, r.error, r.created_at
"""


async def list_page(
    conn: Any, rule_id: UUID, window: Window, *, ticket_id: UUID | None, matched: bool | None
) -> Page[WorkflowRun]:
    """Return one page of a rule's runs, the newest first."""
    before, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT {_RUN} FROM workflow_runs r
        WHERE r.rule_id = $1 AND ($2::uuid IS NULL OR r.ticket_id = $2)
          AND ($3::bool IS NULL OR r.matched = $3)
          AND ($4::timestamptz IS NULL OR (r.created_at, r.id) < ($4, $5::uuid))
        ORDER BY r.created_at DESC, r.id DESC LIMIT $6 OFFSET $7
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(
        query, rule_id, ticket_id, matched, before, last, window.limit + 1, window.offset
    )
    found = [
        WorkflowRun(**{name: row[name] for name in WorkflowRun.__match_args__}) for row in rows
    ]
    return Page.cut(found, window.limit, lambda run: encode_cursor(_SORT, run.created_at, run.id))


async def count(conn: Any, rule_id: UUID, *, ticket_id: UUID | None, matched: bool | None) -> int:
    """Return how many runs of a rule there are."""
    query = """
        SELECT count(*) FROM workflow_runs
        WHERE rule_id = $1 AND ($2::uuid IS NULL OR ticket_id = $2)
          AND ($3::bool IS NULL OR matched = $3)
    """
    total: int = await conn.fetchval(query, rule_id, ticket_id, matched)
    return total


async def delete_older(conn: Any, limit: int, *, days: int) -> int:
    """Delete up to so many runs older than so many days; return how many."""
    query = """
        DELETE FROM workflow_runs WHERE id IN (
            SELECT id FROM workflow_runs WHERE created_at < now() - make_interval(days => $1)
            ORDER BY created_at LIMIT $2
        )
    """
    result: str = await conn.execute(query, days, limit)
    return int(result.rpartition(" ")[2])
