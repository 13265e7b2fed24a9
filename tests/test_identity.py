"""Accounts by mail, end to end: the real daemon, a real mail server, links read out of mails."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from itdesk.config.model import Server as ServerSettings
from itdesk.desk.proofs import MOST_AN_HOUR
from itdesk.desk.verification import Visit
from itdesk.errors import Forbidden, InvalidCredentials
from tests.support.daemon import PASSWORD, Answer, Daemon, Live, Person
from tests.support.desk import bench_on
from tests.support.house import (
    ANOTHER,
    CHANGED,
    CONFIRM,
    EXISTS,
    FRONTEND,
    INVITED,
    NONE,
    RESET,
    WELCOME,
    House,
    address,
)  # fmt: skip
from tests.support.postbox import code_in, link_in, text_of, token_in
from tests.support.postgres import Server

# --- verifying an address -----------------------------------------------------------------------


async def test_a_new_account_is_verified_by_the_link_that_was_mailed(house: House) -> None:
    """S4-31, S4-35, S4-11, X8: 403 before, signed in by the link, welcome, 400 the second time."""
    email = address()
    made = await house.post("register", email=email, password=PASSWORD, name="New One")
    body = made.expect(201)
    assert set(body) == {"message", "user"} and body["user"]["is_verified"] is False
    (await house.login(email)).refused(403, "E_AUTH_EMAIL_NOT_VERIFIED")
    (await house.login(email, "wrong one")).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    mail = await house.box.next(email, CONFIRM)
    assert link_in(mail).startswith(f"{FRONTEND}/verify-email?token=")
    answer = await house.post("verify", token=token_in(mail))
    done = answer.expect(200)
    assert done["auto_logged_in"] is True and done["user"]["is_verified"] is True
    assert set(done) == {"message", "auto_logged_in", "user"}
    cookies = {c.split("=")[0]: c for c in answer.headers.getall("Set-Cookie")}  # type: ignore[attr-defined]
    assert set(cookies) == {"itdesk_access", "itdesk_refresh"}
    access = cookies["itdesk_access"].split(";")[0]
    me = await house.live.nobody.get("/auth/me", headers={"Cookie": access})
    assert me.expect(200)["email"] == email
    await house.box.next(email, WELCOME)
    (await house.post("verify", token=token_in(mail))).refused(400, "E_AUTH_CODE_INVALID")
    (await house.login(email)).expect(200)
    happened = ["auth.verification_sent", "user.registered", "user.verified"]
    assert await house.events(email) == happened
    assert (await house.user(email))["is_verified"] is True


async def test_a_code_verifies_like_the_link(house: House) -> None:
    """S4-36: right 200 with cookies; afterwards neither the code nor the link is good."""
    email = await house.register()
    mail = await house.box.next(email, CONFIRM)
    answer = await house.post("verify-code", email=email.upper(), code=code_in(mail))
    assert answer.expect(200)["auto_logged_in"] is True
    assert len(answer.headers.getall("Set-Cookie")) == 3  # type: ignore[attr-defined]
    again = await house.post("verify-code", email=email, code=code_in(mail))
    again.refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("verify", token=token_in(mail))).refused(400, "E_AUTH_CODE_INVALID")


def _wrong(code: str, number: int = 1) -> str:
    return f"{(int(code) + number) % 1_000_000:06d}"


async def test_a_code_forgives_five_wrong_tries(house: House) -> None:
    """S4-36, R14: five wrong ones are 400 each, and the right one still is right."""
    email = await house.register()
    code = code_in(await house.box.next(email, CONFIRM))
    for number in range(1, 6):
        wrong = await house.post("verify-code", email=email, code=_wrong(code, number))
        wrong.refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("verify-code", email=email, code=code)).expect(200)


async def test_the_sixth_wrong_try_is_the_end_of_a_code(house: House) -> None:
    """S4-36: then the right one is 400 as well, until a new one was mailed."""
    email = await house.register()
    code = code_in(await house.box.next(email, CONFIRM))
    for number in range(1, 7):
        wrong = await house.post("verify-code", email=email, code=_wrong(code, number))
        wrong.refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("verify-code", email=email, code=code)).refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("resend", email=email)).expect(200)
    code = code_in(await house.box.next(email, CONFIRM, count=2))
    (await house.post("verify-code", email=email, code=code)).expect(200)


async def test_many_wrong_tries_at_once_are_counted_one_by_one(house: House) -> None:
    """R14: whoever tries in parallel gets no more tries."""
    email = await house.register()
    code = code_in(await house.box.next(email, CONFIRM))
    tries = (house.post("verify-code", email=email, code=_wrong(code, n)) for n in range(1, 21))
    assert {answer.status for answer in await asyncio.gather(*tries)} == {400}
    (row,) = await house.sql(
        "SELECT attempts FROM verification_tokens JOIN users ON users.id = user_id"
        " WHERE email = $1",
        email,
    )
    assert row["attempts"] == 6
    (await house.post("verify-code", email=email, code=code)).refused(400, "E_AUTH_CODE_INVALID")


async def test_a_code_is_good_for_its_own_address_only(house: House) -> None:
    """R14: whoever has a code of their own verifies nobody else by it."""
    mine, victim = await house.register(), await house.register()
    code = code_in(await house.box.next(mine, CONFIRM))
    (await house.post("verify-code", email=victim, code=code)).refused(400, "E_AUTH_CODE_INVALID")
    assert (await house.user(victim))["is_verified"] is False
    for malformed in ("12345", "1234567", "12345a", "１２３４５６", " 12345", ""):
        answer = await house.post("verify-code", email=mine, code=malformed)
        answer.refused(422, "E_VALIDATION_ERROR")


async def test_a_new_mail_ends_the_link_and_the_code_of_the_one_before(house: House) -> None:
    """Section 7: issuing kills older ones; R15 mails only to whom it helps."""
    email = await house.register()
    first = await house.box.next(email, CONFIRM)
    (await house.post("resend", email=email)).expect(200)
    second = await house.box.next(email, CONFIRM, count=2)
    (await house.post("verify", token=token_in(first))).refused(400, "E_AUTH_CODE_INVALID")
    if code_in(first) != code_in(second):
        old = await house.post("verify-code", email=email, code=code_in(first))
        old.refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("verify", token=token_in(second))).expect(200)
    await house.settled()
    (await house.post("resend", email=email)).expect(200)
    await house.settled()
    assert len(house.box.of(email, CONFIRM)) == 2


async def test_of_many_who_follow_one_link_one_is_let_in(house: House) -> None:
    """S-19: single use, also at once."""
    email = await house.register()
    token = token_in(await house.box.next(email, CONFIRM))
    answers = await asyncio.gather(*(house.post("verify", token=token) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 19


async def test_links_end_by_the_clock(house: House) -> None:
    """S4-13, S-19: of both kinds; the lifetimes are 24 and 2 hours."""
    email = await house.register()
    mail = await house.box.next(email, CONFIRM)
    reset = await house.reset_token(email)
    hours = "SELECT round(extract(epoch FROM expires_at - created_at)) FROM {} WHERE user_id = $1"
    id = (await house.sql("SELECT id FROM users WHERE email = $1", email))[0][0]
    for table, lifetime in (("verification_tokens", 24), ("password_reset_tokens", 2)):
        assert (await house.sql(hours.format(table), id))[0][0] == lifetime * 3600
        await house.sql(
            f"UPDATE {table} SET expires_at = now() - interval '1 second' WHERE user_id = $1",  # noqa: S608
            id,
        )
    (await house.post("verify", token=token_in(mail))).refused(400, "E_AUTH_CODE_INVALID")
    code = await house.post("verify-code", email=email, code=code_in(mail))
    code.refused(400, "E_AUTH_CODE_INVALID")
    set_it = await house.post("reset-password", token=reset, new_password=ANOTHER)
    set_it.refused(400, "E_AUTH_CODE_INVALID")
    (await house.login(email, ANOTHER)).refused(401, "E_AUTH_INVALID_CREDENTIALS")


async def test_a_link_does_not_take_a_browser_from_who_is_signed_in(house: House) -> None:
    """S-19: somebody else's session stays; the address is verified all the same."""
    ann = await house.live.person()
    email = await house.register()
    token = token_in(await house.box.next(email, CONFIRM))
    cookie = {"Cookie": f"itdesk_access={ann.token}"}
    answer = await house.live.nobody.post("/auth/verify", {"token": token}, headers=cookie)
    done = answer.expect(200)
    assert done["auto_logged_in"] is False and done["user"]["is_verified"] is True
    assert "Set-Cookie" not in answer.headers


