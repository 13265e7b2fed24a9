"""The HTTP server: where it listens, how it stops, and whom it cuts off."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, web

from itdesk.actors import connection
from itdesk.actors.http import HttpServer
from itdesk.api.dispatch import Dispatcher
from itdesk.api.route import Call, Reply, Route, Who
from itdesk.errors import ConfigError
from tests.support.small_desk import Server, SmallDesk, serving

GET = b"GET /api/v1/gate HTTP/1.1\r\nHost: a\r\n\r\n"


class Gate:
    """Holds requests until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.entered = 0

    async def enter(self, call: Call) -> Reply:
        """Wait at the gate."""
        self.entered += 1
        await self.open.wait()
        return Reply({"entered": self.entered})

    async def read(self, call: Call) -> Reply:
        """Read a body of any kind."""
        return Reply({"size": len(await call.request.read())})

    async def pour(self, call: Call) -> web.StreamResponse:
        """Send more than anybody takes."""
        response = web.StreamResponse()
        await response.prepare(call.request)
        for _ in range(10_000):
            await response.write(b"x" * 65_536)
        return response

    async def talk(self, call: Call) -> web.StreamResponse:
        """Speak websocket until the other side stops."""
        socket = web.WebSocketResponse()
        await socket.prepare(call.request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket

    def routes(self) -> list[Route]:
        """Return what is served."""
        some: dict[str, Any] = {"who": Who.PUBLIC, "tag": "t"}
        body: dict[str, Any] = {"body_media": "application/octet-stream"}
        return [
            Route(id="G1", method="GET", path="/gate", handler=self.enter, **some),
            Route(id="G2", method="POST", path="/read", handler=self.read, **body, **some),
            Route(id="G3", method="GET", path="/pour", handler=self.pour, **some),
            Route(id="G4", method="GET", path="/ws", handler=self.talk, seconds=9e9, **some),
        ]


@pytest.fixture(name="gate")
def _gate() -> Gate:
    return Gate()


@pytest_asyncio.fixture(name="server")
async def _server(gate: Gate) -> AsyncIterator[Server]:
    desk = SmallDesk(server={"drain_seconds": 5, "max_body": 50_000_000, "request_seconds": 600})
    async with serving(desk, gate.routes()) as server:
        yield server


async def until(server: Server, condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await server.desk.clock.sleep(0.005)


def another(desk: SmallDesk, **options: Any) -> HttpServer:
    dispatcher = Dispatcher(cast(Any, desk), Gate().routes())
    return HttpServer(dispatcher, desk.settings.server, desk.clock, **options)


# --- where it listens ------------------------------------------------------------------------


async def test_free_port_is_bound_and_told(server: Server) -> None:
    assert server.http.port > 0
    assert server.http.url == f"http://127.0.0.1:{server.http.port}"
    assert (await server.ask("GET", "/nope")).status == 404


async def test_taken_port_is_one_clear_line(server: Server) -> None:
    desk = SmallDesk(server={"port": server.http.port})
    with pytest.raises(ConfigError) as caught:
        await another(desk).start()
    assert caught.value.message == (
        f"server.port: cannot listen on 127.0.0.1:{server.http.port}:"
        " another program listens there already."
    )


@pytest.mark.parametrize(
    ("host", "says"),
    [("192.0.2.1", "this machine has no such address"), ("no.such.host.invalid", "resolved")],
)
async def test_impossible_host_is_one_clear_line(host: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        await another(SmallDesk(server={"host": host, "port": 0})).start()


async def test_every_address_of_a_host_has_the_same_port() -> None:
    http = another(SmallDesk(server={"host": "localhost", "port": 0}))
    await http.start()
    try:
        async with ClientSession() as client, client.get(f"{http.url}/nope") as answer:
            assert answer.status == 404
    finally:
        await http.stop()


async def test_passed_socket_is_served() -> None:
    passed = socket.create_server(("127.0.0.1", 0))
    http = another(SmallDesk(), sockets=[passed])
    await http.start()
    try:
        assert http.port == passed.getsockname()[1]
        async with ClientSession() as client, client.get(f"{http.url}/nope") as answer:
            assert answer.status == 404
    finally:
        await http.stop()


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    return cert, key


async def _subject(http: HttpServer) -> str:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", http.port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    for name in ("one", "two"):
        if name.encode() in der:
            return name
    raise AssertionError("a certificate of somebody else")


async def test_tls_and_its_renewal(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path, "one")
    desk = SmallDesk(server={"tls_cert": str(cert), "tls_key": str(key)})
    http = another(desk)
    await http.start()
    try:
        assert http.url.startswith("https://")
        connector = TCPConnector(ssl=False)
        async with ClientSession(connector=connector) as client:
            async with client.get(f"{http.url}/nope") as answer:
                assert answer.status == 404
        assert await _subject(http) == "one"
        new_cert, new_key = _certificate(tmp_path, "two")
        new_cert.rename(cert)
        new_key.rename(key)
        http.reload_tls(desk.settings.server)
        assert await _subject(http) == "two"
    finally:
        await http.stop()


async def test_unusable_certificate_is_one_clear_line(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("nothing")
    desk = SmallDesk(server={"tls_cert": str(cert), "tls_key": str(cert)})
    with pytest.raises(ConfigError, match=r"server\.tls_cert"):
        await another(desk).start()


# --- how it stops ----------------------------------------------------------------------------


async def test_drain_answers_what_was_accepted(server: Server, gate: Gate) -> None:
    waiting = [asyncio.ensure_future(server.ask("GET", "/api/v1/gate")) for _ in range(20)]
    await until(server, lambda: gate.entered == 20)
    drain = asyncio.ensure_future(server.http.drain())
    await server.desk.clock.sleep(0.05)
    assert not drain.done()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection("127.0.0.1", server.port)
    gate.open.set()
    answers = await asyncio.gather(*waiting)
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers.get("Connection") for answer in answers} == {"close"}
    await drain
    assert server.http.in_flight == 0


async def test_kept_connection_is_answered_while_draining(server: Server, gate: Gate) -> None:
    gate.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(GET)
    assert b"Connection" not in await reader.readuntil(b"}")
    gate.open.clear()
    busy = asyncio.ensure_future(server.ask("GET", "/api/v1/gate"))
    await until(server, lambda: gate.entered == 2)
    drain = asyncio.ensure_future(server.http.drain())
    await server.desk.clock.sleep(0.05)
    writer.write(GET)
    await until(server, lambda: gate.entered == 3)
    gate.open.set()
    raw = await reader.read()
    assert raw.startswith(b"HTTP/1.1 200 OK") and b"Connection: close" in raw
    writer.close()
    assert (await busy).status == 200
    await drain


async def test_steady_load_sees_no_torn_answer(server: Server, gate: Gate) -> None:
    gate.open.set()
    counts = {"ok": 0, "refused": 0}

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while True:
            writer.write(GET)
            raw = await reader.readuntil(b"}")
            assert raw.startswith(b"HTTP/1.1 200 ")
            counts["ok"] += 1
            if b"Connection: close" in raw:
                counts["refused"] += 1
                assert await reader.read() == b""
                writer.close()
                return

    clients = [asyncio.ensure_future(client()) for _ in range(50)]
    await until(server, lambda: counts["ok"] > 500)
    await server.http.drain()
    await asyncio.gather(*clients)
    assert counts["refused"] == 50


async def test_drain_ends_in_time_and_stop_cuts_the_rest(gate: Gate) -> None:
    desk = SmallDesk(server={"drain_seconds": 1})
    async with serving(desk, gate.routes()) as server:
        waiting = asyncio.ensure_future(server.ask("GET", "/api/v1/gate"))
        await until(server, lambda: gate.entered == 1)
        began = desk.clock.monotonic()
        await server.http.drain()
        assert 1 <= desk.clock.monotonic() - began < 2
        await server.http.stop()
        assert desk.clock.monotonic() - began < 4
        with pytest.raises(ClientConnectionError):
            await waiting


async def test_second_drain_forces(server: Server, gate: Gate) -> None:
    waiting = asyncio.ensure_future(server.ask("GET", "/api/v1/gate"))
    await until(server, lambda: gate.entered == 1)
    drain = asyncio.ensure_future(server.http.drain())
    await server.desk.clock.sleep(0.05)
    began = server.desk.clock.monotonic()
    await server.http.drain()
    await drain
    await server.http.stop()
    assert server.desk.clock.monotonic() - began < 2
    with pytest.raises(ClientConnectionError):
        await waiting


async def test_open_websocket_does_not_hold_up_the_drain(server: Server) -> None:
    async with server.client.ws_connect("/api/v1/ws") as ws:
        await ws.send_str("hello")
        assert (await ws.receive_str()) == "hello"
        began = server.desk.clock.monotonic()
        await server.http.drain()
        assert server.desk.clock.monotonic() - began < 2
        await ws.send_str("still there")
        assert (await ws.receive_str()) == "still there"


# --- whom it cuts off ------------------------------------------------------------------------


class Watch:
    """Looks at the one connection of a server as if time had passed."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()

    async def after(self, seconds: float) -> str | None:
        """Return what the client is overdue with, so many seconds from now."""
        await until(self._server, lambda: self._server.http.connections)
        (one,) = self._server.http.connections
        return one.overdue(self._loop.time() + seconds)


async def test_silent_client_is_cut_off(server: Server) -> None:
    """P-01: within 15 s, the second between two looks included."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert await Watch(server).after(13) is None
    assert await Watch(server).after(14) == "send its headers"
    writer.close()


async def test_trickled_headers_are_cut_off(server: Server, gate: Gate) -> None:
    """P-01: the byte that comes now and then is no progress."""
    gate.open.set()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(GET)
    await reader.readuntil(b"}")
    await until(server, lambda: not server.http.in_flight)
    assert await Watch(server).after(70) is None
    writer.write(b"GET / HTTP/1.1\r\nX")
    await server.desk.clock.sleep(0.05)
    assert await Watch(server).after(13) is None
    assert await Watch(server).after(14) == "send its headers"
    writer.close()


async def test_slow_body_is_cut_off_but_a_steady_one_is_not(server: Server) -> None:
    """P-01: 30 s without 1 KiB/s, the second between two looks included."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /api/v1/read HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n")
    await until(server, lambda: server.http.in_flight)
    watch = Watch(server)
    assert await watch.after(28) is None
    assert await watch.after(30) == "send its body"
    writer.write(b"x" * 40_000)
    await server.desk.clock.sleep(0.05)
    assert await watch.after(30) is None
    assert await watch.after(58) is None
    assert await watch.after(60) == "send its body"
    writer.close()


async def test_slow_handler_is_not_the_clients_fault(server: Server, gate: Gate) -> None:
    waiting = asyncio.ensure_future(server.ask("GET", "/api/v1/gate"))
    await until(server, lambda: gate.entered == 1)
    assert await Watch(server).after(500) is None
    gate.open.set()
    await waiting


async def deaf_client(server: Server) -> socket.socket:
    """Return the socket of a client that asked for a lot and reads nothing of it."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", server.port))
    await loop.sock_sendall(sock, b"GET /api/v1/pour HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(server, lambda: any(c.writing_paused for c in server.http.connections))
    return sock


async def test_stop_does_not_wait_for_a_client_that_never_reads(server: Server) -> None:
    sock = await deaf_client(server)
    (transport,) = [c.transport for c in server.http.connections]
    assert transport is not None and transport.get_write_buffer_size() > 0
    began = server.desk.clock.monotonic()
    await server.http.stop()
    assert server.desk.clock.monotonic() - began < 3
    assert transport.get_write_buffer_size() == 0
    sock.close()


async def test_the_end_of_its_request_gives_a_client_that_never_reads_no_more_time(
    server: Server,
) -> None:
    """P-01: its handler's deadline is about as long as its own."""
    sock = await deaf_client(server)
    (one,) = server.http.connections
    assert one.transport is not None
    one.transport.close()
    assert await Watch(server).after(28) is None
    assert await Watch(server).after(30) == "take its last answer"
    sock.close()


async def test_client_that_never_reads_is_cut_off(server: Server) -> None:
    """P-01: within 30 s, the second between two looks included."""
    sock = await deaf_client(server)
    watch = Watch(server)
    assert await watch.after(0) is None
    assert await watch.after(28) is None
    assert await watch.after(30) == "take its answer"
    sock.close()


async def test_the_kernel_keeps_nothing_for_a_client_that_was_cut_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-01: it is reset, although it would never have read what was sent to it."""
    monkeypatch.setattr(connection, "WINDOW_SECONDS", 0.2)
    sock = await deaf_client(server)

    def is_over() -> bool:
        established = 1
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state != established

    await until(server, is_over)
    sock.close()


async def test_sweep_cuts_off_and_others_are_served(
    server: Server, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-01: new connects are served all the while."""
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    gate.open.set()
    slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(50)]
    for _, writer in slow[::2]:
        writer.write(b"G")
    began = server.desk.clock.monotonic()
    ends = asyncio.gather(*(reader.read() for reader, _ in slow), return_exceptions=True)
    while not ends.done():
        assert (await server.ask("GET", "/api/v1/gate")).status == 200
    assert server.desk.clock.monotonic() - began < 3
    for _, writer in slow:
        writer.close()
    cut = [line for line in server.lines() if line["event"] == "client cut off"]
    assert len(cut) == 50
    assert {line["failed_to"] for line in cut} == {"send its headers"}
