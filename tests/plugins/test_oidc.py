"""The OpenID plugin as operators meet it: settings, presets, caches, the doctor, odd providers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from pydantic import ValidationError

from itdesk.api import ROUTES
from itdesk.config import load
from itdesk.desk import doctor
from itdesk.desk.schedules import clean_up
from itdesk.model import Caller, Role
from plugins.oidc_client import is_address
from plugins.oidc_settings import OidcSettings
from tests.support import openid
from tests.support.daemon import Answer, Live
from tests.support.desk import Bench, bench_on
from tests.support.openid import MISSING, Browser, OpenIdServer
from tests.support.small_desk import SmallDesk, serving

SECRET = openid.CLIENT_SECRET


@pytest.fixture(scope="module")
def provider_of_module() -> Iterator[OpenIdServer]:
    with OpenIdServer() as server:
        yield server


@pytest.fixture
def provider(provider_of_module: OpenIdServer) -> OpenIdServer:
    provider_of_module.honest()
    return provider_of_module


def options(provider: OpenIdServer, **more: str) -> dict[str, str]:
    """Return the settings that name a provider, as the environment says them."""
    said = {"ISSUER": provider.issuer, "CLIENT_ID": provider.client_id, "CLIENT_SECRET": SECRET}
    return {f"ITDESK_PLUGINS__OIDC__{name}": text for name, text in {**said, **more}.items()}


@asynccontextmanager
async def serving_on(database_url: str, **env: str) -> AsyncIterator[tuple[Bench, Browser]]:
    """Lend a desk that is served on a socket, and a browser."""
    async with bench_on(database_url, ITDESK_SERVER__PORT="0", **env) as bench:
        bench.desk.runtime = cast(Any, None)
        async with (
            serving(cast(SmallDesk, bench.desk), ROUTES) as server,
            Browser(f"http://127.0.0.1:{server.port}") as browser,
        ):
            yield bench, browser


def problem_of(answer: Answer) -> str | None:
    assert answer.status == 302, answer
    asked = parse_qs(urlsplit(answer.headers["Location"]).query)
    return asked["oauth_error"][0] if "oauth_error" in asked else None


def address(caller: Caller) -> str:
    assert caller.email is not None
    return caller.email


async def findings(bench: Bench) -> list[doctor.Finding]:
    return [one async for one in doctor.examine(bench.desk) if one.part.startswith("sign-in")]


# --- not configured, and presets -----------------------------------------------------------------


async def test_unconfigured_google_sends_back_to_the_frontend(live: Live) -> None:
    """R18: 302 frontend ?oauth_error=google_oauth_not_configured, and so the callback."""
    for path in (
        "/api/v1/auth/google/start",
        "/api/auth/google/start",
        "/api/auth/google/callback",
    ):
        answer = await live.nobody.call("GET", path, allow_redirects=False)
        assert answer.status == 302
        where = "http://localhost:3000/?oauth_error=google_oauth_not_configured"
        assert answer.headers["Location"] == where
    assert (await live.nobody.get("/auth/providers")).expect(200) == []


async def test_google_is_known_without_asking(database_url: str) -> None:
    """S4-14, S4-37: 302 to accounts.google.com with client, state and the redirect address."""
    env = {"GOOGLE_CLIENT_ID": "1234.apps.googleusercontent.com", "GOOGLE_CLIENT_SECRET": "x" * 20}
    for redirect in (None, "https://desk.example.org/api/auth/google/callback"):
        more = {"GOOGLE_REDIRECT_URI": redirect} if redirect else {}
        async with serving_on(database_url, **env, **more) as (_, browser):
            answer = await browser.get("/api/auth/google/start")
            url = urlsplit(answer.headers["Location"])
            asked = {name: value[0] for name, value in parse_qs(url.query).items()}
            assert answer.status == 302 and url.netloc == "accounts.google.com"
            assert asked["client_id"] == env["GOOGLE_CLIENT_ID"] and asked["state"]
            default = f"{browser.base}/api/auth/google/callback"
            assert asked["redirect_uri"] == (redirect or default)
            assert "itdesk_oauth" in browser.cookies


async def test_over_https_the_cookies_are_guarded(
    database_url: str, provider: OpenIdServer
) -> None:
    """Secure and __Host- where the desk is reached by https."""
    more = {"ITDESK_SERVER__PUBLIC_URL": "https://desk.example.org"}
    async with serving_on(database_url, **options(provider), **more) as (_, browser):
        answer = await browser.get("/api/v1/auth/oidc/start")
        cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-itdesk_oauth=") and cookie.endswith("; Secure")
        assert "Path=/;" in cookie and "Domain" not in cookie
        back = urlsplit(provider.consent(answer.headers["Location"]))
        assert back.netloc == "desk.example.org"
        secret = cookie.partition(";")[0].partition("=")[2]
        path = f"{back.path}?{back.query}"
        plain = await browser.get(path, headers={"Cookie": f"itdesk_oauth={secret}"})
        assert problem_of(plain) == "oauth_state_invalid"
        good = await browser.get(path, headers={"Cookie": f"__Host-itdesk_oauth={secret}"})
        assert problem_of(good) is None
        for line in good.headers.getall("Set-Cookie"):  # type: ignore[attr-defined]
            assert line.endswith("; Secure")


async def test_without_a_frontend_a_page_says_what_happened(
    database_url: str, provider: OpenIdServer
) -> None:
    """In production nobody is sent to the frontend that nobody named."""
    env = {"ENV": "production", "ITDESK_AUTH__BCRYPT_COST": "10"}
    async with serving_on(database_url, **env, **options(provider)) as (_, browser):
        done = await browser.sign_in(provider, "oidc")
        assert done.status == 200 and b"You are signed in" in done.raw
        assert "Location" not in done.headers and "itdesk_access" in str(browser.cookies)
        failed = await browser.get("/api/v1/auth/oidc/callback")
        assert failed.status == 200 and b"oauth_state_invalid" in failed.raw
        assert b"You are not signed in" in failed.raw and "Location" not in failed.headers
        assert "itdesk_access" not in str(failed.headers.getall("Set-Cookie"))  # type: ignore[attr-defined]
        assert failed.headers["Content-Type"].startswith("text/html")
        assert "default-src 'none'" in failed.headers["Content-Security-Policy"]


# --- who gets in ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("registration", "creates", "problem"),
    [
        ("true", None, None),
        ("false", None, "oauth_sign_in_refused"),
        ("false", "true", None),
        ("true", "false", "oauth_sign_in_refused"),
    ],
)
async def test_who_is_new_gets_an_account_where_accounts_are_opened(
    database_url: str,
    provider: OpenIdServer,
    registration: str,
    creates: str | None,
    problem: str | None,
) -> None:
    env = options(provider, **({"CREATE_ACCOUNTS": creates} if creates else {}))
    env["ITDESK_AUTH__ALLOW_REGISTRATION"] = registration
    async with serving_on(database_url, **env) as (bench, browser):
        assert problem_of(await browser.sign_in(provider, "oidc")) == problem
        known = await bench.person()
        provider.person = {"sub": "known", "email": address(known), "email_verified": True}
        assert problem_of(await browser.sign_in(provider, "oidc")) is None


async def test_entra_trusts_addresses_of_its_own_domains_only(
    database_url: str, provider: OpenIdServer
) -> None:
    env = options(provider, TRUST_EMAIL="true", ALLOWED_DOMAINS="example.org")
    provider.claims = {"email_verified": MISSING}
    async with serving_on(database_url, **env) as (_, browser):
        assert problem_of(await browser.sign_in(provider, "oidc")) is None
        provider.person = {"sub": uuid4().hex, "email": "admin@example.com"}
        answer = await browser.sign_in(provider, "oidc")
        assert problem_of(answer) == "oauth_domain_not_allowed"


async def test_claims_may_have_other_names(database_url: str, provider: OpenIdServer) -> None:
    env = options(
        provider, EMAIL_CLAIM="mail", EMAIL_VERIFIED_CLAIM="xms_edov", NAME_CLAIM="n.full"
    )
    provider.claims = {"email": MISSING, "email_verified": MISSING, "mail": "j@example.org",
                       "xms_edov": True, "n": {"full": " Jo \u202e\n Doe " + "x" * 300},
                       "picture": "javascript:alert(1)"}  # fmt: skip
    async with serving_on(database_url, **env) as (_, browser):
        assert problem_of(await browser.sign_in(provider, "oidc")) is None
        user = (await browser.get("/api/v1/auth/me")).expect(200)
        assert user["email"] == "j@example.org" and user["name"].startswith("Jo Doe xx")
        assert len(user["name"]) <= 100 and user["avatar_url"] is None
        provider.claims["xms_edov"] = "1"
        assert problem_of(await browser.sign_in(provider, "oidc")) == "oauth_email_not_verified"


async def test_a_private_google_account_with_a_company_address_is_not_the_company(
    database_url: str, provider: OpenIdServer
) -> None:
    """Google says by `hd` that the Workspace itself has the account."""
    env = {"GOOGLE_CLIENT_ID": provider.client_id, "GOOGLE_CLIENT_SECRET": SECRET,
           "ITDESK_PLUGINS__GOOGLE__ISSUER_BASE": provider.issuer,
           "ITDESK_PLUGINS__GOOGLE__ALLOWED_DOMAINS": "example.org"}  # fmt: skip
    async with serving_on(database_url, **env) as (_, browser):
        assert "hd=example.org" in await browser.start("google")
        for hosted, problem in ((MISSING, "oauth_domain_not_allowed"), ("example.com",
                                "oauth_domain_not_allowed"), ("example.org", None)):  # fmt: skip
            provider.claims = {"hd": hosted}
            assert problem_of(await browser.sign_in(provider)) == problem


async def test_the_last_administrator_stays_one(database_url: str, provider: OpenIdServer) -> None:
    """The mapping takes roles away, but not the last one who could give them back."""
    env = options(provider, ROLES='{"staff": "agent"}')
    async with serving_on(database_url, **env) as (bench, browser):
        for person, left in (("first", "admin"), ("second", "user")):
            admin = await bench.person(Role.ADMIN)
            provider.person = {"sub": person, "email": address(admin), "email_verified": True}
            assert problem_of(await browser.sign_in(provider, "oidc")) is None
            assert (await browser.get("/api/v1/auth/me")).expect(200)["role"] == left


# --- what is asked of the provider ---------------------------------------------------------------


async def test_description_and_keys_are_fetched_once(
    database_url: str, provider: OpenIdServer
) -> None:
    async with serving_on(database_url, **options(provider)) as (_, browser):
        for _ in range(3):
            assert problem_of(await browser.sign_in(provider, "oidc")) is None
    assert sorted(provider.asked) == ["jwks", "openid-configuration", *["token"] * 3]


async def test_unknown_keys_do_not_hammer_the_provider(
    database_url: str, provider: OpenIdServer
) -> None:
    """However many tokens name unknown keys, the keys are looked for once in a while."""
    async with serving_on(database_url, **options(provider, KEYS_SECONDS="600")) as (_, browser):
        for number in range(5):
            provider.header = {"kid": f"unknown-{number}"}
            assert problem_of(await browser.sign_in(provider, "oidc")) == "oauth_token_invalid"
    assert provider.asked.count("jwks") == 1


@pytest.mark.parametrize("methods", [["client_secret_post"], ["client_secret_basic"], None])
async def test_the_secret_is_sent_as_the_provider_takes_it(
    database_url: str, provider: OpenIdServer, methods: list[str] | None
) -> None:
    if methods is not None:
        provider.metadata = {"token_endpoint_auth_methods_supported": methods}
    async with serving_on(database_url, **options(provider)) as (_, browser):
        assert problem_of(await browser.sign_in(provider, "oidc")) is None


@pytest.mark.parametrize(
    "spoiler", [openid.stalls, openid.floods, openid.html, openid.moves, openid.nothing]
)
async def test_a_provider_that_cannot_be_met_is_told_of_in_time(
    database_url: str, provider: OpenIdServer, spoiler: Any
) -> None:
    """S-15: at the very first question as well; afterwards everything works by itself."""
    provider.spoil = {"openid-configuration": spoiler}
    env = options(provider, SECONDS="2", REQUEST_SECONDS="1.5")
    async with serving_on(database_url, **env) as (bench, browser):
        async with bench.desk.clock.deadline(6):
            answer = await browser.get("/api/v1/auth/oidc/start")
        assert problem_of(answer) == "oauth_unavailable"
        assert (await bench.desk.plugins.health())["oidc"].ok is False
        provider.spoil = {"jwks": spoiler}
        async with bench.desk.clock.deadline(6):
            assert problem_of(await browser.sign_in(provider, "oidc")) == "oauth_unavailable"
        provider.spoil = {}
        assert problem_of(await browser.sign_in(provider, "oidc")) is None
        assert (await bench.desk.plugins.health())["oidc"].ok is True


async def test_what_was_never_finished_is_deleted(
    database_url: str, provider: OpenIdServer
) -> None:
    async with serving_on(database_url, **options(provider)) as (bench, browser):
        await browser.start("oidc")
        await browser.start("oidc")
        assert (await clean_up(bench.desk.db, days=30))["sign_ins"] == 0
        await bench.sql("UPDATE oauth_states SET expires_at = now() - interval '1 second'")
        assert (await clean_up(bench.desk.db, days=30))["sign_ins"] == 2


# --- the operator --------------------------------------------------------------------------------


async def test_the_doctor_tries_the_provider(database_url: str, provider: OpenIdServer) -> None:
    """The description, the keys, and whether this client is known: for real."""
    async with bench_on(database_url, **options(provider)) as bench:
        (good,) = await findings(bench)
        assert good.ok and good.part == "sign-in by oidc"
        provider.keys = [key for key in provider.keys if key["kid"] in ("weak", "enc", "oct")]
        provider.asked.clear()
    async with bench_on(database_url, **options(provider)) as bench:
        (keyless,) = await findings(bench)
        assert not keyless.ok and "RS256" in keyless.said and "algorithms" in keyless.said
    provider.honest()
    async with bench_on(database_url, **options(provider, CLIENT_SECRET="wrong")) as bench:
        (stranger,) = await findings(bench)
        assert not stranger.ok and "client_secret" in stranger.said
        assert "[plugins.oidc]" in stranger.remedy


LIES: tuple[dict[str, Any], ...] = (
    {"issuer": "https://evil.example.net"},
    {"issuer": MISSING},
    {"issuer": 7},
    {"jwks_uri": "http://keys.example.net/jwks"},
    {"token_endpoint": "ftp://example.net/"},
    {"token_endpoint": ["https://example.net"]},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"authorization_endpoint": "https://user:pass@example.net/"},
    {"authorization_endpoint": MISSING},
)


async def test_a_description_that_cannot_be_true_is_refused(
    database_url: str, provider: OpenIdServer
) -> None:
    """Mix-up: a description is of the very issuer that was configured, and leads to https."""
    async with serving_on(database_url, **options(provider)) as (bench, browser):
        for lie in ({"issuer": provider.issuer + "/"}, *LIES):
            provider.metadata = lie
            answer = await browser.get("/api/v1/auth/oidc/start")
            assert problem_of(answer) == "oauth_unavailable", lie
            (found,) = await findings(bench)
            assert not found.ok and next(iter(lie)) in found.said


def test_addresses_are_tls_or_this_machine() -> None:
    good = ("https://a.example.org/x?y=z", "http://127.0.0.1:8080/x", "http://localhost/x")
    bad = ("http://a.example.org/", "https://", "https:///x", "https://a b/", "https://a@b/",
           "https://a:0/", "https://a:99999/", "https://a/#x", "file:///etc/passwd", "https://\u00e4/",
           "http://localhost.example.net/", "https://a\\b/", "//a/b", "")  # fmt: skip
    assert all(map(is_address, good)) and not any(map(is_address, bad))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"issuer": "http://keycloak:8080/realms/x"}, "https"),
        ({"issuer": "login.example.org"}, "address"),
        ({"issuer": "https://user@login.example.org"}, "address"),
        ({"trust_email": True}, "allowed_domains"),
        ({"scopes": ["email"]}, "openid"),
        ({"algorithms": ["HS256"]}, "RS256"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {"x": "root"}}, "admin"),
        ({"client_id": ""}, "at least 1"),
        ({"secret": "x"}, "not permitted"),
        ({"redirect_uri": "/callback"}, "https"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        OidcSettings.model_validate(
            {"issuer": "https://login.example.org", "client_id": "x", **more}
        )


def test_issuer_and_client_switch_the_plugin_on(tmp_path: Any) -> None:
    """Section 9: the address switches a plugin on; a part of it says what is missing."""
    env = {"ITDESK_PLUGINS__OIDC__ISSUER": "https://login.example.org"}
    assert "oidc" not in load(state_dir=tmp_path, environ=env).enabled_plugins()
    env["ITDESK_PLUGINS__OIDC__CLIENT_ID"] = "desk"
    assert "oidc" in load(state_dir=tmp_path, environ=env).enabled_plugins()
