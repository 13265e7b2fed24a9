"""The live stream: deliveries a second beside prepared frames, and how fast an event gets there."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
from aiohttp import ClientSession

from tests.bench import late
from tests.bench.report import Figure
from tests.bench.servers import World, process
from tests.support.stream import following

# One read of the hub's, so that what is measured is sending and not reading the journal.
BURST = 100
EVENTS = 20
CREATES = 100
CREATE_SECONDS = 5
# How long one broadcast may keep everybody else waiting.
HELD_MS = 10


@dataclass(frozen=True)
class Run:
    """What a crowd was sent: wall-clock times of the first and the last frame, and the size."""

    first: float
    last: float
    size: float

    @property
    def seconds(self) -> float:
        """Return how long it took from the first frame to the last."""
        return max(self.last - self.first, 1e-6)


class Crowd:
    """Many clients of one server, in a process of their own."""

    def __init__(self, listeners: "subprocess.Popen[str]") -> None:
        self._listeners = listeners

    def expect(self, frames: int) -> None:
        """Start to count."""
        assert self._listeners.stdin is not None
        self._listeners.stdin.write(f"expect {frames}\n")
        self._listeners.stdin.flush()

    async def told(self) -> Run:
        """Return what came, once it all came."""
        line = await asyncio.to_thread(self._line)
        first, last, size, lost = line.split()
        if lost != "0":
            raise ConnectionError(f"{lost} clients were closed: nothing was measured")
        return Run(float(first), float(last), float(size))

    def _line(self) -> str:
        assert self._listeners.stdout is not None
        line = self._listeners.stdout.readline()
        if not line:
            raise ConnectionError("the clients are gone")
        return line


@contextmanager
def crowd(url: str, token: str, clients: int) -> Iterator[Crowd]:
    """Connect so many clients."""
    host, _, port = urlsplit(url).netloc.partition(":")
    with process("tests.bench.listeners", host, port, str(clients)) as listeners:
        assert listeners.stdin is not None and listeners.stdout is not None
        listeners.stdin.write(f"{token}\n")
        listeners.stdin.flush()
        if listeners.stdout.readline() != "open\n":
            raise ConnectionError("the clients could not connect")
        yield Crowd(listeners)


async def _publish(conn: asyncpg.Connection, ticket: UUID, events: int) -> None:
    """Let a ticket have so many more events, as if another daemon had written them."""
    await conn.execute(
        """INSERT INTO events (id, ticket_id, ticket_version, type, changes)
           SELECT gen_random_uuid(), $1,
                  (SELECT coalesce(max(ticket_version), 1) FROM events WHERE ticket_id = $1) + n,
                  'ticket.updated',
                  '[{"field": "status", "old": "open", "new": "triaged"}]'
           FROM generate_series(1, $2::int) AS n""",
        ticket,
        events,
    )


async def _fan_out(world: World, clients: int, rounds: int) -> Iterator[Figure]:
    token = world.live.admin.token
    rates = {name: list[float]() for name in ("ours", "theirs", "burst", "bursts of theirs")}
    latest, held = list[float](), list[float]()
    ticket = UUID((await world.live.admin.ticket("Everybody hears of this"))["id"])
    conn = await asyncpg.connect(world.url)
    before = world.itdesk.rss()
    try:
        with (
            process("tests.bench.frames_server") as server,
            crowd(world.live.url, token, clients) as heard,
        ):
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            each = (world.itdesk.rss() - before) / clients / 1024
            with crowd(address, token, clients) as limited:
                for burst in [BURST, *[1] * EVENTS] * (rounds + 1):
                    heard.expect(clients * burst)
                    if burst > 1:
                        await _publish(conn, ticket, burst)
                    else:
                        await world.live.admin.ticket("What everybody hears of")
                    run = await heard.told()
                    rates["burst" if burst > 1 else "ours"].append(clients * burst / run.seconds)
                    limited.expect(clients * burst)
                    path = f"{address}/broadcast?size={int(run.size)}&count={burst}"
                    async with ClientSession() as session, session.post(path):
                        run = await limited.told()
                    kind = "bursts of theirs" if burst > 1 else "theirs"
                    rates[kind].append(clients * burst / run.seconds)
            for _ in range(EVENTS):
                heard.expect(clients)
                async with late.watched(world.live.nobody) as loop:
                    made = await world.live.admin.ticket("Who hears of this last?")
                    run = await heard.told()
                held.append(loop.most)
                latest.append((run.last - await _committed(conn, made["id"])) * 1000)
    finally:
        await conn.close()
    # The first round warms up.
    middle = {name: statistics.median(taken[len(taken) // (rounds + 1) :])
              for name, taken in rates.items()}  # fmt: skip
    name = f"fan-out to {clients}"
    return iter(
        (
            Figure(f"{name}: deliveries", middle["ours"], "/s"),
            Figure(f"{name}: prepared frames", middle["theirs"], "/s"),
            Figure(f"{name}: part of prepared frames", middle["ours"] / middle["theirs"],
                   at_least=0.75),
            Figure(f"{name}: {BURST} events at once", middle["burst"], "/s"),
            Figure(f"{name}: part of {BURST} prepared frames",
                   middle["burst"] / middle["bursts of theirs"], at_least=0.75),
            Figure(f"{name}: event to the last client, p50", statistics.median(latest), "ms",
                   at_most=20 if clients <= 1000 else None),
            Figure(f"{name}: the loop is held, p50", statistics.median(held), "ms"),
            Figure(f"{name}: the loop is held, the worst of {EVENTS}", max(held), "ms",
                   at_most=HELD_MS),
            Figure(f"memory of a client of {clients}", each, "KiB", at_most=18),
        )
    )  # fmt: skip


async def _committed(conn: asyncpg.Connection, ticket: str) -> float:
    """Return when the transaction that made a ticket was durable, as a UNIX time."""
    query = """SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8
               FROM tickets WHERE id = $1"""
    return float(await conn.fetchval(query, UUID(ticket)))


async def _latency(world: World) -> Iterator[Figure]:
    """Open tickets at a steady rate, and see when a client hears of each."""
    arrived: dict[str, float] = {}
    async with ClientSession() as session, following(world.live.admin) as stream:
        await stream.subscribe()

        async def listen() -> None:
            while len(arrived) < CREATES * CREATE_SECONDS:
                frame = await stream.receive(seconds=30)
                if frame["type"] == "ticket.created":
                    arrived[frame["ticket"]] = time.time()

        async def create(number: int) -> None:
            body = {"title": f"Ticket {number} of a busy day", "description": "x" * 200}
            async with session.post(
                f"{world.live.url}/api/v1/tickets", json=body, headers=dict(world.itdesk.headers)
            ) as response:
                assert response.status == 201

        async with asyncio.TaskGroup() as group:
            group.create_task(listen())
            began = time.monotonic()
            for number in range(CREATES * CREATE_SECONDS):
                await asyncio.sleep(began + number / CREATES - time.monotonic())
                group.create_task(create(number))
    conn = await asyncpg.connect(world.url)
    try:
        rows = await conn.fetch(
            """SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at
               FROM tickets WHERE id = ANY ($1::uuid[])""",
            [UUID(ticket) for ticket in arrived],
        )
    finally:
        await conn.close()
    late = sorted((arrived[row["id"]] - row["at"]) * 1000 for row in rows)
    name = f"commit to frame at {CREATES} creates/s"
    return iter(
        (
            Figure(f"{name}, p50", statistics.median(late), "ms", at_most=3),
            Figure(f"{name}, p99", late[int(len(late) * 0.99)], "ms", at_most=15),
        )
    )


async def measure(world: World, *, clients: int, rounds: int) -> list[Figure]:
    """Return the figures of the live stream (T7, T8, T15)."""
    latency = list(await _latency(world))
    return [*latency, *await _fan_out(world, clients, rounds)]
