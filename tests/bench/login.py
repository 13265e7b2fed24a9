"""Signing in by password: how near it comes to bcrypt, and what everybody else feels of it.

bcrypt's own rate is measured in turns with it, on as many threads as the daemon hashes with.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

import bcrypt
from aiohttp import ClientSession

from itdesk.config.model import Auth
from tests.bench import late, load
from tests.bench.late import Late
from tests.bench.load import Sample
from tests.bench.report import Figure
from tests.bench.requests import CONNECTIONS
from tests.bench.servers import World

COST = Auth().bcrypt_cost
THREADS = max(1, len(os.sched_getaffinity(0)) - 1)
# So many sign in at a time: one is hashed in each thread, the others wait for it.
PEOPLE = 4 * THREADS
OF_BCRYPT, KEPT, P99, LATE_MS = 0.9, 0.6, 2.5, 2.0


@dataclass
class Crowd:
    """When people were signed in: the first of it is not counted, it says when to begin."""

    done: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Return how many a second."""
        return (len(self.done) - 1) / (self.done[-1] - self.done[0])


@dataclass
class Taken:
    """What the rounds found."""

    bcrypt: list[float] = field(default_factory=list)
    logins: list[float] = field(default_factory=list)
    idle: list[Sample] = field(default_factory=list)
    busy: list[Sample] = field(default_factory=list)
    # How late the loop was: at rest, with logins, with reads, with both.
    rest: list[Late] = field(default_factory=list)
    with_logins: list[Late] = field(default_factory=list)
    with_reads: list[Late] = field(default_factory=list)
    with_both: list[Late] = field(default_factory=list)


def _bcrypt(seconds: float) -> float:
    """Return how many passwords a second bcrypt compares, on all these threads."""
    known = bcrypt.hashpw(b"a password", bcrypt.gensalt(COST))
    until = time.monotonic() + seconds

    def compare() -> float:
        times, began = 0, time.monotonic()
        while time.monotonic() < until:
            assert bcrypt.checkpw(b"a password", known)
            times += 1
        return times / (time.monotonic() - began)

    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda _: compare(), range(THREADS)))


@asynccontextmanager
async def _signing_in(world: World) -> AsyncIterator[Crowd]:
    """Let people sign in, one after the other each, from the first answer on."""
    assert world.live.daemon.first_admin is not None
    email, password = world.live.daemon.first_admin
    crowd, over, first = Crowd(), asyncio.Event(), asyncio.Event()
    url = f"{world.live.url}/api/v1/auth/login"
    body = {"email": email, "password": password}

    async def sign_in(http: ClientSession) -> None:
        while not over.is_set():
            async with http.post(url, json=body) as answer:
                assert answer.status == 200, await answer.text()
            crowd.done.append(time.monotonic())
            first.set()

    async with ClientSession() as http, asyncio.TaskGroup() as group:
        for _ in range(PEOPLE):
            group.create_task(sign_in(http))
        await first.wait()
        yield crowd
        over.set()


async def _reads(world: World, seconds: int, seed: int) -> Sample:
    return await asyncio.to_thread(
        load.run, world.itdesk, "read", world.filled,
        seconds=seconds, connections=CONNECTIONS, seed=seed,
    )  # fmt: skip


async def _round(world: World, taken: Taken, seconds: int, seed: int) -> None:
    taken.bcrypt.append(await asyncio.to_thread(_bcrypt, seconds))
    async with late.watched(world.live.nobody) as rest:
        await asyncio.sleep(seconds)
    async with _signing_in(world) as crowd, late.watched(world.live.nobody) as with_logins:
        await asyncio.sleep(seconds)
    async with late.watched(world.live.nobody) as with_reads:
        taken.idle.append(await _reads(world, seconds, seed))
    async with _signing_in(world), late.watched(world.live.nobody) as with_both:
        taken.busy.append(await _reads(world, seconds, seed))
    taken.logins.append(crowd.rate)
    taken.rest.append(rest)
    taken.with_logins.append(with_logins)
    taken.with_reads.append(with_reads)
    taken.with_both.append(with_both)


async def measure(world: World, *, seconds: int, rounds: int) -> Iterator[Figure]:
    """Return the figures of signing in (T11)."""
    await _reads(world, 1, 0)
    taken = Taken()
    for turn in range(rounds):
        await _round(world, taken, seconds, turn)
    return _figures(taken)


def _figures(taken: Taken) -> Iterator[Figure]:
    part = [own / bare for own, bare in zip(taken.logins, taken.bcrypt, strict=True)]
    pairs = list(zip(taken.busy, taken.idle, strict=True))
    name = "reads while logins queue"
    yield Figure(f"logins at cost {COST}", median(taken.logins), "/s")
    yield Figure(f"logins at cost {COST}: part of bcrypt", median(part), at_least=OF_BCRYPT)
    yield Figure(f"{name}: rate, of idle", median(a.rate / b.rate for a, b in pairs),
                 at_least=KEPT)  # fmt: skip
    yield Figure(f"{name}: p99, of idle", median(a.p99 / b.p99 for a, b in pairs), "x",
                 at_most=P99)  # fmt: skip
    yield Figure(f"{name}: p99", median(one.p99 for one in taken.busy), "ms")
    lag = {"at rest": taken.rest, "with reads": taken.with_reads, "with both": taken.with_both}
    yield Figure("loop lag while logins queue, p99", _p99(taken.with_logins), "ms",
                 at_most=LATE_MS)  # fmt: skip
    for when, lates in lag.items():
        yield Figure(f"loop lag {when}, p99", _p99(lates), "ms")


def _p99(lates: list[Late]) -> float:
    return Late.together(lates).p99
