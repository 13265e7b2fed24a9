"""Signing in by Google and by any OpenID provider, against the real daemon and hostile fakes."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit
from uuid import uuid4

import asyncpg
import pytest

from tests.support import openid
from tests.support.authenticator import code_at, enrol
from tests.support.daemon import PASSWORD, Answer, Live, Person, serving
from tests.support.openid import MISSING, Browser, OpenIdServer
from tests.support.postgres import Server

FRONTEND = "https://desk.example.org"
SESSION = {"itdesk_access", "itdesk_refresh"}
# What the plugins are allowed for a whole step; the rest is the machine's.
DEADLINE, GRACE = 3.0, 4.0


@dataclass
class Desk:
    """The daemon, and the two providers that it knows."""

    live: Live
    google: OpenIdServer
    other: OpenIdServer

    async def sql(self, query: str, *values: object) -> Any:
        conn = await asyncpg.connect(self.live.daemon.env["DATABASE_URL"])
        try:
            return await conn.fetchval(query, *values)
        finally:
            await conn.close()

    async def sessions(self) -> int:
        return int(await self.sql("SELECT count(*) FROM refresh_tokens WHERE id = family_id"))

    async def registered(self, email: str) -> Person:
        """Return somebody who opened an account and never confirmed the address."""
        new = {"email": email, "password": PASSWORD, "name": "A Stranger"}
        (await self.live.nobody.post("/auth/register", new)).expect(201)
        return await self.live.sign_in(email)


@pytest.fixture(scope="module")
def running_desk(pg_server: Server) -> Iterator[Desk]:
    def judge(log: str) -> None:
        assert "Traceback" not in log, log[-5000:]

    with OpenIdServer() as google, OpenIdServer() as other:
        times = {"SECONDS": str(DEADLINE), "REQUEST_SECONDS": "2", "METADATA_SECONDS": "0.001",
                 "KEYS_SECONDS": "0.001"}  # fmt: skip
        env = {
            "GOOGLE_CLIENT_ID": google.client_id,
            "GOOGLE_CLIENT_SECRET": openid.CLIENT_SECRET,
            "ITDESK_PLUGINS__GOOGLE__ISSUER_BASE": google.issuer,
            "ITDESK_PLUGINS__OIDC__ISSUER": other.issuer,
            "ITDESK_PLUGINS__OIDC__CLIENT_ID": other.client_id,
            "ITDESK_PLUGINS__OIDC__CLIENT_SECRET": openid.CLIENT_SECRET,
            "ITDESK_PLUGINS__OIDC__LABEL": "Our Keycloak",
            "ITDESK_PLUGINS__OIDC__ALLOWED_DOMAINS": "example.org, example.com",
            "ITDESK_PLUGINS__OIDC__ROLES": '{"staff": "agent", "admins": "admin"}',
            "ITDESK_PLUGINS__OIDC__ROLES_CLAIM": "realm_access.roles",
            "FRONTEND_BASE_URL": FRONTEND,
            **{f"ITDESK_PLUGINS__GOOGLE__{name}": value for name, value in times.items()},
            **{f"ITDESK_PLUGINS__OIDC__{name}": value for name, value in times.items()},
        }
        with serving(pg_server, judge, **env) as live:
            yield Desk(live, google, other)


@pytest.fixture
def desk(running_desk: Desk) -> Desk:
    running_desk.google.honest()
    running_desk.other.honest()
    return running_desk


@pytest.fixture
async def browser(desk: Desk) -> AsyncIterator[Browser]:
    async with Browser(desk.live.url) as browser:
        yield browser


def landed(answer: Answer, where: str = "/") -> None:
    """Assert that a browser was signed in and sent to a path of the frontend."""
    assert answer.status == 302 and answer.headers["Location"] == FRONTEND + where, answer
    assert SESSION <= set(cookies(answer))


def refused(answer: Answer, problem: str) -> None:
    """Assert that nobody was signed in, and that the frontend is told why."""
    assert answer.status == 302, answer
    assert answer.headers["Location"] == f"{FRONTEND}/?oauth_error={problem}"
    assert not SESSION & set(cookies(answer))


def cookies(answer: Answer) -> dict[str, str]:
    found = answer.headers.getall("Set-Cookie", [])  # type: ignore[attr-defined]
    return {line.partition("=")[0]: line for line in found}


async def me(desk: Desk, browser: Browser) -> Any:
    """Return who the browser is at the desk."""
    return (await browser.get("/api/v1/auth/me")).expect(200)


# --- honest providers ----------------------------------------------------------------------------


async def test_the_start_leads_to_the_provider(desk: Desk, browser: Browser) -> None:
    """S4-14, S4-37: client, redirect address, state, PKCE; the state cookie is the browser's."""
    answer = await browser.get("/api/v1/auth/google/start")
    assert answer.status == 302 and "no-store" in answer.headers["Cache-Control"]
    url = urlsplit(answer.headers["Location"])
    asked = {name: value[0] for name, value in parse_qs(url.query).items()}
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{desk.google.issuer}/authorize"
    assert asked["client_id"] == desk.google.client_id
    assert asked["redirect_uri"] == f"{desk.live.url}/api/auth/google/callback"
    assert len(asked["state"]) == len(asked["nonce"]) == len(asked["code_challenge"]) == 43
    assert len({asked["state"], asked["nonce"], asked["code_challenge"]}) == 3
    cookie = cookies(answer)["itdesk_oauth"]
    assert cookie.endswith("; Max-Age=600; Path=/; HttpOnly; SameSite=Lax")
    secret = cookie.partition("=")[2].partition(";")[0]
    assert secret not in answer.headers["Location"] and asked["state"] not in cookie
    stored = await desk.sql("SELECT string_agg(s::text, ' ') FROM oauth_states s")
    assert secret not in stored and asked["state"] not in stored and asked["nonce"] not in stored


