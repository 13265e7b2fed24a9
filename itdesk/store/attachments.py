"""Attachments as rows, and the fence around their scan.

A scanner claims a row by raising `scan_epoch`; whatever it writes later says which epoch it
holds, and changes nothing when somebody else has claimed the row meanwhile. All times are the
database's.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.model import SYSTEM, Attachment, Caller, Role, ScanReason, ScanStatus
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

_COLUMNS = """
    id, ticket_id, uploaded_by, object_key, original_filename, mime, size, sha256,
    scanned_status, scan_reason, scan_engine, scan_signature, scanned_at, uploaded_at, created_at
"""
_SORT = "uploaded_at"


def _attachment(row: Any) -> Attachment:
    return Attachment(
        id=row["id"],
        ticket_id=row["ticket_id"],
        uploaded_by=row["uploaded_by"],
        original_filename=row["original_filename"],
        object_key=row["object_key"],
        mime=row["mime"],
        size=row["size"],
        sha256=row["sha256"],
        scanned_status=ScanStatus(row["scanned_status"]),
        scan_reason=row["scan_reason"],
        scan_engine=row["scan_engine"],
        scan_signature=row["scan_signature"],
        scanned_at=row["scanned_at"],
        uploaded_at=row["uploaded_at"],
        created_at=row["created_at"],
    )


@frozen
class Claim:
    """One attachment in the hands of one scanner, until its lease ends."""

    id: UUID
    ticket_id: UUID
    object_key: str
    original_filename: str
    mime: str | None
    size: int
    sha256: str | None
    attempts: int
    epoch: int
    uploaded: bool
    overdue: bool
    claimed_at: datetime
    clean_key: str | None = None
    """Where its bytes are, when a clean file is looked at again."""

    @property
    def status(self) -> ScanStatus:
        """Return what the file is while it is held."""
        return ScanStatus.PENDING if self.clean_key is None else ScanStatus.CLEAN


async def reserve(
    conn: Any,
    *,
    id: UUID,
    ticket_id: UUID,
    uploaded_by: UUID | None,
    object_key: str,
    original_filename: str,
    mime: str,
    size: int,
    sha256: str | None,
    storage: str,
    seconds: int,
) -> Attachment:
    """Keep a place for a file that a client will upload by itself within so many seconds."""
    query = f"""
        INSERT INTO attachments (id, ticket_id, uploaded_by, object_key, original_filename, mime,
                                 size, sha256, storage, reserved_until)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now() + make_interval(secs => $10))
        RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(
        query, id, ticket_id, uploaded_by, object_key, original_filename, mime, size, sha256,
        storage, float(seconds),
    )  # fmt: skip
    return _attachment(row)


async def add(
    conn: Any,
    *,
    id: UUID,
    ticket_id: UUID,
    uploaded_by: UUID | None,
    object_key: str,
    original_filename: str,
    mime: str,
    size: int,
    storage: str,
) -> Attachment:
    """Add a file whose bytes are already in the quarantine."""
    query = f"""
        INSERT INTO attachments (id, ticket_id, uploaded_by, object_key, original_filename, mime,
                                 size, storage, uploaded_at, confirmed_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now(), now()) RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(
        query, id, ticket_id, uploaded_by, object_key, original_filename, mime, size, storage
    )
    return _attachment(row)


async def get(
    conn: Any, attachment_id: UUID, *, scope: UUID | None, lock: bool = False
) -> Attachment:
    """Read an attachment of a ticket in scope; with `lock`, hold its row until the commit."""
    own = """AND EXISTS (SELECT 1 FROM tickets t WHERE t.id = f.ticket_id AND (
                 t.reporter_id = $2 OR EXISTS (
                     SELECT 1 FROM ticket_assignees a
                     WHERE a.ticket_id = t.id AND a.user_id = $2)))"""
    query = f"""
        SELECT {_COLUMNS} FROM attachments f WHERE id = $1 {own if scope else ""}
        {"FOR NO KEY UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, attachment_id, *([scope] if scope else []))
    if row is None:
        raise NotFound.of("attachment")
    return _attachment(row)


async def id_of_key(conn: Any, object_key: str) -> UUID:
    """Return the attachment that an object key belongs to."""
    query = "SELECT id FROM attachments WHERE object_key = $1"
    found: UUID | None = await conn.fetchval(query, object_key)
    if found is None:
        raise NotFound.of("attachment")
    return found


async def list_page(conn: Any, ticket_id: UUID, window: Window) -> Page[Attachment]:
    """Return one page of a ticket's uploaded files in upload order."""
    since, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT {_COLUMNS} FROM attachments
        WHERE ticket_id = $1 AND uploaded_at IS NOT NULL
          AND ($2::timestamptz IS NULL OR (uploaded_at, id) > ($2, $3))
        ORDER BY uploaded_at, id LIMIT $4 OFFSET $5
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, ticket_id, since, last, window.limit + 1, window.offset)
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(_SORT, row["uploaded_at"], row["id"])
    )
    return Page([_attachment(row) for row in page.items], page.next_cursor)


