"""Periodic work: once for all nodes, one catch-up; daily statistics and cleaning up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from itdesk.actors.scheduler import Scheduler
from itdesk.desk.jobs import Job
from itdesk.desk.schedules import Schedules, clean_up
from itdesk.desk.tickets import NewTicket
from itdesk.hookspecs import Schedule
from itdesk.model import SYSTEM, Priority, Role, new_id
from itdesk.runtime.actor import TICK
from itdesk.runtime.clock import FakeClock
from itdesk.runtime.redact import plain
from itdesk.store import stats
from tests.support.desk import Bench, bench_on
from tests.support.jobs import Node, Nodes
from tests.support.postgres import Server

DAY = 86_400


class Planned:
    """A node with a scheduler and one schedule, whose runs are counted."""

    def __init__(self, node: Node, seconds: int = DAY) -> None:
        self.node = node
        self.runs = 0
        self.problem: Exception | None = None
        self.schedules = Schedules(node.db, node.jobs)
        self.schedules.register(Schedule(name="daily", seconds=seconds, run=self._run))
        self.scheduler = Scheduler(self.schedules)

    async def _run(self, job: Job) -> None:
        self.runs += 1
        if self.problem is not None:
            raise self.problem

    async def tick(self) -> None:
        self.scheduler.tell(TICK)
        await self.scheduler.step()

    async def rows(self) -> list[tuple[Any, ...]]:
        async with self.node.db.connection() as conn:
            query = "SELECT finished_at IS NOT NULL, error FROM periodic_runs ORDER BY due_at"
            return [tuple(row) for row in await conn.fetch(query)]

    async def next_period(self, periods: int = 1) -> None:
        """Let so many periods pass: what was begun was begun that long ago."""
        await self.node.sql(
            "UPDATE periodic_runs SET due_at = due_at - make_interval(secs => $1)",
            float(DAY * periods),
        )


async def test_a_run_happens_once_whatever_the_number_of_nodes(nodes: Nodes) -> None:
    """Three schedulers and workers at once, again and again: one run a period."""
    planned = [Planned(nodes()) for _ in range(3)]
    for periods in range(1, 4):
        for _ in range(3):
            await asyncio.gather(*(one.tick() for one in planned))
            await asyncio.gather(*(one.node.poll() for one in planned))
        assert sum(one.runs for one in planned) == periods
        assert await planned[0].rows() == [(True, None)] * periods
        await planned[0].next_period()


async def test_an_outage_is_caught_up_once(nodes: Nodes) -> None:
    """Ten periods passed: one run, for the current one."""
    one = Planned(nodes())
    await one.tick()
    await one.node.poll()
    await one.next_period(10)
    for _ in range(3):
        await one.tick()
        await one.node.poll()
    assert one.runs == 2 and await one.rows() == [(True, None)] * 2


async def test_clocks_hours_off_do_not_run_it_twice(nodes: Nodes) -> None:
    """What is due, only the database's clock says."""
    clocks = [FakeClock() for _ in range(3)]
    await clocks[1].advance(9 * 3600)
    await clocks[2].advance(100 * DAY)
    planned = [Planned(nodes(clock=clock)) for clock in clocks]
    for one in planned:
        await one.tick()
        await one.node.poll()
    assert sum(one.runs for one in planned) == 1
    same = "SELECT due_at = date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    assert await planned[0].node.sql(f"{same} FROM periodic_runs")


async def test_a_run_that_still_goes_on_is_the_next_one_as_well(nodes: Nodes) -> None:
    """Runs of one schedule never pile up."""
    one = Planned(nodes())
    await one.tick()
    await one.next_period()
    await one.tick()
    assert len(await one.node.rows()) == 1
    await one.node.sql(
        "UPDATE jobs SET args = jsonb_build_object('due_at', (SELECT min(due_at)"
        " FROM periodic_runs))"
    )
    await one.node.poll()
    assert one.runs == 1 and await one.rows() == [(True, None)] * 2


async def test_a_run_that_fails_says_why_and_the_next_one_comes(nodes: Nodes) -> None:
    """After its attempts the job is failed; the schedule goes on, and no secret is told."""
    one = Planned(nodes())
    one.problem = ValueError("hunter2")
    await one.tick()
    for _ in range(3):
        await one.node.sql("UPDATE jobs SET run_at = now()")
        await one.node.poll()
    ((finished, error),) = await one.rows()
    assert not finished and "ValueError" in error and "hunter2" not in error
    assert await one.node.rows() == [("failed",)]
    one.problem = None
    await one.next_period()
    await one.tick()
    await one.node.poll()
    assert await one.rows() == [(False, error), (True, None)]