async def test_google_signs_up_and_in(desk: Desk, browser: Browser) -> None:
    """S4-38: a new user is created and cookies are set; the next time it is the same one."""
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    assert user["email"] == desk.google.person["email"] and user["name"] == "A Person"
    assert user["role"] == "user" and user["is_verified"] is True
    assert "itdesk_oauth" not in browser.cookies
    google_id = await desk.sql("SELECT google_id FROM users WHERE id = $1::uuid", user["id"])
    assert google_id == desk.google.person["sub"]
    async with Browser(desk.live.url) as again:
        there = "/tickets/TSK-1?a=b#c"
        landed(await again.sign_in(desk.google, next=there), there)
        assert (await me(desk, again))["id"] == user["id"]
    types = await desk.sql(
        "SELECT string_agg(type, ' ' ORDER BY created_at, id) FROM events"
        " WHERE actor_id = $1::uuid",
        user["id"],
    )
    # The first two are of one moment: of one transaction.
    assert set(types.split()[:2]) == {"user.registered", "auth.identity_linked"}
    assert types.split()[2] == "auth.login"


async def test_the_older_paths_work_too(desk: Desk, browser: Browser) -> None:
    """A1: /api/auth/google/... is the promised redirect address."""
    answer = await browser.get("/api/auth/google/start")
    back = desk.google.consent(answer.headers["Location"])
    assert urlsplit(back).path == "/api/auth/google/callback"
    landed(await browser.get(back))


async def test_a_renamed_address_is_still_the_same_person(desk: Desk, browser: Browser) -> None:
    """The subject decides once it is linked: a new address there changes nothing here."""
    landed(await browser.sign_in(desk.google))
    before = await me(desk, browser)
    desk.google.person["email"] = f"{uuid4().hex}@example.org"
    landed(await browser.sign_in(desk.google))
    assert await me(desk, browser) == before


@pytest.mark.parametrize(
    ("kid", "alg", "sign"),
    [("rsa", "RS256", openid.rs256), ("ec", "ES256", openid.es256), ("ed", "EdDSA", openid.eddsa)],
)
async def test_every_usual_signature_is_understood(
    desk: Desk, browser: Browser, kid: str, alg: str, sign: Any
) -> None:
    desk.other.header, desk.other.sign = {"kid": kid, "alg": alg}, sign
    if alg == "EdDSA":
        desk.other.claims = {"at_hash": MISSING}
    landed(await browser.sign_in(desk.other, "oidc"))


async def test_new_keys_are_found_at_once(desk: Desk, browser: Browser) -> None:
    """A provider that rotated its keys is asked for them again."""
    landed(await browser.sign_in(desk.other, "oidc"))
    rsa = next(key for key in desk.other.keys if key["kid"] == "rsa")
    desk.other.keys = [{**rsa, "kid": "new"}]
    desk.other.header = {"kid": "new"}
    landed(await browser.sign_in(desk.other, "oidc"))


async def test_more_audiences_and_more_answers_are_fine(desk: Desk, browser: Browser) -> None:
    """A list of audiences with us as the authorised party, and parameters nobody asked for."""
    desk.google.claims = {"aud": [desk.google.client_id, "another"], "azp": desk.google.client_id}
    desk.google.answer = {"scope": "openid email", "authuser": "0", "prompt": "none",
                          "session_state": "x", "hd": "example.org"}  # fmt: skip
    landed(await browser.sign_in(desk.google))


