"""Who may do what: every route, asked by everybody, about everything, against the live daemon.

What must come of it is in policy.toml, which nobody derives from the code. Whatever a cell was
allowed to change was made for it; all other objects must be the same at the end as before.
"""

import asyncio
import base64
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
from aiohttp import ClientSession, FormData

from itdesk.api import ROUTES
from itdesk.desk.keyfile import KeyFile
from itdesk.model import new_id
from tests.support.daemon import PASSWORD, Answer, Live, Person, wait
from tests.support.jwt_corpus import Forge
from tests.support.stream import Closed, connected, following

POLICY = tomllib.loads((Path(__file__).parent / "policy.toml").read_text())
RULES: dict[str, dict[str, Any]] = POLICY["rules"]
ENTRIES: dict[str, dict[str, Any]] = POLICY["routes"]
CALLERS = list(RULES["own"])
DEAD = ("anonymous", "garbage", "expired", "disabled", "deleted")

FOUR = ("own", "team", "other", "missing")
TWO = ("other", "missing")
KINDS: dict[str, tuple[str, ...]] = {
    "": ("nothing",),
    "ticket": FOUR,
    "file": FOUR,
    "guest-file": FOUR,
    "user": FOUR,
    "crossed-file": TWO,
    "token": FOUR,
    "view": FOUR,
    "suggestion": FOUR,
    "applied-suggestion": FOUR,
    "project": TWO,
    "asset": TWO,
    "provider": TWO,
    "identity-link": FOUR,
    "upload-link": TWO,
    "download-link": TWO,
    "waiting-job": TWO,
    "failed-job": TWO,
    "workflow": TWO,
    "workflow-target": TWO,
    "failed-mail": TWO,
    "plugin": TWO,
}
# So many requests of one route are on their way at once.
ABREAST = 6
TEXT = b"just some words\n"

Places = dict[str, str]


def expected(entry: Mapping[str, Any], caller: str, kind: str) -> int | None:
    """Return the status that refuses this caller, or None when the answer is the route's own."""
    verdict = RULES[entry["rule"]][caller]
    if isinstance(verdict, dict):
        verdict = verdict.get(kind, verdict["rest"])
    return None if verdict == "ok" else int(verdict)


def code_of(entry: Mapping[str, Any], status: int, caller: str) -> str:
    """Return the precise code of a refusal."""
    own: dict[str, str] = entry.get("codes", {})
    found = own.get(str(status)) or POLICY["codes"][str(status)]
    return found if isinstance(found, str) else found[caller if status == 401 else entry["object"]]


def split(name: str) -> tuple[str, str]:
    """Return the method and path of a policy entry."""
    method, path = name.partition(" #")[0].split(" ")
    return method, path


def twins(method: str, path: str) -> Iterator[str]:
    """Yield the older ways to write a path, as the policy promises them."""
    for alias in POLICY["aliases"]:
        if alias.get("method", method) != method:
            continue
        for group in alias.get("groups", [""]):
            was = alias["was"].replace("{group}", group)
            whole = path == was
            if whole or (not alias.get("whole") and path.startswith(was + "/")):
                for now in alias["now"]:
                    yield now.replace("{group}", group) + path[len(was) :]


def plain(answer: Answer) -> tuple[int, dict[str, str], Any]:
    """Return all that an answer says but when it was given and its own id."""
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in ("Date", "X-Request-ID", "Connection")
    }
    if answer.status < 400 or not answer.raw:
        return answer.status, headers, answer.raw
    return answer.status, headers, {**orjson.loads(answer.raw), "request_id": ""}


