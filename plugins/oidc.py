"""People sign in by any OpenID Connect provider: Keycloak, Entra ID, Authentik, Okta ...

The authorization code flow with PKCE. The provider is described by its issuer address alone.
Whoever it vouches for is handed to the desk, which links and opens accounts.
"""

import asyncio
import logging
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, Final
from urllib.parse import urlencode

from itdesk.errors import Unavailable
from itdesk.hookspecs import (
    Health,
    Identity,
    IdentityProvider,
    SignInAttempt,
    SignInProblem,
    SignInRefused,
    hookimpl,
)
from itdesk.model import Role
from itdesk.runtime.clock import Clock

from . import oidc_token
from .oidc_client import Client, Metadata
from .oidc_settings import OidcSettings

LONGEST_CODE: Final = 4096
_ROLES: Final = tuple(Role)  # from the least to the greatest

log = logging.getLogger("plugin.oidc")


class Plugin:
    """Offers one OpenID provider to sign in by."""

    name, itdesk_api, Settings = "oidc", 1, OidcSettings

    def __init__(self, settings: OidcSettings) -> None:
        self._provider = OpenId(self.name, settings)

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self) -> AsyncIterator[None]:
        async with self._provider.client.opened():
            yield

    @hookimpl
    def itdesk_identity(self) -> IdentityProvider:
        return self._provider

    @hookimpl
    def itdesk_health(self) -> Health:
        return self._provider.health()


