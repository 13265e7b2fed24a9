"""The live stream as its clients meet it: the real daemon, real sockets, PostgreSQL."""

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import orjson
import pytest
import pytest_asyncio
from aiohttp import ClientSession, WSServerHandshakeError

from itdesk.api.websocket import ERRORS
from tests.support.daemon import Live, Person, serving, started
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.stream import Closed, Stream, connected, following, token_of

SENT = {
    "welcome", "resync", "pong", "error", "presence", "authenticated",
    "chat.delta", "chat.done", "chat.failed",
}  # fmt: skip


@pytest.fixture(name="brisk", scope="module")
def _brisk(pg_server: Server) -> Iterator[Live]:
    """A daemon with the shortest times, and with limits."""
    with serving(
        pg_server,
        ITDESK_LIMITS__ENABLED="true",
        ITDESK_LIMITS__DEFAULT="1000000/minute",
        ITDESK_LIMITS__AUTH="1000000/minute",
        ITDESK_HUB__AUTH_SECONDS="1",
        ITDESK_HUB__RECHECK_SECONDS="1",
        ITDESK_HUB__PING_SECONDS="1",
        ITDESK_HUB__SOCKETS_PER_USER="3",
    ) as live:
        yield live


@pytest_asyncio.fixture(name="session")
async def _session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def metric(live: Live, name: str) -> float:
    """Return the sum of a metric's series whose name and labels begin so."""
    text = (await live.nobody.call("GET", "/metrics")).raw.decode()
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)
    )


# --- signing in ------------------------------------------------------------------------------


async def test_a_change_reaches_the_second_client_s2_05_s3_64(live: Live) -> None:
    alice, robin = await live.person(), await live.person("agent")
    ticket = await alice.ticket()
    async with following(alice) as first, following(robin) as second:
        (await robin.call("PUT", f"/api/v1/tickets/{ticket['key']}",
                          json={"status": "in_progress"})).expect(200)  # fmt: skip
        began = time.monotonic()
        for stream in (first, second):
            frame = await stream.event(ticket, 2)
            assert set(frame) == {"type", "seq", "ticket", "key", "version", "data"}
            assert (frame["type"], frame["key"]) == ("ticket.updated", ticket["key"])
            assert frame["data"]["ticket"]["status"] == "in_progress"
        assert time.monotonic() - began < 1


async def test_a_token_as_subprotocol_is_answered_by_the_other_s2_34(
    live: Live, session: ClientSession
) -> None:
    agent = await live.person("agent")
    async with connected(
        live.url, session=session, protocols=("itdesk.v1", f"bearer.{agent.token}")
    ) as stream:
        assert stream.ws.protocol == "itdesk.v1"
        assert (await stream.subscribe())["epoch"]
    async with connected(
        live.url, session=session, protocols=("itdesk.v1", "bearer.nonsense")
    ) as stream:
        assert await stream.end() == 4401


FIRST: list[Any] = [
    {"type": "subscribe"}, {"type": "auth"}, {"type": "auth", "token": "no.such.token"},
    {"type": "auth", "token": ""}, {"type": "auth", "token": 7}, [], "text", None,
]  # fmt: skip


@pytest.mark.parametrize("first", FIRST, ids=str)
async def test_without_a_token_it_is_over_s2_34(live: Live, first: Any) -> None:
    async with connected(live.url) as stream:
        await stream.ws.send_str(orjson.dumps(first).decode())
        assert await stream.end() == 4401 and stream.frames == []


async def test_silence_is_not_listened_to_for_long_s2_34_s_30(brisk: Live) -> None:
    async with connected(brisk.url) as stream:
        began = time.monotonic()
        stream.write(0x9, b"a ping is no token")
        assert await stream.end() == 4408
        assert 0.9 < time.monotonic() - began < 5


async def test_a_token_in_the_query_string_is_refused_s_31(live: Live) -> None:
    agent = await live.person("agent")
    for query in (f"token={agent.token}", f"access_token={agent.token}", "anything=1"):
        async with connected(live.url, path=f"/ws/a?{query}") as stream:
            await asyncio.gather(stream.send(type="auth", token=agent.token))
            assert await stream.end() == 4401
    assert agent.token not in live.daemon.log.read_text()