async def test_the_login_page_is_told_the_providers(desk: Desk) -> None:
    offers = (await desk.live.nobody.get("/auth/providers")).expect(200)
    assert offers == [
        {"name": "google", "label": "Google", "start_url": "/api/v1/auth/google/start"},
        {"name": "oidc", "label": "Our Keycloak", "start_url": "/api/v1/auth/oidc/start"},
    ]
    for step in ("start", "callback"):
        answer = await desk.live.nobody.get(f"/auth/nobody/{step}")
        answer.refused(404, "E_PROVIDER_NOT_FOUND")


async def test_who_declines_is_told_so(desk: Desk, browser: Browser) -> None:
    desk.google.answer = {"code": MISSING, "error": "access_denied", "error_description": "no"}
    refused(await browser.sign_in(desk.google), "oauth_denied")
    desk.google.answer = {"code": MISSING, "error": "server_error"}
    refused(await browser.sign_in(desk.google), "oauth_unavailable")


# --- linking -------------------------------------------------------------------------------------


async def test_a_verified_account_is_linked_and_keeps_its_password(
    desk: Desk, browser: Browser
) -> None:
    person = await desk.live.person("agent")
    desk.google.person["email"] = person.email.upper()
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    assert user["id"] == person.id and user["role"] == "agent"
    (await person.get("/auth/me")).expect(200)
    await desk.live.sign_in(person.email)


async def test_a_trap_account_loses_its_password_and_sessions(desk: Desk, browser: Browser) -> None:
    """Section 7: the first verified link voids what a stranger left in an unverified account."""
    email = desk.google.person["email"]
    stranger = await desk.registered(email)
    script = (await stranger.post("/tokens", {"name": "trap"})).expect(201)["token"]
    await enrol(stranger)
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    assert user["id"] == stranger.id and user["is_verified"] is True
    (await stranger.get("/auth/me")).refused(401, "E_AUTH_TOKEN_INVALID")
    renewal = {"refresh_token": stranger.refresh_token}
    (await stranger.post("/auth/refresh", renewal)).refused(401, "E_AUTH_TOKEN_INVALID")
    login = {"email": email, "password": PASSWORD}
    (await desk.live.nobody.post("/auth/login", login)).refused(401, "E_AUTH_INVALID_CREDENTIALS")
    (await Person(stranger.base, script).get("/tickets")).refused(401, "E_AUTH_TOKEN_INVALID")
    told = await desk.sql(
        "SELECT data->>'password_voided' FROM events WHERE type = 'auth.identity_linked'"
        " AND actor_id = $1::uuid",
        user["id"],
    )
    assert told == "true"


async def test_a_second_factor_of_this_desk_is_asked_for_as_well(
    desk: Desk, browser: Browser
) -> None:
    """S-15: what somebody added to their password, a provider's word does not replace."""
    person = await desk.live.person()
    secret, _, used = await enrol(person)
    desk.google.person["email"] = person.email
    answer = await browser.sign_in(desk.google)
    where, _, fragment = answer.headers["Location"].partition("#challenge=")
    assert where == f"{FRONTEND}/?oauth_error=oauth_second_factor_required"
    assert not SESSION & set(cookies(answer))
    code = code_at(secret, used + 30)
    asked = {"challenge": fragment, "code": code}
    done = (await desk.live.nobody.post("/auth/token/totp", asked)).expect(200)
    assert done["user"]["id"] == person.id


async def test_the_same_address_of_another_subject_is_refused(desk: Desk, browser: Browser) -> None:
    """S-15: an address that was given to somebody else does not open the first one's account."""
    landed(await browser.sign_in(desk.google))
    before = await desk.sessions()
    desk.google.person["sub"] = uuid4().hex
    async with Browser(desk.live.url) as thief:
        refused(await thief.sign_in(desk.google), "oauth_sign_in_refused")
    assert await desk.sessions() == before


async def test_two_providers_may_know_the_same_person(desk: Desk, browser: Browser) -> None:
    """The subject is one issuer's: the same word at another is somebody else, until linked."""
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    desk.other.person["sub"] = desk.google.person["sub"]
    async with Browser(desk.live.url) as elsewhere:
        landed(await elsewhere.sign_in(desk.other, "oidc"))
        assert (await me(desk, elsewhere))["id"] != user["id"]
    desk.other.person = {**desk.google.person, "sub": uuid4().hex}
    async with Browser(desk.live.url) as elsewhere:
        landed(await elsewhere.sign_in(desk.other, "oidc"))
        assert (await me(desk, elsewhere))["id"] == user["id"]


