"""One client's connection, with the deadlines that aiohttp does not have.

A client must send its headers in time, keep its body coming and take its answers; whoever does
not is cut off, so that a thousand idle sockets cost nobody else anything.
"""

import socket
import struct
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.http import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy

if TYPE_CHECKING:
    from aiohttp.web_server import Server

    from itdesk.actors.outbox import Outbox
    from itdesk.api.dispatch import Dispatcher

# Whoever is late is cut off within 15 s of headers or 30 s without 1 KiB/s, as the client counts.
# This is looked at once a second; and in a siege it takes a while to accept everybody, and to look.
SWEEP_SECONDS = 1.0
SIEGE_SECONDS = 0.5
HEADER_SECONDS = 15.0 - SWEEP_SECONDS - SIEGE_SECONDS
IDLE_SECONDS = 75
WINDOW_SECONDS = 30.0 - SWEEP_SECONDS - SIEGE_SECONDS
WINDOW_BYTES = int(WINDOW_SECONDS * 1024)
# Smaller bodies are joined to their headers: what many copies of them take is little.
LARGE_BODY = 65_536
# What a websocket has instead of requests that wait to be answered.
_NO_REQUESTS: deque[Any] = deque(maxlen=0)
# SO_LINGER: on, for no second.
_AT_ONCE = struct.pack("ii", 1, 0)


class Connection(web.RequestHandler):
    """A connection that knows what it waits for and since when."""

    __slots__ = (
        "_answering",
        "_closing",
        "_dispatcher",
        "_handshake",
        "_marked",
        "_received",
        "_since",
        "_stuck",
        "outbox",
    )

    def __init__(self, server: "Server", dispatcher: "Dispatcher", **options: Any) -> None:
        super().__init__(server, **options)
        self._dispatcher = dispatcher
        self._answering: web.BaseRequest | None = None
        # When the client began to owe us headers; None while it owes us nothing.
        self._since: float | None = None
        self._received = 0
        # Since when, and from how many bytes on, the progress of a body is measured.
        self._marked: tuple[float, int] = (0.0, 0)
        self._stuck: float | None = None
        self._closing: float | None = None
        # The headers of a request to become a websocket.
        self._handshake: CIMultiDict[str] | None = None
        # Where a websocket's frames wait while its client takes none.
        self.outbox: Outbox | None = None

    @property
    def in_flight(self) -> bool:
        """Return whether a request is being answered; an open websocket is none."""
        request = self._answering
        return request is not None and not self._dispatcher.is_websocket(request)

    def connection_made(self, transport: Any) -> None:
        """Expect the first request from now on."""
        self._since = self._loop.time()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of what waited to be sent."""
        super().connection_lost(exc)
        if self.outbox is not None:
            self.outbox.stop()
            self.outbox = None

    def pause_writing(self) -> None:
        """Wait for the client to take what is sent already."""
        super().pause_writing()
        self._stuck = self._loop.time()

    def resume_writing(self) -> None:
        """Send on, now that the client takes its bytes again."""
        super().resume_writing()
        self._stuck = None
        if self.outbox is not None:
            self.outbox.resume()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        self._received += len(data)
        if self._since is None and self._answering is None:
            self._since = self._loop.time()
        super().data_received(data)
        if self._upgraded and self._messages:
            self._own_headers()
        request = self._answering
        if request is not None and self._messages and not request.content.is_eof():
            # Nothing can follow an unfinished body but the news that it cannot be read, which
            # aiohttp would keep from the handler that waits for the rest.
            request.content.set_exception(web.RequestPayloadError("the framing is broken"))

    def _own_headers(self) -> None:
        # aiohttp keeps the request of a websocket until its end, in places that nobody else can
        # reach, and everything in it twice: these headers can be forgotten.
        message, body = self._messages.pop()
        assert isinstance(message, RawRequestMessage)
        self._handshake = CIMultiDict(message.headers)
        headers = CIMultiDictProxy(self._handshake)
        self._messages.append((message._replace(headers=headers, raw_headers=()), body))

    def lighten(self) -> None:
        """Let go of what only requests need: a websocket stays, and there may be thousands.

        Of the headers only what names the client is left, and nothing of its token.
        """
        self._parser = None
        self._messages = _NO_REQUESTS
        if self._handshake is not None:
            agent = self._handshake.get(hdrs.USER_AGENT)
            self._handshake.clear()
            if agent is not None:
                self._handshake[hdrs.USER_AGENT] = agent
            self._handshake = None

    def begin(self, request: web.BaseRequest) -> None:
        """Note that a request is complete but for its body."""
        self._answering = request
        self._since = None
        self._marked = (self._loop.time(), self._received)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; what aiohttp itself would answer is put into the one error body."""
        if isinstance(resp, web.HTTPException):
            resp = self._dispatcher.unreadable(request, resp.status)
        try:
            if isinstance(resp, web.Response) and _is_large(resp.body):
                # Behind its headers, not joined to them: many may wait to be taken at a time, and
                # all that are the same document are then one piece of memory.
                await resp.prepare(request)
                request.writer.send_headers()
            return await super().finish_response(request, resp, start_time)
        finally:
            self._answering = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that could not be read; its text is neither shown nor logged."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        response = self._dispatcher.unreadable(request, status, exc if status >= 500 else None)
        response.force_close()
        return response

    def overdue(self, now: float) -> str | None:
        """Return what the client failed to do in time, or None."""
        transport = self.transport
        if transport is None:
            return None
        if transport.is_closing():
            self._closing = self._closing or self._stuck or now
            return "take its last answer" if now - self._closing > WINDOW_SECONDS else None
        if self._stuck is not None and now - self._stuck > WINDOW_SECONDS:
            return "take its answer"
        if self._answering is None:
            late = self._since is not None and now - self._since > HEADER_SECONDS
            return "send its headers" if late else None
        return self._overdue_body(self._answering, transport, now)

    def _overdue_body(self, request: web.BaseRequest, transport: Any, now: float) -> str | None:
        since, received = self._marked
        if request.content.is_eof() or not transport.is_reading():
            # Nothing is owed, or it is we who do not read.
            self._marked = (now, self._received)
            return None
        if now - since <= WINDOW_SECONDS:
            return None
        if self._received - received < WINDOW_BYTES:
            return "send its body"
        self._marked = (now, self._received)
        return None

    def abort(self) -> None:
        """Cut the connection at once, whatever is still to be sent."""
        if self.transport is not None:
            self.transport.abort()

    def cut_off(self) -> None:
        """Abort, and let the kernel forget what the client does not take.

        It would keep that for minutes, up to 4 MiB of each.
        """
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.abort()


def _is_large(body: object) -> bool:
    return isinstance(body, bytes) and len(body) >= LARGE_BODY