ORIGINS = [
    "https://evil.example", "null", "http://127.0.0.1.evil.example", "http://evil.127.0.0.1",
    "http://127.0.0.1", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}.evil.example",
    "http://127.0.0.1:{port}/", "file://", "",
]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("how", ["cookie", "subprotocol", "message"])
async def test_a_foreign_page_gets_no_websocket_s_17(
    live: Live, session: ClientSession, origin: str, how: str
) -> None:
    headers = {"Origin": origin.format(port=live.url.rpartition(":")[2])}
    if how == "cookie":
        headers["Cookie"] = f"itdesk_access={live.admin.token}"
    offered = ("itdesk.v1", f"bearer.{live.admin.token}") if how == "subprotocol" else ()
    with pytest.raises(WSServerHandshakeError) as caught:
        await session.ws_connect(live.url + "/ws/a", headers=headers, protocols=offered)
    assert caught.value.status == 403


async def test_a_cookie_needs_an_origin_s_17(live: Live, session: ClientSession) -> None:
    cookie = {"Cookie": f"itdesk_access={live.admin.token}"}
    for more in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        with pytest.raises(WSServerHandshakeError) as caught:
            await session.ws_connect(live.url + "/ws/a", headers={**cookie, **more})
        assert caught.value.status == 403
    async with connected(
        live.url, session=session, headers={**cookie, "Origin": live.url}
    ) as stream:
        assert (await stream.subscribe())["type"] == "welcome"


async def test_whoever_stays_silent_after_signing_in_hears_everything(live: Live) -> None:
    agent = await live.person("agent")
    async with following(agent, subscribe=False) as stream:
        await stream.until("welcome")
        ticket = await agent.ticket()
        await stream.event(ticket, 1)


async def test_one_person_has_so_many_websockets(brisk: Live) -> None:
    alice = await brisk.person()
    async with following(alice), following(alice), following(alice) as last:
        async with following(alice, subscribe=False) as fourth:
            assert await fourth.end() == 1008
        await last.ws.close()
        async with asyncio.timeout(10):
            while True:  # until the server has noticed
                async with following(alice, subscribe=False) as fourth:
                    try:
                        await fourth.subscribe()
                        break
                    except Closed:
                        continue


async def test_the_access_log_knows_who_it_was_and_no_token(live: Live) -> None:
    agent = await live.person("agent")
    name = uuid4().hex
    async with following(agent, path=f"/ws/{name}"):
        pass

    async def is_written() -> bool:
        return name in live.daemon.log.read_text()

    await eventually(is_written, seconds=10)
    found = [x for x in live.daemon.lines() if x.get("path") == f"/ws/{name}"]
    assert found[0]["status"] == 101 and found[0]["user"] == agent.id
    assert found[0]["route"] == "/ws/{client_id}"
    assert agent.token not in live.daemon.log.read_text()


# --- what one may see, and for how long --------------------------------------------------------


async def test_the_tickets_of_others_are_not_there_s_31(live: Live) -> None:
    alice, bob = await live.person(), await live.person()
    ticket = await alice.ticket()
    for ref in (ticket["id"], ticket["key"], str(ticket["number"]), str(uuid4()), "TSK-99999999"):
        async with following(bob, subscribe=False) as stream:
            await stream.send(type="subscribe", tickets=[ref])
            assert await stream.end() == 4403 and stream.frames == []
    async with following(bob) as stream, following(alice) as own:
        for _ in range(3):
            (await alice.post(f"/tickets/{ticket['key']}/comments", {"body": "mine"})).expect(201)
        await own.event(ticket, 4)
        assert await stream.quiet() == []


async def gone_within(stream: Stream, seconds: float) -> int | None:
    began = time.monotonic()
    code = await stream.end()
    assert time.monotonic() - began < seconds
    return code


async def test_a_lost_role_closes_the_stream_s_31(live: Live) -> None:
    agent = await live.person("agent")
    async with following(agent) as stream:
        (await live.admin.patch(f"/users/{agent.id}", {"role": "user"})).expect(200)
        assert await gone_within(stream, 5) == 4401


async def test_deactivation_closes_the_stream_s_31(live: Live) -> None:
    agent = await live.person("agent")
    async with following(agent) as stream:
        (await live.admin.patch(f"/users/{agent.id}", {"is_active": False})).expect(200)
        assert await gone_within(stream, 5) == 4401


