"""A backup becomes a desk again: on an empty host, or in a scratch database to prove that it can.

The database comes first, in one transaction together with all that must be void in a restored
desk; so there is no moment at which an old session is good or old mail may go out. Then come the
files. A restore that was cut before them goes on with them when it is run again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg

from itdesk.desk import manifest as on_disk
from itdesk.desk.manifest import BackupBroken, Facts, Manifest, Progress
from itdesk.errors import Conflict, NotFound, Unavailable
from itdesk.hookspecs import Storage
from itdesk.model import SYSTEM, Event
from itdesk.runtime.log import get_logger
from itdesk.store import backups, head, pgtools
from itdesk.store.backups import Pause
from itdesk.store.db import Database
from itdesk.store.migrations import Migrations

AREAS = ("clean/", "quarantine/")
SIGNS = "desks/"
COPIES = 4
FORCE = "--replace-everything"

# The dump does not make the schema itself: every database has it.
_EMPTIED = b"""BEGIN;
SET LOCAL client_min_messages = warning;
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
"""

log = get_logger("backup")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Lend a connection of its own, whose statements may take their time."""
    try:
        conn = await asyncpg.connect(url, timeout=10)
    except head.FAILURES as exc:
        raise Unavailable(f"The database does not answer: {head.describe(exc)}.") from exc
    try:
        yield conn
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise Unavailable(f"The database refused: {head.describe(exc)}.") from exc
    finally:
        conn.terminate()


async def unfinished(url: str, made: Manifest) -> bool:
    """Return whether this very backup is in the database already and only its files lack."""
    async with connected(url) as conn:
        if "outbound_pause" not in await backups.tables(conn):
            return False
        pause = await backups.pause(conn)
    return pause is not None and pause.backup_id == made.id and pause.files_at is None


async def require_empty(url: str, *, replace: bool) -> None:
    """Raise Conflict unless a backup may be put into this database."""
    async with connected(url) as conn:
        if others := await backups.in_use(conn):
            raise Conflict(
                f"{others} others are connected to the database. Stop itdesk everywhere (systemctl"
                " stop itdesk) and try again."
            )
        there = await backups.tables(conn)
    if there and not replace:
        raise Conflict(
            f"The database is not empty: it has {len(there)} tables. Restore into an empty one; or,"
            f" to destroy all that is in it, add {FORCE}."
        )


async def require_empty_storage(storage: Storage, made: Manifest) -> None:
    """Raise Conflict when there are files that are not this backup's."""
    for area in AREAS:
        async for page in storage.list(area):
            strange = [each.key for each in page if each.key not in made.objects]
            if strange:
                raise Conflict(
                    f"The storage is not empty: it has {strange[0]}, which is not in the backup."
                    f" Restore into an empty one; or, to write over what is there, add {FORCE}."
                )


async def restore_database(url: str, path: Path, made: Manifest, progress: Progress) -> None:
    """Put the database of a backup in the place of whatever is there, void what must be void, and
    bring the schema to this version; all or nothing up to there."""
    async with connected(url) as conn:
        server = conn.get_server_version().major
    if server < made.facts.server:
        raise BackupBroken(
            f"The backup was made on PostgreSQL {made.facts.server}; this server is {server}."
            f" Restore it on PostgreSQL {made.facts.server} or later."
        )
    tools = await pgtools.find(server, at_least=made.facts.tool)
    unpack = [tools.command("pg_restore"), "--file=-", "--no-owner", "--no-privileges",
              str(path / on_disk.DUMP)]  # fmt: skip
    load = [tools.command("psql"), "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1",
            "--output=/dev/null", f"--dbname={pgtools.DATABASE}"]  # fmt: skip
    settled = backups.settling(made.id, made.made_at, tables=list(made.facts.tables))
    done = 0
    async with (
        pgtools.service(url) as environ,
        pgtools.running(unpack, environ) as script,
        pgtools.running(load, environ, reads=True) as psql,
    ):
        await psql.feed(_EMPTIED)
        async for chunk in script.chunks():
            done += len(chunk)
            progress("database", done, 0)
            await psql.feed(chunk)
        await script.end()
        # pg_restore empties the search path for the session.
        await psql.feed(f"\nSET LOCAL search_path = public;\n{settled}\nCOMMIT;\n".encode())
        await psql.end()
    await Migrations(url).migrate()
    async with connected(url) as conn:
        await conn.execute("ANALYZE")


