"""However a request fails, the answer is the one error body: on every route, and before any.

The live daemon is asked for every failure that a route can be brought to, and for those of the
router and of the reader of requests that no route ever sees.
"""

import asyncio
import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiohttp import ClientSession
from multidict import CIMultiDict
from yarl import URL

from itdesk.api import ROUTES
from itdesk.api.route import Route, Who
from itdesk.desk.opaque import CHALLENGE
from itdesk.model import new_id
from tests.support.daemon import Answer, Live, Person, started, wait
from tests.support.postgres import Server
from tests.support.the_error import faults

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
JSON = {"Content-Type": "application/json"}
MAX_BODY = 1_048_576
WEBSOCKET = "/ws/{client_id}"


def _name(route: Route) -> str:
    return f"{route.method} {route.full_path}"


@dataclass
class Scene:
    """Somebody of each role, and a real object behind every kind of path."""

    live: Live
    people: dict[str, Person]
    places: dict[str, str]

    def path(self, route: Route) -> str:
        """Return a path of this route behind which there is something."""
        return route.full_path.format(**self.places)

    def nowhere(self, route: Route) -> str:
        """Return a path of this route behind which there is nothing."""
        gone = str(new_id())
        places = {"ticket": gone, "id": gone, "key": "TSK-99999999", "signed": "bm9uZQ.bm9uZQ",
                  "release": "x", "file": "y", "client_id": "c", "provider": "none",
                  "identity": gone, "plugin": "none"}  # fmt: skip
        return route.full_path.format(**places)


async def _build(live: Live) -> Scene:
    people = {role: await live.person(role) for role in ("user", "agent", "manager", "admin")}
    ticket = await people["user"].ticket()
    file = (await people["user"].upload(ticket["id"], b"words\n")).expect(201)
    places = {"ticket": ticket["id"], "key": ticket["key"], "id": file["id"], "signed": "x.y",
              "release": "x", "file": "y", "client_id": "c", "provider": "none",
              "plugin": "filesystem",
              "identity": file["id"]}  # fmt: skip
    return Scene(live, people, places)


@pytest.fixture(scope="module")
def scene(live: Live) -> Scene:
    """Somebody and something, on the daemon of the run."""
    return wait(_build(live))


FORM = "application/x-www-form-urlencoded"


async def ask(
    session: ClientSession, live: Live, person: Person | None, method: str, path: str, **how: Any
) -> Answer:
    """Send one request, its path as it is written."""
    headers = dict(how.pop("headers", {}))
    if person is not None and person.token:
        headers.setdefault("Authorization", f"Bearer {person.token}")
    url = URL(live.url + path, encoded=True)
    async with session.request(method, url, headers=headers, **how) as response:
        return Answer(response.status, response.headers, await response.read())


def failed(answer: Answer, status: int, code: str | None = None) -> Any:
    """Return the body of a failure that has this status and all that every failure has."""
    assert answer.status == status, f"{answer.status}: {answer.raw[:300]!r}"
    assert faults(answer.status, answer.headers, answer.raw) == []
    body = answer.json
    assert code is None or body["error"] == code, body
    return body


def _bodies() -> list[Route]:
    return [route for route in ROUTES if route.body is not None]


