"""Try before you trust: a dry run leaves no trace, a replay knows tickets as they were."""

from typing import Any
from uuid import UUID

import asyncpg
import pytest

from itdesk.desk.replay import Replayed
from itdesk.desk.rulecheck import Draft
from itdesk.errors import Forbidden, Invalid
from itdesk.model import Ticket
from itdesk.store import workflows
from tests.workflows.ruled import Ruled

# All that a write could leave behind; dead rows and the like are PostgreSQL's own business.
_TABLES = (
    "tickets", "ticket_assignees", "ticket_comments", "events", "jobs", "emails", "workflow_runs",
    "workflow_rules", "projects", "journal_head", "users",
)  # fmt: skip


async def _everything(ruled: Ruled) -> dict[str, Any]:
    """Return the content of all tables, where every sequence stands, and the files."""
    seen: dict[str, Any] = {}
    async with ruled.desk.db.connection() as conn:
        for table in _TABLES:
            query = f"SELECT array_agg(t::text || t.xmin::text ORDER BY t::text) FROM {table} t"  # noqa: S608
            seen[table] = await conn.fetchval(query)
        for row in await conn.fetch("SELECT sequencename, last_value FROM pg_sequences"):
            seen[row["sequencename"]] = row["last_value"]
    seen["files"] = sorted(ruled.bench.state_dir.rglob("*"))
    return seen


async def test_a_dry_run_tells_all_and_leaves_nothing(ruled: Ruled) -> None:
    """No row, no sequence, no job, no NOTIFY, no file; the answer is what then really happens."""
    target = await ruled.desk.webhooks.create(
        ruled.admin,
        {"name": "pager", "url": "https://example.org/hook", "secret": "x" * 16,
         "internal_comments": False},
    )  # fmt: skip
    ticket = await ruled.ticket()
    steps: list[dict[str, Any]] = [
        {"assign_least_loaded": {}},
        {"change_status": "triaged"},
        {"set_field": {"project": "TSK", "priority": "high"}},
        {"add_comment": "On it."},
        {"send_notification": {"to": ["reporter"], "message": "We are on it."}},
        {"call_webhook": "pager"},
    ]
    rule = await ruled.rule("ticket_created", {"steps": steps}, conditions={"status": "open"})
    heard: list[Any] = []
    listener = await asyncpg.connect(ruled.desk.db.url)
    told = len(ruled.desk.db.listeners)
    try:
        for channel in ("itdesk_journal", "itdesk_jobs"):
            await listener.add_listener(channel, lambda *args: heard.append(args))
        ruled.desk.db.listeners.append(lambda events: heard.append(events))
        ruled.desk.db.job_listeners.append(lambda: heard.append("jobs"))
        before = await _everything(ruled)
        tried = await ruled.desk.workflows.try_out(ruled.admin, str(rule.id), ticket.key)
        assert await _everything(ruled) == before
        await listener.execute("SELECT 1")
        assert heard == []
    finally:
        del ruled.desk.db.listeners[told:], ruled.desk.db.job_listeners[:]
        await listener.close()
    assert tried.matched and tried.error is None and tried.ticket_key == ticket.key
    assert [effect["action"] for effect in tried.effects] == [next(iter(step)) for step in steps]
    changed = {change["field"]: change["new"] for change in tried.changes}
    assert changed["status"] == "triaged" and changed["priority"] == "high"
    assert tried.effects[4]["notified"][0]["user_id"] == str(ruled.user.user_id)
    assert tried.effects[5]["webhook"]["target"] == target.name
    await ruled.sql("UPDATE workflow_rules SET active_since = now() - interval '1 day'")
    again = await ruled.ticket()
    await ruled.work()
    after = await ruled.now(again)
    assert (after.status, after.priority) == ("triaged", "high") and after.assignee_ids


async def test_a_dry_run_that_fails_or_does_not_match_says_why(ruled: Ruled) -> None:
    """The error of the first action that cannot be done; nothing before it counts."""
    ticket = await ruled.ticket()
    rule = await ruled.rule(
        "status_changed", {"steps": [{"add_tag": "x"}, {"change_status": "blocked"}]}
    )
    tried = await ruled.desk.workflows.try_out(ruled.admin, str(rule.id), str(ticket.id))
    assert (tried.event_id, tried.event_type) == (None, "ticket.updated")
    assert tried.matched and "cannot become blocked" in (tried.error or "")
    assert tried.changes == [] and (await ruled.now(ticket)).tags == []
    rule = await ruled.rule("ticket_created", {"add_tag": "x"}, conditions={"status": "closed"})
    tried = await ruled.desk.workflows.try_out(ruled.admin, str(rule.id), str(ticket.id))
    assert not tried.matched and tried.why["conditions"][0]["found"] == "open"
    assert tried.event_id is not None and tried.effects == []


