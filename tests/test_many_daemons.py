"""Two and three daemons on one database are one desk, whichever of them is killed or frozen."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Live, Person, make_daemon, running, wait
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.stream import following


@asynccontextmanager
async def desks(
    pg_server: Server, tmp_path: Path, count: int, **env: str
) -> AsyncIterator[list[Live]]:
    """Lend several daemons with one database, one key and one place for files."""
    url = await pg_server.create()
    shared = {
        "ITDESK_AUTH__JWT_KEY_FILE": str(tmp_path / "key.pem"),
        "UPLOAD_DIR": str(tmp_path / "uploads"),
        **env,
    }
    try:
        async with AsyncExitStack() as stack:
            lives: list[Live] = []
            for _ in range(count):
                daemon = make_daemon(url, **shared)
                if lives:
                    daemon.first_admin = lives[0].daemon.first_admin
                lives.append(await stack.enter_async_context(running(daemon)))
            yield lives
    finally:
        await pg_server.drop(url)


@pytest.fixture(scope="module")
def trio(pg_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Live]]:
    """Three daemons that no test stops, with a schedule that is always due."""
    folder = tmp_path_factory.mktemp("trio")
    _make_reachable(folder)
    lending = desks(pg_server, folder, 3, ITDESK_SCHEDULER__DAILY_STATS_SECONDS="1")
    yield wait(lending.__aenter__())
    wait(lending.__aexit__(None, None, None))


def _at(person: Person, live: Live) -> Person:
    """Return the same person, talking to another daemon."""
    return Person(live.url, person.token, person.id, person.email, person.refresh_token)


async def _rows(live: Live, query: str, *values: Any) -> list[Any]:
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        return list(await conn.fetch(query, *values))
    finally:
        await conn.close()


async def test_what_happens_at_one_is_seen_at_all_in_one_order(trio: list[Live]) -> None:
    """P-06 across three daemons: each stream carries every event, once, in the same order."""
    async with AsyncExitStack() as stack:
        agent = await trio[0].person("agent")
        people = [_at(agent, live) for live in trio]
        streams = [
            await stack.enter_async_context(following(person, subscribe=False)) for person in people
        ]
        for stream in streams:
            await stream.subscribe()
        ticket = await agent.ticket()
        async with asyncio.TaskGroup() as group:
            for number in range(45):
                said = {"body": f"number {number}"}
                path = f"/tickets/{ticket['key']}/comments"
                group.create_task(people[number % 3].post(path, said))
        for stream in streams:
            await stream.event(ticket, 46)
        seen = [
            [(f["seq"], f["version"]) for f in stream.frames if f.get("ticket") == ticket["id"]]
            for stream in streams
        ]
        assert seen[0] == seen[1] == seen[2]
        assert [version for _, version in seen[0]] == list(range(1, 47))


async def test_a_client_of_a_killed_daemon_goes_on_at_another(
    pg_server: Server, tmp_path: Path
) -> None:
    """P-06, R-01: resumed by position elsewhere, nothing is missing and nothing comes twice."""
    async with desks(pg_server, tmp_path, 2) as (first, second):
        agent = await second.person("agent")
        ticket = await agent.ticket()
        path = f"/tickets/{ticket['key']}/comments"
        async with following(_at(agent, first), subscribe=False) as stream:
            await stream.subscribe()
            for number in range(5):
                (await agent.post(path, {"body": f"{number}"})).expect(201)
            await stream.event(ticket, 4)
            await asyncio.to_thread(first.daemon.stop, signal.SIGKILL)
            for number in range(5, 10):
                (await agent.post(path, {"body": f"{number}"})).expect(201)
            before = [f["version"] for f in stream.frames if "version" in f]
            async with following(agent, subscribe=False) as resumed:
                await resumed.resume(stream)
                await resumed.event(ticket, 11)
                after = [f["version"] for f in resumed.frames if "version" in f]
        assert before + after == list(range(2, 12)) or before + after == list(range(1, 12))


async def test_who_is_switched_off_at_one_is_out_at_all(trio: list[Live]) -> None:
    """S-31 across daemons: deactivation reaches requests and open streams of the other in 5 s."""
    first, second, _ = trio
    agent = await first.person("agent")
    there = _at(agent, second)
    assert (await there.get("/auth/me")).status == 200
    async with following(there, subscribe=False) as stream:
        await stream.subscribe()
        (await first.admin.patch(f"/users/{agent.id}", {"is_active": False})).expect(200)

        async def refused() -> bool:
            return (await there.get("/auth/me")).status == 401

        assert await eventually(refused, seconds=10) <= 5
        assert await stream.end(seconds=10) == 4401


async def test_a_scanner_frozen_past_its_lease_writes_nothing_when_it_wakes(
    pg_server: Server, tmp_path: Path
) -> None:
    """R-05, R-14: A claims and is stopped, B takes over and concludes, A wakes: one verdict."""
    with Clamd() as clamd:
        env = {
            "CLAMAV_HOST": clamd.host,
            "CLAMAV_PORT": str(clamd.port),
            "ITDESK_SCANNER__LEASE_SECONDS": "2",
            **SMALL_FILES,
        }
        async with desks(pg_server, tmp_path, 2, **env) as (first, second):
            agent = await second.person("agent")
            ticket = await agent.ticket()
            claim = "SELECT scan_epoch FROM attachments WHERE scan_lease_until IS NOT NULL"

            async def claimed() -> bool:
                return bool(await _rows(first, claim))

            _signal(second, signal.SIGSTOP)
            clamd.pause()
            sent = await _at(agent, first).upload(ticket["key"], b"harmless")
            file = sent.expect(201)["id"]
            await eventually(claimed, seconds=20)
            _signal(first, signal.SIGSTOP)
            clamd.resume()
            _signal(second, signal.SIGCONT)
            found = await agent.scanned(file)
            assert found["scanned_status"] == "CLEAN"
            _signal(first, signal.SIGCONT)

            async def overtaken() -> bool:
                text = (await _at(agent, first).call("GET", "/metrics")).raw.decode()
                return "itdesk_scan_stale_verdicts_total 1.0" in text

            await eventually(overtaken, seconds=30)
            told = "SELECT id FROM events WHERE type = 'attachment.scanned'"
            assert len(await _rows(second, told)) == 1
            assert (await agent.get(f"/attachments/{file}/content")).raw == b"harmless"
            assert len([p for p in (tmp_path / "uploads/clean").rglob("*") if p.is_file()]) == 1


async def test_a_schedule_runs_once_however_many_daemons_there_are(trio: list[Live]) -> None:
    """S2-47 across three daemons: one run for each due time, each done by one of them."""
    runs = """SELECT name, due_at, count(*) AS times FROM periodic_runs
              WHERE name = 'daily_stats' AND finished_at IS NOT NULL GROUP BY 1, 2"""

    async def several() -> bool:
        return len(await _rows(trio[0], runs)) >= 4

    await eventually(several, seconds=30)
    assert {row["times"] for row in await _rows(trio[0], runs)} == {1}
    jobs = "SELECT type, attempts FROM jobs WHERE type LIKE '%daily_stats%' AND state = 'done'"
    assert {row["attempts"] for row in await _rows(trio[0], jobs)} <= {1}
    (stats,) = await _rows(trio[0], "SELECT count(*) AS n FROM daily_stats")
    assert stats["n"] in (1, 2)  # two, should midnight pass meanwhile


@pytest.fixture(autouse=True)
def _reachable(tmp_path: Path) -> None:
    _make_reachable(tmp_path)


def _make_reachable(folder: Path) -> None:
    """Nobody but us needs the shared files, but they must be there."""
    (folder / "uploads").mkdir()


def _signal(live: Live, how: signal.Signals) -> None:
    assert live.daemon.process is not None
    os.kill(live.daemon.process.pid, how)
