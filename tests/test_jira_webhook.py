"""What Jira and n8n send, to a real daemon over real sockets: who is believed, and what comes of
it."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
import pytest_asyncio
from aiohttp import ClientSession

from itdesk_plugins.jira import webhook
from tests.support.daemon import Answer, Live, Person, serving, started
from tests.support.jira import FakeJira, doc, fake_jira, signature
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.stream import following

ROOT = Path(__file__).resolve().parents[1]
SECRET = "webhook-4711-0815-xyz"
UPSERT, RECONCILE = "/api/v1/integrations/jira/upsert", "/api/v1/integrations/jira/reconcile"


def connection(jira: FakeJira) -> dict[str, str]:
    """Return what makes a desk that knows this Jira and tells it nothing."""
    return {
        "JIRA_BASE_URL": jira.url,
        "JIRA_EMAIL": jira.email,
        "JIRA_API_TOKEN": jira.token,
        "ITDESK_SCANNER__ENABLED": "false",
        # What comes in is looked at here; what goes out, in tests/test_jira_desk.py.
        "ITDESK_PLUGINS__JIRA__PUSH__ENABLED": "false",
        "ITDESK_PLUGINS__JIRA__BREAKER_SECONDS": "0.05",
    }


@pytest.fixture(scope="module")
def signed(pg_server: Server, jira: FakeJira) -> Iterator[Live]:
    """A desk that knows a secret with Jira."""
    with serving(pg_server, **connection(jira), JIRA_WEBHOOK_SECRET=SECRET) as live:
        yield live


@pytest.fixture(scope="module")
def open_desk(pg_server: Server, jira: FakeJira) -> Iterator[Live]:
    """A desk without a secret, which believes a proxy on this machine about addresses."""
    proxies = {"ITDESK_SERVER__TRUSTED_PROXIES": "127.0.0.1"}
    with serving(pg_server, **connection(jira), **proxies) as live:
        yield live


@pytest_asyncio.fixture(autouse=True)
async def quiet(jira: FakeJira) -> AsyncIterator[None]:
    """Nothing that one test did to Jira goes on in the next."""
    yield
    jira.troubles.clear()
    jira.take()


async def send(
    live: Live, body: Any, headers: Mapping[str, str] | None = None, *, path: str = UPSERT,
    secret: str | None = SECRET,
) -> Answer:  # fmt: skip
    """Post a body as n8n does, signed unless told otherwise."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {"Content-Type": "application/json", "X-Sync-Origin": "n8n"}
    if secret is not None:
        sent["X-Signature"] = signature(secret, raw)
    return await live.nobody.call("POST", path, data=raw, headers={**sent, **(headers or {})})


def new_key() -> str:
    """Return a key that no other test uses."""
    return f"ITSM-{uuid4().int % 10**15 + 1}"


def simple(key: str, **fields: Any) -> dict[str, Any]:
    """Return the body that the origin document shows."""
    return {
        "issueKey": key,
        "fields": {
            "summary": "VPN connection failing",
            "description": "User cannot connect to VPN",
            "status": {"name": "In Progress"},
            "priority": {"name": "High"},
            "issuetype": {"name": "Incident"},
            "labels": ["vpn", "network"],
            "assignee": {"displayName": "Jane Smith"},
            "reporter": {"displayName": "John Doe"},
            "created": "2026-02-01T10:00:00.000+0200",
            "updated": "2026-02-02T12:30:00.000-0500",
            **fields,
        },
        "comments": [],
    }


async def ticket(live: Live, key: str) -> Any:
    """Return a mirrored ticket as agents see it."""
    return (await live.admin.get(f"/tickets/{key}")).expect(200)


async def history(live: Live, key: str) -> list[tuple[str, Any, Any]]:
    """Return what happened to a ticket."""
    lines = (await live.admin.get(f"/tickets/{key}/history?limit=200")).expect(200)
    return [(line["action"], line["old_value"], line["new_value"]) for line in lines]


async def sql(live: Live, statement: str, *values: object) -> Any:
    """Return the first value of a statement."""
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        return await conn.fetchval(statement, *values)
    finally:
        await conn.close()


# --- what is taken over --------------------------------------------------------------------


