"""Texts for agents: a summary of a long ticket, and a reply that somebody may send.

A summary may rest on what was said internally, for only agents read it. A reply goes to the
customer: what it is written from are words of another type, and internal ones cannot be among them.
Without a model both are made by rules, or there is none, and the answer says which.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from itdesk.desk.assist import RULES, Answer, Assist, Part, Purpose
from itdesk.desk.disclosure import InternalText, PublicText, customer, described, said
from itdesk.desk.knowledge import Knowledge
from itdesk.desk.letters import one_line
from itdesk.desk.listening import hear
from itdesk.desk.plaintext import PlainLine, cut, plain, shows_something
from itdesk.desk.triage import KNOWLEDGE_SHARE, Cited, cited, material
from itdesk.desk.wordlists import Wordlists
from itdesk.frozen import frozen
from itdesk.model import Caller, Comment, Passage, Role, Ticket
from itdesk.runtime.clock import Clock
from itdesk.store import comments, suggestions, tickets
from itdesk.store.db import Database
from itdesk.store.suggestions import NewSuggestion, Suggestion, SuggestionKind

MOST_COMMENTS: Final = 200
LONGEST_REPLY: Final = 4000
_EACH_COMMENT: Final = 1500
_ALL_COMMENTS: Final = 10_000
_LAST_COMMENTS: Final = 6
# Making text plain takes the loop's time: of a long one only so much is looked at.
_BEGINNING: Final = 4000
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|\n+")


class _Summary(Answer):
    summary: Annotated[
        str, Field(max_length=2000), AfterValidator(plain), AfterValidator(shows_something)
    ]
    open_points: list[Annotated[PlainLine, Field(max_length=300)]] = Field(max_length=8)


class _Reply(Answer):
    reply: Annotated[
        str, Field(max_length=LONGEST_REPLY), AfterValidator(plain), AfterValidator(shows_something)
    ]


SUMMARY: Final = Purpose(
    "summary",
    "Summarise a help desk ticket for the agent who takes it over: what is wrong, what was tried,"
    " what was found out, and where it stands, in at most eight sentences. List what is still to"
    " be done or answered as open points. Say nothing that the material does not say. Write in"
    " the language of the ticket.",
    _Summary,
)
REPLY: Final = Purpose(
    "reply",
    "Draft the next reply of the help desk to the person who opened this ticket: friendly, short"
    " and exact. Use what solved similar cases where it fits, as steps to try. Promise nothing,"
    " and say nothing that the material does not say. Sign with no name. Write in the language of"
    " the ticket.",
    _Reply,
)


@frozen
class Written:
    """A text that was written for an agent, as a suggestion; or none, and why.

    `source` is the model's plugin or rules, `sources` what it was given to rest on.
    """

    suggestion: Suggestion | None
    source: str
    sources: Sequence[Cited]
    note: str


@frozen
class CustomerMaterial:
    """What a reply may be written from; TypeError for words that are not public."""

    title: str
    texts: Sequence[tuple[str, PublicText]]

    def __post_init__(self) -> None:
        for _, text in self.texts:
            if type(text) is not PublicText:
                raise TypeError("what was said internally is not for customers")

    def parts(self) -> list[Part]:
        """Return it for a model to read: how it began, and what was said last."""
        first, *others = [Part(label, text.words, 3000) for label, text in self.texts]
        said = [replace(one, longest=_EACH_COMMENT) for one in others[-_LAST_COMMENTS:]]
        return [Part("title", self.title, 300), first, *said]


class Writing:
    """Writes summaries and replies on behalf of an agent, who decides what becomes of them."""

    def __init__(
        self, db: Database, assist: Assist, knowledge: Knowledge, words: Wordlists, clock: Clock
    ) -> None:
        self._db = db
        self._assist = assist
        self._knowledge = knowledge
        self._words = words
        self._clock = clock

    async def summarise(self, caller: Caller, ref: str) -> Written:
        """Return a summary of a ticket with all that was said on it, internally too."""
        caller.require(Role.AGENT, "have tickets summarised")
        ticket, talk = await self._read(caller, ref)
        answer = await self._assist.complete(caller, SUMMARY, _all_of(ticket, talk))
        if answer is None:
            text, source, note = extract(ticket, talk), RULES, _EXTRACTED
        else:
            points = [f"- {point}" for point in answer.open_points if point]
            listed = "\n".join(["", "Open:", *points]) if points else ""
            text, source, note = answer.summary + listed, answer.source, _BY_MODEL
        return await self._kept(caller, ticket, SuggestionKind.SUMMARY, text, source, note)

    async def draft(self, caller: Caller, ref: str) -> Written:
        """Return a reply to whoever opened a ticket, from what they may read themselves."""
        caller.require(Role.AGENT, "have replies drafted")
        ticket, talk = await self._read(caller, ref)
        asked = CustomerMaterial(ticket.title, public_texts(ticket, talk))
        answer, known = await self._reply(caller, ticket, asked)
        if answer is not None:
            return await self._kept(
                caller, ticket, SuggestionKind.REPLY, answer.reply, answer.source, _BY_MODEL,
                cited(known),
            )  # fmt: skip
        heard = hear(self._words, [f"{ticket.title}\n{ticket.description}"], None)
        if heard.fix is None:
            return Written(None, RULES, [], _NO_REPLY)
        return await self._kept(caller, ticket, SuggestionKind.REPLY, heard.fix, RULES, _QUICK_FIX)

    async def _reply(
        self, caller: Caller, ticket: Ticket, asked: CustomerMaterial
    ) -> tuple[_Reply | None, Sequence[Passage]]:
        """Return what a model would reply, and what is known that it was given to read."""
        if not self._assist.available:
            return None, ()
        started, most = self._clock.monotonic(), self._assist.budget()
        # What the reply says its reader must be allowed to read: the customer.
        known = await self._knowledge.find(
            customer(ticket),
            f"{ticket.title}\n{ticket.description}",
            seconds=most * KNOWLEDGE_SHARE,
        )
        answer = await self._assist.complete(
            caller,
            REPLY,
            [*asked.parts(), *material(known)],
            seconds=most - (self._clock.monotonic() - started),
        )
        return answer, known

    async def _read(self, caller: Caller, ref: str) -> tuple[Ticket, list[Comment]]:
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
            talk = await comments.newest(conn, ticket.id, limit=MOST_COMMENTS)
        return ticket, talk

    async def _kept(
        self,
        caller: Caller,
        ticket: Ticket,
        kind: SuggestionKind,
        text: str,
        source: str,
        note: str,
        sources: Sequence[Cited] = (),
    ) -> Written:
        """Keep a text as the open suggestion of its kind."""
        reason = "; ".join(one.title for one in sources)
        new = NewSuggestion(kind, text, source, reason=cut(reason, 500))
        async with self._db.transaction() as tx:
            await tickets.find(tx.conn, str(ticket.id), scope=caller.scope, lock=True)
            made = await suggestions.put(tx.conn, ticket.id, new)
        return Written(made, source, list(sources), note)


_BY_MODEL: Final = "A model wrote this. Read it before you use it."
_EXTRACTED: Final = "No model answered: these are sentences of the ticket itself."
_QUICK_FIX: Final = "No model answered: this is the desk's ready text for such questions."
_NO_REPLY: Final = "No model answered, and the desk has no ready text for such questions."


def public_texts(ticket: Ticket, talk: Sequence[Comment]) -> list[tuple[str, PublicText]]:
    """Return what of a ticket everybody may read who may read the ticket, oldest first."""
    found = [("description", described(ticket))]
    for comment in talk:
        match said(comment):
            case PublicText() as text:
                found.append((_label(ticket, comment), text))
            case InternalText():
                continue
    return found


def extract(ticket: Ticket, talk: Sequence[Comment]) -> str:
    """Return a summary made of the ticket's own sentences: how it began and where it stands."""
    people = len({comment.author_name for comment in talk})
    lines = [f"{one_line(ticket.title, 255)} ({ticket.status}, {ticket.priority})"]
    if begun := _first(ticket.description, 2):
        lines.append(f"{one_line(ticket.reporter_name, 100) or 'Somebody'} wrote: {begun}")
    if talk:
        count = f"{len(talk)}{' or more' if len(talk) == MOST_COMMENTS else ''}"
        lines.append(f"{count} comments by {people} {'person' if people == 1 else 'people'}.")
    shown: list[Comment] = []
    for internal in (False, True):
        shown += [comment for comment in talk if comment.internal is internal][-2:]
    for comment in sorted(shown, key=lambda one: (one.created_at, one.id)):
        how = "internally " if comment.internal else ""
        who = one_line(comment.author_name, 100)
        lines.append(f"{who} {how}on {comment.created_at:%Y-%m-%d}: {_first(comment.body, 2)}")
    if ticket.resolution:
        lines.append(f"Resolution: {_first(ticket.resolution, 2)}")
    return "\n".join(lines)


