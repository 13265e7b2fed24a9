"""Summaries and drafts: from what their reader may read, plain text, and honest about who wrote."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from itdesk.desk.disclosure import InternalText, PublicText
from itdesk.desk.tickets import NewTicket
from itdesk.desk.writing import CustomerMaterial
from itdesk.errors import Forbidden
from itdesk.model import Caller, Role, Status, Ticket
from itdesk.store.paging import Window
from tests.support.desk import Bench, bench_on
from tests.support.ollama import FakeOllama, fake_ollama

ALL = Window(limit=200)


@pytest_asyncio.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as server:
        yield server


@pytest_asyncio.fixture
async def bench(database_url: str, ollama: FakeOllama) -> AsyncIterator[Bench]:
    env = {"OLLAMA_BASE_URL": ollama.url, "OLLAMA_MODEL": "llama3.2"}
    async with bench_on(database_url, **env) as bench:
        yield bench


async def talk(bench: Bench, agent: Caller, alice: Caller) -> Ticket:
    """Return a ticket on which customer and agents spoke, internally too."""
    new = NewTicket("VPN is down", "It broke today. It says error 809. Nothing helps.")
    ticket = await bench.desk.tickets.create(alice, new)
    await bench.desk.tickets.comment(agent, ticket.key, "Did you restart it?")
    await bench.desk.tickets.comment(alice, ticket.key, "Yes, twice.")
    await bench.desk.tickets.comment(agent, ticket.key, "INTERNAL-SECRET: fired", internal=True)
    return ticket


async def test_a_summary_rests_on_all_that_was_said_and_is_for_agents_only(
    bench: Bench, ollama: FakeOllama
) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await talk(bench, agent, alice)
    ollama.says = lambda prompt, schema: {"summary": "Down since <b>today</b>.",
                                          "open_points": ["Look at the gateway"]}  # fmt: skip
    done = await bench.desk.writing.summarise(agent, ticket.key)
    assert done.source == "ollama" and done.suggestion is not None
    assert done.suggestion.proposal == "Down since today .\nOpen:\n- Look at the gateway"
    [read] = ollama.prompts()
    assert "INTERNAL-SECRET" in read and "Yes, twice." in read
    with pytest.raises(Forbidden):
        await bench.desk.writing.summarise(alice, ticket.key)
    assert (await bench.desk.tickets.get(alice, ticket.key)).version == 4


async def test_without_a_model_a_summary_is_the_tickets_own_sentences(database_url: str) -> None:
    async with bench_on(database_url) as bench:
        agent, alice = await bench.person(Role.AGENT), await bench.person()
        ticket = await talk(bench, agent, alice)
        done = await bench.desk.writing.summarise(agent, ticket.key)
        assert (done.source, "No model" in done.note) == ("rules", True)
        assert done.suggestion is not None
        lines = done.suggestion.proposal.splitlines()
        assert lines[0] == "VPN is down (open, medium)"
        assert lines[1] == "A user wrote: It broke today. It says error 809."
        assert lines[2] == "3 comments by 2 people."
        assert lines[-1].startswith("A agent internally on 20") and "fired" in lines[-1]
        # The same again is the same suggestion.
        again = await bench.desk.writing.summarise(agent, ticket.key)
        assert again.suggestion == done.suggestion
        # However long a text is, little of it is looked at: that takes the loop's time.
        text = "It hums. " + "<b>" * 2000 + " The end."
        changed = {"description": text, "resolution": "<b>" * 2000 + " The end."}
        await bench.desk.tickets.update(agent, ticket.key, changed)
        done = await bench.desk.writing.summarise(agent, ticket.key)
        assert done.suggestion is not None
        assert "It hums." in done.suggestion.proposal and "end" not in done.suggestion.proposal


async def test_a_long_ticket_is_cut_to_what_a_model_reads(bench: Bench, ollama: FakeOllama) -> None:
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    ticket = await bench.desk.tickets.create(alice, NewTicket("Long", "x y " * 25_000))
    for number in range(30):
        text = f"said {number} " + "bla " * 1000
        await bench.desk.tickets.comment(agent, ticket.key, text)
    ollama.says = lambda prompt, schema: {"summary": "Long.", "open_points": []}
    await bench.desk.writing.summarise(agent, ticket.key)
    [read] = ollama.prompts()
    assert len(read) < 20_000 and "said 29" in read and "said 0 " not in read
    ollama.says = lambda prompt, schema: {"reply": "Hello."}
    await bench.desk.writing.draft(agent, ticket.key)
    read = ollama.prompts()[-1]
    assert len(read) < 20_000 and "x y" in read and "said 29" in read and "said 0 " not in read


async def test_a_draft_never_rests_on_what_is_internal(bench: Bench, ollama: FakeOllama) -> None:
    """S-36: neither this ticket's internal comments nor anything the customer may not read."""
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    for who, word in ((bob, "CANARY-OF-BOB"), (alice, "HER-OWN-FIX")):
        old = await bench.desk.tickets.create(who, NewTicket("VPN is down", "error 809"))
        solved = {"status": Status.CLOSED, "resolution": f"VPN is down: error 809: {word}"}
        await bench.desk.tickets.update(agent, old.key, solved)
    ticket = await talk(bench, agent, alice)
    ollama.says = lambda prompt, schema: {"reply": "Try this: [x](https://evil.example) <b>now</b>"}
    done = await bench.desk.writing.draft(agent, ticket.key)
    [read] = ollama.prompts()
    assert "Yes, twice." in read and "HER-OWN-FIX" in read
    assert "INTERNAL-SECRET" not in read and "CANARY" not in read
    assert done.suggestion is not None and done.source == "ollama"
    assert "https:" not in done.suggestion.proposal and "<" not in done.suggestion.proposal
    assert [one.title for one in done.sources] and all(
        "CANARY" not in repr(one) for one in done.sources
    )
    # It is no comment yet, and becomes one when an agent says so.
    assert (await bench.desk.tickets.comments(alice, ticket.key, ALL)).items[-1].body != (
        done.suggestion.proposal
    )
    await bench.desk.suggestions.accept(agent, ticket.key, done.suggestion.id)
    page = await bench.desk.tickets.comments(alice, ticket.key, ALL)
    assert page.items[-1].body == done.suggestion.proposal


