"""S-17: what foreign pages can make a browser send changes nothing, and they read nothing.

Every route that changes something is tried, as the running daemon lists them: a new one is in.
"""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession

from itdesk.api import ROUTES
from itdesk.api.origin import SAFE_METHODS
from itdesk.api.route import Route, Who
from tests.support.daemon import PASSWORD, Live, serving
from tests.support.postgres import Server

LISTED = ("https://desk.example.org", "https://other.example.org:8443")
# Which browsers say where a request comes from: by Origin, by Sec-Fetch-Site, by both.
SENT: Mapping[str, Mapping[str, str]] = {
    "cross-site": {"Origin": "https://evil.example.net", "Sec-Fetch-Site": "cross-site"},
    "cross-site, old browser": {"Origin": "https://evil.example.net"},
    "cross-site, no Origin": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "null": {"Origin": "null"},
    "missing": {},
    "sibling subdomain": {"Origin": "https://evil.example.org", "Sec-Fetch-Site": "same-site"},
    "suffix of a listed one": {"Origin": "https://desk.example.org.evil.net"},
    "prefix of a listed one": {"Origin": "https://evildesk.example.org"},
    "other scheme": {"Origin": "http://desk.example.org"},
    "other port": {"Origin": "https://desk.example.org:8443"},
    "with user": {"Origin": "https://desk.example.org@evil.net"},
    "with path": {"Origin": "https://desk.example.org/"},
    "two": {"Origin": "https://desk.example.org https://evil.example.net"},
    "other case of scheme": {"Origin": "HTTPS://evil.example.net"},
    "empty": {"Origin": ""},
}
BODIES: Mapping[str, tuple[str, bytes]] = {
    "json": ("application/json", b'{"title": "Forged", "email": "a@example.org", "body": "x"}'),
    "text": ("text/plain", b'{"title": "Forged", "email": "a@example.org", "body": "x"}'),
    "form": ("application/x-www-form-urlencoded", b"title=Forged&email=a%40example.org"),
}
UNSAFE = [route for route in ROUTES if route.method not in SAFE_METHODS]


@pytest.fixture(name="desk", scope="module")
def _desk(pg_server: Server) -> Iterator[Live]:
    """A daemon that lists two origins."""
    origins = ",".join(LISTED)
    with serving(
        pg_server,
        CORS_ORIGINS=origins,
        ITDESK_SCANNER__ENABLED="false",
        ITDESK_SERVER__TRUSTED_PROXIES="127.0.0.1/32",
    ) as live:
        yield live


async def everything(live: Live) -> Any:
    """Return all rows that a request may change."""
    conn = await asyncpg.connect(live.daemon.env["DATABASE_URL"])
    try:
        tables = await conn.fetch(
            "SELECT table_name AS name FROM information_schema.tables"
            " WHERE table_schema = 'public' AND table_type = 'BASE TABLE'"
        )
        quiet = {"jobs", "periodic_runs", "daily_stats", "rate_counts", "password_guesses"}
        return {
            row["name"]: await conn.fetch(
                f"SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM {row['name']} t"  # noqa: S608
            )
            for row in tables
            if row["name"] not in quiet and not row["name"].startswith(("_yoyo", "yoyo"))
        }
    finally:
        await conn.close()


async def test_a_foreign_page_changes_nothing_and_reads_nothing_s_17(desk: Live) -> None:
    """Every unsafe route x where it says it comes from x what a form or a script can send."""
    admin, ticket = desk.admin, await desk.admin.ticket()
    jar = f"itdesk_access={admin.token}; itdesk_refresh={admin.refresh_token}"
    before, wrong, asked = await everything(desk), [], 0
    async with ClientSession() as session:
        for route, (name, sent), (media, body) in itertools.product(
            UNSAFE, SENT.items(), BODIES.values()
        ):
            if route.who is Who.SIGNATURE or (route.who is Who.PUBLIC and not sent):
                continue  # no browser's right is used: by a link of one's own, or by a program
            path = re.sub(r"\{\w+\}", ticket["id"], route.full_path)
            headers = {"Cookie": jar, "Content-Type": media, **sent}
            url = desk.url + path
            async with session.request(route.method, url, data=body, headers=headers) as answer:
                asked += 1
                said = (answer.status, (await answer.json())["error"])
                if said != (403, "E_AUTH_CROSS_SITE"):
                    wrong.append(f"{route.method} {path} from {name}, {media}: {said}")
                if "Access-Control-Allow-Origin" in answer.headers:
                    wrong.append(f"{route.method} {path} may be read by {name}")
    assert wrong == [] and asked > 500
    assert await everything(desk) == before
    assert (await admin.get("/auth/me")).status == 200