async def test_logout_closes_the_stream_s_31(live: Live) -> None:
    agent = await live.person("agent")
    async with following(agent) as stream:
        body = {"refresh_token": agent.refresh_token}
        assert (await agent.post("/auth/logout", body)).status < 300
        assert await gone_within(stream, 5) == 4401


async def test_an_expired_token_closes_the_stream_unless_a_fresh_one_came_s_31(live: Live) -> None:
    agent = await live.person("agent")
    short = Person(agent.base, token_of(live, agent, seconds=2), agent.id)
    async with following(short) as left, following(short) as renewed:
        await renewed.send(type="auth", token=agent.token)
        assert (await renewed.until("authenticated"))["expires_at"].endswith("Z")
        assert await gone_within(left, 6) == 4401
        ticket = await agent.ticket()
        await renewed.event(ticket, 1)
    async with connected(live.url) as late:
        await late.send(type="auth", token=short.token)
        assert await late.end() == 4401


async def test_presence_goes_to_the_people_of_the_ticket(live: Live) -> None:
    alice, bob, robin = await live.person(), await live.person(), await live.person("agent")
    ticket = await alice.ticket()
    async with following(alice) as own, following(bob) as foreign, following(robin) as agent:
        await agent.send(type="presence", ticket=ticket["key"], state="typing")
        frame = await own.until("presence")
        assert (frame["ticket"], frame["key"]) == (ticket["id"], ticket["key"])
        assert frame["people"] == [{"id": robin.id, "name": "A agent", "state": "typing"}]
        await foreign.send(type="presence", ticket=ticket["key"], state="viewing")
        assert (await foreign.until("error"))["error"] == "E_TICKET_NOT_FOUND"
        assert await foreign.quiet() == []
        await agent.ws.close()
        assert (await own.until("presence"))["people"] == []


# --- rude clients ------------------------------------------------------------------------------

RUDE: list[tuple[bytes, str]] = [
    (b"", "E_BAD_JSON"),
    (b"{", "E_BAD_JSON"),
    (b"[]", "E_BAD_JSON"),
    (b'"text"', "E_BAD_JSON"),
    (b"NaN", "E_BAD_JSON"),
    (b'{"type": "ping", "type": "ping"}', "E_BAD_JSON"),
    (b"[" * 30_000, "E_BAD_JSON"),
    (b'{"a":' * 10_000, "E_BAD_JSON"),
    (b'{"type": "ping", "n": 1e999}', "E_BAD_JSON"),
    (b'{"type": "\\ud800"}', "E_BAD_JSON"),
    (b"{}", "E_UNKNOWN_TYPE"),
    (b'{"type": null}', "E_UNKNOWN_TYPE"),
    (b'{"type": ["ping"]}', "E_UNKNOWN_TYPE"),
    (b'{"type": "__class__"}', "E_UNKNOWN_TYPE"),
    (b'{"type": "welcome", "seq": 1}', "E_UNKNOWN_TYPE"),
    (b'{"type": "ping", "__class__": 1}', "E_VALIDATION_ERROR"),
    (b'{"type": "subscribe", "since": 7}', "E_VALIDATION_ERROR"),
    (b'{"type": "subscribe", "since": {"epoch": "x", "seq": 1}}', "E_VALIDATION_ERROR"),
    (b'{"type": "subscribe", "tickets": []}', "E_VALIDATION_ERROR"),
    (b'{"type": "subscribe", "tickets": [7]}', "E_VALIDATION_ERROR"),
    (b'{"type": "presence", "ticket": "TSK-1", "state": "asleep"}', "E_VALIDATION_ERROR"),
    (b'{"type": "presence", "ticket": "TSK-99999999", "state": "away"}', "E_TICKET_NOT_FOUND"),
    (b'{"type": "chat", "id": "1"}', "E_VALIDATION_ERROR"),
    (b'{"type": "chat", "id": ["1"], "messages": []}', "E_VALIDATION_ERROR"),
    (b'{"type": "chat.cancel"}', "E_VALIDATION_ERROR"),
    (b'{"type": "chat.done", "id": "1"}', "E_UNKNOWN_TYPE"),
]
CHAT = b'{"type":"chat","id":"%d","messages":[{"role":"user","content":"VPN \xc3\xbc?"}]}'
CANCEL = b'{"type":"chat.cancel","id":"%d"}'


