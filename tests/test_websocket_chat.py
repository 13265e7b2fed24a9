"""The chat on the live stream: as over REST, beside the events, and over when anybody says so."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
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
from tests.support.daemon import Live, Person, serving, started
from tests.support.load import eventually
from tests.support.ollama import FakeOllama, Mode
from tests.support.postgres import Server
from tests.support.stream import Frame, Stream, connected, following, token_of

# Far beyond what any of these tests waits for, and one that a test can wait for.
PATIENT, BUDGET = 24.0, 0.4
# What a busy machine may add to the budget.
SLACK = 4.0
ASKED_OF_ONE = 5
QUESTION = "My gadget is odd"
REPLY = 'Turn it off, count to "ten" \\ and turn it on again. Grüße \U0001f600 and good luck!'


def settings(ollama: FakeOllama) -> dict[str, str]:
    """Return what makes a desk with one turn at this model."""
    return {
        "ITDESK_SCANNER__ENABLED": "false",
        "ITDESK_AI__ENRICH": "false",
        "ITDESK_AI__CONCURRENCY": "1",
        "ITDESK_AI__BREAKER_SECONDS": "1",
        "OLLAMA_BASE_URL": ollama.url,
    }


@pytest.fixture(scope="module")
def desk(pg_server: Server, ollama: FakeOllama) -> Iterator[Live]:
    """A desk that waits for its model: what ends here early was ended."""
    patience = {"ITDESK_AI__TIMEOUT_SECONDS": str(PATIENT)}
    with serving(pg_server, **settings(ollama), **patience) as live:
        yield live


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


@pytest.fixture
def model(ollama: FakeOllama) -> Iterator[FakeOllama]:
    """The model, honest and with nothing asked."""
    ollama.reset()
    ollama.says = lambda prompt, schema: {"reply": REPLY, "action": None}
    yield ollama
    ollama.reset()


async def ask(stream: Stream, id: str, *said: str, **more: Any) -> None:
    """Ask something under an id."""
    messages = [{"role": "user", "content": one} for one in said or (QUESTION,)]
    await stream.send(type="chat", id=id, messages=messages, **more)


async def outcome(stream: Stream, id: str) -> Frame:
    """Return the frame that a chat ends with."""
    return await stream.until(
        lambda f: f.get("id") == id and f["type"] in ("chat.done", "chat.failed")
    )


async def answer(stream: Stream, id: str) -> Any:
    """Return what a chat is answered."""
    last = await outcome(stream, id)
    assert set(last) == {"type", "id", "answer"}, last
    return last["answer"]


async def failure(stream: Stream, id: str) -> Frame:
    """Return why a chat has no answer."""
    last = await outcome(stream, id)
    assert set(last) == {
        "type", "id", "error", "message", "error_code", "details", "request_id", "retry_after",
    }, last  # fmt: skip
    return last


def preview(stream: Stream, id: str) -> list[str]:
    """Return the pieces of a reply that came so far."""
    return [f["text"] for f in stream.frames if f["type"] == "chat.delta" and f["id"] == id]


async def asked_and_held(stream: Stream, model: FakeOllama, id: str = "1") -> None:
    """Ask something of a model that writes half of it, and return once that is here."""
    model.mode = "stall_in_stream"
    await ask(stream, id)
    await stream.until("chat.delta")


async def is_left_alone(desk: Live, model: FakeOllama) -> None:
    """Return once the model writes for nobody and nobody waits for it, long before it would end."""

    async def is_free() -> bool:
        waiting = await metric(desk, "itdesk_assist_waiting")
        return model.at_once == 0 and waiting == 0

    await eventually(is_free, seconds=5)
    model.mode = "ok"
    assert (await chat(desk.admin, QUESTION))["source"] == "ollama"


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


# --- beside the events ---------------------------------------------------------------------------


async def test_events_flow_while_a_model_stalls(desk: Live, model: FakeOllama) -> None:
    """Nothing on the stream waits for an answer: events, presence, pings and other chats."""
    agent = await desk.person("agent")
    async with following(agent) as stream:
        await asked_and_held(stream, model)
        ticket = await agent.ticket()
        await stream.event(ticket, 1)
        await stream.send(type="presence", ticket=ticket["key"], state="viewing")
        await stream.until("presence")
        assert await stream.quiet() == []
        assert (await stream.resume(stream))["seq"] == stream.seq
        await stream.send(type="chat.cancel", id="1")
        assert (await failure(stream, "1"))["error"] == "E_CHAT_CANCELLED"
    await is_left_alone(desk, model)


async def test_a_chat_is_no_part_of_the_journal(desk: Live, model: FakeOllama) -> None:
    """What was chatted moves no position and is not told again, neither here nor to others."""
    alice, robin = await desk.person(), await desk.person("agent")
    async with following(alice) as stream, following(robin) as other:
        first = await alice.ticket()
        await stream.event(first, 1)
        before = stream.seq
        await ask(stream, "1")
        await answer(stream, "1")
        assert stream.seq == before
        async with following(alice, subscribe=False) as again:
            await again.resume(stream)
            assert await again.quiet() == []
        await other.event(first, 1)
        assert await other.quiet() == []


async def fill(stream: Stream, agent: Person) -> None:
    """Stop reading, and have the server send what no socket holds but its outbox does."""
    there = stream.transport.get_extra_info("socket")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    ticket = await agent.ticket()
    await stream.event(ticket, 1)
    stream.stop_reading()
    for _ in range(10):
        said = {"body": "word " * 13_000}
        (await agent.post(f"/tickets/{ticket['key']}/comments", said)).expect(201)


async def test_who_reads_slowly_gets_more_of_a_reply_at_a_time(
    desk: Live, model: FakeOllama
) -> None:
    """The pieces wait in the preview, not in the outbox, whose bounds are for events."""
    agent = await desk.person("agent")
    reply = "Turn it off and on again. " * 40
    model.says = lambda prompt, schema: {"reply": reply.strip(), "action": None}
    done = await metric(desk, "itdesk_websocket_chats_total", outcome="done")

    async def is_done() -> bool:
        return await metric(desk, "itdesk_websocket_chats_total", outcome="done") == done + 1

    async with following(agent) as stream:
        await fill(stream, agent)
        await ask(stream, "1")
        await eventually(is_done, seconds=15)
        stream.read_on()
        assert (await answer(stream, "1"))["reply"] == reply.strip()
        assert len(preview(stream, "1")) <= 2 and reply.startswith("".join(preview(stream, "1")))


async def test_who_reads_nothing_is_given_up_with_all_chats(desk: Live, model: FakeOllama) -> None:
    """1013, as ever: a chat keeps no websocket open."""
    agent = await desk.person("agent")
    slow = await metric(desk, "itdesk_websocket_dropped_total", reason="slow")

    async def is_given_up() -> bool:
        await agent.ticket(description="word " * 10_000)
        return await metric(desk, "itdesk_websocket_dropped_total", reason="slow") > slow

    async with following(agent) as stream:
        await asked_and_held(stream, model)
        await fill(stream, agent)
        assert model.at_once == 1
        await eventually(is_given_up, seconds=15)
        await is_left_alone(desk, model)
        stream.cut()


async def test_two_chats_run_at_once_and_a_third_is_refused(desk: Live, model: FakeOllama) -> None:
    async with following(desk.admin) as stream:
        await asked_and_held(stream, model, "one")
        await ask(stream, "two")
        await ask(stream, "three")
        refused = await failure(stream, "three")
        assert (refused["error"], refused["error_code"]) == ("E_CHAT_BUSY", "CONFLICT")
        for id in ("one", "two"):
            await stream.send(type="chat.cancel", id=id)
            await failure(stream, id)
        model.mode = "ok"
        await ask(stream, "three")
        assert (await answer(stream, "three"))["reply"] == REPLY


async def test_an_id_names_a_chat_of_one_websocket(desk: Live, model: FakeOllama) -> None:
    """The same one on another websocket is another chat, and no cancel of it is this one's."""
    async with following(desk.admin) as stream, following(desk.admin) as other:
        await asked_and_held(stream, model)
        await ask(other, "1")
        await stream.send(type="chat.cancel", id="1")
        assert (await failure(stream, "1"))["error"] == "E_CHAT_CANCELLED"
        await other.until("chat.delta")
        assert await other.quiet() == [] and model.at_once == 1
        await other.send(type="chat.cancel", id="1")
        assert (await failure(other, "1"))["error"] == "E_CHAT_CANCELLED"
        assert await stream.quiet() == []
    await is_left_alone(desk, model)


