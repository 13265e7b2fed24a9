"""Who is suggested for a ticket."""

from uuid import UUID

from itdesk.desk.accounts import NewUser
from itdesk.desk.tickets import NewTicket
from itdesk.model import SYSTEM, Role
from tests.support.desk import bench_on


async def test_the_agent_with_the_fewest_open_tickets_is_suggested(database_url: str) -> None:
    """R62: active agents only, ties by name."""
    async with bench_on(database_url) as bench:
        desk = bench.desk

        async def suggested() -> str | None:
            found = (await desk.triage.classify(SYSTEM, "Anything")).assignee
            return found.name if found is not None else None

        async def person(name: str, role: Role = Role.AGENT) -> UUID:
            new = NewUser(f"{name.lower()}@example.org", name, role)
            return (await desk.accounts.create(SYSTEM, new)).id

        assert await suggested() is None
        await person("A Boss", Role.MANAGER)
        await person("A Customer", Role.USER)
        assert await suggested() is None
        bea, adam = await person("Bea"), await person("adam")
        gone = await person("Aaron")
        await desk.accounts.update(SYSTEM, gone, {"is_active": False})
        await person("Carl")
        assert await suggested() == "adam"
        first = await desk.tickets.create(SYSTEM, NewTicket("One", assignee_ids=[adam]))
        assert await suggested() == "Bea"
        await desk.tickets.create(SYSTEM, NewTicket("Two", assignee_ids=[bea, adam]))
        assert await suggested() == "Carl"
        await person("Dora")
        assert await suggested() == "Carl"
        await desk.tickets.update(SYSTEM, first.key, {"status": "closed"})
        assert await suggested() == "Carl"
