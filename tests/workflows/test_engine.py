"""Rules at work: what they do, in which order, how often, and where they end."""

from typing import Any
from uuid import UUID

import pytest

from itdesk.desk.automation import DEEPEST, Look
from itdesk.desk.tickets import NewTicket
from itdesk.errors import Invalid
from itdesk.model import Caller, Priority, Role
from itdesk.store import workflow_runs
from tests.workflows.ruled import Ruled


async def test_a_critical_ticket_is_assigned_and_answered(ruled: Ruled) -> None:
    """S3-06, R51: "critical on create assigns X and comments" really acts, and is logged."""
    rule = await ruled.rule(
        "ticket_created",
        {"assign_user": ruled.agent.email, "add_comment": {"body": "Look!", "internal": True}},
        conditions={"priority": "critical"},
    )
    calm = await ruled.ticket()
    ticket = await ruled.desk.tickets.create(
        ruled.agent, NewTicket("All is down", priority=Priority.CRITICAL)
    )
    await ruled.work()
    after = await ruled.now(ticket)
    assert after.assignee_ids == [ruled.agent.user_id]
    (said,) = await ruled.comments(ticket)
    assert (said.body, said.internal, said.author_name) == ("Look!", True, "itdesk")
    created, *effects = await ruled.events(ticket)
    assert [e["type"] for e in effects] == ["ticket.updated", "comment.added"]
    for event in effects:
        assert event["source"] == "workflow" and event["cause_id"] == created["id"]
        assert event["actor_id"] is None
    # Two tickets are two lanes: either may have come first.
    missed, hit = sorted(await ruled.runs(rule), key=lambda run: run.matched)
    assert (missed.ticket_id, missed.matched, missed.result) == (calm.id, False, None)
    assert missed.why["conditions"] == [
        {"path": "conditions.priority", "field": "priority", "op": "eq", "expected": "critical",
         "found": "medium", "met": False}
    ]  # fmt: skip
    assert hit.matched and hit.error is None and hit.depth == 0
    assert [e["action"] for e in hit.result or ()] == ["assign_user", "add_comment"]


async def test_rules_run_in_their_order_and_see_what_those_before_did(ruled: Ruled) -> None:
    """R50: positions decide; a rule sees the ticket as the rules before it left it."""
    second = await ruled.rule("ticket_created", {"add_tag": "b"}, conditions={"tags": ["a"]})
    first = await ruled.rule("ticket_created", {"add_tag": "a"})
    ticket = await ruled.ticket()
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["a"]
    await ruled.desk.workflows.reorder(ruled.admin, [first.id, second.id])
    ticket = await ruled.ticket()
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["a", "b"]


async def test_a_failing_action_undoes_its_whole_rule_and_no_other(ruled: Ruled) -> None:
    """R-03: the run is undone as a whole and logged with its error; the next rule goes on."""
    broken = await ruled.rule(
        "ticket_created",
        {"steps": [{"add_tag": "half"}, {"add_comment": "half"}, {"change_status": "blocked"}]},
    )
    sound = await ruled.rule("ticket_created", {"add_tag": "whole"})
    ticket = await ruled.ticket()
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["whole"] and not await ruled.comments(ticket)
    (failed,) = await ruled.runs(broken)
    assert failed.matched and failed.result is None
    assert failed.error is not None and failed.error.startswith("actions.steps.2.change_status: ")
    assert "open cannot become blocked" in failed.error
    assert [run.error for run in await ruled.runs(sound)] == [None]


