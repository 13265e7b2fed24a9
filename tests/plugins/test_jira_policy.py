"""Whose word counts when both sides changed a field: by project and field, as X29 unless said."""

from typing import Any

import pytest
from pydantic import ValidationError

from itdesk_plugins.jira.settings import JiraSettings
from tests.support.jira_scene import scene_on

POLICY = "ITDESK_PLUGINS__JIRA__POLICY__"


async def test_jiras_next_newer_update_wins_unless_said_otherwise(database_url: str) -> None:
    """S4-48, X29: over an edit that could not be sent; history shows both."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored("Slow laptop", labels=["a"])
        await scene.edit(ticket, title="Very slow laptop", priority="high", tags=["b"])
        trouble = scene.jira.trouble(500)
        await scene.work()
        scene.jira.troubles.remove(trouble)
        scene.jira.change(issue, priority="Low")
        await scene.hear()
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority, found.tags) == ("Slow laptop", "low", ["a"])
        await scene.hurry()
        await scene.work()
        assert (issue.summary, issue.priority, issue.labels) == ("Slow laptop", "Low", ["a"])
        titles: object = await scene.bench.sql(
            "SELECT count(*) FROM events, jsonb_array_elements(changes) AS c"
            " WHERE c ->> 'field' = 'title'"
        )
        assert titles == 2


async def test_what_jira_changed_meanwhile_is_not_overwritten(database_url: str) -> None:
    """X29: its webhook got lost; the push looks, and takes it over instead."""
    async with scene_on(database_url) as scene:
        issue, ticket = await scene.mirrored()
        scene.jira.change(issue, summary="Said in Jira")
        scene.jira.take()
        await scene.edit(ticket, title="Said here", priority="high")
        await scene.work()
        assert (issue.summary, issue.priority) == ("Said in Jira", "High")
        assert (await scene.ticket(issue.key)).title == "Said in Jira"
        assert scene.bench.metric("itdesk_jira_pushes_total", outcome="conflict") == 1
        # Also when nothing else is left to be sent.
        scene.jira.change(issue, summary="Once more in Jira")
        scene.jira.take()
        await scene.edit(ticket, title="Once more here")
        await scene.work()
        assert (await scene.ticket(issue.key)).title == issue.summary == "Once more in Jira"


async def test_where_the_desk_counts_jiras_changes_are_answered_once(database_url: str) -> None:
    """policy itdesk: ours is sent again; a robot that insists is not fought for ever."""
    async with scene_on(database_url, "cloud", **{f"{POLICY}TITLE": "itdesk"}) as scene:
        issue, ticket = await scene.mirrored("Ours")
        for _ in range(5):
            scene.jira.change(issue, summary="Theirs", priority="Low")
            await scene.hear()
            await scene.work()
            await scene.hear()
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority) == ("Ours", "low")
        assert len(scene.jira.calls("PUT", f"/issue/{issue.key}$")) == 1
        assert issue.summary == "Theirs"
        # What somebody says anew is sent anew.
        await scene.edit(ticket, title="Ours, again")
        await scene.work()
        assert issue.summary == "Ours, again"
        scene.jira.change(issue, summary="Other")
        await scene.hear()
        await scene.work()
        assert issue.summary == "Ours, again"


async def test_the_last_writer_wins_where_it_is_said_so(database_url: str) -> None:
    """policy last_writer: by the times of both; what Jira did not change is nobody's word."""
    async with scene_on(database_url, "cloud", **{f"{POLICY}DEFAULT": "last_writer"}) as scene:
        issue, ticket = await scene.mirrored("First")
        # The fake's clock is an hour behind: what is said here is later.
        scene.jira.change(issue, summary="Earlier there")
        await scene.edit(ticket, title="Later here")
        await scene.hear()
        assert (await scene.ticket(issue.key)).title == "Later here"
        await scene.work()
        await scene.hear()
        assert issue.summary == "Later here"
        scene.jira.tick(7200)
        scene.jira.change(issue, summary="Later there", priority="Low")
        await scene.edit(ticket, title="Earlier here")
        await scene.hear()
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority) == ("Later there", "low")
        await scene.work()
        assert issue.summary == "Later there"


async def test_what_jira_said_after_an_edit_counts_though_the_push_was_queued_late(
    database_url: str,
) -> None:
    """policy last_writer: the plugin was off for hours, and the time of the edit is what counts."""
    async with scene_on(database_url, "cloud", **{f"{POLICY}DEFAULT": "last_writer"}) as scene:
        issue, ticket = await scene.mirrored("First")
        await scene.switch(enabled=False)
        await scene.edit(ticket, title="Earlier here")
        scene.jira.tick(7200)
        scene.jira.change(issue, summary="Later there")
        scene.jira.take()
        await scene.switch(enabled=True)
        await scene.bench.sql("UPDATE jobs SET created_at = now() + interval '9 hours'")
        await scene.work()
        assert (await scene.ticket(issue.key)).title == issue.summary == "Later there"


@pytest.mark.slow
async def test_an_edit_that_was_not_sent_stays_where_jira_did_not_touch_it(
    database_url: str,
) -> None:
    """policy last_writer without a push: another field's change is no reason to take it back."""
    env = {f"{POLICY}DEFAULT": "last_writer", "ITDESK_PLUGINS__JIRA__PUSH__ENABLED": "false"}
    async with scene_on(database_url, "cloud", **env) as scene:
        issue, ticket = await scene.mirrored("First")
        await scene.edit(ticket, title="Only here")
        scene.jira.change(issue, priority="Low")
        await scene.hear()
        found = await scene.ticket(issue.key)
        assert (found.title, found.priority) == ("Only here", "low")


async def test_what_differs_at_a_comparison_is_measured(database_url: str) -> None:
    """Drift: by field; 0 again once both sides say the same."""
    async with scene_on(database_url, ITDESK_PLUGINS__JIRA__PUSH__ENABLED="false") as scene:
        issue, ticket = await scene.mirrored("First")
        await scene.mirrored("Second")
        await scene.edit(ticket, title="Only here", description="Only here")
        await scene.walk()
        for field, differs in (("title", 1), ("description", 1), ("status", 0), ("assignee", 0)):
            assert scene.bench.metric("itdesk_jira_drift", field=field) == differs
        scene.jira.change(issue, labels=["x"])
        await scene.walk()
        assert scene.bench.metric("itdesk_jira_drift", field="tags") == 1
        await scene.walk()
        for field in ("title", "description", "tags"):
            assert scene.bench.metric("itdesk_jira_drift", field=field) == 0


def test_a_projects_own_line_goes_before_the_others() -> None:
    """[plugins.jira.policies.<KEY>], then [plugins.jira.policy], then jira."""
    settings = JiraSettings.model_validate(
        {
            "policy": {"default": "last_writer", "title": "itdesk"},
            "policies": {"ITSM": {"status": "jira"}, "HR": {"default": "itdesk"}},
        }
    )
    assert settings.word("ITSM", "status") == "jira"
    assert settings.word("ITSM", "title") == "itdesk"
    assert settings.word("ITSM", "tags") == "last_writer"
    assert settings.word("HR", "tags") == "itdesk"
    assert JiraSettings().word("ITSM", "title") == "jira"
    wrongs: list[dict[str, Any]] = [
        {"policies": {"itsm": {}}},
        {"policy": {"title": "mine"}},
        {"policy": {"x": "y"}},
    ]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            JiraSettings.model_validate(wrong)