# --- signing in by mail -------------------------------------------------------------------------


async def test_email_login_opens_an_account_and_signs_in_who_is_verified(house: House) -> None:
    """S4-32: unknown, then unverified, then verified."""
    email = address()
    first = await house.post("email-login", email=email, password=PASSWORD)
    assert first.expect(200) == {
        "message": "account_created_verification_sent",
        "requires_verification": True,
    }
    assert "Set-Cookie" not in first.headers
    assert (await house.user(email))["is_verified"] is False
    await house.box.next(email, CONFIRM)
    second = await house.post("email-login", email=email, password=PASSWORD)
    assert second.expect(200)["message"] == "verification_sent"
    assert "Set-Cookie" not in second.headers
    token = token_in(await house.box.next(email, CONFIRM, count=2))
    (await house.post("verify", token=token)).expect(200)
    third = await house.post("email-login", email=email.upper(), password=PASSWORD)
    done = third.expect(200)
    assert (done["message"], done["requires_verification"]) == ("logged_in", False)
    assert done["user"]["email"] == email
    me = Person(house.live.url, done["tokens"]["access_token"])
    assert (await me.get("/auth/me")).expect(200)["email"] == email
    assert len(third.headers.getall("Set-Cookie")) == 3  # type: ignore[attr-defined]


