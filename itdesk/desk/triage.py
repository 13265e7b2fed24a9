"""What a ticket is about and how urgent it is, suggested by the model, else by word lists."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final
from uuid import UUID

from pydantic import AfterValidator, Field

from itdesk.desk.assist import RULES, Answer, Assist, Part, Purpose
from itdesk.desk.knowledge import Knowledge
from itdesk.desk.plaintext import plain, shows_something
from itdesk.desk.wordlists import Wordlists
from itdesk.frozen import frozen
from itdesk.model import Caller, Category, Passage, Priority
from itdesk.runtime.clock import Clock
from itdesk.store import users
from itdesk.store.db import Database

# What of the time for an answer may be spent on looking for what is known.
KNOWLEDGE_SHARE: Final = 0.3

Advice = Annotated[
    str, Field(max_length=500), AfterValidator(plain), AfterValidator(shows_something)
]


class Triaged(Answer):
    """What a model says of a ticket."""

    category: Category
    priority: Priority
    recommendations: Annotated[list[Advice], Field(min_length=2, max_length=4)]


TRIAGE: Final = Purpose(
    "classify",
    "You sort the tickets of an IT help desk. Read the ticket and say its category (infrastructure:"
    " servers, databases, storage, cloud; network: connections, VPN, DNS, wifi; security: attacks,"
    " theft, leaks; application: software that is faulty; service_request: something wanted, such"
    " as access, accounts, installations; hardware: devices; email; problem: the unknown cause of"
    " several incidents), its priority (critical: security or everybody cannot work; high: many"
    " or important work stands still; medium; low: can wait), and two to four short"
    " recommendations to whoever handles it, in the language of the ticket. Passages are from"
    " solved cases: use them where they fit.",
    Triaged,
)


@frozen
class Suggested:
    """Somebody who could be given the ticket."""

    id: UUID
    name: str


@frozen
class Cited:
    """Where something that an answer may rest on was said."""

    source: str
    title: str
    url: str | None


@frozen
class Classification:
    """A suggestion for a ticket; `source` is rules, or the plugin whose model gave it."""

    priority: Priority
    category: Category
    recommendations: Sequence[str]
    assignee: Suggested | None
    source: str
    sources: Sequence[Cited] = ()


class Triage:
    """Classifies what somebody wrote."""

    def __init__(
        self, db: Database, assist: Assist, knowledge: Knowledge, words: Wordlists, clock: Clock
    ) -> None:
        self._db = db
        self._assist = assist
        self._knowledge = knowledge
        self._words = words
        self._clock = clock

    async def classify(
        self, caller: Caller, title: str, description: str = "", *, background: bool = False
    ) -> Classification:
        """Return a suggestion made of nothing but this text and what the caller may read."""
        found = await self._by_model(caller, title, description, background)
        if found is None:
            found = self.by_rules(title, description)
        return replace(found, assignee=await self.least_loaded())

    async def least_loaded(self) -> Suggested | None:
        """Return the active agent with the fewest open tickets, of several the first by name."""
        async with self._db.connection() as conn:
            agent = await users.least_loaded_agent(conn)
        return Suggested(*agent) if agent is not None else None

    def by_rules(
        self, title: str, description: str = "", *, locale: str | None = None
    ) -> Classification:
        """Return what the word lists say, at once and without an assignee."""
        verdict = self._words.classify(f"{title}\n{description}", locale)
        return Classification(
            verdict.priority, verdict.category, verdict.recommendations, None, RULES
        )

    async def _by_model(
        self, caller: Caller, title: str, description: str, background: bool
    ) -> Classification | None:
        started, most = self._clock.monotonic(), self._assist.budget(background=background)
        known: Sequence[Passage] = []
        if self._assist.admits(background=background):
            query = f"{title} {description}"
            known = await self._knowledge.find(caller, query, seconds=most * KNOWLEDGE_SHARE)
        answer = await self._assist.complete(
            caller,
            TRIAGE,
            [Part("title", title, 300), Part("description", description, 6000), *material(known)],
            seconds=most - (self._clock.monotonic() - started),
            background=background,
        )
        if answer is None:
            return None
        return Classification(
            answer.priority,
            answer.category,
            answer.recommendations,
            None,
            answer.source,
            cited(known),
        )


def material(known: Sequence[Passage]) -> list[Part]:
    """Return passages as a model reads them, the best first."""
    return [
        Part(f"passage {number} from a solved case", f"{one.title}\n{one.text}", 1000)
        for number, one in enumerate(known, 1)
    ]


def cited(known: Sequence[Passage]) -> list[Cited]:
    """Return where passages come from, each place once."""
    return list(dict.fromkeys(Cited(one.source, one.title, one.url) for one in known))
