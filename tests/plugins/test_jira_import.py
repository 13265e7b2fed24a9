"""The import of local tickets into Jira: each becomes one issue, whatever happens in between."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from itdesk.desk.accounts import NewUser
from itdesk.desk.tickets import NewTicket
from itdesk.errors import Conflict, Unavailable
from itdesk.model import SYSTEM, Priority, Role, Ticket
from itdesk.remote import RemoteIssue
from itdesk_plugins.jira import commands
from itdesk_plugins.jira.commands import table
from itdesk_plugins.jira.importer import Importer, Summary
from itdesk_plugins.jira.plan import Options, Planner, Step
from itdesk_plugins.jira.push import PUSH
from tests.support.jira import FakeJira, Issue
from tests.support.jira_scene import Scene, scene_on

URGENCY = {"name": "Urgency", "allowedValues": [
    {"id": "1", "value": "Critical"}, {"id": "2", "value": "High"},
    {"id": "3", "value": "Medium"}, {"id": "4", "value": "Low"}]}  # fmt: skip
IMPACT = {"name": "Impact", "allowedValues": [
    {"id": "11", "value": "Extensive / Widespread"}, {"id": "12", "value": "Significant / Large"},
    {"id": "13", "value": "Moderate / Limited"}, {"id": "14", "value": "Minor / Localized"}],
}  # fmt: skip
SETTLED = "ITDESK_PLUGINS__JIRA__PUSH__SETTLE_SECONDS"


class Import:
    """One import of a scene's tickets."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.failures: list[str] = []

    async def plan(self, **how: Any) -> list[Step]:
        """Return what would be done."""
        steps, _ = await self._planner(Options(project="ITSM", **how)).steps()
        return list(steps)

    async def run(
        self, *, meanwhile: Callable[[], Awaitable[object]] | None = None, **how: Any
    ) -> Summary:
        """Do it; something may happen between the plan and its first step."""
        plugin: Any = self.scene.bench.desk.trackers["jira"]
        options = Options(project="ITSM", apply=True, sleep_ms=0, **how)
        planner = self._planner(options)
        target = await planner.target()
        steps, skipped = await planner.steps()
        summary = Summary(planned=len(steps), skipped=skipped)
        desk = self.scene.bench.desk
        importer = Importer(plugin.client, desk, plugin.pusher, options, target)

        def tell(step: Step, problem: str) -> None:
            self.failures += [problem] if problem else []

        if meanwhile is not None:
            await meanwhile()
        await importer.run(steps, summary, tell)
        return summary

    def _planner(self, options: Options) -> Planner:
        plugin: Any = self.scene.bench.desk.trackers["jira"]
        return Planner(plugin.client, self.scene.bench.desk, options)


@asynccontextmanager
async def importing(database_url: str, **env: str) -> AsyncIterator[tuple[Scene, Import]]:
    """Lend a scene and its import."""
    async with scene_on(database_url, "cloud", **env) as scene:
        yield scene, Import(scene)


async def opened(scene: Scene, title: str = "VPN is down", **fields: Any) -> Ticket:
    """Open a local ticket."""
    person = await scene.bench.person(Role.AGENT)
    return await scene.bench.desk.tickets.create(person, NewTicket(title, **fields))


def only(jira: FakeJira) -> Issue:
    """Return the one issue that there is."""
    (issue,) = jira.issues.values()
    return issue


