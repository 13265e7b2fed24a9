"""How long a request may take: one timer looks after all requests, as one each costs too much."""

import asyncio
from dataclasses import dataclass
from typing import Any

from itdesk.errors import Unavailable
from itdesk.runtime.clock import Clock, Timer

PERIOD = 0.25


class TooLong(Unavailable):
    """The work was not done by its deadline."""

    default_code = "E_TIMEOUT"


@dataclass(slots=True, eq=False)
class Deadline:
    """Raises TooLong in the block that it is lent for, when that is not done in time."""

    watched: "set[Deadline]"
    task: asyncio.Task[Any]
    due: float
    expired: bool = False

    def __enter__(self) -> None:
        self.watched.add(self)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.watched.discard(self)
        # A task that others have cancelled as well is to end.
        if self.expired and not self.task.uncancel() and kind is asyncio.CancelledError:
            raise TooLong("This took too long.") from None


class Deadlines:
    """Cancels the tasks that are at work after their deadline, at most `PERIOD` late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[Deadline] = set()
        self._timer: Timer | None = None

    def until(self, due: float) -> Deadline:
        """Lend a deadline to a block of the current task."""
        task = asyncio.current_task()
        assert task is not None
        if self._timer is None:
            self._timer = self._clock.call_later(PERIOD, self._sweep)
        return Deadline(self._open, task, due)

    def _sweep(self) -> None:
        self._timer = None
        if not self._open:
            return
        self._timer = self._clock.call_later(PERIOD, self._sweep)
        now = self._clock.monotonic()
        for deadline in self._open:
            if deadline.due <= now and not deadline.expired:
                deadline.expired = True
                deadline.task.cancel()
