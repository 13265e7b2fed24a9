"""Who was given which file: what a recall has to know.

One row for each person and file, however often; it is written by the statement that looks up where
the clean bytes are, so that nobody gets them unseen.
"""

from typing import Any
from uuid import UUID


async def note(conn: Any, attachment_id: UUID, user_id: UUID | None) -> str | None:
    """Return where the bytes of a clean file are, noting who gets them; None when it is not clean.

    A recall holds the row: whoever comes at that moment waits, and is then refused.
    """
    query = """
        WITH clean AS MATERIALIZED (
            SELECT id, storage_version FROM attachments
            WHERE id = $1 AND scanned_status = 'CLEAN' FOR KEY SHARE
        ), noted AS (
            INSERT INTO attachment_downloads AS d (attachment_id, user_id)
            SELECT clean.id, $2::uuid FROM clean WHERE $2::uuid IS NOT NULL
            ON CONFLICT (attachment_id, user_id)
            DO UPDATE SET times = d.times + 1, last_at = now()
        )
        SELECT storage_version FROM clean
    """
    key: str | None = await conn.fetchval(query, attachment_id, user_id)
    return key


async def people(conn: Any, attachment_id: UUID) -> list[UUID]:
    """Return everybody who was given a file, the first one first."""
    query = """
        SELECT user_id FROM attachment_downloads
        WHERE attachment_id = $1 ORDER BY first_at, user_id
    """
    return [row["user_id"] for row in await conn.fetch(query, attachment_id)]
