"""The settler: what was counted in memory reaches the database, in time and at the end."""

from collections.abc import AsyncIterator

import pytest

from itdesk.actors.settler import Settler
from itdesk.config import Limits
from itdesk.desk.limits import RateLimits
from itdesk.runtime.actor import TICK
from itdesk.runtime.clock import Clock
from itdesk.runtime.metrics import Metrics
from itdesk.store.db import Database


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    db = Database(database_url)
    yield db
    await db.close()


def limits_on(db: Database) -> RateLimits:
    return RateLimits(db, Limits(default="200/day"), Clock(), Metrics())


async def told(db: Database) -> int:
    """Return how many requests the database knows of."""
    async with db.connection() as conn:
        return int(await conn.fetchval("SELECT coalesce(sum(used), 0) FROM rate_counts"))


async def test_a_tick_settles(db: Database) -> None:
    limits = limits_on(db)
    settler = Settler(limits)
    await limits.admit("default", "ann")
    assert await told(db) == 0
    settler.tell(TICK)
    await settler.step()
    assert await told(db) == 1


async def test_heavy_use_does_not_wait_for_the_tick(db: Database) -> None:
    limits = limits_on(db)
    settler = Settler(limits)
    for _ in range(60):
        await limits.admit("default", "ann")
    assert len(settler.mailbox) == 1
    await settler.step()
    assert await told(db) == 60


async def test_the_end_leaves_nothing_untold(db: Database) -> None:
    """A restart gives nobody a fresh limit."""
    limits = limits_on(db)
    await limits.admit("default", "ann")
    await Settler(limits).teardown()
    assert await told(db) == 1


async def test_the_end_comes_without_a_database_too() -> None:
    db = Database("postgresql://nobody@127.0.0.1:1/nowhere")
    limits = limits_on(db)
    await limits.admit("default", "ann")
    await Settler(limits).teardown()
    await db.close()