async def test_a_ticket_becomes_an_issue_with_all_that_belongs_to_it(database_url: str) -> None:
    """S4-26, X32: title, text, labels, comments, resolution, status; its echo makes no ticket."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(
            scene, "No VPN\nat all", description="Since *Monday*", tags=["vpn", "on site"],
            priority=Priority.CRITICAL,
        )  # fmt: skip
        person = await scene.bench.person(Role.AGENT)
        for number in range(10):
            await scene.bench.desk.tickets.comment(person, ticket.key, f"no {number}")
        await scene.bench.desk.tickets.comment(person, ticket.key, "a fool", internal=True)
        await scene.edit(ticket, status="closed", resolution="more memory")
        done = await job.run()
        assert str(done) == "planned=1 created=1 updated=0 comments=9 skipped=0 failed=0"
        issue = only(scene.jira)
        assert issue.summary == f"[{ticket.key}] No VPN at all"
        assert (issue.type, issue.priority, issue.status) == ("Incident", "Highest", "Resolved")
        assert issue.labels == [
            "source_local_itsm", f"itdesk_{ticket.id}", "status_closed", "priority_critical",
            "vpn", "on_site",
        ]  # fmt: skip
        said = [one.text.splitlines()[-1] for one in issue.comments]
        assert said == [f"no {number}" for number in range(2, 10)] + ["more memory"]
        assert issue.properties["itdesk"] == {"ticket": str(ticket.id), "key": ticket.key}
        before = await scene.ticket(ticket.key)
        assert before.external is not None and before.external.id == issue.key
        became = await scene.hear()
        assert not [one for one in became if one.created or one.updated]
        assert (await scene.walk()).unchanged == 1
        await scene.work()
        assert await scene.ticket(ticket.key) == await scene.ticket(ticket.key)
        after = await scene.ticket(ticket.key)
        assert (after.version, after.title) == (before.version, before.title)
        assert await scene.bench.sql("SELECT count(*) FROM tickets") == 1
        assert len(await scene.said(ticket.key)) == 11


async def test_a_plan_sends_nothing_and_shows_what_would_be_done(database_url: str) -> None:
    """S4-26: at most --limit, the oldest first."""
    async with importing(database_url) as (scene, job):
        tickets = [await opened(scene, f"Problem {number}\x1b[2J") for number in range(3)]
        steps = await job.plan(limit=2)
        assert [step.ticket.id for step in steps] == [one.id for one in tickets[:2]]
        target = await job._planner(Options(project="ITSM")).target()
        lines = table(steps, target)
        assert lines[0].split() == [
            "ACTION", "TICKET", "ISSUE", "TYPE", "PRIORITY", "ASSIGNEE", "COMMENTS", "TITLE",
        ]  # fmt: skip
        assert lines[1].split()[:4] == ["create", tickets[0].key, "ITSM-?", "Incident"]
        assert "\x1b" not in "".join(lines)
        assert scene.writes() == [] and not scene.jira.issues
        done = await job.run(limit=2)
        assert (done.created, len(scene.jira.issues)) == (2, 2)
        # The next run goes on.
        done = await job.run(limit=2)
        assert (done.created, done.skipped, len(scene.jira.issues)) == (1, 2, 3)


async def test_urgency_and_impact_are_those_that_the_priority_means(database_url: str) -> None:
    """S4-27: with both fields their mapped options; without them neither key."""
    async with importing(database_url) as (scene, job):
        await opened(scene, priority=Priority.HIGH)
        await job.run()
        (plain,) = scene.jira.calls("POST", "/issue$")
        assert not [name for name in plain.body["fields"] if name.startswith("customfield")]
        scene.jira.create_fields = {"customfield_1": URGENCY, "customfield_2": IMPACT}
        await opened(scene, priority=Priority.HIGH)
        await opened(scene, priority=Priority.LOW)
        await job.run()
        _, high, low = scene.jira.calls("POST", "/issue$")
        assert high.body["fields"]["customfield_1"] == {"id": "2", "value": "High"}
        assert high.body["fields"]["customfield_2"]["value"] == "Significant / Large"
        assert low.body["fields"]["customfield_1"]["value"] == "Low"
        assert low.body["fields"]["customfield_2"]["value"] == "Minor / Localized"


async def test_issues_are_given_to_the_very_person_or_to_whoever_has_least_to_do(
    database_url: str,
) -> None:
    """S4-28, T17: by mail or exact name, never the first hit; unmatched is left out."""
    async with importing(database_url) as (scene, job):
        accounts = scene.bench.desk.accounts
        scene.jira.user("Ann Other", "ann.other@example.org")
        there = scene.jira.user("Ann", "ann@example.org")
        ann = await accounts.create(SYSTEM, NewUser("ann@example.org", "Ann B.", Role.AGENT))
        nobody = await accounts.create(SYSTEM, NewUser("an@example.org", "An", Role.AGENT))
        hers = await opened(scene, "hers")
        his = await opened(scene, "his")
        await scene.edit(hers, assignee_ids=[ann.id])
        await scene.edit(his, assignee_ids=[nobody.id])
        done = await job.run(auto_assign=False)
        assert done.failed == 0
        by_title = {issue.summary.split()[-1]: issue for issue in scene.jira.issues.values()}
        assert by_title["hers"].assignee is there and by_title["his"].assignee is None
        assert await scene.bench.sql("SELECT account_id FROM jira_accounts") == there.id
        assert await scene.bench.sql("SELECT count(*) FROM jira_accounts") == 1
        bob_there = scene.jira.user("Bob", None)
        await accounts.create(SYSTEM, NewUser("bob@example.org", "Bob", Role.AGENT))
        for number in range(3):
            await opened(scene, f"free{number}")
        await job.run()
        by_title = {issue.summary.split()[-1]: issue for issue in scene.jira.issues.values()}
        # Ann has one already.
        given = [by_title[f"free{number}"].assignee for number in range(3)]
        assert given == [bob_there, there, bob_there]
        assert (await scene.ticket(his.key)).assignee_ids == [nobody.id]
        await scene.hear()
        assert (await scene.ticket(his.key)).assignee_ids == [nobody.id]


async def test_a_second_run_updates_in_place_and_only_when_asked(database_url: str) -> None:
    """S4-29, X31: --update-existing makes only PUTs, and without it nothing is sent."""
    async with importing(database_url) as (scene, job):
        scene.jira.create_fields = {"customfield_1": URGENCY}
        there = scene.jira.user("Ann", "ann@example.org")
        ticket = await opened(scene)
        await job.run()
        ann = await scene.bench.desk.accounts.create(
            SYSTEM, NewUser("ann@example.org", "Ann", Role.AGENT)
        )
        # As if nothing of it had been pushed.
        await scene.edit(ticket, description="New", priority="high", assignee_ids=[ann.id])
        await scene.bench.sql("DELETE FROM jobs")
        before = len(scene.writes())
        assert (await job.run()).skipped == 1 and len(scene.writes()) == before
        done = await job.run(update_existing=True)
        assert (done.updated, done.created, done.failed) == (1, 0, 0)
        assert {method for method, _ in scene.writes()[before:]} == {"PUT"}
        issue = only(scene.jira)
        assert (issue.description, issue.assignee) == ("New", there)
        assert issue.extra["customfield_1"]["value"] == "High"
        version = (await scene.ticket(ticket.key)).version
        await scene.hear()
        assert (await scene.ticket(ticket.key)).version == version


async def test_a_service_desk_gets_requests_of_its_own_types(database_url: str) -> None:
    """S4-17: JIRA_SERVICE_DESK_ID; labels, priority and assignee follow, S4-27 by its fields."""
    async with importing(database_url, JIRA_SERVICE_DESK_ID="7") as (scene, job):
        options = [{"value": "10", "label": "High"}, {"value": "11", "label": "Medium"}]
        scene.jira.request_types = {
            "3": {"name": "Buy something", "fields": []},
            "4": {
                "name": "Report an incident",
                "type": "Incident",
                "fields": [
                    {"fieldId": "summary", "name": "Summary"},
                    {"fieldId": "description", "name": "Description"},
                    {"fieldId": "customfield_9", "name": "Urgency", "validValues": options},
                ],
            },
        }
        ticket = await opened(scene, priority=Priority.HIGH, description="Since Monday")
        done = await job.run()
        assert (done.created, done.failed) == (1, 0), job.failures
        assert scene.jira.calls("GET", "/servicedesk/7/requesttype$")
        (sent,) = scene.jira.calls("POST", "/request$")
        assert (sent.body["serviceDeskId"], sent.body["requestTypeId"]) == ("7", "4")
        assert sent.body["requestFieldValues"]["customfield_9"] == {"id": "10"}
        assert sent.body["requestFieldValues"]["description"] == "Since Monday"
        issue = only(scene.jira)
        assert f"itdesk_{ticket.id}" in issue.labels and issue.priority == "High"
        await scene.hear()
        assert await scene.bench.sql("SELECT count(*) FROM tickets") == 1


@pytest.mark.parametrize("desk", ["", pytest.param("7", marks=pytest.mark.slow)])
async def test_a_lost_answer_opens_no_second_issue(database_url: str, desk: str) -> None:
    """R-21, X32: it is looked for, and its webhook is recognised before it is found."""
    async with importing(database_url, JIRA_SERVICE_DESK_ID=desk) as (scene, job):
        scene.jira.request_types = {"4": {"name": "Incident", "fields": []}}
        ticket = await opened(scene)
        await scene.edit(ticket, status="in_progress")
        # Jira's index is behind its issues, as on Cloud.
        scene.jira.eventual = True
        scene.jira.trouble("lost", method="POST", path="/(issue|request)$", times=1)
        done = await job.run()
        assert (done.created, done.failed) == (0, 1)
        # Nobody knows yet: it is not opened again.
        done = await job.run()
        assert (done.failed, len(scene.jira.issues)) == (1, 1)
        assert "run the import again" in job.failures[-1]
        await scene.hear()
        assert await scene.bench.sql("SELECT count(*) FROM tickets") == 1
        # Its issue was just opened, and says nothing of what the ticket went through.
        linked = await scene.ticket(ticket.key)
        assert linked.external is not None and linked.status == "in_progress"
        scene.jira.eventual = False
        done = await job.run()
        assert (done.created, done.failed, len(scene.jira.issues)) == (1, 0, 1)
        await scene.hear()
        assert (await scene.walk()).created == 0
        assert f"itdesk_{ticket.id}" in only(scene.jira).labels
        assert only(scene.jira).status == "In Progress"


async def test_a_request_that_was_cut_before_its_labels_is_found_by_its_summary(
    database_url: str,
) -> None:
    """R-21: nothing but its summary says whose it is; a look-alike is nobody's."""
    env = {"JIRA_SERVICE_DESK_ID": "7", SETTLED: "0"}
    async with importing(database_url, **env) as (scene, job):
        scene.jira.request_types = {"4": {"name": "Incident", "fields": []}}
        ticket = await opened(scene)
        other = scene.jira.issue(f"About {ticket.key}")
        scene.jira.eventual = True
        scene.jira.trouble("lost", method="POST", path="/request$", times=1)
        assert (await job.run()).failed == 1
        scene.jira.eventual = False
        scene.jira.reindex()
        assert (await job.run()).created == 1
        (issue,) = [one for one in scene.jira.issues.values() if one is not other]
        assert f"itdesk_{ticket.id}" in issue.labels and not other.labels