async def test_no_seconds_is_off(nodes: Nodes) -> None:
    """scheduler.* = 0: nothing is begun."""
    one = Planned(nodes(), seconds=0)
    await one.tick()
    await one.node.poll()
    assert one.runs == 0 and await one.rows() == [] and one.schedules.shortest is None


# --- statistics and cleaning up ------------------------------------------------------------


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def test_one_row_a_day_with_the_later_numbers(bench: Bench) -> None:
    """S2-38, S2-48: by status and by priority, again and again."""
    agent = await bench.person(Role.AGENT)
    first = await bench.desk.stats.aggregate()
    assert (first.total, first.open) == (0, 0)
    for priority in (Priority.HIGH, Priority.LOW, Priority.HIGH):
        await bench.desk.tickets.create(agent, NewTicket("A ticket", priority=priority))
    last = await bench.ticket(agent)
    await bench.sql("UPDATE tickets SET status = 'closed' WHERE id = $1", last.id)
    again = await bench.desk.stats.aggregate()
    assert again.id == first.id and again.updated_at > first.updated_at
    assert (again.total, again.open, again.closed) == (4, 3, 1)
    assert (again.high_count, again.medium_count, again.low_count) == (2, 1, 1)
    assert await bench.desk.stats.days(agent) == [again]
    assert await bench.sql("SELECT (now() AT TIME ZONE 'UTC')::date") == again.date


async def test_who_counts_later_has_seen_more(bench: Bench, pg_server: Server) -> None:
    """S2-38: a count that began before another one ended does not overwrite it with less."""
    url, held = bench.desk.db.url, asyncio.Event()

    async def count_elsewhere() -> int:
        await held.wait()
        async with bench_on(url) as other:
            return (await other.desk.stats.aggregate()).total

    async with asyncio.TaskGroup() as group:
        # Begun out here, it is no part of the transaction.
        other = group.create_task(count_elsewhere())
        async with bench.desk.db.transaction() as tx:
            await stats.lock(tx.conn)
            held.set()
            await pg_server.until(url, "LOCK TABLE")
            await bench.ticket(SYSTEM)
            assert (await stats.aggregate(tx.conn)).total == 1
    assert other.result() == 1


