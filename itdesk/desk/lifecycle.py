"""What may become of a ticket, and at whose word."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from itdesk.errors import BadRequest, Conflict, Forbidden, Invalid, PreconditionFailed
from itdesk.model import TRANSITIONS, Caller, Position, Role, Status, Ticket
from itdesk.store import events, tickets
from itdesk.store.db import Transaction

# What a user may change on a ticket of their own; everything else is for agents.
_USERS_FIELDS = frozenset({"title", "description", "tags", "status"})
_USERS_MOVES = frozenset({Status.OPEN, Status.CLOSED})


def require_version(ticket: Ticket, if_match: str | None) -> None:
    """Raise PreconditionFailed unless the If-Match header names this version (RFC 9110 13.1.1)."""
    if if_match is None:
        return
    tags = [tag.strip() for tag in if_match.split(",")]
    if "*" not in tags and f'"{ticket.version}"' not in tags:
        raise PreconditionFailed(
            "Somebody changed the ticket meanwhile. Compare with `current` and try again.",
            code="E_TICKET_VERSION_MISMATCH",
            details={"current": ticket},
        )


async def require_seen(tx: Transaction, ticket: Ticket, last_seen: int | Position) -> None:
    """Refuse to answer over somebody's head."""
    version, seq = (last_seen, None) if isinstance(last_seen, int) else (None, last_seen.seq)
    if isinstance(last_seen, Position):
        if last_seen.epoch != (await events.head(tx.conn)).epoch:
            raise Invalid.field("last_seen.epoch", "is not the journal's: subscribe again")
    elif last_seen > ticket.version:
        raise Invalid.field("last_seen", f"is beyond the ticket's version {ticket.version}")
    unseen = await events.unseen(tx.conn, ticket.id, version=version, seq=seq)
    if unseen:
        raise Conflict(
            "Somebody answered or moved the ticket meanwhile. Read `newer`, then send your comment"
            " again with the new last_seen, or with force=true.",
            code="E_TICKET_ANSWERED_MEANWHILE",
            details={"version": ticket.version, "newer": unseen},
        )


def require_agent(caller: Caller, field: str) -> None:
    """Raise Forbidden unless the caller may set what only agents set."""
    if not caller.has(Role.AGENT):
        raise Forbidden(f"Only agents and above may set {field}.", details={"field": field})


def require_allowed(caller: Caller, ticket: Ticket, wanted: Mapping[str, Any]) -> None:
    """Refuse fields that are not this role's to set, and a user's move other than close, reopen."""
    if caller.has(Role.AGENT):
        return
    for field in wanted:
        if field not in _USERS_FIELDS:
            require_agent(caller, field)
    status = wanted.get("status", ticket.status)
    if status != ticket.status and status not in _USERS_MOVES:
        require_agent(caller, "status")


async def require_assignable(conn: Any, people: Sequence[UUID]) -> None:
    """Raise BadRequest when one of these people cannot be given tickets."""
    if not people:
        return
    known = await tickets.assignable(conn, people)
    unknown = [str(person) for person in people if person not in known]
    if unknown:
        raise BadRequest(
            "These people cannot be given tickets; GET /api/v1/assignees lists who can.",
            code="E_TICKET_INVALID_ASSIGNEE",
            details={"assignee_ids": unknown},
        )


def require_transition(now: Status, wanted: Status) -> None:
    """Raise BadRequest unless a ticket in the one status may come into the other."""
    if wanted not in TRANSITIONS[now]:
        allowed = ", ".join(TRANSITIONS[now])
        raise BadRequest(
            f"A ticket that is {now} cannot become {wanted}; it can become {allowed}.",
            code="E_TICKET_INVALID_STATUS_TRANSITION",
            details={"from": now, "to": wanted, "allowed": list(TRANSITIONS[now])},
        )


def no_project(key: str) -> BadRequest:
    """Return the error that there is no such project to open a ticket in."""
    return BadRequest(
        f"There is no project {key} that numbers its own tickets; GET /api/v1/projects lists them.",
        code="E_TICKET_INVALID_PROJECT",
        details={"project": key},
    )
