"""The way of every request: identified, matched, authenticated, authorised, validated, answered.

The dispatcher does it all, and whatever goes wrong on the way becomes the one error body. The
handler behind it is three lines. It stands right behind the connection: an aiohttp application
around it would match every request once more.
"""

import asyncio
import hmac
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiohttp import hdrs, web
from multidict import CIMultiDict

from itdesk.api import idempotency, payload, render
from itdesk.api.cookies import Cookies, documented_cookie
from itdesk.api.deadlines import Deadline, Deadlines
from itdesk.api.exchange import (
    CORS_HEADERS,
    CORS_METHODS,
    EXCHANGE,
    Exchange,
    Exchanges,
    new_request_id,
)
from itdesk.api.failures import CRASHED, explained
from itdesk.api.matching import Router
from itdesk.api.openapi import Document
from itdesk.api.origin import Origins, Peer, address_class, offered_token
from itdesk.api.proofs import check_proof
from itdesk.api.route import Call, Reply, Route, Who
from itdesk.desk.limits import CLASSES
from itdesk.errors import (
    BadRequest,
    DeskError,
    InvalidToken,
    Unauthenticated,
)
from itdesk.model import Caller, Role
from itdesk.runtime import log
from itdesk.store.failures import Contention

if TYPE_CHECKING:
    from itdesk.actors.hub import Hub
    from itdesk.desk import Desk

ATTEMPTS = 4
# Nobody: the id belongs to no user, so that even a scoped loader shows nothing.
NOBODY = UUID(int=0)

_log = log.get_logger("api")


