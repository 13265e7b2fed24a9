"""Changes here reach Jira, once, and their echo changes nothing; both dialects."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from itdesk.desk import missed
from itdesk.desk.accounts import NewUser
from itdesk.model import SYSTEM, Caller, Change, Event, Role, Source
from tests.support.desk import bench_on
from tests.support.jira import Dialect
from tests.support.jira_scene import Scene, connection, scene_on


@pytest.fixture(params=["cloud", pytest.param("datacenter", marks=pytest.mark.slow)])
def dialect(request: pytest.FixtureRequest) -> Iterator[Dialect]:
    """Each dialect in turn."""
    yield request.param


async def agent(scene: Scene, name: str, email: str) -> Any:
    """Return a new agent."""
    return await scene.bench.desk.accounts.create(SYSTEM, NewUser(email, name, Role.AGENT))


async def quiet(scene: Scene, key: str) -> None:
    """Hear all echoes and compare: nothing changes here, and nothing is sent again."""
    before = await scene.ticket(key)
    sent = len(scene.writes())
    became = await scene.hear()
    assert not [one for one in became if one.created or one.updated]
    done = await scene.walk()
    assert (done.created, done.updated, done.errors) == (0, 0, [])
    await scene.work()
    after = await scene.ticket(key)
    assert after.version == before.version and len(scene.writes()) == sent
    assert {state for state, _ in await scene.jobs()} <= {"done"}


@pytest.mark.parametrize("spoken", ["cloud", "datacenter"])
async def test_fields_and_status_arrive_and_their_echo_changes_nothing(
    database_url: str, spoken: Dialect
) -> None:
    """S4-48: title, text, status, priority, tags and assignee; 0 ping-pong, also by R67."""
    async with scene_on(database_url, spoken) as scene:
        jane = await agent(scene, "Jane Smith", "jane@example.org")
        helper = await agent(scene, "Helper", "helper@example.org")
        there = scene.jira.user("Jane Smith", "jane@example.org")
        scene.jira.user("Jane Smithers", "jane.s@example.org")
        issue, ticket = await scene.mirrored(labels=["vpn", "itdesk_seen"])
        await scene.edit(
            ticket,
            title="VPN is down again",
            description="First.\n\nThen *this* and [that].",
            status="in_progress",
            priority="critical",
            tags=["vpn", "on site"],
            assignee_ids=[jane.id, helper.id],
        )
        await scene.work()
        assert (issue.summary, issue.status, issue.priority) == (
            "VPN is down again", "In Progress", "Highest",
        )  # fmt: skip
        assert issue.labels == ["itdesk_seen", "vpn", "on_site"]
        assert issue.assignee is there
        assert issue.description is not None and "that" in issue.description
        assert len(scene.writes()) == 2
        await quiet(scene, issue.key)
        found = await scene.ticket(issue.key)
        assert (found.title, found.tags) == ("VPN is down again", ["vpn", "on site"])
        assert found.assignee_ids == [jane.id, helper.id]


async def test_a_public_comment_is_said_once_and_an_internal_one_stays_here(
    database_url: str, dialect: Dialect
) -> None:
    """Its author is named; the webhook of it makes no second comment."""
    async with scene_on(database_url, dialect) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        await scene.bench.desk.tickets.comment(person, ticket.key, "Restart *it*, please")
        await scene.bench.desk.tickets.comment(person, ticket.key, "a fool", internal=True)
        await scene.work()
        (said,) = issue.comments
        assert said.text.startswith("A agent:") and "please" in said.text and said.public
        await quiet(scene, issue.key)
        assert await scene.said(issue.key) == ["Restart *it*, please", "a fool"]
        scene.jira.edit(issue, said, "A agent:\n\nRestart it now")
        await scene.hear()
        assert await scene.said(issue.key) == ["Restart it now", "a fool"]
        scene.jira.unsay(issue, said)
        await scene.hear()
        assert await scene.said(issue.key) == ["a fool"]


async def test_internal_comments_go_as_internal_ones_when_asked(database_url: str) -> None:
    """Off by default; then with sd.public.comment internal."""
    env = {"ITDESK_PLUGINS__JIRA__PUSH__INTERNAL_COMMENTS": "true"}
    async with scene_on(database_url, "cloud", **env) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        await scene.bench.desk.tickets.comment(person, ticket.key, "a fool", internal=True)
        await scene.work()
        assert [one.public for one in issue.comments] == [False]


async def test_what_jira_does_not_take_is_left_out_and_the_rest_arrives(
    database_url: str,
) -> None:
    """A field that is on no screen, a status that no transition leads to."""
    async with scene_on(database_url) as scene:
        scene.jira.flows = {"To Do": ["In Progress"]}
        issue, ticket = await scene.mirrored()
        scene.jira.trouble(
            400, method="PUT", times=1,
            body={"errorMessages": [], "errors": {"priority": "It is not on the screen."}},
        )  # fmt: skip
        await scene.edit(ticket, title="New title", priority="low", status="blocked")
        await scene.work()
        assert (issue.summary, issue.priority, issue.status) == ("New title", "Medium", "To Do")
        assert await scene.jobs() == [("done", None)]
        assert scene.bench.metric("itdesk_jira_pushes_total", outcome="refused") == 2
        # What is not there in Jira is overwritten by what is, at its next change.
        scene.jira.change(issue, labels=["seen"])
        await scene.hear()
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority, found.status) == ("New title", "medium", "open")


async def test_only_changes_of_mirrored_tickets_made_here_are_sent(database_url: str) -> None:
    """Neither local tickets, nor what Jira said, nor what has no place there."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        local = await scene.bench.ticket(await scene.bench.person())
        await scene.edit(local, title="Only here")
        await scene.edit(ticket, department="Sales", resolution="more memory")
        scene.jira.change(issue, priority="Low")
        await scene.hear()
        assert await scene.jobs() == []
        assert scene.writes() == []
        desk = scene.bench.desk
        (kind,) = (await desk.plugins.jobs(desk))["jira"]
        event = Event.by(
            SYSTEM, "ticket.updated", changes=(Change("title", "a", "b"),),
            data={"mirror": f"jira:{issue.key}"},
        )  # fmt: skip
        assert kind.when(event) and kind.lane(event) == f"jira:{issue.key}"
        assert not kind.when(replace(event, source=Source.JIRA))
        assert not kind.when(replace(event, data={"mirror": "other:1"}))


