"""The hub, driven by hand on a real database: who gets what, in which order, and what when not."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio

from itdesk.actors.client import Client, Goodbye
from itdesk.actors.hub import PAGE, Hub
from itdesk.actors.sequencer import Sequencer
from itdesk.errors import NotFound
from itdesk.model import SYSTEM, Caller, Event, Position, Role, Ticket
from itdesk.runtime.actor import TICK
from itdesk.runtime.clock import FakeClock
from itdesk.store import events
from tests.support.desk import Bench, bench_on
from tests.support.postgres import Server

Frame = dict[str, Any]


@dataclass
class Wire:
    """The far end of a websocket: keeps what is sent to it, and can stop reading."""

    writing_paused: bool = False
    sent: bytearray = field(default_factory=bytearray)
    raised: Callable[[], object] = int

    @property
    def transport(self) -> "Wire":
        """Return where the bytes go."""
        return self

    def write(self, data: bytes) -> None:
        """Take bytes."""
        self.raised()
        self.sent += data

    def is_closing(self) -> bool:
        """Stay open."""
        return False

    def frames(self) -> list[Frame]:
        """Return the text frames so far, decoded."""
        found, rest = [], bytes(self.sent)
        while rest:
            opcode, size, begin = rest[0] & 15, rest[1], 2
            if size == 126:
                size, begin = int.from_bytes(rest[2:4], "big"), 4
            elif size == 127:
                size, begin = int.from_bytes(rest[2:10], "big"), 10
            if opcode == 1:
                found.append(orjson.loads(rest[begin : begin + size]))
            rest = rest[begin + size :]
        return found


@dataclass
class Office:
    """A hub with its sequencer, and people who listen."""

    bench: Bench
    hub: Hub
    sequencer: Sequencer
    clock: FakeClock
    wires: dict[Client, Wire] = field(default_factory=dict)

    async def client(self, person: Caller, *, seconds: float = 900) -> Client:
        """Return a websocket of somebody."""
        expires = self.clock.now() + timedelta(seconds=seconds)
        wire = Wire()
        caller = replace(person, session_id=person.session_id or uuid4())
        entered = self.hub.enter(caller, expires, wire)
        assert isinstance(entered, Client)
        self.wires[entered] = wire
        return entered

    async def listener(self, person: Caller, **how: Any) -> Client:
        """Return a websocket of somebody that hears what happens from now on."""
        client = await self.client(person, **how)
        await self.hub.subscribe(client, None, None)
        return client

    async def number(self) -> Position:
        """Number what was committed; return how far the journal is."""
        self.sequencer.tell(TICK)
        while len(self.sequencer.mailbox):
            await self.sequencer.step()
        async with self.bench.desk.db.connection() as conn:
            return await events.head(conn)

    async def step(self) -> None:
        """Let what was committed reach everybody."""
        self.hub.advanced(await self.number())
        while len(self.hub.mailbox):
            await self.hub.step()

    async def tick(self, seconds: float = 0.0) -> None:
        """Let some time pass for the hub."""
        await self.clock.advance(seconds)
        self.hub.tell(TICK)
        while len(self.hub.mailbox):
            await self.hub.step()

    def heard(self, client: Client) -> list[Frame]:
        """Return the events that a client was sent."""
        return [frame for frame in self.wires[client].frames() if "version" in frame]

    def types(self, client: Client) -> list[str]:
        """Return the types of all frames that a client was sent."""
        return [frame["type"] for frame in self.wires[client].frames()]

    async def comments(self, caller: Caller, ticket: Ticket, times: int) -> None:
        """Say something over and over."""
        for number in range(times):
            await self.bench.desk.tickets.comment(caller, ticket.key, f"number {number}")

    async def trim(self, below: int) -> None:
        """Take the beginning of the journal away, as an operator would."""
        async with self.bench.desk.db.transaction() as tx:
            await tx.conn.execute("SET LOCAL itdesk.erase = 'on'")
            await tx.conn.execute("DELETE FROM events WHERE seq < $1", below)

    async def restore(self) -> None:
        """Give the journal another epoch, as a restored backup does."""
        await self.bench.sql("UPDATE journal_head SET epoch = gen_random_uuid() RETURNING 1")


@pytest_asyncio.fixture(name="office")
async def _office(pg_server: Server) -> AsyncIterator[Office]:
    url = await pg_server.create()
    try:
        async with bench_on(url) as bench:
            clock = FakeClock(bench.desk.clock.now())
            bench.desk.clock = clock
            hub, sequencer = Hub(bench.desk), Sequencer(bench.desk.db, bench.desk.metrics)
            hub.clock = clock
            yield Office(bench, hub, sequencer, clock)
    finally:
        await pg_server.drop(url)


@dataclass
class Cast:
    """Those who play in most of the tests."""

    alice: Caller
    bob: Caller
    agent: Caller
    ticket: Ticket


@pytest_asyncio.fixture(name="cast")
async def _cast(office: Office) -> Cast:
    alice, bob = await office.bench.person(), await office.bench.person()
    agent = await office.bench.person(Role.AGENT)
    ticket = await office.bench.ticket(alice)
    await office.step()
    return Cast(alice, bob, agent, ticket)


def position(frame: Frame) -> Position:
    """Return the position that a frame names."""
    return Position(UUID(frame["epoch"]), frame["seq"])


# --- who gets what ---------------------------------------------------------------------------


async def test_only_those_who_may_read_a_ticket_hear_of_it_s_31(office: Office, cast: Cast) -> None:
    alice, bob, agent = [await office.listener(p) for p in (cast.alice, cast.bob, cast.agent)]
    await office.comments(cast.agent, cast.ticket, 2)
    await office.step()
    assert [f["version"] for f in office.heard(alice)] == [2, 3]
    assert office.heard(alice) == office.heard(agent)
    assert office.types(bob) == ["welcome"]
    late = await office.client(cast.bob)
    await office.hub.subscribe(late, position(office.wires[bob].frames()[0]), None)
    assert office.types(late) == ["welcome"]


async def test_an_internal_comment_is_a_bare_version_for_users(office: Office, cast: Cast) -> None:
    alice, agent = await office.listener(cast.alice), await office.listener(cast.agent)
    await office.bench.desk.tickets.comment(
        cast.agent, cast.ticket.key, "the secret", internal=True
    )
    await office.step()
    (seen,), (whole,) = office.heard(alice), office.heard(agent)
    assert whole["type"] == "comment.added" and whole["data"]["comment"]["body"] == "the secret"
    assert (seen["type"], seen["seq"], seen["version"]) == ("ticket.updated", whole["seq"], 2)
    data = seen["data"]
    assert data["actor"] is data["comment"] is data["source"] is None
    assert (data["changes"], data["details"]) == ([], {})
    assert b"secret" not in office.wires[alice].sent
    assert str(cast.agent.user_id).encode() not in office.wires[alice].sent


async def test_a_frame_shows_the_ticket_as_rest_does(office: Office, cast: Cast) -> None:
    alice = await office.listener(cast.alice)
    await office.bench.desk.tickets.update(cast.alice, cast.ticket.key, {"title": "Better"})
    await office.step()
    (frame,) = office.heard(alice)
    assert (frame["ticket"], frame["key"]) == (str(cast.ticket.id), cast.ticket.key)
    assert frame["data"]["changes"] == [
        {"field": "title", "old": cast.ticket.title, "new": "Better"}
    ]
    assert frame["data"]["ticket"]["title"] == "Better"
    assert frame["data"]["ticket"]["created_at"].endswith("Z")


async def test_who_loses_a_ticket_hears_no_more_of_it_s_31(office: Office, cast: Cast) -> None:
    """An agent with a ticket becomes a user: what is assigned stays readable, until it is not."""
    desk, carl = office.bench.desk, await office.bench.person(Role.AGENT)
    await desk.tickets.update(SYSTEM, cast.ticket.key, {"assignee_ids": [carl.user_id]})
    await office.step()
    carl = replace(carl, role=Role.USER)
    client, listed = await office.listener(carl), await office.client(carl)
    await office.hub.subscribe(listed, None, [cast.ticket.key])
    since = position(office.wires[client].frames()[0])
    await office.comments(cast.alice, cast.ticket, 1)
    await office.step()
    assert [f["type"] for f in office.heard(client)] == ["comment.added"]
    await desk.tickets.update(SYSTEM, cast.ticket.key, {"assignee_ids": []})
    await office.comments(cast.alice, cast.ticket, 3)
    await office.step()
    assert office.heard(listed) == office.heard(client)
    last = office.heard(client)[1:]
    assert [(f["type"], f["data"]["ticket"]) for f in last] == [("ticket.removed", None)]
    assert "number 0" not in str(last)
    again = await office.client(carl)
    await office.hub.subscribe(again, since, None)
    assert [f["type"] for f in office.heard(again)] == ["ticket.removed"]


async def test_a_deleted_ticket_is_told_to_those_who_could_read_it(
    office: Office, cast: Cast
) -> None:
    alice, bob, agent = [await office.listener(p) for p in (cast.alice, cast.bob, cast.agent)]
    await office.bench.desk.tickets.delete(SYSTEM, cast.ticket.key)
    await office.step()
    for client in (alice, agent):
        (frame,) = office.heard(client)
        assert (frame["type"], frame["key"]) == ("ticket.deleted", cast.ticket.key)
        assert frame["data"]["ticket"] is None and "readers" not in frame["data"]["details"]
    assert office.heard(bob) == []


async def test_listed_tickets_are_all_that_is_heard_of(office: Office, cast: Cast) -> None:
    other = await office.bench.ticket(cast.alice)
    client = await office.client(cast.alice)
    await office.hub.subscribe(client, None, [cast.ticket.key, str(cast.ticket.id)])
    await office.comments(cast.agent, other, 1)
    await office.comments(cast.agent, cast.ticket, 1)
    await office.step()
    assert [f["ticket"] for f in office.heard(client)] == [str(cast.ticket.id)]
    await office.hub.subscribe(client, None, None)
    await office.comments(cast.agent, other, 1)
    await office.step()
    assert office.heard(client)[-1]["ticket"] == str(other.id)


async def test_a_foreign_ticket_is_refused_as_a_missing_one_is_s_31(
    office: Office, cast: Cast
) -> None:
    client = await office.client(cast.bob)
    problems = set()
    for ref in (cast.ticket.key, str(cast.ticket.id), "TSK-999999", str(uuid4()), "nonsense"):
        with pytest.raises(NotFound) as caught:
            await office.hub.subscribe(client, None, [ref])
        problems.add((caught.value.code, caught.value.message))
    assert len(problems) == 1 and not client.live


async def test_one_frame_is_shared_by_all_its_receivers(office: Office, cast: Cast) -> None:
    clients = [await office.listener(cast.agent) for _ in range(3)]
    for client in clients:
        office.wires[client].writing_paused = True
    await office.comments(cast.agent, cast.ticket, 1)
    await office.step()
    waiting = {id(c.outbox._queue[0][0]) for c in clients if c.outbox._queue}
    assert len(waiting) == 1


# --- nothing missing, nothing twice ----------------------------------------------------------


async def test_a_client_resumes_over_many_pages_p_06(office: Office, cast: Cast) -> None:
    first = await office.listener(cast.alice)
    since = position(office.wires[first].frames()[0])
    many = 2 * PAGE + 7
    await office.comments(cast.agent, cast.ticket, many)
    await office.step()
    for person in (cast.alice, cast.agent):
        late = await office.client(person)
        await office.hub.subscribe(late, since, None)
        assert office.heard(late) == office.heard(first)
    assert [f["version"] for f in office.heard(first)] == list(range(2, many + 2))


async def test_the_change_from_replay_to_live_loses_and_repeats_nothing_p_06(
    office: Office, cast: Cast
) -> None:
    """Events that are numbered, read and broadcast in the middle of a client's replay."""
    since = position(office.wires[await office.listener(cast.agent)].frames()[0])
    await office.comments(cast.agent, cast.ticket, 3)
    await office.step()
    late = await office.client(cast.agent)
    room = late.outbox.room

    class Slow:
        """The outbox of a client that pauses after each piece."""

        def __init__(self) -> None:
            self.pauses = 0

        async def room(self) -> None:
            self.pauses += 1
            if self.pauses <= 4:
                await office.comments(cast.agent, cast.ticket, 2)
                await office.step()
            await room()

        def __getattr__(self, name: str) -> Any:
            return getattr(outbox, name)

    outbox = late.outbox
    late.outbox = Slow()  # type: ignore[assignment]
    await office.hub.subscribe(late, since, None)
    await office.comments(cast.agent, cast.ticket, 1)
    await office.step()
    assert [f["version"] for f in office.heard(late)] == list(range(2, 2 + 3 + 8 + 1))


