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
        self.period = float(min(schedules.shortest or LONGEST_PERIOD, LONGEST_PERIOD))
        self._schedules = schedules

    async def handle(self, message: object) -> None:
        """Queue what is due."""
        await self._schedules.start_due()