async def test_a_desk_that_does_not_push_sends_nothing(database_url: str) -> None:
    """[plugins.jira.push] enabled = false."""
    async with scene_on(database_url, ITDESK_PLUGINS__JIRA__PUSH__ENABLED="false") as scene:
        _, ticket = await scene.mirrored()
        await scene.edit(ticket, title="Only here")
        await scene.work()
        assert await scene.jobs() == [] and scene.writes() == []


async def test_two_quick_edits_both_arrive_whatever_echo_comes_between(database_url: str) -> None:
    """An echo of the first is no news: it does not take the second back."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        await scene.edit(ticket, title="One")
        await scene.work()
        await scene.edit(ticket, title="Two", priority="high")
        assert not [one for one in await scene.hear() if one.updated]
        stale = scene.jira.event("jira:issue_updated", scene.jira.change(issue, labels=["x"]))
        scene.jira.take()
        await scene.hear([stale])
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority, found.tags) == ("Two", "high", ["x"])
        await scene.work()
        assert (issue.summary, issue.priority) == ("Two", "High")
        await quiet(scene, issue.key)


async def test_a_lost_answer_to_a_comment_is_looked_for_and_not_repeated(
    database_url: str, dialect: Dialect
) -> None:
    """R-21: a POST is never repeated blindly, however often its answer gets lost."""
    async with scene_on(database_url, dialect) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        scene.jira.trouble("lost", method="POST", path="/comment", times=1)
        await scene.bench.desk.tickets.comment(person, ticket.key, "once")
        await scene.work()
        assert len(issue.comments) == 1
        await scene.hurry()
        await scene.work()
        assert len(issue.comments) == 1 and len(scene.jira.calls("POST", "/comment")) == 1
        assert (await scene.jobs())[0][0] == "done"
        await quiet(scene, issue.key)


async def test_a_comments_webhook_that_is_faster_than_the_answer_makes_no_second_one(
    database_url: str,
) -> None:
    """Told back while the desk does not know its id yet."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        scene.jira.trouble("lost", method="POST", path="/comment", times=1)
        await scene.bench.desk.tickets.comment(person, ticket.key, "once")
        await scene.work()
        await scene.hear()
        assert await scene.said(issue.key) == ["once"]
        await scene.hurry()
        await scene.work()
        assert len(issue.comments) == 1 and await scene.said(issue.key) == ["once"]


async def test_a_deleted_issue_or_ticket_ends_the_push_quietly(database_url: str) -> None:
    """X33: what is gone is not looked for for ever."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        other, gone = await scene.mirrored("Printer")
        await scene.edit(ticket, title="Late")
        await scene.edit(gone, title="Late")
        scene.jira.delete(issue)
        await scene.hear()
        caller: Caller = SYSTEM
        await scene.bench.desk.tickets.delete(caller, str(gone.id))
        await scene.work()
        assert [state for state, _ in await scene.jobs()] == ["done", "done"]
        assert other.summary == "Printer"


async def test_a_second_comment_that_jira_told_back_otherwise_goes_away(database_url: str) -> None:
    """Its text was not known again; the property says whose it is."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        scene.jira.trouble("lost", method="POST", path="/comment", times=1)
        await scene.bench.desk.tickets.comment(person, ticket.key, "once")
        await scene.work()
        (said,) = issue.comments
        said.text, said.adf = "once, in other words", None
        scene.jira.take()
        await scene.hear([scene.jira.event("comment_created", issue, comment=said)])
        assert sorted(await scene.said(issue.key)) == ["once", "once, in other words"]
        await scene.hurry()
        await scene.work()
        assert len(issue.comments) == 1 and await scene.said(issue.key) == ["once"]