def test_what_was_said_internally_cannot_even_be_put_into_a_draft() -> None:
    CustomerMaterial("x", [("comment", PublicText("fine"))])
    with pytest.raises(TypeError):
        CustomerMaterial("x", [("comment", InternalText("no"))])  # type: ignore[list-item]


@pytest.mark.parametrize("mode", ["error", "garbage", "cut"])
async def test_without_an_answer_a_draft_is_a_ready_text_or_none(
    bench: Bench, ollama: FakeOllama, mode: Any
) -> None:
    ollama.mode = mode
    if mode == "cut":
        ollama.says = lambda prompt, schema: {"reply": "<b></b> \u200b"}
    agent, alice = await bench.person(Role.AGENT), await bench.person()
    known = await bench.desk.tickets.create(alice, NewTicket("I forgot my password"))
    done = await bench.desk.writing.draft(agent, known.key)
    assert done.source == "rules" and done.suggestion is not None and "ready text" in done.note
    unknown = await bench.desk.tickets.create(alice, NewTicket("Qwertz uiop"))
    none = await bench.desk.writing.draft(agent, unknown.key)
    assert (none.suggestion, none.source) == (None, "rules") and "No model" in none.note
    with pytest.raises(Forbidden):
        await bench.desk.writing.draft(alice, known.key)


async def test_a_ticket_that_nobody_here_reported_gets_no_ones_knowledge(
    bench: Bench, ollama: FakeOllama
) -> None:
    """Mirrored tickets have no reporter: nobody's rights are not everybody's."""
    agent, bob = await bench.person(Role.AGENT), await bench.person()
    old = await bench.desk.tickets.create(bob, NewTicket("VPN is down"))
    solved = {"status": Status.CLOSED, "resolution": "VPN is down because of CANARY"}
    await bench.desk.tickets.update(agent, old.key, solved)
    ticket = await bench.desk.tickets.create(bob, NewTicket("VPN is down"))
    await bench.sql("UPDATE tickets SET reporter_id = NULL WHERE id = $1", ticket.id)
    ollama.says = lambda prompt, schema: {"reply": "Hello."}
    await bench.desk.writing.draft(agent, ticket.key)
    assert ollama.prompts() and all("CANARY" not in read for read in ollama.prompts())