def _first(text: str, count: int) -> str:
    """Return the first sentences of a text as one line; far beyond its beginning none is sought."""
    beginning = plain(text[:_BEGINNING])
    sentences = [part.strip() for part in _SENTENCE.split(beginning) if part.strip()]
    return cut(" ".join(sentences[:count]), 400)


def _all_of(ticket: Ticket, talk: Sequence[Comment]) -> list[Part]:
    facts = f"status {ticket.status}, priority {ticket.priority}, category {ticket.category}"
    # When there is too much, the oldest are left out.
    texts: list[Part] = []
    left = _ALL_COMMENTS
    for comment in reversed(talk):
        text = cut(comment.body, _EACH_COMMENT)
        left -= len(text)
        if left < 0:
            break
        texts.insert(0, Part(_label(ticket, comment), text, _EACH_COMMENT))
    return [
        Part("title", ticket.title, 300),
        Part("facts", facts, 300),
        Part("description", ticket.description, 6000),
        *([Part("resolution", ticket.resolution, 2000)] if ticket.resolution else []),
        *texts,
    ]


def _label(ticket: Ticket, comment: Comment) -> str:
    """Return what a comment is, in words of ours alone."""
    theirs = comment.user_id is not None and comment.user_id == ticket.reporter_id
    who = "customer" if theirs else "help desk or another"
    how = "internal comment" if comment.internal else "comment"
    return f"{how} of the {who}, {comment.created_at:%Y-%m-%d %H:%M}"