async def test_a_client_going_live_in_the_middle_of_a_broadcast_misses_nothing(
    office: Office, cast: Cast
) -> None:
    early = await office.listener(cast.agent)
    since = position(office.wires[early].frames()[0])
    late = await office.client(cast.agent)
    turns = 0
    sleep = office.clock.sleep

    async def turn(seconds: float) -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            await office.hub.subscribe(late, since, None)
        await sleep(seconds)

    office.clock.sleep = turn  # type: ignore[method-assign]
    office.hub._limited = False
    for _ in range(300):  # more than one slice
        await office.listener(cast.agent)
    await office.comments(cast.agent, cast.ticket, 60)  # more than one chunk
    await office.step()
    assert turns and late.live
    await office.comments(cast.agent, cast.ticket, 1)
    await office.step()
    assert [f["version"] for f in office.heard(late)] == list(range(2, 63))


async def test_a_broadcast_that_was_cut_short_is_finished_later(office: Office, cast: Cast) -> None:
    clients = [await office.listener(cast.agent) for _ in range(3)]

    def once() -> None:
        office.wires[clients[1]].raised = int
        raise RuntimeError("in the middle of a broadcast")

    office.wires[clients[1]].raised = once
    await office.comments(cast.agent, cast.ticket, 2)
    with pytest.raises(RuntimeError):
        await office.step()
    await office.tick()
    for client in (clients[0], clients[2]):
        assert [f["version"] for f in office.heard(client)] == [2, 3]


