"""Signing in, people and projects over HTTP: the routes around the services."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from itdesk.api import auth, projects, users
from itdesk.api.cookies import documented_cookie
from itdesk.model import Role, User
from itdesk.store.paging import Window
from tests.support.people import PASSWORD, Office, opened
from tests.support.small_desk import Answer, Server, SmallDesk, serving

ROUTES = [*auth.ROUTES, *users.ROUTES, *projects.ROUTES]
PAGE = {"Sec-Fetch-Site": "same-origin"}
PROXY = {"trusted_proxies": ["127.0.0.1/32"]}
FOREIGN = {"Origin": "https://evil.example.net"}


@dataclass
class Street:
    """A server and the people behind it."""

    server: Server
    office: Office

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str = "", **headers: str
    ) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            given["Authorization"] = f"Bearer {token}"
        more = {} if body is None else {"json": body}
        return await self.server.ask(method, f"/api/v1{path}", headers=given, **more)

    async def token(self, name: str, role: Role = Role.USER) -> tuple[User, str]:
        user = await self.office.user(name, role)
        return user, (await self.office.sign_in(user)).access_token

    async def login(self, path: str = "/auth/login", email: str = "ann@example.org") -> Answer:
        return await self.ask("POST", path, {"email": email, "password": PASSWORD})


@pytest_asyncio.fixture
async def street(database_url: str) -> AsyncIterator[Street]:
    async with opened(Office(database_url)) as office:
        desk: Any = SmallDesk(office.db, server=PROXY)
        desk.sessions, desk.accounts = office.sessions, office.accounts
        desk.projects, desk.signups = office.projects, office.signups
        async with serving(desk, ROUTES) as server:
            yield Street(server, office)


def cookies(answer: Answer) -> dict[str, tuple[str, str]]:
    """Return the cookies that an answer sets, with their attributes and all their paths."""
    found: dict[str, tuple[str, str]] = {}
    for line in answer.headers.getall("Set-Cookie", []):
        pair, _, attributes = line.partition("; ")
        name, _, value = pair.partition("=")
        known = found.get(name)
        if known is not None:
            before, after = (re.search(r"Path=([^;]+)", a) for a in (known[1], attributes))
            assert before and after and known[0] == value
            attributes = attributes.replace(after[1], f"{before[1]},{after[1]}")
        found[name] = value, attributes
    return found


def cookie_header(answer: Answer) -> dict[str, str]:
    """Return what a browser sends back."""
    return {"Cookie": "; ".join(f"{name}={value}" for name, (value, _) in cookies(answer).items())}


def error(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error"]


async def test_registering_signing_in_and_out(street: Street) -> None:
    """S4-42, S4-43: a pair in the body for who asks without cookies, renewed once."""
    new = {"email": " Ann@Example.org ", "password": PASSWORD, "name": "Ann"}
    answer = await street.ask("POST", "/auth/register", new)
    user = answer.json()["user"]
    assert (answer.status, user["role"]) == (201, "user")
    assert answer.headers["Location"] == f"/api/v1/users/{user['id']}"
    assert error(await street.ask("POST", "/auth/register", new)) == (409, "E_USER_EMAIL_EXISTS")
    pair = await street.login("/auth/token")
    signed = pair.json()
    assert not cookies(pair)
    assert set(signed) == {
        "access_token", "refresh_token", "token_type", "expires_in", "refresh_expires_in", "user",
    }  # fmt: skip
    assert (await street.ask("GET", "/auth/me", token=signed["access_token"])).json() == user
    token = {"refresh_token": signed["refresh_token"]}
    renewed = (await street.ask("POST", "/auth/token/refresh", token)).json()
    refused = await street.ask("POST", "/auth/token/refresh", token)
    assert error(refused) == (401, "E_AUTH_TOKEN_INVALID")
    assert (await street.ask("POST", "/auth/logout", token=renewed["access_token"])).status == 200
    refused = await street.ask("GET", "/auth/me", token=renewed["access_token"])
    assert error(refused) == (401, "E_AUTH_TOKEN_INVALID")


@pytest.mark.parametrize("role", ["ADMIN", "user", "root", 1, {}])
async def test_nobody_registers_with_a_role(street: Street, role: object) -> None:
    new = {"email": "ann@example.org", "password": PASSWORD, "name": "Ann", "role": role}
    refused = await street.ask("POST", "/auth/register", new)
    assert error(refused) == (403, "E_AUTH_INSUFFICIENT_PERMISSIONS")


async def test_a_browser_gets_cookies_that_scripts_cannot_read(street: Street) -> None:
    """S4-39, S4-42, S-16: the refresh token goes nowhere but to where it is taken."""
    await street.office.user("ann")
    answer = await street.login()
    signed, given = answer.json(), cookies(answer)
    assert given == {
        "itdesk_access": (
            signed["access_token"],
            "Max-Age=900; Path=/; HttpOnly; SameSite=Lax",
        ),
        "itdesk_refresh": (
            signed["refresh_token"],
            "Max-Age=2592000; Path=/api/auth,/api/v1/auth; HttpOnly; SameSite=Lax",
        ),
    }
    assert cookies(await street.login("/auth/token")) == {}


async def test_the_cookie_lane_refreshes_and_signs_out(street: Street) -> None:
    """S4-40, S4-41, S-16: no token in the body, new cookies, the old token dead, both cleared."""
    await street.office.user("ann")
    old = cookie_header(await street.login())
    for headers in ({}, FOREIGN, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        for path in ("/auth/refresh", "/auth/logout"):
            refused = await street.ask("POST", path, **headers, **old)
            assert error(refused) == (403, "E_AUTH_CROSS_SITE")
    renewed = await street.ask("POST", "/auth/refresh", **PAGE, **old)
    assert renewed.status == 200
    given = cookies(renewed)
    assert set(given) == {"itdesk_access", "itdesk_refresh"}
    assert set(renewed.json()) == {"token_type", "expires_in", "refresh_expires_in", "user"}
    assert not [value for value, _ in given.values() if value.encode() in renewed.raw]
    jar = cookie_header(renewed)
    assert (await street.ask("GET", "/auth/me", **jar)).status == 200
    again = await street.ask("POST", "/auth/refresh", **PAGE, **old)
    assert error(again) == (401, "E_AUTH_TOKEN_INVALID")
    left = await street.ask("POST", "/auth/logout", **PAGE, **jar)
    assert {name: value for name, (value, _) in cookies(left).items()} == {
        "itdesk_access": "",
        "itdesk_refresh": "",
    }
    assert all("Max-Age=0" in attributes for _, attributes in cookies(left).values())
    token = {"refresh_token": given["itdesk_refresh"][0]}
    assert error(await street.ask("POST", "/auth/refresh", token)) == (401, "E_AUTH_TOKEN_INVALID")
    assert error(await street.ask("POST", "/auth/refresh")) == (401, "E_AUTH_TOKEN_MISSING")


async def test_over_https_only_guarded_names_count(street: Street) -> None:
    """S-16, S2-57: __Host- and __Secure- behind a trusted proxy; plain names are not looked at."""
    await street.office.user("ann")
    https = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "desk.example.org"}
    page = {"Origin": "https://desk.example.org"}
    body = {"email": "ann@example.org", "password": PASSWORD}
    signed = await street.ask("POST", "/auth/login", body, **https, **page)
    given = cookies(signed)
    assert {name: attributes for name, (_, attributes) in given.items()} == {
        "__Host-itdesk_access": "Max-Age=900; Path=/; HttpOnly; SameSite=Lax; Secure",
        "__Secure-itdesk_refresh": "Max-Age=2592000; Path=/api/auth,/api/v1/auth; HttpOnly;"
        " SameSite=Lax; Secure",
    }
    jar = cookie_header(signed)
    plain = {"Cookie": jar["Cookie"].replace("__Host-", "").replace("__Secure-", "")}
    assert (await street.ask("GET", "/auth/me", **https, **jar)).status == 200
    for more, cookie in ((https, plain), ({}, jar)):
        for method, path in (("GET", "/auth/me"), ("POST", "/auth/refresh")):
            refused = await street.ask(method, path, **more, **PAGE, **cookie)
            assert error(refused) == (401, "E_AUTH_TOKEN_MISSING")
    renewed = await street.ask("POST", "/auth/refresh", **https, **page, **jar)
    assert set(cookies(renewed)) == set(given)
    left = await street.ask("POST", "/auth/logout", **https, **page, **cookie_header(renewed))
    assert {name: (v, a.split(";")[0]) for name, (v, a) in cookies(left).items()} == dict.fromkeys(
        given, ("", "Max-Age=0")
    )
    # A planted plain cookie signs nobody out, and nobody in.
    assert (await street.ask("POST", "/auth/logout", **https, **page, **plain)).status == 200


@pytest.mark.parametrize("lane", ["cookie", "body"])
async def test_a_token_used_by_cookie_and_by_body_counts_as_used(street: Street, lane: str) -> None:
    """S-13: the lanes mixed; a grandparent by either ends the session for both."""
    await street.office.user("ann")
    answer = await street.login()
    first = answer.json()
    second = await street.ask("POST", "/auth/refresh", **PAGE, **cookie_header(answer))
    token = cookies(second)["itdesk_refresh"][0]
    third = await street.ask("POST", "/auth/token/refresh", {"refresh_token": token})
    assert third.status == 200
    by_body = {} if lane == "cookie" else {"refresh_token": first["refresh_token"]}
    by_cookie = {**PAGE, **cookie_header(answer)} if lane == "cookie" else {}
    refused = await street.ask("POST", "/auth/refresh", by_body or None, **by_cookie)
    assert error(refused) == (401, "E_AUTH_TOKEN_INVALID")
    assert cookies(refused) == {}
    refused = await street.ask("GET", "/auth/me", token=third.json()["access_token"])
    assert error(refused) == (401, "E_AUTH_TOKEN_INVALID")


async def test_twenty_refreshes_by_both_lanes_leave_one_live_child(street: Street) -> None:
    """S-13: 20 in parallel, half by cookie and half by body."""
    await street.office.user("ann")
    answer = await street.login()
    jar, token = cookie_header(answer), {"refresh_token": answer.json()["refresh_token"]}
    found = await asyncio.gather(
        *(street.ask("POST", "/auth/refresh", **PAGE, **jar) for _ in range(10)),
        *(street.ask("POST", "/auth/token/refresh", token) for _ in range(10)),
    )
    assert sorted(one.status for one in found) == [200] + [401] * 19
    live = "SELECT count(*) FROM refresh_tokens WHERE used_at IS NULL AND revoked_at IS NULL"
    assert await street.office.value(live) == 1


@pytest.mark.parametrize("end", ["logout", "password", "disable"])
async def test_no_lane_outlives_the_session(street: Street, end: str) -> None:
    """S-13: after logout, a new password set for them, or being switched off."""
    user = await street.office.user("ann")
    answer = await street.login()
    jar, signed = cookie_header(answer), answer.json()
    if end == "logout":
        await street.ask("POST", "/auth/logout", **PAGE, **jar)
    else:
        _, admin = await street.token("root", Role.ADMIN)
        change = {"password": "another password 1"} if end == "password" else {"is_active": False}
        path = f"/users/{user.id}"
        assert (await street.ask("PATCH", path, change, token=admin)).status == 200
    token = {"refresh_token": signed["refresh_token"]}
    refused = [
        await street.ask("GET", "/auth/me", **jar),
        await street.ask("GET", "/auth/me", token=signed["access_token"]),
        await street.ask("POST", "/auth/refresh", **PAGE, **jar),
        await street.ask("POST", "/auth/refresh", token),
        await street.ask("POST", "/auth/token/refresh", token),
    ]
    assert [error(one) for one in refused] == [(401, "E_AUTH_TOKEN_INVALID")] * 5
    assert [cookies(one) for one in refused] == [{}] * 5


def test_the_document_names_the_cookie() -> None:
    """S4-39: by what is known without a request; over https with its prefix."""
    plain = SmallDesk(auth={"cookie_name": "desk_a"}).settings
    https = SmallDesk(server={"public_url": "https://desk.example.org"}).settings
    assert documented_cookie(plain) == "desk_a"
    assert documented_cookie(https) == "__Host-itdesk_access"


async def test_configured_names_are_honoured(database_url: str) -> None:
    """S4-09: COOKIE_NAME and REFRESH_COOKIE_NAME, with their prefixes over https."""
    async with opened(Office(database_url)) as office:
        names = {"cookie_name": "desk_a", "refresh_cookie_name": "desk_r"}
        desk: Any = SmallDesk(office.db, auth=names, server=PROXY)
        desk.sessions, desk.accounts = office.sessions, office.accounts
        async with serving(desk, ROUTES) as server:
            street = Street(server, office)
            await office.user("ann")
            answer = await street.login()
            assert set(cookies(answer)) == {"desk_a", "desk_r"}
            assert (await street.ask("GET", "/auth/me", **cookie_header(answer))).status == 200
            renewed = await street.ask("POST", "/auth/refresh", **PAGE, **cookie_header(answer))
            assert set(cookies(renewed)) == {"desk_a", "desk_r"}
            body = {"email": "ann@example.org", "password": PASSWORD}
            proto = {"X-Forwarded-Proto": "https"}
            answer = await street.ask("POST", "/auth/login", body, **proto)
            assert set(cookies(answer)) == {"__Host-desk_a", "__Secure-desk_r"}


async def test_nobody_is_signed_in_by_a_foreign_page(street: Street) -> None:
    """S-17: a page that signs people in as somebody else would read what they write."""
    await street.office.user("ann")
    body = {"email": "ann@example.org", "password": PASSWORD}
    for headers in (FOREIGN, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        refused = await street.ask("POST", "/auth/login", body, **headers)
        assert error(refused) == (403, "E_AUTH_CROSS_SITE") and cookies(refused) == {}
    assert (await street.ask("POST", "/auth/login", body, **PAGE)).status == 200


async def test_refused_logins_look_alike(street: Street) -> None:
    await street.office.user("ann")
    answers = [
        (await street.ask("POST", path, {"email": email, "password": "wrong password"})).json()
        for path in ("/auth/login", "/auth/token")
        for email in ("ann@example.org", "nobody@example.org", "no address", "' OR 1=1 --")
    ]
    for answer in answers:
        answer.pop("request_id")
    assert answers == [answers[0]] * len(answers)
    assert answers[0]["error"] == "E_AUTH_INVALID_CREDENTIALS"


async def test_people_are_managed_by_administrators(street: Street) -> None:
    root, admin = await street.token("root", Role.ADMIN)
    new = {"email": "joe@example.org", "name": "Joe", "role": "MAINTAINER", "department": "IT"}
    created = await street.ask("POST", "/users", new, token=admin)
    joe = created.json()
    assert (created.status, joe["role"], joe["department"]) == (201, "agent", "IT")
    path = f"/users/{joe['id']}"
    assert (await street.ask("GET", path, token=admin)).json() == joe
    for method in ("PUT", "PATCH"):
        changed = await street.ask(method, path, {"role": "manager", "name": method}, token=admin)
        assert (changed.status, changed.json()["name"]) == (200, method)
    assert error(await street.ask("DELETE", f"/users/{root.id}", token=admin)) == (
        409,
        "E_USER_LAST_ADMIN",
    )
    assert (await street.ask("DELETE", path, token=admin)).status == 204
    assert error(await street.ask("GET", path, token=admin)) == (404, "E_USER_NOT_FOUND")


@pytest.mark.parametrize("role", [Role.USER, Role.AGENT, Role.MANAGER])
async def test_nobody_else_manages_people(street: Street, role: Role) -> None:
    _, token = await street.token("joe", role)
    ann = await street.office.user("ann")
    for method, path, body in (
        ("GET", "/users", None),
        ("POST", "/users", {"email": "a@b.co", "name": "A"}),
        ("GET", f"/users/{ann.id}", None),
        ("GET", f"/users/{uuid4()}", None),
        ("PATCH", f"/users/{ann.id}", {"name": "A"}),
        ("DELETE", f"/users/{ann.id}", None),
    ):
        refused = await street.ask(method, path, body, token=token)
        assert error(refused) == (403, "E_AUTH_INSUFFICIENT_PERMISSIONS")


MORE = {
    "id": str(uuid4()),
    "owner": "x",
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
    "is_verified": True,
    "verified": True,
    "auth_epoch": 9,
    "password_hash": "x",
    "google_id": "x",
    "version": 9,
    "jira_key": "X-1",
    "source": "jira",
    "next_number": 9,
}


@pytest.mark.parametrize("field", sorted(MORE))
async def test_no_write_takes_a_field_that_is_not_its_own(street: Street, field: str) -> None:
    """S-03"""
    root, token = await street.token("root", Role.ADMIN)
    project = (await street.office.projects.list(Window())).items[0]
    for method, path, body in (
        ("POST", "/auth/register", {"email": "a@b.co", "password": PASSWORD, "name": "A"}),
        ("POST", "/auth/login", {"email": root.email, "password": PASSWORD}),
        ("POST", "/auth/refresh", {"refresh_token": "x"}),
        ("POST", "/users", {"email": "a@b.co", "name": "A"}),
        ("PATCH", f"/users/{root.id}", {"name": "A"}),
        ("POST", "/projects", {"key": "NEW", "name": "New"}),
        ("PUT", f"/projects/{project.id}", {"name": "A"}),
    ):
        refused = await street.ask(method, path, {**body, field: MORE[field]}, token=token)
        assert error(refused) == (422, "E_VALIDATION_ERROR")
        assert [problem["path"] for problem in refused.json()["details"]["fields"]] == [field]


async def test_what_cannot_be_cleared_is_not_null(street: Street) -> None:
    root, token = await street.token("root", Role.ADMIN)
    everything = dict.fromkeys(users.UserChange.model_fields)
    refused = await street.ask("PATCH", f"/users/{root.id}", everything, token=token)
    wrong = {problem["path"] for problem in refused.json()["details"]["fields"]}
    assert wrong == set(everything) - {"avatar_url", "department"}
    cleared = {"avatar_url": None, "department": None}
    assert (await street.ask("PATCH", f"/users/{root.id}", cleared, token=token)).status == 200


async def test_the_next_page_is_linked_with_the_same_question(street: Street) -> None:
    _, token = await street.token("root", Role.ADMIN)
    for n in range(5):
        await street.office.user(f"p{n}", Role.AGENT, password=None)
    names, path = list[str](), "/users?role=agent&q=p&limit=2&count=true&offset=1"
    while path:
        answer = await street.ask("GET", path, token=token)
        assert answer.headers["X-Total-Count"] == "5"
        names += [user["name"] for user in answer.json()]
        link = answer.headers.get("Link", "")
        assert not link or link.endswith('>; rel="next"')
        path = link.partition(">")[0].partition("/api/v1")[2]
        assert "offset" not in path
    assert names == ["p1", "p2", "p3", "p4"]


async def test_projects_are_opened_changed_and_closed(street: Street) -> None:
    _, token = await street.token("meg", Role.MANAGER)
    _, agent = await street.token("joe", Role.AGENT)
    new = {"key": "OPS", "name": "Operations"}
    assert (await street.ask("POST", "/projects", new, token=agent)).status == 403
    created = await street.ask("POST", "/projects", new, token=token)
    project = created.json()
    path = f"/projects/{project['id']}"
    assert (created.status, created.headers["Location"]) == (201, f"/api/v1{path}")
    assert set(project) == {
        "id", "key", "name", "description", "source", "created_at", "updated_at",
    }  # fmt: skip
    assert (await street.ask("GET", path, token=agent)).json() == project
    listed = (await street.ask("GET", "/projects", token=agent)).json()
    assert [project["key"] for project in listed] == ["OPS", "TSK"]
    assert (await street.ask("PUT", path, {"name": "Ops"}, token=agent)).status == 403
    assert (await street.ask("PUT", path, {"name": "Ops"}, token=token)).json()["name"] == "Ops"
    assert (await street.ask("DELETE", path, token=agent)).status == 403
    assert (await street.ask("DELETE", path, token=token)).status == 204
    assert error(await street.ask("GET", path, token=token)) == (404, "E_PROJECT_NOT_FOUND")
