"""PostgreSQL and clamd go away, hang and come back under load: nothing is lost, all recovers."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from itertools import cycle, islice

import asyncpg
import pytest

from tests.support.clamd import (
    Clamd,
    Script,
    answers,
    drips,
    hangs,
    never_reads,
    resets,
)
from tests.support.daemon import SMALL_FILES, Live, Person, make_daemon, running, started
from tests.support.load import Call, Crew, eventually, lost_or_doubled, misbehaved, working
from tests.support.postgres import Server
from tests.support.relay import relayed

LONGEST = 5.0
BACK = 2.0


def _failed(call: Call) -> bool:
    return call.status == 503


def _worked(call: Call) -> bool:
    return call.acknowledged


async def _status(live: Live, path: str) -> tuple[int, float]:
    """Return a root path's status and how long it took."""
    began = time.monotonic()
    answer = await live.nobody.call("GET", path)
    return answer.status, time.monotonic() - began


async def _ready(live: Live, *, seconds: float) -> None:
    """Return once every part of the desk is well again."""

    async def well() -> bool:
        return bool((await live.nobody.call("GET", "/readyz")).json["status"] == "ok")

    await eventually(well, seconds=seconds)


async def _restart(server: Server, crew: Crew, how: signal.Signals, live: Live) -> float:
    """Restart PostgreSQL under load; return how long after its return the first call worked."""
    async with asyncio.TaskGroup() as group:
        felt = group.create_task(crew.until(_failed, times=5, seconds=10))
        await server.stop(how)
        await felt
        assert (await _status(live, "/healthz"))[0] == 200
        unready = await live.nobody.call("GET", "/readyz")
        assert unready.status == 503
        assert unready.json["checks"]["database"]["status"] == "unavailable"
        refused = await live.admin.get("/tickets")
        refused.refused(503, "E_DATABASE_UNAVAILABLE")
    await server.start()
    accepted = time.monotonic()
    first = await crew.until(_worked, seconds=LONGEST)
    await crew.until(_worked, times=30, seconds=LONGEST)
    return first.ended - accepted


@pytest.mark.parametrize(
    ("restarts", "clients", "rate"),
    [(3, 16, 100), pytest.param(10, 32, 200, marks=pytest.mark.slow)],
)
async def test_restarts_of_postgresql_under_load_lose_nothing(
    durable_pg_server: Server, clamd: Clamd, restarts: int, clients: int, rate: float
) -> None:
    """R-24, S2-64: fast and immediate restarts; every failure is a short 503, then all goes on."""
    env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES}
    async with started(durable_pg_server, **env) as live:
        agents = [await live.person("agent") for _ in range(4)]
        async with working(agents, clients=clients, rate=rate) as crew:
            await crew.until(_worked, times=30, seconds=20)
            assert not misbehaved(crew.calls, seconds=LONGEST), "without any fault"
            back = [
                await _restart(durable_pg_server, crew, how, live)
                for how in islice(cycle((signal.SIGINT, signal.SIGQUIT)), restarts)
            ]
        print(f"first 2xx after {back}, slowest {max(c.seconds for c in crew.calls):.2f} s,"
              f" {crew.counts()}")  # fmt: skip
        assert max(back) <= BACK
        assert not misbehaved(crew.calls, seconds=LONGEST)
        await _ready(live, seconds=30)
        assert await lost_or_doubled(live.daemon.env["DATABASE_URL"], crew) == []
        await _told_twice(live, agents[0], crew)
        assert await asyncio.to_thread(live.daemon.stop) == 0


