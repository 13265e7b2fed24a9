"""The walk through what changed in Jira: both dialects, its mark, its failures, and its clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from itdesk.errors import Conflict, Invalid
from itdesk.model import SYSTEM
from itdesk.store.paging import Window
from itdesk_plugins.jira import mapping
from itdesk_plugins.jira.failures import JiraFailure
from itdesk_plugins.jira.reconcile import local_minute
from tests.support.jira import Dialect
from tests.support.jira_scene import scene_on

DIALECTS: tuple[Dialect, ...] = ("cloud", "datacenter")


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Iterator[Dialect]:
    """Each dialect in turn."""
    yield request.param


async def test_everything_is_mirrored_page_by_page_and_the_second_walk_changes_nothing(
    database_url: str, dialect: Dialect
) -> None:
    """S4-16, S4-22, S4-54, S4-55, S4-56: Basic auth, project and time in JQL, three pages."""
    async with scene_on(database_url, dialect, JIRA_SYNC_PAGE_SIZE="2") as scene:
        jira = scene.jira
        for number in range(5):
            issue = jira.issue(f"Problem {number}", labels=["vpn"], priority="High")
            jira.say(issue, f"about {number}")
        done = await scene.walk()
        assert (done.status, done.project_key, done.fetched, done.created) == ("ok", "ITSM", 5, 5)
        calls = jira.calls("GET", "/search")
        assert len(calls) >= 3 and {one.query["maxResults"] for one in calls} == {"2"}
        assert all(one.authorization.startswith("Basic ") for one in jira.asked)
        assert all('project = "ITSM" AND updated >= "' in jql for jql in scene.searches())
        ticket = await scene.ticket("ITSM-3")
        assert (ticket.title, ticket.priority, ticket.tags) == ("Problem 2", "high", ["vpn"])
        assert ticket.external and ticket.external.id == "ITSM-3" and ticket.project == "ITSM"
        assert await scene.said("ITSM-3") == ["about 2"]
        assert await scene.mark() == jira.issues["ITSM-5"].updated
        before = len(scene.searches())
        again = await scene.walk()
        assert (again.created, again.updated) == (0, 0)
        asked = jira.issues["ITSM-5"].updated - timedelta(minutes=2)
        bound = f"{asked.astimezone(jira.zone):%Y-%m-%d %H:%M}"
        assert f'updated >= "{bound}"' in scene.searches()[before]


async def test_the_removed_search_of_cloud_is_never_asked(database_url: str) -> None:
    """CHANGE-2046: /rest/api/3/search answers 410."""
    async with scene_on(database_url) as scene:
        scene.jira.issue()
        await scene.walk()
        assert not [one for one in scene.jira.asked if one.status == 410]
        assert scene.jira.calls("GET", "^/rest/api/3/search/jql$")


async def test_an_issue_that_fails_holds_the_mark_and_comes_again(database_url: str) -> None:
    """R67: the mark never passes a failed issue; the text names its key."""
    async with scene_on(database_url) as scene:
        jira = scene.jira
        first, second, third = (jira.issue(f"Problem {n}") for n in range(3))
        for number in range(30):
            jira.say(second, f"no {number}")
        jira.change(third, priority="High")
        broken = jira.trouble(400, path=f"/issue/{second.key}/comment")
        done = await scene.walk()
        assert (done.status, done.created) == ("partial", 2)
        assert [error.split(":")[0] for error in done.errors] == [second.key]
        assert await scene.mark() == first.updated < second.updated
        (state,) = await scene.bench.desk.mirror.states()
        assert state.last_error and state.last_error.startswith(second.key)
        jira.troubles.remove(broken)
        healed = await scene.walk()
        assert (healed.created, healed.errors) == (1, [])
        assert len(await scene.said(second.key)) == 30
        assert await scene.mark() == third.updated


async def test_a_walk_that_breaks_off_keeps_what_it_reached(database_url: str) -> None:
    """R67: Jira out in the middle is 502 E_JIRA_UNAVAILABLE; the next walk goes on from there."""
    async with scene_on(database_url, JIRA_SYNC_PAGE_SIZE="2") as scene:
        issues = []
        for number in range(6):
            scene.jira.tick(200)
            issues.append(scene.jira.issue(f"Problem {number}"))
        down = scene.jira.trouble("html", path="/search", after=1)
        with pytest.raises(JiraFailure) as caught:
            await scene.walk()
        assert (caught.value.status, caught.value.code) == (502, "E_JIRA_UNAVAILABLE")
        assert await scene.mark() == issues[1].updated
        scene.jira.troubles.remove(down)
        assert (await scene.walk()).created == 4


async def test_pages_that_shift_meanwhile_lose_no_issue(database_url: str) -> None:
    """Data Center numbers its pages: an issue that changes moves all behind it over the edge."""
    async with scene_on(database_url, "datacenter", JIRA_SYNC_PAGE_SIZE="2") as scene:
        jira = scene.jira
        issues = []
        for number in range(6):
            jira.tick(120)
            issues.append(jira.issue(f"Problem {number}"))
        changed: list[str] = []

        def change(path: str) -> None:
            if "/search" in path and not changed:
                changed.append(path)
                jira.tick(120)
                jira.change(issues[0], priority="Highest")

        jira.after = change
        await scene.walk()
        assert changed
        mark = await scene.mark()
        assert mark >= issues[5].updated
        tickets = [await scene.ticket(issue.key) for issue in issues]
        assert [ticket.title for ticket in tickets] == [issue.summary for issue in issues]


async def test_one_walk_at_a_time(database_url: str) -> None:
    """R67: 409 E_RECONCILE_RUNNING while another daemon walks; one that died blocks nobody."""
    async with scene_on(database_url) as scene:
        async with scene.bench.desk.mirror.walking():
            with pytest.raises(Conflict) as caught:
                await scene.walk()
            assert caught.value.code == "E_RECONCILE_RUNNING"
            await scene.bench.sql("UPDATE jira_walks SET lease_until = now() - interval '1 s'")
            assert (await scene.walk()).status == "ok"
        assert (await scene.walk()).status == "ok"


async def test_an_asked_time_beyond_the_mark_does_not_move_it(database_url: str) -> None:
    """S4-54: what lies between the two was not looked at."""
    async with scene_on(database_url) as scene:
        first = scene.jira.issue()
        await scene.walk()
        scene.jira.tick(600)
        missed = scene.jira.issue("Missed")
        scene.jira.tick(600)
        last = scene.jira.issue("Seen")
        done = await scene.walk(since=last.updated)
        assert done.since == last.updated and done.created == 1
        assert await scene.mark() == first.updated
        assert (await scene.walk()).created == 1
        assert (await scene.ticket(missed.key)).title == "Missed"


async def test_what_the_index_shows_late_is_found_by_the_next_walk(database_url: str) -> None:
    """Cloud's search is eventually consistent; the overlap is for that."""
    async with scene_on(database_url) as scene:
        scene.jira.issue()
        scene.jira.eventual = True
        late = scene.jira.issue("Late in the index")
        assert (await scene.walk()).fetched == 1
        scene.jira.reindex()
        done = await scene.walk()
        assert done.created == 1 and (await scene.ticket(late.key)).title == "Late in the index"


