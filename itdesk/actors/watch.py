"""The watch: looks how the desk is though nobody asks, so that alerts need no probe."""

from itdesk.desk.health import Health
from itdesk.runtime.actor import Actor


class Watch(Actor):
    """Brings `itdesk_ready` and `itdesk_degraded` up to date."""

    name = "watch"
    period = 10.0
    critical = False

    def __init__(self, health: Health) -> None:
        self._health = health

    async def handle(self, message: object) -> None:
        """Look at every part, as /readyz does."""
        await self._health.readiness()
