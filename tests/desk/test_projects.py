"""Projects: who opens them, and what keeps their keys in place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from uuid import uuid4

import pytest
import pytest_asyncio

from itdesk.errors import DeskError, Forbidden, Invalid, NotFound
from itdesk.model import Caller, Role, new_id
from itdesk.store import tickets
from itdesk.store.paging import Window
from tests.support.people import Office, opened, outside, until_blocked


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url)) as office:
        yield office


@pytest_asyncio.fixture
async def meg(office: Office) -> Caller:
    return await office.caller("meg", Role.MANAGER)


async def keys(office: Office) -> list[str]:
    return [project.key for project in (await office.projects.list(Window())).items]


async def next_key(office: Office, project: str) -> str | None:
    async with office.db.transaction() as tx:
        taken = await tickets.take_number(tx.conn, project)
    return taken.key if taken else None


async def code(work: Awaitable[object]) -> str:
    with pytest.raises(DeskError) as refused:
        await work
    return refused.value.code


async def test_a_project_is_opened_renamed_and_closed(office: Office, meg: Caller) -> None:
    opened = await office.projects.create(meg, "OPS", "Operations", "What runs.")
    assert (opened.key, opened.name, opened.description, opened.source) == (
        "OPS",
        "Operations",
        "What runs.",
        "local",
    )
    assert await office.projects.get(str(opened.id)) == opened
    assert await next_key(office, "OPS") == "OPS-1"
    renamed = await office.projects.update(meg, opened.id, {"name": "Ops", "description": ""})
    assert (renamed.name, renamed.description, renamed.key) == ("Ops", "", "OPS")
    await office.projects.delete(meg, opened.id)
    assert await keys(office) == ["TSK"]
    assert await next_key(office, "OPS") is None
    told = [
        row["type"]
        for row in await office.rows(
            "SELECT type FROM events WHERE type LIKE 'project.%' ORDER BY created_at"
        )
    ]
    assert told == ["project.created", "project.updated", "project.deleted"]
    [event] = await office.journal("project.updated")
    assert event["changes"] == [
        {"field": "name", "old": "Operations", "new": "Ops"},
        {"field": "description", "old": "What runs.", "new": ""},
    ]


async def test_only_managers_and_administrators_change_projects(
    office: Office, meg: Caller
) -> None:
    project = await office.projects.create(meg, "OPS", "Operations")
    for role in (Role.USER, Role.AGENT):
        caller = replace(meg, role=role)
        for work in (
            office.projects.create(caller, "NEW", "New"),
            office.projects.update(caller, project.id, {"name": "x"}),
            office.projects.delete(caller, project.id),
            office.projects.delete(caller, str(uuid4())),
        ):
            with pytest.raises(Forbidden):
                await work
    await office.projects.update(replace(meg, role=Role.ADMIN), project.id, {"name": "x"})


async def test_a_key_is_taken_once(office: Office, meg: Caller) -> None:
    ops = await office.projects.create(meg, "OPS", "Operations")
    assert await code(office.projects.create(meg, "OPS", "Again")) == "E_PROJECT_KEY_EXISTS"
    assert await code(office.projects.create(meg, "TSK", "Again")) == "E_PROJECT_KEY_EXISTS"
    taking = office.projects.update(meg, ops.id, {"key": "TSK"})
    assert await code(taking) == "E_PROJECT_KEY_EXISTS"
    assert (await office.projects.update(meg, ops.id, {"key": "RUN"})).key == "RUN"
    assert await office.projects.create(meg, "OPS", "Operations")


async def test_a_project_with_tickets_keeps_its_key_and_stays(office: Office, meg: Caller) -> None:
    [project] = (await office.projects.list(Window())).items
    await office.ticket(None)
    assert await code(office.projects.delete(meg, project.id)) == "E_PROJECT_NOT_EMPTY"
    renaming = office.projects.update(meg, project.id, {"key": "NEW", "name": "x"})
    assert await code(renaming) == "E_PROJECT_NOT_EMPTY"
    assert (await office.projects.get(project.id)).name == "Tickets"
    assert (await office.projects.update(meg, project.id, {"name": "x"})).name == "x"


async def test_a_ticket_on_its_way_keeps_its_project(office: Office, meg: Caller) -> None:
    project = await office.projects.create(meg, "OPS", "Operations")
    async with outside(office) as conn:
        opening = conn.transaction()
        await opening.start()
        await conn.execute("UPDATE projects SET next_number = 2 WHERE key = 'OPS'")
        await conn.execute(
            "INSERT INTO tickets (id, key, project_id, title) VALUES ($1, 'OPS-1', $2, 'A title')",
            new_id(),
            project.id,
        )
        async with asyncio.TaskGroup() as group:
            closing = group.create_task(code(office.projects.delete(meg, project.id)))
            await until_blocked(conn)
            await opening.commit()
    assert closing.result() == "E_PROJECT_NOT_EMPTY"


async def test_unknown_projects_are_not_found(office: Office, meg: Caller) -> None:
    for ref in (str(uuid4()), "TSK", "nonsense", "' OR 1=1 --", ""):
        for work in (
            office.projects.get(ref),
            office.projects.update(meg, ref, {"name": "x"}),
            office.projects.delete(meg, ref),
        ):
            with pytest.raises(NotFound) as missing:
                await work
            assert missing.value.code == "E_PROJECT_NOT_FOUND"


async def test_a_mirror_keeps_its_key_and_numbers_nothing_itself(
    office: Office, meg: Caller
) -> None:
    mirror = await office.projects.create(meg, "JIR", "Mirror")
    await office.rows("UPDATE projects SET source = 'jira' WHERE id = $1", mirror.id)
    assert await next_key(office, "JIR") is None
    renaming = office.projects.update(meg, mirror.id, {"key": "NEW"})
    assert await code(renaming) == "E_PROJECT_IS_MIRROR"
    assert (await office.projects.update(meg, mirror.id, {"name": "x"})).name == "x"
    assert await code(office.projects.delete(meg, mirror.id)) == "E_PROJECT_IS_MIRROR"


async def test_the_default_project_stays(office: Office, meg: Caller) -> None:
    await office.projects.ensure_default("HELP", 500)
    assert await keys(office) == ["HELP", "TSK"]
    help = (await office.projects.list(Window())).items[0]
    assert await code(office.projects.delete(meg, help.id)) == "E_PROJECT_IS_DEFAULT"
    renaming = office.projects.update(meg, help.id, {"key": "NEW"})
    assert await code(renaming) == "E_PROJECT_IS_DEFAULT"
    assert await next_key(office, "HELP") == "HELP-500"


async def test_no_number_of_the_default_project_is_given_twice(office: Office) -> None:
    await office.projects.ensure_default("TSK", 7)
    assert await next_key(office, "TSK") == "TSK-7"
    for first, key in ((7, "TSK-8"), (1, "TSK-9"), (50, "TSK-50"), (50, "TSK-51")):
        await office.projects.ensure_default("TSK", first)
        assert await next_key(office, "TSK") == key
    await office.ticket(None)
    await office.projects.ensure_default("TSK", 1000)
    assert await next_key(office, "TSK") == "TSK-52"


async def test_every_page_follows_the_last(office: Office, meg: Caller) -> None:
    for n in range(7):
        await office.projects.create(meg, f"P{n}", "Project")
    first = await office.projects.list(Window(limit=5, count=True))
    rest = await office.projects.list(Window(limit=5, cursor=first.next_cursor))
    assert first.total == 8
    assert [p.key for p in (*first.items, *rest.items)] == [*(f"P{n}" for n in range(7)), "TSK"]
    assert rest.next_cursor is None
    with pytest.raises(Invalid):
        await office.projects.list(Window(cursor="' OR 1=1 --"))
