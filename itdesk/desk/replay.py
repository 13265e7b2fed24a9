"""What a proposed rule would have done: real events of the last days, each with its ticket as it
was then.

Everything is read as of one moment. A ticket as of an event is the ticket as of now with every
later change that the journal tells of taken back: key, project, title, description, status,
priority, category, department, tags, assignees and resolution are exact. Its times are those of
the event (updated_at) or those of now where they lie before the event (closed_at,
first_action_at). Roles are those of now. Rules are not applied one after the other: what the
proposed rule would have led to is not looked at. Deleted tickets are gone from the journal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from itdesk.desk import rules
from itdesk.desk.actions import foreseen
from itdesk.desk.automation import triggers_of
from itdesk.desk.conditions import Facts, evaluate
from itdesk.desk.rulecheck import Checked, Draft, check
from itdesk.frozen import frozen
from itdesk.model import Caller, Category, Comment, Entry, Priority, Role, Status, Ticket
from itdesk.store import comments, events, tickets, workflow_runs
from itdesk.store.db import Database
from itdesk.store.workflows import Trigger

_BATCH: Final = 500
_WHOLE: Final = 10_000


@frozen
class Touched:
    """One event at which the rule would have acted, on which ticket, and how."""

    ticket_id: UUID
    ticket_key: str
    event_id: UUID
    event_type: str
    at: datetime
    actor_name: str
    why: list[dict[str, Any]]
    effects: list[dict[str, Any]]


@frozen
class Replayed:
    """What a rule would have done; `complete` unless there was more than was asked to look at."""

    events: int
    matched: int
    tickets: int
    complete: bool
    since: datetime
    touched: list[Touched]


@dataclass(slots=True)
class _Tape:
    """The journal run backwards: tickets as they were before what was taken back."""

    checked: Checked
    now: datetime
    since: datetime
    at_most: int
    tickets: dict[UUID, Ticket] = field(default_factory=dict)
    # When the next thing happened to a ticket.
    later: dict[UUID, datetime] = field(default_factory=dict)
    looked: int = 0
    matched: int = 0
    seen: set[UUID] = field(default_factory=set)
    touched: list[Touched] = field(default_factory=list)

    def play(self, entry: Entry, roles: dict[UUID, Role], spoken: dict[UUID, Comment]) -> None:
        """Look at one event with the ticket as it left it, then take it back."""
        event = entry.event
        ticket = self.tickets.get(event.ticket_id) if event.ticket_id is not None else None
        if ticket is None:
            return
        if entry.created_at >= self.since and self._fires(entry, ticket):
            self.looked += 1
            said = event.data.get("comment_id")
            comment = spoken.get(UUID(said)) if said is not None else None
            facts = Facts(
                _as_of(ticket, entry.created_at),
                event,
                self._when(entry),
                roles.get(event.actor_id) if event.actor_id is not None else None,
                comment.body if comment is not None else None,
            )
            self._look(entry, facts)
        self.later[ticket.id] = entry.created_at
        self.tickets[ticket.id] = _before(ticket, entry)

    def _fires(self, entry: Entry, ticket: Ticket) -> bool:
        if self.checked.trigger is not Trigger.UNCHANGED_FOR:
            return self.checked.trigger in triggers_of(entry.event)
        unchanged = rules.Unchanged.model_validate(self.checked.unchanged_for)
        end = self.later.get(ticket.id, self.now)
        long = end - entry.created_at >= timedelta(hours=unchanged.hours)
        return long and ticket.status == unchanged.status

    def _when(self, entry: Entry) -> datetime:
        """Return when the rule would have looked."""
        if self.checked.trigger is not Trigger.UNCHANGED_FOR:
            return entry.created_at
        unchanged = rules.Unchanged.model_validate(self.checked.unchanged_for)
        return entry.created_at + timedelta(hours=unchanged.hours)

    def _look(self, entry: Entry, facts: Facts) -> None:
        verdict = evaluate(self.checked.parsed_conditions, facts)
        if not verdict.matched:
            return
        self.matched += 1
        self.seen.add(facts.ticket.id)
        if len(self.touched) < self.at_most:
            _, effects = foreseen(self.checked.parsed_actions, facts.ticket)
            self.touched.append(
                Touched(
                    facts.ticket.id, facts.ticket.key, entry.event.id, entry.event.type,
                    self._when(entry), entry.event.actor_name, verdict.why, effects,
                )
            )  # fmt: skip


class Replay:
    """Tries proposed rules on what really happened."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def replay(
        self, caller: Caller, draft: Draft, *, days: int, most_events: int, most_touched: int
    ) -> Replayed:
        """Return what a rule would have done in the last days, the newest first.

        At most so many events of the journal are looked through.
        """
        caller.require(Role.ADMIN, "try workflows")
        async with self._db.transaction() as tx:
            await workflow_runs.hold_still(tx.conn)
            checked = await check(tx.conn, draft)
            now = await workflow_runs.now(tx.conn)
            tape = _Tape(checked, now, now - timedelta(days=days), most_touched)
            complete = await self._play(tx.conn, tape, most_events)
        return Replayed(
            tape.looked, tape.matched, len(tape.seen), complete, tape.since, tape.touched
        )

    async def _play(self, conn: Any, tape: _Tape, most: int) -> bool:
        """Run the tape; return whether it reached the first of the days."""
        fresh = await workflow_runs.unnumbered(conn, _WHOLE)
        # More is waiting for its numbers than fits: what is numbered cannot be taken back exactly.
        if len(fresh) == _WHOLE:
            return False
        for first in range(0, len(fresh), _BATCH):
            await self._batch(conn, tape, fresh[first : first + _BATCH])
        before, left = 2**62, most
        while left > 0:
            batch = await events.journal_page(
                conn, _EVERYTHING, after_seq=before, limit=min(_BATCH, left), newest_first=True
            )
            await self._batch(conn, tape, [e for e in batch if e.event.ticket_id is not None])
            # Numbers follow times but roughly: only a whole batch of old ones is the end.
            if not batch or all(entry.created_at < tape.since for entry in batch):
                return True
            left -= len(batch)
            before = batch[-1].seq
        return False

    async def _batch(self, conn: Any, tape: _Tape, batch: Sequence[Entry]) -> None:
        unknown = {e.event.ticket_id for e in batch if e.event.ticket_id is not None}
        unknown -= tape.tickets.keys()
        if unknown:
            tape.tickets |= await tickets.by_ids(conn, list(unknown))
        people = _distinct(e.event.actor_id for e in batch)
        said = _distinct(
            UUID(e.event.data["comment_id"]) for e in batch if e.event.data.get("comment_id")
        )
        roles = await workflow_runs.roles(conn, people) if people else {}
        spoken = await comments.by_ids(conn, said) if said else {}
        for entry in batch:
            tape.play(entry, roles, spoken)


