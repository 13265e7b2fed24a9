"""What is refused or warned of although each option by itself is good."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from itdesk.config.fields import PEM_MARK
from itdesk.config.layers import Problem
from itdesk.config.model import Auth, Server, Settings, dotted
from itdesk.config.names import near_misses
from itdesk.config.secrecy import secrets_of
from itdesk.frozen import frozen
from itdesk.runtime.failpoints import POINTS

_SAMPLE_SECRETS: Final = frozenset(
    "*** admin default demo dev development itdesk minioadmin password postgres root secret test"
    " token".split()
)
_SAMPLE_MARKS: Final = tuple(
    "changeme changethis example insecure placeholder replaceme replacethis secretkey supersecret"
    " yourjwt yoursecret yourtoken".split()
)

# Those that the operator makes up; others issue the rest, short as they may be.
_LEAST_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {"auth.jwt_secret": 32, "metrics.token": 16, "plugins.jira.webhook_secret": 16}
)

Finding = tuple[str, str]


@frozen
class Report:
    """What `config check` found without asking anybody else."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    settings: Settings

    @property
    def ok(self) -> bool:
        """Tell whether the configuration can be used as it is."""
        return not self.problems


def problems_of(settings: Settings) -> Iterator[Finding]:
    """Yield what keeps the daemon from starting, option by option."""
    server, database, storage = settings.server, settings.database, settings.storage
    plugins = settings.enabled_plugins()
    if database.pool_min > database.pool_max:
        yield "database.pool_min", f"is above database.pool_max ({database.pool_max})"
    if (server.tls_cert is None) != (server.tls_key is None):
        missing, given = ("key", "cert") if server.tls_key is None else ("cert", "key")
        yield f"server.tls_{missing}", f"is needed with server.tls_{given}"
    if settings.auth.cookie_name == settings.auth.refresh_cookie_name:
        yield "auth.refresh_cookie_name", "must differ from auth.cookie_name"
    if storage.backend == "s3" and "s3" not in plugins:
        yield "storage.backend", "is s3, but [plugins.s3] has no endpoint and bucket"
    if storage.backend == "local" and "filesystem" not in plugins:
        yield "plugins.filesystem.enabled", "must be true, because storage.backend is local"
    s3 = settings.plugins.get("s3", {})
    if s3.get("endpoint") and not s3.get("bucket") and "s3" not in plugins:
        yield "plugins.s3.bucket", "is needed with plugins.s3.endpoint"
    for section, plugin in (("mail", settings.mail.plugin), ("ai", settings.ai.plugin)):
        if plugin and plugin not in plugins:
            yield f"{section}.plugin", "names a plugin that is not configured, or is off"
    if settings.ai.auto_apply and settings.ai.enrich is False:
        yield "ai.auto_apply", "needs new tickets to be looked at: take ai.enrich = false away"
    if settings.failpoints and settings.production:
        yield "ITDESK_FAILPOINTS", "is for development and tests only"
    for name in sorted(settings.failpoints - POINTS):
        yield "ITDESK_FAILPOINTS", f"{name} is unknown; there are {', '.join(sorted(POINTS))}"
    yield from _signing_problems(settings.auth)
    if settings.production:
        yield from _production_problems(settings)


def _signing_problems(auth: Auth) -> Iterator[Finding]:
    secret = auth.jwt_secret.get_secret_value() if auth.jwt_secret else ""
    if PEM_MARK in secret:
        if auth.jwt_key_file:
            yield "auth.jwt_secret", "and auth.jwt_key_file are both signing keys; keep one"
        elif problem := _key_problem(secret, auth.jwt_algorithm):
            yield "auth.jwt_secret", problem
    elif auth.jwt_algorithm == "HS256":
        if not secret:
            yield "auth.jwt_secret", "is needed with HS256: `openssl rand -base64 48` makes one"
        elif _size(secret) < 32:
            yield "auth.jwt_secret", "has less than 32 bytes: `openssl rand -base64 48` makes one"


