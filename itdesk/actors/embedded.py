"""Brings the embedded PostgreSQL back when it has died; its URL stays the same."""

from itdesk.runtime.actor import Actor
from itdesk.runtime.log import get_logger
from itdesk.runtime.postgres import EmbeddedPostgres

log = get_logger("postgres")


class EmbeddedDatabase(Actor):
    """Looks after the server that this daemon started; recovery may take its time."""

    name = "embedded-database"
    period = 0.5
    handle_timeout = 310.0
    critical = False

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server

    async def handle(self, message: object) -> None:
        """Start the server again if it does not run any more."""
        if not self._server.alive:
            log.error("the embedded database has died and is started again")
            await self._server.start()
