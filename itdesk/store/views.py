"""Saved views as rows: a query of tickets that somebody gave a name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import Conflict, NotFound
from itdesk.frozen import frozen


@frozen
class SavedView:
    """A query of GET /tickets under a name; a shared one is there for everybody."""

    id: UUID
    name: str
    query: dict[str, Any]
    shared: bool
    owner_id: UUID
    owner_name: str
    created_at: datetime
    updated_at: datetime


_COLUMNS = "v.id, v.name, v.query, v.shared, v.owner_id, v.created_at, v.updated_at"
_VIEW = f"{_COLUMNS}, u.name AS owner_name"
_MINE = "(v.owner_id = $1 OR v.shared)"
MOST_LISTED = 500


def _view(row: Any) -> SavedView:
    return SavedView(**dict(row))


async def list_for(conn: Any, reader: UUID) -> Sequence[SavedView]:
    """Return somebody's own views and the shared ones, by name."""
    query = f"""
        SELECT {_VIEW} FROM saved_views v JOIN users u ON u.id = v.owner_id
        WHERE {_MINE} ORDER BY v.owner_id <> $1, lower(v.name), v.id LIMIT {MOST_LISTED}
    """  # noqa: S608 - literals of this module
    return [_view(row) for row in await conn.fetch(query, reader)]


async def get(conn: Any, reader: UUID, view_id: UUID, *, lock: bool = False) -> SavedView:
    """Read a view that is somebody's own or shared."""
    query = f"""
        SELECT {_VIEW} FROM saved_views v JOIN users u ON u.id = v.owner_id
        WHERE {_MINE} AND v.id = $2 {"FOR UPDATE OF v" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, reader, view_id)
    if row is None:
        raise NotFound.of("view")
    return _view(row)


async def count_of(conn: Any, owner: UUID) -> int:
    """Return how many views somebody has; nobody adds one for them until the commit."""
    await conn.execute("SELECT FROM users WHERE id = $1 FOR NO KEY UPDATE", owner)
    total: int = await conn.fetchval("SELECT count(*) FROM saved_views WHERE owner_id = $1", owner)
    return total


async def create(
    conn: Any, *, id: UUID, owner: UUID, name: str, query: Mapping[str, Any], shared: bool
) -> None:
    """Keep a view."""
    statement = """
        INSERT INTO saved_views (id, owner_id, name, query, shared)
        VALUES ($1, $2, $3, $4::jsonb, $5)
    """
    with _names():
        await conn.execute(statement, id, owner, name, dict(query), shared)


async def update(
    conn: Any, view_id: UUID, *, name: str, query: Mapping[str, Any], shared: bool
) -> None:
    """Change a view."""
    statement = """
        UPDATE saved_views SET name = $2, query = $3::jsonb, shared = $4, updated_at = now()
        WHERE id = $1
    """
    with _names():
        await conn.execute(statement, view_id, name, dict(query), shared)


async def delete(conn: Any, view_id: UUID) -> None:
    """Forget a view."""
    await conn.execute("DELETE FROM saved_views WHERE id = $1", view_id)


@contextmanager
def _names() -> Iterator[None]:
    """Turn a name that its owner has already into Conflict."""
    try:
        yield
    except asyncpg.UniqueViolationError as exc:
        raise Conflict("There is a view of this name already.", code="E_VIEW_NAME_EXISTS") from exc