async def test_the_sample_body_gives_the_ticket_that_the_document_promises(signed: Live) -> None:
    """S4-51, S4-52: key, status, priority, tags, names, and both times in UTC."""
    key = new_key()
    answer = (await send(signed, simple(key))).expect(200)
    found = await ticket(signed, key)
    assert answer == {"status": "ok", "jira_key": key, "ticket_id": found["id"],
                      "created": True, "updated": False}  # fmt: skip
    assert (found["key"], found["project"]) == (key, "ITSM")
    assert (found["status"], found["priority"]) == ("in_progress", "high")
    assert found["category"] == "service_request" and found["tags"] == ["vpn", "network"]
    assert found["reporter_name"] == "John Doe"
    assert found["external"]["assignee"] == "Jane Smith" and found["assignee_ids"] == []
    assert found["created_at"] == "2026-02-01T08:00:00Z"
    assert found["updated_at"] == found["external"]["updated_at"] == "2026-02-02T17:30:00Z"
    assert found["external"]["source"] == "jira" and found["external"]["id"] == key
    again = (await send(signed, simple(key, labels=["other"]))).expect(200)
    assert (again["created"], again["updated"]) == (False, False)
    newer = simple(key, updated="2026-02-02T12:30:00.001-0500", status={"name": "Done"})
    assert (await send(signed, newer)).expect(200)["updated"] is True
    closed = await ticket(signed, key)
    assert closed["status"] == "closed" and closed["closed_at"] is not None
    assert ("updated_status", "in_progress", "closed") in await history(signed, key)


async def test_jiras_own_webhooks_open_change_and_close_a_ticket(
    signed: Live, jira: FakeJira
) -> None:
    """S4-50, X29, X30, X33: raw bodies with X-Hub-Signature; every step is in the history."""
    project = f"A{uuid4().hex[:6].upper()}"
    issue = jira.issue("Printer on fire", project=project, description="h1. It *burns*")
    jira.change(issue, status="Resolved", priority="Highest")
    said = jira.say(issue, "poured {{water}} on it")
    jira.edit(issue, said, "poured _foam_ on it")
    jira.change(issue, status="To Do", labels=["fire"])
    jira.delete(issue)
    answers = await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    assert [status for status, _ in answers] == [200] * 6
    assert [body["created"] for _, body in answers] == [True] + [False] * 5
    assert all(body["updated"] for _, body in answers[1:])
    found = await ticket(signed, issue.key)
    assert (found["status"], found["priority"]) == ("closed", "critical")
    assert (found["description"], found["tags"]) == ("It burns", ["fire"])
    comments = (await signed.admin.get(f"/tickets/{issue.key}/comments")).expect(200)
    assert [comment["body"] for comment in comments] == ["poured foam on it"]
    lines = await history(signed, issue.key)
    steps = [line for line in lines if line[0] == "updated_status"]
    assert steps == [("updated_status", "open", "closed"), ("updated_status", "closed", "open"),
                     ("updated_status", "open", "closed")]  # fmt: skip
    assert ("updated_external", issue.key, "deleted in Jira") in lines
    sources = await sql(
        signed, "SELECT array_agg(DISTINCT source) FROM events WHERE ticket_id = $1::uuid",
        found["id"],
    )  # fmt: skip
    assert sources == ["jira"]


async def test_a_local_edit_lasts_until_jira_says_something_newer(
    signed: Live, jira: FakeJira
) -> None:
    """S4-48, S4-49, X29: Jira wins then; what Jira has no word for stays."""
    project = f"B{uuid4().hex[:6].upper()}"
    issue = jira.issue("Slow laptop", project=project)
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    mine = {"title": "Very slow laptop", "department": "Sales", "resolution": "more memory",
            "category": "hardware"}  # fmt: skip
    (await signed.admin.patch(f"/tickets/{issue.key}", mine)).expect(200)
    said = await signed.admin.post(f"/tickets/{issue.key}/comments", {"body": "ours"})
    said.expect(201)
    stale = jira.event("jira:issue_updated", issue)
    await jira.deliver(signed.url + UPSERT, [stale], secret=SECRET)
    assert (await ticket(signed, issue.key))["title"] == "Very slow laptop"
    jira.change(issue, priority="Low")
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    found = await ticket(signed, issue.key)
    assert (found["title"], found["priority"]) == ("Slow laptop", "low")
    kept = (found["department"], found["resolution"], found["category"])
    assert kept == ("Sales", "more memory", "hardware")
    comments = (await signed.admin.get(f"/tickets/{issue.key}/comments")).expect(200)
    assert [comment["body"] for comment in comments] == ["ours"]
    titles = [line for line in await history(signed, issue.key) if line[0] == "updated_title"]
    assert titles == [("updated_title", "Slow laptop", "Very slow laptop"),
                      ("updated_title", "Very slow laptop", "Slow laptop")]  # fmt: skip


