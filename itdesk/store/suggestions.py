"""Suggestions as rows: one open of each kind on a ticket, and what people decided."""

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.model import Category, Priority, new_id
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

# So many of the newest decisions say whether the desk may act by itself.
MOST_COUNTED = 1000


class SuggestionKind(StrEnum):
    """What a suggestion is about."""

    PRIORITY = "priority"
    CATEGORY = "category"
    ASSIGNEE = "assignee"
    DUPLICATE_OF = "duplicate_of"
    REPLY = "reply"
    SUMMARY = "summary"


class SuggestionState(StrEnum):
    """What became of a suggestion; `applied` was done by the desk itself."""

    OPEN = "open"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"
    APPLIED = "applied"
    REVERTED = "reverted"


@frozen
class NewSuggestion:
    """Something to suggest."""

    kind: SuggestionKind
    proposal: str
    source: str
    confidence: float | None = None
    reason: str = ""
    id: UUID = field(default_factory=new_id)


@frozen
class Suggestion:
    """Something that a person may accept or reject, for agents and above only."""

    id: UUID
    ticket_id: UUID
    kind: SuggestionKind
    proposal: str
    source: str
    confidence: float | None
    reason: str
    category: Category | None
    state: SuggestionState
    replaced: str | None
    decided_by: UUID | None
    decided_by_name: str | None
    decided_at: datetime | None
    created_at: datetime


@frozen
class Precision:
    """How often suggestions of one kind and category were right, of those that were decided.

    `precision` is None while none was. What the desk applied by itself counts as wrong once
    somebody put it back or set something else, and never as right: that nobody minded says little.
    """

    kind: SuggestionKind
    category: Category | None
    accepted: int
    rejected: int
    decided: int
    precision: float | None
    applied: int
    open: int


_COLUMNS = """
    s.id, s.ticket_id, s.kind, s.proposal, s.source, s.confidence, s.reason, s.category, s.state,
    s.replaced, s.decided_by, (SELECT name FROM users WHERE id = s.decided_by) AS decided_by_name,
    s.decided_at, s.created_at
"""


def _suggestion(row: Any) -> Suggestion:
    category, confidence = row["category"], row["confidence"]
    return Suggestion(
        id=row["id"],
        ticket_id=row["ticket_id"],
        kind=SuggestionKind(row["kind"]),
        proposal=row["proposal"],
        source=row["source"],
        # A real of PostgreSQL has seven digits at most.
        confidence=round(confidence, 4) if confidence is not None else None,
        reason=row["reason"],
        category=Category(category) if category is not None else None,
        state=SuggestionState(row["state"]),
        replaced=row["replaced"],
        decided_by=row["decided_by"],
        decided_by_name=row["decided_by_name"],
        decided_at=row["decided_at"],
        created_at=row["created_at"],
    )


async def put(conn: Any, ticket_id: UUID, new: NewSuggestion) -> Suggestion:
    """Make a suggestion the open one of its kind; the one before it is superseded.

    Its ticket has to be locked. The same suggestion once more is the one that is there.
    """
    await conn.execute(
        """
        UPDATE suggestions SET state = 'superseded'
        WHERE ticket_id = $1 AND kind = $2 AND state = 'open' AND (proposal, source) <> ($3, $4)
        """,
        ticket_id,
        new.kind,
        new.proposal,
        new.source,
    )
    query = f"""
        WITH s AS (
            INSERT INTO suggestions (id, ticket_id, kind, proposal, source, confidence, reason,
                                     category)
            SELECT $1, t.id, $3, $4, $5, $6, $7,
                   CASE $3 WHEN 'category' THEN $4
                           ELSE coalesce(t.category, t.predicted_category) END
            FROM tickets t WHERE t.id = $2
            ON CONFLICT (ticket_id, kind) WHERE state = 'open' DO UPDATE
                SET confidence = excluded.confidence, reason = excluded.reason
            RETURNING *
        ) SELECT {_COLUMNS} FROM s
    """  # noqa: S608 - a literal of this module
    return _suggestion(
        await conn.fetchrow(
            query, new.id, ticket_id, new.kind, new.proposal, new.source, new.confidence,
            new.reason,
        )
    )  # fmt: skip


_SORT = "-created_at"


async def list_page(
    conn: Any, ticket_id: UUID, window: Window, *, state: SuggestionState | None
) -> Page[Suggestion]:
    """Return one page of a ticket's suggestions, the newest first."""
    before, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT {_COLUMNS} FROM suggestions s
        WHERE s.ticket_id = $1 AND ($2::text IS NULL OR s.state = $2)
          AND ($3::timestamptz IS NULL OR (s.created_at, s.id) < ($3, $4::uuid))
        ORDER BY s.created_at DESC, s.id DESC LIMIT $5 OFFSET $6
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, ticket_id, state, before, last, window.limit + 1, window.offset)
    found = [_suggestion(row) for row in rows]
    return Page.cut(found, window.limit, lambda one: encode_cursor(_SORT, one.created_at, one.id))


async def count(conn: Any, ticket_id: UUID, *, state: SuggestionState | None) -> int:
    """Return how many suggestions a ticket has."""
    query = """
        SELECT count(*) FROM suggestions
        WHERE ticket_id = $1 AND ($2::text IS NULL OR state = $2)
    """
    total: int = await conn.fetchval(query, ticket_id, state)
    return total