async def test_a_wrong_password_at_email_login_changes_nothing_of_the_account(
    house: House,
) -> None:
    """Section 7: it neither tells of the account nor opens, verifies or takes one."""
    email = await house.verified()
    wrong = await house.post("email-login", email=email, password="not the right one")
    assert wrong.expect(200)["message"] == "account_created_verification_sent"
    await house.box.next(email, EXISTS)
    (await house.login(email, "not the right one")).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await house.login(email)).expect(200)


# --- what an answer tells -----------------------------------------------------------------------

ASKED: dict[str, dict[str, str]] = {
    "login": {"password": "not the right one"},
    "token": {"password": "not the right one"},
    "email-login": {"password": "not the right one"},
    "register": {"password": "not the right one", "name": "Somebody"},
    "forgot-password": {},
    "resend": {},
    "verify-code": {"code": "000000"},
}


def told(answer: Answer) -> Any:
    """Return all that an answer tells but ids, times and the address that was asked for."""
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name not in ("Date", "X-Request-ID", "Location")
    }
    body = {name: value for name, value in answer.json.items() if name != "request_id"}
    if "user" in body:
        assert answer.headers["Location"] == f"/api/v1/users/{body['user']['id']}"
        assert body["user"]["created_at"] == body["user"]["updated_at"]
        known = ("id", "email", "created_at", "updated_at")
        body["user"] = {
            name: len(value) if name in known else value for name, value in body["user"].items()
        }
    return answer.status, headers, body