@pytest.mark.parametrize("looks_at", ["event", "ticket"])
async def test_two_rules_that_fight_end_after_three_in_a_row(ruled: Ruled, looks_at: str) -> None:
    """S3-06: the recursion guard, at depth 3, is logged."""

    def when(value: str) -> dict[str, str]:
        return {"field": "priority", "op": "changed_to" if looks_at == "event" else "eq",
                "value": value}  # fmt: skip

    up = await ruled.rule(
        "ticket_updated", {"set_field": {"priority": "high"}}, conditions=when("low")
    )
    down = await ruled.rule(
        "ticket_updated", {"set_field": {"priority": "low"}}, conditions=when("high")
    )
    ticket = await ruled.ticket()
    await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"priority": "high"})
    await ruled.work()
    runs = sorted([*await ruled.runs(up), *await ruled.runs(down)], key=lambda run: run.id)
    acted = [run for run in runs if run.result]
    assert {run.depth for run in acted} == {0, 1, 2}
    stopped = [run for run in runs if run.error]
    assert {run.depth for run in stopped} == {DEEPEST}
    assert all((run.error or "").startswith("stopped: ") for run in stopped)
    assert len({run.root_id for run in runs}) == 1
    # Who looks at the ticket sees what the other has just done, also at the same event.
    assert (len(acted), len(stopped)) == ((3, 1) if looks_at == "event" else (7, 4))


async def test_a_rule_that_feeds_itself_ends(ruled: Ruled) -> None:
    """A storm: add_comment on comment_added says three things, not endlessly many."""
    rule = await ruled.rule("comment_added", {"add_comment": "And I say"})
    ticket = await ruled.ticket()
    await ruled.desk.tickets.comment(ruled.user, str(ticket.id), "Hello?")
    await ruled.work()
    assert len(await ruled.comments(ticket)) == 1 + DEEPEST
    assert [run.error is None for run in await ruled.runs(rule)] == [True] * DEEPEST + [False]


async def test_many_rules_that_feed_each_other_end(ruled: Ruled) -> None:
    """A storm that grows by ten at each step is cut at fifty runs of one event."""
    for _ in range(8):
        await ruled.rule("comment_added", {"add_comment": "Me too"})
    ticket = await ruled.ticket()
    await ruled.desk.tickets.comment(ruled.user, str(ticket.id), "Hello?")
    await ruled.work()
    assert await ruled.sql("SELECT count(*) FROM workflow_runs WHERE error IS NULL") == 50
    assert len(await ruled.comments(ticket)) == 51


async def test_without_a_rule_that_waits_a_write_queues_nothing(ruled: Ruled) -> None:
    """A ticket write pays nothing for rules that wait for something else, or for none."""
    counted = "SELECT count(*) FROM jobs WHERE type LIKE 'workflows.%'"
    ticket = await ruled.ticket()
    await ruled.rule("comment_added", {"add_tag": "x"})
    idle = await ruled.rule("ticket_updated", {"add_tag": "x"}, active=False)
    await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"priority": "high"})
    assert await ruled.sql(counted) == 0
    await ruled.desk.workflows.update(ruled.admin, str(idle.id), {"active": True})
    await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"priority": "low"})
    assert await ruled.sql(counted) == 1


async def test_a_rule_leaves_alone_what_happened_before_it(ruled: Ruled) -> None:
    """A rule made, or switched on, after an event never acts on it, however late its job is."""
    waiting = await ruled.rule("ticket_created", {"add_tag": "old"})
    ticket = await ruled.ticket()
    late = await ruled.rule("ticket_created", {"add_tag": "new"})
    never = await ruled.rule("ticket_created", {"add_tag": "x"}, conditions={"status": "closed"})
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["old"]
    assert len(await ruled.runs(waiting)) == 1
    assert await ruled.runs(late) == [] and await ruled.runs(never) == []


@pytest.mark.parametrize(
    "change", [{"active": False}, {"trigger": "comment_added"}, {"actions": {"add_tag": "new"}}]
)
async def test_a_rule_changed_after_the_first_look_is_asked_again(
    ruled: Ruled, change: dict[str, Any]
) -> None:
    """Between the look at an event and the lock of the rule an administrator may change it."""
    rule = await ruled.rule("ticket_created", {"add_tag": "old"})
    ticket = await ruled.ticket()
    async with ruled.desk.db.connection() as conn:
        entry = await workflow_runs.last_event(conn, ticket.id, ())
        assert entry is not None
        cause = await workflow_runs.cause(conn, entry.event.id, deepest=20)
    await ruled.desk.workflows.update(ruled.admin, str(rule.id), change)
    await ruled.desk.automation.run(Look(rule.id, entry, ticket.id, cause))
    assert (await ruled.now(ticket)).tags == (["new"] if "actions" in change else [])