@dataclass
class World:
    """The desk's people and what belongs to them; whatever is in it never changes."""

    live: Live
    people: dict[str, Person]
    mate: Person
    other: Person
    project: Any
    asset: str
    assigned: list[Any] = field(default_factory=list)
    objects: dict[tuple[str, str], Places] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    number: int = 0

    # --- who asks -----------------------------------------------------------------------------

    def alive(self, caller: str) -> Person:
        """Return the caller, or somebody who can act in the place of one who cannot."""
        return self.people["user" if caller in DEAD else caller]

    def owner(self, caller: str, kind: str) -> Person:
        """Return whose object of this kind is asked for."""
        return {"team": self.mate, "other": self.other}.get(kind) or self.alive(caller)

    # --- what is asked for --------------------------------------------------------------------

    async def ticket(self, caller: str, kind: str) -> Any:
        """Return a ticket that nothing else uses."""
        if caller == "assignee" and kind == "own":
            return self.assigned.pop()
        owner = self.owner(caller, kind)
        where = {} if kind == "other" else {"department": "Matrix"}
        return await owner.ticket("A ticket of the matrix", tags=["matrix"], **where)

    async def file(self, caller: str, kind: str, *, guest: bool = False) -> Places:
        """Return a file that nothing else uses; a guest's was uploaded by somebody else."""
        ticket = await self.ticket(caller, kind)
        uploader = self.people["manager"] if guest else self.owner(caller, kind)
        if guest and caller == "manager":
            uploader = self.people["agent"]
        file = (await uploader.upload(ticket["id"], TEXT)).expect(201)
        return {"ticket": ticket["id"], "id": file["id"], "file_key": file["object_key"]}

    async def make(self, thing: str, caller: str, kind: str) -> Places:
        """Return where to find a new object of this kind."""
        if kind == "missing":
            return self.missing(thing, caller)
        match thing:
            case "ticket":
                return self.named(await self.ticket(caller, kind))
            case "file":
                return await self.file(caller, kind)
            case "guest-file":
                return await self.file(caller, kind, guest=True)
            case "crossed-file":
                own = await self.ticket(caller, "own")
                return {**await self.file("user", "other"), "ticket": own["id"]}
            case "user":
                return {"id": await self._account(caller, kind)}
            case "identity-link":
                return await self._identity(await self._account(caller, kind))
            case "project":
                new = {"key": f"M{uuid4().hex[:8].upper()}", "name": "Of the matrix"}
                return {"id": (await self.live.admin.post("/projects", new)).expect(201)["id"]}
            case "token":
                new = {"name": uuid4().hex}
                made = await self.owner(caller, kind).post("/tokens", new)
                return {"id": made.expect(201)["id"]}
            case "view":
                kept = {"name": uuid4().hex, "query": {"status": ["open"]}}
                made = await self.owner(caller, kind).post("/views", kept)
                return {"id": made.expect(201)["id"]}
            case "suggestion" | "applied-suggestion":
                ticket = await self.ticket(caller, kind)
                return await self._suggestion(ticket, applied=thing.startswith("applied"))
            case "workflow":
                rule = {"name": "Kept", "trigger": "comment_added", "active": False}
                made = await self.live.admin.post(
                    "/workflows", {**rule, "actions": {"add_tag": "x"}}
                )
                ticket = self.objects["other", "ticket"]["ticket"]
                return {"id": made.expect(201)["id"], "ticket": ticket}
            case "workflow-target":
                new = {"name": uuid4().hex, "url": "https://example.org/", "secret": "x" * 16}
                made = await self.live.admin.post("/workflow-targets", new)
                return {"id": made.expect(201)["id"]}
            case "waiting-job" | "failed-job":
                return {"id": await self._job(thing.removesuffix("-job"))}
            case "plugin":
                return {"plugin": "filesystem"}
            case "failed-mail":
                return {"id": await self._failed_mail()}
            case "upload-link":
                ticket = await self.other.ticket()
                asked = {"original_filename": "a.txt", "mime": "text/plain", "size": len(TEXT)}
                link = await self.other.post(f"/tickets/{ticket['id']}/attachments/presign", asked)
                return {"signed": link.expect(201)["upload_url"].rpartition("/")[2]}
            case "download-link":
                file = self.objects["other", "file"]
                path = f"/tickets/{file['ticket']}/attachments/{file['id']}/download"
                link = await self.other.get(path)
                return {"signed": link.expect(200)["download_url"].rpartition("/")[2]}
        return {}

    def missing(self, thing: str, caller: str) -> Places:
        """Return where there is nothing, in the words that a real object would have."""
        gone = str(new_id())
        match thing:
            case "ticket":
                self.number += 1
                name = (gone, "TSK-99999999", "99999999")[self.number % 3]
                return {"ticket": name, "key": "TSK-99999999"}
            case "upload-link" | "download-link":
                return {"signed": "bm90aGluZw.bm90aGluZw"}
            case "crossed-file":
                return {"ticket": self.objects[caller, "ticket"]["ticket"], "id": gone}
        return {"ticket": gone, "id": gone, "provider": "nobody", "plugin": "none",
                "identity": gone,
                "file_key": f"tickets/{gone}/{gone}", "file": "x.js",
                "release": self.asset.split("/")[-2]}  # fmt: skip

    def named(self, ticket: Any) -> Places:
        """Return a ticket's places: by its id, its key and its number in turn."""
        self.number += 1
        name = (ticket["id"], ticket["key"], str(ticket["number"]))[self.number % 3]
        return {"ticket": name, "key": ticket["key"]}

    async def kept(self, thing: str, caller: str, kind: str) -> Places:
        """Return where to find an object that lasts: nothing may change it."""
        lasting = (
            "-link",
            "-job",
            "-mail",
            "token",
            "view",
            "workflow",
            "workflow-target",
            "suggestion",
        )
        if kind == "missing" or thing == "" or thing.endswith(lasting):
            return await self.make(thing, caller, kind)
        if thing == "provider":
            return {"provider": "google"}
        if thing == "plugin":
            return {"plugin": "filesystem"}
        if thing == "asset":
            return {"release": self.asset.split("/")[-2], "file": self.asset.split("/")[-1]}
        whose = kind if kind in ("team", "other") else caller
        if thing == "crossed-file":
            own = self.objects[caller, "ticket"]["ticket"]
            return {**self.objects["other", "file"], "ticket": own}
        return self.objects[whose, thing]

    async def _job(self, state: str) -> str:
        """Return a job of a type that nobody does: it stays in its state."""
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        query = """INSERT INTO jobs (type, state, finished_at) VALUES
            ('matrix.none', $1, CASE WHEN $1 = 'failed' THEN now() END) RETURNING id::text"""
        try:
            return str(await conn.fetchval(query, state))
        finally:
            await conn.close()

    async def _suggestion(self, ticket: Any, *, applied: bool) -> Places:
        """Return a suggestion on a ticket: open, or done by the desk itself."""
        if not applied:
            made = (await self.live.admin.post(f"/tickets/{ticket['id']}/summary")).expect(200)
            return {"ticket": ticket["id"], "id": made["suggestion"]["id"]}
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        query = """INSERT INTO suggestions (ticket_id, kind, proposal, source, state, replaced,
            decided_at) VALUES ($1::uuid, 'priority', 'medium', 'rules', 'applied', 'low', now())
            RETURNING id::text"""
        try:
            return {"ticket": ticket["id"], "id": await conn.fetchval(query, ticket["id"])}
        finally:
            await conn.close()

    async def _failed_mail(self) -> str:
        """Return a mail that nobody would take."""
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        query = """INSERT INTO emails (to_address, subject, body_text, kind, status)
            VALUES ('matrix@example.org', 'x', 'x', 'notification', 'failed') RETURNING id::text"""
        try:
            return str(await conn.fetchval(query))
        finally:
            await conn.close()

    async def _identity(self, user_id: str) -> Places:
        """Return an account elsewhere that this person signs in by."""
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        issuer = f"https://{uuid4().hex}.example.org"
        query = """INSERT INTO user_identities (user_id, provider, issuer, subject, email)
            VALUES ($1::uuid, 'oidc', $2, 'x', 'x@example.org') RETURNING id::text"""
        try:
            return {"id": user_id, "identity": await conn.fetchval(query, user_id, issuer)}
        finally:
            await conn.close()

    async def _account(self, caller: str, kind: str) -> str:
        if kind == "own":
            return self.alive(caller).id
        where = {"department": "Matrix"} if kind == "team" else {}
        new = {"email": f"{uuid4().hex}@example.org", "name": "Someone", **where}
        return str((await self.live.admin.post("/users", new)).expect(201)["id"])

    # --- the words of a question --------------------------------------------------------------

    async def fill(self, template: Any, caller: str, places: Places) -> Any:
        """Return a body with its places filled in."""
        if isinstance(template, dict):
            return {
                name: await self.fill(value, caller, places) for name, value in template.items()
            }
        if isinstance(template, list):
            return [await self.fill(value, caller, places) for value in template]
        if not isinstance(template, str) or "{" not in template:
            return template
        if template == "{refresh}":
            return (await self.live.sign_in(self.alive(caller).email)).refresh_token
        words = {
            "new": uuid4().hex,
            "KEY": f"N{uuid4().hex[:8].upper()}",
            "PROJECT": self.project["key"],
            "known": self.alive(caller).email,
            "agent": self.people["agent"].id,
            **places,
        }
        return template.format(**words)

    async def look(self) -> dict[str, Any]:
        """Return all that is kept, as an administrator sees it."""
        paths = {"ticket": "/tickets/{ticket}", "file": "/attachments/{id}",
                 "guest-file": "/attachments/{id}", "user": "/users/{id}",
                 "project": "/projects/{id}"}  # fmt: skip
        seen: dict[str, Any] = {}
        for (whose, thing), places in self.objects.items():
            path = paths[thing].format(**places)
            found = (await self.live.admin.get(path)).json
            # People may rename themselves, an administrator more than that, and they do.
            own = ["name", "updated_at"] if thing == "user" and whose in self.people else []
            own += ["email", "department"] if whose == "admin" else []
            gone = ["request_id"]
            seen[path] = {name: value for name, value in found.items() if name not in own + gone}
        return seen