async def test_disabled_and_unavailable_accounts_look_alike(desk: Desk, browser: Browser) -> None:
    """S-05: switched off, linked or not, and taken by another subject: one answer for all."""
    answers = []
    for email in await _accounts_that_stay_closed(desk):
        desk.google.person = {"sub": uuid4().hex, "email": email, "email_verified": True}
        async with Browser(desk.live.url) as other:
            answers.append(await other.sign_in(desk.google))
    seen = [
        (a.status, {k: v for k, v in a.headers.items() if k not in ("X-Request-ID", "Date")}, a.raw)
        for a in answers
    ]
    refused(answers[0], "oauth_sign_in_refused")
    assert len(seen) == 3 and all(one == seen[0] for one in seen)


async def _accounts_that_stay_closed(desk: Desk) -> list[str]:
    off = {"is_active": False}
    verified = await desk.live.person()
    (await desk.live.admin.patch(f"/users/{verified.id}", off)).expect(200)
    stranger = await desk.registered(f"{uuid4().hex}@example.org")
    (await desk.live.admin.patch(f"/users/{stranger.id}", off)).expect(200)
    taken = dict(desk.google.person)
    async with Browser(desk.live.url) as owner:
        landed(await owner.sign_in(desk.google))
    return [verified.email, stranger.email, taken["email"]]


async def test_a_linked_account_that_is_switched_off_stays_shut(
    desk: Desk, browser: Browser
) -> None:
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    path = f"/users/{user['id']}"
    (await desk.live.admin.patch(path, {"is_active": False})).expect(200)
    refused(await browser.sign_in(desk.google), "oauth_sign_in_refused")
    (await desk.live.admin.patch(path, {"is_active": True})).expect(200)
    landed(await browser.sign_in(desk.google))


async def test_one_first_sign_in_in_many_tabs_is_one_account(desk: Desk) -> None:
    """Eight browsers of one new person at once: one account, one link, eight sessions."""
    browsers = [Browser(desk.live.url) for _ in range(8)]
    try:
        backs = [desk.google.consent(await one.start()) for one in browsers]
        answers = await asyncio.gather(*(b.get(u) for b, u in zip(browsers, backs, strict=True)))
    finally:
        await asyncio.gather(*(one.session.close() for one in browsers))
    for answer in answers:
        landed(answer)
    count = "SELECT count(*) FROM user_identities WHERE subject = $1"
    assert await desk.sql(count, desk.google.person["sub"]) == 1


async def test_roles_come_from_the_provider_only_where_mapped(desk: Desk, browser: Browser) -> None:
    """The mapping is one provider's; the greatest role wins, and no group takes it away again."""
    desk.google.person["realm_access"] = {"roles": ["admins"]}
    landed(await browser.sign_in(desk.google))
    assert (await me(desk, browser))["role"] == "user"
    for groups, role in (
        (["staff", "x", 7], "agent"),
        (["admins", "staff"], "admin"),
        ([], "user"),
    ):
        desk.other.person["realm_access"] = {"roles": groups}
        landed(await browser.sign_in(desk.other, "oidc"))
        assert (await me(desk, browser))["role"] == role
    changed = (
        "SELECT count(*) FROM events WHERE type = 'user.updated' AND data->>'provider' = 'oidc'"
    )
    assert await desk.sql(changed) == 2


async def test_only_allowed_domains_sign_in(desk: Desk, browser: Browser) -> None:
    for email in ("a@evil.example.net", "a@example.org.evil.net", "a@sub.example.org"):
        desk.other.person["email"] = email
        refused(await browser.sign_in(desk.other, "oidc"), "oauth_domain_not_allowed")
    desk.other.person["email"] = f"{uuid4().hex}@EXAMPLE.com"
    landed(await browser.sign_in(desk.other, "oidc"))


# --- one's own links -----------------------------------------------------------------------------


async def test_people_see_and_remove_their_links(desk: Desk, browser: Browser) -> None:
    person = await desk.live.person()
    desk.google.person["email"] = person.email
    landed(await browser.sign_in(desk.google))
    path = f"/users/{person.id}/identities"
    (link,) = (await person.get(path)).expect(200)
    assert link["provider"] == "google" and link["issuer"] == desk.google.issuer
    assert link["subject"] == desk.google.person["sub"] and link["email"] == person.email
    stranger = await desk.live.person()
    for there in (path, f"{path}/{link['id']}"):
        code = "E_AUTH_INSUFFICIENT_PERMISSIONS"
        method = "GET" if there == path else "DELETE"
        (await stranger.call(method, f"/api/v1{there}")).refused(403, code)
    (await person.delete(f"{path}/{uuid4()}")).refused(404, "E_IDENTITY_NOT_FOUND")
    (await person.delete(f"{path}/{link['id']}")).expect(204)
    assert (await person.get(path)).expect(200) == []
    assert (await browser.get("/api/v1/auth/me")).status == 401
    assert await desk.sql("SELECT google_id FROM users WHERE id = $1::uuid", person.id) is None


