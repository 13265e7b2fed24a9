"""The way of a request: what every answer carries, and that every failure is the one error body."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import uuid4

import pytest
import pytest_asyncio
from aiohttp import web

from itdesk.api import docs, system
from itdesk.api.dispatch import Dispatcher
from itdesk.api.matching import Router
from itdesk.api.render import JSON
from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.errors import (
    Conflict,
    DeskError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    PreconditionFailed,
    RateLimited,
    StorageFull,
    TooLarge,
    Unavailable,
    UpstreamFailed,
)
from itdesk.model import Role
from itdesk.runtime import log
from itdesk.store.failures import Contention
from tests.support.small_desk import Answer, Server, SmallDesk, serving

LISTED = "https://ui.example.org"
SETTINGS: dict[str, Any] = {
    "server": {
        "cors_origins": [LISTED],
        "trusted_proxies": ["127.0.0.1", "10.0.0.0/8"],
        "request_seconds": 1,
        "max_body": 10_000,
    }
}

ERRORS: dict[str, DeskError] = {
    "forbidden": Forbidden("Not you."),
    "missing": NotFound.of("ticket"),
    "conflict": Conflict("Not now.", retry_after=3),
    "stale": PreconditionFailed("Look again.", details={"ticket": {"version": 3}}),
    "large": TooLarge("Too much."),
    "limited": RateLimited("Slowly.", retry_after=17),
    "upstream": UpstreamFailed("They are out."),
    "unavailable": Unavailable("We are out."),
    "full": StorageFull("No room."),
}


class Note(Body):
    """Anything."""

    title: str


async def show(call: Call) -> Reply:
    """Show how the call was understood."""
    return Reply(
        {
            "path": dict(call.path),
            "user": call.caller.user_id,
            "name": call.caller.name,
            "request_id": call.caller.request_id,
            "base_url": call.base_url,
            "address": call.address,
            "who": call.route and call.route.id,
        }
    )


async def fail(call: Call) -> Reply:
    """Fail in a given way."""
    raise ERRORS[call.path["how"]]


async def crash(call: Call) -> Reply:
    """Fail in a way that nobody thought of."""
    raise ValueError("SELECT secret FROM /etc/passwd")


async def wait_in_vain(call: Call) -> Reply:
    """Let the time of something else run out and forget to say what that means."""
    async with call.desk.clock.deadline(0):
        await asyncio.Event().wait()
    return Reply()


async def hang(call: Call) -> Reply:
    """Take longer than anybody waits."""
    await asyncio.Event().wait()
    return Reply()


async def hang_inside(call: Call) -> Reply:
    """Take longer than anybody waits, behind a deadline of one's own and a tidy-up."""
    try:
        async with asyncio.timeout(60):
            await asyncio.Event().wait()
    finally:
        await call.desk.clock.sleep(0)
    return Reply()


async def stream(call: Call) -> web.StreamResponse:
    """Fail in the middle of an answer."""
    response = web.StreamResponse()
    await response.prepare(call.request)
    await response.write(b"half an")
    raise ValueError("torn")


async def redirect(call: Call) -> Reply:
    """Send the client elsewhere."""
    return Reply(None, 302, {"Location": "https://example.org/"})


async def form(call: Call) -> Reply:
    """Read a form."""
    part = await (await call.request.multipart()).next()
    return Reply({"name": part and part.headers})


async def upload(call: Call) -> Reply:
    """Read a body of another kind."""
    return Reply({"size": len(await call.request.read())})


class Contended:
    """Loses a given number of races before it wins."""

    def __init__(self) -> None:
        self.losses = 0
        self.runs = 0

    async def __call__(self, call: Call) -> Reply:
        self.runs += 1
        if self.runs <= self.losses:
            raise Contention("Another was faster.", retry_after=1)
        return Reply({"runs": self.runs})


CONTENDED = Contended()


async def contended(call: Call) -> Reply:
    """Win at last, or not."""
    return await CONTENDED(call)


def _route(method: str, path: str, handler: Any, who: Who = Who.USER, **more: Any) -> Route:
    return Route(id="T", method=method, path=path, handler=handler, who=who, tag="t", **more)


