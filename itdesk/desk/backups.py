"""Backups: everything that the desk knows at one moment, copied beside a desk that goes on working.

The moment is a snapshot of the database. The dump and the list of files come from it; the files
themselves never change under their keys, so they may be copied later. What a scan moves meanwhile
has the same bytes under its new key.
"""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from itdesk import __version__
from itdesk.config import Backup as BackupSettings
from itdesk.config import Settings, show
from itdesk.desk import manifest as on_disk
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.contract import reason
from itdesk.desk.manifest import Entry, Facts, Lost, Manifest, Progress, Sink, silent
from itdesk.errors import ConfigError, DeskError, NotFound, Unavailable
from itdesk.hookspecs import Schedule, Storage
from itdesk.model import new_id
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import backups, head, pgtools
from itdesk.store.backups import LastRuns, StoredFile
from itdesk.store.db import Database
from itdesk.store.migrations import Migrations

COPIES = 4
LONGEST_SECONDS = 12 * 3600.0
# A backup may take its time, and a daemon its restart, before anybody is woken.
OVERDUE = 1.5
OVERDUE_SECONDS = 900

log = get_logger("backup")


class BackupFailed(DeskError):
    """The backup could not be written: make room or give the right to write, then try again."""

    default_code = "E_BACKUP_FAILED"


