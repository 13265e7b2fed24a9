"""Nobody sets a field that is not theirs (S-03): every write, every word that any schema knows.

`MAY` is the promise: which fields a caller may set by a route. Every other word, be it a column,
an answer's field or another route's, must be refused by name and change nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import orjson
import pytest
from aiohttp import ClientSession

from tests.support.daemon import PASSWORD, Answer, Live, Person, wait

# What attackers try beyond the words of our own schemas.
HOSTILE: dict[str, Any] = {
    "role": "admin",
    "roles": ["admin"],
    "is_admin": True,
    "is_superuser": True,
    "is_staff": True,
    "is_active": True,
    "is_verified": True,
    "verified": True,
    "email_verified": True,
    "permissions": ["*"],
    "scope": "admin",
    "owner": "00000000-0000-7000-8000-000000000000",
    "owner_id": "00000000-0000-7000-8000-000000000000",
    "user_id": "00000000-0000-7000-8000-000000000000",
    "caller": {"role": "admin"},
    "id": "00000000-0000-7000-8000-000000000000",
    "_id": 1,
    "key": "EVIL",
    "number": 1,
    "next_number": 1,
    "version": 99,
    "auth_epoch": 0,
    "password_hash": "$2b$04$xxxxxxxxxxxxxxxxxxxxxuxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "jira_key": "ITSM-1",
    "external": {"source": "jira", "id": "ITSM-1"},
    "external_id": "ITSM-1",
    "external_source": "jira",
    "source": "jira",
    "reporter_id": "00000000-0000-7000-8000-000000000000",
    "reporter_name": "Somebody else",
    "author_name": "Somebody else",
    "created_at": "2000-01-01T00:00:00Z",
    "updated_at": "2000-01-01T00:00:00Z",
    "closed_at": "2000-01-01T00:00:00Z",
    "uploaded_at": "2000-01-01T00:00:00Z",
    "confirmed_at": "2000-01-01T00:00:00Z",
    "scanned_at": "2000-01-01T00:00:00Z",
    "scanned_status": "CLEAN",
    "scan_status": "CLEAN",
    "scan_engine": "none",
    "storage_version": "clean/evil",
    "object_key": "tickets/x/y",
    "uploaded_by": "00000000-0000-7000-8000-000000000000",
    "created_by": "00000000-0000-7000-8000-000000000000",
    "search": "x",
    "__proto__": {"role": "admin"},
    "constructor": {"prototype": {"role": "admin"}},
    "__class__": "Admin",
    "model_config": {"extra": "allow"},
    "$set": {"role": "admin"},
    "Role": "admin",
    "ROLE": "admin",
    "role ": "admin",
    "user.role": "admin",
    "user[role]": "admin",
}

_TICKET = {"title", "description", "tags", "labels", "status"}
_TRIAGE = {"priority", "severity", "category", "department", "project", "resolution"}
_ASSIGN = {"assignee_ids", "assignee_id"}
_OPEN = {"title", "description", "tags", "labels"} | _TRIAGE - {"resolution"}
_SELF = {"name", "avatar_url"}
_USER = _SELF | {"email", "role", "is_active", "department"}
_TOLD = {
    "ticket_created", "ticket_assigned", "status_changed", "comment_added", "file_recalled",
}  # fmt: skip
_SAID = {"body", "last_seen", "force"}
_PROOF = {"challenge", "code", "recovery_code"}
_FILE = {"original_filename", "mime", "size", "checksum"}

# Route, who asks, a good body, the fields that this caller may set, those that are known to the
# route but not this caller's (403, by name).
CASES: list[tuple[str, str, dict[str, Any], set[str], set[str]]] = [
    ("PATCH /tickets/{ticket}", "user", {}, _TICKET, _TRIAGE | _ASSIGN | {"force"}),
    ("PUT /tickets/{ticket}", "user", {}, _TICKET, _TRIAGE | _ASSIGN | {"force"}),
    ("PATCH /tickets/{ticket}", "agent", {}, _TICKET | _TRIAGE | _ASSIGN, {"force"}),
    ("PUT /tickets/{ticket}", "agent", {}, _TICKET | _TRIAGE | _ASSIGN, {"force"}),
    ("PATCH /tickets/{ticket}", "manager", {}, _TICKET | _TRIAGE | _ASSIGN, {"force"}),
    ("PATCH /tickets/{ticket}", "admin", {}, _TICKET | _TRIAGE | _ASSIGN | {"force"}, set()),
    ("POST /tickets", "user", {"title": "A good one"}, _OPEN, _ASSIGN | {"assignee"}),
    ("POST /tickets", "agent", {"title": "A good one"}, _OPEN | _ASSIGN | {"assignee"}, set()),
    ("POST /tickets/{ticket}/comments", "user", {"body": "x"}, _SAID, {"internal"}),
    ("POST /tickets/{ticket}/comments", "agent", {"body": "x"}, _SAID | {"internal"}, set()),
    ("POST /tickets/{ticket}/suggestions/{suggestion}/accept", "agent", {}, {"text"}, set()),
    ("PATCH /users/{user}", "user", {}, _SELF, _USER - _SELF),
    ("PUT /users/{user}", "user", {}, _SELF, _USER - _SELF),
    ("PATCH /users/{agent}", "agent", {}, _SELF, _USER - _SELF),
    ("PATCH /users/{manager}", "manager", {}, _SELF, _USER - _SELF),
    ("PATCH /users/{user}", "admin", {}, _USER, set()),
    ("PUT /users/{user}/notifications", "user", {}, _TOLD, set()),
    ("POST /users", "admin", {"email": "{new}", "name": "x"},
     {"email", "name", "role", "password", "department", "invite"}, set()),
    ("POST /auth/register", "nobody", {"email": "{new}", "name": "x", "password": PASSWORD},
     {"email", "name", "password"}, {"role"}),
    ("POST /auth/login", "nobody", {"email": "{email}", "password": PASSWORD},
     {"email", "password", "totp"}, set()),
    ("POST /auth/token", "nobody", {"email": "{email}", "password": PASSWORD},
     {"email", "password", "totp"}, set()),
    ("POST /auth/totp", "nobody", {"challenge": "itdesk_2fa_none", "code": "000000"},
     _PROOF, set()),
    ("POST /auth/token/totp", "nobody", {"challenge": "itdesk_2fa_none", "code": "000000"},
     _PROOF, set()),
    ("POST /auth/totp/enrol", "user", {}, {"password"}, set()),
    ("POST /auth/totp/confirm", "user", {"code": "000000"}, {"code"}, set()),
    ("POST /auth/totp/recovery-codes", "user", {"code": "000000"}, _PROOF - {"challenge"}, set()),
    ("POST /auth/totp/disable", "user", {"code": "000000"}, _PROOF - {"challenge"}, set()),
    ("POST /tokens", "user", {"name": "{new}"}, {"name", "scope", "expires_in_days"}, set()),
    ("PUT /plugin-switches/{plugin}", "admin", {"enabled": True}, {"enabled"}, set()),
    ("POST /auth/refresh", "nobody", {"refresh_token": "x"}, {"refresh_token"}, set()),
    ("POST /auth/token/refresh", "nobody", {"refresh_token": "x"}, {"refresh_token"}, set()),
    ("POST /auth/logout", "nobody", {"refresh_token": "x"}, {"refresh_token"}, set()),
    ("POST /auth/email-login", "nobody", {"email": "{email}", "password": PASSWORD},
     {"email", "password"}, set()),
    ("POST /auth/verify", "nobody", {"token": "x"}, {"token"}, set()),
    ("POST /auth/verify-code", "nobody", {"email": "{email}", "code": "000000"},
     {"email", "code"}, set()),
    ("POST /auth/resend", "nobody", {"email": "{email}"}, {"email"}, set()),
    ("POST /auth/forgot-password", "nobody", {"email": "{email}"}, {"email"}, set()),
    ("POST /auth/reset-password", "nobody", {"token": "x", "new_password": PASSWORD},
     {"token", "new_password"}, set()),
    ("POST /projects", "manager", {"key": "{KEY}", "name": "x"},
     {"key", "name", "description"}, set()),
    ("PUT /projects/{project}", "manager", {}, {"key", "name", "description"}, set()),
    ("PATCH /projects/{project}", "manager", {}, {"key", "name", "description"}, set()),
    ("POST /tickets/{ticket}/attachments/presign", "user",
     {"original_filename": "a.txt", "size": 5}, _FILE, set()),
    ("POST /attachments/presigned-url", "user",
     {"ticket_id": "{ticket}", "filename": "a.txt", "size": 5},
     {"ticket_id", "filename", "content_type", "size"}, set()),
    ("POST /attachments", "user", {"attachment_id": "{file}"},
     {"attachment_id", "file_key", "ticket_id", "filename", "content_type", "size"}, set()),
    ("POST /workflows", "admin",
     {"name": "x", "trigger": "comment_added", "active": False, "actions": {"add_tag": "x"}},
     {"name", "description", "trigger", "unchanged_for", "conditions", "actions", "active",
      "position"}, set()),
    ("PUT /workflows/{workflow}", "admin", {},
     {"name", "description", "trigger", "unchanged_for", "conditions", "actions", "active",
      "position"}, set()),
    ("PUT /workflows/order", "admin", {"ids": ["{workflow}"]}, {"ids"}, set()),
    ("POST /workflows/replay", "admin",
     {"rule": {"trigger": "comment_added", "actions": {"add_tag": "x"}}},
     {"rule", "days", "limit", "events"}, set()),
    ("POST /workflows/{workflow}/dry-run", "admin", {"ticket": "{ticket}"}, {"ticket"}, set()),
    ("POST /workflow-targets", "admin",
     {"name": "{KEY}", "url": "https://example.org/", "secret": "0123456789abcdef"},
     {"name", "url", "secret", "internal_comments"}, set()),
    ("PUT /workflow-targets/{target}", "admin", {},
     {"name", "url", "secret", "internal_comments"}, set()),
    ("POST /ai/classify", "user", {"title": "x"}, {"title", "description"}, set()),
    ("POST /ai/chat", "user", {"messages": [{"role": "user", "content": "x"}]},
     {"messages", "locale", "stream"}, set()),
    ("POST /views", "admin", {"name": "{KEY}", "query": {}}, {"name", "query", "shared"}, set()),
    ("PATCH /views/{view}", "admin", {"name": "{KEY}"}, {"name", "query", "shared"}, set()),
]  # fmt: skip

# What each allowed field is set to, and what of the answer may differ for it.
VALUES: dict[str, Any] = {
    "enabled": True,
    "title": "Another title",
    "description": "Another description",
    "tags": ["other"],
    "labels": ["label"],
    "status": "closed",
    "priority": "critical",
    "severity": "low",
    "category": "network",
    "department": "Elsewhere",
    "project": "{PROJECT}",
    "resolution": "Turned off and on",
    "assignee_ids": ["{agent}"],
    "assignee_id": "{agent}",
    "assignee": "{agent}",
    "force": True,
    "name": "Another name",
    "avatar_url": "https://example.org/a.png",
    "email": "{new}",
    "role": "agent",
    "is_active": False,
    "key": "{KEY}",
    "internal": True,
    "invite": True,
    **dict.fromkeys(_TOLD, False),
    "trigger": "ticket_created",
    "unchanged_for": None,
    "conditions": {"priority": "low"},
    "actions": {"add_tag": "y"},
    "active": True,
    "position": 77,
    "url": "https://example.org/other",
    "secret": "fedcba9876543210",
    "internal_comments": True,
    "query": {"q": "other"},
    "shared": True,
}
ALSO: dict[str, set[str]] = {
    "enabled": {"changed_at", "changed_by"},
    "labels": {"tags"},
    "query": {"url"},
    "severity": {"priority"},
    "status": {"closed_at"},
    "project": {"project_id", "key"},
    "assignee_ids": {"assignee_id"},
    "assignee_id": {"assignee_ids"},
    # A rule that starts anew leaves alone what happened before.
    "active": {"active_since"},
    "trigger": {"active_since"},
}
ALWAYS = {"version", "updated_at", "first_action_at"}


@dataclass
class Scene:
    """One of everything that a write could reach."""

    live: Live
    people: dict[str, Person]
    ticket: Any
    file: Any
    project: Any
    workflow: Any
    target: Any
    view: Any
    words: set[str]

    def fill(self, template: Any) -> Any:
        """Return a template with its names filled in."""
        if isinstance(template, dict):
            return {name: self.fill(value) for name, value in template.items()}
        if isinstance(template, list):
            return [self.fill(value) for value in template]
        if not isinstance(template, str) or not template.startswith("{"):
            return template
        return self.names()[template[1:-1]]

    def names(self) -> dict[str, str]:
        """Return what the names in templates stand for."""
        return {
            "new": f"{uuid4().hex}@example.org",
            "KEY": f"Q{uuid4().hex[:8].upper()}",
            "PROJECT": self.project["key"],
            "email": self.people["user"].email,
            "ticket": self.ticket["id"],
            "file": self.file["id"],
            "project": self.project["id"],
            "workflow": self.workflow["id"],
            "target": self.target["id"],
            "view": self.view["id"],
            "plugin": "filesystem",
            # What is in a body is looked at before what it is for.
            "suggestion": self.ticket["id"],
            **{role: person.id for role, person in self.people.items()},
        }

    async def look(self) -> dict[str, Any]:
        """Return everything that a write could reach, and how much there is of it."""
        admin, names = self.live.admin, self.names()
        seen: dict[str, Any] = {}
        paths = ["/tickets/{ticket}", "/tickets/{ticket}/comments?limit=200", "/attachments/{file}",
                 "/projects/{project}", "/users/{user}", "/users/{agent}", "/users/{manager}",
                 "/tickets/{ticket}/attachments", "/workflows/{workflow}",
                 "/workflow-targets/{target}", "/views", "/views/{view}"]  # fmt: skip
        for path in paths:
            seen[path] = (await admin.get(path.format(**names))).expect(200)
        for path in ("/tickets", "/projects", "/users", "/workflows", "/workflow-targets"):
            counted = await admin.get(f"{path}?limit=1&count=true")
            seen[path] = counted.headers["X-Total-Count"]
        return seen


def _words(document: Any) -> set[str]:
    """Return the name of every property of every schema, and of every parameter."""
    found: set[str] = set()
    todo: list[Any] = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if isinstance(node.get("properties"), dict):
                found |= set(node["properties"])
            if "in" in node and isinstance(node.get("name"), str):
                found.add(node["name"])
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return found


async def _build(live: Live) -> Scene:
    people = {role: await live.person(role) for role in ("user", "agent", "manager")}
    people |= {"admin": live.admin, "nobody": live.nobody}
    user = people["user"]
    ticket = await user.ticket()
    file = (await user.upload(ticket["id"], b"words\n")).expect(201)
    file = await user.scanned(file["id"])
    new = {"key": f"Q{uuid4().hex[:8].upper()}", "name": "A project"}
    project = (await live.admin.post("/projects", new)).expect(201)
    workflow = (await live.admin.post("/workflows", _WORKFLOW)).expect(201)
    target = (await live.admin.post("/workflow-targets", _target())).expect(201)
    view = (await live.admin.post("/views", {"name": uuid4().hex, "query": {}})).expect(201)
    document = (await live.nobody.call("GET", "/openapi.json")).expect(200)
    words = _words(document) | set(HOSTILE)
    return Scene(live, people, ticket, file, project, workflow, target, view, words)


_WORKFLOW = {"name": "A rule", "trigger": "comment_added", "active": False,
             "actions": {"add_tag": "x"}}  # fmt: skip


def _target() -> dict[str, str]:
    return {"name": uuid4().hex, "url": "https://example.org/", "secret": "0123456789abcdef"}


@pytest.fixture(scope="module")
def scene(live: Live) -> Iterator[Scene]:
    """One of everything, on the daemon of the run."""
    before = wait(_rules(live))
    yield wait(_build(live))
    # A word that was taken may have switched one on: it would change other tests' tickets.
    for rule in wait(_rules(live)) - before:
        wait(live.admin.delete(f"/workflows/{rule}")).expect(204)


async def _rules(live: Live) -> set[str]:
    return {rule["id"] for rule in (await live.admin.get("/workflows?limit=200")).expect(200)}


def _ids(case: tuple[str, str, Any, Any, Any]) -> str:
    return f"{case[0]} as {case[1]}"


async def _send(session: ClientSession, person: Person, method: str, url: str, body: Any) -> Answer:
    headers = {"Authorization": f"Bearer {person.token}"} if person.token else {}
    async with session.request(method, url, json=body, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize("case", CASES, ids=_ids)
async def test_no_word_but_the_callers_own_is_taken(scene: Scene, case: Any) -> None:
    """S-03: 422 for what the route does not know, 403 for what is not this caller's; no change."""
    route, who, good, may, may_not = case
    method, path = route.split(" ")
    person = scene.people[who]
    url = f"{scene.live.url}/api/v1{path.format(**scene.names())}"
    before = await scene.look()
    wrong = []
    secrets = {"password", "current_password"}  # a pair, tried by itself below
    async with ClientSession() as session:
        for word in sorted(scene.words - may - secrets):
            value = HOSTILE.get(word, scene.fill(VALUES.get(word, "x")))
            answer = await _send(session, person, method, url, {**scene.fill(good), word: value})
            body = orjson.loads(answer.raw)
            if word in may_not:
                named = word in body["message"]
                fine = answer.status == 403 and named
            else:
                named = word in {field["path"] for field in body["details"].get("fields", ())}
                fine = answer.status == 422 and named
            if not fine:
                wrong.append(f"{word}: {answer.status} {answer.raw[:200]!r}")
    assert not wrong, "\n".join(wrong)
    assert await scene.look() == before


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES
        if case[0].startswith(("PATCH", "PUT")) and not case[0].endswith("/order")
    ],
    ids=_ids,
)
async def test_a_field_changes_itself_and_nothing_else(scene: Scene, case: Any) -> None:
    """S-03: what may be set is set; everything else about the object stays."""
    route, who, _, may, _ = case
    method, path = route.split(" ")
    person, admin = scene.people[who], scene.live.admin
    for word in sorted(may):
        names = scene.names()
        if path.startswith("/tickets"):
            names["ticket"] = (await scene.people["user"].ticket())["id"]
        elif path.startswith("/projects"):
            new = {"key": names["KEY"], "name": "Of its own"}
            names["project"] = (await admin.post("/projects", new)).expect(201)["id"]
        elif path.startswith("/workflows"):
            names["workflow"] = (await admin.post("/workflows", _WORKFLOW)).expect(201)["id"]
        elif path.startswith("/workflow-targets"):
            names["target"] = (await admin.post("/workflow-targets", _target())).expect(201)["id"]
        elif path.startswith("/views"):
            kept = {"name": uuid4().hex, "query": {}}
            names["view"] = (await admin.post("/views", kept)).expect(201)["id"]
        elif who == "admin":
            new = {"email": names["new"], "name": "Of their own"}
            names["user"] = (await admin.post("/users", new)).expect(201)["id"]
        where = path.format(**names)
        before = (await admin.get(where)).expect(200)
        value = scene.fill(VALUES[word])
        answer = await person.call(method, f"/api/v1{where}", json={word: value})
        after = answer.expect(200)
        assert after == (await admin.get(where)).expect(200)
        changed = {name for name in after if after[name] != before[name]}
        assert changed <= {word} | ALSO.get(word, set()) | ALWAYS, word
        if who in ("user", "agent", "manager") and "name" in before and "/users" in path:
            undo = {name: before[name] for name in ("name", "avatar_url")}
            (await person.patch(where, undo)).expect(200)


