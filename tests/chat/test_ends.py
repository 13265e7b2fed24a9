"""The chat on the live stream goes on beside the events, and is over when anybody says so."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest

from itdesk.api.websocket import ERRORS
from tests.support.assist import (
    chat,
    metric,
)  # fmt: skip
from tests.support.chats import (
    PATIENT,
    QUESTION,
    REPLY,
    answer,
    ask,
    asked_and_held,
    failure,
    is_left_alone,
    preview,
    settings,
)
from tests.support.daemon import Live, Person, started
from tests.support.load import eventually
from tests.support.ollama import FakeOllama
from tests.support.postgres import Server
from tests.support.stream import Stream, following, token_of

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
        # More of its preview may come, and nothing else.
        assert {frame["type"] for frame in await other.quiet()} <= {"chat.delta"}
        assert model.at_once == 1
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


# --- in trouble ----------------------------------------------------------------------------------


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


FULL = """
ALTER TABLE tickets RENAME TO kept;
CREATE FUNCTION is_there() RETURNS boolean LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION 'secret place' USING ERRCODE = 'disk_full'; END$$;
CREATE VIEW tickets AS SELECT * FROM kept WHERE is_there();
"""


async def test_a_failure_of_ours_is_told_and_its_reason_logged(pg_server: Server) -> None:
    """507, as over REST; the reason is for the administrator, who finds it by the request id."""
    async with started(pg_server) as live, following(live.admin) as stream:
        ticket = await live.admin.ticket()
        said = f"How is {ticket['key']} doing?"
        conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
        await conn.execute(FULL)
        await conn.close()
        await ask(stream, "1", said)
        failed = await failure(stream, "1")
        body = {"messages": [{"role": "user", "content": said}]}
        rest = (await live.admin.post("/ai/chat", body)).expect(507)
        same = ("error", "message", "error_code", "details")
        assert [failed[key] for key in same] == [rest[key] for key in same]
        assert "secret place" not in str(stream.frames)

        async def is_logged() -> bool:
            return len(reasons()) == 2

        def reasons() -> list[dict[str, Any]]:
            return [x for x in live.daemon.lines() if x.get("event") == "request failed"]

        await eventually(is_logged, seconds=10)
        for line, answered in zip(reasons(), (failed, rest), strict=True):
            assert line["request_id"] == answered["request_id"]
            assert (line["route"], line["level"]) == ("/api/v1/ai/chat", "warning")
            assert (line["error"], line["problem"]) == (rest["error"], rest["message"])
