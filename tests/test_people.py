"""Accounts, roles and projects over REST against the real daemon."""

import time
from typing import Any
from uuid import uuid4

import asyncpg
import jwt
import pytest

from tests.support.daemon import PASSWORD, Live, Person

SECRETIVE = ("password", "hash", "auth_epoch")


@pytest.fixture
async def alice(live: Live) -> Person:
    """A plain user."""
    return await live.person()


def _email() -> str:
    return f"{uuid4().hex[:12]}@example.org"


async def _login(live: Live, email: str, password: str = PASSWORD) -> Any:
    return await live.nobody.post("/auth/login", {"email": email, "password": password})


async def test_ping_answers_exactly(live: Live) -> None:
    """S0-05: unauthenticated, at the root and below the base, to the letter."""
    for path in ("/ping", "/api/v1/ping"):
        answer = await live.nobody.call("GET", path)
        assert answer.status == 200 and answer.raw == b'{"status":"ok"}'


async def test_signing_in(live: Live, alice: Person) -> None:
    """S2-18, S3-12: a pair of tokens; a wrong password and an unknown address look alike."""
    pair = (await _login(live, alice.email)).expect(200)
    assert set(pair) >= {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert pair["token_type"] == "bearer" and pair["expires_in"] == 900
    assert pair["user"]["email"] == alice.email
    assert not [key for key in pair["user"] if any(word in key for word in SECRETIVE)]
    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 900 and claims["sub"] == alice.id
    answers = [await _login(live, alice.email, "wrong one"), await _login(live, _email())]
    for answer in answers:
        answer.refused(401, "E_AUTH_INVALID_CREDENTIALS")
    same = [{k: v for k, v in a.json.items() if k != "request_id"} for a in answers]
    assert same[0] == same[1]


async def test_registering(live: Live) -> None:
    """S2-19, S3-13, S3-53: 201; a taken address 409 in any case; nobody takes a role."""
    email = _email()
    body = {"email": email, "password": PASSWORD, "name": "New One"}
    made = (await live.nobody.post("/auth/register", body)).expect(201)
    assert made["user"]["role"] == "user"
    taken = await live.nobody.post("/auth/register", {**body, "email": email.upper()})
    taken.refused(409, "E_USER_EMAIL_EXISTS")
    for role in ("ADMIN", "admin", "user"):
        asked = {**body, "email": _email(), "role": role}
        (await live.nobody.post("/auth/register", asked)).refused(
            403, "E_AUTH_INSUFFICIENT_PERMISSIONS"
        )
        (await _login(live, asked["email"])).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    weak = await live.nobody.post("/auth/register", {**body, "email": "x", "password": "1234567"})
    paths = {field["path"] for field in weak.refused(422, "E_VALIDATION_ERROR")["fields"]}
    assert paths == {"email", "password"}


async def test_refreshing_and_signing_out(live: Live, alice: Person) -> None:
    """S2-20, S3-14, S3-15: the new token works, the used one is dead; after logout all are."""
    refresh = {"refresh_token": alice.refresh_token}
    pair = (await live.nobody.post("/auth/refresh", refresh)).expect(200)
    renewed = Person(live.url, pair["access_token"])
    assert (await renewed.get("/auth/me")).expect(200)["id"] == alice.id
    (await live.nobody.post("/auth/refresh", refresh)).refused(401, "E_AUTH_TOKEN_INVALID")
    gone = {"refresh_token": pair["refresh_token"]}
    (await live.nobody.post("/auth/logout", gone)).expect(200)
    (await live.nobody.post("/auth/refresh", gone)).refused(401, "E_AUTH_TOKEN_INVALID")
    (await renewed.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")


async def test_a_token_older_than_its_parent_ends_the_session(live: Live, alice: Person) -> None:
    """S3-14: the replay of a grandparent revokes the whole family."""
    first = {"refresh_token": alice.refresh_token}
    second = (await live.nobody.post("/auth/refresh", first)).expect(200)
    third = (
        await live.nobody.post("/auth/refresh", {"refresh_token": second["refresh_token"]})
    ).expect(200)
    (await live.nobody.post("/auth/refresh", first)).refused(401, "E_AUTH_TOKEN_INVALID")
    newest = {"refresh_token": third["refresh_token"]}
    (await live.nobody.post("/auth/refresh", newest)).refused(401, "E_AUTH_TOKEN_INVALID")


async def test_no_token_a_bad_one_and_too_little_of_a_role(live: Live, alice: Person) -> None:
    """S2-04, S3-16: 401, 401, 403; one's own profile shows no secret."""
    (await live.nobody.get("/tickets")).refused(401, "E_AUTH_TOKEN_MISSING")
    head, _, rest = alice.token.partition(".")
    bad = Person(live.url, f"{head}.{rest[:-4]}AAAA")
    (await bad.get("/tickets")).refused(401, "E_AUTH_TOKEN_INVALID")
    (await alice.get("/users")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    me = (await alice.get("/auth/me")).expect(200)
    assert me["id"] == alice.id
    assert not [key for key in me if any(word in key for word in SECRETIVE)]


async def test_people_are_managed_by_administrators(live: Live, alice: Person) -> None:
    """S2-22, S2-23, S3-17, S3-18, S3-19: list, create, read; self may read itself."""
    for role in ("agent", "manager"):
        person = await live.person(role)
        (await person.get("/users")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
        (await person.get(f"/users/{alice.id}")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
        new = {"email": _email(), "name": "X"}
        (await person.post("/users", new)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    found = (await live.admin.get("/users", params={"q": alice.email})).expect(200)
    assert [user["id"] for user in found] == [alice.id]
    agents = (await live.admin.get("/users?role=support&limit=200")).expect(200)
    assert agents and {user["role"] for user in agents} == {"agent"}
    for person in (alice, live.admin):
        assert (await person.get(f"/users/{alice.id}")).expect(200)["email"] == alice.email
    missing = "00000000-0000-7000-8000-000000000000"
    (await live.admin.get(f"/users/{missing}")).refused(404, "E_USER_NOT_FOUND")
    again = {"email": alice.email.upper(), "name": "X"}
    (await live.admin.post("/users", again)).refused(409, "E_USER_EMAIL_EXISTS")


async def test_people_change_themselves_and_no_more(live: Live, alice: Person) -> None:
    """S2-24, S3-20: name yes, role no; an administrator changes role and activity."""
    path = f"/users/{alice.id}"
    put = await alice.call("PUT", f"/api/v1{path}", json={"name": "Alice Liddell"})
    assert put.expect(200)["name"] == "Alice Liddell"
    for field, value in {"role": "admin", "is_active": False, "department": "X"}.items():
        details = (await alice.patch(path, {field: value})).refused(
            403, "E_AUTH_INSUFFICIENT_PERMISSIONS"
        )
        assert details == {"field": field} or field in str(details)
    assert (await live.admin.patch(path, {"role": "MAINTAINER"})).expect(200)["role"] == "agent"
    (await live.admin.patch(path, {"is_active": False})).expect(200)
    (await alice.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    (await _login(live, alice.email)).refused(401, "E_AUTH_INVALID_CREDENTIALS")


async def test_a_new_password_needs_the_old_one_and_ends_other_sessions(
    live: Live, alice: Person
) -> None:
    """R23: current_password; who was signed in elsewhere is out at once."""
    elsewhere = await live.sign_in(alice.email)
    path = f"/users/{alice.id}"
    new = {"password": "another good passphrase"}
    (await alice.patch(path, new)).refused(422, "E_VALIDATION_ERROR")
    wrong = {**new, "current_password": "not it at all"}
    (await alice.patch(path, wrong)).refused(422, "E_VALIDATION_ERROR")
    (await alice.patch(path, {**new, "current_password": PASSWORD})).expect(200)
    (await elsewhere.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    (await _login(live, alice.email)).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await _login(live, alice.email, new["password"])).expect(200)


async def test_whoever_leaves_keeps_a_name_on_what_they_wrote(live: Live, alice: Person) -> None:
    """S3-21: 204, no more sign-in; tickets keep the reporter's name; the last admin stays."""
    ticket = await alice.ticket()
    (await live.admin.delete(f"/users/{alice.id}")).expect(204)
    (await _login(live, alice.email)).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    left = (await live.admin.get(f"/tickets/{ticket['key']}")).expect(200)
    assert left["reporter_id"] is None and left["reporter_name"] == "A user"
    refused = await live.admin.delete(f"/users/{live.admin.id}")
    assert refused.status == 409
    assert refused.json["error"] in ("E_USER_LAST_ADMIN", "E_USER_SELF")


async def test_a_manager_has_reports_of_days_and_projects(live: Live) -> None:
    """S3-03: the role is reported as given and lies above agent."""
    manager = await live.person("manager")
    assert (await manager.get("/auth/me")).expect(200)["role"] == "manager"
    (await manager.get("/stats/daily")).expect(200)


async def test_projects_from_opening_to_closing(live: Live, alice: Person) -> None:
    """S3-05, S3-29 to S3-33: everybody reads, managers write, one with tickets stays."""
    manager, agent = await live.person("manager"), await live.person("agent")
    key = f"P{uuid4().hex[:6].upper()}"
    body = {"key": key, "name": "Printers"}
    for person in (alice, agent):
        (await person.post("/projects", body)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    project = (await manager.post("/projects", body)).expect(201)
    (await manager.post("/projects", body)).refused(409, "E_PROJECT_KEY_EXISTS")
    path = f"/projects/{project['id']}"
    assert (await alice.get(path)).expect(200)["source"] == "local"
    listed = (await alice.get("/projects?limit=200")).expect(200)
    assert key in {one["key"] for one in listed}
    missing = "/projects/00000000-0000-7000-8000-000000000000"
    (await alice.get(missing)).refused(404, "E_PROJECT_NOT_FOUND")
    renamed = await manager.call("PUT", f"/api/v1{path}", json={"name": "Printing"})
    assert renamed.expect(200)["name"] == "Printing"
    (await alice.delete(path)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    ticket = await alice.ticket(project=key)
    assert ticket["key"] == f"{key}-1"
    moved = await manager.call("PUT", f"/api/v1{path}", json={"key": f"Q{key[1:]}"})
    assert moved.status == 409
    (await manager.delete(path)).refused(409, "E_PROJECT_NOT_EMPTY")
    (await live.admin.delete(f"/tickets/{ticket['key']}")).expect(204)
    (await manager.delete(path)).expect(204)
    (await alice.get(path)).refused(404, "E_PROJECT_NOT_FOUND")


async def test_passwords_are_stored_as_bcrypt_of_their_own(live: Live) -> None:
    """S2-61, S2-60: `$2b$`, and the same password twice gives two hashes."""
    emails = [(await live.person()).email for _ in range(2)]
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    rows = await conn.fetch("SELECT password_hash FROM users WHERE email = ANY ($1)", emails)
    await conn.close()
    hashes = [row["password_hash"] for row in rows]
    assert all(stored.startswith("$2b$") for stored in hashes) and len(set(hashes)) == 2


async def test_what_is_known_of_a_file(alice: Person) -> None:
    """S2-37, S3-36: name, key, size, type, ticket, uploader and time."""
    ticket = await alice.ticket()
    made = (await alice.upload(ticket["key"], b"twelve bytes", "report.txt")).expect(201)
    file = (await alice.get(f"/attachments/{made['id']}")).expect(200)
    assert file["original_filename"] == "report.txt" and file["size"] == 12
    assert file["mime"] == "text/plain" and file["ticket_id"] == ticket["id"]
    assert file["uploaded_by"] == alice.id and file["object_key"].endswith(file["id"])
    assert file["created_at"].endswith("Z")


async def test_an_access_token_ends_by_the_clock(live: Live, alice: Person) -> None:
    """S3-02: it says so itself, in whole seconds from now."""
    claims = jwt.decode(alice.token, options={"verify_signature": False})
    assert abs(claims["iat"] - time.time_ns() / 1e9) < 60
    assert all(isinstance(claims[name], int) for name in ("iat", "exp"))