@pytest.mark.parametrize("path", ASKED)
async def test_no_answer_tells_whether_an_address_has_an_account(house: House, path: str) -> None:
    """S-05: unknown, known, switched off and unverified: status, headers and body are equal."""
    emails = {
        "unknown": address(),
        "verified": await house.verified(),
        "disabled": await house.disabled(),
        "unverified": await house.register(),
    }
    # As long as the others, for the length of an answer tells as well.
    emails["disabled"] = await _renamed(house, emails["disabled"])
    answers = {}
    for state, email in emails.items():
        for _ in range(3):
            answers[state] = await house.post(path, {"email": email, **ASKED[path]})
            if path in ("register", "email-login"):
                break
    same = {state: told(answer) for state, answer in answers.items()}
    assert all(one == same["unknown"] for one in same.values()), same


async def _renamed(house: House, email: str) -> str:
    new = address()
    change = {"email": new}
    (await house.live.admin.patch(f"/users/{(await house.user(email))['id']}", change)).expect(200)
    return new


async def test_only_who_has_an_account_is_sent_a_link(house: House) -> None:
    """S4-33, R15: the same answers, and mail only where it belongs."""
    unknown, known, off = address(), await house.verified(), await house.disabled()
    for email in (unknown, known, off):
        (await house.post("forgot-password", email=email)).expect(200)
        (await house.post("resend", email=email)).expect(200)
    await house.settled()
    assert len(house.box.of(known, RESET)) == 1
    assert house.box.of(unknown) == [] and house.box.of(off) == []


async def test_registering_a_taken_address_tells_its_owner_and_nobody_else(house: House) -> None:
    """X8, S2-19: 201 as for a new one; the account is as it was; a mail says how to get in."""
    email = await house.verified()
    body = {"email": email.upper(), "password": ANOTHER, "name": "Somebody Else"}
    (await house.post("register", body)).expect(201)
    mail = await house.box.next(email, EXISTS)
    assert "Somebody Else" not in text_of(mail)
    (await house.login(email, ANOTHER)).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await house.login(email)).expect(200)
    assert (await house.user(email))["name"] == "New One"
    token = token_in(mail)
    (await house.post("reset-password", token=token, new_password=ANOTHER)).expect(200)
    (await house.login(email, ANOTHER)).expect(200)


async def test_whoever_registers_first_does_not_share_the_owners_account(house: House) -> None:
    """Section 7, pre-hijack: an unverified password ends when its address is asked for again."""
    email = await house.register(password="of the attacker")
    old = token_in(await house.box.next(email, CONFIRM))
    await house.register(email, password="of the real owner")
    (await house.login(email, "of the attacker")).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await house.post("verify", token=old)).refused(400, "E_AUTH_CODE_INVALID")
    # The owner is told, and lets nobody else in by following any later link.
    (await house.post("resend", email=email)).expect(200)
    token = token_in(await house.box.next(email, CONFIRM, count=2))
    (await house.post("verify", token=token)).expect(200)
    (await house.login(email, "of the attacker")).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    chosen = token_in(await house.box.next(email, EXISTS))
    (await house.post("reset-password", token=chosen, new_password=ANOTHER)).expect(200)
    (await house.login(email, ANOTHER)).expect(200)


async def test_registering_twice_by_mistake_changes_nothing(house: House) -> None:
    """A second click on the button: the same password, the same account, the first link is good."""
    email = await house.register()
    token = token_in(await house.box.next(email, CONFIRM))
    await house.register(email)
    (await house.post("verify", token=token)).expect(200)
    (await house.login(email)).expect(200)


# --- passwords ----------------------------------------------------------------------------------


async def test_a_forgotten_password_is_set_by_the_link(house: House) -> None:
    """S4-34, S4-11, S-19: new in, old out, once, every session dead, the owner told."""
    email = await house.verified()
    person = await house.live.sign_in(email)
    token = await house.reset_token(email)
    link = link_in(house.box.of(email, RESET)[0])
    assert link.startswith(f"{FRONTEND}/reset-password?token=")
    (await house.post("reset-password", token=token, new_password=ANOTHER)).expect(200)
    (await house.login(email)).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await person.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    refresh = await house.post("refresh", refresh_token=person.refresh_token)
    refresh.refused(401, "E_AUTH_TOKEN_INVALID")
    (await house.login(email, ANOTHER)).expect(200)
    again = await house.post("reset-password", token=token, new_password="a third passphrase")
    again.refused(400, "E_AUTH_CODE_INVALID")
    await house.box.next(email, CHANGED)
    events = await house.events(email)
    assert {"auth.password_reset_sent", "auth.password_reset"} <= set(events)


