"""Rate limits: exact where it matters, shared by all daemons, and free where there is no news."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from itdesk.config import Limits
from itdesk.desk.limits import RateLimits
from itdesk.desk.schedules import clean_up
from itdesk.errors import DeskError, RateLimited, Unavailable
from itdesk.runtime.clock import Clock, FakeClock
from itdesk.runtime.metrics import Metrics
from itdesk.store.db import Database
from itdesk.store.db import Limits as Connections

NOWHERE = "postgresql://nobody@127.0.0.1:1/nowhere"


@dataclass
class Node:
    """One daemon's limits, on a clock that stands still unless a test moves it."""

    url: str
    settings: Limits
    clock: FakeClock
    remembered: int = 1000
    db: Database = field(init=False)
    limits: RateLimits = field(init=False)

    def __post_init__(self) -> None:
        self.db = Database(self.url, Connections(connect_seconds=1.0))
        self.limits = RateLimits(
            self.db, self.settings, self.clock, Metrics(), remembered=self.remembered
        )

    async def asks(self, who: str = "ann", *, limit: str = "default") -> int:
        """Ask once; return 0 when admitted, else the seconds to wait."""
        try:
            await self.limits.admit(limit, who)
        except RateLimited as exc:
            assert exc.status == 429 and exc.retry_after is not None
            return exc.retry_after
        return 0

    async def admitted(self, times: int, who: str = "ann", *, limit: str = "default") -> int:
        """Ask so many times at once; return how many were admitted."""
        waits = await asyncio.gather(*(self.asks(who, limit=limit) for _ in range(times)))
        return waits.count(0)


NewNode = Callable[..., Node]


@pytest.fixture
async def node(database_url: str) -> AsyncIterator[NewNode]:
    """Return a maker of nodes on one database and one clock."""
    # Its time of day is the database's: daemons without one know no other.
    clock, made = FakeClock(Clock().now()), []

    def make(url: str = database_url, remembered: int = 1000, **limits: Any) -> Node:
        made.append(Node(url, Limits(**limits), clock, remembered))
        return made[-1]

    yield make
    for one in made:
        await one.db.close()


async def rows(node: Node) -> int:
    """Return how many requests the database knows of."""
    async with node.db.connection() as conn:
        return int(await conn.fetchval("SELECT coalesce(sum(used), 0) FROM rate_counts"))


@pytest.mark.parametrize("limit", ["default", "auth", "ai"])
async def test_so_many_are_admitted_and_not_one_more(node: NewNode, limit: str) -> None:
    """Section 4: 120/day means 120, however many come at once."""
    one = node(**{limit: "120/day"})
    assert await one.admitted(150, limit=limit) == 120
    assert 0 < await one.asks(limit=limit) <= 86_401
    assert await one.asks("bob", limit=limit) == 0


@pytest.mark.parametrize(("count", "period"), [(3, "minute"), (50, "minute"), (20, "hour")])
async def test_whoever_waits_as_long_as_told_is_admitted_and_no_second_earlier(
    node: NewNode, count: int, period: str
) -> None:
    """Retry-After is exact, again and again."""
    one = node(default=f"{count}/{period}")
    await one.admitted(count)
    for _ in range(2 * count):
        wait = await one.asks()
        assert wait > 0
        if wait > 1:
            await one.clock.advance(wait - 1)
            assert await one.asks() > 0
            await one.clock.advance(1)
        else:
            await one.clock.advance(1)
        assert await one.asks() == 0


@pytest.mark.parametrize("limit", ["default", "auth"])
async def test_a_period_slides(node: NewNode, limit: str) -> None:
    """A burst at the end of a period leaves no room for another at the start of the next."""
    one = node(**{limit: "100/day"})
    assert await one.admitted(100, limit=limit) == 100
    await one.limits.settle()
    async with one.db.connection() as conn:
        await conn.execute("UPDATE rate_counts SET number = number - 1")
    part = await asyncio.gather(node(**{limit: "100/day"}).admitted(100, limit=limit))
    async with one.db.connection() as conn:
        passed = await conn.fetchval("SELECT extract(epoch FROM now()) / 86400 % 1")
    assert abs(part[0] - 100 * float(passed)) <= 2


