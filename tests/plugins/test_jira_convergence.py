"""Webhooks in any order, twice or never, and one walk: the mirror is what Jira is."""

import hashlib
import random
from typing import Any

import orjson
import pytest

from itdesk.model import SYSTEM, Role, Ticket
from itdesk.remote import mark_of
from itdesk.store.paging import Window
from itdesk_plugins.jira import mapping
from tests.support.jira import Delivery, Dialect, FakeJira, Issue
from tests.support.jira_scene import Scene, scene_on


def story(jira: FakeJira) -> tuple[list[Issue], list[Delivery]]:
    """Let twelve things happen to three issues; return them and what Jira sends of it."""
    project = f"P{jira.tick():%H%M%S}"
    one = jira.issue("One", project=project, description="as reported")
    two = jira.issue("Two", project=project, labels=["b", "a"])
    jira.change(one, status="In Progress", assignee=jira.me)
    said = jira.say(one, "first words")
    jira.say(two, "about two")
    jira.edit(one, said, "other words")
    jira.change(two, priority="Highest", labels=["c"])
    gone = jira.say(two, "taken back")
    jira.unsay(two, gone)
    jira.change(one, status="Done", description="as *understood*")
    jira.change(one, status="To Do", summary="One, again")
    jira.change(two, status="Waiting for customer", assignee=None)
    told = jira.take()
    assert len(told) == 12
    return [one, two], told


async def receive(scene: Scene, delivery: Delivery) -> None:
    """Hand a webhook over, as the route does."""
    await scene.bench.desk.trackers["jira"].receive(
        orjson.loads(delivery.body),
        delivery.headers(None),
        digest=hashlib.sha256(delivery.body).hexdigest(),
        request_id=None,
    )


async def seen(scene: Scene, issue: Issue) -> dict[str, Any]:
    """Return the mirrored ticket in Jira's words."""
    ticket = await scene.ticket(issue.key)
    page = await scene.bench.desk.tickets.comments(SYSTEM, issue.key, Window(limit=200))
    assert ticket.external is not None
    return {
        "title": ticket.title,
        "description": ticket.description,
        "status": str(ticket.status),
        "priority": str(ticket.priority),
        "tags": ticket.tags,
        "assignee": ticket.external.assignee,
        "updated": ticket.external.updated_at,
        "comments": sorted(comment.body for comment in page.items),
    }


def truth(issue: Issue) -> dict[str, Any]:
    """Return what the ticket must be like."""
    status = {"To Do": "open", "Waiting for customer": "blocked"}[issue.status]
    return {
        "title": issue.summary,
        "description": (issue.description or "").replace("*", ""),
        "status": status,
        "priority": {"Medium": "medium", "Highest": "critical"}[issue.priority],
        "tags": issue.labels,
        "assignee": issue.assignee.name if issue.assignee else None,
        "updated": issue.updated,
        "comments": sorted(said.text for said in issue.comments),
    }


async def converges(scene: Scene, dice: random.Random) -> None:
    """Tell one story badly, walk once, and compare."""
    issues, told = story(scene.jira)
    heard = [one for one in told if dice.random() > 0.25]
    heard += [dice.choice(told) for _ in range(dice.randrange(6))]
    dice.shuffle(heard)
    for delivery in heard:
        await receive(scene, delivery)
    done = await scene.walk(since=issues[0].created, project=issues[0].project)
    assert done.errors == []
    for issue in issues:
        assert await seen(scene, issue) == truth(issue)
    count = await scene.bench.sql(
        "SELECT count(*) FROM tickets t JOIN projects p ON p.id = t.project_id WHERE p.key = $1",
        issues[0].project,
    )
    assert count == len(issues)
    # A second look finds nothing to do, and nobody's work was pushed back to Jira.
    again = await scene.walk(since=issues[0].created, project=issues[0].project)
    assert (again.created, again.updated) == (0, 0)
    assert scene.writes() == [] and await scene.jobs() == []


async def many(database_url: str, dialect: Dialect, seeds: range) -> None:
    """Tell so many stories on one desk."""
    async with scene_on(database_url, dialect, JIRA_PROJECT_KEY="") as scene:
        for seed in seeds:
            try:
                await converges(scene, random.Random(seed))
            except AssertionError as exc:
                raise AssertionError(f"seed {seed}: {exc}") from exc
            scene.jira.asked.clear()


@pytest.mark.parametrize("dialect", ["cloud", "datacenter"])
async def test_whatever_gets_lost_one_walk_makes_the_mirror_right(
    database_url: str, dialect: Dialect
) -> None:
    """R-20: permutations, duplicates and drops of 12 events, then reconcile."""
    await many(database_url, dialect, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["cloud", "datacenter"])
async def test_whatever_gets_lost_one_walk_makes_the_mirror_right_at_length(
    database_url: str, dialect: Dialect
) -> None:
    """R-20: 1,000 of 1,000."""
    await many(database_url, dialect, range(100, 600))


