"""The numbers of each day: how many tickets there were, by status and by priority."""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen

_COLUMNS = """
    id, date, total, open, triaged, in_progress, blocked, closed, critical_count, high_count,
    medium_count, low_count, created_at, updated_at
"""


@frozen
class DailyStats:
    """How many tickets there were on a day (UTC), when they were last counted."""

    id: UUID
    date: date
    total: int
    open: int
    triaged: int
    in_progress: int
    blocked: int
    closed: int
    critical_count: int
    high_count: int
    medium_count: int
    low_count: int
    created_at: datetime
    updated_at: datetime


async def lock(conn: Any) -> None:
    """Let nobody else count until the transaction ends: the later one shall see more."""
    await conn.execute("LOCK TABLE daily_stats IN SHARE ROW EXCLUSIVE MODE")


async def aggregate(conn: Any) -> DailyStats:
    """Count all tickets as they are now, into the one row of today."""
    query = f"""
        INSERT INTO daily_stats AS d (date, total, open, triaged, in_progress, blocked, closed,
                                      critical_count, high_count, medium_count, low_count)
        SELECT (now() AT TIME ZONE 'UTC')::date, count(*),
               count(*) FILTER (WHERE status = 'open'),
               count(*) FILTER (WHERE status = 'triaged'),
               count(*) FILTER (WHERE status = 'in_progress'),
               count(*) FILTER (WHERE status = 'blocked'),
               count(*) FILTER (WHERE status = 'closed'),
               count(*) FILTER (WHERE priority = 'critical'),
               count(*) FILTER (WHERE priority = 'high'),
               count(*) FILTER (WHERE priority = 'medium'),
               count(*) FILTER (WHERE priority = 'low')
        FROM tickets
        ON CONFLICT (date) DO UPDATE SET
            total = excluded.total, open = excluded.open, triaged = excluded.triaged,
            in_progress = excluded.in_progress, blocked = excluded.blocked,
            closed = excluded.closed, critical_count = excluded.critical_count,
            high_count = excluded.high_count, medium_count = excluded.medium_count,
            low_count = excluded.low_count, updated_at = now()
        RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal of this module
    return DailyStats(**dict(await conn.fetchrow(query)))


async def list_days(conn: Any, *, since: date | None, until: date | None) -> list[DailyStats]:
    """Return the rows of the days from one to another, both included, in their order."""
    query = f"""
        SELECT {_COLUMNS} FROM daily_stats
        WHERE ($1::date IS NULL OR date >= $1) AND ($2::date IS NULL OR date <= $2)
        ORDER BY date
    """  # noqa: S608 - a literal of this module
    return [DailyStats(**dict(row)) for row in await conn.fetch(query, since, until)]