async def test_a_password_needs_the_one_before(scene: Scene) -> None:
    """S-03: a password changes with proof of the old one only, and nobody sets another person's."""
    person = await scene.live.person()
    path = f"/users/{person.id}"
    new = "another horse battery"
    (await person.patch(path, {"password": new})).refused(422, "E_VALIDATION_ERROR")
    for wrong in ("", "no", new):
        refused = await person.patch(path, {"password": new, "current_password": wrong})
        refused.refused(422, "E_VALIDATION_ERROR")
    for role in ("user", "agent", "manager"):
        other = scene.people[role]
        refused = await other.patch(path, {"password": new, "current_password": PASSWORD})
        refused.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    again = await scene.live.sign_in(person.email)
    good = await again.patch(path, {"password": new, "current_password": PASSWORD})
    good.expect(200)
    await scene.live.sign_in(person.email, new)


async def test_the_cases_are_every_write_of_the_api(scene: Scene) -> None:
    """S-03: a new route with a JSON body has to be entered here."""
    document = (await scene.live.nobody.call("GET", "/openapi.json")).expect(200)
    writes = {
        f"{method.upper()} {path.removeprefix('/api/v1')}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
        # Jira's own words, of which only those are read that are meant.
        and operation["x-itdesk-who"] != "signature"
    }
    named = {
        case[0].replace("{project}", "{id}").replace("{user}", "{id}").replace("{agent}", "{id}")
        .replace("{manager}", "{id}").replace("{workflow}", "{id}").replace("{target}", "{id}")
        .replace("{view}", "{id}").replace("{suggestion}", "{id}")
        for case in CASES
    }  # fmt: skip
    assert named == writes


