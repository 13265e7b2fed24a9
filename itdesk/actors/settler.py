"""The settler: tells the database what the rate limits counted in memory, and learns the rest."""

from itdesk.desk.limits import RateLimits
from itdesk.errors import DeskError
from itdesk.runtime.actor import Actor
from itdesk.runtime.log import get_logger

log = get_logger("limits")


class Settler(Actor):
    """Settles every second, and at once when somebody is about to use a limit up."""

    name = "settler"
    period = 1.0

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        limits.wake = self.wake

    async def handle(self, message: object) -> None:
        """Settle; without the database what was counted is kept for the next time."""
        await self._limits.settle()

    async def teardown(self) -> None:
        """Leave nothing untold: a restart gives nobody a fresh limit."""
        try:
            await self._limits.settle()
        except DeskError as exc:
            log.warning("limits were not settled", problem=exc.message)
