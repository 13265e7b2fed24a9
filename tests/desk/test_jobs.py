"""Durable jobs: claims, fences, lanes, retries; several nodes on one real PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel

from itdesk.desk.jobs import Job
from itdesk.errors import Conflict, Forbidden, NotFound
from itdesk.hookspecs import GiveUp, JobType, RetryLater
from itdesk.model import SYSTEM, Caller, Event, Role
from itdesk.runtime.clock import Clock, FakeClock
from itdesk.store import jobs as store
from itdesk.store.jobs import JobState, NewJob
from itdesk.store.paging import Window
from tests.support.jobs import Node, Nodes
from tests.support.postgres import Server

WINDOW = Window()


async def _nothing(job: Job) -> None:
    pass


def kind(handle: Callable[[Job], Awaitable[None]] = _nothing, **how: Any) -> JobType:
    return JobType(**{"name": "work", "handle": handle, "concurrency": 100, **how})


class Effects:
    """A handler whose effect is a row, written together with the end of the job."""

    async def __call__(self, job: Job) -> None:
        async with job.transaction() as tx:
            await tx.conn.execute("INSERT INTO effects (job) VALUES ($1)", job.id)

    @staticmethod
    async def prepare(node: Node) -> None:
        await node.sql("CREATE TABLE effects (job uuid)")


# --- queueing ------------------------------------------------------------------------------


async def test_a_job_is_queued_with_its_event_or_not_at_all(nodes: Nodes) -> None:
    """R-03: one statement writes journal and job; a rollback takes both."""
    node = nodes(kind(on_events=("ticket.created",), lane=lambda event: f"t:{event.actor_name}"))
    event = Event.by(SYSTEM, "ticket.created")
    with pytest.raises(RuntimeError, match="changed its mind"):
        async with node.db.transaction() as tx:
            tx.record(event)
            tx.enqueue("other", {"n": 1})
            raise RuntimeError("changed its mind")
    assert await node.rows() == [] and await node.sql("SELECT count(*) FROM events") == 0
    statements: list[str] = []
    async with node.db.transaction() as tx:
        tx.conn.add_query_logger(lambda query: statements.append(query.query))
        tx.record(event, Event.by(SYSTEM, "user.created"))
        tx.enqueue("other", {"n": 1})
    writes = [statement for statement in statements if "INSERT" in statement]
    assert len(writes) == 1
    columns = "type, lane, event_id, state, args ->> 'type'"
    assert await node.rows(columns) == [
        ("other", None, None, "waiting", None),
        ("work", "t:itdesk", event.id, "waiting", "ticket.created"),
    ]
    assert await node.sql("SELECT count(*) FROM events") == 2
    assert len(node.worker.mailbox) == 1  # woken by the commit


async def test_a_type_that_cannot_make_its_job_does_not_refuse_the_change(nodes: Nodes) -> None:
    """The event is committed; the job is there as failed, with the reason and without the text."""

    def bad(event: Event) -> dict[str, Any]:
        raise KeyError("hunter2")

    broken = kind(name="broken", on_events=("ticket.created",), args=bad)
    odd: Any = kind(name="odd", on_events=("ticket.created",), lane=lambda event: 7)
    node = nodes(broken, odd, kind(on_events=("ticket.created",)))
    async with node.db.transaction() as tx:
        tx.record(Event.by(SYSTEM, "ticket.created"))
    rows = await node.rows("type, state, last_error")
    assert [row[:2] for row in rows] == [
        ("broken", "failed"), ("odd", "failed"), ("work", "waiting"),
    ]  # fmt: skip
    assert "KeyError" in rows[0][2] and "hunter2" not in rows[0][2]


async def test_the_same_work_is_queued_once_while_it_is_unfinished(nodes: Nodes) -> None:
    """Waiting and leased jobs hold their dedupe key; finished ones do not."""
    node = nodes(kind())
    for _ in range(2):
        await node.enqueue("work", dedupe="ticket 1, version 3")
    assert len(await node.rows()) == 1
    (held,) = await node.jobs.claim({})
    await node.enqueue("work", dedupe="ticket 1, version 3")
    assert len(await node.rows()) == 1
    await node.jobs.run(held)
    await node.enqueue("work", dedupe="ticket 1, version 3")
    assert await node.rows() == [("done",), ("waiting",)]


async def test_a_lane_is_in_the_order_of_commits(nodes: Nodes, pg_server: Server) -> None:
    """Whoever adds to a lane later waits for who added first: a position is never overtaken."""
    node = nodes(kind())
    first, second = [await asyncpg.connect(node.db.url) for _ in range(2)]
    try:
        await first.execute("BEGIN")
        await store.add(first, [NewJob.of("work", {"n": 1}, lane="a")])
        async with asyncio.TaskGroup() as group:
            adding = group.create_task(store.add(second, [NewJob.of("work", {"n": 2}, lane="a")]))
            # Another lane waits for nobody.
            await node.enqueue("work", lane="b")
            await pg_server.until(node.db.url, "pg_advisory_xact_lock")
            assert not adding.done() and len(await node.rows()) == 1
            await first.execute("COMMIT")
    finally:
        await first.close()
        await second.close()
    assert await node.rows("lane, args ->> 'n'") == [("a", "1"), ("b", None), ("a", "2")]


# --- claiming ------------------------------------------------------------------------------


async def test_one_statement_claims_a_batch_and_respects_each_types_room(nodes: Nodes) -> None:
    """Concurrency is per type: a full one leaves room for the others; nobody's type stays."""
    node = nodes(kind(concurrency=3), kind(name="mail", concurrency=2))
    for name in ("work", "mail", "unknown"):
        for _ in range(5):
            await node.enqueue(name)
    held = await node.jobs.claim({"work": 1})
    assert Counter(one.type for one in held) == {"work": 2, "mail": 2}
    assert await node.jobs.claim({"work": 3, "mail": 2}) == []
    columns = "type, owner, epoch, attempts, lease_until > now() + interval '25 s'"
    leased = [row for row in await node.rows(columns) if row[1]]
    assert set(leased) == {(name, node.jobs.owner, 1, 1, True) for name in ("work", "mail")}


