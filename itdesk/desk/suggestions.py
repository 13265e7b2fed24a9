"""Suggestions: what the desk believes would be right, and nothing more until a person says so.

Only agents and above see them. Accepting one does what it proposes, with all the checks of the
person's own doing, in the transaction that marks it; how often each kind was right is counted.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from itdesk.desk.lifecycle import require_version
from itdesk.desk.reads import Reads
from itdesk.desk.tickets import Tickets
from itdesk.errors import Conflict, NotFound, Unavailable
from itdesk.frozen import frozen
from itdesk.model import Caller, Category, Event, Priority, Role, Status, Ticket
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import reports, suggestions, tickets
from itdesk.store.db import Database, Transaction
from itdesk.store.paging import Page, Window
from itdesk.store.suggestions import Precision, Suggestion, SuggestionKind, SuggestionState

MEASURED_DAYS: Final = 90
MEASURED_SECONDS: Final = 60.0

log = get_logger("suggestions")


@frozen
class Decided:
    """A suggestion that was decided, and the ticket as it is now."""

    suggestion: Suggestion
    ticket: Ticket


@frozen
class Advice:
    """What the desk believes of a ticket; None and nothing while it has not looked at it."""

    ticket_id: UUID
    predicted_priority: Priority | None
    predicted_category: Category | None
    recommendations: list[str]


@frozen
class PrecisionMetadata:
    """What a report on suggestions covers."""

    period_days: int
    generated_at: datetime


@frozen
class PrecisionReport:
    """How often suggestions were right."""

    data: Sequence[Precision]
    metadata: PrecisionMetadata


class Suggestions:
    """Shows suggestions to agents and does what they decide."""

    def __init__(
        self, db: Database, reads: Reads, desk_tickets: Tickets, clock: Clock, metrics: Metrics
    ) -> None:
        self._db = db
        self._reads = reads
        self._tickets = desk_tickets
        self._clock = clock
        self._measured_at = -math.inf
        self._precision = metrics.gauge(
            "itdesk_suggestions_precision",
            "Which part of the suggestions decided in 90 days was right.",
            ["kind", "category"],
        )
        self._decided = metrics.gauge(
            "itdesk_suggestions_decided",
            "How many suggestions were decided in 90 days.",
            ["kind", "category"],
        )

    async def list(
        self, caller: Caller, ref: str, window: Window, *, state: SuggestionState | None
    ) -> Page[Suggestion]:
        """Return one page of a ticket's suggestions, the newest first."""
        caller.require(Role.AGENT, "see suggestions")
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
            page = await suggestions.list_page(conn, ticket.id, window, state=state)
            if not window.count:
                return page
            total = await suggestions.count(conn, ticket.id, state=state)
        return replace(page, total=total)

    async def advice(self, caller: Caller, ref: str) -> Advice:
        """Return what is believed of a ticket and recommended for it."""
        caller.require(Role.AGENT, "see advice")
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
            said = await suggestions.recommendations(conn, ticket.id)
        known = orjson.loads(said) if said is not None else []
        return Advice(ticket.id, ticket.predicted_priority, ticket.predicted_category, known)

    async def accept(
        self,
        caller: Caller,
        ref: str,
        suggestion: str | UUID,
        *,
        text: str | None = None,
        if_match: str | None = None,
    ) -> Decided:
        """Do what a suggestion proposes; of a reply or summary, in other words if they are given.

        A ticket that is so already stays as it is: then only the decision is written.
        """
        caller.require(Role.AGENT, "accept suggestions")
        async with self._db.transaction() as tx:
            ticket, found = await self._open(tx, caller, ref, suggestion, if_match)
            accepted = _audited(caller, "suggestion.accepted", ticket, found)
            tx.record(accepted)
            because = replace(caller, cause_id=accepted.id)
            await self._perform(tx, because, ticket, found, text)
            decided = await suggestions.decide(
                tx.conn, found.id, SuggestionState.ACCEPTED, by=caller.user_id
            )
            after = await tickets.find(tx.conn, str(ticket.id), scope=caller.scope)
        return Decided(decided, after)

    async def reject(self, caller: Caller, ref: str, suggestion: str | UUID) -> Decided:
        """Say that a suggestion is wrong; the ticket stays as it is."""
        caller.require(Role.AGENT, "reject suggestions")
        async with self._db.transaction() as tx:
            ticket, found = await self._open(tx, caller, ref, suggestion, None)
            decided = await suggestions.decide(
                tx.conn, found.id, SuggestionState.REJECTED, by=caller.user_id
            )
            tx.record(_audited(caller, "suggestion.rejected", ticket, found))
        return Decided(decided, ticket)

    async def revert(self, caller: Caller, ref: str, suggestion: str | UUID) -> Decided:
        """Put back what the desk replaced by itself; Conflict when somebody changed it since."""
        caller.require(Role.AGENT, "revert suggestions")
        async with self._db.transaction() as tx:
            ticket = await tickets.find(tx.conn, ref, scope=caller.scope, lock=True)
            found = await suggestions.find(tx.conn, ticket.id, _id(suggestion))
            if found.state is not SuggestionState.APPLIED:
                raise _wrong_state(found, "Only what the desk did by itself can be reverted")
            if getattr(ticket, found.kind) != found.proposal:
                raise Conflict(
                    f"Somebody set another {found.kind} since; there is nothing to put back.",
                    code="E_SUGGESTION_STALE",
                    details={"current": getattr(ticket, found.kind)},
                )
            reverted = _audited(caller, "suggestion.reverted", ticket, found)
            tx.record(reverted)
            because = replace(caller, cause_id=reverted.id)
            wanted = {found.kind.value: value_of(found.kind, found.replaced)}
            after = await self._tickets.update(because, str(ticket.id), wanted)
            decided = await suggestions.decide(
                tx.conn, found.id, SuggestionState.REVERTED, by=caller.user_id
            )
        return Decided(decided, after)

    async def report(self, caller: Caller, days: int) -> PrecisionReport:
        """Return how often what was decided in so many days was right."""
        caller.require(Role.MANAGER, "read reports")
        async with self._reads.reporting() as conn:
            found = await suggestions.precision(conn, days=days)
            now = await reports.now(conn)
        return PrecisionReport(found, PrecisionMetadata(days, now))

    async def measure(self) -> None:
        """Bring the metrics up to date, once a minute at most."""
        if self._clock.monotonic() < self._measured_at + MEASURED_SECONDS:
            return
        self._measured_at = self._clock.monotonic()
        try:
            async with self._reads.reporting() as conn:
                found = await suggestions.precision(conn, days=MEASURED_DAYS, with_open=False)
        except Unavailable as exc:
            # Work goes on without this number.
            log.warning("precision not measured", problem=exc.message)
            return
        self._precision.clear()
        self._decided.clear()
        for one in found:
            if one.precision is not None:
                labels = (one.kind, one.category or "none")
                self._precision.labels(*labels).set(one.precision)
                self._decided.labels(*labels).set(one.decided)

    async def _open(
        self,
        tx: Transaction,
        caller: Caller,
        ref: str,
        suggestion: str | UUID,
        if_match: str | None,
    ) -> tuple[Ticket, Suggestion]:
        """Return a suggestion that is still to be decided, with its ticket held."""
        ticket = await tickets.find(tx.conn, ref, scope=caller.scope, lock=True)
        require_version(ticket, if_match)
        found = await suggestions.find(tx.conn, ticket.id, _id(suggestion))
        if found.state is not SuggestionState.OPEN:
            raise _wrong_state(found, "Only an open suggestion can be decided")
        return ticket, found

    async def _perform(
        self, tx: Transaction, caller: Caller, ticket: Ticket, found: Suggestion, text: str | None
    ) -> None:
        """Do what is proposed as the caller would."""
        ref, kind = str(ticket.id), found.kind
        if kind in (SuggestionKind.REPLY, SuggestionKind.SUMMARY):
            internal = kind is SuggestionKind.SUMMARY
            await self._tickets.comment(caller, ref, text or found.proposal, internal=internal)
            return
        if text is not None:
            raise Conflict(
                "Only a reply or a summary can be said in other words.",
                code="E_SUGGESTION_NO_TEXT",
                details={"kind": kind},
            )
        if kind is SuggestionKind.ASSIGNEE:
            person = UUID(found.proposal)
            others = [one for one in ticket.assignee_ids if one != person]
            await self._tickets.update(caller, ref, {"assignee_ids": [person, *others]})
        elif kind is SuggestionKind.DUPLICATE_OF:
            told = await _duplicate(tx, ticket, found.proposal)
            wanted = {"status": Status.CLOSED, "resolution": ticket.resolution or told}
            await self._tickets.update(caller, ref, wanted)
        else:
            value = value_of(kind, found.proposal)
            await self._tickets.update(caller, ref, {kind.value: value})