async def count(conn: Any, ticket_id: UUID) -> int:
    """Return how many uploaded files a ticket has."""
    query = "SELECT count(*) FROM attachments WHERE ticket_id = $1 AND uploaded_at IS NOT NULL"
    total: int = await conn.fetchval(query, ticket_id)
    return total


async def keys_of_ticket(conn: Any, ticket_id: UUID) -> list[tuple[str, str | None]]:
    """Return the object key of every file of a ticket, and where its scanned bytes are."""
    query = "SELECT object_key, storage_version FROM attachments WHERE ticket_id = $1"
    return [(r["object_key"], r["storage_version"]) for r in await conn.fetch(query, ticket_id)]


async def mark_uploaded(conn: Any, attachment_id: UUID, *, confirmed: bool) -> bool:
    """Note that the bytes of a reserved file have arrived; False when that was known."""
    query = """
        UPDATE attachments SET uploaded_at = now(), scan_reason = NULL, scan_lease_until = NULL,
               confirmed_at = CASE WHEN $2 THEN now() ELSE confirmed_at END
        WHERE id = $1 AND uploaded_at IS NULL RETURNING id
    """
    return await conn.fetchval(query, attachment_id, confirmed) is not None


async def confirm(conn: Any, attachment_id: UUID) -> None:
    """Note that the uploader vouched for the file."""
    query = """
        UPDATE attachments SET confirmed_at = coalesce(confirmed_at, now()) WHERE id = $1
    """
    await conn.execute(query, attachment_id)


async def delete(conn: Any, attachment_id: UUID) -> str | None:
    """Remove a file's row; return where its scanned bytes were, if there were any."""
    query = "DELETE FROM attachments WHERE id = $1 RETURNING storage_version"
    key: str | None = await conn.fetchval(query, attachment_id)
    return key


async def claim(
    conn: Any, *, limit: int, lease_seconds: float, grace_seconds: float, reserved: bool
) -> list[Claim]:
    """Take the oldest files that wait for a scan and that nobody holds; each gets a new epoch.

    With `reserved`, those that a client may have uploaded without telling are among them; one
    whose reservation and grace are over always is, and is `overdue`.
    """
    query = """
        UPDATE attachments f
        SET scan_epoch = scan_epoch + 1, scan_lease_until = now() + make_interval(secs => $2)
        FROM (
            SELECT id FROM attachments
            WHERE scanned_status = 'PENDING'
              AND (scan_lease_until IS NULL OR scan_lease_until <= now())
              AND (uploaded_at IS NOT NULL OR $4
                   OR reserved_until + make_interval(secs => $3) < now())
            ORDER BY uploaded_at IS NULL, created_at, id LIMIT $1 FOR UPDATE SKIP LOCKED
        ) AS due
        WHERE f.id = due.id
        RETURNING f.id, f.ticket_id, f.object_key, f.original_filename, f.mime, f.size,
                  now() AS claimed_at, f.sha256, f.scan_attempts AS attempts, f.scan_epoch AS epoch,
                  f.uploaded_at IS NOT NULL AS uploaded,
                  f.uploaded_at IS NULL
                      AND f.reserved_until + make_interval(secs => $3) < now() AS overdue
    """
    rows = await conn.fetch(query, limit, lease_seconds, grace_seconds, reserved)
    return [Claim(**dict(row)) for row in rows]


