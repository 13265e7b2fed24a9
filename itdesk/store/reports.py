"""Numbers about tickets, each report one statement, counted and never estimated.

`whose` is the user whose own tickets are counted, or None for everybody's. Days are those of UTC.
"""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Priority, Status
from itdesk.store import narrowing
from itdesk.store.narrowing import NO_DEPARTMENT, Filter

MOST_PEOPLE = 1000


@frozen
class Counted:
    """How many tickets there are of one status, priority and department."""

    status: Status
    priority: Priority
    department: str
    count: int


@frozen
class Activity:
    """One thing that happened on a ticket."""

    ticket_id: UUID
    ticket_key: str
    ticket_title: str
    action: str
    user_id: UUID | None
    user_name: str
    created_at: datetime


@frozen
class UserActivity:
    """What one person did in a period; `query` lists the tickets that they reported in it."""

    user_id: UUID
    user_name: str
    tickets_created: int
    tickets_closed: int
    comments: int
    query: str = ""


@frozen
class Trend:
    """One day: tickets opened, closed, open at its end; medians are of those acted on or closed."""

    date: date
    created: int
    closed: int
    open: int
    median_seconds_to_first_action: float | None
    median_seconds_to_close: float | None


async def now(conn: Any) -> datetime:
    """Return the database's time."""
    moment: datetime = await conn.fetchval("SELECT now()")
    return moment


async def counted(conn: Any, wanted: Filter, *, whose: UUID | None) -> list[Counted]:
    """Return how many tickets there are of each status, priority and department."""
    if whose is None and wanted == Filter(project=wanted.project):
        return await _summed(conn, wanted.project)
    where = narrowing.conditions(wanted)
    if whose is not None:
        where.add(narrowing.OWN, whose)
    query = f"""
        SELECT t.status, t.priority, t.department, count(*) AS count
        FROM tickets t WHERE {where} GROUP BY t.status, t.priority, t.department
    """  # noqa: S608 - conditions are literals, values are parameters
    return [_counted(row) for row in await conn.fetch(query, *where.values)]


async def _summed(conn: Any, project: str | None) -> list[Counted]:
    """Return the same for everybody's tickets of all time, from what their changes added up to."""
    query = """
        SELECT status, priority, department, sum(delta)::bigint AS count FROM ticket_counts
        WHERE $1::text IS NULL OR project_id = (SELECT id FROM projects WHERE key = $1)
        GROUP BY status, priority, department HAVING sum(delta) <> 0
    """
    return [_counted(row) for row in await conn.fetch(query, project)]


async def sum_up(conn: Any) -> int:
    """Put the rows of the same kind of ticket into one; return how many rows there were."""
    query = """
        WITH gone AS (DELETE FROM ticket_counts RETURNING *), kept AS (
            INSERT INTO ticket_counts (project_id, status, priority, department, delta)
            SELECT project_id, status, priority, department, sum(delta) FROM gone
            GROUP BY project_id, status, priority, department HAVING sum(delta) <> 0
        )
        SELECT count(*) FROM gone
    """
    rows: int = await conn.fetchval(query)
    return rows


def _counted(row: Any) -> Counted:
    return Counted(
        Status(row["status"]),
        Priority(row["priority"]),
        row["department"] or NO_DEPARTMENT,
        row["count"],
    )


_ACTIONS = ["ticket.created", "ticket.updated", "comment.added", "attachment.added"]


_ACTIVITY = """
    SELECT t.id AS ticket_id, t.key AS ticket_key, t.title AS ticket_title, e.type, e.changes,
           e.actor_id, e.actor_name, e.created_at
"""
_VISIBLE = """
    e.type = ANY ($1::text[]) AND ($2 OR NOT coalesce((e.data ->> 'internal')::bool, false))
"""


async def recent_activity(
    conn: Any, *, whose: UUID | None, internal: bool, limit: int = 10
) -> Sequence[Activity]:
    """Return what happened last on these tickets, the newest first."""
    everybodys = f"""
        {_ACTIVITY} FROM events e JOIN tickets t ON t.id = e.ticket_id
        WHERE e.seq IS NOT NULL AND {_VISIBLE} ORDER BY e.seq DESC LIMIT $3
    """  # noqa: S608 - literals of this module
    # The journal is everybody's: one's own is read ticket by ticket, from those that moved last.
    own = f"""
        {_ACTIVITY} FROM (
            SELECT * FROM tickets t WHERE t.id IN (
                SELECT id FROM tickets WHERE reporter_id = $4
                UNION ALL SELECT ticket_id FROM ticket_assignees WHERE user_id = $4
            ) ORDER BY t.updated_at DESC, t.id DESC LIMIT 200
        ) AS t CROSS JOIN LATERAL (
            SELECT * FROM events e WHERE e.ticket_id = t.id AND {_VISIBLE}
            ORDER BY e.ticket_version DESC LIMIT $3
        ) AS e ORDER BY e.created_at DESC, e.ticket_version DESC LIMIT $3
    """  # noqa: S608 - literals of this module
    values = [_ACTIONS, internal, limit]
    if whose is None:
        rows = await conn.fetch(everybodys, *values)
    else:
        rows = await conn.fetch(own, *values, whose)
    return [
        Activity(
            ticket_id=row["ticket_id"],
            ticket_key=row["ticket_key"],
            ticket_title=row["ticket_title"],
            action=_action(row),
            user_id=row["actor_id"],
            user_name=row["actor_name"],
            created_at=row["created_at"],
        )
        for row in rows
    ]


