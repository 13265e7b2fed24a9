"""The client against a Jira that misbehaves: one error for each reaction, and no hammering."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from itdesk.runtime.clock import Clock
from itdesk_plugins.jira.client import LARGEST_ANSWER, Client
from itdesk_plugins.jira.failures import (
    JiraFailure,
    Missing,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
)
from itdesk_plugins.jira.settings import JiraSettings
from tests.support.jira import Dialect, FakeJira, doc, fake_jira


class Stepped(Clock):
    """A clock on which waiting takes no time, and time passes only by waiting."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """Return what was waited so far."""
        return self.at

    async def sleep(self, seconds: float) -> None:
        """Wait without waiting."""
        self.slept.append(seconds)
        self.at += seconds


@asynccontextmanager
async def connected(jira: FakeJira, **how: Any) -> AsyncIterator[tuple[Client, Stepped, list[str]]]:
    """Lend a client with its clock and the outcomes that it counted."""
    clock, outcomes = Stepped(), list[str]()
    fields = {"base_url": jira.url, "email": jira.email, "api_token": jira.token, **how}
    client = Client(
        JiraSettings(**fields), clock, lambda outcome, seconds: outcomes.append(outcome)
    )
    async with client.session():
        yield client, clock, outcomes


@pytest.mark.parametrize("dialect", ["cloud", "datacenter"])
async def test_the_dialect_is_what_jira_says_it_is(dialect: Dialect) -> None:
    """Version 3 on Cloud, version 2 on Data Center, asked once."""
    async with fake_jira(dialect) as jira, connected(jira) as (client, _, _):
        assert await client.dialect() == dialect
        me = await client.myself()
        assert me["timeZone"] == "America/New_York"
        await client.myself()
        assert len(jira.calls(path="serverInfo")) == 1
        version = {"cloud": 3, "datacenter": 2}[dialect]
        assert jira.asked[-1].path == f"/rest/api/{version}/myself"


async def test_a_personal_access_token_is_sent_as_a_bearer() -> None:
    """Data Center without an address of an account."""
    async with fake_jira("datacenter") as jira, connected(jira, email="") as (client, _, _):
        await client.myself()
        assert jira.asked[-1].authorization == f"Bearer {jira.token}"


@pytest.mark.parametrize("how", [500, 502, 503, 504, "html", "drop"])
async def test_what_changes_nothing_is_tried_three_times_and_what_may_is_not(
    how: int | str,
) -> None:
    """R-21: a POST is never repeated blindly."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, _, outcomes):
        jira.trouble(how, times=2)
        await client.myself()
        assert len(jira.asked) == 3 and outcomes[-1] == "ok" and client.problem == ""
        issue = jira.issue()
        jira.trouble(how, method="POST")
        with pytest.raises(Unavailable) as caught:
            body = {"body": doc("once")}
            await client.api("POST", f"/issue/{issue.key}/comment", json=body)
        assert caught.value.sent and len(jira.calls("POST")) == 1
        assert client.problem


async def test_a_stalled_answer_is_given_up_in_time() -> None:
    """R-21: 60 s of silence."""
    async with fake_jira() as jira:
        how = {"dialect": "cloud", "request_seconds": 0.2}
        async with connected(jira, **how) as (client, _, _):
            jira.trouble("stall", times=1)
            await client.myself()
            jira.trouble("stall")
            with pytest.raises(Unavailable, match="in time"):
                await client.api("POST", "/issue", json={})


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0"}, 1),
        ({"Retry-After": "999999999999"}, 3600),
        ({"Retry-After": "soon"}, 30),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1),
        ({"X-RateLimit-Reset": "2015-10-21T07:28Z"}, 1),
        ({}, 30),
    ],
)
async def test_nothing_is_sent_before_retry_after_is_over(
    headers: dict[str, str], seconds: int
) -> None:
    """R-21: 0 calls before its time."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, clock, _):
        jira.trouble(429, headers=headers, times=1)
        for _ in range(5):
            with pytest.raises(RateLimited) as caught:
                await client.myself()
        assert caught.value.retry_after == seconds and len(jira.asked) == 1
        clock.at += seconds - 0.01
        with pytest.raises(RateLimited):
            await client.myself()
        assert len(jira.asked) == 1
        clock.at += 0.02
        await client.myself()
        assert len(jira.asked) == 2


async def test_only_the_limited_issue_has_to_wait() -> None:
    """R-21: jira-per-issue-on-write slows one issue, any other reason everything."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, _, _):
        one, other = jira.issue(), jira.issue()
        jira.limit(60, reason="jira-per-issue-on-write", path=one.key)
        with pytest.raises(RateLimited) as caught:
            await client.issue(one.key)
        assert caught.value.scope == one.key
        assert (await client.issue(other.key))["key"] == other.key
        with pytest.raises(RateLimited):
            await client.issue(one.key)
        assert len(jira.calls(path=one.key)) == 1
        jira.troubles.clear()
        jira.limit(60, reason="jira-quota-global-based")
        with pytest.raises(RateLimited):
            await client.issue(other.key)
        asked = len(jira.asked)
        with pytest.raises(RateLimited):
            await client.myself()
        assert len(jira.asked) == asked


