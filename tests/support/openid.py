"""An OpenID provider on a socket: honest as the specifications say, and hostile when told to be.

It runs in a thread of its own, so that daemons and tests of any event loop can talk to it. It
checks what an honest provider checks: client, redirect address, PKCE, and that a code is used
once. `claims`, `header`, `sign` and `spoil` make it lie.
"""

import asyncio
import hashlib
import hmac
import threading
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit
from uuid import uuid4

import orjson
from aiohttp import ClientSession, CookieJar, web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.daemon import Answer

MISSING = object()
CLIENT_SECRET = "a client's secret & 32 bytes/long"

_RSA = rsa.generate_private_key(65537, 2048)
_FOREIGN = rsa.generate_private_key(65537, 2048)
_WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
_EC = ec.generate_private_key(ec.SECP256R1())
_ED = ed25519.Ed25519PrivateKey.generate()


def now() -> int:
    """Return the seconds since 1970 that a token tells times in."""
    return int(time.time())


Spoiler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def b64(raw: bytes) -> str:
    """Return bytes as JOSE writes them."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


def _rsa_jwk(key: rsa.RSAPrivateKey, kid: str, **more: Any) -> dict[str, Any]:
    public = key.public_key().public_numbers()
    return {"kty": "RSA", "kid": kid, "n": _number(public.n), "e": _number(public.e), **more}


def _ec_jwk() -> dict[str, Any]:
    public = _EC.public_key().public_numbers()
    x, y = b64(public.x.to_bytes(32)), b64(public.y.to_bytes(32))
    return {"kty": "EC", "kid": "ec", "crv": "P-256", "x": x, "y": y}


def _ed_jwk() -> dict[str, Any]:
    raw = _ED.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return {"kty": "OKP", "kid": "ed", "crv": "Ed25519", "x": b64(raw)}


def rs256(signed: bytes, key: rsa.RSAPrivateKey = _RSA) -> bytes:
    """Sign as RS256."""
    return key.sign(signed, padding.PKCS1v15(), hashes.SHA256())


def es256(signed: bytes) -> bytes:
    """Sign as ES256."""
    r, s = decode_dss_signature(_EC.sign(signed, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)


def eddsa(signed: bytes) -> bytes:
    """Sign as EdDSA."""
    return _ED.sign(signed)


def foreign(signed: bytes) -> bytes:
    """Sign as RS256 by a key that the provider does not have."""
    return rs256(signed, _FOREIGN)


def weak(signed: bytes) -> bytes:
    """Sign as RS256 by a key of 1024 bits."""
    return rs256(signed, _WEAK)


def confused(signed: bytes) -> bytes:
    """Sign as HS256 with the provider's public key as the secret, which everybody knows."""
    form = PublicFormat.SubjectPublicKeyInfo
    return hmac.digest(_RSA.public_key().public_bytes(Encoding.PEM, form), signed, "sha256")


def by_secret(signed: bytes) -> bytes:
    """Sign as HS256 with the client's secret."""
    return hmac.digest(CLIENT_SECRET.encode(), signed, "sha256")


def unsigned(signed: bytes) -> bytes:
    """Sign not at all."""
    return b""


FOREIGN_JWK = _rsa_jwk(_FOREIGN, "own")


def default_keys() -> list[dict[str, Any]]:
    """Return the keys that an honest provider publishes."""
    return [
        _rsa_jwk(_RSA, "rsa", use="sig", alg="RS256"),
        _rsa_jwk(_FOREIGN, "enc", use="enc"),
        _rsa_jwk(_WEAK, "weak"),
        _ec_jwk(),
        _ed_jwk(),
        {"kty": "oct", "kid": "oct", "k": b64(CLIENT_SECRET.encode())},
    ]


@dataclass
class _Grant:
    """A code, and what it was given for."""

    asked: Mapping[str, str]
    claims: dict[str, Any]
    used: bool = False


