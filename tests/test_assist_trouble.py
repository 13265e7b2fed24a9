"""P-09: whatever Ollama does, an answer comes in time, from rules, and says so."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest

from tests.support.assist import metric
from tests.support.daemon import Live, Person, serving, started
from tests.support.load import eventually
from tests.support.ollama import MEBIBYTE, FakeOllama, Mode, ollama_beside
from tests.support.postgres import Server

BUDGET = 0.4
# What a busy machine may add to the budget: far less than the model would take.
SLACK = 4.0
AT_ONCE, QUEUE = 2, 8

HELLO = {"messages": [{"role": "user", "content": "My gadget is odd"}]}
TICKET = {"title": "VPN down"}


@pytest.fixture(scope="module")
def desk(pg_server: Server, ollama: FakeOllama) -> Iterator[Live]:
    """A desk with little patience, whose breaker closes again after a second."""
    with serving(
        pg_server,
        ITDESK_SCANNER__ENABLED="false",
        # What becomes of new tickets is asked in test_suggestions.
        ITDESK_AI__ENRICH="false",
        OLLAMA_BASE_URL=ollama.url,
        ITDESK_AI__TIMEOUT_SECONDS=str(BUDGET),
        ITDESK_AI__CONCURRENCY=str(AT_ONCE),
        ITDESK_AI__QUEUE=str(QUEUE),
        ITDESK_AI__BREAKER_SECONDS="1",
        ITDESK_PLUGINS__OLLAMA__PROBE_SECONDS="1",
    ) as live:
        yield live


@pytest.fixture
async def model(desk: Live, ollama: FakeOllama) -> Any:
    """The model, honest again, and believed to be so."""
    ollama.reset()
    await until(lambda: answered(desk, "ollama"))
    ollama.asked.clear()
    yield ollama
    ollama.reset()


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Return when something has come true."""
    await eventually(true, seconds=20)


async def answered(desk: Live, source: str, person: Person | None = None) -> bool:
    """Return whether this is who answers now."""
    found = (await (person or desk.admin).post("/ai/classify", TICKET)).expect(200)
    return bool(found["source"] == source)


async def timed(asked: Any) -> tuple[Any, float]:
    """Return an answer and the seconds that it took."""
    started = time.monotonic()
    answer = await asked
    return answer, time.monotonic() - started


# What each of them comes to in `itdesk_assist_seconds`, asked for whole and as a stream.
TROUBLES: dict[Mode, tuple[str, str]] = {
    "stall": ("late", "late"),
    "stall_in_stream": ("unavailable", "late"),
    "slow": ("late", "late"),
    "garbage": ("unavailable", "unavailable"),
    "html": ("unavailable", "unavailable"),
    "empty": ("unavailable", "unavailable"),
    "error": ("unavailable", "unavailable"),
    "missing": ("unavailable", "unavailable"),
    "redirect": ("unavailable", "unavailable"),
    "huge": ("unavailable", "invalid"),
    "huge_line": ("unavailable", "unavailable"),
    "error_in_stream": ("unavailable", "unavailable"),
    "cut": ("unavailable", "unavailable"),
}


@pytest.mark.parametrize("mode", TROUBLES)
async def test_in_every_trouble_rules_answer_in_time(
    desk: Live, model: FakeOllama, mode: Mode
) -> None:
    """P-09, S4-61: 200, flagged as rules, within the budget; whole and streamed."""
    model.mode = mode
    whole, stream = TROUBLES[mode]
    before = [
        await metric(desk, "itdesk_assist_seconds_count", purpose=purpose, outcome=outcome)
        for purpose, outcome in (("classify", whole), ("chat", stream))
    ]
    answer, seconds = await timed(desk.admin.post("/ai/classify", TICKET))
    found = answer.expect(200)
    assert found["source"] == "rules" and found["category"] == "network"
    assert seconds < BUDGET + SLACK
    answer, seconds = await timed(desk.admin.post("/ai/chat", {**HELLO, "stream": True}))
    assert answer.status == 200
    last = orjson.loads(answer.raw.splitlines()[-1])
    assert last["type"] == "answer" and last["source"] == "rules"
    assert seconds < BUDGET + SLACK
    after = [
        await metric(desk, "itdesk_assist_seconds_count", purpose=purpose, outcome=outcome)
        for purpose, outcome in (("classify", whole), ("chat", stream))
    ]
    assert after == [one + 1 for one in before]
    assert model.taken < 40 * MEBIBYTE
    assert all(one.path != "/elsewhere" for one in model.asked)


