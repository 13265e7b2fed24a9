"""What must never work, tried on the live daemon: broken JSON, forged tokens, injected SQL."""

import asyncio
import base64
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from aiohttp import ClientSession
from yarl import URL

from itdesk.api import ROUTES
from itdesk.api.route import Route
from itdesk.desk.keyfile import KeyFile
from tests.support.daemon import Answer, Live, Person, wait
from tests.support.json_corpus import REFUSED, WRONG
from tests.support.jwt_corpus import b64, control, corpus, opaque_forms, sendable
from tests.support.postgres import Server
from tests.support.the_error import faults

JSON = {"Content-Type": "application/json"}
ABREAST = 6


@dataclass
class Scene:
    """An administrator, a user, and one of everything that belongs to them."""

    live: Live
    admin: Person
    alice: Person
    places: dict[str, str]

    async def look(self) -> dict[str, Any]:
        """Return everything that a write could reach, and how much there is of it."""
        seen: dict[str, Any] = {}
        paths = ["/tickets/{ticket}", "/tickets/{ticket}/history", "/tickets/{ticket}/comments",
                 "/tickets/{ticket}/attachments", "/projects/{id}", "/users/{user}"]  # fmt: skip
        for path in paths:
            seen[path] = (await self.admin.get(path.format(**self.places))).expect(200)
        for path in ("/tickets", "/projects", "/users"):
            counted = await self.admin.get(f"{path}?limit=1&count=true")
            seen[path] = counted.headers["X-Total-Count"]
        return seen


async def _build(live: Live) -> Scene:
    admin, alice = await live.person("admin"), await live.person()
    ticket = await alice.ticket("Alice's own", tags=["alice"])
    await live.admin.ticket("Not for Alice")
    project = {"key": f"H{uuid4().hex[:8].upper()}", "name": "A project"}
    made = (await admin.post("/projects", project)).expect(201)
    places = {"ticket": ticket["id"], "key": ticket["key"], "id": made["id"], "user": alice.id,
              "plugin": "filesystem"}  # fmt: skip
    return Scene(live, admin, alice, places)


@pytest.fixture(scope="module")
def scene(live: Live) -> Scene:
    """Somebody and something, on the daemon of the run."""
    return wait(_build(live))


async def ask(
    session: ClientSession, scene: Scene, person: Person, method: str, path: str, **how: Any
) -> Answer:
    """Send one request, its path as it is written."""
    headers = {"Authorization": f"Bearer {person.token}", **how.pop("headers", {})}
    url = URL(scene.live.url + path, encoded=True)
    async with session.request(method, url, headers=headers, **how) as response:
        return Answer(response.status, response.headers, await response.read())


# --- P-04 --------------------------------------------------------------------------------------


def _bodies() -> list[Route]:
    return [route for route in ROUTES if route.body is not None and "json" in route.body_media]


@pytest.mark.parametrize("route", _bodies(), ids=lambda route: f"{route.method} {route.path}")
async def test_broken_json_is_refused_and_nothing_is_written(scene: Scene, route: Route) -> None:
    """P-04: the corpus on every route with a JSON body; 400 or 422, the one error body."""
    who = scene.places | ({"id": scene.places["user"]} if "/users/" in route.path else {})
    path = route.full_path.format(**who)
    before = await scene.look()
    gate, wrong = asyncio.Semaphore(ABREAST), []

    async def send(session: ClientSession, name: str, raw: bytes, statuses: set[int]) -> None:
        async with gate:
            answer = await ask(
                session, scene, scene.admin, route.method, path, data=raw, headers=JSON
            )
        found = faults(answer.status, answer.headers, answer.raw) if answer.status >= 400 else []
        if answer.status not in statuses or found:
            wrong.append(f"{name}: {answer.status} {found} {answer.raw[:200]!r}")

    async with ClientSession() as session:
        await asyncio.gather(
            *(
                send(session, name, raw, {400})
                for name, raw in REFUSED.items()
                if raw or not route.body_optional
            ),
            *(send(session, name, raw, {400, 422}) for name, raw in WRONG.items()),
        )
    assert not wrong, "\n".join(wrong)
    assert await scene.look() == before


@pytest.mark.parametrize("path", ["/events?since=", "/events/export?until=", "/stats/daily?from="])
async def test_a_time_is_written_as_rfc_3339_writes_it(scene: Scene, path: str) -> None:
    """Numbers are no times, although pydantic reads them as seconds since 1970."""
    good = "2026-01-31" if "stats" in path else "2026-01-31T12:00:00Z"
    assert (await scene.admin.call("GET", f"/api/v1{path}{good}")).status == 200
    for wrong in ("0", "0.5", "-1", "1e9", "1767225600", "nan", "now", "", "20260131", "12:00"):
        refused = await scene.admin.call("GET", f"/api/v1{path}{wrong}")
        refused.refused(422, "E_VALIDATION_ERROR")


# --- S-10 --------------------------------------------------------------------------------------