async def test_an_outage_costs_time_but_no_event(office: Office, cast: Cast) -> None:
    client = await office.listener(cast.agent)
    await office.comments(cast.agent, cast.ticket, 1)
    head = await office.number()
    url, office.bench.desk.db.url = office.bench.desk.db.url, "postgresql://127.0.0.1:1/none"
    await office.bench.desk.db.close()
    office.bench.desk.db._closed = False
    office.bench.desk.db._open = 0
    office.hub.advanced(head)
    await office.hub.step()
    assert office.types(client) == ["welcome"] and client.goodbye is None
    office.bench.desk.db.url = url
    await office.tick()
    assert [f["version"] for f in office.heard(client)] == [2]


async def test_events_of_other_things_are_nobodys(office: Office, cast: Cast) -> None:
    client = await office.listener(cast.agent)
    await office.bench.desk.accounts.update(SYSTEM, cast.bob.user_id or "", {"name": "Robert"})
    await office.step()
    assert office.types(client) == ["welcome"]


# --- where one cannot resume -----------------------------------------------------------------


async def test_an_unknown_position_is_told_so_p_06(office: Office, cast: Cast) -> None:
    known = position(office.wires[await office.listener(cast.agent)].frames()[0])
    for since in (Position(uuid4(), known.seq), Position(known.epoch, known.seq + 1_000_000)):
        client = await office.client(cast.agent)
        await office.hub.subscribe(client, since, None)
        assert office.types(client) == ["welcome", "resync"]
        await office.comments(cast.agent, cast.ticket, 1)
        await office.step()
        assert len(office.heard(client)) == 1


