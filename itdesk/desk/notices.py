"""Who is told of a change by mail: decided when the mail is written, by what is so at that moment.

One job looks at one event and writes all its mails, with its own end, in one transaction: an event
leads to one mail a person at most. Nobody is told of what they did themselves, is not active, or
may not read the ticket (any more). Somebody who gets too many mails gets the rest as one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from itdesk.config import Settings
from itdesk.desk.disclosure import (
    CustomerNews,
    InternalText,
    PublicText,
    StaffNews,
    described,
    said,
)
from itdesk.desk.jobs import Job
from itdesk.desk.letters import many_lines, one_line
from itdesk.desk.mail import Mail
from itdesk.errors import NotFound
from itdesk.hookspecs import JobType
from itdesk.model import Caller, Event, MailKind, NotificationSettings, Role, Ticket, Topic
from itdesk.store import comments, emails, events, notifications, tickets
from itdesk.store.db import Database, Transaction
from itdesk.store.emails import NewEmail
from itdesk.store.notifications import Reader

NOTIFY: Final = "mail.notify"
LONGEST_TEXT: Final = 4000

_EVENTS = ("ticket.created", "ticket.updated", "comment.added", "attachment.recalled")
_WHY: Mapping[Topic, str] = {
    Topic.TICKET_CREATED: "new tickets are told to all agents",
    Topic.TICKET_ASSIGNED: "the ticket was given to you",
    Topic.STATUS_CHANGED: "you reported the ticket or it is yours to work on",
    Topic.COMMENT_ADDED: "you reported the ticket or it is yours to work on",
    Topic.FILE_RECALLED: "you downloaded this file",
}


@dataclass(slots=True)
class _Story:
    """What happened, and who may be concerned by which part of it, the most personal first."""

    what: dict[Topic, str] = field(default_factory=dict)
    people: dict[UUID, list[Topic]] = field(default_factory=dict)
    text: PublicText | InternalText | None = None
    internal: bool = False
    agents: bool = False

    def tell(self, topic: Topic, what: str, people: Iterable[UUID | None]) -> None:
        """Let these people be told of one part."""
        self.what[topic] = what
        for person in people:
            if person is not None:
                self.people.setdefault(person, []).append(topic)


class Notices:
    """Mails about tickets, and who wants which."""

    def __init__(self, db: Database, mail: Mail, settings: Settings) -> None:
        self._db = db
        self._mail = mail
        self._settings = settings

    def job_type(self) -> JobType:
        """Return the kind of job that writes an event's mails; none is queued without a mailer."""
        return JobType(
            name=NOTIFY,
            handle=self._notify,
            on_events=_EVENTS if self._mail.on else (),
            when=_matters,
        )

    async def get(self, caller: Caller, ref: str | UUID) -> NotificationSettings:
        """Return which mails somebody wants, to themselves and to administrators."""
        async with self._db.connection() as conn:
            return await _existing(conn, _subject(caller, ref))

    async def put(
        self, caller: Caller, ref: str | UUID, wanted: Mapping[Topic, bool]
    ) -> NotificationSettings:
        """Turn some mails on or off; the others stay as they are."""
        user_id = _subject(caller, ref)
        async with self._db.transaction() as tx:
            before = await _existing(tx.conn, user_id, lock=True)
            changed = {t: on for t, on in wanted.items() if getattr(before, t) != on}
            if not changed:
                return before
            after = replace(before, **changed)
            await notifications.put(tx.conn, user_id, after)
            turned = {topic.value: on for topic, on in changed.items()}
            about = {"user_id": str(user_id), "notifications": turned}
            tx.record(Event.by(caller, "user.notifications_changed", data=about))
        return after

    # --- one event -------------------------------------------------------------------------

    async def _notify(self, job: Job) -> None:
        if job.event_id is None:
            return
        async with job.transaction() as tx:
            event = await events.by_id(tx.conn, job.event_id)
            if event is None or event.ticket_id is None:
                return
            ticket = (await tickets.by_ids(tx.conn, [event.ticket_id])).get(event.ticket_id)
            if ticket is None:
                return
            story = await self._story(tx.conn, event, ticket)
            readers = await notifications.readers(
                tx.conn,
                list(story.people),
                agents=story.agents,
                verified=bool(self._settings.auth.require_verified_email),
            )
            told = [
                (reader, topic)
                for reader in readers
                if reader.id != event.actor_id and _may_read(reader, ticket, story)
                if (topic := _topic(reader, story)) is not None
            ]
            await self._write(tx, event, ticket, story, told)

    async def _story(self, conn: Any, event: Event, ticket: Ticket) -> _Story:
        story, who = _Story(), one_line(event.actor_name, 100)
        if event.type == "ticket.created":
            assigned = _ids(event.data.get("assignee_ids"))
            story.tell(Topic.TICKET_ASSIGNED, f"{who} gave you a new ticket.", assigned)
            story.what[Topic.TICKET_CREATED] = f"{who} opened a ticket."
            story.agents = self._settings.mail.notify_new_tickets
            story.text = described(ticket)
        elif event.type == "ticket.updated":
            _changed(story, event, ticket, who)
        elif event.type == "comment.added":
            (comment_id,) = _ids([event.data.get("comment_id")]) or (None,)
            found = (await comments.by_ids(conn, [comment_id])) if comment_id else {}
            for comment in found.values():
                story.text, story.internal = said(comment), comment.internal
                how = "commented internally" if comment.internal else "commented"
                people = [*ticket.assignee_ids, *([] if comment.internal else [ticket.reporter_id])]
                story.tell(Topic.COMMENT_ADDED, f"{who} {how}.", people)
        else:
            name = one_line(event.data.get("filename") or "a file", 200)
            what = f"The file {name} did not pass a later virus scan. Delete your copies of it."
            story.tell(Topic.FILE_RECALLED, what, _ids(event.data.get("downloaded_by")))
        return story

    # --- writing ---------------------------------------------------------------------------

    async def _write(
        self,
        tx: Transaction,
        event: Event,
        ticket: Ticket,
        story: _Story,
        told: Sequence[tuple[Reader, Topic]],
    ) -> None:
        """Write each reader's mail, or a line of the one mail for those who had many already."""
        if not told:
            return
        settings = self._settings.mail
        had = await emails.recent(
            tx.conn, [reader.id for reader, _ in told], seconds=settings.digest_seconds
        )
        mails = [
            self._letter(event, ticket, story, reader, topic)
            for reader, topic in told
            if had.get(reader.id, 0) < settings.burst
        ]
        lines = {
            reader.id: (reader, self._line(ticket, story, topic))
            for reader, topic in told
            if had.get(reader.id, 0) >= settings.burst
        }
        if lines:
            pairs = [(person, line) for person, (_, line) in lines.items()]
            added = await emails.add_lines(tx.conn, pairs)
            mails += [
                self._digest(reader, line)
                for person, (reader, line) in lines.items()
                if person not in added
            ]
        await self._mail.post(tx, mails)

    def _letter(
        self, event: Event, ticket: Ticket, story: _Story, reader: Reader, topic: Topic
    ) -> NewEmail:
        news = _news(reader, story, topic)
        letter = self._mail.letters.write(
            "notification",
            {
                "desk": self._mail.desk_name,
                "name": reader.name,
                "key": ticket.key,
                "title": one_line(ticket.title, 150),
                "what": news.what,
                "text": many_lines(news.words, LONGEST_TEXT),
                "link": self._mail.link(f"tickets/{ticket.key}"),
                "why": _WHY[topic],
            },
        )
        return self._mail.new(
            reader.email,
            letter.subject,
            letter.text,
            html=letter.html,
            kind=MailKind.NOTIFICATION,
            event_id=event.id,
            ticket_id=ticket.id,
            user_id=reader.id,
        )

    def _line(self, ticket: Ticket, story: _Story, topic: Topic) -> str:
        link = self._mail.link(f"tickets/{ticket.key}")
        title = one_line(ticket.title, 150)
        return f"\n[{ticket.key}] {title}\n{one_line(story.what[topic], 300)}\n{link}\n"

    def _digest(self, reader: Reader, line: str) -> NewEmail:
        letter = self._mail.letters.write(
            "digest", {"desk": self._mail.desk_name, "name": reader.name, "text": line.strip("\n")}
        )
        return self._mail.new(
            reader.email,
            letter.subject,
            letter.text,
            kind=MailKind.NOTIFICATION,
            user_id=reader.id,
            lines=1,
            seconds=float(self._settings.mail.digest_seconds),
        )


