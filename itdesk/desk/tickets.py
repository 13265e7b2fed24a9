"""Tickets: how they are opened, changed and discussed, and what the journal says of it."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from itdesk.desk.lifecycle import (
    no_project,
    require_agent,
    require_allowed,
    require_assignable,
    require_seen,
    require_transition,
    require_version,
)
from itdesk.desk.search import Search
from itdesk.desk.together import Together
from itdesk.errors import Invalid, NotFound
from itdesk.frozen import frozen
from itdesk.model import (
    Caller,
    Category,
    Change,
    Comment,
    Event,
    HistoryEntry,
    Position,
    Priority,
    Role,
    Source,
    Status,
    Ticket,
    new_id,
)
from itdesk.store import attachments, comments, events, listing, matching, tickets
from itdesk.store.db import Database, Transaction
from itdesk.store.listing import Listing
from itdesk.store.matching import Asked
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window
from itdesk.store.rows import TicketRow


@frozen
class NewTicket:
    """What somebody asks for when opening a ticket."""

    title: str
    description: str = ""
    priority: Priority = Priority.MEDIUM
    category: Category | None = None
    department: str | None = None
    project: str | None = None
    tags: Sequence[str] = ()
    assignee_ids: Sequence[UUID] = ()


@frozen
class _List:
    """One page of a list, and whether to count all of it."""

    asked: Asked
    count: bool


class Auditor(Protocol):
    """Whoever may object to a change: the plugins."""

    async def validate_ticket(
        self, caller: Caller, before: Ticket | None, after: Ticket
    ) -> list[str]:
        """Return the problems that forbid this change."""


class Tickets:
    """Opening, reading, changing and discussing tickets, on behalf of a caller."""

    def __init__(
        self,
        db: Database,
        auditor: Auditor,
        search: Search,
        pages: Listing,
        *,
        default_project: str,
        forget_files: Callable[[Sequence[tuple[str, str | None]]], Awaitable[None]],
    ) -> None:
        self._db = db
        self._auditor = auditor
        self._search = search
        self._pages = pages
        self._default_project = default_project
        self._forget_files = forget_files
        # After an event everybody's screen asks for the same ticket, and for the same lists.
        self._named = Together(db, listing.named)
        self._lists = Together(db, self._listed)

    async def create(self, caller: Caller, new: NewTicket) -> Ticket:
        """Open a ticket reported by the caller."""
        if new.assignee_ids:
            require_agent(caller, "assignee_ids")
        people = list(dict.fromkeys(new.assignee_ids))
        if people:
            async with self._db.connection() as conn:
                await require_assignable(conn, people)
        project = new.project or self._default_project
        ticket = _opened(caller, new, project, people, await self._take_number(project))
        await self._audit(caller, None, ticket)
        opened = _event(caller, "ticket.created", ticket, data=_opening(ticket))
        await self._db.at_once(partial(tickets.create, ticket=ticket), opened)
        return ticket

    async def get(self, caller: Caller, ref: str) -> Ticket:
        """Return the ticket named by id, key or number, if the caller may see it."""
        async with self._db.connection() as conn:
            return await tickets.find(conn, ref, scope=caller.scope)

    async def show(self, caller: Caller, ref: str) -> TicketRow:
        """Return the ticket named by id, key or number as JSON spells it, if it may be seen.

        It is for reading only: others who ask at the same moment are given the same.
        """
        column, value = tickets.reference(ref)
        row = await self._named.ask(column, (value, caller.scope))
        if row is None:
            raise NotFound.of("ticket")
        return row

    async def show_by_key(self, caller: Caller, key: str) -> TicketRow:
        """Return the ticket with this key as JSON spells it, if the caller may see it."""
        if "-" not in key or key.count("-") > 1:
            raise NotFound.of("ticket")
        return await self.show(caller, key)

    async def list(
        self,
        caller: Caller,
        wanted: Filter,
        *,
        sort: str,
        window: Window,
    ) -> Page[TicketRow]:
        """Return one page of the tickets that the caller may see, as JSON spells them.

        It is for reading only: others who ask at the same moment are given the same.
        """
        asked = Asked.page(wanted, caller.scope, sort, window)
        if wanted.q is not None:
            return await self._search.page(asked, count=window.count)
        question = _List(asked, window.count)
        page = await self._lists.ask(question, question)
        assert page is not None
        return page

    async def _listed(
        self, conn: Any, question: _List, _: Sequence[_List]
    ) -> Mapping[_List, Page[TicketRow]]:
        """Return the page that everybody in this lane asks for."""
        page = await self._pages.page(conn, question.asked)
        if question.count:
            page = replace(page, total=await matching.count(conn, question.asked))
        return {question: page}

    async def update(
        self,
        caller: Caller,
        ref: str,
        wanted: Mapping[str, Any],
        *,
        if_match: str | None = None,
        force: bool = False,
    ) -> Ticket:
        """Change some fields of a ticket; what is the same already changes nothing.

        `force` lets an administrator move a ticket along a way that the lifecycle does not have.
        """
        if force:
            caller.require(Role.ADMIN, "force a status")
        async with self._db.transaction() as tx:
            before = await tickets.find(tx.conn, ref, scope=caller.scope, lock=True)
            require_version(before, if_match)
            require_allowed(caller, before, wanted)
            changes = _differences(before, wanted)
            if not changes:
                return before
            if "status" in changes and not force:
                require_transition(before.status, changes["status"])
            after = await self._apply(tx, caller, before, changes)
            await self._audit(caller, before, after)
            tx.record(_event(caller, "ticket.updated", after, changes=_changes(before, after)))
        return after

    async def delete(self, caller: Caller, ref: str) -> None:
        """Remove a ticket with its comments, files and history; the audit log keeps that it was."""
        async with self._db.transaction() as tx:
            ticket = await tickets.find(tx.conn, ref, scope=caller.scope, lock=True)
            files = await attachments.keys_of_ticket(tx.conn, ticket.id)
            await tickets.delete(tx.conn, ticket.id)
            await events.erase_ticket(tx.conn, ticket.id)
            tx.forget(ticket.id)
            tx.record(
                Event.by(
                    caller,
                    "ticket.deleted",
                    ticket_id=ticket.id,
                    ticket_version=ticket.version + 1,
                    data={
                        "key": ticket.key,
                        "title": ticket.title,
                        # Nobody could find out afterwards who has to be told.
                        "readers": [
                            str(person)
                            for person in (ticket.reporter_id, *ticket.assignee_ids)
                            if person is not None
                        ],
                    },
                )
            )
        await self._forget_files(files)

    async def history(self, caller: Caller, ref: str, window: Window) -> Page[HistoryEntry]:
        """Return one page of what happened to a ticket, oldest first."""
        internal = caller.has(Role.AGENT)
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
            page = await events.history_page(conn, ticket.id, window, internal=internal)
            total = (
                await events.count_history(conn, ticket.id, internal=internal)
                if window.count
                else None
            )
        return replace(page, total=total)

    async def comment(
        self,
        caller: Caller,
        ref: str,
        body: str,
        *,
        internal: bool = False,
        last_seen: int | Position | None = None,
    ) -> Comment:
        """Say something on a ticket; only agents and above may say it internally.

        With `last_seen`, the ticket version or stream position that its author saw, nothing is
        said when there was a public comment or another status since: Conflict shows them.
        """
        if internal:
            require_agent(caller, "internal")
        async with self._db.transaction() as tx:
            ticket = await tickets.find(tx.conn, ref, scope=caller.scope, lock=True)
            if last_seen is not None:
                await require_seen(tx, ticket, last_seen)
            said = await comments.add(
                tx.conn,
                id=new_id(),
                ticket_id=ticket.id,
                user_id=caller.user_id,
                author_name=caller.name,
                body=body,
                internal=internal,
            )
            version = await tickets.touch(
                tx.conn, ticket.id, first_action=not internal and _is_action(caller, ticket)
            )
            tx.record(
                Event.by(
                    caller,
                    "comment.added",
                    ticket_id=ticket.id,
                    ticket_version=version,
                    data={
                        "comment_id": str(said.id),
                        "internal": internal,
                        "new": body[:200],
                        **_mirror(ticket),
                    },
                )
            )
        return said

    async def comments(self, caller: Caller, ref: str, window: Window) -> Page[Comment]:
        """Return one page of a ticket's comments, oldest first, as far as the caller may read."""
        internal = caller.has(Role.AGENT)
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
            page = await comments.list_page(conn, ticket.id, window, internal=internal)
            total = (
                await comments.count(conn, ticket.id, internal=internal) if window.count else None
            )
        return replace(page, total=total)

    async def _apply(
        self, tx: Transaction, caller: Caller, before: Ticket, changes: Mapping[str, Any]
    ) -> Ticket:
        columns = dict(changes)
        if "assignee_ids" in columns:
            people = columns.pop("assignee_ids")
            added = [person for person in people if person not in before.assignee_ids]
            await require_assignable(tx.conn, added)
            await tickets.assign(tx.conn, before.id, people)
        if "project" in columns:
            taken = await self._take_number(columns.pop("project"))
            columns["project_id"], columns["key"] = taken.project_id, taken.key
        return await tickets.update(
            tx.conn, before.id, columns, first_action=_is_action(caller, before)
        )

    async def _take_number(self, project: str) -> tickets.Taken:
        """Take a number for good: one that is not used then is never used."""
        async with self._db.unsynced() as conn:
            taken = await tickets.take_number(conn, project)
        if taken is None:
            raise no_project(project)
        return taken

    async def _audit(self, caller: Caller, before: Ticket | None, after: Ticket) -> None:
        problems = await self._auditor.validate_ticket(caller, before, after)
        if problems:
            raise Invalid(
                "The change is not accepted here: " + "; ".join(problems),
                code="E_TICKET_REFUSED",
                details={"fields": [{"path": "", "problem": problem} for problem in problems]},
            )