async def test_a_lane_runs_one_job_at_a_time_and_other_lanes_do_not_wait(nodes: Nodes) -> None:
    """Two nodes: the second takes the other lane and what has none."""
    a, b = nodes(kind()), nodes(kind())
    for lane in ("x", "x", "y", None, "x", "y"):
        await a.enqueue("work", lane=lane)
    first = await a.jobs.claim({})
    assert len(first) == 3  # x, y and the one without a lane
    assert await b.jobs.claim({}) == []
    for one in first:
        await a.jobs.run(one)
    assert len(await b.jobs.claim({})) == 2 and await a.jobs.claim({}) == []


async def test_a_retry_holds_up_its_lane_and_no_other(nodes: Nodes) -> None:
    """In order of position: the later jobs of the lane wait for the earlier one's next attempt."""
    done: list[int] = []
    failing = True

    async def handle(job: Job) -> None:
        if job.args["n"] == 1 and failing:
            raise RetryLater(100)
        done.append(job.args["n"])

    node = nodes(kind(handle))
    for n, lane in enumerate(("x", "x", "y", "x", "y"), start=1):
        await node.enqueue("work", args={"n": n}, lane=lane)
    await node.poll()
    assert done == [3, 5]
    failing = False
    await node.sql("UPDATE jobs SET run_at = now() WHERE state = 'waiting'")
    await node.poll()
    assert done == [3, 5, 1, 2, 4]


async def test_a_lane_given_up_goes_on_with_the_next(nodes: Nodes) -> None:
    """A failed job does not hold its lane; retried, it is behind what the lane holds."""
    done: list[int] = []

    async def handle(job: Job) -> None:
        if job.args["n"] == 1 and not done:
            raise GiveUp("no such thing")
        done.append(job.args["n"])

    node = nodes(kind(handle))
    ids = [await node.enqueue("work", args={"n": n}, lane="x") for n in (1, 2)]
    await node.poll()
    assert done == [2]
    await node.enqueue("work", args={"n": 3}, lane="x")
    await node.jobs.retry(SYSTEM, ids[0])
    await node.poll()
    assert done == [2, 3, 1]