_EVERYTHING: Final = events.Wanted()


def _distinct(ids: Iterable[UUID | None]) -> list[UUID]:
    return list({id for id in ids if id is not None})


def _as_of(ticket: Ticket, at: datetime) -> Ticket:
    """Return a ticket with its times as they were."""
    return replace(
        ticket,
        updated_at=at,
        closed_at=ticket.closed_at if ticket.closed_at and ticket.closed_at <= at else None,
        first_action_at=ticket.first_action_at
        if ticket.first_action_at and ticket.first_action_at <= at
        else None,
    )


_MEANT: Final[dict[str, Any]] = {
    "status": Status,
    "priority": Priority,
    "category": lambda old: None if old is None else Category(old),
    "assignee_ids": lambda old: [UUID(person) for person in old or ()],
}


def _before(ticket: Ticket, entry: Entry) -> Ticket:
    """Return a ticket as it was before an event."""
    if entry.event.type != "ticket.updated":
        return ticket
    old = {
        change.field: _MEANT.get(change.field, lambda value: value)(change.old)
        for change in entry.event.changes
        if change.field in _TAKEN_BACK
    }
    if "assignee_ids" in old:
        old["assignee_id"] = next(iter(old["assignee_ids"]), None)
    before: Ticket = replace(ticket, **old)
    return before


_TAKEN_BACK: Final = frozenset(
    {"key", "project", "title", "description", "status", "priority", "category", "department",
     "tags", "assignee_ids", "resolution"}
)  # fmt: skip


def draft_of(wanted: dict[str, Any]) -> Draft:
    """Return a proposed rule to be checked."""
    return Draft(
        wanted["trigger"], wanted.get("unchanged_for"), wanted["conditions"], wanted["actions"]
    )
