"""Links and codes that were mailed, as rows of hashes: whoever brings one reads that mailbox.

One that was used, replaced or guessed at too often is marked as used and kept until its time is
over, so that it can be counted. All times are the database's.
"""

from typing import Any
from uuid import UUID

# Wrong tries that a code forgives; the next one is its end.
FORGIVEN = 5


async def issue_verification(
    conn: Any, user_id: UUID, *, token_hash: bytes, code_hash: bytes, hours: int
) -> None:
    """Add a link and code that verify a person's address; older ones end. Hold the person first."""
    query = """
        WITH ended AS (
            UPDATE verification_tokens SET used_at = now() WHERE user_id = $1 AND used_at IS NULL
        )
        INSERT INTO verification_tokens (user_id, token_hash, code_hash, expires_at)
        VALUES ($1, $2, $3, now() + make_interval(hours => $4))
    """
    await conn.execute(query, user_id, token_hash, code_hash, hours)


async def issue_reset(conn: Any, user_id: UUID, *, token_hash: bytes, hours: int) -> None:
    """Add a link that sets a person's password; older ones end. Hold the person first."""
    query = """
        WITH ended AS (
            UPDATE password_reset_tokens SET used_at = now()
            WHERE user_id = $1 AND used_at IS NULL
        )
        INSERT INTO password_reset_tokens (user_id, token_hash, expires_at)
        VALUES ($1, $2, now() + make_interval(hours => $3))
    """
    await conn.execute(query, user_id, token_hash, hours)


async def verification_owner(conn: Any, token_hash: bytes) -> UUID | None:
    """Return whose address a link verifies, or None when it does not, or no longer."""
    query = """
        SELECT user_id FROM verification_tokens
        WHERE token_hash = $1 AND used_at IS NULL AND expires_at > now()
    """
    owner: UUID | None = await conn.fetchval(query, token_hash)
    return owner


async def reset_owner(conn: Any, token_hash: bytes) -> UUID | None:
    """Return whose password a link sets, or None when it does not, or no longer."""
    query = """
        SELECT user_id FROM password_reset_tokens
        WHERE token_hash = $1 AND used_at IS NULL AND expires_at > now()
    """
    owner: UUID | None = await conn.fetchval(query, token_hash)
    return owner


async def use_verification(conn: Any, token_hash: bytes) -> bool:
    """Use a link up; False when it could not be used any more."""
    query = """
        UPDATE verification_tokens SET used_at = now()
        WHERE token_hash = $1 AND used_at IS NULL AND expires_at > now()
    """
    result: str = await conn.execute(query, token_hash)
    return result == "UPDATE 1"


async def use_reset(conn: Any, token_hash: bytes) -> bool:
    """Use a link up; False when it could not be used any more."""
    query = """
        UPDATE password_reset_tokens SET used_at = now()
        WHERE token_hash = $1 AND used_at IS NULL AND expires_at > now()
    """
    result: str = await conn.execute(query, token_hash)
    return result == "UPDATE 1"


async def try_code(conn: Any, user_id: UUID, code_hash: bytes) -> bool:
    """Use a code up if it is the right one; a wrong try counts, and one too many ends the code."""
    query = """
        UPDATE verification_tokens
        SET attempts = attempts + CASE WHEN code_hash = $2 THEN 0 ELSE 1 END,
            used_at = CASE WHEN code_hash = $2 OR attempts >= $3 THEN now() END
        WHERE user_id = $1 AND used_at IS NULL AND expires_at > now()
        RETURNING code_hash = $2
    """
    right: bool | None = await conn.fetchval(query, user_id, code_hash, FORGIVEN)
    return right is True


async def issued_lately(conn: Any, user_id: UUID) -> int:
    """Return how many links were made for a person within the last hour."""
    query = """
        SELECT (SELECT count(*) FROM verification_tokens
                WHERE user_id = $1 AND created_at > now() - interval '1 hour')
             + (SELECT count(*) FROM password_reset_tokens
                WHERE user_id = $1 AND created_at > now() - interval '1 hour')
    """
    count: int = await conn.fetchval(query, user_id)
    return count


async def end_all(conn: Any, user_id: UUID) -> None:
    """End every link and code of a person: what they were made for has changed."""
    query = """
        WITH verifications AS (
            UPDATE verification_tokens SET used_at = now() WHERE user_id = $1 AND used_at IS NULL
        )
        UPDATE password_reset_tokens SET used_at = now() WHERE user_id = $1 AND used_at IS NULL
    """
    await conn.execute(query, user_id)