async def test_comments_that_are_gone_in_jira_are_gone_here(database_url: str) -> None:
    """What no webhook told of: an edited and a deleted comment; local ones stay (S4-49)."""
    async with scene_on(database_url) as scene:
        jira = scene.jira
        issue = jira.issue()
        kept, lost = jira.say(issue, "kept"), jira.say(issue, "lost")
        await scene.walk()
        await scene.bench.desk.tickets.comment(SYSTEM, issue.key, "of our own")
        jira.edit(issue, kept, "kept, and changed")
        jira.unsay(issue, lost)
        assert (await scene.walk()).updated == 1
        assert sorted(await scene.said(issue.key)) == ["kept, and changed", "of our own"]


async def test_an_internal_comment_is_internal_here(database_url: str, dialect: Dialect) -> None:
    """What only agents of JSM may read, only agents may read here."""
    async with scene_on(database_url, dialect) as scene:
        issue = scene.jira.issue()
        scene.jira.say(issue, "a secret", public=False)
        await scene.walk()
        page = await scene.bench.desk.tickets.comments(SYSTEM, issue.key, Window(limit=9))
        assert [(comment.body, comment.internal) for comment in page.items] == [("a secret", True)]


async def test_a_short_limit_is_waited_for_and_a_long_one_ends_the_walk(database_url: str) -> None:
    """429 with Retry-After: nothing is asked before its time."""
    async with scene_on(database_url) as scene:
        scene.jira.issue()
        scene.jira.limit(1, path="/search", times=1)
        done = await scene.walk()
        assert done.created == 1
        limited, after = [one for one in scene.jira.calls("GET", "/search")][:2]
        assert limited.status == 429 and after.at - limited.at >= 1.0
        scene.jira.limit(900, path="/search", times=1)
        with pytest.raises(JiraFailure):
            await scene.walk()
        asked = len(scene.jira.asked)
        with pytest.raises(JiraFailure):
            await scene.walk()
        assert len(scene.jira.asked) == asked


