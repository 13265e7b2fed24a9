"""What waits to be sent on one websocket: in order, bounded, and shared with all other receivers.

Frames go straight to the socket while it takes them. Once the kernel and the transport are full
they wait here, as references to bytes that exist once; a client that lets too much wait is given
up, because it can resume, and the others must not pay for it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from itdesk.frozen import frozen


class Wire(Protocol):
    """The connection as far as an outbox needs it."""

    @property
    def transport(self) -> Any:
        """Return the transport, None once the connection is lost."""

    @property
    def writing_paused(self) -> bool:
        """Return whether the client takes nothing at the moment."""


@frozen
class Bounds:
    """How much may wait for one client."""

    messages: int = 256
    octets: int = 1_048_576


def _do_nothing() -> None:
    pass


class Outbox:
    """Frames on their way to one socket."""

    __slots__ = ("_bounds", "_messages", "_octets", "_on_overflow", "_queue", "_room", "_wire",
                 "closed")  # fmt: skip

    def __init__(self, wire: Wire, bounds: Bounds, on_overflow: Callable[[], object]) -> None:
        self._wire = wire
        self._bounds = bounds
        self._on_overflow = on_overflow
        self._queue: deque[tuple[bytes, int]] | None = None
        self._messages = 0
        self._octets = 0
        self._room: asyncio.Event | None = None
        self.closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """Return how many messages and bytes wait for the client."""
        return self._messages, self._octets

    def put(self, frame: bytes, messages: int = 1) -> bool:
        """Send whole frames, now or when the client takes them; False when it is given up."""
        if self.closed:
            return False
        wire = self._wire
        if self._queue is None and not wire.writing_paused:
            transport = wire.transport
            if transport is None or transport.is_closing():
                return False
            transport.write(frame)
            return True
        self._messages += messages
        self._octets += len(frame)
        if self._messages > self._bounds.messages or self._octets > self._bounds.octets:
            on_overflow = self._on_overflow
            self.stop()
            on_overflow()
            return False
        if self._queue is None:
            self._queue = deque()
        self._queue.append((frame, messages))
        return True

    def resume(self) -> None:
        """Send what waits, as far as the client takes it."""
        queue, wire = self._queue, self._wire
        while queue and not wire.writing_paused:
            frame, messages = queue.popleft()
            self._messages -= messages
            self._octets -= len(frame)
            wire.transport.write(frame)
        if not queue:
            self._queue = None
            if not wire.writing_paused:
                self._wake()

    async def room(self) -> None:
        """Return once nothing waits any more, or the client is given up."""
        while not self.closed and (self._queue is not None or self._wire.writing_paused):
            self._room = self._room or asyncio.Event()
            await self._room.wait()

    def stop(self) -> None:
        """Send nothing any more; what waits is dropped."""
        self.closed = True
        self._queue = None
        self._messages = self._octets = 0
        # It knows whose outbox this is: both would wait for the garbage collection.
        self._on_overflow = _do_nothing
        self._wake()

    def _wake(self) -> None:
        """Wake whoever waits for room; a replay and the chats may do so together."""
        if self._room is not None:
            self._room.set()
            self._room = None
