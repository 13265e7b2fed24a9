"""What a single value of the configuration must look like; no message quotes the value."""

import re
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from itdesk.frozen import frozen

PEM_MARK: Final = "-----BEGIN"
_DRIVERS: Final = ("", "asyncpg", "psycopg", "psycopg2")


@frozen
class Rate:
    """So many requests in each period."""

    count: int
    period: str

    @property
    def seconds(self) -> int:
        """Return the length of the period."""
        return {"second": 1, "minute": 60, "hour": 3600, "day": 86400}[self.period]

    def __str__(self) -> str:
        return f"{self.count}/{self.period}"


def _rate(value: object) -> Rate:
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"(\d{1,9})/(second|minute|hour|day)", str(value).strip())
    if match is None or int(match[1]) < 1:
        raise ValueError('must read like "120/minute" (second, minute, hour or day)')
    return Rate(int(match[1]), match[2])


def _environment(value: object) -> str:
    text = str(value).strip().lower()
    return {"prod": "production", "dev": "development"}.get(text, text)


def _log_level(value: object) -> str:
    text = str(value).strip().upper()
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(text, text)


def _http_url(value: str) -> str:
    text = value.strip().rstrip("/")
    try:
        parts = urlsplit(text)
        readable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # its message quotes the address
        readable = False
    if not readable or parts.query or parts.fragment:
        raise ValueError("must be an address such as https://desk.example.org")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password")
    return text


def _origin(value: str) -> str:
    if value.strip() == "*":
        raise ValueError("is not allowed, because cookies are sent along: list each origin")
    text = _http_url(value)
    if urlsplit(text).path:
        raise ValueError("must be scheme, host and port only, such as https://desk.example.org")
    return text.lower()


def _cookie(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", value):
        raise ValueError("must be 1 to 64 letters, digits or -_.")
    return value


def _media_type(value: str) -> str:
    text = value.strip().lower()
    if text != "*" and not re.fullmatch(r"[a-z0-9.+-]+/([a-z0-9.+-]+|\*)", text):
        raise ValueError('must be a type such as "image/png", "image/*" or "*"')
    return text


def _postgres_url(secret: SecretStr) -> SecretStr:
    scheme, found, rest = secret.get_secret_value().strip().partition("://")
    dialect, _, driver = scheme.lower().partition("+")
    if dialect == "sqlite":
        raise ValueError(
            "SQLite is not supported, itdesk needs PostgreSQL 15 or later:"
            " write postgresql://..., or leave it unset for the embedded PostgreSQL"
        )
    if not found or dialect not in ("postgresql", "postgres") or driver not in _DRIVERS:
        raise ValueError("must be an address such as postgresql://user:password@host:5432/name")
    try:
        parts = urlsplit(f"postgresql://{rest}")
        readable = "," in parts.netloc or parts.port != 0
    except ValueError:
        readable = False
    if not readable or "@" in parts.path + parts.fragment:
        raise ValueError("cannot be read: in a password, write / ? # @ : as %2F %3F %23 %40 %3A")
    return SecretStr(f"postgresql://{rest}")


def _signing_secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if PEM_MARK not in text:
        return secret
    # An environment file holds a PEM key on one line.
    return SecretStr(text.replace("\\n", "\n").strip() + "\n")


Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
SecondsOrOff = Annotated[int, Field(ge=0, le=31_536_000)]
Port = Annotated[int, Field(ge=0, le=65535)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Origin = Annotated[str, AfterValidator(_origin)]
CookieName = Annotated[str, AfterValidator(_cookie)]
MediaType = Annotated[str, AfterValidator(_media_type)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
RateLimit = Annotated[Rate, BeforeValidator(_rate)]
Environment = Annotated[Literal["development", "test", "production"], BeforeValidator(_environment)]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_log_level)
]
