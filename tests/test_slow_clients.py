"""P-01: thousands of connections that give or take nothing cost the others nothing."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from itdesk.runtime.clock import Clock
from tests.support.daemon import Live, Person, started
from tests.support.postgres import Server
from tests.support.slow_clients import (
    WAYS,
    endure,
    silent,
    trickles_headers,
)

HEADERS, PROGRESS = 15.0, 30.0
CLOCK = Clock()


async def _honest(person: Person, until: asyncio.Event, seconds: list[float]) -> None:
    """Open a ticket and read it, on a new connection each time, at a steady pace."""
    while not until.is_set():
        began = time.monotonic()
        ticket = await person.ticket("an honest one")
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
        (await person.get(f"/tickets/{ticket['key']}")).expect(200)
        seconds.append(time.monotonic() - began)
        await CLOCK.sleep(0.1)


async def _measured(people: list[Person], work: asyncio.Task[object]) -> list[float]:
    """Return how long honest calls took while something else went on."""
    seconds: list[float] = []
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for person in people:
            group.create_task(_honest(person, until, seconds))
        await asyncio.wait([work])
        until.set()
    return seconds


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]


def _open_files(live: Live) -> int:
    assert live.daemon.process is not None
    return len(os.listdir(f"/proc/{live.daemon.process.pid}/fd"))


def _rss(live: Live) -> int:
    assert live.daemon.process is not None
    status = Path(f"/proc/{live.daemon.process.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


@pytest.mark.slow
@pytest.mark.parametrize("sockets", [500])
async def test_slow_clients_are_cut_off_and_nobody_else_notices(
    pg_server: Server, sockets: int
) -> None:
    """P-01: 500 sockets of each kind at once; each closed in its time, honest p99 at most twice
    what it was, new connects served all the while, and no file of theirs left open."""
    async with started(pg_server) as live:
        people = [await live.person() for _ in range(4)]
        (await live.nobody.call("GET", "/openapi.json")).expect(200)  # made at the first asking
        files = _open_files(live)
        calm = await _measured(people, asyncio.ensure_future(CLOCK.sleep(15)))
        before = _rss(live)

        async def siege() -> dict[str, list[float]]:
            tasks = []
            async with asyncio.TaskGroup() as group:
                for n in range(sockets):
                    tasks += [(way, group.create_task(endure(people[n % 4], way))) for way in WAYS]
                    # They are of this process, whose honest clients would wait for them.
                    await CLOCK.sleep(0.005)
            return {
                way.__name__: [task.result() for one, task in tasks if one is way] for way in WAYS
            }

        besieging = asyncio.ensure_future(siege())
        during = await _measured(people, besieging)
        ends = besieging.result()
        for way, seconds in ends.items():
            print(f"{way}: closed after {min(seconds):.2f} to {max(seconds):.2f} s")
        print(f"honest p99 {_p99(calm) * 1000:.0f} ms ({len(calm)} calls) before,"
              f" {_p99(during) * 1000:.0f} ms ({len(during)}) during; RSS {before} KiB before,"
              f" {_rss(live)} KiB after; {files} and {_open_files(live)} open files")  # fmt: skip
        for kind in WAYS:
            limit = HEADERS if kind in (silent, trickles_headers) else PROGRESS
            assert max(ends[kind.__name__]) <= limit, kind.__name__
        assert _p99(during) <= 2 * _p99(calm)
        assert _open_files(live) <= files + 8
        assert [x["event"] for x in live.daemon.lines() if x["level"] == "error"] == []
