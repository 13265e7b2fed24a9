"""A row of a list is the ticket that a read answers."""

import asyncio

import orjson
import pytest

from itdesk.api.render import encode
from itdesk.desk.tickets import NewTicket
from itdesk.errors import NotFound
from itdesk.model import Caller, Category, Role
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Window
from tests.support.desk import bench_on


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