async def test_a_trimmed_position_is_told_so_p_06(office: Office, cast: Cast) -> None:
    since = position(office.wires[await office.listener(cast.agent)].frames()[0])
    await office.comments(cast.agent, cast.ticket, 3)
    await office.step()
    await office.trim(since.seq + 2)
    client = await office.client(cast.agent)
    await office.hub.subscribe(client, since, None)
    assert office.types(client) == ["welcome", "resync"]
    still = await office.client(cast.agent)
    await office.hub.subscribe(still, Position(since.epoch, since.seq + 1), None)
    assert [f["version"] for f in office.heard(still)] == [3, 4]


async def test_another_epoch_is_told_to_everybody_who_listens_p_06(
    office: Office, cast: Cast
) -> None:
    client = await office.listener(cast.agent)
    await office.restore()
    await office.step()
    assert office.types(client) == ["welcome", "resync"]
    await office.comments(cast.agent, cast.ticket, 1)
    await office.step()
    assert len(office.heard(client)) == 1
    assert office.bench.metric("itdesk_websocket_resyncs_total") == 1


async def test_a_gap_before_what_is_left_of_the_journal_is_no_continuation(
    office: Office, cast: Cast
) -> None:
    """The hub was away for so long that what it had not read was trimmed."""
    client = await office.listener(cast.agent)
    await office.comments(cast.agent, cast.ticket, 4)
    head = await office.number()
    await office.trim(head.seq)
    await office.step()
    assert office.types(client) == ["welcome", "resync", "comment.added"]