async def test_a_refused_account_is_probed_once_a_minute_and_not_more() -> None:
    """R-21: 401 pauses everything; it goes on by itself when the account is accepted again."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, clock, _):
        token, jira.token = jira.token, "another"
        for _ in range(10):
            with pytest.raises(Unauthorized, match="JIRA_API_TOKEN"):
                await client.myself()
        assert len(jira.asked) == 1 and client.refused and "JIRA_API_TOKEN" in client.problem
        clock.at += 61
        results = await asyncio.gather(*(client.myself() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, Unauthorized) for result in results)
        assert len(jira.asked) == 2
        jira.token = token
        clock.at += 61
        await client.myself()
        assert not client.refused and client.problem == ""
        await client.myself()


async def test_refusals_and_missing_things_are_told_apart() -> None:
    """Asking again helps with neither, and neither makes Jira look ill."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, _, _):
        with pytest.raises(Missing):
            await client.issue("NONE-1")
        with pytest.raises(Refused) as caught:
            await client.search("nonsense ORDER BY", "key", size=1)
        assert caught.value.http == 400 and "JQL" in caught.value.said
        assert "JQL" not in caught.value.message and client.problem == ""
        assert len(jira.calls(path="NONE-1")) == 1


async def test_a_name_of_an_issue_never_leads_to_another_path() -> None:
    """S-20: what Jira or a webhook calls an issue is one segment."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, _, _):
        with pytest.raises(Missing):
            await client.issue("../myself")
        assert jira.asked[-1].path != "/rest/api/3/myself"


async def _serving(handler: Any, ssl_context: ssl.SSLContext | None = None) -> tuple[Any, int]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
    return runner, runner.addresses[0][1]


async def _refused(base_url: str, words: str) -> None:
    settings = JiraSettings(
        base_url=base_url, email="a@b.c", api_token="secret-token", dialect="cloud"
    )
    client = Client(settings, Stepped(), lambda outcome, seconds: None)
    async with client.session():
        with pytest.raises(JiraFailure, match=words) as caught:
            await client.myself()
    assert "secret-token" not in str(caught.value) and caught.value.code == "E_JIRA_UNAVAILABLE"


async def test_something_else_than_jira_is_recognised() -> None:
    """HTML with 200, JSON of another shape, endless answers, redirects that want the account."""
    elsewhere: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/html"):
            return web.Response(text="<html>login</html>", content_type="text/html")
        if request.path.startswith("/list"):
            return web.json_response([1, 2])
        if request.path.startswith("/away"):
            raise web.HTTPFound(f"http://{request.host}/stolen")
        if request.path.startswith("/stolen"):
            elsewhere.append(request.headers.get("Authorization", ""))
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(LARGEST_ANSWER // (1 << 20) + 2):
            await response.write(b"x" * (1 << 20))
        return response

    runner, port = await _serving(answer)
    try:
        base = f"http://127.0.0.1:{port}"
        await _refused(f"{base}/html", "Something else than Jira")
        await _refused(f"{base}/list", "Something else than Jira")
        await _refused(f"{base}/away", "redirect")
        await _refused(f"{base}/endless", "more than")
        assert elsewhere == []
    finally:
        await runner.cleanup()


async def test_nobody_there_is_said_with_the_name_of_the_host() -> None:
    """A refused connection: nothing was sent."""
    async with fake_jira() as jira:
        url = jira.url
    await _refused(url, "127.0.0.1 cannot be reached")


def test_settings_are_refused_that_cannot_work() -> None:
    """Addresses with an account in them would end in logs; keys end in JQL."""
    for wrong in ({"base_url": "jira.example.org"}, {"base_url": "https://a:b@jira.example.org"},
                  {"base_url": "ftp://jira"}, {"project_key": 'X" OR'},
                  {"dialect": "server"}, {"sync_page_size": 0}):  # fmt: skip
        with pytest.raises(ValidationError):
            JiraSettings(**wrong)
    assert JiraSettings(base_url="https://jira.example.org/jira/").base_url.endswith("/jira")
    assert "s3cret" not in repr(JiraSettings(api_token="s3cret", webhook_secret="s3cret"))


async def test_what_is_measured_after_an_answer_is_what_that_answer_says() -> None:
    """The gauges do not lag until the next request."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (_, clock, _):
        seen: list[tuple[str, bool, bool]] = []
        settings = JiraSettings(
            base_url=jira.url, email=jira.email, api_token=jira.token, dialect="cloud"
        )
        client: Client = Client(
            settings,
            clock,
            lambda outcome, _: seen.append((outcome, bool(client.problem), client.refused)),
        )
        jira.trouble(401, times=1)
        async with client.session():
            with pytest.raises(Unauthorized):
                await client.myself()
            clock.at += settings.probe_seconds
            await client.myself()
        assert seen == [("unauthorized", True, True), ("ok", False, False)]


@pytest.mark.parametrize("odd", [b"", b"null", b"[]"])
async def test_who_says_nothing_of_itself_is_no_jira(odd: bytes) -> None:
    """And no dialect is concluded from it."""
    async with fake_jira() as jira, connected(jira) as (client, _, _):
        jira.trouble(200, path="serverInfo", body=odd, times=1)
        with pytest.raises(Unavailable, match="Something else than Jira"):
            await client.dialect()
        assert await client.dialect() == "cloud"
