"""What makes a file CLEAN, and why that can be believed.

A file's quarantined bytes are copied once into a private spool file, hashed on the way. The
archive walk and every engine look at that copy; when all of them call it clean the same copy,
hashed again, becomes the clean object that downloads are served from. The verdict is written
under the epoch of the claim: a scanner that was overtaken writes nothing and removes its object.
"""

import asyncio
from collections.abc import AsyncIterator, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from itdesk import archives
from itdesk.config import Scanner as ScannerSettings
from itdesk.desk import contents
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.engines import Engines
from itdesk.desk.spool import Copy, Spool
from itdesk.errors import NotFound, StorageFull, TooLarge, Unavailable, UnsupportedMedia
from itdesk.frozen import frozen
from itdesk.hookspecs import Storage, Verdict
from itdesk.model import SYSTEM, Caller, Event, ScanReason, ScanStatus
from itdesk.runtime import failpoints
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import attachments, tickets
from itdesk.store.attachments import Claim
from itdesk.store.db import Database

log = get_logger("scanner")


class ClaimLost(Exception):
    """Another scanner has the file now, or it was deleted: stop, and write nothing."""


@frozen
class Outcome:
    """What one scan came to; without a status the file waits for another scan."""

    status: ScanStatus | None
    engine: str = ""
    reason: ScanReason | None = None
    signature: str | None = None
    sha256: str | None = None
    clean_key: str | None = None
    mime: str | None = None
    attempt: bool = True