async def test_two_daemons_have_one_limit(node: NewNode) -> None:
    """What was used at one is used at the other as soon as it is settled."""
    one, two = node(default="100/day"), node(default="100/day")
    assert await one.admitted(60) == 60
    await one.limits.settle()
    assert await two.admitted(20) == 20
    await two.limits.settle()
    # One has not asked since: it learns by telling.
    assert await one.asks() == 0
    await one.limits.settle()
    assert await one.admitted(100) == 19
    await one.limits.settle()
    assert await two.asks() == 0  # it cannot know yet, and learns by telling
    await two.limits.settle()
    assert await two.asks() > 0


async def test_two_daemons_count_sign_ins_exactly(node: NewNode) -> None:
    """Sixty-four at once at two daemons: twenty, not twenty-one."""
    one, two = node(auth="20/day"), node(auth="20/day")
    both = await asyncio.gather(one.admitted(32, limit="auth"), two.admitted(32, limit="auth"))
    assert sum(both) == 20


async def test_a_restart_gives_nobody_a_fresh_limit(node: NewNode) -> None:
    """The budget survives a restart."""
    one = node(default="30/day", auth="3/day")
    await one.admitted(30)
    await one.admitted(3, limit="auth")
    await one.limits.settle()
    again = node(default="30/day", auth="3/day")
    assert await again.asks() > 0
    assert await again.asks(limit="auth") > 0


async def test_whoever_is_known_costs_no_statement(node: NewNode) -> None:
    """DESIGN 11: no extra statement on a read; refused sign-ins ask no more either."""
    one = node(default="50/day", auth="2/day")
    assert not one.limits.admits("default", "ann")
    await one.asks()
    await one.admitted(3, limit="auth")
    await one.db.close()
    for _ in range(49):
        assert one.limits.admits("default", "ann")
    with pytest.raises(RateLimited):
        one.limits.admits("default", "ann")
    assert await one.asks(limit="auth") > 0


async def test_heavy_use_is_told_at_once(node: NewNode) -> None:
    """The settler is woken when a twentieth of the limit is untold."""
    one, woken = node(default="200/day"), []
    one.limits.wake = lambda: woken.append(untold(one))
    await one.admitted(9)
    assert woken == []
    await one.admitted(30)
    assert len(woken) == 1
    await one.limits.settle()
    await one.admitted(30)
    assert len(woken) == 2


def untold(node: Node) -> int:
    return sum(bucket.untold for bucket, _ in node.limits._untold.values())


async def test_without_the_database_each_daemon_counts_for_itself_and_tells_later(
    node: NewNode, database_url: str
) -> None:
    """An outage neither lifts the limits nor refuses requests by itself."""
    one = node(url=NOWHERE, default="10/day", auth="10/day")
    assert await one.admitted(15) == 10
    with pytest.raises(Unavailable):
        await one.limits.admit("auth", "ann")
    for _ in range(3):
        with pytest.raises(DeskError):
            await one.limits.settle()
    assert await one.asks() > 0
    one.db.url = database_url
    await one.limits.settle()
    assert await rows(one) == 10
    assert await node(default="10/day").asks() > 0


async def test_no_more_is_remembered_than_agreed_and_nothing_is_lost(node: NewNode) -> None:
    """Memory is bounded; what has to go from it is still told."""
    one = node(remembered=10, default="5/day")
    for number in range(40):
        await one.admitted(2, f"caller {number}")
    assert len(one.limits._buckets) == 10
    assert len(one.limits._late) <= 10
    await one.limits.settle()
    assert await rows(one) == 40
    busy = node(remembered=100, default="5/day", auth="1/day")
    for number in range(300):
        await busy.admitted(2, f"{number}", limit="auth")
    assert len(busy.limits._over) == 100


async def test_limits_are_changed_while_it_works(node: NewNode) -> None:
    """SIGHUP: what was used counts on, and `enabled = false` lifts them."""
    one = node(default="10/day")
    await one.admitted(10)
    one.limits.configure(Limits(default="12/day"))
    await one.limits.settle()
    assert await one.admitted(5) == 2
    one.limits.configure(Limits(enabled=False))
    assert await one.admitted(50) == 50
    assert one.limits.admits("default", uuid4())
    assert await one.admitted(50, limit="none") == 50


async def test_counts_nobody_looks_at_are_cleaned_up(node: NewNode) -> None:
    one = node(default="10/day", auth="10/day")
    await one.admitted(3)
    await one.admitted(3, "bob", limit="auth")
    await one.limits.settle()
    assert (await clean_up(one.db, days=30))["counts"] == 0
    async with one.db.connection() as conn:
        await conn.execute("UPDATE rate_counts SET expires_at = now() - interval '1 second'")
    assert (await clean_up(one.db, days=30))["counts"] == 2
