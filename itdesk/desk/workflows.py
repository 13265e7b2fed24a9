"""Workflow rules on behalf of administrators: made, changed, ordered, tried out, looked back at."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final
from uuid import UUID

from itdesk.desk import rules
from itdesk.desk.actions import ActionFailed, Actions, Doing
from itdesk.desk.automation import facts_of
from itdesk.desk.conditions import evaluate
from itdesk.desk.rulecheck import Checked, Draft, check
from itdesk.errors import Conflict, NotFound
from itdesk.frozen import frozen
from itdesk.model import Caller, Change, Entry, Event, Role, Source, Ticket, new_id
from itdesk.store import tickets, workflow_runs, workflows
from itdesk.store.db import Database
from itdesk.store.paging import Page, Window
from itdesk.store.workflow_runs import WorkflowRun
from itdesk.store.workflows import Trigger, WorkflowRule

MOST_RULES: Final = 200
_PARTS = ("trigger", "unchanged_for", "conditions", "actions")
_TOLD = ("name", "description", "active", "position", *_PARTS)
_EVENT_OF: Mapping[Trigger, tuple[str, ...]] = {
    Trigger.TICKET_CREATED: ("ticket.created",),
    Trigger.TICKET_UPDATED: ("ticket.updated",),
    Trigger.STATUS_CHANGED: ("ticket.updated",),
    Trigger.COMMENT_ADDED: ("comment.added",),
    Trigger.UNCHANGED_FOR: (),
}


@frozen
class Tried:
    """What a rule would do to a ticket now; nothing of it was done."""

    ticket_id: UUID
    ticket_key: str
    event_id: UUID | None
    event_type: str
    matched: bool
    why: dict[str, Any]
    effects: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    error: str | None


class _Undone(Exception):
    """Ends the transaction of a trial, so that nothing of it stays."""


class Workflows:
    """The rules of the desk, on behalf of administrators."""

    def __init__(self, db: Database, actions: Actions) -> None:
        self._db = db
        self._actions = actions

    async def list(self, caller: Caller, window: Window) -> Page[WorkflowRule]:
        """Return one page of the rules, in the order in which they run."""
        caller.require(Role.ADMIN, "look at workflows")
        async with self._db.connection() as conn:
            page = await workflows.list_page(conn, window)
            total = await workflows.count(conn) if window.count else None
        return replace(page, total=total)

    async def get(self, caller: Caller, ref: str) -> WorkflowRule:
        """Return a rule."""
        caller.require(Role.ADMIN, "look at workflows")
        async with self._db.connection() as conn:
            return await workflows.get(conn, rule_id(ref))

    async def check(self, conn: Any, wanted: Mapping[str, Any]) -> Checked:
        """Return a rule that can be; Invalid names everything that is wrong with it."""
        return await check(conn, Draft(**{name: wanted.get(name) for name in _PARTS}))  # type: ignore[arg-type]

    async def create(self, caller: Caller, wanted: Mapping[str, Any]) -> WorkflowRule:
        """Add a rule; it acts on what happens from now on."""
        caller.require(Role.ADMIN, "make workflows")
        async with self._db.transaction() as tx:
            await workflows.lock_all(tx.conn)
            checked = await self.check(tx.conn, wanted)
            if await workflows.count(tx.conn) >= MOST_RULES:
                raise Conflict(
                    f"There are {MOST_RULES} workflows already: delete one first.",
                    code="E_WORKFLOW_TOO_MANY",
                )
            rule = await workflows.create(
                tx.conn,
                id=new_id(),
                name=wanted["name"],
                description=wanted["description"],
                active=wanted["active"],
                position=wanted["position"],
                **_stored(checked),
            )
            tx.record(Event.by(caller, "workflow.created", data=_about(rule)))
        return rule

    async def update(self, caller: Caller, ref: str, wanted: Mapping[str, Any]) -> WorkflowRule:
        """Change some fields of a rule; switched on, or with another trigger, it starts anew."""
        caller.require(Role.ADMIN, "change workflows")
        async with self._db.transaction() as tx:
            # Targets must not go while a rule is about to name them.
            await workflows.lock_all(tx.conn)
            before = await workflows.get(tx.conn, rule_id(ref), lock=True)
            fields = dict(wanted)
            if any(name in wanted for name in _PARTS):
                parts = {name: wanted.get(name, getattr(before, name)) for name in _PARTS}
                if "unchanged_for" not in wanted and parts["trigger"] != Trigger.UNCHANGED_FOR:
                    parts["unchanged_for"] = None
                fields |= _stored(await self.check(tx.conn, parts))
            changed = {n: v for n, v in fields.items() if getattr(before, n) != v}
            if not changed:
                return before
            anew = bool(changed.get("active")) or not changed.keys().isdisjoint(
                {"trigger", "unchanged_for"}
            )
            after = await workflows.update(tx.conn, before.id, changed, anew=anew)
            changes = tuple(
                Change(name, getattr(before, name), getattr(after, name))
                for name in _TOLD
                if name in changed
            )
            tx.record(Event.by(caller, "workflow.updated", changes=changes, data=_about(after)))
        return after

    async def delete(self, caller: Caller, ref: str) -> None:
        """Remove a rule: it does nothing any more."""
        caller.require(Role.ADMIN, "delete workflows")
        async with self._db.transaction() as tx:
            rule = await workflows.get(tx.conn, rule_id(ref), lock=True)
            await workflows.delete(tx.conn, rule.id)
            tx.record(Event.by(caller, "workflow.deleted", data=_about(rule)))

    async def reorder(self, caller: Caller, ids: Sequence[UUID]) -> Sequence[WorkflowRule]:
        """Put these rules first, in this order; the others stay behind them as they were."""
        caller.require(Role.ADMIN, "order workflows")
        async with self._db.transaction() as tx:
            await workflows.lock_all(tx.conn)
            known = await workflows.known(tx.conn, ids)
            if missing := [str(id) for id in ids if id not in known]:
                raise NotFound(
                    "There is no such workflow.",
                    code="E_WORKFLOW_NOT_FOUND",
                    details={"ids": missing},
                )
            if await workflows.reorder(tx.conn, ids):
                told = {"ids": [str(id) for id in ids]}
                tx.record(Event.by(caller, "workflow.reordered", data=told))
            page = await workflows.list_page(tx.conn, Window(limit=MOST_RULES))
        return page.items

    async def runs(
        self, caller: Caller, ref: str, window: Window, *, ticket: str | None, matched: bool | None
    ) -> Page[WorkflowRun]:
        """Return one page of what a rule looked at and did, the newest first."""
        caller.require(Role.ADMIN, "look at workflows")
        async with self._db.connection() as conn:
            rule = await workflows.get(conn, rule_id(ref))
            about = None
            if ticket is not None:
                about = (await tickets.find(conn, ticket, scope=None)).id
            page = await workflow_runs.list_page(
                conn, rule.id, window, ticket_id=about, matched=matched
            )
            total = (
                await workflow_runs.count(conn, rule.id, ticket_id=about, matched=matched)
                if window.count
                else None
            )
        return replace(page, total=total)

    async def try_out(self, caller: Caller, ref: str, ticket_ref: str) -> Tried:
        """Do what a rule would do to a ticket now, undo all of it, and return what it was.

        The rule looks at the newest event of the ticket that fires its trigger, or at one made up
        when there is none.
        """
        caller.require(Role.ADMIN, "try workflows")
        tried: list[Tried] = []
        try:
            async with self._db.transaction() as tx:
                rule = await workflows.get(tx.conn, rule_id(ref))
                ticket = await tickets.find(tx.conn, ticket_ref, scope=None, lock=True)
                entry = await _newest(tx.conn, rule.trigger, ticket)
                event = entry.event if entry is not None else _made_up(rule.trigger, ticket)
                facts = await facts_of(tx.conn, event, ticket)
                verdict = evaluate(rules.CONDITIONS.validate_python(rule.conditions), facts)
                effects: list[dict[str, Any]] = []
                error = None
                if verdict.matched:
                    actions = rules.ACTIONS.validate_python(rule.actions)
                    try:
                        effects = await self._actions.perform(tx, Doing(rule, actions, facts))
                    except ActionFailed as exc:
                        error = str(exc)
                tried.append(
                    Tried(
                        ticket_id=ticket.id,
                        ticket_key=ticket.key,
                        event_id=event.id if entry is not None else None,
                        event_type=event.type,
                        matched=verdict.matched,
                        why={"conditions": verdict.why},
                        effects=effects,
                        changes=[asdict(c) for e in tx.events for c in e.changes]
                        if error is None
                        else [],
                        error=error,
                    )
                )
                raise _Undone
        except _Undone:
            return tried[0]


async def _newest(conn: Any, trigger: Trigger, ticket: Ticket) -> Entry | None:
    """Return the newest event of a ticket that fires a trigger."""
    if trigger is Trigger.STATUS_CHANGED:
        return await workflow_runs.last_move(conn, ticket.id)
    return await workflow_runs.last_event(conn, ticket.id, _EVENT_OF[trigger])


def _made_up(trigger: Trigger, ticket: Ticket) -> Event:
    type = next(iter(_EVENT_OF[trigger]), "ticket.updated")
    return Event(
        type=type,
        actor_id=ticket.reporter_id,
        actor_name=ticket.reporter_name,
        source=Source.API,
        ticket_id=ticket.id,
        ticket_version=ticket.version,
    )


def _stored(checked: Checked) -> dict[str, Any]:
    return {name: getattr(checked, name) for name in _PARTS}


def _about(rule: WorkflowRule) -> dict[str, Any]:
    return {"workflow_id": str(rule.id), "name": rule.name, "trigger": rule.trigger}


def rule_id(ref: str) -> UUID:
    """Return the id that a rule is asked for by; NotFound when it is none."""
    try:
        return UUID(ref)
    except ValueError:
        raise NotFound.of("workflow") from None