async def test_what_an_event_does_not_mention_is_not_erased(signed: Live, jira: FakeJira) -> None:
    """R66: comment events carry a few fields only, as of nobody knows when."""
    project = f"C{uuid4().hex[:6].upper()}"
    issue = jira.issue("Mail", project=project, description="down", labels=["mail"])
    jira.take()
    jira.say(issue, "looking")
    (comment,) = jira.take()
    ((_, body),) = await jira.deliver(signed.url + UPSERT, [comment], secret=SECRET)
    assert body["created"] is True
    found = await ticket(signed, issue.key)
    assert (found["description"], found["tags"]) == ("down", ["mail"])
    raw = orjson.loads(jira.event("jira:issue_updated", jira.change(issue)).body)
    raw["issue"]["fields"] = {"updated": jira.shown_time(jira.tick()), "summary": "Mail, again"}
    (await send(signed, raw)).expect(200)
    found = await ticket(signed, issue.key)
    assert (found["title"], found["description"], found["tags"]) == (
        "Mail, again",
        "down",
        ["mail"],
    )


async def test_the_few_fields_of_a_comments_event_change_nothing(
    signed: Live, jira: FakeJira
) -> None:
    """SPEC 7: summary, status, priority and assignee in it are of nobody knows when."""
    project = f"P{uuid4().hex[:6].upper()}"
    issue = jira.issue("Mail", project=project, priority="High", assignee=jira.user("Jane"))
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    before = await ticket(signed, issue.key)
    jira.say(issue, "looking")
    raw = orjson.loads(jira.take()[0].body)
    fields = raw["issue"]["fields"]
    assert set(fields) == {"summary", "issuetype", "project", "assignee", "priority", "status"}
    fields |= {
        "summary": "Old", "assignee": None, "priority": {"name": "Low"},
        "status": {"name": "Done", "statusCategory": {"key": "done"}},
    }  # fmt: skip
    (await send(signed, raw)).expect(200)
    after = await ticket(signed, issue.key)
    told = ("title", "status", "priority", "assignee_ids", "external")
    assert {name: after[name] for name in told} == {name: before[name] for name in told}
    comments = (await signed.admin.get(f"/tickets/{issue.key}/comments")).expect(200)
    assert [comment["body"] for comment in comments] == ["looking"]


async def test_a_comment_that_names_no_issue_finds_its_ticket(signed: Live, jira: FakeJira) -> None:
    """COMPONENTS 12: comment events may lack the issue; only the comment's address tells."""
    project = f"D{uuid4().hex[:6].upper()}"
    issue = jira.issue("Keys", project=project)
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    jira.say(issue, "found them")
    (sent,) = jira.take()
    body = orjson.loads(sent.body)
    del body["issue"]
    answer = (await send(signed, body)).expect(200)
    assert answer["updated"] is True
    comments = (await signed.admin.get(f"/tickets/{issue.key}/comments")).expect(200)
    assert [comment["body"] for comment in comments] == ["found them"]


async def test_a_deleted_issue_stays_closed_whatever_comes_late(
    signed: Live, jira: FakeJira
) -> None:
    """X33: the deletion overtakes the rest."""
    project = f"E{uuid4().hex[:6].upper()}"
    issue = jira.issue("Gone", project=project)
    first = jira.take()
    await jira.deliver(signed.url + UPSERT, first, secret=SECRET)
    jira.change(issue, priority="High")
    late = jira.take()
    unheard = jira.issue("Never heard of", project=project)
    jira.delete(issue)
    jira.delete(unheard)
    created, *deletions = jira.take()
    await jira.deliver(signed.url + UPSERT, [*deletions, *late, created], secret=SECRET)
    found = await ticket(signed, issue.key)
    assert (found["status"], found["priority"]) == ("closed", "medium")
    (await signed.admin.get(f"/tickets/{unheard.key}")).expect(404)


async def test_a_moved_issue_keeps_its_ticket_and_gets_its_new_key(
    signed: Live, jira: FakeJira
) -> None:
    """X32: the ticket bears the key that Jira gives it, in the project that Jira puts it in."""
    one, two = f"F{uuid4().hex[:6].upper()}", f"G{uuid4().hex[:6].upper()}"
    issue = jira.issue("Wrong queue", project=one)
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    before = await ticket(signed, issue.key)
    jira.move(issue, two)
    ((_, body),) = await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    assert (body["ticket_id"], body["created"], body["updated"]) == (before["id"], False, True)
    after = await ticket(signed, issue.key)
    assert (after["id"], after["project"]) == (before["id"], two)
    assert after["external"]["id"] == issue.key


