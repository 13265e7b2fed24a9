"""API tokens, key rotation and the second factor as scripts, browsers and operators meet them."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import jwt
import pytest
from aiohttp import ClientSession

from tests.support import authenticator
from tests.support.authenticator import code_at, now, wrong_code
from tests.support.daemon import PASSWORD, Answer, Live, Person, serving
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.stream import connected, following

# Everything that was handed out once, for the log to be searched for.
SECRETS: list[str] = []


@pytest.fixture(name="desk", scope="module")
def _desk(pg_server: Server) -> Iterator[Live]:
    """A daemon whose managers need a second factor."""

    def judge(log: str) -> None:
        assert [secret for secret in SECRETS if secret in log] == []

    with serving(
        pg_server,
        judge,
        ITDESK_AUTH__TOTP_REQUIRED_ROLES='["manager"]',
        ITDESK_HUB__RECHECK_SECONDS="1",
        ITDESK_LOG__LEVEL="DEBUG",
    ) as live:
        yield live


async def script(owner: Person, scope: str, **more: Any) -> Person:
    """Return a script with a token of this person."""
    made = await owner.script(scope, **more)
    SECRETS.append(made.token)
    assert made.token.startswith("itdesk_pat_")
    return made


async def next_step(used: float) -> float:
    """Return the time once a code made then has not been used: the next one may be ahead."""
    return max(now(), used + 30)


async def enrol(person: Person) -> tuple[str, list[str], float]:
    """Set up a second factor, no part of which may ever be logged."""
    secret, codes, at = await authenticator.enrol(person)
    SECRETS.extend([secret, *codes])
    return secret, codes, at


async def challenge(live: Live, email: str, path: str = "/auth/login", **more: str) -> Answer:
    return await live.nobody.post(path, {"email": email, "password": PASSWORD, **more})


# --- API tokens ---


async def test_a_script_does_what_its_scope_allows(desk: Live) -> None:
    """Reading, writing and administration; the refusal names the scope that is missing."""
    reader, writer = await script(desk.admin, "read"), await script(desk.admin, "write")
    ruler = await script(desk.admin, "admin")
    ticket = await writer.ticket("From a script")
    for one in (reader, writer, ruler):
        (await one.get(f"/tickets/{ticket['id']}")).expect(200)
        assert (await one.get("/auth/me")).expect(200)["id"] == desk.admin.id
    for method, path in (("POST", "/tickets"), ("PATCH", f"/tickets/{ticket['id']}")):
        answer = await reader.call(method, f"/api/v1{path}", json={"title": "Changed"})
        refused = answer.refused(403, "E_AUTH_INSUFFICIENT_SCOPE")
        assert refused == {"scope": "write", "given": "read"}
    for one in (reader, writer):
        refused = (await one.get("/users")).refused(403, "E_AUTH_INSUFFICIENT_SCOPE")
        assert refused["scope"] == "admin"
    (await writer.delete(f"/tickets/{ticket['id']}")).refused(403, "E_AUTH_INSUFFICIENT_SCOPE")
    other = await desk.person()
    (await writer.get(f"/users/{other.id}")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    (await ruler.get(f"/users/{other.id}")).expect(200)
    (await ruler.delete(f"/tickets/{ticket['id']}")).expect(204)


async def test_a_script_repeats_a_request_with_one_effect(desk: Live) -> None:
    writer = await script(await desk.person(), "write")
    how = {"headers": {"Idempotency-Key": uuid4().hex}}
    first, again = [await writer.post("/tickets", {"title": "Once"}, **how) for _ in range(2)]
    assert first.expect(201) == again.expect(201)


async def test_a_script_manages_no_proofs(desk: Live) -> None:
    """No tokens, no passwords, no second factor: for these somebody signs in."""
    ruler = await script(desk.admin, "admin")
    for method, path, body in (
        ("POST", "/tokens", {"name": "another"}),
        ("DELETE", f"/tokens/{ruler.id}", None),
        ("GET", "/auth/totp", None),
        ("POST", "/auth/totp/enrol", {"password": PASSWORD}),
        ("POST", "/auth/totp/confirm", {"code": "123456"}),
        ("POST", "/auth/totp/recovery-codes", {"password": PASSWORD, "code": "123456"}),
        ("POST", "/auth/totp/disable", {"password": PASSWORD, "code": "123456"}),
        ("PATCH", f"/users/{desk.admin.id}", {"password": "x" * 20, "current_password": "y"}),
    ):
        answer = await ruler.call(method, f"/api/v1{path}", json=body)
        answer.refused(403, "E_AUTH_SESSION_REQUIRED")


async def test_what_a_token_may_be_called_and_how_long_it_lasts(desk: Live) -> None:
    alice = await desk.person()
    for wrong in (
        {"name": ""}, {"name": "x", "scope": "root"}, {"name": "x", "expires_in_days": 0},
        {"name": "x", "expires_in_days": 367}, {"name": "x", "expires_in_days": None},
        {"name": "x", "token": "itdesk_pat_mine"}, {},
    ):  # fmt: skip
        (await alice.post("/tokens", wrong)).refused(422, "E_VALIDATION_ERROR")
    answer = await alice.post("/tokens", {"name": "x", "scope": "admin"})
    answer.refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    assert (await alice.get("/tokens")).expect(200) == []
    await script(alice, "read", name="Backup", expires_in_days=1)
    (await alice.post("/tokens", {"name": "Backup"})).refused(409, "E_TOKEN_NAME_EXISTS")


async def test_the_last_use_of_a_token_is_seen(desk: Live) -> None:
    alice = await desk.person()
    reader = await script(alice, "read")

    async def shown() -> Any:
        (one,) = (await alice.get("/tokens")).expect(200)
        assert "token" not in one and "token_hash" not in one
        return one

    assert (await shown())["last_used_at"] is None
    (await reader.get("/tickets")).expect(200)

    async def seen() -> bool:
        return bool((await shown())["last_used_at"])

    await eventually(seen, seconds=15)
    assert (await shown())["last_used_ip"] == "127.0.0.1"
    other = (await desk.admin.get(f"/users/{alice.id}/tokens")).expect(200)
    assert other == [await shown()]


async def test_a_script_follows_live_until_its_token_is_revoked(desk: Live) -> None:
    """On the websocket as on REST; revoked, it is over at once here and within 5 s there."""
    alice = await desk.person()
    reader = await script(alice, "read")
    async with following(reader) as stream:
        ticket = await alice.ticket()
        assert (await stream.event(ticket, 1))["type"] == "ticket.created"
        (await alice.delete(f"/tokens/{reader.id}")).expect(204)
        (await reader.get("/tickets")).refused(401, "E_AUTH_TOKEN_INVALID")
        assert await stream.end(seconds=5) == 4401
    async with connected(desk.url) as stream:
        await stream.send(type="auth", token=reader.token)
        assert await stream.end() == 4401


async def test_a_script_ends_with_its_owner(desk: Live) -> None:
    alice = await desk.person("agent")
    writer = await script(alice, "write")
    (await writer.get("/stats/daily")).expect(200)
    (await desk.admin.patch(f"/users/{alice.id}", {"role": "user"})).expect(200)
    (await writer.get("/stats/daily")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    (await desk.admin.patch(f"/users/{alice.id}", {"is_active": False})).expect(200)
    (await writer.get("/tickets")).refused(401, "E_AUTH_TOKEN_INVALID")


@pytest.mark.slow
async def test_tokens_from_the_shell(desk: Live) -> None:
    alice = await desk.person()
    daemon = desk.daemon

    async def run(*words: str) -> Any:
        return await asyncio.to_thread(daemon.run, *words)

    made = await run("token", "create", "--email", alice.email, "--name", "n8n", "--scope", "write")
    token = made.stdout.strip()
    SECRETS.append(token)
    assert made.returncode == 0 and "\n" not in token
    await Person(desk.url, token).ticket()
    listed = await run("token", "list", "--email", alice.email)
    identity = listed.stdout.split()[0]
    assert "n8n" in listed.stdout and "write" in listed.stdout and token not in listed.stdout
    assert (await run("token", "revoke", identity)).returncode == 0
    assert (await run("token", "revoke", identity)).returncode == 1

    async def refused() -> bool:
        return (await Person(desk.url, token).get("/tickets")).status == 401

    await eventually(refused, seconds=5)
    admin = await run("token", "create", "--email", alice.email, "--name", "x", "--scope", "admin")
    assert admin.returncode == 1 and admin.stdout == ""


# --- the second factor ---


async def test_signing_in_with_a_second_factor(desk: Live) -> None:
    """R6 gives cookies, R7 none, before and after the second step."""
    alice = await desk.person()
    secret, codes, used = await enrol(alice)
    details = (await challenge(desk, alice.email)).refused(401, "E_AUTH_SECOND_FACTOR_REQUIRED")
    SECRETS.append(details["challenge"])
    wrong = {"challenge": details["challenge"], "code": wrong_code(secret, now())}
    answer = await desk.nobody.post("/auth/totp", wrong)
    answer.refused(401, "E_AUTH_SECOND_FACTOR_INVALID")
    assert "Set-Cookie" not in answer.headers
    right = {"challenge": details["challenge"], "recovery_code": codes[0]}
    answer = await desk.nobody.post("/auth/totp", right)
    pair = answer.expect(200)
    assert "Set-Cookie" in answer.headers and pair["user"]["id"] == alice.id
    (await Person(desk.url, pair["access_token"]).get("/auth/me")).expect(200)
    (await desk.nobody.post("/auth/totp", right)).refused(401, "E_AUTH_TOKEN_INVALID")
    details = (await challenge(desk, alice.email, "/auth/token")).refused(
        401, "E_AUTH_SECOND_FACTOR_REQUIRED"
    )
    later = {"challenge": details["challenge"], "code": code_at(secret, await next_step(used))}
    answer = await desk.nobody.post("/auth/token/totp", later)
    answer.expect(200)
    assert "Set-Cookie" not in answer.headers
    answer = await challenge(desk, alice.email, totp=codes[1])
    assert "Set-Cookie" in answer.headers and answer.status == 200


async def test_what_is_no_answer_to_a_challenge_is_named(desk: Live) -> None:
    for wrong in (
        {}, {"code": "123456"}, {"challenge": "x"}, {"challenge": "x", "code": "12345"},
        {"challenge": "x", "code": "123456", "recovery_code": "ABCD-ABCD-ABCD-ABCD"},
        {"challenge": "x", "recovery_code": "ABCD"}, {"challenge": 1, "code": "123456"},
    ):  # fmt: skip
        answer = await desk.nobody.post("/auth/totp", wrong)
        answer.refused(422, "E_VALIDATION_ERROR")


async def test_a_challenge_opens_nothing_by_itself(desk: Live) -> None:
    """S-10: typed; neither an access token, nor a refresh token, nor a websocket's."""
    alice = await desk.person()
    await enrol(alice)
    refused = (await challenge(desk, alice.email)).refused(401, "E_AUTH_SECOND_FACTOR_REQUIRED")
    token = refused["challenge"]
    SECRETS.append(token)
    (await Person(desk.url, token).get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    body = {"refresh_token": token}
    (await desk.nobody.post("/auth/refresh", body)).refused(401, "E_AUTH_TOKEN_INVALID")
    async with connected(desk.url) as stream:
        await stream.send(type="auth", token=token)
        assert await stream.end() == 4401


async def test_a_manager_without_a_factor_may_only_set_one_up(desk: Live) -> None:
    """auth.totp_required_roles: on REST, on the websocket, and for the manager's scripts."""
    boss = await desk.person("manager")
    for method, path in (("GET", "/tickets"), ("POST", "/tokens"), ("POST", "/projects"),
                         ("GET", f"/users/{boss.id}")):  # fmt: skip
        answer = await boss.call(method, f"/api/v1{path}", json={"name": "x"})
        answer.refused(403, "E_AUTH_ENROLMENT_REQUIRED")
    async with connected(desk.url) as stream:
        await stream.send(type="auth", token=boss.token)
        assert await stream.end() == 4403
    (await boss.get("/auth/me")).expect(200)
    assert (await boss.get("/auth/totp")).expect(200) == {
        "enabled": False, "required": True, "confirmed_at": None, "recovery_codes_left": 0,
    }  # fmt: skip
    await enrol(boss)
    (await boss.get("/tickets")).expect(200)
    async with following(boss) as stream:
        assert stream.epoch
    reset = await asyncio.to_thread(desk.daemon.run, "user", "reset-totp", "--email", boss.email)
    assert reset.returncode == 0 and "is gone" in reset.stdout
    fresh = await desk.sign_in(boss.email)
    (await fresh.get("/tickets")).refused(403, "E_AUTH_ENROLMENT_REQUIRED")


async def test_an_administrator_resets_a_factor_over_rest(desk: Live) -> None:
    alice = await desk.person()
    await enrol(alice)
    (await desk.admin.delete(f"/users/{alice.id}/totp")).expect(204)
    (await alice.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    await desk.sign_in(alice.email)
    (await desk.admin.delete(f"/users/{desk.admin.id}/totp")).refused(409, "E_USER_SELF")


# --- keys ---


async def test_a_third_party_verifies_our_tokens_by_the_published_keys(desk: Live) -> None:
    """RFC 7517: the public part only, cacheable, by the kid of the token."""
    alice = await desk.person()
    answer = await desk.nobody.call("GET", "/.well-known/jwks.json")
    keys = jwt.PyJWKSet.from_dict(answer.expect(200))
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert all(set(key) == {"kty", "n", "e", "alg", "use", "kid"} for key in answer.json["keys"])
    key = keys[jwt.get_unverified_header(alice.token)["kid"]]
    assert jwt.decode(alice.token, key, audience="itdesk")["sub"] == alice.id


async def test_keys_are_replaced_while_the_daemon_runs(desk: Live) -> None:
    """S-10: the new one at once, the old one within its overlap only; links and codes survive."""
    alice = await desk.person()
    secret, _, used = await enrol(alice)
    daemon = desk.daemon

    async def run(*words: str) -> Any:
        return await asyncio.to_thread(daemon.run, "keys", *words)

    async def published() -> list[str]:
        answer = await desk.nobody.call("GET", "/.well-known/jwks.json")
        return [key["kid"] for key in answer.expect(200)["keys"]]

    (old,) = await published()
    ticket = await alice.ticket()
    file = (await alice.upload(ticket["id"], b"words\n")).expect(201)
    await alice.scanned(file["id"])
    path = f"/tickets/{ticket['id']}/attachments/{file['id']}/download"
    link = (await alice.get(path)).expect(200)["download_url"]
    assert (await run("rotate", "--overlap", "14")).returncode == 2
    rotated = await run("rotate")
    new = rotated.stdout.split()[0]
    assert rotated.returncode == 0 and old in rotated.stdout and new != old
    # Signed by another process with a key that this daemon has not looked for yet.
    issued = await asyncio.to_thread(daemon.run, "token", "issue", "--email", alice.email)
    other = Person(desk.url, issued.stdout.strip())
    assert jwt.get_unverified_header(other.token)["kid"] == new
    for person in (other, alice):
        (await person.get("/auth/me")).expect(200)
    assert await published() == [new, old]
    async with ClientSession() as session, session.get(link) as response:
        assert await response.read() == b"words\n"
    answer = await challenge(desk, alice.email, totp=code_at(secret, await next_step(used)))
    fresh = answer.expect(200)["access_token"]
    assert jwt.get_unverified_header(fresh)["kid"] == new
    unknown = await run("retire", "-GxNobodysKey")
    assert (unknown.returncode, "No such option" in unknown.stderr) == (1, False)
    assert (await run("retire", old)).returncode == 0
    began = time.monotonic()

    async def refused() -> bool:
        return (await alice.get("/auth/me")).status == 401

    await eventually(refused, seconds=10)
    (await other.get("/auth/me")).expect(200)
    assert await published() == [new] and time.monotonic() - began < 10
    listed = await run("list")
    assert listed.stdout.split() == [new, "RS256", "signs"]
    desk.admin = await desk.sign_in(*daemon.first_admin)  # type: ignore[misc]
