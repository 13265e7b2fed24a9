"""However a search is planned, it finds the same; and none lasts longer than it may."""

from collections.abc import AsyncIterator
from dataclasses import fields
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itdesk.desk.tickets import NewTicket
from itdesk.errors import Unavailable
from itdesk.model import Caller, Category, Role, Status
from itdesk.store import matching
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Window
from itdesk.store.words import Words
from tests.support.desk import Bench, bench_on

WORDS = ("printer", "printing", "toner", "network", "the", "VPN", "Ω", "a-b", "42")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
ASKED = st.lists(
    st.sampled_from((*WORDS, "prin", "-toner", '"printer toner"', "or", "TSK-10", "n", '"', "-")),
    max_size=4,
).map(" ".join) | st.text(max_size=30).filter(lambda text: "\0" not in text and text.isprintable())


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


@pytest.fixture
def known() -> dict[str, Any]:
    """What is made once for all examples."""
    return {}


async def _people(bench: Bench, known: dict[str, Any]) -> tuple[Caller, Caller]:
    if "agent" not in known:
        known["agent"], known["user"] = await bench.person(Role.AGENT), await bench.person()
    return known["agent"], known["user"]


# What is found, said once more and without any index: each vector as a whole, row by row.
_BRUTE = """
    SELECT t.id FROM tickets t
    WHERE (CASE WHEN $4 THEN t.search || t.search_internal ELSE t.search END) @@ (
              websearch_to_tsquery('english', $1) && CASE WHEN $2 = '' THEN ''::tsquery
              ELSE websearch_to_tsquery('english', $2) || to_tsquery('english', $2 || ':*') END)
       OR ($3 <> '' AND starts_with(t.key, $3))
"""


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tickets=st.lists(st.tuples(TEXTS, TEXTS, st.booleans(), TEXTS, st.booleans()), max_size=5),
    q=ASKED,
)
async def test_every_plan_finds_what_a_look_at_every_row_finds(
    bench: Bench, known: dict[str, Any], tickets: list[Any], q: str
) -> None:
    """S-27, R26: near, by index, walking far, walking on, and among one's own."""
    agent, user = await _people(bench, known)
    await bench.sql("DELETE FROM tickets")
    for title, description, his, said, internal in tickets:
        reporter = user if his else agent
        new = NewTicket(f"{title} ..", description)
        ticket = await bench.desk.tickets.create(reporter, new)
        await bench.desk.tickets.comment(agent, ticket.key, said, internal=internal)
    read = Words.read(q)
    async with bench.desk.reads.searching() as conn:
        for scope in (None, user.user_id):
            values = (read.whole, read.last, read.key, scope is None)
            wanted = {row[0] for row in await conn.fetch(_BRUTE, *values)}
            own = set()
            if scope is not None:
                own = {
                    row[0]
                    for row in await conn.fetch(
                        "SELECT id FROM tickets WHERE reporter_id = $1", scope
                    )
                }
                wanted &= own
            plans = ("own", "own of many") if scope else ("near", "far", "index", "all")
            for plan in plans:
                asked = matching.Asked(Filter(q=q), scope, 50)
                query, parameters = matching._statement(plan, asked)
                found = [UUID(row["name"]) for row in await conn.fetch(query, *parameters)]
                assert set(found) == wanted, (plan, scope)
                assert found == sorted(found, reverse=True)
            if q:
                for sort in ("-created_at", "relevance"):
                    asked = matching.Asked.page(Filter(q=q), scope, sort, Window(limit=50))
                    page = await matching.find(conn, asked)
                    assert {UUID(one["name"]) for one in page.items} == wanted


@pytest.mark.parametrize("way", ["near", "far", "index", "all"])
async def test_every_way_can_look_at_whatever_a_list_is_narrowed_to(bench: Bench, way: str) -> None:
    """Near and far bring only the columns that conditions look at."""
    agent = await bench.person(Role.AGENT)
    new = NewTicket("The printer", category=Category.EMAIL, department="IT", project="TSK")
    ticket = await bench.desk.tickets.create(agent, new)
    changes = {"tags": ["vip"], "assignee_ids": [agent.user_id]}
    await bench.desk.tickets.update(agent, ticket.key, changes)
    today = ticket.created_at.date()
    wanted = Filter(
        (Status.OPEN,), (ticket.priority,), (Category.EMAIL,), "IT", "TSK", agent.user_id,
        agent.user_id, ("vip",), ticket.key, None, today, today,
    )  # fmt: skip
    assert None not in [getattr(wanted, one.name) for one in fields(wanted) if one.name != "own"]
    async with bench.desk.reads.searching() as conn:
        for sort in matching.SORTS:
            asked = matching.Asked(wanted, None, 5, sort)
            query, values = matching._statement(way, asked)
            assert [one["name"] for one in await conn.fetch(query, *values)] == [str(ticket.id)]


