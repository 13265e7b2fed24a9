"""API tokens: what they look like, what they may, how long they last, what is seen of them."""

import re
import zlib
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from itdesk.config import Auth
from itdesk.desk.api_tokens import MadeToken, NewToken
from itdesk.desk.opaque import API_TOKEN, CHALLENGE
from itdesk.errors import (
    Conflict,
    ExpiredToken,
    Forbidden,
    Invalid,
    InvalidToken,
    NotFound,
    SessionRequired,
)
from itdesk.model import SYSTEM, Caller, Grant, Role
from itdesk.runtime.redact import Redactor
from tests.support.people import PASSWORD, Office, another_node, opened


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url)) as office:
        yield office


async def made(
    office: Office, caller: Caller, scope: Grant = Grant.WRITE, name: str = "a script",
    days: int | None = 90,
) -> MadeToken:  # fmt: skip
    return await office.api_tokens.create(caller, NewToken(name, scope, days))


async def role_of(office: Office, token: MadeToken) -> Role:
    return (await office.sessions.authenticate(token.token)).role


# --- the shape ---


def test_a_token_is_recognised_and_its_checksum_too() -> None:
    token, digest = API_TOKEN.new()
    assert re.fullmatch(r"itdesk_pat_[0-9A-Za-z]{49}", token)
    assert API_TOKEN.digest(token) == digest and len(digest) == 32
    assert token not in {API_TOKEN.new()[0] for _ in range(50)}
    number = 0
    for char in token[-6:]:
        number = number * 62 + (
            "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz".index(char)
        )
    assert number == zlib.crc32(token[:-6].encode())


def test_whatever_is_done_to_a_token_makes_it_none() -> None:
    """S-10: cut, changed, other case, other kind, more of it; without asking the database."""
    token = API_TOKEN.new()[0]
    hostile = [token[:cut] for cut in range(len(token))]
    hostile += [token + "0", " " + token, token + "\n", token.upper(), token.lower(), token * 2]
    hostile += [token.swapcase(), token.replace("pat", "2fa"), CHALLENGE.new()[0], "\u00e4" * 60]
    for place in range(len(token)):
        other = "1" if token[place] == "0" else "0"
        hostile.append(token[:place] + other + token[place + 1 :])
    for text in hostile:
        with pytest.raises(InvalidToken):
            API_TOKEN.digest(text)


@pytest.mark.parametrize("around", ["{}", "bad token {}", "url?x={}&y", '{{"a": "{}"}}'])
def test_logs_never_show_one(around: str) -> None:
    """S-34: by their shape, wherever they stand and whoever made them."""
    redactor = Redactor()
    for kind in (API_TOKEN, CHALLENGE):
        token = kind.new()[0]
        line = around.format(token)
        assert redactor.suspicious(line)
        assert token[11:] not in redactor.text(line) and token[20:] not in redactor.text(line)


async def test_no_token_is_stored(office: Office) -> None:
    ann = await office.caller("ann")
    token = (await made(office, ann)).token
    for table in ("api_tokens", "events"):
        rows = await office.value(f"SELECT string_agg(t::text, '') FROM {table} t")  # noqa: S608
        assert token not in rows and token[11:30] not in rows
    assert token not in repr(await made(office, ann, name="another"))


# --- what it may do ---


async def test_a_token_acts_for_its_owner_up_to_its_scope(office: Office) -> None:
    root = await office.caller("root", Role.ADMIN)
    roles = {
        scope: await role_of(office, await made(office, root, scope, name=scope)) for scope in Grant
    }
    assert roles == {
        Grant.READ: Role.MANAGER, Grant.WRITE: Role.MANAGER, Grant.ADMIN: Role.ADMIN,
    }  # fmt: skip
    agent = await office.caller("agent", Role.AGENT)
    caller = await office.sessions.authenticate((await made(office, agent)).token)
    assert (caller.user_id, caller.role, caller.grant) == (agent.user_id, Role.AGENT, Grant.WRITE)
    with pytest.raises(Forbidden):
        await made(office, agent, Grant.ADMIN)