async def test_comments_told_in_the_wrong_order_are_right_without_a_walk(database_url: str) -> None:
    """R-20: an edit before the words it rewrites, a deletion before what it deletes."""
    async with scene_on(database_url) as scene:
        issue = scene.jira.issue()
        edited, unsaid = scene.jira.say(issue, "first"), scene.jira.say(issue, "taken back")
        scene.jira.edit(issue, edited, "second")
        scene.jira.unsay(issue, unsaid)
        opened, first, said, rewritten, taken_back = scene.jira.take()
        scene.jira.trouble(503)
        for delivery in (opened, rewritten, taken_back, first, said):
            await receive(scene, delivery)
        assert await scene.said(issue.key) == ["second"]


HERE: dict[str, Any] = {
    "title": ("One", "Two", "Three"),
    "description": ("first", "second\n\nand more"),
    "status": ("open", "in_progress", "blocked", "closed"),
    "priority": ("low", "medium", "high", "critical"),
    "tags": (["vpn"], ["vpn", "on_site"], []),
}
THERE: dict[str, Any] = {
    "summary": ("Un", "Deux", "Trois"),
    "description": ("premier", "deuxieme"),
    "status": ("To Do", "In Progress", "Waiting for customer", "Done"),
    "priority": ("Lowest", "High", "Medium", "Highest"),
    "labels": (["wifi"], ["wifi", "la"], []),
}


def alike(issue: Issue, ticket: Ticket) -> bool:
    """Return whether both sides say the same."""
    echo = mapping.fields_of(
        {
            "summary": issue.summary, "description": issue.description, "labels": issue.labels,
            "status": {"name": issue.status}, "priority": {"name": issue.priority},
        }
    )  # fmt: skip
    return all(mark_of(name, echo[name]) == mark_of(name, getattr(ticket, name)) for name in HERE)


async def both_edit(scene: Scene, dice: random.Random) -> None:
    """Change both sides in any order, lose and repeat webhooks, and let it settle."""
    issue, ticket = await scene.mirrored("Zero", project=f"Q{dice.getrandbits(40):X}"[:9])
    person = await scene.bench.person(Role.AGENT)
    waiting: list[Delivery] = []
    mine: dict[str, Any] = {}
    theirs: set[str] = set()
    here = there = 0
    for _ in range(16):
        match dice.randrange(8):
            case 0 | 6 | 7:
                name = dice.choice(list(HERE))
                mine[name] = dice.choice(HERE[name])
                await scene.edit(ticket, **{name: mine[name]})
            case 1:
                name = dice.choice(list(THERE))
                theirs.add({"summary": "title", "labels": "tags"}.get(name, name))
                told: dict[str, Any] = {name: dice.choice(THERE[name])}
                scene.jira.change(issue, **told)
            case 2:
                await scene.bench.desk.tickets.comment(person, str(ticket.id), f"here {here}")
                here += 1
            case 3:
                scene.jira.say(issue, f"there {there}")
                there += 1
            case 4:
                await scene.work()
            case _:
                waiting += scene.jira.take()
                heard = dice.sample(waiting, dice.randrange(len(waiting) + 1))
                await scene.hear(heard)
                waiting = [one for one in waiting if dice.random() > 0.5]
    await scene.work()
    assert (await scene.walk(since=issue.created, project=issue.project)).errors == []
    await scene.work()
    await scene.hear()
    after = await scene.ticket(issue.key)
    assert alike(issue, after)
    # What nobody changed in Jira is what was said here last.
    kept = {name: value for name, value in mine.items() if name not in theirs}
    assert {name: mark_of(name, getattr(after, name)) for name in kept} == {
        name: mark_of(name, value) for name, value in kept.items()
    }
    said = sorted(text.text.splitlines()[-1] for text in issue.comments)
    assert said == sorted(await scene.said(issue.key))
    assert len(said) == here + there
    # Nothing goes back and forth any more.
    sent = len(scene.writes())
    await scene.walk(since=issue.created, project=issue.project)
    await scene.work()
    await scene.hear()
    assert len(scene.writes()) == sent
    assert (await scene.ticket(issue.key)).version == after.version


async def play(database_url: str, dialect: Dialect, seeds: range) -> None:
    """Let both sides edit so many times on one desk."""
    async with scene_on(database_url, dialect, JIRA_PROJECT_KEY="") as scene:
        for seed in seeds:
            try:
                await both_edit(scene, random.Random(seed))
            except AssertionError as exc:
                raise AssertionError(f"seed {seed}: {exc}") from exc


async def test_both_sides_say_the_same_whoever_edits_when(database_url: str) -> None:
    """R-20 in both directions: 0 ping-pong, no comment lost or doubled."""
    await play(database_url, "cloud", range(8))


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["cloud", "datacenter"])
async def test_both_sides_say_the_same_whoever_edits_when_at_length(
    database_url: str, dialect: Dialect
) -> None:
    """R-20 in both directions: 200 stories each."""
    await play(database_url, dialect, range(1000, 1200))
