"""Rules at work: which look at an event, in which order, and that each does so exactly once.

An event becomes a job in its ticket's lane only while a rule waits for such events. A rule that
matches acts in a transaction of its own, in which its run is logged as well; the log is unique for
each rule and event, so that a worker that was overtaken does nothing twice. What is committed
stays, what fails is undone whole and logged, and the next rule goes on.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from itdesk.desk import rules
from itdesk.desk.actions import ActionFailed, Actions, Doing
from itdesk.desk.conditions import Facts, Verdict, evaluate
from itdesk.desk.contract import reason
from itdesk.desk.jobs import Job, JobType
from itdesk.errors import NotFound, StorageFull, Unavailable
from itdesk.frozen import frozen
from itdesk.hookspecs import Schedule
from itdesk.model import Entry, Event, Ticket
from itdesk.runtime.log import get_logger
from itdesk.store import comments, events, tickets, workflow_runs, workflows
from itdesk.store.db import Database, Transaction
from itdesk.store.jobs import NewJob
from itdesk.store.workflow_runs import Cause, NewRun
from itdesk.store.workflows import Trigger, WorkflowRule

REACT: Final = "workflows.react"
REMIND: Final = "workflows.unchanged"
LOOK: Final = "workflows.look"
# What rules did may make rules act again, so many times in a row.
DEEPEST: Final = 3
# All that follows from one event, side by side and in a row: rules that feed each other end here.
MOST_FOLLOWING: Final = 50
_LONGEST_CHAIN: Final = 20
_BATCH: Final = 200
_BATCHES: Final = 10

log = get_logger("workflows")


class _AlreadyRun(Exception):
    """Another worker logged this rule and event first: whatever was done here is undone."""


class _Period(BaseModel):
    """What the job about one period of staying unchanged is told."""

    rule_id: UUID
    ticket_id: UUID
    event_id: UUID


@frozen
class Look:
    """One rule about to look at one event, and where the event comes from."""

    rule_id: UUID
    entry: Entry
    ticket_id: UUID
    cause: Cause
    # The ticket must have stayed as the event left it.
    still: bool = False


def triggers_of(event: Event) -> tuple[Trigger, ...]:
    """Return which triggers an event fires."""
    match event.type:
        case "ticket.created":
            return (Trigger.TICKET_CREATED,)
        case "comment.added":
            return (Trigger.COMMENT_ADDED,)
        case "ticket.updated" if any(change.field == "status" for change in event.changes):
            return (Trigger.TICKET_UPDATED, Trigger.STATUS_CHANGED)
        case "ticket.updated":
            return (Trigger.TICKET_UPDATED,)
    return ()


async def facts_of(conn: Any, event: Event, ticket: Ticket) -> Facts:
    """Return what a rule looks at now: the ticket as given, the event with its comment."""
    role, comment = None, None
    if event.actor_id is not None:
        role = (await workflow_runs.roles(conn, [event.actor_id])).get(event.actor_id)
    if said := event.data.get("comment_id"):
        found = await comments.by_ids(conn, [UUID(said)])
        comment = found[UUID(said)].body if UUID(said) in found else None
    return Facts(ticket, event, await workflow_runs.now(conn), role, comment)


class Automation:
    """The rules of the desk at work."""

    def __init__(self, db: Database, actions: Actions, *, look_seconds: int) -> None:
        self._db = db
        self._actions = actions
        self._look_seconds = look_seconds

    def of_events(self, new: Sequence[Event]) -> list[NewJob]:
        """Return the jobs in which rules will look at events; left out while no rule waits."""
        return [
            NewJob(
                REACT, lane=f"ticket:{event.ticket_id}", event_id=event.id,
                triggers=tuple(map(str, triggers)),
            )
            for event in new
            if (triggers := triggers_of(event))
        ]  # fmt: skip

    def job_types(self) -> tuple[JobType, ...]:
        """Return the kinds of jobs in which rules work."""
        return (
            JobType(name=REACT, handle=self._react, concurrency=4, attempts=10, outbound=False),
            JobType(name=REMIND, handle=self._remind, concurrency=2, attempts=10, outbound=False),
        )

    def schedule(self) -> Schedule:
        """Return the schedule that looks for tickets that stayed unchanged."""
        return Schedule(name=LOOK, seconds=self._look_seconds, run=self._look, outbound=False)

    # --- events ---------------------------------------------------------------------------

    async def _react(self, job: Job) -> None:
        """Let all rules that wait for an event look at it, in the order of their positions."""
        unmatched: list[NewRun] = []
        async with self._db.connection() as conn:
            entry = await events.get(conn, job.event_id) if job.event_id else None
            # Its ticket, and all that the journal said of it, may be deleted meanwhile.
            if entry is None or entry.event.ticket_id is None:
                return
            waiting = await workflows.of_event(
                conn, triggers_of(entry.event), entry.event.id, entry.created_at
            )
            cause = await workflow_runs.cause(conn, entry.event.id, deepest=_LONGEST_CHAIN)
        facts: Facts | None = None
        for rule in waiting:
            if facts is None:
                facts = await self._facts(entry, entry.event.ticket_id)
            if facts is None:
                return
            look = Look(rule.id, entry, facts.ticket.id, cause)
            verdict = evaluate(_parsed(rule), facts)
            if verdict.matched:
                await self.run(look)
                facts = None
            else:
                unmatched.append(_run(look, verdict))
        async with job.transaction() as tx:
            if unmatched:
                await workflow_runs.add(tx.conn, unmatched)

    async def _facts(self, entry: Entry, ticket_id: UUID) -> Facts | None:
        async with self._db.connection() as conn:
            try:
                ticket = await tickets.find(conn, str(ticket_id), scope=None)
            except NotFound:
                return None
            return await facts_of(conn, entry.event, ticket)

    async def run(self, look: Look) -> None:
        """Let one rule look at one event, act and be logged, all or nothing; a failure is logged.

        Unavailable when the database was in the way: then nothing happened, and it may be tried
        again.
        """
        verdict: list[Verdict] = []
        try:
            async with self._db.transaction() as tx:
                run = await self._run_in(tx, look, verdict)
                if run is not None and not await workflow_runs.add(tx.conn, [run]):
                    raise _AlreadyRun
            return
        except (Unavailable, StorageFull):
            raise
        except (_AlreadyRun, NotFound):
            # Somebody else's run is there, or the ticket is not any more.
            return
        except ActionFailed as exc:
            problem = str(exc)
        except Exception as exc:  # noqa: BLE001 - one rule's failure is logged, the others go on
            log.error("workflow failed", rule=look.rule_id, cause=look.entry.event.id, exc_info=exc)
            problem = reason(exc)
        log.warning("workflow undone", rule=look.rule_id, ticket=look.ticket_id, problem=problem)
        failed = _run(look, verdict[0] if verdict else Verdict(True, []), error=problem)
        async with self._db.transaction() as tx:
            await workflow_runs.add(tx.conn, [failed])

    async def _run_in(self, tx: Transaction, look: Look, verdict: list[Verdict]) -> NewRun | None:
        """Do what there is to do in a transaction; return the run to log, or None for none."""
        rule = await workflows.hold_active(tx.conn, look.rule_id)
        if rule is None or not _waits(rule, look):
            return None
        ticket = await tickets.find(tx.conn, str(look.ticket_id), scope=None, lock=True)
        if await workflow_runs.exists(tx.conn, rule.id, look.entry.event.id):
            return None
        facts = await facts_of(tx.conn, look.entry.event, ticket)
        if look.still and not await _still(tx, rule, look, ticket):
            moved = Verdict(False, [])
            return _run(look, moved, note="the ticket did not stay unchanged until now")
        # Once more: between the first look and the lock the ticket may have changed.
        verdict.append(evaluate(_parsed(rule), facts))
        if not verdict[0].matched:
            return _run(look, verdict[0])
        if stopped := await self._stopped(tx, look):
            log.warning("workflow stopped", rule=rule.id, ticket=ticket.id, problem=stopped)
            return _run(look, verdict[0], error=stopped)
        actions = rules.ACTIONS.validate_python(rule.actions)
        result = await self._actions.perform(tx, Doing(rule, actions, facts))
        return _run(look, verdict[0], result=result)

    async def _stopped(self, tx: Transaction, look: Look) -> str | None:
        """Return why nothing more may follow from this event, or None."""
        if look.cause.depth >= DEEPEST:
            return f"stopped: {DEEPEST} rules in a row have led here; what they did feeds this one"
        if look.cause.depth:
            following = await workflow_runs.count_following(tx.conn, look.cause.root_id)
            if following >= MOST_FOLLOWING:
                return f"stopped: {MOST_FOLLOWING} runs follow from the same event already"
        return None

    # --- the clock ------------------------------------------------------------------------

    async def _look(self, job: Job) -> None:
        """Queue a job for each ticket that has just stayed unchanged for long enough."""
        async with self._db.connection() as conn:
            waiting = await workflows.of_clock(conn)
        for rule in waiting:
            for _ in range(_BATCHES):
                if await self._queue_unchanged(rule) < _BATCH:
                    break

    async def _queue_unchanged(self, rule: WorkflowRule) -> int:
        period = rules.Unchanged.model_validate(rule.unchanged_for)
        async with self._db.transaction() as tx:
            held = await workflows.hold_active(tx.conn, rule.id)
            if held is None or held.updated_at != rule.updated_at:
                return 0
            found = await workflows.take_unchanged(
                tx.conn, rule, hours=period.hours, status=period.status, limit=_BATCH
            )
            for ticket_id, event_id in found:
                # A ticket that came without the journal has no period to be named by.
                if event_id is not None:
                    tx.enqueue(
                        REMIND,
                        {"rule_id": rule.id, "ticket_id": ticket_id, "event_id": event_id},
                        lane=f"ticket:{ticket_id}",
                        dedupe=f"unchanged:{rule.id}:{event_id}",
                        event_id=event_id,
                    )
        return len(found)

    async def _remind(self, job: Job) -> None:
        """Let a rule look at a ticket that stayed unchanged since its last event."""
        period = job.read(_Period)
        async with self._db.connection() as conn:
            entry = await events.get(conn, period.event_id)
            if entry is None:
                return
            cause = await workflow_runs.cause(conn, entry.event.id, deepest=_LONGEST_CHAIN)
        await self.run(Look(period.rule_id, entry, period.ticket_id, cause, still=True))


def _waits(rule: WorkflowRule, look: Look) -> bool:
    """Return whether a rule is still about such events; it may have been changed meanwhile."""
    if look.still:
        return rule.trigger is Trigger.UNCHANGED_FOR
    fires = rule.trigger in triggers_of(look.entry.event)
    return fires and rule.active_since <= look.entry.created_at


async def _still(tx: Transaction, rule: WorkflowRule, look: Look, ticket: Ticket) -> bool:
    newest = await workflow_runs.last_event(tx.conn, ticket.id, ())
    if rule.unchanged_for is None or newest is None:
        return False
    period = rules.Unchanged.model_validate(rule.unchanged_for)
    over = ticket.updated_at + timedelta(hours=period.hours)
    same = newest.event.id == look.entry.event.id and ticket.status == period.status
    return same and over >= rule.active_since


def _parsed(rule: WorkflowRule) -> Any:
    return rules.CONDITIONS.validate_python(rule.conditions)


def _run(
    look: Look,
    verdict: Verdict,
    *,
    result: Sequence[Mapping[str, Any]] | None = None,
    error: str | None = None,
    note: str | None = None,
) -> NewRun:
    why: dict[str, Any] = {"conditions": verdict.why}
    if note is not None:
        why["note"] = note
    return NewRun(
        rule_id=look.rule_id,
        ticket_id=look.ticket_id,
        event_id=look.entry.event.id,
        root_id=look.cause.root_id,
        depth=look.cause.depth,
        matched=verdict.matched,
        why=why,
        result=result,
        error=error,
    )
