"""O-03: systemd hears from us exactly as long as every critical actor makes progress."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from itdesk.runtime import systemd
from itdesk.runtime.actor import Actor
from itdesk.runtime.clock import Clock
from itdesk.runtime.lag import INTERVAL, LoopLag
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.supervisor import State, Supervisor

from .conftest import Lines, Rig


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.environ = {"NOTIFY_SOCKET": str(path)}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self._messages: list[str] = []

    def notify(self, state: str) -> bool:
        told = systemd.notify(state, self.environ)
        self._receive()
        return told

    def heard(self) -> list[str]:
        self._receive()
        messages, self._messages = self._messages, []
        return messages

    def _receive(self) -> None:
        # At once: the kernel keeps only ten datagrams for a reader that does not read.
        with suppress(OSError):
            while True:
                self._messages.append(self.socket.recv(1000).decode())


@pytest.fixture
def pid1(tmp_path: Path) -> Iterator[Systemd]:
    pid1 = Systemd(tmp_path / "notify")
    yield pid1
    pid1.socket.close()


class Idle(Actor):
    name = "idle"


class Unreachable(Actor):
    name = "unreachable"

    async def setup(self) -> None:
        raise ConnectionRefusedError(111, "x")


class Stubborn(Actor):
    name = "stubborn"
    handle_timeout = 5.0

    def __init__(self, released: asyncio.Event) -> None:
        self._released = released

    async def handle(self, message: object) -> None:
        while not self._released.is_set():
            with suppress(asyncio.CancelledError):
                await self._released.wait()


async def test_idle_actors_and_outages_never_stop_the_pings(rig: Rig, pid1: Systemd) -> None:
    await rig.start(Idle(), Unreachable(), notify=pid1.notify, watchdog=15.0)
    assert pid1.heard() == ["WATCHDOG=1"]
    await rig.clock.advance(600)
    assert pid1.heard() == ["WATCHDOG=1"] * 40


async def test_a_critical_handler_over_its_deadline_stops_the_pings_until_it_ends(
    rig: Rig, pid1: Systemd, lines: Lines
) -> None:
    stubborn = Stubborn(rig.released)
    await rig.start(Idle(), stubborn, notify=pid1.notify, watchdog=2.0)
    stubborn.tell("hang")
    await rig.clock.advance(4.5)
    assert len(pid1.heard()) == 3
    await rig.clock.advance(600)
    assert pid1.heard() == []
    withheld = [line for line in lines.events() if line["event"] == "keep-alive withheld"]
    assert withheld[0]["actors"] == ["stubborn"]
    rig.released.set()
    await rig.clock.advance(10)
    assert len(pid1.heard()) >= 4


async def test_a_stuck_actor_that_is_not_critical_leaves_the_pings_alone(
    rig: Rig, pid1: Systemd
) -> None:
    stubborn = Stubborn(rig.released)
    stubborn.critical = False
    await rig.start(stubborn, notify=pid1.notify, watchdog=2.0)
    stubborn.tell("hang")
    await rig.clock.advance(100)
    assert rig.state("stubborn") is State.STUCK
    assert len(pid1.heard()) == 51


async def test_after_a_blocked_loop_nobody_counts_as_alive_before_having_moved(
    rig: Rig, pid1: Systemd
) -> None:
    await rig.start(Idle(), notify=pid1.notify, watchdog=15.0)
    assert rig.supervisor.stale() == []
    rig.clock.block(60)
    assert rig.supervisor.stale() == ["watchdog", "idle"]
    pid1.heard()
    await rig.clock.advance(20)
    assert rig.supervisor.stale() == []
    assert pid1.heard()


async def test_a_long_drain_is_attested_as_well(rig: Rig, pid1: Systemd) -> None:
    class Slow(Actor):
        name = "slow"

        async def handle(self, message: object) -> None:
            await self.clock.sleep(10)

    slow = Slow()
    await rig.start(slow, notify=pid1.notify, watchdog=1.0, drain_timeout=100.0)
    for number in range(5):
        slow.tell(number)
    await rig.clock.settle()
    pid1.heard()
    await rig.end(60)
    heard = pid1.heard()
    assert heard[0] == "STOPPING=1"
    assert heard.count("WATCHDOG=1") >= 49


async def test_a_loop_that_is_really_blocked_sends_nothing(pid1: Systemd) -> None:
    during: list[str] = []
    done = asyncio.Event()

    class Blocking(Actor):
        name = "blocking"

        async def handle(self, message: object) -> None:
            pid1.heard()
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                pass
            during.extend(pid1.heard())
            done.set()

    supervisor = Supervisor(Clock(), Metrics(), pid1.notify, watchdog=0.01)
    blocking, stop = Blocking(), asyncio.Event()
    supervisor.add(blocking)
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(stop))
        blocking.tell("block")
        await done.wait()
        assert during == []
        while "WATCHDOG=1" not in pid1.heard():
            await Clock().sleep(0.005)
        stop.set()


async def test_the_lag_of_the_loop_is_measured_all_the_time(rig: Rig, lines: Lines) -> None:
    await rig.start(LoopLag(rig.metrics))
    await rig.clock.advance(10)
    assert rig.value("itdesk_loop_lag_seconds_count") == 10 / INTERVAL
    assert rig.value("itdesk_loop_lag_seconds_sum") == pytest.approx(0)
    assert lines.events() == []
    rig.clock.block(2.0)
    await rig.clock.advance(0)
    assert rig.value("itdesk_loop_lag_seconds_sum") == pytest.approx(2.0 - INTERVAL)
    (line,) = lines.events()
    assert (line["event"], line["seconds"]) == ("event loop stalled", 1.75)
    await rig.end()
    count = rig.value("itdesk_loop_lag_seconds_count")
    await rig.clock.advance(10)
    assert rig.value("itdesk_loop_lag_seconds_count") == count
