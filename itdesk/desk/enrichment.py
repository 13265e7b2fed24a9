"""What the desk believes of a new ticket: kept beside what people say of it, never over it.

One job a ticket, in a lane of the ticket's own: the rules of workflows do not wait for a model. It
asks with the rights of whoever reported the ticket, because they can read what comes of it. Only
new tickets are looked at, so that nothing that follows from a prediction leads to another.
"""

from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import orjson

from itdesk.config import Settings
from itdesk.desk.assist import RULES
from itdesk.desk.disclosure import customer
from itdesk.desk.jobs import Job
from itdesk.desk.similar import Similar, Similarity
from itdesk.desk.suggestions import value_of
from itdesk.desk.tickets import Tickets
from itdesk.desk.triage import Triage
from itdesk.desk.wordlists import Wordlists
from itdesk.errors import DeskError, NotFound, Unavailable
from itdesk.frozen import frozen
from itdesk.hookspecs import JobType
from itdesk.model import (
    SYSTEM,
    Caller,
    Category,
    Change,
    Event,
    Priority,
    Role,
    Source,
    Status,
    Ticket,
)
from itdesk.runtime.log import get_logger
from itdesk.store import suggestions, tickets
from itdesk.store.db import Database, Transaction
from itdesk.store.suggestions import (
    NewSuggestion,
    Suggestion,
    SuggestionKind,
    SuggestionState,
)

ENRICH: Final = "assist.enrich"
# Beyond what the model may take: the database's part.
_SPARE_SECONDS: Final = 30.0
# Of so many older tickets the one is taken that a new one repeats.
MOST_ALIKE: Final = 50

log = get_logger("enrichment")


@frozen
class Prediction:
    """What is believed of a ticket, and by whom; None where nothing in it gave reason to."""

    priority: Priority | None
    category: Category | None
    recommendations: Sequence[str]
    assignee: UUID | None
    source: str


