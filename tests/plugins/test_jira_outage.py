"""Jira misbehaves while changes wait to be sent: nobody here notices, and all of it arrives."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest

from itdesk.model import Role
from itdesk_plugins.jira.failures import Unavailable
from tests.plugins.test_jira_client import connected
from tests.support.desk import bench_on
from tests.support.jira import fake_jira
from tests.support.jira_scene import Scene, connection, scene_on
from tests.support.load import eventually
from tests.support.nginx import certify

PLUGIN = "ITDESK_PLUGINS__JIRA__"
# An outage of an hour, scaled: an eighth of a second stands for its pauses.
SHORT = {
    f"{PLUGIN}BREAKER_SECONDS": "0.05",
    f"{PLUGIN}PROBE_SECONDS": "0.05",
    f"{PLUGIN}REQUEST_SECONDS": "0.3",
}


SLOW = ("html", "drop", "stall")


async def settled(scene: Scene, *, seconds: float = 20.0) -> None:
    """Do what there is to do, again and again, until nothing waits."""
    async with asyncio.timeout(seconds):
        while {state for state, _ in await scene.jobs()} - {"done", "failed"}:
            await scene.hurry()
            await scene.work()


async def asked(scene: Scene, times: int) -> None:
    """Go on trying until Jira was asked so many times more."""
    enough = len(scene.jira.asked) + times
    async with asyncio.timeout(20):
        while len(scene.jira.asked) < enough:
            await scene.hurry()
            await scene.work()


@pytest.mark.parametrize(
    "how", [500, 401, *(pytest.param(how, marks=pytest.mark.slow) for how in SLOW)]
)
async def test_the_desk_works_through_an_outage_and_catches_up_by_itself(
    database_url: str, how: int | str
) -> None:
    """R-21: whatever the outage looks like; it costs no attempts, and nothing is said twice."""
    async with scene_on(database_url, "cloud", **SHORT) as scene:
        issue, ticket = await scene.mirrored()
        other, second = await scene.mirrored("Printer")
        person = await scene.bench.person(Role.AGENT)
        trouble = scene.jira.trouble(how)
        for number in range(3):
            await scene.edit(ticket, title=f"Title {number}")
            await scene.bench.desk.tickets.comment(person, ticket.key, f"no {number}")
        await scene.edit(second, status="in_progress")
        await asked(scene, 7)
        jobs = await scene.jobs()
        assert {state for state, _ in jobs} == {"waiting"}
        assert not issue.comments and issue.summary == "VPN is down"
        assert not (await scene.bench.desk.plugins.health())["jira"].ok
        assert scene.bench.metric("itdesk_jira_up") == 0
        assert scene.bench.metric("itdesk_jira_account_refused") == float(how == 401)
        assert scene.bench.metric("itdesk_breaker_open", part="jira") == float(how != 401)
        scene.jira.troubles.remove(trouble)
        await settled(scene)
        assert {state for state, _ in await scene.jobs()} == {"done"}
        assert [one.text.splitlines()[-1] for one in issue.comments] == ["no 0", "no 1", "no 2"]
        assert (issue.summary, other.status) == ("Title 2", "In Progress")
        assert (await scene.bench.desk.plugins.health())["jira"].ok
        assert scene.bench.metric("itdesk_breaker_open", part="jira") == 0
        assert scene.bench.metric("itdesk_jira_account_refused") == 0


async def test_a_limit_of_one_issue_slows_that_issue_only(database_url: str) -> None:
    """R-21: jira-per-issue-on-write; the other issue's changes arrive at once."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        other, second = await scene.mirrored("Printer")
        limit = scene.jira.limit(
            7, reason="jira-per-issue-on-write", method="PUT", path=f"/issue/{issue.key}$"
        )
        await scene.edit(ticket, title="Slow")
        await scene.work()
        await scene.edit(second, title="Fast")
        for _ in range(5):
            await scene.hurry()
            await scene.work()
        assert (issue.summary, other.summary) == ("VPN is down", "Fast")
        about = [one for one in scene.jira.asked if one.path.endswith(f"/issue/{issue.key}")]
        # One look and one refused write; nothing more of this issue before its time.
        assert [one.method for one in about] == ["GET", "PUT"]
        assert (await scene.bench.desk.plugins.health())["jira"].ok
        (waiting,) = [error for state, error in await scene.jobs() if state == "waiting"]
        assert waiting is not None and issue.key in waiting
        assert limit.times is None


async def test_nothing_is_asked_before_retry_after_is_over(database_url: str) -> None:
    """R-21: Retry-After 7 of the whole account: 0 calls before; and no attempt is counted."""
    async with scene_on(database_url) as scene:
        _, ticket = await scene.mirrored()
        scene.jira.limit(7)
        await scene.edit(ticket, title="Later")
        await scene.work()
        before = len(scene.jira.asked)
        for _ in range(10):
            await scene.hurry()
            await scene.work()
        assert len(scene.jira.asked) == before
        assert await scene.bench.sql("SELECT attempts FROM jobs WHERE type = 'jira.push'") == 0
        pause = "SELECT extract(epoch FROM run_at - now()) FROM jobs WHERE type = 'jira.push'"
        seconds: Any = await scene.bench.sql(pause)
        assert 5 < seconds <= 7


