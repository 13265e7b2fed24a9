"""The journal's numbers: dense, given after the commit, in the order of each ticket."""

import asyncio
import random
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from itdesk.actors.listener import Listener
from itdesk.actors.sequencer import Sequencer
from itdesk.model import SYSTEM, Entry, Event, Position
from itdesk.runtime.actor import TICK
from itdesk.store import events
from itdesk.store.db import Database
from tests.support.desk import Bench, bench_on


@pytest.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def _numbered(db: Database) -> list[Entry]:
    async with db.connection() as conn:
        return await events.after(conn, 0, limit=100_000)


async def _number(sequencer: Sequencer) -> None:
    sequencer.tell(TICK)
    while len(sequencer.mailbox):
        await sequencer.step()


async def test_numbers_are_dense_and_follow_each_tickets_version(bench: Bench) -> None:
    """P-06: concurrent writers, some of which roll back; no number is missing or out of order."""
    alice = await bench.person()
    tickets = [await bench.ticket(alice) for _ in range(4)]
    sequencer = Sequencer(bench.desk.db, bench.desk.metrics)
    dice = random.Random(7)

    async def write(number: int) -> None:
        ticket = tickets[number % len(tickets)]
        try:
            async with bench.desk.db.transaction() as tx:
                for _ in range(dice.randrange(3)):
                    await tx.conn.execute("SELECT 1")
                await bench.desk.tickets.comment(alice, ticket.key, f"number {number}")
                if number % 5 == 0:
                    raise LookupError
        except LookupError:
            pass

    for first in range(0, 120, 12):
        async with asyncio.TaskGroup() as group:
            for number in range(first, first + 12):
                group.create_task(write(number))
            group.create_task(_number(sequencer))
    await _number(sequencer)
    found = await _numbered(bench.desk.db)
    assert [entry.seq for entry in found] == list(range(1, len(found) + 1))
    assert len(found) == 1 + 4 + 96
    for ticket in tickets:
        versions = [e.event.ticket_version for e in found if e.event.ticket_id == ticket.id]
        assert versions == list(range(1, len(versions) + 1))


async def test_who_began_first_but_came_second_is_numbered_second(bench: Bench) -> None:
    """An event's time is its transaction's start: the version decides, not the time."""
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    early = await asyncpg.connect(bench.desk.db.url)
    await early.execute("BEGIN; SELECT now()")
    await bench.desk.tickets.comment(alice, ticket.key, "began later, committed first")
    await early.execute(
        """INSERT INTO events (ticket_id, ticket_version, type) VALUES ($1, 3, 'comment.added')""",
        ticket.id,
    )
    await early.execute("COMMIT")
    await early.close()
    async with bench.desk.db.transaction() as tx:
        while (await events.number_batch(tx.conn, 1) or (0, 0))[0]:
            pass
    versions = [e.event.ticket_version for e in await _numbered(bench.desk.db) if e.event.ticket_id]
    assert versions == [1, 2, 3]


async def test_one_sequencer_at_a_time_numbers(bench: Bench) -> None:
    """Two daemons: while one numbers the other does nothing, and nothing gets two numbers."""
    async with bench.desk.db.transaction() as tx:
        tx.record(*(Event.by(SYSTEM, "user.created") for _ in range(10)))
    other = await asyncpg.connect(bench.desk.db.url)
    async with bench.desk.db.transaction() as tx:
        assert await events.number_batch(tx.conn, 4) == (4, 4)
        async with other.transaction():
            assert await events.number_batch(other) is None
    async with other.transaction():
        assert await events.number_batch(other) == (6, 10)
    await other.close()


async def test_a_numbered_event_is_never_numbered_again(bench: Bench) -> None:
    """The database itself refuses a second number, and any other change."""
    async with bench.desk.db.transaction() as tx:
        tx.record(Event.by(SYSTEM, "user.created"))
    await _number(Sequencer(bench.desk.db, bench.desk.metrics))
    for change in ("seq = 99", "type = 'x'", "data = '{}'"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await bench.sql(f"UPDATE events SET {change}")  # noqa: S608 - the list above


async def test_the_listener_tells_of_growth_by_notification(bench: Bench) -> None:
    """One notification a batch wakes the listener, which then reads the truth."""
    listener, told = Listener(bench.desk.db), list[Position]()
    listener.subscribe(told.append)
    await listener.handle(TICK)
    assert listener.hears and told[-1].seq == 0
    async with bench.desk.db.transaction() as tx:
        tx.record(*(Event.by(SYSTEM, "user.created") for _ in range(3)))
    await _number(Sequencer(bench.desk.db, bench.desk.metrics))
    async with asyncio.timeout(10):
        await listener.mailbox.ready()
    assert len(listener.mailbox) == 1
    await listener.step()
    assert told[-1].seq == 3
    await listener.teardown()


async def test_the_poll_finds_what_no_notification_told(bench: Bench) -> None:
    """R-28: the listening connection is cut; the next tick finds all, and listens again."""
    listener, told = Listener(bench.desk.db), list[Position]()
    listener.subscribe(told.append)
    await listener.handle(TICK)
    await bench.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    async with bench.desk.db.transaction() as tx:
        tx.record(Event.by(SYSTEM, "user.created"))
    await _number(Sequencer(bench.desk.db, bench.desk.metrics))
    await listener.handle(TICK)
    assert told[-1].seq == 1
    await listener.handle(TICK)
    assert listener.hears
    await listener.teardown()


async def test_the_lag_is_the_age_of_the_oldest_unnumbered_event(bench: Bench) -> None:
    """O-12: a stuck sequencer is visible."""
    await bench.sql(
        "INSERT INTO events (type, created_at) VALUES ('x', now() - interval '1 minute')"
    )
    async with bench.desk.db.connection() as conn:
        assert await events.lag_seconds(conn) >= 60
    sequencer = Sequencer(bench.desk.db, bench.desk.metrics)
    await _number(sequencer)
    assert bench.metric("itdesk_journal_lag_seconds") == 0
    async with bench.desk.db.connection() as conn:
        position = await events.head(conn)
        assert await events.oldest(conn) == position.seq == 1
        assert isinstance(position.epoch, UUID)
