import asyncio
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import pytest

from itdesk.runtime.clock import Backoff, Clock, FakeClock


async def test_sleepers_wake_in_the_order_of_their_moments_whoever_began_first() -> None:
    clock, woken = FakeClock(), list[tuple[str, float]]()

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        group.create_task(sleeper("late", 5))
        group.create_task(sleeper("early", 2))
        group.create_task(sleeper("twin", 2))
        await clock.advance(4.9)
        assert woken == [("early", 2.0), ("twin", 2.0)]
        await clock.advance(0.1)
    assert woken[-1] == ("late", 5.0)


async def test_one_advance_covers_sleeps_that_begin_while_it_passes() -> None:
    clock, count = FakeClock(), 0

    async def ticker() -> None:
        nonlocal count
        while count < 10:
            await clock.sleep(0.1)
            count += 1

    async with asyncio.TaskGroup() as group:
        group.create_task(ticker())
        await clock.advance(1.0)
        assert count == 10


async def test_wall_and_elapsed_time_move_together() -> None:
    clock = FakeClock(datetime(2030, 5, 1, tzinfo=UTC))
    await clock.advance(90)
    assert clock.now() == datetime(2030, 5, 1, 0, 1, 30, tzinfo=UTC)
    assert clock.monotonic() == 90


async def test_a_sleep_of_zero_returns_without_time_passing() -> None:
    await FakeClock().sleep(0)
    await Clock().sleep(0)


async def test_a_cancelled_sleeper_leaves_nothing_behind() -> None:
    clock = FakeClock()
    sleeper = asyncio.get_running_loop().create_task(clock.sleep(1))
    await clock.settle()
    sleeper.cancel()
    await clock.advance(5)
    assert sleeper.cancelled()


@pytest.mark.parametrize("clock", [FakeClock(), Clock()])
async def test_a_deadline_cuts_the_block(clock: Clock) -> None:
    async def slow() -> None:
        async with clock.deadline(0.01):
            await asyncio.Event().wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        task = group.create_task(_outcome(slow()))
        if isinstance(clock, FakeClock):
            await clock.advance(0.01)
    assert task.result() == "TimeoutError"


async def _outcome(work: Awaitable[None]) -> str:
    try:
        await work
    except TimeoutError:
        return "TimeoutError"
    return "done"


async def test_a_deadline_leaves_a_quick_block_alone() -> None:
    clock = FakeClock()
    async with clock.deadline(1):
        await clock.sleep(0)
    await clock.advance(2)


async def test_the_real_clock_is_utc_and_never_goes_back() -> None:
    clock = Clock()
    assert clock.now().utcoffset() == timedelta(0)
    before = clock.monotonic()
    await clock.sleep(0.001)
    assert clock.monotonic() > before


def test_backoff_doubles_up_to_its_longest_wait() -> None:
    backoff = Backoff(FakeClock(), dice=lambda: 0.0)
    assert [backoff.failed() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


async def test_backoff_is_forgotten_after_300_healthy_seconds_not_before() -> None:
    clock = FakeClock()
    backoff = Backoff(clock, dice=lambda: 0.0)
    assert [backoff.failed(), backoff.failed()] == [1, 2]
    await clock.advance(2 + 299)
    assert backoff.failed() == 4
    await clock.advance(4 + 300)
    assert backoff.failed() == 1
    backoff.failed()
    backoff.reset()
    assert backoff.failed() == 1


def test_jitter_only_shortens_a_wait() -> None:
    assert Backoff(FakeClock(), jitter=0.1, dice=lambda: 1.0).failed() == pytest.approx(0.9)
    delays = [Backoff(FakeClock()).failed() for _ in range(100)]
    assert all(0.9 <= delay <= 1.0 for delay in delays)
    assert len(set(delays)) > 1