async def test_a_local_project_of_the_same_key_is_never_mixed_with_the_mirror(
    database_url: str,
) -> None:
    """X32: keys never collide; the error says what to do."""
    async with scene_on(database_url) as scene:
        await scene.bench.sql("INSERT INTO projects (key, name) VALUES ('ITSM', 'Ours')")
        scene.jira.issue()
        done = await scene.walk()
        assert done.created == 0 and "is a local project here" in done.errors[0]


async def test_all_projects_are_walked_when_none_is_named(database_url: str) -> None:
    """Without JIRA_PROJECT_KEY the mark is kept under `*`; one project may still be asked for."""
    async with scene_on(database_url, JIRA_PROJECT_KEY="") as scene:
        scene.jira.issue(project="ITSM")
        scene.jira.issue(project="HR")
        done = await scene.walk()
        assert (done.project_key, done.created) == (None, 2)
        assert await scene.mark("*") == scene.jira.now
        assert (await scene.walk(project="HR")).fetched == 1
        with pytest.raises(Invalid):
            await scene.walk(project='HR" OR project != "X')


@pytest.mark.parametrize(
    ("moment", "zone", "expected"),
    [
        ("2026-07-01T12:34:56+00:00", "America/New_York", "2026-07-01 08:34"),
        ("2026-07-01T12:34:56+00:00", "Asia/Kolkata", "2026-07-01 18:04"),
        # 01:30 is shown twice that night; what is asked for must lie before both.
        ("2026-11-01T05:30:00+00:00", "America/New_York", "2026-10-31 22:30"),
        ("2026-11-01T06:30:00+00:00", "America/New_York", "2026-10-31 23:30"),
        ("2026-11-01T07:30:00+00:00", "America/New_York", "2026-11-01 02:30"),
    ],
)
def test_times_of_jql_are_of_the_accounts_zone(moment: str, zone: str, expected: str) -> None:
    """S4 reconcile: UTC text would skip or repeat hours."""
    local = local_minute(datetime.fromisoformat(moment).astimezone(UTC), ZoneInfo(zone))
    assert f"{local:%Y-%m-%d %H:%M}" == expected


async def test_a_comment_that_was_faster_than_the_walk_is_not_taken_for_deleted(
    database_url: str,
) -> None:
    """R-20: its webhook came after the search had answered, and before the answer was written."""
    async with scene_on(database_url) as scene:
        issue = scene.jira.issue()
        old = scene.jira.say(issue, "said before")
        mirror = scene.bench.desk.mirror
        snapshot = mapping.issue_of(scene.jira._issue(issue, version=3))
        assert snapshot.all_comments
        scene.jira.say(issue, "said meanwhile")
        await mirror.tell(mapping.issue_of(scene.jira._issue(issue, version=3)))
        await mirror.tell(snapshot)
        assert await scene.said(issue.key) == ["said before", "said meanwhile"]
        scene.jira.unsay(issue, old)
        await scene.walk()
        assert await scene.said(issue.key) == ["said meanwhile"]


async def test_a_pushed_ticket_keeps_its_own_key_title_and_reporter(database_url: str) -> None:
    """X32, S4 importer: our `[key]` is stripped on the way back; Jira knows only who pushed it."""
    async with scene_on(database_url) as scene:
        person = await scene.bench.person()
        ours = await scene.bench.ticket(person)
        issue = scene.jira.issue(f"[{ours.key}] {ours.title}", description="pushed")
        await scene.bench.sql(
            "UPDATE tickets SET external_source = 'jira', external_id = $2 WHERE id = $1",
            ours.id,
            issue.key,
        )
        scene.jira.change(issue, priority="High")
        done = await scene.walk()
        assert (done.created, done.updated) == (0, 1)
        after = await scene.ticket(ours.key)
        assert (after.id, after.title, after.priority) == (ours.id, ours.title, "high")
        assert (after.reporter_id, after.reporter_name) == (person.user_id, person.name)
        assert after.external is not None
        assert (after.project, after.external.id) == (ours.project, issue.key)


async def test_a_failure_behind_the_mark_moves_it_back(database_url: str) -> None:
    """R67: never past a failed issue, also when an older time was asked for."""
    async with scene_on(database_url) as scene:
        first = scene.jira.issue()
        for number in range(30):
            scene.jira.say(first, f"no {number}")
        scene.jira.tick(600)
        last = scene.jira.issue()
        await scene.walk()
        assert await scene.mark() == last.updated
        scene.jira.trouble(400, path=f"/issue/{first.key}/comment")
        done = await scene.walk(since=first.created)
        assert len(done.errors) == 1 and await scene.mark() == first.updated
