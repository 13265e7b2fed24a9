"""Recommendations as rows."""

from collections.abc import Sequence
from typing import Any

# Type, title, description, related tickets, confidence, impact.
Row = tuple[str, str, str, Sequence[str], int, str]


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
