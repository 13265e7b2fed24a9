"""Work that must happen: kinds of jobs, what becomes of an attempt, and who may see and mend it.

A job is claimed by raising its epoch; whatever its worker writes later says which epoch it holds.
A worker that was overtaken writes nothing, and the effects it wrote in the job's own transaction
are undone with it. Whether a lease is over only the database's clock decides.
"""

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import orjson

from itdesk.config import Jobs as JobSettings
from itdesk.desk.contract import reason as told
from itdesk.desk.job import Job, LostClaim
from itdesk.errors import Conflict, DeskError, NotFound
from itdesk.frozen import frozen
from itdesk.hookspecs import GiveUp, JobType, RetryLater
from itdesk.model import Caller, Event, Role
from itdesk.model.spans import Value
from itdesk.runtime import failpoints, trace
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger, redacted
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.tracing import Tracing
from itdesk.store import jobs
from itdesk.store.db import Database
from itdesk.store.jobs import Held, JobState, NewJob, QueuedJob, Room
from itdesk.store.paging import Page, Window

__all__ = ["GiveUp", "Job", "JobType", "Jobs", "LostClaim", "QueuedJob", "RetryLater"]

# A job that outlived so many claimers runs while no other such job does: it may have killed them.
SUSPECT_ATTEMPTS = 3
LONGEST_PAUSE = 3600.0
LONGEST_REASON = 200
_WRITE_AGAIN_SECONDS = 1.0

log = get_logger("jobs")


@frozen
class _Again:
    """Try once more, after so many seconds."""

    seconds: float
    reason: str
    counted: bool = True


@frozen
class _Never:
    """Give up."""

    reason: str


_DONE = object()
# Done, and written so by the handler in its own transaction.
_MARKED = object()


