"""O-01, O-02: whatever happens to one actor, the others go on, and somebody notices."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.clock import FakeClock
from itdesk.runtime.keeper import describe
from itdesk.runtime.supervisor import Escalated, State

from .conftest import Lines, Rig


class Bug(Exception):
    pass


class Sample(Actor):
    """Passes a named point at each of its awaits; a test may put a fault at any of them."""

    name = "sample"
    period: float | None = 10.0
    handle_timeout = 5.0

    def __init__(self, fault: Callable[[str], Awaitable[None]] | None = None) -> None:
        self.passed: list[str] = []
        self.handled: list[object] = []
        self._fault = fault

    async def point(self, name: str) -> None:
        self.passed.append(name)
        await self.clock.sleep(0)
        if self._fault is not None:
            await self._fault(name)

    async def setup(self) -> None:
        await self.point("setup-1")
        await self.point("setup-2")

    async def handle(self, message: object) -> None:
        await self.point("handle-1")
        await self.point("handle-2")
        self.handled.append(message)

    async def teardown(self) -> None:
        await self.point("teardown-1")
        await self.point("teardown-2")


class Sibling(Sample):
    name = "sibling"
    period = 1.0


POINTS = ["setup-1", "setup-2", "handle-1", "handle-2", "teardown-1", "teardown-2"]


def once(point: str, error: BaseException) -> Callable[[str], Awaitable[None]]:
    """Fail the first time the point is passed; a handler fails too where only that leads on."""
    left = [point] if not point.startswith("teardown") else [point, "handle-1"]

    async def fault(name: str) -> None:
        if name in left:
            left.remove(name)
            raise error

    return fault


def always(point: str, error: type[BaseException]) -> Callable[[str], Awaitable[None]]:
    async def fault(name: str) -> None:
        if name == point:
            raise error("injected")

    return fault


@pytest.mark.parametrize("error", [Bug("x"), OSError("x"), asyncio.CancelledError()])
@pytest.mark.parametrize("point", POINTS)
async def test_a_fault_at_any_await_is_answered_by_a_restart_that_no_sibling_sees(
    rig: Rig, point: str, error: BaseException
) -> None:
    sample, sibling = Sample(once(point, error)), Sibling()
    await rig.start(sibling, sample)
    await rig.clock.advance(0.8)
    assert rig.state("sample") is State.BACKING_OFF
    assert rig.value("itdesk_actor_up", actor="sample") == 0
    await rig.clock.advance(0.3)
    assert rig.state("sample") is State.RUNNING
    assert rig.value("itdesk_actor_up", actor="sample") == 1
    assert rig.value("itdesk_actor_restarts_total", actor="sample") == 1
    handled = len(sample.handled)
    await rig.clock.advance(10)
    assert len(sample.handled) == handled + 1
    assert len(sibling.handled) == 12
    assert rig.supervisor.status()["sibling"].restarts == 0
    await rig.end()


@pytest.mark.parametrize("point", POINTS)
async def test_a_fault_at_any_await_while_stopping_stops_nobody_else_from_stopping(
    rig: Rig, point: str
) -> None:
    first, sample = Sibling(), Sample(once(point, Bug("x")))
    await rig.start(first, sample)
    await rig.end(60)
    assert first.passed[-1] == "teardown-2"
    assert rig.state("sample") is State.STOPPED


async def test_what_setup_acquired_is_released_before_the_next_life(rig: Rig) -> None:
    sample = Sample(once("handle-1", Bug("x")))
    await rig.start(sample)
    await rig.clock.advance(2)
    setups = ["setup-1", "setup-2"]
    teardowns = ["teardown-1", "teardown-2"]
    assert sample.passed == [*setups, "handle-1", *teardowns, *setups, "handle-1", "handle-2"]


async def test_queued_messages_survive_a_crash_and_the_poisonous_one_does_not(rig: Rig) -> None:
    sample = Sample(once("handle-1", Bug("x")))
    for message in ("poison", "two", "three"):
        sample.tell(message)
    await rig.start(sample)
    await rig.clock.advance(2)
    assert sample.handled == ["two", "three", TICK]


async def test_waits_grow_and_are_forgotten_after_300_healthy_seconds(rig: Rig) -> None:
    starts: list[float] = []

    class Flaky(Sample):
        async def setup(self) -> None:
            starts.append(self.clock.monotonic())
            if len(starts) != 8:
                raise ConnectionRefusedError("x")

    flaky = Flaky()
    await rig.start(flaky)
    await rig.clock.advance(200)
    waits = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    assert len(waits) == 7
    for wait, nominal in zip(waits, (1, 2, 4, 8, 16, 32, 60), strict=True):
        assert nominal * 0.9 <= wait <= nominal
    assert rig.state("sample") is State.RUNNING
    await rig.clock.advance(310)

    async def fail(message: object) -> None:
        raise ConnectionRefusedError("x")

    flaky.handle = fail  # type: ignore[method-assign]
    flaky.tell("now")
    await rig.clock.settle()
    assert rig.state("sample") is State.BACKING_OFF
    await rig.clock.advance(1.01)
    assert len(starts) == 9


@pytest.mark.parametrize("point", ["setup-1", "handle-1"])
async def test_the_sixth_crash_of_a_critical_actor_ends_the_run_in_order(
    rig: Rig, point: str
) -> None:
    sibling, sample = Sibling(), Sample(always(point, Bug))
    await rig.start(sibling, sample)
    await rig.clock.advance(14)
    assert not rig.running.done()
    assert rig.supervisor.status()["sample"].restarts >= 4
    await rig.clock.advance(20)
    assert rig.running.done()
    with pytest.raises(Escalated, match="sample crashes again and again: Bug"):
        rig.running.result()
    assert sibling.passed[-1] == "teardown-2"
    assert rig.said[-1] == "STOPPING=1"
    assert rig.value("itdesk_actor_restarts_total", actor="sample") == 5


async def test_the_sixth_crash_of_another_actor_leaves_it_down_and_the_rest_alone(
    rig: Rig,
) -> None:
    sibling, sample = Sibling(), Sample(always("handle-1", Bug))
    sample.critical = False
    await rig.start(sibling, sample)
    await rig.clock.advance(600)
    status = rig.supervisor.status()["sample"]
    assert (status.state, status.reason, status.critical) == (State.FAILED, "Bug", False)
    assert not sample.tell("anybody there?")
    assert rig.state("sibling") is State.RUNNING
    assert rig.supervisor.stale() == []
    await rig.end()


async def test_crashes_far_apart_never_escalate(rig: Rig) -> None:
    sample = Sample(always("handle-2", Bug))
    sample.period = None
    await rig.start(sample)
    for _ in range(20):
        sample.tell("crash")
        await rig.clock.advance(70)
    assert rig.supervisor.status()["sample"].restarts == 20
    assert not rig.running.done()


@pytest.mark.parametrize(
    "outage",
    [
        ConnectionRefusedError(111, "x"),
        TimeoutError(),
        LookupError("ours"),
        ExceptionGroup("both", [ConnectionResetError("a"), ExceptionGroup("c", [OSError("b")])]),
    ],
)
async def test_an_outage_is_waited_for_without_limit(rig: Rig, outage: Exception) -> None:
    class Dependent(Sample):
        async def setup(self) -> None:
            raise outage

    await rig.start(Dependent(), outages=(OSError, LookupError))
    await rig.clock.advance(3600)
    assert rig.supervisor.status()["sample"].restarts > 50
    assert not rig.running.done()
    assert rig.supervisor.stale() == []
    assert rig.supervisor.status()["sample"].reason.startswith(type(outage).__name__)


async def test_a_bug_among_outages_is_a_bug(rig: Rig) -> None:
    class Mixed(Sample):
        async def setup(self) -> None:
            raise ExceptionGroup("both", [ConnectionResetError("a"), Bug("b")])

    await rig.start(Mixed())
    await rig.clock.advance(60)
    assert rig.running.done()
    with pytest.raises(Escalated):
        rig.running.result()


def test_a_reason_names_neither_paths_nor_addresses_nor_secrets() -> None:
    assert describe(FileNotFoundError(2, "x", "/etc/itdesk/key")) == (
        "FileNotFoundError: No such file or directory"
    )
    address = OSError(111, "Connect call failed ('10.1.2.3', 5432)")
    assert describe(address) == "ConnectionRefusedError: Connection refused"
    secret = TimeoutError("postgres://desk:hunter2@db/desk\nsecond line")
    assert describe(secret) == "TimeoutError: postgres://desk:***@db/desk second line"
    assert len(describe(TimeoutError("x" * 1000))) < 250


# -- O-02: hangs, swallows its cancellation, returns early


class Hanging(Actor):
    name = "hanging"
    handle_timeout = 20.0

    def __init__(self, released: asyncio.Event, *, stubborn: bool = False) -> None:
        self.stubborn = stubborn
        self.released = released
        self.entered = 0
        self.handled: list[object] = []

    async def handle(self, message: object) -> None:
        if message != "hang":
            self.handled.append(message)
            return
        self.entered += 1
        while True:
            try:
                await self.released.wait()
                return
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise


async def test_a_hung_handler_is_cancelled_at_its_deadline_and_named(rig: Rig) -> None:
    hanging = Hanging(rig.released)
    await rig.start(hanging)
    await rig.clock.advance(100)
    hanging.tell("hang")
    hanging.tell("next")
    await rig.clock.advance(19.9)
    assert rig.state("hanging") is State.RUNNING
    await rig.clock.advance(0.2)
    status = rig.supervisor.status()["hanging"]
    assert status.state is State.BACKING_OFF
    assert status.reason == "TimeoutError: handle took longer than 20 s"
    await rig.clock.advance(1)
    assert hanging.handled == ["next"]


async def test_a_handler_that_hangs_every_time_never_ends_the_process(rig: Rig) -> None:
    hanging = Hanging(rig.released)
    hanging.handle_timeout = 1.0
    await rig.start(hanging)
    for _ in range(20):
        hanging.tell("hang")
    await rig.clock.advance(1500)
    assert hanging.entered == 20
    assert not rig.running.done()


@pytest.mark.parametrize("part", ["setup", "teardown"])
async def test_a_hung_setup_or_teardown_is_cut_as_well(rig: Rig, part: str) -> None:
    sample = Sample(once("handle-1", Bug("x")))
    hung = asyncio.Event()

    async def hang() -> None:
        hung.set()
        await asyncio.Event().wait()

    setattr(sample, part, hang)
    await rig.start(sample)
    await rig.clock.advance(4.9)
    assert hung.is_set()
    assert rig.state("sample") is not State.BACKING_OFF
    await rig.clock.advance(0.1)
    assert rig.state("sample") is State.BACKING_OFF


async def test_progress_renews_the_deadline_of_a_long_handler(rig: Rig) -> None:
    class Long(Sample):
        async def handle(self, message: object) -> None:
            for _ in range(10):
                await self.clock.sleep(4)
                self.progress()
            self.handled.append(message)

    long = Long()
    long.period = None
    long.tell("long")
    await rig.start(long)
    await rig.clock.advance(40)
    assert long.handled == ["long"]
    assert rig.supervisor.status()["sample"].restarts == 0


async def test_an_actor_without_a_deadline_may_take_for_ever(rig: Rig) -> None:
    hanging = Hanging(rig.released)
    hanging.handle_timeout = math.inf
    hanging.tell("hang")
    await rig.start(hanging)
    await rig.clock.advance(3600)
    assert rig.state("hanging") is State.RUNNING
    assert rig.supervisor.stale() == []


async def test_a_handler_that_swallows_its_cancellation_is_named_within_30_seconds(
    rig: Rig,
) -> None:
    hanging, sibling = Hanging(rig.released, stubborn=True), Sibling()
    hanging.tell("hang")
    await rig.start(hanging, sibling)
    await rig.clock.advance(30)
    status = rig.supervisor.status()["hanging"]
    assert (status.state, status.reason) == (State.STUCK, "handle ignores its cancellation")
    assert rig.supervisor.stale() == ["hanging"]
    await rig.clock.advance(300)
    assert hanging.entered == 1, "a second handler ran beside the stuck one"
    assert len(sibling.handled) > 300
    rig.released.set()
    await rig.clock.advance(2)
    hanging.tell("well again")
    await rig.clock.settle()
    assert hanging.handled == ["well again"]
    assert rig.supervisor.stale() == []


async def test_a_handler_that_swallows_its_cancellation_and_returns_is_restarted(rig: Rig) -> None:
    class Swallowing(Sample):
        async def handle(self, message: object) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    swallowing = Swallowing()
    await rig.start(swallowing)
    await rig.clock.advance(5.1)
    assert rig.state("sample") is State.BACKING_OFF


async def test_a_handler_that_swallows_somebody_elses_cancellation_is_noticed(rig: Rig) -> None:
    class Swallowing(Sample):
        async def handle(self, message: object) -> None:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    await rig.start(Swallowing())
    _task("sample:handle").cancel()
    await rig.clock.settle()
    status = rig.supervisor.status()["sample"]
    assert status.state is State.BACKING_OFF
    assert status.reason == "stopped handling messages without being asked"


async def test_a_handler_that_ignores_its_cancellation_is_stuck_whatever_progress_it_reports(
    rig: Rig,
) -> None:
    class Cheerful(Actor):
        name = "cheerful"

        async def handle(self, message: object) -> None:
            while not rig.released.is_set():
                with suppress(asyncio.CancelledError):
                    await rig.released.wait()
                self.progress()

    cheerful = Cheerful()
    cheerful.tell("hang")
    await rig.start(cheerful)
    await rig.clock.advance(27)
    assert rig.state("cheerful") is State.STUCK
    assert rig.supervisor.stale() == ["cheerful"]


async def test_a_failing_teardown_never_turns_an_outage_into_a_bug(rig: Rig) -> None:
    class Unlucky(Sample):
        async def handle(self, message: object) -> None:
            raise ConnectionResetError(104, "x")

        async def teardown(self) -> None:
            raise Bug("x")

    await rig.start(Unlucky())
    await rig.clock.advance(600)
    assert not rig.running.done()
    reason = rig.supervisor.status()["sample"].reason
    assert reason == "ConnectionResetError: Connection reset by peer"


@pytest.mark.parametrize(
    ("failure", "level", "shown"),
    [(ConnectionResetError(104, "x"), "warning", False), (Bug("x"), "error", True)],
)
async def test_what_fails_while_stopping_has_a_traceback_unless_it_is_an_outage(
    rig: Rig, lines: Lines, failure: Exception, level: str, shown: bool
) -> None:
    class Unlucky(Sample):
        async def handle(self, message: object) -> None:
            await self.clock.sleep(1)
            raise failure

        async def teardown(self) -> None:
            raise failure

    await rig.start(Unlucky())
    await rig.end(2)
    said = {line["event"]: line for line in lines.events() if line["logger"] == "supervisor"}
    for event in ("crashed while stopping", "teardown failed"):
        assert (said[event]["level"], "exception" in said[event]) == (level, shown)


async def test_a_stuck_actor_that_is_not_critical_is_named_but_alive_is_who_matters(
    rig: Rig,
) -> None:
    hanging = Hanging(rig.released, stubborn=True)
    hanging.critical = False
    hanging.tell("hang")
    await rig.start(hanging)
    await rig.clock.advance(30)
    assert rig.state("hanging") is State.STUCK
    assert rig.supervisor.stale() == []


def _task(name: str) -> asyncio.Task[Any]:
    return next(task for task in asyncio.all_tasks() if task.get_name() == name)


@pytest.mark.parametrize("victim", ["keeper:sample", "sample:handle"])
async def test_a_task_that_somebody_cancels_is_noticed_and_started_again(
    rig: Rig, victim: str
) -> None:
    sample = Sample()
    await rig.start(sample)
    for round in range(1, 4):
        _task(victim).cancel()
        await rig.clock.settle()
        assert rig.state("sample") is State.BACKING_OFF
        await rig.clock.advance(5)
        assert rig.state("sample") is State.RUNNING
        assert sample.passed.count("setup-1") == 1 + round
        assert sample.passed.count("teardown-1") == round
    await rig.end()


async def test_a_keeper_cancelled_in_the_middle_of_a_handler_never_runs_two_at_once(
    rig: Rig,
) -> None:
    hanging = Hanging(rig.released, stubborn=True)
    hanging.tell("hang")
    hanging.tell("hang")
    await rig.start(hanging)
    _task("keeper:hanging").cancel()
    await rig.clock.advance(60)
    assert hanging.entered == 1
    rig.released.set()
    await rig.clock.advance(2)
    assert hanging.entered == 2


async def test_a_setup_that_is_no_coroutine_is_a_crash_not_a_silent_end(rig: Rig) -> None:
    sample = Sample()
    sample.setup = lambda: None  # type: ignore[assignment, method-assign, return-value]
    await rig.start(sample)
    assert rig.state("sample") is State.BACKING_OFF
    assert rig.supervisor.status()["sample"].reason == "TypeError"


# -- ticks and messages


async def test_time_is_told_at_once_and_then_by_period_never_piling_up(rig: Rig) -> None:
    class Slow(Sample):
        handle_timeout = 60.0

        async def handle(self, message: object) -> None:
            await self.clock.sleep(35)
            self.handled.append(message)

    slow, sibling = Slow(), Sibling()
    await rig.start(slow, sibling)
    assert sibling.handled == [TICK]
    await rig.clock.advance(10)
    assert sibling.handled == [TICK] * 11
    await rig.clock.advance(61)
    assert slow.handled == [TICK] * 2
    assert len(slow.mailbox) <= 1


async def test_an_actor_that_tells_itself_lets_the_others_run(rig: Rig) -> None:
    class Eager(Actor):
        name = "eager"

        def __init__(self) -> None:
            self.rounds = 0

        async def handle(self, message: object) -> None:
            self.rounds += 1
            if self.rounds < 10_000:
                self.tell("again")

    class Witness(Actor):
        name = "witness"
        rounds_seen = -1

        async def handle(self, message: object) -> None:
            self.rounds_seen = eager.rounds

    eager, witness = Eager(), Witness()
    await rig.start(eager, witness)
    eager.tell("go")
    witness.tell("look")
    await rig.clock.settle()
    assert 0 <= witness.rounds_seen < 10


async def test_a_dropped_message_is_counted_under_the_name_of_its_actor(rig: Rig) -> None:
    hanging = Hanging(rig.released)
    hanging.mailbox = type(hanging.mailbox)(2)
    await rig.start(hanging)
    hanging.tell("hang")
    await rig.clock.settle()
    assert [hanging.tell(n) for n in range(4)] == [True, True, False, False]
    assert rig.value("itdesk_actor_mailbox_dropped_total", actor="hanging") == 2


async def test_two_actors_cannot_share_a_name(rig: Rig) -> None:
    with pytest.raises(ValueError, match="sample"):
        await rig.start(Sample(), Sample())


# -- stopping


class Recorded(Actor):
    def __init__(self, name: str, journal: list[str], seconds: float = 0.0) -> None:
        self.name = name
        self.journal = journal
        self.seconds = seconds

    async def handle(self, message: object) -> None:
        await self.clock.sleep(self.seconds)
        self.journal.append(f"{self.name} handled {message}")

    async def teardown(self) -> None:
        self.journal.append(f"{self.name} down")


async def test_a_stop_drains_and_ends_the_actors_in_reverse_order(rig: Rig) -> None:
    journal: list[str] = []
    pool, worker, http = (Recorded(name, journal, 1.0) for name in ("pool", "worker", "http"))
    await rig.start(pool, worker, http)
    for actor in (pool, worker, http):
        actor.tell("a")
        actor.tell("b")
    await rig.end(20)
    assert journal.index("http handled b") < journal.index("http down")
    assert [line for line in journal if line.endswith("down")] == [
        "http down",
        "worker down",
        "pool down",
    ]
    assert sum("handled" in line for line in journal) == 6
    assert not http.tell("too late")
    assert rig.said == ["STOPPING=1"]
    assert {status.state for status in rig.supervisor.status().values()} == {State.STOPPED}


async def test_whoever_stops_later_still_takes_messages_of_those_who_stop_earlier(
    rig: Rig,
) -> None:
    journal: list[str] = []
    worker = Recorded("worker", journal)

    class Front(Recorded):
        async def teardown(self) -> None:
            assert worker.tell("last words")

    await rig.start(worker, Front("front", journal))
    await rig.end()
    assert journal == ["worker handled last words", "worker down"]


async def test_draining_is_bounded_for_all_together_and_everybody_is_torn_down(rig: Rig) -> None:
    journal: list[str] = []
    actors = [Recorded(name, journal, 4.0) for name in ("a", "b", "c")]
    await rig.start(*actors, drain_timeout=10.0)
    for actor in actors:
        for number in range(100):
            actor.tell(number)
    rig.stop.set()
    await rig.clock.advance(9.9)
    assert not rig.running.done()
    await rig.clock.advance(0.2)
    assert rig.running.done()
    assert [line for line in journal if line.endswith("down")] == ["c down", "b down", "a down"]


async def test_a_stop_waits_neither_for_a_backoff_nor_for_a_setup(rig: Rig) -> None:
    class Dependent(Sample):
        async def setup(self) -> None:
            raise ConnectionRefusedError("x")

    class Waiting(Sibling):
        async def setup(self) -> None:
            await asyncio.Event().wait()

    await rig.start(Dependent(), Waiting())
    await rig.clock.advance(1)
    rig.stop.set()
    await rig.clock.settle()
    assert rig.running.done()
    assert rig.state("sample") is State.STOPPED


async def test_a_teardown_cannot_put_off_the_stop_by_reporting_progress(rig: Rig) -> None:
    class Endless(Sample):
        async def teardown(self) -> None:
            while True:
                await self.clock.sleep(1)
                self.progress()

    await rig.start(Endless())
    rig.stop.set()
    await rig.clock.advance(5.1)
    assert rig.running.done()


async def test_an_actor_that_will_not_stop_is_left_behind_and_named(rig: Rig) -> None:
    journal: list[str] = []
    hanging = Hanging(rig.released, stubborn=True)
    await rig.start(Recorded("pool", journal), hanging, drain_timeout=3.0)
    hanging.tell("hang")
    rig.stop.set()
    await rig.clock.advance(8.1)
    assert rig.running.done()
    assert rig.supervisor.abandoned() == ["hanging"]
    assert rig.state("hanging") is State.STUCK
    assert journal == ["pool down"]


async def test_force_ends_at_once_without_draining(rig: Rig) -> None:
    journal: list[str] = []
    slow = Recorded("slow", journal, 5.0)
    await rig.start(slow, drain_timeout=1000.0)
    for number in range(100):
        slow.tell(number)
    rig.stop.set()
    await rig.clock.advance(7)
    assert journal == ["slow handled 0"]
    rig.force.set()
    await rig.clock.settle()
    assert rig.running.done()
    assert journal == ["slow handled 0"]


async def test_force_does_not_wait_for_a_teardown(rig: Rig) -> None:
    class Slow(Sample):
        async def teardown(self) -> None:
            await asyncio.Event().wait()

    await rig.start(Slow())
    rig.stop.set()
    await rig.clock.settle()
    assert not rig.running.done()
    rig.force.set()
    await rig.clock.settle()
    assert rig.running.done()


async def test_force_leaves_a_stubborn_actor_behind_after_a_second(rig: Rig) -> None:
    hanging = Hanging(rig.released, stubborn=True)
    hanging.tell("hang")
    await rig.start(hanging)
    rig.force.set()
    await rig.clock.advance(1.1)
    assert rig.running.done()
    assert rig.supervisor.abandoned() == ["hanging"]


async def test_a_cancelled_run_tears_everybody_down(rig: Rig) -> None:
    sample, sibling = Sample(), Sibling()
    await rig.start(sample, sibling)
    rig.running.cancel()
    await rig.clock.settle()
    assert rig.running.cancelled()
    assert sample.passed[-1] == sibling.passed[-1] == "teardown-2"
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_a_stop_leaves_no_task_and_no_timer_behind(rig: Rig) -> None:
    sample = Sample()
    await rig.start(sample)
    await rig.clock.advance(25)
    await rig.end()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    handled = len(sample.handled)
    await rig.clock.advance(100)
    assert len(sample.handled) == handled


async def test_status_tells_since_when(rig: Rig) -> None:
    started = FakeClock().now()
    await rig.start(Sample())
    await rig.clock.advance(5)
    status = rig.supervisor.status()["sample"]
    assert (status.state, status.since, status.restarts, status.reason) == (
        State.RUNNING,
        started,
        0,
        "",
    )
