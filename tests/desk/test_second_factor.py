"""The second factor: codes, recovery codes, challenges, and what an attacker gets out of them."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
import pytest_asyncio

from itdesk.config import Auth
from itdesk.desk import totp
from itdesk.desk.factors import Factors
from itdesk.desk.opaque import CHALLENGE
from itdesk.errors import (
    Conflict,
    Forbidden,
    Invalid,
    InvalidCode,
    InvalidCredentials,
    InvalidToken,
    RateLimited,
    SecondFactorRequired,
)
from itdesk.model import Caller, Role, User, new_id
from itdesk.store import users
from tests.support.authenticator import code_at, wrong_code
from tests.support.people import PASSWORD, Office, opened, outside, until_blocked


@dataclass
class Holder:
    """Somebody with a second factor, and the phone that shows the codes."""

    office: Office
    user: User
    secret: str
    recovery_codes: list[str]
    caller: Caller

    def code(self, drift: float = 0) -> str:
        return code_at(self.secret, self.office.clock.now().timestamp() + drift)

    def wrong(self) -> str:
        return wrong_code(self.secret, self.office.clock.now().timestamp())

    async def challenge(self) -> str:
        with pytest.raises(SecondFactorRequired) as refused:
            await self.office.sign_in(self.user)
        return str(refused.value.details["challenge"])


async def enrolled(office: Office, user: User) -> Holder:
    caller = await office.sessions.authenticate((await office.sign_in(user)).access_token)
    proposal = await office.second_factors.propose(caller, PASSWORD)
    now = office.clock.now().timestamp()
    codes = await office.second_factors.confirm(caller, code_at(proposal.secret, now))
    await office.pass_time(seconds=30)
    return Holder(office, user, proposal.secret, codes.recovery_codes, caller)


@pytest_asyncio.fixture
async def office(database_url: str) -> AsyncIterator[Office]:
    async with opened(Office(database_url)) as office:
        yield office


@pytest_asyncio.fixture
async def ann(office: Office) -> Holder:
    return await enrolled(office, await office.user("ann"))


# --- codes ---


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(59, "287082"), (1111111109, "081804"), (1111111111, "050471"), (1234567890, "005924"),
     (2000000000, "279037"), (20000000000, "353130")],
)  # fmt: skip
def test_codes_are_those_of_rfc_6238(seconds: int, code: str) -> None:
    """Appendix B, the last six of its eight digits; the authenticator of these tests agrees."""
    secret = b"12345678901234567890"
    assert code_at(totp.shown(secret), seconds) == code
    assert totp.matching_step(secret, code, now=seconds, after=0) == seconds // 30
    assert totp.matching_step(secret, code, now=seconds, after=seconds // 30) is None


def test_a_phone_may_be_one_step_ahead_or_behind() -> None:
    secret, now = b"12345678901234567890", 1234567890
    found = {
        drift: totp.matching_step(secret, totp._totp(secret).generate(now + drift).decode(),
                                  now=now, after=0)
        for drift in (-60, -30, 0, 30, 60)
    }  # fmt: skip
    assert [found[drift] is not None for drift in found] == [False, True, True, True, False]


def test_a_sealed_secret_opens_for_its_owner_and_key_alone() -> None:
    seal, owner, secret = totp.Seal(b"k" * 32), new_id(), totp.new_secret()
    sealed = seal.close(owner, secret)
    assert secret not in sealed and sealed != seal.close(owner, secret)
    assert seal.open(owner, sealed) == secret
    assert seal.open(new_id(), sealed) is None
    assert totp.Seal(b"j" * 32).open(owner, sealed) is None
    assert seal.open(owner, sealed[:-1]) is None and seal.open(owner, b"") is None


# --- setting up ---


async def test_an_enrolment_shows_the_secret_three_ways(office: Office) -> None:
    ann = await office.caller("ann")
    proposal = await office.second_factors.propose(ann, PASSWORD)
    uri = urlsplit(proposal.otpauth_uri)
    said = parse_qs(uri.query)
    assert (uri.scheme, uri.netloc, uri.path) == ("otpauth", "totp", "/itdesk:ann%40example.org")
    assert said["secret"] == [proposal.secret] and said["issuer"] == ["itdesk"]
    assert len(base64.b32decode(proposal.secret)) == 20
    drawing = ElementTree.fromstring(proposal.qr_svg)  # noqa: S314 - our own
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg" and len(drawing) == 1


async def test_a_proposal_asks_for_nothing_until_it_is_confirmed(office: Office) -> None:
    ann = await office.user("ann")
    caller = await office.sessions.authenticate((await office.sign_in(ann)).access_token)
    first = await office.second_factors.propose(caller, PASSWORD)
    await office.sign_in(ann)
    second = await office.second_factors.propose(caller, PASSWORD)
    now = office.clock.now().timestamp()
    assert first.secret != second.secret
    with pytest.raises(InvalidCode):
        await office.second_factors.confirm(caller, code_at(first.secret, now))
    assert not (await office.second_factors.status(caller)).enabled
    await office.second_factors.confirm(caller, code_at(second.secret, now))
    status = await office.second_factors.status(caller)
    assert status.enabled and status.recovery_codes_left == 10
    with pytest.raises(Conflict):
        await office.second_factors.propose(caller, PASSWORD)


async def test_nobody_enrols_at_an_open_screen(office: Office) -> None:
    ann = await office.caller("ann")
    for password in (None, "wrong"):
        with pytest.raises(Invalid):
            await office.second_factors.propose(ann, password)
    assert await office.rows("SELECT * FROM second_factors") == []


async def test_a_new_factor_ends_every_session_that_never_saw_it(office: Office) -> None:
    """Who only knew the password until then is out, and who is just signing in by it as well."""
    ann = await office.user("ann")
    before = await office.sign_in(ann)
    async with office.db.connection() as conn:
        account = await users.account(conn, ann.id)
    holder = await enrolled(office, ann)
    for signed in (before,):
        with pytest.raises(InvalidToken):
            await office.sessions.authenticate(signed.access_token)
    with pytest.raises(InvalidCredentials):
        async with office.db.transaction() as tx:
            await office.sessions._start(tx, account, holder.caller.source, "", "")
    assert holder.caller.session_id in {
        row["id"] for row in await office.rows("SELECT id FROM refresh_tokens"
                                               " WHERE revoked_at IS NULL")
    }  # fmt: skip


async def test_neither_secrets_nor_codes_are_stored_in_clear(ann: Holder) -> None:
    """Not in the tables, not in the journal."""
    office, text = ann.office, ""
    for table in ("second_factors", "recovery_codes", "events", "login_challenges"):
        text += await office.value(f"SELECT coalesce(string_agg(t::text, ''), '') FROM {table} t")  # noqa: S608
    challenge = await ann.challenge()
    raw = base64.b32decode(ann.secret)
    for secret in (ann.secret, raw.hex(), challenge, *ann.recovery_codes):
        assert secret not in text
    types = await office.rows("SELECT type FROM events WHERE type LIKE 'auth.second%'")
    assert [row["type"] for row in types] == ["auth.second_factor_enabled"]


# --- signing in ---


async def test_password_and_code_in_one_request_or_in_two(ann: Holder) -> None:
    """R6, R7: totp beside the password; or the challenge first, then the code."""
    office, email = ann.office, ann.user.email
    signed = await office.sessions.login(email, PASSWORD, code=ann.code())
    assert (await office.sessions.authenticate(signed.access_token)).user_id == ann.user.id
    await office.pass_time(seconds=30)
    signed = await office.sessions.answer(await ann.challenge(), ann.code())
    assert (await office.sessions.authenticate(signed.access_token)).user_id == ann.user.id
    assert (await office.sessions.refresh(signed.refresh_token)).user.id == ann.user.id


async def test_a_code_is_good_once(ann: Holder) -> None:
    """Also the one that confirmed the factor, and also at a later step before its own."""
    first, second = await ann.challenge(), await ann.challenge()
    code, later = ann.code(), ann.code(30)
    await ann.office.sessions.answer(first, later)
    for replayed in (later, code):
        with pytest.raises(InvalidCode):
            await ann.office.sessions.answer(second, replayed)


async def test_a_challenge_is_answered_once(ann: Holder) -> None:
    challenge = await ann.challenge()
    await ann.office.sessions.answer(challenge, ann.code())
    await ann.office.pass_time(seconds=30)
    with pytest.raises(InvalidToken):
        await ann.office.sessions.answer(challenge, ann.code())


async def test_a_challenge_ends_in_time(ann: Holder) -> None:
    challenge = await ann.challenge()
    await ann.office.pass_time(seconds=300)
    with pytest.raises(InvalidToken):
        await ann.office.sessions.answer(challenge, ann.code())


async def test_a_challenge_ends_after_five_wrong_answers(ann: Holder) -> None:
    challenge = await ann.challenge()
    for _ in range(5):
        with pytest.raises(InvalidCode):
            await ann.office.sessions.answer(challenge, ann.wrong())
    with pytest.raises(InvalidToken):
        await ann.office.sessions.answer(challenge, ann.code())


async def test_guessing_through_many_challenges_is_slowed_down(ann: Holder) -> None:
    """Ten wrong codes in a row and nobody guesses for a minute, then for two; paper still works."""
    office = ann.office
    for pause in (60, 120):
        for _ in range(10):
            with pytest.raises(InvalidCode):
                await office.sessions.login(ann.user.email, PASSWORD, code=ann.wrong())
        with pytest.raises(RateLimited) as refused:
            await office.sessions.login(ann.user.email, PASSWORD, code=ann.code())
        assert refused.value.retry_after == pause + 1
        await office.pass_time(seconds=pause)
    assert len(await office.journal("auth.second_factor_blocked")) == 2
    for _ in range(10):
        with pytest.raises(InvalidCode):
            await office.sessions.login(ann.user.email, PASSWORD, code=ann.wrong())
    await office.sessions.login(ann.user.email, PASSWORD, code=ann.recovery_codes[0])
    await office.pass_time(seconds=240)
    await office.sessions.login(ann.user.email, PASSWORD, code=ann.code())
    assert (await office.rows("SELECT failures, blocked_until FROM second_factors"))[0][:] == (
        0, None,
    )  # fmt: skip


async def test_twenty_at_once_with_one_code_are_one(ann: Holder) -> None:
    challenges = [await ann.challenge() for _ in range(8)]
    code = ann.code()
    results = await asyncio.gather(
        *(ann.office.sessions.answer(one, code) for one in challenges), return_exceptions=True
    )
    assert sorted(type(r).__name__ for r in results) == ["InvalidCode"] * 7 + ["SignedIn"]


async def test_what_is_no_challenge_of_ours_is_refused_alike(ann: Holder) -> None:
    """S-05: unknown, used and expired challenges answer the same."""
    used = await ann.challenge()
    await ann.office.sessions.answer(used, ann.code())
    said = set()
    for token in (used, CHALLENGE.new()[0]):
        with pytest.raises(InvalidToken) as refused:
            await ann.office.sessions.answer(token, "123456")
        said.add((refused.value.code, refused.value.message))
    assert len(said) == 1
    signed = await ann.office.sign_in(await ann.office.user("bob"))
    for token in ("", used[:-1], used.lower(), signed.access_token, signed.refresh_token):
        with pytest.raises(InvalidToken):
            await ann.office.sessions.answer(token, "123456")


async def test_who_has_a_factor_is_told_to_who_knows_the_password_only(ann: Holder) -> None:
    """S-05: with a wrong password nothing tells whether there is a factor, code or none."""
    await ann.office.user("bob")
    said = set()
    for email in ("ann@example.org", "bob@example.org", "nobody@example.org"):
        for code in (None, "123456", ann.recovery_codes[0]):
            with pytest.raises(InvalidCredentials) as refused:
                await ann.office.sessions.login(email, "wrong password", code=code)
            said.add((refused.value.code, refused.value.message, str(refused.value.details)))
    assert len(said) == 1
    assert await ann.office.rows("SELECT * FROM login_challenges") == []
    assert (await ann.office.value("SELECT failures FROM second_factors")) == 0


async def test_a_new_password_voids_a_challenge(ann: Holder) -> None:
    challenge = await ann.challenge()
    changed = {"password": "another good password", "current_password": PASSWORD}
    await ann.office.accounts.update(ann.caller, ann.user.id, changed)
    with pytest.raises(InvalidCredentials):
        await ann.office.sessions.answer(challenge, ann.code())


async def test_the_door_commits_a_challenge_with_what_its_caller_does(ann: Holder) -> None:
    """How every other way of signing in calls: one transaction, then the answer."""
    office = ann.office
    async with office.db.transaction() as tx:
        account = await users.account(tx.conn, ann.user.id)
        entered: Any = await office.sessions.open(tx, account)
    assert entered.demand().details["challenge"] == entered.token
    assert entered.token not in repr(entered)
    await office.sessions.answer(entered.token, ann.code())


# --- recovery codes ---


async def test_a_recovery_code_signs_in_once_however_it_is_typed(ann: Holder) -> None:
    office, first = ann.office, ann.recovery_codes[0]
    assert len(set(ann.recovery_codes)) == 10
    typed = first.lower().replace("-", " ")
    await office.sessions.answer(await ann.challenge(), typed)
    with pytest.raises(InvalidCode):
        await office.sessions.answer(await ann.challenge(), first)
    assert (await office.second_factors.status(ann.caller)).recovery_codes_left == 9
    assert len(await office.journal("auth.recovery_code_used")) == 1


async def test_new_recovery_codes_void_the_old_ones(ann: Holder) -> None:
    office = ann.office
    with pytest.raises(Invalid):
        await office.second_factors.renew_codes(ann.caller, "wrong", ann.code())
    with pytest.raises(InvalidCode):
        await office.second_factors.renew_codes(ann.caller, PASSWORD, ann.wrong())
    fresh = await office.second_factors.renew_codes(ann.caller, PASSWORD, ann.code())
    with pytest.raises(InvalidCode):
        await office.sessions.answer(await ann.challenge(), ann.recovery_codes[0])
    await office.sessions.answer(await ann.challenge(), fresh.recovery_codes[9])


# --- the end of a factor ---


async def test_switching_off_needs_password_and_code(ann: Holder) -> None:
    office = ann.office
    with pytest.raises(Invalid):
        await office.second_factors.disable(ann.caller, None, ann.code())
    with pytest.raises(InvalidCode):
        await office.second_factors.disable(ann.caller, PASSWORD, ann.wrong())
    challenge = await ann.challenge()
    await office.second_factors.disable(ann.caller, PASSWORD, ann.code())
    await office.sign_in(ann.user)
    with pytest.raises(InvalidCode):
        await office.sessions.answer(challenge, ann.code())
    assert await office.rows("SELECT * FROM recovery_codes") == []


async def test_an_administrator_resets_a_factor_and_ends_the_sessions(ann: Holder) -> None:
    office = ann.office
    admin = await office.caller("root", Role.ADMIN)
    other = await office.caller("bob")
    with pytest.raises(Forbidden):
        await office.second_factors.reset(other, ann.user.id)
    with pytest.raises(Conflict):
        await office.second_factors.reset(admin, str(admin.user_id))
    signed = await office.sessions.answer(await ann.challenge(), ann.code())
    assert await office.second_factors.reset(admin, str(ann.user.id))
    assert not await office.second_factors.reset(admin, ann.user.id)
    with pytest.raises(InvalidToken):
        await office.sessions.authenticate(signed.access_token)
    with pytest.raises(InvalidToken):
        await office.sessions.refresh(signed.refresh_token)
    await office.sign_in(ann.user)
    (event,) = await office.journal("auth.second_factor_reset")
    assert event["actor_id"] == admin.user_id


async def test_a_reset_beside_an_answer_ends_without_a_deadlock(ann: Holder) -> None:
    office = ann.office
    admin = await office.caller("root", Role.ADMIN)
    challenge = await ann.challenge()
    async with outside(office) as conn, asyncio.TaskGroup() as group:
        hold = conn.transaction()
        await hold.start()
        await conn.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", ann.user.id)
        reset = group.create_task(office.second_factors.reset(admin, ann.user.id))
        answer = group.create_task(_outcome(office.sessions.answer(challenge, ann.code())))
        async with outside(office) as watch:
            await until_blocked(watch)
        await hold.rollback()
    assert reset.result() is True
    signed = answer.result()
    if not isinstance(signed, Exception):
        with pytest.raises(InvalidToken):
            await office.sessions.refresh(signed.refresh_token)


async def _outcome(work: Any) -> Any:
    try:
        return await work
    except (InvalidCode, InvalidCredentials, InvalidToken) as exc:
        return exc


async def test_with_other_keys_paper_is_what_is_left(
    ann: Holder, capfd: pytest.CaptureFixture[str]
) -> None:
    """Never a 500, and never a way in without any code."""
    office = ann.office
    office.sessions._factors = Factors(b"o" * 32, office.clock)
    with pytest.raises(InvalidCode):
        await office.sessions.answer(await ann.challenge(), ann.code())
    await office.sessions.answer(await ann.challenge(), ann.recovery_codes[0])


# --- roles that need one ---


@pytest_asyncio.fixture
async def strict(database_url: str) -> AsyncIterator[Office]:
    auth = Auth(bcrypt_cost=4, totp_required_roles=(Role.ADMIN,))
    async with opened(Office(database_url, auth=auth)) as office:
        yield office


async def test_a_role_that_needs_a_factor_may_only_enrol_without_one(strict: Office) -> None:
    """From the first request on; and no more once the factor is there, in the same session."""
    root = await strict.user("root", Role.ADMIN)
    signed = await strict.sign_in(root)
    caller = await strict.sessions.authenticate(signed.access_token)
    assert caller.must_enrol and (await strict.second_factors.status(caller)).required
    assert not (await strict.caller("ann")).must_enrol
    proposal = await strict.second_factors.propose(caller, PASSWORD)
    now = strict.clock.now().timestamp()
    await strict.second_factors.confirm(caller, code_at(proposal.secret, now))
    assert not (await strict.sessions.authenticate(signed.access_token)).must_enrol
    await strict.pass_time(seconds=30)
    now = strict.clock.now().timestamp()
    await strict.second_factors.disable(caller, PASSWORD, code_at(proposal.secret, now))
    assert (await strict.sessions.authenticate(signed.access_token)).must_enrol


async def test_whoever_is_promoted_must_enrol_from_then_on(strict: Office) -> None:
    admin = await strict.user("root", Role.ADMIN)
    root = await strict.sessions.authenticate((await strict.sign_in(admin)).access_token)
    bob = await strict.user("bob")
    signed = await strict.sign_in(bob)
    assert not (await strict.sessions.authenticate(signed.access_token)).must_enrol
    await strict.accounts.update(root, bob.id, {"role": Role.ADMIN})
    assert (await strict.sessions.authenticate(signed.access_token)).must_enrol
