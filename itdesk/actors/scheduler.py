"""The scheduler: sees to it that what is due periodically begins, once for all daemons."""

from itdesk.desk.schedules import Schedules
from itdesk.runtime.actor import Actor

# What is due begins at most so many seconds late.
LONGEST_PERIOD = 5


class Scheduler(Actor):
    """Looks what is due; the rows in the database keep it from beginning twice."""

    name = "scheduler"
    critical = False

    def __init__(self, schedules: Schedules) -> None:
        self._schedules = schedules
        self._pace()

    async def handle(self, message: object) -> None:
        """Queue what is due."""
        self._pace()
        await self._schedules.start_due()

    def _pace(self) -> None:
        # Plugins come and go, and their schedules with them.
        self.period = float(min(self._schedules.shortest or LONGEST_PERIOD, LONGEST_PERIOD))