@pytest.mark.parametrize(("sent", "code"), RUDE, ids=lambda value: str(value)[:30])
async def test_nonsense_is_answered_from_a_fixed_list_s_30(
    live: Live, sent: bytes, code: str
) -> None:
    async with following(live.admin) as stream:
        stream.write(0x1, sent)
        frame = await stream.until("error")
        if code == "E_VALIDATION_ERROR":
            assert {"path", "problem"} == set().union(*frame.pop("details")["fields"])
            frame.pop("id", None)
        assert frame == {"type": "error", "error": code, "message": ERRORS[code]}
        assert await stream.quiet() == []


@pytest.mark.parametrize(
    ("opcode", "body", "code"),
    [
        (0x1, b"\xff\xfe", 1007),
        (0x1, b'"' + b"x" * 70_000 + b'"', 1009),
        (0x2, b"x" * 70_000, 1009),
        (0x0, b"a continuation of nothing", 1002),
        (0x9, b"x" * 200, 1002),
        (0x5, b"", 1002),
    ],
)
async def test_a_broken_frame_ends_the_conversation_s_30(
    live: Live, opcode: int, body: bytes, code: int
) -> None:
    async with following(live.admin) as stream:
        stream.write(opcode, body)
        assert await stream.end() == code


async def test_too_many_tickets_are_refused(brisk: Live) -> None:
    async with following(brisk.admin) as stream:
        await stream.send(type="subscribe", tickets=[f"TSK-{n}" for n in range(201)])
        error = await stream.until("error")
        assert error["error"] == "E_VALIDATION_ERROR"
        [problem] = error["details"]["fields"]
        assert problem == {"path": "tickets", "problem": "must have at most 200 entries"}


async def test_a_flood_is_ignored_and_then_ended_s_30(brisk: Live) -> None:
    agent = await brisk.person("agent")
    async with following(agent) as stream:
        for _ in range(150):
            stream.write(0x1, b'{"type":"ping"}')
        assert (await stream.until("error"))["error"] == "E_RATE_LIMITED"
        for _ in range(5_000):
            stream.write(0x9, b"")
        assert await stream.end() == 1008
    assert await metric(brisk, 'itdesk_websocket_dropped_total{reason="flood"}') == 1


WORDS = [
    b'{"type":', b'"subscribe"', b"}", b"[", b"]", b'"auth"', b"__class__", b"\x00", b"1e9",
    b'"\\ud800"', b'"since":', b"{", b"null", b",", b":", b'"tickets"', "ü".encode(),
]  # fmt: skip


async def fuzz(live: Live, frames: int, seed: int) -> None:
    """Send nonsense, before and after signing in, and see that nothing of it does anything."""
    dice = random.Random(seed)
    agent = await live.person("agent")
    crashes = len([x for x in live.daemon.lines() if x.get("level") in ("error", "critical")])
    restarts = await metric(live, "itdesk_actor_restarts_total")
    sent = 0
    while sent < frames:
        signed_in = dice.random() < 0.8
        async with connected(live.url) as stream:
            if signed_in:
                await stream.send(type="auth", token=agent.token)
            burst = dice.randrange(1, 200)
            for _ in range(burst):
                kind = dice.random()
                if kind < 0.02:
                    stream.write(0x1, dice.choice((CHAT, CANCEL)) % dice.randrange(4))
                elif kind < 0.4:
                    stream.write(0x1, b"".join(dice.choices(WORDS, k=dice.randrange(1, 12))))
                elif kind < 0.6:
                    stream.write(0x1, dice.choice(RUDE)[0])
                elif kind < 0.7:
                    stream.write(0x9, dice.randbytes(dice.randrange(0, 125)))
                elif kind < 0.8:
                    stream.write(0x2, dice.randbytes(dice.randrange(0, 300)))
                elif kind < 0.95:
                    stream.write(0x1, b'{"type":"pi', fin=False)
                    stream.write(0x0, b'ng"}')
                elif kind < 0.99:
                    if dice.random() < 0.1:
                        body, fin = dice.randbytes(20), dice.random() < 0.5
                        stream.write(dice.randrange(16), body, fin=fin)
                else:
                    stream.write(0x1, dice.choice((b"\xff\xfe", b"{" * 100_000)))
            sent += burst
            if signed_in:
                stream.write(0x1, b'{"type":"ping"}')
            try:
                while (await stream.receive())["type"] != "pong" or not signed_in:
                    pass
            except Closed:
                assert signed_in or stream.frames == []
            for frame in stream.frames:
                assert frame["type"] in SENT or "version" in frame, frame
                if frame["type"] == "error":
                    assert ERRORS[frame["error"]] == frame["message"]
    now = [x for x in live.daemon.lines() if x.get("level") in ("error", "critical")]
    assert now[crashes:] == []
    assert await metric(live, "itdesk_actor_restarts_total") == restarts
    async with following(agent) as stream:
        await stream.event(await agent.ticket(), 1)


