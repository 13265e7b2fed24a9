"""Recommendations made of real tickets: each found once, and shown to those who may read them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from itdesk.desk import seed
from itdesk.desk.tickets import NewTicket
from itdesk.model import Caller, Priority, Role, Status, Ticket
from itdesk.store.paging import Window
from itdesk.store.recommendations import Impact, Recommendation, RecommendationType
from tests.support.desk import Bench, bench_on


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def listed(bench: Bench, caller: Caller, **which: Any) -> list[Recommendation]:
    page = await bench.desk.recommendations.list(caller, Window(limit=200, count=True), **which)
    assert page.total == len(page.items)
    return page.items


async def opened(bench: Bench, caller: Caller, title: str, **fields: Any) -> Ticket:
    return await bench.desk.tickets.create(caller, NewTicket(title, **fields))


async def test_there_are_none_before_the_seed_and_those_of_the_seed_after(bench: Bench) -> None:
    """S4-62, S4-25: seeded rows are listed, and stay when real ones come and go."""
    agent = await bench.person(Role.AGENT)
    assert await listed(bench, agent) == []
    await seed.sow(bench.desk)
    assert await bench.desk.recommendations.refresh() == (0, 0, 0)
    found = await listed(bench, agent)
    assert sorted(one.title for one in found) == sorted(row[1] for row in seed.RECOMMENDATIONS)
    high = await listed(bench, agent, impact=Impact.HIGH, type=RecommendationType.PRIORITY)
    assert {one.impact for one in high} == {"high"} and {one.type for one in high} == {"priority"}
    # They rest on tickets that are not there for somebody else.
    assert await listed(bench, await bench.person()) == []


async def test_a_subject_that_comes_again_is_one_finding_that_follows_its_tickets(
    bench: Bench,
) -> None:
    """Found again it is the same row; with its reason gone it is gone."""
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    first = [await opened(bench, alice, f"Printer {n} is jammed") for n in (1, 22)]
    assert await bench.desk.recommendations.refresh() == (0, 0, 0)
    third = await opened(bench, bob, "The PRINTERS, 333: is jammed!")
    assert await bench.desk.recommendations.refresh() == (1, 0, 0)
    [one] = await listed(bench, agent)
    assert (one.type, one.related_tickets) == (
        "pattern", [third.key, first[1].key, first[0].key],
    )  # fmt: skip
    assert await bench.desk.recommendations.refresh() == (0, 0, 0)
    fourth = await opened(bench, alice, "Is printer 4 jammed")
    assert await bench.desk.recommendations.refresh() == (0, 1, 0)
    [again] = await listed(bench, agent)
    assert (again.id, again.created_at) == (one.id, one.created_at)
    assert again.related_tickets == [fourth.key, *one.related_tickets]
    # Alice sees hers among them; Bob's one ticket would only tell him that there are others.
    [hers] = await listed(bench, alice)
    assert hers.related_tickets == [fourth.key, first[1].key, first[0].key]
    assert third.key not in hers.title + hers.description
    assert await listed(bench, bob) == []
    await bench.sql("UPDATE tickets SET created_at = now() - interval '8 days' WHERE key <> $1",
                    third.key)  # fmt: skip
    assert await bench.desk.recommendations.refresh() == (0, 0, 1)
    assert await listed(bench, agent) == []


async def test_critical_tickets_that_nobody_moves_are_named(bench: Bench) -> None:
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    old = await opened(bench, alice, "Backup failed", priority=Priority.CRITICAL)
    await opened(bench, alice, "A fresh one", priority=Priority.CRITICAL)
    await opened(bench, alice, "An old lesser one", priority=Priority.HIGH)
    done = await opened(bench, alice, "A closed one", priority=Priority.CRITICAL)
    await bench.desk.tickets.update(agent, done.key, {"status": Status.CLOSED})
    await bench.sql(
        "UPDATE tickets SET updated_at = now() - interval '25 hours' WHERE title NOT LIKE '%fresh%'"
    )
    assert await bench.desk.recommendations.refresh() == (1, 0, 0)
    for reader, seen in ((agent, [[old.key]]), (alice, [[old.key]]), (bob, [])):
        assert [one.related_tickets for one in await listed(bench, reader)] == seen
    await bench.desk.tickets.update(agent, old.key, {"status": Status.TRIAGED})
    assert await bench.desk.recommendations.refresh() == (0, 0, 1)


async def test_a_ticket_reopened_twice_is_named_until_it_is_closed(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice, "It does not last")
    for turn in range(2):
        assert await bench.desk.recommendations.refresh() == (0, 0, 0), turn
        for status in (Status.CLOSED, Status.OPEN):
            await bench.desk.tickets.update(agent, ticket.key, {"status": status})
    assert await bench.desk.recommendations.refresh() == (1, 0, 0)
    [one] = await listed(bench, alice)
    assert (one.type, one.related_tickets) == ("solution", [ticket.key])
    await bench.desk.tickets.update(agent, ticket.key, {"status": Status.CLOSED})
    assert await bench.desk.recommendations.refresh() == (0, 0, 1)


async def test_somebody_with_too_much_to_do_is_named_to_agents_only(bench: Bench) -> None:
    busy, idle, alice = [await bench.person(r) for r in (Role.AGENT, Role.AGENT, Role.USER)]
    subjects = ["mail", "door", "phone", "screen", "chair", "cable", "badge", "scanner", "modem",
                "speaker", "router"]  # fmt: skip
    for subject in subjects:
        ticket = await opened(bench, alice, f"About {subject}")
        whose = idle if subject == "router" else busy
        wanted = {"assignee_ids": [whose.user_id]}
        await bench.desk.tickets.update(busy, ticket.key, wanted)
    assert await bench.desk.recommendations.refresh() == (1, 0, 0)
    [one] = await listed(bench, idle)
    assert one.type == "workflow" and len(one.related_tickets) == 10
    # Every ticket it rests on is hers, and still it speaks of somebody else's work.
    assert await listed(bench, alice) == []


async def test_two_who_look_at_once_find_everything_once(bench: Bench) -> None:
    """Any number of daemons refresh: one row a finding."""
    alice = await bench.person()
    for n in range(3):
        await opened(bench, alice, f"Printer {n} is jammed")
    await asyncio.gather(*(bench.desk.recommendations.refresh() for _ in range(4)))
    assert await bench.sql("SELECT count(*) FROM recommendations") == 1


async def test_pages_of_recommendations_hold_each_once(bench: Bench) -> None:
    agent = await bench.person(Role.AGENT)
    await seed.sow(bench.desk)
    seen, window = [], Window(limit=3)
    while True:
        page = await bench.desk.recommendations.list(agent, window)
        seen += [one.id for one in page.items]
        if page.next_cursor is None:
            break
        window = Window(limit=3, cursor=page.next_cursor)
    assert len(seen) == len(set(seen)) == len(seed.RECOMMENDATIONS)
