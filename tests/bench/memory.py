"""Memory: what the daemon keeps after loads, websockets and sieges that are over.

Each comes several times: what only the first one left behind is a cache that is full now, and what
each leaves behind is a leak. What a websocket takes while it lasts is a figure of the stream's.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from itdesk.runtime.memory import PERIOD_SECONDS
from tests.bench import load
from tests.bench.report import Figure
from tests.bench.servers import World
from tests.bench.stream import crowd
from tests.support.slow_clients import endure, never_reads

CONNECTIONS = 64
UPLOADS, UPLOAD_BYTES = 4, 8 * 2**20
BESIEGERS = 250
# Until what was closed is cleared away, and what is free was given back.
RETURNED_SECONDS = PERIOD_SECONDS + 2.0
LOADED_MIB, FLAT = 95, 1.05


async def _requests(world: World, cases: Sequence[str], seconds: int, turn: int) -> None:
    for case in cases:
        await asyncio.to_thread(
            load.run, world.itdesk, case, world.filled,
            seconds=seconds, connections=CONNECTIONS, seed=turn,
        )  # fmt: skip


async def _uploads(world: World) -> None:
    admin = world.live.admin
    ticket = (await admin.ticket("Here are the files"))["id"]
    files = (bytes([number]) * UPLOAD_BYTES for number in range(UPLOADS))
    sent = await asyncio.gather(*(admin.upload(ticket, data) for data in files))
    for answer in sent:
        answer.expect(201)


def _storm(world: World, clients: int) -> None:
    """Let so many websockets come, and all go at once."""
    with crowd(world.live.url, world.live.admin.token, clients):
        pass


async def _siege(world: World) -> None:
    await asyncio.gather(*(endure(world.live.admin, never_reads) for _ in range(BESIEGERS)))


async def measure(
    world: World, *, cases: Sequence[str], clients: int, seconds: int, rounds: int
) -> AsyncIterator[Figure]:
    """Load the daemon in turns and yield what it keeps (T9)."""

    async def resident() -> float:
        await asyncio.sleep(RETURNED_SECONDS)
        return world.itdesk.rss() / 2**20

    rest, loaded, left = await resident(), list[float](), list[float]()
    for turn in range(rounds + 1):
        await _requests(world, cases, seconds, turn)
        await _uploads(world)
        loaded.append(await resident())
    for _ in range(rounds + 1):
        await asyncio.to_thread(_storm, world, clients)
        left.append(await resident())
    await _siege(world)
    besieged = await resident()
    yield Figure("memory: at rest", rest, "MiB")
    yield Figure("memory: after the loads", max(loaded), "MiB", at_most=LOADED_MIB)
    yield Figure("memory: from the first loads to the last", loaded[-1] / loaded[0], "x",
                 at_most=FLAT)  # fmt: skip
    yield Figure(f"memory: after {clients} websockets left", left[-1], "MiB")
    yield Figure("memory: from the first of them to the last", left[-1] / left[0], "x",
                 at_most=FLAT)  # fmt: skip
    yield Figure(f"memory: after {BESIEGERS} who read nothing", besieged, "MiB")
