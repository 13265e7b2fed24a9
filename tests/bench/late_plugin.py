"""A plugin that tells how late timers of the event loop are, while it is asked to."""

import asyncio
import time

from pydantic import BaseModel

from itdesk.api.route import Call, Reply, Route, Who
from itdesk.hookspecs import hookimpl

EVERY = 0.001


class Nothing(BaseModel):
    """There is nothing to set."""


class Watch:
    """Arms one timer after the other, and notes how many milliseconds late each is."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Begin to measure."""
        self._late = []
        self._arm()

    def end(self) -> list[float]:
        """Stop measuring; return what was found, the longest last."""
        if self._timer is not None:
            self._timer.cancel()
        return sorted(self._late)

    def _arm(self) -> None:
        due = time.perf_counter() + EVERY
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._note, due)

    def _note(self, due: float) -> None:
        self._late.append(max(0.0, time.perf_counter() - due) * 1000)
        self._arm()


class Plugin:
    """Lets clients begin to measure, and end."""

    name, itdesk_api, Settings = "late", 1, Nothing

    def __init__(self, settings: Nothing) -> None:
        self._watch = Watch()

    @hookimpl
    def itdesk_routes(self) -> list[Route]:
        """Return how to begin and how to end."""
        return [
            Route(id="late-begin", method="POST", path="/begin", handler=self.begin,
                  who=Who.PUBLIC, tag="late"),
            Route(id="late-end", method="POST", path="/end", handler=self.end,
                  who=Who.PUBLIC, tag="late"),
        ]  # fmt: skip

    async def begin(self, call: Call) -> Reply:
        """Begin to measure."""
        self._watch.begin()
        return Reply({})

    async def end(self, call: Call) -> Reply:
        """Stop measuring; return how late the timers were."""
        return Reply(self._watch.end())
