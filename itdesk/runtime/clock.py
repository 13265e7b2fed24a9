"""Time as the daemon sees it: the one place that reads a clock, so that a test can own it."""

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPSILON = 1e-9
_IDLE_TURNS = 3
_MOST_TURNS = 1_000


class Timer(Protocol):
    """What `Clock.call_later` gives: a callback that can still be called off."""

    def cancel(self) -> None:
        """Call the callback off."""


class Clock:
    """Wall time, elapsed time and waiting."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that only ever grow, whatever happens to the wall time."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call a plain function once, after so many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback)

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds; zero gives everybody else one turn."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        timer = self.call_later(seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    @asynccontextmanager
    async def deadline(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError in the block when it takes longer than so many seconds."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as scope:
            timer = self.call_later(seconds, lambda: scope.reschedule(loop.time()))
            try:
                yield
            finally:
                timer.cancel()


class Backoff:
    """Growing waits between attempts: 1, 2, 4 .. 60 s, forgotten after 300 s without a failure."""

    def __init__(
        self,
        clock: Clock,
        *,
        first: float = 1.0,
        longest: float = 60.0,
        forget_after: float = 300.0,
        jitter: float = 0.1,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._forget_after = forget_after
        self._jitter = jitter
        self._dice = dice
        self._next = first
        self._resumed = clock.monotonic()

    def failed(self) -> float:
        """Record a failure and return the seconds to wait before the next attempt."""
        now = self._clock.monotonic()
        if now - self._resumed >= self._forget_after:
            self._next = self._first
        # Jitter only shortens: whoever promises "back within 60 s" may add up the figures.
        delay = self._next * (1.0 - self._jitter * self._dice())
        self._next = min(self._next * 2, self._longest)
        self._resumed = now + delay
        return delay

    def reset(self) -> None:
        """Forget all failures: the next wait is the first one again."""
        self._next = self._first


class FakeTimer:
    """A callback that waits for `FakeClock.advance`."""

    __slots__ = ("callback", "cancelled")

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Call the callback off."""
        self.cancelled = True


class FakeClock(Clock):
    """A clock that stands still until a test moves it."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, FakeTimer]] = []

    def now(self) -> datetime:
        """Return the start time plus what was advanced."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Return the seconds advanced so far."""
        return self._elapsed

    def call_later(self, seconds: float, callback: Callable[[], object]) -> FakeTimer:
        """Call a plain function when the clock was advanced by so many seconds."""
        timer = FakeTimer(callback)
        due = self._elapsed + max(seconds, 0.0)
        heapq.heappush(self._timers, (due, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass: each sleeper wakes at its moment, in order, and runs until it waits."""
        await self.settle()
        target = self._elapsed + seconds
        while self._timers and self._timers[0][0] <= target + _EPSILON:
            due, _, timer = heapq.heappop(self._timers)
            if timer.cancelled:
                continue
            self._elapsed = max(self._elapsed, due)
            timer.callback()
            await self.settle()
        self._elapsed = max(self._elapsed, target)
        await self.settle()

    def block(self, seconds: float) -> None:
        """Let time pass while nobody runs, as a handler does that blocks the loop."""
        self._elapsed += seconds

    async def settle(self) -> None:
        """Run every task that is ready until all of them wait for something."""
        idle = 0
        # Only asyncio's own loop can tell that nobody is ready; on others all turns are taken.
        ready = getattr(asyncio.get_running_loop(), "_ready", None)
        for _ in range(_MOST_TURNS):
            await asyncio.sleep(0)
            idle = 0 if ready is None or ready else idle + 1
            if idle == _IDLE_TURNS:
                return