class OpenId:
    """One OpenID provider; `known` spares it the question who it is, `hosted` is Google's way."""

    def __init__(
        self,
        name: str,
        settings: OidcSettings,
        *,
        known: Metadata | None = None,
        hosted: bool = False,
    ) -> None:
        self.name = name
        self.label = settings.label
        self.redirect_uri = settings.redirect_uri
        self.creates_accounts = settings.create_accounts
        self.client = Client(settings, known)
        self._settings = settings
        self._hosted = hosted
        self._clock = Clock()

    def health(self) -> Health:
        """Return how the last question to the provider went."""
        return Health(not self.client.problem, self.client.problem)

    async def begin(self, attempt: SignInAttempt) -> str:
        """Return where the browser goes to sign in."""
        settings = self._settings
        async with self._deadline():
            metadata = await self.client.metadata()
        asked = {
            "response_type": "code",
            "client_id": settings.client_id,
            "redirect_uri": attempt.redirect_uri,
            "scope": " ".join(settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": _challenge(attempt.verifier),
            "code_challenge_method": "S256",
        }
        if settings.prompt is not None:
            asked["prompt"] = settings.prompt
        if self._hosted and len(settings.allowed_domains) == 1:
            asked["hd"] = settings.allowed_domains[0]
        place = metadata.authorization_endpoint
        return f"{place}{'&' if '?' in place else '?'}{urlencode(asked)}"

    async def finish(self, attempt: SignInAttempt, answer: Mapping[str, str]) -> Identity:
        """Return who came back, once everything about the answer is believed."""
        async with self._deadline():
            metadata = await self.client.metadata()
            code = _code_of(answer, self._settings.issuer, says_issuer=metadata.says_issuer)
            tokens = await self.client.exchange(
                metadata, code, attempt.verifier, attempt.redirect_uri
            )
            claims = await self._claims(metadata, tokens, attempt.nonce)
        return self._identity(claims)

    async def check(self) -> None:
        """Ask for description and keys, and offer a code that is none; raise what is wrong."""
        async with self._deadline():
            metadata = await self.client.metadata(fresh=True)
            keys = await self.client.keys(metadata)
            headers = [{"kid": k.get("kid"), "alg": a} for k in keys for a in self._algorithms]
            if not any(oidc_token.key_for(header, keys) for header in headers):
                allowed = ", ".join(self._algorithms)
                raise Unavailable(f"{metadata.jwks_uri} has no key for {allowed}: see algorithms")
            redirect_uri = self.redirect_uri or f"https://itdesk.invalid/api/auth/{self.name}"
            _, said = await self.client.redeem(metadata, "none", "x" * 43, redirect_uri)
        if said.get("error") in ("invalid_client", "unauthorized_client"):
            raise Unavailable("the provider refuses client_id and client_secret: correct them")

    @property
    def _algorithms(self) -> tuple[str, ...]:
        return self._settings.algorithms

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._settings.seconds):
                yield
        except TimeoutError as exc:
            raise Unavailable("the provider takes too long") from exc

    async def _claims(
        self, metadata: Metadata, tokens: Mapping[str, Any], nonce: str
    ) -> Mapping[str, Any]:
        token = tokens.get("id_token")
        if not isinstance(token, str):
            raise SignInRefused(SignInProblem.TOKEN, "the provider sends no ID token")
        header = oidc_token.header_of(token, self._algorithms)
        key = oidc_token.key_for(header, await self.client.keys(metadata))
        if key is None:
            key = oidc_token.key_for(header, await self.client.keys(metadata, lacking=True))
        if key is None:
            raise SignInRefused(SignInProblem.TOKEN, "ID token: its key is not the provider's")
        expected = oidc_token.Expected(
            issuer=self._settings.issuer,
            client_id=self._settings.client_id,
            nonce=nonce,
            algorithms=self._algorithms,
            now=self._clock.now().timestamp(),
            skew=self._settings.clock_skew_seconds,
        )
        claims = oidc_token.claims_of(token, header, key, expected)
        oidc_token.check_access_token(claims, header["alg"], tokens.get("access_token"))
        return claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        settings = self._settings
        email = _claim(claims, settings.email_claim)
        verified = settings.trust_email or _claim(claims, settings.email_verified_claim) is True
        if not isinstance(email, str) or not verified:
            raise SignInRefused(SignInProblem.EMAIL, "the provider does not vouch for the address")
        self._require_domain(email, claims)
        name, picture = (_claim(claims, c) for c in (settings.name_claim, settings.picture_claim))
        return Identity(
            issuer=settings.issuer,
            subject=claims["sub"],
            email=email,
            email_verified=verified,
            name=name if isinstance(name, str) else "",
            picture=picture if isinstance(picture, str) else None,
            role=self._role(_claim(claims, settings.roles_claim)),
        )

    def _require_domain(self, email: str, claims: Mapping[str, Any]) -> None:
        allowed = self._settings.allowed_domains
        if not allowed:
            return
        domain = email.rpartition("@")[2].lower()
        # Anybody can open a private account at Google with an address of your domain.
        hosted = not self._hosted or claims.get("hd") == domain or domain == "gmail.com"
        if domain not in allowed or not hosted:
            raise SignInRefused(SignInProblem.DOMAIN, "the address is of no allowed domain")

    def _role(self, said: Any) -> Role | None:
        """Return the greatest role that the provider's words give, or None: it gives none."""
        if not self._settings.roles:
            return None
        words = said if isinstance(said, list) else [said]
        given = [
            self._settings.roles[w]
            for w in words
            if isinstance(w, str) and w in self._settings.roles
        ]
        return max(given, key=_ROLES.index, default=Role.USER)


def _code_of(answer: Mapping[str, str], issuer: str, *, says_issuer: bool) -> str:
    """Return the code that a browser brought back from this very issuer."""
    said = answer.get("iss")
    if said != issuer and (said is not None or says_issuer):
        raise SignInRefused(SignInProblem.ANSWER, "the answer is another issuer's")
    if "error" in answer:
        if answer["error"] in ("server_error", "temporarily_unavailable"):
            raise SignInRefused(SignInProblem.UNAVAILABLE, "the provider fails")
        raise SignInRefused(SignInProblem.DENIED, "the provider signed nobody in")
    code = answer.get("code", "")
    if not 0 < len(code) <= LONGEST_CODE:
        raise SignInRefused(SignInProblem.CODE, "there is no code")
    return code


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return a claim by its name, or by its path: `realm_access.roles`."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _challenge(verifier: str) -> str:
    return urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