def _action(row: Any) -> str:
    fields = [change["field"] for change in row["changes"]]
    if row["type"] == "ticket.updated" and fields:
        return f"updated_{fields[0] if 'status' not in fields else 'status'}"
    return {
        "ticket.created": "created",
        "ticket.updated": "updated",
        "comment.added": "comment_added",
        "attachment.added": "attachment_added",
    }[row["type"]]


async def user_activity(conn: Any, since: date, until: date) -> list[UserActivity]:
    """Return what each person did on these days, those who reported most first."""
    query = f"""
        WITH period AS (
            SELECT $1::date::timestamp AT TIME ZONE 'UTC' AS since,
                   ($2::date + 1)::timestamp AT TIME ZONE 'UTC' AS until
        ), did AS (
            SELECT t.reporter_id AS user_id, count(*) AS created, 0 AS closed, 0 AS comments
            FROM tickets t, period
            WHERE t.created_at >= since AND t.created_at < until GROUP BY t.reporter_id
            UNION ALL
            SELECT u.id, 0, count(DISTINCT e.ticket_id), 0
            FROM users u CROSS JOIN period
            JOIN events e ON e.actor_id = u.id AND e.created_at >= since AND e.created_at < until
            WHERE e.type = 'ticket.updated'
              AND e.changes @> '[{{"field": "status", "new": "closed"}}]'
            GROUP BY u.id
            UNION ALL
            SELECT c.user_id, 0, 0, count(*)
            FROM users u CROSS JOIN period
            JOIN ticket_comments c ON c.user_id = u.id
                 AND c.created_at >= since AND c.created_at < until
            GROUP BY c.user_id
        )
        SELECT u.id AS user_id, u.name AS user_name, sum(did.created)::bigint AS tickets_created,
               sum(did.closed)::bigint AS tickets_closed, sum(did.comments)::bigint AS comments
        FROM did JOIN users u ON u.id = did.user_id
        GROUP BY u.id, u.name
        ORDER BY tickets_created DESC, tickets_closed DESC, comments DESC, u.name, u.id
        LIMIT {MOST_PEOPLE}
    """  # noqa: S608 - literals of this module
    return [UserActivity(**dict(row)) for row in await conn.fetch(query, since, until)]


async def trends(conn: Any, since: date, until: date, *, project: str | None) -> list[Trend]:
    """Return each day from one to another, both included, by the tickets as they stand now."""
    query = """
        WITH mine AS MATERIALIZED (
            SELECT (created_at AT TIME ZONE 'UTC')::date AS created,
                   (closed_at AT TIME ZONE 'UTC')::date AS closed,
                   extract(epoch FROM first_action_at - created_at)::float8 AS to_action,
                   (first_action_at AT TIME ZONE 'UTC')::date AS acted,
                   extract(epoch FROM closed_at - created_at)::float8 AS to_close
            FROM tickets
            WHERE created_at < ($2::date + 1)::timestamp AT TIME ZONE 'UTC'
              AND (closed_at IS NULL OR closed_at >= $1::date::timestamp AT TIME ZONE 'UTC'
                   OR created_at >= $1::date::timestamp AT TIME ZONE 'UTC'
                   OR first_action_at >= $1::date::timestamp AT TIME ZONE 'UTC')
              AND ($3::text IS NULL OR project_id = (SELECT id FROM projects WHERE key = $3))
        ), before AS (
            -- One that was closed before is there for what was done first on it since.
            SELECT count(*) AS open FROM mine
            WHERE created < $1 AND (closed IS NULL OR closed >= $1)
        ), opened AS (
            SELECT created AS day, count(*) AS n FROM mine WHERE created >= $1 GROUP BY 1
        ), ended AS (
            SELECT closed AS day, count(*) AS n,
                   percentile_cont(0.5) WITHIN GROUP (ORDER BY to_close) AS median
            FROM mine WHERE closed >= $1 GROUP BY 1
        ), answered AS (
            SELECT acted AS day, percentile_cont(0.5) WITHIN GROUP (ORDER BY to_action) AS median
            FROM mine WHERE acted >= $1 GROUP BY 1
        )
        SELECT days.day::date AS date, coalesce(opened.n, 0) AS created,
               coalesce(ended.n, 0) AS closed,
               (before.open + sum(coalesce(opened.n, 0) - coalesce(ended.n, 0))
                   OVER (ORDER BY days.day))::bigint AS open,
               answered.median AS median_seconds_to_first_action,
               ended.median AS median_seconds_to_close
        FROM generate_series($1::date::timestamp, $2::date::timestamp, interval '1 day')
             AS days (day)
        CROSS JOIN before
        LEFT JOIN opened ON opened.day = days.day::date
        LEFT JOIN ended ON ended.day = days.day::date
        LEFT JOIN answered ON answered.day = days.day::date
        ORDER BY 1
    """
    return [Trend(**dict(row)) for row in await conn.fetch(query, since, until, project)]
