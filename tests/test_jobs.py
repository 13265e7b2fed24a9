"""Jobs, schedules and daily statistics through the real daemon, its API and its commands."""

import asyncio
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientError

from tests.support.daemon import Daemon, Live, Person, make_daemon, running, started
from tests.support.postgres import Server

QUICK = {
    "ITDESK_JOBS__POLL_SECONDS": "1",
    "ITDESK_JOBS__LEASE_SECONDS": "1",
    "ITDESK_JOBS__RETRY_SECONDS": "1",
    # No work but the plugin's ends by a mark.
    **{
        f"ITDESK_SCHEDULER__{name}_SECONDS": "0"
        for name in (
            "DAILY_STATS",
            "TOKEN_CLEANUP",
            "STORAGE_VERIFY",
            "EMAIL",
            "WORKFLOW",
            "RECOMMENDATIONS",
            "TICKET_COUNTS",
        )  # fmt: skip
    },
}

# Each new ticket is told to a "remote system", a file; some titles are poison.
PLUGIN = """
import asyncio, os, signal
from pathlib import Path
from pydantic import BaseModel
from itdesk.hookspecs import JobType, Schedule, hookimpl

class Settings(BaseModel):
    told: Path

class Plugin:
    name, itdesk_api, Settings = "shop", 1, Settings

    def __init__(self, settings):
        self.told = settings.told

    @hookimpl
    def itdesk_jobs(self, desk):
        async def tell(job):
            title = (await desk.tickets.get(SYSTEM, job.args["ticket_id"])).title
            if title == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if title.startswith("gate"):
                while not self.told.with_name(title).exists():
                    await asyncio.sleep(0.02)
            if title == "endless":
                self._write("endless")
                await asyncio.Event().wait()
            async with job.sending() as key:
                self._write(f"{title} {key}")
        return [JobType(name="shop.tell", handle=tell, concurrency=4, timeout_seconds=60,
                        on_events=("ticket.created",), lane=lambda e: f"shop:{e.ticket_id}")]

    @hookimpl
    def itdesk_validate_ticket(self, before, after):
        if after.title.startswith("die "):
            failpoints.arm(after.title.removeprefix("die "))

    @hookimpl
    def itdesk_schedule(self, desk):
        async def open_(job):
            self._write("open")
        return [Schedule(name="shop.open", seconds=86400 * 365, run=open_)]

    def _write(self, line):
        with self.told.open("a") as file:
            file.write(line + "\\n")

from itdesk.model import SYSTEM
from itdesk.runtime import failpoints
"""


class Shop:
    """Daemons with that plugin, on one database."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.told = directory / "told"
        plugins = directory / "plugins.d"
        plugins.mkdir(mode=0o755)
        (plugins / "shop.py").write_text(PLUGIN)
        (plugins / "shop.py").chmod(0o644)
        self.config = directory / "itdesk.toml"
        self.config.write_text(
            f'[plugin_host]\ndirectories = ["{plugins}"]\n[plugins.shop]\ntold = "{self.told}"\n'
        )

    def daemon(self, **env: str) -> Daemon:
        return make_daemon(self.url, ITDESK_CONFIG=str(self.config), **{**QUICK, **env})

    def lines(self) -> list[str]:
        """What the remote system was told, but that the shop is open."""
        said = self.told.read_text().splitlines() if self.told.exists() else []
        return [line for line in said if line != "open"]

    async def rows(self, columns: str = "state") -> list[tuple[Any, ...]]:
        return await rows(self.url, columns)


@pytest.fixture
def shop(database_url: str, tmp_path: Path) -> Shop:
    return Shop(database_url, tmp_path)


async def rows(url: str, columns: str) -> list[tuple[Any, ...]]:
    """Return the jobs that the plugin has, in the order of their positions."""
    conn = await asyncpg.connect(url)
    query = f"SELECT {columns} FROM jobs WHERE type = 'shop.tell' ORDER BY position"  # noqa: S608
    try:
        return [tuple(row) for row in await conn.fetch(query)]
    finally:
        await conn.close()


async def until(true: Callable[[], Awaitable[bool]], *, seconds: float = 30.0) -> None:
    """Return once something has become true."""
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, "it never became so"
        await asyncio.to_thread(time.sleep, 0.02)


async def test_work_follows_from_a_change_at_once(shop: Shop) -> None:
    """A plugin's job is queued with the ticket and done without waiting for a poll."""
    daemon = shop.daemon(ITDESK_JOBS__POLL_SECONDS="600")
    async with running(daemon) as live:
        await live.admin.ticket("one")
        await until(lambda: _told(shop, 1), seconds=10)
        assert re.fullmatch(r"one [0-9a-f-]{36}", shop.lines()[0])
        page = (await live.nobody.call("GET", "/metrics")).raw.decode()
        assert 'itdesk_jobs_finished_total{outcome="done",type="shop.tell"} 1.0' in page
        for name in ("oldest_seconds{", "stale_completions_total", "stolen_total", "dead"):
            assert f"itdesk_jobs_{name}" in page  # O-12


