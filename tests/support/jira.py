"""A Jira of our own on a real socket: both dialects, stateful, and hostile when a test wants it.

What it holds is changed in two ways: over REST, as Jira's clients do, or by the methods of
`FakeJira`, as people in Jira do. Either way the change gets a webhook, which waits in `outbox`
until the test delivers it: once, twice, in another order, or never.
"""

import asyncio
import base64
import copy
import hashlib
import hmac
import re
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

import orjson
import pytest
from aiohttp import ClientSession, web

Dialect = Literal["cloud", "datacenter"]

STATUSES: Mapping[str, tuple[str, str]] = {
    "To Do": ("10000", "new"),
    "In Progress": ("3", "indeterminate"),
    "Waiting for customer": ("10100", "indeterminate"),
    "Resolved": ("5", "done"),
    "Done": ("10001", "done"),
}
TYPES = {"Task": "10002", "Bug": "10004", "Incident": "10005", "Service Request": "10006"}
PRIORITIES = {"Highest": "1", "High": "2", "Medium": "3", "Low": "4", "Lowest": "5"}
NAVIGABLE = (
    "summary description status priority issuetype project labels assignee reporter created"
    " updated resolution comment"
).split()


@dataclass
class Account:
    """A person of Jira's."""

    id: str
    name: str
    email: str | None
    active: bool = True


@dataclass
class Said:
    """A comment; `text` is wiki text, `adf` what a client sent on version 3."""

    id: str
    text: str
    author: Account
    created: datetime
    updated: datetime
    adf: dict[str, Any] | None = None
    public: bool = True
    properties: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Issue:
    """An issue as Jira keeps it."""

    id: str
    key: str
    summary: str
    created: datetime
    updated: datetime
    description: str | None = None
    adf: dict[str, Any] | None = None
    status: str = "To Do"
    priority: str = "Medium"
    type: str = "Task"
    labels: list[str] = field(default_factory=list)
    assignee: Account | None = None
    reporter: Account | None = None
    resolution: str | None = None
    comments: list[Said] = field(default_factory=list)
    properties: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def project(self) -> str:
        """Return the key of its project."""
        return self.key.rpartition("-")[0]


@dataclass(frozen=True)
class Asked:
    """One request as it came in, and what it got."""

    at: float
    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    authorization: str
    status: int


@dataclass
class Trouble:
    """What goes wrong for requests that match, so many times (None: until it is taken away).

    `how` is a status, or `stall`, `drop` (the connection is cut), `html` (a proxy's 502 page), or
    `lost` (the request is carried out, and its answer lost). The first `after` are let pass.
    """

    how: int | str
    method: str | None = None
    path: str = ""
    times: int | None = None
    after: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None

    def matches(self, request: web.Request) -> bool:
        """Return whether this request meets it; each match uses it up by one."""
        if self.times == 0 or (self.method and request.method != self.method):
            return False
        if not re.search(self.path, request.path):
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass(frozen=True)
class Delivery:
    """A webhook that Jira would send: the same bytes and identifier at every retry."""

    identifier: str
    body: bytes

    def headers(self, secret: str | None) -> dict[str, str]:
        """Return the headers that Jira sends with it."""
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "User-Agent": "Atlassian Webhook HTTP Client",
            "X-Atlassian-Webhook-Identifier": self.identifier,
            "X-Atlassian-Webhook-Flow": "Primary",
        }
        if secret:
            headers["X-Hub-Signature"] = f"sha256={signature(secret, self.body)}"
        return headers


