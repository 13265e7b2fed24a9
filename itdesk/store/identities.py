"""Accounts elsewhere as rows: whom they belong to here, and sign-ins that are on their way.

An account elsewhere is named by its issuer and subject, for good; its address is only remembered
for people to read. A person has one at each issuer.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import LinkedIdentity

_COLUMNS = "id, provider, issuer, subject, email, created_at, last_used_at"


@frozen
class Passage:
    """A sign-in that was begun: where the provider sends the browser back to, and what follows."""

    redirect_uri: str
    next: str


async def begin(
    conn: Any, state_hash: bytes, provider: str, passage: Passage, *, seconds: int
) -> None:
    """Remember a sign-in that was begun, for so many seconds."""
    query = """
        INSERT INTO oauth_states (state_hash, provider, redirect_uri, next, expires_at)
        VALUES ($1, $2, $3, $4, now() + make_interval(secs => $5))
    """
    await conn.execute(query, state_hash, provider, passage.redirect_uri, passage.next, seconds)


async def take(conn: Any, state_hash: bytes, provider: str) -> Passage | None:
    """Return a sign-in that was begun, once; None when it is over, used up or another's."""
    query = """
        DELETE FROM oauth_states
        WHERE state_hash = $1 AND provider = $2 AND expires_at > now()
        RETURNING redirect_uri, next
    """
    row = await conn.fetchrow(query, state_hash, provider)
    return Passage(row["redirect_uri"], row["next"]) if row is not None else None


async def owner(conn: Any, issuer: str, subject: str) -> UUID | None:
    """Return whose account here this account elsewhere is linked to."""
    query = "SELECT user_id FROM user_identities WHERE issuer = $1 AND subject = $2"
    found: UUID | None = await conn.fetchval(query, issuer, subject)
    return found


async def touch(conn: Any, user_id: UUID, issuer: str, subject: str, email: str) -> bool:
    """Note that a link was used; False when it is no longer there."""
    query = """
        UPDATE user_identities SET last_used_at = now(), email = $4
        WHERE user_id = $1 AND issuer = $2 AND subject = $3
    """
    result: str = await conn.execute(query, user_id, issuer, subject, email)
    return result == "UPDATE 1"


async def add(
    conn: Any, user_id: UUID, *, provider: str, issuer: str, subject: str, email: str
) -> bool:
    """Link an account elsewhere to a person; False when either is linked at that issuer."""
    query = """
        INSERT INTO user_identities (user_id, provider, issuer, subject, email, last_used_at)
        VALUES ($1, $2, $3, $4, $5, now())
        ON CONFLICT DO NOTHING
    """
    result: str = await conn.execute(query, user_id, provider, issuer, subject, email)
    return result == "INSERT 0 1"


async def set_google_id(conn: Any, user_id: UUID, subject: str) -> bool:
    """Keep Google's subject with the person as well; False when they have another one."""
    query = """
        UPDATE users SET google_id = $2
        WHERE id = $1 AND (google_id IS NULL OR google_id = $2)
          AND NOT EXISTS (SELECT FROM users other WHERE other.google_id = $2 AND other.id <> $1)
    """
    result: str = await conn.execute(query, user_id, subject)
    return result == "UPDATE 1"


async def clear_google_id(conn: Any, user_id: UUID, subject: str) -> None:
    """Forget Google's subject of a person."""
    query = "UPDATE users SET google_id = NULL WHERE id = $1 AND google_id = $2"
    await conn.execute(query, user_id, subject)


async def of_user(conn: Any, user_id: UUID) -> Sequence[LinkedIdentity]:
    """Return the accounts elsewhere that a person signs in by, the oldest first."""
    query = f"""
        SELECT {_COLUMNS} FROM user_identities WHERE user_id = $1 ORDER BY created_at, id
    """  # noqa: S608 - a literal above
    return [LinkedIdentity(**row) for row in await conn.fetch(query, user_id)]


async def remove(conn: Any, identity_id: UUID) -> None:
    """Forget a link."""
    await conn.execute("DELETE FROM user_identities WHERE id = $1", identity_id)


async def take_over(conn: Any, user_id: UUID) -> None:
    """Void all that somebody signed in by who never confirmed the address, and confirm it."""
    query = """
        WITH mailed AS (DELETE FROM verification_tokens WHERE user_id = $1),
             resets AS (DELETE FROM password_reset_tokens WHERE user_id = $1),
             scripts AS (DELETE FROM api_tokens WHERE user_id = $1),
             factors AS (DELETE FROM second_factors WHERE user_id = $1),
             challenges AS (DELETE FROM login_challenges WHERE user_id = $1)
        UPDATE users SET password_hash = NULL, is_verified = true,
                         auth_epoch = auth_epoch + 1, updated_at = now()
        WHERE id = $1
    """
    await conn.execute(query, user_id)
