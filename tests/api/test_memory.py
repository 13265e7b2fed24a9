"""What connections keep while they last, and that all of it is free at their end."""

import asyncio
import gc
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop
from aiohttp import ClientSession, ClientWebSocketResponse, web

from itdesk.actors.client import Client
from itdesk.actors.connection import Connection
from itdesk.actors.http import HttpServer
from itdesk.actors.hub import Hub
from itdesk.actors.outbox import Outbox
from itdesk.api import ROUTES
from itdesk.api.dispatch import Dispatcher
from itdesk.api.exchange import Exchange
from itdesk.api.route import Call, Reply, Route, Who
from itdesk.api.websocket import Conversation
from itdesk.desk.accounts import NewUser
from itdesk.model import SYSTEM, Role
from itdesk.runtime.clock import Clock
from tests.support.daemon import PASSWORD
from tests.support.desk import bench_on
from tests.support.load import eventually
from tests.support.small_desk import SmallDesk, serving

EMAIL = "reads@example.org"
# What one websocket is made of.
PARTS = (Client, Connection, Conversation, Exchange, Outbox, web.BaseRequest, web.WebSocketResponse)


@dataclass
class Scene:
    """A server in this process, and a client of it who is signed in."""

    http: HttpServer
    hub: Hub
    session: ClientSession
    token: str

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[ClientWebSocketResponse]:
        """Lend a websocket that hears everything."""
        async with self.session.ws_connect(
            "/ws/one",
            protocols=("itdesk.v1", f"bearer.{self.token}"),
            headers={"User-Agent": "reader/1", "X-Other": "y" * 1000},
        ) as ws:
            await ws.send_str('{"type": "subscribe"}')
            assert (await ws.receive_json(timeout=10))["type"] == "welcome"
            yield ws

    async def gone(self) -> None:
        """Return once the server has no connection any more."""

        async def over() -> bool:
            return not self.http.connections

        await eventually(over, seconds=10)
        # Whoever was told of it still has a turn.
        await Clock().sleep(0)


@pytest_asyncio.fixture(name="scene")
async def _scene(database_url: str) -> AsyncIterator[Scene]:
    async with bench_on(database_url, ITDESK_SERVER__PORT="0") as bench:
        person = NewUser(EMAIL, "A reader", Role.AGENT, PASSWORD)
        await bench.desk.accounts.create(SYSTEM, person)
        hub = Hub(bench.desk)
        http = HttpServer(Dispatcher(bench.desk, ROUTES, hub), bench.desk.settings.server,
                          bench.desk.clock)  # fmt: skip
        await http.start()
        try:
            async with ClientSession(http.url) as session:
                login = {"email": EMAIL, "password": PASSWORD}
                async with session.post("/api/v1/auth/login", json=login) as answer:
                    token = (await answer.json())["access_token"]
                yield Scene(http, hub, session, token)
        finally:
            await http.stop()


def _parts() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, PARTS)]


@pytest.fixture(name="parts")
def _new_parts() -> Iterator[Callable[[], list[str]]]:
    """Return what there is of websockets since now; nothing is collected meanwhile."""
    gc.collect()
    gc.disable()
    before = {id(one): one for one in _parts()}
    try:
        yield lambda: sorted(type(one).__name__ for one in _parts() if id(one) not in before)
    finally:
        gc.enable()


async def test_of_its_handshake_a_websocket_keeps_the_name_of_its_client(scene: Scene) -> None:
    """T8: a token and its headers, each twice, are a quarter of what a websocket takes."""
    async with scene.listening() as ws:
        (request,) = [
            connection._answering
            for connection in scene.http.connections
            if connection._answering is not None
        ]
        assert dict(request.headers) == {"User-Agent": "reader/1"}
        assert dict(request._message.headers) == {"User-Agent": "reader/1"}
        assert request._message.raw_headers == ()
        assert request.protocol._parser is None
        # It goes on as before.
        await ws.send_str('{"type": "ping"}')
        assert await ws.receive_json(timeout=10) == {"type": "pong"}


async def _says_goodbye(scene: Scene, ws: ClientWebSocketResponse) -> None:
    await ws.close()


async def _vanishes(scene: Scene, ws: ClientWebSocketResponse) -> None:
    connection = ws._response.connection
    assert connection is not None
    assert connection.transport is not None
    connection.transport.abort()


async def _is_dismissed(scene: Scene, ws: ClientWebSocketResponse) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.hub.dismiss())
        await ws.receive(timeout=10)


@pytest.mark.parametrize("ends", [_says_goodbye, _vanishes, _is_dismissed])
async def test_all_of_a_websocket_that_is_over_is_free_at_once(
    parts: Callable[[], list[str]],
    scene: Scene,
    ends: Callable[[Scene, ClientWebSocketResponse], Awaitable[None]],
) -> None:
    """T9: what waits for the garbage collection is there twice when everybody comes again."""
    await scene.session.close()
    await scene.gone()
    assert parts() == []
    async with ClientSession(scene.http.url) as scene.session:
        async with scene.listening() as ws:
            assert {"Client", "Connection", "Conversation", "Outbox"} <= set(parts())
            await ends(scene, ws)
        await scene.gone()
    assert parts() == []


# --- large answers ---------------------------------------------------------------------------

DOCUMENT = b"the one document" * 65_536
READERS = 40


async def _document(call: Call) -> Reply:
    return Reply(DOCUMENT)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_many_who_do_not_take_the_same_document_wait_for_one_piece_of_memory() -> None:
    """P-01: it may be half a MiB, of everybody who keeps a connection and reads nothing.

    On the daemon's own loop: the one of the standard library copies what a socket does not take.
    """
    uvloop.run(_many_take_nothing())


async def _many_take_nothing() -> None:
    route = Route(id="D1", method="GET", path="/document", handler=_document, who=Who.PUBLIC,
                  tag="t", response_media="application/octet-stream")  # fmt: skip
    loop = asyncio.get_running_loop()
    async with serving(SmallDesk(), [route]) as server:
        answer = await server.ask("GET", "/api/v1/document")
        assert answer.raw == DOCUMENT
        socks, before = list[socket.socket](), _resident()
        for _ in range(READERS):
            sock = socket.socket()
            socks.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(sock, b"GET /api/v1/document HTTP/1.1\r\nHost: a\r\n\r\n")

        async def all_wait() -> bool:
            return sum(one.writing_paused for one in server.http.connections) == READERS

        await eventually(all_wait, seconds=10)
        transports = [one.transport for one in server.http.connections if one.writing_paused]
        waiting = sum(one.get_write_buffer_size() for one in transports if one is not None)
        grown = _resident() - before
        for sock in socks:
            sock.close()
    assert waiting > READERS * len(DOCUMENT) / 4
    assert grown < waiting / 4