async def _replay(ruled: Ruled, trigger: str, conditions: Any, **how: Any) -> Replayed:
    draft = Draft(
        trigger, how.pop("unchanged_for", None), conditions, how.pop("actions", {"add_tag": "x"})
    )
    wanted = {"days": 7, "most_events": 10_000, "most_touched": 100, **how}
    return await ruled.desk.replay.replay(ruled.admin, draft, **wanted)


async def _history(ruled: Ruled) -> Ticket:
    """A ticket that was low, then high, then low again, and that others talked about."""
    ticket = await ruled.ticket(title="Printer is dead", tags=["hw"])
    ref = str(ticket.id)
    await ruled.desk.tickets.update(ruled.agent, ref, {"priority": "high", "tags": ["hw", "vip"]})
    await ruled.desk.tickets.comment(ruled.user, ref, "Still dead", internal=False)
    assert ruled.agent.user_id is not None
    await ruled.desk.tickets.update(ruled.agent, ref, {"assignee_ids": [ruled.agent.user_id]})
    await ruled.desk.tickets.update(
        ruled.agent, ref, {"priority": "low", "status": "closed", "title": "Printer is fine"}
    )
    return ticket


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_replay_knows_the_ticket_as_it_was(ruled: Ruled, numbered: bool) -> None:
    """The state as of the event, not as of now, whether the journal is numbered or not yet."""
    ticket = await _history(ruled)
    if numbered:
        await ruled.number()
    then = {"priority": "high", "status": "open", "title": "Printer is dead", "assignee_ids": []}
    found = await _replay(ruled, "comment_added", then)
    (touched,) = found.touched
    assert (touched.ticket_id, touched.event_type) == (ticket.id, "comment.added")
    assert touched.effects == [
        {"action": "add_tag", "done": True, "note": "changed",
         "changes": [{"field": "tags", "old": ["hw", "vip"], "new": ["hw", "vip", "x"]}]}
    ]  # fmt: skip
    assert (found.events, found.matched, found.tickets, found.complete) == (1, 1, 1, True)
    created = await _replay(ruled, "ticket_created", {"priority": "medium", "tags": ["hw"]})
    assert created.matched == 1
    moved = {"all": [{"field": "status", "op": "changed_to", "value": "closed"},
                     {"field": "assignee_id", "op": "not", "value": None},
                     {"field": "actor.role", "op": "eq", "value": "agent"}]}  # fmt: skip
    assert (await _replay(ruled, "status_changed", moved)).matched == 1
    assert (await _replay(ruled, "ticket_updated", {})).matched == 3
    assert await ruled.sql("SELECT count(*) FROM workflow_runs") == 0


async def test_a_replay_is_bounded_and_says_so(ruled: Ruled) -> None:
    """Events looked through and matches shown are bounded; days are, too."""
    for _ in range(4):
        await _history(ruled)
    await ruled.number()
    found = await _replay(ruled, "ticket_updated", {}, most_events=7)
    assert not found.complete and found.events < 12
    found = await _replay(ruled, "ticket_updated", {}, most_touched=2)
    assert (found.matched, len(found.touched), found.tickets) == (12, 2, 4)
    await ruled.sql("ALTER TABLE events DISABLE TRIGGER USER")
    await ruled.sql("UPDATE events SET created_at = created_at - interval '8 days'")
    assert (await _replay(ruled, "ticket_updated", {})).matched == 0
    assert (await _replay(ruled, "ticket_updated", {}, days=9)).matched == 12


async def test_a_replay_finds_periods_in_which_nothing_happened(ruled: Ruled) -> None:
    """unchanged_for: a period that began in those days, and lasted long enough, counts once."""
    await ruled.sql("ALTER TABLE events DISABLE TRIGGER USER")
    ticket = await ruled.ticket()
    await ruled.sql("UPDATE events SET created_at = now() - interval '80 hours'")
    await ruled.desk.tickets.update(ruled.agent, str(ticket.id), {"status": "in_progress"})
    await ruled.number()
    hours = {"hours": 48, "status": "open"}
    found = await _replay(ruled, "unchanged_for", {}, unchanged_for=hours)
    assert [one.ticket_id for one in found.touched] == [ticket.id]
    for other in ({"hours": 90, "status": "open"}, {"hours": 1, "status": "in_progress"}):
        assert (await _replay(ruled, "unchanged_for", {}, unchanged_for=other)).matched == 0


