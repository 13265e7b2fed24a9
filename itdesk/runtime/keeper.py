"""The keeper of one actor: runs it, cuts it short, restarts it, and can always say how it is."""

import asyncio
import math
import os
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import datetime
from enum import StrEnum
from typing import Any

from itdesk.frozen import frozen
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.clock import Backoff, Clock, Timer
from itdesk.runtime.log import bind, get_logger, redacted
from itdesk.runtime.metrics import Metrics

MOST_CRASHES = 5
CRASH_WINDOW = 30.0
GRACE = 5.0
FORCED_GRACE = 1.0
# The longest a keeper waits before it looks around again, and how late it may be with that.
_TURN = 5.0
_TURN_SLACK = 5.0
# Timers may fire a clock tick early.
_TOLERANCE = 0.001
_LONGEST_REASON = 200

log = get_logger("supervisor")


class Ended(Exception):
    """Something that should have gone on came to an end by itself."""


class Escalated(Exception):
    """A critical actor crashes again and again: this process must end and be started anew."""


class State(StrEnum):
    """What an actor is doing."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    FAILED = "failed"
    STUCK = "stuck"
    STOPPED = "stopped"


@frozen
class ActorStatus:
    """How an actor is, fit to be shown to anybody."""

    state: State
    since: datetime
    restarts: int
    reason: str
    critical: bool


class Keeper:
    """Keeps one actor alive until it is told to stop or has to give up."""

    def __init__(
        self,
        actor: Actor,
        clock: Clock,
        metrics: Metrics,
        *,
        outages: tuple[type[BaseException], ...],
        escalate: Callable[[Escalated], None],
    ) -> None:
        self.actor = actor
        self.finished = False
        self.abandoned = False
        actor.clock = clock
        actor.mailbox.on_drop = metrics.actor_dropped.labels(actor.name).inc
        self._clock = clock
        self._outages = outages
        self._escalate = escalate
        self._restarted = metrics.actor_restarts.labels(actor.name)
        self._up = metrics.actor_up.labels(actor.name)
        self._backoff = Backoff(clock)
        self._ran = 0.0
        self._crashes: deque[float] = deque()
        self._restarts = 0
        self._work: asyncio.Task[None] | None = None
        self._set_up = False
        self._doing = ""
        self._busy = False
        self._begun = 0.0
        self._early: Exception | None = None
        self._ticker: Timer | None = None
        self._woken = asyncio.Event()
        self._turn_by = math.inf
        self._stop_by: float | None = None
        self._forced = False
        self._reason = ""
        self._enter(State.STARTING)

    def status(self) -> ActorStatus:
        """Say how the actor is."""
        return ActorStatus(
            self._state, self._since, self._restarts, self._reason, self.actor.critical
        )

    def fresh(self) -> bool:
        """Tell whether this keeper turns and its actor is not over a deadline."""
        if self.finished:
            return True
        now = self._clock.monotonic()
        overdue = self._busy and now > self.actor.beat + self.actor.handle_timeout + _TOLERANCE
        late = now > self._turn_by + _TURN_SLACK
        return not (overdue or late or self._state is State.STUCK)

    def stop(self, by: float) -> None:
        """Take no more messages, handle the queued ones until that moment, tear down, end."""
        self._stop_by = by
        self.actor.mailbox.close()
        self._woken.set()

    def force(self) -> None:
        """End at once."""
        self._forced = True
        self.stop(-math.inf)

    def ended_early(self, failure: Exception) -> None:
        """Treat it as a crash of the actor that `run` ended without being asked."""
        self._early = failure

    async def run(self) -> None:
        """Live, and live again after each crash."""
        bind(actor=self.actor.name)
        while not self.finished:
            try:
                if self._early is not None:
                    raise self._early
                await self._live()
            except Exception as exc:  # noqa: BLE001 - any crash is answered by another life
                self._early = None
                if self._stop_by is None:
                    await self._recover(exc)
                else:
                    self._report("crashed while stopping", exc)
            if self._stop_by is not None and not self.finished:
                self._finish(State.STUCK if self.abandoned else State.STOPPED)

    async def cut_short(self) -> None:
        """Cancel what still runs and tear down, for a keeper that is itself being cancelled."""
        self.stop(-math.inf)
        if self._work is not None:
            await self._cut(self._work)
        await self._release()
        self._finish(State.STUCK if self.abandoned else State.STOPPED)

    async def _live(self) -> None:
        if self._work is not None:
            await self._cut(self._work)
        await self._release()
        if self._stop_by is not None:
            return
        started = self._clock.monotonic()
        self._enter(State.STARTING, self._reason)
        try:
            if await self._supervise("setup", self.actor.setup()):
                await self._serve()
        finally:
            self._ran += self._clock.monotonic() - started

    async def _serve(self) -> None:
        self._set_up = True
        self._enter(State.RUNNING)
        self._tick()
        try:
            whole = await self._supervise("handle", self._handle_all())
            if whole and self._stop_by is None:
                raise Ended("stopped handling messages without being asked")
        except Exception:
            await self._release()
            raise
        await self._release()

    async def _handle_all(self) -> None:
        mailbox, task = self.actor.mailbox, asyncio.current_task()
        self._busy = False
        while await mailbox.ready():
            self._begin()
            await self.actor.step()
            self._busy = False
            if task is not None and task.cancelling():
                # The handler kept its cancellation to itself; it was meant for all of us.
                return
            # An actor that tells itself must not keep everybody else from running.
            await asyncio.sleep(0)

    async def _release(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        # After an abandoned handler nothing may be pulled away from under it.
        if not self._set_up or self._forced or self.abandoned:
            return
        self._set_up = False
        try:
            await self._supervise("teardown", self.actor.teardown())
        except Exception as exc:  # noqa: BLE001 - the next life must begin, the stop must go on
            self._report("teardown failed", exc)

    def _tick(self) -> None:
        if self.actor.period is not None:
            self._ticker = self._clock.call_later(self.actor.period, self._tick)
            self.actor.tell(TICK)

    async def _supervise(self, doing: str, part: Coroutine[Any, Any, None]) -> bool:
        """Run a part of the actor to its end; False when a stop cut it short."""
        self._doing = doing
        self._begin()
        self._begun = self.actor.beat
        work = self._work = asyncio.create_task(part, name=f"{self.actor.name}:{doing}")
        try:
            while not work.done():
                left = self._deadline() - self._clock.monotonic()
                if left <= _TOLERANCE:
                    return await self._overdue(work)
                await self._wait(min(left, self.actor.handle_timeout), work)
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            self._busy = False
        if work.cancelled():
            raise Ended(f"{doing} was cancelled from inside")
        work.result()
        return True

    def _deadline(self) -> float:
        own = self.actor.beat + self.actor.handle_timeout if self._busy else math.inf
        if self._stop_by is None:
            return own
        if self._forced or self._doing == "setup":
            return -math.inf
        if self._doing == "handle":
            return min(own, self._stop_by)
        # Nobody may put off the end by reporting progress for ever.
        return self._begun + self.actor.handle_timeout

    async def _overdue(self, work: asyncio.Task[None]) -> bool:
        await self._cut(work)
        if self._stop_by is not None:
            log.warning("cut short", doing=self._doing, unhandled=len(self.actor.mailbox))
            return False
        raise TimeoutError(f"{self._doing} took longer than {self.actor.handle_timeout:g} s")

    async def _cut(self, work: asyncio.Task[None]) -> None:
        """Cancel until it ends; while stopping, leave it behind after the grace."""
        if work.done():
            return
        while not work.done():
            work.cancel()
            since = self._clock.monotonic()
            while not work.done() and (left := since + self._grace() - self._clock.monotonic()) > 0:
                await self._wait(left, work)
            if work.done():
                break
            if self._state is not State.STUCK:
                self._enter(State.STUCK, f"{self._doing} ignores its cancellation")
                log.error("stuck", doing=self._doing)
            if self._stop_by is not None:
                self.abandoned = True
                return
        if not work.cancelled() and (last_words := work.exception()) is not None:
            log.warning("failed while being cancelled", doing=self._doing, exc_info=last_words)

    def _grace(self) -> float:
        return FORCED_GRACE if self._forced else GRACE

    async def _wait(self, seconds: float, work: asyncio.Task[None] | None = None) -> None:
        """Wait for the time, the end of the work or a stop, whichever comes first."""
        seconds = min(seconds, _TURN)
        self._turn_by = self._clock.monotonic() + seconds
        self._woken.clear()
        timer = self._clock.call_later(seconds, self._woken.set)
        if work is not None:
            work.add_done_callback(self._wake)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
            if work is not None:
                work.remove_done_callback(self._wake)

    def _wake(self, _: object) -> None:
        self._woken.set()

    def _begin(self) -> None:
        self.actor.progress()
        self._busy = True

    async def _recover(self, failure: Exception) -> None:
        outage = _is_outage(failure, self._outages)
        reason = describe(failure) if outage else type(failure).__name__
        if isinstance(failure, Ended):
            reason = str(failure)
        if not outage and self._too_often():
            self._give_up(reason, failure)
            return
        delay = self._backoff.failed()
        self._restarts += 1
        self._restarted.inc()
        self._enter(State.BACKING_OFF, reason)
        # An outage is somebody else's fault and lasts: its traceback would only fill the log.
        trace = None if outage else failure
        log.warning("restarting", reason=reason, retry_seconds=round(delay, 1), exc_info=trace)
        until = self._clock.monotonic() + delay
        while self._stop_by is None and (left := until - self._clock.monotonic()) > _TOLERANCE:
            await self._wait(left)

    def _report(self, event: str, failure: Exception) -> None:
        """Log what nothing follows from; an outage is nobody's bug, and has no traceback."""
        if _is_outage(failure, self._outages):
            log.warning(event, reason=describe(failure))
        else:
            log.error(event, exc_info=failure)

    def _too_often(self) -> bool:
        # Counted in time spent running: the waits between six crashes alone exceed the window.
        self._crashes.append(self._ran)
        while self._crashes[0] < self._ran - CRASH_WINDOW:
            self._crashes.popleft()
        return len(self._crashes) > MOST_CRASHES

    def _give_up(self, reason: str, failure: Exception) -> None:
        log.critical("crashes again and again", reason=reason, exc_info=failure)
        self._finish(State.FAILED, reason)
        if self.actor.critical:
            self._escalate(Escalated(f"{self.actor.name} crashes again and again: {reason}"))

    def _finish(self, state: State, reason: str | None = None) -> None:
        self.finished = True
        self.actor.mailbox.close()
        self._enter(state, self._reason if reason is None else reason)

    def _enter(self, state: State, reason: str = "") -> None:
        self._state = state
        self._since = self._clock.now()
        self._reason = reason
        self._up.set(state is State.RUNNING)


def describe(outage: BaseException) -> str:
    """Say in one short line what is unreachable, without paths, addresses and secrets."""
    text = str(outage)
    if isinstance(outage, ssl.SSLError):
        text = outage.reason or ""
    elif isinstance(outage, OSError) and outage.errno is not None:
        text = os.strerror(outage.errno) if outage.errno > 0 else outage.strerror or ""
    text = " ".join(redacted(text).split())[:_LONGEST_REASON]
    return f"{type(outage).__name__}: {text}" if text else type(outage).__name__


def _is_outage(failure: BaseException, outages: tuple[type[BaseException], ...]) -> bool:
    if isinstance(failure, BaseExceptionGroup):
        return all(_is_outage(part, outages) for part in failure.exceptions)
    return isinstance(failure, outages)