async def test_what_was_surely_not_opened_is_opened_by_the_next_run(database_url: str) -> None:
    """After the time in which Jira's search may be behind; and at once when nothing was sent."""
    async with importing(database_url, **{SETTLED: "0"}) as (scene, job):
        await opened(scene)
        trouble = scene.jira.trouble("drop", method="POST", path="/issue$")
        assert (await job.run()).failed == 1 and not scene.jira.issues
        scene.jira.troubles.remove(trouble)
        scene.jira.trouble(400, method="POST", path="/issue$", times=1)
        assert (await job.run()).failed == 1
        done = await job.run()
        assert (done.created, len(scene.jira.issues)) == (1, 1)


async def test_issues_that_say_whose_they_are_are_never_opened_twice(database_url: str) -> None:
    """A desk that lost its memory finds them by their labels, on all pages (not the first only)."""
    async with importing(database_url) as (scene, job):
        scene.jira.page_limit = 2
        tickets = [await opened(scene, f"no {number}") for number in range(5)]
        person = await scene.bench.person(Role.AGENT)
        await scene.bench.desk.tickets.comment(person, tickets[4].key, "once")
        await job.run()
        await scene.bench.sql("DELETE FROM jira_pushes")
        await scene.bench.sql("DELETE FROM jira_issues")
        await scene.bench.sql("UPDATE tickets SET external_source = NULL, external_id = NULL")
        await scene.bench.sql("UPDATE ticket_comments SET external_source = NULL,"
                              " external_comment_id = NULL")  # fmt: skip
        done = await job.run()
        assert (done.failed, len(scene.jira.issues)) == (0, 5)
        assert not [one for one in scene.jira.calls("POST", "/issue$")][5:]
        last = scene.jira.issues[f"ITSM-{5}"]
        assert len(last.comments) == 1
        linked = await scene.bench.sql("SELECT count(*) FROM tickets WHERE external_id IS NOT NULL")
        assert linked == 5