# --- what every route can be brought to ---------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=_name)
async def test_every_failure_of_a_route_is_the_one_error_body(scene: Scene, route: Route) -> None:
    """S-41, S3-61, S4-57: 400, 401, 403, 404, 405, 413, 415, 417 and 422, as far as it goes."""
    live, path, admin = scene.live, scene.path(route), scene.people["admin"]
    async with ClientSession() as session:

        async def fails(status: int, code: str, person: Person | None = admin, **how: Any) -> None:
            where = how.pop("path", path)
            method = how.pop("method", route.method)
            failed(await ask(session, live, person, method, where, **how), status, code)

        if route.full_path == WEBSOCKET:
            # Who asks, and for what, is only looked at after the upgrade.
            await fails(400, "E_WEBSOCKET_ONLY", None)
            return
        await fails(400, "E_BAD_REQUEST", path=f"{path}?a=%ff")
        if not path.endswith("/callback"):  # providers send what they like
            await fails(422, "E_VALIDATION_ERROR", path=f"{path}?no_such_parameter=1")
        await fails(422, "E_VALIDATION_ERROR", path=f"{path}?a%00b=1")
        await fails(
            415, "E_UNSUPPORTED_MEDIA_TYPE", headers={"Content-Encoding": "gzip"}, data=b"x"
        )
        await fails(417, "E_EXPECTATION_FAILED", headers={"Expect": "the-spanish-inquisition"})
        if route.who.role is not None:
            await fails(401, "E_AUTH_TOKEN_MISSING", None)
            await fails(401, "E_AUTH_TOKEN_MISSING", None, headers={"Authorization": "Basic eDp5"})
            await fails(401, "E_AUTH_TOKEN_INVALID", Person(live.url, "no.such.token"))
        if route.who in (Who.ADMIN, Who.MANAGER, Who.AGENT):
            user = scene.people["user"]
            await fails(403, "E_AUTH_INSUFFICIENT_PERMISSIONS", user)
        if route.body_media == "application/json":
            too_much = b'{"a": "' + b"x" * MAX_BODY + b'"}'
            await fails(413, "E_TOO_LARGE", data=io.BytesIO(too_much), headers=JSON)
        if route.body_media == FORM:
            await fails(400, "E_BAD_REQUEST", data=b"{}", headers=JSON)
        elif route.body is not None:
            await fails(400, "E_BAD_JSON", data=b'{"a": ', headers=JSON)
            await fails(422, "E_VALIDATION_ERROR", data=b'{"no_such_field": 1}', headers=JSON)
            text = {"Content-Type": "text/plain"}
            await fails(415, "E_UNSUPPORTED_MEDIA_TYPE", data=b"{}", headers=text)
            latin = {"Content-Type": "application/json; charset=latin-1"}
            await fails(415, "E_UNSUPPORTED_MEDIA_TYPE", data=b"{}", headers=latin)
        if route.if_match:
            stale = {"If-Match": '"99"'}
            body = {} if route.body_optional else {"title": "Stale"}
            await fails(412, "E_TICKET_VERSION_MISMATCH", headers=stale, json=body)
        if "{" in route.full_path and route.body is None and route.body_media[:5] == "appli":
            answer = await ask(session, live, admin, route.method, scene.nowhere(route))
            failed(answer, 403 if route.who is Who.SIGNATURE else 404)


def _paths() -> list[str]:
    return sorted({route.full_path for route in ROUTES})


@pytest.mark.parametrize("path", _paths())
async def test_a_path_says_which_methods_it_takes(scene: Scene, path: str) -> None:
    """S-41, S3-61: 405 with Allow for every other method, OPTIONS tells the same, HEAD is GET's."""
    taken = {route.method for route in ROUTES if route.full_path == path}
    taken |= {"HEAD"} if "GET" in taken else set()
    where, live = path.format(**scene.places), scene.live
    async with ClientSession() as session:
        options = await ask(session, live, None, "OPTIONS", where)
        assert options.status == 204 and options.raw == b""
        assert set(options.headers["Allow"].split(", ")) == taken | {"OPTIONS"}
        for method in {*METHODS, "TRACE", "PROPFIND", "QUERY"} - taken:
            answer = await ask(session, live, scene.people["admin"], method, where)
            if method == "HEAD":
                assert answer.status == 405 and answer.raw == b""
                continue
            body = failed(answer, 405, "E_METHOD_NOT_ALLOWED")
            assert set(answer.headers["Allow"].split(", ")) == taken | {"OPTIONS"}
            assert set(body["details"]["allow"]) == taken | {"OPTIONS"}


