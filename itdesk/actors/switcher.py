"""The switcher: does within seconds what somebody, here or at another daemon, said of plugins."""

from itdesk.desk.switchboard import Switchboard
from itdesk.runtime.actor import Actor

# Beside the deadlines of the plugin itself: it is imported, entered, and may have to be cut.
SPARE_SECONDS = 60.0


class Switcher(Actor):
    """Looks at the switches of plugins; a message only says when to look."""

    name = "switcher"
    period = 1.0
    critical = False

    def __init__(self, switchboard: Switchboard, longest: float) -> None:
        self.handle_timeout = SPARE_SECONDS + 4 * longest
        self._switchboard = switchboard
        switchboard.wake = self.wake

    async def handle(self, message: object) -> None:
        """Put the switches into effect."""
        await self._switchboard.apply()