async def test_people_are_known_by_mail_and_others_by_name(signed: Live, jira: FakeJira) -> None:
    """R66: a verified address or an account says who it is; strangers stay names."""
    agent, person = await signed.person("agent"), await signed.person()
    impostor = f"{uuid4().hex}@example.org"
    new = {"email": impostor, "password": "correct horse battery", "name": "Nobody"}
    (await signed.nobody.post("/auth/register", new)).expect(201)
    project = f"H{uuid4().hex[:6].upper()}"
    jane = jira.user("Jane of Jira", agent.email)
    issue = jira.issue("Whose?", project=project, assignee=jane,
                       reporter=jira.user("Joe of Jira", person.email))  # fmt: skip
    other = jira.issue("Not mine", project=project, reporter=jira.user("Unproven", impostor),
                       assignee=jira.user("A user", person.email))  # fmt: skip
    await jira.deliver(signed.url + UPSERT, jira.take(), secret=SECRET)
    found = await ticket(signed, issue.key)
    assert found["assignee_ids"] == [agent.id] and found["reporter_id"] == person.id
    (await person.get(f"/tickets/{issue.key}")).expect(200)
    stranger = await ticket(signed, other.key)
    assert (stranger["reporter_id"], stranger["reporter_name"]) == (None, "Unproven")
    assert stranger["assignee_ids"] == [] and stranger["external"]["assignee"] == "A user"


async def test_a_body_of_nothing_but_a_key_is_completed_from_jira(
    signed: Live, jira: FakeJira
) -> None:
    """S4 upsert: no fields: GET the issue; no comments: fetch them; documents are plain text."""
    project = f"J{uuid4().hex[:6].upper()}"
    issue = jira.issue("Only a key", project=project)
    issue.adf, issue.description = doc("as a document"), "ignored"
    for number in range(25):
        jira.say(issue, f"comment {number}")
    jira.take()
    body = {"issueKey": issue.key}
    assert (await send(signed, body)).expect(200)["created"] is True
    assert (await ticket(signed, issue.key))["description"] == "as a document"
    comments = (await signed.admin.get(f"/tickets/{issue.key}/comments?limit=200")).expect(200)
    assert len(comments) == 25
    jira.change(issue, summary="Changed")
    assert (await send(signed, body)).expect(200)["updated"] is True
    jira.trouble(503)
    (await send(signed, body)).refused(502, "E_JIRA_UNAVAILABLE")
    jira.troubles.clear()
    (await send(signed, {"issueKey": "NONE-1"})).refused(400, "E_JIRA_PAYLOAD")


async def test_an_echo_of_our_own_is_acknowledged_and_changes_nothing(signed: Live) -> None:
    """S4-53: X-Sync-Origin itdesk, backend or db-sync."""
    key = new_key()
    (await send(signed, simple(key))).expect(200)
    newer = simple(key, updated="2027-01-01T00:00:00.000+0000", summary="echoed")
    for origin in ("itdesk", "backend", "db-sync", "ITDESK"):
        answer = (await send(signed, newer, {"X-Sync-Origin": origin})).expect(200)
        assert (answer["jira_key"], answer["created"], answer["updated"]) == (key, False, False)
    assert (await ticket(signed, key))["title"] == "VPN connection failing"
    assert (await send(signed, newer)).expect(200)["updated"] is True


async def test_local_numbering_is_refused_in_a_mirror(signed: Live) -> None:
    """X32: keys never collide."""
    (await send(signed, simple(new_key()))).expect(200)
    new = {"title": "By hand", "project": "ITSM"}
    (await signed.admin.post("/tickets", new)).refused(400, "E_TICKET_INVALID_PROJECT")


async def test_events_about_other_things_are_acknowledged(signed: Live) -> None:
    """A hook that sends everything does no harm and is not told to retry."""
    for event in ("sprint_started", "jira:version_released", "worklog_created"):
        body = {"webhookEvent": event, "issue": {"key": "ITSM-1"}}
        answer = (await send(signed, body)).expect(200)
        assert answer["status"] == "ignored" and answer["created"] is False


# --- who is believed -----------------------------------------------------------------------


def _forms() -> dict[str, Any]:
    def own(raw: bytes) -> str:
        return signature(SECRET, raw)

    return {
        "none": lambda raw: {},
        "empty": lambda raw: {"X-Signature": ""},
        "short": lambda raw: {"X-Signature": own(raw)[:-1]},
        "long": lambda raw: {"X-Signature": own(raw) + "0"},
        "wrong": lambda raw: {"X-Signature": own(raw + b" ")},
        "another secret": lambda raw: {"X-Hub-Signature": f"sha256={signature('x' * 16, raw)}"},
        "no secret": lambda raw: {"X-Signature": signature("", raw)},
        "uppercase": lambda raw: {"X-Signature": own(raw).upper()},
        "sha1": lambda raw: {"X-Hub-Signature": f"sha1={own(raw)}"},
        "SHA256": lambda raw: {"X-Hub-Signature": f"SHA256={own(raw)}"},
        "newline": lambda raw: {"X-Signature": f"{own(raw)}\t0"},
        "not ascii": lambda raw: {"X-Signature": "é" * 64},
        "two headers": lambda raw: {
            "X-Signature": own(raw),
            "X-Hub-Signature": f"sha256={own(raw)}",
        },
        "listed": lambda raw: {"X-Signature": f"{own(raw)},{own(raw)}"},
    }


