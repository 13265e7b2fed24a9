"""Clean files that are looked at again, and files that get another chance.

A second look is claimed and fenced as a scan is, by `scan_epoch` and lease; the file stays CLEAN
and downloadable meanwhile. All times are the database's.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from itdesk.model import ScanReason, ScanStatus
from itdesk.store.attachments import Claim


async def note_signatures(conn: Any, engines: str) -> bool:
    """Remember since when the engines call themselves so; False when that was known."""
    query = """
        INSERT INTO scan_signatures (engines) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true
    """
    return await conn.fetchval(query, engines) is True


async def outdated_before(conn: Any, *, settle_seconds: float) -> datetime | None:
    """Return the time before which a look was taken with older signatures, or None.

    An engine may name new signatures before it has loaded them: only after `settle_seconds` is
    a look believed to be one with them.
    """
    query = """
        SELECT max(seen_at) + make_interval(secs => $1) FROM scan_signatures
        WHERE seen_at + make_interval(secs => $1) <= now()
    """
    found: datetime | None = await conn.fetchval(query, settle_seconds)
    return found


async def claim(
    conn: Any, *, before: datetime, since: datetime | None, days: int | None, lease_seconds: float
) -> Claim | None:
    """Take the clean file that was looked at longest ago and before a time; None when all are done.

    `since` and `days` leave out what was uploaded earlier. A look is never older than the upload,
    which lets the index skip whatever is older.
    """
    query = """
        WITH oldest AS (
            SELECT greatest($2::timestamptz, now() - make_interval(days => $3)) AS at
        )
        UPDATE attachments f
        SET scan_epoch = scan_epoch + 1, scan_lease_until = now() + make_interval(secs => $4)
        FROM (
            SELECT id FROM attachments, oldest
            WHERE scanned_status = 'CLEAN' AND storage_version IS NOT NULL
              AND coalesce(checked_at, scanned_at) < $1
              AND (oldest.at IS NULL
                   OR coalesce(checked_at, scanned_at) > oldest.at AND uploaded_at > oldest.at)
              AND (scan_lease_until IS NULL OR scan_lease_until <= now())
            ORDER BY coalesce(checked_at, scanned_at) LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
        ) AS due
        WHERE f.id = due.id
        RETURNING f.id, f.ticket_id, f.object_key, f.original_filename, f.mime, f.size,
                  f.sha256, f.scan_attempts AS attempts, f.scan_epoch AS epoch, true AS uploaded,
                  false AS overdue, now() AS claimed_at, f.storage_version AS clean_key
    """
    row = await conn.fetchrow(query, before, since, days, lease_seconds)
    return Claim(**dict(row)) if row is not None else None


async def due(conn: Any, *, before: datetime, since: datetime | None, days: int | None) -> int:
    """Return how many clean files `claim` would give out, one after the other."""
    query = """
        WITH oldest AS (
            SELECT greatest($2::timestamptz, now() - make_interval(days => $3)) AS at
        )
        SELECT count(*) FROM attachments, oldest
        WHERE scanned_status = 'CLEAN' AND storage_version IS NOT NULL
          AND coalesce(checked_at, scanned_at) < $1
          AND (oldest.at IS NULL
               OR coalesce(checked_at, scanned_at) > oldest.at AND uploaded_at > oldest.at)
    """
    found: int = await conn.fetchval(query, before, since, days)
    return found


async def postpone(conn: Any, held: Claim, *, seconds: float) -> bool:
    """Let a clean file wait so long for its next look; False when somebody else has it."""
    query = """
        UPDATE attachments SET scan_lease_until = now() + make_interval(secs => $3)
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = 'CLEAN' RETURNING id
    """
    return await conn.fetchval(query, held.id, held.epoch, seconds) is not None


async def reaffirm(conn: Any, held: Claim, *, engine: str | None) -> bool:
    """Note that a look is over and the file stays CLEAN, by the word of these engines if given."""
    query = """
        UPDATE attachments
        SET scan_engine = coalesce($3, scan_engine), checked_at = $4, scan_lease_until = NULL,
            scanned_at = CASE WHEN $3::text IS NULL THEN scanned_at ELSE now() END
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = 'CLEAN' RETURNING id
    """
    done = await conn.fetchval(query, held.id, held.epoch, engine, held.claimed_at)
    return done is not None


async def withdraw(
    conn: Any,
    held: Claim,
    *,
    status: ScanStatus,
    reason: ScanReason | None,
    engine: str,
    signature: str | None,
) -> bool:
    """Take CLEAN away from a file and hold its row; False when somebody else has it."""
    held_row = """
        SELECT id FROM attachments
        WHERE id = $1 AND scan_epoch = $2 AND scanned_status = 'CLEAN' FOR UPDATE
    """
    if await conn.fetchval(held_row, held.id, held.epoch) is None:
        return False
    query = """
        UPDATE attachments
        SET scanned_status = $2, scan_reason = $3, scan_engine = $4, scan_signature = $5,
            storage_version = NULL, scanned_at = now(), checked_at = $6, scan_lease_until = NULL
        WHERE id = $1
    """
    await conn.execute(query, held.id, status, reason, engine, signature, held.claimed_at)
    return True


async def requeue(
    conn: Any, statuses: Collection[ScanStatus], *, since: datetime | None, limit: int
) -> int:
    """Let files that were condemned or not scanned be PENDING again; return how many."""
    query = """
        UPDATE attachments f
        SET scanned_status = 'PENDING', scan_reason = NULL, scan_signature = NULL,
            scan_attempts = 0, scan_lease_until = NULL, scan_epoch = scan_epoch + 1
        FROM (
            SELECT id FROM attachments
            WHERE scanned_status = ANY ($1::text[]) AND uploaded_at IS NOT NULL
              AND ($2::timestamptz IS NULL OR uploaded_at >= $2)
            ORDER BY id LIMIT $3 FOR NO KEY UPDATE SKIP LOCKED
        ) AS again
        WHERE f.id = again.id RETURNING f.id
    """
    return len(await conn.fetch(query, [str(s) for s in statuses], since, limit))


async def is_withdrawn(conn: Any, object_key: str) -> bool:
    """Return whether a file is still there and its bytes belong into the quarantine."""
    query = """
        SELECT true FROM attachments
        WHERE object_key = $1 AND scanned_status <> 'CLEAN' AND storage_version IS NULL
    """
    return await conn.fetchval(query, object_key) is True


async def now(conn: Any) -> datetime:
    """Return the database's time."""
    found: datetime = await conn.fetchval("SELECT now()")
    return found
