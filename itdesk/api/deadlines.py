"""How long a request may take: one timer looks after all requests, as one each costs too much."""

import asyncio
from dataclasses import dataclass
from typing import Any

from itdesk.runtime.clock import Clock, Timer

PERIOD = 0.25


@dataclass(slots=True, eq=False)
class Deadline:
    """When the work of a task must be done, and whether it was not."""

    task: asyncio.Task[Any]
    due: float
    expired: bool = False


class Deadlines:
    """Cancels the tasks that are at work after their deadline, at most `PERIOD` late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: set[Deadline] = set()
        self._timer: Timer | None = None

    def begin(self, due: float) -> Deadline:
        """Watch over the current task until `end`."""
        task = asyncio.current_task()
        assert task is not None
        deadline = Deadline(task, due)
        self._open.add(deadline)
        if self._timer is None:
            self._timer = self._clock.call_later(PERIOD, self._sweep)
        return deadline

    def end(self, deadline: Deadline) -> None:
        """Watch no longer; the task may be cancelled by others again."""
        self._open.discard(deadline)
        if deadline.expired:
            deadline.task.uncancel()

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