async def test_nobody_removes_their_last_way_in(desk: Desk, browser: Browser) -> None:
    """Administrators may: so is a new account at the provider linked to an old one here."""
    landed(await browser.sign_in(desk.google))
    user = await me(desk, browser)
    path = f"/users/{user['id']}/identities"
    themselves = Person(desk.live.url, browser.cookies["itdesk_access"])
    (link,) = (await themselves.get(path)).expect(200)
    (await themselves.delete(f"{path}/{link['id']}")).refused(409, "E_IDENTITY_LAST")
    (await desk.live.admin.delete(f"{path}/{link['id']}")).expect(204)
    desk.google.person["sub"] = uuid4().hex
    async with Browser(desk.live.url) as again:
        landed(await again.sign_in(desk.google))
        assert (await me(desk, again))["id"] == user["id"]


# --- hostile answers -----------------------------------------------------------------------------


def _claims(**claims: Any) -> dict[str, Any]:
    return {"claims": claims}


def _signed(sign: Any, **header: Any) -> dict[str, Any]:
    return {"sign": sign, "header": header}


TOKEN, EMAIL = "oauth_token_invalid", "oauth_email_not_verified"
LIES: dict[str, tuple[dict[str, Any], str]] = {
    "nonce of another": (_claims(nonce="x" * 43), TOKEN),
    "no nonce": (_claims(nonce=MISSING), TOKEN),
    "nonce is null": (_claims(nonce=None), TOKEN),
    "nonce is a list": (_claims(nonce=["x"]), TOKEN),
    "issuer is another": (_claims(iss="https://evil.example.net"), TOKEN),
    "issuer with a slash": (_claims(iss="{issuer}/"), TOKEN),
    "issuer in capitals": (_claims(iss="HTTP://127.0.0.1"), TOKEN),
    "issuer as a list": (_claims(iss=["{issuer}"]), TOKEN),
    "no issuer": (_claims(iss=MISSING), TOKEN),
    "for another client": (_claims(aud="another"), TOKEN),
    "for nobody": (_claims(aud=[]), TOKEN),
    "no audience": (_claims(aud=MISSING), TOKEN),
    "for several, silent": (_claims(aud=["desk-client", "another"]), TOKEN),
    "made for another client": (_claims(azp="another"), TOKEN),
    "made for a list": (_claims(azp=["desk-client"]), TOKEN),
    "for several, made for another": (
        _claims(aud=["desk-client", "another"], azp="another"), TOKEN),
    "unsigned": (_signed(openid.unsigned, alg="none", kid=MISSING), TOKEN),
    "unsigned in capitals": (_signed(openid.unsigned, alg="NoNe"), TOKEN),
    "signature left out": (_signed(openid.unsigned), TOKEN),
    "public key as a secret": (_signed(openid.confused, alg="HS256"), TOKEN),
    "by the client's secret": (_signed(openid.by_secret, alg="HS256", kid="oct"), TOKEN),
    "HS256 under the name of RS256": (_signed(openid.confused), TOKEN),
    "ES256 by the RSA key's name": (_signed(openid.es256, alg="ES256"), TOKEN),
    "no algorithm": (_signed(openid.rs256, alg=MISSING), TOKEN),
    "algorithm is a list": (_signed(openid.rs256, alg=["RS256"]), TOKEN),
    "RS512, not expected": (_signed(openid.rs256, alg="RS512"), TOKEN),
    "by a foreign key": (_signed(openid.foreign), TOKEN),
    "by a key for encryption": (_signed(openid.foreign, kid="enc"), TOKEN),
    "by a weak key": (_signed(openid.weak, kid="weak"), TOKEN),
    "by an unknown key": (_signed(openid.rs256, kid="unknown"), TOKEN),
    "by a key without a name": (_signed(openid.foreign, kid=MISSING), TOKEN),
    "key id is a path": (_signed(openid.rs256, kid="../../etc/passwd"), TOKEN),
    "key id is a number": (_signed(openid.rs256, kid=7), TOKEN),
    "brings its own key": (_signed(openid.foreign, kid="own", jwk=openid.FOREIGN_JWK), TOKEN),
    "names its own keys": (
        _signed(openid.foreign, kid="own", jku="http://127.0.0.1:1/jwks"), TOKEN),
    "critical extension": (_signed(openid.rs256, crit=["x"], x=1), TOKEN),
    "over": (_claims(exp="-3600"), TOKEN),
    "no end": (_claims(exp=MISSING), TOKEN),
    "end is text": (_claims(exp="never"), TOKEN),
    "end is true": (_claims(exp=True), TOKEN),
    "end beyond numbers": (_claims(exp=None), TOKEN),
    "from the future": (_claims(iat="+3600", exp="+7200"), TOKEN),
    "not yet": (_claims(nbf="+3600"), TOKEN),
    "hoarded": (_claims(iat="-86400"), TOKEN),
    "no beginning": (_claims(iat=MISSING), TOKEN),
    "no subject": (_claims(sub=MISSING), TOKEN),
    "empty subject": (_claims(sub=""), TOKEN),
    "subject is a number": (_claims(sub=7), TOKEN),
    "endless subject": (_claims(sub="x" * 256), TOKEN),
    "another access token": (_claims(at_hash="x" * 22), TOKEN),
    "address not verified": (_claims(email_verified=False), EMAIL),
    "verified is missing": (_claims(email_verified=MISSING), EMAIL),
    "verified is text": (_claims(email_verified="true"), EMAIL),
    "verified is one": (_claims(email_verified=1), EMAIL),
    "verified is a list": (_claims(email_verified=[True]), EMAIL),
    "verified is null": (_claims(email_verified=None), EMAIL),
    "no address": (_claims(email=MISSING), EMAIL),
    "address is a list": (_claims(email=["a@example.org"]), EMAIL),
    "address is none": (_claims(email="admin"), EMAIL),
    "two addresses": (_claims(email="a@example.org,b@example.org"), EMAIL),
    "address with a line": (_claims(email="a@example.org\r\nBcc: b@example.org"), EMAIL),
    "address with a NUL": (_claims(email="a@example.org\x00"), EMAIL),
    "endless address": (_claims(email="a" * 60 + "@" + "b." * 150 + "org"), EMAIL),
}  # fmt: skip