# --- who may stay ----------------------------------------------------------------------------


async def test_a_slow_client_is_closed_and_the_others_are_not_p_05(
    office: Office, cast: Cast
) -> None:
    slow, quick = await office.listener(cast.agent), await office.listener(cast.agent)
    since = position(office.wires[slow].frames()[0])
    office.wires[slow].writing_paused = True
    await office.comments(cast.agent, cast.ticket, 260)
    await office.step()
    assert slow.goodbye is Goodbye.SLOW and slow.goodbye.code == 1013
    assert slow.outbox.waiting == (0, 0) and not slow.live
    assert quick.goodbye is None and len(office.heard(quick)) == 260
    assert office.bench.metric("itdesk_websocket_dropped_total", reason="slow") == 1
    office.hub.leave(slow)
    again = await office.client(cast.agent)
    await office.hub.subscribe(again, since, None)
    assert office.heard(again) == office.heard(quick)


async def signed_in(office: Office, role: Role = Role.AGENT) -> tuple[Caller, Any]:
    """Return a person with a session, and the session."""
    person = await office.bench.person(role)
    session = await office.bench.desk.sessions.issue_for(
        await office.bench.desk.accounts.get(SYSTEM, person.user_id or "")
    )
    return await office.bench.desk.sessions.authenticate(session.access_token), session


async def test_whoever_may_stay_is_left_alone(office: Office) -> None:
    person, _ = await signed_in(office)
    client = await office.listener(person)
    await office.tick(5)
    assert client.goodbye is None


async def test_another_role_ends_the_conversation_s_31(office: Office) -> None:
    person, _ = await signed_in(office)
    client = await office.listener(person)
    await office.bench.desk.accounts.update(SYSTEM, person.user_id or "", {"role": Role.USER})
    await office.tick(3)
    assert client.goodbye is Goodbye.ROLE and client.goodbye.code == 4401 and not client.live


async def test_the_end_of_a_session_ends_the_conversation_s_31(office: Office) -> None:
    person, session = await signed_in(office)
    client = await office.listener(person)
    await office.bench.desk.sessions.logout(session.refresh_token)
    await office.tick(3)
    assert client.goodbye is Goodbye.ENDED


