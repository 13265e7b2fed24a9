"""The Ollama plugin on a real socket: vectors, its settings, and what it says is wrong."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from pydantic import ValidationError

from itdesk.config import Settings
from itdesk.desk.assist import Answer, Assist, Purpose
from itdesk.desk.doctor import examine
from itdesk.errors import Unavailable
from itdesk.model import SYSTEM
from itdesk.runtime.clock import Clock
from itdesk.runtime.metrics import Metrics
from itdesk_plugins.ollama import OllamaSettings, Plugin
from tests.support.desk import bench_on
from tests.support.ollama import MEBIBYTE, FakeOllama, fake_ollama


class Desk:
    """What the plugin needs of one."""

    clock = Clock()


@pytest.fixture
async def ollama() -> AsyncIterator[FakeOllama]:
    async with fake_ollama() as ollama:
        yield ollama


@pytest.fixture
async def plugin(ollama: FakeOllama) -> AsyncIterator[Plugin]:
    plugin = Plugin(OllamaSettings(base_url=ollama.url, embedding_model="nomic-embed-text"))
    plugin.itdesk_metrics(Metrics())
    async with plugin.itdesk_lifespan(cast("Any", Desk())):
        yield plugin


@pytest.fixture
def assist(plugin: Plugin) -> Assist:
    assist = Assist(Settings(), Clock(), Metrics())
    assist.model = plugin
    return assist


async def test_texts_become_vectors_that_can_be_compared(
    assist: Assist, ollama: FakeOllama
) -> None:
    assert assist.embedding == "nomic-embed-text"
    found = await assist.embed(SYSTEM, ["printer jams", "printer jams", "no wifi"])
    assert found is not None and found[0] == found[1] != found[2]
    [asked] = ollama.calls("/api/embed")
    assert asked.body == {
        "model": "nomic-embed-text", "truncate": True,
        "input": ["printer jams", "printer jams", "no wifi"],
    }  # fmt: skip
    assert await assist.embed(SYSTEM, []) is None


@pytest.mark.parametrize(
    "vectors",
    [
        [], [[1.0]], [[1.0], []], [[], []], [[1.0], [1.0, 2.0]], [[1.0], ["1"]], [[1.0], [None]],
        [[1.0], [True]], [[1.0], [1e309]], [1.0, 2.0], "ab", None, [[1.0] * 8193] * 2,
    ],
    ids=lambda vectors: str(vectors)[:20],
)  # fmt: skip
async def test_vectors_that_are_none_are_not_used(
    assist: Assist, ollama: FakeOllama, vectors: Any
) -> None:
    """P-09: count, length, numbers, finite."""
    ollama.embeds = lambda texts: vectors
    assert await assist.embed(SYSTEM, ["a", "b"]) is None


@pytest.mark.parametrize("texts", [1, 32])
@pytest.mark.parametrize(
    ("piece", "count"), [(b"[],", 8000), (b"0,", 13_000), (b"[", 8000), (b'{"a":1},', 8000)]
)
async def test_vectors_that_are_many_things_are_refused_before_they_are_decoded(
    plugin: Plugin, ollama: FakeOllama, piece: bytes, count: int, texts: int
) -> None:
    """P-09: decoding a million objects stopped everybody for seconds."""
    much = piece * (texts * count)
    ollama.embeds = lambda texts: b'{"embeddings":[' + much + b"0]}"
    with pytest.raises(Unavailable, match="answers more than was asked"):
        await plugin.embed(["a"] * texts)


async def test_vectors_without_an_end_are_not_read_to_their_end(
    plugin: Plugin, ollama: FakeOllama
) -> None:
    """P-09: 50 MB; how much is read follows from how much was asked."""
    ollama.mode = "huge"
    with pytest.raises(Unavailable, match="has more than"):
        await plugin.embed(["a"] * 32)
    assert ollama.taken < 20 * MEBIBYTE


async def test_the_longest_vectors_that_may_be_are_read(plugin: Plugin, ollama: FakeOllama) -> None:
    longest = [-1.1754944e-38] * 8192
    ollama.embeds = lambda texts: [longest for _ in texts]
    assert await plugin.embed(["a"] * 32) == [longest] * 32


async def test_a_model_that_is_missing_is_called_by_its_name(
    plugin: Plugin, ollama: FakeOllama
) -> None:
    """O-05: the one that was asked, not the one that chats."""
    ollama.models = ("llama3.2:latest",)
    with pytest.raises(Unavailable, match="ollama pull nomic-embed-text"):
        await plugin.embed(["a"])


async def test_it_says_what_is_there_and_what_is_not(plugin: Plugin, ollama: FakeOllama) -> None:
    assert await plugin.check() == "Ollama has llama3.2 and nomic-embed-text"
    ollama.models = ("llama3.2:latest",)
    with pytest.raises(Unavailable, match="ollama pull nomic-embed-text"):
        await plugin.check()
    ollama.mode = "html"
    with pytest.raises(Unavailable, match="Something else than Ollama"):
        await plugin.check()


class Said(Answer):
    """The shortest answer."""

    word: str


WORD = Purpose("test", "Say a word.", Said)


async def test_an_answer_says_who_gave_it_though_its_model_is_gone_by_then(
    assist: Assist, ollama: FakeOllama
) -> None:
    """O-13: switched off while it answers."""

    def says(prompt: str, schema: Any) -> Any:
        assist.model = None
        return {"word": "yes"}

    ollama.says = says
    answer = await assist.complete(SYSTEM, WORD, [])
    assert answer is not None and answer.source == "ollama" and assist.source == "rules"


async def test_who_waits_while_the_model_goes_is_answered_by_rules(
    plugin: Plugin, ollama: FakeOllama
) -> None:
    """O-13: switched off and on again, it is no worse than before."""
    assist = Assist(Settings.model_validate({"ai": {"concurrency": 1}}), Clock(), Metrics())
    assist.model = plugin

    def says(prompt: str, schema: Any) -> Any:
        assist.model = None
        return {"word": "yes"}

    ollama.says = says
    answers = await asyncio.gather(*[assist.complete(SYSTEM, WORD, []) for _ in range(5)])
    assert [one is None for one in answers] == [False, True, True, True, True]
    assert len(ollama.calls()) == 1
    assist.model = plugin
    assert assist.available and not assist.problem


async def test_work_that_fails_in_the_background_takes_the_model_from_nobody(
    assist: Assist, ollama: FakeOllama
) -> None:
    """P-09: each has a breaker of its own."""
    ollama.mode = "error"
    for _ in range(4):
        assert await assist.embed(SYSTEM, ["a"], background=True) is None
    assert len(ollama.calls("/api/embed")) == 3 and not assist.admits(background=True)
    assert assist.available and not assist.problem
    ollama.mode = "ok"
    assert await assist.complete(SYSTEM, WORD, []) is not None
    assert not assist.admits(background=True)


async def test_where_nothing_listens_there_is_no_answer() -> None:
    """S4-61: a refused connection; the rules take over, health says why."""
    plugin = Plugin(OllamaSettings(base_url="http://127.0.0.1:9"))
    plugin.itdesk_metrics(Metrics())
    assist = Assist(Settings(), Clock(), Metrics())
    async with plugin.itdesk_lifespan(cast("Any", Desk())):
        assist.model = plugin.itdesk_model(cast("Any", Desk()))
        assert await assist.complete(SYSTEM, Purpose("test", "Say a word.", Said), []) is None
        health = plugin.itdesk_health()
        assert health is not None and not health.ok
        assert health.reason == "Ollama at 127.0.0.1 cannot be reached."


async def test_the_desk_tries_the_model_for_the_doctor(database_url: str) -> None:
    """O-05: what is wrong is said with what to do; the desk works all the same."""
    async with bench_on(database_url, OLLAMA_BASE_URL="http://127.0.0.1:9") as bench:
        found = {one.part: one async for one in examine(bench.desk)}
    model = found["language model"]
    assert not model.ok and "cannot be reached" in model.said and "rules" in model.remedy


async def test_without_an_address_there_is_no_model() -> None:
    """S4-15: unset: no network call."""
    plugin = Plugin(OllamaSettings())
    plugin.itdesk_metrics(Metrics())
    async with plugin.itdesk_lifespan(cast("Any", Desk())):
        assert plugin.itdesk_model(cast("Any", Desk())) is None
        assert plugin.itdesk_health() is None


@pytest.mark.parametrize(
    "address", ["ollama:11434", "ftp://o", "http://", "http://me:secret@o", "http://o/?a=b"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValidationError):
        OllamaSettings(base_url=address)


def test_a_slash_too_many_does_no_harm() -> None:
    assert OllamaSettings(base_url="http://o:11434/").base_url == "http://o:11434"