async def test_no_forged_token_is_accepted(live: Live) -> None:
    """S-10: each is a good token of a live session with one thing wrong; 401, never a 5xx."""
    person = await live.person("admin")
    claims = person.token.split(".")[1]
    said = orjson.loads(_unb64(claims))
    sub, sid = UUID(said["sub"]), UUID(said["sid"])
    keys = KeyFile(live.daemon.state_dir / "jwt-key.pem").load_or_create()
    hostile = [(name, token) for name, token in corpus(keys, sub=sub, sid=sid) if sendable(token)]
    assert len(hostile) >= 80
    made = (await person.post("/tokens", {"name": "corpus", "scope": "write"})).expect(201)
    hostile += [(f"API token {name}", text) for name, text in opaque_forms(made["token"])]
    wrong: list[str] = []
    slow: list[str] = []
    cookie = await _cookie_name(live)
    async with ClientSession() as session:

        async def tried(headers: dict[str, str]) -> tuple[Answer, float]:
            began = time.perf_counter()
            async with session.get(f"{live.url}/api/v1/auth/me", headers=headers) as response:
                answer = Answer(response.status, response.headers, await response.read())
            return answer, time.perf_counter() - began

        good = control(keys, sub=sub, sid=sid)
        for lane in ({"Authorization": f"Bearer {good}"}, {"Cookie": f"{cookie}={good}"}):
            assert (await tried(lane))[0].expect(200)["id"] == person.id
        for name, token in hostile:
            answer, seconds = await tried({"Authorization": f"Bearer {token}"})
            found = faults(answer.status, answer.headers, answer.raw)
            if answer.status != 401 or found:
                wrong.append(f"{name}: {answer.status} {found} {answer.raw[:200]!r}")
            # The machine is shared: only what is slow each time is.
            while seconds > 0.05 and slow.count(name) < 3:
                slow.append(name)
                _, seconds = await tried({"Authorization": f"Bearer {token}"})
            if not re.search(r'[;,"\s\\]', token):
                answer, _ = await tried({"Cookie": f"{cookie}={token}"})
                if answer.status != 401:
                    wrong.append(f"{name} as a cookie: {answer.status}")
    assert not wrong, "\n".join(wrong)
    assert not [name for name in slow if slow.count(name) == 3]


def _unb64(segment: str) -> bytes:
    raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    assert b64(raw) == segment
    return raw


async def _cookie_name(live: Live) -> str:
    document = (await live.nobody.call("GET", "/openapi.json")).expect(200)
    return str(document["components"]["securitySchemes"]["cookie"]["name"])


# --- S-27 --------------------------------------------------------------------------------------

INJECTIONS = (
    "'",
    "''",
    '"',
    "\\",
    "\\'",
    "`",
    "' OR 1=1 --",
    "' OR '1'='1",
    '" OR ""="',
    "') OR ('1'='1",
    "1 OR 1=1",
    "1; DROP TABLE tickets",
    "'; DROP TABLE users; --",
    "'; SELECT pg_sleep(9); --",
    "' UNION SELECT password_hash FROM users --",
    "' AND 1=(SELECT count(*) FROM users) --",
    "' || (SELECT version()) || '",
    "'||pg_sleep(9)||'",
    "$1",
    "$2::text",
    "$$",
    "$tag$x$tag$",
    "%",
    "_",
    "%%' ",
    "\\%",
    "x%'",
    "(select 1)",
    "created_at; --",
    "created_at DESC",
    "-created_at, (SELECT 1)",
    "{0}",
    "{n}",
    "{scope.__class__}",
    "%s",
    "%(q)s",
    "%d",
    "/*",
    "*/",
    "--",
    "#",
    "NULL",
    "null",
    "E'\\x27'",
    "U&'\\0027'",
    "\u02bc OR 1=1",
    "\uff07 OR 1=1",
    "\u00bf'",
    "a' & 'b",
    "a & | ! b",
    "a:* <-> b",
    "((((",
    '"unclosed',
    "-",
    "-a -b -c",
    "or or or",
    "[]",
    '{"$gt": ""}',
    "[0]",
    "a->>'b'",
    "@> '{}'",
    "'::jsonb",
    "'::int",
    "0x27",
    "CHR(39)",
    "\t'\n",
    "\x0b'",
    "..",
    "1e309",
    "9" * 30,
    "-1",
    "' " * 60,
)


