"""How late the event loop runs its timers: the price that everybody pays for somebody's block."""

from itdesk.runtime.actor import Actor
from itdesk.runtime.clock import Timer
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics

INTERVAL = 0.25
STALL = 0.1

log = get_logger("loop")


class LoopLag(Actor):
    """Measures the lag all the time and names a stall in the log."""

    name = "loop-lag"
    critical = False

    def __init__(self, metrics: Metrics) -> None:
        self._lag = metrics.loop_lag
        self._timer: Timer | None = None

    async def setup(self) -> None:
        """Begin to measure."""
        self._arm()

    async def teardown(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        due = self.clock.monotonic() + INTERVAL
        self._timer = self.clock.call_later(INTERVAL, lambda: self._measure(due))

    def _measure(self, due: float) -> None:
        self._arm()
        lag = max(0.0, self.clock.monotonic() - due)
        self._lag.observe(lag)
        if lag > STALL:
            log.warning("event loop stalled", seconds=round(lag, 3))