ROUTES = [
    *system.ROUTES,
    *docs.ROUTES,
    _route("GET", "/users", show, Who.ADMIN),
    _route("GET", "/users/{id}", show, Who.SELF),
    _route("PATCH", "/users/{id}", show, Who.SELF, body=Note),
    _route("GET", "/auth/me", show),
    _route("POST", "/auth/login", show, Who.PUBLIC, body=Note),
    _route("GET", "/assignees", show),
    _route("GET", "/tickets", show),
    _route("POST", "/tickets", show, body=Note),
    _route("GET", "/tickets/my", show),
    _route("GET", "/tickets/{ticket}", show, Who.OWN),
    _route("GET", "/tickets/{ticket}/history", show, Who.OWN),
    _route("POST", "/tickets/{ticket}/attachments", upload, body_media="multipart/form-data"),
    _route("POST", "/tickets/{ticket}/attachments/presign", show, body=Note),
    _route("GET", "/tickets/{ticket}/attachments/{id}/download", show),
    _route("GET", "/attachments/{id}/content", show),
    _route("DELETE", "/attachments/{id}", show),
    _route("GET", "/ai", show, Who.AGENT),
    _route("GET", "/reports", show, Who.MANAGER),
    _route("POST", "/form", form, Who.PUBLIC, body_media="multipart/form-data"),
    _route("GET", "/fail/{how}", fail, Who.PUBLIC),
    _route("GET", "/crash", crash, Who.PUBLIC),
    _route("GET", "/wait-in-vain", wait_in_vain, Who.PUBLIC),
    _route("GET", "/hang", hang, Who.PUBLIC),
    _route("GET", "/hang-inside", hang_inside, Who.PUBLIC),
    _route("GET", "/patient", hang, Who.PUBLIC, seconds=1.5),
    _route("GET", "/stream", stream, Who.PUBLIC),
    _route("GET", "/redirect", redirect, Who.PUBLIC, status=302),
    _route("GET", "/contended", contended, Who.PUBLIC),
    _route("GET", "/storage/{signed}", show, Who.SIGNATURE),
]


@pytest_asyncio.fixture(name="server")
async def _server() -> AsyncIterator[Server]:
    CONTENDED.__init__()  # type: ignore[misc]
    async with serving(SmallDesk(**SETTINGS), ROUTES) as server:
        yield server