async def test_a_long_job_keeps_no_other_type_waiting(nodes: Nodes) -> None:
    """The worker takes new work while an import runs; a second import waits for its turn."""
    gate, started = asyncio.Event(), asyncio.Event()
    running: list[str] = []

    async def imports(job: Job) -> None:
        running.append("import")
        started.set()
        await gate.wait()

    async def mails(job: Job) -> None:
        running.append("mail")

    node = nodes(kind(imports, name="import", concurrency=1), kind(mails, name="mail"))
    await node.enqueue("import")
    await node.enqueue("import")
    left = "SELECT count(*) FROM jobs WHERE type = 'mail' AND state <> 'done'"
    async with asyncio.TaskGroup() as group:
        group.create_task(node.worker.step())
        await started.wait()
        for _ in range(2):
            await node.enqueue("mail")
            while await node.sql(left):
                pass
            for _ in range(10):  # the worker has nothing to do again
                await node.sql(left)
        assert running == ["import", "mail", "mail"]
        gate.set()
    assert {row[0] for row in await node.rows()} == {"done"}
    assert Counter(running) == {"import": 2, "mail": 2}


# --- fencing -------------------------------------------------------------------------------


async def test_an_overtaken_worker_changes_nothing(nodes: Nodes) -> None:
    """R-05: 100 rounds of a claim, its end by the clock, another's run, and the late end."""
    a, b = nodes(kind(Effects())), nodes(kind(Effects()))
    await Effects.prepare(a)
    for _ in range(100):
        await a.enqueue("work")
        (late,) = await a.jobs.claim({})
        await a.expire_leases()
        await b.poll()
        before = await a.rows("to_jsonb(jobs)")
        async with a.db.connection() as conn:
            assert not await store.renew(conn, late, lease_seconds=30)
            assert not await store.put_back(conn, late, seconds=0, reason="late", counted=True)
            assert not await store.fail(conn, late, reason="late")
            assert not await store.finish(conn, late)
        await a.jobs.run(late)
        assert await a.rows("to_jsonb(jobs)") == before
    assert await a.sql("SELECT count(*) FROM effects") == 100
    assert await a.sql("SELECT count(DISTINCT job) FROM effects") == 100
    assert a.metric("itdesk_jobs_stale_completions_total") == 100
    assert b.metric("itdesk_jobs_stolen_total") == 100
    assert b.metric("itdesk_jobs_finished_total", type="work", outcome="done") == 100


async def test_a_late_end_does_not_end_the_new_attempt(nodes: Nodes) -> None:
    """R-05: while B still works, A's end writes nothing; the epoch tells them apart."""
    a, b = nodes(kind()), nodes(kind())
    await a.enqueue("work")
    (late,) = await a.jobs.claim({})
    await a.expire_leases()
    (current,) = await b.jobs.claim({})
    assert current.epoch == late.epoch + 1 and current.attempts == 2
    await a.jobs.run(late)
    assert await a.rows("state, owner") == [("leased", b.jobs.owner)]
    assert a.metric("itdesk_jobs_stale_completions_total") == 1
    await b.jobs.run(current)
    assert await a.rows() == [("done",)]


async def test_what_a_dead_worker_held_is_taken_over(nodes: Nodes) -> None:
    """R-04: 100 leased jobs of a dead worker; none before the lease is over, then each once."""
    attempts: Counter[Any] = Counter()
    running: set[Any] = set()

    async def handle(job: Job) -> None:
        assert job.id not in running
        running.add(job.id)
        await asyncio.gather(*(_nothing(job) for _ in range(3)))
        running.remove(job.id)
        attempts[job.id] += 1

    dead, b, c = nodes(kind()), nodes(kind(handle)), nodes(kind(handle))
    async with dead.db.transaction() as tx:
        ids = {tx.enqueue("work", {}, lane=f"l{n}" if n % 2 else None) for n in range(100)}
    assert len(await dead.jobs.claim({})) == 100
    await dead.db.close()
    await asyncio.gather(b.poll(), c.poll())
    assert not attempts
    await b.expire_leases()
    await asyncio.gather(b.poll(), c.poll())
    assert attempts == dict.fromkeys(ids, 1)
    assert set(await b.rows("state, attempts, epoch")) == {("done", 2, 2)}
    stolen = [node.metric("itdesk_jobs_stolen_total") for node in (b, c)]
    assert sum(stolen) == 100


async def test_a_lease_is_renewed_while_its_job_runs(nodes: Nodes) -> None:
    """And when it was taken over all the same, the handler is cut and writes nothing."""
    clock, started, cut = FakeClock(), asyncio.Event(), asyncio.Event()

    async def handle(job: Job) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cut.set()

    node = nodes(kind(handle), clock=clock)
    await node.enqueue("work")
    query = "SELECT lease_until FROM jobs"
    async with asyncio.TaskGroup() as group:
        group.create_task(node.worker.step())
        await started.wait()
        await node.sql("UPDATE jobs SET lease_until = now() + interval '1 s'")
        before = await node.sql(query)
        await clock.advance(10.0)
        while await node.sql(query) == before:
            pass
        assert not cut.is_set()
        await node.sql("UPDATE jobs SET epoch = epoch + 1, owner = 'somebody else'")
        await clock.advance(10.0)
        await cut.wait()
    assert await node.rows("state, owner, epoch") == [("leased", "somebody else", 2)]
    assert node.metric("itdesk_jobs_stale_completions_total") == 1