async def _told(shop: Shop, count: int) -> bool:
    return len(shop.lines()) >= count


async def test_work_queued_elsewhere_is_found_by_poll(shop: Shop) -> None:
    """R-28: nobody told this daemon; it looks by itself, and its plugin's schedule ran once."""
    async with running(shop.daemon()) as live:
        await live.admin.ticket("one")
        await until(lambda: _told(shop, 1))
        conn = await asyncpg.connect(shop.url)
        again = "INSERT INTO jobs (type, args) SELECT type, args FROM jobs WHERE type = 'shop.tell'"
        await conn.execute(again)
        await conn.close()
        await until(lambda: _told(shop, 2), seconds=5)
    assert shop.told.read_text().split("\n").count("open") == 1


@pytest.mark.parametrize(
    ("point", "requests"), [("before_send", 1), ("after_send", 2), ("before_mark", 2)]
)
async def test_a_crash_around_a_remote_effect_loses_nothing(
    shop: Shop, point: str, requests: int
) -> None:
    """R-03: killed there, the work is done by the next life; a repeated request is known as one."""
    daemon = shop.daemon(ITDESK_FAILPOINTS=point)
    conn = await asyncpg.connect(shop.url)
    # The plugin's own schedule ends by a mark as well.
    await conn.execute(
        "INSERT INTO periodic_runs (name, due_at) SELECT 'shop.open',"
        " to_timestamp(floor(extract(epoch FROM now()) / 31536000) * 31536000)"
    )
    await conn.close()
    async with running(daemon) as live:
        await live.admin.ticket("one")
        assert await asyncio.to_thread(daemon.ended) == -signal.SIGKILL
        daemon.env.pop("ITDESK_FAILPOINTS")
        await asyncio.to_thread(daemon.start)
        await until(lambda: _all_done(shop))
    assert await shop.rows("state, attempts") == [("done", 2)]
    assert len(shop.lines()) == requests and len(set(shop.lines())) == 1


@pytest.mark.parametrize("point", ["before_commit", "after_commit"])
async def test_a_crash_around_a_commit_leaves_the_cause_and_its_work_or_neither(
    shop: Shop, point: str
) -> None:
    """R-03: work is queued with its cause; whoever dies between the two has done neither."""
    daemon = shop.daemon()
    async with running(daemon) as live:
        admin = live.admin
        # Another transaction of the daemon may meet the armed place first: then nothing is there.
        for _ in range(10):
            with pytest.raises(ClientError):
                await admin.post("/tickets", {"title": f"die {point}"})
            assert await asyncio.to_thread(daemon.ended) == -signal.SIGKILL
            await asyncio.to_thread(daemon.start)
            admin = replace(admin, base=daemon.url)
            causes = len((await admin.get("/tickets")).expect(200))
            assert len(await shop.rows()) == causes
            if causes or point == "before_commit":
                break
        assert causes == (point == "after_commit")
        await until(lambda: _told(shop, causes))
        await until(lambda: _are_done(shop, causes))
    assert len(shop.lines()) == causes


async def _are_done(shop: Shop, count: int) -> bool:
    return [row[0] for row in await shop.rows()] == ["done"] * count


async def _all_done(shop: Shop) -> bool:
    return {row[0] for row in await shop.rows()} == {"done"}


async def frozen_workers(shop: Shop, rounds: int) -> None:
    """Freeze whoever has a job until another has it, and see what the first writes afterwards."""
    first, second = shop.daemon(), shop.daemon()
    async with running(first) as live:
        shutil.copy2(first.state_dir / "jwt-key.pem", second.state_dir)
        await asyncio.to_thread(second.start)
        try:
            for number in range(rounds):
                await _freeze_once(shop, live, (first, second), f"gate{number}")
        finally:
            second.tell(signal.SIGCONT)
            assert await asyncio.to_thread(second.stop) == 0
            shutil.rmtree(second.state_dir)