@pytest.mark.parametrize("form", list(_forms()))
async def test_only_the_right_signature_is_believed(signed: Live, form: str) -> None:
    """S-32, S4-23: each wrong form is 401 and changes nothing, on both routes."""
    key = new_key()
    raw = orjson.dumps(simple(key))
    for path in (UPSERT, RECONCILE):
        answer = await send(signed, raw, _forms()[form](raw), path=path, secret=None)
        answer.refused(401, "E_SIGNATURE_INVALID")
    (await signed.admin.get(f"/tickets/{key}")).expect(404)


@pytest.mark.parametrize("prefix", ["", "sha256="])
@pytest.mark.parametrize("header", ["X-Signature", "X-Hub-Signature"])
async def test_both_headers_and_both_forms_are_accepted(
    signed: Live, header: str, prefix: str
) -> None:
    """S4-23, S-32."""
    key = new_key()
    raw = orjson.dumps(simple(key))
    headers = {header: f"{prefix}{signature(SECRET, raw)}"}
    assert (await send(signed, raw, headers, secret=None)).expect(200)["created"] is True


async def test_the_bytes_are_signed_and_not_what_they_mean(signed: Live) -> None:
    """S-32: a body that was read and written again is another body; chunks are not."""
    raw = orjson.dumps(simple(new_key()), option=orjson.OPT_INDENT_2)
    spelled = signature(SECRET, raw)
    again = orjson.dumps(orjson.loads(raw))
    answer = await send(signed, again, {"X-Signature": spelled}, secret=None)
    answer.refused(401, "E_SIGNATURE_INVALID")

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), 7):
            yield raw[start : start + 7]

    headers = {"Content-Type": "application/json", "X-Signature": spelled}
    answer = await signed.nobody.call("POST", UPSERT, data=pieces(), headers=headers)
    assert answer.expect(200)["created"] is True


async def test_a_header_given_twice_is_refused(signed: Live) -> None:
    """S-32: which of the two would be believed?"""
    raw = orjson.dumps(simple(new_key()))
    twice = [("Content-Type", "application/json")]
    twice += [("X-Signature", signature(SECRET, raw)), ("X-Signature", "0" * 64)]
    async with (
        ClientSession() as session,
        session.post(signed.url + UPSERT, data=raw, headers=twice) as response,
    ):
        assert response.status == 401


