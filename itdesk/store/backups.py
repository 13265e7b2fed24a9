"""What a backup has to know of the database, and what a restored one must forget."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen

PAGE = 2000


@frozen
class StoredFile:
    """A file of a ticket whose bytes the storage must have; `sha256` is known once it is clean."""

    id: UUID
    object_key: str
    clean_key: str | None
    size: int
    sha256: str | None
    storage: str | None


@frozen
class JournalFacts:
    """The journal in numbers: how much there is, how far it is numbered, and what is wrong."""

    epoch: UUID
    last_seq: int
    events: int
    numbered: int
    beyond: int
    disordered: int


@frozen
class Pause:
    """Since when nothing goes out, after which backup, and whether its files are all there."""

    backup_id: UUID
    backup_at: datetime
    since: datetime
    files_at: datetime | None


@frozen
class LastRuns:
    """The newest backup that went well and the newest that did not, if any; how old the desk is."""

    desk_seconds: float
    good_seconds: float | None
    first_seconds: float | None
    failed_since: str | None


async def tables(conn: Any) -> list[str]:
    """Return the names of all tables, in their order."""
    query = """
        SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relkind = 'r' ORDER BY relname
    """
    return [row["relname"] for row in await conn.fetch(query)]


async def counts(conn: Any) -> dict[str, int]:
    """Return how many rows each table has."""
    query = """
        SELECT relname, rows_of(c.oid) AS n
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relkind = 'r' ORDER BY relname
    """
    return {row["relname"]: row["n"] for row in await conn.fetch(query)}


async def journal_facts(conn: Any) -> JournalFacts:
    """Measure the journal: every number at most the head's, in each ticket's order."""
    query = """
        SELECT h.epoch, h.last_seq, e.*,
               (SELECT count(*) FROM (
                    SELECT seq < lag(seq) OVER (PARTITION BY ticket_id ORDER BY ticket_version)
                           AS wrong
                    FROM events WHERE ticket_id IS NOT NULL AND seq IS NOT NULL) AS o
                WHERE wrong) AS disordered
        FROM journal_head h, (
            SELECT count(*) AS events, count(seq) AS numbered,
                   count(*) FILTER (WHERE seq > (SELECT last_seq FROM journal_head)) AS beyond
            FROM events) AS e
    """
    return JournalFacts(**dict(await conn.fetchrow(query)))


# Each answers how many rows there are that must never be; each holds in any good desk.
_NEVER: Mapping[str, str] = {
    "tickets whose journal does not end with their version": """
        SELECT count(*) FROM tickets t WHERE version IS DISTINCT FROM (
            SELECT max(e.ticket_version) FROM events e WHERE e.ticket_id = t.id)""",
    "tickets whose status is not the last one journaled": """
        SELECT count(*) FROM tickets t JOIN LATERAL (
            SELECT c ->> 'new' AS status
            FROM events e, jsonb_array_elements(e.changes) AS c
            WHERE e.ticket_id = t.id AND e.type = 'ticket.updated' AND c ->> 'field' = 'status'
            ORDER BY e.ticket_version DESC LIMIT 1) AS last ON last.status <> t.status""",
    "clean files that nobody hashed": """
        SELECT count(*) FROM attachments
        WHERE scanned_status = 'CLEAN' AND (sha256 IS NULL OR storage_version IS NULL)""",
    "unfinished jobs with one dedupe key": """
        SELECT count(*) FROM (
            SELECT 1 FROM jobs WHERE state IN ('waiting', 'leased') AND dedupe_key IS NOT NULL
            GROUP BY dedupe_key HAVING count(*) > 1) AS doubled""",
}


async def violations(conn: Any) -> dict[str, int]:
    """Return what is there that must never be, and how often."""
    return {name: await conn.fetchval(_NEVER[name]) for name in _NEVER}


async def stored_files(conn: Any) -> AsyncIterator[Sequence[StoredFile]]:
    """Yield, page by page, every file whose bytes were acknowledged."""
    after = UUID(int=0)
    query = """
        SELECT id, object_key, CASE WHEN scanned_status = 'CLEAN' THEN storage_version END
               AS clean_key, size, CASE WHEN scanned_status = 'CLEAN' THEN sha256 END AS sha256,
               storage
        FROM attachments
        WHERE id > $1 AND (scanned_status = 'CLEAN' OR uploaded_at IS NOT NULL)
          AND coalesce(scan_reason, '') <> 'missing'
        ORDER BY id LIMIT $2
    """
    while rows := await conn.fetch(query, after, PAGE):
        yield [StoredFile(**dict(row)) for row in rows]
        after = rows[-1]["id"]


async def stored_file(conn: Any, file_id: UUID) -> StoredFile | None:
    """Return a file as it is now; None when it was deleted."""
    query = """
        SELECT id, object_key, CASE WHEN scanned_status = 'CLEAN' THEN storage_version END
               AS clean_key, size, CASE WHEN scanned_status = 'CLEAN' THEN sha256 END AS sha256,
               storage
        FROM attachments WHERE id = $1
    """
    row = await conn.fetchrow(query, file_id)
    return None if row is None else StoredFile(**dict(row))


async def begin_run(conn: Any, run_id: UUID, *, directory: str, host: str) -> None:
    """Note that a backup began."""
    query = "INSERT INTO backup_runs (id, directory, host) VALUES ($1, $2, $3)"
    await conn.execute(query, run_id, directory, host)


async def end_run(conn: Any, run_id: UUID, *, missing: int, error: str | None) -> None:
    """Note how a backup ended, and forget those of long ago but the last good one."""
    query = "UPDATE backup_runs SET finished_at = now(), missing = $2, error = $3 WHERE id = $1"
    await conn.execute(query, run_id, missing, error)
    query = """
        DELETE FROM backup_runs WHERE started_at < now() - interval '400 days' AND id <> (
            SELECT id FROM backup_runs WHERE finished_at IS NOT NULL AND error IS NULL
            ORDER BY started_at DESC LIMIT 1)
    """
    await conn.execute(query)


async def last_runs(conn: Any) -> LastRuns:
    """Return how old the last good backup is, and what went wrong since, if anything."""
    query = """
        WITH good AS (
            SELECT started_at FROM backup_runs
            WHERE finished_at IS NOT NULL AND error IS NULL ORDER BY started_at DESC LIMIT 1
        )
        SELECT extract(epoch FROM now() - (SELECT started_at FROM good))::float8 AS good_seconds,
               extract(epoch FROM now() - (SELECT min(started_at) FROM backup_runs))::float8
               AS first_seconds,
               (SELECT coalesce(extract(epoch FROM now() - min(applied_at_utc) AT TIME ZONE 'UTC'),
                                0)::float8 FROM _yoyo_migration) AS desk_seconds,
               (SELECT error FROM backup_runs WHERE error IS NOT NULL
                AND started_at > coalesce((SELECT started_at FROM good), '-infinity')
                ORDER BY started_at DESC LIMIT 1) AS failed_since
    """
    return LastRuns(**dict(await conn.fetchrow(query)))


# Run in the very transaction that restores: there is no moment at which old sessions are good or
# old mail may go out. `%(...)s` are literals made by `settling`.
_SETTLE = """
UPDATE journal_head SET epoch = gen_random_uuid();
UPDATE users SET auth_epoch = auth_epoch + 1;
DELETE FROM refresh_tokens;
DELETE FROM password_reset_tokens;
UPDATE jobs SET state = 'waiting', owner = NULL, lease_until = NULL,
       attempts = greatest(attempts - 1, 0) WHERE state = 'leased';
