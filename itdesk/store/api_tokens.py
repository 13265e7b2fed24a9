"""API tokens as rows: whose, called what, for how much and until when; never the token itself."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import Conflict, NotFound
from itdesk.model import ApiToken, Grant

_COLUMNS = "t.id, t.name, t.scope, t.expires_at, t.last_used_at, t.last_used_ip, t.created_at"


def _token(row: Any) -> ApiToken:
    return ApiToken(
        id=row["id"],
        name=row["name"],
        scope=Grant(row["scope"]),
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
        last_used_ip=row["last_used_ip"],
        created_at=row["created_at"],
    )


async def add(
    conn: Any,
    *,
    id: UUID,
    user_id: UUID,
    name: str,
    scope: Grant,
    token_hash: bytes,
    now: datetime,
    expires_at: datetime | None,
) -> ApiToken:
    """Add a token; Conflict when its owner has one of that name."""
    query = f"""
        INSERT INTO api_tokens AS t (id, user_id, name, scope, token_hash, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal above
    try:
        row = await conn.fetchrow(query, id, user_id, name, scope, token_hash, now, expires_at)
    except asyncpg.UniqueViolationError as exc:
        raise Conflict(
            "You have a token of this name already: choose another name, or revoke that one.",
            code="E_TOKEN_NAME_EXISTS",
        ) from exc
    return _token(row)


async def list_all(conn: Any, user_id: UUID) -> list[ApiToken]:
    """Return all tokens of a person, the newest first."""
    query = f"""
        SELECT {_COLUMNS} FROM api_tokens t WHERE t.user_id = $1
        ORDER BY t.created_at DESC, t.id DESC
    """  # noqa: S608 - a literal above
    return [_token(row) for row in await conn.fetch(query, user_id)]


async def count(conn: Any, user_id: UUID) -> int:
    """Return how many tokens a person has."""
    total: int = await conn.fetchval("SELECT count(*) FROM api_tokens WHERE user_id = $1", user_id)
    return total


async def delete(conn: Any, id: UUID, *, owner: UUID | None) -> tuple[UUID, str, bytes]:
    """Delete a token, of this owner or of anybody; return whose it was, its name and its hash."""
    query = """
        DELETE FROM api_tokens WHERE id = $1 AND ($2::uuid IS NULL OR user_id = $2)
        RETURNING user_id, name, token_hash
    """
    row = await conn.fetchrow(query, id, owner)
    if row is None:
        raise NotFound.of("token")
    return row["user_id"], row["name"], row["token_hash"]


async def delete_all(conn: Any, user_id: UUID) -> list[str]:
    """Delete all tokens of a person; return their names."""
    query = "DELETE FROM api_tokens WHERE user_id = $1 RETURNING name"
    return [row["name"] for row in await conn.fetch(query, user_id)]


async def note_uses(
    conn: Any, ids: Sequence[UUID], times: Sequence[datetime], addresses: Sequence[str]
) -> None:
    """Write down when and from where tokens were used last, unless something newer is there."""
    query = """
        UPDATE api_tokens t SET last_used_at = u.at, last_used_ip = u.address
        FROM unnest($1::uuid[], $2::timestamptz[], $3::text[]) AS u (id, at, address)
        WHERE t.id = u.id AND (t.last_used_at IS NULL OR t.last_used_at < u.at)
    """
    await conn.execute(query, ids, times, addresses)