async def test_a_password_that_is_refused_does_not_use_the_link_up(house: House) -> None:
    """S-18: all that is wrong by name; then the same link is still good."""
    email = await house.verified()
    token = await house.reset_token(email)
    for weak in ("short", "password123", f"{email.partition('@')[0]}1", "x" * 201, "itdesk2026"):
        answer = await house.post("reset-password", token=token, new_password=weak)
        fields = answer.refused(422, "E_VALIDATION_ERROR")["fields"]
        assert {field["path"] for field in fields} == {"new_password"}
        assert weak not in answer.raw.decode() or weak == "short"
    (await house.post("reset-password", token=token, new_password=ANOTHER)).expect(200)


async def test_a_new_link_ends_the_one_before_and_a_changed_password_ends_all(
    house: House,
) -> None:
    """S-19: older links, those of the other kind, and those sent to an address that was left."""
    email = await house.verified()
    first = await house.reset_token(email)
    second = await house.reset_token(email, count=2)
    used = await house.post("reset-password", token=first, new_password=ANOTHER)
    used.refused(400, "E_AUTH_CODE_INVALID")
    person = await house.live.sign_in(email)
    change = {"password": ANOTHER, "current_password": PASSWORD}
    (await person.patch(f"/users/{person.id}", change)).expect(200)
    await house.box.next(email, CHANGED)
    cut = await house.post("reset-password", token=second, new_password="a third passphrase")
    cut.refused(400, "E_AUTH_CODE_INVALID")
    third = await house.reset_token(email, count=3)
    moved = {"email": address()}
    (await house.live.admin.patch(f"/users/{person.id}", moved)).expect(200)
    left = await house.post("reset-password", token=third, new_password="a third passphrase")
    left.refused(400, "E_AUTH_CODE_INVALID")


async def test_of_many_who_set_a_password_by_one_link_one_does(house: House) -> None:
    """S-19: single use, also at once."""
    email = await house.verified()
    token = await house.reset_token(email)
    words = [f"passphrase number {number}" for number in range(10)]
    answers = await asyncio.gather(
        *(house.post("reset-password", token=token, new_password=word) for word in words)
    )
    assert sorted(answer.status for answer in answers) == [200] + [400] * 9
    (right,) = [w for w, answer in zip(words, answers, strict=True) if answer.status == 200]
    (await house.login(email, right)).expect(200)


async def test_a_forgotten_password_of_an_unverified_account_verifies_it(house: House) -> None:
    """Who reads the mailbox owns the address, by whichever link."""
    email = await house.register()
    old = token_in(await house.box.next(email, CONFIRM))
    token = await house.reset_token(email)
    (await house.post("reset-password", token=token, new_password=ANOTHER)).expect(200)
    (await house.login(email, ANOTHER)).expect(200)
    (await house.post("verify", token=old)).refused(400, "E_AUTH_CODE_INVALID")
    assert house.box.of(email, CHANGED) == []


async def test_whoever_is_switched_off_is_let_in_by_no_link(house: House) -> None:
    """S-19: links that were mailed before are no way back."""
    email = await house.register()
    confirm = token_in(await house.box.next(email, CONFIRM))
    reset = await house.reset_token(email)
    path = f"/users/{(await house.user(email))['id']}"
    (await house.live.admin.patch(path, {"is_active": False})).expect(200)
    (await house.post("verify", token=confirm)).refused(400, "E_AUTH_CODE_INVALID")
    set_it = await house.post("reset-password", token=reset, new_password=ANOTHER)
    set_it.refused(400, "E_AUTH_CODE_INVALID")