async def test_a_token_is_worth_what_its_owner_is_now(office: Office) -> None:
    """A demotion, a deactivation and a deletion count at once here, in seconds elsewhere."""
    root = await office.caller("root", Role.ADMIN)
    boss = await office.caller("boss", Role.ADMIN)
    token = await made(office, boss, Grant.ADMIN)
    async with another_node(office) as other:
        assert await role_of(office, token) is Role.ADMIN is await role_of(other, token)
        await office.accounts.update(root, str(boss.user_id), {"role": Role.USER})
        assert await role_of(office, token) is Role.USER
        await office.pass_time(seconds=2)
        assert await role_of(other, token) is Role.USER
        await office.accounts.update(root, str(boss.user_id), {"is_active": False})
        with pytest.raises(InvalidToken):
            await role_of(office, token)
        await office.pass_time(seconds=2)
        with pytest.raises(InvalidToken):
            await role_of(other, token)


async def test_a_revoked_token_is_over(office: Office) -> None:
    """At once here, within the seconds that a session may be remembered elsewhere."""
    ann, bob = await office.caller("ann"), await office.caller("bob")
    root = await office.caller("root", Role.ADMIN)
    token, second = await made(office, ann), await made(office, ann, name="second")
    with pytest.raises(NotFound):
        await office.api_tokens.revoke(bob, token.id)
    async with another_node(office) as other:
        await role_of(office, token)
        await role_of(other, token)
        await office.api_tokens.revoke(ann, str(token.id))
        with pytest.raises(InvalidToken):
            await role_of(office, token)
        await office.pass_time(seconds=2)
        with pytest.raises(InvalidToken):
            await role_of(other, token)
    await office.api_tokens.revoke(root, second.id)
    with pytest.raises(NotFound):
        await office.api_tokens.revoke(root, second.id)
    with pytest.raises(NotFound):
        await office.api_tokens.revoke(root, "nonsense")
    created, gone = (
        await office.journal("auth.token_created"),
        await office.journal("auth.token_revoked"),
    )
    assert [event["actor_id"] for event in gone] == [ann.user_id, root.user_id]
    assert len(created) == 2


async def test_a_token_changes_no_password(office: Office) -> None:
    root = await office.caller("root", Role.ADMIN)
    ann = await office.caller("ann")
    token = await office.sessions.authenticate((await made(office, root, Grant.ADMIN)).token)
    with pytest.raises(SessionRequired):
        await office.accounts.update(token, str(ann.user_id), {"password": "x" * 20})
    own = {"password": "x" * 20, "current_password": PASSWORD}
    with pytest.raises(SessionRequired):
        await office.accounts.update(token, str(root.user_id), own)
    await office.accounts.update(token, str(ann.user_id), {"name": "Anna"})


async def test_a_token_refreshes_nothing_and_signs_nobody_out(office: Office) -> None:
    ann = await office.caller("ann")
    token = await made(office, ann)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(token.token)
    await office.sessions.logout(token.token, access_token=token.token)
    assert await role_of(office, token) is Role.USER


async def test_who_must_enrol_is_not_let_in_by_a_token(database_url: str) -> None:
    auth = Auth(bcrypt_cost=4, totp_required_roles=(Role.ADMIN,))
    async with opened(Office(database_url, auth=auth)) as office:
        root = await office.caller("root", Role.ADMIN)
        for scope in Grant:
            token = await made(office, root, scope, name=scope)
            assert (await office.sessions.authenticate(token.token)).must_enrol


# --- how long, how many ---


async def test_a_token_ends_by_the_clock(office: Office) -> None:
    ann = await office.caller("ann")
    token = await made(office, ann, days=1)
    assert token.expires_at == office.clock.now() + timedelta(days=1)
    await office.pass_time(days=1, seconds=-1)
    caller, until = await office.sessions.admit(token.token)
    assert caller.user_id == ann.user_id and until == token.expires_at
    await office.pass_time(seconds=1)
    with pytest.raises(ExpiredToken):
        await office.sessions.authenticate(token.token)


async def test_a_token_without_an_end_needs_a_setting(office: Office, database_url: str) -> None:
    ann = await office.caller("ann")
    with pytest.raises(Invalid):
        await made(office, ann, days=None)
    auth = Auth(bcrypt_cost=4, api_tokens_without_end=True)
    async with another_node(office, auth=auth) as lenient:
        token = await made(lenient, ann, days=None)
        assert token.expires_at is None
        await office.pass_time(days=5000)
        assert await role_of(lenient, token) is Role.USER


