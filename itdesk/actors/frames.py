"""What goes over a websocket: events of the journal as frames that are encoded once for everybody.

Hides who may see what of an event: agents see all of it, the people of a ticket everything but
what is internal, of which they get no more than the ticket's new version.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from itdesk.frozen import frozen
from itdesk.model import Comment, Entry, Ticket
from itdesk.store import comments, events, tickets

PING = b"\x89\x00"
PROTOCOL = "itdesk.v1"

_AS_IN_REST = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC
# What the journal keeps for itself.
_UNTOLD = frozenset({"readers", "key", "title", "downloaded_by", "mirror"})


def text(payload: Mapping[str, Any]) -> bytes:
    """Return an object as one whole text frame (RFC 6455 5.2), good for any number of sockets."""
    return frame(0x1, orjson.dumps(payload, option=_AS_IN_REST))


def frame(opcode: int, body: bytes) -> bytes:
    """Return a whole unmasked frame."""
    size = len(body)
    if size < 126:
        return bytes((0x80 | opcode, size)) + body
    if size < 65536:
        return bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big") + body
    return bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big") + body


@frozen
class Delivery:
    """One event, ready to be sent.

    It goes `whole` to agents and above, as `public` to the people of the ticket; whoever stopped
    being one of them by this event hears that it is `gone`.
    """

    seq: int
    ticket: UUID
    readers: frozenset[UUID]
    leavers: frozenset[UUID]
    whole: bytes
    public: bytes
    gone: bytes
    created_at: datetime


@frozen
class Page:
    """What follows a position in the journal; events that are nobody's to see are left out."""

    deliveries: Sequence[Delivery]
    first: int
    last: int
    is_full: bool


async def page(conn: Any, after: int, *, limit: int) -> Page:
    """Read the journal after a number, with the tickets as they are now and who may read them."""
    entries = await events.after(conn, after, limit=limit)
    if not entries:
        return Page((), after, after, False)
    concerned = {e.event.ticket_id for e in entries if e.event.ticket_id is not None}
    found = await tickets.by_ids(conn, list(concerned)) if concerned else {}
    said = [comment for entry in entries if (comment := _comment_id(entry)) is not None]
    spoken = await comments.by_ids(conn, said) if said else {}
    deliveries = [
        _delivery(entry, entry.event.ticket_id, found, spoken)
        for entry in entries
        if entry.event.ticket_id is not None
    ]
    return Page(deliveries, entries[0].seq, entries[-1].seq, len(entries) == limit)


def readers(ticket: Ticket) -> frozenset[UUID]:
    """Return the people who may read a ticket without being agents: reporter and assignees."""
    people = frozenset(ticket.assignee_ids)
    return people if ticket.reporter_id is None else people | {ticket.reporter_id}


_SPOKEN = frozenset({"comment.added", "comment.updated"})


def _comment_id(entry: Entry) -> UUID | None:
    said = entry.event.data.get("comment_id") if entry.event.type in _SPOKEN else None
    return UUID(said) if said is not None else None


def _delivery(
    entry: Entry,
    ticket_id: UUID,
    found: Mapping[UUID, Ticket],
    spoken: Mapping[UUID, Comment],
) -> Delivery:
    event, ticket = entry.event, found.get(ticket_id)
    if event.type == "ticket.deleted":
        may_read = frozenset(map(UUID, event.data.get("readers", ())))
    else:
        may_read = readers(ticket) if ticket is not None else frozenset()
    comment_id = _comment_id(entry)
    about: dict[str, Any] = {
        "at": entry.created_at,
        "actor": {"id": event.actor_id, "name": event.actor_name},
        "source": event.source,
        "changes": event.changes,
        "details": {k: v for k, v in event.data.items() if k not in _UNTOLD},
        "comment": spoken.get(comment_id) if comment_id is not None else None,
        "ticket": ticket,
    }
    told: dict[str, Any] = {
        "type": event.type,
        "seq": entry.seq,
        "ticket": ticket_id,
        "key": ticket.key if ticket is not None else event.data.get("key"),
        "version": event.ticket_version,
        "data": about,
    }
    whole = public = text(told)
    if event.data.get("internal"):
        about = {**about, **_NOTHING_TOLD}
        public = text({**told, "type": "ticket.updated", "data": about})
    leavers, gone = frozenset[UUID](), b""
    for change in event.changes:
        if change.field == "assignee_ids":
            leavers = frozenset(map(UUID, change.old or ())) - may_read
            gone = text({**told, "type": "ticket.removed", "data": {**_NOTHING_SHOWN}})
    return Delivery(entry.seq, ticket_id, may_read, leavers, whole, public, gone, entry.created_at)


_NOTHING_TOLD: Mapping[str, Any] = {
    "actor": None, "source": None, "changes": [], "details": {}, "comment": None,
}  # fmt: skip
_NOTHING_SHOWN: Mapping[str, Any] = {"at": None, "ticket": None, **_NOTHING_TOLD}


def chunks(deliveries: Sequence[Delivery], *, most: int, octets: int) -> Iterable[list[Delivery]]:
    """Cut deliveries into runs that are small enough to be written at once."""
    run: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        if run and (len(run) == most or size + len(delivery.whole) > octets):
            yield run
            run, size = [], 0
        run.append(delivery)
        size += len(delivery.whole)
    if run:
        yield run