def check_error(answer: Answer, status: int, code: str, kind: str) -> dict[str, Any]:
    """Hold an answer against the one error body, and return that body."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == JSON
    body: dict[str, Any] = answer.json()
    assert list(body) == ["error", "message", "error_code", "details", "request_id"]
    assert (body["error"], body["error_code"]) == (code, kind)
    assert body["message"] and isinstance(body["details"], dict)
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert answer.headers["Cache-Control"] == "no-store"
    for trace in (b"Traceback", b"SELECT", b"/etc", b".py", b"aiohttp"):
        assert trace not in answer.raw
    return body


# --- the one error body ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "code", "kind"),
    [
        ("forbidden", 403, "E_AUTH_INSUFFICIENT_PERMISSIONS", "FORBIDDEN"),
        ("missing", 404, "E_TICKET_NOT_FOUND", "NOT_FOUND"),
        ("conflict", 409, "E_CONFLICT", "CONFLICT"),
        ("stale", 412, "E_PRECONDITION_FAILED", "PRECONDITION_FAILED"),
        ("large", 413, "E_TOO_LARGE", "TOO_LARGE"),
        ("limited", 429, "E_RATE_LIMITED", "RATE_LIMIT"),
        ("upstream", 502, "E_UPSTREAM", "UPSTREAM"),
        ("unavailable", 503, "E_UNAVAILABLE", "UNAVAILABLE"),
        ("full", 507, "E_STORAGE_FULL", "UNAVAILABLE"),
    ],
)
async def test_what_a_handler_raises(
    server: Server, how: str, status: int, code: str, kind: str
) -> None:
    answer = await server.ask("GET", f"/api/v1/fail/{how}")
    body = check_error(answer, status, code, kind)
    error = ERRORS[how]
    assert body["details"] == error.details
    after = None if error.retry_after is None else str(error.retry_after)
    assert answer.headers.get("Retry-After") == after


async def test_crash_is_a_bare_500_and_one_full_log(server: Server) -> None:
    answer = await server.ask("GET", "/api/v1/crash")
    body = check_error(answer, 500, "E_INTERNAL", "INTERNAL")
    assert body["details"] == {}
    crashes = [line for line in server.lines() if line["event"] == "request crashed"]
    assert len(crashes) == 1
    assert crashes[0]["request_id"] == body["request_id"]
    assert "SELECT secret" in str(crashes[0])


async def test_unknown_paths_are_404(server: Server) -> None:
    for path in ("/", "/nope", "/api/v1", "/api/v1/nope/deeper", "/api/v2/tickets", "/API/V1/ping"):
        check_error(await server.ask("GET", path), 404, "E_NOT_FOUND", "NOT_FOUND")


async def test_wrong_method_is_405_with_allow(server: Server) -> None:
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        answer = await server.ask(method, "/api/v1/tickets")
        check_error(answer, 405, "E_METHOD_NOT_ALLOWED", "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("path", ["/api/v1/hang", "/api/v1/hang-inside"])
async def test_deadline_is_503(server: Server, path: str) -> None:
    answer = await server.ask("GET", path)
    check_error(answer, 503, "E_TIMEOUT", "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "5"
    assert (await server.ask("GET", "/ping")).status == 200


async def test_only_its_own_deadline_makes_a_call_too_long(server: Server) -> None:
    answer = await server.ask("GET", "/api/v1/wait-in-vain")
    check_error(answer, 500, "E_INTERNAL", "INTERNAL")
    assert "request took too long" not in {line["event"] for line in server.lines()}


async def test_route_has_a_deadline_of_its_own(server: Server) -> None:
    began = server.desk.clock.monotonic()
    check_error(await server.ask("GET", "/api/v1/patient"), 503, "E_TIMEOUT", "UNAVAILABLE")
    assert server.desk.clock.monotonic() - began >= 1.5


@pytest.mark.parametrize(
    "text",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /ping HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_unreadable_request_is_the_one_error_body(server: Server, text: bytes) -> None:
    raw = await server.raw(text)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[0].split(b" ", 1)[1] == b"400 Bad Request"
    answer = Answer(400, {}, body)
    assert answer.json()["error"] == "E_BAD_REQUEST"
    assert answer.json()["request_id"].encode() in head
    assert b"Server: itdesk\r\n" in head and b"nosniff" in head
    assert b"aiohttp" not in raw and b"GARBAGE" not in raw


@pytest.mark.parametrize("at_once", [True, False])
async def test_broken_chunks_are_400(server: Server, at_once: bool) -> None:
    head = (
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head + b"ZZ\r\n" if at_once else head)
    if not at_once:
        await server.desk.clock.sleep(0.05)
        writer.write(b"ZZ\r\n")
    raw = await reader.read()
    writer.close()
    assert raw.split(b" ")[1] == b"400"
    assert raw.count(b'"error":"E_BAD_REQUEST"') == 1


async def test_compressed_body_is_415_on_every_route(server: Server) -> None:
    headers = {"Content-Encoding": "gzip"}
    for path in ("/api/v1/form", "/api/v1/auth/login"):
        answer = await server.ask("POST", path, data=b"\x1f\x8b", headers=headers)
        check_error(answer, 415, "E_UNSUPPORTED_MEDIA_TYPE", "UNSUPPORTED_MEDIA")


async def test_broken_form_is_400(server: Server) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="\x16"\r\n\r\na\r\n--x--\r\n'
    answer = await server.ask("POST", "/api/v1/form", data=body, headers=headers)
    check_error(answer, 400, "E_BAD_REQUEST", "BAD_REQUEST")


async def test_answer_that_fails_half_way_is_torn(server: Server) -> None:
    raw = await server.raw(b"GET /api/v1/stream HTTP/1.1\r\nHost: a\r\n\r\n")
    assert raw.startswith(b"HTTP/1.1 200 OK") or raw == b""
    assert b"0\r\n\r\n" not in raw and b"E_INTERNAL" not in raw
    assert [line["event"] for line in server.lines()].count("request crashed") == 1


async def test_redirect_has_no_body(server: Server) -> None:
    answer = await server.ask("GET", "/api/v1/redirect")
    assert (answer.status, answer.raw) == (302, b"")
    assert answer.headers["Location"] == "https://example.org/"


async def test_oversize_is_413_also_where_no_body_is_read(server: Server) -> None:
    answer = await server.ask("POST", "/api/v1/tickets", data=b" " * 500_000, role=Role.USER)
    check_error(answer, 413, "E_TOO_LARGE", "TOO_LARGE")


async def test_oversize_that_a_handler_reads_is_413(server: Server) -> None:
    answer = await server.ask(
        "POST", "/api/v1/tickets/1/attachments", data=b" " * 500_000, role=Role.USER
    )
    check_error(answer, 413, "E_TOO_LARGE", "TOO_LARGE")


# --- what every answer carries ---------------------------------------------------------------


@pytest.mark.parametrize("path", ["/ping", "/nope", "/api/v1/crash", "/docs", "/favicon.ico"])
async def test_every_answer_carries_these_headers(server: Server, path: str) -> None:
    headers = (await server.ask("GET", path)).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Request-ID"]
    assert headers["Server"] == "itdesk"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


async def test_sane_request_id_is_kept_and_others_are_replaced(server: Server) -> None:
    answer = await server.ask("GET", "/ping", headers={"X-Request-ID": "abc.DEF-1_2"})
    assert answer.headers["X-Request-ID"] == "abc.DEF-1_2"
    for bad in ("", "a b", 'x"}', "x" * 65, "\u00e9", "<script>"):
        answer = await server.ask("GET", "/ping", headers={"X-Request-ID": bad})
        assert answer.headers["X-Request-ID"] not in ("", bad)
    ids = {(await server.ask("GET", "/ping")).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5


async def test_handler_and_caller_know_the_request_id(server: Server) -> None:
    headers = {"X-Request-ID": "mine"}
    answer = await server.ask("GET", "/api/v1/auth/me", headers=headers, role=Role.USER)
    assert answer.json()["request_id"] == "mine"


async def test_trace_of_the_caller_is_in_every_line(server: Server) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    await server.ask("GET", "/api/v1/crash", headers=headers)
    lines = [line for line in server.lines() if line.get("trace_id")]
    assert {line["event"] for line in lines} == {"request", "request crashed"}
    assert {line["trace_id"] for line in lines} == {trace}
    good = f"00-{trace}-b7ad6b7169203331-01"
    for bad in (
        "x", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{trace}-{'0' * 16}-01", f"ff{good[2:]}",
        f"{good}-more", f"{good}0", good.upper(), good[:-3], good[:-1], f" {good}x",
    ):  # fmt: skip
        await server.ask("GET", "/ping", headers={"traceparent": bad})
    twice = f"traceparent: {good}\r\ntraceparent: {good.replace('b7', 'c7')}\r\n"
    await server.raw(f"GET /ping HTTP/1.1\r\nHost: x\r\n{twice}Connection: close\r\n\r\n".encode())
    assert [line for line in server.lines() if line.get("trace_id")] == lines


async def test_a_trace_ends_with_its_request(server: Server) -> None:
    """S2-58: the next request on the same connection is not part of it; a later version is read."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    first = f"traceparent: 01-{trace}-b7ad6b7169203331-01-more\r\n"
    await server.raw(
        f"GET /ping HTTP/1.1\r\nHost: x\r\n{first}\r\n"
        "GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    traces = [line.get("trace_id") for line in server.lines() if line["event"] == "request"]
    assert traces[-2:] == [trace, None]


# --- matching --------------------------------------------------------------------------------


async def test_slash_at_the_end_is_optional(server: Server) -> None:
    for path in ("/ping/", "/api/v1/tickets/", "/api/v1/tickets/7/history/"):
        assert (await server.ask("GET", path, role=Role.USER)).status == 200


async def test_head_is_get_without_the_body(server: Server) -> None:
    answer = await server.ask("HEAD", "/ping")
    assert (answer.status, answer.raw, answer.headers["Content-Length"]) == (200, b"", "15")
    answer = await server.ask("HEAD", "/favicon.ico")
    assert (answer.status, answer.raw) == (200, b"")
    assert (await server.ask("HEAD", "/nope")).status == 404


def _path_of(path: str) -> Any:
    return dict(Router(ROUTES).match("GET", path)[1])


def test_segments_are_decoded_once_and_never_split() -> None:
    assert _path_of("/api/v1/tickets/a%2Fb") == {"ticket": "a/b"}
    assert _path_of("/api/v1/tickets/a%252Fb") == {"ticket": "a%2Fb"}
    assert _path_of("/api/v1/tickets/TSK%2D1") == {"ticket": "TSK-1"}
    assert _path_of("/api/v1/ticket%73/7") == {"ticket": "7"}
    assert _path_of("/api/v1/tickets/my") == {}
    assert _path_of("/api/v1/tickets/m%79") == {}
    assert _path_of("/api/v1/tickets/my/history") == {"ticket": "my"}
    assert _path_of("/api/v1/tickets/a+b;c=d") == {"ticket": "a+b;c=d"}


@pytest.mark.parametrize(
    "path",
    [
        "",
        "*",
        "//",
        "//ping",
        "/ping//",
        "/api//v1/tickets",
        "/api/v1/tickets/../users",
        "/api/v1/tickets/%2e%2e",
        "/api/v1/tickets/.",
        "/api/v1%2Ftickets",
        "/api/v1/tickets/%00",
        "/api/v1/tickets/a%0d%0ab",
        "/api/v1/tickets/%ff",
        "/api/v1/tickets/a%ff",
        "/api/v1/tickets/%ed%a0%80",
        "/api/v1/tickets/\udcff",
        "/api/v1/tickets/" + "x" * 5000,
        "/a" * 1000,
        "/api/v1/tickets/%",
    ],
)
def test_paths_that_lead_nowhere(path: str) -> None:
    if path.endswith("%"):
        assert _path_of(path) == {"ticket": "%"}
        return
    with pytest.raises(NotFound):
        Router(ROUTES).match("GET", path)


async def test_raw_targets_never_crash(server: Server) -> None:
    for target in (
        b"/api/v1/tickets/%",
        b"/api/v1/tickets/\xff\xfe",
        b"*",
        b"http://b/ping",
        b"/%zz",
    ):
        raw = await server.raw(
            b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )
        assert raw.split(b" ")[1] in (b"200", b"400", b"401", b"404"), target


def test_a_method_is_declared_once() -> None:
    twice = [_route("GET", "/x/{a}", show), _route("GET", "/x/{b}", show)]
    with pytest.raises(ValueError, match="declared"):
        Router(twice)


def test_answers_are_only_kept_for_somebody() -> None:
    route = _route("POST", "/x", show, Who.PUBLIC, idempotent=True)
    with pytest.raises(ValueError, match="sign-in"):
        Dispatcher(cast(Any, SmallDesk()), (route,))


def test_unmatched_method_names_what_is_possible() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        Router(ROUTES).match("POST", "/api/v1/attachments/7")
    assert caught.value.details == {"allow": ["DELETE", "OPTIONS"]}


# --- aliases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "alias", "canonical"),
    [
        ("GET", "/api/auth/me", "/api/v1/auth/me"),
        ("GET", "/api/users", "/api/v1/users"),
        ("GET", "/api/users/", "/api/v1/users/"),
        ("GET", "/api/users/7", "/api/v1/users/7"),
        ("GET", "/api/v1/users/me", "/api/v1/auth/me"),
        ("GET", "/api/users/me", "/api/v1/auth/me"),
        ("GET", "/api/v1/users/assignees", "/api/v1/assignees"),
        ("GET", "/api/users/assignees", "/api/v1/assignees"),
        ("GET", "/api/assignees", "/api/v1/assignees"),
        ("GET", "/api/ai", "/api/v1/ai"),
        ("GET", "/api/tickets/my", "/api/v1/tickets/my"),
        ("GET", "/api/v1/issues", "/api/v1/tickets"),
        ("GET", "/api/v1/issues/7/history", "/api/v1/tickets/7/history"),
        ("GET", "/api/v1/files/9", "/api/v1/attachments/9/content"),
        ("DELETE", "/api/v1/files/9", "/api/v1/attachments/9"),
        ("POST", "/api/v1/files/upload/7", "/api/v1/tickets/7/attachments"),
        ("POST", "/tickets/7/attachments/presign", "/api/v1/tickets/7/attachments/presign"),
        ("GET", "/tickets/7/attachments/9/download", "/api/v1/tickets/7/attachments/9/download"),
    ],
)
def test_alias_is_its_canonical_path(method: str, alias: str, canonical: str) -> None:
    router = Router(ROUTES)
    assert router.match(method, alias) == router.match(method, canonical)


