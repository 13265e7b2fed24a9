"""The door of a plugin: whatever of it runs has passed here, so that switching it off can wait.

A door that was shut lets nothing in, waits a while for what is inside, and then cuts it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import TypeVar

from itdesk.desk.isolation import GRACE_SECONDS

A = TypeVar("A")
R = TypeVar("R")


class Gate:
    """What of one plugin runs now; made anew each time that the plugin is switched on."""

    def __init__(self) -> None:
        self.is_shut = False
        self._inside = 0
        self._scopes: set[asyncio.Timeout] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count what is within; it has a deadline of its own and is not cut."""
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    def guarded(
        self, function: Callable[[A], Awaitable[R]], refusal: Callable[[], Exception]
    ) -> Callable[[A], Awaitable[R]]:
        """Return the same function, which raises this refusal when the door is shut."""

        @wraps(function)
        async def run(argument: A) -> R:
            if self.is_shut:
                raise refusal()
            scope = asyncio.timeout(None)
            try:
                with self.counted():
                    async with scope:
                        self._scopes.add(scope)
                        try:
                            return await function(argument)
                        finally:
                            self._scopes.discard(scope)
            except TimeoutError:
                if scope.expired():
                    raise refusal() from None
                raise

        return run

    async def shut(self, patience: float) -> bool:
        """Let nothing in any more; return whether all that was inside has left."""
        self.is_shut = True
        if await self._emptied(patience):
            return True
        now = asyncio.get_running_loop().time()
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(now)
        return await self._emptied(GRACE_SECONDS)

    async def _emptied(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        return not self._inside