async def test_a_restored_desk_tells_jira_nothing_before_it_is_resumed(database_url: str) -> None:
    """DESIGN 8: every kind of work of this plugin is outbound."""
    async with scene_on(database_url) as scene:
        desk = scene.bench.desk
        issue, ticket = await scene.mirrored()
        await scene.bench.sql(
            "INSERT INTO outbound_pause (backup_id, backup_at) VALUES ($1, now()) RETURNING 1",
            ticket.id,
        )
        await scene.edit(ticket, title="Later")
        await scene.work()
        assert scene.writes() == [] and await scene.jobs() == [("waiting", None)]
        for kinds in (await desk.plugins.jobs(desk), await desk.plugins.schedules(desk)):
            assert [kind.outbound for kind in kinds["jira"]] == [True]
        await scene.bench.sql("DELETE FROM outbound_pause")
        await scene.work()
        assert issue.summary == "Later"


async def test_a_pushed_ticket_that_is_moved_keeps_its_title(database_url: str) -> None:
    """X32: its key is part of the summary, also of one that was said with an earlier key."""
    async with scene_on(database_url) as scene:
        desk = scene.bench.desk
        admin = await scene.bench.person(Role.ADMIN)
        ours = await scene.bench.ticket(admin)
        issue = scene.jira.issue(f"[{ours.key}] {ours.title}")
        await scene.bench.sql(
            "UPDATE tickets SET external_source = 'jira', external_id = $2 WHERE id = $1",
            ours.id, issue.key,
        )  # fmt: skip
        await desk.projects.create(admin, "HR", "People")
        moved = await desk.tickets.update(admin, str(ours.id), {"project": "HR"})
        scene.jira.change(issue, priority="High")
        await scene.hear()
        assert (await scene.ticket(moved.key)).title == ours.title
        await scene.work()
        assert issue.summary == f"[{moved.key}] {ours.title}"
        await quiet(scene, moved.key)


async def test_an_internal_comment_stays_internal_though_data_center_does_not_say_so(
    database_url: str,
) -> None:
    """Its webhooks and issues do not tell who may read a comment: it is asked, by each way in."""
    env = {"ITDESK_PLUGINS__JIRA__PUSH__INTERNAL_COMMENTS": "true"}
    async with scene_on(database_url, "datacenter", **env) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        await scene.bench.desk.tickets.comment(person, ticket.key, "a fool", internal=True)
        await scene.work()
        (ours,) = issue.comments
        scene.jira.say(issue, "indeed", public=False)
        scene.jira.say(issue, "Good morning")
        scene.jira.edit(issue, ours, "A agent:\n\na real fool")
        # A change that is sent hears of the comments, too.
        await scene.edit(ticket, title="VPN is slow")
        await scene.work()
        hidden = "SELECT string_agg(body, '|' ORDER BY body) FROM ticket_comments WHERE internal"
        public = hidden.replace("WHERE internal", "WHERE NOT internal")
        assert await scene.bench.sql(public) is None
        webhooks = scene.jira.take()
        trouble = scene.jira.trouble(404, method="GET", path="/comment$")
        await scene.hear([one for one in webhooks if b"indeed" in one.body])
        assert await scene.bench.sql(public) is None
        scene.jira.troubles.remove(trouble)
        await scene.hear([one for one in webhooks if b"indeed" not in one.body])
        assert await scene.bench.sql(hidden) == "a real fool"
        scene.jira.change(issue, priority="High")
        await scene.walk()
        assert await scene.bench.sql(hidden) == "a real fool|indeed"
        assert await scene.bench.sql(public) == "Good morning"
        # Where the property went, nothing says that everybody may read it now.
        ours.public, ours.properties = True, []
        scene.jira.edit(issue, ours, "A agent:\n\nno fool")
        await scene.hear()
        assert await scene.bench.sql(hidden) == "indeed|no fool"


async def test_what_was_changed_while_it_was_switched_off_goes_out_once_it_is_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-05: before Jira's next update overwrites it, and once, though two daemons catch up, one of
    which was started meanwhile."""
    monkeypatch.setattr(missed, "BATCH", 1)
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        person = await scene.bench.person(Role.AGENT)
        await scene.switch(enabled=False)
        assert not scene.bench.desk.mirror._rules
        async with bench_on(database_url, **connection(scene.jira)) as other:
            await scene.edit(ticket, title="VPN is slow", status="in_progress")
            await scene.bench.desk.tickets.comment(person, ticket.key, "On it")
            scene.jira.change(issue, priority="Low")
            assert await scene.jobs() == []
            boss = await other.person(Role.ADMIN)
            await other.desk.switchboard.turn(boss, "jira", enabled=True)
            assert len(await scene.jobs()) == 2
        await scene.bench.desk.switchboard.apply()
        await scene.hear()
        assert (await scene.ticket(issue.key)).title == "VPN is slow"
        await scene.work()
        said = [one.text.splitlines()[-1] for one in issue.comments]
        assert (issue.summary, issue.status, said) == ("VPN is slow", "In Progress", ["On it"])
        await scene.switch(enabled=False)
        await scene.switch(enabled=True)
        assert [state for state, _ in await scene.jobs()] == ["done", "done"]
