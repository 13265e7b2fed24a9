"""What rules do: each action goes through the services that people use, with all their checks.

Whatever goes wrong with one action is the end of the run: its transaction is undone as a whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from itdesk.desk import rules
from itdesk.desk.conditions import Facts, cut
from itdesk.desk.mail import Mail
from itdesk.desk.tickets import Tickets
from itdesk.desk.webhooks import Webhooks
from itdesk.errors import Conflict, DeskError, StorageFull, Unavailable
from itdesk.frozen import frozen
from itdesk.model import (
    SYSTEM,
    TRANSITIONS,
    Caller,
    Change,
    MailKind,
    Role,
    Source,
    Ticket,
)
from itdesk.store import rulechecks
from itdesk.store.db import Transaction
from itdesk.store.workflows import WorkflowRule

MOST_TAGS: Final = 20
MOST_READERS: Final = 200
_TOLD = (
    "key", "project", "title", "description", "status", "priority", "category", "department",
    "tags", "assignee_ids", "resolution",
)  # fmt: skip

Effect = dict[str, Any]


class ActionFailed(Exception):
    """An action could not be done: the whole run is undone."""


@frozen
class Doing:
    """A rule at work: its actions, and what made it look."""

    rule: WorkflowRule
    actions: Any
    facts: Facts

    @property
    def caller(self) -> Caller:
        """Return the desk itself, acting because of an event."""
        return replace(SYSTEM, source=Source.WORKFLOW, cause_id=self.facts.event.id)


class Actions:
    """Does what rules say, in the transaction of their run."""

    def __init__(self, tickets: Tickets, mail: Mail, webhooks: Webhooks) -> None:
        self._tickets = tickets
        self._mail = mail
        self._webhooks = webhooks

    async def perform(self, tx: Transaction, doing: Doing) -> list[Effect]:
        """Do all actions in their order; ActionFailed says which one could not be done."""
        ticket, effects = doing.facts.ticket, []
        for path, kind, value in rules.steps(doing.actions):
            try:
                ticket, effect = await self._one(tx, doing, kind, value, ticket)
            except (Unavailable, StorageFull):
                raise
            except DeskError as exc:
                raise ActionFailed(f"{path}: {exc.message}") from exc
            effects.append({"action": kind, **effect})
        return effects

    async def _one(
        self, tx: Transaction, doing: Doing, kind: str, value: Any, ticket: Ticket
    ) -> tuple[Ticket, Effect]:
        match kind:
            case "add_comment":
                body, internal = comment_of(value)
                ref = str(ticket.id)
                said = await self._tickets.comment(doing.caller, ref, body, internal=internal)
                told = {"id": str(said.id), "internal": internal, "body": body[:200]}
                return ticket, {"done": True, "note": "said", "comment": told}
            case "send_notification":
                return ticket, await self._notify(tx, doing, value, ticket)
            case "call_webhook":
                call = await self._webhooks.queue(
                    tx, UUID(value), doing.rule, doing.facts.event, ticket, doing.facts.comment
                )
                return ticket, {"done": True, "note": "queued", "webhook": call}
            case "assign_least_loaded":
                wanted = {"assignee_ids": [await _least_loaded(tx, value)]}
            case _:
                wanted = wanted_fields(kind, value, ticket)
        after = await self._tickets.update(doing.caller, str(ticket.id), wanted)
        return after, field_effect(ticket, after)

    async def _notify(
        self, tx: Transaction, doing: Doing, notice: rules.Notice, ticket: Ticket
    ) -> Effect:
        ids, roles = readers_of(notice, ticket)
        people = await rulechecks.addresses(
            tx.conn, user_ids=ids, roles=roles, limit=MOST_READERS + 1
        )
        if len(people) > MOST_READERS:
            raise Conflict(f"more than {MOST_READERS} people would get this mail")
        if not people:
            return {"done": False, "note": "nobody to write to", "notified": []}
        values = {
            "key": ticket.key,
            "title": ticket.title,
            "link": self._mail.link(f"tickets/{ticket.key}"),
            "text": notice.message,
        }
        for person in people:
            await self._mail.queue(
                tx,
                "workflow_notice",
                person.email,
                {"name": person.name, **values},
                kind=MailKind.NOTIFICATION,
                event_id=doing.facts.event.id,
            )
        note = "queued" if self._mail.on else "kept unsent: no plugin sends mail"
        told = [{"user_id": str(person.id), "name": person.name} for person in people]
        return {"done": True, "note": note, "notified": told, "message": notice.message[:200]}


async def _least_loaded(tx: Transaction, wanted: rules.LeastLoaded) -> UUID:
    roles = [role for role in Role if role.rank >= Role(wanted.role).rank]
    found = await rulechecks.least_loaded(tx.conn, roles, wanted.department)
    if found is None:
        raise Conflict("nobody of this role and department can be given tickets")
    return found


def comment_of(value: Any) -> tuple[str, bool]:
    """Return what is said, and whether internally."""
    return (value, False) if isinstance(value, str) else (value.body, value.internal)


def readers_of(notice: rules.Notice, ticket: Ticket) -> tuple[Sequence[UUID], Sequence[str]]:
    """Return whom a mail about a ticket goes to: people, and everybody of these roles."""
    ids: list[UUID] = []
    roles: list[str] = []
    for who in notice.to:
        kind, _, name = who.partition(":")
        if kind == "role":
            roles.append(name)
        elif kind == "user":
            ids.append(UUID(name))
        elif kind == "assignees":
            ids += ticket.assignee_ids
        elif ticket.reporter_id is not None:
            ids.append(ticket.reporter_id)
    return ids, roles


def wanted_fields(kind: str, value: Any, ticket: Ticket) -> dict[str, Any]:
    """Return the fields of a ticket that an action wants to set, and to what."""
    match kind:
        case "assign_user":
            return {"assignee_ids": [UUID(value)]}
        case "change_status":
            return {"status": value}
        case "set_field":
            return dict(value.model_dump(exclude_unset=True))
        case "add_tag":
            merged, known = list(ticket.tags), {tag.casefold() for tag in ticket.tags}
            for tag in [value] if isinstance(value, str) else value:
                if tag.casefold() not in known:
                    merged.append(tag)
                    known.add(tag.casefold())
            if len(merged) > MOST_TAGS:
                raise Conflict(f"a ticket has at most {MOST_TAGS} tags")
            return {"tags": merged}
    raise ValueError(f"{kind} sets no field")


def field_effect(before: Ticket, after: Ticket) -> Effect:
    """Return what an action did to the fields of a ticket."""
    changes = changes_between(before, after)
    told = [{"field": c.field, "old": cut(c.old), "new": cut(c.new)} for c in changes]
    note = "changed" if told else "is so already"
    return {"done": bool(told), "note": note, "changes": told}


def changes_between(before: Ticket, after: Ticket) -> list[Change]:
    """Return the fields that differ, as the journal tells them."""
    return [
        Change(name, _plain(getattr(before, name)), _plain(getattr(after, name)))
        for name in _TOLD
        if getattr(before, name) != getattr(after, name)
    ]


def foreseen(actions: Any, ticket: Ticket) -> tuple[Ticket, list[Effect]]:
    """Return what actions would do to a ticket as it was, as far as that follows from it alone.

    Nobody is asked: who has the fewest tickets, and whether people and projects are still there,
    only a dry run tells.
    """
    effects: list[Effect] = []
    for _, kind, value in rules.steps(actions):
        effect: Effect = {"action": kind}
        if kind == "add_comment":
            body, internal = comment_of(value)
            effect |= {"done": True, "note": "would be said", "internal": internal}
            effect["body"] = body[:200]
        elif kind in ("send_notification", "call_webhook"):
            to = value.to if kind == "send_notification" else value
            effect |= {"done": True, "note": "would be queued", "to": to}
        elif kind == "assign_least_loaded":
            effect |= {"done": True, "note": "whoever has the fewest tickets would be assigned"}
        else:
            try:
                after = _as_if(ticket, wanted_fields(kind, value, ticket))
            except DeskError as exc:
                return ticket, [*effects, {**effect, "done": False, "note": exc.message}]
            effect |= field_effect(ticket, after)
            ticket = after
        effects.append(effect)
    return ticket, effects


def _as_if(ticket: Ticket, wanted: dict[str, Any]) -> Ticket:
    status = wanted.get("status", ticket.status)
    if status != ticket.status and status not in TRANSITIONS[ticket.status]:
        raise Conflict(f"a ticket that is {ticket.status} cannot become {status}")
    after: Ticket = replace(ticket, **wanted)
    if "assignee_ids" in wanted:
        after = replace(after, assignee_id=next(iter(after.assignee_ids), None))
    return after


def _plain(value: Any) -> Any:
    return [str(entry) for entry in value] if isinstance(value, list) else value
