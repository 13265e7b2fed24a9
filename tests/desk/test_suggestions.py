"""Suggestions: nothing happens before a person says so, and then once, as that person."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from itdesk.desk.tickets import NewTicket
from itdesk.errors import BadRequest, Conflict, Forbidden, NotFound, PreconditionFailed
from itdesk.model import Caller, Category, Priority, Role, Status, Ticket, new_id
from itdesk.store import suggestions
from itdesk.store.paging import Window
from itdesk.store.suggestions import NewSuggestion, Precision, Suggestion, SuggestionKind
from tests.support.desk import Bench, bench_on

ALL = Window(limit=200)


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def suggested(
    bench: Bench, ticket: Ticket, kind: str, proposal: str, source: str = "test"
) -> Suggestion:
    async with bench.desk.db.transaction() as tx:
        new = NewSuggestion(SuggestionKind(kind), proposal, source, 0.8, "because")
        return await suggestions.put(tx.conn, ticket.id, new)


async def journal(bench: Bench, ticket: Ticket) -> list[tuple[str, str, int]]:
    async with bench.desk.db.connection() as conn:
        rows = await conn.fetch(
            "SELECT type, source, ticket_version FROM events WHERE ticket_id = $1"
            " ORDER BY ticket_version",
            ticket.id,
        )
    return [tuple(row) for row in rows]


async def opened(bench: Bench, who: Caller, title: str = "Something", **more: Any) -> Ticket:
    return await bench.desk.tickets.create(who, NewTicket(title, **more))


async def test_each_kind_does_what_it_proposes_in_one_version_as_who_accepts_it(
    bench: Bench,
) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    original = await opened(bench, alice, "The first")
    proposals = {
        "priority": ("critical", "priority", Priority.CRITICAL),
        "category": ("network", "category", Category.NETWORK),
        "assignee": (str(agent.user_id), "assignee_ids", [agent.user_id]),
        "duplicate_of": (original.key, "status", Status.CLOSED),
    }
    for kind, (proposal, field, value) in proposals.items():
        ticket = await opened(bench, alice)
        made = await suggested(bench, ticket, kind, proposal)
        before = await bench.desk.tickets.get(agent, ticket.key)
        assert before.version == 1 and getattr(before, field) != value
        done = await bench.desk.suggestions.accept(agent, ticket.key, made.id)
        assert getattr(done.ticket, field) == value and done.ticket.version == 2
        assert done.ticket == await bench.desk.tickets.get(agent, ticket.key)
        assert (done.suggestion.state, done.suggestion.decided_by) == ("accepted", agent.user_id)
        assert await journal(bench, ticket) == [
            ("ticket.created", "api", 1), ("ticket.updated", "api", 2),
        ]  # fmt: skip
    assert done.ticket.resolution == f"Duplicate of {original.key}."
    # Each change says which decision it follows from.
    audited = await bench.sql(
        "SELECT count(*) FROM events AS e JOIN events AS why ON why.id = e.cause_id"
        " WHERE e.type = 'ticket.updated' AND why.type = 'suggestion.accepted'"
    )
    assert audited == 4


async def test_a_reply_is_said_publicly_and_a_summary_internally(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice)
    reply = await suggested(bench, ticket, "reply", "Dear Alice")
    summary = await suggested(bench, ticket, "summary", "She is angry")
    await bench.desk.suggestions.accept(agent, ticket.key, reply.id, text="Dear Ms Alice")
    await bench.desk.suggestions.accept(agent, ticket.key, summary.id)
    page = await bench.desk.tickets.comments(agent, ticket.key, ALL)
    assert [(c.body, c.internal) for c in page.items] == [
        ("Dear Ms Alice", False), ("She is angry", True),
    ]  # fmt: skip
    page = await bench.desk.tickets.comments(alice, ticket.key, ALL)
    assert [c.body for c in page.items] == ["Dear Ms Alice"]


async def test_a_duplicate_of_what_its_reporter_may_not_read_does_not_name_it(
    bench: Bench,
) -> None:
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    his, hers = await opened(bench, bob, "Same"), await opened(bench, alice, "Same")
    made = await suggested(bench, hers, "duplicate_of", his.key)
    done = await bench.desk.suggestions.accept(agent, hers.key, made.id)
    assert done.ticket.resolution is not None and his.key not in done.ticket.resolution
    blocked = await opened(bench, alice)
    for status in (Status.IN_PROGRESS, Status.BLOCKED):
        await bench.desk.tickets.update(agent, blocked.key, {"status": status})
    made = await suggested(bench, blocked, "duplicate_of", his.key)
    # The lifecycle holds for suggestions too: nothing is half done.
    with pytest.raises(BadRequest):
        await bench.desk.suggestions.accept(agent, blocked.key, made.id)
    page = await bench.desk.suggestions.list(agent, blocked.key, ALL, state=None)
    assert [one.state for one in page.items] == ["open"]
    await bench.desk.tickets.delete(await bench.person(Role.ADMIN), his.key)
    with pytest.raises(Conflict) as stale:
        await bench.desk.suggestions.accept(agent, blocked.key, made.id)
    assert stale.value.code == "E_SUGGESTION_STALE"


async def test_twenty_who_accept_at_once_change_the_ticket_once(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice)
    made = await suggested(bench, ticket, "category", "email")
    answers = await asyncio.gather(
        *(bench.desk.suggestions.accept(agent, ticket.key, made.id) for _ in range(20)),
        return_exceptions=True,
    )
    refused = [one for one in answers if isinstance(one, Conflict)]
    assert len(refused) == 19 and {one.code for one in refused} == {"E_SUGGESTION_STATE"}
    assert (await bench.desk.tickets.get(agent, ticket.key)).version == 2


async def test_a_rejected_one_changes_nothing_and_stays_decided(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice)
    made = await suggested(bench, ticket, "priority", "high")
    done = await bench.desk.suggestions.reject(agent, ticket.key, made.id)
    assert (done.ticket.version, done.ticket.priority) == (1, "medium")
    for decide in (bench.desk.suggestions.accept, bench.desk.suggestions.reject):
        with pytest.raises(Conflict):
            await decide(agent, ticket.key, made.id)
    with pytest.raises(Conflict):
        await bench.desk.suggestions.revert(agent, ticket.key, made.id)


async def test_what_is_so_already_is_accepted_without_a_new_version(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice, category=Category.EMAIL)
    made = await suggested(bench, ticket, "category", "email")
    done = await bench.desk.suggestions.accept(agent, ticket.key, made.id)
    assert (done.suggestion.state, done.ticket.version) == ("accepted", 1)


async def test_a_stale_if_match_leaves_the_suggestion_open(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice)
    made = await suggested(bench, ticket, "category", "email")
    await bench.desk.tickets.comment(alice, ticket.key, "Hello?")
    with pytest.raises(PreconditionFailed):
        await bench.desk.suggestions.accept(agent, ticket.key, made.id, if_match='"1"')
    await bench.desk.suggestions.accept(agent, ticket.key, made.id, if_match='"2"')


async def test_of_each_kind_the_newest_is_open_and_the_same_one_stays(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await opened(bench, alice)
    first = await suggested(bench, ticket, "category", "email", "rules")
    again = await suggested(bench, ticket, "category", "email", "rules")
    other = await suggested(bench, ticket, "category", "network", "ollama")
    assert first.id == again.id != other.id
    page = await bench.desk.suggestions.list(agent, ticket.key, Window(count=True), state=None)
    assert [(one.proposal, one.state) for one in page.items] == [
        ("network", "open"), ("email", "superseded"),
    ]  # fmt: skip
    assert page.total == 2
    with pytest.raises(Conflict):
        await bench.desk.suggestions.accept(agent, ticket.key, first.id)


async def test_closing_a_ticket_leaves_nothing_to_decide_on_it(bench: Bench) -> None:
    """But for what closes it: that was accepted."""
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    first, second = await opened(bench, alice), await opened(bench, alice)
    await suggested(bench, first, "reply", "Dear Alice")
    await bench.desk.tickets.update(alice, first.key, {"status": Status.CLOSED})
    await suggested(bench, second, "reply", "Dear Alice")
    made = await suggested(bench, second, "duplicate_of", first.key)
    await bench.desk.suggestions.accept(agent, second.key, made.id)
    for ticket, states in ((first, ["superseded"]), (second, ["accepted", "superseded"])):
        page = await bench.desk.suggestions.list(agent, ticket.key, ALL, state=None)
        assert [one.state for one in page.items] == states


async def test_users_know_of_none(bench: Bench) -> None:
    """S-36: suggestions rest on what is internal as well, and are for agents only."""
    alice = await bench.person()
    ticket = await opened(bench, alice)
    made = await suggested(bench, ticket, "reply", "Internal")
    service = bench.desk.suggestions
    with pytest.raises(Forbidden):
        await service.list(alice, ticket.key, ALL, state=None)
    for act in (service.accept, service.reject, service.revert):
        with pytest.raises(Forbidden):
            await act(alice, ticket.key, made.id)
    with pytest.raises(Forbidden):
        await service.report(await bench.person(Role.AGENT), 30)


async def test_a_suggestion_is_found_through_its_own_ticket_only(bench: Bench) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket, other = await opened(bench, alice), await opened(bench, alice)
    made = await suggested(bench, ticket, "category", "email")
    for ref, which in ((other.key, made.id), (ticket.key, new_id()), (ticket.key, "no-id")):
        with pytest.raises(NotFound) as missing:
            await bench.desk.suggestions.accept(agent, ref, which)
        assert missing.value.code == "E_SUGGESTION_NOT_FOUND"


async def test_precision_is_what_people_accepted_of_what_they_decided(bench: Bench) -> None:
    agent, manager, alice = [await bench.person(r) for r in (Role.AGENT, Role.MANAGER, Role.USER)]
    service = bench.desk.suggestions
    for turn in range(4):
        ticket = await opened(bench, alice)
        made = await suggested(bench, ticket, "category", "network")
        await (service.reject if turn == 0 else service.accept)(agent, ticket.key, made.id)
    for kind in ("category", "priority"):
        await suggested(
            bench, await opened(bench, alice), kind, {"priority": "low"}.get(kind, "email")
        )
    old = await opened(bench, alice)
    made = await suggested(bench, old, "category", "network")
    await service.reject(agent, old.key, made.id)
    await bench.sql("UPDATE suggestions SET decided_at = now() - interval '91 days' WHERE id = $1",
                    made.id)  # fmt: skip
    report = await service.report(manager, 90)
    assert report.data == [
        Precision(SuggestionKind.CATEGORY, Category.EMAIL, 0, 0, 0, None, 0, 1),
        Precision(SuggestionKind.CATEGORY, Category.NETWORK, 3, 1, 4, 0.75, 0, 0),
        Precision(SuggestionKind.PRIORITY, None, 0, 0, 0, None, 0, 1),
    ]
    assert report.metadata.period_days == 90
    await service.measure()
    labels = {"kind": "category", "category": "network"}
    assert bench.metric("itdesk_suggestions_precision", **labels) == 0.75
    assert bench.metric("itdesk_suggestions_decided", **labels) == 4