def signature(secret: str, body: bytes) -> str:
    """Return the hex HMAC-SHA256 that Jira and n8n sign a body with."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def unmarked(text: str) -> str:
    """Return a wiki text without the few marks that tests put into it."""
    return re.sub(r"(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)|^h[1-6]\. ", "", text)


def doc(text: str) -> dict[str, Any]:
    """Return a text in the Atlassian document format, a paragraph a line."""
    lines = [line for line in text.split("\n") if line]
    content = [{"type": "paragraph", "content": [{"type": "text", "text": line}]} for line in lines]
    return {"type": "doc", "version": 1, "content": content}


def plain(node: Any) -> str:
    """Return the text of a document: a line for every block."""
    if not isinstance(node, dict):
        return ""
    if node.get("type") == "text":
        return str(node["text"])
    if node.get("type") == "hardBreak":
        return "\n"
    parts = [plain(child) for child in node.get("content", ())]
    joint = "" if node.get("type") in ("paragraph", "heading", "codeBlock") else "\n"
    return joint.join(parts)


class FakeJira:
    """What Jira holds and how it behaves; `url` once it is served."""

    def __init__(self, dialect: Dialect = "cloud", *, time_zone: str = "America/New_York") -> None:
        self.dialect: Dialect = dialect
        self.zone = ZoneInfo(time_zone)
        self.url = ""
        self.email, self.token = "robot@example.org", "jira-api-token-1"
        self.issues: dict[str, Issue] = {}
        self.moved: dict[str, str] = {}
        self.users: dict[str, Account] = {}
        self.me = self.user("Itdesk Robot", self.email)
        self.now = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
        self.projects: dict[str, str] = {"ITSM": "IT Service Management"}
        self.asked: list[Asked] = []
        self.troubles: list[Trouble] = []
        self.outbox: list[Delivery] = []
        self.hide_emails = False
        self.eventual = False
        self.flows: Mapping[str, Sequence[str]] = {}
        self.request_types: dict[str, dict[str, Any]] = {}
        self.create_fields: dict[str, dict[str, Any]] = {}
        self.page_limit = 100
        self.after: Callable[[str], None] | None = None
        self._indexed: dict[str, datetime] = {}
        self._tokens: dict[str, tuple[str, int]] = {}
        self._last_id = 10_000
        self._last_number: dict[str, int] = {}

    # --- what people do in Jira ------------------------------------------------------------

    def user(self, name: str, email: str | None = None, *, active: bool = True) -> Account:
        """Add a person."""
        account = Account(f"5b10a2844c20165700ede2{len(self.users):02d}", name, email, active)
        self.users[account.id] = account
        return account

    def tick(self, seconds: float = 1.0) -> datetime:
        """Let Jira's clock advance; every change takes a second by itself."""
        self.now += timedelta(seconds=seconds)
        return self.now

    def issue(self, summary: str = "VPN is down", *, project: str = "ITSM", **fields: Any) -> Issue:
        """Open an issue."""
        self.projects.setdefault(project, project.title())
        number = self._last_number.get(project, 0) + 1
        self._last_number[project] = number
        now = self.tick()
        reporter = fields.pop("reporter", self.me)
        issue = Issue(
            self._new_id(), f"{project}-{number}", summary, now, now, reporter=reporter, **fields
        )
        self.issues[issue.key] = issue
        self._emit("jira:issue_created", issue)
        return issue

    def change(self, issue: Issue, *, by: Account | None = None, **fields: Any) -> Issue:
        """Change some fields of an issue."""
        items = []
        for name, value in fields.items():
            old = getattr(issue, name)
            setattr(issue, name, value)
            if name == "description":
                issue.adf = None
            items.append(_changed(name, old, value))
        self._touch(issue)
        self._emit("jira:issue_updated", issue, items=items, by=by)
        return issue

    def move(self, issue: Issue, project: str) -> Issue:
        """Move an issue to another project: it gets another key and keeps its id."""
        old = issue.key
        number = self._last_number[project] = self._last_number.get(project, 0) + 1
        self.projects.setdefault(project, project.title())
        del self.issues[old]
        issue.key = f"{project}-{number}"
        self.issues[issue.key] = issue
        self.moved[old] = issue.key
        self._indexed.pop(old, None)
        self._touch(issue)
        self._emit("jira:issue_updated", issue, items=[_changed("Key", old, issue.key)])
        return issue

    def delete(self, issue: Issue) -> None:
        """Delete an issue for good."""
        self.tick()
        del self.issues[issue.key]
        self._indexed.pop(issue.key, None)
        self._emit("jira:issue_deleted", issue)

    def say(self, issue: Issue, text: str, *, by: Account | None = None, **how: Any) -> Said:
        """Comment on an issue; `public=False` makes it internal, as agents of JSM do."""
        now = self._touch(issue)
        said = Said(self._new_id(), text, by or self.me, now, now, **how)
        issue.comments.append(said)
        self._emit("comment_created", issue, comment=said)
        return said

    def edit(self, issue: Issue, said: Said, text: str) -> Said:
        """Rewrite a comment."""
        said.text, said.adf, said.updated = text, None, self._touch(issue)
        self._emit("comment_updated", issue, comment=said)
        return said

    def unsay(self, issue: Issue, said: Said) -> None:
        """Delete a comment."""
        self._touch(issue)
        issue.comments.remove(said)
        self._emit("comment_deleted", issue, comment=said)

    # --- webhooks --------------------------------------------------------------------------

    def take(self) -> list[Delivery]:
        """Return the webhooks that wait, and let none wait any more."""
        waiting, self.outbox = self.outbox, []
        return waiting

    async def deliver(
        self, url: str, deliveries: Iterable[Delivery], *, secret: str | None = None
    ) -> list[tuple[int, Any]]:
        """Send webhooks one after the other; return each answer's status and body."""
        answers = []
        async with ClientSession() as session:
            for one in deliveries:
                headers = one.headers(secret)
                async with session.post(url, data=one.body, headers=headers) as response:
                    answers.append((response.status, orjson.loads(await response.read())))
        return answers

    def event(self, kind: str, issue: Issue, **more: Any) -> Delivery:
        """Return a webhook about an issue as it is now, which Jira did not send by itself."""
        before, self.outbox = self.outbox, []
        self._emit(kind, issue, **more)
        (made,), self.outbox = self.outbox, before
        return made

    def _emit(
        self,
        kind: str,
        issue: Issue,
        *,
        items: Sequence[Mapping[str, Any]] = (),
        comment: Said | None = None,
        by: Account | None = None,
    ) -> None:
        if not self.eventual:
            self.reindex()
        shown = self._issue(issue, version=2)
        # Webhooks are of version 2 whatever the clients speak, and name comments apart.
        if kind.startswith("comment_"):
            few = ("summary", "issuetype", "project", "assignee", "priority", "status")
            shown["fields"] = {name: shown["fields"][name] for name in few}
        body: dict[str, Any] = {
            "timestamp": int(self.now.timestamp() * 1000),
            "webhookEvent": kind,
        }
        if kind.startswith("jira:"):
            body["issue_event_type_name"] = "issue_generic"
            body["user"] = self._account(by or self.me)
        body["issue"] = shown
        if items:
            body["changelog"] = {"id": self._new_id(), "items": list(items)}
        if comment is not None:
            body["comment"] = self._comment(issue, comment, version=2)
        self.outbox.append(Delivery(str(uuid4()), orjson.dumps(body)))

    # --- what Jira shows -------------------------------------------------------------------

    def reindex(self) -> None:
        """Let searches find everything as it is now."""
        self._indexed = {key: issue.updated for key, issue in self.issues.items()}

    def shown_time(self, moment: datetime) -> str:
        """Return a time as Jira writes it, in the account's time zone."""
        local = moment.astimezone(self.zone)
        return f"{local:%Y-%m-%dT%H:%M:%S}.{local.microsecond // 1000:03d}{local:%z}"

    def _touch(self, issue: Issue) -> datetime:
        issue.updated = self.tick()
        return issue.updated

    def _new_id(self) -> str:
        self._last_id += 1
        return str(self._last_id)

    def _account(self, account: Account | None) -> dict[str, Any] | None:
        if account is None:
            return None
        shown: dict[str, Any] = {"displayName": account.name, "active": account.active}
        if self.dialect == "cloud":
            shown |= {"accountId": account.id, "accountType": "atlassian"}
        else:
            login = (account.email or account.name).partition("@")[0].lower()
            shown |= {"name": login, "key": f"JIRAUSER{account.id[-2:]}"}
        if account.email and not self.hide_emails:
            shown["emailAddress"] = account.email
        shown["self"] = f"{self.url}/rest/api/2/user?accountId={account.id}"
        return shown

    def _comment(
        self, issue: Issue, said: Said, *, version: int, expand: str = ""
    ) -> dict[str, Any]:
        body: Any = said.text
        if version == 3:
            body = said.adf or doc(unmarked(said.text))
        return {
            "self": f"{self.url}/rest/api/2/issue/{issue.id}/comment/{said.id}",
            "id": said.id,
            "author": self._account(said.author),
            "updateAuthor": self._account(said.author),
            "body": body,
            "created": self.shown_time(said.created),
            "updated": self.shown_time(said.updated),
            **self._readers(said, version=version, expand=expand),
        }

    def _readers(self, said: Said, *, version: int, expand: str) -> dict[str, Any]:
        """Return who may read a comment: Data Center says it in a property, to who asks for it."""
        properties = list(said.properties)
        if self.dialect == "datacenter":
            if not said.public and not any(p["key"] == "sd.public.comment" for p in properties):
                properties.append({"key": "sd.public.comment", "value": {"internal": True}})
            return {"properties": properties} if "properties" in expand else {}
        shown: dict[str, Any] = {"jsdPublic": said.public}
        return {**shown, "properties": properties} if properties and version == 3 else shown

    def _issue(
        self, issue: Issue, *, version: int, fields: Sequence[str] = ("*all",)
    ) -> dict[str, Any]:
        description: Any = issue.description
        if version == 3 and description is not None:
            description = issue.adf or doc(unmarked(description))
        status_id, category = STATUSES.get(issue.status, ("10999", "indeterminate"))
        comments = [self._comment(issue, said, version=version) for said in issue.comments]
        everything: dict[str, Any] = {
            "summary": issue.summary,
            "description": description,
            "status": {
                "name": issue.status,
                "id": status_id,
                "statusCategory": {"key": category, "name": category.title()},
            },
            "priority": {"name": issue.priority, "id": PRIORITIES.get(issue.priority, "9")},
            "issuetype": {"name": issue.type, "id": TYPES.get(issue.type, "99"), "subtask": False},
            "project": {"key": issue.project, "name": self.projects[issue.project], "id": "10000"},
            "labels": issue.labels,
            "assignee": self._account(issue.assignee),
            "reporter": self._account(issue.reporter),
            "resolution": {"name": issue.resolution} if issue.resolution else None,
            "created": self.shown_time(issue.created),
            "updated": self.shown_time(issue.updated),
            # An issue never shows more than its first so many comments.
            "comment": {
                "comments": comments[:20],
                "maxResults": 20,
                "total": len(comments),
                "startAt": 0,
            },
            **issue.extra,
        }
        wanted = set(fields)
        if not wanted & {"*all", "*navigable"}:
            everything = {name: value for name, value in everything.items() if name in wanted}
        return {
            "id": issue.id,
            "key": issue.key,
            "self": f"{self.url}/rest/api/2/issue/{issue.id}",
            "fields": copy.deepcopy(everything),
        }

    # --- REST ------------------------------------------------------------------------------

    def calls(self, method: str | None = None, path: str = "") -> list[Asked]:
        """Return the requests so far that match."""
        return [
            one
            for one in self.asked
            if (method is None or one.method == method) and re.search(path, one.path)
        ]

    def trouble(self, how: int | str, **more: Any) -> Trouble:
        """Let requests go wrong from now on."""
        self.troubles.append(Trouble(how, **more))
        return self.troubles[-1]

    def limit(self, retry_after: int, *, reason: str = "jira-burst-based", **more: Any) -> Trouble:
        """Answer 429 from now on, as Jira does for this reason."""
        headers = {"Retry-After": str(retry_after), "RateLimit-Reason": reason}
        return self.trouble(429, headers=headers, **more)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request, and write it down."""
        at, raw = time.monotonic(), await request.read()
        body = orjson.loads(raw) if raw else None
        response: web.StreamResponse | None = None
        status = 0
        try:
            response = await self._answer(request, body)
            status = response.status
        finally:
            authorization = request.headers.get("Authorization", "")
            query = dict(request.query)
            self.asked.append(
                Asked(at, request.method, request.path, query, body, authorization, status)
            )
        return response

    async def _answer(self, request: web.Request, body: Any) -> web.StreamResponse:
        trouble = next((one for one in self.troubles if one.matches(request)), None)
        if trouble is not None and trouble.how != "lost":
            return await self._troubled(request, trouble)
        if not self._knows(request.headers.get("Authorization", "")):
            return _refusal(401, "Client must be authenticated to access this resource.")
        from tests.support.jira_rest import answer

        response = answer(self, request.method, request.path, request.query, body)
        if self.after is not None:
            self.after(request.path)
        if not self.eventual:
            self.reindex()
        if trouble is not None and request.transport is not None:
            request.transport.abort()
        return response

    async def _troubled(self, request: web.Request, trouble: Trouble) -> web.StreamResponse:
        if trouble.how == "stall":
            await asyncio.Event().wait()
        if trouble.how == "drop" and request.transport is not None:
            request.transport.abort()
            return web.Response(status=500)
        if trouble.how == "html":
            page = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
            return web.Response(status=502, text=page, content_type="text/html")
        said = trouble.body if trouble.body is not None else {"errorMessages": ["Not now."]}
        return web.Response(
            status=int(trouble.how),
            body=said if isinstance(said, bytes) else orjson.dumps(said),
            content_type="application/json",
            headers=dict(trouble.headers),
        )

    def _knows(self, authorization: str) -> bool:
        if self.dialect == "datacenter" and authorization == f"Bearer {self.token}":
            return True
        basic = base64.b64encode(f"{self.email}:{self.token}".encode()).decode()
        return authorization == f"Basic {basic}"


def _changed(name: str, old: Any, new: Any) -> dict[str, Any]:
    return {
        "field": name,
        "fieldId": name,
        "fieldtype": "jira",
        "from": None,
        "fromString": _name(old),
        "to": None,
        "toString": _name(new),
    }


def _name(value: Any) -> str | None:
    if isinstance(value, Account):
        return value.name
    if isinstance(value, list):
        return " ".join(map(str, value))
    return None if value is None else str(value)


def _refusal(status: int, message: str) -> web.Response:
    body = orjson.dumps({"errorMessages": [message], "errors": {}})
    return web.Response(status=status, body=body, content_type="application/json")


@asynccontextmanager
async def fake_jira(
    dialect: Dialect = "cloud",
    *,
    time_zone: str = "America/New_York",
    ssl_context: ssl.SSLContext | None = None,
) -> AsyncIterator[FakeJira]:
    """Lend a Jira that listens on a free port."""
    jira = FakeJira(dialect, time_zone=time_zone)
    app = web.Application(client_max_size=1 << 26)
    app.router.add_route("*", "/{tail:.*}", jira.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context)
    await site.start()
    scheme = "http" if ssl_context is None else "https"
    try:
        jira.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        yield jira
    finally:
        await runner.cleanup()


@contextmanager
def jira_beside(dialect: Dialect = "cloud") -> Iterator[FakeJira]:
    """Lend a Jira that runs in a thread of its own: for daemons that outlive a test's loop."""
    made: list[FakeJira] = []
    up, loop = threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()

    async def main() -> None:
        async with fake_jira(dialect) as jira:
            made.append(jira)
            up.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    try:
        assert up.wait(10)
        yield made[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


@pytest.fixture(scope="module")
def jira() -> Iterator[FakeJira]:
    """A Jira that lasts as long as the daemons of a module."""
    with jira_beside() as jira:
        yield jira