@pytest.mark.parametrize("framing", ["Content-Length: 20000000", "Transfer-Encoding: chunked"])
async def test_twenty_megabytes_are_refused_before_they_are_looked_at(
    signed: Live, framing: str
) -> None:
    """S-32: 413, announced or in chunks."""
    port = int(signed.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {UPSERT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{framing}"
    writer.write(f"{head}\r\n\r\n".encode())
    if "chunked" in framing:
        # Little more than is accepted: what comes after it would only meet a closed door.
        writer.write(b"%x\r\n%b\r\n" % (1_100_000, b"x" * 1_100_000))
    try:
        answer = await asyncio.wait_for(reader.read(20_000), 20)
    finally:
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ") and b"E_TOO_LARGE" in answer


async def test_other_content_and_broken_json_are_told_apart(signed: Live) -> None:
    """S4-52: 415, 400; nothing a sender writes is a 500."""
    raw = orjson.dumps(simple(new_key()))
    (await send(signed, raw, {"Content-Type": "text/plain"})).expect(415)
    (await send(signed, raw, {"Content-Type": "application/x-www-form-urlencoded"})).expect(415)
    (await send(signed, b'{"issueKey": ')).refused(400, "E_BAD_JSON")
    (await send(signed, b"")).refused(400, "E_BAD_JSON")
    for body in (b"[]", b"7", b"{}", b'{"issueKey": 7}', b'{"issueKey": "x-1", "fields": {}}',
                 b'{"issue": {"fields": {}}}', b'{"webhookEvent": "comment_created"}',
                 b'{"issueKey": "ITSM-1", "fields": 7}'):  # fmt: skip
        (await send(signed, body)).refused(400, "E_JIRA_PAYLOAD")


async def test_an_agents_token_is_believed_instead_of_a_signature(signed: Live) -> None:
    """X9: a bearer of agent and above, on both routes; a user's or a broken one is none."""
    agent, user = await signed.person("agent"), await signed.person()
    raw = orjson.dumps(simple(new_key()))
    for person, status in ((agent, 200), (user, 403), (Person(signed.url, "no.such.token"), 401)):
        headers = {"Authorization": f"Bearer {person.token}"}
        assert (await send(signed, raw, headers, secret=None)).status == status
    headers = {"Authorization": f"Bearer {agent.token}"}
    assert (await send(signed, {}, headers, path=RECONCILE, secret=None)).status == 200
    made = (await agent.post("/tokens", {"name": "only reads", "scope": "read"})).expect(201)
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await send(signed, raw, headers, secret=None)).status == 403
    # A wrong signature is not made good by a token.
    assert (await send(signed, raw, headers, secret="another")).status == 401


async def test_without_a_secret_only_this_machine_and_agents_are_heard(open_desk: Live) -> None:
    """X9, S-32: neither other machines, nor web pages open on this one, nor invented signatures."""
    away = {"X-Forwarded-For": "192.0.2.7"}
    for path in (UPSERT, RECONCILE):
        raw = orjson.dumps(simple(new_key()) if path == UPSERT else {})
        assert (await send(open_desk, raw, path=path, secret=None)).status == 200
        (await send(open_desk, raw, away, path=path, secret=None)).refused(
            401, "E_AUTH_TOKEN_MISSING"
        )
        page = {"Origin": "https://evil.example"}
        assert (await send(open_desk, raw, page, path=path, secret=None)).status == 401
        for secret in ("", "anything"):
            answer = await send(open_desk, raw, away, path=path, secret=secret)
            answer.refused(401, "E_SIGNATURE_INVALID")
        agent = await open_desk.person("agent")
        with_token = {**away, "Authorization": f"Bearer {agent.token}"}
        assert (await send(open_desk, raw, with_token, path=path, secret=None)).status == 200
    warned = [line for line in open_desk.daemon.lines() if "webhook_secret" in str(line)]
    assert warned


# --- how often -----------------------------------------------------------------------------


async def replayed(live: Live, jira: FakeJira, count: int) -> None:
    """Send one delivery so many times, many at once; it has one effect."""
    project = f"K{uuid4().hex[:6].upper()}"
    issue = jira.issue("Once", project=project)
    said = jira.say(issue, "once as well")
    opened, comment = jira.take()
    jira.unsay(issue, said)
    (unsaid,) = jira.take()
    url = live.url + UPSERT
    async with ClientSession() as session:

        async def post(delivery: Any, identifier: str | None = None) -> Any:
            headers = delivery.headers(SECRET)
            if identifier is not None:
                headers["X-Atlassian-Webhook-Identifier"] = identifier
            async with session.post(url, data=delivery.body, headers=headers) as response:
                return response.status, orjson.loads(await response.read())

        effects = 0
        for start in range(0, count, 50):
            several = range(start, min(start + 50, count))
            answers = await asyncio.gather(*(post(opened) for _ in several))
            assert {status for status, _ in answers} == {200}
            effects += sum(body["created"] or body["updated"] for _, body in answers)
        assert effects == 1
        assert (await post(comment))[1]["updated"] and (await post(unsaid))[1]["updated"]
        # Captured, and sent again under other names.
        for delivery in (opened, comment, unsaid):
            _, body = await post(delivery, str(uuid4()))
            assert (body["status"], body["created"], body["updated"]) == ("duplicate", False, False)
    found = await ticket(live, issue.key)
    assert found["version"] == 3
    assert (await live.admin.get(f"/tickets/{issue.key}/comments")).expect(200) == []


async def test_a_delivery_has_one_effect_however_often_it_comes(
    signed: Live, jira: FakeJira
) -> None:
    """S-32: replays, at the same time and later, under the same identifier and others."""
    await replayed(signed, jira, 200)


@pytest.mark.slow
async def test_ten_thousand_replays_have_one_effect(signed: Live, jira: FakeJira) -> None:
    """S-32."""
    await replayed(signed, jira, 10_000)


async def test_the_same_issue_told_by_many_at_once_is_one_ticket(signed: Live) -> None:
    """R66: no second ticket, no error, the newest telling wins."""
    key = new_key()
    bodies = [simple(key, summary=f"telling {n}", updated=f"2026-03-01T00:00:{n:02d}.000+0000")
              for n in range(30)]  # fmt: skip
    answers = await asyncio.gather(*(send(signed, body) for body in reversed(bodies)))
    assert {answer.status for answer in answers} == {200}
    assert sum(answer.json["created"] for answer in answers) == 1
    assert (await ticket(signed, key))["title"] == "telling 29"


# --- the other two routes ------------------------------------------------------------------


async def test_reconcile_answers_exactly_the_eight_keys(signed: Live, jira: FakeJira) -> None:
    """S4-54, S4-56, A1: the body of the document, at the older path as well."""
    project = f"L{uuid4().hex[:6].upper()}"
    for number in range(3):
        jira.issue(f"Lost {number}", project=project)
    jira.take()
    body = {"since": "2026-01-01T00:00:00Z", "project_key": project}
    first = (await send(signed, body, path=RECONCILE)).expect(200)
    assert set(first) == {"status", "project_key", "since", "fetched", "created", "updated",
                          "unchanged", "errors"}  # fmt: skip
    assert (first["created"], first["since"]) == (3, "2026-01-01T00:00:00Z")
    path = RECONCILE.replace("/v1", "")
    second = (await send(signed, {"project_key": project}, path=path)).expect(200)
    assert (second["created"], second["updated"]) == (0, 0)
    assert (await send(signed, b"", path=RECONCILE)).expect(200)["project_key"] is None
    for wrong in ({"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}, {"project_key": "a b"},
                  {"project_key": 'X" OR 1'}, {"more": 1}):  # fmt: skip
        (await send(signed, wrong, path=RECONCILE)).refused(422, "E_VALIDATION_ERROR")


async def test_reconcile_says_when_jira_is_out(signed: Live, jira: FakeJira) -> None:
    """R67: 502, nothing of what Jira said, and readiness says it too."""
    jira.trouble(500, body={"errorMessages": ["secret internals of Jira"]})
    answer = await send(signed, {}, path=RECONCILE)
    answer.refused(502, "E_JIRA_UNAVAILABLE")
    assert b"secret internals" not in answer.raw
    health = (await signed.nobody.call("GET", "/readyz")).expect(200)
    assert health["status"] == "degraded" and "jira" in health["checks"]["plugins"]["reason"]
    jira.troubles.clear()
    (await send(signed, {}, path=RECONCILE)).expect(200)
    checks = (await signed.nobody.call("GET", "/readyz")).expect(200)["checks"]
    assert checks["plugins"]["status"] == "ok"


async def test_status_tells_how_far_the_mirror_has_come(signed: Live, live: Live) -> None:
    """R68, S4-64; `live` is a desk without Jira."""
    (await send(signed, {}, path=RECONCILE)).expect(200)
    found = (await signed.admin.get("/integrations/jira/status")).expect(200)
    assert set(found) == {"configured", "projects", "mirrored_tickets"}
    assert found["configured"] is True and found["mirrored_tickets"] > 0
    row = next(row for row in found["projects"] if row["project_key"] == "*")
    assert set(row) == {"project_key", "last_synced_at", "last_cursor", "last_error",
                        "last_run_at", "updated_at"}  # fmt: skip
    off = (await live.admin.get("/integrations/jira/status")).expect(200)
    assert off == {"configured": False, "projects": [], "mirrored_tickets": 0}


async def test_the_shell_reconciles_too(signed: Live, jira: FakeJira) -> None:
    """C11: the same code beside a running daemon."""
    project = f"M{uuid4().hex[:6].upper()}"
    issue = jira.issue("From the shell", project=project)
    jira.take()
    done = await asyncio.to_thread(signed.daemon.run, "jira", "reconcile", "--project-key", project)
    assert done.returncode == 0 and "fetched=1 created=1" in done.stdout, done
    assert (await ticket(signed, issue.key))["title"] == "From the shell"
    wrong = await asyncio.to_thread(signed.daemon.run, "jira", "reconcile", "--since", "yesterday")
    assert wrong.returncode == 2 and "2026-01-31T12:00:00Z" in wrong.stderr


async def test_without_jira_the_import_says_what_to_set(live: Live) -> None:
    """C10: 1 when it is not configured; `live` is a desk without Jira."""
    done = await asyncio.to_thread(live.daemon.run, "jira", "import")
    assert done.returncode == 1 and "JIRA_BASE_URL" in done.stderr, done


async def test_what_came_and_what_was_asked_is_counted(signed: Live) -> None:
    """itdesk_jira_...: by what became of it; the secrets are nowhere."""
    text = (await signed.nobody.call("GET", "/metrics")).raw.decode()
    for name in ("itdesk_jira_deliveries_total", "itdesk_jira_request_seconds_count",
                 "itdesk_jira_reconciled_total", "itdesk_jira_up"):  # fmt: skip
        assert name in text
    log = signed.daemon.log.read_text()
    assert SECRET not in log and "jira-api-token-1" not in log


async def test_the_schedule_compares_by_itself(pg_server: Server) -> None:
    """scheduler.jira_reconcile_seconds: without n8n, with Data Center and an access token."""
    async with fake_jira("datacenter") as jira:
        env = {
            "JIRA_BASE_URL": jira.url,
            "JIRA_API_TOKEN": jira.token,
            "ITDESK_SCHEDULER__JIRA_RECONCILE_SECONDS": "1",
            "ITDESK_JOBS__POLL_SECONDS": "1",
        }
        async with started(pg_server, **env) as live:
            async with following(live.admin) as stream:
                issue = jira.issue("By itself")
                await stream.until("ticket.created")
            assert (await ticket(live, issue.key))["title"] == "By itself"
            assert {one.authorization for one in jira.asked} == {f"Bearer {jira.token}"}


async def test_a_desk_that_only_listens_needs_no_account(pg_server: Server) -> None:
    """S4-51, n8n: with nothing but a secret, full bodies are taken and Jira is never asked."""
    async with started(pg_server, JIRA_WEBHOOK_SECRET=SECRET) as live:
        key = new_key()
        assert (await send(live, simple(key))).expect(200)["created"] is True
        (await send(live, {"issueKey": key})).refused(400, "E_JIRA_PAYLOAD")
        (await send(live, {}, path=RECONCILE)).refused(404, "E_JIRA_NOT_CONFIGURED")
        status = (await live.admin.get("/integrations/jira/status")).expect(200)
        assert (status["configured"], status["mirrored_tickets"]) == (False, 1)
        assert (await live.nobody.call("GET", "/readyz")).status == 200


async def test_who_tells_a_plugin_that_is_off_is_told_to_come_again(pg_server: Server) -> None:
    """O-05: no secret is wrong and nothing is misconfigured; a walk on its way is cut, as a route
    is, and not left with a closed session."""
    async with fake_jira() as jira:
        env = {
            "JIRA_BASE_URL": jira.url,
            "JIRA_EMAIL": jira.email,
            "JIRA_API_TOKEN": jira.token,
            "JIRA_WEBHOOK_SECRET": SECRET,
            "ITDESK_PLUGINS__JIRA__TIMEOUT_SECONDS": "0.3",
        }
        async with started(pg_server, **env) as live, asyncio.TaskGroup() as group:
            stalled = jira.trouble("stall", path="/search", times=1)
            walk = group.create_task(send(live, {}, path=RECONCILE))

            async def asked() -> bool:
                return stalled.times == 0

            await eventually(asked, seconds=20)
            (await switch(live, enabled=False)).expect(200)
            (await walk).refused(503, "E_PLUGIN_OFF")
            for path, secret in ((UPSERT, SECRET), (UPSERT, None), (RECONCILE, SECRET)):
                answer = await send(live, simple(new_key()), path=path, secret=secret)
                answer.refused(503, "E_PLUGIN_OFF")
                assert int(answer.headers["Retry-After"]) > 0
            text = (await live.nobody.call("GET", "/metrics")).raw.decode()
            assert 'itdesk_breaker_open{part="jira"}' not in text
            (await switch(live, enabled=True)).expect(200)
            (await send(live, simple(new_key()))).expect(200)
            text = (await live.nobody.call("GET", "/metrics")).raw.decode()
            assert 'itdesk_breaker_open{part="jira"} 0.0' in text


async def switch(live: Live, *, enabled: bool) -> Answer:
    """Switch the plugin of Jira."""
    path = "/api/v1/plugin-switches/jira"
    return await live.admin.call("PUT", path, json={"enabled": enabled})


def test_the_workflow_signs_the_very_string_that_it_sends() -> None:
    """SPEC 7, n8n: one expression for both, raw, with the headers that itdesk reads."""
    workflow = orjson.loads((ROOT / "etc/n8n-workflow.json").read_bytes())
    nodes = {node["name"]: node for node in workflow["nodes"]}
    sign, tell = nodes["Sign"]["parameters"], nodes["Tell itdesk"]["parameters"]
    assert sign["value"] == tell["body"] == "={{ $json.text }}"
    assert (sign["action"], sign["type"], sign["encoding"]) == ("hmac", "SHA256", "hex")
    assert (tell["contentType"], tell["rawContentType"]) == ("raw", "application/json")
    sent = {one["name"]: one["value"] for one in tell["headerParameters"]["parameters"]}
    assert sent["X-Signature"] == "=sha256={{ $json." + sign["dataPropertyName"] + " }}"
    assert sent["X-Sync-Origin"] == "n8n"
    paths = {node["parameters"].get("jsCode", "") for node in workflow["nodes"]}
    assert all(
        any(path.replace("/v1", "") in code for code in paths) for path in (UPSERT, RECONCILE)
    )
    ways = workflow["connections"]
    for start in ("Webhook of Jira", "Every 5 minutes"):
        node, steps = start, 0
        while node != "Tell itdesk":
            node, steps = ways[node]["main"][0][0]["node"], steps + 1
            assert steps < 5
    assert "4711" not in str(workflow) and workflow["active"] is False


def test_the_body_of_the_readme_is_one_that_is_understood() -> None:
    """README, Jira: what operators copy."""
    section = (ROOT / "README.md").read_text().split("### Jira\n")[1].split("\n### ")[0]
    (text,) = re.findall(r"^```json\n(.*?)^```", section, flags=re.M | re.S)
    told = webhook.read(orjson.loads(text))
    assert told is not None and told.issue.key == "ITSM-123" and told.issue.comments
    assert {"title", "status", "priority", "tags", "assignee"} <= set(told.issue.fields)
