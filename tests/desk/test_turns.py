"""Turns at something slow, and leaving alone what fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from itdesk.desk.turns import Breaker, NoTurn, Turns
from itdesk.runtime.clock import FakeClock


class Line:
    """People who take turns, and what became of each."""

    def __init__(self, turns: Turns, group: asyncio.TaskGroup) -> None:
        self.turns, self.group = turns, group
        self.served: list[str] = []
        self.refused: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    async def come(self, name: str, who: str | None = None, *, background: bool = False) -> None:
        """Let somebody come, and be seen to."""
        self.leave[name] = asyncio.Event()
        self.last = self.group.create_task(self._stay(name, who or name, background))
        await settle()

    async def go(self, name: str) -> None:
        """Let somebody give up their turn."""
        self.leave[name].set()
        await settle()

    async def _stay(self, name: str, who: str, background: bool) -> None:
        try:
            async with self.turns.take(who, background=background):
                self.served.append(name)
                await self.leave[name].wait()
        except NoTurn as exc:
            assert exc.reason == "busy"
            self.refused.append(name)


async def settle() -> None:
    """Let everybody do what they can."""
    await FakeClock().settle()


@asynccontextmanager
async def line(*, at_once: int = 1, waiting: int = 8) -> AsyncIterator[Line]:
    """Lend a line, empty again at the end."""
    async with asyncio.TaskGroup() as group:
        one = Line(Turns(at_once=at_once, waiting=waiting), group)
        yield one
        for event in one.leave.values():
            event.set()
    assert one.turns.waiting == 0
    async with one.turns.take("last"):
        pass


async def test_so_many_at_once_and_the_others_in_order() -> None:
    async with line(at_once=2) as one:
        for name in "abcd":
            await one.come(name)
        assert one.served == ["a", "b"] and one.turns.waiting == 2
        await one.go("b")
        assert one.served == ["a", "b", "c"]
        await one.go("a")
        assert one.served == ["a", "b", "c", "d"]


async def test_people_go_before_machines() -> None:
    async with line() as one:
        await one.come("first")
        await one.come("machine", background=True)
        await one.come("person")
        await one.go("first")
        assert one.served == ["first", "person"]
        await one.go("person")
        assert one.served == ["first", "person", "machine"]


async def test_a_full_line_refuses_at_once() -> None:
    """P-09: the queue is bounded."""
    async with line(waiting=4) as one:
        for name in "abcdef":
            await one.come(name)
        assert one.served == ["a"] and one.refused == ["f"] and one.turns.waiting == 4


async def test_machines_leave_room_and_make_room() -> None:
    async with line(waiting=4) as one:
        await one.come("a")
        for name in "xyz":
            await one.come(name, background=True)
        assert one.refused == ["z"]
        for name in "bcd":
            await one.come(name)
        assert one.refused == ["z", "y"] and one.turns.waiting == 4


async def test_machines_leave_a_turn_to_people() -> None:
    """Two machines that take a minute each must not keep everybody from the model."""
    async with line(at_once=2) as one:
        for name in "xyz":
            await one.come(name, background=True)
        assert one.served == ["x"] and one.turns.waiting == 2
        await one.come("person")
        assert one.served == ["x", "person"]
        await one.go("person")
        assert one.served == ["x", "person"]
        await one.go("x")
        assert one.served == ["x", "person", "y"]
        await one.come("another")
        assert one.served[-1] == "another"
        await one.go("y")
        assert one.served[-1] == "z"


async def test_one_person_leaves_room_for_others() -> None:
    async with line(waiting=8) as one:
        await one.come("0")
        for name in "123":
            await one.come(name, who="busy")
        assert one.refused == ["3"]
        await one.come("other")
        assert one.turns.waiting == 3


async def test_who_gives_up_leaves_the_line() -> None:
    async with line() as one:
        for name in "abc":
            await one.come(name)
            if name == "b":
                gone = one.last
        gone.cancel()
        await settle()
        assert one.turns.waiting == 1
        await one.go("a")
        assert one.served == ["a", "c"]


async def test_who_gives_up_in_the_moment_of_being_called_passes_the_turn_on() -> None:
    turns = Turns(at_once=1, waiting=4)

    async def stay() -> None:
        async with turns.take("called"):
            raise AssertionError("it was called off")

    async with asyncio.TaskGroup() as group:
        async with turns.take("first"):
            called = group.create_task(stay())
            await settle()
        called.cancel()
        await settle()
        assert called.cancelled()
    next_one = asyncio.ensure_future(turns.take("next").__aenter__())
    await settle()
    assert next_one.done()


async def test_three_failures_in_a_row_open_the_breaker() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, 30)
    for _ in range(2):
        assert breaker.admit() is False
        breaker.failed()
    breaker.worked()
    for _ in range(3):
        assert not breaker.open
        breaker.admit()
        breaker.failed()
    assert breaker.open
    with pytest.raises(NoTurn) as refused:
        breaker.admit()
    assert refused.value.reason == "open"


async def test_what_one_person_waited_for_in_vain_counts_as_one() -> None:
    """Nobody can take the model from everybody by asking what it has no time for."""
    breaker = Breaker(FakeClock(), 30)
    for _ in range(10):
        breaker.failed(late="greedy")
    assert not breaker.open
    breaker.failed(late="unlucky")
    assert not breaker.open
    breaker.failed(late="greedy")
    assert breaker.open


async def test_what_fails_otherwise_counts_whoever_asked() -> None:
    breaker = Breaker(FakeClock(), 30)
    breaker.failed(late="one")
    breaker.failed()
    breaker.failed(late="one")
    assert breaker.open


async def test_what_worked_in_between_begins_the_count_again() -> None:
    breaker = Breaker(FakeClock(), 30)
    for _ in range(2):
        breaker.failed(late="one")
        breaker.failed()
        breaker.worked()
    breaker.failed(late="one")
    breaker.failed(late="one")
    breaker.failed()
    assert not breaker.open
    breaker.worked()
    breaker.failed(late="one")
    breaker.worked()
    breaker.failed(late="one")
    breaker.failed()
    breaker.failed()
    assert breaker.open


async def test_one_tries_for_all_and_what_becomes_of_it_decides() -> None:
    clock = FakeClock()
    breaker = Breaker(clock, 30)
    for _ in range(3):
        breaker.failed()
    await clock.advance(30)
    assert breaker.admit() is True
    with pytest.raises(NoTurn):
        breaker.admit()
    breaker.failed()
    await clock.advance(29)
    assert breaker.open
    await clock.advance(1)
    assert breaker.admit() is True
    breaker.worked()
    assert breaker.admit() is False and not breaker.open