@pytest.mark.parametrize(
    "said",
    [
        "no JSON at all", "", "null", "[]", "{}", '"VPN"', '{"priority": "urgent"}',
        {"priority": "urgent", "category": "network", "recommendations": ["a", "b"]},
        {"priority": "high", "category": "Network!", "recommendations": ["a", "b"]},
        {"priority": "high", "category": "network", "recommendations": ["only one"]},
        {"priority": "high", "category": "network", "recommendations": ["a"] * 5},
        {"priority": "high", "category": "network", "recommendations": ["a", "<br>"]},
        {"priority": "high", "category": "network", "recommendations": ["a", "b" * 501]},
        {"priority": ["high"], "category": {"a": 1}, "recommendations": "ab"},
        {"priority": None, "category": None, "recommendations": None},
        '{"priority": NaN, "category": 1e999, "recommendations": ["a", "b"]}',
        '{"a":' * 5000,
    ],
    ids=str,
)  # fmt: skip
async def test_an_answer_that_is_not_as_asked_is_not_used(
    desk: Live, model: FakeOllama, said: Any
) -> None:
    """P-09: values, numbers and lengths are checked; the breaker stays closed."""
    model.says = lambda prompt, schema: said
    for _ in range(4):
        assert await answered(desk, "rules")
    assert await metric(desk, "itdesk_breaker_open", part="assist") == 0
    model.says = lambda prompt, schema: {
        "priority": "high", "category": "network", "recommendations": ["a", "b"],
    }  # fmt: skip
    assert await answered(desk, "ollama")


async def test_a_model_that_is_down_is_left_alone_for_a_while(
    desk: Live, model: FakeOllama
) -> None:
    """P-09: after three failures in a row rules answer at once; later one question tries again.

    What is too much for the time of one person alone takes the model from nobody.
    """
    other = await desk.person()
    model.mode = "stall"
    for person in (desk.admin, desk.admin, desk.admin, other):
        assert await answered(desk, "rules", person)
        assert await metric(desk, "itdesk_breaker_open", part="assist") == 0
    assert await answered(desk, "rules")
    assert await metric(desk, "itdesk_breaker_open", part="assist") == 1
    ready = (await desk.nobody.call("GET", "/readyz")).expect(200)
    assert ready["status"] == ready["checks"]["assist"]["status"] == "degraded"
    assert "did not answer in time" in ready["checks"]["assist"]["reason"]
    asked = len(model.calls())
    found, seconds = await timed(desk.admin.post("/ai/classify", TICKET))
    assert found.expect(200)["source"] == "rules"
    assert len(model.calls()) == asked
    model.mode = "ok"
    await until(lambda: answered(desk, "ollama"))
    assert await metric(desk, "itdesk_breaker_open", part="assist") == 0
    ready = (await desk.nobody.call("GET", "/readyz")).expect(200)
    assert ready["checks"]["assist"] == {"status": "ok", "reason": ""}


async def _crowd(desk: Live) -> tuple[list[Any], float]:
    """Return what 200 chats of ten people at once say, and how long the longest of them took."""
    people = [desk.admin, *[await desk.person() for _ in range(9)]]
    asked = [timed(people[n % 10].post("/ai/chat", HELLO)) for n in range(200)]
    found = await asyncio.gather(*asked)
    return [answer for answer, _ in found], max(seconds for _, seconds in found)


