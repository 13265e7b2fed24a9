"""The crew: what is due is done side by side, and nothing that comes meanwhile is overlooked."""

import asyncio
from collections.abc import Sequence

import pytest

from itdesk.actors.crew import Crew
from itdesk.errors import DeskError, Unavailable
from itdesk.runtime.actor import TICK
from tests.support.load import eventually


class Kitchen(Crew[str]):
    """Cooks what is ordered; each dish is served when its event is set."""

    name = "kitchen"

    def __init__(self, *orders: str) -> None:
        super().__init__()
        self.orders = list(orders)
        self.ready: dict[str, asyncio.Event] = {}
        self.served: list[str] = []
        self.ticks = 0
        self.outage: DeskError | None = None
        self.looked = asyncio.Semaphore(0)
        self.reading = asyncio.Event()
        self.reading.set()

    async def take(self, *, ticked: bool) -> Sequence[str]:
        """Take all orders that are there when we begin to read."""
        self.looked.release()
        self.ticks += ticked
        if self.outage is not None:
            raise self.outage
        taken, self.orders = self.orders, []
        self.ready |= {dish: asyncio.Event() for dish in taken}
        await self.reading.wait()
        return taken

    async def work(self, one: str) -> None:
        """Cook a dish; some cannot be cooked."""
        await self.ready[one].wait()
        if one == "burnt":
            raise LookupError(one)
        self.served.append(one)

    async def heard(self) -> bool:
        """Return whether every message was taken."""
        return not len(self.mailbox)

    def order(self, dish: str) -> None:
        """Ask for one more."""
        self.orders.append(dish)
        self.wake()


async def looked(kitchen: Kitchen, times: int = 1) -> None:
    for _ in range(times):
        await kitchen.looked.acquire()


async def test_what_comes_while_something_runs_is_begun_at_once() -> None:
    kitchen = Kitchen("roast")
    kitchen.wake()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(kitchen.step())
        await looked(kitchen)
        kitchen.order("salad")
        await looked(kitchen)
        kitchen.ready["salad"].set()
        await looked(kitchen)
        assert kitchen.served == ["salad"] and kitchen.at_work == ["roast"]
        kitchen.ready["roast"].set()
    assert kitchen.served == ["salad", "roast"] and not kitchen.at_work


async def test_what_comes_while_we_look_is_looked_for_again() -> None:
    kitchen = Kitchen()
    kitchen.wake()
    kitchen.reading.clear()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(kitchen.step())
        await looked(kitchen)
        kitchen.order("salad")
        await eventually(kitchen.heard, seconds=5)
        kitchen.reading.set()
        await looked(kitchen)
        kitchen.ready["salad"].set()
    assert kitchen.served == ["salad"]


async def test_every_tick_is_told_once() -> None:
    kitchen = Kitchen("roast")
    kitchen.tell(TICK)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(kitchen.step())
        await looked(kitchen)
        assert kitchen.ticks == 1
        kitchen.wake()
        await looked(kitchen)
        assert kitchen.ticks == 1
        kitchen.tell(TICK)
        await looked(kitchen)
        assert kitchen.ticks == 2
        kitchen.ready["roast"].set()


async def test_an_outage_cuts_nothing_short_that_runs() -> None:
    kitchen = Kitchen("roast")
    kitchen.wake()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(kitchen.step())
        await looked(kitchen)
        kitchen.outage = Unavailable("The database is out.")
        kitchen.wake()
        await looked(kitchen)
        kitchen.outage = None
        kitchen.ready["roast"].set()
    assert kitchen.served == ["roast"]


async def test_an_outage_is_raised_as_it_is_when_nothing_runs() -> None:
    kitchen = Kitchen()
    kitchen.wake()
    kitchen.outage = Unavailable("The database is out.")
    with pytest.raises(Unavailable):
        await kitchen.step()


async def test_after_a_crash_nothing_counts_as_running() -> None:
    kitchen = Kitchen("roast", "burnt")
    kitchen.wake()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        crashing = group.create_task(_crashes(kitchen))
        await looked(kitchen)
        kitchen.ready["burnt"].set()
        await crashing
        kitchen.wake()
        await kitchen.step()
    assert kitchen.served == [] and not kitchen.at_work


async def _crashes(kitchen: Kitchen) -> None:
    with pytest.raises(LookupError):
        await kitchen.step()


async def test_a_closed_mailbox_ends_the_work_when_it_is_done() -> None:
    kitchen = Kitchen("roast")
    kitchen.wake()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        working = group.create_task(kitchen.step())
        await looked(kitchen)
        kitchen.mailbox.close()
        await looked(kitchen)
        assert not working.done()
        kitchen.ready["roast"].set()
    assert kitchen.served == ["roast"]