async def test_a_stopped_rule_acts_no_more(ruled: Ruled) -> None:
    """S3-42, S3-43: active=false stops what waits already; a deleted rule's runs stay."""
    rule = await ruled.rule("ticket_created", {"add_tag": "x"})
    await ruled.rule("ticket_created", {"add_tag": "y"})
    ticket = await ruled.ticket()
    await ruled.desk.workflows.update(ruled.admin, str(rule.id), {"active": False})
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["y"] and await ruled.runs(rule) == []
    await ruled.desk.workflows.update(ruled.admin, str(rule.id), {"active": True})
    await ruled.ticket()
    await ruled.work()
    assert len(await ruled.runs(rule)) == 1
    await ruled.desk.workflows.delete(ruled.admin, str(rule.id))
    after = await ruled.ticket()
    await ruled.work()
    assert (await ruled.now(after)).tags == ["y"]
    assert await ruled.sql("SELECT rule_name FROM workflow_runs WHERE rule_id IS NULL") == "A rule"


async def test_an_assignee_who_is_gone_is_a_logged_error(ruled: Ruled) -> None:
    """Whoever was named may leave: the run says so, the desk goes on."""
    leaver = await ruled.bench.person(Role.AGENT)
    rule = await ruled.rule("ticket_created", {"assign_user": str(leaver.user_id)})
    assert leaver.user_id is not None
    await ruled.desk.accounts.delete(ruled.admin, leaver.user_id)
    await ruled.ticket()
    await ruled.work()
    (run,) = await ruled.runs(rule)
    assert "cannot be given tickets" in (run.error or "")


async def test_what_is_so_already_changes_nothing(ruled: Ruled) -> None:
    """No event, no version: the run says that it was so already."""
    rule = await ruled.rule("ticket_created", {"change_status": "open", "add_tag": "vpn"})
    ticket = await ruled.ticket(tags=["VPN"])
    await ruled.work()
    assert (await ruled.now(ticket)).version == 1
    (run,) = await ruled.runs(rule)
    assert {e["note"] for e in run.result or ()} == {"is so already"}


async def test_the_least_loaded_gets_the_ticket(ruled: Ruled) -> None:
    """Unclosed tickets count; people who cannot be given tickets are none."""
    free = await ruled.bench.person(Role.MANAGER)
    busy = [str(ruled.agent.user_id), str(ruled.admin.user_id)]
    for person in busy:
        ticket = await ruled.ticket()
        await ruled.desk.tickets.update(
            ruled.agent, str(ticket.id), {"assignee_ids": [UUID(person)]}
        )
    await ruled.rule("ticket_created", {"assign_least_loaded": {"role": "agent"}})
    ticket = await ruled.ticket()
    await ruled.work()
    assert (await ruled.now(ticket)).assignee_ids == [free.user_id]


async def test_a_mail_goes_to_reporter_assignees_and_roles_once_each(ruled: Ruled) -> None:
    """send_notification: everybody once, also who is meant twice; kept while nobody sends mail."""
    await ruled.rule(
        "ticket_created",
        {"send_notification": {"to": ["reporter", "assignees", "role:admin",
                                      f"user:{ruled.admin.email}"], "message": "Be patient."}},
    )  # fmt: skip
    ticket = await ruled.ticket()
    await ruled.work()
    async with ruled.desk.db.connection() as conn:
        rows = await conn.fetch("SELECT to_address, subject, body_text FROM emails ORDER BY 1")
    assert sorted(row["to_address"] for row in rows) == sorted(
        [str(ruled.user.email), str(ruled.admin.email)]
    )
    assert ticket.key in rows[0]["subject"] and "Be patient." in rows[0]["body_text"]