def _timed(value: Any, issuer: str) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]\d+", value):
        return openid.now() + int(value)
    if isinstance(value, list):
        return [_timed(one, issuer) for one in value]
    return value.replace("{issuer}", issuer) if isinstance(value, str) else value


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_token_signs_nobody_in(desk: Desk, browser: Browser, lie: str) -> None:
    """S-15: nonce, iss, aud, azp, alg, kid, times, email_verified: nobody is signed in."""
    told, problem = LIES[lie]
    desk.google.claims = {
        name: _timed(value, desk.google.issuer) for name, value in told.get("claims", {}).items()
    }
    desk.google.header = told.get("header", {})
    desk.google.sign = told.get("sign", openid.rs256)
    before = await desk.sessions()
    refused(await browser.sign_in(desk.google), problem)
    assert await desk.sessions() == before


async def test_a_letter_that_looks_like_another_is_not_the_other(
    desk: Desk, browser: Browser
) -> None:
    """The Kelvin sign is a k in small letters: such an address finds nobody's account."""
    email = f"k{uuid4().hex}@example.org"
    new = {"email": email, "name": "Victim", "password": PASSWORD}
    (await desk.live.admin.post("/users", new)).expect(201)
    desk.google.person["email"] = "\u212a" + email[1:]
    refused(await browser.sign_in(desk.google), EMAIL)


SPOILERS = [openid.stalls, openid.trickles, openid.floods, openid.html, openid.breaks, openid.moves,
            openid.nested, openid.a_list, openid.nothing, openid.odd_types,
            openid.cut]  # fmt: skip


@pytest.mark.parametrize("spoiler", SPOILERS, ids=lambda spoiler: spoiler.__name__)
async def test_a_provider_that_misbehaves_is_given_up_in_time(desk: Desk, spoiler: Any) -> None:
    """S-15: stalls, floods, HTML, redirects at each endpoint: an answer in time, and no login."""
    async with Browser(desk.live.url) as browser:
        landed(await browser.sign_in(desk.other, "oidc"))
    before = await desk.sessions()

    async def one(endpoint: str) -> None:
        desk.other.honest()
        async with Browser(desk.live.url) as browser:
            back = desk.other.consent(await browser.start("oidc"))
            desk.other.spoil = {endpoint: spoiler}
            started = time.monotonic()
            answer = await browser.get(back)
            assert time.monotonic() - started < DEADLINE + GRACE
        problem = answer.headers["Location"].partition("=")[2]
        assert problem in ("oauth_unavailable", TOKEN), problem
        refused(answer, problem)

    await one("token")
    if spoiler not in (openid.stalls, openid.trickles):
        # The keys that were fetched before serve on: only a token of a new one asks for more.
        desk.other.honest()
        desk.other.header = {"kid": "new"}
        async with Browser(desk.live.url) as browser:
            back = desk.other.consent(await browser.start("oidc"))
            desk.other.spoil = {"jwks": spoiler}
            refused(await browser.get(back), TOKEN)
    assert await desk.sessions() == before