class Jobs:
    """The kinds of jobs of one worker, which may be one of many: claims them and runs them."""

    def __init__(
        self,
        db: Database,
        settings: JobSettings,
        clock: Clock,
        metrics: Metrics,
        tracing: Tracing | None = None,
        *,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self.settings = settings
        self._db = db
        self._clock = clock
        self._tracing = tracing or Tracing()
        self._dice = dice
        self._types: dict[str, JobType] = {}
        self._by_event: dict[str, list[JobType]] = {}
        self._told: set[str] = set()
        self.gauges: list[Callable[[], Awaitable[object]]] = []
        self._oldest = metrics.gauge(
            "itdesk_jobs_oldest_seconds", "How long the oldest job is overdue.", ["type"]
        )
        self._failed = metrics.gauge("itdesk_jobs_dead", "Jobs given up that nobody looked after.")
        self._stale = metrics.counter(
            "itdesk_jobs_stale_completions_total", "Writes refused because the claim was lost."
        )
        self._stolen = metrics.counter(
            "itdesk_jobs_stolen_total", "Jobs taken over because their lease was over."
        )
        self._finished = metrics.counter(
            "itdesk_jobs_finished_total", "Jobs that ended: done or failed.", ["type", "outcome"]
        )

    # --- what there is to do ---------------------------------------------------------------

    def register(self, *types: JobType) -> None:
        """Add kinds of jobs; ValueError when a name is taken."""
        for kind in types:
            if kind.name in self._types:
                raise ValueError(f"there are two kinds of jobs named {kind.name}")
            self._types[kind.name] = kind
            for event_type in kind.on_events:
                self._by_event.setdefault(event_type, []).append(kind)

    def has(self, name: str) -> bool:
        """Return whether there is such a kind of jobs."""
        return name in self._types

    def withdraw(self, names: Collection[str]) -> None:
        """Take kinds of jobs away: what is queued of them waits, and events lead to none."""
        for name in names:
            self._types.pop(name, None)
        for event_type, kinds in list(self._by_event.items()):
            self._by_event[event_type] = [kind for kind in kinds if kind.name not in names]
            if not self._by_event[event_type]:
                del self._by_event[event_type]

    def of_events(self, events: Sequence[Event]) -> list[NewJob]:
        """Return the jobs that follow from events, in their order."""
        if not self._by_event:
            return []
        return [
            job
            for event in events
            for kind in self._by_event.get(event.type, ())
            if (job := _following(kind, event)) is not None
        ]

    # --- working ---------------------------------------------------------------------------

    async def claim(self, running: Mapping[str, int], *, suspects: bool = True) -> list[Held]:
        """Take as many due jobs as may run beside those that do; `suspects` as in `is_suspect`."""
        room = [
            Room(kind.name, slots, kind.attempts, kind.outbound)
            for kind in self._types.values()
            if (slots := kind.concurrency - running.get(kind.name, 0)) > 0
        ]
        if not room:
            return []
        async with self._db.connection() as conn:
            held = await jobs.claim(
                conn,
                room,
                owner=self.owner,
                lease_seconds=self.settings.lease_seconds,
                suspects=suspects,
            )
        for one in held:
            if one.taken_over:
                self._stolen.inc()
                log.warning("job taken over", job=one.id, type=one.type, attempt=one.attempts)
        return held

    @staticmethod
    def is_suspect(held: Held) -> bool:
        """Return whether a job may have killed its claimers: one such runs at a time."""
        return held.taken_over and held.attempts >= SUSPECT_ATTEMPTS

    async def run(self, held: Held) -> None:
        """Make one attempt at a claimed job and write what came of it; never raises for its work.

        While it is made the lease is renewed, but no longer than the attempt may take: a handler
        that cannot even be cut loses its job.
        """
        if not self._tracing.on:
            await self._run(held)
            return
        span, outcome = self._tracing.begin(held.trace), "cut"
        try:
            with trace.resumed(span.traceparent):
                outcome = await self._run(held)
        finally:
            said: dict[str, Value] = {
                "itdesk.job.type": held.type,
                "itdesk.job.id": str(held.id),
                "itdesk.job.attempt": held.attempts,
                "itdesk.job.outcome": outcome,
            }
            failed = outcome in ("again", "failed")
            self._tracing.end(span, f"job {held.type}", "consumer", said, failed=failed)

    async def _run(self, held: Held) -> str:
        """Make the attempt, and return what came of it in a word."""
        kind = self._types.get(held.type)
        if kind is None:  # withdrawn since it was claimed
            kind = JobType(name=held.type, handle=_withdrawn)
        lost = False
        try:
            async with self._renewed(held, kind.timeout_seconds):
                ending = await self._attempt(kind, held)
                if ending is not _MARKED:
                    await self._write(held, ending)
        except* LostClaim:
            lost = True
        if lost:
            self._stale.inc()
            log.warning("job overtaken", job=held.id, type=held.type, epoch=held.epoch)
            return "lost"
        if isinstance(ending, _Again):
            return "again"
        outcome = "failed" if isinstance(ending, _Never) else "done"
        self._finished.labels(held.type, outcome).inc()
        if isinstance(ending, _Never):
            log.error("job failed", job=held.id, type=held.type, reason=ending.reason)
        return outcome

    async def tidy(self) -> None:
        """Give up what was tried too often without an answer; bring the metrics up to date."""
        room = [Room(kind.name, 0, kind.attempts) for kind in self._types.values()]
        async with self._db.connection() as conn:
            for name in await jobs.bury(conn, room):
                self._finished.labels(name, "failed").inc()
                log.error("job failed", type=name, reason="no attempt came back")
            oldest = await jobs.oldest(conn)
            self._failed.set(await jobs.count_failed(conn))
        for measure in self.gauges:
            await measure()
        for name in self._types.keys() | oldest.keys() | self._told:
            self._oldest.labels(name).set(oldest.get(name, 0.0))
        self._told = set(oldest)

    async def release(self, *, counted: bool) -> None:
        """Give back whatever is still claimed here; unless `counted`, as if never tried."""
        async with self._db.connection() as conn:
            given = await jobs.release(conn, self.owner, counted=counted)
        if given:
            log.info("jobs given back", count=given)

    @asynccontextmanager
    async def _renewed(self, held: Held, seconds: float) -> AsyncIterator[None]:
        """Keep the lease alive while the body runs; LostClaim cuts it when it was taken over."""
        until = self._clock.monotonic() + seconds

        async def renew() -> None:
            while self._clock.monotonic() < until:
                await self._clock.sleep(self.settings.lease_seconds / 3)
                try:
                    async with self._db.connection() as conn:
                        lease = self.settings.lease_seconds
                        if not await jobs.renew(conn, held, lease_seconds=lease):
                            raise LostClaim
                except DeskError as exc:
                    log.warning("lease not renewed", job=held.id, problem=exc.message)

        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(renew())
            try:
                yield
            finally:
                keeper.cancel()

    async def _attempt(self, kind: JobType, held: Held) -> object:
        """Run the handler and return what its end means."""
        started = self._clock.monotonic()
        try:
            job = Job(self._db, held, _arguments(held))
        except ValueError as exc:
            return _Never(str(exc))
        try:
            async with self._clock.deadline(kind.timeout_seconds):
                await kind.handle(job)
            ending: object = _DONE
        except LostClaim:
            raise
        except GiveUp as exc:
            ending = _Never(_short(str(exc)))
        except RetryLater as exc:
            ending = self._again(kind, held, exc.reason, exc.seconds, counted=exc.counted)
        except TimeoutError as exc:
            late = self._clock.monotonic() - started >= kind.timeout_seconds
            why = f"took longer than {kind.timeout_seconds:g} s" if late else told(exc)
            ending = self._again(kind, held, why)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            ending = self._again(kind, held, told(exc))
        except Exception as exc:  # noqa: BLE001 - a handler's failure is its job's, not the worker's
            trace = None if isinstance(exc, DeskError) else exc
            log.warning("job attempt failed", job=held.id, type=held.type, exc_info=trace)
            ending = self._again(kind, held, told(exc))
        # What was committed stays, whatever the handler said afterwards.
        return _MARKED if job.finished else ending

    def _again(
        self,
        kind: JobType,
        held: Held,
        why: str,
        seconds: float | None = None,
        *,
        counted: bool = True,
    ) -> object:
        if counted and held.attempts >= kind.attempts:
            return _Never(_short(f"gave up after {held.attempts} attempts: {why}"))
        if seconds is None:
            longest = min(self.settings.retry_seconds * 2.0 ** (held.attempts - 1), LONGEST_PAUSE)
            seconds = longest * self._dice()
        return _Again(seconds, _short(why), counted)

    async def _write(self, held: Held, ending: object) -> None:
        """Write the end of an attempt under its epoch; LostClaim when somebody else has the job.

        An outage is waited for: an end that is not written is work done twice.
        """
        while True:
            try:
                async with self._db.connection() as conn:
                    kept = await self._write_once(conn, held, ending)
                break
            except DeskError as exc:
                log.warning("end of a job not written", job=held.id, problem=exc.message)
                await self._clock.sleep(_WRITE_AGAIN_SECONDS)
        if not kept:
            raise LostClaim

    async def _write_once(self, conn: Any, held: Held, ending: object) -> bool:
        if isinstance(ending, _Again):
            log.info(
                "job tried again later",
                job=held.id,
                type=held.type,
                attempt=held.attempts,
                seconds=round(ending.seconds, 1),
                reason=ending.reason,
            )
            return await jobs.put_back(
                conn,
                held,
                seconds=ending.seconds,
                reason=ending.reason,
                counted=ending.counted,
            )
        if isinstance(ending, _Never):
            return await jobs.fail(conn, held, reason=ending.reason)
        failpoints.hit("before_mark")
        return await jobs.finish(conn, held)

    # --- looking after ---------------------------------------------------------------------

    async def list(
        self, caller: Caller, window: Window, *, state: JobState | None, type: str | None
    ) -> Page[QueuedJob]:
        """Return one page of the jobs, the newest first."""
        caller.require(Role.ADMIN, "look at jobs")
        async with self._db.connection() as conn:
            page = await jobs.list_page(conn, window, state=state, type=type)
            total = await jobs.count(conn, state=state, type=type) if window.count else None
        return replace(page, total=total)

    async def retry(self, caller: Caller, ref: str | UUID) -> QueuedJob:
        """Let a job that was given up begin anew."""
        caller.require(Role.ADMIN, "retry jobs")
        async with self._db.transaction() as tx:
            before = await jobs.get(tx.conn, _id(ref), lock=True)
            if before.state is not JobState.FAILED:
                raise _wrong_state(before, "Only a failed job can be retried")
            after = await jobs.requeue(tx.conn, before.id)
            tx.record(_audited(caller, "job.retried", before))
            for wake in self._db.job_listeners:
                tx.after_commit(wake)
        return after

    async def cancel(self, caller: Caller, ref: str | UUID) -> QueuedJob:
        """Give up a job that waits; one that runs is left to its end."""
        caller.require(Role.ADMIN, "cancel jobs")
        async with self._db.transaction() as tx:
            before = await jobs.get(tx.conn, _id(ref), lock=True)
            if before.state is not JobState.WAITING:
                raise _wrong_state(before, "Only a job that waits can be cancelled")
            after = await jobs.cancel(tx.conn, before.id, reason=f"cancelled by {caller.name}")
            tx.record(_audited(caller, "job.cancelled", before))
        return after


async def _withdrawn(job: Job) -> None:
    raise RetryLater(0, "nobody here does such jobs now", counted=False)


def _following(kind: JobType, event: Event) -> NewJob | None:
    """Return the job that follows from an event, as failed when its type cannot say what it is."""
    try:
        if not kind.when(event):
            return None
        lane, dedupe_key = kind.lane(event), kind.dedupe(event)
        if not isinstance(lane, str | None) or not isinstance(dedupe_key, str | None):
            raise TypeError("lanes and dedupe keys are text")
        return NewJob.of(
            kind.name, kind.args(event), lane=lane, dedupe_key=dedupe_key, event_id=event.id
        )
    except Exception as exc:  # noqa: BLE001 - the change itself must not fail for a reaction to it
        log.error("job cannot be made", type=kind.name, cause=event.id, exc_info=exc)
        problem = _short(f"could not be made from {event.type}: {told(exc)}")
        return NewJob(kind.name, event_id=event.id, problem=problem)


def _arguments(held: Held) -> Mapping[str, Any]:
    # Read one by one: in the claim, a single unreadable one would keep all others from running.
    try:
        args = orjson.loads(held.args)
    except ValueError:
        args = None
    if not isinstance(args, dict):
        raise ValueError("its arguments cannot be read")
    return args


def _short(text: str) -> str:
    return " ".join(redacted(text).split())[:LONGEST_REASON]


def _audited(caller: Caller, type: str, job: QueuedJob) -> Event:
    about = {"job_id": str(job.id), "type": job.type, "last_error": job.last_error}
    return Event.by(caller, type, data=about)


def _wrong_state(job: QueuedJob, why: str) -> Conflict:
    return Conflict(
        f"{why}; this one is {job.state}.", code="E_JOB_STATE", details={"state": job.state}
    )


def _id(ref: str | UUID) -> UUID:
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        raise NotFound.of("job") from None
