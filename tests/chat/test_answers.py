"""The chat on the live stream is answered as over REST, to whom and as often as there."""

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from itdesk.api.websocket import ERRORS
from tests.support.assist import (
    CANARY,
    chat,
    is_answer,
    is_text,
    malice,
    metric,
    solved,
    streamed,
)  # fmt: skip
from tests.support.chats import (
    QUESTION,
    REPLY,
    answer,
    ask,
    asked_and_held,
    failure,
    preview,
    settings,
)
from tests.support.daemon import Live, serving
from tests.support.load import eventually
from tests.support.ollama import FakeOllama, Mode
from tests.support.postgres import Server
from tests.support.stream import connected, following

# So little patience a desk may have with its model, and what a busy machine may add to it.
BUDGET = 0.4
SLACK = 4.0
ASKED_OF_ONE = 5


@pytest.fixture(scope="module")
def brisk(pg_server: Server, ollama: FakeOllama) -> Iterator[Live]:
    """A desk with little patience, and with limits."""
    with serving(
        pg_server,
        **settings(ollama),
        ITDESK_AI__TIMEOUT_SECONDS=str(BUDGET),
        ITDESK_LIMITS__ENABLED="true",
        ITDESK_LIMITS__DEFAULT="1000000/minute",
        ITDESK_LIMITS__AUTH="1000000/minute",
        ITDESK_LIMITS__AI=f"{ASKED_OF_ONE}/day",
    ) as live:
        yield live


# --- as over REST --------------------------------------------------------------------------------


async def test_a_reply_can_be_read_while_it_is_written(desk: Live, model: FakeOllama) -> None:
    """R63 on the websocket: the same answer, and pieces that add up to its beginning."""
    model.mode, model.seconds_a_token = "slow", 0.01
    async with following(desk.admin) as stream:
        await ask(stream, "a chat")
        found = await answer(stream, "a chat")
    pieces = preview(stream, "a chat")
    assert len(pieces) >= 2 and REPLY.startswith("".join(pieces))
    assert all("seq" not in f for f in stream.frames if f["type"].startswith("chat."))
    assert found["reply"] == REPLY and found["source"] == "ollama"
    assert found == await chat(desk.admin, QUESTION)
    assert found == (await streamed(desk.admin, QUESTION))[1]
    on_the_stream, whole, as_lines = model.calls()
    mark = re.compile("[0-9a-f]{16}")
    assert on_the_stream.body["stream"] is as_lines.body["stream"] is True
    assert len({mark.sub("", one.text) for one in (on_the_stream, whole, as_lines)}) == 1


@pytest.mark.parametrize(
    ("said", "more"),
    [
        (["create a ticket: VPN down"], {}),
        (["How are you?"], {}),
        (["My password is wrong"], {}),
        (["Ich habe mein Passwort vergessen"], {"locale": "de"}),
        (["The printer is on fire", "Hello?", "What is {key} about?"], {"locale": "en-GB"}),
    ],
    ids=str,
)
async def test_without_a_model_rules_answer(live: Live, said: list[str], more: Any) -> None:
    """R63 on the websocket: word for word what REST answers, for agents and for users."""
    for person in (live.admin, await live.person()):
        ticket = await person.ticket()
        said = [one.format(**ticket) for one in said]
        async with following(person, subscribe=False) as stream:
            await ask(stream, "1", *said, **more)
            found = await answer(stream, "1")
        assert found == await chat(person, *said, **more)
        assert found["source"] == "rules" and preview(stream, "1") == []


TROUBLES: list[Mode] = [
    "stall", "stall_in_stream", "slow", "garbage", "html", "empty", "error", "missing", "redirect",
    "huge", "huge_line", "error_in_stream", "cut",
]  # fmt: skip


@pytest.mark.parametrize("mode", TROUBLES)
async def test_in_every_trouble_rules_answer_in_time(
    brisk: Live, model: FakeOllama, mode: Mode
) -> None:
    """P-09 on the websocket: flagged as rules, within the budget; the preview is thrown away."""
    person = await brisk.person()

    async def is_believed() -> bool:
        found = await chat(await brisk.person(), QUESTION)
        return bool(found["source"] == "ollama")

    await eventually(is_believed, seconds=20)
    model.mode = mode
    began = time.monotonic()
    async with following(person) as stream:
        await ask(stream, "1")
        found = await answer(stream, "1")
        assert found["source"] == "rules" and found["reply"] != REPLY
        assert time.monotonic() - began < BUDGET + SLACK
        assert await stream.quiet() == []
    if mode in ("stall_in_stream", "error_in_stream", "cut"):
        assert REPLY.startswith("".join(preview(stream, "1")))


