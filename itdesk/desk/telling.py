"""One telling of a remote tracker on its way into the database, inside a transaction.

What was deleted over there stays deleted, fields follow only newer tellings, and every change
gets its own version of the ticket and its own event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from itdesk.desk import merging
from itdesk.errors import Conflict
from itdesk.model import Caller, Change, Comment, Event, Priority, Status, Ticket, new_id
from itdesk.remote import (
    Mirrored,
    RemoteComment,
    RemoteIssue,
    RemotePerson,
    Rules,
    Shadow,
    fingerprint,
)
from itdesk.store import mirrors, projects, pushes, tickets
from itdesk.store.db import Transaction

_PLAIN: Final = ("title", "description", "status", "priority", "tags")
MOST_UNSENT: Final = 100

People = Mapping[RemotePerson, mirrors.LocalPerson]


class Telling:
    """One telling on its way into the database."""

    def __init__(self, tx: Transaction, caller: Caller, issue: RemoteIssue, rules: Rules) -> None:
        self._tx = tx
        self._conn = tx.conn
        self._caller = caller
        self._issue = issue
        self._rules = rules
        self._drift: tuple[str, ...] = ()
        self._unsent: list[Comment] | None = None

    async def write(self, deliveries: Sequence[str]) -> Mirrored:
        """Write it all; return what became of it."""
        issue = self._issue
        await mirrors.lock(self._conn, f"{issue.source}:{issue.key or issue.id}")
        fresh = not deliveries or await mirrors.first_time(self._conn, deliveries)
        ticket_id = await self._find()
        if not fresh:
            return Mirrored(issue.key, ticket_id, status="duplicate")
        if issue.gone:
            return await self._close(ticket_id)
        if await mirrors.deleted(self._conn, self._names()):
            return Mirrored(issue.key, ticket_id)
        people = await mirrors.people(self._conn, self._spoken_of())
        created = updated = False
        if ticket_id is None:
            ticket_id = await self._create(people)
            created = ticket_id is not None
            if ticket_id is None:
                await mirrors.bury(self._conn, self._gone_comments())
                return Mirrored(issue.key, None)
        else:
            updated = await self._update(ticket_id, people)
        if issue.id is not None:
            await mirrors.name_issue(self._conn, ticket_id, issue.id)
        updated |= await self._discuss(ticket_id, people)
        return Mirrored(issue.key, ticket_id, created, updated and not created, drift=self._drift)

    # --- the ticket ------------------------------------------------------------------------

    async def _find(self) -> UUID | None:
        issue = self._issue
        for key in (issue.key, issue.former_key):
            if key is not None:
                found = await mirrors.find(
                    self._conn, source=issue.source, key=key, number=issue.id
                )
                if found is not None:
                    return found
        return await self._just_opened()

    async def _just_opened(self) -> UUID | None:
        """Return the ticket of ours that this issue is being opened for; it stands for it now."""
        issue = self._issue
        named = merging.OWN_KEY.match(str(issue.fields.get("title", "")))
        if issue.origin is None and named is None:
            return None
        key = named[1] if named is not None else None
        ticket_id = await pushes.being_created(self._conn, issue.origin, key)
        if ticket_id is None or not issue.key:
            return None
        linked = await pushes.link(self._conn, ticket_id, issue.source, issue.key, None)
        return ticket_id if linked else None

    async def _create(self, people: People) -> UUID | None:
        """Open the ticket; None when too little was told to open one."""
        issue, fields = self._issue, self._issue.fields
        if not issue.key or "title" not in fields:
            return None
        project_id = await self._project()
        assignee, reporter = fields.get("assignee"), fields.get("reporter")
        ticket_id = new_id()
        made = await mirrors.create(
            self._conn,
            id=ticket_id,
            key=issue.key,
            project_id=project_id,
            source=issue.source,
            title=fields["title"],
            description=fields.get("description", ""),
            status=fields.get("status", Status.OPEN),
            priority=fields.get("priority", Priority.MEDIUM),
            category=fields.get("category"),
            tags=fields.get("tags", ()),
            reporter_id=_id(people.get(reporter)) if reporter else None,
            reporter_name=reporter.name if reporter else "",
            assignee_ids=_assignees(people, assignee),
            external_assignee=assignee.name if assignee else None,
            created_at=issue.created_at,
            updated_at=issue.updated_at,
        )
        if not made:
            raise Conflict(
                f"Another ticket bears the key {issue.key} already.", code="E_TICKET_KEY_EXISTS"
            )
        ticket = await self._read(ticket_id)
        told = {name: _plain(getattr(ticket, name)) for name in ("title", "priority", "tags")}
        self._record(
            "ticket.created", ticket.version, ticket_id,
            data={"key": ticket.key, "new": ticket.status, **told},
        )  # fmt: skip
        await self._remember(ticket_id, Shadow())
        return ticket_id

    async def _project(self) -> UUID:
        """Return the project that mirrors the issue's own, made on first sight."""
        issue = self._issue
        made = new_id()
        name = issue.project_name or issue.project
        if await mirrors.ensure_project(self._conn, id=made, key=issue.project, name=name):
            project = await projects.get(self._conn, made)
            told = {"project_id": str(made), "key": project.key, "name": project.name}
            self._tx.record(Event.by(self._caller, "project.created", data=told))
            return made
        known = await mirrors.project_id(self._conn, issue.project)
        if known is None:
            raise Conflict(
                f"{issue.project} is a local project here, so that the issues of the remote one"
                " cannot bear their keys. Give the local one another key.",
                code="E_PROJECT_KEY_EXISTS",
            )
        return known

    async def _update(self, ticket_id: UUID, people: People) -> bool:
        """Take over what changed, when it is newer than what was told before."""
        issue = self._issue
        before = await self._read(ticket_id, lock=True)
        shadow = await self._shadow(ticket_id)
        given = _assignees(people, issue.fields.get("assignee"))
        self._drift = merging.drift(before, issue.fields, shadow, given)
        known = before.external.updated_at if before.external else None
        if issue.updated_at is None or (known is not None and issue.updated_at <= known):
            return False
        kept = await self._kept(before, shadow)
        fields = {name: told for name, told in issue.fields.items() if name not in kept}
        wanted = await self._wanted(before, people, fields)
        changes = {name: value for name, value in wanted.items() if _now(before, name) != value}
        await mirrors.seen(self._conn, ticket_id, issue.updated_at)
        await self._remember(ticket_id, shadow)
        if not changes:
            return False
        columns = dict(changes)
        if "assignee_ids" in columns:
            await tickets.assign(self._conn, ticket_id, columns.pop("assignee_ids"))
        after = await tickets.update(self._conn, ticket_id, columns)
        self._record(
            "ticket.updated", after.version, ticket_id,
            changes=tuple(
                Change(name, _plain(_now(before, name)), _plain(_now(after, name)))
                for name in changes
                if name not in ("reporter_id", "project_id", "external_id")
            ),
        )  # fmt: skip
        return True

    async def _kept(self, before: Ticket, shadow: Shadow) -> set[str]:
        """Return the fields that are not taken over; ours is sent again where ours counts."""
        issue, rules = self._issue, self._rules
        told = merging.told_of(issue.fields)
        lane = f"{issue.source}:{before.external.id if before.external else issue.key}"
        pending: list[pushes.Unfinished] = []
        if rules.push is not None:
            pending = await pushes.unfinished(self._conn, rules.push, [lane])
        assert issue.updated_at is not None
        settled = merging.settle(
            told, shadow, pending, lambda name: rules.winner(issue.project, name), issue.updated_at
        )
        again = {name: settled.countered[name] for name in self._drift if name in settled.countered}
        if again and rules.push is not None:
            args = {"ticket_id": str(before.id), "fields": list(again), "comment_id": None}
            self._tx.enqueue(rules.push, args, lane=lane)
            await pushes.note_countered(self._conn, before.id, again)
        return settled.kept

    async def _shadow(self, ticket_id: UUID) -> Shadow:
        """Return what is known of the issue, with what it was opened with."""
        shadow = await pushes.shadow(self._conn, ticket_id)
        if not shadow.creating or self._issue.updated_at is None:
            return shadow
        first = merging.as_opened(merging.told_of(self._issue.fields), shadow)
        await pushes.note_sending(self._conn, ticket_id, first, meant=())
        return replace(shadow, sent={**shadow.sent, **first})

    async def _remember(self, ticket_id: UUID, shadow: Shadow) -> None:
        """Note what the issue says now, to tell news from echoes."""
        if told := merging.told_of(self._issue.fields):
            changed = merging.theirs(told, shadow)
            await pushes.note_told(self._conn, ticket_id, told, theirs=changed)

    async def _wanted(
        self, before: Ticket, people: People, fields: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the ticket's columns shall be; what was not told is left out."""
        issue = self._issue
        wanted = {name: fields[name] for name in _PLAIN if name in fields}
        is_local = before.external is not None and before.key != before.external.id
        if "title" in wanted:
            wanted["title"] = merging.own_title(before, wanted["title"])
        if "assignee" in fields:
            person = fields["assignee"]
            wanted["external_assignee"] = person.name if person else None
            wanted["assignee_ids"] = _assignees(people, person)
        if fields.get("reporter") is not None and not is_local:
            # Of a pushed ticket, Jira only knows the account that pushed it.
            wanted["reporter_name"] = fields["reporter"].name
            wanted["reporter_id"] = _id(people.get(fields["reporter"]))
        if before.external and issue.key and issue.key != before.external.id:
            wanted |= await self._moved(before, is_local)
        return wanted

    async def _moved(self, before: Ticket, is_local: bool) -> dict[str, Any]:
        """Return what changes because the issue has another key now."""
        issue = self._issue
        if not await mirrors.key_is_free(self._conn, issue.key):
            return {}
        moved: dict[str, Any] = {"external_id": issue.key}
        if not is_local:
            moved |= {"key": issue.key, "project_id": await self._project()}
        return moved

    async def _close(self, ticket_id: UUID | None) -> Mirrored:
        """Close the ticket of an issue that was deleted; nothing of it is taken away here."""
        issue = self._issue
        await mirrors.bury(self._conn, self._names())
        if ticket_id is None:
            return Mirrored(issue.key, None)
        before = await self._read(ticket_id, lock=True)
        if before.external is not None and before.external.id != issue.key:
            await mirrors.bury(self._conn, [f"key/{before.external.id}"])
        columns = {} if before.status is Status.CLOSED else {"status": Status.CLOSED}
        after = await tickets.update(self._conn, ticket_id, columns)
        await mirrors.seen(self._conn, ticket_id, issue.updated_at)
        note = Change("external", issue.key, f"deleted in {issue.source.title()}")
        closing = Change("status", str(before.status), str(after.status))
        changes = (closing, note) if columns else (note,)
        self._record("ticket.updated", after.version, ticket_id, changes=changes)
        return Mirrored(issue.key, ticket_id, updated=True)

    # --- its comments ----------------------------------------------------------------------

    async def _discuss(self, ticket_id: UUID, people: People) -> bool:
        """Let the ticket's mirrored comments be those of the issue."""
        issue = self._issue
        gone = self._gone_comments()
        if not issue.comments and not gone and not issue.all_comments:
            return False
        known = await mirrors.comments(self._conn, ticket_id, issue.source)
        lost = {number for number in issue.gone_comments if number in known}
        if issue.all_comments:
            lost |= self._missing(known)
        await mirrors.bury(self._conn, gone)
        names = [f"comment/{comment.id}" for comment in issue.comments]
        buried = await mirrors.deleted(self._conn, names) if names else set()
        changed = False
        for comment in issue.comments:
            if f"comment/{comment.id}" not in buried:
                changed |= await self._say(ticket_id, comment, known.get(comment.id), people)
        for number in sorted(lost):
            await mirrors.delete_comment(self._conn, known[number].id)
            await self._touch(ticket_id, "comment.deleted", known[number].id, known[number])
            changed = True
        return changed

    def _missing(self, known: Mapping[str, mirrors.KnownComment]) -> set[str]:
        """Return the comments that the whole issue lacks, and that it must have had by then."""
        # One that was said after the issue was looked at is not missing: its webhook was faster.
        at = self._issue.updated_at
        there = {comment.id for comment in self._issue.comments}
        return {
            number
            for number, comment in known.items()
            if number not in there and at and comment.updated_at and comment.updated_at <= at
        }

    async def _say(
        self,
        ticket_id: UUID,
        comment: RemoteComment,
        known: mirrors.KnownComment | None,
        people: People,
    ) -> bool:
        """Add a comment, or rewrite it when it is newer over there; return whether it changed."""
        if known is None and await self._is_ours(ticket_id, comment):
            return False
        if known is None:
            comment_id = new_id()
            await mirrors.add_comment(
                self._conn,
                id=comment_id,
                ticket_id=ticket_id,
                source=self._issue.source,
                remote_id=comment.id,
                user_id=_id(people.get(comment.author)),
                author_name=comment.author.name,
                body=comment.body,
                internal=comment.internal,
                created_at=comment.created_at,
                updated_at=comment.updated_at,
            )
            await self._touch(ticket_id, "comment.added", comment_id, comment)
            return True
        body = self._rules.said(known.author_name, comment.body)
        # What nothing is told of stays as hidden as it is.
        internal = comment.internal or (known.internal and not comment.sure)
        same = (known.body, known.internal) == (body, internal)
        newer = known.updated_at is None or (
            comment.updated_at is not None and comment.updated_at > known.updated_at
        )
        if same or not newer:
            return False
        await mirrors.change_comment(
            self._conn,
            known.id,
            body=body,
            internal=internal,
            updated_at=comment.updated_at,
        )
        # What either of the two was hidden from must not learn of it by the other.
        hidden = internal or known.internal
        await self._touch(ticket_id, "comment.updated", known.id, comment, internal=hidden)
        return True

    async def _is_ours(self, ticket_id: UUID, comment: RemoteComment) -> bool:
        """Return whether a comment was said here first, and is only told back; it is tied then."""
        rules = self._rules
        mark = fingerprint(comment.body)
        if mark in merging.only_said(await pushes.shadow(self._conn, ticket_id)):
            return True
        if rules.push is None:
            return False
        if self._unsent is None:
            self._unsent = await pushes.unsent_comments(
                self._conn, ticket_id, MOST_UNSENT, internal=True
            )
        for own in self._unsent:
            if fingerprint(rules.worded(own.author_name, own.body)) == mark:
                self._unsent.remove(own)
                return await pushes.tie_comment(
                    self._conn, own.id, self._issue.source, comment.id, comment.updated_at
                )
        return False

    async def _touch(
        self,
        ticket_id: UUID,
        type: str,
        comment_id: UUID,
        said: RemoteComment | mirrors.KnownComment,
        *,
        internal: bool | None = None,
    ) -> None:
        """Give what happened to a comment its own version of the ticket and its own event."""
        version = await tickets.touch(self._conn, ticket_id)
        actor = said.author.name if isinstance(said, RemoteComment) else None
        hidden = said.internal if internal is None else internal
        told: dict[str, Any] = {"comment_id": str(comment_id), "internal": hidden}
        if type != "comment.deleted":
            # Who deletes words wants them gone.
            told["new"] = said.body[:200]
        self._record(type, version, ticket_id, data=told, actor=actor)

    # --- shared ----------------------------------------------------------------------------

    async def _read(self, ticket_id: UUID, *, lock: bool = False) -> Ticket:
        return await tickets.find(self._conn, str(ticket_id), scope=None, lock=lock)

    def _names(self) -> list[str]:
        """Return what the issue would be buried under."""
        names = [f"issue/{self._issue.id}"] if self._issue.id else []
        return names + ([f"key/{self._issue.key}"] if self._issue.key else [])

    def _gone_comments(self) -> list[str]:
        return [f"comment/{number}" for number in self._issue.gone_comments]

    def _spoken_of(self) -> list[RemotePerson]:
        issue = self._issue
        named = [issue.fields.get("assignee"), issue.fields.get("reporter")]
        authors = [comment.author for comment in issue.comments]
        return list(dict.fromkeys(one for one in (*named, *authors) if one is not None))

    def _record(
        self, type: str, version: int, ticket_id: UUID, *, actor: str | None = None, **more: Any
    ) -> None:
        event = Event.by(self._caller, type, ticket_id=ticket_id, ticket_version=version, **more)
        if actor:
            event = Event(
                type=event.type, actor_id=None, actor_name=actor, source=event.source,
                ticket_id=ticket_id, ticket_version=version, data=event.data,
                request_id=event.request_id,
            )  # fmt: skip
        self._tx.record(event)


def _id(person: mirrors.LocalPerson | None) -> UUID | None:
    return person.id if person is not None else None


def _assignees(people: People, person: RemotePerson | None) -> list[UUID]:
    local = people.get(person) if person is not None else None
    return [local.id] if local is not None and local.assignable else []


def _now(ticket: Ticket, name: str) -> Any:
    """Return what a column of a ticket holds."""
    if name == "external_assignee":
        return ticket.external.assignee if ticket.external else None
    if name == "external_id":
        return ticket.external.id if ticket.external else None
    return getattr(ticket, name)


def _plain(value: Any) -> Any:
    return [str(entry) for entry in value] if isinstance(value, list) else value
