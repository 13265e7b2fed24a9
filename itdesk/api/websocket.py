"""The live stream: a websocket on which people say who they are and hear what happens.

Hides the conversation: signing in by first message, subprotocol or cookie, what a client may say
afterwards, and that nothing which it sends does more than earn it an answer from a fixed list or
the end of the conversation.
"""

import asyncio
import math
import socket
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

from aiohttp import WSMessage, WSMsgType, web
from pydantic import ConfigDict, Field

from itdesk.actors.client import Client, Goodbye
from itdesk.actors.frames import PROTOCOL, frame, text
from itdesk.api import payload
from itdesk.api.chats import Ask, Cancel, Chats, named
from itdesk.api.cookies import Cookies
from itdesk.api.exchange import EXCHANGE
from itdesk.api.origin import offered_token
from itdesk.api.route import Body, Call, Query, Reply, Route, Who
from itdesk.errors import (
    BadRequest,
    DeskError,
    ExpiredToken,
    Invalid,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from itdesk.model import Caller, Position

if TYPE_CHECKING:
    from itdesk.actors.hub import Hub

LARGEST_FRAME = 65_536
# How long a client may take to agree that it is over.
GOODBYE_SECONDS = 4.0
# Who authenticates and says nothing more for so long hears everything.
SILENCE_SECONDS = 1.0
# So many ignored frames of one websocket are a flood.
MOST_IGNORED = 1_000
# The kernel shall not take much for a client that reads nothing: it could not be closed in order.
SEND_BUFFER = 131_072
YIELD_AFTER = 32


class AnyQuery(Query):
    """A query string that is not read: whoever sends one is told so after the upgrade."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Since(Body):
    """A place in the journal, as a welcome or an event named it."""

    epoch: UUID
    seq: int = Field(ge=0, le=payload.LARGEST_INTEGER)


Reference = Annotated[str, Field(min_length=1, max_length=64)]


class Auth(Body):
    """Say who you are, at first, and again before the token expires."""

    type: Literal["auth"]
    token: Annotated[str, Field(min_length=1, max_length=8192)] = Field(repr=False)


class Subscribe(Body):
    """Ask for the events since a position, of some tickets or of all that you may read."""

    type: Literal["subscribe"]
    since: Since | None = None
    tickets: Annotated[list[Reference], Field(min_length=1)] | None = None


class Say(Body):
    """Say what you do with a ticket, again and again while you do it."""

    type: Literal["presence"]
    ticket: Reference
    state: Literal["viewing", "typing", "away"]


class Ping(Body):
    """Ask whether the server is still there."""

    type: Literal["ping"]


MESSAGES: dict[str, type[Body]] = {
    "auth": Auth, "subscribe": Subscribe, "presence": Say, "ping": Ping,
    "chat": Ask, "chat.cancel": Cancel,
}  # fmt: skip

ERRORS = {
    "E_BAD_JSON": "A frame is one JSON object, as text.",
    "E_UNKNOWN_TYPE": "There is no such type of message.",
    "E_VALIDATION_ERROR": "The message does not have the fields that its type asks for.",
    "E_TICKET_NOT_FOUND": "There is no such ticket.",
    "E_CHAT_RUNNING": "A chat with this id is running: give each its own.",
    "E_RATE_LIMITED": "Too many messages: this one was ignored.",
}


def _error(code: str, **more: Any) -> bytes:
    return text({"type": "error", "error": code, "message": ERRORS[code], **more})


_ERROR_FRAMES = {code: _error(code) for code in ERRORS}
_PONG = text({"type": "pong"})


class Over(Exception):  # noqa: N818 - it is how a conversation ends, well or not
    """The conversation is over, for this reason or because the client left."""

    def __init__(self, goodbye: Goodbye | None = None) -> None:
        super().__init__(goodbye)
        self.goodbye = goodbye


async def connect(call: Call) -> Reply | web.StreamResponse:
    """Follow the tickets live, over a websocket."""
    hub = call.dispatcher.hub
    if hub is None:
        raise Unavailable("There is no live stream here.")
    if call.request.headers.get("Upgrade", "").strip().lower() != "websocket":
        raise BadRequest("This path is for websockets.", code="E_WEBSOCKET_ONLY")
    ws = web.WebSocketResponse(
        protocols=(PROTOCOL,),
        compress=False,
        autoping=False,
        timeout=GOODBYE_SECONDS,
        max_msg_size=LARGEST_FRAME,
    )
    await ws.prepare(call.request)
    await Conversation(call, hub, ws).run()
    return ws


class Conversation:
    """One websocket from its upgrade to its end."""

    def __init__(self, call: Call, hub: "Hub", ws: web.WebSocketResponse) -> None:
        self._call = call
        self._hub = hub
        self._ws = ws
        self._desk = call.desk
        self._connection: Any = call.request.protocol
        self._ignored = 0
        self._complained_at = -math.inf
        self._subscribed = False
        # Most never chat: they are made for the first one.
        self._chats: Chats | None = None

    async def run(self) -> None:
        """Talk until one side ends it."""
        client: Client | None = None
        goodbye: Goodbye | None = None
        try:
            try:
                client = await self._signed_in()
                goodbye = await self._stay(client)
            except Over as over:
                goodbye = over.goodbye
            except Unavailable:
                goodbye = Goodbye.UNAVAILABLE
            if client is not None:
                # Nothing may follow the close frame.
                client.outbox.stop()
            if goodbye is not None:
                if client is None or client.goodbye is None:
                    self._hub.count_drop(goodbye)
                await self._close(goodbye)
        finally:
            self._connection.outbox = None
            if client is not None:
                self._hub.leave(client)
            self._forget_failure()

    async def _stay(self, client: Client) -> Goodbye | None:
        """Listen to an authenticated client until it, or the hub, has enough."""
        try:
            async with asyncio.timeout(None) as cut:
                client.on_goodbye = lambda: cut.reschedule(0)
                try:
                    await self._listen(client)
                finally:
                    client.on_goodbye = _do_nothing
                    if self._chats is not None:
                        await self._chats.end()
        except TimeoutError:
            if client.goodbye is None:
                raise
        return client.goodbye

    def _forget_failure(self) -> None:
        failure = self._ws.exception()
        if failure is not None:
            # Its tracebacks lead back here: all of it would wait for the garbage collection.
            failure.__traceback__ = failure.__context__ = None

    async def _close(self, goodbye: Goodbye) -> None:
        request = self._call.request
        try:
            async with self._desk.clock.deadline(GOODBYE_SECONDS):
                await self._ws.close(code=goodbye.code, message=goodbye.words.encode(), drain=False)
        except TimeoutError:
            pass
        transport = request.transport
        if transport is not None and transport.get_write_buffer_size():
            # It does not even take the goodbye.
            transport.abort()

    # --- signing in ---

    async def _signed_in(self) -> Client:
        request = self._call.request
        if request.rel_url.raw_query_string:
            raise Over(Goodbye.QUERY)
        # A foreign page came no further than the handshake: this cookie is ours to take.
        cookies = Cookies(self._desk.settings.auth)
        token = offered_token(request) or cookies.access(request, request[EXCHANGE].peer)
        caller, expires_at = await self._authenticate(token or await self._first_message())
        request[EXCHANGE].caller = caller
        entered = self._hub.enter(caller, expires_at, self._connection)
        if isinstance(entered, Goodbye):
            raise Over(entered)
        self._connection.outbox = entered.outbox
        self._connection.lighten()
        self._ws.headers.clear()
        _bound_send_buffer(request)
        return entered

    async def _first_message(self) -> str:
        try:
            async with self._desk.clock.deadline(self._hub.settings.auth_seconds):
                message = await self._receive()
                while message.type in (WSMsgType.PING, WSMsgType.PONG):
                    message = await self._receive()
        except TimeoutError:
            raise Over(Goodbye.SILENT) from None
        try:
            if message.type is not WSMsgType.TEXT:
                raise Over(Goodbye.TOKEN)
            return payload.parse(Auth, message.data.encode()).token
        except (BadRequest, Invalid):
            raise Over(Goodbye.TOKEN) from None

    async def _authenticate(self, token: str) -> tuple[Caller, datetime]:
        """Return whose token it is, and until when; raise Over when it is no good."""
        try:
            # A storm comes in one by one: the database is there for the requests as well.
            async with self._hub.signing_in:
                caller, expires_at = await self._desk.sessions.admit(token)
        except ExpiredToken:
            raise Over(Goodbye.EXPIRED) from None
        except Unauthenticated:
            raise Over(Goodbye.TOKEN) from None
        if caller.must_enrol:
            raise Over(Goodbye.FACTOR)
        if caller.grant is not None and caller.session_id is not None:
            self._desk.api_tokens.note_use(caller.session_id, self._call.address)
        return caller, expires_at

    # --- listening ---

    async def _receive(self) -> WSMessage:
        message = await self._ws.receive()
        if message.type in _ENDS:
            raise Over
        return message

    async def _next(self, client: Client) -> WSMessage:
        """Return the next message; who stays silent hears everything meanwhile."""
        if self._subscribed:
            return await self._receive()
        try:
            async with self._desk.clock.deadline(SILENCE_SECONDS):
                return await self._receive()
        except TimeoutError:
            await self._subscribe(client, Subscribe(type="subscribe"))
            return await self._receive()

    async def _listen(self, client: Client) -> None:
        for number in count(1):
            message = await self._next(client)
            if not number % YIELD_AFTER:
                # Messages that are here already would never let anybody else have a turn.
                await self._desk.clock.sleep(0)
            if not self._hub.allows(client):
                self._ignore(client)
            elif message.type is WSMsgType.TEXT:
                await self._answer(client, message.data)
            elif message.type is WSMsgType.PING:
                client.outbox.put(frame(0xA, message.data))
            elif message.type is WSMsgType.BINARY:
                _complain(client, "E_BAD_JSON")

    def _ignore(self, client: Client) -> None:
        self._ignored += 1
        if self._ignored > MOST_IGNORED:
            raise Over(Goodbye.FLOOD)
        now = self._desk.clock.monotonic()
        if now - self._complained_at >= 1.0:
            self._complained_at = now
            _complain(client, "E_RATE_LIMITED")

    async def _answer(self, client: Client, said: str) -> None:
        raw = said.encode()
        try:
            value = payload.loads(raw)
        except BadRequest:
            return _complain(client, "E_BAD_JSON")
        if not isinstance(value, dict):
            return _complain(client, "E_BAD_JSON")
        kind = value.get("type")
        model = MESSAGES.get(kind) if isinstance(kind, str) else None
        if model is None:
            return _complain(client, "E_UNKNOWN_TYPE")
        try:
            message = payload.parse(model, raw)
        except (BadRequest, Invalid) as exc:
            return _refuse(client, exc, **named(value))
        await self._do(client, message)

    async def _do(self, client: Client, message: Body) -> None:
        if isinstance(message, Ask):
            if self._chats is None:
                self._chats = await Chats(self._call, self._hub, client).open()
            if not self._chats.begin(message):
                _complain(client, "E_CHAT_RUNNING", id=message.id)
        elif isinstance(message, Cancel):
            if self._chats is not None:
                self._chats.cancel(message.id)
        elif isinstance(message, Subscribe):
            await self._subscribe(client, message)
        elif isinstance(message, Say):
            await self._say(client, message)
        elif isinstance(message, Auth):
            caller, expires_at = await self._authenticate(message.token)
            self._hub.renew(client, caller, expires_at)
            client.outbox.put(text({"type": "authenticated", "expires_at": expires_at}))
        else:
            client.outbox.put(_PONG)

    async def _subscribe(self, client: Client, wanted: Subscribe) -> None:
        most = self._hub.settings.tickets_per_socket
        if len(wanted.tickets or ()) > most:
            return _refuse(client, Invalid.field("tickets", f"must have at most {most} entries"))
        self._subscribed = True
        since = Position(**dict(wanted.since)) if wanted.since is not None else None
        try:
            await self._hub.subscribe(client, since, wanted.tickets)
        except NotFound:
            raise Over(Goodbye.TICKET) from None

    async def _say(self, client: Client, said: Say) -> None:
        try:
            taken = await self._hub.presence.say(client, said.ticket, said.state)
        except NotFound:
            return _complain(client, "E_TICKET_NOT_FOUND")
        if not taken:
            _complain(client, "E_RATE_LIMITED")


_ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


def _complain(client: Client, code: str, **more: Any) -> None:
    client.outbox.put(_error(code, **more) if more else _ERROR_FRAMES[code])


def _refuse(client: Client, error: DeskError, **more: Any) -> None:
    _complain(client, "E_VALIDATION_ERROR", details=error.details, **more)


def _do_nothing() -> None:
    pass


def _bound_send_buffer(request: web.BaseRequest) -> None:
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


ROUTES: list[Route] = [
    Route(
        id="R69",
        method="GET",
        path="/ws/{client_id}",
        handler=connect,
        who=Who.USER,
        tag="live",
        status=101,
        errors={"E_WEBSOCKET_ONLY": 400},
        rate="none",
        root=True,
        seconds=math.inf,
        query=AnyQuery,
        websocket=True,
    ),
]