async def test_nobody_has_two_tokens_of_one_name_or_more_than_fifty(office: Office) -> None:
    ann, bob = await office.caller("ann"), await office.caller("bob")
    for number in range(50):
        await made(office, ann, name=f"script {number}")
    with pytest.raises(Conflict) as refused:
        await made(office, ann, name="one more")
    assert refused.value.code == "E_TOKEN_LIMIT"
    await made(office, bob, name="script 1")
    with pytest.raises(Conflict) as refused:
        await made(office, bob, name="script 1")
    assert refused.value.code == "E_TOKEN_NAME_EXISTS"
    assert len(await office.api_tokens.list(ann)) == 50


async def test_an_administrator_lists_and_revokes_all_tokens_of_a_person(office: Office) -> None:
    ann, root = await office.caller("ann"), await office.caller("root", Role.ADMIN)
    token = await made(office, ann)
    await office.pass_time(seconds=1)
    other = await made(office, ann, name="other")
    assert [one.name for one in await office.api_tokens.list(root, str(ann.user_id))] == [
        "other", "a script",
    ]  # fmt: skip
    with pytest.raises(Forbidden):
        await office.api_tokens.list(ann, str(root.user_id))
    with pytest.raises(NotFound):
        await office.api_tokens.list(root, "nobody")
    await role_of(office, token)
    await office.api_tokens.revoke_all(root, str(ann.user_id))
    for one in (token, other):
        with pytest.raises(InvalidToken):
            await role_of(office, one)
    assert await office.api_tokens.list(ann) == []


# --- the last use ---


async def test_the_last_use_is_written_once_a_minute(office: Office) -> None:
    """Many requests, one row, and no write on the way of any of them."""
    ann = await office.caller("ann")
    token = await made(office, ann)

    async def used() -> tuple[object, object]:
        (one,) = await office.api_tokens.list(ann)
        return one.last_used_at, one.last_used_ip

    first = office.clock.now()
    for address in ("192.0.2.1", "192.0.2.2"):
        office.api_tokens.note_use(token.id, address)
    assert await used() == (None, None)
    await office.api_tokens.write_uses()
    assert await used() == (first, "192.0.2.1")
    await office.pass_time(seconds=59)
    office.api_tokens.note_use(token.id, "192.0.2.3")
    await office.api_tokens.write_uses()
    assert await used() == (first, "192.0.2.1")
    await office.pass_time(seconds=1)
    office.api_tokens.note_use(token.id, "192.0.2.4")
    await office.api_tokens.write_uses()
    assert await used() == (first + timedelta(seconds=60), "192.0.2.4")


async def test_an_older_use_from_another_node_changes_nothing(office: Office) -> None:
    ann = await office.caller("ann")
    token = await made(office, ann)
    async with another_node(office) as other:
        other.api_tokens.note_use(token.id, "192.0.2.1")
        await office.pass_time(seconds=5)
        office.api_tokens.note_use(token.id, "192.0.2.2")
        await office.api_tokens.write_uses()
        await other.api_tokens.write_uses()
    assert (await office.api_tokens.list(ann))[0].last_used_ip == "192.0.2.2"


async def test_invented_tokens_push_no_session_out(database_url: str) -> None:
    """A flood costs a look-up each, and nobody else their place in memory."""
    async with opened(Office(database_url, remembered=3)) as office:
        signed = await office.sign_in(await office.user("ann"))
        await office.sessions.authenticate(signed.access_token)
        for _ in range(10):
            with pytest.raises(InvalidToken):
                await office.sessions.authenticate(API_TOKEN.new()[0])
        admission = office.sessions.admission
        assert len(admission._api_tokens._known) == 3 and len(admission._sessions._known) == 1


async def test_an_operator_makes_a_token_for_its_owner(office: Office) -> None:
    ann = await office.user("ann")
    new = NewToken("n8n", Grant.WRITE, 30)
    token = await office.api_tokens.create(SYSTEM, new, owner=ann.id)
    assert (await office.sessions.authenticate(token.token)).user_id == ann.id
    with pytest.raises(Forbidden):
        await office.api_tokens.create(SYSTEM, NewToken("x", Grant.ADMIN, 30), owner=ann.id)
