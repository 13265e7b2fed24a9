"""A row of a list is the ticket that a read answers."""

import orjson
import pytest

from itdesk.api.render import encode
from itdesk.desk.tickets import NewTicket
from itdesk.model import Category, Role
from itdesk.store.listing import Filter
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
