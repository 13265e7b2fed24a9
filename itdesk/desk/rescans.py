"""Clean files are looked at again with newer signatures; what is condemned then is recalled.

A recall takes CLEAN away first, in the transaction that journals who had the file; its bytes then
move back into the quarantine, by hand and, should that fail, by a job. Nothing is deleted that
nobody asked to delete: a verdict may be wrong, and the bytes are evidence.
"""

from collections.abc import Collection
from datetime import datetime

from pydantic import BaseModel

from itdesk.config import Scanner as ScannerSettings
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.engines import Engines
from itdesk.desk.jobs import Job
from itdesk.desk.scans import ClaimLost, Outcome, Scans, verdict_data
from itdesk.desk.spool import Spool
from itdesk.errors import DeskError, NotFound
from itdesk.frozen import frozen
from itdesk.hookspecs import JobType, Storage
from itdesk.model import SYSTEM, Event, ScanReason, ScanStatus
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import downloads, rescans, tickets
from itdesk.store.attachments import Claim
from itdesk.store.db import Database, Transaction

log = get_logger("scanner")

WITHDRAW = "scan.withdraw"
_LOST_SECONDS = 3600.0
_REQUEUED_AT_ONCE = 500


class _Withdrawn(BaseModel):
    """What the job that moves a recalled file's bytes is told."""

    object_key: str
    clean_key: str
    size: int


@frozen
class Again:
    """Which clean files are to be looked at: those not looked at since `before`.

    `since`, or the last `days`, leaves out what was uploaded earlier.
    """

    before: datetime
    since: datetime | None = None
    days: int | None = None