@pytest.mark.parametrize(
    "password",
    [
        "x7" * 32,
        "x7" * 100,
        "ab " * 24 + "c",
        "Cafe\u0301 au lait",
        "пароль от сервиса",
        "🔑🔑🔑🔑🔑🔑🔑🔑",
        "        8 spaces",
        "aaaaaaab lowercase only",
    ],
)
async def test_any_good_password_is_taken_whole(house: House, password: str) -> None:
    """S-18: long ones, all of Unicode, no rule of composition, nothing cut."""
    token = await house.reset_token(email := await house.verified())
    (await house.post("reset-password", token=token, new_password=password)).expect(200)
    (await house.login(email, password)).expect(200)
    (await house.login(email, password[:-1])).refused(401, "E_AUTH_INVALID_CREDENTIALS")


async def test_a_password_differs_in_its_seventy_third_byte_and_not_by_normal_form(
    house: House,
) -> None:
    """S-18: bcrypt's limit is not felt; é is é however it is typed; NUL is 400, never 500."""
    email, shared = await house.verified(), "k" * 60 + "é" * 6
    token = await house.reset_token(email)
    (await house.post("reset-password", token=token, new_password=shared + "1")).expect(200)
    (await house.login(email, shared + "2")).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    decomposed = shared.replace("é", "e\u0301") + "1"
    (await house.login(email, decomposed)).expect(200)
    nul = await house.post("reset-password", token=NONE, new_password="good enough\0")
    nul.refused(400, "E_BAD_JSON")


# --- invitations --------------------------------------------------------------------------------


async def test_somebody_who_is_invited_sets_their_first_password(house: House) -> None:
    """An administrator opens an account without a password; the link makes it usable."""
    email = address()
    made = await house.live.admin.post("/users", {"email": email, "name": "Ida", "role": "agent"})
    user = made.expect(201)
    assert user["is_verified"] is False
    mail = await house.box.next(email, INVITED)
    assert "72 hours" in text_of(mail) and link_in(mail).startswith(f"{FRONTEND}/reset-password")
    again = f"/users/{user['id']}/invite"
    (await house.live.admin.post(again)).expect(200)
    newer = token_in(await house.box.next(email, INVITED, count=2))
    old = await house.post("reset-password", token=token_in(mail), new_password=ANOTHER)
    old.refused(400, "E_AUTH_CODE_INVALID")
    (await house.post("reset-password", token=newer, new_password=ANOTHER)).expect(200)
    assert (await house.login(email, ANOTHER)).expect(200)["user"]["role"] == "agent"
    assert (await house.user(email))["is_verified"] is True
    (await house.live.admin.post(again)).refused(409, "E_USER_HAS_PASSWORD")
    await house.box.next(email, WELCOME)
    types = await house.events(email)
    assert types.count("user.invited") == 2 and "user.created" in types


async def test_who_gets_a_password_from_the_administrator_needs_no_mail(house: House) -> None:
    """Also later: the administrator vouches for whom they hand a password to."""
    person = await house.live.person()
    assert house.box.of(person.email) == []
    both = {"email": address(), "name": "X", "password": PASSWORD, "invite": True}
    (await house.live.admin.post("/users", both)).refused(422, "E_VALIDATION_ERROR")
    email = address()
    silent = {"email": email, "name": "X", "invite": False}
    user = (await house.live.admin.post("/users", silent)).expect(201)
    assert user["is_verified"] is True
    invited = {"email": address(), "name": "X"}
    user = (await house.live.admin.post("/users", invited)).expect(201)
    (await house.live.admin.patch(f"/users/{user['id']}", {"password": ANOTHER})).expect(200)
    (await house.login(invited["email"], ANOTHER)).expect(200)
    await house.settled()
    assert house.box.of(email) == []


# --- what is kept -------------------------------------------------------------------------------