async def test_a_stopping_worker_gives_back_what_it_holds(nodes: Nodes) -> None:
    """Unstarted or cut short, it is there for others at once, and no attempt was made."""
    started = asyncio.Event()

    async def handle(job: Job) -> None:
        started.set()
        await asyncio.Event().wait()

    node, other = nodes(kind(handle, concurrency=2)), nodes(kind())
    await node.enqueue("work")
    await node.enqueue("work")
    async with asyncio.TaskGroup() as group:
        stepping = group.create_task(node.worker.step())
        await started.wait()
        node.worker.mailbox.close()
        await node.enqueue("work")
        stepping.cancel()
    await node.worker.teardown()
    assert await node.rows("state, attempts, owner") == [("waiting", 0, None)] * 3
    await other.poll()
    assert await node.rows("state, attempts") == [("done", 1)] * 3


async def test_a_stopping_worker_claims_no_more(nodes: Nodes) -> None:
    """What runs is finished; what waits is left for others."""
    started, gate = asyncio.Event(), asyncio.Event()

    async def handle(job: Job) -> None:
        started.set()
        await gate.wait()

    node = nodes(kind(handle, concurrency=1))
    await node.enqueue("work")
    await node.enqueue("work")
    async with asyncio.TaskGroup() as group:
        group.create_task(node.worker.step())
        await started.wait()
        node.worker.mailbox.close()
        gate.set()
    assert await node.rows() == [("done",), ("waiting",)]


# --- attempts ------------------------------------------------------------------------------


async def test_attempts_are_spaced_out_and_capped(nodes: Nodes) -> None:
    """Exponential, at most 10, 20, 40, 80 s; after the fifth the job is failed, and counted."""

    async def handle(job: Job) -> None:
        raise ValueError("the password is hunter2")

    node = nodes(kind(handle))
    await node.enqueue("work")
    pauses = []
    for _ in range(4):
        await node.poll()
        pauses.append(await node.sql("SELECT extract(epoch FROM run_at - now())::int FROM jobs"))
        assert (await node.rows("state, owner"))[0] == ("waiting", None)
        await node.sql("UPDATE jobs SET run_at = now()")
    assert pauses == [10, 20, 40, 80]
    await node.poll()
    ((state, attempts, error),) = await node.rows("state, attempts, last_error")
    assert (state, attempts) == ("failed", 5)
    assert "ValueError" in error and "hunter2" not in error and len(error) <= 200
    assert node.metric("itdesk_jobs_finished_total", type="work", outcome="failed") == 1
    await node.poll()
    assert node.metric("itdesk_jobs_dead") == 1
    assert node.metric("itdesk_jobs_oldest_seconds", type="work") == 0


async def test_jitter_is_full(nodes: Nodes) -> None:
    """A pause is anything from nothing to the longest of its attempt."""

    async def handle(job: Job) -> None:
        raise ValueError

    node = nodes(kind(handle, attempts=2))
    node.jobs._dice = lambda: 0.25
    await node.enqueue("work")
    await node.poll()
    assert round(await node.sql("SELECT extract(epoch FROM run_at - now())::float8 FROM jobs")) == 2


async def test_retry_after_wins(nodes: Nodes) -> None:
    """What the remote system asks for is what it gets; an outage need not cost an attempt."""
    counted = False

    async def handle(job: Job) -> None:
        raise RetryLater(1234, "the mail server is down", counted=counted)

    node = nodes(kind(handle, attempts=2))
    await node.enqueue("work")
    for _ in range(5):
        await node.sql("UPDATE jobs SET run_at = now()")
        await node.poll()
    row = "state, attempts, last_error, round(extract(epoch FROM run_at - now()))::int"
    assert await node.rows(row) == [("waiting", 0, "the mail server is down", 1234)]
    counted = True
    for _ in range(2):
        await node.sql("UPDATE jobs SET run_at = now()")
        await node.poll()
    assert await node.rows("state, attempts") == [("failed", 2)]


