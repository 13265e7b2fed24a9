"""Whose turn it is at something slow: a few at a time, a bounded line, people before machines.

Who cannot be served within its time is told so at once instead of waiting for nothing. When what
is behind the turns failed several times in a row nobody is let through for a while; then one is,
and what becomes of that one decides.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from itdesk.runtime.clock import Clock

FAILURES_IN_A_ROW = 3


class NoTurn(Exception):
    """There is none: the reason is `busy`, `open` or `off`, as metrics name it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Waiting:
    who: Hashable
    background: bool
    turn: "asyncio.Future[None]" = field(repr=False)


class Turns:
    """Hands out turns."""

    def __init__(self, *, at_once: int, waiting: int) -> None:
        self._at_once = at_once
        self._most = waiting
        # One person's many questions leave room for everybody else's.
        self._most_of_one = max(1, waiting // 4)
        self._most_background = max(1, waiting // 2)
        # Whoever asks now finds a turn that no machine holds, unless there is but one.
        self._background_at_once = max(1, at_once - 1)
        self._taken = 0
        self._taken_by_background = 0
        self._people: list[_Waiting] = []
        self._background: list[_Waiting] = []
        self._of: Counter[Hashable] = Counter()

    @property
    def waiting(self) -> int:
        """Return how many stand in the line."""
        return len(self._people) + len(self._background)

    @property
    def full(self) -> bool:
        """Return whether somebody who comes now is sent away, unless machines make room."""
        return len(self._people) >= self._most

    @asynccontextmanager
    async def take(self, who: Hashable, *, background: bool = False) -> AsyncIterator[None]:
        """Wait for a turn and hold it in the block; NoTurn at once when the line is full."""
        if self._is_free(background=background):
            self._give(background=background)
        else:
            await self._wait(who, background=background)
        try:
            yield
        finally:
            self._take_back(background=background)

    async def _wait(self, who: Hashable, *, background: bool) -> None:
        self._make_room(who, background=background)
        loop = asyncio.get_running_loop()
        place = _Waiting(who, background, loop.create_future())
        line = self._background if background else self._people
        line.append(place)
        self._of[who] += 1
        try:
            await place.turn
        except BaseException:
            if place.turn.done() and not place.turn.cancelled() and not place.turn.exception():
                # Called in the moment in which it gave up: the turn is somebody else's.
                self._take_back(background=background)
            raise
        finally:
            if place in line:
                line.remove(place)
            self._of[who] -= 1
            if not self._of[who]:
                del self._of[who]

    def _make_room(self, who: Hashable, *, background: bool) -> None:
        if not background and self._of[who] >= self._most_of_one:
            raise NoTurn("busy")
        if background and len(self._background) >= self._most_background:
            raise NoTurn("busy")
        if self.waiting < self._most:
            return
        if background or not self._background:
            raise NoTurn("busy")
        displaced = self._background.pop().turn
        if not displaced.done():
            displaced.set_exception(NoTurn("busy"))

    def _is_free(self, *, background: bool) -> bool:
        """Return whether the next one of these has a turn at once."""
        machines = background and self._taken_by_background >= self._background_at_once
        return self._taken < self._at_once and not machines

    def _give(self, *, background: bool) -> None:
        self._taken += 1
        self._taken_by_background += background

    def _take_back(self, *, background: bool) -> None:
        """Take a turn back, and call whoever may have it."""
        self._taken -= 1
        self._taken_by_background -= background
        for line, machines in ((self._people, False), (self._background, True)):
            while line and self._is_free(background=machines):
                place = line.pop(0)
                if not place.turn.done():
                    self._give(background=machines)
                    place.turn.set_result(None)


class Breaker:
    """Leaves something alone for a while after it failed several times in a row."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._failures = 0
        self._last_late: Hashable = None
        self._closed_again = 0.0

    @property
    def open(self) -> bool:
        """Return whether it is left alone as of now."""
        return self._failures >= FAILURES_IN_A_ROW and self._clock.monotonic() < self._closed_again

    def admit(self) -> bool:
        """Raise NoTurn while it is left alone; return whether this one tries it for all."""
        if self._failures < FAILURES_IN_A_ROW:
            return False
        if self.open:
            raise NoTurn("open")
        # The others wait for what this one finds.
        self._closed_again = self._clock.monotonic() + self._seconds
        return True

    def failed(self, *, late: Hashable = None) -> None:
        """Take note of a failure; `late` is whose question took too long, if it was somebody's.

        What one person asks may be too much for the time: until something else fails as well, all
        that they waited for in vain counts as one.
        """
        if late is None or late != self._last_late:
            self._failures += 1
        self._last_late = late
        if self._failures >= FAILURES_IN_A_ROW:
            self._closed_again = self._clock.monotonic() + self._seconds

    def worked(self) -> None:
        """Take note that it works."""
        self._failures, self._last_late = 0, None