async def test_a_retried_job_does_nothing_twice(ruled: Ruled) -> None:
    """One run for each rule and event, however often the job is done."""
    rule = await ruled.rule("ticket_created", {"add_comment": "once"})
    ticket = await ruled.ticket()
    await ruled.work()
    await ruled.sql(
        "UPDATE jobs SET state = 'waiting', finished_at = NULL, owner = NULL, lease_until = NULL"
        " WHERE type = 'workflows.react'"
    )
    await ruled.work()
    assert len(await ruled.comments(ticket)) == 1 and len(await ruled.runs(rule)) == 1


async def test_a_deleted_ticket_is_nobodys_business(ruled: Ruled) -> None:
    """The ticket and its events are gone before the rules come: nothing fails."""
    await ruled.rule("ticket_created", {"add_tag": "x"})
    ticket = await ruled.ticket()
    await ruled.desk.tickets.delete(ruled.admin, str(ticket.id))
    await ruled.work()
    assert await ruled.sql("SELECT string_agg(state, '') FROM jobs") == "done"


@pytest.mark.parametrize("internal", [True, False])
async def test_an_event_is_told_by_its_comment_actor_and_source(
    ruled: Ruled, internal: bool
) -> None:
    """Conditions over actor and event fields."""
    rule = await ruled.rule(
        "comment_added",
        {"add_tag": "said"},
        conditions={"all": [
            {"field": "event.comment", "op": "contains", "value": "URGENT"},
            {"field": "event.internal", "op": "eq", "value": internal},
            {"field": "actor.role", "op": "in", "value": ["agent", "manager"]},
            {"field": "event.source", "op": "not", "value": "workflow"},
        ]},
    )  # fmt: skip
    ticket = await ruled.ticket()
    speaker: Caller = ruled.agent
    await ruled.desk.tickets.comment(speaker, str(ticket.id), "it is urgent", internal=internal)
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["said"], await ruled.runs(rule)


async def test_a_move_is_told_by_what_it_was_and_became(ruled: Ruled) -> None:
    """status_changed with changed_from and changed_to."""
    await ruled.rule(
        "status_changed",
        {"add_tag": "reopened"},
        conditions={"all": [
            {"field": "status", "op": "changed_from", "value": "closed"},
            {"field": "status", "op": "changed_to", "value": "open"},
        ]},
    )  # fmt: skip
    ticket = await ruled.ticket()
    for status in ("closed", "in_progress", "closed"):
        await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"status": status})
    await ruled.work()
    assert (await ruled.now(ticket)).tags == []
    await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"status": "open"})
    await ruled.work()
    assert (await ruled.now(ticket)).tags == ["reopened"]


async def test_a_rule_that_names_nothing_real_is_refused_with_all_problems(ruled: Ruled) -> None:
    """R51: 422 E_WORKFLOW_INVALID_RULE lists every problem and its path."""
    with pytest.raises(Invalid) as caught:
        await ruled.rule(
            "never",
            {"steps": [{"assign_user": "no@example.org"}, {"call_webhook": "no"}, {"dance": 1}]},
            conditions={"all": [{"field": "colour", "op": "eq", "value": "red"}]},
        )
    assert caught.value.code == "E_WORKFLOW_INVALID_RULE"
    paths = {one["path"] for one in caught.value.details["fields"]}
    assert paths == {"trigger", "conditions.all.0.field", "actions.steps.2"}
    with pytest.raises(Invalid) as caught:
        await ruled.rule(
            "ticket_created",
            {"assign_user": "no@example.org", "call_webhook": "no",
             "set_field": {"project": "NO"},
             "send_notification": {"to": ["user:no@example.org"], "message": "x"}},
            conditions={"status": "red", "tags": "x", "assignee_id": "nobody",
                        "project": "NO", "priority": None},
        )  # fmt: skip
    paths = {one["path"] for one in caught.value.details["fields"]}
    assert paths == {
        "actions.assign_user", "actions.call_webhook", "actions.set_field.project",
        "actions.send_notification.to.0", "conditions.status", "conditions.tags",
        "conditions.assignee_id", "conditions.project", "conditions.priority",
    }  # fmt: skip