async def test_a_provider_that_is_out_is_not_waited_for_again(desk: Desk, browser: Browser) -> None:
    """What it said of itself before serves on while its description cannot be fetched."""
    await browser.start("oidc")
    desk.other.spoil = {"openid-configuration": openid.html}
    landed(await browser.sign_in(desk.other, "oidc"))


# --- hostile browsers ----------------------------------------------------------------------------


async def test_a_state_is_needed_and_good_once(desk: Desk, browser: Browser) -> None:
    """S-15: missing, invented, reused; the code is good once whatever the provider does."""
    callback = "/api/v1/auth/google/callback"
    state = "oauth_state_invalid"
    refused(await browser.get(callback), state)
    refused(await browser.get(f"{callback}?code=x&state="), state)
    back = desk.google.consent(await browser.start())
    code = parse_qs(urlsplit(back).query)["code"][0]
    refused(await browser.get(f"{callback}?code={code}"), state)
    back = desk.google.consent(await browser.start())
    kept = browser.cookies["itdesk_oauth"]
    refused(await browser.get(f"{callback}?code={code}&state={'x' * 43}"), state)
    browser.session.cookie_jar.update_cookies({"itdesk_oauth": kept})
    desk.google.strict = False
    async with Browser(desk.live.url) as twin:
        cookie = {"Cookie": f"itdesk_oauth={kept}"}
        landed(await twin.get(back, headers=cookie))
        before = await desk.sessions()
        refused(await twin.get(back, headers=cookie), state)
        assert await desk.sessions() == before


async def test_sixteen_answers_at_once_sign_in_once(desk: Desk, browser: Browser) -> None:
    """A state is used up in one statement: of many who come with it, one gets in."""
    desk.google.strict = False
    back = desk.google.consent(await browser.start())
    before = await desk.sessions()
    cookie = {"Cookie": f"itdesk_oauth={browser.cookies['itdesk_oauth']}"}

    async def one() -> Answer:
        async with Browser(desk.live.url) as twin:
            return await twin.get(back, headers=cookie)

    answers = await asyncio.gather(*(one() for _ in range(16)))
    assert sum("oauth_error" not in answer.headers["Location"] for answer in answers) == 1
    assert await desk.sessions() == before + 1


async def test_another_browser_gets_nothing(desk: Desk, browser: Browser) -> None:
    """S-15: who is lured to an attacker's answer is not signed in as the attacker, or at all."""
    back = desk.google.consent(await browser.start())
    before = await desk.sessions()
    async with Browser(desk.live.url) as victim:
        refused(await victim.get(back), "oauth_state_invalid")
        await victim.start()
        refused(await victim.get(back), "oauth_state_invalid")
    assert await desk.sessions() == before
    landed(await browser.get(back))


async def test_a_code_for_another_browser_is_useless(desk: Desk, browser: Browser) -> None:
    """PKCE: a stolen code, brought with the thief's own state, has another verifier."""
    stolen = parse_qs(urlsplit(desk.google.consent(await browser.start())).query)["code"][0]
    async with Browser(desk.live.url) as thief:
        own = desk.google.consent(await thief.start())
        state = parse_qs(urlsplit(own).query)["state"][0]
        answer = await thief.get(f"/api/v1/auth/google/callback?code={stolen}&state={state}")
        refused(answer, "oauth_code_invalid")


async def test_a_sign_in_is_over_after_ten_minutes(desk: Desk, browser: Browser) -> None:
    """By the database's clock, and cleaned up like all that is over."""
    back = desk.google.consent(await browser.start())
    await desk.sql("UPDATE oauth_states SET expires_at = now() - interval '1 second'")
    refused(await browser.get(back), "oauth_state_invalid")


async def test_an_answer_at_another_providers_place_is_refused(
    desk: Desk, browser: Browser
) -> None:
    """Mix-up: what one provider answers is good at its own place only, and names its issuer."""
    back = urlsplit(desk.google.consent(await browser.start()))
    refused(await browser.get(f"/api/auth/oidc/callback?{back.query}"), "oauth_state_invalid")
    answer = "oauth_response_invalid"
    for said in (desk.google.issuer, "", desk.other.issuer + "/"):
        desk.other.answer = {"iss": said}
        refused(await browser.sign_in(desk.other, "oidc"), answer)
    desk.other.answer = {"iss": desk.other.issuer}
    landed(await browser.sign_in(desk.other, "oidc"))
    desk.other.answer = {}
    desk.other.metadata = {"authorization_response_iss_parameter_supported": True}
    refused(await browser.sign_in(desk.other, "oidc"), answer)
    desk.other.answer = {"iss": desk.other.issuer}
    landed(await browser.sign_in(desk.other, "oidc"))


