"""Recommendations as rows: those that were sown, and those that were found in real tickets."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.store.advice import Finding
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

# Type, title, description, related tickets, confidence, impact.
Row = tuple[str, str, str, Sequence[str], int, str]


class RecommendationType(StrEnum):
    """What a recommendation is about."""

    PATTERN = "pattern"
    PRIORITY = "priority"
    SOLUTION = "solution"
    WORKFLOW = "workflow"


class Impact(StrEnum):
    """How much following it would change."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


@frozen
class Recommendation:
    """Something that would be worth doing, and the tickets that give reason to."""

    id: UUID
    type: RecommendationType
    title: str
    description: str
    related_tickets: list[str]
    confidence: int
    impact: Impact
    created_at: datetime


_SORT = "-created_at"

# Of a subject that comes again, one ticket alone would tell that there are others.
_READABLE = """
    FROM recommendations r CROSS JOIN LATERAL (
        SELECT CASE WHEN $1::uuid IS NULL THEN r.related_tickets ELSE ARRAY(
            SELECT k.key FROM unnest(r.related_tickets) WITH ORDINALITY AS k (key, place)
            JOIN tickets t ON t.key = k.key
            WHERE t.reporter_id = $1 OR EXISTS (
                SELECT FROM ticket_assignees a WHERE a.ticket_id = t.id AND a.user_id = $1)
            ORDER BY k.place) END AS keys
    ) AS readable
    WHERE ($1 IS NULL OR NOT r.staff_only AND cardinality(readable.keys) >=
           CASE WHEN r.finding LIKE 'repeated:%' THEN 2 ELSE 1 END)
      AND ($2::text IS NULL OR r.type = $2) AND ($3::text IS NULL OR r.impact = $3)
"""


async def list_page(
    conn: Any,
    window: Window,
    *,
    scope: UUID | None,
    type: RecommendationType | None,
    impact: Impact | None,
) -> Page[Recommendation]:
    """Return one page of what a reader may know of, the newest first."""
    before, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT r.id, r.type, r.title, r.description, readable.keys AS related_tickets,
               r.confidence, r.impact, r.created_at
        {_READABLE} AND ($4::timestamptz IS NULL OR (r.created_at, r.id) < ($4, $5::uuid))
        ORDER BY r.created_at DESC, r.id DESC LIMIT $6 OFFSET $7
    """  # noqa: S608 - literals of this module
    rows = await conn.fetch(
        query, scope, type, impact, before, last, window.limit + 1, window.offset
    )
    found = [_recommendation(row) for row in rows]
    return Page.cut(found, window.limit, lambda one: encode_cursor(_SORT, one.created_at, one.id))


async def count(
    conn: Any,
    *,
    scope: UUID | None,
    type: RecommendationType | None,
    impact: Impact | None,
) -> int:
    """Return how many there are for a reader in all."""
    query = f"SELECT count(*) {_READABLE}"  # noqa: S608 - a literal of this module
    total: int = await conn.fetchval(query, scope, type, impact)
    return total


def _recommendation(row: Any) -> Recommendation:
    fields = dict(row)
    return Recommendation(
        type=RecommendationType(fields.pop("type")), impact=Impact(fields.pop("impact")), **fields
    )


async def add_missing(conn: Any, rows: Sequence[Row]) -> int:
    """Add those whose type and title are not there yet; return how many were."""
    query = """
        INSERT INTO recommendations (type, title, description, related_tickets, confidence, impact)
        SELECT $1, $2, $3, $4, $5, $6
        WHERE NOT EXISTS (SELECT 1 FROM recommendations WHERE type = $1 AND title = $2)
        RETURNING id
    """
    added = 0
    for kind, title, description, related, confidence, impact in rows:
        row = await conn.fetchval(
            query, kind, title, description, list(related), confidence, impact
        )
        added += row is not None
    return added


async def replace_found(conn: Any, findings: Sequence[Finding]) -> tuple[int, int, int]:
    """Make the found recommendations be these; return how many are new, changed and gone."""
    await conn.execute("LOCK TABLE recommendations IN SHARE ROW EXCLUSIVE MODE")
    names = [one.finding for one in findings]
    gone = await conn.fetch(
        "DELETE FROM recommendations WHERE finding IS NOT NULL AND finding <> ALL ($1::text[])"
        " RETURNING id",
        names,
    )
    query = """
        INSERT INTO recommendations AS r (finding, type, title, description, related_tickets,
                                          confidence, impact, staff_only)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (finding) WHERE finding IS NOT NULL DO UPDATE SET
            type = excluded.type, title = excluded.title, description = excluded.description,
            related_tickets = excluded.related_tickets, confidence = excluded.confidence,
            impact = excluded.impact, staff_only = excluded.staff_only, updated_at = now()
        WHERE (r.type, r.title, r.description, r.related_tickets, r.confidence, r.impact,
               r.staff_only) IS DISTINCT FROM
              (excluded.type, excluded.title, excluded.description, excluded.related_tickets,
               excluded.confidence, excluded.impact, excluded.staff_only)
        RETURNING r.xmax = 0 AS is_new
    """
    written = [
        await conn.fetchval(
            query, one.finding, one.type, one.title, one.description, list(one.related),
            one.confidence, one.impact, one.staff_only,
        )
        for one in findings
    ]  # fmt: skip
    return written.count(True), written.count(False), len(gone)