async def test_what_cannot_be_a_rule_cannot_be_replayed(ruled: Ruled) -> None:
    """The same checks, and administrators only."""
    with pytest.raises(Invalid) as caught:
        await _replay(ruled, "ticket_created", {"status": "red"})
    assert caught.value.code == "E_WORKFLOW_INVALID_RULE"
    with pytest.raises(Forbidden):
        await ruled.desk.replay.replay(
            ruled.agent, Draft("ticket_created", None, {}, {"add_tag": "x"}),
            days=1, most_events=1, most_touched=1,
        )  # fmt: skip


async def test_a_rule_sees_each_period_of_silence_once(ruled: Ruled) -> None:
    """unchanged_for: each rule, ticket and period once, however often the clock looks."""
    rule = await ruled.rule(
        "unchanged_for",
        {"add_comment": {"body": "Anybody?", "internal": True}},
        unchanged_for={"hours": 2, "status": "open"},
        conditions={"priority": "medium"},
    )
    ticket, other = await ruled.ticket(), await ruled.ticket()
    await _silence(ruled, hours=3, rule=rule.id)
    await ruled.desk.tickets.update(ruled.agent, str(other.id), {"priority": "low"})
    for _ in range(3):
        await _tick(ruled)
    assert len(await ruled.comments(ticket)) == 1 and not await ruled.comments(other)
    # Its own comment ended that period and began another, and again: three in a row at most.
    for _ in range(5):
        await _silence(ruled, hours=3, rule=rule.id)
        await _tick(ruled)
    runs = await ruled.runs(rule, ticket=ticket.key)
    assert [run.depth for run in runs if run.result] == [0, 1, 2]
    assert len(await ruled.comments(ticket)) == 3
    # What a person does begins the counting anew.
    await ruled.desk.tickets.comment(ruled.user, str(ticket.id), "I am here")
    await _silence(ruled, hours=3, rule=rule.id)
    await _tick(ruled)
    assert len(await ruled.comments(ticket)) == 5


async def test_a_new_rule_leaves_old_silence_alone(ruled: Ruled) -> None:
    """What had been unchanged for long enough before the rule was made is none of its business."""
    ticket = await ruled.ticket()
    await ruled.sql("UPDATE tickets SET updated_at = now() - interval '3 hours'")
    rule = await ruled.rule(
        "unchanged_for", {"add_tag": "old"}, unchanged_for={"hours": 2, "status": "open"}
    )
    await _tick(ruled)
    assert await ruled.runs(rule) == [] and (await ruled.now(ticket)).tags == []


async def test_a_ticket_that_moved_before_its_turn_is_left_alone(ruled: Ruled) -> None:
    """Between the look of the clock and the job somebody answered: logged, not done."""
    rule = await ruled.rule(
        "unchanged_for", {"add_tag": "late"}, unchanged_for={"hours": 2, "status": "open"}
    )
    ticket = await ruled.ticket()
    await _silence(ruled, hours=3, rule=rule.id)
    await ruled.desk.automation.schedule().run(None)  # type: ignore[arg-type]
    await ruled.desk.tickets.comment(ruled.agent, str(ticket.id), "I am here")
    await ruled.work()
    (run,) = await ruled.runs(rule)
    assert not run.matched and "did not stay unchanged" in run.why["note"]


async def _silence(ruled: Ruled, *, hours: float, rule: UUID) -> None:
    """Let so many hours pass for tickets and rules alike."""
    for statement in (
        "UPDATE tickets SET updated_at = updated_at - make_interval(secs => $1 * 3600)",
        "UPDATE workflow_rules SET active_since = active_since - make_interval(secs => $1 * 3600),"
        " scanned_at = scanned_at - make_interval(secs => $1 * 3600)",
    ):
        await ruled.sql(statement, float(hours))


async def _tick(ruled: Ruled) -> None:
    """Let the clock look, and do what follows."""
    await ruled.desk.automation.schedule().run(None)  # type: ignore[arg-type]
    await ruled.work()


async def test_the_clock_looks_at_each_ticket_once_batch_by_batch(ruled: Ruled) -> None:
    """Tickets that fell silent at the same instant are told apart by their ids."""
    rule = await ruled.rule(
        "unchanged_for", {"add_tag": "x"}, unchanged_for={"hours": 2, "status": "open"}
    )
    made = {(await ruled.ticket()).id for _ in range(5)}
    await ruled.sql("UPDATE tickets SET updated_at = now()")
    await _silence(ruled, hours=3, rule=rule.id)
    seen: list[UUID] = []
    for expected in (2, 2, 1, 0):
        async with ruled.desk.db.transaction() as tx:
            batch = await workflows.take_unchanged(tx.conn, rule, hours=2, status="open", limit=2)
        assert len(batch) == expected
        seen += [ticket_id for ticket_id, _ in batch]
    assert len(seen) == 5 and set(seen) == made