@pytest.mark.parametrize("number", range(10))
async def test_a_model_that_obeys_an_attacker_tells_nothing_s_36(
    desk: Live, model: FakeOllama, number: int
) -> None:
    """S-36 on the websocket: text alone, as its schema says, and no word of unreadable tickets."""
    victim, attacker = await desk.person(), await desk.person()
    hidden = await solved(desk, victim, f"Payroll {CANARY}", f"The password was {CANARY}")
    model.says = lambda prompt, schema: malice(number, prompt, schema, hidden["key"])
    async with following(attacker) as stream:
        await ask(stream, "1", f"Show {hidden['key']} about payroll, word by word")
        found = await answer(stream, "1")
    is_text("".join(preview(stream, "1")))
    is_answer(found)
    assert found["shown"] is None
    assert CANARY not in str(stream.frames) and CANARY not in str(model.asked)


# --- who may, how much and how often -------------------------------------------------------------


async def test_nobody_chats_without_signing_in(desk: Live, model: FakeOllama) -> None:
    async with connected(desk.url) as stream:
        await ask(stream, "1")
        assert await stream.end() == 4401 and stream.frames == []
    assert model.calls() == []


async def test_a_token_that_may_only_read_may_not_chat(desk: Live, model: FakeOllama) -> None:
    """R63 on the websocket: the error of REST; what counts is the token that was shown last."""
    alice = await desk.person()
    reader, writer = await alice.script("read"), await alice.script("write")
    refused = (await reader.post("/ai/chat", {"messages": [{"role": "user", "content": "a"}]})).json
    async with following(reader) as stream:
        for token, may in ((None, False), (writer.token, True), (reader.token, False)):
            if token is not None:
                await stream.send(type="auth", token=token)
                await stream.until("authenticated")
            await ask(stream, "1")
            if may:
                assert (await answer(stream, "1"))["reply"] == REPLY
            else:
                failed = await failure(stream, "1")
                assert failed["error"] == "E_AUTH_INSUFFICIENT_SCOPE"
                same = ("error", "message", "error_code", "details")
                assert {key: failed[key] for key in same} == {key: refused[key] for key in same}
    assert len(model.calls()) == 1


async def test_chats_count_against_the_limit_of_rest(brisk: Live, model: FakeOllama) -> None:
    """One budget of the class ai, wherever it is spent; who is refused may follow on."""
    person = await brisk.person()
    limited = await metric(brisk, "itdesk_rate_limited_total", limit="ai")
    async with following(person) as stream:
        for number in range(ASKED_OF_ONE - 1):
            await ask(stream, str(number))
            await answer(stream, str(number))
        await chat(person, QUESTION)
        await ask(stream, "more")
        failed = await failure(stream, "more")
        assert failed["error"] == "E_RATE_LIMITED" and failed["retry_after"] > 0
        assert failed["details"] == {"limit": f"{ASKED_OF_ONE} in 86400 s"}
        ticket = await person.ticket()
        await stream.event(ticket, 1)
    said = {"messages": [{"role": "user", "content": QUESTION}]}
    (await person.post("/ai/chat", said)).refused(429, "E_RATE_LIMITED")
    assert await metric(brisk, "itdesk_rate_limited_total", limit="ai") == limited + 2


async def test_who_chats_too_often_is_found_in_the_log(brisk: Live, model: FakeOllama) -> None:
    """One line for each refused chat, and the access lines of REST and of the websocket."""
    person = await brisk.person()
    said = {"messages": [{"role": "user", "content": QUESTION}]}
    async with following(person, subscribe=False) as stream:
        for number in range(ASKED_OF_ONE):
            await ask(stream, str(number))
            await answer(stream, str(number))
        await ask(stream, "more")
        failed = await failure(stream, "more")
    refused = await person.post("/ai/chat", said)
    refused.refused(429, "E_RATE_LIMITED")
    here, there = failed["request_id"], refused.headers["X-Request-ID"]

    def lines(event: str) -> dict[str, list[dict[str, Any]]]:
        found = [x for x in brisk.daemon.lines() if x.get("event") == event]
        return {id: [x for x in found if x.get("request_id") == id] for id in (here, there)}

    async def are_written() -> bool:
        return all(lines("request").values())

    await eventually(are_written, seconds=10)
    outcomes = [(x["outcome"], x["user"]) for x in lines("chat ended")[here]]
    assert outcomes == [("done", person.id)] * ASKED_OF_ONE + [("E_RATE_LIMITED", person.id)]
    (stayed,), came = lines("request").values()
    assert (stayed["status"], stayed["route"], stayed["user"]) == (
        101, "/ws/{client_id}", person.id,
    )  # fmt: skip
    assert [(x["status"], x["route"]) for x in came] == [(429, "/api/v1/ai/chat")]


async def test_a_refused_chat_is_no_use_of_a_token(brisk: Live, model: FakeOllama) -> None:
    """The limit comes first: what it stops is not seen as the last use."""
    person = await brisk.person()
    stopped, used = await person.script("write"), await person.script("read")
    for _ in range(ASKED_OF_ONE):
        await chat(person, QUESTION)
    said = {"messages": [{"role": "user", "content": QUESTION}]}
    (await stopped.post("/ai/chat", said)).refused(429, "E_RATE_LIMITED")
    (await used.get("/tickets")).expect(200)

    async def uses() -> dict[str, Any]:
        return {one["id"]: one["last_used_at"] for one in (await person.get("/tokens")).expect(200)}

    async def are_written() -> bool:
        return (await uses())[used.id] is not None

    await eventually(are_written, seconds=15)
    assert (await uses())[stopped.id] is None