async def test_two_thousand_frames_of_nonsense_do_nothing_s_30(live: Live) -> None:
    await fuzz(live, 2_000, seed=30)


@pytest.mark.slow
async def test_fifty_thousand_frames_of_nonsense_do_nothing_s_30(live: Live) -> None:
    await fuzz(live, 50_000, seed=31)


# --- the daemon's own end ----------------------------------------------------------------------


async def test_an_orderly_stop_says_goodbye(pg_server: Server) -> None:
    async with started(pg_server) as live:
        async with following(live.admin) as one, following(live.admin) as two:
            stopping = asyncio.ensure_future(asyncio.to_thread(live.daemon.stop))
            assert [await one.end(), await two.end()] == [1001, 1001]
            assert await stopping == 0


async def test_pings_are_sent_and_answers_are_noticed(brisk: Live) -> None:
    """The client of aiohttp answers pings while somebody reads; who does not read is closed."""
    alice, robin = await brisk.person(), await brisk.person("agent")
    gone = 'itdesk_websocket_dropped_total{reason="gone"}'

    async def has_gone() -> bool:
        return await metric(brisk, gone) == 1

    async with following(alice) as deaf, following(robin) as alive:
        deaf.stop_reading()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(alive.end(seconds=60))
            await eventually(has_gone, seconds=20)
            deaf.read_on()
            assert await deaf.end() in (1001, 1006)
            assert not reading.done()
            await alive.ws.close()
        assert await metric(brisk, gone) == 1


async def test_the_metrics_are_there(live: Live) -> None:
    async with following(live.admin) as stream:
        await stream.event(await live.admin.ticket(), 1)
        text = (await live.nobody.call("GET", "/metrics")).raw.decode()
    for name in (
        "itdesk_websocket_clients ", "itdesk_websocket_dropped_total{reason=",
        "itdesk_websocket_frames_total ", "itdesk_websocket_resyncs_total ",
        "itdesk_websocket_latency_seconds_bucket",
    ):  # fmt: skip
        assert f"\n{name}" in text, name


def names(document: Any) -> set[str]:
    """Return what a document calls the messages of one direction."""
    return {message["$ref"].rpartition("/")[2] for message in document["messages"]}


async def test_the_stream_is_described(live: Live) -> None:
    document = (await live.nobody.call("GET", "/asyncapi.json")).expect(200)
    assert document["asyncapi"].startswith("3.")
    messages = document["components"]["messages"]
    operations = document["operations"]
    assert names(operations["say"]) | names(operations["hear"]) == set(messages)
    assert names(operations["say"]) == {
        "client_auth", "client_subscribe", "client_presence", "client_ping",
        "client_chat", "client_chat.cancel",
    }  # fmt: skip
    assert names(operations["hear"]) == {*SENT, "event"}
    error = messages["error"]["payload"]
    assert set(error["properties"]) - set(error["required"]) == {"id", "details"}
    rest = (await live.nobody.call("GET", "/openapi.json")).raw
    assert "/asyncapi.json" in rest.decode()
    named = set(re.findall(r"/openapi.json#/components/schemas/(\w+)", str(messages)))
    assert {"Ticket", "Comment", "Replied"} <= named
    assert named <= set(orjson.loads(rest)["components"]["schemas"])