async def test_the_breaker_opens_after_five_failures_and_lets_one_try() -> None:
    """R-21: <= 5 failures; then one request a pause, and after one that works everybody."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, clock, _):
        trouble = jira.trouble(500)
        for _ in range(20):
            with pytest.raises(Unavailable):
                await client.call("POST", "/rest/api/3/issue", json={})
        assert len(jira.asked) == 5 and client.breaker.is_open
        clock.at += client.settings.breaker_seconds
        for _ in range(5):
            with pytest.raises(Unavailable):
                await client.call("POST", "/rest/api/3/issue", json={})
        assert len(jira.asked) == 6
        jira.troubles.remove(trouble)
        clock.at += client.settings.breaker_seconds
        await client.myself()
        await client.myself()
        assert not client.breaker.is_open and client.problem == ""


@pytest.mark.parametrize("method", ["PUT", pytest.param("GET", marks=pytest.mark.slow)])
async def test_what_is_wrong_with_one_issue_alone_is_given_up_in_the_end(
    database_url: str, method: str
) -> None:
    """An error of the server that never goes away for one change: attempts are counted then."""
    async with scene_on(
        database_url, "cloud", **SHORT, ITDESK_PLUGINS__JIRA__PUSH__ATTEMPTS="2"
    ) as scene:
        issue, ticket = await scene.mirrored()
        other, second = await scene.mirrored("Printer")
        scene.jira.trouble(500, method=method, path=f"/issue/{issue.key}$")
        await scene.edit(ticket, title="Poison")
        if method == "GET":
            # Nobody else says meanwhile that Jira is well.
            await settled(scene)
        for number in range(4):
            await scene.edit(second, title=f"Title {number}")
            await scene.hurry()
            await scene.work()
        states = [state for state, _ in await scene.jobs()]
        assert states[0] == "failed" and set(states[1:]) == {"done"}
        assert other.summary == "Title 3"


async def test_a_certificate_that_nobody_signed_is_said_and_waited_for(
    database_url: str, tmp_path: Path
) -> None:
    """R-21, TLS: the message names plugins.jira.ca_file, and with it the account is sent."""
    certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with fake_jira(ssl_context=context) as jira:
        async with connected(jira, dialect="cloud") as (client, _, _):
            with pytest.raises(Unavailable, match=r"not trusted.*plugins\.jira\.ca_file"):
                await client.myself()
            assert jira.asked == []
        ca = tmp_path / "cert.pem"
        async with connected(jira, dialect="cloud", ca_file=ca) as (client, _, _):
            assert (await client.myself())["timeZone"]


@pytest.mark.parametrize(
    "odd", [b"null", *(pytest.param(odd, marks=pytest.mark.slow) for odd in (b"", b"[]"))]
)
async def test_an_odd_answer_to_who_are_you_is_waited_for_and_not_the_plugins_end(
    database_url: str, odd: bytes
) -> None:
    """A 200 that says nothing is no Jira: it is asked again, and the plugin stays."""
    async with fake_jira() as jira:
        trouble = jira.trouble(200, path="serverInfo", body=odd)
        async with bench_on(database_url, **connection(jira, **SHORT)) as bench:

            async def asked_again() -> bool:
                return len(jira.calls("GET", "serverInfo")) > 1

            await eventually(asked_again, seconds=10)
            assert bench.desk.plugins.status()["jira"].state == "loaded"
            jira.troubles.remove(trouble)
            plugin: Any = bench.desk.trackers["jira"]
            assert await plugin.client.dialect() == "cloud"


async def test_a_look_at_jira_that_fails_in_an_unknown_way_is_made_again(
    database_url: str,
) -> None:
    """Whatever goes wrong in it, the plugin stays."""
    async with fake_jira() as jira:
        jira.trouble(500)
        async with bench_on(database_url, **connection(jira, **SHORT)) as bench:
            plugin: Any = bench.desk.trackers["jira"]
            await plugin.client._session.close()

            async def failed_otherwise() -> bool:
                name = "itdesk_jira_request_seconds_count"
                return bench.metric(name, outcome="cancelled") > 0

            await eventually(failed_otherwise, seconds=10)
            jira.troubles.clear()
            async with plugin.client.session():

                async def up() -> bool:
                    return bool(jira.calls("GET", "myself"))

                await eventually(up, seconds=10)
            assert bench.desk.plugins.status()["jira"].state == "loaded"


async def test_an_issue_that_always_fails_never_closes_jira_to_the_others() -> None:
    """R-21: serverInfo is asked before the breaker opens; five requests in a row at the most."""
    async with fake_jira() as jira, connected(jira, dialect="cloud") as (client, _, _):
        jira.issue()
        poison = jira.trouble(500, path="/issue/ITSM-1$")
        for _ in range(5):
            with pytest.raises(Unavailable) as caught:
                await client.issue("ITSM-1")
            assert caught.value.sent and not client.breaker.is_open
        jira.troubles.remove(poison)
        await client.myself()
        jira.trouble(500)
        before = len(jira.asked)
        for _ in range(5):
            with pytest.raises(Unavailable):
                await client.issue("ITSM-1")
        assert client.breaker.is_open and len(jira.asked) == before + 5


async def test_what_waits_for_jira_waits_for_various_times(database_url: str) -> None:
    """An outage makes no work of its own: the lanes do not come all at once, again and again."""
    async with scene_on(database_url, "cloud", **{f"{PLUGIN}BREAKER_FAILURES": "1"}) as scene:
        tickets = [(await scene.mirrored(f"Problem {number}"))[1] for number in range(6)]
        scene.jira.trouble("drop", method="GET", path="/(issue|serverInfo)")
        for ticket in tickets:
            await scene.edit(ticket, title="Later")
        await scene.work()
        query = "SELECT array_agg(extract(epoch FROM run_at - now())::int) FROM jobs"
        pauses: Any = await scene.bench.sql(f"{query} WHERE type = 'jira.push'")
        assert len(pauses) == 6 and max(pauses) - min(pauses) > 2
        assert max(pauses) <= 75
