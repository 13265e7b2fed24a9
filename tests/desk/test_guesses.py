"""Brute force (S-06): guessing is slow for whoever guesses, and for nobody else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest

from itdesk.config import Limits
from itdesk.desk.passwords import Passwords
from itdesk.desk.schedules import clean_up
from itdesk.errors import (
    DeskError,
    EmailNotVerified,
    Forbidden,
    Invalid,
    InvalidCredentials,
    RateLimited,
    Unavailable,
)
from itdesk.model import Caller, Role, User
from tests.support.people import PASSWORD, Office, another_node, opened

NEW = "an entirely different one"


@pytest.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url, guessing=Limits())) as office:
        yield office


@pytest.fixture
async def ann(office: Office) -> User:
    return await office.user("ann")


async def outcome(work: Awaitable[Any]) -> tuple[type[Any], str, int | None]:
    """Return what came of something, as far as the caller can tell."""
    try:
        await work
    except DeskError as exc:
        return type(exc), exc.message, exc.retry_after
    return type(None), "", None


async def guess(office: Office, email: str = "ann@example.org", password: str = "wrong one") -> Any:
    return (await outcome(office.sessions.login(email, password)))[0]


async def guesses(office: Office, times: int, email: str = "ann@example.org") -> list[Any]:
    return [await guess(office, email) for _ in range(times)]


async def pass_waits(office: Office) -> None:
    """Let every wait be over, by the database's clock."""
    await office.rows("UPDATE password_guesses SET blocked_until = now()")


async def signed_in(office: Office, user: User) -> tuple[Caller, Any]:
    signed = await office.sign_in(user)
    return await office.sessions.authenticate(signed.access_token), signed


async def test_ten_wrong_passwords_are_compared_and_then_none(office: Office, ann: User) -> None:
    """S-06: at most 10 failures in 15 minutes; then not even the right one is looked at."""
    found = await guesses(office, 25)
    assert found == [InvalidCredentials] * 10 + [RateLimited] * 15
    kind, message, wait = await outcome(office.sessions.login(ann.email, PASSWORD))
    assert kind is RateLimited and 890 <= (wait or 0) <= 901
    assert "Try again in" in message
    await pass_waits(office)
    await office.sign_in(ann)
    assert await guesses(office, 11) == [InvalidCredentials] * 10 + [RateLimited]


async def test_guesses_at_once_get_no_more_than_one_after_the_other(
    office: Office, ann: User
) -> None:
    """S-06: a guess counts before it is looked at, on all nodes together."""
    async with another_node(office) as node:
        found = await asyncio.gather(*(guess(o) for _ in range(20) for o in (office, node)))
    assert sorted(found.count(kind) for kind in (InvalidCredentials, RateLimited)) == [10, 30]


async def test_each_further_failure_waits_longer_and_the_hundredth_is_the_last(
    office: Office, ann: User
) -> None:
    """S-06, NIST SP 800-63B 5.2.2: never more than 100 in a row, whatever time they take."""
    await guesses(office, 10)
    waits, compared = [], 10
    for _ in range(250):
        kind, message, wait = await outcome(office.sessions.login(ann.email, "wrong one"))
        if kind is RateLimited:
            waits.append(wait or 0)
            await pass_waits(office)
        else:
            compared += 1
        if "unlock" in message:
            break
    assert compared == 100
    assert [round(wait / 900) for wait in waits[:6]] == [1, 2, 4, 8, 16, 32]
    assert waits == sorted(waits) and max(waits) <= 86_401
    await pass_waits(office)
    assert await guess(office, password=PASSWORD) is RateLimited
    await office.rows("UPDATE password_guesses SET expires_at = expires_at - interval '1 year'")
    assert await clean_up(office.db, days=30)
    assert await guess(office, password=PASSWORD) is RateLimited


