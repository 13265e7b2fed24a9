"""Answers of the database that may be some seconds old, so that a request asks for none.

Of all who want the same answer at once, one asks. What is forgotten while somebody asks is asked
for again: an answer that is on its way may be older than the change.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from itdesk.errors import DeskError
from itdesk.frozen import frozen
from itdesk.runtime.clock import Clock

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@frozen
class _Answer(Generic[V]):
    """What the database said, and when it was asked; None: there is nothing."""

    value: V | None
    asked_at: float


class Remembered(Generic[K, V]):
    """The answers to one question about many things, the most recent ones kept for a while."""

    def __init__(
        self, ask: Callable[[K], Awaitable[V | None]], clock: Clock, *, seconds: float, size: int
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._seconds = seconds
        self._size = size
        self._known: OrderedDict[K, _Answer[V]] = OrderedDict()
        self._asking: dict[K, asyncio.Future[_Answer[V]]] = {}

    async def get(self, key: K) -> V | None:
        """Return the answer for a key, at most so many seconds old."""
        while True:
            known = self._known.get(key)
            if known is not None and self._clock.monotonic() - known.asked_at < self._seconds:
                self._known.move_to_end(key)
                return known.value
            asking = self._asking.get(key)
            if asking is None:
                return (await self._asked(key)).value
            # One of all who come at once asks. It may be called off: then the next one does.
            try:
                return (await asyncio.shield(asking)).value
            except asyncio.CancelledError:
                if not asking.cancelled() or _is_being_cancelled():
                    raise

    def forget(self, key: K) -> None:
        """Ask anew the next time."""
        self._known.pop(key, None)
        # An answer that is on its way may be older than what we know: it is not remembered.
        self._asking.pop(key, None)

    def forget_where(self, concerned: Callable[[V], bool]) -> None:
        """Ask anew the next time for whatever has such an answer."""
        for key, known in list(self._known.items()):
            if known.value is not None and concerned(known.value):
                del self._known[key]
        self._asking.clear()

    async def _asked(self, key: K) -> _Answer[V]:
        asking: asyncio.Future[_Answer[V]] = asyncio.get_running_loop().create_future()
        self._asking[key] = asking
        asked_at = self._clock.monotonic()
        try:
            known = _Answer(await self._ask(key), asked_at)
        except DeskError as exc:
            asking.set_exception(exc)
            asking.exception()  # seen: nobody else may be waiting
            raise
        else:
            asking.set_result(known)
            if self._asking.get(key) is asking:
                self._remember(key, known)
            return known
        finally:
            asking.cancel()
            if self._asking.get(key) is asking:
                del self._asking[key]

    def _remember(self, key: K, known: _Answer[V]) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > self._size:
            self._known.popitem(last=False)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
