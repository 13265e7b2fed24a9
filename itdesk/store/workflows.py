"""Rules and webhook targets as rows; a target's secret is written, and read only to sign with."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor


class Trigger(StrEnum):
    """What makes a rule look at a ticket."""

    TICKET_CREATED = "ticket_created"
    TICKET_UPDATED = "ticket_updated"
    STATUS_CHANGED = "status_changed"
    COMMENT_ADDED = "comment_added"
    UNCHANGED_FOR = "unchanged_for"


@frozen
class WorkflowRule:
    """A rule: when its trigger fires and its conditions hold, its actions are done."""

    id: UUID
    name: str
    description: str
    trigger: Trigger
    unchanged_for: dict[str, Any] | None
    conditions: dict[str, Any]
    actions: dict[str, Any]
    active: bool
    active_since: datetime
    position: int
    created_at: datetime
    updated_at: datetime


_RULE = """
    w.id, w.name, w.description, w.trigger, w.unchanged_for, w.conditions, w.actions, w.active,
    w.active_since, w.position, w.created_at, w.updated_at
"""
_SORT = "position"


def _rule(row: Any) -> WorkflowRule:
    known = {name: row[name] for name in WorkflowRule.__match_args__ if name != "trigger"}
    return WorkflowRule(trigger=Trigger(row["trigger"]), **known)


async def list_page(conn: Any, window: Window) -> Page[WorkflowRule]:
    """Return one page of the rules, in the order in which they run."""
    place, last = (
        decode_cursor(window.cursor, _SORT, (int, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT {_RULE} FROM workflow_rules w
        WHERE $1::bigint IS NULL OR (w.position, w.id) > ($1, $2::uuid)
        ORDER BY w.position, w.id LIMIT $3 OFFSET $4
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, place, last, window.limit + 1, window.offset)
    found = [_rule(row) for row in rows]
    return Page.cut(found, window.limit, lambda rule: encode_cursor(_SORT, rule.position, rule.id))


async def count(conn: Any) -> int:
    """Return how many rules there are."""
    total: int = await conn.fetchval("SELECT count(*) FROM workflow_rules")
    return total


async def get(conn: Any, rule_id: UUID, *, lock: bool = False) -> WorkflowRule:
    """Read a rule; with `lock`, hold its row until the commit."""
    query = f"""
        SELECT {_RULE} FROM workflow_rules w WHERE w.id = $1 {"FOR UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, rule_id)
    if row is None:
        raise NotFound.of("workflow")
    return _rule(row)


async def hold_active(conn: Any, rule_id: UUID) -> WorkflowRule | None:
    """Read a rule if it is active; nobody changes or stops it until the commit."""
    query = f"""
        SELECT {_RULE} FROM workflow_rules w WHERE w.id = $1 AND w.active FOR SHARE
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(query, rule_id)
    return _rule(row) if row is not None else None


async def lock_all(conn: Any) -> None:
    """Let nobody else add or move rules until the commit."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('itdesk.workflows', 0))")


async def create(
    conn: Any,
    *,
    id: UUID,
    name: str,
    description: str,
    trigger: str,
    unchanged_for: Mapping[str, Any] | None,
    conditions: Mapping[str, Any],
    actions: Mapping[str, Any],
    active: bool,
    position: int | None,
) -> WorkflowRule:
    """Add a rule, behind all others unless a position is given."""
    query = f"""
        INSERT INTO workflow_rules AS w (id, name, description, trigger, unchanged_for, conditions,
                                         actions, active, position)
        SELECT $1, $2, $3, $4, $5::jsonb, $6::jsonb, $7::jsonb, $8,
               coalesce($9::int, (SELECT coalesce(max(position) + 1, 0) FROM workflow_rules))
        RETURNING {_RULE}
    """  # noqa: S608 - a literal of this module
    # JSON null is none of ours: the column is NULL then.
    row = await conn.fetchrow(
        query, id, name, description, trigger, unchanged_for, conditions, actions, active, position
    )
    return _rule(row)


_SETTABLE = frozenset(
    {"name", "description", "trigger", "unchanged_for", "conditions", "actions", "active",
     "position"}
)  # fmt: skip


