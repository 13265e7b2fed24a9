"""How tickets were solved, found by the words of a new one: each function is one statement."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen


@frozen
class Solved:
    """A closed ticket and how it was solved."""

    key: str
    title: str
    resolution: str


async def find(conn: Any, words: Sequence[str], *, scope: UUID | None, most: int) -> list[Solved]:
    """Return closed tickets with a resolution in which any of the words occur, the best first.

    `scope` is the user whose own tickets are all that may be seen, or None for every ticket. Only
    public words are looked at: internal comments find nothing here, whoever asks.
    """
    query = """
        WITH asked AS (
            SELECT to_tsquery('english', string_agg(quote_literal(word), ' | ')) AS words
            FROM unnest($1::text[]) AS word
        ), newest AS MATERIALIZED (
            SELECT t.key, t.title, left(t.resolution, 2000) AS resolution, t.search
            FROM tickets t, asked
            WHERE t.search @@ asked.words AND t.status = 'closed' AND t.resolution <> ''
              AND ($2::uuid IS NULL OR t.reporter_id = $2 OR EXISTS (
                  SELECT FROM ticket_assignees a WHERE a.ticket_id = t.id AND a.user_id = $2))
            ORDER BY t.created_at DESC LIMIT 500
        )
        SELECT n.key, n.title, n.resolution FROM newest n, asked
        ORDER BY ts_rank(n.search, asked.words) DESC, n.key LIMIT $3
    """
    rows = await conn.fetch(query, list(words), scope, most)
    return [Solved(row["key"], row["title"], row["resolution"]) for row in rows]
