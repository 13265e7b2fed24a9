"""How an OpenID provider is asked: its description, its keys, and a code for a token.

Hides all traffic to the provider. Every request has a deadline, every answer a greatest size, no
redirect is followed, and what comes back is JSON or nothing. Addresses come from the description
that the issuer itself publishes, and stay on TLS when the issuer is.
"""

import asyncio
import logging
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from itdesk.errors import Unavailable
from itdesk.hookspecs import SignInProblem, SignInRefused
from itdesk.runtime.clock import Clock

from .oidc_settings import LOCAL, OidcSettings

LARGEST: Final = 262_144
LONGEST_ADDRESS: Final = 2000


log = logging.getLogger("plugin.oidc")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a provider says of itself."""

    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    token_auth: str = "client_secret_basic"
    says_issuer: bool = False
    """Whether it names itself in every answer (RFC 9207)."""


@dataclass(slots=True)
class _Kept:
    """Something fetched, when, and when it was last tried to be."""

    value: Any
    at: float
    tried: float


class Client:
    """One provider on the network."""

    def __init__(self, settings: OidcSettings, known: Metadata | None = None) -> None:
        self._settings = settings
        self._known = known
        self._clock = Clock()
        self._http: ClientSession | None = None
        self._metadata: _Kept | None = None
        self._keys: _Kept | None = None
        self._asking = asyncio.Lock()
        self.problem = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Lend the client with its connections; nothing is asked yet."""
        tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._settings.ca)
        async with ClientSession(
            connector=TCPConnector(limit=20, ssl=tls),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=self._settings.request_seconds),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        ) as self._http:
            try:
                yield
            finally:
                self._http = None

    async def metadata(self, *, fresh: bool = False) -> Metadata:
        """Return what the provider says of itself, asked for once in a while."""
        if self._known is not None and not fresh:
            return self._known
        async with self._asking:
            self._metadata = await self._renewed(self._metadata, self._discover, now=fresh)
            if fresh and self.problem:
                raise Unavailable(self.problem)
            metadata: Metadata = self._metadata.value
            return metadata

    async def keys(self, metadata: Metadata, *, lacking: bool = False) -> list[dict[str, Any]]:
        """Return the keys that the provider signs with; `lacking` when one was not among them.

        A token with an unknown key has them asked for again, but not more often than every
        `keys_seconds`: such tokens cost nothing to make.
        """

        async def fetch() -> list[dict[str, Any]]:
            return await self._fetch_keys(metadata)

        async with self._asking:
            self._keys = await self._renewed(self._keys, fetch, lacking=lacking)
            keys: list[dict[str, Any]] = self._keys.value
            return keys

    async def _renewed(
        self,
        kept: _Kept | None,
        fetch: Callable[[], Awaitable[Any]],
        *,
        lacking: bool = False,
        now: bool = False,
    ) -> _Kept:
        """Return what is kept, fetched anew when it is old; while that fails, the old serves."""
        time, settings = self._clock.monotonic(), self._settings
        if kept is not None and not now:
            old = lacking or time - kept.at >= settings.metadata_seconds
            if not old or time - kept.tried < settings.keys_seconds:
                return kept
        try:
            return _Kept(await fetch(), time, time)
        except Unavailable:
            # What was true an hour ago is likelier true than that nobody may sign in.
            if kept is None:
                raise
            return _Kept(kept.value, kept.at, time)

    async def exchange(
        self, metadata: Metadata, code: str, verifier: str, redirect_uri: str
    ) -> Mapping[str, Any]:
        """Return the tokens for a code; SignInRefused when the provider does not give them."""
        status, answer = await self.redeem(metadata, code, verifier, redirect_uri)
        if status == 200:
            return answer
        error = answer.get("error")
        if error in ("invalid_client", "unauthorized_client"):
            log.error("the provider does not know this client_id and client_secret")
            raise SignInRefused(SignInProblem.UNAVAILABLE, "client_id or client_secret is wrong")
        if status in (400, 401, 403):
            raise SignInRefused(SignInProblem.CODE, "the provider does not take the code")
        raise Unavailable("The token endpoint fails.")

    async def redeem(
        self, metadata: Metadata, code: str, verifier: str, redirect_uri: str
    ) -> tuple[int, dict[str, Any]]:
        """Send a code to the token endpoint; return the status and what it says."""
        settings = self._settings
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        headers = {}
        secret = settings.client_secret.get_secret_value() if settings.client_secret else ""
        if secret and metadata.token_auth == "client_secret_basic":
            pair = f"{quote_plus(settings.client_id)}:{quote_plus(secret)}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form["client_id"] = settings.client_id
            if secret:
                form["client_secret"] = secret
        return await self._ask("POST", metadata.token_endpoint, data=form, headers=headers)

    async def _discover(self) -> Metadata:
        issuer = self._settings.issuer
        url = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
        status, found = await self._ask("GET", url)
        if status != 200:
            raise self._failed(f"{url} answers {status}: issuer is not right")
        if found.get("issuer") != issuer:
            raise self._failed(f"{url} describes another issuer: write issuer as it says")
        places = [self._address(found, name) for name in _PLACES]
        methods = found.get("token_endpoint_auth_methods_supported")
        posts = isinstance(methods, list) and "client_secret_post" in methods
        basic = not isinstance(methods, list) or "client_secret_basic" in methods
        says = found.get("authorization_response_iss_parameter_supported") is True
        auth = "client_secret_post" if posts and not basic else "client_secret_basic"
        return Metadata(places[0], places[1], places[2], auth, says)

    def _address(self, found: Mapping[str, Any], name: str) -> str:
        url = found.get(name)
        if not isinstance(url, str) or len(url) > LONGEST_ADDRESS or not is_address(url):
            raise self._failed(f"the provider's {name} is no https:// address")
        if self._settings.issuer.startswith("https:") and not url.startswith("https:"):
            raise self._failed(f"the provider's {name} is no https:// address")
        return url

    async def _fetch_keys(self, metadata: Metadata) -> list[dict[str, Any]]:
        status, found = await self._ask("GET", metadata.jwks_uri)
        keys = found.get("keys")
        if status != 200 or not isinstance(keys, list):
            raise self._failed(f"{metadata.jwks_uri} answers {status} and no list of keys")
        return [key for key in keys[:100] if isinstance(key, dict)]

    async def _ask(self, method: str, url: str, **how: Any) -> tuple[int, dict[str, Any]]:
        """Send a request; return the status and the JSON object, or raise Unavailable."""
        if self._http is None:
            raise Unavailable("The identity provider's client is not open.")
        where = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
        proxy = self._settings.proxy
        try:
            async with (
                asyncio.timeout(self._settings.request_seconds),
                self._http.request(method, url, allow_redirects=False, proxy=proxy, **how) as got,
            ):
                raw = bytearray()
                async for chunk in got.content.iter_any():
                    raw += chunk
                    if len(raw) > LARGEST:
                        got.close()
                        raise self._failed(f"{where} answers with more than {LARGEST} bytes")
                status = got.status
        except (ClientError, OSError, TimeoutError, ValueError) as exc:
            kind = type(exc).__name__
            raise self._failed(f"{where} cannot be reached or does not answer ({kind})") from exc
        if status in range(300, 400):
            raise self._failed(f"{where} redirects, which is not followed")
        try:
            found = orjson.loads(raw)
        except orjson.JSONDecodeError as exc:
            raise self._failed(f"{where} answers {status} and no JSON") from exc
        if not isinstance(found, dict):
            raise self._failed(f"{where} answers {status} and no JSON object")
        self.problem = ""
        return status, found

    def _failed(self, problem: str) -> Unavailable:
        self.problem = problem
        log.warning("identity provider failed", extra={"problem": problem})
        return Unavailable(problem)


_PLACES: Final = ("authorization_endpoint", "token_endpoint", "jwks_uri")


def is_address(url: str) -> bool:
    """Tell whether a browser or client may be sent there: TLS, or this very machine."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or port == 0 or "@" in parts.netloc or parts.fragment or not url.isascii():
        return False
    if not url.isprintable() or any(c in url for c in ' "<>\\^`{|}'):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and host in LOCAL)
