"""The hub: every event of the journal to every websocket that may see it, in order, once.

The journal's numbers are all that counts. A client goes live when it was sent everything up to
where the hub has read; from then on the hub sends it what is beyond its own position, so that
neither the change-over nor a broadcast that was cut short loses or repeats an event.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

from itdesk.actors.client import Allowance, Client, Goodbye
from itdesk.actors.frames import PING, Delivery, Page, chunks, page, text
from itdesk.actors.outbox import Bounds, Outbox, Wire
from itdesk.actors.presence import Presence
from itdesk.errors import Unavailable
from itdesk.model import Caller, Position
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.log import get_logger
from itdesk.store import events, sessions, tickets

if TYPE_CHECKING:
    from itdesk.desk import Desk

# Small enough that reading and encoding a page does not hold up the loop.
PAGE = 100
CHUNK_MESSAGES, CHUNK_BYTES = 50, 32_768
# How long, and for how many clients, a broadcast goes on before everybody else has a turn.
SLICE_SECONDS, SLICE_CLIENTS = 0.003, 250
RECHECKED_AT_ONCE = 1_000
# How many may ask the database at a time: a storm of clients must not starve the requests.
READERS = 3
SPENT_PEOPLE = 10_000

log = get_logger("hub")


class Hub(Actor):
    """Knows all websockets of this daemon and what each of them has been sent."""

    name = "hub"
    period = 1.0

    def __init__(self, desk: "Desk") -> None:
        self._db = desk.db
        self._admission = desk.sessions.admission
        self.settings = desk.settings.hub
        self._limited = desk.settings.limits.enabled
        self._bounds = Bounds(self.settings.outbox_messages, self.settings.outbox_bytes)
        self._clients: dict[Client, None] = {}
        self._people: dict[UUID, Allowance] = {}
        # Where the live ones are found: those who hear everything, by person, by ticket.
        self._everything: dict[Client, None] = {}
        self._of_user: dict[UUID, dict[Client, None]] = {}
        self._of_ticket: dict[UUID, dict[Client, None]] = {}
        self._epoch: UUID | None = None
        # Read is what whoever goes live must have been sent; done is what all the live ones were.
        self._read = self._done = 0
        self._told: Position | None = None
        self._rechecked = 0.0
        self._readers = asyncio.Semaphore(READERS)
        self.signing_in = asyncio.Semaphore(READERS)
        self._all_gone = asyncio.Event()
        self.leaving = False
        self.presence = Presence(self, self.settings.presence_seconds)
        metrics = desk.metrics
        self._gauge = metrics.gauge("itdesk_websocket_clients", "Open websockets.")
        self._dropped = metrics.counter(
            "itdesk_websocket_dropped_total", "Websockets that the server closed.", ["reason"]
        )
        self._sent = metrics.counter("itdesk_websocket_frames_total", "Events sent to websockets.")
        self._resyncs = metrics.counter(
            "itdesk_websocket_resyncs_total", "Clients told to read everything anew."
        )
        self._chats = metrics.counter(
            "itdesk_websocket_chats_total",
            "Chats on websockets, by how they ended: done, or the code of what went wrong.",
            ["outcome"],
        )
        self._latency = metrics.histogram(
            "itdesk_websocket_latency_seconds", "From a change to its frame for the last reader."
        )

    def advanced(self, position: Position) -> None:
        """Take note of how far the journal is."""
        self._told = position
        if not len(self.mailbox):
            self.tell(position)

    async def handle(self, message: object) -> None:
        """Send on what is new; at a tick, look whether everybody may and does still listen."""
        try:
            if self._told is not None:
                await self._catch_up()
            if message is TICK:
                await self._look_after_all()
                await self.presence.sweep()
        except Unavailable as exc:
            # The clients stay, and what they were not sent stays to be sent: at the next tick.
            log.warning("the database is away", problem=exc.code)

    # --- coming and going ---

    def enter(self, caller: Caller, expires_at: datetime, wire: Wire) -> Client | Goodbye:
        """Take in an authenticated websocket, or say why not."""
        if caller.user_id is None or caller.session_id is None:
            return Goodbye.TOKEN
        if self.leaving:
            return Goodbye.SHUTDOWN
        now = self.clock.monotonic()
        person = self._people.get(caller.user_id)
        if person is None:
            allowed = 2.0 * self.settings.frames_per_second
            person = self._people[caller.user_id] = Allowance(allowed, now)
            self._forget_people(now)
        if self._limited and person.sockets >= self.settings.sockets_per_user:
            return Goodbye.SOCKETS
        person.sockets += 1
        outbox = Outbox(wire, self._bounds, lambda: self.close(client, Goodbye.SLOW))
        client = Client(caller, caller.user_id, caller.session_id, expires_at, outbox, now, now)
        self._clients[client] = None
        self._gauge.set(len(self._clients))
        return client

    def renew(self, client: Client, caller: Caller, expires_at: datetime) -> None:
        """Let a client stay for as long as its fresh token says."""
        if caller.user_id != client.user_id or caller.session_id is None:
            self.close(client, Goodbye.OTHER)
        elif caller.role != client.caller.role:
            self.close(client, Goodbye.ROLE)
        else:
            # What it may do from now on is what this token may.
            client.caller = caller
            client.session_id, client.expires_at = caller.session_id, expires_at

    def leave(self, client: Client) -> None:
        """Forget a websocket that is over."""
        self._mute(client)
        client.outbox.stop()
        del self._clients[client]
        self._people[client.user_id].sockets -= 1
        self.presence.forget(client)
        self._gauge.set(len(self._clients))
        if self.leaving and not self._clients:
            self._all_gone.set()

    def allows(self, client: Client) -> bool:
        """Count a frame that a client sent; False when its person sends too many."""
        now = client.heard = self.clock.monotonic()
        person = self._people[client.user_id]
        return not self._limited or person.take(now, self.settings.frames_per_second)

    def close(self, client: Client, goodbye: Goodbye) -> None:
        """End a conversation."""
        if client.close(goodbye):
            self._mute(client)
            self.count_drop(goodbye)

    def count_drop(self, goodbye: Goodbye) -> None:
        """Count a websocket that the server closes."""
        self._dropped.labels(goodbye.label).inc()

    def count_chat(self, outcome: str) -> None:
        """Count a chat that is over."""
        self._chats.labels(outcome).inc()

    async def dismiss(self, seconds: float = 5.0) -> None:
        """Say goodbye to everybody, and return when they are gone, or after these seconds."""
        self.leaving = True
        await self._each(self._clients, self.close, Goodbye.SHUTDOWN)
        if self._clients:
            try:
                async with self.clock.deadline(seconds):
                    await self._all_gone.wait()
            except TimeoutError:
                log.warning("websockets left behind", websockets=len(self._clients))

    def _forget_people(self, now: float) -> None:
        # What somebody has spent is remembered for a while: reconnecting buys nothing.
        if len(self._people) > SPENT_PEOPLE + len(self._clients):
            gone = [who for who, p in self._people.items() if not p.sockets and now - p.at > 10]
            for user_id in gone:
                del self._people[user_id]

    # --- subscribing ---

    async def subscribe(
        self, client: Client, since: Position | None, refs: Sequence[str] | None
    ) -> None:
        """Send what happened since a position, and from then on all that happens.

        Without `refs` that is everything that the client may read; NotFound when one of them is
        not there for it.
        """
        self._mute(client)
        client.tickets = None
        if refs is not None:
            async with self.reading() as conn:
                found = await tickets.named(conn, refs, scope=client.caller.scope)
            client.tickets = frozenset(found)
        if self._epoch is None:
            async with self.reading() as conn:
                self._begin(await events.head(conn))
        if since is None:
            self._welcome(client, self._read)
            self._go_live(client)
        elif since.epoch != self._epoch or not await self._is_known(since.seq):
            self._welcome(client, self._read)
            self._resync(client)
            self._go_live(client)
        else:
            self._welcome(client, since.seq)
            await self._replay(client)

    def _mute(self, client: Client) -> None:
        if not client.live:
            return
        client.live = False
        if client.tickets is not None:
            for ticket_id in client.tickets:
                _drop(self._of_ticket, ticket_id, client)
        elif client.is_agent:
            del self._everything[client]
        else:
            _drop(self._of_user, client.user_id, client)

    def _go_live(self, client: Client) -> None:
        if client.goodbye is not None:
            return
        client.live = True
        if client.tickets is not None:
            for ticket_id in client.tickets:
                self._of_ticket.setdefault(ticket_id, {})[client] = None
        elif client.is_agent:
            self._everything[client] = None
        else:
            self._of_user.setdefault(client.user_id, {})[client] = None

    def _welcome(self, client: Client, seq: int) -> None:
        client.position = seq
        client.outbox.put(text({"type": "welcome", "epoch": self._epoch, "seq": seq}))

    def _resync(self, client: Client) -> None:
        self._resyncs.inc()
        client.position = self._read
        client.outbox.put(text({"type": "resync", "epoch": self._epoch, "seq": self._read}))

    def _resync_live(self, client: Client) -> None:
        if client.live:
            self._resync(client)

    async def _is_known(self, seq: int) -> bool:
        """Return whether a number was given out; another daemon may be ahead of us."""
        if seq <= self._read:
            return True
        async with self.reading() as conn:
            return seq <= (await events.head(conn)).seq

    async def _replay(self, client: Client) -> None:
        """Send page by page what a client missed, as fast as it takes it, and let it go live."""
        epoch = self._epoch
        while client.position < self._read:
            target = self._read
            async with self.reading() as conn:
                missed = await page(conn, client.position, limit=PAGE)
                # Asked last: what is there now was there when the page was read.
                oldest = await events.oldest(conn)
            if epoch != self._epoch or not 0 < oldest <= client.position + 1:
                self._resync(client)
                break
            wanted = [delivery for delivery in missed.deliveries if client.wants(delivery)]
            for run in chunks(wanted, most=CHUNK_MESSAGES, octets=CHUNK_BYTES):
                client.outbox.put(b"".join(map(client.frame, run)), len(run))
                await client.outbox.room()
            if client.outbox.closed:
                return
            self._sent.inc(len(wanted))
            # What was numbered and is not there went with a deleted ticket.
            client.position = missed.last if missed.is_full else max(missed.last, target)
        self._go_live(client)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """Lend a connection to whoever's turn it is."""
        async with self._readers, self._db.connection() as conn:
            yield conn

    # --- sending ---

    def _begin(self, position: Position) -> None:
        self._epoch, self._read, self._done = position.epoch, position.seq, position.seq

    async def _catch_up(self) -> None:
        """Send all that is new to all who are live."""
        while (told := self._told) is not None:
            if self._epoch is None:
                self._begin(told)
            if told.epoch != self._epoch:
                await self._start_over(told)
            if self._done >= told.seq:
                return
            if not (self._everything or self._of_user or self._of_ticket):
                # Nobody is live: whoever subscribes reads what it missed by itself.
                self._read = self._done = told.seq
                return
            async with self._db.connection() as conn:
                news = await page(conn, self._done, limit=PAGE)
                gap = news.first > self._done + 1
                if gap and self._done and await events.oldest(conn) == news.first:
                    # More was trimmed than we had read: nobody can tell what it was.
                    await self._start_over(Position(told.epoch, news.first - 1))
            self._read = news.last if news.is_full else max(news.last, told.seq)
            await self._broadcast(news)
            self._done = self._read

    async def _start_over(self, position: Position) -> None:
        """Tell everybody that what they know is no basis for what comes."""
        log.warning("the journal cannot be continued", seq=position.seq)
        self._begin(position)
        await self._each(self._clients, self._resync_live)

    async def _broadcast(self, news: Page) -> None:
        sent = 0
        for run in chunks(news.deliveries, most=CHUNK_MESSAGES, octets=CHUNK_BYTES):
            if self._everything:
                whole = b"".join(delivery.whole for delivery in run)
                sent += len(run) * await self._each(self._everything, self._send_run, run, whole)
            for delivery in run:
                receivers = self._concerned(delivery.ticket, delivery.readers | delivery.leavers)
                if receivers:
                    sent += await self._each(receivers, self._send, delivery)
        self._sent.inc(sent)
        now = self.clock.now()
        for delivery in news.deliveries if sent else ():
            self._latency.observe(max(0.0, (now - delivery.created_at).total_seconds()))

    def _concerned(self, ticket: UUID, readers: frozenset[UUID]) -> list[Client]:
        """Return who hears of this ticket without hearing everything."""
        found = [client for person in readers for client in self._of_user.get(person, ())]
        listed = self._of_ticket.get(ticket, ())
        return found + [client for client in listed if client.may_read(readers)]

    def _send_run(self, client: Client, run: Sequence[Delivery], whole: bytes) -> None:
        if not client.live or client.tickets is not None:
            return
        if client.position < run[0].seq:
            client.position = run[-1].seq
            client.outbox.put(whole, len(run))
        else:
            for delivery in run:
                self._send(client, delivery)

    def _send(self, client: Client, delivery: Delivery) -> None:
        # Between the slices of a broadcast, a client may have moved on.
        if client.live and client.position < delivery.seq and client.wants(delivery):
            client.position = delivery.seq
            client.outbox.put(client.frame(delivery))

    async def announce(self, ticket: UUID, readers: frozenset[UUID], frame: bytes) -> None:
        """Send a frame that is no event to all who hear of a ticket."""
        receivers = [*self._everything, *self._concerned(ticket, readers)]
        await self._each(receivers, lambda client: client.live and client.outbox.put(frame))

    async def _each(
        self, clients: Iterable[Client], act: Callable[..., object], *what: object
    ) -> int:
        """Do something for all of these, in slices, so that everybody else has a turn."""
        monotonic, clients = self.clock.monotonic, tuple(clients)
        began, left = monotonic(), SLICE_CLIENTS
        for number, client in enumerate(clients, 1):
            act(client, *what)
            left -= 1
            if not left or (number % 16 == 0 and monotonic() - began > SLICE_SECONDS):
                self.progress()
                await self.clock.sleep(0)
                began, left = monotonic(), SLICE_CLIENTS
        return len(clients)

    # --- looking after them ---

    async def _look_after_all(self) -> None:
        now, wall = self.clock.monotonic(), self.clock.now()
        await self._each(self._clients, self._look_after, now, wall)
        # Half a tick early is better than one late.
        if now - self._rechecked >= self.settings.recheck_seconds - 0.5:
            self._rechecked = now
            await self._recheck(wall)

    def _look_after(self, client: Client, now: float, wall: datetime) -> None:
        if wall >= client.expires_at:
            self.close(client, Goodbye.EXPIRED)
        elif now - client.pinged >= self.settings.ping_seconds:
            if client.heard < client.pinged:
                self.close(client, Goodbye.GONE)
            else:
                client.pinged = now
                client.outbox.put(PING)

    async def _recheck(self, wall: datetime) -> None:
        """Close the websockets of sessions that are over, and of people with another role."""
        by_session: dict[UUID, list[Client]] = {}
        for client in self._clients:
            by_session.setdefault(client.session_id, []).append(client)
        ids = iter(by_session)
        while some := list(islice(ids, RECHECKED_AT_ONCE)):
            async with self.reading() as conn:
                living = await sessions.living(conn, some)
            for session_id in some:
                session = living.get(session_id)
                for client in by_session[session_id]:
                    if client.session_id != session_id:
                        continue  # it has shown another token meanwhile
                    if session is None or wall >= session.expires_at:
                        self.close(client, Goodbye.ENDED)
                    elif self._admission.must_enrol(session):
                        self.close(client, Goodbye.FACTOR)
                    elif session.role != client.caller.role:
                        self.close(client, Goodbye.ROLE)
            self.progress()


def _drop(index: dict[UUID, dict[Client, None]], key: UUID, client: Client) -> None:
    found = index[key]
    del found[client]
    if not found:
        del index[key]