async def _build(live: Live) -> World:
    people = {"anonymous": live.nobody, "garbage": Person(live.url, "no.such.token")}
    for role in ("user", "agent", "manager", "admin"):
        people[role] = await live.person(role, department="Matrix")
    email = f"{uuid4().hex}@example.org"
    new = {"email": email, "password": PASSWORD, "name": "Unverified"}
    assert (await live.nobody.post("/auth/register", new)).expect(201)["user"][
        "is_verified"
    ] is False
    people["unverified"] = await live.sign_in(email)
    people["disabled"] = await live.person(department="Matrix")
    people["deleted"] = await live.person(department="Matrix")
    people["assignee"] = await live.person("agent", department="Matrix")
    page = (await live.nobody.call("GET", "/docs")).raw.decode()
    asset = re.findall(r'src="([^"]+)"', page)[0]
    project = (
        await live.admin.post("/projects", {"key": f"M{uuid4().hex[:8].upper()}", "name": "Kept"})
    ).expect(201)
    mate, other = await live.person(department="Matrix"), await live.person()
    world = World(live, people, mate, other, project, asset)
    await _give_everybody_something(world)
    await _end(world)
    world.before = await world.look()
    return world


async def _give_everybody_something(world: World) -> None:
    """Make a ticket, a file and a guest's file for each, and tickets to be assigned to."""
    people, admin = world.people, world.live.admin
    for _ in range(40):
        ticket = await world.other.ticket("Assigned", tags=["matrix"])
        path = f"/tickets/{ticket['id']}"
        taken = await admin.patch(path, {"assignee_ids": [people["assignee"].id]})
        world.assigned.append(taken.expect(200))
    owners = {
        name: person for name, person in people.items() if name not in ("anonymous", "garbage")
    }
    for name, owner in {**owners, "team": world.mate, "other": world.other}.items():
        where = {} if name == "other" else {"department": "Matrix"}
        if name == "assignee":
            ticket = world.assigned.pop()
        else:
            ticket = await owner.ticket("A ticket of the matrix", tags=["matrix"], **where)
        world.objects[name, "ticket"] = {"ticket": ticket["id"], "key": ticket["key"]}
        world.objects[name, "user"] = {"id": owner.id}
        world.objects[name, "project"] = {"id": world.project["id"]}
        for thing, uploader in (("file", owner), ("guest-file", admin)):
            file = (await uploader.upload(ticket["id"], TEXT)).expect(201)
            places = {"ticket": ticket["id"], "id": file["id"], "file_key": file["object_key"]}
            world.objects[name, thing] = places
    for (_, thing), places in world.objects.items():
        if thing in ("file", "guest-file"):
            assert (await admin.scanned(places["id"]))["scanned_status"] == "CLEAN"


