"""P-01, P-12: hours of everything at once, and the process is as large afterwards as before.

ITDESK_SOAK_SECONDS says how long; half an hour unless it is set.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession

from itdesk.runtime.clock import Clock
from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Live, Person, started
from tests.support.load import working
from tests.support.postgres import Server
from tests.support.slow_clients import WAYS, endure
from tests.support.stream import following

SECONDS = float(os.environ.get("ITDESK_SOAK_SECONDS", "1800"))
# Caches are bounded: what it may still grow by once they have been in use for a third of it.
GROWTH = 1.05
CLOCK = Clock()

# A drop-in plugin may count what it likes: here, the tasks of the daemon's loop.
COUNTING = """
import asyncio
from contextlib import asynccontextmanager

from pydantic import BaseModel
from itdesk.hookspecs import hookimpl

class Settings(BaseModel):
    pass

class Plugin:
    name, itdesk_api, Settings = "tasks", 1, Settings

    def __init__(self, settings): ...

    @hookimpl
    def itdesk_metrics(self, metrics):
        self.running = metrics.gauge("itdesk_tasks_running", "Tasks.")

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk):
        loop = asyncio.get_running_loop()
        # A scrape is answered by a thread.
        self.running.set_function(lambda: len(asyncio.all_tasks(loop)))
        yield
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a process is."""

    rss_kib: int
    files: int
    threads: int
    tasks: int


async def _size(live: Live) -> Size:
    assert live.daemon.process is not None
    proc = Path(f"/proc/{live.daemon.process.pid}")
    lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    page = (await live.nobody.call("GET", "/metrics")).raw.decode()
    (tasks,) = [x for x in page.splitlines() if x.startswith("itdesk_tasks_running ")]
    return Size(
        int(lines["VmRSS"].split()[0]),
        len(os.listdir(proc / "fd")),
        int(lines["Threads"]),
        int(float(tasks.split()[1])),
    )


@asynccontextmanager
async def _mixed(live: Live, people: list[Person]) -> AsyncIterator[None]:
    """Let people sign in, look, listen and be rude while the block runs."""
    dice = random.Random(7)
    over = asyncio.Event()

    async def signs_in(person: Person) -> None:
        while not over.is_set():
            again = await live.sign_in(person.email)
            (await again.get("/auth/me")).expect(200)
            (await again.post("/auth/logout", {"refresh_token": again.refresh_token})).expect(200)
            await CLOCK.sleep(1)

    async def looks(person: Person) -> None:
        while not over.is_set():
            for path in (
                "/tickets?q=load",
                "/reports/dashboard",
                "/tickets?count=true",
                "/nothing",
            ):
                await person.get(path)
            await person.post("/tickets", {"title": "x"})
            await CLOCK.sleep(0.5)

    async def listens(person: Person) -> None:
        while not over.is_set():
            async with following(person):
                await CLOCK.sleep(dice.uniform(0.1, 3))

    async def is_rude(person: Person) -> None:
        while not over.is_set():
            ending = asyncio.ensure_future(endure(person, dice.choice(WAYS)))
            _, late = await asyncio.wait([ending], timeout=dice.uniform(1, 40))
            for task in late:
                task.cancel()
                await asyncio.wait([task])

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            for doing in (looks, listens, is_rude) if number else (signs_in,):
                group.create_task(doing(people[number % len(people)]))
        try:
            yield
        finally:
            over.set()


@pytest.mark.slow
async def test_the_process_does_not_grow(pg_server: Server, clamd: Clamd, tmp_path: Path) -> None:
    """P-01, T9: RSS flat under mixed load, and no file, thread or task left when it is over."""
    directory = tmp_path / "plugins.d"
    directory.mkdir(mode=0o755)
    (directory / "tasks.py").write_text(COUNTING)
    (directory / "tasks.py").chmod(0o644)
    config = tmp_path / "itdesk.toml"
    config.write_text(f'plugin_host.directories = ["{directory}"]\n[plugins.tasks]\n')
    env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES,
           # Who signed in at the beginning stays so until the end.
           "ITDESK_AUTH__ACCESS_TOKEN_EXPIRE_MINUTES": str(int(SECONDS / 60) + 60),
           "ITDESK_CONFIG": str(config)}  # fmt: skip
    async with started(pg_server, **env) as live:
        people = [await live.person("agent") for _ in range(6)]
        rest = await _settled(live)
        sizes: list[Size] = []
        began = time.monotonic()
        async with _mixed(live, people), working(people, clients=8, rate=20) as crew:
            while time.monotonic() < began + SECONDS:
                await CLOCK.sleep(SECONDS / 60)
                sizes.append(await _size(live))
        after = await _settled(live)
    thirds = [sizes[n * len(sizes) // 3 : (n + 1) * len(sizes) // 3] for n in range(3)]
    typical = [sorted(size.rss_kib for size in third)[len(third) // 2] for third in thirds]
    print("RSS MiB", *(f"{size.rss_kib / 1024:.1f}" for size in sizes))
    print(f"{SECONDS:.0f} s, {len(crew.calls)} calls; RSS {rest.rss_kib} KiB at rest, then"
          f" {typical}; {after.rss_kib} KiB at rest; {rest} and {after}")  # fmt: skip
    assert [call.status for call in crew.calls if not call.acknowledged] == []
    assert typical[2] <= GROWTH * typical[1]
    assert after.files <= rest.files + 8
    # Pools of threads are made when they are first needed, and then stay.
    most = [max(size.threads for size in third) for third in thirds]
    assert most[2] <= most[1] + 2
    assert after.tasks <= rest.tasks + 8


async def _settled(live: Live) -> Size:
    """Return how large the process is once nothing has changed for a while."""
    async with ClientSession() as http:
        for _ in range(20):  # connections and threads that it keeps were made once
            async with http.get(f"{live.url}/readyz") as answer:
                await answer.read()
    before = await _size(live)
    while True:
        await CLOCK.sleep(6)
        now = await _size(live)
        if (now.files, now.tasks) == (before.files, before.tasks):
            return now
        before = now
