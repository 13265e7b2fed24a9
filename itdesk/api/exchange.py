"""What is known of one request on its way, and what is said of it afterwards.

Hides the request's id and trace, the headers that every answer carries, and the two places that
every request is counted in: the metrics and the access log.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import getrandbits
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import istr

from itdesk.api.origin import Origins, Peer
from itdesk.api.route import Route, Who
from itdesk.model import Caller
from itdesk.model.spans import Value
from itdesk.runtime import log, trace
from itdesk.runtime.tracing import Begun

if TYPE_CHECKING:
    from itdesk.desk import Desk

UNMATCHED = "unmatched"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

CORS_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
CORS_HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, Traceparent,"
    " X-Request-ID"
)
CORS_EXPOSED = (
    "Content-Disposition, ETag, Idempotency-Replayed, Link, Location, Retry-After,"
    " X-Request-ID, X-Total-Count"
)

# Header names made once: looking them up does not fold their case again.
_X_REQUEST_ID, _TRACE_PARENT = istr("X-Request-ID"), istr("Traceparent")
_ALWAYS = tuple(
    (istr(name), value)
    for name, value in {
        "Server": "itdesk",
        "X-Content-Type-Options": "nosniff",
    }.items()
)
_UNLESS_SET = tuple(
    (istr(name), value)
    for name, value in {
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
    }.items()
)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Exchange:
    """What becomes known of one request on its way, for its answer's headers and its log line."""

    request_id: str
    trace_id: str | None
    peer: Peer
    route: Route | None = None
    caller: Caller | None = None
    begun: web.StreamResponse | None = None
    span: Begun | None = None

    @property
    def template(self) -> str:
        """Return the path as the route declares it; all unknown paths share one."""
        return self.route.full_path if self.route else UNMATCHED


EXCHANGE = web.RequestKey("exchange", Exchange)


def new_request_id() -> str:
    """Return an id that tells requests apart; it needs not be hard to guess."""
    return f"{getrandbits(96):024x}"


class Exchanges:
    """Opens and closes the book on every request."""

    def __init__(self, desk: "Desk", origins: Origins) -> None:
        self._origins = origins
        self._tracing = desk.tracing
        self._histogram = desk.metrics.http_request_seconds
        self._observers: dict[tuple[str, str, int], Callable[[float], None]] = {}
        self._vary = origins.any_listed
        self.draining = False

    def open(self, request: web.BaseRequest) -> Exchange:
        """Give the request its id, its trace and its client, for the answer and all log lines."""
        headers = request.headers
        wanted = headers.get(_X_REQUEST_ID)
        sane = wanted is not None and _REQUEST_ID.fullmatch(wanted)
        request_id = wanted if sane and wanted else new_request_id()
        parent = None
        if _TRACE_PARENT in headers:
            parent = trace.understood(headers.getall(_TRACE_PARENT))
        span = None
        if self._tracing.on:
            span = self._tracing.begin(parent)
            parent = span.traceparent
        trace_id = trace.id_of(parent) if parent else None
        exchange = Exchange(request_id, trace_id, self._origins.peer(request), span=span)
        request[EXCHANGE] = exchange
        log.bind(request_id=request_id)
        if parent:
            trace.begin(parent)
        return exchange

    def decorate(
        self, request: web.BaseRequest, response: web.StreamResponse, exchange: Exchange
    ) -> None:
        """Add the headers that every answer carries."""
        headers = response.headers
        headers[_X_REQUEST_ID] = exchange.request_id
        for name, value in _ALWAYS:
            headers[name] = value
        for name, value in _UNLESS_SET:
            headers.setdefault(name, value)
        if self._vary:
            headers.add("Vary", "Origin")
            origin = request.headers.get("Origin")
            if origin is not None and self._origins.may_read(origin):
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Allow-Credentials"] = "true"
                headers["Access-Control-Expose-Headers"] = CORS_EXPOSED
        if self.draining and response.status != 101:
            response.force_close()
            headers["Connection"] = "close"

    def close(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        status: int,
        size: int,
        seconds: float,
    ) -> None:
        """Count the request and write its line into the access log."""
        method, route, template = request.method, exchange.route, exchange.template
        key = (method if method in METHODS else "OTHER", template, status)
        observe = self._observers.get(key)
        if observe is None:
            child = self._histogram.labels(key[0], template, str(status))
            observe = self._observers[key] = child.observe
        if status != 101:
            # How long a websocket stayed open is not how long an answer took.
            observe(seconds)
        # The query may hold codes, and a signed path is a key by itself: neither is written down.
        secret = route is not None and route.who is Who.SIGNATURE
        caller = exchange.caller
        path = template if secret else _printable(request.rel_url.raw_path)
        address, headers = exchange.peer.address, request.headers
        agent = log.redacted_often(_printable(headers.get(hdrs.USER_AGENT, "")[:200]))
        line = {
            "request_id": exchange.request_id,
            "method": method,
            "path": path,
            "route": template,
            "status": status,
            "seconds": round(seconds, 6),
            "bytes": size,
            "address": address,
            "user": caller.user_id if caller is not None else None,
            "agent": agent,
        }
        theirs = f"{method} {path} {address}"
        if _X_REQUEST_ID in headers:
            theirs += f" {exchange.request_id}"
        if exchange.trace_id:
            line["trace_id"] = exchange.trace_id
            theirs += f" {exchange.trace_id}"
        log.access_line(line, theirs)
        if exchange.span is not None and status != 101:
            said = _said(key, exchange)
            name = f"{key[0]} {template}"
            self._tracing.end(exchange.span, name, "server", said, failed=status >= 500)


def _said(key: tuple[str, str, int], exchange: Exchange) -> dict[str, Value]:
    """Return what a span says of a request: the route, never the path, the query or who asks."""
    method, template, status = key
    return {
        "http.request.method": method,
        "http.route": template,
        "http.response.status_code": status,
        "itdesk.request_id": exchange.request_id,
    }


def _printable(text: str) -> str:
    return text if text.isascii() else text.encode("ascii", "backslashreplace").decode()
