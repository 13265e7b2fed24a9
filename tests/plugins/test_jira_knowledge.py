"""What was said in Jira helps those who ask here, as far as they may see it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from itdesk.model import SYSTEM, Role
from itdesk.remote import RemoteComment, RemotePerson
from itdesk_plugins.jira.knowledge import Knowledge, Remark, rank, words_of
from tests.plugins.test_jira_client import Stepped, connected
from tests.support.jira import Dialect, FakeJira, fake_jira
from tests.support.jira_scene import scene_on

KB = "ITDESK_PLUGINS__JIRA__KB__"


class Everybody:
    """Lets everybody read everything."""

    async def visible(self, caller: object, source: str, keys: list[str]) -> set[str]:
        """Return all."""
        return set(keys)


@asynccontextmanager
async def knowing(jira: FakeJira, **kb: Any) -> AsyncIterator[tuple[Knowledge, Stepped]]:
    """Lend what is known of a Jira, by a clock that stands still."""
    async with connected(jira, dialect="cloud", project_key="ITSM", kb=kb) as (client, clock, _):
        found = Knowledge(client, Everybody(), clock)
        async with found.opened():
            yield found, clock


def fetches(jira: FakeJira) -> int:
    """Return how often the latest issues were fetched."""
    return len(jira.calls("GET", "/search"))


async def test_the_most_fitting_comments_of_the_latest_issues_are_found() -> None:
    """S4-19, S4-20, S4-60: max_issues at a time, the last N comments of each, K best of all."""
    async with fake_jira() as jira:
        old = jira.issue("Printer")
        jira.say(old, "vpn vpn vpn: too old an issue to be looked at")
        issue = jira.issue("VPN is down")
        for number in range(9):
            jira.say(issue, f"vpn client {number}")
        other = jira.issue("Mail")
        jira.say(other, "the mail server was restarted")
        jira.say(other, "reinstall the vpn client and restart " + "x" * 400)
        async with knowing(jira, max_issues=2, max_comments_per_issue=3, top_matches=3) as (
            known,
            _,
        ):
            found = await known.find(SYSTEM, "reinstall the vpn client")
        assert [one.query["maxResults"] for one in jira.calls("GET", "/search")] == ["2"]
        # Of nine only the last three can be told, the newest first.
        assert [one.text for one in found][1:] == ["vpn client 8", "vpn client 7"]
        assert found[0].text.startswith("reinstall the vpn client")
        assert [one.title for one in found][:2] == ["ITSM-3 Mail", "ITSM-2 VPN is down"]
        assert found[0].url == f"{jira.url}/browse/ITSM-3" and found[0].source == "jira"
        assert len(found[0].text) == 280
        assert found[0].score >= found[-1].score > 0


async def test_what_shares_no_word_is_not_told() -> None:
    """S4-20: the zero-score ones are dropped, not filled up with."""
    async with fake_jira() as jira:
        jira.say(jira.issue(), "the mail server was restarted")
        async with knowing(jira) as (known, _):
            assert await known.find(SYSTEM, "vpn") == []
            assert await known.find(SYSTEM, "the was") == []
            assert await known.find(SYSTEM, "") == []
            assert len(await known.find(SYSTEM, "mail")) == 1


async def test_it_is_fetched_once_in_its_time() -> None:
    """S4-21: two calls inside cache_seconds are one fetch; after it, two."""
    async with fake_jira() as jira:
        issue = jira.issue()
        jira.say(issue, "vpn client")
        async with knowing(jira, cache_seconds=300) as (known, clock):
            await known.find(SYSTEM, "vpn")
            clock.at += 299
            jira.say(issue, "vpn server")
            assert len(await known.find(SYSTEM, "vpn")) == 1 and fetches(jira) == 1
            clock.at += 2
            assert len(await known.find(SYSTEM, "vpn")) == 2 and fetches(jira) == 2


async def test_a_failure_keeps_what_was_known_for_a_minute() -> None:
    """S4 KB: the old snapshot serves, and Jira is not asked again at once."""
    async with fake_jira() as jira:
        jira.say(jira.issue(), "vpn client")
        async with knowing(jira, cache_seconds=10) as (known, clock):
            await known.find(SYSTEM, "vpn")
            trouble = jira.trouble(403)
            clock.at += 11
            asked = len(jira.asked)
            for _ in range(3):
                assert len(await known.find(SYSTEM, "vpn")) == 1
            assert len(jira.asked) == asked + 1
            jira.troubles.remove(trouble)
            clock.at += 61
            assert len(await known.find(SYSTEM, "vpn")) == 1
            assert len(jira.asked) == asked + 2


async def test_it_can_be_switched_off(database_url: str) -> None:
    """S4-18: false: nothing is fetched."""
    async with scene_on(database_url, JIRA_KB_ENABLED="false") as scene:
        scene.jira.say(scene.jira.issue(), "vpn client")
        desk = scene.bench.desk
        assert await desk.plugins.knowledge(desk, SYSTEM, "vpn client") == []
        assert not scene.jira.calls("GET", "/(search|issue)")


@pytest.mark.parametrize("dialect", ["cloud", "datacenter"])
async def test_nobody_is_told_what_they_may_not_see(database_url: str, dialect: Dialect) -> None:
    """Users: of their own tickets only, and never what is internal; agents: everything."""
    names = {
        "JIRA_KB_MAX_ISSUES": "7", "JIRA_KB_MAX_COMMENTS_PER_ISSUE": "4",
        "JIRA_KB_TOP_MATCHES": "9", "JIRA_KB_CACHE_SECONDS": "5",
    }  # fmt: skip
    async with scene_on(database_url, dialect, **names) as scene:
        mine, ticket = await scene.mirrored("Mine")
        other, _ = await scene.mirrored("Other")
        for issue in (mine, other):
            scene.jira.say(issue, f"vpn of {issue.summary}")
            scene.jira.say(issue, f"vpn, among us, of {issue.summary}", public=False)
        user, agent = await scene.bench.person(), await scene.bench.person(Role.AGENT)
        await scene.bench.sql("UPDATE tickets SET reporter_id = $2 WHERE id = $1 RETURNING 1",
                              ticket.id, user.user_id)  # fmt: skip
        desk = scene.bench.desk
        told = await desk.plugins.knowledge(desk, user, "vpn")
        assert [one.text for one in told] == ["vpn of Mine"]
        assert len(await desk.plugins.knowledge(desk, agent, "vpn")) == 4
        stranger = await scene.bench.person()
        assert await desk.plugins.knowledge(desk, stranger, "vpn") == []
        (asked,) = scene.jira.calls("GET", "/search")
        assert asked.query["maxResults"] == "7"


def remark(text: str, key: str = "ITSM-1") -> Remark:
    """Return a comment that was said."""
    return Remark(key, "", RemoteComment("1", text, RemotePerson("Jo")), words_of(text))


def test_the_score_is_the_share_of_common_words_and_a_quarter_for_the_whole_query() -> None:
    """S4 KB: common / smaller set, +0.25 if the whole query occurs; words of 3 letters and more."""
    said = [remark("Restart the VPN client, now"), remark("vpn"), remark("Client restart")]
    scores = {one.comment.body: score for score, one in rank("vpn client", said, internal=True)}
    assert scores == {
        "Restart the VPN client, now": 1.25,
        "vpn": 1.0,
        "Client restart": 0.5,
    }
    assert words_of("We do IT on it: the VPN, Straße") == {"vpn", "strasse"}


def test_no_query_takes_long() -> None:
    """A pasted log of a megabyte is cut before it is looked at."""
    said = [remark("vpn client") for _ in range(1000)]
    assert rank("mail " * 500_000 + "vpn", said, internal=True) == []


async def test_a_failure_nobody_thought_of_is_not_repeated_at_once() -> None:
    """Whatever it is: an asker who comes within the minute does not ask Jira again."""
    async with fake_jira() as jira, knowing(jira) as (known, clock):
        async with known._client.session():
            await known._client._session.close()
            assert await known.find(SYSTEM, "vpn") == []
        jira.say(jira.issue("VPN"), "restart the vpn client")
        async with known._client.session():
            assert await known.find(SYSTEM, "vpn") == [] and fetches(jira) == 0
            clock.at += 61
            assert len(await known.find(SYSTEM, "vpn")) == 1