class Rescans:
    """Second looks at clean files, and the recall of those that are clean no longer."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        scans: Scans,
        engines: Engines,
        *,
        settings: ScannerSettings,
        spool: Spool,
        metrics: Metrics,
    ) -> None:
        self._db = db
        self._storage = storage
        self._scans = scans
        self._engines = engines
        self._settings = settings
        self._spool = spool
        self._noted: str | None = None
        self._looks = metrics.counter(
            "itdesk_scan_rescans_total", "Second looks at clean files, by outcome.", ["outcome"]
        )

    async def outdated(self) -> Again | None:
        """Return which files were looked at with older signatures; None when none can be."""
        if not self._settings.rescan_days:
            return None
        named = await self._engines.signatures()
        async with self._db.connection() as conn:
            if named is not None and named != self._noted:
                if await rescans.note_signatures(conn, named):
                    log.info("new signatures", engines=named)
                self._noted = named
            before = await rescans.outdated_before(
                conn, settle_seconds=self._settings.rescan_settle_seconds
            )
        return Again(before, days=self._settings.rescan_days) if before is not None else None

    async def everything(self, since: datetime | None) -> Again:
        """Return all clean files that are not looked at from now on, or those uploaded since."""
        async with self._db.connection() as conn:
            return Again(await rescans.now(conn), since=since)

    async def requeue(self, statuses: Collection[ScanStatus], since: datetime | None) -> int:
        """Let condemned or unscanned files wait for a new scan; return how many."""
        total = 0
        while True:
            async with self._db.transaction() as tx:
                count = await rescans.requeue(
                    tx.conn, statuses, since=since, limit=_REQUEUED_AT_ONCE
                )
            total += count
            if count < _REQUEUED_AT_ONCE:
                return total

    async def due(self, again: Again) -> int:
        """Return how many files there are to look at."""
        async with self._db.connection() as conn:
            return await rescans.due(conn, before=again.before, since=again.since, days=again.days)

    async def claim(self, again: Again) -> Claim | None:
        """Take the file whose last look is the longest ago; None when there is none left."""
        async with self._db.connection() as conn:
            return await rescans.claim(
                conn,
                before=again.before,
                since=again.since,
                days=again.days,
                lease_seconds=self._settings.lease_seconds,
            )

    async def look(self, held: Claim) -> Outcome:
        """Look at a clean file again; it stays clean, is recalled, or waits for another look."""
        outcome = Outcome(None, attempt=False)
        lost = False
        try:
            async with self._scans.holding(held):
                outcome = await self._examine(held)
                await self._write(held, outcome)
        except* ClaimLost:
            lost = True
        if lost:
            log.warning("rescan overtaken", attachment=held.id, epoch=held.epoch)
            return Outcome(None, attempt=False)
        if _condemns(outcome):
            await self._withdraw_now(held)
        said = self.said(outcome)
        self._looks.labels(said).inc()
        log.info(
            "attachment rescanned",
            attachment=held.id,
            ticket=held.ticket_id,
            result=said,
            reason=outcome.reason,
            engine=outcome.engine,
            signature=outcome.signature,
        )
        return outcome

    @staticmethod
    def said(outcome: Outcome) -> str:
        """Return what a second look came to: clean, recalled, unchanged or waits."""
        if _condemns(outcome):
            return "recalled"
        if outcome.status is ScanStatus.CLEAN:
            return "clean"
        waits = outcome.status is None or outcome.reason is ScanReason.MISSING
        return "waits" if waits else "unchanged"

    async def release(self, held: Claim) -> None:
        """Give a claim back without a look."""
        async with self._db.connection() as conn:
            await rescans.postpone(conn, held, seconds=0)

    def jobs(self) -> tuple[JobType, ...]:
        """Return the durable work that a recall may leave."""
        return (JobType(name=WITHDRAW, handle=self._withdraw_by_job, attempts=30, outbound=False),)

    async def _examine(self, held: Claim) -> Outcome:
        assert held.clean_key is not None
        async with self._spool.lend() as path:
            found = await self._scans.fetch(held, path, held.clean_key)
            if isinstance(found, Outcome):
                return found
            return await self._scans.judge(held, path)

    async def _write(self, held: Claim, outcome: Outcome) -> None:
        async with self._db.transaction() as tx:
            if _condemns(outcome):
                await self._recall(tx, held, outcome)
                return
            if outcome.status is None or outcome.reason is ScanReason.MISSING:
                # What is missing may be back: nobody can download it meanwhile.
                missing = outcome.reason is ScanReason.MISSING
                wait = _LOST_SECONDS if missing else self._settings.retry_seconds
                kept = await rescans.postpone(tx.conn, held, seconds=wait)
            else:
                # Not looked into to its end is no reason to doubt what was found before.
                clean = outcome.status is ScanStatus.CLEAN
                engine = outcome.engine if clean else None
                kept = await rescans.reaffirm(tx.conn, held, engine=engine)
            if not kept:
                raise ClaimLost

    async def _recall(self, tx: Transaction, held: Claim, outcome: Outcome) -> None:
        """Take a file back: from here on nobody gets it, and everybody who did is named."""
        assert outcome.status is not None and held.clean_key is not None
        try:
            await tickets.find(tx.conn, str(held.ticket_id), scope=None, lock=True)
        except NotFound:
            raise ClaimLost from None
        if not await rescans.withdraw(
            tx.conn,
            held,
            status=outcome.status,
            reason=outcome.reason,
            engine=outcome.engine or "storage",
            signature=outcome.signature,
        ):
            raise ClaimLost
        had = await downloads.people(tx.conn, held.id)
        version = await tickets.touch(tx.conn, held.ticket_id)
        tx.record(
            Event.by(
                SYSTEM,
                "attachment.recalled",
                ticket_id=held.ticket_id,
                ticket_version=version,
                data={
                    "attachment_id": str(held.id),
                    "filename": held.original_filename,
                    "old": ScanStatus.CLEAN,
                    "new": outcome.status,
                    "size": held.size,
                    "downloaded_by": [str(person) for person in had],
                    **verdict_data(outcome),
                    "sha256": held.sha256,
                },
            )
        )
        left = _left(held).model_dump()
        tx.enqueue(WITHDRAW, left, dedupe=f"{WITHDRAW}:{held.clean_key}", seconds=5)
        log.warning(
            "attachment recalled",
            attachment=held.id,
            ticket=held.ticket_id,
            signature=outcome.signature,
            reason=outcome.reason,
            downloaded_by=len(had),
        )

    async def _withdraw_now(self, held: Claim) -> None:
        try:
            await self._withdraw(_left(held))
        except (DeskError, OSError) as exc:
            log.warning("recalled bytes left for the job", attachment=held.id, problem=str(exc))

    async def _withdraw_by_job(self, job: Job) -> None:
        await self._withdraw(job.read(_Withdrawn))

    async def _withdraw(self, left: _Withdrawn) -> None:
        """Move a recalled file's bytes into the quarantine; done twice it does nothing more."""
        into = quarantine_key(left.object_key)
        async with self._db.connection() as conn:
            wanted = await rescans.is_withdrawn(conn, left.object_key)
        if wanted and await self._storage.stat(into) is None:
            stored = await self._storage.stat(left.clean_key)
            if stored is not None:
                chunks = self._storage.read(left.clean_key)
                await self._storage.write(into, chunks, limit=max(stored.size, left.size))
        await self._storage.delete(left.clean_key)


def _left(held: Claim) -> _Withdrawn:
    assert held.clean_key is not None
    return _Withdrawn(object_key=held.object_key, clean_key=held.clean_key, size=held.size)


def _condemns(outcome: Outcome) -> bool:
    """Return whether a second look takes CLEAN away: found infected, or not the scanned bytes."""
    return outcome.status is ScanStatus.INFECTED or outcome.reason is ScanReason.CHANGED
