import pytest

from itdesk.runtime.actor import TICK, Actor


class Collector(Actor):
    name = "collector"
    mailbox_size = 3

    def __init__(self) -> None:
        self.handled: list[object] = []

    async def handle(self, message: object) -> None:
        self.handled.append(message)
        if message == "again":
            self.tell("more")


async def test_a_step_handles_exactly_one_message_in_the_order_told() -> None:
    actor = Collector()
    assert actor.tell("a") and actor.tell("b")
    await actor.step()
    assert actor.handled == ["a"]
    await actor.step()
    assert actor.handled == ["a", "b"]


async def test_a_step_without_a_message_is_an_error_not_a_hang() -> None:
    with pytest.raises(LookupError):
        await Collector().step()


async def test_a_full_mailbox_refuses_and_counts() -> None:
    actor = Collector()
    assert [actor.tell(n) for n in range(5)] == [True, True, True, False, False]
    assert actor.mailbox.dropped == 2
    await actor.drain()
    assert actor.handled == [0, 1, 2]
    assert actor.tell("room again")


async def test_there_is_never_more_than_one_tick_in_the_mailbox() -> None:
    actor = Collector()
    assert actor.tell(TICK) and actor.tell(TICK) and actor.tell(TICK)
    assert len(actor.mailbox) == 1
    assert actor.mailbox.dropped == 0
    await actor.step()
    assert actor.tell(TICK)
    assert len(actor.mailbox) == 1


async def test_a_tick_reaches_even_a_full_mailbox_and_takes_nobodys_place() -> None:
    actor = Collector()
    actor.tell(TICK)
    assert [actor.tell(n) for n in range(4)] == [True, True, True, False]
    actor = Collector()
    assert [actor.tell(n) for n in range(3)] == [True, True, True]
    assert actor.tell(TICK)


async def test_a_drain_handles_what_is_queued_not_what_it_causes() -> None:
    actor = Collector()
    actor.tell("again")
    await actor.drain()
    assert actor.handled == ["again"]
    assert len(actor.mailbox) == 1


async def test_a_closed_mailbox_gives_what_it_holds_and_takes_nothing() -> None:
    actor = Collector()
    actor.tell("held")
    actor.mailbox.close()
    assert not actor.tell("late")
    assert await actor.mailbox.ready()
    await actor.step()
    assert not await actor.mailbox.ready()


async def test_an_actor_is_complete_without_calling_the_constructor_of_actor() -> None:
    actor = Collector()
    before = actor.beat
    actor.progress()
    assert actor.beat >= before
