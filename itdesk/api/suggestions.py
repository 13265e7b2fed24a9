"""Similar tickets, and suggestions that people accept or reject, over REST."""

from typing import Annotated, Any

from pydantic import Field

from itdesk.api.fields import Prose
from itdesk.api.paging import page_reply, window
from itdesk.api.route import Body, Call, ListQuery, Query, Reply, Route, Who
from itdesk.desk.similar import Similar
from itdesk.desk.suggestions import Advice, Decided
from itdesk.desk.writing import Written
from itdesk.store.suggestions import Suggestion, SuggestionState

LONGEST_TEXT = 20_000


class SimilarQuery(Query):
    """How many."""

    limit: int = Field(5, ge=1, le=20, description="How many tickets at most.")


class SuggestionQuery(ListQuery):
    """Which suggestions."""

    state: SuggestionState | None = Field(None, description="Only those in this state.")


class Acceptance(Body):
    """In which words, when not in the suggestion's own."""

    text: Annotated[Prose, Field(max_length=LONGEST_TEXT)] | None = Field(
        None, description="What to say instead; for a reply or a summary."
    )


async def list_similar(call: Call) -> Reply:
    """List tickets about the same thing that the caller may read, the most similar first."""
    found = await call.desk.similar.of(call.caller, call.path["ticket"], limit=call.query.limit)
    return Reply(found)


async def list_suggestions(call: Call) -> Reply:
    """List a ticket's suggestions, the newest first."""
    query: SuggestionQuery = call.query
    page = await call.desk.suggestions.list(
        call.caller, call.path["ticket"], window(query), state=query.state
    )
    return page_reply(call, page)


async def advice(call: Call) -> Reply:
    """Return what the desk believes of a ticket, beside what people said of it."""
    return Reply(await call.desk.suggestions.advice(call.caller, call.path["ticket"]))


async def summarise(call: Call) -> Reply:
    """Summarise a ticket for agents, from all that was said on it, as an open suggestion."""
    return Reply(await call.desk.writing.summarise(call.caller, call.path["ticket"]))


async def draft_reply(call: Call) -> Reply:
    """Draft a reply to whoever reported a ticket, from what they may read, as a suggestion."""
    return Reply(await call.desk.writing.draft(call.caller, call.path["ticket"]))


async def accept(call: Call) -> Reply:
    """Do what a suggestion proposes, as the caller, and mark it as accepted."""
    body: Acceptance | None = call.body
    decided = await call.desk.suggestions.accept(
        call.caller,
        call.path["ticket"],
        call.path["id"],
        text=body.text if body is not None else None,
        if_match=call.if_match,
    )
    return Reply(decided)


async def reject(call: Call) -> Reply:
    """Say that a suggestion is wrong."""
    return Reply(
        await call.desk.suggestions.reject(call.caller, call.path["ticket"], call.path["id"])
    )


async def revert(call: Call) -> Reply:
    """Put back what the desk changed by itself."""
    return Reply(
        await call.desk.suggestions.revert(call.caller, call.path["ticket"], call.path["id"])
    )


def _write(id: str, name: str, handler: Any) -> Route:
    return Route(
        id=id,
        method="POST",
        path=f"/tickets/{{ticket}}/{name}",
        handler=handler,
        who=Who.AGENT,
        tag="suggestions",
        response=Written,
        rate="ai",
    )


_MISSING = {"E_TICKET_NOT_FOUND": 404, "E_SUGGESTION_NOT_FOUND": 404}
_PATH = "/tickets/{ticket}/suggestions"
_STALE = {"E_SUGGESTION_STATE": 409, "E_SUGGESTION_STALE": 409}

ROUTES: list[Route] = [
    Route(
        id="G1",
        method="GET",
        path="/tickets/{ticket}/similar",
        handler=list_similar,
        who=Who.OWN,
        tag="suggestions",
        query=SimilarQuery,
        response=list[Similar],
        errors={"E_SEARCH_TOO_BROAD": 503},
    ),
    Route(
        id="G2",
        method="GET",
        path=_PATH,
        handler=list_suggestions,
        who=Who.AGENT,
        tag="suggestions",
        query=SuggestionQuery,
        response=list[Suggestion],
    ),
    Route(
        id="G3",
        method="POST",
        path=f"{_PATH}/{{id}}/accept",
        handler=accept,
        who=Who.AGENT,
        tag="suggestions",
        body=Acceptance,
        body_optional=True,
        response=Decided,
        if_match=True,
        errors={
            **_MISSING,
            **_STALE,
            "E_SUGGESTION_NO_TEXT": 409,
            "E_TICKET_INVALID_ASSIGNEE": 400,
            "E_TICKET_INVALID_STATUS_TRANSITION": 400,
            "E_TICKET_VERSION_MISMATCH": 412,
        },
    ),
    Route(
        id="G4",
        method="POST",
        path=f"{_PATH}/{{id}}/reject",
        handler=reject,
        who=Who.AGENT,
        tag="suggestions",
        response=Decided,
        errors={**_MISSING, "E_SUGGESTION_STATE": 409},
    ),
    Route(
        id="G5",
        method="POST",
        path=f"{_PATH}/{{id}}/revert",
        handler=revert,
        who=Who.AGENT,
        tag="suggestions",
        response=Decided,
        errors={**_MISSING, **_STALE},
    ),
    _write("G6", "summary", summarise),
    _write("G7", "draft-reply", draft_reply),
    Route(
        id="G8",
        method="GET",
        path="/tickets/{ticket}/advice",
        handler=advice,
        who=Who.AGENT,
        tag="suggestions",
        response=Advice,
    ),
]
