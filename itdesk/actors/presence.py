"""Who looks at a ticket and who is typing: told to whoever may read it, written down nowhere.

Every frame holds all who are there, so that one that is missed does no harm. Whoever does not say
so again in time is gone.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from itdesk.actors.client import Client
from itdesk.actors.frames import readers, text
from itdesk.errors import NotFound
from itdesk.store import tickets

if TYPE_CHECKING:
    from itdesk.actors.hub import Hub

VIEWING, TYPING, AWAY = "viewing", "typing", "away"

# How long it may be remembered who may read a ticket, and of how many.
REMEMBERED_SECONDS, REMEMBERED = 2.0, 2_000
MOST_ROOMS, MOST_SHOWN = 20, 50
# How soon somebody's other state is told; a second hand on the keyboard is no news.
SETTLE_SECONDS = 1.0


@dataclass(slots=True)
class _Ticket:
    id: UUID
    key: str
    readers: frozenset[UUID]
    read_at: float


@dataclass(slots=True)
class _State:
    state: str
    until: float
    since: float


@dataclass(slots=True)
class _Room:
    key: str
    people: dict[Client, _State] = field(default_factory=dict)
    stale: bool = False


class Presence:
    """Who is where at this moment, as far as this daemon's websockets know."""

    def __init__(self, hub: "Hub", seconds: float) -> None:
        self._hub = hub
        self._seconds = seconds
        self._known: OrderedDict[str, _Ticket] = OrderedDict()
        self._rooms: dict[UUID, _Room] = {}
        self._rooms_of: dict[Client, set[UUID]] = {}

    async def say(self, client: Client, ref: str, state: str) -> bool:
        """Note what a client does with a ticket; False when it is at too many of them at once.

        Raises NotFound when the ticket is not there for it.
        """
        ticket = await self._ticket(client, ref)
        now = self._hub.clock.monotonic()
        room = self._rooms.get(ticket.id)
        if state == AWAY:
            if room is not None and client in room.people:
                self._take_out(ticket.id, room, [client])
                await self._tell(ticket.id, room, ticket.readers)
            return True
        mine = self._rooms_of.setdefault(client, set())
        if ticket.id not in mine and len(mine) >= MOST_ROOMS:
            return False
        if room is None:
            room = self._rooms[ticket.id] = _Room(ticket.key)
        room.key = ticket.key
        mine.add(ticket.id)
        before = room.people.get(client)
        until = now + self._seconds
        if before is None:
            room.people[client] = _State(state, until, now)
        elif before.state != state and now - before.since >= SETTLE_SECONDS:
            before.state, before.until, before.since = state, until, now
        else:
            before.until = until
            client.outbox.put(_frame(ticket.id, room))
            return True
        await self._tell(ticket.id, room, ticket.readers)
        if not client.live or not (client.tickets is None or ticket.id in client.tickets):
            client.outbox.put(_frame(ticket.id, room))
        return True

    def forget(self, client: Client) -> None:
        """Take a client out of every room; the others are told at the next tick."""
        for ticket_id in self._rooms_of.pop(client, ()):
            room = self._rooms[ticket_id]
            del room.people[client]
            room.stale = True

    async def sweep(self) -> None:
        """Take out those who did not say in time that they are still there."""
        now = self._hub.clock.monotonic()
        for ticket_id, room in self._rooms.items():
            late = [client for client, state in room.people.items() if now >= state.until]
            self._take_out(ticket_id, room, late)
        stale = [ticket_id for ticket_id, room in self._rooms.items() if room.stale]
        if not stale:
            return
        async with self._hub.reading() as conn:
            found = await tickets.by_ids(conn, stale)
        for ticket_id in stale:
            if ticket_id not in self._rooms:
                continue  # it was left while we asked
            room, ticket = self._rooms[ticket_id], found.get(ticket_id)
            may_read = readers(ticket) if ticket is not None else frozenset[UUID]()
            self._take_out(ticket_id, room, [c for c in room.people if not c.may_read(may_read)])
            await self._tell(ticket_id, room, may_read)

    def _take_out(self, ticket_id: UUID, room: _Room, clients: Iterable[Client]) -> None:
        for client in clients:
            del room.people[client]
            self._rooms_of[client].discard(ticket_id)
            room.stale = True

    async def _tell(self, ticket_id: UUID, room: _Room, may_read: frozenset[UUID]) -> None:
        room.stale = False
        if not room.people:
            self._rooms.pop(ticket_id, None)
        await self._hub.announce(ticket_id, may_read, _frame(ticket_id, room))

    async def _ticket(self, client: Client, ref: str) -> _Ticket:
        now = self._hub.clock.monotonic()
        known = self._known.get(ref)
        if known is None or now - known.read_at > REMEMBERED_SECONDS:
            async with self._hub.reading() as conn:
                ticket = await tickets.find(conn, ref, scope=None)
            known = self._known[ref] = _Ticket(ticket.id, ticket.key, readers(ticket), now)
            self._known.move_to_end(ref)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        if not client.may_read(known.readers):
            raise NotFound.of("ticket")
        return known


def _frame(ticket_id: UUID, room: _Room) -> bytes:
    people: dict[UUID, dict[str, object]] = {}
    for client, state in room.people.items():
        shown = people.get(client.user_id)
        if shown is None:
            people[client.user_id] = {
                "id": client.user_id, "name": client.caller.name, "state": state.state,
            }  # fmt: skip
        elif state.state == TYPING:
            shown["state"] = TYPING
    listed = list(people.values())[:MOST_SHOWN]
    return text({"type": "presence", "ticket": ticket_id, "key": room.key, "people": listed})