async def renew(conn: Any, held: Claim, *, lease_seconds: float) -> bool:
    """Hold a claim for longer; False when somebody else has it now."""
    query = """
        UPDATE attachments SET scan_lease_until = now() + make_interval(secs => $3)
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = $4 RETURNING id
    """
    kept = await conn.fetchval(query, held.id, held.epoch, lease_seconds, held.status)
    return kept is not None


async def put_back(
    conn: Any, held: Claim, *, reason: ScanReason | None, seconds: float, attempt: bool
) -> bool:
    """Let a file wait so many seconds for its next scan; False when somebody else has it."""
    query = """
        UPDATE attachments SET scan_lease_until = now() + make_interval(secs => $4),
               scan_reason = $3, scan_attempts = scan_attempts + $5::int
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = 'PENDING' RETURNING id
    """
    done = await conn.fetchval(query, held.id, held.epoch, reason, seconds, int(attempt))
    return done is not None


async def conclude(
    conn: Any,
    held: Claim,
    *,
    status: ScanStatus,
    reason: ScanReason | None,
    engine: str,
    signature: str | None,
    sha256: str | None,
    clean_key: str | None,
    mime: str | None,
) -> bool:
    """Write the verdict of a scan; False, and nothing written, when the claim was lost."""
    query = """
        UPDATE attachments
        SET scanned_status = $3, scan_reason = $4, scan_engine = $5, scan_signature = $6,
            sha256 = coalesce($7, sha256), storage_version = $8, mime = coalesce($9, mime),
            scanned_at = now(), checked_at = $10,
            scan_attempts = scan_attempts + 1, scan_lease_until = NULL
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = 'PENDING' RETURNING id
    """
    row = await conn.fetchval(
        query, held.id, held.epoch, status, reason, engine, signature, sha256, clean_key, mime,
        held.claimed_at,
    )  # fmt: skip
    return row is not None


async def release(conn: Any, held: Sequence[Claim]) -> None:
    """Give claims back unscanned, so that another scanner may take them at once."""
    query = """
        UPDATE attachments f SET scan_lease_until = NULL
        FROM unnest($1::uuid[], $2::bigint[]) AS mine (id, epoch)
        WHERE f.id = mine.id AND f.scan_epoch = mine.epoch AND f.scanned_status = 'PENDING'
    """
    await conn.execute(query, [c.id for c in held], [c.epoch for c in held])


async def note_arrival(conn: Any, held: Claim) -> bool:
    """Note that a reserved file was found in the quarantine; False when that was known."""
    query = """
        UPDATE attachments SET uploaded_at = now()
        WHERE id = $1 AND scan_epoch = $2 AND uploaded_at IS NULL RETURNING id
    """
    return await conn.fetchval(query, held.id, held.epoch) is not None


async def note_engine_down(conn: Any) -> None:
    """Say on every file that waits that it waits for an engine."""
    query = """
        UPDATE attachments SET scan_reason = 'engine_down'
        WHERE scanned_status = 'PENDING' AND uploaded_at IS NOT NULL
          AND scan_reason IS DISTINCT FROM 'engine_down'
    """
    await conn.execute(query)


async def backlog(conn: Any) -> tuple[int, float]:
    """Return how many uploaded files wait for their verdict, and the oldest for how many seconds.

    Those that had a verdict before and wait for another one are among the number only.
    """
    query = """
        SELECT count(*) AS count,
               coalesce(extract(epoch FROM now() - min(uploaded_at)
                                           FILTER (WHERE scanned_at IS NULL)), 0)::float8 AS seconds
        FROM attachments
        WHERE scanned_status = 'PENDING' AND uploaded_at IS NOT NULL
    """
    row = await conn.fetchrow(query)
    return row["count"], max(0.0, row["seconds"])


async def uploader(conn: Any, attachment_id: UUID) -> Caller:
    """Return the person for whom a place was kept, as the one who acts."""
    query = """
        SELECT u.id, u.name, u.role FROM attachments f JOIN users u ON u.id = f.uploaded_by
        WHERE f.id = $1
    """
    row = await conn.fetchrow(query, attachment_id)
    if row is None:
        return SYSTEM
    return Caller(user_id=row["id"], name=row["name"], role=Role(row["role"]))
