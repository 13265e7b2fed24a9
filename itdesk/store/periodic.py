"""Which runs of a schedule have begun: a row for each, whose key keeps it from beginning twice."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from itdesk.frozen import frozen


@frozen
class Run:
    """One run of a schedule."""

    name: str
    due_at: datetime


async def start(conn: Any, periods: Mapping[str, int], owner: str) -> list[Run]:
    """Begin the run of the current period of each schedule, unless it was begun already.

    Periods are counted from 1970 by the database's clock, so that every daemon means the same;
    those that passed meanwhile are gone.
    """
    query = """
        INSERT INTO periodic_runs (name, due_at, owner)
        SELECT name, to_timestamp(floor(extract(epoch FROM now()) / seconds) * seconds), $3
        FROM unnest($1::text[], $2::int[]) AS schedule (name, seconds)
        ON CONFLICT DO NOTHING RETURNING name, due_at
    """
    rows = await conn.fetch(query, list(periods), list(periods.values()), owner)
    return [Run(row["name"], row["due_at"]) for row in rows]


async def finish(conn: Any, run: Run) -> None:
    """Note that a run ended well, and with it those that came due while it went on."""
    query = """
        UPDATE periodic_runs SET finished_at = now(), error = NULL
        WHERE name = $1 AND due_at >= $2 AND finished_at IS NULL
    """
    await conn.execute(query, run.name, run.due_at)


async def note_error(conn: Any, run: Run, error: str) -> None:
    """Note why a run did not end well."""
    query = "UPDATE periodic_runs SET error = $3 WHERE name = $1 AND due_at = $2"
    await conn.execute(query, run.name, run.due_at, error)


async def delete_older(conn: Any, limit: int, *, days: int) -> int:
    """Delete up to so many runs that were due before so many days; return how many."""
    query = """
        DELETE FROM periodic_runs WHERE (name, due_at) IN (
            SELECT name, due_at FROM periodic_runs
            WHERE due_at < now() - make_interval(days => $1) LIMIT $2
        )
    """
    result: str = await conn.execute(query, days, limit)
    return int(result.rpartition(" ")[2])