async def test_deactivation_ends_the_conversation_s_31(office: Office) -> None:
    person, _ = await signed_in(office)
    client = await office.listener(person)
    await office.bench.desk.accounts.update(SYSTEM, person.user_id or "", {"is_active": False})
    await office.tick(3)
    assert client.goodbye is Goodbye.ENDED


async def test_a_token_that_expires_ends_the_conversation_unless_renewed_s_31(
    office: Office,
) -> None:
    person, _ = await signed_in(office)
    left, renewed = [await office.listener(person, seconds=10) for _ in range(2)]
    office.hub.renew(renewed, person, office.clock.now() + timedelta(seconds=900))
    await office.tick(9)
    assert [left.goodbye, renewed.goodbye] == [None, None]
    await office.tick(1)
    assert [left.goodbye, renewed.goodbye] == [Goodbye.EXPIRED, None]


async def test_somebody_elses_token_renews_nothing(office: Office) -> None:
    person, _ = await signed_in(office)
    other, _ = await signed_in(office)
    client = await office.listener(person)
    office.hub.renew(client, other, office.clock.now() + timedelta(seconds=900))
    assert client.goodbye is Goodbye.OTHER and client.goodbye.code == 4403


async def test_a_client_that_does_not_answer_pings_is_closed(office: Office) -> None:
    silent, alive = [await office.listener((await signed_in(office))[0]) for _ in range(2)]
    await office.tick(30)
    assert b"\x89\x00" in office.wires[silent].sent
    assert [silent.goodbye, alive.goodbye] == [None, None]
    await office.clock.advance(1)
    office.hub.allows(alive)  # any frame is an answer
    await office.tick(30)
    assert [silent.goodbye, alive.goodbye] == [Goodbye.GONE, None]


async def test_one_person_has_so_many_websockets(office: Office, cast: Cast) -> None:
    most = office.hub.settings.sockets_per_user
    clients = [await office.client(cast.alice) for _ in range(most)]
    expires = office.clock.now() + timedelta(seconds=900)
    alice = clients[0].caller
    assert office.hub.enter(alice, expires, Wire()) is Goodbye.SOCKETS
    office.hub.leave(clients[0])
    assert isinstance(office.hub.enter(alice, expires, Wire()), Client)


async def test_the_frames_of_all_websockets_of_a_person_count_together(
    office: Office, cast: Cast
) -> None:
    one, two = await office.client(cast.alice), await office.client(cast.alice)
    other = await office.client(cast.bob)
    taken = sum(office.hub.allows(client) for _ in range(200) for client in (one, two))
    assert taken == 2 * office.hub.settings.frames_per_second
    assert office.hub.allows(other)
    await office.clock.advance(1)
    again = sum(office.hub.allows(client) for _ in range(200) for client in (one, two))
    assert again == office.hub.settings.frames_per_second


async def test_goodbye_is_said_to_all_and_waited_for(office: Office, cast: Cast) -> None:
    clients = [await office.listener(person) for person in (cast.alice, cast.agent)]
    for client in clients:
        client.on_goodbye = lambda client=client: office.hub.leave(client)  # type: ignore[misc]
    await office.hub.dismiss()
    assert {client.goodbye for client in clients} == {Goodbye.SHUTDOWN}
    expires = office.clock.now() + timedelta(seconds=900)
    assert office.hub.enter(clients[0].caller, expires, Wire()) is Goodbye.SHUTDOWN
    assert office.bench.metric("itdesk_websocket_clients") == 0


# --- presence --------------------------------------------------------------------------------


def people(frame: Frame) -> set[tuple[str, str]]:
    """Return who is there and what they do."""
    return {(person["id"], person["state"]) for person in frame["people"]}