async def test_alias_gives_the_same_answer(server: Server) -> None:
    token = server.desk.accounts.add(Role.ADMIN)
    headers = {"Authorization": f"Bearer {token}", "X-Request-ID": "same"}
    for alias, canonical in (("/api/users/me", "/api/v1/auth/me"), ("/api/users", "/api/v1/users")):
        answers = [await server.ask("GET", path, headers=headers) for path in (alias, canonical)]
        assert answers[0].status == answers[1].status == 200
        assert answers[0].raw == answers[1].raw
        assert (await server.ask("GET", alias)).status == 401


async def test_documentation_is_not_eaten_by_an_alias(server: Server) -> None:
    assert (await server.ask("GET", "/api/docs")).status == 200
    for path in ("/api/projects", "/api/ping", "/tickets", "/tickets/7", "/files/9"):
        assert (await server.ask("GET", path)).status == 404


# --- who may call ----------------------------------------------------------------------------


async def test_missing_and_wrong_tokens(server: Server) -> None:
    missing = await server.ask("GET", "/api/v1/auth/me")
    check_error(missing, 401, "E_AUTH_TOKEN_MISSING", "INVALID_TOKEN")
    assert missing.headers["WWW-Authenticate"] == "Bearer"
    for value, code, kind in (
        ("Basic YTpi", "E_AUTH_TOKEN_MISSING", "INVALID_TOKEN"),
        ("Bearer", "E_AUTH_TOKEN_INVALID", "INVALID_TOKEN"),
        ("Bearer nobody", "E_AUTH_TOKEN_INVALID", "INVALID_TOKEN"),
        ("Bearer expired", "E_AUTH_TOKEN_EXPIRED", "EXPIRED_TOKEN"),
        ("", "E_AUTH_TOKEN_MISSING", "INVALID_TOKEN"),
    ):
        answer = await server.ask("GET", "/api/v1/auth/me", headers={"Authorization": value})
        check_error(answer, 401, code, kind)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_scheme_is_read_in_any_case(server: Server) -> None:
    token = server.desk.accounts.add()
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {token}"}
        assert (await server.ask("GET", "/api/v1/auth/me", headers=headers)).status == 200


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("/api/v1/auth/me", Role.USER),
        ("/api/v1/ai", Role.AGENT),
        ("/api/v1/reports", Role.MANAGER),
        ("/api/v1/users", Role.ADMIN),
    ],
)
async def test_roles(server: Server, path: str, least: Role) -> None:
    for role in Role:
        answer = await server.ask("GET", path, role=role)
        if role.rank >= least.rank:
            assert answer.status == 200
        else:
            check_error(answer, 403, "E_AUTH_INSUFFICIENT_PERMISSIONS", "FORBIDDEN")