@dataclass
class OpenIdServer:
    """One provider; whoever comes is the person that `person` describes."""

    client_id: str = "desk-client"
    person: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[bytes], bytes] = rs256
    spoil: dict[str, Spoiler] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] = field(default_factory=default_keys)
    asked: list[str] = field(default_factory=list)
    strict: bool = True
    port: int = 0

    def __post_init__(self) -> None:
        self._grants: dict[str, _Grant] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._started = threading.Event()

    @property
    def issuer(self) -> str:
        """Its name, and where it is."""
        return f"http://127.0.0.1:{self.port}"

    def honest(self) -> None:
        """Forget every lie, and who the person is."""
        self.person = {"sub": uuid4().hex, "email": f"{uuid4().hex[:12]}@example.org",
                       "email_verified": True, "name": "A Person"}  # fmt: skip
        self.claims, self.header, self.sign = {}, {}, rs256
        self.spoil, self.metadata, self.answer = {}, {}, {}
        self.keys, self.strict = default_keys(), True
        self.asked.clear()

    def token(self, nonce: str, **more: Any) -> str:
        """Return an ID token, with the lies of now."""
        made = now()
        claims = {"iss": self.issuer, "aud": self.client_id, "iat": made, "exp": made + 300,
                  "nonce": nonce, **self.person, **more, **self.claims}  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not MISSING}
        header = {"alg": "RS256", "kid": "rsa", "typ": "JWT", **self.header}
        header = {name: value for name, value in header.items() if value is not MISSING}
        signed = f"{b64(orjson.dumps(header))}.{b64(orjson.dumps(claims))}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"

    def consent(self, location: str) -> str:
        """Return where the browser is sent back to after its person agreed."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert asked["client_id"] == self.client_id and asked["response_type"] == "code"
        assert "openid" in asked["scope"].split() and asked["code_challenge_method"] == "S256"
        code = uuid4().hex
        self._grants[code] = _Grant(asked, dict(self.person))
        answer = {"code": code, "state": asked["state"], **self.answer}
        answer = {name: value for name, value in answer.items() if value is not MISSING}
        return f"{asked['redirect_uri']}?{urlencode(answer)}"

    # --- endpoints --------------------------------------------------------------------------

    async def _discovery(self, request: web.Request) -> web.Response:
        said = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "response_types_supported": ["code"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256", "EdDSA"],
            **self.metadata,
        }
        return web.json_response({k: v for k, v in said.items() if v is not MISSING})

    async def _jwks(self, request: web.Request) -> web.Response:
        return web.json_response({"keys": self.keys})

    async def _token(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        if not self._knows(request, form):
            return web.json_response({"error": "invalid_client"}, status=401)
        grant = self._grants.get(str(form.get("code")))
        if grant is None or (grant.used and self.strict):
            return web.json_response({"error": "invalid_grant"}, status=400)
        grant.used = True
        challenge = b64(hashlib.sha256(str(form.get("code_verifier")).encode()).digest())
        if challenge != grant.asked["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        if form.get("redirect_uri") != grant.asked["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        access = f"access-{uuid4().hex}"
        half = hashlib.sha256(access.encode()).digest()[:16]
        token = self.token(grant.asked["nonce"], at_hash=b64(half))
        return web.json_response(
            {"access_token": access, "token_type": "Bearer", "expires_in": 300, "id_token": token}
        )

    def _knows(self, request: web.Request, form: Mapping[str, Any]) -> bool:
        kind, _, word = request.headers.get("Authorization", "").partition(" ")
        if kind == "Basic":
            name, _, secret = b64decode(word).decode().partition(":")
            given = (unquote_plus(name), unquote_plus(secret))
        else:
            given = (str(form.get("client_id")), str(form.get("client_secret")))
        return given == (self.client_id, CLIENT_SECRET)

    # --- running ----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        self.honest()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        for method, path, handler in (
            ("GET", "/.well-known/openid-configuration", self._discovery),
            ("GET", "/jwks", self._jwks),
            ("POST", "/token", self._token),
        ):
            app.router.add_route(method, path, self._spoiled(path.split("/")[-1], handler))
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        return runner

    def _spoiled(self, name: str, handler: Any) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked.append(name)
            spoiler = self.spoil.get(name)
            found: web.StreamResponse = await (spoiler or handler)(request)
            return found

        return answer


# --- answers that no honest provider gives -------------------------------------------------------


async def stalls(request: web.Request) -> web.StreamResponse:
    """Say nothing for a long time."""
    await asyncio.sleep(30)
    return web.Response()


async def trickles(request: web.Request) -> web.StreamResponse:
    """Send a byte now and then, so that something always arrives."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for _ in range(300):
        await response.write(b" ")
        await asyncio.sleep(0.1)
    return response


async def floods(request: web.Request) -> web.StreamResponse:
    """Send JSON without end."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"keys": [')
    while True:
        await response.write(b"1," * 50_000)


async def html(request: web.Request) -> web.StreamResponse:
    """Answer as a captive portal does."""
    return web.Response(text="<html>Sign in to the WiFi</html>", content_type="text/html")


async def breaks(request: web.Request) -> web.StreamResponse:
    """Fail."""
    return web.Response(status=500, text="oops")


async def moves(request: web.Request) -> web.StreamResponse:
    """Send the client somewhere else."""
    return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/elsewhere"})


async def nested(request: web.Request) -> web.StreamResponse:
    """Send JSON deeper than readers go."""
    return web.Response(body=b"[" * 100_000, content_type="application/json")


async def a_list(request: web.Request) -> web.StreamResponse:
    """Send JSON that is no object."""
    return web.json_response([1, 2, 3])


async def nothing(request: web.Request) -> web.StreamResponse:
    """Send an object without anything in it."""
    return web.json_response({})


async def odd_types(request: web.Request) -> web.StreamResponse:
    """Send the right names with values of no use."""
    said = {"id_token": {"a": 1}, "keys": {"a": 1}, "issuer": 7, "access_token": []}
    return web.json_response(said)


async def cut(request: web.Request) -> web.StreamResponse:
    """Hang up in the middle of the answer."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"id_')
    assert request.transport is not None
    request.transport.abort()
    return response


# --- browsers ------------------------------------------------------------------------------------


class Browser:
    """Somebody's browser: keeps cookies, follows no redirect by itself."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.session = ClientSession(cookie_jar=CookieJar(unsafe=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.session.close()

    async def get(self, path: str, **how: Any) -> Answer:
        """GET an address or a path of the desk."""
        url = path if path.startswith("http") else f"{self.base}{path}"
        async with self.session.get(url, allow_redirects=False, **how) as response:
            return Answer(response.status, response.headers, await response.read())

    async def start(self, provider: str = "google", **query: str) -> str:
        """Begin to sign in; return where the browser is sent."""
        path = f"/api/v1/auth/{provider}/start"
        answer = await self.get(f"{path}?{urlencode(query)}" if query else path)
        assert answer.status == 302, answer.raw
        return answer.headers["Location"]

    async def sign_in(self, server: OpenIdServer, provider: str = "google", **query: str) -> Answer:
        """Go to the provider and come back; return the desk's last answer."""
        return await self.get(server.consent(await self.start(provider, **query)))

    @property
    def cookies(self) -> dict[str, str]:
        """Return the cookies that it has now."""
        return {cookie.key: cookie.value for cookie in self.session.cookie_jar}


def unpacked(token: str) -> Any:
    """Return what a token says, unchecked."""
    part = token.split(".")[1]
    return orjson.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