async def test_no_link_and_no_code_is_kept_in_the_clear(house: House) -> None:
    """Section 7: neither in any table, once the mail is sent, nor in the log."""
    email = await house.register()
    mail = await house.box.next(email, CONFIRM)
    reset = await house.reset_token(email)
    page = f"{house.live.url}/verify-email?token={token_in(mail)}"
    assert (await house.live.nobody.call("GET", page)).status == 200
    await house.settled()
    tables = await house.sql(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
    )
    everything = ""
    for (table,) in tables:
        rows = await house.sql(f'SELECT t::text FROM "{table}" t')  # noqa: S608
        everything += "\n".join(row[0] for row in rows)
    everything += house.live.daemon.log.read_text()
    for secret in (token_in(mail), reset):
        assert secret not in everything
        assert secret.encode().hex() not in everything
    (row,) = await house.sql(
        "SELECT code_hash FROM verification_tokens JOIN users ON users.id = user_id"
        " WHERE email = $1",
        email,
    )
    assert len(row["code_hash"]) == 32


async def test_a_name_in_a_mail_is_no_link(house: House) -> None:
    """Whoever registers a stranger's address does not choose what its owner clicks at."""
    for name in ("Win at https://evil.example", "www.evil.example", "evil.example/x"):
        email = address()
        (await house.post("register", email=email, password=PASSWORD, name=name)).expect(201)
        assert "evil" not in text_of(await house.box.next(email, CONFIRM))


async def test_no_header_of_a_request_gets_into_a_link(house: House) -> None:
    """S-19: Host and X-Forwarded-Host are the attacker's."""
    email = await house.register()
    for header in ("Host", "X-Forwarded-Host", "X-Original-Host", "Forwarded"):
        value = "host=evil.example" if header == "Forwarded" else "evil.example"
        answer = await house.live.nobody.post(
            "/auth/forgot-password", {"email": email}, headers={header: value}
        )
        answer.expect(200)
        await house.settled()
    for mail in house.box.of(email):
        assert link_in(mail).startswith(FRONTEND + "/") and "evil" not in mail.as_string()


async def test_what_is_no_link_is_refused_in_one_way(house: House) -> None:
    """S-19: garbage, a used link and none at all are one answer; never a 500."""
    seen = set()
    for token in (NONE, "x", "../../etc/passwd", "' OR 1=1 --", "é" * 43, "A" * 200):
        for path, more in (("verify", {}), ("reset-password", {"new_password": ANOTHER})):
            answer = await house.post(path, {"token": token, **more})
            answer.refused(400, "E_AUTH_CODE_INVALID")
            seen.add(answer.json["message"])
    assert len(seen) == 1
    (await house.post("verify", token="A" * 201)).refused(422, "E_VALIDATION_ERROR")
    (await house.post("verify", token="")).refused(422, "E_VALIDATION_ERROR")


# --- without mail, in production, under a flood --------------------------------------------------


async def test_a_developer_reads_the_link_and_the_code_in_the_answer(live: Live) -> None:
    """S4-31, S4-12, S2-19: in development, without any mail server; nothing has to be verified."""
    for path, name in (("verify", "token"), ("verify-code", "code")):
        email = address()
        asked = {"email": email, "password": PASSWORD, "name": "New One"}
        made = (await live.nobody.post("/auth/register", asked)).expect(201)
        (await live.nobody.post("/auth/register", asked)).refused(409, "E_USER_EMAIL_EXISTS")
        assert set(made) == {"message", "user", "verification_token", "verification_code"}
        await live.sign_in(email)
        proof = {name: made[f"verification_{name}"]}
        if name == "code":
            proof["email"] = email
        done = (await live.nobody.post(f"/auth/{path}", proof)).expect(200)
        assert done["user"]["is_verified"] is True
        mails = (await live.admin.get("/emails", params={"to": email})).expect(200)
        assert {mail["status"] for mail in mails} == {"skipped"}
        assert {mail["kind"] for mail in mails} == {"verification", "welcome"}