async def test_every_route_refuses_parameters_that_it_does_not_know(scene: Scene) -> None:
    """S-03: nothing is smuggled by the query; an unknown parameter is 422, by name."""
    document = (await scene.live.nobody.call("GET", "/openapi.json")).expect(200)
    names = {"ticket": scene.ticket["id"], "key": scene.ticket["key"], "id": scene.file["id"],
             "signed": "x.y", "release": "x", "file": "y", "client_id": "c",
             "provider": "google", "plugin": "filesystem",
             "identity": scene.file["id"]}  # fmt: skip
    before = await scene.look()
    async with ClientSession() as session:
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                known = {parameter["name"] for parameter in operation.get("parameters", ())}
                for word in ("role", "user_id", "is_admin", "_method", "scope", "access_token"):
                    # What a websocket's address carries beyond its path is read by nobody, and
                    # an identity provider may have a browser bring along what it likes.
                    if word in known or path.startswith("/ws/") or path.endswith("/callback"):
                        continue
                    url = f"{scene.live.url}{path.format(**names)}?{word}=admin"
                    answer = await _send(session, scene.live.admin, method, url, None)
                    fields = answer.refused(422, "E_VALIDATION_ERROR")["fields"]
                    assert {field["path"] for field in fields} == {word}, (method, path)
    assert await scene.look() == before