async def test_a_hung_job_is_cut_and_given_up(nodes: Nodes) -> None:
    """R-08: each attempt ends at its deadline; the others run meanwhile."""

    async def hang(job: Job) -> None:
        await asyncio.Event().wait()

    node = nodes(kind(hang, name="hang", attempts=3, timeout_seconds=0.02), kind(), clock=Clock())
    await node.enqueue("hang")
    for _ in range(3):
        await node.enqueue("work")
        await node.sql("UPDATE jobs SET run_at = now() WHERE state = 'waiting'")
        await node.poll()
    rows = await node.rows("type, state, attempts")
    assert rows == [("hang", "failed", 3), *[("work", "done", 1)] * 3]
    assert "longer than 0.02 s" in (await node.rows("last_error"))[0][0]


async def test_a_job_that_kills_its_process_is_given_up(nodes: Nodes) -> None:
    """R-08: attempts are counted when they begin; the fifth dead process was the last."""
    first = nodes(kind())
    await first.enqueue("work")
    for _ in range(5):
        dead = nodes(kind())
        assert len(await dead.jobs.claim({})) == 1
        await dead.db.close()
        await first.expire_leases()
    await first.poll()
    ((state, attempts, error),) = await first.rows("state, attempts, last_error")
    assert (state, attempts) == ("failed", 5) and "never came back" in error
    assert first.metric("itdesk_jobs_finished_total", type="work", outcome="failed") == 1


async def test_innocent_jobs_do_not_die_with_a_poisonous_one(nodes: Nodes) -> None:
    """R-08: what outlived two processes runs alone among its like; the fresh ones go on."""
    node = nodes(kind())
    for _ in range(4):
        await node.enqueue("work")
    for _ in range(2):
        dead = nodes(kind())
        assert len(await dead.jobs.claim({})) == 4
        await node.expire_leases()
    await node.enqueue("work")
    held = await node.jobs.claim({})
    assert [one.attempts for one in held] == [3, 1]
    assert [node.jobs.is_suspect(one) for one in held] == [True, False]
    assert await node.jobs.claim({}, suspects=False) == []
    for one in held:
        await node.jobs.run(one)
    together = 0

    async def count(job: Job) -> None:
        nonlocal together
        together += 1
        assert together == 1
        await asyncio.gather(_nothing(job), _nothing(job))
        together -= 1

    await nodes(kind(count)).poll()
    assert sorted(await node.rows("state, attempts")) == [("done", 1), *[("done", 3)] * 4]


@pytest.mark.parametrize("args", ["[1, 2]", "null", '"x"', '{"n": 1' + "0" * 400 + "}"])
async def test_an_unreadable_job_is_given_up_at_once(nodes: Nodes, args: str) -> None:
    """R-08: with a reason; and what was claimed together with it is done."""

    class Wanted(BaseModel):
        n: int

    async def handle(job: Job) -> None:
        job.read(Wanted)

    node = nodes(kind(handle))
    insert = "INSERT INTO jobs (type, args) VALUES ('work', $1::text::jsonb)"
    await node.sql(insert, args)
    await node.enqueue("work", args={"m": 2})
    await node.enqueue("work", args={"n": 3})
    await node.poll()
    assert await node.rows("state, attempts") == [("failed", 1), ("failed", 1), ("done", 1)]
    (first, second, _) = await node.rows("last_error")
    assert first[0].startswith("its arguments cannot be read")
    assert second == ("its arguments cannot be read: n",)


async def test_a_handler_that_cancels_itself_has_failed(nodes: Nodes) -> None:
    """Only its worker can cut a job short; anything else is a failed attempt."""

    async def handle(job: Job) -> None:
        raise asyncio.CancelledError

    node = nodes(kind(handle))
    await node.enqueue("work")
    await node.poll()
    assert await node.rows("state, attempts") == [("waiting", 1)]


async def test_what_was_committed_stays_done_whatever_the_handler_says(nodes: Nodes) -> None:
    """The end of a job is in its transaction: a later failure cannot repeat the effect."""

    async def handle(job: Job) -> None:
        await Effects()(job)
        raise ValueError("too late")

    node = nodes(kind(handle))
    await Effects.prepare(node)
    await node.enqueue("work")
    await node.poll()
    await node.poll()
    assert await node.rows("state, attempts") == [("done", 1)]
    assert await node.sql("SELECT count(*) FROM effects") == 1
    assert node.metric("itdesk_jobs_stale_completions_total") == 0