async def test_an_id_is_taken_while_its_chat_runs(desk: Live, model: FakeOllama) -> None:
    """The second one is no chat, so that whatever comes under this id is the first one's."""
    async with following(desk.admin) as stream:
        await asked_and_held(stream, model)
        await ask(stream, "1", "Something else")
        error = await stream.until("error")
        assert error == {
            "type": "error", "error": "E_CHAT_RUNNING", "message": ERRORS["E_CHAT_RUNNING"],
            "id": "1",
        }  # fmt: skip
        # More of the first one's preview may come.
        assert {frame["type"] for frame in await stream.quiet()} <= {"chat.delta"}
        assert len(model.calls()) == 1
        await stream.send(type="chat.cancel", id="1")
        await failure(stream, "1")
        model.mode = "ok"
        await ask(stream, "1")
        assert (await answer(stream, "1"))["reply"] == REPLY


# --- given up ------------------------------------------------------------------------------------


async def test_a_cancelled_chat_ends_once_and_leaves_the_model(
    desk: Live, model: FakeOllama
) -> None:
    """The request to the model is aborted and its turn is the next one's, at once."""
    async with following(desk.admin) as stream:
        await asked_and_held(stream, model)
        for id in ("1", "1", "never begun"):
            await stream.send(type="chat.cancel", id=id)
        assert (await failure(stream, "1"))["error"] == "E_CHAT_CANCELLED"
        assert await stream.quiet() == []
        await is_left_alone(desk, model)
        await stream.send(type="chat.cancel", id="1")
        assert await stream.quiet() == []