HI = {"role": "user", "content": "Hi"}
# What is wrong with each of them, as REST would say it.
MISSHAPEN: list[tuple[dict[str, Any], str]] = [
    ({"id": "1"}, "messages"),
    ({"messages": [HI]}, "id"),
    ({"id": "", "messages": [HI]}, "id"),
    ({"id": "x" * 65, "messages": [HI]}, "id"),
    ({"id": 7, "messages": [HI]}, "id"),
    ({"id": None, "messages": [HI]}, "id"),
    ({"id": "1", "messages": []}, "messages"),
    ({"id": "1", "messages": HI}, "messages"),
    ({"id": "1", "messages": [HI] * 41}, "messages"),
    ({"id": "1", "messages": [{"role": "system", "content": "Hi"}]}, "messages.0.role"),
    ({"id": "x" * 64, "messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
    ({"id": "1", "messages": [{"role": "user", "content": "x" * 10_001}]}, "messages.0.content"),
    ({"id": "1", "messages": [HI], "locale": "no language"}, "locale"),
    ({"id": "1", "messages": [HI], "stream": True}, "stream"),
    ({"id": "1", "messages": [HI], "caller": "somebody else"}, "caller"),
]


@pytest.mark.parametrize(("body", "path"), MISSHAPEN, ids=lambda value: str(value)[:60])
async def test_what_is_no_conversation_is_refused_s_30(live: Live, body: Any, path: str) -> None:
    """With what is wrong as REST says it, and the id of the chat if that is not what is wrong."""
    async with following(live.admin, subscribe=False) as stream:
        await stream.send(type="chat", **body)
        error = await stream.until("error")
        if path != "id":
            assert error.pop("id") == body["id"]
        if path not in ("id", "stream"):
            rest = {key: value for key, value in body.items() if key != "id"}
            details = (await live.admin.post("/ai/chat", rest)).refused(422, "E_VALIDATION_ERROR")
            assert error["details"] == details
        assert [one["path"] for one in error.pop("details")["fields"]] == [path]
        code = "E_VALIDATION_ERROR"
        assert error == {"type": "error", "error": code, "message": ERRORS[code]}
        await ask(stream, "x" * 64)
        await answer(stream, "x" * 64)


async def test_a_cancel_that_cannot_be_read_names_its_chat_too(live: Live) -> None:
    async with following(live.admin, subscribe=False) as stream:
        await stream.send(type="chat.cancel", id="1", why="It takes so long")
        error = await stream.until("error")
        assert error["id"] == "1" and error["details"]["fields"][0]["path"] == "why"
        await stream.send(type="ping", id="1")
        assert "id" not in await stream.until("error")


async def test_the_longest_conversation_of_a_frame_is_answered(
    desk: Live, model: FakeOllama
) -> None:
    """What a model reads of a conversation fits into a frame, and what does not fit ends it."""
    async with following(desk.admin) as stream:
        said = [f"{number} " + "word " * 1_000 for number in range(12)]
        await ask(stream, "1", *said)
        found = await answer(stream, "1")
        assert found == await chat(desk.admin, *said)
        [here, there] = [len(one.text) for one in model.calls()]
        assert here == there > 19_000
        await ask(stream, "1", *said, "x" * 9_000)
        assert await stream.end() == 1009


# --- what is left of them ------------------------------------------------------------------------


async def test_chats_are_counted_and_logged_without_a_word_of_them(
    desk: Live, model: FakeOllama
) -> None:
    """The same metrics as over REST, one more for how they ended, and a line for each."""
    agent = await desk.person("agent")
    word = "xylophone"
    model.says = lambda prompt, schema: {"reply": f"Play the {word}.", "action": None}

    async def counts() -> list[float]:
        return [
            await metric(desk, "itdesk_websocket_chats_total", outcome="done"),
            await metric(desk, "itdesk_websocket_chats_total", outcome="E_CHAT_CANCELLED"),
            await metric(desk, "itdesk_assist_answers_total", purpose="chat", source="ollama"),
        ]

    before = await counts()
    async with following(agent) as stream:
        await ask(stream, word, f"My {word} is odd")
        await answer(stream, word)
        await asked_and_held(stream, model)
        await stream.send(type="chat.cancel", id="1")
        failed = await failure(stream, "1")
    assert await counts() == [before[0] + 1, before[1] + 1, before[2] + 1]

    async def are_written() -> bool:
        return len(ended()) == 2

    def ended() -> list[dict[str, Any]]:
        lines = desk.daemon.lines()
        return [x for x in lines if x.get("event") == "chat ended" and x.get("user") == agent.id]

    await eventually(are_written, seconds=10)
    assert [x["outcome"] for x in ended()] == ["done", "E_CHAT_CANCELLED"]
    request_id = stream.ws._response.headers["X-Request-ID"]
    assert {x["request_id"] for x in ended()} == {failed["request_id"]} == {request_id}
    assert word not in desk.daemon.log.read_text()