async def test_a_conflict_is_the_one_error_body(scene: Scene) -> None:
    """S-41: 409 of accounts, projects, files and keys, each with its own code."""
    admin, user, manager = (scene.people[role] for role in ("admin", "user", "manager"))
    new = {"email": user.email.upper(), "name": "Twin"}
    failed(await admin.post("/users", new), 409, "E_USER_EMAIL_EXISTS")
    register = {**new, "password": "correct horse battery"}
    failed(await user.post("/auth/register", register), 409, "E_USER_EMAIL_EXISTS")
    failed(await admin.delete(f"/users/{admin.id}"), 409, "E_USER_SELF")
    default = (await user.get("/projects?limit=200")).expect(200)
    default = next(project for project in default if project["key"] == "TSK")
    failed(
        await manager.post("/projects", {"key": "TSK", "name": "x"}), 409, "E_PROJECT_KEY_EXISTS"
    )
    gone = await manager.delete(f"/projects/{default['id']}")
    failed(gone, 409)
    presign = {"ticket_id": scene.places["ticket"], "filename": "a.txt", "size": 5}
    link = (await user.post("/attachments/presigned-url", presign)).expect(201)
    early = await user.post("/attachments", {"attachment_id": link["attachment_id"]})
    failed(early, 409, "E_ATTACHMENT_NOT_UPLOADED")
    failed(await user.get(f"/attachments/{link['attachment_id']}/content"), 409)


async def test_a_key_that_was_used_for_something_else_is_422(scene: Scene) -> None:
    """S-41: E_IDEMPOTENCY_KEY_REUSED, and a key that is none."""
    user = scene.people["user"]
    key = {"Idempotency-Key": uuid4().hex}
    (await user.post("/tickets", {"title": "The first"}, headers=key)).expect(201)
    again = await user.post("/tickets", {"title": "The second"}, headers=key)
    failed(again, 422, "E_IDEMPOTENCY_KEY_REUSED")
    long = {"Idempotency-Key": "k" * 256}
    failed(await user.post("/tickets", {"title": "x" * 5}, headers=long), 422, "E_VALIDATION_ERROR")


# --- where there is no route ---------------------------------------------------------------------

NOWHERE = (
    "/",
    "/nothing",
    "/api",
    "/api/v1",
    "/api/v1/nothing",
    "/api/v2/tickets",
    "/api/v1/tickets//my",
    "//api/v1/tickets",
    "/api//v1/tickets",
    "/api/v1/tickets///",
    "/api/v1/tickets/.",
    "/api/v1/tickets/..",
    "/api/v1/tickets/../users",
    "/api/v1/tickets/%2e%2e/users",
    "/api/v1/./tickets",
    "/api/v1/tickets%2Fmy",
    "/api/v1%2Ftickets",
    "/api/v1/tickets/%00",
    "/api/v1/tickets/a%0d%0aSet-Cookie:x",
    "/api/v1/tickets/%ff",
    "/api/v1/tickets/%C0%AE%C0%AE",
    "/api/v1/tickets/%ED%A0%80",
    "/API/V1/TICKETS",
    "/api/v1/Tickets",
    "/api/v1/tickets;x=1",
    "/api/v1/tickets.json",
    "/api/v1/tickets/x/y/z/w",
    "/uploads/x",
    "/static/x",
    "/.git/config",
    "/etc/passwd",
    "/docs/assets/x/../../../../../../etc/passwd",
    "/docs/assets/x/..%2f..%2f..%2fetc%2fpasswd",
    "/docs/assets/x/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/" + "a/" * 40,
    "/" + "a" * 5000,
    "/metrics/x",
    "/ping%20",
)


@pytest.mark.parametrize("path", NOWHERE, ids=lambda path: path[:50])
async def test_where_there_is_nothing_the_answer_is_404(scene: Scene, path: str) -> None:
    """S-41, S3-61: unknown, doubled, dotted, encoded and endless paths, by every method."""
    async with ClientSession() as session:
        for method in METHODS:
            answer = await ask(session, scene.live, scene.people["admin"], method, path)
            # There might be a file of the documentation: its path is one, and takes GET only.
            known = path.startswith("/docs/assets/x/") and "/" not in path[15:]
            status = 405 if known and method not in ("GET", "HEAD") else 404
            assert answer.status == status
            assert method == "HEAD" or failed(answer, status)
        options = await ask(session, scene.live, None, "OPTIONS", path)
        assert (options.status == 204) if known else failed(options, 404)