async def test_a_chat_cancelled_in_the_moment_it_is_asked_ends_as_well(
    desk: Live, model: FakeOllama
) -> None:
    async with following(desk.admin) as stream:
        for number in range(20):
            said = [{"role": "user", "content": QUESTION}]
            asked = {"type": "chat", "id": str(number), "messages": said}
            stream.write(0x1, orjson.dumps(asked))
            stream.write(0x1, orjson.dumps({"type": "chat.cancel", "id": str(number)}))
            assert (await failure(stream, str(number)))["error"] == "E_CHAT_CANCELLED"
        assert await stream.quiet() == [] and preview(stream, "0") == []
    await is_left_alone(desk, model)


async def one_waits(desk: Live, stream: Stream, model: FakeOllama) -> None:
    """Ask twice; return when the model is held by one chat and the other one waits for it."""
    await asked_and_held(stream, model, "held")
    await ask(stream, "waits")

    async def waits() -> bool:
        return await metric(desk, "itdesk_assist_waiting") == 1

    await eventually(waits, seconds=10)


async def test_a_cancelled_chat_leaves_the_line(desk: Live, model: FakeOllama) -> None:
    async with following(desk.admin) as stream:
        await one_waits(desk, stream, model)
        await stream.send(type="chat.cancel", id="waits")
        assert (await failure(stream, "waits"))["error"] == "E_CHAT_CANCELLED"
        assert await metric(desk, "itdesk_assist_waiting") == 0
        assert len(model.calls()) == 1 and model.at_once == 1
        await stream.send(type="chat.cancel", id="held")
        await failure(stream, "held")
    await is_left_alone(desk, model)


@pytest.mark.parametrize("how", ["closed", "cut", "rude"])
async def test_the_chats_of_a_websocket_end_with_it(
    desk: Live, model: FakeOllama, how: str
) -> None:
    """Whether it is closed in order, torn, or thrown out: neither request nor place is left."""
    async with following(desk.admin) as stream:
        await one_waits(desk, stream, model)
        if how == "closed":
            await stream.ws.close()
        elif how == "cut":
            stream.cut()
        else:
            stream.write(0x1, b"\xff\xfe")
        await is_left_alone(desk, model)
    assert not [f for f in stream.frames if f["type"] == "chat.done"]


async def test_a_deactivated_person_chats_no_more_s_31(desk: Live, model: FakeOllama) -> None:
    """S-31: within 5 s the websocket is closed, and the model asked for nothing more."""
    person = await desk.person()
    async with following(person) as stream:
        await asked_and_held(stream, model)
        (await desk.admin.patch(f"/users/{person.id}", {"is_active": False})).expect(200)
        assert await stream.end(seconds=5) == 4401
        await is_left_alone(desk, model)


async def test_a_chat_ends_with_the_token_s_31(desk: Live, model: FakeOllama) -> None:
    """A token that is shown while the chat runs counts; it may even be over when it comes."""
    person = await desk.person()
    async with following(person) as stream:
        await asked_and_held(stream, model)
        await stream.send(type="auth", token=token_of(desk, person, seconds=1))
        assert await stream.end(seconds=6) == 4401
        await is_left_alone(desk, model)


