"""Talks to Jira: one request at a time, bounded in time and size, and never against its will.

Hides when a request may be sent at all. After 429 nothing is sent to the limited scope until
Retry-After is over; after 401 one probe a minute is, so that no account gets locked. Only
requests that change nothing are tried again here: whether a lost POST was carried out, only its
sender can find out. When Jira is out, a breaker keeps everybody from asking.
"""

import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

import aiohttp
import orjson

from itdesk.errors import ConfigError
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

from .breaker import Breaker
from .failures import JiraFailure, Missing, RateLimited, Refused, Unauthorized, Unavailable
from .settings import JiraSettings

Dialect = Literal["cloud", "datacenter"]
Observer = Callable[[str, float], None]

ATTEMPTS: Final = 3
LARGEST_ANSWER: Final = 32 << 20
LONGEST_LIMIT: Final = 3600.0
DEFAULT_LIMIT: Final = 30.0
# Read by no one but an operator, and only a beginning of it.
LONGEST_SAID: Final = 300
# Data Center says there only who may read a comment.
_WITH_PROPERTIES: Final[Mapping[str, Any]] = {"expand": "properties"}
MOST_VALUES: Final = 2000

log = get_logger("jira")


class Client:
    """Jira's REST interface in the dialect that it speaks."""

    def __init__(self, settings: JiraSettings, clock: Clock, observe: Observer) -> None:
        self._settings = settings
        self._clock = clock
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None
        self._dialect: Dialect | None = None if settings.dialect == "auto" else settings.dialect
        self._closed_until: dict[str, float] = {}
        self._probe_at = 0.0
        self.breaker = Breaker(
            clock, failures=settings.breaker_failures, seconds=settings.breaker_seconds
        )
        self.problem = ""
        self.refused = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        """Hold the connections to Jira while the block runs."""
        tls: ssl.SSLContext | bool = True
        if self._settings.ca_file is not None:
            try:
                tls = ssl.create_default_context(cafile=str(self._settings.ca_file))
            except OSError as exc:
                raise ConfigError(
                    f"plugins.jira.ca_file: {self._settings.ca_file} holds no certificates"
                ) from exc
        timeout = aiohttp.ClientTimeout(
            total=self._settings.request_seconds, sock_connect=self._settings.connect_seconds
        )
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=8),
            timeout=timeout,
            headers={"Authorization": _authorization(self._settings), "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            self._session = session
            try:
                yield
            finally:
                self._session = None

    @property
    def settings(self) -> JiraSettings:
        """Return the section that this client was made from."""
        return self._settings

    async def dialect(self) -> Dialect:
        """Return which REST version is spoken: as configured, or as Jira itself says, once."""
        if self._dialect is None:
            cloud = (await self.server()).get("deploymentType") == "Cloud"
            self._dialect = "cloud" if cloud else "datacenter"
        return self._dialect

    async def server(self) -> dict[str, Any]:
        """Return what Jira says of itself."""
        return _mapping(await self.call("GET", _SERVER))

    async def api(self, method: str, path: str, **how: Any) -> Any:
        """Send one request below /rest/api/<version>; see `call`."""
        version = 3 if await self.dialect() == "cloud" else 2
        return await self.call(method, f"/rest/api/{version}{path}", **how)

    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        scope: str = "",
    ) -> Any:
        """Send one request and return the decoded answer, or raise a JiraFailure.

        `scope` is the key of the issue that it is about. What changes nothing is tried three
        times.
        """
        attempts = ATTEMPTS if method in ("GET", "HEAD") else 1
        vouched = False
        for attempt in range(1, attempts + 1):
            # Before the trouble of one issue closes Jira to everybody, Jira itself is asked.
            if scope and not vouched and self.breaker.is_doubtful:
                await self._send("GET", _SERVER)
                vouched = True
            try:
                return await self._send(method, path, params, json, scope, vouched=vouched)
            except Unavailable:
                if attempt == attempts or self.breaker.is_open:
                    raise
                await self._clock.sleep(random.uniform(0.05, 0.2) * 2**attempt)
        raise AssertionError("unreachable")

    # --- what Jira is asked -----------------------------------------------------------------

    async def myself(self) -> dict[str, Any]:
        """Return the account that asks, with its `timeZone`."""
        return _mapping(await self.api("GET", "/myself"))

    async def search(
        self, jql: str, fields: str, *, size: int, at: str | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return one page of issues, and what to pass as `at` for the next, or None at the end."""
        asked: dict[str, Any] = {"jql": jql, "fields": fields, "maxResults": size}
        if await self.dialect() == "cloud":
            if at is not None:
                asked["nextPageToken"] = at
            page = _mapping(await self.api("GET", "/search/jql", params=asked))
            issues = _mappings(page.get("issues"))
            token = page.get("nextPageToken")
            return issues, str(token) if token and not page.get("isLast") else None
        start = int(at or 0)
        page = _mapping(await self.api("GET", "/search", params={**asked, "startAt": start}))
        issues = _mappings(page.get("issues"))
        end, total = start + len(issues), page.get("total")
        more = issues and isinstance(total, int) and end < total
        return issues, str(end) if more else None

    async def issue(self, key: str, *, fields: str = "*all") -> dict[str, Any]:
        """Return one issue by its key or id."""
        return _mapping(await self.api("GET", _at(key), params={"fields": fields}, scope=key))

    async def latest_comments(self, key: str, count: int) -> list[dict[str, Any]]:
        """Return the last comments of an issue, the newest first."""
        params = {"orderBy": "-created", "maxResults": count, **_WITH_PROPERTIES}
        page = _mapping(await self.api("GET", _at(key, "comment"), params=params, scope=key))
        return _mappings(page.get("comments"))

    async def comments(self, key: str, *, most: int = 5000) -> list[dict[str, Any]]:
        """Return all comments of an issue, oldest first."""
        path = _at(key, "comment")
        found: list[dict[str, Any]] = []
        while len(found) < most:
            params = {"startAt": len(found), "maxResults": 100, **_WITH_PROPERTIES}
            page = _mapping(await self.api("GET", path, params=params, scope=key))
            part = _mappings(page.get("comments"))
            found += part
            total = page.get("total")
            if not part or not isinstance(total, int) or len(found) >= total:
                return found
        raise Unavailable(f"{key} has more than {most} comments.", sent=False)

    async def transitions(self, key: str) -> list[dict[str, Any]]:
        """Return the ways that an issue can go now."""
        said = _mapping(await self.api("GET", _at(key, "transitions"), scope=key))
        return _mappings(said.get("transitions"))

    async def people(self, text: str, *, project: str | None = None) -> list[dict[str, Any]]:
        """Return the people that Jira finds by a text; their order says nothing.

        With a project, only those who can be given its issues.
        """
        by = "query" if await self.dialect() == "cloud" else "username"
        params: dict[str, Any] = {by: text, "maxResults": 50}
        path = "/user/search"
        if project is not None:
            path, params["project"] = "/user/assignable/search", project
        return _mappings(await self.api("GET", path, params=params))

    # --- what Jira is told ------------------------------------------------------------------

    async def edit(self, key: str, fields: Mapping[str, Any]) -> None:
        """Set fields of an issue."""
        await self.api("PUT", _at(key), json={"fields": fields}, scope=key)

    async def transit(self, key: str, transition: str) -> None:
        """Let an issue go one of its ways."""
        body = {"transition": {"id": transition}}
        await self.api("POST", _at(key, "transitions"), json=body, scope=key)

    async def comment(self, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Comment on an issue; return the comment as it is there."""
        return _mapping(await self.api("POST", _at(key, "comment"), json=body, scope=key))

    async def note(self, key: str, name: str, value: Any) -> None:
        """Set a property of an issue, which only programs see."""
        await self.api("PUT", _at(key, "properties", name), json=value, scope=key)

    async def create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Open an issue; return its id and key."""
        return _mapping(await self.api("POST", "/issue", json=body))

    async def all_values(self, path: str, *names: str, api: bool = True) -> list[dict[str, Any]]:
        """Return all entries of a list that comes in pages, under any of these names."""
        found: list[dict[str, Any]] = []
        ask = self.api if api else self.call
        size = "maxResults" if api else "limit"
        begin = "startAt" if api else "start"
        while len(found) < MOST_VALUES:
            page = _mapping(await ask("GET", path, params={begin: len(found), size: 100}))
            part = _mappings(next((page[name] for name in names if name in page), []))
            found += part
            total, last = page.get("total"), page.get("isLastPage", page.get("isLast"))
            more = len(found) < total if isinstance(total, int) else last is False
            if not part or not more:
                break
        return found

    # --- sending ---------------------------------------------------------------------------

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        scope: str = "",
        *,
        vouched: bool = False,
    ) -> Any:
        """Send one request; when Jira as a whole is `vouched` for, a failure is the issue's own."""
        self._require_open(scope)
        started, outcome = self._clock.monotonic(), "cancelled"
        try:
            answer = await self._exchange(method, path, params, json, scope)
            outcome = "ok"
            if self.refused:
                log.info("jira accepts the account again")
            self.breaker.worked()
            self.problem, self.refused = "", False
            return answer
        except JiraFailure as exc:
            outcome = type(exc).__name__.lower()
            if isinstance(exc, Unavailable) and not (vouched and exc.sent):
                self.breaker.failed()
            else:
                self.breaker.worked()
            # A refusal is about one request; the others are about Jira as a whole.
            if not isinstance(exc, Refused | Missing) and not (
                isinstance(exc, RateLimited) and exc.scope
            ):
                self.problem = exc.message
            raise
        finally:
            self._observe(outcome, self._clock.monotonic() - started)

    def _require_open(self, scope: str) -> None:
        """Raise what Jira last said, as long as it must not be asked again."""
        now = self._clock.monotonic()
        for limited in ("", scope):
            until = self._closed_until.get(limited, 0.0)
            if now < until:
                raise RateLimited(until - now, limited)
            self._closed_until.pop(limited, None)
        if self.refused:
            if now < self._probe_at:
                raise Unauthorized(self.problem or _REFUSED_ACCOUNT)
            # This one is the probe; the others go on waiting for what it finds.
            self._probe_at = now + self._settings.probe_seconds
        self.breaker.require_closed()

    async def _exchange(
        self, method: str, path: str, params: Mapping[str, Any] | None, json: Any, scope: str
    ) -> Any:
        if self._session is None or not self._settings.connected:
            raise Unavailable(
                "Jira is not connected: set JIRA_BASE_URL, JIRA_EMAIL and JIRA_API_TOKEN.",
                sent=False,
            )
        url = f"{self._settings.base_url}{path}"
        body = None if json is None else orjson.dumps(json)
        headers = {} if body is None else {"Content-Type": "application/json"}
        host = urlsplit(url).hostname
        try:
            # A redirect would carry the account to wherever it leads.
            async with self._session.request(
                method, url, params=params, data=body, headers=headers, allow_redirects=False
            ) as response:
                raw = await _read(response)
                return self._judge(response, raw, scope)
        except aiohttp.ClientConnectorCertificateError as exc:
            raise Unavailable(
                f"The certificate of {host} is not trusted: give the one that signs it as"
                " plugins.jira.ca_file.",
                sent=False,
            ) from exc
        except aiohttp.ClientConnectorError as exc:
            raise Unavailable(f"{host} cannot be reached.", said=str(exc), sent=False) from exc
        except TimeoutError as exc:
            raise Unavailable(f"{host} does not answer in time.") from exc
        except aiohttp.ClientError as exc:
            raise Unavailable(f"{host} broke the connection off.", said=str(exc)) from exc

    def _judge(self, response: aiohttp.ClientResponse, raw: bytes, scope: str) -> Any:
        """Return what an answer says, or raise what has to be done about it."""
        status = response.status
        if 200 <= status < 300:
            return _decoded(raw)
        said = raw[:LONGEST_SAID].decode(errors="replace")
        if status == 429 or (status == 503 and "Retry-After" in response.headers):
            raise self._limited(response, scope)
        if status == 401 or (
            status == 403 and "X-Authentication-Denied-Reason" in response.headers
        ):
            if not self.refused:
                log.error("jira refuses the account: everything is paused", said=said)
            self.refused = True
            self._probe_at = self._clock.monotonic() + self._settings.probe_seconds
            raise Unauthorized(_REFUSED_ACCOUNT, said=said)
        if status == 404:
            raise Missing("Jira has no such thing, or hides it from its account.", said=said)
        if status >= 500 or status in (408, 425):
            raise Unavailable(f"Jira answers {status}.", said=said)
        if 300 <= status < 400:
            raise Unavailable(
                "Jira answers with a redirect: plugins.jira.base_url is not its own address.",
                sent=False,
            )
        raise Refused(
            f"Jira refuses this with {status}.", http=status, said=said, fields=_blamed(raw)
        )

    def _limited(self, response: aiohttp.ClientResponse, scope: str) -> RateLimited:
        """Close what Jira wants closed, for as long as it says."""
        reason = response.headers.get("RateLimit-Reason", "")
        limited = scope if "per-issue" in reason else ""
        seconds = _wait_of(response.headers, self._clock.now())
        now = self._clock.monotonic()
        self._closed_until = {name: at for name, at in self._closed_until.items() if at > now}
        self._closed_until[limited] = now + seconds
        return RateLimited(seconds, limited)


# Version 2 is served by both dialects.
_SERVER: Final = "/rest/api/2/serverInfo"
_REFUSED_ACCOUNT = (
    "Jira does not accept the account: check JIRA_EMAIL and JIRA_API_TOKEN (tokens expire)."
)


def _at(key: str, *rest: str) -> str:
    """Return the path of something of an issue; a key never leads elsewhere."""
    return "/".join(["/issue", *(quote(part, safe="") for part in (key, *rest))])


def _authorization(settings: JiraSettings) -> str:
    token = settings.api_token.get_secret_value()
    if not settings.email:
        return f"Bearer {token}"
    return aiohttp.encode_basic_auth(settings.email, token)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise Unavailable(f"Jira's answer has more than {LARGEST_ANSWER} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def _decoded(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return orjson.loads(raw)
    except ValueError as exc:
        raise Unavailable("Something else than Jira answers at plugins.jira.base_url.") from exc


def _blamed(raw: bytes) -> frozenset[str]:
    """Return the fields that a refusal complains about."""
    try:
        said = orjson.loads(raw)
    except ValueError:
        return frozenset()
    errors = said.get("errors") if isinstance(said, dict) else None
    return frozenset(errors) if isinstance(errors, dict) else frozenset()


def _wait_of(headers: Mapping[str, str], now: datetime) -> float:
    """Return how many seconds to wait: Retry-After as seconds or a date, else the reset time."""
    given = headers.get("Retry-After", "").strip()
    reset = headers.get("X-RateLimit-Reset", "").strip()
    seconds = DEFAULT_LIMIT
    try:
        if given.isascii() and given.isdigit():
            seconds = float(given[:9])
        elif given:
            seconds = (parsedate_to_datetime(given).astimezone(UTC) - now).total_seconds()
        elif reset:
            seconds = (datetime.fromisoformat(reset).astimezone(UTC) - now).total_seconds()
    except (ValueError, OverflowError):
        pass
    return min(max(seconds, 1.0), LONGEST_LIMIT)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unavailable("Something else than Jira answers at plugins.jira.base_url.")
    return value


def _mappings(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Unavailable("Something else than Jira answers at plugins.jira.base_url.")
    return value
