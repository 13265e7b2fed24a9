"""An actor: one mailbox, one message at a time; who keeps it alive is not its business."""

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Self

from itdesk.runtime.clock import Clock


class Tick(Enum):
    """The message that only says that time has passed."""

    TICK = "tick"


TICK: Final = Tick.TICK


def _unheard() -> None:
    pass


class Mailbox:
    """A bounded queue of messages that never makes the sender wait."""

    def __init__(self, size: int) -> None:
        self.dropped = 0
        self.closed = False
        self.on_drop: Callable[[], object] = _unheard
        self._size = size
        self._messages: deque[object] = deque()
        self._ticked = False
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: object) -> bool:
        """Queue a message, or count it as dropped and return False when full or closed."""
        # A tick has a place of its own: an actor too busy to be told the time would never tidy up.
        room = len(self._messages) - self._ticked < self._size or message is TICK
        if self.closed or not room:
            self.dropped += 1
            self.on_drop()
            return False
        if message is TICK:
            if self._ticked:
                return True
            self._ticked = True
        self._messages.append(message)
        self._changed.set()
        return True

    def take(self) -> object:
        """Return the oldest message, or raise LookupError when there is none."""
        message = self._messages.popleft()
        if message is TICK:
            self._ticked = False
        return message

    async def ready(self) -> bool:
        """Wait for a message; False once the mailbox is closed and empty."""
        while not self._messages and not self.closed:
            self._changed.clear()
            await self._changed.wait()
        return bool(self._messages)

    def close(self) -> None:
        """Refuse every further message; what is queued stays."""
        self.closed = True
        self._changed.set()


class Actor:
    """A part of the daemon that runs on its own and handles one message to completion.

    It may be cancelled or crash at any await: what matters is in the database. After a crash the
    supervisor calls `teardown` (when `setup` had succeeded) and then `setup` again; queued messages
    survive that, the one being handled does not. An actor that wants to be woken again right away
    tells itself.
    """

    name: str = "actor"
    period: float | None = None
    handle_timeout: float = 20.0
    mailbox_size: int = 256
    critical: bool = True

    clock: Clock
    mailbox: Mailbox
    beat: float

    # In __new__, so that an actor with an __init__ of its own cannot forget to call ours.
    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Give every actor its mailbox."""
        actor = super().__new__(cls)
        actor.mailbox = Mailbox(cls.mailbox_size)
        actor.clock = Clock()
        actor.progress()
        return actor

    async def setup(self) -> None:
        """Acquire what handling messages needs; runs before the first message of every life."""

    async def handle(self, message: object) -> None:
        """Handle one message to completion."""

    async def teardown(self) -> None:
        """Release what setup acquired."""

    def tell(self, message: object) -> bool:
        """Queue a message without waiting; False means that it was dropped, and counted."""
        return self.mailbox.put(message)

    def wake(self) -> None:
        """Say that there is something to look at; once is enough for any number of things."""
        if not len(self.mailbox):
            self.tell("look")

    def progress(self) -> None:
        """Renew the deadline of the handler that is running."""
        self.beat = self.clock.monotonic()

    async def step(self) -> None:
        """Handle exactly one queued message, or raise LookupError when none is queued."""
        await self.handle(self.mailbox.take())

    async def drain(self) -> None:
        """Handle what is queued now, not what that handling queues."""
        for _ in range(len(self.mailbox)):
            await self.step()
