"""Sessions (S-13): what keeps somebody signed in, and everything that must end it."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from itdesk.config import Auth
from itdesk.desk.sessions import SignedIn
from itdesk.errors import (
    DeskError,
    EmailNotVerified,
    ExpiredToken,
    Forbidden,
    InvalidCredentials,
    InvalidToken,
    Unavailable,
)
from itdesk.model import SYSTEM, Role, User
from itdesk.store.db import Limits
from tests.support.people import PASSWORD, Office, another_node, opened, outside, until_blocked


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url)) as office:
        yield office


@pytest_asyncio.fixture
async def ann(office: Office) -> User:
    return await office.user("ann")


@pytest_asyncio.fixture
async def admin(office: Office) -> Any:
    return await office.caller("root", Role.ADMIN)


def family_of(office: Office, signed: SignedIn) -> UUID:
    return office.tokens.verify(signed.access_token).sid


async def live_tokens(office: Office, family: UUID) -> int:
    """Count the tokens of a family that a refresh would take."""
    count: int = await office.value(
        "SELECT count(*) FROM refresh_tokens t JOIN refresh_tokens root ON root.id = t.family_id"
        " WHERE t.family_id = $1 AND t.used_at IS NULL AND root.revoked_at IS NULL",
        family,
    )
    return count


async def attempt(refresh: Awaitable[SignedIn]) -> SignedIn | DeskError:
    try:
        return await refresh
    except DeskError as exc:
        return exc


async def assert_over(office: Office, signed: SignedIn) -> None:
    """Assert that nothing of a session works any more."""
    with pytest.raises(InvalidToken):
        await office.sessions.authenticate(signed.access_token)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(signed.refresh_token)
    assert await live_tokens(office, family_of(office, signed)) == 0


# --- signing in ---


async def test_a_login_gives_a_pair_that_names_the_caller(office: Office, ann: User) -> None:
    signed = await office.sessions.login(" ann@example.org".strip(), PASSWORD, address="1.2.3.4")
    caller = await office.sessions.authenticate(signed.access_token)
    assert (signed.token_type, signed.expires_in, signed.refresh_expires_in) == (
        "bearer",
        900,
        30 * 86400,
    )
    assert signed.user == ann
    assert (caller.user_id, caller.name, caller.role, caller.email) == (
        ann.id,
        "ann",
        Role.USER,
        "ann@example.org",
    )
    assert caller.session_id == family_of(office, signed)
    [event] = await office.journal("auth.login")
    assert event["actor_id"] == ann.id
    assert event["data"] == {"session_id": str(caller.session_id), "address": "1.2.3.4"}


async def test_an_address_is_known_in_any_case(office: Office, ann: User) -> None:
    assert (await office.sessions.login("ANN@Example.ORG", PASSWORD)).user == ann


async def test_all_refused_logins_look_alike(office: Office, ann: User, admin: Any) -> None:
    bob = await office.user("bob")
    await office.accounts.update(admin, bob.id, {"is_active": False})
    await office.user("cay", password=None)
    before = await office.value("SELECT count(*) FROM events")
    errors = []
    for email, password in (
        ("ann@example.org", "wrong password"),
        ("nobody@example.org", PASSWORD),
        (bob.email, PASSWORD),
        ("cay@example.org", PASSWORD),
        ("ann@example.org", "x" * 1000),
        ("not an address", "\ud800"),
        ("' OR 1=1 --", "' OR 1=1 --"),
    ):
        with pytest.raises(InvalidCredentials) as refused:
            await office.sessions.login(email, password)
        errors.append((refused.value.code, refused.value.message, refused.value.details))
    assert errors == [errors[0]] * len(errors)
    assert errors[0][0] == "E_AUTH_INVALID_CREDENTIALS"
    # Whoever guesses fills no journal.
    assert await office.value("SELECT count(*) FROM events") == before


async def test_an_unknown_address_takes_as_long_as_a_wrong_password(database_url: str) -> None:
    async def fastest(office: Office, email: str) -> float:
        times = []
        for _ in range(5):
            begun = time.process_time()  # of all threads, whatever else the machine does
            with pytest.raises(InvalidCredentials):
                await office.sessions.login(email, "wrong password")
            times.append(time.process_time() - begun)
        return min(times)

    async with opened(Office(database_url, auth=Auth(bcrypt_cost=10))) as office:
        await office.user("ann")
        known = await fastest(office, "ann@example.org")
        unknown = await fastest(office, "nobody@example.org")
    assert 0.5 < unknown / known < 2


async def test_an_unconfirmed_address_cannot_sign_in_where_that_is_required(
    office: Office,
) -> None:
    auth = Auth(bcrypt_cost=4, require_verified_email=True)
    await office.register("new@example.org", PASSWORD, "New")
    async with another_node(office, auth=auth) as strict:
        with pytest.raises(EmailNotVerified):
            await strict.sessions.login("new@example.org", PASSWORD)
        with pytest.raises(InvalidCredentials):
            await strict.sessions.login("new@example.org", "wrong password")
    await office.sessions.login("new@example.org", PASSWORD)


async def test_a_login_renews_a_hash_that_was_made_cheaper(office: Office, ann: User) -> None:
    async with another_node(office, auth=Auth(bcrypt_cost=5)) as dearer:
        await dearer.sessions.login(ann.email, PASSWORD)
        stored = await office.value("SELECT password_hash FROM users WHERE id = $1", ann.id)
        assert stored.startswith("$2b$05$")
        await dearer.sessions.login(ann.email, PASSWORD)


async def test_a_login_loses_against_a_change_of_the_password(office: Office, ann: User) -> None:
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("UPDATE users SET auth_epoch = auth_epoch + 1 WHERE id = $1", ann.id)
        async with asyncio.TaskGroup() as group:
            login = group.create_task(attempt(office.sessions.login(ann.email, PASSWORD)))
            await until_blocked(conn)
            await change.commit()
    assert isinstance(login.result(), InvalidCredentials)
    assert await office.value("SELECT count(*) FROM refresh_tokens") == 0


async def test_any_header_bytes_are_kept_as_text(office: Office, ann: User) -> None:
    agent = "\udcff\udc80 Mozilla \0" + "x" * 1000
    await office.sessions.login(ann.email, PASSWORD, user_agent=agent)
    stored = await office.value("SELECT user_agent FROM refresh_tokens")
    assert stored.startswith("?? Mozilla x")
    assert len(stored) <= 300


async def test_an_operator_can_open_a_session_for_somebody(
    office: Office, ann: User, admin: Any
) -> None:
    signed = await office.sessions.issue_for(ann)
    assert (await office.sessions.authenticate(signed.access_token)).user_id == ann.id
    assert (await office.journal("auth.login"))[-1]["source"] == "cli"
    await office.accounts.update(admin, ann.id, {"is_active": False})
    with pytest.raises(Forbidden):
        await office.sessions.issue_for(ann)


async def test_no_secret_is_stored(office: Office, ann: User) -> None:
    signed = await office.sign_in(ann)
    signed = await office.sessions.refresh(signed.refresh_token)
    digest = await office.value("SELECT token_hash FROM refresh_tokens ORDER BY generation DESC")
    assert digest == hashlib.sha256(signed.refresh_token.encode()).digest()
    for table in ("users", "refresh_tokens", "events"):
        for row in await office.rows(f"SELECT t::text AS text FROM {table} t"):  # noqa: S608
            for secret in (signed.refresh_token, signed.access_token, PASSWORD):
                assert secret not in row["text"]
    assert signed.refresh_token not in repr(signed)
    assert signed.access_token not in repr(signed)


# --- refreshing ---


async def test_a_refresh_gives_a_new_pair_of_the_same_session(office: Office, ann: User) -> None:
    first = await office.sign_in(ann)
    second = await office.sessions.refresh(first.refresh_token)
    assert second.refresh_token != first.refresh_token
    assert family_of(office, second) == family_of(office, first)
    await office.sessions.authenticate(second.access_token)
    await office.sessions.refresh(second.refresh_token)


@pytest.mark.parametrize(
    "garbage",
    ["", "rt_", "x", "rt_" + "A" * 43, "rt_" + "A" * 42, "é" * 46, "\ud800", "' OR 1=1 --", "a\0"],
)
async def test_what_is_no_refresh_token_of_ours_is_refused(office: Office, garbage: str) -> None:
    with pytest.raises(InvalidToken) as refused:
        await office.sessions.refresh(garbage)
    assert refused.value.code == "E_AUTH_TOKEN_INVALID"


async def test_an_access_token_refreshes_nothing(office: Office, ann: User) -> None:
    signed = await office.sign_in(ann)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(signed.access_token)
    with pytest.raises(InvalidToken):
        await office.sessions.authenticate(signed.refresh_token)


async def test_repeating_the_last_exchange_at_once_is_only_refused(
    office: Office, ann: User
) -> None:
    first = await office.sign_in(ann)
    second = await office.sessions.refresh(first.refresh_token)
    await office.pass_time(seconds=9)
    with pytest.raises(InvalidToken, match="just used"):
        await office.sessions.refresh(first.refresh_token)
    await office.sessions.authenticate(second.access_token)
    await office.sessions.refresh(second.refresh_token)
    assert await office.journal("auth.token_reuse") == []


async def test_repeating_the_last_exchange_later_ends_the_session(
    office: Office, ann: User
) -> None:
    first = await office.sign_in(ann)
    second = await office.sessions.refresh(first.refresh_token)
    await office.sessions.authenticate(second.access_token)
    await office.pass_time(seconds=10)
    with pytest.raises(InvalidToken) as refused:
        await office.sessions.refresh(first.refresh_token)
    assert (refused.value.status, refused.value.code) == (401, "E_AUTH_TOKEN_INVALID")
    await assert_over(office, second)
    revoked = await office.rows("SELECT revoked_at FROM refresh_tokens")
    assert all(row["revoked_at"] is not None for row in revoked)
    [event] = await office.journal("auth.token_reuse")
    assert event["actor_id"] == ann.id
    assert event["data"]["generation"] == 0


async def test_a_grandparent_ends_the_session_even_within_the_grace(
    office: Office, ann: User
) -> None:
    first = await office.sign_in(ann)
    second = await office.sessions.refresh(first.refresh_token)
    third = await office.sessions.refresh(second.refresh_token)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(first.refresh_token)
    await assert_over(office, third)


async def test_a_stolen_token_that_was_used_first_dies_when_its_owner_comes(
    office: Office, ann: User
) -> None:
    stolen = await office.sign_in(ann)
    thief = await office.sessions.refresh(stolen.refresh_token)
    await office.pass_time(seconds=3)
    thief = await office.sessions.refresh(thief.refresh_token)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(stolen.refresh_token)
    await assert_over(office, thief)


async def test_thief_and_owner_at_once_get_one_session_that_ends_with_the_next_try(
    office: Office, ann: User
) -> None:
    signed = await office.sign_in(ann)
    answers = await asyncio.gather(
        *(attempt(office.sessions.refresh(signed.refresh_token)) for _ in range(2))
    )
    [winner] = [answer for answer in answers if isinstance(answer, SignedIn)]
    await office.pass_time(minutes=1)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(signed.refresh_token)
    await assert_over(office, winner)


async def test_twenty_refreshes_at_once_leave_one_live_child(office: Office, ann: User) -> None:
    async with another_node(office) as other:
        signed = await office.sign_in(ann)
        nodes = (office, other)
        answers = await asyncio.gather(
            *(attempt(nodes[n % 2].sessions.refresh(signed.refresh_token)) for n in range(20))
        )
    won = [answer for answer in answers if isinstance(answer, SignedIn)]
    lost = [answer for answer in answers if isinstance(answer, DeskError)]
    assert len(won) == 1
    assert {(error.status, error.code) for error in lost} == {(401, "E_AUTH_TOKEN_INVALID")}
    assert await live_tokens(office, family_of(office, won[0])) == 1
    await office.sessions.authenticate(won[0].access_token)
    await office.sessions.refresh(won[0].refresh_token)


async def test_replays_of_different_tokens_at_once_end_the_session_without_a_deadlock(
    office: Office, ann: User
) -> None:
    pairs = [await office.sign_in(ann)]
    for _ in range(6):
        pairs.append(await office.sessions.refresh(pairs[-1].refresh_token))
    answers = await asyncio.gather(
        *(attempt(office.sessions.refresh(pair.refresh_token)) for pair in pairs[:-1])
    )
    assert all(isinstance(answer, InvalidToken) for answer in answers)
    assert len(await office.journal("auth.token_reuse")) == 1
    await assert_over(office, pairs[-1])


async def test_a_session_ends_after_its_time_however_often_it_is_refreshed(
    office: Office, ann: User
) -> None:
    signed = await office.sign_in(ann)
    for _ in range(5):
        await office.pass_time(days=5)
        signed = await office.sessions.refresh(signed.refresh_token)
    await office.pass_time(days=5, seconds=-60)
    signed = await office.sessions.refresh(signed.refresh_token)
    assert (signed.expires_in, signed.refresh_expires_in) == (60, 60)
    [life] = await office.rows(
        "SELECT DISTINCT t.expires_at - root.created_at AS life FROM refresh_tokens t"
        " JOIN refresh_tokens root ON root.id = t.family_id"
    )
    assert life["life"] == timedelta(days=30)
    await office.pass_time(seconds=60)
    for use in (office.sessions.refresh, office.sessions.authenticate):
        token = signed.refresh_token if use == office.sessions.refresh else signed.access_token
        with pytest.raises(ExpiredToken) as refused:
            await use(token)
        assert refused.value.code == "E_AUTH_TOKEN_EXPIRED"


# --- what ends a session ---


def refresh_token(office: Office, signed: SignedIn) -> Awaitable[None]:
    return office.sessions.logout(signed.refresh_token)


def access_token(office: Office, signed: SignedIn) -> Awaitable[None]:
    return office.sessions.logout(access_token=signed.access_token)


def both(office: Office, signed: SignedIn) -> Awaitable[None]:
    return office.sessions.logout(signed.refresh_token, access_token=signed.access_token)


@pytest.mark.parametrize("sign_out", [refresh_token, access_token, both])
async def test_signing_out_ends_the_session_at_once(
    office: Office, ann: User, sign_out: Callable[[Office, SignedIn], Awaitable[None]]
) -> None:
    signed, elsewhere = await office.sign_in(ann), await office.sign_in(ann)
    await office.sessions.authenticate(signed.access_token)
    await sign_out(office, signed)
    await assert_over(office, signed)
    await office.sessions.authenticate(elsewhere.access_token)
    await sign_out(office, signed)
    assert len(await office.journal("auth.logout")) == 1


async def test_signing_out_with_a_used_token_ends_the_session(office: Office, ann: User) -> None:
    first = await office.sign_in(ann)
    second = await office.sessions.refresh(first.refresh_token)
    await office.sessions.logout(first.refresh_token)
    await assert_over(office, second)


async def test_signing_out_with_nothing_good_is_no_error(office: Office) -> None:
    await office.sessions.logout()
    await office.sessions.logout("garbage", access_token="garbage")
    await office.sessions.logout("rt_" + "A" * 43)


async def test_a_refresh_on_its_way_does_not_survive_signing_out(office: Office, ann: User) -> None:
    for _ in range(10):
        signed = await office.sign_in(ann)
        refreshed, _ = await asyncio.gather(
            attempt(office.sessions.refresh(signed.refresh_token)),
            office.sessions.logout(access_token=signed.access_token),
        )
        if isinstance(refreshed, SignedIn):
            await assert_over(office, refreshed)


async def test_a_child_born_while_the_family_is_revoked_is_dead(office: Office, ann: User) -> None:
    signed = await office.sign_in(ann)
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        child = await conn.fetchval(
            "INSERT INTO refresh_tokens (user_id, family_id, generation, token_hash, expires_at)"
            " SELECT user_id, family_id, 1, sha256($1::text::bytea), expires_at"
            " FROM refresh_tokens RETURNING id",
            token := "rt_" + "B" * 43,
        )
        await office.sessions.logout(signed.refresh_token)
        await change.commit()
    assert await office.value("SELECT revoked_at FROM refresh_tokens WHERE id = $1", child) is None
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(token)


async def test_deactivation_ends_every_session_at_once(
    office: Office, ann: User, admin: Any
) -> None:
    sessions = [await office.sign_in(ann) for _ in range(3)]
    for signed in sessions:
        await office.sessions.authenticate(signed.access_token)
    await office.accounts.update(admin, ann.id, {"is_active": False})
    for signed in sessions:
        await assert_over(office, signed)
    with pytest.raises(InvalidCredentials):
        await office.sign_in(ann)
    await office.accounts.update(admin, ann.id, {"is_active": True})
    for signed in sessions:
        await assert_over(office, signed)
    await office.sign_in(ann)


async def test_somebody_switched_off_by_hand_cannot_refresh(office: Office, ann: User) -> None:
    signed = await office.sign_in(ann)
    await office.rows("UPDATE users SET is_active = false WHERE id = $1", ann.id)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(signed.refresh_token)
    with pytest.raises(InvalidToken):
        await office.sessions.authenticate(signed.access_token)


async def test_ones_own_new_password_ends_all_sessions_but_this(office: Office, ann: User) -> None:
    here, there = await office.sign_in(ann), await office.sign_in(ann)
    caller = await office.sessions.authenticate(here.access_token)
    await office.sessions.authenticate(there.access_token)
    change = {"password": "quite another phrase", "current_password": PASSWORD}
    await office.accounts.update(caller, ann.id, change)
    await assert_over(office, there)
    await office.sessions.authenticate(here.access_token)
    await office.sessions.refresh(here.refresh_token)
    with pytest.raises(InvalidCredentials):
        await office.sign_in(ann)
    await office.sessions.login(ann.email, "quite another phrase")


async def test_a_password_set_by_an_administrator_ends_all_sessions(
    office: Office, ann: User, admin: Any
) -> None:
    signed = await office.sign_in(ann)
    await office.sessions.authenticate(signed.access_token)
    await office.accounts.update(admin, ann.id, {"password": "quite another phrase"})
    await assert_over(office, signed)


async def test_a_new_role_counts_at_once_and_elsewhere_within_seconds(
    office: Office, ann: User, admin: Any
) -> None:
    signed = await office.sign_in(ann)
    async with another_node(office) as other:
        for node in (office, other):
            assert (await node.sessions.authenticate(signed.access_token)).role is Role.USER
        await office.accounts.update(admin, ann.id, {"role": Role.AGENT, "name": "Ann"})
        here = await office.sessions.authenticate(signed.access_token)
        assert (here.role, here.name) == (Role.AGENT, "Ann")
        assert (await other.sessions.authenticate(signed.access_token)).role is Role.USER
        await office.pass_time(seconds=2)
        assert (await other.sessions.authenticate(signed.access_token)).role is Role.AGENT
        await office.sessions.logout(signed.refresh_token)
        await other.sessions.authenticate(signed.access_token)
        await office.pass_time(seconds=2)
        await assert_over(other, signed)


async def test_deleting_somebody_ends_their_sessions(office: Office, ann: User, admin: Any) -> None:
    signed = await office.sign_in(ann)
    await office.sessions.authenticate(signed.access_token)
    await office.accounts.delete(admin, ann.id)
    await assert_over(office, signed)
    with pytest.raises(InvalidCredentials):
        await office.sign_in(ann)


# --- asking the database no more than needed ---


Counted = tuple[Office, Callable[[], Awaitable[int]]]


@pytest_asyncio.fixture
async def counted(database_url: str) -> AsyncIterator[Counted]:
    """A node with one connection, and how many session queries it made so far."""
    asked: list[str] = []

    def count(record: Any) -> None:
        if "root.expires_at" in record.query and "u.is_active" in record.query:
            asked.append(record.query)

    limits = Limits(connections=1)
    async with opened(Office(database_url, limits=limits, remembered=3)) as office:
        async with office.db.connection() as conn:
            conn.add_query_logger(count)

        async def times() -> int:
            await office.clock.settle()  # the logger is called in the loop's next turn
            return len(asked)

        yield office, times
        async with office.db.connection() as conn:
            conn.remove_query_logger(count)


async def test_a_session_is_asked_for_once_in_a_while(counted: Counted) -> None:
    office, asked = counted
    signed = await office.sign_in(await office.user("ann"))
    await asyncio.gather(*(office.sessions.authenticate(signed.access_token) for _ in range(50)))
    assert await asked() == 1
    await office.pass_time(seconds=1.5)
    await office.sessions.authenticate(signed.access_token)
    assert await asked() == 1
    await office.pass_time(seconds=0.5)
    await office.sessions.authenticate(signed.access_token)
    assert await asked() == 2


async def test_a_dead_session_is_asked_for_once_in_a_while(
    counted: Counted,
) -> None:
    office, asked = counted
    token, _ = office.tokens.issue(uuid4(), uuid4(), lifetime=timedelta(hours=1))
    for _ in range(10):
        with pytest.raises(InvalidToken):
            await office.sessions.authenticate(token)
    assert await asked() == 1


async def test_no_more_sessions_are_remembered_than_agreed(
    counted: Counted,
) -> None:
    office, asked = counted
    ann = await office.user("ann")
    tokens = [(await office.sign_in(ann)).access_token for _ in range(4)]
    for token in tokens:
        await office.sessions.authenticate(token)
    assert await asked() == 4
    await office.sessions.authenticate(tokens[3])
    assert await asked() == 4
    await office.sessions.authenticate(tokens[0])
    assert await asked() == 5


async def test_an_answer_older_than_a_change_is_not_remembered(office: Office, ann: User) -> None:
    signed = await office.sign_in(ann)
    await office.sessions.authenticate(signed.access_token)
    await office.pass_time(seconds=2)
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        async with asyncio.TaskGroup() as group:
            early = group.create_task(office.sessions.authenticate(signed.access_token))
            await until_blocked(conn)
            async with office.db.transaction() as tx:
                office.sessions.refresh_state(tx, ann.id)
            await change.rollback()
    assert early.result().role is Role.USER
    await office.rows("UPDATE users SET role = 'agent' WHERE id = $1", ann.id)
    assert (await office.sessions.authenticate(signed.access_token)).role is Role.AGENT


async def test_whoever_waited_asks_when_the_first_to_ask_is_called_off(
    office: Office, ann: User
) -> None:
    signed = await office.sign_in(ann)
    async with outside(office) as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        async with asyncio.TaskGroup() as group:
            first, *others = [
                group.create_task(office.sessions.authenticate(signed.access_token))
                for _ in range(5)
            ]
            await until_blocked(conn)
            first.cancel()
            others[0].cancel()
            await change.rollback()
    assert first.cancelled()
    assert others[0].cancelled()
    assert {task.result().user_id for task in others[1:]} == {ann.id}


async def test_an_outage_is_unavailable_only_when_nothing_is_remembered(
    office: Office, ann: User
) -> None:
    signed, unseen = await office.sign_in(ann), await office.sign_in(ann)
    await office.sessions.authenticate(signed.access_token)
    url, office.db.url = office.db.url, "postgresql://nobody@127.0.0.1:1/nothing"
    async with office.db.connection() as conn:
        await conn.close()
    await office.sessions.authenticate(signed.access_token)
    with pytest.raises(Unavailable):
        await office.sessions.authenticate(unseen.access_token)
    await office.pass_time(seconds=2)
    with pytest.raises(Unavailable):
        await office.sessions.authenticate(signed.access_token)
    office.db.url = url
    await office.sessions.authenticate(signed.access_token)


async def test_a_token_for_somebody_elses_session_is_refused(office: Office, ann: User) -> None:
    signed, bob = await office.sign_in(ann), await office.user("bob")
    hour = timedelta(hours=1)
    token, _ = office.tokens.issue(bob.id, family_of(office, signed), lifetime=hour)
    with pytest.raises(InvalidToken):
        await office.sessions.authenticate(token)


async def test_the_operator_is_not_asked_for_a_password(office: Office, ann: User) -> None:
    change = {"password": "quite another phrase"}
    await office.accounts.update(replace(SYSTEM), ann.id, change)
    await office.sessions.login(ann.email, "quite another phrase")