async def test_an_address_without_an_account_answers_alike(office: Office, ann: User) -> None:
    """S-05, S-06: the lock tells nobody who has an account."""
    told = []
    for email in ("ann@example.org", "nobody@example.org"):
        seen = []
        for attempt in range(14):
            kind, message, wait = await outcome(office.sessions.login(email, "wrong one"))
            seen.append((kind, "".join(c for c in message if not c.isdigit()), (wait or 0) // 100))
            if attempt > 10:
                await pass_waits(office)
        told.append(seen)
    assert told[0] == told[1]


async def test_the_address_counts_in_any_case_and_with_spaces(office: Office, ann: User) -> None:
    for email in ("ann@example.org", "ANN@example.org", " Ann@Example.org "):
        await guesses(office, 4, email)
    assert await guess(office) is RateLimited


async def test_whoever_holds_a_session_is_never_locked_out(office: Office, ann: User) -> None:
    """S-06: the session lives on, is renewed, and may change the password."""
    caller, signed = await signed_in(office, ann)
    await guesses(office, 15)
    again = await office.sessions.refresh(signed.refresh_token)
    assert (await office.sessions.authenticate(again.access_token)).user_id == ann.id
    wanted = {"password": NEW, "current_password": PASSWORD}
    await office.accounts.update(caller, ann.id, wanted)
    # Who proved the password may sign in at once, too.
    await office.sessions.login(ann.email, NEW)


async def test_a_stolen_session_does_not_help_to_guess_the_password(
    office: Office, ann: User
) -> None:
    """S-06: the current password is counted by itself; sign-in stays open."""
    caller, _ = await signed_in(office, ann)

    async def change(current: str) -> Any:
        wanted = {"password": NEW, "current_password": current}
        return (await outcome(office.accounts.update(caller, ann.id, wanted)))[0]

    assert [await change("wrong one") for _ in range(9)] == [Invalid] * 9
    assert await change(PASSWORD) is type(None)
    async with office.db.transaction() as tx:
        await tx.conn.execute("UPDATE users SET password_hash = NULL WHERE id = $1", ann.id)
    assert [await change("wrong one") for _ in range(12)] == [Invalid] * 10 + [RateLimited] * 2
    assert await guess(office) is InvalidCredentials


async def test_the_budget_survives_a_restart(office: Office, ann: User) -> None:
    """S-06."""
    await guesses(office, 10)
    async with another_node(office) as node:
        assert await guess(node, password=PASSWORD) is RateLimited


async def test_what_could_not_be_compared_is_no_failure(office: Office, ann: User) -> None:
    """A storm of others (E_BUSY) locks nobody out."""
    busy = Passwords(4, threads=1, queue=0)
    assert busy._room.acquire(blocking=False)
    office.sessions._passwords = busy
    assert await guesses(office, 30) == [Unavailable] * 30
    busy.close()
    assert await office.value("SELECT sum(failures) FROM password_guesses") == 0
    office.sessions._passwords = office.passwords
    await office.sign_in(ann)


async def test_an_unconfirmed_address_is_no_failure(database_url: str) -> None:
    office = Office(database_url, guessing=Limits(sign_in_failures=3))
    office.auth = office.auth.model_copy(update={"require_verified_email": True})
    office.__post_init__()
    async with opened(office):
        await office.register("bob@example.org", PASSWORD, "Bob")
        found = [await guess(office, "bob@example.org", PASSWORD) for _ in range(6)]
        assert found == [EmailNotVerified] * 6


async def test_an_administrator_lifts_a_lock(office: Office, ann: User) -> None:
    """S-06: unlocking is for administrators, is journalled, and harms nobody who was not locked."""
    admin = await office.caller("root", Role.ADMIN)
    agent = await office.caller("agent", Role.AGENT)
    await guesses(office, 10)
    with pytest.raises(Forbidden):
        await office.accounts.unlock(agent, ann.id)
    assert await office.accounts.unlock(admin, ann.id)
    assert not await office.accounts.unlock(admin, ann.id)
    await office.sign_in(ann)
    (unlocked,) = await office.journal("auth.unlocked")
    assert unlocked["actor_id"] == admin.user_id
    assert unlocked["data"] == {"user_id": str(ann.id), "failures": 10}


async def test_a_lock_is_journalled_once_and_nobodys_never(office: Office, ann: User) -> None:
    """The world may not fill the journal."""
    await guesses(office, 30)
    await guesses(office, 30, "nobody@example.org")
    (locked,) = await office.journal("auth.locked")
    assert locked["data"] == {"user_id": str(ann.id), "failures": 10, "address": ""}


async def test_a_password_set_by_an_administrator_lifts_the_lock(office: Office, ann: User) -> None:
    admin = await office.caller("root", Role.ADMIN)
    await guesses(office, 10)
    await office.accounts.update(admin, ann.id, {"password": NEW})
    await office.sessions.login(ann.email, NEW)


async def test_no_address_is_stored_and_old_guesses_are_forgotten(office: Office) -> None:
    """People type passwords where the address belongs."""
    await guesses(office, 3, "my secret password")
    kept = await office.rows("SELECT * FROM password_guesses")
    assert len(kept) == 1 and b"secret" not in kept[0]["subject"]
    assert (await clean_up(office.db, days=30))["guesses"] == 0
    await office.rows("UPDATE password_guesses SET expires_at = now() - interval '1 second'")
    assert (await clean_up(office.db, days=30))["guesses"] == 1


async def test_switched_off_limits_count_nothing(office: Office, ann: User) -> None:
    """Section 9: `[limits] enabled = false`."""
    async with another_node(office, guessing=Limits(enabled=False)) as node:
        assert await guesses(node, 30) == [InvalidCredentials] * 30
    assert await office.rows("SELECT * FROM password_guesses") == []