class Enrichment:
    """Looks at new tickets and leaves predictions and suggestions."""

    def __init__(
        self,
        db: Database,
        desk_tickets: Tickets,
        similarity: Similarity,
        triage: Triage,
        words: Wordlists,
        settings: Settings,
    ) -> None:
        self._db = db
        self._tickets = desk_tickets
        self._similarity = similarity
        self._triage = triage
        self._words = words
        self._ai = settings.ai

    def job_type(self, *, modelled: Callable[[], bool]) -> JobType:
        """Return the kind of job that looks at a new ticket; none is queued unless it is wanted."""
        enrich, applies = self._ai.enrich, bool(self._ai.auto_apply)

        def is_wanted(event: Event) -> bool:
            # A model's plugin comes and goes while the desk works.
            return enrich or applies or modelled()

        return JobType(
            name=ENRICH,
            handle=self._enrich,
            concurrency=self._ai.concurrency,
            timeout_seconds=self._ai.background_seconds + _SPARE_SECONDS,
            on_events=() if enrich is False else ("ticket.created",),
            when=is_wanted,
            lane=_lane,
        )

    async def _enrich(self, job: Job) -> None:
        """Look at the ticket that an event opened."""
        ticket = await self._ticket(str(job.args["ticket_id"]))
        if ticket is None or ticket.status is Status.CLOSED:
            return
        prediction = await self._predict(ticket)
        alike = await self._alike(ticket)
        because = Caller(None, SYSTEM.name, Role.ADMIN, Source.AI, cause_id=job.event_id)
        async with job.transaction() as tx:
            try:
                now = await tickets.find(tx.conn, str(ticket.id), scope=None, lock=True)
            except NotFound:
                return
            if now.status is Status.CLOSED:
                return
            version = await self._note(tx, because, now, prediction)
            made = [
                await suggestions.put(tx.conn, now.id, new)
                for new in proposals(now, prediction, alike)
            ]
        # What was believed of an older text, or before somebody acted, is for people to judge.
        if now.version == ticket.version:
            await self._apply_all(because, version, made)

    async def _alike(self, ticket: Ticket) -> Sequence[Similar]:
        """Return older tickets that ask for the same; none when looking takes too long."""
        try:
            return await self._similarity.of(SYSTEM, str(ticket.id), limit=MOST_ALIKE, earlier=True)
        except NotFound:
            return ()
        except Unavailable as exc:
            log.warning("similar tickets not looked at", ticket=ticket.key, problem=exc.message)
            return ()

    async def _predict(self, ticket: Ticket) -> Prediction:
        """Return what is believed, from what whoever reported it may see."""
        found = await self._triage.classify(
            customer(ticket), ticket.title, ticket.description, background=True
        )
        by_rules = self._words.classify(f"{ticket.title}\n{ticket.description}")
        # What the rules say of a text with none of their words is no more than a default.
        guessed = found.source == RULES and by_rules.name is None
        return Prediction(
            priority=None if guessed else found.priority,
            category=None if guessed else found.category,
            recommendations=found.recommendations,
            assignee=found.assignee.id if found.assignee is not None else None,
            source=found.source,
        )

    async def _ticket(self, ref: str) -> Ticket | None:
        async with self._db.connection() as conn:
            try:
                return await tickets.find(conn, ref, scope=None)
            except NotFound:
                return None

    async def _note(
        self, tx: Transaction, because: Caller, ticket: Ticket, prediction: Prediction
    ) -> int:
        """Keep what is believed; what was believed before already is no change.

        Return the ticket's version with it.
        """
        changes = tuple(
            Change(name, old, new)
            for name, old, new in (
                ("predicted_priority", ticket.predicted_priority, prediction.priority),
                ("predicted_category", ticket.predicted_category, prediction.category),
            )
            if old != new
        )
        said = orjson.dumps(list(prediction.recommendations)).decode()
        if not changes and await suggestions.recommendations(tx.conn, ticket.id) is not None:
            return ticket.version
        version = await suggestions.predict(
            tx.conn,
            ticket.id,
            priority=prediction.priority,
            category=prediction.category,
            recommendations=said,
        )
        tx.record(
            Event.by(
                because,
                "ticket.updated",
                ticket_id=ticket.id,
                ticket_version=version,
                changes=changes,
                data={"predicted_by": prediction.source},
            )
        )
        return version

    # --- by itself ------------------------------------------------------------------------

    async def _apply_all(self, because: Caller, version: int, made: Sequence[Suggestion]) -> None:
        """Do what may be done by itself; what is refused stays a suggestion.

        Each in a transaction of its own: a plugin that objects to a change must not undo what is
        believed, and have the model asked again.
        """
        for one in made:
            if one.kind not in self._ai.auto_apply:
                continue
            try:
                async with self._db.transaction() as tx:
                    version = await self._apply(tx, because, version, one)
            except DeskError as exc:
                log.warning("suggestion not applied", kind=one.kind, problem=exc.message)

    async def _apply(self, tx: Transaction, because: Caller, version: int, made: Suggestion) -> int:
        """Do what is suggested where that was right often enough, and nobody said otherwise.

        Return the ticket's version then.
        """
        ticket = await tickets.find(tx.conn, str(made.ticket_id), scope=None, lock=True)
        found = await suggestions.find(tx.conn, ticket.id, made.id)
        if ticket.version != version or found.state is not SuggestionState.OPEN:
            return version
        if not _unsaid(ticket, made.kind) or not await self._trusted(tx, made):
            return version
        if await suggestions.was_set(tx.conn, ticket.id, made.kind):
            return version
        wanted = {made.kind.value: value_of(made.kind, made.proposal)}
        after = await self._tickets.update(because, str(ticket.id), wanted)
        replaced: str | None = getattr(ticket, made.kind)
        await suggestions.decide(
            tx.conn, made.id, SuggestionState.APPLIED, by=None, replaced=replaced
        )
        log.info("suggestion applied", ticket=ticket.key, kind=made.kind, proposal=made.proposal)
        return after.version

    async def _trusted(self, tx: Transaction, made: Suggestion) -> bool:
        """Return whether such suggestions were right often enough, as of now."""
        right, decided = await suggestions.kept(
            tx.conn, made.kind, made.category, made.source, days=self._ai.auto_apply_days
        )
        enough = decided >= self._ai.auto_apply_decisions
        return enough and right >= self._ai.auto_apply_precision * decided


def proposals(
    ticket: Ticket, prediction: Prediction, alike: Sequence[Similar]
) -> list[NewSuggestion]:
    """Return what to suggest of a ticket: only what is not so already."""
    found = [
        NewSuggestion(kind, value, prediction.source)
        for kind, value, now in (
            (SuggestionKind.CATEGORY, prediction.category, ticket.category),
            (SuggestionKind.PRIORITY, prediction.priority, ticket.priority),
        )
        if value is not None and value != now
    ]
    if prediction.assignee is not None and not ticket.assignee_ids:
        person = str(prediction.assignee)
        found.append(
            NewSuggestion(
                SuggestionKind.ASSIGNEE, person, RULES, reason="Has the fewest open tickets."
            )
        )
    same = [
        one
        for one in alike
        if one.duplicate
        and one.status is not Status.CLOSED
        and (one.created_at, one.id) < (ticket.created_at, ticket.id)
    ]
    if same:
        # Of many that say the same, the first is the one that the others repeat.
        best = min(same, key=lambda one: (-one.score, one.created_at, one.id))
        found.append(
            NewSuggestion(SuggestionKind.DUPLICATE_OF, best.key, RULES, best.score, best.reason)
        )
    return found


def _unsaid(ticket: Ticket, kind: SuggestionKind) -> bool:
    """Return whether it is as it is where nobody chose anything."""
    if kind is SuggestionKind.CATEGORY:
        return ticket.category is None
    return kind is SuggestionKind.PRIORITY and ticket.priority is Priority.MEDIUM


def _lane(event: Event) -> str:
    return f"assist:{event.ticket_id}"
