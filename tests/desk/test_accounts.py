"""People: who may do what to whose account, and what stays when somebody goes."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
import pytest_asyncio

from itdesk.config import Auth
from itdesk.desk.accounts import NewUser
from itdesk.errors import Conflict, DeskError, Forbidden, Invalid, InvalidCredentials, NotFound
from itdesk.model import SYSTEM, Caller, Role, User
from itdesk.store.paging import Window, encode_cursor
from tests.support.people import PASSWORD, Office, another_node, opened, outside, until_blocked

INJECTIONS = [
    "' OR 1=1 --",
    "'; DROP TABLE users; --",
    '" OR ""="',
    "%",
    "_",
    "\\",
    "\\'",
    "%' ESCAPE '!",
    "$1",
    "{0}",
    "{{}}",
    "1); SELECT pg_sleep(9)--",
    "/*",
    "\x01",
    "é\u202e",
    "a" * 200,
]


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url)) as office:
        yield office


@pytest_asyncio.fixture
async def root(office: Office) -> Caller:
    return await office.caller("root", Role.ADMIN)


@pytest_asyncio.fixture
async def ann(office: Office) -> Caller:
    return await office.caller("ann")


async def listed(office: Office, caller: Caller, **wanted: Any) -> list[str]:
    wanted = {"role": None, "q": None, "window": Window(limit=200), **wanted}
    return [user.name for user in (await office.accounts.list(caller, **wanted)).items]


async def attempt(work: Any) -> Any:
    try:
        return await work
    except DeskError as exc:
        return exc


# --- opening accounts ---


async def test_whoever_registers_becomes_a_plain_user(office: Office) -> None:
    user = await office.register("Ann@Example.org", PASSWORD, "Ann")
    assert (user.email, user.name, user.role) == ("Ann@Example.org", "Ann", Role.USER)
    assert (user.is_active, user.is_verified) == (True, False)
    assert (await office.sessions.login("ann@example.org", PASSWORD)).user == user
    [event] = await office.journal("user.registered")
    assert (event["actor_id"], event["data"]) == (user.id, {"user_id": str(user.id)})


@pytest.mark.parametrize("role", ["admin", "ADMIN", "user", Role.AGENT, "", 0, False, [], {}])
async def test_nobody_registers_with_a_role(office: Office, role: object) -> None:
    with pytest.raises(Forbidden) as refused:
        await office.register("ann@example.org", PASSWORD, "Ann", role=role)
    assert refused.value.details == {"field": "role"}
    assert await office.value("SELECT count(*) FROM users") == 0


async def test_registration_can_be_closed(office: Office, root: Caller) -> None:
    async with another_node(office, auth=Auth(bcrypt_cost=4, allow_registration=False)) as closed:
        with pytest.raises(Forbidden) as refused:
            await closed.register("ann@example.org", PASSWORD, "Ann")
        assert refused.value.code == "E_AUTH_REGISTRATION_CLOSED"
        await closed.accounts.create(root, NewUser("ann@example.org", "Ann"))


@pytest.mark.parametrize("password", ["short", "password123", "annabelle1", "x" * 201])
async def test_weak_passwords_are_refused(office: Office, root: Caller, password: str) -> None:
    ann, email = await office.caller("annabelle"), "annabelle@example.com"
    for work in (
        office.register(email, password, "Ann"),
        office.accounts.create(root, NewUser(email, "Ann", password=password)),
        office.accounts.update(root, str(ann.user_id), {"password": password}),
        office.accounts.update(
            ann, str(ann.user_id), {"password": password, "current_password": PASSWORD}
        ),
    ):
        with pytest.raises(Invalid) as refused:
            await work
        assert refused.value.details["fields"][0]["path"] == "password"
        assert password not in str(refused.value.details)


async def test_one_address_is_one_account_in_any_case(office: Office, root: Caller) -> None:
    await office.register("Ann@Example.org", PASSWORD, "Ann")
    bob = await office.user("bob")
    for taking in (
        office.register("ann@example.ORG", PASSWORD, "Ann Again"),
        office.accounts.create(root, NewUser("ANN@EXAMPLE.ORG", "Ann Again")),
        office.accounts.update(root, bob.id, {"email": "aNN@example.org"}),
    ):
        with pytest.raises(Conflict) as refused:
            await taking
        assert refused.value.code == "E_USER_EMAIL_EXISTS"
    changed = await office.accounts.update(root, bob.id, {"email": "BOB@example.org"})
    assert changed.email == "BOB@example.org"


async def test_of_many_registrations_at_once_one_wins(office: Office) -> None:
    answers = await asyncio.gather(
        *(
            attempt(office.register(email, PASSWORD, "Ann"))
            for email in ["ann@example.org", "ANN@example.org"] * 5
        )
    )
    assert sum(isinstance(answer, User) for answer in answers) == 1
    assert all(isinstance(answer, User | Conflict) for answer in answers)


async def test_only_administrators_open_accounts_for_others(office: Office, root: Caller) -> None:
    new = NewUser("joe@example.org", "Joe", role=Role.MANAGER, password=PASSWORD, department="IT")
    for role in (Role.USER, Role.AGENT, Role.MANAGER):
        with pytest.raises(Forbidden):
            await office.accounts.create(replace(root, role=role), new)
    joe = await office.accounts.create(root, new)
    assert (joe.role, joe.department, joe.is_verified) == (Role.MANAGER, "IT", True)
    [event] = [e for e in await office.journal("user.created") if e["actor_id"] == root.user_id]
    assert event["data"] == {"user_id": str(joe.id), "name": "Joe", "role": "manager"}


async def test_without_a_password_nobody_signs_in(office: Office, root: Caller) -> None:
    await office.accounts.create(root, NewUser("joe@example.org", "Joe"))
    for password in ("", "None", PASSWORD):
        with pytest.raises(InvalidCredentials):
            await office.sessions.login("joe@example.org", password)


async def test_no_answer_holds_a_password_hash(office: Office, root: Caller) -> None:
    user = await office.accounts.get(root, root.user_id or "")
    assert not [name for name in asdict(user) if "password" in name or "hash" in name]
    assert "$2b$" not in repr(user)


# --- reading ---


async def test_people_see_themselves_and_administrators_everybody(
    office: Office, root: Caller, ann: Caller
) -> None:
    assert (await office.accounts.get(ann, str(ann.user_id))).name == "ann"
    assert (await office.accounts.get(ann, str(ann.user_id).upper())).name == "ann"
    assert (await office.accounts.get(root, str(ann.user_id))).name == "ann"
    for role in (Role.USER, Role.AGENT, Role.MANAGER):
        # Whether there is such a person is nothing that the answer tells.
        answers = [
            await attempt(office.accounts.get(replace(ann, role=role), ref))
            for ref in (str(root.user_id), str(uuid4()), "nonsense", "me", "", "0")
        ]
        assert {type(answer) for answer in answers} == {Forbidden}
        assert len({answer.message for answer in answers}) == 1
    for ref in (str(uuid4()), "nonsense", "' OR 1=1 --"):
        with pytest.raises(NotFound) as missing:
            await office.accounts.get(root, ref)
        assert missing.value.code == "E_USER_NOT_FOUND"


async def test_only_administrators_list_people(office: Office, root: Caller, ann: Caller) -> None:
    assert await listed(office, root) == ["ann", "root"]
    for role in (Role.USER, Role.AGENT, Role.MANAGER):
        with pytest.raises(Forbidden):
            await listed(office, replace(ann, role=role))


async def test_people_are_found_by_role_and_part_of_name_or_address(
    office: Office, root: Caller
) -> None:
    await office.user("Zoë O'Hara", email="zoe@example.org", role=Role.AGENT)
    await office.user("100% Bob_", email="bob@example.net", role=Role.AGENT)
    assert await listed(office, root, role=Role.AGENT) == ["100% Bob_", "Zoë O'Hara"]
    assert await listed(office, root, q="o'h") == ["Zoë O'Hara"]
    assert await listed(office, root, q="ZOË") == ["Zoë O'Hara"]
    assert await listed(office, root, q="EXAMPLE.NET") == ["100% Bob_"]
    assert await listed(office, root, q="%") == ["100% Bob_"]
    assert await listed(office, root, q="_") == ["100% Bob_"]
    assert await listed(office, root, q="zoë", role=Role.USER) == []
    assert len(await listed(office, root, q="")) == 3


@pytest.mark.parametrize("payload", INJECTIONS)
async def test_no_search_word_is_sql(office: Office, root: Caller, payload: str) -> None:
    """S-27"""
    await office.user("innocent")
    assert await listed(office, root, q=payload) == []
    named = await office.accounts.create(root, NewUser("x@example.org", payload[:100]))
    assert await listed(office, root, q=payload[:100]) == [named.name]


async def test_every_page_follows_the_last(office: Office, root: Caller) -> None:
    names = [f"p{n:02}" for n in range(25)]
    for name in names:
        await office.user(name, email=f"{name.upper()}@example.org", password=None)
    seen, cursor = list[str](), None
    for _ in range(10):
        page = await office.accounts.list(
            root, role=Role.USER, q=None, window=Window(limit=4, cursor=cursor, count=True)
        )
        seen += [user.name for user in page.items]
        assert (len(page.items) <= 4, page.total) == (True, 25)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == names
    skipped = await office.accounts.list(
        root, role=Role.USER, q=None, window=Window(limit=4, offset=23)
    )
    assert [user.name for user in skipped.items] == names[23:]


def _crafted(*values: Any) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(values)).rstrip(b"=").decode()


CURSORS = [
    "",
    "x",
    "====",
    "%00",
    "é",
    "\ud800",
    "A" * 500,
    "[" * 400,
    *INJECTIONS,
    _crafted(),
    _crafted("users"),
    _crafted("users", 1),
    _crafted("users", None),
    _crafted("users", True),
    _crafted("users", ["a"]),
    _crafted("users", {"a": 1}),
    _crafted("users", "a", "b"),
    _crafted("users", "a\0"),
    _crafted("projects", "a"),
    _crafted("-created_at", "2026-01-01T00:00:00+00:00", str(UUID(int=7))),
    base64.urlsafe_b64encode(b'["users", "a"]').rstrip(b"=").decode(),
    base64.urlsafe_b64encode(b'["users","\\u0061"]').rstrip(b"=").decode(),
    base64.urlsafe_b64encode(b'["users","\\ud800"]').rstrip(b"=").decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").rstrip(b"=").decode(),
    base64.urlsafe_b64encode(b"[" * 300).decode(),
    _crafted("users", "a") + "=",
    encode_cursor("users", "a") + "A",
    encode_cursor("assignees", "a", UUID(int=7)),
]


@pytest.mark.parametrize("cursor", CURSORS)
async def test_only_a_cursor_of_ours_is_taken(office: Office, root: Caller, cursor: str) -> None:
    """S-27"""
    with pytest.raises(Invalid) as refused:
        await listed(office, root, window=Window(cursor=cursor))
    assert refused.value.details["fields"][0]["path"] == "cursor"


@pytest.mark.parametrize("payload", INJECTIONS)
async def test_no_value_in_a_cursor_is_sql(office: Office, root: Caller, payload: str) -> None:
    """S-27"""
    await listed(office, root, window=Window(cursor=encode_cursor("users", payload)))
    window = Window(cursor=encode_cursor("assignees", payload, uuid4()))
    await office.accounts.assignees(window)
    assert await office.value("SELECT count(*) FROM users") == 1


async def test_the_longest_name_and_address_have_room_in_a_cursor(
    office: Office, root: Caller
) -> None:
    for n in range(2):
        await office.user(
            "\U0001f600" * 99 + str(n), Role.AGENT, email="a" * 318 + f"@{n}", password=None
        )
    for role in (None, Role.AGENT):
        page = await office.accounts.list(root, role=role, q=None, window=Window(limit=1))
        assert page.next_cursor
        await listed(office, root, window=Window(cursor=page.next_cursor))
    people = await office.accounts.assignees(Window(limit=2))
    assert people.next_cursor is not None
    assert len(people.next_cursor) <= 500
    rest = await office.accounts.assignees(Window(limit=2, cursor=people.next_cursor))
    assert len({person.id for person in (*people.items, *rest.items)}) == 3


# --- changing ---


async def test_people_change_their_own_name_and_picture(office: Office, ann: Caller) -> None:
    wanted = {"name": "Ann O'Nymous", "avatar_url": "https://example.org/a.png"}
    user = await office.accounts.update(ann, str(ann.user_id), wanted)
    assert (user.name, user.avatar_url) == ("Ann O'Nymous", "https://example.org/a.png")
    assert user.updated_at > user.created_at
    [event] = await office.journal("user.updated")
    assert event["changes"][0] == {"field": "name", "old": "ann", "new": "Ann O'Nymous"}
    assert event["data"] == {"user_id": str(user.id), "fields": ["avatar_url", "name"]}
    user = await office.accounts.update(ann, str(ann.user_id), {"avatar_url": None})
    assert user.avatar_url is None


async def test_what_is_the_same_already_changes_nothing(office: Office, root: Caller) -> None:
    before = await office.accounts.get(root, root.user_id or "")
    wanted = {"name": "root", "role": Role.ADMIN, "is_active": True, "email": before.email}
    assert await office.accounts.update(root, before.id, wanted) == before
    assert await office.accounts.update(root, before.id, {}) == before
    assert await office.journal("user.updated") == []


@pytest.mark.parametrize("role", [Role.USER, Role.AGENT, Role.MANAGER])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("role", Role.ADMIN),
        ("role", Role.USER),
        ("is_active", True),
        ("email", "other@example.org"),
        ("department", "IT"),
    ],
)
async def test_nobody_else_sets_what_is_the_administrators(
    office: Office, role: Role, field: str, value: object
) -> None:
    """S-03"""
    caller = await office.caller("joe", role)
    with pytest.raises(Forbidden) as refused:
        await office.accounts.update(caller, str(caller.user_id), {"name": "Joe", field: value})
    assert (refused.value.code, refused.value.details) == (
        "E_AUTH_INSUFFICIENT_PERMISSIONS",
        {"field": field},
    )
    assert (await office.accounts.get(caller, str(caller.user_id))).name == "joe"


@pytest.mark.parametrize(
    "field",
    "id created_at updated_at is_verified password_hash auth_epoch google_id owner version".split(),
)
async def test_no_other_column_is_settable(office: Office, root: Caller, field: str) -> None:
    """S-03"""
    with pytest.raises(Invalid):
        await office.accounts.update(root, root.user_id or "", {field: "x"})


async def test_people_do_not_change_each_other(office: Office, ann: Caller, root: Caller) -> None:
    for role in (Role.USER, Role.AGENT, Role.MANAGER):
        for ref in (str(root.user_id), str(uuid4()), "nonsense"):
            with pytest.raises(Forbidden):
                await office.accounts.update(replace(ann, role=role), ref, {"name": "x"})
            with pytest.raises(Forbidden):
                await office.accounts.delete(replace(ann, role=role), ref)
    with pytest.raises(NotFound):
        await office.accounts.update(root, str(uuid4()), {"name": "x"})


async def test_administrators_change_everything(office: Office, root: Caller, ann: Caller) -> None:
    wanted = {
        "name": "Ann B.",
        "email": "ab@example.org",
        "role": Role.MANAGER,
        "department": "IT",
        "is_active": False,
        "password": "quite another phrase",
    }
    user = await office.accounts.update(root, str(ann.user_id), wanted)
    assert {name: getattr(user, name) for name in wanted if name != "password"} == {
        name: value for name, value in wanted.items() if name != "password"
    }
    [event] = await office.journal("user.updated")
    text = str(dict(event))
    assert "role" in text
    for secret in ("quite another phrase", "$2b$", "ab@example.org", "ann@example.org"):
        assert secret not in text


async def test_ones_own_password_needs_the_current_one(office: Office, root: Caller) -> None:
    ann = await office.caller("ann")
    for caller in (ann, root):
        for wanted in (
            {"password": "quite another phrase"},
            {"password": "quite another phrase", "current_password": "wrong"},
            {"password": "quite another phrase", "current_password": ""},
            {"current_password": PASSWORD},
        ):
            with pytest.raises(Invalid) as refused:
                await office.accounts.update(caller, str(caller.user_id), wanted)
            assert refused.value.details["fields"][0]["path"] == "current_password"
    await office.sessions.login("ann@example.org", PASSWORD)


async def test_a_password_that_changed_meanwhile_is_not_overwritten(
    office: Office, ann: Caller
) -> None:
    wanted = {"password": "quite another phrase", "current_password": PASSWORD}
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("UPDATE users SET password_hash = 'new' WHERE id = $1", ann.user_id)
        async with asyncio.TaskGroup() as group:
            update = group.create_task(
                attempt(office.accounts.update(ann, str(ann.user_id), wanted))
            )
            await until_blocked(conn)
            await change.commit()
    assert isinstance(update.result(), Conflict)
    stored = await office.value("SELECT password_hash FROM users WHERE id = $1", ann.user_id)
    assert stored == "new"


@pytest.mark.parametrize("wanted", [{"password": "quite another phrase"}, {"is_active": False}])
async def test_what_was_proved_before_is_void_after(
    office: Office, root: Caller, ann: Caller, wanted: dict[str, Any]
) -> None:
    epoch = "SELECT auth_epoch FROM users WHERE id = $1"
    await office.accounts.update(root, str(ann.user_id), {"name": "Ann", "role": Role.AGENT})
    assert await office.value(epoch, ann.user_id) == 0
    await office.accounts.update(root, str(ann.user_id), wanted)
    assert await office.value(epoch, ann.user_id) == 1


# --- the last administrator ---


@pytest.mark.parametrize("wanted", [{"role": Role.MANAGER}, {"is_active": False}])
async def test_the_last_administrator_stays(
    office: Office, root: Caller, wanted: dict[str, Any]
) -> None:
    off = await office.user("off", Role.ADMIN)
    await office.accounts.update(root, off.id, {"is_active": False})
    for caller in (root, SYSTEM):
        with pytest.raises(Conflict) as refused:
            await office.accounts.update(caller, root.user_id or "", wanted)
        assert refused.value.code == "E_USER_LAST_ADMIN"
        with pytest.raises(Conflict) as refused:
            await office.accounts.delete(caller, root.user_id or "")
        assert refused.value.code == "E_USER_LAST_ADMIN"
    await office.accounts.delete(root, off.id)
    await office.user("second", Role.ADMIN)
    await office.accounts.update(root, root.user_id or "", wanted)


async def test_nobody_deletes_themselves(office: Office, root: Caller) -> None:
    await office.user("second", Role.ADMIN)
    with pytest.raises(Conflict) as refused:
        await office.accounts.delete(root, root.user_id or "")
    assert refused.value.code == "E_USER_SELF"


@pytest.mark.parametrize("how", ["demote", "deactivate", "delete"])
async def test_two_administrators_cannot_remove_each_other_at_once(
    office: Office, how: str
) -> None:
    async def remove(node: Office, caller: Caller, user: Caller) -> None:
        ref = user.user_id or ""
        if how == "delete":
            await node.accounts.delete(caller, ref)
        elif how == "demote":
            await node.accounts.update(caller, ref, {"role": Role.USER})
        else:
            await node.accounts.update(caller, ref, {"is_active": False})

    count = "SELECT count(*) FROM users WHERE role = 'admin' AND is_active"
    async with another_node(office) as other:
        for round in range(8):
            await office.rows("UPDATE users SET is_active = false")
            ann = await office.caller(f"ann{round}", Role.ADMIN)
            bob = await office.caller(f"bob{round}", Role.ADMIN)
            answers = await asyncio.gather(
                attempt(remove(office, ann, bob)), attempt(remove(other, bob, ann))
            )
            assert await office.value(count) == 1
            [refused] = [answer for answer in answers if answer is not None]
            assert isinstance(refused, Forbidden | Conflict)


async def test_an_administrator_no_more_does_nothing_with_an_older_proof(
    office: Office, root: Caller
) -> None:
    ann = await office.caller("ann", Role.ADMIN)
    bob = await office.user("bob")
    await office.accounts.update(root, ann.user_id or "", {"role": Role.USER})
    for work in (
        office.accounts.update(ann, root.user_id or "", {"role": Role.USER}),
        office.accounts.update(ann, bob.id, {"password": "quite another phrase"}),
        office.accounts.update(ann, ann.user_id or "", {"role": Role.ADMIN}),
        office.accounts.delete(ann, bob.id),
    ):
        with pytest.raises(Forbidden):
            await work


# --- going, and the tickets that stay ---


async def test_a_deleted_persons_tickets_keep_their_name(office: Office, root: Caller) -> None:
    ann = await office.user("ann")
    ticket = await office.ticket(ann.id)
    await office.accounts.delete(root, ann.id)
    [row] = await office.rows("SELECT reporter_id, reporter_name, version FROM tickets")
    assert (row["reporter_id"], row["reporter_name"], row["version"]) == (None, "Reporter", 1)
    assert await office.journal("ticket.updated") == []
    with pytest.raises(NotFound):
        await office.accounts.get(root, ann.id)
    with pytest.raises(NotFound):
        await office.accounts.delete(root, ann.id)
    [event] = await office.journal("user.deleted")
    assert event["data"] == {"user_id": str(ann.id), "name": "ann", "role": "user"}
    assert ticket


async def test_a_deleted_assignee_leaves_each_ticket_by_one_version_and_one_event(
    office: Office, root: Caller
) -> None:
    ann, bob = await office.user("ann", Role.AGENT), await office.user("bob", Role.AGENT)
    both = await office.ticket(root.user_id, ann.id, bob.id)
    closed = await office.ticket(root.user_id, ann.id, status="closed")
    other = await office.ticket(root.user_id, bob.id)
    await office.accounts.delete(root, ann.id)
    versions = {row["id"]: row["version"] for row in await office.rows("SELECT * FROM tickets")}
    assert versions == {both: 2, closed: 2, other: 1}
    left = await office.rows("SELECT ticket_id, user_id FROM ticket_assignees")
    assert {tuple(row) for row in left} == {(both, bob.id), (other, bob.id)}
    events = {event["ticket_id"]: event for event in await office.journal("ticket.updated")}
    assert set(events) == {both, closed}
    assert events[both]["changes"] == [
        {"field": "assignee_ids", "old": [str(ann.id), str(bob.id)], "new": [str(bob.id)]}
    ]
    [deleted] = await office.journal("user.deleted")
    for event in events.values():
        assert (event["ticket_version"], event["actor_id"]) == (2, root.user_id)
        assert event["cause_id"] == deleted["id"]


async def test_a_ticket_that_is_being_changed_and_its_assignee_do_not_wait_crosswise(
    office: Office, root: Caller
) -> None:
    ann = await office.user("ann", Role.AGENT)
    first, second = await office.ticket(None, ann.id), await office.ticket(None)
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("UPDATE tickets SET version = version + 1")
        async with asyncio.TaskGroup() as group:
            group.create_task(office.accounts.delete(root, ann.id))
            await until_blocked(conn)
            await conn.execute(
                "INSERT INTO ticket_assignees (ticket_id, user_id) VALUES ($1, $2)", second, ann.id
            )
            await change.commit()
    assert {event["ticket_id"] for event in await office.journal("ticket.updated")} == {
        first,
        second,
    }
    assert await office.value("SELECT count(*) FROM ticket_assignees") == 0


async def test_assignees_are_the_active_agents_and_above_with_their_open_tickets(
    office: Office, root: Caller
) -> None:
    await office.user("user")
    agent = await office.user("Agent", Role.AGENT, department="IT")
    await office.user("manager", Role.MANAGER)
    off = await office.user("off", Role.AGENT)
    await office.accounts.update(root, off.id, {"is_active": False})
    for status in ("open", "triaged", "in_progress", "blocked", "closed"):
        await office.ticket(None, agent.id, status=status)
    await office.ticket(None, agent.id, off.id)
    page = await office.accounts.assignees(Window(count=True))
    assert page.total == 3
    assert [(p.name, p.role, p.department, p.open_tickets) for p in page.items] == [
        ("Agent", Role.AGENT, "IT", 5),
        ("manager", Role.MANAGER, None, 0),
        ("root", Role.ADMIN, None, 0),
    ]
    first = await office.accounts.assignees(Window(limit=2))
    rest = await office.accounts.assignees(Window(limit=2, cursor=first.next_cursor))
    assert [*first.items, *rest.items] == page.items


async def test_somebody_is_found_by_address_in_any_case(office: Office, ann: Caller) -> None:
    assert (await office.accounts.find("ANN@example.org")).id == ann.user_id
    with pytest.raises(NotFound):
        await office.accounts.find("nobody@example.org")
