"""The one declaration of a route.

Dispatch, authorisation, validation, idempotency, OpenAPI and the generated authorisation-matrix
test all read the same table of `Route`s; nothing about a route is said anywhere else.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from itdesk.frozen import frozen
from itdesk.model import Caller, Grant, Role, Ticket

if TYPE_CHECKING:
    from aiohttp import web

    from itdesk.api.dispatch import Dispatcher
    from itdesk.desk import Desk


class Who(StrEnum):
    """Who may call a route; what belongs to others is refused by the scoped loaders behind it."""

    PUBLIC = "public"
    USER = "user"
    OWN = "own"
    SELF = "self"
    AGENT = "agent"
    MANAGER = "manager"
    ADMIN = "admin"
    SIGNATURE = "signature"
    OPERATOR = "operator"

    @property
    def role(self) -> Role | None:
        """Return the least role that may call, or None when no sign-in is asked for."""
        return _LEAST_ROLE[self]


_LEAST_ROLE: Mapping[Who, Role | None] = {
    Who.PUBLIC: None,
    Who.SIGNATURE: None,
    Who.OPERATOR: None,
    Who.USER: Role.USER,
    Who.OWN: Role.USER,
    Who.SELF: Role.USER,
    Who.AGENT: Role.AGENT,
    Who.MANAGER: Role.MANAGER,
    Who.ADMIN: Role.ADMIN,
}


# A model is built by the first request that needs it: at the start it is time everybody waits.
class Body(BaseModel):
    """A JSON body; a field that is not declared is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    def __repr_args__(self) -> list[tuple[str | None, object]]:
        """Show no values: they may be passwords, and a repr ends in logs."""
        return []


class Query(BaseModel):
    """A query string; a parameter that is not declared is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ListQuery(Query):
    """The parameters that every list takes."""

    limit: int = Field(50, ge=1, le=200, description="How many entries at most.")
    cursor: str | None = Field(
        None, max_length=500, description="Where to go on: from the Link header of the last page."
    )
    offset: int = Field(0, ge=0, le=10_000, description="How many entries to skip; prefer cursor.")
    count: bool = Field(False, description="Whether to add X-Total-Count.")


@dataclass(slots=True)
class Call:
    """One request after it was authenticated, authorised and validated."""

    request: "web.BaseRequest"
    desk: "Desk"
    dispatcher: "Dispatcher"
    caller: Caller
    path: Mapping[str, str]
    body: Any = None
    query: Any = None
    base_url: str = ""
    address: str = ""
    secure: bool = False
    route: "Route | None" = None

    @property
    def if_match(self) -> str | None:
        """Return the If-Match header as sent, or None."""
        return self.request.headers.get("If-Match")


@frozen
class Reply:
    """What a handler answers: an object to encode as JSON, a status and headers."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Call], Awaitable["Reply | web.StreamResponse"]]


@frozen(kw_only=True)
class Route:
    """One method on one path: who may call it, what it takes, what it answers, how it fails.

    `path` is below /api/v1 unless `root`. `response` is a dataclass or `list[...]` of one, a JSON
    schema, or None for an empty answer. `errors` names the status of each of the route's own error
    codes; those that every route shares are added by the OpenAPI document. `raw_body` is the JSON
    schema of a body that the handler reads as bytes, because their signature counts. `also` names
    further statuses and what they answer, as `response` does; `other_media` names what the answer
    may be instead of JSON when the client asks for it. The handler's docstring is the summary.
    `seconds` is the deadline of a route that streams (math.inf for none): such a handler reads the
    body itself and is never run twice. A `websocket` route asks for its sign-in after the upgrade;
    before it, no more than where the request comes from is looked at. A `session_only` route is
    closed to API tokens, and an `enrolling` one is open to who must set up a second factor first.
    """

    id: str
    method: str
    path: str
    handler: Handler
    who: Who
    tag: str
    body: type[BaseModel] | None = None
    body_optional: bool = False
    body_media: str = "application/json"
    raw_body: Mapping[str, Any] | None = None
    query: type[Query] | None = None
    response: Any = None
    response_media: str = "application/json"
    other_media: tuple[str, ...] = ()
    status: int = 200
    errors: Mapping[str, int] = field(default_factory=dict)
    also: Mapping[int, Any] = field(default_factory=dict)
    idempotent: bool = False
    if_match: bool = False
    etag: bool = False
    rate: str = "default"
    root: bool = False
    seconds: float | None = None
    websocket: bool = False
    session_only: bool = False
    enrolling: bool = False

    @property
    def grant(self) -> Grant:
        """Return the least scope of an API token that may call."""
        if self.who.role is Role.ADMIN:
            return Grant.ADMIN
        return Grant.READ if self.method in ("GET", "HEAD") else Grant.WRITE

    @property
    def full_path(self) -> str:
        """Return the path as a client requests it."""
        return self.path if self.root else f"/api/v1{self.path}"


def one(
    ticket: Ticket | Mapping[str, Any], *, status: int = 200, location: str | None = None
) -> Reply:
    """Answer one ticket with its version as the ETag."""
    version = ticket.version if isinstance(ticket, Ticket) else ticket["version"]
    headers = {"ETag": f'"{version}"'}
    if location is not None:
        headers["Location"] = location
    return Reply(ticket, status, headers)


def created(body: Any, location: str) -> Reply:
    """Answer 201 with the new object and where it is."""
    return Reply(body, 201, {"Location": location})


NO_CONTENT = Reply(None, 204)