def _is_action(caller: Caller, ticket: Ticket) -> bool:
    """Return whether this is somebody of the desk acting for somebody else."""
    return (
        caller.source is Source.API
        and caller.has(Role.AGENT)
        and caller.user_id != ticket.reporter_id
    )


def _differences(before: Ticket, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that would really change."""
    return {name: value for name, value in wanted.items() if getattr(before, name) != value}


# The fields of a ticket that history tells of, in the order of the ticket.
_TOLD = tuple(
    field.name
    for field in dataclass_fields(Ticket)
    if field.name
    in {
        "key", "project", "title", "description", "status", "priority", "category", "department",
        "tags", "assignee_ids", "resolution",
    }
)  # fmt: skip


def _changes(before: Ticket, after: Ticket) -> tuple[Change, ...]:
    return tuple(
        Change(name, _plain(getattr(before, name)), _plain(getattr(after, name)))
        for name in _TOLD
        if getattr(before, name) != getattr(after, name)
    )


def _plain(value: Any) -> Any:
    return [str(entry) for entry in value] if isinstance(value, list) else value


def _opened(
    caller: Caller, new: NewTicket, project: str, people: list[UUID], taken: tickets.Taken
) -> Ticket:
    """Return the ticket that somebody asked for, before anybody else knows of it."""
    return Ticket(
        id=new_id(),
        number=taken.number,
        key=taken.key,
        project_id=taken.project_id,
        project=project,
        title=new.title,
        description=new.description,
        status=Status.OPEN,
        priority=new.priority,
        category=new.category,
        department=new.department,
        tags=list(new.tags),
        reporter_id=caller.user_id,
        reporter_name=caller.name,
        assignee_id=people[0] if people else None,
        assignee_ids=people,
        resolution=None,
        predicted_priority=None,
        predicted_category=None,
        external=None,
        first_action_at=None,
        closed_at=None,
        version=1,
        created_at=taken.at,
        updated_at=taken.at,
    )


def _opening(ticket: Ticket) -> dict[str, Any]:
    return {"key": ticket.key, "new": ticket.status, **{
        name: _plain(getattr(ticket, name))
        for name in ("title", "priority", "category", "department", "tags", "assignee_ids")
    }}  # fmt: skip


def _mirror(ticket: Ticket) -> dict[str, Any]:
    """Return which remote issue a change of this ticket is also about, for who tells it there."""
    external = ticket.external
    return {"mirror": f"{external.source}:{external.id}"} if external is not None else {}


def _event(caller: Caller, type: str, ticket: Ticket, **more: Any) -> Event:
    if mirror := _mirror(ticket):
        more["data"] = {**more.get("data", {}), **mirror}
    return Event.by(caller, type, ticket_id=ticket.id, ticket_version=ticket.version, **more)
