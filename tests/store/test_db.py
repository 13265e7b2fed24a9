"""The pool and the transaction: fair, bounded, and never lending what is broken."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg
import pytest

from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.errors import Unavailable
from itdesk.model import SYSTEM, Event
from itdesk.store import db as database
from itdesk.store.db import Database, Limits
from itdesk.store.failures import Contention
from tests.support.load import eventually
from tests.support.small_desk import SmallDesk, serving


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    """Two connections, and little patience."""
    db = Database(database_url, Limits(2, 2.0, 0.5, 2.0))
    yield db
    await db.close()


@asynccontextmanager
async def _all_lent(db: Database) -> AsyncIterator[asyncio.Event]:
    """Keep every connection lent out until the event is set."""
    release, lent = asyncio.Event(), asyncio.Barrier(db.limits.connections + 1)

    async def hold() -> None:
        async with db.connection() as conn:
            await conn.fetchval("SELECT 1")
            await lent.wait()
            await release.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(db.limits.connections):
            group.create_task(hold())
        await lent.wait()
        yield release
        release.set()


async def test_connections_are_there_before_they_are_needed(db: Database) -> None:
    """`warm` opens as many as asked for, never more than there may be, and lends none out."""
    await db.warm(5)
    assert (db.in_use, len(db._idle)) == (0, 2)


async def test_waiters_are_served_in_their_order(database_url: str) -> None:
    """The oldest waiter gets the next connection: nobody starves."""
    db = Database(database_url, Limits(1, 2.0, 5.0, 2.0))
    order: list[int] = []

    async def use(number: int) -> None:
        async with db.connection() as conn:
            order.append(number)
            await conn.fetchval("SELECT 1")

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(use(number))
    assert order == list(range(20)) and db.in_use == 0
    await db.close()


async def test_waiting_for_a_connection_is_bounded(db: Database) -> None:
    """All are in use: Unavailable within the deadline, and nothing leaks."""
    async with _all_lent(db):
        with pytest.raises(Unavailable):
            async with db.connection():
                pass
        assert db.waiting == 0
    assert db.in_use == 0
    await db.ping()


async def test_a_cancelled_waiter_passes_its_connection_on(db: Database) -> None:
    """Who gave up in the very moment of being served does not take the connection away."""

    async def waits() -> bool:
        return db.waiting > 0

    async with _all_lent(db) as release:
        waiter = asyncio.get_running_loop().create_task(db.ping())
        await eventually(waits, seconds=5)
        handed_over = db._hand_over

        def cancel_then_hand_over(conn: Any) -> None:
            handed_over(conn)
            waiter.cancel()

        db._hand_over = cancel_then_hand_over  # type: ignore[method-assign]
        release.set()
    await asyncio.gather(waiter, return_exceptions=True)
    assert waiter.cancelled() and db.in_use == 0
    await asyncio.gather(db.ping(), db.ping())


async def test_a_slow_statement_is_cut_and_its_connection_dropped(db: Database) -> None:
    """A command over its deadline is an outage; the half-read connection is never lent again."""
    db.limits = Limits(2, 2.0, 0.5, 0.2)
    with pytest.raises(Unavailable):
        async with db.connection() as conn:
            await conn.fetchval("SELECT pg_sleep(5)")
    assert db.in_use == 0
    await db.ping()


async def test_a_connection_that_broke_is_replaced(db: Database) -> None:
    """The server ended the session in the middle: one Unavailable, then all is well."""
    with pytest.raises(Unavailable):
        async with db.transaction() as tx:
            await tx.conn.fetchval("SELECT pg_terminate_backend(pg_backend_pid())")
    await db.ping()


async def test_what_was_rolled_back_is_told_to_nobody(db: Database) -> None:
    """Events are told after the commit, and only then."""
    told: list[str] = []
    db.listeners.append(lambda events: told.extend(event.type for event in events))
    with pytest.raises(LookupError):
        async with db.transaction() as tx:
            tx.record(Event.by(SYSTEM, "user.created"))
            tx.after_commit(lambda: told.append("callback"))
            raise LookupError
    assert told == []
    async with db.transaction() as outer, db.transaction() as inner:
        assert inner is outer
        inner.record(Event.by(SYSTEM, "user.created"))
        assert told == []
    assert told == ["user.created"]


async def test_a_transaction_that_cannot_begin_leaves_nothing_behind(db: Database) -> None:
    """The next one of the same task is a new one, not the one that never was."""
    async with db.connection() as conn:
        pid = await conn.fetchval("SELECT pg_backend_pid()")
    other = await asyncpg.connect(db.url)
    await other.fetchval("SELECT pg_terminate_backend($1)", pid)
    await other.close()
    for _ in range(5):
        try:
            async with db.transaction() as tx:
                assert await tx.conn.fetchval("SELECT 1") == 1
                break
        except Unavailable:
            continue
    else:
        raise AssertionError("never recovered")


@asynccontextmanager
async def _mute() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Lend the URL of a server that takes connections and says nothing, and who has come."""
    came: list[asyncio.StreamWriter] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)
        with suppress(ConnectionError):
            await reader.read()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        yield f"postgresql://itdesk@127.0.0.1:{server.sockets[0].getsockname()[1]}/itdesk", came
        for writer in came:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_a_silent_server_is_left_alone_for_a_while_after_the_last_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P-12: while we serve it is asked each time; while we end it costs one deadline, not many."""
    async with _mute() as (url, came):
        db = Database(url, Limits(2, 0.2, 5.0, 0.2))
        for _ in range(3):
            with pytest.raises(Unavailable):
                await db.ping()
        assert len(came) == 3
        db.last_calls()
        ends = await asyncio.gather(*(db.ping() for _ in range(9)), return_exceptions=True)
        assert {type(end) for end in ends} == {Unavailable}
        assert len(came) == 5, "those who waited for a connection tried one of their own"
        with pytest.raises(Unavailable, match="being stopped"):
            await db.ping()
        assert (len(came), db.in_use, db.waiting) == (5, 0, 0)
        monkeypatch.setattr(database, "LEFT_ALONE_SECONDS", 0.0)
        db._unanswered()
        with pytest.raises(Unavailable, match="in time"):
            await db.ping()
        assert len(came) == 6, "a server that may be back was not asked again"
        await db.close()


async def test_last_calls_are_answered_by_a_server_that_listens(db: Database) -> None:
    """A statement that fails, or is cut short by the server, is no silence."""
    db.last_calls()
    with pytest.raises(asyncpg.UndefinedTableError):
        async with db.connection() as conn:
            await conn.fetchval("SELECT 1 FROM nowhere")
    async with _all_lent(db):
        with pytest.raises(Unavailable):
            await db.ping()
    await db.ping()


tries: list[str] = []


class Pair(Body):
    """Two rows to change, in this order."""

    first: str
    second: str


async def _change_both(call: Call) -> Reply:
    """Change two projects, one after the other."""
    tries.append(call.body.first)
    async with call.desk.db.transaction() as tx:
        for key in (call.body.first, call.body.second):
            await tx.conn.execute(
                "UPDATE projects SET next_number = next_number + 1 WHERE key = $1", key
            )
            await tx.conn.fetchval("SELECT pg_sleep(0.005)")
    return Reply({"done": True})


async def test_deadlocks_are_tried_again_and_never_a_500(database_url: str) -> None:
    """R-26: two rows taken in both orders by many at once; every change happens, or is a 503."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("INSERT INTO projects (key, name) VALUES ('AA', 'a'), ('BB', 'b')")
    await conn.execute("ALTER DATABASE " + conn_name(database_url) + " SET deadlock_timeout = '5'")
    await conn.close()
    db = Database(database_url, Limits(8, 5.0, 30.0, 30.0))
    route = Route(
        id="T1", method="POST", path="/both", handler=_change_both, who=Who.USER, tag="t",
        body=Pair,
    )  # fmt: skip
    async with serving(SmallDesk(db), [route]) as server:

        async def ask(number: int) -> Any:
            keys = ("AA", "BB") if number % 2 else ("BB", "AA")
            body = {"first": keys[0], "second": keys[1]}
            return await server.ask("POST", "/api/v1/both", json=body, role=SYSTEM.role)

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask(number)) for number in range(40)]
        statuses = [task.result().status for task in asked]
        assert set(statuses) <= {200, 503}
        for task in asked:
            if task.result().status == 503:
                assert task.result().json()["error"] == "E_DATABASE_BUSY"
                assert "Retry-After" in task.result().headers
    async with db.connection() as conn:
        numbers = await conn.fetch("SELECT next_number - 1 AS n FROM projects WHERE key <> 'TSK'")
    assert [row["n"] for row in numbers] == [statuses.count(200)] * 2
    assert len(tries) > 40, "there was no deadlock to try"
    await db.close()


def conn_name(url: str) -> str:
    """Return the name of the database of a test's URL."""
    return url.partition("?")[0].rpartition("/")[2]


async def test_a_deadlock_is_contention(database_url: str) -> None:
    """The loser of a deadlock is told apart from an outage."""
    db = Database(database_url)
    async with db.transaction() as tx:
        await tx.conn.execute("INSERT INTO projects (key, name) VALUES ('AA', 'a'), ('BB', 'b')")
    both = asyncio.Barrier(2)

    async def take(first: str, second: str) -> None:
        async with db.transaction() as tx:
            await tx.conn.execute("UPDATE projects SET name = 'x' WHERE key = $1", first)
            await both.wait()
            await tx.conn.execute("UPDATE projects SET name = 'x' WHERE key = $1", second)

    results = await asyncio.gather(take("AA", "BB"), take("BB", "AA"), return_exceptions=True)
    assert [type(result) for result in results if result is not None] == [Contention]
    await db.close()