async def restore_files(storage: Storage, path: Path, made: Manifest, progress: Progress) -> None:
    """Give the storage every object of a backup; one that is there already is left."""
    total, done = sum(entry.size for entry in made.objects.values()), 0
    few = asyncio.Semaphore(COPIES)

    async def write(key: str) -> None:
        nonlocal done
        entry = made.objects[key]
        try:
            stored = await storage.stat(key)
            if stored is None or stored.size != entry.size or stored.sha256 != entry.sha256:
                chunks = on_disk.chunks_of(on_disk.place(path, key))
                await storage.write(key, chunks, limit=entry.size)
        finally:
            few.release()
        done += entry.size
        progress("files", done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for key in made.objects:
                await few.acquire()
                group.create_task(write(key))
    except BaseExceptionGroup as group:
        raise on_disk.first(group) from group
    # The sign of the desk that was: this one takes its place, and signs for itself.
    await storage.delete(f"{SIGNS}{made.facts.journal['epoch']}")


async def finish(db: Database, storage: Storage, made: Manifest) -> dict[str, int]:
    """Note that the restore is whole, and where its files are now; return what waits to go out."""
    async with db.transaction() as tx:
        lost = [each.attachment for each in made.lost]
        await backups.rehouse(tx.conn, storage.name, but=lost)
        await backups.files_restored(tx.conn)
        about = {"backup_id": str(made.id), "made_at": made.made_at.isoformat()}
        tx.record(Event.by(SYSTEM, "backup.restored", data=about))
        return await backups.owed(tx.conn)


async def pause_of(db: Database) -> Pause | None:
    """Return the pause that holds back what would go out, or None."""
    async with db.connection() as conn:
        return await backups.pause(conn)


async def resume(db: Database, *, drop_mail: bool) -> tuple[Pause, int]:
    """Let go out what waits, or give its mail up first; return the pause and how much was dropped.

    Raises NotFound when nothing is paused, and Conflict while the restore is not finished.
    """
    async with db.transaction() as tx:
        pause = await backups.pause(tx.conn)
        if pause is None:
            raise NotFound("Nothing is paused.", code="E_NOT_PAUSED")
        if pause.files_at is None:
            raise Conflict(
                "The restore was not finished: its files are missing. Run `itdesk restore` with the"
                " same backup once more, then resume."
            )
        dropped = 0
        if drop_mail:
            why = "dropped when the desk was resumed after a restore"
            dropped = await backups.drop_mail(tx.conn, reason=why)
        await backups.end_pause(tx.conn)
        tx.record(Event.by(SYSTEM, "outbound.resumed", data={"mails_dropped": dropped}))
        for wake in db.job_listeners:
            tx.after_commit(wake)
    return pause, dropped


async def differences(url: str, made: Manifest) -> list[str]:
    """Return what of a restored database is not as the manifest says."""
    wrong = [str(each) for each in (await Migrations(url).verify()).differences]
    async with connected(url) as conn:
        there = await backups.counts(conn)
        journal = on_disk.facts_of(asdict(await backups.journal_facts(conn)))
        never = await backups.violations(conn)
        files = [file async for page in backups.stored_files(conn) for file in page]
    wrong += _other_counts(made.facts, there)
    wrong += [
        f"journal {name}: {journal[name]} instead of {made.facts.journal[name]}"
        for name in ("last_seq", "events", "numbered", "beyond", "disordered")
        if journal[name] != made.facts.journal[name]
    ]
    if journal["epoch"] == made.facts.journal["epoch"]:
        wrong.append("the journal has its old epoch: clients would believe their old positions")
    wrong += [
        f"{count} {name}, {made.facts.violations.get(name, 0)} in the desk that was backed up"
        for name, count in never.items()
        if count != made.facts.violations.get(name, 0)
    ]
    known = {lost.attachment for lost in made.lost}
    for file in files:
        key = file.clean_key or f"quarantine/{file.object_key}"
        entry = made.objects.get(key)
        if entry is None and file.id not in known:
            wrong.append(f"attachment {file.id}: its object {key} is not in the backup")
        elif entry is not None and file.sha256 not in (None, entry.sha256):
            wrong.append(f"attachment {file.id}: its object has another sha256 than its row")
    return wrong


# What a restore empties or fills by itself.
_SETTLED = {
    "refresh_tokens", "password_reset_tokens", "login_challenges", "oauth_states",
    "outbound_pause",
}  # fmt: skip


def _other_counts(facts: Facts, there: dict[str, int]) -> list[str]:
    return [
        f"{table}: {there.get(table)} rows instead of {rows}"
        for table, rows in facts.tables.items()
        if table not in _SETTLED
        and not table.startswith(("_yoyo", "yoyo"))
        and there.get(table) != rows
    ]