HOSTS = ("evil.example.net", "127.0.0.1:1", "desk.example.org.evil.net", "[::1]")
FORMS = (
    "https://{}", "http://{}", "HTTPS://{}", "https:{}", "https:/{}", "//{}", "///{}", "////{}",
    "/\\{}", "\\\\{}", "\\/{}", "/\t/{}", "/\n/{}", "/\r\n/{}", "\t//{}", " //{}", "//{}/%2f..",
    "/%2f{}", "/%5c{}", "/%2F%2F{}", "/%252f{}", "/%09/{}", "/%0d%0aLocation:https://{}",
    "/\r\nLocation: https://{}", "/.//{}", "/..//{}", "/../{}", "/./{}",
    "javascript://{}/%0aalert(1)", "data:text/html,{}", "{}", "@{}", "?next=//{}", "#//{}",
    "//user@{}", "https://desk.example.org@{}", "https://desk.example.org\\@{}",
    "https://desk.example.org.{}", "/a//{}", "/\u2215{}", "/\uff0f{}", "/\u3002{}", "//\u2024{}",
    "\u2025/{}", "/\x00/{}", "/ /{}", "/;@{}\\x", "/<{}>", '/"{}', "/`{}", "/|{}", "/^{}",
    "/{{{}}}", "ftp://{}", "file:///{}", "vbscript:{}", "blob:{}", "/%7f{}", "/%1f{}", "//%65{}",
    "http:\\\\{}", "/%zz{}", "/\u202e{}", "mailto:a@{}",
)  # fmt: skip


async def test_no_form_of_next_leads_elsewhere(desk: Desk, browser: Browser) -> None:
    """S-15: over sixty open redirects: each is refused before anything begins."""
    assert len(FORMS) >= 60
    for number, form in enumerate(FORMS):
        wanted = form.format(HOSTS[number % len(HOSTS)])
        answer = await browser.get(f"/api/v1/auth/google/start?{urlencode({'next': wanted})}")
        answer.refused(422, "E_VALIDATION_ERROR")
        assert "Location" not in answer.headers
    for good in ("/", "/tickets", "/tickets/TSK-1?tab=a&x=%20#top", "/@someone", "/a:b"):
        landed(await browser.sign_in(desk.google, next=good), good)


async def test_no_header_changes_where_the_frontend_is(desk: Desk, browser: Browser) -> None:
    """The Host of a request is the client's word; where browsers land is the operator's."""
    lies = {"Host": "evil.example.net", "X-Forwarded-Host": "evil.example.net",
            "X-Forwarded-Proto": "https", "Referer": "https://evil.example.net/"}  # fmt: skip
    back = desk.google.consent(await browser.start())
    path = back.replace(desk.live.url, "")
    cookie = f"itdesk_oauth={browser.cookies['itdesk_oauth']}"
    landed(await browser.get(path, headers={**lies, "Cookie": cookie}))


@pytest.mark.parametrize(
    "query",
    ["", "code", "state=%00", "state=\u20ac", f"code={'x' * 6000}&state=y", "state=a&state=b",
     "error=%3Cscript%3E&state=x", "iss=%ff", "a=b" + "&a=b" * 150, "state[]=x"],
)  # fmt: skip
async def test_no_callback_breaks_the_desk(desk: Desk, browser: Browser, query: str) -> None:
    """Never a 500, and never a redirect but to the frontend."""
    await browser.start()
    answer = await browser.get(f"/api/v1/auth/google/callback?{quote(query, safe='&=%[]')}")
    assert answer.status in (302, 400, 422), answer
    where = answer.headers.get("Location", FRONTEND)
    assert where == FRONTEND or where.startswith(f"{FRONTEND}/?oauth_error=oauth_")


async def test_nothing_secret_is_written_down(desk: Desk, browser: Browser) -> None:
    """S-34: the client's secret, codes, states and tokens are in no log line and no journal row."""
    back = desk.google.consent(await browser.start())
    query = parse_qs(urlsplit(back).query)
    secret = browser.cookies["itdesk_oauth"]
    landed(await browser.get(back))
    desk.google.sign = openid.foreign
    refused(await browser.sign_in(desk.google), TOKEN)
    log = desk.live.daemon.log.read_text()
    journal = await desk.sql("SELECT string_agg(e::text, ' ') FROM events e")
    for word in (openid.CLIENT_SECRET, query["code"][0], query["state"][0], secret, "access-",
                 browser.cookies["itdesk_refresh"]):  # fmt: skip
        assert word not in log and word not in journal
    assert "ID token: it is not valid" in log