async def test_a_path_has_one_reading_however_it_is_written(scene: Scene) -> None:
    """S-41: a slash at its end and percent-encoding change nothing, encoding twice does."""
    user, live = scene.people["user"], scene.live
    ticket = scene.places["ticket"]
    async with ClientSession() as session:

        async def get(path: str) -> Answer:
            return await ask(session, live, user, "GET", path)

        plain = (await get(f"/api/v1/tickets/{ticket}")).expect(200)
        for path in (
            f"/api/v1/tickets/{ticket}/",
            f"/api/v1/%74ickets/{ticket}",
            f"/%61pi/v1/tickets/%{ord(ticket[0]):x}{ticket[1:]}",
            f"/api/v1/tickets/{ticket.upper()}",
            f"/api/tickets/{ticket}/",
        ):
            assert (await get(path)).expect(200) == plain, path
        for path in (f"/api/v1/%2574ickets/{ticket}", f"/api/v1/tickets/%25{ticket}"):
            failed(await get(path), 404)
        failed(await get("/api/v1/tickets/my%2F"), 404)
        failed(await get("/api/v1/tickets/%20"), 404)


# --- what never becomes a request ----------------------------------------------------------------

PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
END = b"Connection: close\r\n\r\n"

BROKEN: dict[str, bytes] = {
    "one word": b"GARBAGE\r\n\r\n",
    "only spaces": b"   \r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: x\r\n" + END,
    "version 9.9": b"GET /ping HTTP/9.9\r\nHost: x\r\n" + END,
    "another protocol": b"GET /ping SIP/2.0\r\nHost: x\r\n" + END,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "NUL in the path": b"GET /pi\x00ng HTTP/1.1\r\nHost: x\r\n" + END,
    "NUL in a header": PING + b"X-A: a\x00b\r\n" + END,
    "control in a header": PING + b"X-A: a\x07b\r\n" + END,
    "lone CR in a header": PING + b"X-A: a\rX-B: c\r\n" + END,
    "no colon": PING + b"X-Nothing\r\n" + END,
    "no name": PING + b": value\r\n" + END,
    "space in a name": PING + b"X A: b\r\n" + END,
    "space before the colon": PING + b"X-A : b\r\n" + END,
    "method with a bracket": b"G(T /ping HTTP/1.1\r\nHost: x\r\n" + END,
    "method of NUL": b"\x00GET /ping HTTP/1.1\r\nHost: x\r\n" + END,
    "space in the path": b"GET /a b HTTP/1.1\r\nHost: x\r\n" + END,
    "header of 20 KiB": PING + b"X-A: " + b"a" * 20_000 + b"\r\n" + END,
    "header name of 20 KiB": PING + b"a" * 20_000 + b": x\r\n" + END,
    "path of 20 KiB": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n" + END,
    "length twice": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length negative": POST + b"Content-Length: -1\r\n\r\n",
    "length signed": POST + b"Content-Length: +2\r\n\r\n{}",
    "length a word": POST + b"Content-Length: two\r\n\r\n{}",
    "length with underscore": POST + b"Content-Length: 1_0\r\n\r\n{}",
    "length of 30 digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    "length in a list": POST + b"Content-Length: 2, 2\r\n\r\n{}",
    "length and chunks": POST
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
    "unknown encoding": POST + b"Transfer-Encoding: cow\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunk size a word": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n",
    "chunk size negative": POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk size prefixed": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "chunk too long": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}{}\r\n0\r\n\r\n",
}