async def find(conn: Any, ticket_id: UUID, suggestion_id: UUID) -> Suggestion:
    """Read a ticket's suggestion; whoever means to decide it has locked the ticket."""
    query = f"SELECT {_COLUMNS} FROM suggestions s WHERE s.id = $1 AND s.ticket_id = $2"  # noqa: S608
    row = await conn.fetchrow(query, suggestion_id, ticket_id)
    if row is None:
        raise NotFound.of("suggestion")
    return _suggestion(row)


async def decide(
    conn: Any,
    suggestion_id: UUID,
    state: SuggestionState,
    *,
    by: UUID | None,
    replaced: str | None = None,
) -> Suggestion:
    """Write what became of a suggestion; what it replaced is kept when it was written before."""
    query = f"""
        WITH s AS (
            UPDATE suggestions SET state = $2, decided_by = $3, decided_at = now(),
                   replaced = coalesce($4, replaced)
            WHERE id = $1 RETURNING *
        ) SELECT {_COLUMNS} FROM s
    """  # noqa: S608 - a literal of this module
    return _suggestion(await conn.fetchrow(query, suggestion_id, state, by, replaced))


async def was_set(conn: Any, ticket_id: UUID, kind: SuggestionKind) -> bool:
    """Return whether a ticket's priority or category was set since it was opened."""
    query = """
        SELECT EXISTS (
            SELECT FROM events WHERE ticket_id = $1 AND type = 'ticket.updated'
               AND changes @> jsonb_build_array(jsonb_build_object('field', $2::text)))
    """
    found: bool = await conn.fetchval(query, ticket_id, kind)
    return found


async def predict(
    conn: Any,
    ticket_id: UUID,
    *,
    priority: Priority | None,
    category: Category | None,
    recommendations: str,
) -> int:
    """Keep what is believed of a ticket beside what people say of it; return its new version."""
    query = """
        UPDATE tickets SET predicted_priority = $2, predicted_category = $3,
               ai_recommendations = $4::jsonb, version = version + 1, updated_at = now()
        WHERE id = $1 RETURNING version
    """
    version: int = await conn.fetchval(query, ticket_id, priority, category, recommendations)
    return version


async def recommendations(conn: Any, ticket_id: UUID) -> str | None:
    """Return what was recommended for a ticket, as JSON text."""
    query = "SELECT ai_recommendations::text FROM tickets WHERE id = $1"
    found: str | None = await conn.fetchval(query, ticket_id)
    return found


# Right and wrong as Precision says it: a rejected text was no good, a superseded one nobody judged.
_JUDGED = """
    SELECT s.kind, s.category, s.source, s.state = 'applied' AS applied, s.state = 'open' AS open,
           s.state = 'accepted' AS accepted,
           s.state IN ('rejected', 'reverted') OR s.state = 'applied' AND NOT held AS rejected
    FROM suggestions s JOIN tickets t ON t.id = s.ticket_id CROSS JOIN LATERAL (
        SELECT s.proposal IS NOT DISTINCT FROM
               CASE s.kind WHEN 'priority' THEN t.priority WHEN 'category' THEN t.category END
    ) AS now (held)
"""


async def precision(conn: Any, *, days: int, with_open: bool = True) -> list[Precision]:
    """Return how often suggestions decided in so many days were right, by kind and category.

    With those of these days that are still open, unless only the decided ones are asked for.
    """
    query = f"""
        SELECT kind, category, count(*) FILTER (WHERE accepted) AS accepted,
               count(*) FILTER (WHERE rejected) AS rejected,
               count(*) FILTER (WHERE applied) AS applied, count(*) FILTER (WHERE open) AS open
        FROM (
            {_JUDGED} WHERE s.decided_at >= now() - make_interval(days => $1)
            UNION ALL
            {_JUDGED} WHERE $2::bool AND s.decided_at IS NULL AND s.state = 'open'
                        AND s.created_at >= now() - make_interval(days => $1)
        ) AS judged GROUP BY kind, category ORDER BY kind, category NULLS LAST
    """  # noqa: S608 - a literal of this module
    return [_precision(row) for row in await conn.fetch(query, days, with_open)]


def _precision(row: Mapping[str, Any]) -> Precision:
    decided = row["accepted"] + row["rejected"]
    return Precision(
        kind=SuggestionKind(row["kind"]),
        category=Category(row["category"]) if row["category"] is not None else None,
        accepted=row["accepted"],
        rejected=row["rejected"],
        decided=decided,
        precision=round(row["accepted"] / decided, 4) if decided else None,
        applied=row["applied"],
        open=row["open"],
    )


async def kept(
    conn: Any, kind: SuggestionKind, category: str | None, source: str, *, days: int
) -> tuple[int, int]:
    """Return how many of one kind, category and source were right, and how many were decided.

    Only the newest count, of what people decided and of what the desk did by itself, so that a
    change shows soon and looking stays quick.
    """
    of_its_kind = """
        s.kind = $1 AND s.category IS NOT DISTINCT FROM $2 AND s.source = $3
        AND s.decided_at >= now() - make_interval(days => $4)
    """
    newest = f"ORDER BY s.decided_at DESC LIMIT {MOST_COUNTED}"
    query = f"""
        SELECT count(*) FILTER (WHERE accepted) AS accepted,
               count(*) FILTER (WHERE accepted OR rejected) AS decided
        FROM (
            ({_JUDGED} WHERE {of_its_kind} AND s.state <> 'applied' {newest})
            UNION ALL
            ({_JUDGED} WHERE {of_its_kind} AND s.state = 'applied' {newest})
        ) AS judged
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(query, kind, category, source, days)
    return row["accepted"], row["decided"]
