"""The HTTP server: listens, answers, and stops without dropping a request it accepted.

Not an Actor: it has no mailbox and nothing to restart, so the daemon starts and stops it by
itself: `start`, then `drain` and `stop`; a second `drain`, or `force`, ends the waiting at once.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from itdesk.actors.connection import IDLE_SECONDS, SWEEP_SECONDS, Connection
from itdesk.errors import ConfigError
from itdesk.runtime.clock import Clock, Timer
from itdesk.runtime.log import get_logger

if TYPE_CHECKING:
    from itdesk.api.dispatch import Dispatcher
    from itdesk.config import Server as Settings

BACKLOG = 1024
UNSENT_BYTES = 256 * 1024
LULL_SECONDS = 0.3
HANDSHAKE_SECONDS = 15.0

log = get_logger("http")


class HttpServer:
    """Serves what the dispatcher answers on the configured address."""

    def __init__(
        self,
        dispatcher: "Dispatcher",
        settings: "Settings",
        clock: Clock,
        *,
        sockets: Sequence[socket.socket] = (),
        farewell: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._farewell = farewell
        self._settings = settings
        self._clock = clock
        self._passed = list(sockets)
        self._dispatcher = dispatcher
        self._runner: web.ServerRunner | None = None
        self._tls: ssl.SSLContext | None = None
        self._listening: list[asyncio.Server] = []
        self._sweep_timer: Timer | None = None
        self._forced = False
        self._host, self.port = settings.host, settings.port

    @property
    def url(self) -> str:
        """Return where clients find the server, with the port that was really bound."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    @property
    def connections(self) -> list[Connection]:
        """Return the open connections."""
        found = self._runner.server.connections if self._runner and self._runner.server else []
        return [connection for connection in found if isinstance(connection, Connection)]

    @property
    def in_flight(self) -> int:
        """Return how many requests are being answered; open websockets are not counted."""
        return sum(connection.in_flight for connection in self.connections)

    async def start(self) -> None:
        """Listen; raise ConfigError with one line that says why it is impossible."""
        self._tls = _tls(self._settings)
        sockets = self._passed or await _bind(self._settings.host, self._settings.port)
        runner = web.ServerRunner(
            web.Server(self._answer, request_factory=self._dispatcher.request), shutdown_timeout=0.5
        )
        await runner.setup()
        self._runner = runner
        loop = asyncio.get_running_loop()
        handshake = HANDSHAKE_SECONDS if self._tls else None
        for sock in sockets:
            sock.setblocking(False)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                # Its connections inherit it. What a client does not read stays with us, who see
                # it, and not in the kernel, whose memory for all connections it would use up.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            self._listening.append(
                await loop.create_server(
                    self._connect,
                    sock=sock,
                    backlog=BACKLOG,
                    ssl=self._tls,
                    ssl_handshake_timeout=handshake,
                )
            )
        name = sockets[0].getsockname()
        self.port = name[1] if isinstance(name, tuple) else 0
        if self._passed and isinstance(name, tuple):
            self._host = name[0]
        self._sweep_timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)
        log.info("listening", url=self.url)

    async def drain(self) -> None:
        """Accept nobody new, and return when all requests in flight are answered.

        Every answer from now on asks its client to close the connection, and in the end the
        websockets are told to go. Waits for requests for `server.drain_seconds` at most; called a
        second time, both calls return at once.
        """
        if self._dispatcher.exchanges.draining:
            self.force()
            return
        self._dispatcher.exchanges.draining = True
        for listening in self._listening:
            # A socket that was passed to us goes on listening: who comes now is the next daemon's.
            listening.close()
        began = quiet = self._clock.monotonic()
        while not self._forced and self.connections:
            now = self._clock.monotonic()
            if self.in_flight:
                quiet = now
            # A client that was just sending a request on an idle connection still gets an answer.
            if now - quiet >= LULL_SECONDS or now - began >= self._settings.drain_seconds:
                break
            await self._clock.sleep(0.02)
        if self.in_flight:
            log.warning("requests given up", requests=self.in_flight, forced=self._forced)
        if self._farewell is not None and not self._forced:
            await self._farewell()

    def force(self) -> None:
        """Cut every connection now."""
        self._forced = True
        for connection in self.connections:
            connection.abort()

    async def stop(self) -> None:
        """Close everything; requests that are still in flight are cancelled."""
        self._dispatcher.exchanges.draining = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for listening in self._listening:
            listening.close()
        self._listening.clear()
        transports = [connection.transport for connection in self.connections]
        if self._runner is not None:
            await self._runner.cleanup()
        for transport in transports:
            # What was closed may still wait for a client that takes nothing.
            if transport is not None:
                transport.abort()

    @property
    def has_tls(self) -> bool:
        """Return whether the server speaks HTTPS, which takes a restart to change."""
        return self._tls is not None

    def check_tls(self, settings: "Settings") -> None:
        """Raise ConfigError when the certificate that is named here cannot be used."""
        _tls(settings)

    def reload_tls(self, settings: "Settings") -> None:
        """Read the certificate again; connections made from now on get the new one."""
        if self._tls is not None:
            _load(self._tls, settings)

    def _connect(self) -> Connection:
        assert self._runner is not None
        assert self._runner.server is not None
        return Connection(
            self._runner.server,
            self._dispatcher,
            loop=asyncio.get_running_loop(),
            access_log=None,
            keepalive_timeout=IDLE_SECONDS,
            auto_decompress=False,
            lingering_time=5.0,
        )

    def _answer(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        """Answer a request; only its connection can tell when the answer is sent."""
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.begin(request)
        return self._dispatcher.handle(request)

    def _sweep(self) -> None:
        """Cut off the clients that failed to do their part in time."""
        self._sweep_timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)
        now = asyncio.get_running_loop().time()
        for connection in self.connections:
            failed_to = connection.overdue(now)
            if failed_to is not None:
                name = connection.peername
                address = name[0] if isinstance(name, tuple) else name
                log.info("client cut off", address=address, failed_to=failed_to)
                connection.cut_off()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Return bound sockets for every address of a host, all on one port."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigError(f"server.host: {host} cannot be resolved: {exc.strerror}.") from exc
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, kind, proto, _, address in dict.fromkeys(found):
        try:
            sockets.append(_listener(family, kind, proto, (address[0], port, *address[2:])))
            port = port or sockets[0].getsockname()[1]
        except OSError as exc:
            failure = exc
            if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    if failure is not None and not (
        sockets and failure.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    ):
        for sock in sockets:
            sock.close()
        raise ConfigError(_why(host, port, failure)) from failure
    return sockets


def _listener(family: int, kind: int, proto: int, address: tuple[str | int, ...]) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _why(host: str, port: int, failure: OSError) -> str:
    reasons = {
        errno.EADDRINUSE: "another program listens there already",
        errno.EACCES: "this user may not listen on that port",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }
    reason = reasons.get(failure.errno or 0, failure.strerror or "it is refused")
    return f"server.port: cannot listen on {host}:{port}: {reason}."


def _tls(settings: "Settings") -> ssl.SSLContext | None:
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, settings)
    return context


def _load(context: ssl.SSLContext, settings: "Settings") -> None:
    if settings.tls_cert is None or settings.tls_key is None:
        raise ConfigError("server.tls_cert and server.tls_key: give both or neither.")
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"server.tls_cert, server.tls_key: they cannot be used: {exc.strerror or exc}."
        ) from exc