def _key_problem(pem: str, algorithm: str) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode("utf-8", "surrogateescape"), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return "is no PEM private key without a passphrase"
    if isinstance(key, rsa.RSAPrivateKey):
        fitting = "RS256"
        if key.key_size < 2048:
            return f"holds an RSA key of {key.key_size} bits; 2048 are the least"
    elif isinstance(key, ed25519.Ed25519PrivateKey):
        fitting = "EdDSA"
    else:
        return "holds a key that is neither RSA nor Ed25519"
    if algorithm == fitting:
        return None
    return f'holds a key for {fitting}; set auth.jwt_algorithm = "{fitting}"'


def _size(secret: str) -> int:
    return len(secret.encode("utf-8", "surrogateescape"))


def _is_sample(secret: str) -> bool:
    plain = re.sub(r"[^a-z0-9*]", "", secret.lower())
    return plain in _SAMPLE_SECRETS or any(mark in plain for mark in _SAMPLE_MARKS)


def _production_problems(settings: Settings) -> Iterator[Finding]:
    if settings.embedded:
        yield (
            "database.url",
            "is not set; the embedded PostgreSQL is not for production: set DATABASE_URL",
        )
    if settings.auth.bcrypt_cost < 10:
        yield "auth.bcrypt_cost", "must be at least 10 in production"
    for key, secret in secrets_of(settings):
        option = dotted(key)
        if PEM_MARK in secret or option == "database.url":
            continue
        least = _LEAST_BYTES.get(option)
        if _is_sample(secret) or (least and len(set(secret)) < 5):
            yield option, "is easily guessed: put a random one, `openssl rand -base64 48` makes it"
        elif least and _size(secret) < least:
            text = f"has less than {least} bytes: `openssl rand -base64 48` makes a good one"
            yield option, text


def warnings_of(settings: Settings) -> Iterator[str]:
    """Yield what the daemon starts with all the same."""
    auth, server = settings.auth, settings.server
    plugins = settings.enabled_plugins()
    if auth.jwt_secret and auth.jwt_algorithm != "HS256":
        if PEM_MARK not in auth.jwt_secret.get_secret_value():
            yield (
                f"auth.jwt_secret is no PEM key and {auth.jwt_algorithm} does not use it;"
                ' auth.jwt_algorithm = "HS256" would'
            )
    if "jira" in plugins and not settings.plugins["jira"].get("webhook_secret"):
        yield (
            "plugins.jira.webhook_secret is not set: Jira and n8n are heard only from this"
            " machine or with an agent's token"
        )
    if "*" in settings.storage.allowed_types:
        yield "storage.allowed_types accepts every type, programs and scripts included"
    if not settings.production:
        return
    if settings.scanner.enabled and "clamav" not in plugins:
        yield "plugins.clamav is off: yara rules alone find only known samples (CLAMAV_HOST)"
    if server.frontend_base_url == Server().frontend_base_url:
        yield f"server.frontend_base_url: links in mails lead to {server.frontend_base_url}"
    password = urlsplit(settings.database.dsn or "").password
    if password and _is_sample(unquote(password)):
        yield "database.url has a known sample as its password"


def check(settings: Settings, environ: Mapping[str, str]) -> Report:
    """Return what `config check` holds against settings with which the daemon would start."""
    found: list[Problem] = []
    warnings = [*settings.warnings, *near_misses(environ)]
    if settings.embedded and not settings.production:
        where = f"`itdesk serve` would use its own PostgreSQL in {settings.state_dir}"
        if settings.config_path is None:
            text = f"is not set, neither by DATABASE_URL nor by a configuration file; {where}"
            found.append(Problem("database.url", text))
        else:
            warnings.append(f"database.url is not set; {where}")
    jira = settings.enabled_plugins().get("jira")
    if settings.production and jira is not None and not jira.get("webhook_secret"):
        text = "is needed in production: set JIRA_WEBHOOK_SECRET"
        found.append(Problem("plugins.jira.webhook_secret", text))
    files = {
        "server.tls_cert": settings.server.tls_cert,
        "server.tls_key": settings.server.tls_key,
        "auth.jwt_key_file": settings.auth.jwt_key_file,
    }
    for option, path in files.items():
        if path is not None and not path.is_file():
            found.append(Problem(option, "names a file that is not there"))
    return Report(tuple(found), tuple(warnings), settings)
