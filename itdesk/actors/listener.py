"""The listener: tells this daemon that the journal has grown, whoever made it grow.

A notification is a hint and may be lost with its connection; the poll is the truth.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg

from itdesk.errors import Unavailable
from itdesk.model import Position
from itdesk.runtime.actor import Actor
from itdesk.runtime.log import get_logger
from itdesk.store import events
from itdesk.store.db import Database

log = get_logger("listener")

Told = Callable[[Position], object]


class Listener(Actor):
    """Holds a connection of its own on which PostgreSQL speaks up."""

    name = "listener"
    period = 1.0

    def __init__(self, db: Database) -> None:
        self._db = db
        self._told: list[Told] = []
        self._conn: Any = None
        self._position: Position | None = None

    def subscribe(self, told: Told) -> None:
        """Call this with the new position whenever the journal has grown; it must not wait."""
        self._told.append(told)

    @property
    def hears(self) -> bool:
        """Return whether notifications come through now."""
        return self._conn is not None and not self._conn.is_closed()

    async def handle(self, message: object) -> None:
        """See how far the journal is, and say so if it has grown."""
        if not self.hears:
            await self._listen()
        async with self._db.connection() as conn:
            position = await events.head(conn)
        if position != self._position:
            self._position = position
            for told in self._told:
                told(position)

    async def teardown(self) -> None:
        """Hang up."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.terminate()

    async def _listen(self) -> None:
        """Connect; while that fails, polling goes on by itself."""
        seconds = self._db.limits.connect_seconds
        try:
            self._conn = await asyncpg.connect(self._db.url, timeout=seconds)
            async with asyncio.timeout(seconds):
                await self._conn.add_listener(events.CHANNEL, self._heard)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
            await self.teardown()
            log.warning("not listening", problem=type(exc).__name__)
            if isinstance(exc, asyncpg.InvalidAuthorizationSpecificationError):
                raise Unavailable("The database refuses the listener's connection.") from exc

    def _heard(self, *_: object) -> None:
        if not len(self.mailbox):
            self.tell("heard")
