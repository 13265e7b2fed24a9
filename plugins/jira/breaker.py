"""Leaves Jira alone while it is out: after so many failures in a row nothing is sent for a while.

Then one request may try. When that works everybody may again, and else the while begins anew.
"""

from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

from .failures import Unavailable

log = get_logger("jira")


class Breaker:
    """Counts failures in a row; open from the last one that is allowed on."""

    def __init__(self, clock: Clock, *, failures: int, seconds: float) -> None:
        self._clock = clock
        self._allowed = failures
        self._seconds = seconds
        self._in_a_row = 0
        self._until = 0.0

    @property
    def is_open(self) -> bool:
        """Return whether Jira is left alone, but for one who may try."""
        return self._in_a_row >= self._allowed

    @property
    def is_doubtful(self) -> bool:
        """Return whether one more failure would open it, or it is open already."""
        return self._in_a_row >= max(1, self._allowed - 1)

    @property
    def remaining(self) -> float:
        """Return in how many seconds somebody may try."""
        return max(0.0, self._until - self._clock.monotonic()) if self.is_open else 0.0

    def require_closed(self) -> None:
        """Raise Unavailable while Jira is left alone; whoever gets through then is the one."""
        if not self.is_open:
            return
        if self.remaining > 0:
            raise Unavailable("Jira is out, and left alone for some seconds.", sent=False)
        # The others go on waiting for what this one finds.
        self._until = self._clock.monotonic() + self._seconds

    def worked(self) -> None:
        """Note that Jira answers."""
        if self.is_open:
            log.info("jira answers again")
        self._in_a_row = 0

    def failed(self) -> None:
        """Note that it does not."""
        self._in_a_row += 1
        if self.is_open:
            self._until = self._clock.monotonic() + self._seconds
        if self._in_a_row == self._allowed:
            log.warning("jira is left alone", failures=self._in_a_row, seconds=self._seconds)
