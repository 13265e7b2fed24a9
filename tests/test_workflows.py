"""Workflows through the real daemon: REST, webhooks over real sockets, kills in between."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from tests.support.daemon import Live, Person, make_daemon, running, serving
from tests.support.postgres import Server
from tests.support.sink import Sink, sinking

QUICK = {
    "ITDESK_JOBS__POLL_SECONDS": "1",
    "ITDESK_JOBS__LEASE_SECONDS": "1",
    "ITDESK_JOBS__RETRY_SECONDS": "1",
    "ITDESK_SCHEDULER__DAILY_STATS_SECONDS": "0",
    "ITDESK_SCHEDULER__TOKEN_CLEANUP_SECONDS": "0",
    "ITDESK_SCHEDULER__WORKFLOW_SECONDS": "0",
    "ITDESK_SCHEDULER__EMAIL_SECONDS": "0",
    "ITDESK_WORKFLOWS__TARGET_NETWORKS": "127.0.0.0/8",
}
SECRET = "sink-secret-0123456789"


@pytest.fixture(scope="module")
def desk(pg_server: Server) -> Iterator[Live]:
    """One daemon for this module, which may call this machine."""
    with serving(pg_server, **QUICK) as live:
        yield live


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """A fresh target."""
    async with sinking() as sink:
        yield sink


async def _rule(live: Live, **fields: Any) -> Any:
    new = {"name": "R", "trigger": "ticket_created", "actions": {"add_tag": "ruled"}, **fields}
    return (await live.admin.post("/workflows", new)).expect(201)


async def _target(live: Live, sink: Sink, name: str, **fields: Any) -> Any:
    new = {"name": name, "url": sink.url, "secret": SECRET, **fields}
    return (await live.admin.post("/workflow-targets", new)).expect(201)


async def _put(live: Live, path: str, body: Any) -> Any:
    return await live.admin.call("PUT", f"/api/v1{path}", json=body)


async def _runs(live: Live, rule: Any, count: int, *, seconds: float = 20.0) -> list[Any]:
    """Return the runs of a rule once there are so many."""
    deadline = time.monotonic() + seconds
    while True:
        found: list[Any] = (await live.admin.get(f"/workflows/{rule['id']}/runs")).expect(200)
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, found
        await asyncio.to_thread(time.sleep, 0.02)


async def _delete(live: Live, *rules: Any) -> None:
    for rule in rules:
        (await live.admin.delete(f"/workflows/{rule['id']}")).expect(204)


async def test_rules_are_made_read_changed_and_deleted_by_administrators(desk: Live) -> None:
    """S3-39 to S3-43: list, 201, 404, active=false stops, 204 and it no longer fires."""
    rule = await _rule(desk, conditions={"priority": "critical"}, description="At night")
    assert rule["active"] and rule["conditions"] == {"priority": "critical"}
    listed = (await desk.admin.get("/workflows")).expect(200)
    assert [one["id"] for one in listed] == [rule["id"]]
    agent = await desk.person("agent")
    for method, path in (
        ("GET", "/workflows"), ("POST", "/workflows"), ("GET", f"/workflows/{rule['id']}"),
        ("DELETE", f"/workflows/{rule['id']}"), ("POST", "/workflows/replay"),
    ):  # fmt: skip
        refused = await agent.call(method, f"/api/v1{path}", json={} if method == "POST" else None)
        assert refused.status == 403
    first = await agent.ticket(priority="critical")
    (run,) = await _runs(desk, rule, 1)
    assert run["matched"] and run["ticket_id"] == first["id"]
    assert (await agent.get(f"/tickets/{first['key']}")).expect(200)["tags"] == ["ruled"]
    (await _put(desk, f"/workflows/{rule['id']}", {"active": False})).expect(200)
    second = await agent.ticket(priority="critical")
    (await _put(desk, f"/workflows/{rule['id']}", {"active": True})).expect(200)
    third = await agent.ticket(priority="critical")
    runs = await _runs(desk, rule, 2)
    assert {one["ticket_id"] for one in runs} == {first["id"], third["id"]}
    assert (await agent.get(f"/tickets/{second['key']}")).expect(200)["tags"] == []
    path = f"/workflows/{rule['id']}/runs?ticket={third['key']}&matched=true&count=true"
    answer = await desk.admin.get(path)
    assert len(answer.expect(200)) == 1 and answer.headers["X-Total-Count"] == "1"
    await _delete(desk, rule)
    (await desk.admin.get(f"/workflows/{rule['id']}")).refused(404, "E_WORKFLOW_NOT_FOUND")


async def test_what_is_no_rule_is_refused_with_every_problem(desk: Live) -> None:
    """S3-40: unknown trigger or action 422 E_WORKFLOW_INVALID_RULE, with paths."""
    for wrong, path in (
        ({"trigger": "never"}, "trigger"),
        ({"actions": {"dance": 1}}, "actions.dance"),
        ({"actions": {}}, "actions"),
        ({"actions": {"steps": [{"add_tag": "x", "add_comment": "y"}]}}, "actions.steps.0"),
        ({"actions": {"add_tag": ["x", ""]}}, "actions.add_tag.1"),
        ({"conditions": {"colour": "red"}}, "conditions.colour"),
        ({"conditions": {"field": "tags", "op": "like", "value": "x"}}, "conditions"),
        ({"conditions": {"all": []}}, "conditions.all"),
        ({"conditions": {"field": "created_at", "op": "eq", "value": "x"}}, "conditions"),
        ({"trigger": "unchanged_for"}, "unchanged_for"),
        ({"unchanged_for": {"hours": 1, "status": "open"}}, "unchanged_for"),
        ({"conditions": {"field": "status", "op": "changed"}}, "conditions"),
    ):
        new = {"name": "R", "trigger": "ticket_created", "actions": {"add_tag": "x"}, **wrong}
        details = (await desk.admin.post("/workflows", new)).refused(422, "E_WORKFLOW_INVALID_RULE")
        assert path in {field["path"] for field in details["fields"]}, (wrong, details)
        assert all(field["problem"] for field in details["fields"])
    deep: Any = {"field": "status", "op": "eq", "value": "open"}
    for _ in range(10):
        deep = {"all": [deep]}
    new = {"name": "R", "trigger": "ticket_created", "actions": {"add_tag": "x"}}
    for conditions in (deep, {"all": [{"field": "key", "op": "eq", "value": "x"}] * 51}):
        refused = await desk.admin.post("/workflows", {**new, "conditions": conditions})
        refused.refused(422, "E_WORKFLOW_INVALID_RULE")


async def test_the_rules_of_the_readme_work_as_written(desk: Live, sink: Sink) -> None:
    """Five real rules: each is accepted, and the first really assigns, comments and calls."""
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    section = readme.partition("### Workflows")[2]
    written = orjson.loads(section.partition("```json")[2].partition("```")[0])
    target = await _target(desk, sink, "pager")
    rules = [(await desk.admin.post("/workflows", one)).expect(201) for one in written]
    assert len(rules) == 5
    agent = await desk.person("agent")
    ticket = await desk.admin.ticket("No VPN", priority="critical")
    (told,) = await sink.hears(1)
    assert told.body["ticket"]["assignee_ids"] and told.body["ticket"]["key"] == ticket["key"]
    await _runs(desk, rules[1], 1)
    after = (await agent.get(f"/tickets/{ticket['key']}")).expect(200)
    assert (after["category"], after["tags"]) == ("network", ["vpn"])
    await _delete(desk, *rules)
    (await desk.admin.delete(f"/workflow-targets/{target['id']}")).expect(204)


async def test_rules_are_ordered_paged_and_tried(desk: Live) -> None:
    """Positions, cursors, a dry run and a replay over REST."""
    rules = [await _rule(desk, name=f"R{n}") for n in range(3)]
    wanted = [rules[2]["id"], rules[0]["id"]]
    ordered = (await _put(desk, "/workflows/order", {"ids": wanted})).expect(200)
    assert [one["id"] for one in ordered] == [*wanted, rules[1]["id"]]
    page = await desk.admin.get("/workflows?limit=2")
    rest = await desk.admin.call("GET", page.headers["Link"].partition(">")[0][1:])
    seen = [one["id"] for one in (*page.expect(200), *rest.expect(200))]
    assert seen == [*wanted, rules[1]["id"]]
    ticket = await desk.admin.ticket()
    tried = await desk.admin.post(f"/workflows/{rules[0]['id']}/dry-run", {"ticket": ticket["key"]})
    assert tried.expect(200)["matched"] is True
    missing = await desk.admin.post(f"/workflows/{rules[0]['id']}/dry-run", {"ticket": "TSK-9999"})
    missing.refused(404, "E_TICKET_NOT_FOUND")
    rule = {"trigger": "ticket_created", "conditions": {}, "actions": {"add_tag": "x"}}
    found = (await desk.admin.post("/workflows/replay", {"rule": rule, "days": 1})).expect(200)
    assert ticket["id"] in {one["ticket_id"] for one in found["touched"]} and found["complete"]
    await _delete(desk, *rules)


async def test_a_target_is_told_signed_and_without_what_is_internal(desk: Live, sink: Sink) -> None:
    """The HMAC is of timestamp and body; an internal comment only goes to who may see it."""
    public = await _target(desk, sink, "public")
    trusted = await _target(desk, sink, "trusted", internal_comments=True)
    assert SECRET not in str(public) and "secret" not in public
    rules = [
        await _rule(desk, trigger="comment_added", actions={"call_webhook": target["name"]})
        for target in (public, trusted)
    ]
    agent = await desk.person("agent")
    ticket = await agent.ticket()
    path = f"/tickets/{ticket['id']}/comments"
    (await agent.post(path, {"body": "the password is x", "internal": True})).expect(201)
    told = {one.body["rule"]["id"]: one for one in await sink.hears(2)}
    blind, open_ = told[rules[0]["id"]], told[rules[1]["id"]]
    assert blind.is_signed_with(SECRET) and not blind.is_signed_with(SECRET + "x")
    assert b"password" not in blind.raw and blind.body["event"]["internal"] is True
    assert open_.body["event"]["comment"] == "the password is x"
    assert open_.body["ticket"]["key"] == ticket["key"]
    assert open_.body["delivery"] == open_.delivery != blind.delivery
    used = await desk.admin.delete(f"/workflow-targets/{public['id']}")
    assert used.refused(409, "E_WORKFLOW_TARGET_IN_USE")["rules"] == ["R"]
    await _delete(desk, *rules)
    for target in (public, trusted):
        (await desk.admin.delete(f"/workflow-targets/{target['id']}")).expect(204)
    assert SECRET not in desk.daemon.log.read_text()


async def test_a_target_that_is_out_gets_the_same_delivery_later(desk: Live, sink: Sink) -> None:
    """Repeated with the same id and body; a redirect is not followed, a refusal not repeated."""
    target = await _target(desk, sink, "moody")
    rule = await _rule(desk, actions={"call_webhook": target["id"]})
    sink.answers += [(503, {"Retry-After": "0"}), (500, {})]
    await desk.admin.ticket("first")
    told = await sink.hears(3)
    assert len({one.delivery for one in told}) == 1 and len({one.raw for one in told}) == 1
    for answer in ((302, {"Location": sink.url + "/elsewhere"}), (400, {})):
        sink.answers.append(answer)
        await desk.admin.ticket("second")
        count = len(sink.told) + 1
        await sink.hears(count)
        failed = await _failed(desk, "answered " + str(answer[0]))
        assert failed["attempts"] == 1 and len(sink.told) == count
    await _delete(desk, rule)


async def _failed(live: Live, why: str) -> Any:
    """Return the failed call whose reason says this."""
    deadline = time.monotonic() + 20
    while True:
        path = "/jobs?state=failed&type=workflows.webhook"
        for job in (await live.admin.get(path)).expect(200):
            if why in job["last_error"]:
                return job
        assert time.monotonic() < deadline
        await asyncio.to_thread(time.sleep, 0.02)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:9/x", "http://[::1]/", "http://169.254.169.254/latest/", "http://10.0.0.1/",
     "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://0.0.0.0/",
     "http://user:pw@example.org/", "ftp://example.org/", "http://example.org/#x", "http:///x",
     "http://example.org:99999/"],
)  # fmt: skip
async def test_an_address_that_may_not_be_called_is_no_target(live: Live, url: str) -> None:
    """No network is open unless the configuration names it; the answer tells no secret."""
    new = {"name": "bad", "url": url, "secret": SECRET}
    answer = await live.admin.post("/workflow-targets", new)
    answer.refused(422, "E_VALIDATION_ERROR")
    assert SECRET.encode() not in answer.raw


@pytest.mark.parametrize(("point", "requests"), [("before_send", 1), ("after_send", 2)])
async def test_a_crash_around_a_call_loses_and_doubles_nothing(
    database_url: str, sink: Sink, point: str, requests: int
) -> None:
    """R-03, I6: killed there, the call is made by the next life, with an equal delivery id."""
    daemon = make_daemon(database_url, **QUICK, ITDESK_FAILPOINTS=point)
    async with running(daemon) as live:
        target = await _target(live, sink, "pager")
        rule = await _rule(
            live, actions={"steps": [{"add_tag": "ruled"}, {"call_webhook": target["id"]}]}
        )
        ticket = await live.admin.ticket()
        assert await asyncio.to_thread(daemon.ended) == -signal.SIGKILL
        daemon.env.pop("ITDESK_FAILPOINTS")
        await asyncio.to_thread(daemon.start)
        live.admin = Person(daemon.url, live.admin.token, live.admin.id)
        await sink.hears(requests)
        (run,) = await _runs(live, rule, 1)
        assert run["matched"] and run["error"] is None
        after = (await live.admin.get(f"/tickets/{ticket['key']}")).expect(200)
        assert (after["tags"], after["version"]) == (["ruled"], 2)
        await _all_done(database_url)
    assert len(sink.told) == requests
    assert len({one.delivery for one in sink.told}) == 1 and len({t.raw for t in sink.told}) == 1


async def _all_done(url: str) -> None:
    conn = await asyncpg.connect(url)
    try:
        deadline = time.monotonic() + 20
        query = "SELECT count(*) FROM jobs WHERE type LIKE 'workflows.%' AND state <> 'done'"
        while await conn.fetchval(query):
            assert time.monotonic() < deadline
            await asyncio.to_thread(time.sleep, 0.02)
    finally:
        await conn.close()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_mark", "anywhere"])
async def test_a_crash_while_rules_work_repeats_nothing(
    database_url: str, sink: Sink, point: str
) -> None:
    """R-03: killed between the commit of a run and the end of its job, nothing happens twice."""
    daemon = make_daemon(database_url, **QUICK)
    async with running(daemon) as live:
        target = await _target(live, sink, "pager")
        rule = await _rule(
            live, actions={"steps": [{"add_comment": "once"}, {"call_webhook": target["id"]}]}
        )
        assert await asyncio.to_thread(daemon.stop) == 0
        if point == "before_mark":
            daemon.env["ITDESK_FAILPOINTS"] = point
        await asyncio.to_thread(daemon.start)
        admin = Person(daemon.url, live.admin.token, live.admin.id)
        ticket = await admin.ticket()
        if point == "before_mark":
            assert await asyncio.to_thread(daemon.ended) == -signal.SIGKILL
            daemon.env.pop("ITDESK_FAILPOINTS")
        else:
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        await asyncio.to_thread(daemon.start)
        live.admin = Person(daemon.url, admin.token, admin.id)
        await sink.hears(1)
        await _runs(live, rule, 1)
        await _all_done(database_url)
        said = (await live.admin.get(f"/tickets/{ticket['key']}/comments")).expect(200)
        assert [one["body"] for one in said] == ["once"]
    assert len({one.delivery for one in sink.told}) == 1
