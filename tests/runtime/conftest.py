import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import orjson
import pytest

from itdesk.runtime import log
from itdesk.runtime.actor import Actor
from itdesk.runtime.clock import FakeClock
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.supervisor import State, Supervisor


class Rig:
    """A supervisor under a clock that the test moves."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.said: list[str] = []
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        # Set at the end of the test: a loop cannot close while a stubborn handler runs.
        self.released = asyncio.Event()
        self.supervisor: Supervisor
        self.running: asyncio.Task[None]

    async def start(self, *actors: Actor, **options: Any) -> None:
        notify = options.pop("notify", self.said.append)
        self.supervisor = Supervisor(self.clock, self.metrics, notify, **options)
        for actor in actors:
            self.supervisor.add(actor)
        run = self.supervisor.run(self.stop, self.force)
        self.running = asyncio.get_running_loop().create_task(run)
        await self.clock.settle()

    def state(self, name: str) -> State:
        return self.supervisor.status()[name].state

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0

    async def end(self, seconds: float = 1.0) -> None:
        self.stop.set()
        await self.clock.advance(seconds)
        await self.running


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.released.set()
    if hasattr(rig, "running") and not rig.running.done():
        rig.force.set()
        await rig.clock.advance(10)
        rig.running.cancel()
        with suppress(asyncio.CancelledError):
            await rig.running
    await rig.clock.settle()


class Lines:
    """What the log wrote, line by line."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def raw(self) -> bytes:
        log.flush()
        parts = []
        with suppress(BlockingIOError):
            while part := os.read(self._fd, 65536):
                parts.append(part)
                log.flush()
        return b"".join(parts)

    def events(self) -> list[dict[str, Any]]:
        text = self.raw().decode()
        return [orjson.loads(line) for line in text.splitlines()]


OpenLog = Callable[..., Lines]


@pytest.fixture
def open_log() -> Iterator[OpenLog]:
    undo: list[Callable[[], object]] = []

    def open_log(level: str = "info", style: str = "json") -> Lines:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        restore = log.configure(level, style, fd=writer)
        undo.extend([lambda: os.close(reader), lambda: os.close(writer), restore])
        return Lines(reader)

    yield open_log
    for step in reversed(undo):
        step()


@pytest.fixture
def lines(open_log: OpenLog) -> Lines:
    return open_log()