async def _end(world: World) -> None:
    """Take away what the callers of the matrix no longer have."""
    people, admin = world.people, world.live.admin
    keys = KeyFile(world.live.daemon.state_dir / "jwt-key.pem").load_or_create()
    user = people["user"]
    session = orjson.loads(_decoded(user.token.split(".")[1]))
    forge = Forge(keys, session["sub"], session["sid"])
    good = Person(user.base, forge.token())
    (await good.get("/auth/me")).expect(200)
    over = {"iat": forge.now - 1000, "exp": forge.now - 100}
    people["expired"] = replace(user, token=forge.token(None, over))
    for name in ("anonymous", "garbage", "expired"):
        for thing in ("ticket", "file", "guest-file", "user", "project"):
            world.objects[name, thing] = world.objects["user", thing]
    path = f"/users/{people['assignee'].id}"
    (await admin.patch(path, {"role": "user"})).expect(200)
    off = await admin.patch(f"/users/{people['disabled'].id}", {"is_active": False})
    off.expect(200)
    (await admin.delete(f"/users/{people['deleted'].id}")).expect(204)


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


@pytest.fixture(scope="module")
def world(live: Live) -> World:
    """Everybody with everything, on the daemon of the run."""
    return wait(_build(live))


@dataclass
class Asked:
    """One cell of the matrix, and what came of it."""

    caller: str
    kind: str
    method: str
    path: str
    answer: Answer