async def test_a_stop_waits_for_no_chat(pg_server: Server, model: FakeOllama) -> None:
    """The websocket says goodbye, the model is left, and the daemon ends well."""
    async with started(
        pg_server, **settings(model), ITDESK_AI__TIMEOUT_SECONDS=str(PATIENT)
    ) as live:
        async with following(live.admin) as stream:
            await asked_and_held(stream, model)
            began = time.monotonic()
            stopping = asyncio.ensure_future(asyncio.to_thread(live.daemon.stop))
            assert await stream.end() == 1001
            assert await stopping == 0
            assert time.monotonic() - began < PATIENT / 2
        assert model.at_once == 0


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


@asynccontextmanager
async def tickets_out(live: Live, how: str) -> AsyncIterator[None]:
    """Keep everybody from the tickets: nothing that is done here stays."""
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    undo = conn.transaction()
    await undo.start()
    try:
        await conn.execute(how)
        yield
    finally:
        await undo.rollback()
        await conn.close()


LOCKED = "LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE"


async def test_an_outage_is_told_as_over_rest(desk: Live, model: FakeOllama) -> None:
    """503, E_DATABASE_UNAVAILABLE; the stream outlives it."""
    agent = await desk.person("agent")
    async with following(agent) as stream:
        async with tickets_out(desk, LOCKED):
            await ask(stream, "1", "How is TSK-1 doing?")
            failed = await failure(stream, "1")
        assert failed["error"] == "E_DATABASE_UNAVAILABLE" and failed["retry_after"] == 2
        assert model.calls() == []
        await stream.event(await agent.ticket(), 1)


async def test_whoever_cancels_again_and_again_takes_nothing_from_others(
    desk: Live, model: FakeOllama
) -> None:
    """Every connection to the database comes back, however often its chat is interrupted."""
    person = await desk.person()
    async with following(person) as stream:
        async with tickets_out(desk, LOCKED):
            for number in range(40):
                await ask(stream, str(number), "How is TSK-1 doing?")
                for _ in range(3):
                    await stream.send(type="chat.cancel", id=str(number))
                    await stream.quiet()
        ended = [f for f in stream.frames if f["type"] == "chat.failed"]
        assert [f["id"] for f in ended] == [str(number) for number in range(40)]
        assert {f["error"] for f in ended} == {"E_CHAT_CANCELLED"}
        await asyncio.gather(*[chat(person, "How is TSK-1 doing?") for _ in range(40)])


async def test_a_chat_takes_no_longer_than_a_request(pg_server: Server) -> None:
    """503, E_TIMEOUT: server.request_seconds."""
    async with started(pg_server, ITDESK_SERVER__REQUEST_SECONDS="1") as live:
        async with following(live.admin) as stream, tickets_out(live, LOCKED):
            await ask(stream, "1", "How is TSK-1 doing?")
            assert (await failure(stream, "1"))["error"] == "E_TIMEOUT"
            assert await stream.quiet() == []
        lines = [x for x in live.daemon.lines() if x.get("event") == "request took too long"]
        assert [x["route"] for x in lines] == ["/api/v1/ai/chat"]


async def test_a_crash_ends_one_chat_and_nothing_else(pg_server: Server) -> None:
    """500, E_INTERNAL, with the request id that leads to the log."""
    async with started(pg_server) as live, following(live.admin) as stream:
        conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
        await conn.execute("ALTER TABLE tickets RENAME COLUMN title TO name")
        await ask(stream, "1", "How is TSK-1 doing?")
        failed = await failure(stream, "1")
        assert failed["error"] == "E_INTERNAL"
        body = {"messages": [{"role": "user", "content": "How is TSK-1 doing?"}]}
        rest = (await live.admin.post("/ai/chat", body)).expect(500)
        same = ("error", "message", "error_code", "details")
        assert [failed[key] for key in same] == [rest[key] for key in same]
        await conn.execute("ALTER TABLE tickets RENAME COLUMN name TO title")
        await conn.close()
        await stream.event(await live.admin.ticket(), 1)
        crashes = [x for x in live.daemon.lines() if x.get("event") == "request crashed"]
        assert [x["route"] for x in crashes] == ["/api/v1/ai/chat"] * 2
        assert [x["request_id"] for x in crashes] == [failed["request_id"], rest["request_id"]]


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
