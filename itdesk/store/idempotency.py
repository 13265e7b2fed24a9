"""SQL for the answers that are kept so that a repeated request has no second effect."""

from typing import Any

from itdesk.frozen import frozen


@frozen
class Kept:
    """An answer as it was given, and the request that it was given to."""

    request_hash: bytes
    status: int
    response: bytes | None
    content_type: str | None
    location: str | None
    etag: str | None


async def try_lock(conn: Any, number: int) -> bool:
    """Hold this number until the transaction ends; return False when somebody else does."""
    query = "SELECT pg_try_advisory_xact_lock($1)"
    return bool(await conn.fetchval(query, number))


async def find(conn: Any, principal: str, route: str, key: str) -> Kept | None:
    """Return the answer that was kept for a key, or None when the key is unused."""
    query = """
        SELECT request_hash, status, response, content_type, location, etag
        FROM idempotency_keys
        WHERE principal = $1 AND route = $2 AND key = $3 AND state = 'done'
    """
    row = await conn.fetchrow(query, principal, route, key)
    return Kept(**row) if row is not None else None


async def keep(conn: Any, principal: str, route: str, key: str, kept: Kept) -> None:
    """Keep an answer for a key, in the transaction that has the effect."""
    query = """
        INSERT INTO idempotency_keys (
            principal, route, key, request_hash, state, status, response,
            content_type, location, etag
        ) VALUES ($1, $2, $3, $4, 'done', $5, $6, $7, $8, $9)
    """
    await conn.execute(
        query,
        principal,
        route,
        key,
        kept.request_hash,
        kept.status,
        kept.response,
        kept.content_type,
        kept.location,
        kept.etag,
    )