async def ask(
    world: World, session: ClientSession, entry: Mapping[str, Any], caller: str, kind: str,
    method: str, path: str,
) -> Asked:  # fmt: skip
    """Ask one question; what may be changed by it is made for it."""
    thing = entry.get("object", "")
    changes = method not in ("GET", "HEAD") and expected(entry, caller, kind) is None
    find = world.make if changes else world.kept
    places = await find(thing, caller, kind)
    person = world.people[caller]
    if entry.get("own_session") and caller not in DEAD:
        person = await world.live.sign_in(person.email)
    headers = {"Authorization": f"Bearer {person.token}"} if person.token else {}
    how: dict[str, Any] = {}
    if "body" in entry:
        how["json"] = await world.fill(entry["body"], caller, places)
    if "fields" in entry:
        how["data"] = await world.fill(entry["fields"], caller, places)
    if entry.get("sends") == "form":
        how["data"] = FormData()
        how["data"].add_field("file", TEXT, filename="a.txt", content_type="text/plain")
    elif entry.get("sends") == "file":
        how["data"], headers["Content-Type"] = TEXT, "text/plain"
    url = world.live.url + path.format(**{"client_id": "matrix", **places})
    how["allow_redirects"] = False
    async with session.request(method, url, headers=headers, **how) as response:
        answer = Answer(response.status, response.headers, await response.read())
    return Asked(caller, kind, method, path, answer)