class Backups:
    """Makes backups, keeps the newest of them, and knows how old the last good one is."""

    def __init__(
        self, db: Database, storage: Storage, settings: Settings, clock: Clock, metrics: Metrics
    ) -> None:
        self._db = db
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._since = clock.monotonic()
        self._age = metrics.gauge(
            "itdesk_backup_age_seconds",
            "How old the last good backup is, or the desk without one; NaN: none is expected.",
        )
        self._age.set(math.nan)
        self._ran = metrics.counter("itdesk_backup_runs_total", "Backups made here.", ["outcome"])

    # --- making one ------------------------------------------------------------------------

    async def make(
        self,
        directory: Path,
        *,
        keep: int = 0,
        with_secrets: bool = False,
        progress: Progress = silent,
    ) -> tuple[Path, Manifest]:
        """Make a backup in a new directory below this one; return where it is and what is in it.

        With `keep`, all but the newest so many are removed afterwards.
        """
        run_id = new_id()
        async with self._db.connection() as conn:
            host = socket.gethostname()
            await backups.begin_run(conn, run_id, directory=str(directory), host=host)
        try:
            whole, made = await self._written(run_id, directory, with_secrets, progress)
        except BaseException as exc:
            self._ran.labels("failed").inc()
            await asyncio.shield(self._ended(run_id, 0, reason(exc)))
            raise
        error = f"{len(made.failures)} files are not in it" if made.failures else None
        await self._ended(run_id, len(made.failures), error)
        self._ran.labels("incomplete" if made.failures else "ok").inc()
        if keep and not made.failures:
            for gone in await asyncio.to_thread(on_disk.prune, directory, keep):
                log.info("backup removed", path=str(gone))
        log.info("backup made", path=str(whole), bytes=made.bytes, objects=len(made.objects))
        return whole, made

    async def _written(
        self, run_id: UUID, directory: Path, with_secrets: bool, progress: Progress
    ) -> tuple[Path, Manifest]:
        try:
            return await self._made(run_id, directory, with_secrets, progress)
        except OSError as exc:
            where = exc.filename or directory
            raise BackupFailed(f"The backup failed: {where}: {exc.strerror}.") from exc

    async def _ended(self, run_id: UUID, missing: int, error: str | None) -> None:
        try:
            async with self._db.connection() as conn:
                await backups.end_run(conn, run_id, missing=missing, error=error)
        except DeskError as exc:
            log.warning("end of a backup not noted", problem=exc.message)
        if error is not None:
            log.error("backup failed", problem=error)

    async def _made(
        self, run_id: UUID, directory: Path, with_secrets: bool, progress: Progress
    ) -> tuple[Path, Manifest]:
        began = self._clock.now()
        moment = f"{began:%Y-%m-%dT%H%M%S}.{began.microsecond // 1000:03d}Z"
        name = f"{moment}-{run_id.hex[-6:]}"
        with on_disk.unfinished(directory, name) as path:
            files, objects, lost = dict[str, Entry](), dict[str, Entry](), list[Lost]()
            async with _snapshot(self._db.url) as (conn, snapshot):
                facts = await self._facts(conn)
                tools = await pgtools.find(facts.server)
                facts = facts.model_copy(update={"tool": tools.major})
                dump = self._dump(tools, snapshot, facts, progress)
                files[on_disk.DUMP] = await Sink(path / on_disk.DUMP).take(dump)
                wanted = [file async for page in backups.stored_files(conn) for file in page]
            await self._copy(path, wanted, objects, lost, progress)
            for part, data in self._configuration(with_secrets).items():
                files[part] = await Sink(path / part).take(on_disk.once(data))
            made = Manifest(
                id=run_id,
                itdesk=__version__,
                made_at=began,
                finished_at=self._clock.now(),
                host=socket.gethostname(),
                storage=self._storage.name,
                facts=facts,
                files=files,
                objects=objects,
                lost=lost,
            )
            return await asyncio.to_thread(on_disk.complete, path, made), made

    async def _facts(self, conn: Any) -> Facts:
        status = await Migrations(self._db.url).status(conn)
        return Facts(
            migration=status.current or "",
            server=conn.get_server_version().major,
            tool=0,
            tables=await backups.counts(conn),
            journal=on_disk.facts_of(asdict(await backups.journal_facts(conn))),
            violations=await backups.violations(conn),
            owed=await backups.owed(conn),
        )

    async def _dump(
        self, tools: pgtools.Tools, snapshot: str, facts: Facts, progress: Progress
    ) -> AsyncIterator[bytes]:
        """Yield the dump of the snapshot in PostgreSQL's own format, compressed."""
        command = [
            tools.command("pg_dump"), "--format=custom", "--compress=1", "--no-owner",
            "--no-privileges", f"--snapshot={snapshot}", f"--dbname={pgtools.DATABASE}",
        ]  # fmt: skip
        done = 0
        async with (
            pgtools.service(self._db.url) as environ,
            pgtools.running(command, environ) as program,
        ):
            async for chunk in program.chunks():
                done += len(chunk)
                progress("database", done, 0)
                yield chunk
            await program.end()

    async def _copy(
        self,
        path: Path,
        wanted: list[StoredFile],
        objects: dict[str, Entry],
        lost: list[Lost],
        progress: Progress,
    ) -> None:
        total, done = sum(file.size for file in wanted), 0
        few = asyncio.Semaphore(COPIES)

        async def copy(file: StoredFile) -> None:
            nonlocal done
            try:
                outcome = await self._copied(path, file)
            finally:
                few.release()
            key = _key(file)
            if isinstance(outcome, Entry):
                objects[key] = outcome
            else:
                lost.append(outcome)
                log.error("not in the backup", attachment=file.id, key=key, why=outcome.why)
            done += file.size
            progress("files", done, total)

        try:
            async with asyncio.TaskGroup() as group:
                for file in wanted:
                    await few.acquire()
                    group.create_task(copy(file))
        except BaseExceptionGroup as group:
            raise on_disk.first(group) from group

    async def _copied(self, path: Path, file: StoredFile) -> Entry | Lost:
        """Copy the bytes of a file, wherever they are by now, below the key of the snapshot."""
        key = _key(file)
        if file.storage not in (None, self._storage.name):
            return Lost(attachment=file.id, key=key, why="elsewhere")
        source, now = key, file
        # Scanned once more while it was looked for, it has moved: ask again where to.
        for _ in range(3):
            try:
                target = on_disk.place(path, key)
                entry = await Sink(target).take(self._storage.read(source))
            except NotFound:
                async with self._db.connection() as conn:
                    found = await backups.stored_file(conn, file.id)
                if found is None:
                    return Lost(attachment=file.id, key=key, why="deleted")
                if _key(found) == source:
                    return Lost(attachment=file.id, key=key, why="missing")
                source, now = _key(found), found
                continue
            expected = file.sha256 or now.sha256
            if expected not in (None, entry.sha256):
                target.unlink()
                return Lost(attachment=file.id, key=key, why="damaged")
            return entry
        return Lost(attachment=file.id, key=key, why="missing")

    def _configuration(self, with_secrets: bool) -> Mapping[str, bytes]:
        """Return the settings as text without secrets, the signing keys, and what else is asked."""
        parts = {on_disk.SETTINGS: show(self._settings).encode()}
        for path in sorted(self._settings.jwt_key_path.parent.glob(
            f"{self._settings.jwt_key_path.name}*"
        )):  # fmt: skip
            if path.is_file() and path.suffix != ".lock":
                parts[f"{on_disk.KEYS}/{path.name}"] = path.read_bytes()
        if with_secrets and self._settings.config_path is not None:
            parts[f"{on_disk.KEYS}/itdesk.toml"] = self._settings.config_path.read_bytes()
        return parts

    # --- by itself -------------------------------------------------------------------------

    @property
    def planned(self) -> BackupSettings:
        """Return when backups are made, and where."""
        return self._settings.backup

    def schedule(self) -> Schedule:
        """Return the schedule by which backups make themselves."""

        async def run(job: object) -> None:
            if self.planned.directory is None:
                raise ConfigError("backup.directory is not set: no backup can be made")
            _, made = await self.make(self.planned.directory, keep=self.planned.keep)
            if made.failures:
                log.error("backup without some files", files=len(made.failures))

        return Schedule(
            name="backup",
            seconds=self.planned.seconds if self.planned.directory is not None else 0,
            run=run,
            timeout_seconds=LONGEST_SECONDS,
            outbound=False,
        )

    async def measure(self) -> LastRuns:
        """Bring the metric up to date and return what it rests on."""
        async with self._db.connection() as conn:
            last = await backups.last_runs(conn)
        # A restart is no backup: without any, the desk's own age counts, not the process's.
        known = last.good_seconds if last.good_seconds is not None else last.desk_seconds
        self._age.set(known if self.planned.seconds else math.nan)
        return last

    def _old(self, last: LastRuns) -> float:
        """Return how old the last good backup is, or for how long there should have been one."""
        if last.good_seconds is not None:
            return last.good_seconds
        return max(last.first_seconds or 0.0, self._clock.monotonic() - self._since)

    async def problem(self) -> str:
        """Say what an operator should know of the backups; nothing when all is well or none are
        planned."""
        # Also where they are made by hand or by cron: the metric is for the alarm.
        last = await self.measure()
        if not self.planned.seconds or self.planned.directory is None:
            return ""
        limit = self.planned.seconds * OVERDUE + OVERDUE_SECONDS
        if last.failed_since is not None:
            return f"the last backup failed: {last.failed_since}"
        if (age := self._old(last)) > limit:
            return f"the last good backup is {age / 3600:.1f} hours old; see the log"
        return ""


def _key(file: StoredFile) -> str:
    return file.clean_key or quarantine_key(file.object_key)


@asynccontextmanager
async def _snapshot(url: str) -> AsyncIterator[tuple[Any, str]]:
    """Lend a connection whose transaction sees one moment, and the moment's name for others."""
    try:
        conn = await asyncpg.connect(url, timeout=10)
    except head.FAILURES as exc:
        raise Unavailable(f"The database does not answer: {head.describe(exc)}.") from exc
    try:
        # Nothing is awaited between two statements for longer than a dump takes: no limit fits.
        await conn.execute("SET idle_in_transaction_session_timeout = 0")
        await conn.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield conn, await conn.fetchval("SELECT pg_export_snapshot()")
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise Unavailable(f"The database went away: {head.describe(exc)}.") from exc
    finally:
        conn.terminate()
