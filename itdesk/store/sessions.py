"""Sessions as rows: a family of refresh tokens of which only the newest can be used.

The first token of a family has the family's id as its own. Its `revoked_at` decides for all, so a
child that is born while the family is revoked is dead, and a session's state is one look-up.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Grant, Role

ENDLESS = datetime.max.replace(tzinfo=UTC)


@frozen
class RefreshToken:
    """A refresh token and where its family stands."""

    id: UUID
    user_id: UUID
    family_id: UUID
    generation: int
    used_at: datetime | None
    expires_at: datetime
    is_revoked: bool
    child_is_unused: bool


@frozen
class Session:
    """A session, or an API token, that lives, and whose it is now.

    `role` is what may be done with it: a token's `grant` caps what its owner has.
    """

    id: UUID
    user_id: UUID
    name: str
    role: Role
    owner_role: Role
    email: str
    expires_at: datetime
    has_factor: bool
    grant: Grant | None = None


_PERSON = """
    u.id AS user_id, u.name, u.role, u.email,
    EXISTS (SELECT FROM second_factors f WHERE f.user_id = u.id AND f.confirmed_at IS NOT NULL)
        AS has_factor
"""


def _session(row: Any) -> Session:
    """Return the session of a row with these columns; one without an end lasts for ever."""
    grant = Grant(row["scope"]) if row["scope"] is not None else None
    role = Role(row["role"])
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        name=row["name"],
        role=grant.cap(role) if grant is not None else role,
        owner_role=role,
        email=row["email"],
        expires_at=row["expires_at"] or ENDLESS,
        has_factor=row["has_factor"],
        grant=grant,
    )


async def live(conn: Any, family_id: UUID) -> Session | None:
    """Read a session with its person; None when it was revoked or the person may not sign in."""
    query = f"""
        SELECT root.id, root.expires_at, NULL AS scope, {_PERSON}
        FROM refresh_tokens root JOIN users u ON u.id = root.user_id
        WHERE root.id = $1 AND root.revoked_at IS NULL AND u.is_active
    """  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, family_id)
    return _session(row) if row is not None else None


async def live_token(conn: Any, token_hash: bytes) -> Session | None:
    """Read an API token with its person; None when it is none or the person may not sign in."""
    query = f"""
        SELECT t.id, t.expires_at, t.scope, {_PERSON}
        FROM api_tokens t JOIN users u ON u.id = t.user_id
        WHERE t.token_hash = $1 AND u.is_active
    """  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, token_hash)
    return _session(row) if row is not None else None


async def living(conn: Any, ids: Sequence[UUID]) -> dict[UUID, Session]:
    """Read those of these sessions and API tokens that live, with their people."""
    query = f"""
        SELECT root.id, root.expires_at, NULL AS scope, {_PERSON}
        FROM refresh_tokens root JOIN users u ON u.id = root.user_id
        WHERE root.id = ANY ($1::uuid[]) AND root.revoked_at IS NULL AND u.is_active
        UNION ALL
        SELECT t.id, t.expires_at, t.scope, {_PERSON}
        FROM api_tokens t JOIN users u ON u.id = t.user_id
        WHERE t.id = ANY ($1::uuid[]) AND u.is_active
    """  # noqa: S608 - a literal above
    return {row["id"]: _session(row) for row in await conn.fetch(query, ids)}


async def start(
    conn: Any,
    *,
    id: UUID,
    user_id: UUID,
    auth_epoch: int,
    token_hash: bytes,
    now: datetime,
    expires_at: datetime,
    user_agent: str,
    address: str,
) -> bool:
    """Begin a family; False when the person's password or state changed since it was checked."""
    # FOR SHARE: who changes the person afterwards sees this family, and revokes it too.
    query = """
        INSERT INTO refresh_tokens (id, family_id, user_id, token_hash, created_at, expires_at,
                                    user_agent, ip)
        SELECT $1, $1, u.id, $4, $5, $6, $7, $8 FROM users u
        WHERE u.id = $2 AND u.auth_epoch = $3 AND u.is_active
        FOR SHARE
    """
    result: str = await conn.execute(
        query, id, user_id, auth_epoch, token_hash, now, expires_at, user_agent, address
    )
    return result == "INSERT 0 1"


async def hold_family(conn: Any, token_hash: bytes) -> None:
    """Let nobody rotate or revoke the family of this token until the commit."""
    query = """
        SELECT id FROM refresh_tokens
        WHERE id = (SELECT family_id FROM refresh_tokens WHERE token_hash = $1)
        FOR UPDATE
    """
    await conn.execute(query, token_hash)


async def find(conn: Any, token_hash: bytes) -> RefreshToken | None:
    """Read a token by its hash, or None; hold the family first to rely on it."""
    query = """
        SELECT t.id, t.user_id, t.family_id, t.generation, t.used_at, t.expires_at,
               root.revoked_at IS NOT NULL AS is_revoked,
               child.id IS NOT NULL AND child.used_at IS NULL AS child_is_unused
        FROM refresh_tokens t
        JOIN refresh_tokens root ON root.id = t.family_id
        LEFT JOIN refresh_tokens child ON child.id = t.replaced_by
        WHERE t.token_hash = $1
    """
    row = await conn.fetchrow(query, token_hash)
    return RefreshToken(**row) if row is not None else None


async def replace(
    conn: Any,
    parent: UUID,
    *,
    id: UUID,
    token_hash: bytes,
    now: datetime,
    user_agent: str,
    address: str,
) -> bool:
    """Use a token up and add the one that follows it; False when it was used already."""
    query = """
        WITH used AS (
            UPDATE refresh_tokens SET used_at = $4, replaced_by = $2
            WHERE id = $1 AND used_at IS NULL
            RETURNING user_id, family_id, generation, expires_at
        )
        INSERT INTO refresh_tokens (id, user_id, family_id, generation, token_hash, created_at,
                                    expires_at, user_agent, ip)
        SELECT $2, user_id, family_id, generation + 1, $3, $4, expires_at, $5, $6 FROM used
    """
    result: str = await conn.execute(query, parent, id, token_hash, now, user_agent, address)
    return result == "INSERT 0 1"


async def revoke(conn: Any, family_id: UUID, now: datetime) -> bool:
    """Revoke every token of a family; False when that was done before."""
    # The first token is held before the others, by everybody: nobody waits crosswise.
    query = """
        WITH root AS (
            SELECT id FROM refresh_tokens WHERE id = $1 AND revoked_at IS NULL FOR UPDATE
        )
        UPDATE refresh_tokens SET revoked_at = $2
        WHERE family_id = ANY (ARRAY(SELECT id FROM root)) AND revoked_at IS NULL
    """
    result: str = await conn.execute(query, family_id, now)
    return result != "UPDATE 0"


async def revoke_all(conn: Any, user_id: UUID, now: datetime, *, keep: UUID | None) -> None:
    """Revoke all families of a person but one; hold the person first."""
    query = """
        WITH roots AS (
            SELECT id FROM refresh_tokens
            WHERE user_id = $1 AND id = family_id AND id IS DISTINCT FROM $3
              AND revoked_at IS NULL
            ORDER BY id FOR UPDATE
        )
        UPDATE refresh_tokens SET revoked_at = $2
        WHERE family_id = ANY (ARRAY(SELECT id FROM roots)) AND revoked_at IS NULL
    """
    await conn.execute(query, user_id, now, keep)
