"""How much of its limit each subject has used, in rows that all daemons share.

A row knows two periods, the current one and the one before it: what counts now is the current
period's number and, of the one before, the part that a period ending now still covers. Periods
are numbered from 1970 by the database's clock, so that every daemon means the same ones.
"""

from collections.abc import Sequence
from typing import Any

from itdesk.frozen import frozen


@frozen
class Count:
    """What a subject used in a period and in the one before it, at a second of the database's."""

    subject: str
    number: int
    used: int
    before: int
    at: float
    admitted: bool = True


@frozen
class Spent:
    """What a subject used that the database does not know of yet."""

    subject: str
    seconds: int
    number: int
    used: int


async def take(conn: Any, subject: str, *, limit: int, seconds: int) -> Count:
    """Use one of so many in a period, unless they are used up: then nothing is counted."""
    # The clock is read again once the row is held: whoever waited for it counts for then.
    query = """
        INSERT INTO rate_counts AS kept (subject, number, used, before, admitted, expires_at)
        SELECT $1, floor(t / $3)::bigint, 1, 0, true, to_timestamp((floor(t / $3) + 2) * $3)
        FROM (SELECT extract(epoch FROM clock_timestamp())::float8 AS t) AS clock
        ON CONFLICT (subject) DO UPDATE
        SET (number, used, before, admitted, expires_at) = (
            SELECT number, used + fits::int, before, fits, to_timestamp((number + 2) * $3)
            FROM (
                SELECT *, floor(before * (number + 1 - part)) + used + 1 <= $2 AS fits
                FROM (
                    SELECT part, floor(part)::bigint AS number,
                           CASE WHEN kept.number = floor(part) THEN kept.used ELSE 0 END AS used,
                           CASE kept.number WHEN floor(part) THEN kept.before
                                            WHEN floor(part) - 1 THEN kept.used ELSE 0 END AS before
                    FROM (
                        SELECT extract(epoch FROM clock_timestamp())::float8 / $3 AS part
                    ) AS clock
                ) AS current
            ) AS decided
        )
        RETURNING number, used, before, admitted,
                  extract(epoch FROM clock_timestamp())::float8 AS at
    """
    row = await conn.fetchrow(query, subject, limit, float(seconds))
    return Count(subject, **row)


async def add(conn: Any, spent: Sequence[Spent]) -> list[Count]:
    """Add what was used elsewhere, each subject once, and return what that makes in all."""
    # In the order of their names: two daemons never wait for each other crosswise.
    query = """
        INSERT INTO rate_counts AS kept (subject, number, used, before, admitted, expires_at)
        SELECT subject, number, used, 0, true, to_timestamp((number + 2) * seconds)
        FROM unnest($1::text[], $2::int[], $3::bigint[], $4::int[])
             AS told (subject, seconds, number, used)
        ORDER BY subject
        ON CONFLICT (subject) DO UPDATE
        SET number = greatest(kept.number, excluded.number),
            used = CASE WHEN excluded.number > kept.number THEN excluded.used
                        WHEN excluded.number = kept.number THEN kept.used + excluded.used
                        ELSE kept.used END,
            before = CASE excluded.number WHEN kept.number THEN kept.before
                                          WHEN kept.number + 1 THEN kept.used
                                          WHEN kept.number - 1 THEN kept.before + excluded.used
                                          ELSE CASE WHEN excluded.number > kept.number THEN 0
                                                    ELSE kept.before END END,
            expires_at = greatest(kept.expires_at, excluded.expires_at)
        RETURNING subject, number, used, before,
                  extract(epoch FROM clock_timestamp())::float8 AS at
    """
    rows = await conn.fetch(
        query,
        [one.subject for one in spent],
        [one.seconds for one in spent],
        [one.number for one in spent],
        [one.used for one in spent],
    )
    return [Count(**row) for row in rows]


async def read(conn: Any, subject: str) -> Count:
    """Return what a subject used; nothing, in period 0, when no row says otherwise."""
    query = """
        SELECT coalesce(kept.number, 0) AS number, coalesce(kept.used, 0) AS used,
               coalesce(kept.before, 0) AS before,
               extract(epoch FROM clock_timestamp())::float8 AS at
        FROM (SELECT $1::text AS subject) AS asked LEFT JOIN rate_counts kept USING (subject)
    """
    row = await conn.fetchrow(query, subject)
    return Count(subject, **row)