async def test_rights_come_before_what_was_sent(server: Server) -> None:
    answer = await server.ask("PATCH", "/api/v1/users/7?x=1", data=b"{", headers={})
    assert answer.status == 401
    assert (await server.ask("GET", "/api/v1/users?x=1", role=Role.USER)).status == 403
    assert (await server.ask("GET", "/api/v1/users?x=1", role=Role.ADMIN)).status == 422


async def test_anonymous_callers_are_nobody(server: Server) -> None:
    answer = await server.ask("POST", "/api/v1/auth/login", json={"title": "x"})
    assert answer.json()["user"] == "00000000-0000-0000-0000-000000000000"
    assert answer.json()["name"] == "anonymous"


async def test_cookie_signs_in_and_bearer_wins(server: Server) -> None:
    """S4-44: either is enough, and where both are there the bearer token counts."""
    name = server.desk.settings.auth.cookie_name
    cookie = {"Cookie": f"other=1; {name}={server.desk.accounts.add()}"}
    assert (await server.ask("GET", "/api/v1/auth/me", headers=cookie)).json()["name"] == "person 0"
    token = server.desk.accounts.add()
    both = {**cookie, "Authorization": f"Bearer {token}"}
    assert (await server.ask("GET", "/api/v1/auth/me", headers=both)).json()["name"] == "person 1"
    wrong = {**cookie, "Authorization": "Bearer nobody"}
    assert (await server.ask("GET", "/api/v1/auth/me", headers=wrong)).status == 401


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Origin": LISTED}, 200),
        ({"Origin": "OWN"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": LISTED + ".evil.example"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Referer": LISTED}, 403),
    ],
)
async def test_cookie_writes_need_our_own_page(
    server: Server, sent: dict[str, str], status: int
) -> None:
    name = server.desk.settings.auth.cookie_name
    own = f"http://127.0.0.1:{server.port}"
    sent = {key: own if value == "OWN" else value for key, value in sent.items()}
    headers = {"Cookie": f"{name}={server.desk.accounts.add()}", **sent}
    answer = await server.ask("POST", "/api/v1/tickets", json={"title": "x"}, headers=headers)
    assert answer.status == status
    if status == 403:
        check_error(answer, 403, "E_AUTH_CROSS_SITE", "FORBIDDEN")
    assert (await server.ask("GET", "/api/v1/auth/me", headers=headers)).status == 200


