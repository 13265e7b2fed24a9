"""Tells plugins of what was committed; a hint that may be lost, for the rows are the truth."""

from itdesk.desk import Desk
from itdesk.model import Event
from itdesk.runtime.actor import Actor


class Reactor(Actor):
    """Hands every committed event to the plugins, one after the other."""

    name = "reactor"
    critical = False
    mailbox_size = 1024
    handle_timeout = 120.0

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def handle(self, message: object) -> None:
        """Let all plugins react to one event."""
        if isinstance(message, Event):
            await self._desk.plugins.event(self._desk, message)