@pytest.mark.parametrize("frequent", [True, False])
async def test_a_word_that_is_only_in_old_tickets_is_found_behind_many_new_ones(
    bench: Bench, frequent: bool
) -> None:
    """More new tickets than are looked at first; the estimate then decides."""
    agent = await bench.person(Role.AGENT)
    old = 4000 if frequent else 3
    for words, count in (("wombat", old), ("printer", matching._NEAR + 10)):
        await bench.sql(
            """INSERT INTO tickets (key, project_id, title, created_at)
               SELECT 'TSK-' || $2 || n, id, $1, now() - n * interval '1 s'
                      - CASE WHEN $1 = 'wombat' THEN interval '1 day' ELSE '0' END
               FROM projects, generate_series(1, $3::int) AS n WHERE key = 'TSK'""",
            words, "1" if words == "wombat" else "2", count,
        )  # fmt: skip
    await bench.sql("ANALYZE tickets")
    async with bench.desk.reads.searching() as conn:
        estimate = await matching.estimate(conn, Filter(q="wombat"))
        assert (estimate > matching._MOST_SORTED) is frequent
        seen: list[UUID] = []
        window = Window(limit=2)
        for _ in range(3):
            asked = matching.Asked.page(Filter(q="wombat"), None, "-created_at", window)
            page = await matching.find(conn, asked)
            seen += [UUID(one["name"]) for one in page.items]
            if page.next_cursor is None:
                break
            window = Window(limit=2, cursor=page.next_cursor)
    assert len(seen) == len(set(seen)) == (6 if frequent else 3)
    newest = await bench.sql(
        "SELECT array_agg(key ORDER BY created_at DESC) FROM tickets WHERE id = ANY ($1)", seen
    )
    assert newest == [f"TSK-1{n}" for n in range(1, len(seen) + 1)]
    none = await bench.desk.tickets.list(
        agent, Filter(q="wombat", status=(Status.CLOSED,)), sort="-created_at", window=Window()
    )
    assert none.items == []


async def test_a_search_that_takes_too_long_is_refused_and_the_desk_goes_on(
    database_url: str,
) -> None:
    """T5: a clean timeout; what daily work needs is not among what searches may use up."""
    async with bench_on(database_url, ITDESK_TICKETS__SEARCH_MILLISECONDS="100") as bench:
        agent = await bench.person(Role.AGENT)
        await bench.ticket(agent)
        async with bench.desk.db.connection() as conn:
            await conn.execute("BEGIN")
            await conn.execute("LOCK TABLE tickets IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(Unavailable) as refused:
                await bench.desk.tickets.list(
                    agent, Filter(q="files"), sort="-created_at", window=Window()
                )
            assert refused.value.code == "E_SEARCH_TOO_BROAD"
            assert bench.desk.db.in_use == 1
            await conn.execute("ROLLBACK")
        page = await bench.desk.tickets.list(
            agent, Filter(q="files"), sort="-created_at", window=Window()
        )
        assert len(page.items) == 1


async def test_a_search_cannot_write(bench: Bench) -> None:
    """S-27: even a statement that got past everything else could change nothing."""
    with pytest.raises(Exception, match="read-only"):
        async with bench.desk.reads.searching() as conn:
            await conn.execute("DELETE FROM tickets")


async def test_words_of_both_sides_of_a_ticket_are_found_together_by_agents(bench: Bench) -> None:
    """A public and an internal word in one search; what is left out internally is left out."""
    agent, user = await bench.person(Role.AGENT), await bench.person()
    ticket = await bench.desk.tickets.create(user, NewTicket("Printer on fire"))
    await bench.desk.tickets.comment(agent, ticket.key, "toner canary", internal=True)

    async def found(caller: Caller, q: str) -> int:
        wanted = Filter(q=q)
        return len(
            (
                await bench.desk.tickets.list(caller, wanted, sort="-created_at", window=Window())
            ).items
        )

    assert [await found(agent, q) for q in ("printer toner", "printer -toner")] == [1, 0]
    assert [await found(user, q) for q in ("printer toner", "printer -toner")] == [0, 1]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("vpn is dow", Words("vpn is ", "dow")),
        ("vpn is down ", Words("vpn is down ")),
        ('"vpn is dow', Words('"vpn is dow')),
        ("vpn or dow", Words("vpn or dow")),
        ("vpn -dow", Words("vpn -dow")),
        ("v", Words("v")),
        ("host12", Words("host12")),
        ("tsk-10", Words("tsk-10", key="TSK-10")),
        ("TSK-", Words("TSK-", key="TSK-")),
        ("TSK-%", Words("TSK-%")),
        ("", Words("")),
    ],
)
def test_the_last_word_may_be_a_beginning_unless_it_was_ended(typed: str, read: Words) -> None:
    assert Words.read(typed) == read