@pytest.mark.slow
async def test_fields_that_jira_does_not_take_are_left_out(database_url: str) -> None:
    """A refused request opened nothing: once more without what was complained about."""
    async with importing(database_url) as (scene, job):
        await opened(scene)
        scene.jira.trouble(
            400, method="POST", path="/issue$", times=1,
            body={"errorMessages": [], "errors": {"priority": "It is not on the screen."}},
        )  # fmt: skip
        assert (await job.run()).created == 1
        assert len(scene.jira.issues) == 1


@pytest.mark.slow
async def test_a_limit_in_the_middle_is_waited_for_and_nothing_is_done_twice(
    database_url: str,
) -> None:
    """R-21: 429 between the issue and its comments."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        person = await scene.bench.person(Role.AGENT)
        for number in range(2):
            await scene.bench.desk.tickets.comment(person, ticket.key, f"no {number}")
        scene.jira.limit(1, method="POST", path="/comment$", times=1, after=1)
        done = await job.run()
        assert (done.created, done.failed) == (1, 0)
        assert len(only(scene.jira).comments) == 2 and len(scene.jira.issues) == 1


async def test_an_issue_type_that_is_not_there_is_named_with_those_that_are(
    database_url: str,
) -> None:
    """--issue-type."""
    async with importing(database_url) as (scene, job):
        await opened(scene)
        with pytest.raises(Conflict, match=r"has no Epic.*Incident"):
            await job.run(issue_type="Epic")
        assert (await job.run(issue_type="bug")).created == 1
        assert only(scene.jira).type == "Bug"


async def test_a_restored_desk_imports_nothing_before_it_is_resumed(database_url: str) -> None:
    """DESIGN 8."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        await scene.bench.sql(
            "INSERT INTO outbound_pause (backup_id, backup_at) VALUES ($1, now()) RETURNING 1",
            ticket.id,
        )
        with pytest.raises(Conflict, match="itdesk resume"):
            await job.run()
        assert len(await job.plan()) == 1 and scene.writes() == []