def _matters(event: Event) -> bool:
    """Return whether anybody could have to be told: most updates concern nobody's mail."""
    if event.type != "ticket.updated":
        return True
    return any(change.field in ("status", "assignee_ids") for change in event.changes)


def _changed(story: _Story, event: Event, ticket: Ticket, who: str) -> None:
    """Tell of a new assignee and another status, the former first."""
    for change in event.changes:
        if change.field == "assignee_ids":
            before = set(_ids(change.old))
            added = [person for person in _ids(change.new) if person not in before]
            story.tell(Topic.TICKET_ASSIGNED, f"{who} gave you this ticket.", added)
    for change in event.changes:
        if change.field == "status":
            what = f"{who} changed the status from {change.old} to {change.new}."
            people = dict.fromkeys([ticket.reporter_id, *ticket.assignee_ids])
            story.tell(Topic.STATUS_CHANGED, what, people)


def _topic(reader: Reader, story: _Story) -> Topic | None:
    """Return what of the story to tell somebody: the first part that concerns them and they want.

    Whoever turned off the mails about their own part is not sent the ones to everybody instead.
    """
    own = story.people.get(reader.id)
    if own is None:
        return Topic.TICKET_CREATED if Topic.TICKET_CREATED in reader.topics else None
    return next((topic for topic in own if topic in reader.topics), None)


def _may_read(reader: Reader, ticket: Ticket, story: _Story) -> bool:
    """Return whether somebody may read the ticket, and this of it, now."""
    if reader.role.rank >= Role.AGENT.rank:
        return True
    if story.internal:
        return False
    return reader.id == ticket.reporter_id or reader.id in ticket.assignee_ids


def _news(reader: Reader, story: _Story, topic: Topic) -> CustomerNews | StaffNews:
    if reader.role.rank >= Role.AGENT.rank:
        return StaffNews(story.what[topic], story.text)
    if isinstance(story.text, InternalText):
        raise TypeError("what was said internally is not for customers")
    return CustomerNews(story.what[topic], story.text)


def _ids(values: Any) -> list[UUID]:
    """Return the ids in what an event says; what is none is left out."""
    found = []
    for value in values if isinstance(values, list | tuple) else ():
        try:
            found.append(UUID(str(value)))
        except ValueError:
            continue
    return found


def _subject(caller: Caller, ref: str | UUID) -> UUID:
    """Return whom a path speaks of; to others than administrators only they themselves exist."""
    try:
        user_id = ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        user_id = None
    if user_id is None or user_id != caller.user_id:
        caller.require(Role.ADMIN, "see which mails others want")
    if user_id is None:
        raise NotFound.of("user")
    return user_id


async def _existing(conn: Any, user_id: UUID, *, lock: bool = False) -> NotificationSettings:
    found = await notifications.get(conn, user_id, lock=lock)
    if found is None:
        raise NotFound.of("user")
    return found