async def test_what_is_over_is_deleted_and_nothing_else(bench: Bench) -> None:
    """Sessions, tokens, kept answers, files that never came, old runs and old jobs."""
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    for offset in ("-1 hour", "1 hour"):
        person = "SELECT $1, now() + $2::text::interval"
        for statement in (
            "INSERT INTO refresh_tokens (user_id, expires_at, family_id, token_hash)"
            f" {person}, $3, $4",
            f"INSERT INTO verification_tokens (user_id, expires_at, token_hash, code_hash)"
            f" {person}, $4, $4 WHERE $3::uuid IS NOT NULL",
            f"INSERT INTO password_reset_tokens (user_id, expires_at, token_hash)"
            f" {person}, $4 WHERE $3::uuid IS NOT NULL",
            f"INSERT INTO login_challenges (user_id, expires_at, token_hash, auth_epoch)"
            f" {person}, $4, 0 WHERE $3::uuid IS NOT NULL",
            # Their owner may still see for a while why a script is refused.
            f"INSERT INTO api_tokens (user_id, expires_at, token_hash, name, scope)"
            f" {person} - interval '30 days', $4, $3::uuid::text, 'read'",
        ):
            await bench.sql(statement, alice.user_id, offset, new_id(), new_id().bytes)
    for age in ("49 hours", "47 hours"):
        await bench.sql(
            "INSERT INTO idempotency_keys (principal, route, key, request_hash, created_at)"
            " VALUES ('p', 'r', $1, '', now() - $1::text::interval)", age,
        )  # fmt: skip
    for age in ("31 days", "29 days"):
        await bench.sql(
            "INSERT INTO jobs (type, state, finished_at) SELECT 't', s,"
            " CASE WHEN s <> 'waiting' THEN now() - $1::text::interval END"
            " FROM unnest(ARRAY['done', 'failed', 'waiting']) AS s", age,
        )  # fmt: skip
        await bench.sql(
            "INSERT INTO periodic_runs (name, due_at) VALUES ('p', now() - $1::text::interval)",
            age,
        )
    for age in ("91 days", "91 days", "89 days"):
        await bench.sql(
            "INSERT INTO workflow_runs (event_id, matched, created_at)"
            " VALUES (gen_random_uuid(), false, now() - $1::text::interval)",
            age,
        )
    await bench.sql("UPDATE jobs SET created_at = now() - interval '90 days'")
    for n, (age, reason, came) in enumerate(
        (("8 days", "missing", False), ("6 days", "missing", False), ("8 days", "missing", True),
         ("8 days", "limits", True)),
    ):  # fmt: skip
        await bench.sql(
            "INSERT INTO attachments (ticket_id, object_key, original_filename, size,"
            " scanned_status, scan_reason, scanned_at, uploaded_at) VALUES ($1, $2, 'a', 1,"
            " 'FAILED', $3, now() - $4::text::interval, CASE WHEN $5::bool THEN now() END)",
            ticket.id, f"k{n}", reason, age, came,
        )  # fmt: skip
    for age in ("91 days", "25 hours", "23 hours"):
        await bench.sql(
            "INSERT INTO emails (to_address, subject, body_text, kind, status, created_at,"
            " expires_at) SELECT 'a@example.org', 's', 'b', k, s, now() - $1::text::interval,"
            " CASE WHEN k <> 'notification' THEN now() - $1::text::interval + '1 day' END"
            " FROM (VALUES ('notification', 'sent'), ('password_reset', 'failed'),"
            " ('verification', 'queued')) AS m (k, s)", age,
        )  # fmt: skip
    for days in (29, 31):
        await bench.sql(
            "INSERT INTO jira_deliveries VALUES ($1::int::text, now() - make_interval(days => $1))",
            days,
        )
    closed = await bench.ticket(alice)
    await bench.sql("UPDATE tickets SET status = 'closed' WHERE id = $1", closed.id)
    for days in (29, 31):
        for about in (ticket, closed):
            await bench.sql(
                "INSERT INTO suggestions (ticket_id, kind, proposal, source, state, decided_at,"
                " created_at) SELECT $1, 'reply', 'x', 'rules', state,"
                " CASE WHEN state = 'accepted' THEN now() END, now() - make_interval(days => $2)"
                " FROM unnest(ARRAY['superseded', 'accepted']) AS state", about.id, days,
            )  # fmt: skip
            await bench.sql(
                "INSERT INTO suggestions (ticket_id, kind, proposal, source, created_at) VALUES"
                " ($1, $2, 'x', 'rules', now() - make_interval(days => $3))",
                about.id, "summary" if days == 29 else "reply", days,
            )  # fmt: skip
    deleted = await clean_up(bench.desk.db, days=30)
    assert deleted == {
        "suggestions": 3,
        "sessions": 1, "verifications": 1, "resets": 1, "answers": 1, "files": 1, "runs": 1,
        "jobs": 2, "mailed_links": 2, "emails": 2, "workflow_runs": 2,
        "deliveries": 1, "challenges": 1, "api_access": 1, "counts": 0, "guesses": 0, "sign_ins": 0,
    }  # fmt: skip
    assert plain(deleted, str) == deleted, "the log masks a count"
    for table, left in (
        ("refresh_tokens", 1), ("verification_tokens", 1), ("password_reset_tokens", 1),
        ("login_challenges", 1), ("api_tokens", 1),
        ("idempotency_keys", 1), ("attachments", 3), ("periodic_runs", 1), ("jobs", 4),
        ("jira_deliveries", 1), ("suggestions", 9), ("emails", 7),
        ("emails WHERE body_text = ''", 1),
    ):  # fmt: skip
        assert await bench.sql(f"SELECT count(*) FROM {table}") == left, table  # noqa: S608
    assert not any((await clean_up(bench.desk.db, days=30)).values())


async def test_cleaning_up_goes_batch_by_batch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much has piled up, no statement is long."""
    monkeypatch.setattr("itdesk.desk.schedules.BATCH", 10)
    await bench.sql(
        "INSERT INTO jobs (type, state, finished_at)"
        " SELECT 't', 'done', now() - interval '1 year' FROM generate_series(1, 35)"
    )
    assert (await clean_up(bench.desk.db, days=30))["jobs"] == 35
    assert await bench.sql("SELECT count(*) FROM jobs") == 0
