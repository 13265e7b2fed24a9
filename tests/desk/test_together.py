"""Who asks at the same moment is answered by one statement, as if asked alone."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio

from itdesk.desk.together import MOST, Together
from itdesk.errors import Unavailable
from itdesk.store.db import Database


class Squares:
    """Asks PostgreSQL for squares of what is in a table, and waits for leave each time."""

    def __init__(self, db: Database) -> None:
        self.asked: list[list[int]] = []
        self.begun: asyncio.Queue[None] = asyncio.Queue()
        self.leave = asyncio.Semaphore(0)
        self.failing: Exception | None = None
        self.then: Callable[[], object] | None = None
        self.together = Together(db, self.read)

    async def read(self, conn: Any, lane: str, numbers: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(list(numbers))
        self.begun.put_nowait(None)
        await self.leave.acquire()
        if self.failing is not None:
            raise self.failing
        rows = await conn.fetch(
            "SELECT n, n * n AS square FROM numbers WHERE n = ANY ($1)", numbers
        )
        if self.then is not None:
            asyncio.get_running_loop().call_soon(self.then)
            self.then = None
        return {row["n"]: row["square"] for row in rows}

    async def asks(self, *numbers: int, lane: str = "one") -> list[asyncio.Task[int | None]]:
        """Ask for each number in a task of its own, and return when all of them wait."""
        tasks = [asyncio.ensure_future(self.together.ask(lane, number)) for number in numbers]
        await asyncio.wait(tasks, timeout=0)
        return tasks

    async def begins(self) -> None:
        """Return when a statement has begun."""
        await asyncio.wait_for(self.begun.get(), 10)

    @staticmethod
    async def answers(tasks: Sequence[asyncio.Task[int | None]]) -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)

    def permit(self, statements: int = 1) -> None:
        for _ in range(statements):
            self.leave.release()


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database(database_url)
    async with db.connection() as conn:
        await conn.execute("CREATE TABLE numbers (n int)")
        await conn.execute("INSERT INTO numbers SELECT generate_series(1, 1000)")
    yield db
    await db.close()


async def test_who_comes_while_a_statement_is_under_way_shares_the_next(db: Database) -> None:
    squares = Squares(db)
    tasks = await squares.asks(2, 3, 4, 3, 5000)
    squares.permit(2)
    assert await squares.answers(tasks) == [4, 9, 16, 9, None]
    assert squares.asked == [[2], [3, 4, 5000]]


async def test_an_answer_is_never_older_than_its_question(db: Database) -> None:
    """Who asks after a change is not answered by a statement that was under way before."""
    squares = Squares(db)
    [first] = await squares.asks(2000)
    await squares.begins()
    async with db.transaction() as tx:
        await tx.conn.execute("INSERT INTO numbers VALUES (2000)")
    [second] = await squares.asks(2000)
    squares.permit(2)
    assert (await squares.answers([first, second]))[1] == 4_000_000
    assert squares.asked == [[2000], [2000]]


async def test_one_who_gives_up_takes_nobody_along(db: Database) -> None:
    squares = Squares(db)
    tasks = await squares.asks(2)
    tasks += await squares.asks(3, 4, 5)
    squares.permit()
    await tasks[0]
    await squares.begins()
    await squares.begins()
    tasks[1].cancel()  # who asks for the three
    squares.permit(1)
    assert await squares.answers(tasks[2:]) == [16, 25]
    assert squares.asked == [[2], [3, 4, 5], [4, 5]]


async def test_the_turn_of_one_who_gave_up_goes_to_the_next(db: Database) -> None:
    squares = Squares(db)
    tasks = await squares.asks(2)
    tasks += await squares.asks(3, 4)
    squares.then = tasks[1].cancel  # after it was told, before it goes on
    squares.permit(2)
    assert await asyncio.wait_for(tasks[2], 10) == 16
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert squares.asked == [[2], [4]]
    squares.permit()
    assert await asyncio.wait_for(squares.together.ask("one", 7), 5) == 49


async def test_a_failure_is_told_to_all_who_were_asked_for_and_to_nobody_later(
    db: Database,
) -> None:
    squares = Squares(db)
    first = await squares.asks(1)
    tasks = await squares.asks(2, 3)
    squares.permit()
    await squares.answers(first)
    squares.failing = Unavailable("away")
    squares.permit()
    said = await squares.answers(tasks)
    assert [type(one) for one in said] == [Unavailable, Unavailable]
    squares.failing = None
    squares.permit()
    assert await squares.together.ask("one", 4) == 16


async def test_when_it_fails_nobody_waits_for_a_failure_of_his_own(db: Database) -> None:
    """R-24: a database that is away costs one wait, however many ask."""
    squares = Squares(db)
    tasks = await squares.asks(*range(1, 3 * MOST))
    squares.failing = Unavailable("away")
    squares.permit()
    said = await squares.answers(tasks)
    assert [type(one) for one in said] == [Unavailable] * len(tasks)
    assert squares.asked == [[1]]


async def test_inside_a_transaction_one_asks_alone_and_sees_its_changes(db: Database) -> None:
    """What is not committed is nobody else's."""
    squares = Squares(db)
    [before] = await squares.asks(1)
    await squares.begins()
    [outside] = await squares.asks(3000)
    async with db.transaction() as tx:
        await tx.conn.execute("INSERT INTO numbers VALUES (3000)")
        [inside] = await squares.asks(3000)
        squares.permit(3)
        assert await squares.answers([before, outside, inside]) == [1, None, 9_000_000]


async def test_a_statement_is_bounded(db: Database) -> None:
    squares = Squares(db)
    tasks = await squares.asks(*range(1, MOST + 20))
    squares.permit(3)
    assert await squares.answers(tasks) == [n * n for n in range(1, MOST + 20)]
    assert [len(numbers) for numbers in squares.asked] == [1, MOST, 18]


async def test_lanes_do_not_wait_for_each_other_and_leave_nothing_behind(db: Database) -> None:
    squares = Squares(db)
    tasks = await squares.asks(2, lane="one") + await squares.asks(3, lane="other")
    await squares.begins()
    await squares.begins()
    assert squares.asked == [[2], [3]]
    squares.permit(2)
    assert await squares.answers(tasks) == [4, 9]
    assert squares.together._lanes == {}
