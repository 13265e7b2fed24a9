"""Tickets, their history and their comments over REST."""

from dataclasses import fields as dataclass_fields
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from itdesk.api.fields import (
    CategoryIn,
    Day,
    Department,
    Flag,
    Key,
    PriorityIn,
    Prose,
    Search,
    StatusIn,
    Tag,
    Tags,
    Text,
    Title,
    absent,
)
from itdesk.api.paging import page_reply, window
from itdesk.api.route import (
    NO_CONTENT,
    Body,
    Call,
    ListQuery,
    Query,
    Reply,
    Route,
    Who,
    created,
    one,
)
from itdesk.desk.tickets import NewTicket
from itdesk.model import Comment, HistoryEntry, Position, Priority, Ticket
from itdesk.store.narrowing import Filter

MOST_TEXT = 100_000

Assignees = Annotated[list[UUID], Field(max_length=20)]


class _Assigned(Body):
    """A body that names people in one of two ways."""

    model_config = ConfigDict(
        json_schema_extra={"not": {"required": ["assignee_ids", "assignee_id"]}}
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if {"assignee_ids", "assignee_id"} <= self.model_fields_set:
            raise ValueError("give assignee_ids or assignee_id, not both")
        return self


class TicketBody(_Assigned):
    """A ticket to be opened."""

    title: Title
    description: Annotated[Text, Field(max_length=MOST_TEXT)] = ""
    priority: PriorityIn = Field(
        Priority.MEDIUM, validation_alias=AliasChoices("priority", "severity")
    )
    category: CategoryIn | None = None
    department: Department | None = None
    project: Key | None = None
    tags: Tags = Field(default=[], validation_alias=AliasChoices("tags", "labels"))
    assignee_ids: Assignees = []
    assignee_id: UUID | None = Field(
        None,
        validation_alias=AliasChoices("assignee_id", "assignee"),
        description="Short for assignee_ids with one person.",
    )

    def wanted(self) -> NewTicket:
        """Return what is asked for in the desk's own words."""
        people = self.assignee_ids or ([self.assignee_id] if self.assignee_id else [])
        fields = self.model_dump(exclude={"assignee_ids", "assignee_id"})
        return NewTicket(**fields, assignee_ids=people)


class TicketPatch(_Assigned):
    """What to change on a ticket; a field that is left out stays as it is."""

    title: Title = absent()
    description: Annotated[Text, Field(max_length=MOST_TEXT)] = absent()
    status: StatusIn = absent()
    priority: PriorityIn = absent(validation_alias=AliasChoices("priority", "severity"))
    category: CategoryIn | None = None
    department: Department | None = None
    project: Key = absent()
    tags: Tags = absent(validation_alias=AliasChoices("tags", "labels"))
    resolution: Annotated[Text, Field(max_length=MOST_TEXT)] | None = None
    assignee_ids: Assignees = absent()
    assignee_id: UUID | None = Field(None, description="Short for assignee_ids with one person.")
    force: Flag = Field(False, description="Skip the lifecycle's check; administrators only.")

    def wanted(self) -> dict[str, Any]:
        """Return the fields that were given, in the desk's own words."""
        fields = self.model_dump(include=self.model_fields_set - {"force", "assignee_id"})
        if "assignee_id" in self.model_fields_set:
            fields["assignee_ids"] = [self.assignee_id] if self.assignee_id else []
        elif "assignee_ids" in fields:
            fields["assignee_ids"] = list(dict.fromkeys(fields["assignee_ids"]))
        return fields


Sort = Literal[
    "created_at", "-created_at", "updated_at", "-updated_at", "priority", "-priority",
    "status", "-status", "number", "-number", "relevance",
]  # fmt: skip


class PlainTicketFilter(Query):
    """How a list of tickets is narrowed; a parameter given twice means either value."""

    status: list[StatusIn] = []
    priority: list[PriorityIn] = Field(
        default=[], validation_alias=AliasChoices("priority", "severity")
    )
    category: list[CategoryIn] = []
    department: Department | None = None
    project: Key | None = None
    tag: list[Tag] = Field(
        default=[], max_length=20, description="Each of these tags must be there."
    )
    q: Search | None = Field(
        None,
        description="Words to find; -word leaves out, quotes keep words together, or is either."
        " The last word may be the beginning of one, all of it the beginning of a key.",
    )
    created_from: Day | None = Field(None, description="Opened on this day (UTC) or later.")
    created_to: Day | None = Field(None, description="Opened on this day (UTC) or earlier.")
    sort: Sort = Field(
        "-created_at", description="relevance orders the newest 500 matches of q, best first."
    )

    @model_validator(mode="after")
    def _words_to_rank(self) -> Self:
        if self.sort == "relevance" and self.q is None:
            raise ValueError("sort=relevance needs q")
        return self

    def filter(self, **more: Any) -> Filter:
        """Return what the list is narrowed to."""
        fields: dict[str, Any] = {}
        for name in self.model_fields_set & _NARROWING:
            value = getattr(self, name)
            fields[name] = tuple(value) if isinstance(value, list) else value
        return Filter(**fields, **more)


_NARROWING = {field.name for field in dataclass_fields(Filter)}


class TicketFilter(PlainTicketFilter):
    """As above, and whose tickets."""

    assignee_id: UUID | None = None
    reporter_id: UUID | None = None


class PlainTicketQuery(PlainTicketFilter, ListQuery):
    """One page of a list of tickets, narrowed."""


class TicketQuery(TicketFilter, ListQuery):
    """As above, and whose tickets."""


class StreamPosition(Body):
    """How far somebody had read the stream of events."""

    epoch: UUID
    seq: Annotated[int, Field(ge=0, le=2**62)]

    def position(self) -> Position:
        """Return it in the desk's own words."""
        return Position(self.epoch, self.seq)


class CommentBody(Body):
    """Something to say on a ticket."""

    body: Annotated[Prose, Field(max_length=MOST_TEXT)]
    internal: Flag = Field(False, description="For agents' eyes only; agents and above.")
    last_seen: Annotated[int, Field(ge=1, le=2**31 - 1)] | StreamPosition | None = Field(
        None,
        description="The ticket's version, or the stream's position, that the author saw: the"
        " comment is refused with 409 if there was a public comment or another status since.",
    )
    force: Flag = Field(False, description="Say it all the same.")

    def seen(self) -> int | Position | None:
        """Return what the author saw, when that matters."""
        if self.force or self.last_seen is None:
            return None
        return self.last_seen if isinstance(self.last_seen, int) else self.last_seen.position()


async def list_all(call: Call) -> Reply:
    """List the tickets that the caller may see, newest first."""
    query: TicketQuery = call.query
    page = await call.desk.tickets.list(
        call.caller, query.filter(), sort=query.sort, window=window(query)
    )
    return page_reply(call, page)


async def list_own(call: Call) -> Reply:
    """List the tickets that the caller reported or is assigned to."""
    query: PlainTicketQuery = call.query
    page = await call.desk.tickets.list(
        call.caller,
        query.filter(own=call.caller.user_id),
        sort=query.sort,
        window=window(query),
    )
    return page_reply(call, page)


async def create(call: Call) -> Reply:
    """Open a ticket on behalf of the caller."""
    ticket = await call.desk.tickets.create(call.caller, call.body.wanted())
    return one(ticket, status=201, location=f"/api/v1/tickets/{ticket.id}")


async def read(call: Call) -> Reply:
    """Return a ticket by its id, key or number."""
    return one(await call.desk.tickets.show(call.caller, call.path["ticket"]))


async def read_by_key(call: Call) -> Reply:
    """Return a ticket by its key."""
    return one(await call.desk.tickets.show_by_key(call.caller, call.path["key"]))


async def update(call: Call) -> Reply:
    """Change some fields of a ticket; If-Match guards against overwriting somebody's change."""
    body: TicketPatch = call.body
    ticket = await call.desk.tickets.update(
        call.caller,
        call.path["ticket"],
        body.wanted(),
        if_match=call.if_match,
        force=body.force,
    )
    return one(ticket)


async def delete(call: Call) -> Reply:
    """Delete a ticket with its comments, files and history."""
    await call.desk.tickets.delete(call.caller, call.path["ticket"])
    return NO_CONTENT


async def history(call: Call) -> Reply:
    """List what happened to a ticket, oldest first."""
    page = await call.desk.tickets.history(call.caller, call.path["ticket"], window(call.query))
    return page_reply(call, page)


async def list_comments(call: Call) -> Reply:
    """List a ticket's comments, oldest first; internal ones for agents and above."""
    page = await call.desk.tickets.comments(call.caller, call.path["ticket"], window(call.query))
    return page_reply(call, page)


async def comment(call: Call) -> Reply:
    """Say something on a ticket."""
    body: CommentBody = call.body
    said = await call.desk.tickets.comment(
        call.caller,
        call.path["ticket"],
        body.body,
        internal=body.internal,
        last_seen=body.seen(),
    )
    return created(said, f"/api/v1/tickets/{said.ticket_id}/comments")


_UPDATE: dict[str, Any] = {
    "path": "/tickets/{ticket}",
    "handler": update,
    "who": Who.OWN,
    "tag": "tickets",
    "body": TicketPatch,
    "response": Ticket,
    "etag": True,
    "if_match": True,
    "errors": {
        "E_TICKET_INVALID_STATUS_TRANSITION": 400,
        "E_TICKET_INVALID_ASSIGNEE": 400,
        "E_TICKET_INVALID_PROJECT": 400,
        "E_TICKET_VERSION_MISMATCH": 412,
    },
}

ROUTES: list[Route] = [
    Route(
        id="R26",
        method="GET",
        path="/tickets",
        handler=list_all,
        who=Who.USER,
        tag="tickets",
        query=TicketQuery,
        response=list[Ticket],
        errors={"E_SEARCH_TOO_BROAD": 503},
    ),
    Route(
        id="R27",
        method="POST",
        path="/tickets",
        handler=create,
        who=Who.USER,
        tag="tickets",
        body=TicketBody,
        response=Ticket,
        status=201,
        etag=True,
        idempotent=True,
        errors={"E_TICKET_INVALID_ASSIGNEE": 400, "E_TICKET_INVALID_PROJECT": 400},
    ),
    Route(
        id="R28",
        method="GET",
        path="/tickets/my",
        handler=list_own,
        who=Who.USER,
        tag="tickets",
        query=PlainTicketQuery,
        response=list[Ticket],
        errors={"E_SEARCH_TOO_BROAD": 503},
    ),
    Route(
        id="R29",
        method="GET",
        path="/tickets/key/{key}",
        handler=read_by_key,
        who=Who.OWN,
        tag="tickets",
        response=Ticket,
        etag=True,
    ),
    Route(
        id="R30",
        method="GET",
        path="/tickets/{ticket}",
        handler=read,
        who=Who.OWN,
        tag="tickets",
        response=Ticket,
        etag=True,
    ),
    Route(id="R31", method="PATCH", **_UPDATE),
    Route(id="R31", method="PUT", **_UPDATE),
    Route(
        id="R32",
        method="DELETE",
        path="/tickets/{ticket}",
        handler=delete,
        who=Who.ADMIN,
        tag="tickets",
        status=204,
    ),
    Route(
        id="R33",
        method="GET",
        path="/tickets/{ticket}/history",
        handler=history,
        who=Who.OWN,
        tag="tickets",
        query=ListQuery,
        response=list[HistoryEntry],
    ),
    Route(
        id="R34",
        method="GET",
        path="/tickets/{ticket}/comments",
        handler=list_comments,
        who=Who.OWN,
        tag="comments",
        query=ListQuery,
        response=list[Comment],
    ),
    Route(
        id="R34",
        method="POST",
        path="/tickets/{ticket}/comments",
        handler=comment,
        who=Who.OWN,
        tag="comments",
        body=CommentBody,
        response=Comment,
        status=201,
        idempotent=True,
        errors={"E_TICKET_ANSWERED_MEANWHILE": 409},
    ),
]
