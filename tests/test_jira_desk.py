"""A real daemon that tells Jira of its changes, and the import from the shell."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.daemon import Live, serving
from tests.support.jira import FakeJira
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.test_jira_webhook import SECRET, UPSERT, connection, sql


@pytest.fixture(scope="module")
def desk(pg_server: Server, jira: FakeJira) -> Iterator[Live]:
    """A desk that tells Jira of its changes."""
    env = {
        "JIRA_WEBHOOK_SECRET": SECRET,
        "JIRA_PROJECT_KEY": "ITSM",
        "ITDESK_PLUGINS__JIRA__PUSH__ENABLED": "true",
        "ITDESK_JOBS__POLL_SECONDS": "1",
    }
    with serving(pg_server, **{**connection(jira), **env}) as live:
        yield live


async def test_a_change_and_a_comment_reach_jira_by_themselves(desk: Live, jira: FakeJira) -> None:
    """S4-48, S4-49: what Jira has no word for stays here; 0 ping-pong over both webhooks."""
    issue = jira.issue("VPN is down")
    await jira.deliver(desk.url + UPSERT, jira.take(), secret=SECRET)
    wanted = {"title": "VPN is slow", "status": "in_progress", "department": "Sales"}
    (await desk.admin.patch(f"/tickets/{issue.key}", wanted)).expect(200)
    (await desk.admin.post(f"/tickets/{issue.key}/comments", {"body": "On it"})).expect(201)

    async def arrived() -> bool:
        there = (issue.summary, issue.status, len(issue.comments))
        return there == ("VPN is slow", "In Progress", 1)

    await eventually(arrived, seconds=20)

    async def finished() -> bool:
        query = "SELECT count(*) FROM jobs WHERE type = 'jira.push' AND state <> 'done'"
        return bool(await sql(desk, query) == 0)

    await eventually(finished, seconds=20)
    before = (await desk.admin.get(f"/tickets/{issue.key}")).expect(200)
    sent = len(jira.calls("PUT")) + len(jira.calls("POST"))
    for status, body in await jira.deliver(desk.url + UPSERT, jira.take(), secret=SECRET):
        assert (status, body["created"], body["updated"]) == (200, False, False)
    jira.change(issue, labels=["seen"])
    await jira.deliver(desk.url + UPSERT, jira.take(), secret=SECRET)
    after = (await desk.admin.get(f"/tickets/{issue.key}")).expect(200)
    assert after["version"] == before["version"] + 1 and after["tags"] == ["seen"]
    assert (after["title"], after["department"]) == ("VPN is slow", "Sales")
    assert len(jira.calls("PUT")) + len(jira.calls("POST")) == sent
    metrics = (await desk.nobody.call("GET", "/metrics")).raw.decode()
    for name in ("itdesk_jira_pushes_total", "itdesk_jira_drift", "itdesk_jira_account_refused"):
        assert name in metrics
    assert 'itdesk_breaker_open{part="jira"} 0.0' in metrics


async def test_the_shell_plans_and_imports(desk: Live, jira: FakeJira) -> None:
    """S4-26, C10: a table and no write first; 0, and 2 when some fail."""

    async def run(*options: str) -> Any:
        return await asyncio.to_thread(desk.daemon.run, "jira", "import", *options)

    keys = []
    for number in range(3):
        made = await desk.admin.post("/tickets", {"title": f"Local {number}"})
        keys.append(made.expect(201)["key"])
    before = len(jira.issues)
    planned = await run("--limit", "2")
    assert planned.returncode == 0, planned.stderr
    assert "ACTION" in planned.stdout and keys[0] in planned.stdout
    assert keys[2] not in planned.stdout
    assert "planned=2 created=0 updated=0 comments=0 skipped=0 failed=0" in planned.stdout
    assert len(jira.issues) == before
    jira.trouble(400, method="POST", path="/issue$", times=1)
    done = await run("--apply", "--skip-existing", "--sleep-ms", "0", "--issue-type", "Task")
    assert done.returncode == 2 and "created=2" in done.stdout and "failed=1" in done.stdout
    assert keys[0] in done.stderr
    titles = {issue.summary for issue in jira.issues.values()}
    assert {f"[{keys[1]}] Local 1", f"[{keys[2]}] Local 2"} <= titles
    count = await sql(desk, "SELECT count(*) FROM tickets")
    await jira.deliver(desk.url + UPSERT, jira.take(), secret=SECRET)
    assert await sql(desk, "SELECT count(*) FROM tickets") == count
    assert jira.token not in done.stdout + done.stderr


@pytest.mark.slow
async def test_an_import_that_is_cut_still_says_what_it_came_to(desk: Live, jira: FakeJira) -> None:
    """C10: 2, with the summary; 1 is for a desk without Jira, whose plugin is off for instance."""
    for number in range(2):
        (await desk.admin.post("/tickets", {"title": f"Cut {number}"})).expect(201)
    jira.trouble(401, method="POST", path="/issue$", times=1, after=1)
    done = await asyncio.to_thread(desk.daemon.run, "jira", "import", "--apply", "--sleep-ms", "0")
    assert done.returncode == 2 and "created=1" in done.stdout, done.stderr
    assert "JIRA_API_TOKEN" in done.stderr and "Traceback" not in done.stderr
    switch = "/api/v1/plugin-switches/jira"
    (await desk.admin.call("PUT", switch, json={"enabled": False})).expect(200)
    try:
        done = await asyncio.to_thread(desk.daemon.run, "jira", "reconcile")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "jira is off" in done.stderr and "itdesk plugins" in done.stderr
    finally:
        (await desk.admin.call("PUT", switch, json={"enabled": True})).expect(200)