def problems(entry: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    """Yield what is wrong with one cell."""
    where = f"{asked.caller} x {asked.kind}: {asked.method} {asked.path}"
    answer, status = asked.answer, expected(entry, asked.caller, asked.kind)
    wanted = status or entry.get("ok", 200)
    if answer.status != wanted:
        yield f"{where}: {answer.status} instead of {wanted}: {answer.raw[:200]!r}"
    elif status is not None and asked.method != "HEAD":
        body, code = answer.json, code_of(entry, status, asked.caller)
        if body["error"] != code:
            yield f"{where}: {body['error']} instead of {code}"
        if body["request_id"] != answer.headers["X-Request-ID"]:
            yield f"{where}: the request id is another in the header"
    if not asked.path.startswith(
        ("/docs", "/api/docs", "/redoc", "/favicon", "/openapi", "/asyncapi", "/.well-known")
    ):
        if "no-store" not in answer.headers.get("Cache-Control", ""):
            yield f"{where}: may be stored: {answer.headers.get('Cache-Control')}"


async def run(
    world: World, entry: Mapping[str, Any], callers: list[str], questions: list[tuple[str, str]]
) -> list[str]:
    """Ask a route's questions of everybody; return what was not as the policy says."""
    thing = entry.get("object", "")
    gate = asyncio.Semaphore(ABREAST)

    async def one(caller: str, kind: str, method: str, path: str) -> Asked:
        async with gate:
            return await ask(world, session, entry, caller, kind, method, path)

    async with ClientSession() as session:
        cells = await asyncio.gather(
            *(
                one(caller, kind, method, path)
                for method, path in questions
                for caller in callers
                for kind in KINDS[thing]
            )
        )
    wrong = [problem for asked in cells for problem in problems(entry, asked)]
    for method, path in questions:
        for caller in callers:
            told = {
                asked.kind: plain(asked.answer)
                for asked in cells
                if (asked.caller, asked.method, asked.path) == (caller, method, path)
                and expected(entry, caller, asked.kind) is not None
            }
            seen = [told[kind] for kind in ("team", "other", "missing") if kind in told]
            if any(one != seen[0] for one in seen):
                wrong.append(f"{caller}: {method} {path} tells what exists: {seen}")
    return wrong


async def test_the_policy_the_document_and_the_table_name_the_same_routes(live: Live) -> None:
    """S-01: a route that is missing in one of the three fails the run."""
    document = (await live.nobody.call("GET", "/openapi.json")).expect(200)
    described = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert described == {f"{route.method} {route.full_path}" for route in ROUTES}
    assert described == {name.partition(" #")[0] for name in ENTRIES}


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/api/docs"])
async def test_the_document_has_pages_that_need_no_internet(live: Live, path: str) -> None:
    """S2-02, S3-10, S4-30: HTML that loads files of this daemon only, each of which is there."""
    page = await live.nobody.call("GET", path)
    assert page.status == 200 and page.headers["Content-Type"].startswith("text/html")
    html = page.raw.decode()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', html)
    assert loaded and all(re.match(r"/[^/]", link) for link in loaded)
    for link in loaded:
        assert (await live.nobody.call("GET", link)).status == 200


def test_the_policy_is_whole() -> None:
    """Every rule decides about every caller, and every rule is used."""
    assert {tuple(rule) for rule in RULES.values()} == {tuple(CALLERS)}
    assert {entry["rule"] for entry in ENTRIES.values()} == set(RULES)
    for name, entry in ENTRIES.items():
        assert set(re.findall(r"\{(\w+)\}", name)) <= {
            "ticket",
            "key",
            "id",
            "signed",
            "release",
            "file",
            "client_id",
            "provider",
            "plugin",
            "identity",
        }
        assert entry.get("object", "") in KINDS


@pytest.mark.parametrize("name", ENTRIES)
async def test_everybody_gets_what_the_policy_says(world: World, name: str) -> None:
    """S-01, S2-39 to S2-46: each cell's status and code; foreign and missing are alike."""
    method, path = split(name)
    questions = [(method, path)] + ([("HEAD", path)] if method == "GET" else [])
    wrong = await run(world, ENTRIES[name], CALLERS, questions)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in ENTRIES if list(twins(*split(name)))])