async def test_200_chats_at_once_are_all_answered(desk: Live, model: FakeOllama) -> None:
    """P-09: a bounded line, as many at the model as it may have, no error, nobody waits long."""
    full = await metric(desk, "itdesk_assist_seconds_count", outcome="busy")
    model.mode, model.seconds_a_token = "slow", 0.001
    model.says = lambda prompt, schema: {"reply": "Turn it off and on again. " * 10}
    answers, longest = await _crowd(desk)
    assert [one.status for one in answers] == [200] * 200
    sources = [one.json["source"] for one in answers]
    assert "rules" in sources and set(sources) <= {"rules", "ollama"}
    assert model.most_at_once <= AT_ONCE + 1  # the look whether it is there is one as well
    assert await metric(desk, "itdesk_assist_seconds_count", outcome="busy") > full
    assert await metric(desk, "itdesk_assist_waiting") == 0
    assert longest < BUDGET + SLACK
    model.reset()
    await until(lambda: answered(desk, "ollama"))


async def test_200_chats_at_a_model_that_stalls_are_answered_by_rules(
    desk: Live, model: FakeOllama
) -> None:
    """P-09: the first ones wait for the budget, the others for nothing."""
    model.mode = "stall"
    asked = len(model.calls())
    answers, longest = await _crowd(desk)
    assert [one.status for one in answers] == [200] * 200
    assert {one.json["source"] for one in answers} == {"rules"}
    assert len(model.calls()) - asked <= AT_ONCE + QUEUE + 3
    assert longest < BUDGET + SLACK


@pytest.mark.slow
async def test_as_it_comes_nobody_waits_longer_than_three_seconds(pg_server: Server) -> None:
    """P-09, long: the default budget, a stall of a minute, one token a second, 200 chats each."""
    with ollama_beside() as ollama:
        async with started(
            pg_server, OLLAMA_BASE_URL=ollama.url, ITDESK_SCANNER__ENABLED="false"
        ) as desk:
            for mode in ("stall", "slow", "huge"):
                ollama.mode = mode
                answers, longest = await _crowd(desk)
                assert {one.json["source"] for one in answers} == {"rules"}, mode
                assert longest < 3 + SLACK, mode
                alone, seconds = await timed(desk.admin.post("/ai/classify", TICKET))
                assert alone.expect(200)["source"] == "rules" and seconds < 3.5, mode


async def test_health_says_what_to_mend(desk: Live, model: FakeOllama) -> None:
    """A model that is missing is named, with the command that fetches it."""

    async def said() -> str:
        status = (await desk.nobody.call("GET", "/readyz")).json
        reason: str = status["checks"]["plugins"].get("reason") or ""
        return reason

    async def names_it() -> bool:
        return "ollama pull llama3.2" in await said()

    async def is_well() -> bool:
        return "llama" not in await said()

    model.models = ("other:latest",)
    try:
        await until(names_it)
        assert await metric(desk, "itdesk_ollama_up") == 0
    finally:
        model.models = ("llama3.2:latest",)
    await until(is_well)
    assert await metric(desk, "itdesk_ollama_up") == 1


@pytest.mark.slow
async def test_nothing_listens_there(pg_server: Server) -> None:
    """S4-61: a refused connection; S4-15: the model that is asked for by default."""
    async with started(
        pg_server, OLLAMA_BASE_URL="http://127.0.0.1:9", ITDESK_SCANNER__ENABLED="false"
    ) as alone:
        answer, seconds = await timed(alone.admin.post("/ai/classify", TICKET))
        assert answer.expect(200)["source"] == "rules" and seconds < 3 + SLACK
        answer = await alone.admin.post("/ai/chat", HELLO)
        assert answer.expect(200)["source"] == "rules"
        doctor = await asyncio.to_thread(alone.daemon.run, "doctor")
        assert "Ollama at 127.0.0.1 cannot be reached" in doctor.stdout + doctor.stderr