async def test_a_failed_handler_leaves_no_effect(nodes: Nodes) -> None:
    """Effect and end are one transaction."""

    async def handle(job: Job) -> None:
        async with job.transaction() as tx:
            await tx.conn.execute("INSERT INTO effects (job) VALUES ($1)", job.id)
            raise ValueError

    node = nodes(kind(handle))
    await Effects.prepare(node)
    await node.enqueue("work")
    await node.poll()
    assert await node.rows() == [("waiting",)]
    assert await node.sql("SELECT count(*) FROM effects") == 0


async def test_remote_systems_can_tell_repeated_attempts(nodes: Nodes) -> None:
    """R-03: the key that a request carries is the same at every attempt."""
    keys = []

    async def handle(job: Job) -> None:
        async with job.sending() as key:
            keys.append(key)
        if job.attempt == 1:
            raise RetryLater(0)

    node = nodes(kind(handle))
    job_id = await node.enqueue("work")
    await node.poll()
    await node.poll()
    assert keys == [str(job_id)] * 2


async def test_a_clock_hours_off_does_no_harm(nodes: Nodes) -> None:
    """Leases and pauses are judged by the database: a node in another year claims nothing more."""
    clocks = [FakeClock(), FakeClock()]
    await clocks[1].advance(9 * 3600)
    slow, fast = [nodes(kind(), clock=clock) for clock in clocks]
    await slow.enqueue("work", seconds=60)
    await slow.enqueue("work")
    assert len(await slow.jobs.claim({})) == 1
    assert await fast.jobs.claim({}) == []
    await slow.sql("UPDATE jobs SET run_at = now()")
    assert len(await fast.jobs.claim({})) == 1
    assert fast.metric("itdesk_jobs_stolen_total") == 0


async def test_the_oldest_due_job_shows(nodes: Nodes) -> None:
    """O-12: by type; what is not due yet is not late."""
    node = nodes(kind())
    await node.enqueue("unknown")
    await node.enqueue("later", seconds=1000)
    await node.sql("UPDATE jobs SET run_at = now() - interval '90 s' WHERE type = 'unknown'")
    await node.poll()
    assert 89 < node.metric("itdesk_jobs_oldest_seconds", type="unknown") < 100
    assert node.metric("itdesk_jobs_oldest_seconds", type="later") == 0


# --- looking after -------------------------------------------------------------------------


async def test_administrators_retry_and_cancel(nodes: Nodes) -> None:
    """Each in its state only, and journaled."""
    node = nodes(kind())
    waiting, other = [await node.enqueue("work", dedupe=key) for key in ("a", None)]
    agent = Caller(None, "Ann", Role.AGENT)
    for refused in (
        node.jobs.retry(agent, waiting),
        node.jobs.cancel(agent, waiting),
        node.jobs.list(agent, WINDOW, state=None, type=None),
    ):
        with pytest.raises(Forbidden):
            await refused
    with pytest.raises(NotFound):
        await node.jobs.retry(SYSTEM, "no-such-job")
    with pytest.raises(Conflict):
        await node.jobs.retry(SYSTEM, waiting)
    cancelled = await node.jobs.cancel(SYSTEM, waiting)
    assert cancelled.state is JobState.FAILED and cancelled.last_error == "cancelled by itdesk"
    with pytest.raises(Conflict):
        await node.jobs.cancel(SYSTEM, waiting)
    await node.enqueue("work", dedupe="a")
    with pytest.raises(Conflict) as again:
        await node.jobs.retry(SYSTEM, waiting)
    assert again.value.code == "E_JOB_QUEUED_AGAIN"
    await node.poll()
    retried = await node.jobs.retry(SYSTEM, waiting)
    assert (retried.state, retried.attempts) == (JobState.WAITING, 0)
    await node.poll()
    page = await node.jobs.list(SYSTEM, Window(limit=2), state=JobState.DONE, type="work")
    assert [job.id for job in page.items][0] == waiting and page.next_cursor is not None
    rest = Window(limit=2, cursor=page.next_cursor)
    following = await node.jobs.list(SYSTEM, rest, state=JobState.DONE, type="work")
    assert [job.id for job in following.items] == [other]
    journaled = "SELECT array_agg(type ORDER BY id) FROM events"
    assert await node.sql(journaled) == ["job.cancelled", "job.retried"]