async def _freeze_once(shop: Shop, live: Live, daemons: Sequence[Daemon], title: str) -> None:
    await live.admin.ticket(title)
    claims = "SELECT split_part(owner, ':', 2)::int, epoch FROM jobs WHERE state = 'leased'"
    pid, epoch = (await _claimed(shop, claims))[0]
    holder = next(d for d in daemons if d.process is not None and d.process.pid == pid)
    stale = await _stale(holder)
    holder.tell(signal.SIGSTOP)
    try:
        await until(lambda: _overtaken(shop, claims, epoch))
        shop.told.with_name(title).touch()
        await until(lambda: _all_done(shop))
    finally:
        holder.tell(signal.SIGCONT)
    await until(lambda: _counted(holder, stale + 1))
    assert (await shop.rows("state, attempts"))[-1] == ("done", 2)
    told = [line for line in shop.lines() if line.startswith(f"{title} ")]
    assert len(set(told)) == 1  # it was told twice, and can tell that by the key


async def _claimed(shop: Shop, query: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    async def there() -> bool:
        conn = await asyncpg.connect(shop.url)
        found[:] = [tuple(row) for row in await conn.fetch(query)]
        await conn.close()
        return bool(found)

    await until(there)
    return found


async def _overtaken(shop: Shop, query: str, epoch: int) -> bool:
    return (await _claimed(shop, query))[0][1] > epoch


async def _stale(daemon: Daemon) -> float:
    page = (await Person(daemon.url).call("GET", "/metrics")).raw.decode()
    found = re.search(r"^itdesk_jobs_stale_completions_total (\S+)$", page, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def _counted(daemon: Daemon, count: float) -> bool:
    return await _stale(daemon) == count


async def test_a_worker_frozen_past_its_lease_writes_nothing_when_it_wakes(shop: Shop) -> None:
    """R-05: two daemons; what the first one wants to write of the job changes nothing."""
    await frozen_workers(shop, 2)


@pytest.mark.slow
async def test_a_hundred_frozen_workers_write_nothing_when_they_wake(shop: Shop) -> None:
    """R-05."""
    await frozen_workers(shop, 100)


async def test_a_poisonous_job_ends_the_process_five_times_at_most(shop: Shop) -> None:
    """R-08: then it is given up; the jobs beside it are done, and more can be."""
    daemon = shop.daemon()
    lives = 1
    async with running(daemon) as live:
        ids = []
        for title in ("good", "poison", "good", "good"):
            try:
                ids.append(await live.admin.ticket(title))
            except Exception:  # noqa: BLE001 - the process died under the request
                break
        while True:
            assert daemon.process is not None
            process = daemon.process

            await until(partial(_settled, shop, process))
            if process.poll() is None:
                break
            await asyncio.to_thread(daemon.ended)
            lives += 1
            assert lives <= 6
            await asyncio.to_thread(daemon.start)
        rows = await shop.rows("state, attempts")
        assert rows.count(("failed", 5)) == 1 and len(rows) >= 2
        assert all(state == "done" and attempts <= 3 for state, attempts in rows if attempts < 5)
        live.admin.base = daemon.url
        await live.admin.ticket("after")
        await until(lambda: _mentions(shop, "after"))
        failed = (await live.admin.get("/jobs?state=failed&type=shop.tell")).expect(200)
        assert [job["attempts"] for job in failed] == [5]


async def _settled(shop: Shop, process: "subprocess.Popen[str]") -> bool:
    states = {row[0] for row in await shop.rows()}
    return process.poll() is not None or not states & {"waiting", "leased"}


async def _mentions(shop: Shop, word: str) -> bool:
    return any(line.startswith(word) for line in shop.lines())


async def test_a_stop_gives_unfinished_work_back(shop: Shop) -> None:
    """SIGTERM: what does not end in time waits for the next daemon, which need not wait for it."""
    daemon = shop.daemon(ITDESK_SERVER__DRAIN_SECONDS="1", ITDESK_JOBS__LEASE_SECONDS="600")
    async with running(daemon) as live:
        await live.admin.ticket("endless")
        await until(lambda: _mentions(shop, "endless"))
        assert await asyncio.to_thread(daemon.stop) == 0
        assert await shop.rows("state, attempts, owner") == [("waiting", 0, None)]


# --- administration ------------------------------------------------------------------------


async def test_administrators_look_after_jobs(pg_server: Server) -> None:
    """J1 to J3 and the commands for the same."""
    async with started(pg_server, **QUICK) as live:
        conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
        new = "INSERT INTO jobs (type, args) VALUES ('x.y', $1) RETURNING id::text"
        ids = [await conn.fetchval(new, '{"token": "hunter2"}') for _ in range(3)]
        page = await live.admin.get("/jobs?limit=2&type=x.y&count=true")
        assert [job["id"] for job in page.expect(200)] == [ids[2], ids[1]]
        assert page.headers["X-Total-Count"] == "3" and b"hunter2" not in page.raw
        (link,) = re.findall(r"<(.*)>", page.headers["Link"])
        rest = (await live.admin.call("GET", link)).expect(200)
        assert [job["id"] for job in rest] == [ids[0]]
        agent = await live.person("agent")
        for path in ("/jobs", f"/jobs/{ids[0]}/retry", f"/jobs/{ids[0]}/cancel"):
            method = "GET" if path == "/jobs" else "POST"
            answer = await agent.call(method, f"/api/v1{path}")
            answer.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
        (await live.admin.get("/jobs?state=strange")).refused(422, "E_VALIDATION_ERROR")
        (await live.admin.post(f"/jobs/{ids[0]}/retry")).refused(409, "E_JOB_STATE")
        (await live.admin.post("/jobs/nonsense/retry")).refused(404, "E_JOB_NOT_FOUND")
        assert (await live.admin.post(f"/jobs/{ids[0]}/cancel")).expect(200)["state"] == "failed"
        assert (await live.admin.post(f"/jobs/{ids[0]}/retry")).expect(200)["state"] == "waiting"

        run = live.daemon.run
        done = await asyncio.to_thread(run, "jobs", "cancel", ids[1])
        assert done.returncode == 0, done.stderr
        done = await asyncio.to_thread(run, "jobs", "list", "--state", "failed")
        assert done.stdout.startswith(f"{ids[1]} failed  x.y attempts=0 cancelled by itdesk")
        done = await asyncio.to_thread(run, "jobs", "retry", "--all-failed")
        assert f"{ids[1]} waiting" in done.stdout
        done = await asyncio.to_thread(run, "jobs", "retry", ids[1])
        assert done.returncode == 1 and "this one is waiting" in done.stderr
        done = await asyncio.to_thread(run, "jobs", "retry")
        assert done.returncode == 2
        audited = await conn.fetchval("SELECT count(*) FROM events WHERE type LIKE 'job.%'")
        assert audited == 4
        await conn.close()


# --- daily statistics ----------------------------------------------------------------------


async def test_daily_statistics_appear_by_themselves(pg_server: Server) -> None:
    """S2-07, S2-38, S2-47, S2-48, S2-49: one process, no broker; a row a day, the later numbers."""
    env = {"ITDESK_SCHEDULER__DAILY_STATS_SECONDS": "1"}
    async with started(pg_server, **env) as live:
        agent = await live.person("agent")

        async def shown() -> Any:
            return (await agent.get("/stats/daily")).expect(200)

        async def appeared() -> bool:
            return bool(await shown())

        await until(appeared, seconds=3)
        for priority in ("critical", "high", "high", "low"):
            ticket = await agent.ticket(priority=priority)
        moved = {"status": "in_progress"}
        (await agent.patch(f"/tickets/{ticket['key']}", moved)).expect(200)

        async def counted() -> bool:
            (row,) = await shown()
            return bool(row["total"] == 4 and row["in_progress"] == 1)

        await until(counted, seconds=5)
        (row,) = await shown()
        for status in ("open", "triaged", "in_progress", "blocked", "closed"):
            assert row[status] == await _count(agent, f"status={status}")
        for priority in ("critical", "high", "medium", "low"):
            assert row[f"{priority}_count"] == await _count(agent, f"priority={priority}")
        await _filtered(agent, row)
        user = await live.person()
        (await user.get("/stats/daily")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")


async def _count(agent: Any, query: str) -> int:
    answer = await agent.get(f"/tickets?count=true&{query}")
    return int(answer.headers["X-Total-Count"])


async def _filtered(agent: Any, row: Any) -> None:
    day = row["date"]
    inside = (await agent.get(f"/stats/daily?from={day}&to={day}")).expect(200)
    assert [found["id"] for found in inside] == [row["id"]]
    assert (await agent.get("/stats/daily?from=2099-01-01")).expect(200) == []
    assert (await agent.get("/stats/daily?to=1999-12-31")).expect(200) == []
    for wrong in ("from=2026-02-30", "from=2026-02-02&to=2026-02-01", "since=2026-01-01"):
        (await agent.get(f"/stats/daily?{wrong}")).refused(422, "E_VALIDATION_ERROR")


async def test_an_operator_counts_now(live: Live) -> None:
    """C13: `stats aggregate`; S2-47: the interval is 1800 s by default."""
    await live.admin.ticket()
    done = await asyncio.to_thread(live.daemon.run, "stats", "aggregate")
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d{4}-\d\d-\d\d total=[1-9]\d* open=", done.stdout)
    shown = await asyncio.to_thread(live.daemon.run, "config", "show")
    assert "daily_stats_seconds = 1800" in shown.stdout