async def test_an_older_path_gives_no_other_right(world: World, name: str) -> None:
    """S-01: the aliases of a route answer as the route does."""
    method, path = split(name)
    questions = [(method, twin) for twin in twins(method, path)]
    wrong = await run(world, ENTRIES[name], ["anonymous", "user", "agent"], questions)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("caller", [name for name in CALLERS if name not in DEAD])
async def test_a_list_holds_what_may_be_read_and_nothing_else(world: World, caller: str) -> None:
    """S2-25, S2-41, S2-43, S2-45: the list, the search and the count show one's own, agents all."""
    entry = ENTRIES["GET /api/v1/tickets/{ticket}"]
    person = world.people[caller]
    known = {whose: world.objects[whose, "ticket"]["ticket"] for whose in ("team", "other", caller)}
    may = {
        known[whose]
        for whose, kind in (("team", "team"), ("other", "other"), (caller, "own"))
        if expected(entry, caller, kind) is None
    }
    seen: set[str] = set()
    path, total = "/api/v1/tickets?tag=matrix&limit=200&q=matrix+or+assigned&count=true", None
    while path:
        answer = await person.call("GET", path.removeprefix(world.live.url))
        seen |= {ticket["id"] for ticket in answer.expect(200)}
        total = total or answer.headers["X-Total-Count"]
        following = re.search(r'<([^>]+)>; rel="next"', answer.headers.get("Link", ""))
        path = following[1] if following else ""
    assert seen & set(known.values()) == may and len(seen) == int(total or 0)


async def test_nothing_changed_that_nobody_was_allowed_to_change(world: World) -> None:
    """S-01, S-03: what the cells above were refused or only asked to read is as it was."""
    assert await world.look() == world.before


async def _refusal(person: Person, ticket: str | None) -> int | None:
    """Subscribe, to one ticket or to all; return the code that ends it, None when it is taken."""
    async with connected(person.base) as stream:
        await stream.send(type="auth", token=person.token or "nobody's")
        asked = {} if ticket is None else {"tickets": [ticket]}
        await stream.send(type="subscribe", **asked)
        try:
            await stream.until("welcome")
        except Closed as closed:
            return closed.code
        return None


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_subscription_is_a_read(world: World, caller: str) -> None:
    """S-01, S-31: who may read a ticket may follow it, nobody else; foreign and missing alike."""
    entry = ENTRIES["GET /api/v1/tickets/{ticket}"]
    codes = {None: None, 401: 4401, 404: 4403}
    for kind in FOUR:
        places = await world.kept("ticket", caller, kind)
        wanted = codes[expected(entry, caller, kind)]
        assert await _refusal(world.people[caller], places["ticket"]) == wanted, kind
    everything = 4401 if caller in DEAD else None
    assert await _refusal(world.people[caller], None) == everything


@pytest.mark.parametrize("caller", [name for name in CALLERS if name not in DEAD])
async def test_the_stream_tells_of_what_may_be_read_and_of_nothing_else(
    world: World, caller: str
) -> None:
    """S-01, S-31: of one's own, a mate's and a stranger's new ticket."""
    entry = ENTRIES["GET /api/v1/tickets/{ticket}"]
    async with following(world.people[caller]) as stream:
        made = {kind: (await world.ticket(caller, kind))["id"] for kind in ("team", "other")}
        # One's own comes last: whatever was to be heard of the others was heard before.
        own = made["own"] = (await world.ticket(caller, "own"))["id"]
        if caller == "assignee":
            own_path = f"/tickets/{own}/comments"
            (await world.people[caller].post(own_path, {"body": "on it"})).expect(201)
        await stream.until(lambda frame: frame.get("ticket") == own)
        heard = {frame.get("ticket") for frame in stream.frames}
    for kind, ticket in made.items():
        assert (ticket in heard) == (expected(entry, caller, kind) is None), kind