def value_of(kind: SuggestionKind, word: str | None) -> Priority | Category | None:
    """Return a priority or category as the ticket has it."""
    if word is None:
        return None
    return Priority(word) if kind is SuggestionKind.PRIORITY else Category(word)


async def _duplicate(tx: Transaction, ticket: Ticket, key: str) -> str:
    """Return what the reporter is told; another's ticket is not named to them."""
    try:
        other = await tickets.find(tx.conn, key, scope=None)
    except NotFound as exc:
        raise Conflict(
            f"{key}, which this was said to repeat, is gone. Reject the suggestion.",
            code="E_SUGGESTION_STALE",
        ) from exc
    readers = {other.reporter_id, *other.assignee_ids} - {None}
    return f"Duplicate of {other.key}." if ticket.reporter_id in readers else _DUPLICATE


_DUPLICATE: Final = "Duplicate of another ticket."


def _audited(caller: Caller, type: str, ticket: Ticket, found: Suggestion) -> Event:
    # Without the ticket's id: what changes the ticket is an event of its own.
    about = {
        "suggestion_id": str(found.id),
        "ticket": ticket.key,
        "kind": found.kind,
        "source": found.source,
    }
    return Event.by(caller, type, data=about)


def _wrong_state(found: Suggestion, why: str) -> Conflict:
    return Conflict(
        f"{why}; this one is {found.state}.",
        code="E_SUGGESTION_STATE",
        details={"state": found.state},
    )


def _id(ref: str | UUID) -> UUID:
    try:
        return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        raise NotFound.of("suggestion") from None