async def _told_twice(live: Live, agent: Person, crew: Crew) -> None:
    """Check that creating again, under its key, what failed gives one ticket; the rest is read."""
    failed = [call for call in crew.calls if call.kind == "create" and not call.acknowledged]
    for call in failed[:20]:
        key = {"Idempotency-Key": call.name}
        for _ in range(2):
            again = await agent.post("/tickets", {"title": call.name}, headers=key)
            again.expect(201)
    made = [call for call in crew.calls if call.kind == "create" and call.acknowledged]
    for call in made[:: max(1, len(made) // 40)]:
        assert call.answer is not None
        seen = (await agent.get(f"/tickets/{call.answer.json['key']}")).expect(200)
        assert seen["title"] == call.name
    assert await lost_or_doubled(live.daemon.env["DATABASE_URL"], crew) == []


async def test_a_frozen_postgresql_is_answered_in_time_and_recovers(own_pg_server: Server) -> None:
    """R-24, S2-64: connections hang instead of failing; nobody waits long, nothing is restarted."""
    async with started(own_pg_server) as live:
        agents = [await live.person("agent") for _ in range(4)]
        async with working(agents, clients=16, rate=60) as crew:
            await crew.until(_worked, times=30, seconds=20)
            own_pg_server.pause()
            # More than there are connections: first in use ones hang, then new ones.
            await crew.until(_failed, times=32, seconds=30)
            status, seconds = await _status(live, "/healthz")
            assert status == 200 and seconds < 1
            status, seconds = await _status(live, "/readyz")
            assert status == 503 and seconds < LONGEST
            own_pg_server.resume()
            resumed = time.monotonic()
            first = await crew.until(_worked, seconds=LONGEST)
            await crew.until(_worked, times=30, seconds=LONGEST)
        print(f"first 2xx after {first.ended - resumed:.2f},"
              f" slowest {max(c.seconds for c in crew.calls):.2f} s, {crew.counts()}")  # fmt: skip
        assert first.ended - resumed <= BACK
        assert not misbehaved(crew.calls, seconds=LONGEST)
        assert await lost_or_doubled(live.daemon.env["DATABASE_URL"], crew) == []
        assert await asyncio.to_thread(live.daemon.stop) == 0


SLOW_COMMIT = """
    CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER linger AFTER INSERT ON tickets DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION linger();
"""


async def test_a_commit_that_is_cut_off_is_not_acknowledged(durable_pg_server: Server) -> None:
    """R-24, R-02: a 503, nothing half there, and the retry under the same key opens one ticket."""
    key = {"Idempotency-Key": "just-once"}
    async with started(durable_pg_server) as live:
        url = live.daemon.env["DATABASE_URL"]
        alice = await live.person()
        conn = await asyncpg.connect(url)
        await conn.execute(SLOW_COMMIT)
        async with asyncio.TaskGroup() as group:
            made = group.create_task(alice.post("/tickets", {"title": "Just once"}, headers=key))
            await durable_pg_server.until(url, "COMMIT")
            await durable_pg_server.stop(signal.SIGQUIT)
        made.result().refused(503, "E_DATABASE_UNAVAILABLE")
        conn.terminate()
        await durable_pg_server.start()
        conn = await asyncpg.connect(url)
        assert await conn.fetchval("SELECT count(*) FROM tickets") == 0
        await conn.execute("DROP TRIGGER linger ON tickets")
        await conn.close()
        for _ in range(2):
            (await alice.post("/tickets", {"title": "Just once"}, headers=key)).expect(201)
        assert len((await alice.get("/tickets")).expect(200)) == 1


async def test_the_embedded_postgresql_is_brought_back() -> None:
    """R-24: nobody else looks after the server that itdesk brought along."""
    async with running(make_daemon(None)) as live:
        alice = await live.person()
        key = (await alice.ticket())["key"]
        pid_file = live.daemon.state_dir / "postgres/data/postmaster.pid"
        first = int(pid_file.read_text().split()[0])
        os.kill(first, signal.SIGKILL)

        async def back() -> bool:
            answer = await alice.get(f"/tickets/{key}")
            return answer.status == 200 and int(pid_file.read_text().split()[0]) != first

        await eventually(back, seconds=30)
        assert (await alice.ticket())["key"]
        assert await asyncio.to_thread(live.daemon.stop) == 0
        assert not pid_file.exists()


FILES = 200


async def _uploaded(person: Person, count: int) -> list[str]:
    """Attach so many files, eight at a time, and return their ids."""
    ticket = (await person.ticket())["key"]
    ids: list[str] = []

    async def some(numbers: range) -> None:
        for number in numbers:
            made = await person.upload(ticket, b"file %d" % number, f"{number}.txt")
            ids.append(made.expect(201)["id"])

    async with asyncio.TaskGroup() as group:
        for first in range(8):
            group.create_task(some(range(first, count, 8)))
    return ids


async def _statuses(live: Live) -> dict[str, int]:
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        query = "SELECT scanned_status, count(*) FROM attachments GROUP BY scanned_status"
        return {row[0]: row[1] for row in await conn.fetch(query)}
    finally:
        await conn.close()


@pytest.mark.parametrize("away", [3.0, pytest.param(45.0, marks=pytest.mark.slow)])
async def test_files_wait_for_clamd_and_drain_when_it_is_back(
    pg_server: Server, away: float
) -> None:
    """R-10: while clamd is down nothing is CLEAN and nothing is served; then all is scanned."""
    with Clamd() as clamd:
        env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES,
               "ITDESK_SCANNER__RETRY_SECONDS": "1"}  # fmt: skip
        async with started(pg_server, **env) as live:
            alice = await live.person()
            clamd.kill()
            gone = time.monotonic()
            ids = await _uploaded(alice, FILES)

            async def long_enough() -> bool:
                assert await _statuses(live) == {"PENDING": FILES}
                return time.monotonic() > gone + away

            await eventually(long_enough, seconds=away + 60)
            for file in ids[::20]:
                refused = await alice.get(f"/attachments/{file}/content")
                refused.refused(409, "E_ATTACHMENT_SCAN_PENDING")
            health = (await live.nobody.call("GET", "/readyz")).expect(200)
            assert health["status"] == "degraded"
            assert "clamav" in health["checks"]["scanner"]["reason"]
            assert health["checks"]["actors"]["status"] == "ok"
            clamd.start()

            async def drained() -> bool:
                return await _statuses(live) == {"CLEAN": FILES}

            print(f"{FILES} files drained in {await eventually(drained, seconds=60):.1f} s")
            await _ready(live, seconds=10)


FAULTS = (hangs, resets(after=5))
MORE_FAULTS = (
    drips(b"stream: OK\0"),
    never_reads,
    answers(b"COMMAND READ TIMED OUT\0"),
    answers(b""),
)


@pytest.mark.parametrize("faults", [FAULTS, pytest.param(MORE_FAULTS, marks=pytest.mark.slow)])
async def test_a_clamd_that_misbehaves_in_the_middle_costs_a_deadline_and_no_verdict(
    pg_server: Server, clamd: Clamd, faults: Sequence[Script]
) -> None:
    """R-12: it hangs, trickles, resets or refuses; the file waits, and is scanned afterwards."""
    env = {"CLAMAV_HOST": "127.0.0.1", **SMALL_FILES,
           "ITDESK_SCANNER__RETRY_SECONDS": "1", "ITDESK_SCANNER__TIMEOUT_SECONDS": "1",
           "ITDESK_SCANNER__MAX_ATTEMPTS": "100"}  # fmt: skip
    async with relayed(clamd) as relay:
        env["CLAMAV_PORT"] = str(relay.port)
        async with started(pg_server, **env) as live:
            alice = await live.person()
            ticket = (await alice.ticket())["key"]
            honest = relay.script
            first = (await alice.upload(ticket, b"all is well")).expect(201)["id"]
            assert (await alice.scanned(first))["scanned_status"] == "CLEAN"
            for fault in faults:
                relay.script, heard = fault, len(relay.heard)
                file = (await alice.upload(ticket, b"x" * 600_000)).expect(201)["id"]

                async def tried(heard: int = heard) -> bool:
                    return len(relay.heard) > heard + 1

                # Twice: the slot was freed, and the file or the probe is tried again.
                await eventually(tried, seconds=30)
                found = (await alice.get(f"/attachments/{file}")).expect(200)
                assert found["scanned_status"] == "PENDING", fault
                relay.script = honest
                scanned = await alice.scanned(file, seconds=30)
                assert scanned["scanned_status"] == "CLEAN", fault
            await _ready(live, seconds=10)
