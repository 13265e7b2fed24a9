"""Killed while it tells Jira: no issue or comment is there twice, none is missing (R-03)."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from itdesk.desk.tickets import NewTicket
from itdesk.model import Role
from tests.support.desk import bench_on
from tests.support.jira import FakeJira, jira_beside
from tests.support.jira_scene import connection

POINTS = ("before_commit", "after_commit", "before_send", "after_send", "before_mark")

# Loads the code once; each line on stdin is one process, which works until it is killed or done.
CREW = """
import asyncio, os, sys
from pathlib import Path
from itdesk import assembly
from itdesk.actors.worker import Worker
from itdesk.config import load
from itdesk.runtime import failpoints
from itdesk.runtime.actor import TICK
from itdesk_plugins.jira.importer import Importer, Summary
from itdesk_plugins.jira.plan import Options, Planner

async def imported(desk):
    plugin = desk.trackers["jira"]
    options = Options(project="ITSM", apply=True, sleep_ms=0)
    planner = Planner(plugin.client, desk, options)
    importer = Importer(plugin.client, desk, plugin.pusher, options, await planner.target())
    steps, _ = await planner.steps()
    summary = Summary()
    await importer.run(steps, summary, lambda step, problem: print(problem, file=sys.stderr))
    return summary.failed

async def worked(desk):
    worker = Worker(desk.jobs)
    worker.tell(TICK)
    while len(worker.mailbox):
        await worker.step()
    return 0

async def main(what, point):
    settings = load(state_dir=Path(sys.argv[1]), environ=os.environ)
    async with assembly.open_desk(settings, os.environ["DATABASE_URL"]) as desk:
        async with desk.db.connection() as conn:
            await conn.execute("UPDATE jobs SET lease_until = now(), run_at = now()"
                               " WHERE state IN ('waiting', 'leased')")
        failpoints.arm(point)
        return await {"import": imported, "push": worked}[what](desk)

for line in sys.stdin:
    what, _, point = line.strip().partition(" ")
    child = os.fork()
    if child == 0:
        os._exit(asyncio.run(main(what, point)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Crew:
    """Processes that can be killed, one after the other."""

    def __init__(self, process: "subprocess.Popen[str]", jira: FakeJira) -> None:
        self._process = process
        self._jira = jira

    def work(self, what: str, point: str = "", *, after: int | None = None) -> int:
        """Let one work; it is killed at a point, or when Jira has carried out so many requests.

        Returns 0 when it came to its end, and the signal otherwise.
        """
        assert self._process.stdin is not None
        left = [after]
        # It asks nothing before its first line was read: the fork is told of before it connects.
        self._process.stdin.write(f"{what} {point}\n")
        self._process.stdin.flush()
        child = self._number()

        def carried_out(path: str) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(child, signal.SIGKILL)

        self._jira.after = carried_out
        status = self._number()
        self._jira.after = None
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def crew_on(database_url: str, jira: FakeJira) -> Iterator[Crew]:
    """Lend processes that work on a desk beside a Jira."""
    state_dir = Path(tempfile.mkdtemp(prefix="itdesk-crash-", dir="/tmp"))
    env = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, **_env(jira)}
    process = subprocess.Popen(
        [sys.executable, "-c", CREW, str(state_dir)],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    try:
        yield Crew(process, jira)
    finally:
        process.communicate()
        shutil.rmtree(state_dir)


def _env(jira: FakeJira) -> dict[str, str]:
    return {**connection(jira), "ITDESK_PLUGINS__JIRA__PUSH__SETTLE_SECONDS": "0"}


async def _tickets(database_url: str, jira: FakeJira, count: int) -> None:
    """Open tickets with two comments each and a status that needs a transition."""
    async with bench_on(database_url, **_env(jira)) as bench:
        admin = await bench.person(Role.ADMIN)
        for number in range(count):
            ticket = await bench.desk.tickets.create(admin, NewTicket(f"Problem {number}"))
            for text in ("one", "two"):
                await bench.desk.tickets.comment(admin, ticket.key, text)
            await bench.desk.tickets.update(admin, ticket.key, {"status": "in_progress"})


async def _changes(database_url: str, jira: FakeJira) -> None:
    """Change a mirrored ticket and say something on it."""
    async with bench_on(database_url, **_env(jira)) as bench:
        admin = await bench.person(Role.ADMIN)
        issue = jira.issue()
        await bench.desk.trackers["jira"].reconcile(since=None, project_key=None)
        wanted = {"title": "Again", "status": "in_progress"}
        await bench.desk.tickets.update(admin, issue.key, wanted)
        for text in ("one", "two"):
            await bench.desk.tickets.comment(admin, issue.key, text)


def _once(jira: FakeJira, count: int) -> None:
    """Every issue and every comment is there, once."""
    titles = Counter(issue.summary for issue in jira.issues.values())
    assert len(titles) == count and set(titles.values()) == {1}, titles
    for issue in jira.issues.values():
        assert [said.text.splitlines()[-1] for said in issue.comments] == ["one", "two"]
        assert issue.status == "In Progress"


async def test_an_import_that_is_killed_at_each_point_opens_each_issue_once(
    database_url: str,
) -> None:
    """R-03: SIGKILL at every failpoint; 0 duplicate issues, 0 missing."""
    with jira_beside() as jira:
        await _tickets(database_url, jira, 2)
        with crew_on(database_url, jira) as crew:
            for point in POINTS:
                assert crew.work("import", point) == signal.SIGKILL
            assert crew.work("import") == 0
        _once(jira, 2)


@pytest.mark.slow
async def test_a_push_that_is_killed_at_each_point_happens_once(database_url: str) -> None:
    """R-03: SIGKILL at every failpoint; 0 duplicate comments."""
    with jira_beside() as jira:
        await _changes(database_url, jira)
        with crew_on(database_url, jira) as crew:
            for point in POINTS:
                assert crew.work("push", point) == signal.SIGKILL
            assert crew.work("push") == 0
        _once(jira, 1)
        assert [issue.summary for issue in jira.issues.values()] == ["Again"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["import", "push"])
async def test_a_kill_after_any_request_repeats_nothing(database_url: str, what: str) -> None:
    """R-03: after the first, the second, the third ... request that Jira carried out."""
    with jira_beside() as jira:
        if what == "import":
            await _tickets(database_url, jira, 6)
        else:
            await _changes(database_url, jira)
        kills = 0
        with crew_on(database_url, jira) as crew:
            for after in range(1, 40):
                ended = crew.work(what, after=after)
                if ended == 0:
                    break
                assert ended == signal.SIGKILL
                kills += 1
            assert crew.work(what) == 0
        print(f"\n{what}: {kills} kills")
        assert kills > 3
        _once(jira, 6 if what == "import" else 1)
