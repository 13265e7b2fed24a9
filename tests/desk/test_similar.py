"""Similar tickets: found by what people wrote, scoped to who asks, and bounded."""

from collections.abc import AsyncIterator

import pytest_asyncio

from itdesk.desk.tickets import NewTicket
from itdesk.model import Caller, Category, Role, Ticket
from itdesk.store import similar
from tests.support.desk import Bench, bench_on


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def opened(bench: Bench, who: Caller, title: str, text: str = "", **more: object) -> Ticket:
    return await bench.desk.tickets.create(who, NewTicket(title, text, **more))  # type: ignore[arg-type]


async def keys(bench: Bench, who: Caller, ticket: Ticket, limit: int = 5) -> list[str]:
    return [one.key for one in await bench.desk.similar.of(who, ticket.key, limit=limit)]


async def test_the_same_request_comes_first_and_is_called_a_duplicate(bench: Bench) -> None:
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    text = "Since this morning the tunnel drops every ten minutes."
    twin = await opened(bench, bob, "VPN disconnects all the time", text)
    cousin = await opened(bench, bob, "VPN is slow", "Downloads take hours over the tunnel.")
    for n in range(30):
        await opened(bench, bob, f"Printer {n} is out of toner", "The tray is empty as well.")
    mine = await opened(bench, alice, "The VPN disconnects all the time!", text)
    found = await bench.desk.similar.of(agent, mine.key, limit=5)
    assert [one.key for one in found] == [twin.key, cousin.key]
    assert [one.duplicate for one in found] == [True, False]
    assert 1 >= found[0].score > found[1].score > 0
    assert "same words" in found[0].reason and "tunnel" in found[1].reason
    # The same question again has the same answer; less of it is its beginning.
    assert await keys(bench, agent, mine, limit=1) == [twin.key]


async def test_other_peoples_tickets_are_not_there_for_a_user(bench: Bench) -> None:
    """What may not be read is not counted, named or hinted at."""
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    his = await opened(bench, bob, "Payroll export crashes with CANARY-1", "CANARY-2 in the log")
    first = await opened(bench, alice, "Payroll export crashes", "It happened before.")
    mine = await opened(bench, alice, "Payroll export crashes", "Again.")
    assert await keys(bench, alice, mine) == [first.key]
    assert set(await keys(bench, agent, mine)) == {first.key, his.key}
    shown = repr(await bench.desk.similar.of(alice, mine.key, limit=20))
    assert "CANARY" not in shown and his.key not in shown
    await bench.desk.tickets.update(agent, his.key, {"assignee_ids": [agent.user_id]})
    assert await keys(bench, alice, mine) == [first.key]


async def test_what_was_said_afterwards_decides_nothing(bench: Bench) -> None:
    """Of two tickets alike in all but comments both score the same, also for who reads them all."""
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    plain = await opened(bench, alice, "Scanner jams", "Page three.")
    talked = await opened(bench, alice, "Scanner jams", "Page three.")
    mine = await opened(bench, alice, "Scanner jams on page three", "Fuser unit broken again.")
    for internal in (False, True):
        said = f"Fuser unit broken again {internal}."
        await bench.desk.tickets.comment(agent, talked.key, said, internal=internal)
    found = {one.key: one for one in await bench.desk.similar.of(agent, mine.key, limit=5)}
    assert found[plain.key].score == found[talked.key].score
    assert "fuser" not in found[talked.key].reason


async def test_the_category_weighs_a_little_and_a_ticket_without_words_has_no_kin(
    bench: Bench,
) -> None:
    alice = await bench.person()
    one = await opened(bench, alice, "Router reboots nightly", category=Category.NETWORK)
    other = await opened(bench, alice, "Router reboots nightly", category=Category.HARDWARE)
    mine = await opened(bench, alice, "Router reboots hourly", category=Category.HARDWARE)
    assert await keys(bench, alice, mine) == [other.key, one.key]
    odd = [
        await opened(bench, alice, title) for title in ("!!! ???", "or and not", "日本語 テスト")
    ]
    for ticket in odd[:2]:
        assert await keys(bench, alice, ticket) == []


def test_the_words_worth_looking_for_are_few_and_tell_something() -> None:
    assert similar.telling("The printer is not working", "") == ["printer"]
    assert similar.telling("Der Drucker geht nicht", "Papierstau") == ["drucker", "papierstau"]
    many = similar.telling(" ".join(f"word{n}" for n in range(50)), "x " * 10_000)
    assert len(many) == 6
    assert similar.telling("", "") == [] and similar.telling("a" * 300, "") == []


async def test_one_among_many_old_ones_is_found(bench: Bench) -> None:
    """The newest are not the only ones that are looked at, and the answer stays bounded."""
    alice = await bench.person()
    agent = await bench.person(Role.AGENT)
    old = await opened(bench, alice, "Badge reader at gate four rejects cards")
    await bench.sql(
        """INSERT INTO tickets (key, project_id, title, description)
           SELECT 'OLD-' || n, $1, 'Badge request ' || n, 'cards and gate ' || md5(n::text)
           FROM generate_series(1, 3000) AS n""",
        old.project_id,
    )
    mine = await opened(bench, alice, "Badge reader at gate four rejects all cards")
    found = await bench.desk.similar.of(agent, mine.key, limit=20)
    assert found[0].key == old.key and found[0].duplicate and len(found) <= 20