async def test_metrics_may_need_a_token() -> None:
    async with serving(SmallDesk(), ROUTES) as server:
        answer = await server.ask("GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    async with serving(SmallDesk(metrics={"token": "scrape-me-please"}), ROUTES) as server:
        check_error(
            await server.ask("GET", "/metrics"), 401, "E_AUTH_TOKEN_MISSING", "INVALID_TOKEN"
        )
        wrong = {"Authorization": "Bearer scrape-me-pleas"}
        answer = await server.ask("GET", "/metrics", headers=wrong)
        check_error(answer, 401, "E_AUTH_TOKEN_INVALID", "INVALID_TOKEN")
        assert (await server.ask("GET", "/metrics", role=Role.ADMIN)).status == 401
        right = {"Authorization": "Bearer scrape-me-please"}
        assert (await server.ask("GET", "/metrics", headers=right)).status == 200


# --- browsers --------------------------------------------------------------------------------


def _cors(answer: Answer) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key.startswith("Access-")}


async def test_preflight_from_a_listed_origin(server: Server) -> None:
    headers = {
        "Origin": LISTED,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    answer = await server.ask("OPTIONS", "/api/v1/users/7", headers=headers)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Origin"] == LISTED
    assert answer.headers["Access-Control-Allow-Credentials"] == "true"
    assert "PATCH" in answer.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
    assert answer.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "*",
        LISTED + ".evil.example",
        "http://ui.example.org",
        LISTED + ":444",
        LISTED.upper(),
        LISTED + "/",
        "",
    ],
)
async def test_unlisted_origins_get_no_header(server: Server, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "GET"}
    for method, path in (("OPTIONS", "/api/v1/tickets"), ("GET", "/ping"), ("GET", "/nope")):
        answer = await server.ask(method, path, headers=headers)
        assert _cors(answer) == {}
        assert answer.headers["Vary"] == "Origin"


