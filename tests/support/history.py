"""What must hold after any crash, whoever was killed when: read from the database, not believed."""

import hashlib

import asyncpg

from tests.support.load import Crew, lost_or_doubled


async def violations(url: str, crew: Crew) -> list[str]:
    """Return everything that the database says against the clients' record.

    An acknowledged change is there once, an unknown one at most once; versions have no gap and
    every status step is legal; every event is numbered once, densely, in each ticket's order; a
    clean file was scanned as exactly the bytes that were sent.
    """
    wrong = await lost_or_doubled(url, crew)
    conn = await asyncpg.connect(url)
    try:
        for statement in _NEVER:
            wrong += [f"{row['what']}" for row in await conn.fetch(statement)]
        clean = await conn.fetch(
            "SELECT original_filename, sha256 FROM attachments WHERE scanned_status = 'CLEAN'"
        )
        for row in clean:
            sent = row["original_filename"].removesuffix(".txt").encode()
            if row["sha256"] != hashlib.sha256(sent).hexdigest():
                wrong.append(f"{row['original_filename']} is clean as other bytes")
    finally:
        await conn.close()
    return wrong


_NEVER = (
    """SELECT 'not numbered: ' || id AS what FROM events WHERE seq IS NULL""",
    """SELECT 'numbers are not dense: ' || count(*) || ' up to ' || max(seq) AS what
       FROM events HAVING count(*) <> max(seq)""",
    """SELECT 'out of order: ' || ticket_id || ' ' || ticket_version AS what FROM (
           SELECT ticket_id, ticket_version, seq,
                  lag(seq) OVER (PARTITION BY ticket_id ORDER BY ticket_version) AS before
           FROM events WHERE ticket_id IS NOT NULL) AS e
       WHERE seq < before""",
    """SELECT 'illegal step: ' || (c ->> 'old') || ' to ' || (c ->> 'new') AS what
       FROM events, jsonb_array_elements(changes) AS c
       WHERE c ->> 'field' = 'status' AND (c ->> 'old', c ->> 'new') NOT IN (
           ('open', 'in_progress'), ('in_progress', 'blocked'), ('blocked', 'open'))""",
    """SELECT 'status of ' || key || ' is not its last step' AS what FROM tickets t
       WHERE status <> coalesce((
           SELECT c ->> 'new' FROM events e, jsonb_array_elements(e.changes) AS c
           WHERE e.ticket_id = t.id AND c ->> 'field' = 'status'
           ORDER BY e.ticket_version DESC LIMIT 1), 'open')""",
    """SELECT 'scanned but not told: ' || f.id AS what FROM attachments f
       WHERE scanned_status <> 'PENDING' AND 1 <> (
           SELECT count(*) FROM events e WHERE e.type = 'attachment.scanned'
           AND e.data ->> 'attachment_id' = f.id::text)""",
)
