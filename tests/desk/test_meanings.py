"""Vectors of a model: made in the background, kept as plain numbers, and trusted with the order."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from itdesk.desk.meanings import nearness
from itdesk.desk.tickets import NewTicket
from itdesk.model import Caller, Role, Ticket
from tests.support import ollama as fake
from tests.support.desk import Bench, bench_on
from tests.support.ollama import FakeOllama, fake_ollama


@pytest_asyncio.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as server:
        yield server


@pytest_asyncio.fixture
async def bench(database_url: str, ollama: FakeOllama) -> AsyncIterator[Bench]:
    env = {
        "OLLAMA_BASE_URL": ollama.url, "OLLAMA_MODEL": "llama3.2",
        "ITDESK_PLUGINS__OLLAMA__EMBEDDING_MODEL": "nomic-embed-text",
    }  # fmt: skip
    async with bench_on(database_url, **env) as bench:
        yield bench


async def opened(bench: Bench, who: Caller, title: str, text: str = "") -> Ticket:
    return await bench.desk.tickets.create(who, NewTicket(title, text))


async def test_each_text_is_put_into_numbers_once_and_again_when_it_changes(
    bench: Bench, ollama: FakeOllama
) -> None:
    alice = await bench.person()
    tickets = [await opened(bench, alice, f"Ticket {n}", "about it") for n in range(40)]
    assert await bench.desk.meanings.refresh() == 40
    assert (
        await bench.sql("SELECT count(*) FROM ticket_embeddings WHERE model LIKE '%nomic%'") == 40
    )
    asked = len(ollama.calls("/api/embed"))
    assert await bench.desk.meanings.refresh() == 0
    await bench.desk.tickets.comment(alice, tickets[0].key, "Anybody there?")
    assert await bench.desk.meanings.refresh() == 0
    assert len(ollama.calls("/api/embed")) == asked
    await bench.desk.tickets.update(alice, tickets[0].key, {"title": "Something else"})
    assert await bench.desk.meanings.refresh() == 1
    assert "Something else" in str(ollama.calls("/api/embed")[-1].body["input"])


async def test_meanings_order_what_the_words_found_and_find_nothing_more(
    bench: Bench, ollama: FakeOllama
) -> None:
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    near = await opened(bench, alice, "Toner empty", "second floor printer says replace it")
    far = await opened(bench, alice, "Toner empty", "quarterly budget of the whole company")
    strange = await opened(bench, alice, "Zzz", "aaa")
    his = await opened(bench, bob, "Toner empty", "second floor printer says replace it now")
    mine = await opened(bench, alice, "Toner empty again", "the printer on the second floor")
    before = {one.key: one for one in await bench.desk.similar.of(alice, mine.key, limit=9)}
    await bench.desk.meanings.refresh()
    after = {one.key: one for one in await bench.desk.similar.of(alice, mine.key, limit=9)}
    assert list(after) == [near.key, far.key] and set(before) == set(after)
    assert after[near.key].score != before[near.key].score
    assert strange.key not in after and his.key not in after
    assert his.key in {one.key for one in await bench.desk.similar.of(agent, mine.key, limit=9)}


async def test_numbers_that_are_none_are_not_kept(
    bench: Bench, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-36: what the fake server says is what is replaced, never our own code."""
    alice = await bench.person()
    one, two = await opened(bench, alice, "Toner empty"), await opened(bench, alice, "Toner empty")
    answers: list[Any] = [[float("1e400")], [], "x", [None], {"a": 1}]
    for answer in answers:
        monkeypatch.setattr(fake, "vector", lambda text, answer=answer: answer)
        assert await bench.desk.meanings.refresh() == 0
        assert await bench.sql("SELECT count(*) FROM ticket_embeddings") == 0
    found = await bench.desk.similar.of(alice, two.key, limit=9)
    assert [each.key for each in found] == [one.key]
    monkeypatch.undo()
    assert len(ollama.calls("/api/embed")) >= 3


async def test_a_model_that_is_out_leaves_similar_tickets_to_the_words(
    bench: Bench, ollama: FakeOllama
) -> None:
    ollama.mode = "error"
    alice = await bench.person()
    one, two = await opened(bench, alice, "Toner empty"), await opened(bench, alice, "Toner empty")
    assert await bench.desk.meanings.refresh() == 0
    assert [found.key for found in await bench.desk.similar.of(alice, two.key, limit=9)] == [
        one.key
    ]


def test_vectors_of_other_lengths_or_of_nothing_are_not_near() -> None:
    assert nearness([1.0, 0.0], [1.0, 0.0]) == 1.0 and nearness([1.0, 0.0], [0.0, 1.0]) == 0.0
    assert nearness([1.0], [1.0, 0.0]) == nearness([0.0], [0.0]) == nearness([1.0], [-1.0]) == 0.0