async def test_errors_can_be_read_by_listed_pages(server: Server) -> None:
    for path in ("/api/v1/auth/me", "/nope", "/api/v1/crash", "/api/v1/fail/limited"):
        answer = await server.ask("GET", path, headers={"Origin": LISTED})
        assert answer.headers["Access-Control-Allow-Origin"] == LISTED
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


async def test_options_without_an_origin_tells_the_methods(server: Server) -> None:
    answer = await server.ask("OPTIONS", "/api/v1/tickets")
    assert (answer.status, answer.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, POST")
    check_error(await server.ask("OPTIONS", "/nope"), 404, "E_NOT_FOUND", "NOT_FOUND")


# --- proxies ---------------------------------------------------------------------------------


async def _seen(server: Server, headers: dict[str, str]) -> tuple[str, str]:
    answer = await server.ask("GET", "/api/v1/auth/me", headers=headers, role=Role.USER)
    return answer.json()["address"], answer.json()["base_url"]


async def test_trusted_proxy_names_client_and_scheme(server: Server) -> None:
    headers = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "desk.example.org",
    }
    assert await _seen(server, headers) == ("203.0.113.9", "https://desk.example.org")


@pytest.mark.parametrize(
    ("sent", "address"),
    [
        ("203.0.113.9, 10.1.1.1", "203.0.113.9"),
        ("6.6.6.6, 203.0.113.9, 10.1.1.1, 10.2.2.2", "203.0.113.9"),
        ("10.9.9.9", "10.9.9.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("garbage", "127.0.0.1"),
        ("203.0.113.9, garbage", "127.0.0.1"),
        ('"\\n{}', "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_nearest_untrusted_hop_is_the_client(server: Server, sent: str, address: str) -> None:
    assert (await _seen(server, {"X-Forwarded-For": sent}))[0] == address


async def test_untrusted_peer_is_not_believed() -> None:
    async with serving(SmallDesk(), ROUTES) as server:
        headers = {
            "X-Forwarded-For": "203.0.113.9",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "evil.example",
        }
        own = f"http://127.0.0.1:{server.port}"
        assert await _seen(server, headers) == ("127.0.0.1", own)
        line = server.lines()[-1]
        assert line["address"] == "127.0.0.1"


async def test_strange_host_is_not_repeated(server: Server) -> None:
    for host in ("a/b", "a b", "a<x>", "x" * 300, "user@host"):
        _, base_url = await _seen(server, {"X-Forwarded-Host": host})
        assert host not in base_url
    assert (await _seen(server, {"Host": "[::1]:80"}))[1] == "http://[::1]:80"


async def test_public_url_is_the_base() -> None:
    desk = SmallDesk(server={"public_url": "https://desk.example.org/"})
    async with serving(desk, ROUTES) as server:
        assert (await _seen(server, {"Host": "evil"}))[1] == "https://desk.example.org"


# --- contention ------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [0, 1, 2, 3])
async def test_lost_race_is_run_again(server: Server, losses: int) -> None:
    CONTENDED.losses = losses
    answer = await server.ask("GET", "/api/v1/contended")
    assert (answer.status, answer.json()) == (200, {"runs": losses + 1})


async def test_race_lost_for_good_is_503(server: Server) -> None:
    CONTENDED.losses = 4
    answer = await server.ask("GET", "/api/v1/contended")
    check_error(answer, 503, "E_DATABASE_BUSY", "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    assert CONTENDED.runs == 4


# --- what is written down --------------------------------------------------------------------


async def test_access_line(server: Server) -> None:
    token = server.desk.accounts.add()
    headers = {
        "Authorization": f"Bearer {token}",
        "User-Agent": "curl/8",
        "X-Forwarded-For": "203.0.113.9",
    }
    answer = await server.ask("GET", "/api/v1/tickets/TSK-7?secret=1", headers=headers)
    line = server.lines()[-1]
    assert (line["logger"], line["event"], line["status"]) == ("access", "request", 422)
    assert line["request_id"] == answer.headers["X-Request-ID"]
    assert (line["method"], line["path"]) == ("GET", "/api/v1/tickets/TSK-7")
    assert line["route"] == "/api/v1/tickets/{ticket}"
    assert line["user"] == str(server.desk.accounts.known[token].user_id)
    assert (line["address"], line["agent"]) == ("203.0.113.9", "curl/8")
    assert 0 < line["seconds"] < 1 and line["bytes"] == len(answer.raw)
    assert "secret" not in str(server.lines()) and token not in str(server.lines())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/{}", {}),
        ("/", {"User-Agent": "{}"}),
        ("/", {"X-Forwarded-For": "{}"}),
        ("/", {"X-Request-ID": "{}"}),
        ("/", {"traceparent": "00-{}-b7ad6b7169203331-01"}),
    ],
    ids=["path", "agent", "address", "request id", "trace"],
)
async def test_what_a_client_writes_is_masked_wherever_it_writes_it(
    server: Server, path: str, headers: dict[str, str]
) -> None:
    token = uuid4().hex
    log.register_secret(token)
    said = {name: value.format(token) for name, value in headers.items()}
    await server.ask("GET", "/api/v1" + path.format(token), headers=said)
    assert server.lines()[-1]["event"] == "request"
    assert token not in str(server.lines())


async def test_signed_paths_are_not_written_down(server: Server) -> None:
    assert (await server.ask("GET", "/api/v1/storage/s3cr3t-signature")).status == 200
    assert "s3cr3t" not in str(server.lines())


INJECTIONS = [
    'a"}\n{"event":"forged"}',
    "a\r\nb",
    "a\x1b[2Jb",
    "a\u2028b",
    "a\u202eb",
    "\x00",
    "{}{}",
    "%s%n",
    "x" * 5000,
]


@pytest.mark.parametrize("text", INJECTIONS)
async def test_a_request_is_one_line_whatever_it_says(server: Server, text: str) -> None:
    sent = "".join(char for char in text if char not in "\r\n\x00")
    request = (
        f"GET /api/v1/tickets/{sent.replace(' ', '')} HTTP/1.1\r\nHost: a\r\n"
        f"User-Agent: {sent}\r\nReferer: {sent}\r\nX-Request-ID: {sent}\r\n"
        f"Traceparent: {sent}\r\nX-Forwarded-For: {sent}\r\nConnection: close\r\n\r\n"
    )
    before = len(server.lines())
    await server.raw(request.encode())
    lines = server.lines()
    assert [line["event"] for line in lines[before:]] == ["request"]


async def test_metrics_are_labelled_by_template(server: Server) -> None:
    for path in ("/api/v1/tickets/1", "/api/v1/tickets/2", "/nope/1", "/nope/2", "/api/tickets/3"):
        await server.ask("GET", path, role=Role.USER)
    for method in ("PROPFIND", "LOCK"):
        await server.ask(method, "/ping")
    text = (await server.desk.metrics.render()).decode()
    counts = {
        line.partition("{")[2].rpartition("}")[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("itdesk_http_request_seconds_count")
    }
    assert counts == {
        'method="GET",route="/api/v1/tickets/{ticket}",status="200"': 3.0,
        'method="GET",route="unmatched",status="404"': 2.0,
        'method="OTHER",route="unmatched",status="405"': 2.0,
    }


# --- system routes ---------------------------------------------------------------------------


async def test_ping_is_exact(server: Server) -> None:
    for path in ("/ping", "/api/v1/ping"):
        assert (await server.ask("GET", path)).raw == b'{"status":"ok"}'


async def test_liveness_follows_the_actors(server: Server) -> None:
    answer = await server.ask("GET", "/healthz")
    assert (answer.status, answer.json()["status"]) == (200, "ok")
    server.desk.runtime.living = False
    answer = await server.ask("GET", "/healthz")
    assert (answer.status, answer.json()["status"]) == (503, "unavailable")
    assert answer.headers["Retry-After"]


async def test_readiness_is_503_only_when_nothing_can_be_served(server: Server) -> None:
    for status, code in (("ok", 200), ("degraded", 200), ("unavailable", 503)):
        server.desk.health = {
            "status": status,
            "checks": {"database": {"status": status, "reason": "because"}},
        }
        for path in ("/readyz", "/health"):
            answer = await server.ask("GET", path)
            assert (answer.status, answer.json()) == (code, server.desk.health)
