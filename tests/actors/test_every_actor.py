"""The daemon's own actors under its own supervisor: each survives a bug and a hang of its own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from itdesk import daemon
from itdesk.actors.hub import Hub
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.keeper import State
from itdesk.runtime.supervisor import Supervisor
from tests.support.desk import Bench, bench_on
from tests.support.load import eventually

Fault = Callable[[], Awaitable[None]]


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def _bug() -> None:
    raise LookupError("planted")


async def _hang() -> None:
    await asyncio.Event().wait()


def _fault_once(actor: Actor, fault: Fault) -> None:
    """Let the actor fail at its next message, and then never again."""
    handle = actor.handle

    async def faulty(message: object) -> None:
        actor.handle = handle  # type: ignore[method-assign]
        await fault()

    actor.handle = faulty  # type: ignore[method-assign]


def _actors(supervisor: Supervisor) -> dict[str, Actor]:
    return {name: keeper.actor for name, keeper in supervisor._keepers.items()}


@pytest.mark.parametrize("fault", [_bug, _hang])
async def test_every_actor_is_restarted_and_no_other_notices(bench: Bench, fault: Fault) -> None:
    """O-01, O-02: a bug is backed off from, a hang is cut at its deadline; all run again."""
    supervisor = daemon._actors(bench.desk, Hub(bench.desk), None)
    actors = _actors(supervisor)
    ours = {"listener", "sequencer", "hub", "worker", "scheduler", "scanner", "memory-return"}
    assert ours <= set(actors)
    for actor in actors.values():
        actor.handle_timeout = 0.5 if fault is _hang else 20.0
        _fault_once(actor, fault)
    stop = asyncio.Event()

    async def recovered() -> bool:
        for actor in actors.values():
            actor.tell(TICK)
        status = supervisor.status()
        return all(s.restarts == 1 and s.state is State.RUNNING for s in status.values())

    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(stop))
        try:
            await eventually(recovered, seconds=30)
            assert supervisor.stale() == []
            assert (await bench.desk.readiness())["checks"]["actors"]["status"] == "ok"
        finally:
            stop.set()


async def test_one_hanging_actor_is_named_while_the_others_work(bench: Bench) -> None:
    """O-02, O-03: readiness names who makes no progress; events go on being numbered."""
    supervisor = daemon._actors(bench.desk, Hub(bench.desk), None)
    actors = _actors(supervisor)
    hanging = actors["scheduler"]
    hanging.handle_timeout = 0.3
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    _fault_once(hanging, stubborn)
    stop = asyncio.Event()

    async def named() -> bool:
        hanging.tell(TICK)
        checks = (await bench.desk.readiness())["checks"]["actors"]
        return "scheduler" in checks["reason"]

    async def numbered() -> bool:
        return await bench.sql("SELECT count(*) FROM events WHERE seq IS NULL") == 0

    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(stop))
        try:
            await eventually(named, seconds=30)
            await bench.ticket(await bench.person())
            await eventually(numbered, seconds=10)
        finally:
            released.set()
            stop.set()