class Dispatcher:
    """Answers requests by the table of routes."""

    def __init__(self, desk: "Desk", routes: Iterable[Route], hub: "Hub | None" = None) -> None:
        routes = tuple(routes)
        self.document = Document(routes, documented_cookie(desk.settings))
        self.hub = hub
        self._request = _requests_of(self)
        self._desk = desk
        self._settings = desk.settings
        self.serve(routes)
        self._origins = Origins(desk.settings)
        token = desk.settings.metrics.token
        self._operator_token = token.get_secret_value() if token else None
        self._cookies = Cookies(desk.settings.auth)
        self._limits = desk.limits
        self._deadlines = Deadlines(desk.clock)
        self.exchanges = Exchanges(desk, self._origins)

    def serve(self, routes: tuple[Route, ...]) -> None:
        """Answer by this table from now on; ValueError, and the one from before, if it is wrong."""
        for route in routes:
            if route.idempotent and route.who.role is None:
                # All who are not signed in would share their keys, and so their answers.
                raise ValueError(f"{route.method} {route.full_path}: idempotent needs a sign-in")
            if route.rate not in CLASSES:
                known = ", ".join(sorted(CLASSES))
                raise ValueError(f"{route.method} {route.full_path}: rate is one of {known}")
        router = Router(routes)
        queries = {id(route): payload.QueryReader(route.query) for route in routes}
        self._router, self._queries = router, queries
        self.document.describe(routes)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; every failure is an answer as well."""
        clock = self._desk.clock
        started = clock.monotonic()
        exchange = self.exchanges.open(request)
        status, size = 499, 0
        try:
            response = await self._answer(request, exchange, started)
            status, size = response.status, response.content_length or 0
            return response
        finally:
            self.exchanges.close(request, exchange, status, size, clock.monotonic() - started)
            # A websocket keeps its request: both would wait for the garbage collection.
            exchange.begun = None

    def is_websocket(self, request: web.BaseRequest) -> bool:
        """Return whether a request has become a websocket."""
        exchange = request.get(EXCHANGE)
        return exchange is not None and isinstance(exchange.begun, web.WebSocketResponse)

    def unreadable(
        self, request: web.BaseRequest, status: int, exc: BaseException | None = None
    ) -> web.Response:
        """Answer what never became a request, or what even the dispatcher failed on."""
        peer = Peer(self._origins.address(request), "")
        exchange = request.get(EXCHANGE) or Exchange(new_request_id(), None, peer)
        failure: DeskError = CRASHED if status >= 500 else _UNREADABLE
        if exc is not None:
            _log.error("answering failed", request_id=exchange.request_id, exc_info=exc)
        response = render.failure(failure, exchange.request_id)
        self.exchanges.decorate(request, response, exchange)
        self.exchanges.close(request, exchange, response.status, response.content_length or 0, 0.0)
        return response

    def request(self, *parts: Any) -> web.BaseRequest:
        """Return a request of ours, of the parts that aiohttp makes one from."""
        loop = asyncio.get_running_loop()
        return self._request(*parts, loop, client_max_size=self._settings.server.max_body)

    def finish(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add the headers that every answer carries, just before they are sent."""
        exchange = request.get(EXCHANGE)
        # What never became a request has its answer finished where it is made.
        if exchange is not None:
            exchange.begun = response
            self.exchanges.decorate(request, response, exchange)

    def deadline(self, route: Route, started: float) -> Deadline:
        """Lend the time that a call of this route has since it started to a block."""
        return self._deadlines.until(
            started + (route.seconds or self._settings.server.request_seconds)
        )

    async def _answer(
        self, request: web.BaseRequest, exchange: Exchange, started: float
    ) -> web.StreamResponse:
        try:
            if request.method == "OPTIONS":
                return self._options(request)
            route, path = self._router.match(request.method, request.rel_url.raw_path)
            exchange.route = route
            with self.deadline(route, started):
                return await self._serve(request, route, path, exchange)
        except Exception as exc:  # noqa: BLE001 - the last fence before the client
            if isinstance(exc, web.HTTPException) and exc.status < 400 and exchange.begun is None:
                return web.Response(status=exc.status, headers=exc.headers)
            if isinstance(exc, ConnectionError) and request.transport is None:
                return web.Response(status=499)
            failure = explained(exc, exchange.template)
        return self._fail(request, exchange, failure)

    def _fail(
        self, request: web.BaseRequest, exchange: Exchange, failure: DeskError
    ) -> web.StreamResponse:
        if exchange.begun is not None:
            # Half an answer is out: only a broken connection tells the client that it is not all.
            if request.transport is not None:
                request.transport.abort()
            return exchange.begun
        response = render.failure(failure, exchange.request_id)
        if not request.content.is_eof():
            # Whatever else the client is sending, nobody will read it.
            response.force_close()
        return response

    async def _serve(
        self, request: web.BaseRequest, route: Route, path: Mapping[str, str], exchange: Exchange
    ) -> web.StreamResponse:
        # Before anything is waited for: meanwhile the table may become another one.
        reader = self._queries[id(route)]
        caller = await self._authorised(request, route, exchange)
        query = reader.read(request.rel_url.raw_query_string)
        call = Call(
            request=request,
            desk=self._desk,
            dispatcher=self,
            caller=caller,
            path=path,
            query=query,
            base_url=exchange.peer.base_url,
            address=exchange.peer.address,
            secure=exchange.peer.secure,
            route=route,
        )
        payload.check_encoding(request)
        if route.body_media == render.JSON:
            payload.check_length(request, self._settings.server.max_body)
        if hdrs.EXPECT in request.headers:
            await _continue(request)
        raw = b""
        if route.body is not None and route.body_media == render.JSON:
            raw = await self._read_json(request, route, call)
        mark = None
        if route.idempotent and "Idempotency-Key" in request.headers and _is_json(route):
            mark = idempotency.fingerprint(call, raw)
        reply = await self._contended(call, route, mark, exchange)
        if isinstance(reply, Reply):
            return render.response(reply, route.response_media)
        return reply

    async def _read_json(self, request: web.BaseRequest, route: Route, call: Call) -> bytes:
        assert route.body is not None
        raw = await payload.read_body(request, self._settings.server.max_body)
        if not raw and route.body_optional:
            return raw
        if not raw:
            raise BadRequest("A JSON body is required.", code="E_BAD_JSON")
        payload.check_json_type(request)
        call.body = payload.parse(route.body, raw)
        return raw

    async def _contended(
        self, call: Call, route: Route, mark: bytes | None, exchange: Exchange
    ) -> Reply | web.StreamResponse:
        """Run a handler, again when another transaction was in its way: its own was undone."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if mark is None:
                    return await route.handler(call)
                return await idempotency.once(call, mark, partial(route.handler, call))
            except Contention:
                if attempt == ATTEMPTS or exchange.begun is not None or not _is_json(route):
                    raise
                await self._desk.clock.sleep(random.uniform(0.005, 0.02) * attempt)
        raise AssertionError("unreachable")

    async def _authorised(
        self, request: web.BaseRequest, route: Route, exchange: Exchange
    ) -> Caller:
        if route.websocket:
            cookie = self._cookies.access(request, exchange.peer)
            by_cookie = cookie is not None and offered_token(request) is None
            self._origins.check_upgrade(request, exchange.peer, by_cookie=by_cookie)
        if route.who.role is None or route.websocket:
            if route.who is Who.OPERATOR:
                self._check_operator(request)
            elif route.who is Who.PUBLIC:
                self._origins.check_page(request, exchange.peer)
            await self._limits.admit(route.rate, address_class(exchange.peer.address))
            return Caller(NOBODY, "anonymous", Role.USER, request_id=exchange.request_id)
        try:
            known = await self._desk.sessions.authenticate(self._token(request, exchange.peer))
        except Unauthenticated:
            # Who tries tokens is nobody in particular, and counts as such.
            await self._limits.admit(route.rate, address_class(exchange.peer.address))
            raise
        caller = Caller(
            known.user_id,
            known.name,
            known.role,
            known.source,
            known.email,
            known.session_id,
            exchange.request_id,
            known.cause_id,
            known.grant,
            known.must_enrol,
        )
        await self.admit(route, caller, exchange)
        return caller

    async def admit(self, route: Route, caller: Caller, exchange: Exchange) -> None:
        """Count a call of somebody who is signed in; raise unless they may call this route now."""
        user_id, least = caller.user_id, route.who.role
        assert user_id is not None
        assert least is not None
        exchange.caller = caller
        if not self._limits.admits(route.rate, user_id):
            await self._limits.admit(route.rate, user_id)
        check_proof(route, caller)
        if caller.grant is not None and caller.session_id is not None:
            self._desk.api_tokens.note_use(caller.session_id, exchange.peer.address)
        caller.require(least)

    def _token(self, request: web.BaseRequest, peer: Peer) -> str:
        """Return the access token: the bearer token if there is one, else the cookie's."""
        header = request.headers.get(hdrs.AUTHORIZATION)
        if header is not None:
            return _bearer(header)
        token = self._cookies.access(request, peer)
        if token is None:
            raise Unauthenticated("Sign in first: send Authorization: Bearer <access token>.")
        self._origins.check_cookie_use(request, peer)
        return token

    def _check_operator(self, request: web.BaseRequest) -> None:
        if self._operator_token is None:
            return
        header = request.headers.get(hdrs.AUTHORIZATION)
        if header is None:
            raise Unauthenticated("Send Authorization: Bearer <metrics.token>.")
        given = _bearer(header).encode(errors="replace")
        if not hmac.compare_digest(given, self._operator_token.encode()):
            raise InvalidToken("This is not the token of the option metrics.token.")

    def _options(self, request: web.BaseRequest) -> web.Response:
        """Answer what is allowed at a path; browsers ask before they send credentials."""
        node, _ = self._router.find(request.rel_url.raw_path)
        headers = CIMultiDict({"Allow": ", ".join(node.allow)})
        origin = request.headers.get("Origin")
        asked = request.headers.get("Access-Control-Request-Method")
        if origin is not None and asked is not None and self._origins.may_read(origin):
            headers["Access-Control-Allow-Methods"] = CORS_METHODS
            headers["Access-Control-Allow-Headers"] = CORS_HEADERS
            headers["Access-Control-Max-Age"] = "600"
        return web.Response(status=204, headers=headers)


def _requests_of(dispatcher: Dispatcher) -> Callable[..., web.BaseRequest]:
    """Return the class of requests whose answers are finished by this dispatcher."""

    class Request(web.BaseRequest):
        async def _prepare_hook(self, response: web.StreamResponse) -> None:
            # The one moment that every answer passes, also one that its handler sends by itself.
            dispatcher.finish(self, response)

    return Request


def _is_json(route: Route) -> bool:
    """Return whether a route's body was read before its handler, which may then run again."""
    return route.body_media == render.JSON and route.seconds is None


def _bearer(header: str) -> str:
    scheme, _, token = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("Sign in with Authorization: Bearer <access token>.")
    return token.strip()


async def _continue(request: web.BaseRequest) -> None:
    """Tell a client that waits for leave to send its body that the body is wanted."""
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise ExpectationFailed("Only Expect: 100-continue is understood.")
    if request.version >= (1, 1) and not request.content.is_eof():
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


_UNREADABLE = BadRequest("The request line, a header or the framing of the body cannot be read.")


class ExpectationFailed(BadRequest):
    """The client expects what nobody here can do."""

    status, default_code = 417, "E_EXPECTATION_FAILED"
