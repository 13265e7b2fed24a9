"""The chat: answers, and drafts of tickets that their author still has to send.

It changes nothing. What the model proposes is checked like a stranger's input: a ticket is only
shown to whoever may read it, a draft only holds what opening a ticket accepts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Final, Literal
from uuid import UUID

import orjson
from pydantic import AfterValidator, Field

from itdesk.desk.assist import RULES, Answer, Assist, Part, Purpose
from itdesk.desk.knowledge import Knowledge
from itdesk.desk.listening import Heard, first_line, hear
from itdesk.desk.plaintext import plain, plain_line, readable, shows_something
from itdesk.desk.tickets import Tickets
from itdesk.desk.triage import KNOWLEDGE_SHARE, Cited, Triage, cited, material
from itdesk.desk.wordlists import Wordlists
from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.model import Caller, Category, Passage, Priority, Role, Status, Ticket
from itdesk.runtime.clock import Clock

Action = Literal["create_ticket", "show_ticket"]

DRAFT_TAG: Final = "ai-draft"
MOST_READ: Final = 20
MOST_KEYS: Final = 3
LONGEST_TITLE: Final = 255
LONGEST_DESCRIPTION: Final = 8000
LONGEST_PREVIEW: Final = 6000
# Looking at the reply again for each few characters would be work without a gain.
PREVIEW_STEP: Final = 24

_KEY = re.compile(r"(?<![\w-])[A-Za-z][A-Za-z0-9]{1,9}-[0-9]{1,18}(?![\w-])", re.ASCII)


@frozen
class Message:
    """One message of a conversation, as the client tells it."""

    role: Literal["user", "assistant"]
    content: str


@frozen
class Draft:
    """A ticket to be, exactly as POST /tickets takes it; `assignee` is for agents to set."""

    title: str
    description: str
    priority: Priority
    category: Category
    tags: list[str]
    assignee: UUID | None


@frozen
class Shown:
    """A ticket that the conversation is about, and that the caller may read."""

    id: UUID
    key: str
    title: str
    status: Status


@frozen
class Replied:
    """An answer; `ticket` goes with create_ticket, `shown` with show_ticket."""

    reply: str
    action: Action | None = None
    ticket: Draft | None = None
    shown: Shown | None = None
    source: str = RULES
    sources: Sequence[Cited] = ()


_Title = Annotated[str, Field(max_length=LONGEST_TITLE), AfterValidator(plain_line)]
_Tag = Annotated[
    str, Field(max_length=64), AfterValidator(plain_line), AfterValidator(shows_something)
]


def _long_enough(title: str) -> str:
    if len(title) < 3:
        raise ValueError("a title has three characters at least")
    return title


class _Drafted(Answer):
    title: Annotated[_Title, AfterValidator(_long_enough)]
    description: Annotated[str, Field(max_length=LONGEST_DESCRIPTION), AfterValidator(plain)]
    priority: Priority
    category: Category
    tags: Annotated[list[_Tag], Field(max_length=10)] = []


class Said(Answer):
    """What a model says in a conversation; the reply comes first, so that it can be streamed."""

    reply: Annotated[
        str, Field(max_length=4000), AfterValidator(plain), AfterValidator(shows_something)
    ]
    action: Action | None = None
    ticket: _Drafted | None = None
    ticket_key: Annotated[str, Field(max_length=40)] | None = None


CHAT: Final = Purpose(
    "chat",
    "You answer people who write to an IT help desk. Reply to the last message, briefly and in its"
    " language (or that of the locale, if there is one). If they want a ticket, or have a problem"
    " that somebody must look at, set action to create_ticket and draft the ticket: title,"
    " description, priority (low, medium, high, critical), category. If they ask about a ticket"
    " whose details are given, set action to show_ticket and ticket_key to its key. Otherwise"
    " action is null. Passages are from solved cases: use what fits. Say that you do not know"
    " rather than guess. Never ask for passwords or codes.",
    Said,
)


class Chat:
    """Answers conversations."""

    def __init__(
        self,
        assist: Assist,
        knowledge: Knowledge,
        words: Wordlists,
        triage: Triage,
        tickets: Tickets,
        clock: Clock,
    ) -> None:
        self._assist = assist
        self._knowledge = knowledge
        self._words = words
        self._triage = triage
        self._tickets = tickets
        self._clock = clock

    async def answer(
        self,
        caller: Caller,
        messages: Sequence[Message],
        *,
        locale: str | None = None,
        listen: Callable[[str], None] | None = None,
    ) -> Replied:
        """Return an answer; `listen` is given the reply so far while the model writes it.

        What was listened to is no more than a preview: the answer takes its place, and may be
        another one.
        """
        said = [one.content for one in messages if one.role == "user"]
        heard = hear(self._words, said, locale)
        mentioned = await self._mentioned(caller, heard.text)
        replied = await self._by_model(caller, messages, heard, mentioned, locale, listen)
        if replied is None:
            replied = self._by_rules(heard, said, mentioned, locale)
        elif heard.wish and replied.ticket is None:
            replied = self._wished(replied, heard, said, locale)
        if replied.ticket is None or not caller.has(Role.AGENT):
            return replied
        agent = await self._triage.least_loaded()
        draft = replace(replied.ticket, assignee=agent.id if agent is not None else None)
        return replace(replied, ticket=draft)

    async def _mentioned(self, caller: Caller, text: str) -> list[Ticket]:
        """Return the tickets that a text names, as far as the caller may read them."""
        found = []
        for key in list(dict.fromkeys(one.upper() for one in _KEY.findall(text)))[:MOST_KEYS]:
            try:
                found.append(await self._tickets.get(caller, key))
            except NotFound:
                continue
        return found

    # --- by rules --------------------------------------------------------------------------

    def _by_rules(
        self, heard: Heard, said: Sequence[str], mentioned: Sequence[Ticket], locale: str | None
    ) -> Replied:
        say = heard.language.chat.say.say
        draft = self._draft(heard, said, locale)
        if heard.wish:
            if draft is None:
                return Replied(say("which"))
            return Replied(say("drafted", title=draft.title), "create_ticket", draft)
        if mentioned:
            shown = _shown(mentioned[0])
            reply = say("shown", key=shown.key, status=shown.status, title=plain_line(shown.title))
            return Replied(reply, "show_ticket", shown=shown)
        if heard.fix is not None:
            return Replied(heard.fix)
        if heard.is_problem and draft is not None:
            return Replied(say("offered", title=draft.title), "create_ticket", draft)
        return Replied(say("smalltalk"))

    def _wished(
        self, replied: Replied, heard: Heard, said: Sequence[str], locale: str | None
    ) -> Replied:
        """Return an answer of the model with the draft that was asked for in so many words."""
        draft = self._draft(heard, said, locale)
        if draft is None:
            return replied
        return replace(replied, action="create_ticket", ticket=draft, shown=None)

    def _draft(self, heard: Heard, said: Sequence[str], locale: str | None) -> Draft | None:
        """Return a ticket of somebody's own words, or None when there are too few."""
        title = heard.about if heard.wish else first_line(heard.text)
        if len(title) < 3:
            return None
        # What is readable of a text is its beginning; the end is what matters here.
        description = readable("\n\n".join(said)[-LONGEST_DESCRIPTION:])
        found = self._triage.by_rules(title, description, locale=locale)
        return Draft(title, description, found.priority, found.category, [DRAFT_TAG], None)

    # --- by the model ----------------------------------------------------------------------

    async def _by_model(
        self,
        caller: Caller,
        messages: Sequence[Message],
        heard: Heard,
        mentioned: Sequence[Ticket],
        locale: str | None,
        listen: Callable[[str], None] | None,
    ) -> Replied | None:
        started, most = self._clock.monotonic(), self._assist.budget()
        known: Sequence[Passage] = []
        if self._assist.available:
            seconds = most * KNOWLEDGE_SHARE
            known = await self._knowledge.find(caller, heard.text, seconds=seconds)
        parts = [Part("locale", locale, 20)] if locale else []
        parts += [_details(ticket) for ticket in mentioned]
        parts += material(known)
        parts += _conversation(messages[-MOST_READ:])
        answer = await self._assist.complete(
            caller,
            CHAT,
            parts,
            seconds=most - (self._clock.monotonic() - started),
            listen=_previewing(listen) if listen is not None else None,
        )
        return None if answer is None else self._checked(answer, mentioned, cited(known))

    def _checked(
        self, answer: Said, mentioned: Sequence[Ticket], sources: Sequence[Cited]
    ) -> Replied:
        """Return what is left of a model's answer once it may do no more than suggest."""
        replied = Replied(answer.reply, source=answer.source, sources=sources)
        if answer.action == "create_ticket" and answer.ticket is not None:
            drafted = answer.ticket
            tags = list(dict.fromkeys([DRAFT_TAG, *drafted.tags]))
            draft = Draft(
                drafted.title, drafted.description, drafted.priority, drafted.category, tags, None
            )
            return replace(replied, action="create_ticket", ticket=draft)
        if answer.action == "show_ticket":
            key = (answer.ticket_key or "").upper()
            # Only those that the person named, and may read: a model finds no others.
            for ticket in mentioned:
                if ticket.key == key:
                    return replace(replied, action="show_ticket", shown=_shown(ticket))
        return replied


