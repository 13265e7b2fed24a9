"""A row of a list is the ticket that a read answers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest

from itdesk.api.render import encode
from itdesk.desk.tickets import NewTicket
from itdesk.errors import NotFound
from itdesk.model import Caller, Category, Priority, Role, Status, Ticket
from itdesk.runtime.clock import FakeClock
from itdesk.store import suggestions
from itdesk.store.listing import KEPT_BYTES, KEPT_SECONDS, Listing
from itdesk.store.matching import Asked
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Window
from itdesk.store.rows import TicketRow
from tests.support.desk import Bench, bench_on


@pytest.mark.parametrize("moment", ["2026-03-01 10:11:12+01", "2026-03-01 10:11:12.000340+00"])
async def test_a_listed_ticket_is_the_one_that_is_read(database_url: str, moment: str) -> None:
    async with bench_on(database_url) as bench:
        agent, other = await bench.person(Role.AGENT), await bench.person(Role.AGENT)
        new = NewTicket("Mirrored", "text", category=Category.EMAIL, department="IT")
        ticket = await bench.desk.tickets.create(agent, new)
        both = [person.user_id for person in (other, agent)]
        wanted = {"tags": ["b", "a"], "assignee_ids": both, "resolution": "None yet"}
        await bench.desk.tickets.update(agent, ticket.key, wanted)
        await bench.sql(
            """UPDATE tickets SET external_source = 'jira', external_id = '10',
                   external_assignee = 'Zoë', external_updated_at = $2::text::timestamptz,
                   closed_at = $2::text::timestamptz,
                   predicted_priority = 'high', predicted_category = 'network'
               WHERE id = $1""",
            ticket.id,
            moment,
        )
        plain = await bench.ticket(agent)
        page = await bench.desk.tickets.list(agent, Filter(), sort="number", window=Window())
        whole = [await bench.desk.tickets.get(agent, one.key) for one in (ticket, plain)]
        assert orjson.loads(encode(page.items)) == orjson.loads(encode(whole))


async def test_who_asks_at_the_same_moment_sees_no_more_than_alone(database_url: str) -> None:
    """S-01: one statement answers several people, each as far as they may see."""
    asked: list[str] = []
    async with bench_on(
        database_url, ITDESK_DATABASE__POOL_MIN="1", ITDESK_DATABASE__POOL_MAX="1"
    ) as bench:
        tickets = bench.desk.tickets
        roles = (Role.AGENT, Role.USER, Role.USER)
        agent, owner, stranger = [await bench.person(role) for role in roles]
        ticket = await bench.ticket(owner)

        async def shown(caller: Caller) -> bool:
            try:
                return bool((await tickets.show(caller, ticket.key))["id"] == str(ticket.id))
            except NotFound:
                return False

        async def listed(caller: Caller) -> list[str]:
            window = Window(limit=10)
            page = await tickets.list(caller, Filter(), sort="-created_at", window=window)
            return [row["key"] for row in page.items]

        people = [agent, owner, stranger] * 20
        async with bench.desk.db.connection() as conn:
            conn.add_query_logger(lambda query: asked.append(query.query))
        assert await asyncio.gather(*map(shown, people)) == [True, True, False] * 20
        # The first one's, and one for all who came meanwhile.
        assert len(asked) == 2
        assert await asyncio.gather(*map(listed, people)) == [[ticket.key], [ticket.key], []] * 20
        assert len(asked) < len(people) // 2


Change = Callable[[Bench, Caller, str], Awaitable[object]]


def _set(**wanted: Any) -> Change:
    return lambda bench, admin, key: bench.desk.tickets.update(admin, key, wanted)


async def _reassign(bench: Bench, admin: Caller, key: str) -> None:
    agent = await bench.person(Role.AGENT)
    await bench.desk.tickets.update(admin, key, {"assignee_ids": [agent.user_id]})


async def _turn_round(bench: Bench, admin: Caller, key: str) -> None:
    ticket = await bench.desk.tickets.get(admin, key)
    turned = {"assignee_ids": list(reversed(ticket.assignee_ids))}
    await bench.desk.tickets.update(admin, key, turned)


async def _delete_assignee(bench: Bench, admin: Caller, key: str) -> None:
    ticket = await bench.desk.tickets.get(admin, key)
    await bench.desk.accounts.delete(admin, ticket.assignee_ids[0])


async def _delete_reporter(bench: Bench, admin: Caller, key: str) -> None:
    ticket = await bench.desk.tickets.get(admin, key)
    assert ticket.reporter_id is not None
    await bench.desk.accounts.delete(admin, ticket.reporter_id)


async def _erase_reporter(bench: Bench, admin: Caller, key: str) -> None:
    ticket = await bench.desk.tickets.get(admin, key)
    assert ticket.reporter_id is not None
    await bench.desk.people.erase(admin, ticket.reporter_id)


async def _predict(bench: Bench, admin: Caller, key: str) -> None:
    ticket = await bench.desk.tickets.get(admin, key)
    async with bench.desk.db.transaction() as tx:
        await suggestions.predict(
            tx.conn, ticket.id, priority=Priority.HIGH, category=None, recommendations="{}"
        )


CHANGES: dict[str, Change] = {
    "title": _set(title="Another ticket with files"),
    "description": _set(description="It is another one."),
    "status": _set(status=Status.TRIAGED),
    "priority": _set(priority=Priority.CRITICAL),
    "tags": _set(tags=["vip"]),
    "department": _set(department="IT"),
    "nobody assigned": _set(assignee_ids=[]),
    "others assigned": _reassign,
    "assignees turned round": _turn_round,
    "an assignee without an account": _delete_assignee,
    "a reporter without an account": _delete_reporter,
    "a reporter whose name is erased": _erase_reporter,
    "what a model predicts": _predict,
    "a comment": lambda bench, admin, key: bench.desk.tickets.comment(
        admin, key, "Done.", internal=False
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_changes_of_a_ticket_is_in_the_next_list(
    database_url: str, change: Change
) -> None:
    """What a ticket looks like is kept from list to list, and yet never shown after a change."""
    async with bench_on(database_url) as bench:
        admin, owner = await bench.person(Role.ADMIN), await bench.person()
        agents = [(await bench.person(Role.AGENT)).user_id for _ in range(2)]
        ticket = await bench.ticket(owner)
        await bench.desk.tickets.update(admin, ticket.key, {"assignee_ids": agents})
        shown = await _rows(bench, admin)
        assert (await _rows(bench, admin))[0] is shown[0]
        await change(bench, admin, ticket.key)
        assert await _listed_as_read(bench, admin, ticket.key) != orjson.loads(encode(shown[0]))


async def _rows(bench: Bench, caller: Caller, **wanted: Any) -> Sequence[TicketRow]:
    page = await bench.desk.tickets.list(
        caller, Filter(**wanted), sort="-created_at", window=Window()
    )
    return page.items


async def _listed_as_read(bench: Bench, caller: Caller, key: str) -> Any:
    """Return the one ticket of all lists, which is the one that is read."""
    read = orjson.loads(encode(await bench.desk.tickets.get(caller, key)))
    for q in (None, "files"):
        assert orjson.loads(encode(await _rows(bench, caller, q=q))) == [read]
    return read


async def test_a_list_within_a_transaction_shows_what_only_that_has_seen(
    database_url: str,
) -> None:
    """Nothing of it is kept: several states bear the number of the transaction."""
    async with bench_on(database_url) as bench:
        admin = await bench.person(Role.ADMIN)
        ticket = await bench.ticket(admin)
        await _rows(bench, admin)
        with pytest.raises(ZeroDivisionError):
            async with bench.desk.db.transaction():
                for title in ("first", "second"):
                    await bench.desk.tickets.update(admin, ticket.key, {"title": title})
                    assert (await _rows(bench, admin))[0]["title"] == title
                raise ZeroDivisionError
        assert (await _rows(bench, admin))[0]["title"] == ticket.title
        async with bench.desk.db.transaction():
            await bench.desk.tickets.update(admin, ticket.key, {"title": "first"})
            await _rows(bench, admin)
            await bench.desk.tickets.update(admin, ticket.key, {"title": "second"})
        assert (await _rows(bench, admin))[0]["title"] == "second"


class _Watched:
    """A connection that tells of each statement before it is asked."""

    def __init__(self, conn: Any, told: Callable[[Sequence[Any]], Awaitable[object]]) -> None:
        self._conn = conn
        self._told = told

    async def fetch(self, query: str, *values: Any) -> Any:
        await self._told(values)
        return await self._conn.fetch(query, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._conn, name)


async def test_a_ticket_that_leaves_the_list_while_it_is_read_is_not_shown(
    database_url: str,
) -> None:
    """Which tickets are on a page and what they look like are two statements."""
    ways: Sequence[Change] = (_set(status=Status.CLOSED), _delete, _take_away)
    async with bench_on(database_url) as bench:
        admin, owner = await bench.person(Role.ADMIN), await bench.person()
        asked = Asked.page(Filter(status=(Status.OPEN,)), owner.scope, "-created_at", Window())
        for change in ways:
            stays, leaves = await bench.ticket(owner), await bench.ticket(owner)

            async def leaving(
                values: Sequence[Any], found: Ticket = leaves, change: Change = change
            ) -> None:
                if any(str(found.id) in value for value in values if isinstance(value, list)):
                    await change(bench, admin, found.key)

            pages = Listing(bench.desk.clock)
            async with bench.desk.db.connection() as conn:
                page = await pages.page(_Watched(conn, leaving), asked)
            assert leaves.key not in [row["key"] for row in page.items]
            assert page.items[0]["key"] == stays.key


async def _take_away(bench: Bench, admin: Caller, key: str) -> None:
    await bench.sql("UPDATE tickets SET reporter_id = NULL WHERE key = $1", key)


async def _delete(bench: Bench, admin: Caller, key: str) -> None:
    await bench.desk.tickets.delete(admin, key)


async def test_what_tickets_look_like_is_kept_for_a_minute_at_most(database_url: str) -> None:
    """A database that was put back counts its transactions anew."""
    clock = FakeClock()
    async with bench_on(database_url) as bench:
        admin = await bench.person(Role.ADMIN)
        ticket = await bench.ticket(admin)
        pages = Listing(clock)
        asked = Asked.page(Filter(), None, "-created_at", Window())

        async def assignees() -> Any:
            async with bench.desk.db.connection() as conn:
                return (await pages.page(conn, asked)).items[0]["assignee_ids"]

        assert await assignees() == []
        # Nobody but a hand in the database assigns a ticket without writing it.
        await bench.sql(
            "INSERT INTO ticket_assignees (ticket_id, user_id, position) VALUES ($1, $2, 1)",
            ticket.id, admin.user_id,
        )  # fmt: skip
        assert await assignees() == []
        for _ in range(2):
            await clock.advance(KEPT_SECONDS)
            last = await assignees()
        assert last == [str(admin.user_id)]


async def test_of_long_tickets_only_so_many_are_kept(database_url: str) -> None:
    async with bench_on(database_url) as bench:
        admin = await bench.person(Role.ADMIN)
        most, length = 2 * KEPT_BYTES, 100_000
        for number in range(2 * most // length):
            new = NewTicket(f"No {number}", "x" * length)
            await bench.desk.tickets.create(admin, new)
        pages = Listing(bench.desk.clock)
        asked = Asked.page(Filter(), None, "-created_at", Window(limit=200))
        read = list[str]()

        async def reading(values: Sequence[Any]) -> None:
            read.extend(values[-1] if values else ())

        async with bench.desk.db.connection() as conn:
            watched = _Watched(conn, reading)
            first = await pages.page(watched, asked)
            assert len(read) == len(first.items) > most // length
            read.clear()
            again = await pages.page(watched, asked)
        assert encode(again.items) == encode(first.items)
        assert len(first.items) // 3 < len(read) < len(first.items)