async def update(
    conn: Any, rule_id: UUID, fields: Mapping[str, Any], *, anew: bool
) -> WorkflowRule:
    """Set these columns; `anew`, what happened until now is none of the rule's business."""
    values: list[Any] = [rule_id]
    sets = ["updated_at = now()"]
    for column, value in fields.items():
        if column not in _SETTABLE:
            raise ValueError(f"workflow_rules.{column} is not set this way")
        values.append(value)
        sets.append(f"{column} = ${len(values)}")
    if anew:
        sets.append("active_since = now(), scanned_at = NULL, scanned_id = NULL")
    query = f"""
        UPDATE workflow_rules w SET {", ".join(sets)} WHERE w.id = $1 RETURNING {_RULE}
    """  # noqa: S608 - columns come from the list above, values are parameters
    return _rule(await conn.fetchrow(query, *values))


async def reorder(conn: Any, rule_ids: Sequence[UUID]) -> list[UUID]:
    """Put these rules first, in this order, the others behind them as they were; return them."""
    query = """
        WITH places AS (
            SELECT w.id, row_number() OVER (
                ORDER BY wanted.place NULLS LAST, w.position, w.id) - 1 AS place
            FROM workflow_rules w
            LEFT JOIN unnest($1::uuid[]) WITH ORDINALITY AS wanted (id, place) ON wanted.id = w.id
        )
        UPDATE workflow_rules w SET position = places.place, updated_at = now()
        FROM places WHERE places.id = w.id AND w.position <> places.place RETURNING w.id
    """
    return [row["id"] for row in await conn.fetch(query, list(rule_ids))]


async def known(conn: Any, rule_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of these rules there are."""
    query = "SELECT id FROM workflow_rules WHERE id = ANY ($1::uuid[])"
    return {row["id"] for row in await conn.fetch(query, list(rule_ids))}


async def delete(conn: Any, rule_id: UUID) -> None:
    """Remove a rule; what it did stays known."""
    await conn.execute("DELETE FROM workflow_rules WHERE id = $1", rule_id)


async def of_event(
    conn: Any, triggers: Sequence[str], event_id: UUID, at: datetime
) -> list[WorkflowRule]:
    """Return the active rules that an event still waits for, in the order in which they run."""
    query = f"""
        SELECT {_RULE} FROM workflow_rules w
        WHERE w.active AND w.trigger = ANY ($1::text[]) AND w.active_since <= $3
          AND NOT EXISTS (SELECT 1 FROM workflow_runs r
                          WHERE r.rule_id = w.id AND r.event_id = $2)
        ORDER BY w.position, w.id
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, [str(trigger) for trigger in triggers], event_id, at)
    return [_rule(row) for row in rows]


async def of_clock(conn: Any) -> list[WorkflowRule]:
    """Return the active rules about tickets that stay unchanged."""
    query = f"""
        SELECT {_RULE} FROM workflow_rules w
        WHERE w.active AND w.trigger = 'unchanged_for' ORDER BY w.position, w.id
    """  # noqa: S608 - a literal of this module
    return [_rule(row) for row in await conn.fetch(query)]


async def take_unchanged(
    conn: Any, rule: WorkflowRule, *, hours: float, status: str, limit: int
) -> list[tuple[UUID, UUID]]:
    """Return the next tickets that have stayed unchanged for so long, each with its last event.

    Remembers how far it got: each period is looked at once. What had been unchanged for long when
    the rule became active is left alone.
    """
    query = """
        WITH due AS MATERIALIZED (
            SELECT t.id, t.updated_at FROM workflow_rules w, tickets t
            WHERE w.id = $1 AND t.status = $3
              AND t.updated_at <= now() - make_interval(secs => $2::float8 * 3600)
              AND (t.updated_at, t.id) > (
                  coalesce(w.scanned_at,
                           w.active_since - make_interval(secs => $2::float8 * 3600)),
                  coalesce(w.scanned_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
            ORDER BY t.updated_at, t.id LIMIT $4
        ), seen AS (
            UPDATE workflow_rules w SET scanned_at = far.updated_at, scanned_id = far.id
            FROM (SELECT updated_at, id FROM due ORDER BY updated_at DESC, id DESC LIMIT 1) AS far
            WHERE w.id = $1
        )
        SELECT due.id, (SELECT e.id FROM events e WHERE e.ticket_id = due.id
                        ORDER BY e.ticket_version DESC LIMIT 1) AS event_id
        FROM due ORDER BY due.updated_at, due.id
    """
    rows = await conn.fetch(query, rule.id, hours, status, limit)
    return [(row["id"], row["event_id"]) for row in rows]