async def test_what_changed_after_the_plan_is_what_jira_gets(database_url: str) -> None:
    """X32: a plan may be hours old; both sides say the same in the end."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene, "Old title")

        async def meanwhile() -> None:
            await scene.edit(ticket, title="New title", status="closed", resolution="mended")

        assert (await job.run(meanwhile=meanwhile)).failed == 0
        issue = only(scene.jira)
        assert (issue.summary, issue.status) == (f"[{ticket.key}] New title", "Resolved")
        scene.jira.take()
        await scene.walk()
        found = await scene.ticket(ticket.key)
        assert (found.title, found.status) == ("New title", "closed")


async def test_what_changes_while_an_issue_is_opened_is_sent_afterwards(
    database_url: str,
) -> None:
    """Before it is linked a change has no issue to be sent to: linking looks for such changes."""
    async with importing(database_url) as (scene, _):
        ticket = await opened(scene, "Old title")
        issue = scene.jira.issue(f"[{ticket.key}] Old title")
        outbound = scene.bench.desk.mirror.outbound
        await outbound.opening(ticket.id)
        await scene.edit(ticket, title="New title")
        assert await scene.jobs() == []
        there = RemoteIssue(source="jira", key=issue.key, id=issue.id)
        await outbound.linked(ticket, there, made=True, push=PUSH)
        await scene.work()
        assert scene.writes() == []
        await outbound.opened(ticket.id)
        await scene.hurry()
        await scene.work()
        assert issue.summary == f"[{ticket.key}] New title"


async def test_one_refused_comment_is_passed_over(database_url: str) -> None:
    """So is a property: the rest is said, and the issue is finished."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        person = await scene.bench.person(Role.AGENT)
        for number in range(2):
            await scene.bench.desk.tickets.comment(person, ticket.key, f"no {number}")
        scene.jira.trouble(400, method="POST", path="/comment$", times=1)
        scene.jira.trouble(403, method="PUT", path="/properties/")
        await scene.edit(ticket, status="in_progress")
        assert str(await job.run()).endswith("comments=1 skipped=0 failed=0")
        assert only(scene.jira).status == "In Progress"
        assert not (await scene.bench.desk.mirror.outbound.shadow(ticket.id)).creating


