"""The options of [plugins.oidc] and [plugins.google], and what each refuses."""

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from itdesk.model import Role

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "ES256", "ES384", "EdDSA"]


def _words(value: Any) -> Any:
    """Read what the environment can only say as one text, such as `openid,email`."""
    return (
        [part for part in value.replace(",", " ").split() if part]
        if isinstance(value, str)
        else value
    )


def _issuer(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if not host or port == 0 or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be an address such as https://login.example.org/realms/desk")
    if parts.scheme != "https" and (parts.scheme, host in LOCAL) != ("http", True):
        raise ValueError("must begin with https:// (http:// is for this very machine only)")
    return value


def _redirect(value: str | None) -> str | None:
    if not value:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment:
        raise ValueError("must be an address such as https://desk.example.org/api/auth/...")
    return value


def _empty(value: Any) -> Any:
    return None if value == "" else value


def _domains(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(domain.strip().lower().lstrip("@") for domain in value)


LOCAL = ("localhost", "127.0.0.1", "::1")
Issuer = Annotated[str, AfterValidator(_issuer)]
Redirect = Annotated[str | None, AfterValidator(_redirect)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Domains = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_domains)]
Claim = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr | None, BeforeValidator(_empty)]
Text = Annotated[str | None, BeforeValidator(_empty)]


class OidcSettings(BaseModel):
    """The section [plugins.oidc]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    issuer: Issuer = Field(description="exactly as the provider's own description says it")
    client_id: str = Field(min_length=1)
    client_secret: Secret = Field(None, description="without one the desk is a public client")
    redirect_uri: Redirect = Field(None, description="unset: /api/auth/oidc/callback of this desk")
    label: str = Field("Single sign-on", min_length=1, max_length=100)
    scopes: Words = ("openid", "email", "profile")
    algorithms: Annotated[tuple[Algorithm, ...], BeforeValidator(_words)] = (
        "RS256",
        "ES256",
        "EdDSA",
    )
    email_claim: Claim = "email"
    email_verified_claim: Claim = "email_verified"
    name_claim: Claim = "name"
    picture_claim: Claim = "picture"
    trust_email: bool = Field(
        False, description="take every address for verified; needs allowed_domains"
    )
    allowed_domains: Domains = Field((), description="empty: addresses of every domain")
    create_accounts: bool | None = Field(
        None, description="open accounts for new people; unset: as auth.allow_registration"
    )
    roles_claim: Claim = Field("groups", description="a.b looks for b inside of a")
    roles: dict[str, Role] = Field(
        default_factory=dict, description="which role a value of roles_claim gives; empty: none"
    )
    prompt: Literal["login", "consent", "select_account"] | None = None
    seconds: float = Field(10.0, gt=0, description="how long each step may take in all")
    request_seconds: float = Field(5.0, gt=0, description="how long one answer may take")
    metadata_seconds: float = Field(3600.0, gt=0, description="how long description and keys last")
    keys_seconds: float = Field(30.0, gt=0, description="least pause between looks for new keys")
    clock_skew_seconds: float = Field(60.0, ge=0, le=300)
    proxy: Text = Field(None, description="HTTP proxy on the way to the provider")
    ca: Path | None = Field(None, description="PEM file of the authorities to trust instead")

    @model_validator(mode="after")
    def _sound(self) -> "OidcSettings":
        if "openid" not in self.scopes:
            raise ValueError("scopes must contain openid")
        if not self.algorithms:
            raise ValueError("algorithms must name at least one")
        if self.trust_email and not self.allowed_domains:
            raise ValueError("trust_email needs allowed_domains: name those of your own people")
        return self


class GoogleSettings(BaseModel):
    """The section [plugins.google]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    client_id: str = Field(min_length=1)
    client_secret: Secret = None
    redirect_uri: Redirect = Field(None, description="unset: /api/auth/google/callback of the desk")
    issuer_base: Annotated[Text, AfterValidator(lambda v: v and _issuer(v))] = Field(
        None, description="another issuer in the place of Google, for tests"
    )
    label: str = Field("Google", min_length=1, max_length=100)
    allowed_domains: Domains = Field((), description="Workspace domains; empty: everybody")
    create_accounts: bool | None = None
    seconds: float = Field(10.0, gt=0)
    request_seconds: float = Field(5.0, gt=0)
    metadata_seconds: float = Field(3600.0, gt=0)
    keys_seconds: float = Field(30.0, gt=0)
    clock_skew_seconds: float = Field(60.0, ge=0, le=300)
    proxy: Text = None
    ca: Path | None = None