def _conversation(messages: Sequence[Message]) -> list[Part]:
    """Return messages, of which the last finds room before all else, and the oldest what is left.

    In between are the details and the passages, which the answer is to rest on.
    """
    before = len(messages) - 1
    return [
        Part(
            "from the person" if one.role == "user" else "answered so far",
            one.content,
            2000,
            turn=before - number if number < before else -1,
        )
        for number, one in enumerate(messages)
    ]


def _shown(ticket: Ticket) -> Shown:
    return Shown(ticket.id, ticket.key, ticket.title, ticket.status)


def _details(ticket: Ticket) -> Part:
    lines = [
        f"key: {ticket.key}",
        f"status: {ticket.status}, priority: {ticket.priority}",
        f"title: {ticket.title}",
        f"description: {ticket.description[:1500]}",
        f"resolution: {(ticket.resolution or 'none yet')[:1500]}",
    ]
    return Part("details of a ticket", "\n".join(lines))


def _previewing(listen: Callable[[str], None]) -> Callable[[str], None]:
    """Return what tells somebody of the reply in the text so far, now and then."""
    looked = 0

    def look(raw: str) -> None:
        nonlocal looked
        if looked + PREVIEW_STEP <= len(raw) <= LONGEST_PREVIEW:
            looked = len(raw)
            listen(reply_so_far(raw))

    return look


_REPLY = re.compile(r'\s*\{\s*"reply"\s*:\s*"((?:[^"\\]|\\.)*)', re.DOTALL)


def reply_so_far(raw: str) -> str:
    """Return what can be shown of the reply in a JSON text that is not finished yet."""
    match = _REPLY.match(raw)
    if match is None:
        return ""
    # Half an escape, half a surrogate pair, half a tag or half a link is not shown yet.
    text = re.sub(r"(\\u[dD][89abAB][0-9a-fA-F]{2})?(\\u[0-9a-fA-F]{0,3})?$", "", match[1])
    try:
        said: str = orjson.loads(f'"{text}"')
    except orjson.JSONDecodeError:
        return ""
    if raw[match.end() : match.end() + 1] != '"':
        said = said[: max(said.rfind(" "), said.rfind("\n"), 0)]
    opened = max(said.rfind("<"), said.rfind("["))
    if opened >= 0 and not re.search(r"[>)]", said[opened:]):
        said = said[:opened]
    return plain(said)