class Scans:
    """Claims files, has them scanned, and writes the verdicts."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        engines: Engines,
        *,
        settings: ScannerSettings,
        spool: Spool,
        limits: archives.Limits,
        allowed_types: Collection[str],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._db = db
        self._storage = storage
        self._panel = engines
        self._settings = settings
        self._spool = spool
        self._limits = limits
        self._allowed_types = allowed_types
        self._clock = clock
        # A walk may last as long as a scan may: not in a thread of those that all others share.
        self._walkers = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="archives")
        self._backlog = metrics.gauge("itdesk_scan_backlog", "Uploaded files that wait for a scan.")
        self._oldest = metrics.gauge(
            "itdesk_scan_oldest_seconds",
            "How long the oldest of them that had no verdict yet has waited.",
        )
        metrics.breaker_open.labels("scanner").set_function(lambda: float(bool(engines.problems)))
        self._verdicts = metrics.counter(
            "itdesk_scan_verdicts_total", "Verdicts written, by what they say.", ["verdict"]
        )
        self._stale = metrics.counter(
            "itdesk_scan_stale_verdicts_total", "Verdicts refused because the claim was lost."
        )
        self._seconds = metrics.histogram(
            "itdesk_scan_seconds", "How long a scan takes, from claim to verdict."
        )

    def close(self) -> None:
        """Let the threads end when they have nothing more to do."""
        self._walkers.shutdown(wait=False)

    @property
    def problems(self) -> dict[str, list[str]]:
        """Return, by engine, why nothing can be found clean now; empty when all is well."""
        return self._panel.problems

    @property
    def proved(self) -> bool:
        """Return whether every engine passed its probe and none was out since."""
        return self._panel.proved

    @property
    def engines(self) -> list[str]:
        """Return the names of the engines that must agree."""
        return self._panel.names

    async def trusted(self) -> bool:
        """Return whether every engine may be believed; if not, the files that wait say so."""
        if await self._panel.trusted():
            return True
        async with self._db.connection() as conn:
            await attachments.note_engine_down(conn)
        return False

    async def claim(self, limit: int) -> list[Claim]:
        """Take up to so many files that wait for a scan."""
        async with self._db.connection() as conn:
            return await attachments.claim(
                conn,
                limit=limit,
                lease_seconds=self._settings.lease_seconds,
                grace_seconds=self._settings.upload_grace_seconds,
                reserved=self._storage.takes_uploads,
            )

    async def count_backlog(self) -> None:
        """Bring the metrics of what waits up to date."""
        async with self._db.connection() as conn:
            waiting, oldest_seconds = await attachments.backlog(conn)
        self._backlog.set(waiting)
        self._oldest.set(oldest_seconds)

    async def scan(self, held: Claim) -> Outcome:
        """Scan one claimed file and write what came of it, unless the claim is lost meanwhile."""
        started = self._clock.monotonic()
        outcome = Outcome(None, attempt=False)
        lost = False
        try:
            async with self.holding(held):
                outcome = await self._examine(held)
                failpoints.hit("before_verdict")
                await self._write(held, outcome)
        except* ClaimLost:
            lost = True
        if lost:
            self._stale.inc()
            log.warning("scan overtaken", attachment=held.id, epoch=held.epoch)
            if outcome.clean_key is not None:
                await self._storage.delete(outcome.clean_key)
            return Outcome(None, attempt=False)
        self._seconds.observe(self._clock.monotonic() - started)
        log.info(
            "attachment scanned",
            attachment=held.id,
            ticket=held.ticket_id,
            result=outcome.status or "PENDING",
            reason=outcome.reason,
            engine=outcome.engine,
            signature=outcome.signature,
        )
        return outcome

    async def release(self, held: Claim) -> None:
        """Give a claim back unscanned."""
        async with self._db.connection() as conn:
            await attachments.release(conn, [held])

    @asynccontextmanager
    async def holding(self, held: Claim) -> AsyncIterator[None]:
        """Keep the lease alive while the body runs; raise ClaimLost when it was taken over."""

        async def renew() -> None:
            while True:
                await self._clock.sleep(self._settings.lease_seconds / 3)
                async with self._db.connection() as conn:
                    lease = self._settings.lease_seconds
                    if not await attachments.renew(conn, held, lease_seconds=lease):
                        raise ClaimLost

        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(renew())
            try:
                yield
            finally:
                keeper.cancel()

    async def _examine(self, held: Claim) -> Outcome:
        """Find out what a file is, without writing anything but a candidate for the clean area."""
        if not held.uploaded and not await self._has_arrived(held):
            if held.overdue:
                return Outcome(ScanStatus.FAILED, reason=ScanReason.MISSING)
            return Outcome(None, attempt=False)
        async with self._spool.lend() as path:
            found = await self.fetch(held, path, quarantine_key(held.object_key))
            if isinstance(found, Outcome):
                return found
            outcome = await self._first_look(held, path, found.head)
            outcome = replace(outcome, sha256=found.sha256)
            if outcome.status is not ScanStatus.CLEAN:
                return outcome
            return await self._keep(held, path, found.sha256, outcome)

    async def fetch(self, held: Claim, path: Path, key: str) -> Copy | Outcome:
        """Copy a stored file into a lent one, or return why it is not to be judged."""
        try:
            copy = await self._spool.fill(path, self._storage.read(key), limit=held.size)
        except NotFound:
            return Outcome(ScanStatus.FAILED, reason=ScanReason.MISSING)
        except TooLarge:
            return Outcome(ScanStatus.FAILED, reason=ScanReason.CHANGED)
        except Unavailable:
            return Outcome(None, reason=ScanReason.ENGINE_DOWN, attempt=False)
        except (OSError, StorageFull) as exc:
            log.error("spool unusable", path=str(self._spool.directory), problem=str(exc))
            return Outcome(None, reason=ScanReason.ENGINE_DOWN, attempt=False)
        if copy.size != held.size or held.sha256 not in (None, copy.sha256):
            return Outcome(ScanStatus.FAILED, reason=ScanReason.CHANGED)
        return copy

    async def _has_arrived(self, held: Claim) -> bool:
        """Return whether a client uploaded a reserved file by itself; journal it if so."""
        stored = await self._storage.stat(quarantine_key(held.object_key))
        if stored is None:
            return False
        async with self._db.transaction() as tx:
            await tickets.find(tx.conn, str(held.ticket_id), scope=None, lock=True)
            if await attachments.note_arrival(tx.conn, held):
                version = await tickets.touch(tx.conn, held.ticket_id)
                actor = await attachments.uploader(tx.conn, held.id)
                tx.record(_event(actor, "attachment.added", held, version, held.original_filename))
        return True

    async def _first_look(self, held: Claim, path: Path, head: bytes) -> Outcome:
        """Refuse what may not be attached, whatever was claimed when its place was kept."""
        try:
            mime = contents.media_type(held.original_filename, held.mime, head, self._allowed_types)
        except UnsupportedMedia as exc:
            log.info("file type refused", attachment=held.id, detail=exc.message)
            return Outcome(ScanStatus.FAILED, engine="type check", reason=ScanReason.TYPE)
        return replace(await self.judge(held, path), mime=mime)

    async def judge(self, held: Claim, path: Path) -> Outcome:
        """Ask the archive walk and every engine; CLEAN needs the word of all of them."""
        seconds = self._settings.timeout_seconds + held.size / (4 << 20)
        walk = partial(archives.walk, path, self._limits, seconds=seconds)
        finding = await asyncio.get_running_loop().run_in_executor(self._walkers, walk)
        if finding is not None:
            return Outcome(ScanStatus.FAILED, engine="archive walk", reason=finding.reason)
        verdicts = await self._panel.ask(path, size=held.size, seconds=seconds)
        if verdicts is None:
            return Outcome(None, reason=ScanReason.ENGINE_DOWN, attempt=False)
        return self._combine(held, verdicts)

    def _combine(self, held: Claim, verdicts: list[Verdict]) -> Outcome:
        engine = ", ".join(verdict.engine for verdict in verdicts)
        for verdict in verdicts:
            if verdict.clean is False:
                return Outcome(ScanStatus.INFECTED, verdict.engine, signature=verdict.signature)
        for verdict in verdicts:
            if verdict.clean is None:
                log.info("file not scanned", attachment=held.id, detail=verdict.detail)
                last = held.attempts + 1 >= self._settings.max_attempts
                if verdict.retry and not last:
                    return Outcome(None, verdict.engine, reason=verdict.reason)
                return Outcome(ScanStatus.FAILED, verdict.engine, reason=verdict.reason)
        return Outcome(ScanStatus.CLEAN, engine)

    async def _keep(self, held: Claim, path: Path, sha256: str, outcome: Outcome) -> Outcome:
        """Store the scanned copy as the clean object, and believe only an identical one."""
        key = f"clean/{held.object_key}.{held.epoch}"
        try:
            stored = await self._storage.write(
                key, self._spool.chunks(path, held.size), limit=held.size
            )
        except (Unavailable, StorageFull) as exc:
            log.warning("clean area unusable", attachment=held.id, problem=exc.message)
            return Outcome(None, reason=ScanReason.ENGINE_DOWN, attempt=False)
        if stored.size != held.size or stored.sha256 != sha256:
            await self._storage.delete(key)
            return Outcome(None, outcome.engine, reason=ScanReason.CHANGED)
        return replace(outcome, clean_key=key)

    async def _write(self, held: Claim, outcome: Outcome) -> None:
        """Write the outcome under the claim's epoch; ClaimLost when somebody else has the file."""
        async with self._db.transaction() as tx:
            if outcome.status is None:
                kept = await attachments.put_back(
                    tx.conn,
                    held,
                    reason=outcome.reason,
                    seconds=(
                        self._settings.poll_seconds
                        if outcome.reason is None
                        else self._settings.retry_seconds
                    ),
                    attempt=outcome.attempt,
                )
                if not kept:
                    raise ClaimLost
                return
            # First, for its lock: whoever deletes takes the ticket before its files.
            version = await tickets.touch(tx.conn, held.ticket_id)
            written = version and await attachments.conclude(
                tx.conn,
                held,
                status=outcome.status,
                reason=outcome.reason,
                engine=outcome.engine,
                signature=outcome.signature,
                sha256=outcome.sha256,
                clean_key=outcome.clean_key,
                mime=outcome.mime,
            )
            if not written:
                raise ClaimLost  # or deleted meanwhile, alone or with its ticket
            said = verdict_data(outcome)
            tx.record(_event(SYSTEM, "attachment.scanned", held, version, outcome.status, **said))
        failpoints.hit("after_verdict")
        self._verdicts.labels(outcome.status).inc()
        if outcome.status is ScanStatus.CLEAN:
            await self._storage.delete(quarantine_key(held.object_key))


def verdict_data(outcome: Outcome) -> dict[str, str]:
    """Return what the journal keeps of a verdict: whose word it is, and of which bytes."""
    said = {
        "reason": outcome.reason,
        "engine": outcome.engine,
        "signature": outcome.signature,
        "sha256": outcome.sha256,
    }
    return {name: str(value) for name, value in said.items() if value}


def _event(actor: Caller, type: str, held: Claim, version: int, new: str, **data: str) -> Event:
    return Event.by(
        actor,
        type,
        ticket_id=held.ticket_id,
        ticket_version=version,
        data={"attachment_id": str(held.id), "new": new, "size": held.size, **data},
    )
