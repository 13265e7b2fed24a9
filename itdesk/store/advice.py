"""What real tickets give reason to recommend: each search for reasons is one bounded statement.

A finding is named by what was found (`aging:<ticket>`), never by how it reads: found again it is
the same row. Texts hold no more than every reader of one of its tickets may know.
"""

from collections.abc import Sequence
from typing import Any

from itdesk.frozen import frozen

MOST_FINDINGS = 50
MOST_RELATED = 20


@frozen
class Finding:
    """A reason to recommend something, and the tickets that it rests on."""

    finding: str
    type: str
    title: str
    description: str
    related: Sequence[str]
    confidence: int
    impact: str
    staff_only: bool = False


async def repeated(conn: Any, *, days: int, least: int) -> list[Finding]:
    """Find subjects that several tickets of the last days have, whatever numbers are in them."""
    query = f"""
        SELECT md5(words) AS name,
               (array_agg(key ORDER BY created_at DESC, id DESC))[1:{MOST_RELATED}] AS related
        FROM (
            SELECT id, key, created_at, array_to_string(tsvector_to_array(
                       to_tsvector('english', regexp_replace(title, '[0-9]+', ' ', 'g'))), ' '
                   ) AS words
            FROM tickets WHERE created_at >= now() - make_interval(days => $1::int)
        ) AS recent
        WHERE words <> '' GROUP BY words HAVING count(*) >= $2::int
        ORDER BY count(*) DESC, words LIMIT {MOST_FINDINGS}
    """  # noqa: S608 - literals of this module
    return [
        Finding(
            f"repeated:{row['name']}",
            "pattern",
            "The same subject comes again and again",
            f"Tickets of the last {days} days have the same words in their titles. Look for one"
            " cause, and link or merge them.",
            row["related"],
            80,
            "medium",
        )
        for row in await conn.fetch(query, days, least)
    ]


async def aging(conn: Any, *, hours: int) -> list[Finding]:
    """Find critical tickets that nobody moved for so many hours."""
    query = f"""
        SELECT id, key, first_action_at IS NULL AS untouched FROM tickets
        WHERE status <> 'closed' AND priority = 'critical'
          AND updated_at < now() - make_interval(hours => $1::int)
        ORDER BY updated_at, id LIMIT {MOST_FINDINGS}
    """  # noqa: S608 - literals of this module
    return [
        Finding(
            f"aging:{row['id']}",
            "priority",
            f"Critical ticket {row['key']} is getting old",
            f"It is critical, not closed, and nothing happened on it for {hours} hours."
            + (" Nobody of the desk has acted on it yet." if row["untouched"] else ""),
            [row["key"]],
            95 if row["untouched"] else 85,
            "high",
        )
        for row in await conn.fetch(query, hours)
    ]


async def reopened(conn: Any, *, days: int, least: int) -> list[Finding]:
    """Find tickets that were closed and opened again several times in the last days."""
    # Through the tickets that are not closed: the journal has no index by time.
    query = f"""
        SELECT t.id, t.key FROM tickets t CROSS JOIN LATERAL (
            SELECT count(*) AS times FROM events e
            WHERE e.ticket_id = t.id AND e.type = 'ticket.updated'
              AND e.created_at >= now() - make_interval(days => $1::int)
              AND e.changes @> '[{{"field": "status", "old": "closed"}}]'
        ) AS again
        WHERE t.status <> 'closed' AND t.updated_at >= now() - make_interval(days => $1::int)
          AND again.times >= $2::int
        ORDER BY again.times DESC, t.updated_at DESC, t.id LIMIT {MOST_FINDINGS}
    """  # noqa: S608 - literals of this module
    return [
        Finding(
            f"reopened:{row['id']}",
            "solution",
            f"Ticket {row['key']} was reopened repeatedly",
            f"It was closed and opened again at least {least} times in {days} days: what closed"
            " it does not solve it.",
            [row["key"]],
            75,
            "medium",
        )
        for row in await conn.fetch(query, days, least)
    ]


async def overloaded(conn: Any, *, least: int, times: float) -> list[Finding]:
    """Find people with many more open tickets than the others who have some."""
    query = f"""
        WITH work AS MATERIALIZED (
            SELECT a.user_id, count(*) AS n,
                   (array_agg(t.key ORDER BY t.created_at DESC, t.id DESC))[1:{MOST_RELATED}]
                       AS related
            FROM tickets t JOIN ticket_assignees a ON a.ticket_id = t.id
            WHERE t.status <> 'closed' GROUP BY a.user_id
        )
        SELECT u.id, u.name, work.n, work.related FROM work JOIN users u ON u.id = work.user_id
        WHERE work.n >= $1::int AND (SELECT count(*) FROM work) > 1
          AND work.n >= $2::float8 * (SELECT avg(o.n) FROM work o WHERE o.user_id <> work.user_id)
        ORDER BY work.n DESC, u.id LIMIT {MOST_FINDINGS}
    """  # noqa: S608 - literals of this module
    return [
        Finding(
            f"overloaded:{row['id']}",
            "workflow",
            f"{row['name']} has too much to do",
            f"{row['n']} open tickets, at least {times:g} times as many as the others have on"
            " average. Assign some of them to somebody else.",
            row["related"],
            70,
            "medium",
            staff_only=True,
        )
        for row in await conn.fetch(query, least, times)
    ]
