"""Vectors of a model: made in the background, kept as plain numbers, and trusted with the order."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from itdesk.desk.meanings import unit
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
    assert await bench.sql("SELECT count(*) FROM ticket_embeddings") == 0


@pytest.mark.parametrize("answer", [[1e39] * 64, [float("nan")] * 64, []])
async def test_a_text_that_no_vector_can_be_made_of_is_left_out_and_asked_about_once(
    bench: Bench, ollama: FakeOllama, answer: list[float]
) -> None:
    """The others have theirs; that one has another chance once its text is another."""
    alice = await bench.person()
    bad = await opened(bench, alice, "Badge reader rejects cards", "Poison")
    for n in range(40):
        await opened(bench, alice, f"Toner {n} empty")
    ollama.embeds = lambda texts: [
        answer if "Poison" in text else fake.vector(text) for text in texts
    ]
    await bench.sql("UPDATE tickets SET updated_at = now() WHERE id = $1", bad.id)
    assert await bench.desk.meanings.refresh() == 41
    made = "SELECT count(*) FROM ticket_embeddings WHERE cardinality(vector) = 64"
    assert await bench.sql(made) == 40
    asked = len(ollama.calls("/api/embed"))
    assert await bench.desk.meanings.refresh() == 0
    assert len(ollama.calls("/api/embed")) == asked
    # Where there is no vector the words alone decide.
    other = await opened(bench, alice, "Badge reader rejects cards")
    before = await bench.desk.similar.of(alice, other.key, limit=5)
    assert await bench.desk.meanings.refresh() == 1
    assert before == await bench.desk.similar.of(alice, other.key, limit=5) != []
    await bench.desk.tickets.update(alice, bad.key, {"description": "Solved"})
    assert await bench.desk.meanings.refresh() == 1 and await bench.sql(made) == 42


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


async def test_vectors_are_kept_at_length_one_and_compared_by_their_direction(
    bench: Bench, ollama: FakeOllama
) -> None:
    """The database does: of other lengths, of nothing or of another model there is no cosine."""
    alice = await bench.person()
    said: dict[str, list[float]] = {
        "Mine": [3.0, 4.0], "Same": [3e30, 4e30], "Across": [-4.0, 3.0], "Against": [-3.0, -4.0],
        "Half": [1.0, 0.0], "Nowhere": [0.0, 0.0], "Strange": [3.0, 4.0], "Longer": [3.0, 4.0],
    }  # fmt: skip
    ollama.embeds = lambda texts: [said[text.strip()] for text in texts]
    made = {title: (await opened(bench, alice, title)).id for title in said}
    assert await bench.desk.meanings.refresh() == len(said)
    await bench.sql(
        "UPDATE ticket_embeddings SET model = 'x' WHERE ticket_id = $1", made["Strange"]
    )
    await bench.sql(
        "UPDATE ticket_embeddings SET vector = '{1, 2, 3}' WHERE ticket_id = $1", made["Longer"]
    )
    near = await bench.desk.meanings.nearness(made["Mine"], made.values())
    known = {title: near[id] for title, id in made.items() if id in near}
    assert known == pytest.approx(
        {"Mine": 1.0, "Same": 1.0, "Across": 0.0, "Against": 0.0, "Half": 0.6}, abs=1e-6
    )
    assert await bench.desk.meanings.nearness(made["Nowhere"], made.values()) == {}
    kept = await bench.sql(
        "SELECT vector FROM ticket_embeddings WHERE ticket_id = $1", made["Same"]
    )
    assert kept == pytest.approx([0.6, 0.8], abs=1e-6)


def test_a_vector_of_no_length_is_none() -> None:
    assert unit([0.0, 0.0]) == unit([]) == [] and unit([0.0, -2.0]) == [0.0, -1.0]
