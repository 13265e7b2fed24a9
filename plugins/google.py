"""People sign in with Google: the OpenID plugin with what is known of Google filled in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from itdesk.hookspecs import Health, IdentityProvider, hookimpl

from .oidc import OpenId
from .oidc_client import Metadata
from .oidc_settings import GoogleSettings, OidcSettings

ISSUER: Final = "https://accounts.google.com"
# As Google documents them: so that nobody waits for its description to be sent on his way.
KNOWN: Final = Metadata(
    "https://accounts.google.com/o/oauth2/v2/auth",
    "https://oauth2.googleapis.com/token",
    "https://www.googleapis.com/oauth2/v3/certs",
    "client_secret_post",
)


class Plugin:
    """Offers Google to sign in by."""

    name, itdesk_api, Settings = "google", 1, GoogleSettings

    def __init__(self, settings: GoogleSettings) -> None:
        known = None if settings.issuer_base else KNOWN
        options = settings.model_dump(exclude={"issuer_base"})
        issuer = settings.issuer_base or ISSUER
        openid = OidcSettings(issuer=issuer, algorithms=("RS256", "ES256"), **options)
        self._provider = OpenId(self.name, openid, known=known, hosted=True)

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
