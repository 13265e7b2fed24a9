"""Restarts that nobody notices: the socket is systemd's and outlives the daemon."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.activation import Manager
from tests.support.daemon import Live, make_daemon, running
from tests.support.load import Call, lost_or_doubled, working
from tests.support.postgres import Server
from tests.support.stream import following


@asynccontextmanager
async def _activated(pg: Server, manager: Manager, **env: str) -> AsyncIterator[Live]:
    url = await pg.create()
    try:
        async with running(manager.adopt(make_daemon(url, **env))) as live:
            yield live
    finally:
        await pg.drop(url)


async def _restart(live: Live) -> tuple[float, float]:
    """Do what `systemctl restart` does: stop, and only then start; return from when until when."""
    began = time.monotonic()
    assert await asyncio.to_thread(live.daemon.stop) == 0
    await asyncio.to_thread(live.daemon.start)
    return began, time.monotonic()


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))]


def _waited(calls: list[Call], restarts: list[tuple[float, float]]) -> list[float]:
    """Return how long after the end of a restart each call was answered that it held up."""
    return [
        call.ended - ended
        for began, ended in restarts
        for call in calls
        if call.began < ended < call.ended and call.ended > began
    ]


def _failed(calls: list[Call]) -> list[str]:
    return [
        f"{call.kind}: {call.status} {call.problem} {call.answer and call.answer.raw[:300]!r}"
        for call in calls
        if not call.acknowledged
    ]


@pytest.mark.parametrize(
    ("restarts", "clients", "rate"),
    [(3, 16, 60), pytest.param(20, 32, 200, marks=pytest.mark.slow)],
)
async def test_no_request_fails_while_the_daemon_is_restarted_under_load(
    pg_server: Server, restarts: int, clients: int, rate: float
) -> None:
    """P-12, S0-07: 0 failed requests; who connects meanwhile waits for the next daemon.

    O-06: and no longer than that: what a restart adds to a call is the restart itself.
    """
    with Manager() as manager:
        async with _activated(pg_server, manager, ITDESK_SCANNER__ENABLED="false") as live:
            agents = [await live.person("agent") for _ in range(4)]
            async with working(agents, clients=clients, rate=rate) as crew:
                await crew.until(lambda call: call.acknowledged, times=clients * 4, seconds=30)
                calm, times = _p99([call.seconds for call in crew.calls]), []
                for _ in range(restarts):
                    await crew.until(lambda call: call.acknowledged, times=clients, seconds=30)
                    times.append(await _restart(live))
                    manager.heard()  # the kernel keeps only ten messages
                await crew.until(lambda call: call.acknowledged, times=clients, seconds=30)
            longest = max(ended - began for began, ended in times)
            late = _p99(_waited(crew.calls, times))
            print(f"{restarts} restarts of {longest:.2f} s at most, {crew.counts()}; p99"
                  f" {calm:.3f} s before, {_p99([c.seconds for c in crew.calls]):.3f} s with them;"
                  f" {late:.3f} s after their end")  # fmt: skip
            assert late < longest
            assert max(call.seconds for call in crew.calls) < 2 * longest
            assert _failed(crew.calls) == []
            assert await lost_or_doubled(live.daemon.env["DATABASE_URL"], crew) == []
        assert len([told for told in manager.heard() if told.startswith("STOPPING=1")]) >= restarts


async def test_who_comes_while_nobody_runs_is_served_by_the_next_daemon(
    pg_server: Server,
) -> None:
    """P-12: the kernel's queue outlives the daemon; websockets are told to go and resume."""
    with Manager() as manager:
        async with _activated(pg_server, manager, ITDESK_SERVER__HOST="127.0.0.9") as live:
            # server.host and server.port count for nothing; the address told is the real one.
            assert live.url.startswith("http://127.0.0.1:")
            told = await manager.hears("READY=1")
            assert told == f"READY=1\nSTATUS=serving {live.url}"
            before, alice = live.url, await live.person()
            async with following(alice) as stream:
                first = await alice.ticket("before")
                await stream.event(first, 1)
                live.daemon.tell()
                assert await stream.end() == 1001
            assert await asyncio.to_thread(live.daemon.ended) == 0
            host, _, port = live.url.removeprefix("http://").partition(":")
            waiting = [await asyncio.open_connection(host, int(port)) for _ in range(100)]
            for _, writer in waiting:
                writer.write(b"GET /ping HTTP/1.1\r\nHost: desk\r\nConnection: close\r\n\r\n")
            async with asyncio.TaskGroup() as group:
                late = group.create_task(alice.ticket("while nobody runs"))
                await asyncio.to_thread(live.daemon.start)
            assert live.url == before
            for reader, writer in waiting:
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
                writer.close()
            async with following(alice, subscribe=False) as again:
                await again.resume(stream)
                await again.event(late.result(), 1)
