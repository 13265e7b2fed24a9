"""kill -9 under load: what was acknowledged is there, what was not is there once or not at all."""

import asyncio
import random
import signal
import time

import asyncpg
import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Answer, Live, lasting_port, started
from tests.support.history import violations
from tests.support.load import Call, Crew, eventually, working
from tests.support.postgres import Server


def _worked(call: Call) -> bool:
    return call.acknowledged


async def _at_rest(live: Live) -> None:
    """Return when every file has its verdict and every event its number."""
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    query = """
        SELECT (SELECT count(*) FROM events WHERE seq IS NULL)
             + (SELECT count(*) FROM attachments WHERE scanned_status = 'PENDING')
    """

    async def rests() -> bool:
        return bool(await conn.fetchval(query) == 0)

    await eventually(rests, seconds=60)
    await conn.close()


@pytest.mark.parametrize(
    ("kills", "clients", "rate"), [(8, 16, 100), pytest.param(50, 32, 200, marks=pytest.mark.slow)]
)
async def test_a_killed_daemon_loses_nothing_that_it_acknowledged(
    durable_pg_server: Server, clamd: Clamd, kills: int, clients: int, rate: float
) -> None:
    """R-01, R-14: kills at random moments of the same load; the history checker finds nothing."""
    dice = random.Random(kills)
    env = {
        "CLAMAV_HOST": "127.0.0.1",
        "CLAMAV_PORT": str(clamd.port),
        "ITDESK_SCANNER__LEASE_SECONDS": "2",
        **SMALL_FILES,
    }
    async with started(durable_pg_server, **env) as live:
        await asyncio.to_thread(live.daemon.stop)
        live.daemon.port = lasting_port()
        await asyncio.to_thread(live.daemon.start)
        live.admin.base = live.url
        agent = await live.person("agent")
        back = []
        async with working([agent], clients=clients, rate=rate) as crew:
            for _ in range(kills):
                await crew.until(_worked, times=dice.randrange(10, 120), seconds=20)
                await asyncio.to_thread(live.daemon.stop, signal.SIGKILL)
                began = time.monotonic()
                await asyncio.to_thread(live.daemon.start)
                await crew.until(_worked, seconds=20)
                back.append(time.monotonic() - began)
            await crew.until(_worked, times=50, seconds=20)
        unknown = [call for call in crew.calls if call.kind == "create" and not call.acknowledged]
        for call in unknown:
            again = await agent.post(
                "/tickets", {"title": call.name}, headers={"Idempotency-Key": call.name}
            )
            assert again.status == 201, again.raw
        await _at_rest(live)
        print(f"\nback after {sorted(back)[-1]:.2f} s at most; {crew.counts()}")
        assert await violations(live.daemon.env["DATABASE_URL"], crew) == []
        assert await asyncio.to_thread(live.daemon.stop) == 0


PLANTED = {
    "an acknowledged ticket is gone": "DELETE FROM tickets WHERE title = 'load-1'",
    "a ticket is there twice": "INSERT INTO tickets (key, project_id, title)"
    " SELECT 'TSK-9999', project_id, title FROM tickets WHERE title = 'load-1'",
    "a comment is gone": "DELETE FROM ticket_comments",
    "a version is missing": "UPDATE tickets SET version = version + 1",
    "an event is not numbered": "INSERT INTO events (type) VALUES ('user.created')",
    "a number is missing": "INSERT INTO events (type, seq) VALUES ('user.created', 99)",
    "an illegal step": "INSERT INTO events (type, seq, changes) VALUES ('ticket.updated', 4,"
    """ '[{"field": "status", "old": "closed", "new": "blocked"}]')""",
    "a clean file of other bytes": "INSERT INTO attachments (ticket_id, object_key, size, sha256,"
    " original_filename, scanned_status, scan_engine, scanned_at)"
    " SELECT id, 'k', 1, 'x', 'load-9.txt', 'CLEAN', 'e', now() FROM tickets",
}


@pytest.mark.parametrize("planted", ["nothing", *PLANTED])
async def test_the_history_checker_sees_each_kind_of_violation(
    database_url: str, planted: str
) -> None:
    """The checker is believed because it finds what is planted, and nothing else."""
    conn = await asyncpg.connect(database_url)
    await conn.execute(
        """
        WITH t AS (INSERT INTO tickets (key, project_id, title, version)
                   SELECT 'TSK-1001', id, 'load-1', 2 FROM projects RETURNING id),
             c AS (INSERT INTO ticket_comments (ticket_id, body) SELECT id, 'load-2' FROM t)
        INSERT INTO events (type, ticket_id, ticket_version, seq)
        SELECT type, id, version, seq FROM t, (VALUES ('ticket.created', 1, 1),
            ('comment.added', 2, 2)) AS e (type, version, seq)
        """
    )
    done = Answer(201, {}, b"{}")
    crew = Crew([], 1)
    crew.calls += [Call("create", "load-1", 0, 0, done), Call("comment", "load-2", 0, 0, done)]
    if planted != "nothing":
        await conn.execute(PLANTED[planted])
    await conn.close()
    found = await violations(database_url, crew)
    assert bool(found) == (planted != "nothing"), found