@pytest.mark.parametrize("webhooks", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_what_jira_says_of_an_issue_that_a_cut_import_left_is_not_lost(
    database_url: str, webhooks: bool
) -> None:
    """Its fields and comments are heard, and finishing it does not take them back."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        await scene.edit(ticket, status="in_progress")
        scene.jira.trouble(500, method="POST", path="/transitions$", times=1)
        assert (await job.run()).failed == 1
        issue = only(scene.jira)
        scene.jira.change(issue, summary=f"[{ticket.key}] Their title")
        scene.jira.say(issue, "Their word", by=scene.jira.user("Ann"))
        if webhooks:
            await scene.hear()
            found = await scene.ticket(ticket.key)
            assert (found.title, found.status) == ("Their title", "in_progress")
            assert await scene.said(ticket.key) == ["Their word"]
        age = "UPDATE jira_pushes SET creating_since = now() - interval '2 hours' RETURNING 1"
        await scene.bench.sql(age)
        assert await scene.bench.desk.mirror.outbound.unfinished() == 1
        assert (await job.run()).created == 1
        assert await scene.bench.desk.mirror.outbound.unfinished() == 0
        await scene.hurry()
        await scene.work()
        await scene.hear()
        found = await scene.ticket(ticket.key)
        assert (found.title, found.status) == ("Their title", "in_progress")
        assert issue.summary.endswith("Their title") and issue.status == "In Progress"
        assert await scene.said(ticket.key) == ["Their word"]


async def test_a_worker_beside_an_import_says_nothing_twice(database_url: str) -> None:
    """While an issue is being opened its changes wait, and what is said already is not said."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        person = await scene.bench.person(Role.AGENT)
        first = await scene.bench.desk.tickets.comment(person, ticket.key, "one")
        scene.jira.trouble(500, method="POST", path="/comment$", times=1)
        assert (await job.run()).failed == 1
        await scene.bench.desk.tickets.comment(person, ticket.key, "two")
        await scene.work()
        issue = only(scene.jira)
        assert {state for state, _ in await scene.jobs()} == {"waiting"} and not issue.comments
        attempts = "SELECT sum(attempts) FROM jobs WHERE type = 'jira.push'"
        assert await scene.bench.sql(attempts) == 0
        assert (await job.run()).comments == 2
        plugin: Any = scene.bench.desk.trackers["jira"]
        assert not await plugin.pusher.say(ticket, issue.key, first.id)
        await scene.hurry()
        await scene.work()
        assert {state for state, _ in await scene.jobs()} == {"done"}
        await scene.hear()
        assert [one.text.splitlines()[-1] for one in issue.comments] == ["one", "two"]
        assert await scene.said(ticket.key) == ["one", "two"]


async def test_a_resolution_that_is_told_back_at_once_makes_no_comment(database_url: str) -> None:
    """Its webhook may be faster than the answer."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        await scene.edit(ticket, status="closed", resolution="more memory")
        scene.jira.trouble("lost", method="POST", path="/comment$", times=1)
        assert (await job.run()).failed == 1
        await scene.hear()
        assert await scene.said(ticket.key) == []
        assert (await job.run()).created == 1
        assert len(only(scene.jira).comments) == 1


async def test_updating_never_takes_an_issue_out_of_somebodys_hands(database_url: str) -> None:
    """S4-29: only a ticket's own assignee is sent to an issue that is there."""
    async with importing(database_url) as (scene, job):
        bob = scene.jira.user("Bob", "bob@example.org")
        new = NewUser("bob@example.org", "Bob", Role.AGENT)
        await scene.bench.desk.accounts.create(SYSTEM, new)
        await opened(scene)
        await job.run()
        issue = only(scene.jira)
        assert issue.assignee is bob
        jane = scene.jira.user("Jane", "jane@example.org")
        scene.jira.change(issue, assignee=jane)
        assert (await job.run(update_existing=True)).updated == 1
        assert issue.assignee is jane


async def test_a_limit_takes_what_is_not_there_yet_first(database_url: str) -> None:
    """S4-26: else --update-existing would do the same oldest ones at every run."""
    async with importing(database_url) as (scene, job):
        old = await opened(scene, "Old")
        await job.run()
        new = await opened(scene, "New")
        steps = await job.plan(limit=1, update_existing=True)
        assert [(step.action, step.ticket.id) for step in steps] == [("create", new.id)]
        steps = await job.plan(update_existing=True)
        assert [step.ticket.id for step in steps] == [new.id, old.id]


@pytest.mark.slow
async def test_a_plan_waits_when_jira_wants_a_pause(database_url: str) -> None:
    """R-21: a 429 of a second is no reason to end."""
    async with importing(database_url) as (scene, job):
        await opened(scene)
        scene.jira.limit(1, method="GET", path="/search", times=1)
        assert [step.action for step in await job.plan()] == ["create"]


async def test_what_was_sent_is_known_though_nothing_was_heard_yet(database_url: str) -> None:
    """What somebody changed right after it was opened is their word, not how it was opened."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        scene.jira.trouble(500, method="GET", path="/issue/ITSM-1$", times=3)
        assert (await job.run()).failed == 1
        scene.jira.take()
        scene.jira.change(only(scene.jira), summary=f"[{ticket.key}] Their title")
        await scene.hear()
        assert (await scene.ticket(ticket.key)).title == "Their title"


async def test_what_was_heard_before_an_import_was_cut_is_how_the_issue_was_opened(
    database_url: str,
) -> None:
    """So what differs when it is finished was changed there, though its webhook got lost."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        person = await scene.bench.person(Role.AGENT)
        await scene.bench.desk.tickets.comment(person, ticket.key, "one")
        scene.jira.trouble(500, method="POST", path="/comment$", times=1)
        assert (await job.run(auto_assign=False)).failed == 1
        scene.jira.change(only(scene.jira), assignee=scene.jira.user("Ann"))
        scene.jira.take()
        assert (await job.run(auto_assign=False)).created == 1
        found = await scene.ticket(ticket.key)
        assert found.external is not None and found.external.assignee == "Ann"


async def test_the_echo_of_an_imports_transition_takes_nothing_back(database_url: str) -> None:
    """A ticket that was closed meanwhile stays closed, and its issue follows."""
    async with importing(database_url) as (scene, job):
        ticket = await opened(scene)
        await scene.edit(ticket, status="in_progress")
        scene.jira.trouble(500, method="GET", path="/issue/ITSM-1$", times=3, after=3)
        assert (await job.run()).failed == 1
        assert only(scene.jira).status == "In Progress"
        await scene.edit(ticket, status="closed", resolution="mended")
        await scene.hear()
        assert (await scene.ticket(ticket.key)).status == "closed"
        assert (await job.run()).created == 1
        await scene.hurry()
        await scene.work()
        assert only(scene.jira).status == "Resolved"
        assert (await scene.ticket(ticket.key)).status == "closed"


async def test_an_import_that_is_cut_says_what_it_came_to(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """C10: its summary and its failures; without the plugin, why it is not there."""
    async with importing(database_url) as (scene, _):
        for number in range(2):
            await opened(scene, f"Problem {number}")
        desk = scene.bench.desk
        scene.jira.trouble(401, method="POST", path="/issue$", times=1, after=1)
        options = Options(project="ITSM", apply=True, sleep_ms=0)
        summary, whole = await commands._imported(commands._plugin(desk), desk, options)
        assert (summary.created, whole) == (1, False)
        assert "JIRA_API_TOKEN" in capsys.readouterr().err
        await scene.switch(enabled=False)
        with pytest.raises(Unavailable, match=r"jira is off.*itdesk plugins"):
            commands._plugin(desk)