async def test_presence_is_told_to_those_who_may_read_the_ticket(
    office: Office, cast: Cast
) -> None:
    alice, bob, agent = [await office.listener(p) for p in (cast.alice, cast.bob, cast.agent)]
    assert await office.hub.presence.say(agent, cast.ticket.key, "typing")
    here = {(str(cast.agent.user_id), "typing")}
    for client in (alice, agent):
        frame = office.wires[client].frames()[-1]
        assert frame["type"] == "presence" and "seq" not in frame and people(frame) == here
    assert office.types(bob) == ["welcome"]
    with pytest.raises(NotFound):
        await office.hub.presence.say(bob, cast.ticket.key, "viewing")


async def test_presence_ends_when_nobody_renews_it(office: Office, cast: Cast) -> None:
    alice, agent = await office.listener(cast.alice), await office.listener(cast.agent)
    await office.hub.presence.say(agent, cast.ticket.key, "viewing")
    await office.clock.advance(10)
    await office.hub.presence.say(agent, cast.ticket.key, "viewing")
    await office.clock.advance(10)
    await office.hub.presence.sweep()
    assert len(office.wires[alice].frames()) == 2
    await office.clock.advance(6)
    await office.hub.presence.sweep()
    assert people(office.wires[alice].frames()[-1]) == set()
    assert office.hub.presence._rooms == {}


async def test_presence_ends_with_the_websocket(office: Office, cast: Cast) -> None:
    alice, agent = await office.listener(cast.alice), await office.listener(cast.agent)
    await office.hub.presence.say(agent, cast.ticket.key, "viewing")
    office.hub.leave(agent)
    await office.hub.presence.sweep()
    assert people(office.wires[alice].frames()[-1]) == set()


async def test_presence_is_not_told_faster_than_people_act(office: Office, cast: Cast) -> None:
    alice, agent = await office.listener(cast.alice), await office.listener(cast.agent)
    for _ in range(20):
        for state in ("typing", "viewing"):
            await office.hub.presence.say(agent, cast.ticket.key, state)
    assert len(office.wires[alice].frames()) == 2
    await office.clock.advance(2)
    await office.hub.presence.say(agent, cast.ticket.key, "viewing")
    assert people(office.wires[alice].frames()[-1]) == {(str(cast.agent.user_id), "viewing")}


async def test_whoever_lost_the_ticket_is_not_there_any_more(office: Office, cast: Cast) -> None:
    desk, carl = office.bench.desk, await office.bench.person(Role.AGENT)
    await desk.tickets.update(SYSTEM, cast.ticket.key, {"assignee_ids": [carl.user_id]})
    client = await office.listener(replace(carl, role=Role.USER))
    alice = await office.listener(cast.alice)
    await office.hub.presence.say(client, cast.ticket.key, "viewing")
    await desk.tickets.update(SYSTEM, cast.ticket.key, {"assignee_ids": []})
    await office.clock.advance(5)
    with pytest.raises(NotFound):
        await office.hub.presence.say(client, cast.ticket.key, "viewing")
    told = len(office.wires[client].sent)
    await office.hub.presence.say(alice, cast.ticket.key, "viewing")
    await office.clock.advance(20)
    await office.hub.presence.sweep()
    assert people(office.wires[alice].frames()[-1]) == set()
    assert len(office.wires[client].sent) == told


async def test_nobody_is_everywhere(office: Office, cast: Cast) -> None:
    client = await office.listener(cast.agent)
    for _ in range(20):
        ticket = await office.bench.ticket(cast.alice)
        assert await office.hub.presence.say(client, ticket.key, "viewing")
    assert not await office.hub.presence.say(client, cast.ticket.key, "viewing")


# --- what an event of a plugin or import may look like -----------------------------------------


async def test_an_event_without_its_ticket_row_is_for_agents_only(
    office: Office, cast: Cast
) -> None:
    alice, agent = await office.listener(cast.alice), await office.listener(cast.agent)
    async with office.bench.desk.db.transaction() as tx:
        tx.record(Event.by(SYSTEM, "ticket.updated", ticket_id=uuid4(), ticket_version=1))
    await office.step()
    (frame,) = office.heard(agent)
    assert frame["data"]["ticket"] is None and office.heard(alice) == []