# Strange, and understood all the same; None where 2xx and 4xx are both well.
STRANGE: dict[str, tuple[bytes, int | None]] = {
    "HTTP/0.9": (b"GET /ping\r\n\r\n", None),
    "HTTP/1.0": (b"GET /ping HTTP/1.0\r\n\r\n", 200),
    "another site in the path": (
        b"GET http://evil.example/ping HTTP/1.1\r\nHost: x\r\n" + END,
        None,
    ),
    "no host": (b"GET /ping HTTP/1.1\r\n" + END, None),
    "two hosts": (b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + END, None),
    "small letters": (b"get /ping HTTP/1.1\r\nHost: x\r\n" + END, None),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n" + END, None),
    "connect": (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: x\r\n" + END, None),
    "folded header": (PING + b"X-A: a\r\n b\r\n" + END, None),
    "many headers": (PING + b"".join(b"X-%d: a\r\n" % n for n in range(300)) + END, None),
    "raw bytes in the path": (b"GET /\xc3\xa9\xff HTTP/1.1\r\nHost: x\r\n" + END, None),
    "fragment": (b"GET /ping#x HTTP/1.1\r\nHost: x\r\n" + END, None),
    "line feeds only": (b"GET /ping HTTP/1.1\nHost: x\nConnection: close\n\n", None),
    "upgrade to nothing": (PING + b"Upgrade: cow\r\nConnection: upgrade, close\r\n\r\n", None),
    "upgrade to h2c": (
        PING
        + b"Upgrade: h2c\r\nHTTP2-Settings: AA\r\n"
        + b"Connection: Upgrade, HTTP2-Settings, close\r\n\r\n",
        None,
    ),
    "overriding the method": (PING + b"X-HTTP-Method-Override: DELETE\r\n" + END, 200),
}


@dataclass
class Raw:
    """What came back on a socket, read as HTTP."""

    status: int
    headers: CIMultiDict[str]
    body: bytes
    rest: bytes


async def spoken(live: Live, said: bytes, *, head: bool = False) -> Raw:
    """Say something on a socket, as bytes, and return the first answer and what follows it."""
    url = URL(live.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        async with asyncio.timeout(10):
            heard = await reader.read()
    finally:
        writer.close()
    top, _, body = heard.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    assert re.fullmatch(r"HTTP/[01]\.[0-9] \d{3} .+", lines[0]), heard[:300]
    headers = CIMultiDict(
        (name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])
    )
    size = 0 if head else int(headers.get("Content-Length", "0"))
    return Raw(int(lines[0].split(" ")[1]), headers, body[:size], body[size:])


@pytest.mark.parametrize("name", BROKEN)
async def test_what_cannot_be_read_is_one_clear_400(live: Live, name: str) -> None:
    """S-41, S3-61: broken request lines, headers, lengths and chunks; then nothing more."""
    answer = await spoken(live, BROKEN[name])
    assert answer.status == 400, (answer.status, answer.body)
    assert faults(answer.status, answer.headers, answer.body) == []
    assert answer.rest == b""
    assert (await live.nobody.call("GET", "/ping")).expect(200) == {"status": "ok"}


@pytest.mark.parametrize("name", STRANGE)
async def test_what_is_strange_gets_an_answer_all_the_same(live: Live, name: str) -> None:
    """S-41: neither a 5xx nor silence, and any refusal is the one error body."""
    said, wanted = STRANGE[name]
    answer = await spoken(live, said)
    assert answer.status == wanted if wanted else 200 <= answer.status < 500
    if answer.status >= 400:
        assert faults(answer.status, answer.headers, answer.body) == []
    assert answer.rest == b""


@pytest.mark.parametrize(
    "path", [p for p in _paths() if "GET" in {r.method for r in ROUTES if r.full_path == p}]
)
async def test_head_never_has_a_body(scene: Scene, path: str) -> None:
    """S-41: a client that keeps its connection would take one for the head of its next answer."""
    admin = scene.people["admin"]
    where = path.format(**scene.places)
    if path.startswith("/api/v1/storage"):
        file = scene.places
        await admin.scanned(file["id"])
        link = await admin.get(f"/tickets/{file['ticket']}/attachments/{file['id']}/download")
        where = URL(link.expect(200)["download_url"]).raw_path
    elif path.endswith("/content"):
        await admin.scanned(scene.places["id"])
    elif "/users/{id}" in path:
        where = path.format(id=admin.id)
    said = f"HEAD {where} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin.token}\r\n"
    answer = await spoken(scene.live, said.encode() + END, head=True)
    got = await admin.call("GET", where)
    assert answer.status == got.status and answer.rest == b""
    assert answer.headers.get("Content-Type") == got.headers.get("Content-Type")


async def test_two_requests_on_one_connection_are_two_answers(live: Live) -> None:
    """S-41: a refused body is not read as the next request."""
    inner = b"GET /api/v1/auth/me HTTP/1.1\r\nHost: x\r\n\r\n"
    said = (
        b"POST /api/v1/auth/me HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
        + inner + PING + END
    )  # fmt: skip
    answer = await spoken(live, said)
    assert answer.status == 405
    assert answer.rest == b"" or answer.rest.startswith(b"HTTP/1.1 200")


# --- other pages, and a database that is gone ----------------------------------------------------

LISTED = "https://desk.example.org"
FOREIGN = (
    "https://evil.example",
    "null",
    "",
    "https://desk.example.org.evil.example",
    "https://evil-desk.example.org",
    "http://desk.example.org",
    "https://desk.example.org:8443",
    "https://DESK.example.org",
    "https://sub.desk.example.org",
    "https://desk.example.org/",
    "*",
)


def _cors(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in headers.items() if name.startswith("Access-Control-Allow")
    }


async def test_only_listed_pages_may_read_and_an_outage_is_503(pg_server: Server) -> None:
    """S2-63: preflights of a listed origin, with credentials; S-41: 503 without PostgreSQL."""
    async with started(pg_server, CORS_ORIGINS=f'["{LISTED}"]') as live:
        async with ClientSession() as session:
            await _preflights(session, live)
            await _outage(session, live, pg_server)


async def _preflights(session: ClientSession, live: Live) -> None:
    asks = {"Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization,if-match"}  # fmt: skip
    for path in sorted({route.full_path for route in ROUTES}):
        where = re.sub(r"\{\w+\}", "x", path)
        listed = await ask(
            session, live, None, "OPTIONS", where, headers={**asks, "Origin": LISTED}
        )
        assert listed.status == 204
        told = _cors(listed.headers)
        assert told["Access-Control-Allow-Origin"] == LISTED
        assert told["Access-Control-Allow-Credentials"] == "true"
        assert "PATCH" in told["Access-Control-Allow-Methods"]
        assert {"Authorization", "If-Match"} <= set(
            told["Access-Control-Allow-Headers"].split(", ")
        )
        foreign = await ask(
            session, live, None, "OPTIONS", where, headers={**asks, "Origin": FOREIGN[0]}
        )
        assert foreign.status == 204 and _cors(foreign.headers) == {}
    for origin in FOREIGN:
        for path in ("/api/v1/auth/me", "/api/v1/tickets", "/nothing"):
            for method in ("OPTIONS", "GET"):
                answer = await ask(
                    session, live, live.admin, method, path, headers={**asks, "Origin": origin}
                )
                assert _cors(answer.headers) == {} and "Origin" in answer.headers["Vary"]
    read = await ask(
        session, live, live.admin, "GET", "/api/v1/auth/me", headers={"Origin": LISTED}
    )
    assert _cors(read.headers)["Access-Control-Allow-Origin"] == LISTED
    refused = await ask(session, live, None, "GET", "/api/v1/auth/me", headers={"Origin": LISTED})
    assert _cors(refused.headers)["Access-Control-Allow-Origin"] == LISTED
    failed(refused, 401)


# What answers without the database, and so must go on answering.
ALIVE = {"/ping", "/api/v1/ping", "/healthz", "/metrics", "/openapi.json", "/asyncapi.json",
         "/docs", "/api/docs", "/redoc", "/favicon.ico",
         "/docs/assets/{release}/{file}", "/.well-known/jwks.json", "/api/v1/auth/providers",
         "/verify-email", "/reset-password", "/forgot-password"}  # fmt: skip


RULE = {"name": "x", "trigger": "ticket_created", "actions": {"add_tag": "x"}}


def _valid(route: Route) -> Iterator[tuple[str, Any]]:
    """Yield a request that nothing but the database keeps from being answered."""
    gone = str(new_id())
    bodies: dict[str, Any] = {
        "R5": {"email": "new@example.org", "password": "correct horse battery", "name": "x"},
        "R6": {"email": "a@example.org", "password": "x"},
        "R7": {"email": "a@example.org", "password": "x"},
        "R8": {"refresh_token": "rt_" + "a" * 43},
        "R9": {"refresh_token": "rt_" + "a" * 43},
        "R10": {"refresh_token": "rt_" + "a" * 43},
        "R21": {"email": "new@example.org", "name": "x"},
        "R23": {"name": "x"},
        "R27": {"title": "Something"},
        "R31": {"title": "Something"},
        "R34": {"body": "x"},
        "R46": {"key": "NEW", "name": "x"},
        "R48": {"name": "x"},
        "R35": {"original_filename": "a.txt", "size": 5},
        "R36": {"ticket_id": gone, "filename": "a.txt", "size": 5},
        "R37": {"attachment_id": gone},
        "R12": {"email": "a@example.org", "password": "correct horse battery"},
        "R13": {"token": "A" * 43},
        "R14": {"email": "a@example.org", "code": "000000"},
        "R15": {"email": "a@example.org"},
        "R16": {"email": "a@example.org"},
        "R17": {"token": "A" * 43, "new_password": "correct horse battery"},
        **dict.fromkeys(("F1", "F2"), {"challenge": CHALLENGE.new()[0], "code": "000000"}),
        "F4": {"password": "x"},
        "F5": {"code": "000000"},
        **dict.fromkeys(("F6", "F7"), {"password": "x", "code": "000000"}),
        "R62": {"title": "Something"},
        "R63": {"messages": [{"role": "user", "content": "How is TSK-1?"}]},
        "K2": {"name": "x"},
        "V2": {"name": "x", "query": {}},
        "V4": {"name": "y"},
        "G3": {"text": "x"},
        "N2": {"ticket_created": False},
        **dict.fromkeys(("R51", "R53"), RULE),
        "W2": {"rule": {key: RULE[key] for key in ("trigger", "actions")}},
        "W1": {"ids": [gone]},
        "PL2": {"enabled": True},
        "W3": {"ticket": gone},
        **dict.fromkeys(
            ("W6", "W8"), {"name": "x", "url": "https://example.org/", "secret": "0123456789abcdef"}
        ),
    }
    path = route.full_path.format(
        ticket=gone, id=gone, key="TSK-1", signed="x", release="", file="", client_id="c",
        provider="none", identity=gone, plugin="filesystem",
    )  # fmt: skip
    yield path, bodies[route.id] if route.body is not None else None


async def _outage(session: ClientSession, live: Live, pg_server: Server) -> None:
    """Ask every route while there is no database."""
    await pg_server.drop(live.daemon.env["DATABASE_URL"])
    for route in ROUTES:
        alive = route.full_path in ALIVE | {WEBSOCKET} and route.method == "GET"
        if alive or route.who is Who.SIGNATURE:
            continue
        if "{provider}" in route.full_path:  # to whom nobody is configured, all is known
            continue
        if route.body_media == "multipart/form-data":
            continue
        for path, body in _valid(route):
            how = {"data" if route.body_media == FORM else "json": body}
            answer = await ask(session, live, live.admin, route.method, path, **how)
            if route.id == "R2":
                assert answer.status == 503 and "Retry-After" in answer.headers
                assert answer.json["status"] == "unavailable"
                continue
            failed(answer, 503)
    for path in ("/ping", "/healthz", "/metrics", "/openapi.json"):
        assert (await ask(session, live, None, "GET", path)).status == 200


def test_the_faults_of_an_answer_are_seen() -> None:
    """S-41: the judge is judged: each thing that may be wrong is noticed."""
    body = {"error": "E_X", "message": "No.", "error_code": "NOT_FOUND", "details": {},
            "request_id": "1"}  # fmt: skip
    headers = {"X-Request-ID": "1", "Content-Type": "application/json",
               "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}  # fmt: skip
    assert faults(404, headers, orjson.dumps(body)) == []
    assert faults(404, headers, b"404: Not Found")
    assert faults(409, headers, orjson.dumps(body))
    for name in body:
        assert faults(404, headers, orjson.dumps({**body, name: None})), name
    for name in headers:
        assert faults(404, {**headers, name: "x"}, orjson.dumps(body)), name
    for inside in ('File "/usr/lib/x.py"', 'relation "users"', "asyncpg.exceptions.X"):
        assert faults(404, headers, orjson.dumps({**body, "message": f"{inside}."})), inside