def _parameters(document: Any) -> list[tuple[str, str, str]]:
    """Return every parameter of every GET route that takes text: path, name and place."""
    found = []
    for path, operations in document["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter["in"] in ("query", "path"):
                found.append((path, parameter["name"], parameter["in"]))
    return found


async def test_no_parameter_is_read_as_sql(scene: Scene, pg_server: Server) -> None:
    """S-27, S2-62: every query, sort, cursor, filter and path parameter: no 5xx, no extra rows."""
    document = (await scene.live.nobody.call("GET", "/openapi.json")).expect(200)
    log = _log_of(pg_server)
    before, state = _complaints(log), await scene.look()
    every = {ticket["id"] for ticket in (await scene.alice.get("/tickets?limit=200")).expect(200)}
    assert every == {scene.places["ticket"]}
    wrong: list[str] = []
    gate = asyncio.Semaphore(ABREAST)

    async def tried(session: ClientSession, person: Person, template: str, name: str, place: str,
                    payload: str) -> None:  # fmt: skip
        places = {**scene.places, "signed": "x.y", "release": "r", "file": "f", "client_id": "c",
                  "provider": "none", "identity": scene.places["id"]}  # fmt: skip
        word = URL.build(query={"x": payload}).raw_query_string.removeprefix("x=")
        if place == "path":
            places[name] = word.replace("+", "%20").replace("/", "%2F")
        path = template.format(**places) + (f"?{name}={word}" if place == "query" else "")
        async with gate:
            answer = await ask(session, scene, person, "GET", path)
        where = f"{template} {name}={payload!r}: {answer.status}"
        if answer.status not in (200, 400, 403, 404, 422):
            wrong.append(f"{where} {answer.raw[:200]!r}")
        elif answer.status >= 400:
            if found := faults(answer.status, answer.headers, answer.raw):
                # What was sent may look like the inside; it is not shown for all that.
                wrong.append(f"{where} {found}")
        elif person is scene.alice and template.startswith("/api/v1/tickets"):
            rows = answer.json if isinstance(answer.json, list) else [answer.json]
            if template.endswith("/search"):
                rows = [hit["ticket"] for hit in answer.json["results"]]
            ids = {row.get("ticket_id", row["id"]) for row in rows}
            if ids - every:
                wrong.append(f"{where} shows {ids - every}")

    async with ClientSession() as session:
        await asyncio.gather(
            *(
                tried(session, person, template, name, place, payload)
                for template, name, place in _parameters(document)
                for payload in INJECTIONS
                for person in (scene.alice, scene.admin)
            )
        )
    assert not wrong, "\n".join(wrong[:40])
    assert _complaints(log) == before
    assert await scene.look() == state


async def test_words_of_sql_find_nothing_more(scene: Scene) -> None:
    """S-27, S2-62: as a filter each is a word like any other, and nobody bears it."""
    for payload in INJECTIONS:
        for name in ("department", "tag"):
            answer = await scene.admin.call("GET", "/api/v1/tickets", params={name: payload})
            assert answer.status == 422 or answer.expect(200) == [], (name, payload)
        people = await scene.admin.call("GET", "/api/v1/users", params={"q": payload})
        if people.status == 200:
            plain = payload.lower()
            for person in people.json:
                assert plain in person["email"].lower() or plain in person["name"].lower()


async def test_words_of_sql_are_kept_as_they_were_said(scene: Scene, pg_server: Server) -> None:
    """S-27, S2-62: titles, texts, tags and names round-trip, in answers, filters and history."""
    log = _log_of(pg_server)
    before = _complaints(log)
    alice, admin = scene.alice, scene.admin
    visible = [word for word in INJECTIONS if len(word.strip()) > 2 and word.isprintable()]
    for word in visible:
        text = f"{word} in the middle of {word}"
        ticket = await alice.ticket(
            text[:200], description=text, tags=[word[:60]], department=word[:90]
        )
        assert ticket["title"] == text[:200].strip() and ticket["description"] == text
        assert ticket["tags"] == [word[:60].strip()] and ticket["department"] == word[:90].strip()
        path = f"/tickets/{ticket['id']}"
        said = (await alice.post(f"{path}/comments", {"body": text})).expect(201)
        assert said["body"] == text
        changed = (
            await admin.patch(path, {"title": f"x {text}"[:200], "resolution": text})
        ).expect(200)
        assert changed["resolution"] == text
        found = await admin.call("GET", "/api/v1/tickets", params={"department": word[:90].strip()})
        assert ticket["id"] in {row["id"] for row in found.expect(200)}
        tagged = await admin.call("GET", "/api/v1/tickets", params={"tag": word[:60].strip()})
        assert ticket["id"] in {row["id"] for row in tagged.expect(200)}
        history = (await alice.get(f"{path}/history")).expect(200)
        assert {"created", "comment_added", "updated_title"} <= {line["action"] for line in history}
        name = (await alice.patch(f"/users/{alice.id}", {"name": word[:90]})).expect(200)["name"]
        assert name == word[:90].strip()
        listed = await admin.call("GET", "/api/v1/users", params={"q": name})
        assert alice.id in {person["id"] for person in listed.expect(200)}
    assert _complaints(log) == before


def _log_of(server: Server) -> Path:
    return server.state_dir / "postgres" / "log"


def _complaints(log: Path) -> int:
    """Return how often PostgreSQL could not read a statement or a value."""
    return len(
        re.findall(
            r"ERROR: .*(?:syntax error|unterminated|invalid input syntax|does not exist"
            r"|out of range|invalid byte sequence|must appear in|operator)",
            log.read_text(errors="replace"),
        )
    )