async def test_email_login_without_mail_keeps_its_promises(live: Live) -> None:
    """S4-32, R12: a wrong password is 401, for register tells as much here by its 409."""
    email = address()
    asked = {"email": email, "password": PASSWORD}
    for outcome in ("account_created_verification_sent", "verification_sent"):
        answer = await live.nobody.post("/auth/email-login", asked)
        assert answer.expect(200) == {"message": outcome, "requires_verification": True}
        assert "Set-Cookie" not in answer.headers
    person = await live.person()
    known = {"email": person.email, "password": PASSWORD}
    done = (await live.nobody.post("/auth/email-login", known)).expect(200)
    assert done["message"] == "logged_in" and done["user"]["id"] == person.id
    wrong = await live.nobody.post("/auth/email-login", {**known, "password": "not the right one"})
    wrong.refused(401, "E_AUTH_INVALID_CREDENTIALS")
    weak = {"email": address(), "password": "password123"}
    (await live.nobody.post("/auth/email-login", weak)).refused(422, "E_VALIDATION_ERROR")


async def test_production_shows_no_link(
    pg_server: Server, new_daemon: Callable[..., Daemon]
) -> None:
    """S4-31, S4-05: neither token nor code; a taken address is 409 without verification."""
    url = await pg_server.create()
    try:
        cost = {"ITDESK_AUTH__BCRYPT_COST": "10"}
        daemon = new_daemon(url, ENV="production", ITDESK_DATABASE__MIGRATE_ON_START="true", **cost)
        daemon.start()
        asked = {"email": address(), "password": PASSWORD, "name": "New One"}
        made = await Person(daemon.url).post("/auth/register", asked)
        assert set(made.expect(201)) == {"message", "user"}
        again = await Person(daemon.url).post("/auth/register", asked)
        again.refused(409, "E_USER_EMAIL_EXISTS")
        assert daemon.stop() == 0
    finally:
        await pg_server.drop(url)


async def test_nobody_is_sent_more_than_five_links_an_hour(database_url: str) -> None:
    """Whoever floods a mailbox by asking, or wants ever new codes to guess at, gets no more."""
    async with bench_on(database_url) as bench:
        signups, email = bench.desk.signups, address()
        await signups.register(email, PASSWORD, "New One")
        for _ in range(8):
            assert (await signups.email_login(email, PASSWORD, Visit())).signed_in is None
        count = "SELECT count(*) FROM emails WHERE kind = 'verification'"
        assert await bench.sql(count) == MOST_AN_HOUR
        older = "UPDATE verification_tokens SET created_at = created_at - interval '61 minutes'"
        await bench.sql(older)
        await signups.email_login(email, PASSWORD, Visit())
        assert await bench.sql(count) == MOST_AN_HOUR + 1


async def test_closed_registration_opens_no_account_by_any_door(database_url: str) -> None:
    """R5, R12: an address without an account is refused as a wrong password is."""
    async with bench_on(database_url, ITDESK_AUTH__ALLOW_REGISTRATION="false") as bench:
        with pytest.raises(Forbidden):
            await bench.desk.signups.register(address(), PASSWORD, "New One")
        with pytest.raises(InvalidCredentials):
            await bench.desk.signups.email_login(address(), PASSWORD, Visit())
        assert await bench.sql("SELECT count(*) FROM users") == 0


def test_links_lead_to_the_frontend_or_to_the_daemon_itself() -> None:
    """S4-11: the default names no frontend of anybody's once the daemon's own address is known."""
    own, front = "https://desk.example.org", "https://front.example.org"
    default = ServerSettings().frontend_base_url
    assert ServerSettings(frontend_base_url=front, public_url=own).link_base == front
    assert ServerSettings(public_url=own).link_base == own
    assert ServerSettings(public_url=own, frontend_base_url=default).link_base == own
    assert ServerSettings().link_base == default
