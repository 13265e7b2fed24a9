"""A row of a list is the ticket that a read answers."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import orjson
import pytest

from itdesk.api.render import encode
from itdesk.desk.tickets import NewTicket
from itdesk.errors import NotFound
from itdesk.model import Caller, Category, Priority, Role, Status
from itdesk.runtime.clock import FakeClock
from itdesk.store import findings, suggestions
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


LEAVING: dict[str, Change] = {}


@pytest.mark.parametrize("sort", ["-created_at", "relevance"])
@pytest.mark.parametrize("way", ["closed", "deleted", "another's", "without the word"])
async def test_a_ticket_that_leaves_the_list_while_it_is_read_is_not_shown(
    database_url: str, sort: str, way: str
) -> None:
    """Which tickets are on a page and what they look like are two statements."""
    async with bench_on(database_url) as bench:
        admin, owner = await bench.person(Role.ADMIN), await bench.person()
        stays, leaves = await bench.ticket(owner), await bench.ticket(owner)
        wanted = Filter(q="files", status=(Status.OPEN,))
        asked = Asked.page(wanted, owner.scope, sort, Window())
        pages = Listing(bench.desk.clock)

        async def leaving(values: Sequence[Any]) -> None:
            if not any(str(leaves.id) in value for value in values if isinstance(value, list)):
                return
            await LEAVING[way](bench, admin, leaves.key)
            # Somebody who may see it has just been shown what it looks like now.
            everything = Asked.page(Filter(), None, "-created_at", Window())
            async with bench.desk.db.connection() as conn:
                await pages.page(conn, everything)

        async with bench.desk.db.connection() as conn:
            watched = _Watched(conn, leaving)
            page = await pages.page(watched, asked)
            assert [row["key"] for row in page.items] == [stays.key]
            # Beside a page there are pieces of its tickets, and how all of them divide.
            names = [str(leaves.id), str(stays.id)]
            assert set(await findings.snippets(conn, asked, names)) == {str(stays.id)}


async def test_facets_count_no_ticket_that_has_just_left(database_url: str) -> None:
    async with bench_on(database_url) as bench:
        admin = await bench.person(Role.ADMIN)
        await bench.ticket(admin)
        leaves = await bench.ticket(admin)

        async def leaving(values: Sequence[Any]) -> None:
            if any(str(leaves.id) in value for value in values if isinstance(value, list)):
                await LEAVING["closed"](bench, admin, leaves.key)

        asked = Asked.page(Filter(q="files", status=(Status.OPEN,)), None, "-created_at", Window())
        async with bench.desk.db.connection() as conn:
            divided = await findings.facets(_Watched(conn, leaving), asked)
        assert [(one.value, one.count) for one in divided.status] == [("open", 1)]


async def _take_away(bench: Bench, admin: Caller, key: str) -> None:
    await bench.sql("UPDATE tickets SET reporter_id = NULL WHERE key = $1", key)


async def _delete(bench: Bench, admin: Caller, key: str) -> None:
    await bench.desk.tickets.delete(admin, key)


LEAVING.update(
    {
        "closed": _set(status=Status.CLOSED),
        "deleted": _delete,
        "another's": _take_away,
        "without the word": _set(title="Another title"),
    }
)


@pytest.mark.parametrize("pauses", [[KEPT_SECONDS] * 2, [3600.0]], ids=["step by step", "idle"])
async def test_what_tickets_look_like_is_kept_for_a_minute_at_most(
    database_url: str, pauses: list[float]
) -> None:
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
        for pause in pauses:
            await clock.advance(pause)
            last = await assignees()
        assert last == [str(admin.user_id)]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("description", "repeat('x', 50000)"),
        ("resolution", "repeat('x', 50000)"),
        (
            "tags",
            "(SELECT array_agg(n || repeat('\U0001f525', 2500)) FROM generate_series(1, 5) n)",
        ),
        ("department", "'IT'"),
    ],
)
async def test_of_many_tickets_only_so_many_are_kept(
    database_url: str, column: str, value: str
) -> None:
    """They take 4 MiB at most, whatever is long in them."""
    count = 200 if column != "department" else 2500
    async with bench_on(database_url) as bench:
        await bench.sql(
            f"""INSERT INTO tickets (key, project_id, title, {column})
                SELECT 'TSK-' || 5000 + n, id, 'One of many', {value}
                FROM projects, generate_series(1, {count}) AS n WHERE key = 'TSK'"""  # noqa: S608
        )
        pages = Listing(bench.desk.clock)
        asked = Asked.page(Filter(), None, "-created_at", Window(limit=count))
        read = list[str]()

        async def reading(values: Sequence[Any]) -> None:
            read.extend(values[-1] if values else ())

        async with bench.desk.db.connection() as conn:
            watched = _Watched(conn, reading)
            first = await pages.page(watched, asked)
            assert len(read) == len(first.items) == count
            read.clear()
            again = await pages.page(watched, asked)
        assert encode(again.items) == encode(first.items)
        kept = [row for row in first.items if row["id"] not in read]
        assert 0 < len(kept) < count
        assert sum(len(pickle.dumps(row)) for row in kept) <= 2 * KEPT_BYTES
