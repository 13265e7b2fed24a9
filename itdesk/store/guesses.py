"""How often in a row a secret was guessed wrong, whether its owner exists or not.

A row names nobody: its key is a digest, so that what people mistype is not kept.
"""

from typing import Any

from itdesk.frozen import frozen

# A row that nobody touches for so long is forgotten, unless it locks: a lock is lifted by people.
KEEP = "30 days"


@frozen
class Guess:
    """Leave to guess, or the seconds until there is; how many were wrong if this one is."""

    admitted: bool
    failures: int
    seconds: float


async def claim(conn: Any, subject: bytes, *, free: int, most: int, wait: int) -> Guess:
    """Count a guess as wrong before it is looked at, unless there is no leave for one now.

    From the `free`-th on each is followed by a wait, twice as long every time, up to a day; after
    `most` there is no leave at all.
    """
    query = """
        INSERT INTO password_guesses AS kept
            (subject, failures, admitted, blocked_until, expires_at)
        VALUES ($1, 1, true, clock_timestamp() + make_interval(secs => CASE WHEN $2 <= 1
                THEN $4 ELSE 0 END), now() + $5::text::interval)
        ON CONFLICT (subject) DO UPDATE
        SET (failures, admitted, blocked_until, expires_at) = (
            SELECT failures + leave::int, leave,
                   CASE WHEN leave AND failures + 1 >= $2
                        THEN at + make_interval(secs => least(
                            $4 * 2.0 ^ least(failures + 1 - $2, 20), greatest(86400, $4)))
                        ELSE kept.blocked_until END,
                   CASE WHEN failures + leave::int >= $3 THEN 'infinity'
                        WHEN leave THEN at + $5::text::interval ELSE kept.expires_at END
            FROM (
                SELECT at, failures, failures < $3 AND kept.blocked_until <= at AS leave
                FROM (
                    SELECT at, CASE WHEN kept.expires_at <= at THEN 0 ELSE kept.failures END
                               AS failures
                    FROM (SELECT clock_timestamp() AS at) AS clock
                ) AS counted
            ) AS decided
        )
        RETURNING admitted, failures, CASE WHEN failures >= $3 THEN 86400 ELSE
            extract(epoch FROM blocked_until - clock_timestamp()) END::float8 AS seconds
    """
    return Guess(**await conn.fetchrow(query, subject, free, most, float(wait), KEEP))


async def give_back(conn: Any, subject: bytes, failures: int) -> None:
    """Take a claimed guess back that was never looked at."""
    query = """
        UPDATE password_guesses
        SET failures = greatest(failures - 1, 0),
            blocked_until = CASE WHEN failures = $2 THEN now() ELSE blocked_until END,
            expires_at = now() + $3::text::interval
        WHERE subject = $1
    """
    await conn.execute(query, subject, failures, KEEP)


async def forget(conn: Any, subject: bytes) -> int:
    """Forget all wrong guesses; return how many in a row there were."""
    query = "DELETE FROM password_guesses WHERE subject = $1 RETURNING failures"
    failures: int | None = await conn.fetchval(query, subject)
    return failures or 0
