"""Second factors as rows: a sealed secret a person, hashed recovery codes, waiting sign-ins."""

from collections.abc import Sequence
from dataclasses import field
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen


@frozen
class Factor:
    """What somebody's codes are made from, which was used last, and how often one was wrong."""

    secret: bytes = field(repr=False)
    confirmed_at: datetime | None
    last_step: int
    failures: int
    blocked_until: datetime | None


@frozen
class Challenge:
    """A sign-in that waits for its second step; void when the person's epoch has changed."""

    user_id: UUID
    auth_epoch: int
    attempts: int
    expires_at: datetime


async def hold(conn: Any, user_id: UUID) -> Factor | None:
    """Read a person's factor, and let nobody else try a code until the transaction ends."""
    query = """
        SELECT secret, confirmed_at, last_step, failures, blocked_until
        FROM second_factors WHERE user_id = $1 FOR UPDATE
    """
    row = await conn.fetchrow(query, user_id)
    return Factor(**row) if row is not None else None


async def status(conn: Any, user_id: UUID) -> tuple[datetime | None, int]:
    """Return since when a person has a factor, or None, and how many recovery codes are left."""
    query = """
        SELECT confirmed_at,
               (SELECT count(*) FROM recovery_codes c WHERE c.user_id = f.user_id) AS codes_left
        FROM second_factors f WHERE f.user_id = $1
    """
    row = await conn.fetchrow(query, user_id)
    return (row["confirmed_at"], row["codes_left"]) if row is not None else (None, 0)


async def is_confirmed(conn: Any, user_id: UUID) -> bool:
    """Return whether a person has a factor that is asked for."""
    query = """
        SELECT EXISTS (
            SELECT FROM second_factors WHERE user_id = $1 AND confirmed_at IS NOT NULL
        )
    """
    found: bool = await conn.fetchval(query, user_id)
    return found


async def propose(conn: Any, user_id: UUID, secret: bytes, now: datetime) -> bool:
    """Store a secret to be confirmed in place of an earlier such one; False if one is confirmed."""
    query = """
        INSERT INTO second_factors AS f (user_id, secret, created_at) VALUES ($1, $2, $3)
        ON CONFLICT (user_id) DO UPDATE SET secret = $2, created_at = $3
        WHERE f.confirmed_at IS NULL
    """
    result: str = await conn.execute(query, user_id, secret, now)
    return result == "INSERT 0 1"


async def confirm(conn: Any, user_id: UUID, now: datetime) -> None:
    """Ask for this factor from now on."""
    query = "UPDATE second_factors SET confirmed_at = $2 WHERE user_id = $1"
    await conn.execute(query, user_id, now)


async def note_success(conn: Any, user_id: UUID, last_step: int) -> None:
    """Use a time step up, and forget earlier failures."""
    query = """
        UPDATE second_factors SET last_step = $2, failures = 0, blocked_until = NULL
        WHERE user_id = $1
    """
    await conn.execute(query, user_id, last_step)


async def note_failure(conn: Any, user_id: UUID, blocked_until: datetime | None) -> None:
    """Count a wrong code, and let no further one be tried until then."""
    query = """
        UPDATE second_factors SET failures = failures + 1, blocked_until = $2 WHERE user_id = $1
    """
    await conn.execute(query, user_id, blocked_until)


async def remove(conn: Any, user_id: UUID) -> bool:
    """Ask for no factor any more; False when none was asked for."""
    query = "DELETE FROM second_factors WHERE user_id = $1 RETURNING confirmed_at"
    return await conn.fetchval(query, user_id) is not None


async def replace_codes(conn: Any, user_id: UUID, hashes: Sequence[bytes]) -> None:
    """Make these the recovery codes, in one statement; the earlier ones are void."""
    query = """
        WITH gone AS (DELETE FROM recovery_codes WHERE user_id = $1)
        INSERT INTO recovery_codes (user_id, code_hash) SELECT $1, unnest($2::bytea[])
    """
    await conn.execute(query, user_id, hashes)


async def use_code(conn: Any, user_id: UUID, code_hash: bytes) -> bool:
    """Use a recovery code up; False when there is no such one."""
    query = "DELETE FROM recovery_codes WHERE user_id = $1 AND code_hash = $2"
    result: str = await conn.execute(query, user_id, code_hash)
    return result == "DELETE 1"


async def challenge(
    conn: Any,
    *,
    token_hash: bytes,
    user_id: UUID,
    auth_epoch: int,
    now: datetime,
    expires_at: datetime,
) -> None:
    """Let a sign-in wait for its second step."""
    query = """
        INSERT INTO login_challenges (token_hash, user_id, auth_epoch, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5)
    """
    await conn.execute(query, token_hash, user_id, auth_epoch, now, expires_at)


async def find_challenge(conn: Any, token_hash: bytes, *, lock: bool = False) -> Challenge | None:
    """Read a waiting sign-in; hold its person first, then it with `lock`, to rely on it."""
    query = f"""
        SELECT user_id, auth_epoch, attempts, expires_at FROM login_challenges
        WHERE token_hash = $1 {"FOR UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this function
    row = await conn.fetchrow(query, token_hash)
    return Challenge(**row) if row is not None else None


async def count_attempt(conn: Any, token_hash: bytes) -> None:
    """Count a wrong answer to a challenge."""
    query = "UPDATE login_challenges SET attempts = attempts + 1 WHERE token_hash = $1"
    await conn.execute(query, token_hash)


async def end_challenge(conn: Any, token_hash: bytes) -> None:
    """Delete a challenge that was answered."""
    await conn.execute("DELETE FROM login_challenges WHERE token_hash = $1", token_hash)
