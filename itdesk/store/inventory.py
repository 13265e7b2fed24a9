"""Which stored objects rows name, and which rows name objects that a listing did not have."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import ScanStatus

FIRST, LAST = UUID(int=0), UUID(int=(1 << 128) - 1)

# A ticket's and a file's id: as objects, too, are listed in this order.
Place = tuple[UUID, UUID]


@frozen
class Named:
    """A file as far as its objects go."""

    ticket_id: UUID
    id: UUID
    ticket_key: str
    filename: str
    status: ScanStatus
    clean_key: str | None


def _named(row: Any) -> Named:
    return Named(
        ticket_id=row["ticket_id"],
        id=row["id"],
        ticket_key=row["ticket_key"],
        filename=row["original_filename"],
        status=ScanStatus(row["scanned_status"]),
        clean_key=row["storage_version"],
    )


async def named(conn: Any, object_keys: Sequence[str]) -> dict[str, Named]:
    """Return the files that have one of these object keys, by it."""
    query = """
        SELECT f.object_key, f.ticket_id, f.id, t.key AS ticket_key, f.original_filename,
               f.scanned_status, f.storage_version
        FROM attachments f JOIN tickets t ON t.id = f.ticket_id
        WHERE f.object_key = ANY ($1::text[])
    """
    rows = await conn.fetch(query, object_keys)
    return {row["object_key"]: _named(row) for row in rows}


async def unseen(
    conn: Any, storage: str, seen: Sequence[str], *, after: Place, upto: Place, limit: int
) -> list[Named]:
    """Return clean files of a storage, behind one place up to another, whose object is not seen."""
    query = """
        SELECT f.ticket_id, f.id, t.key AS ticket_key, f.original_filename,
               f.scanned_status, f.storage_version
        FROM attachments f JOIN tickets t ON t.id = f.ticket_id
        WHERE (f.ticket_id, f.id) > ($3, $4) AND (f.ticket_id, f.id) <= ($5, $6)
          AND f.scanned_status = 'CLEAN' AND coalesce(f.storage, $1) = $1
          AND f.storage_version <> ALL ($2::text[])
        ORDER BY f.ticket_id, f.id LIMIT $7
    """
    rows = await conn.fetch(query, storage, seen, *after, *upto, limit)
    return [_named(row) for row in rows]


async def still_clean(conn: Any, file: Named) -> bool:
    """Return whether a file is there as it was: clean, and with its bytes under the same key."""
    query = """
        SELECT EXISTS (SELECT 1 FROM attachments
                       WHERE id = $1 AND scanned_status = 'CLEAN' AND storage_version = $2)
    """
    there: bool = await conn.fetchval(query, file.id, file.clean_key)
    return there


async def elsewhere(conn: Any, storage: str) -> dict[str, int]:
    """Return how many files are in storages other than this one, by storage."""
    query = """
        SELECT storage, count(*) AS files FROM attachments
        WHERE storage <> $1 AND uploaded_at IS NOT NULL GROUP BY storage
    """
    return {row["storage"]: row["files"] for row in await conn.fetch(query, storage)}
