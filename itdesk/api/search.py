"""Searching and saved views over REST."""

from dataclasses import asdict
from datetime import date, datetime
from typing import Any, Self
from urllib.parse import urlencode
from uuid import UUID

from pydantic import Field, model_validator

from itdesk.api.fields import Flag, Name
from itdesk.api.paging import next_link
from itdesk.api.route import NO_CONTENT, Body, Call, Reply, Route, Who, created
from itdesk.api.tickets import TicketFilter
from itdesk.desk.search import Findings
from itdesk.frozen import frozen
from itdesk.model import Ticket
from itdesk.store.findings import Facets, Snippet
from itdesk.store.paging import Window
from itdesk.store.views import SavedView


class SearchQuery(TicketFilter):
    """How a search is narrowed, as a list is; fewer at once, because each is looked through."""

    limit: int = Field(20, ge=1, le=50, description="How many tickets at most.")
    cursor: str | None = Field(
        None, max_length=500, description="Where to go on: next_cursor of the last page."
    )
    offset: int = Field(0, ge=0, le=10_000, description="How many to skip; prefer cursor.")
    facets: bool = Field(False, description="Whether to count how the matches divide.")


@frozen
class HitOut:
    """A ticket that was found, and where the words stand in it."""

    ticket: Ticket
    snippets: list[Snippet]


@frozen
class FindingsOut:
    """One page of what was found."""

    results: list[HitOut]
    facets: Facets | None
    next_cursor: str | None


async def search(call: Call) -> Reply:
    """Find tickets: each with the places of the words, and how all matches divide."""
    query: SearchQuery = call.query
    found: Findings = await call.desk.search.find(
        call.caller,
        query.filter(),
        sort=query.sort,
        window=Window(query.limit, query.cursor, query.offset),
        facets=query.facets,
    )
    return Reply(found, 200, next_link(call, found.next_cursor))


class ViewQuery(TicketFilter, Body):
    """The query of a view: the filters and the order of GET /tickets."""

    # In a body, JSON's own reading of a date is the strict one.
    created_from: date | None = Field(None, description="Opened on this day (UTC) or later.")
    created_to: date | None = Field(None, description="Opened on this day (UTC) or earlier.")

    def kept(self) -> dict[str, Any]:
        """Return what was said, to be kept as JSON."""
        said: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return {
            name: list(dict.fromkeys(value)) if isinstance(value, list) else value
            for name, value in said.items()
        }


class ViewOpening(Body):
    """A view to be."""

    name: Name
    query: ViewQuery
    shared: Flag = Field(False, description="For everybody; managers and above.")


class ViewChange(Body):
    """What to change on a view."""

    # The factories are never asked: what was not sent is not read.
    name: Name = Field(default_factory=str)
    query: ViewQuery = Field(default_factory=ViewQuery)
    shared: Flag = Field(default_factory=bool)

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("name what to change: name, query or shared")
        return self

    def wanted(self) -> dict[str, Any]:
        """Return the fields that were sent."""
        fields: dict[str, Any] = self.model_dump(include=self.model_fields_set - {"query"})
        if "query" in self.model_fields_set:
            fields["query"] = self.query.kept()
        return fields


@frozen
class ViewOut:
    """A saved view; `url` is the list that it stands for, each reader's own."""

    id: UUID
    name: str
    query: dict[str, Any]
    url: str
    shared: bool
    owner_id: UUID
    owner_name: str
    created_at: datetime
    updated_at: datetime


def _shown(view: SavedView) -> ViewOut:
    query = urlencode(view.query, doseq=True)
    return ViewOut(url=f"/api/v1/tickets?{query}" if query else "/api/v1/tickets", **asdict(view))


async def list_views(call: Call) -> Reply:
    """List the caller's own views, then the shared ones."""
    return Reply([_shown(view) for view in await call.desk.views.list(call.caller)])


async def create_view(call: Call) -> Reply:
    """Keep a query under a name."""
    body: ViewOpening = call.body
    view = await call.desk.views.create(
        call.caller, name=body.name, query=body.query.kept(), shared=body.shared
    )
    return created(_shown(view), f"/api/v1/views/{view.id}")


async def get_view(call: Call) -> Reply:
    """Return a view."""
    return Reply(_shown(await call.desk.views.get(call.caller, call.path["id"])))


async def update_view(call: Call) -> Reply:
    """Change the fields of a view that are sent."""
    wanted = call.body.wanted()
    return Reply(_shown(await call.desk.views.update(call.caller, call.path["id"], wanted)))


async def delete_view(call: Call) -> Reply:
    """Forget a view."""
    await call.desk.views.delete(call.caller, call.path["id"])
    return NO_CONTENT


def _view(id: str, method: str, path: str, handler: Any, **more: Any) -> Route:
    return Route(
        id=id, method=method, path=path, handler=handler, who=Who.USER, tag="search", **more
    )


_MISSING = {"E_VIEW_NOT_FOUND": 404}
_TAKEN = {"E_VIEW_NAME_EXISTS": 409}

ROUTES: list[Route] = [
    Route(
        id="R26",
        method="GET",
        path="/tickets/search",
        handler=search,
        who=Who.USER,
        tag="search",
        query=SearchQuery,
        response=FindingsOut,
        errors={"E_SEARCH_TOO_BROAD": 503},
    ),
    _view("V1", "GET", "/views", list_views, response=list[ViewOut]),
    _view(
        "V2", "POST", "/views", create_view, body=ViewOpening, response=ViewOut, status=201,
        idempotent=True, errors={**_TAKEN, "E_VIEW_TOO_MANY": 409},
    ),
    _view("V3", "GET", "/views/{id}", get_view, response=ViewOut, errors=_MISSING),
    _view(
        "V4", "PATCH", "/views/{id}", update_view, body=ViewChange, response=ViewOut,
        errors={**_MISSING, **_TAKEN},
    ),
    _view("V5", "DELETE", "/views/{id}", delete_view, status=204, errors=_MISSING),
]  # fmt: skip