UPDATE attachments SET scan_lease_until = NULL WHERE scan_lease_until IS NOT NULL;
CREATE TABLE IF NOT EXISTS outbound_pause (
    only_row boolean CONSTRAINT pk_outbound_pause PRIMARY KEY DEFAULT true,
    backup_id uuid NOT NULL, backup_at timestamptz NOT NULL,
    since timestamptz NOT NULL DEFAULT now(), files_at timestamptz,
    CONSTRAINT ck_outbound_pause_only_row CHECK (only_row)
);
DELETE FROM outbound_pause;
INSERT INTO outbound_pause (backup_id, backup_at) VALUES ('{id}', '{at}');
"""
# Sign-ins that are on their way, where this version of the schema knows them.
_ON_THEIR_WAY = ("login_challenges", "oauth_states")


def settling(backup_id: UUID, at: datetime, *, tables: Sequence[str]) -> str:
    """Return the statements that make a restored desk a desk of its own: new epoch, no session.

    The journal's positions, all sessions and claims are void; nothing goes out until resumed.
    """
    gone = [f"DELETE FROM {name};" for name in _ON_THEIR_WAY if name in tables]  # noqa: S608
    return _SETTLE.format(id=UUID(str(backup_id)), at=at.isoformat()) + "\n".join(gone) + "\n"


async def pause(conn: Any) -> Pause | None:
    """Return the pause that holds back what would go out, or None."""
    query = "SELECT backup_id, backup_at, since, files_at FROM outbound_pause"
    row = await conn.fetchrow(query)
    return None if row is None else Pause(**dict(row))


async def files_restored(conn: Any) -> None:
    """Note that the files of the restored backup are all there."""
    await conn.execute("UPDATE outbound_pause SET files_at = now() WHERE files_at IS NULL")


async def rehouse(conn: Any, storage: str, *, but: Sequence[UUID]) -> None:
    """Note that all files but these are in this storage now."""
    query = """
        UPDATE attachments SET storage = $1
        WHERE storage IS DISTINCT FROM $1 AND id <> ALL ($2::uuid[])
    """
    await conn.execute(query, storage, list(but), timeout=600)


async def end_pause(conn: Any) -> Pause | None:
    """Let go out what waits; return the pause that there was."""
    query = "DELETE FROM outbound_pause RETURNING backup_id, backup_at, since, files_at"
    row = await conn.fetchrow(query)
    return None if row is None else Pause(**dict(row))


async def drop_mail(conn: Any, *, reason: str) -> int:
    """Give up all mail that is owed, and its jobs with it; return how much that was."""
    query = """
        WITH gone AS (
            UPDATE emails SET status = 'skipped', last_error = $1, next_attempt_at = NULL
            WHERE status = 'queued' RETURNING id
        ), jobs_gone AS (
            UPDATE jobs SET state = 'failed', finished_at = now(), last_error = $1
            WHERE state = 'waiting' AND dedupe_key IN (SELECT 'mail:' || id FROM gone)
        )
        SELECT count(*) FROM gone
    """
    dropped: int = await conn.fetchval(query, reason)
    return dropped


async def owed(conn: Any) -> dict[str, int]:
    """Return how many mails are queued, and how many unfinished jobs of each type there are."""
    rows = await conn.fetch(
        "SELECT type, count(*) AS n FROM jobs WHERE state IN ('waiting', 'leased') GROUP BY type"
    )
    mails = await conn.fetchval("SELECT count(*) FROM emails WHERE status = 'queued'")
    return {"emails": mails, **{row["type"]: row["n"] for row in rows}}


async def in_use(conn: Any) -> int:
    """Return how many sessions of others work on this database."""
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
          AND backend_type = 'client backend'
    """
    found: int = await conn.fetchval(query)
    return found