async def test_cookies_alone_refresh_and_end_no_session_for_a_page_that_says_nothing(
    desk: Live,
) -> None:
    """S-17: public routes that use a cookie need to know where they are called from."""
    jar = f"itdesk_access={desk.admin.token}; itdesk_refresh={desk.admin.refresh_token}"
    for path in ("/auth/refresh", "/auth/logout"):
        for media, body in (*BODIES.values(), ("application/json", b"{}"), ("", b"")):
            headers = {"Cookie": jar, **({"Content-Type": media} if media else {})}
            answer = await desk.nobody.post(path, data=body, headers=headers)
            assert 400 <= answer.status < 500 and "Set-Cookie" not in answer.headers
    assert (await desk.admin.get("/auth/me")).status == 200


async def test_no_foreign_page_gets_a_websocket_s_17(desk: Live) -> None:
    """The upgrade x where it comes from: none of them is let in by a cookie."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Cookie": f"itdesk_access={desk.admin.token}",
    }
    for name, sent in SENT.items():
        answer = await desk.nobody.call("GET", "/ws/page", headers={**upgrade, **sent})
        assert (answer.status, answer.json["error"]) == (403, "E_AUTH_CROSS_SITE"), name
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_over_https_a_websocket_takes_the_guarded_cookie_only_s_16(desk: Live) -> None:
    """The plain name, which another page could have planted, is not looked at."""
    https = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "desk.example.net"}
    page = {"Origin": "https://desk.example.net"}
    said = {}
    async with ClientSession() as session:
        for name in ("__Host-itdesk_access", "itdesk_access"):
            headers = {**https, **page, "Cookie": f"{name}={desk.admin.token}"}
            async with session.ws_connect(desk.url + "/ws/page", headers=headers) as ws:
                await ws.send_str('{"type": "ping"}')
                message = await ws.receive(timeout=10)
                said[name] = ws.close_code or message.json()["type"]
    assert said == {"__Host-itdesk_access": "pong", "itdesk_access": 4401}


@pytest.mark.parametrize("origin", LISTED)
async def test_each_listed_origin_works_with_cookies_s4_02_s2_63(desk: Live, origin: str) -> None:
    """Two origins in the list: preflight, sign-in, reading and writing with credentials."""
    page = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "if-match"}
    preflight = await desk.nobody.call("OPTIONS", "/api/v1/tickets", headers={**page, **asked})
    assert preflight.status == 204
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    email = (await desk.person()).email
    body = {"email": email, "password": PASSWORD}
    signed = await desk.nobody.post("/auth/login", body, headers=page)
    jar = "; ".join(c.split(";")[0] for c in signed.headers.getall("Set-Cookie"))  # type: ignore[attr-defined]
    mine = {**page, "Cookie": jar}
    answers = [
        preflight,
        signed,
        await desk.nobody.get("/auth/me", headers=mine),
        await desk.nobody.post("/tickets", {"title": "By a page"}, headers=mine),
        await desk.nobody.post("/auth/refresh", headers=mine),
    ]
    assert [answer.status for answer in answers] == [204, 200, 200, 201, 200]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"
        assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize("name", [name for name, sent in SENT.items() if "Origin" in sent])
async def test_no_other_origin_is_ever_named_s2_63(desk: Live, name: str) -> None:
    """ACAO never reflects: preflight, success, refusal, unknown path."""
    asked = {**SENT[name], "Access-Control-Request-Method": "GET"}
    for method, path in (
        ("OPTIONS", "/api/v1/tickets"),
        ("GET", "/api/v1/tickets"),
        ("GET", "/api/v1/auth/me"),
        ("GET", "/nowhere"),
        ("GET", "/ping"),
    ):
        answer = await desk.admin.call(method, path, headers=asked)
        told = [header for header in answer.headers if header.startswith("Access-Control-")]
        assert told == [], f"{method} {path}"


def test_every_unsafe_route_is_tried() -> None:
    """Only signed links are left out: they are the right by themselves."""

    def is_left_out(route: Route) -> bool:
        return route.who is Who.SIGNATURE

    assert {route.id for route in filter(is_left_out, UNSAFE)} <= {"R44", "R66", "R67"}
