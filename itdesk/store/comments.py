"""Comments as rows; an internal one is only ever read for those who may see it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.model import Comment
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

_SORT = "created_at"


def _comment(row: Any) -> Comment:
    return Comment(
        id=row["id"],
        ticket_id=row["ticket_id"],
        user_id=row["user_id"],
        author_name=row["author_name"],
        body=row["body"],
        internal=row["internal"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


async def add(
    conn: Any,
    *,
    id: UUID,
    ticket_id: UUID,
    user_id: UUID | None,
    author_name: str,
    body: str,
    internal: bool,
) -> Comment:
    """Put a comment on a ticket."""
    query = """
        INSERT INTO ticket_comments (id, ticket_id, user_id, author_name, body, internal)
        VALUES ($1, $2, $3, $4, $5, $6)
        RETURNING id, ticket_id, user_id, author_name, body, internal, created_at, updated_at
    """
    return _comment(await conn.fetchrow(query, id, ticket_id, user_id, author_name, body, internal))


async def by_ids(conn: Any, comment_ids: Sequence[UUID]) -> dict[UUID, Comment]:
    """Read these comments for all eyes; those that are gone are left out."""
    query = """
        SELECT id, ticket_id, user_id, author_name, body, internal, created_at, updated_at
        FROM ticket_comments WHERE id = ANY ($1::uuid[])
    """
    return {row["id"]: _comment(row) for row in await conn.fetch(query, comment_ids)}


async def newest(conn: Any, ticket_id: UUID, *, limit: int) -> list[Comment]:
    """Read the newest comments of a ticket for agents' eyes, internal ones too, oldest first."""
    query = """
        SELECT id, ticket_id, user_id, author_name, left(body, 20000) AS body, internal,
               created_at, updated_at
        FROM ticket_comments WHERE ticket_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2
    """
    rows = await conn.fetch(query, ticket_id, limit)
    return [_comment(row) for row in reversed(rows)]


async def list_page(
    conn: Any,
    ticket_id: UUID,
    window: Window,
    *,
    internal: bool,
) -> Page[Comment]:
    """Return one page of a ticket's comments, oldest first; internal ones only when asked."""
    since, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = """
        SELECT id, ticket_id, user_id, author_name, body, internal, created_at, updated_at
        FROM ticket_comments
        WHERE ticket_id = $1 AND ($2 OR NOT internal)
          AND ($3::timestamptz IS NULL OR (created_at, id) > ($3, $4))
        ORDER BY created_at, id LIMIT $5 OFFSET $6
    """
    rows = await conn.fetch(
        query, ticket_id, internal, since, last, window.limit + 1, window.offset
    )
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(_SORT, row["created_at"], row["id"])
    )
    return Page([_comment(row) for row in page.items], page.next_cursor)


async def count(conn: Any, ticket_id: UUID, *, internal: bool) -> int:
    """Return how many comments a ticket has in all."""
    query = """
        SELECT count(*) FROM ticket_comments WHERE ticket_id = $1 AND ($2 OR NOT internal)
    """
    total: int = await conn.fetchval(query, ticket_id, internal)
    return total
