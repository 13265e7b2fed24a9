"""Where a setting comes from, and what production refuses.

Order: flag, environment, TOML file, default. Every problem is found before the first one is told,
and none shows a value: it may be a secret. `etc/itdesk.toml` says what each option means.

Decisions kept here:
- Without configuration itdesk serves, on its own PostgreSQL; `config check` still fails naming
  `database.url` when neither the environment nor a file gives it, because whoever runs the check
  expects a configuration. A file without the option is a choice, and only a warning. In
  production the option is needed by everybody.
- A plugin is on when its section stands in the file or its address is given, off when it says
  `enabled = false` or its address is empty. Virus scanning by yara is on unless clamav is; file
  storage is on unless the backend is s3.
- Any secret may be given as `<name>_file`. A relative path of such a file is looked up in
  systemd's CREDENTIALS_DIRECTORY, or else beside the configuration file.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args, get_origin
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import ConfigError
from .runtime.failpoints import POINTS

SYSTEM_CONFIG: Final = Path("/etc/itdesk/itdesk.toml")

# Keys that every [plugins.<name>] section may have; the host reads them, not the plugin.
RESERVED_PLUGIN_KEYS: Final = frozenset({"enabled", "required", "timeout_seconds"})

ENVIRONMENT: Final[Mapping[str, str]] = MappingProxyType(
    {
        "ENV": "server.env",
        "CORS_ORIGINS": "server.cors_origins",
        "FRONTEND_BASE_URL": "server.frontend_base_url",
        "LOG_LEVEL": "log.level",
        "DATABASE_URL": "database.url",
        "JWT_SECRET_KEY": "auth.jwt_secret",
        "JWT_SECRET": "auth.jwt_secret",
        "SECRET_KEY": "auth.jwt_secret",
        "ACCESS_TOKEN_EXPIRE_MINUTES": "auth.access_token_expire_minutes",
        "REFRESH_TOKEN_EXPIRE_DAYS": "auth.refresh_token_expire_days",
        "COOKIE_NAME": "auth.cookie_name",
        "REFRESH_COOKIE_NAME": "auth.refresh_cookie_name",
        "PASSWORD_RESET_TOKEN_EXPIRE_HOURS": "auth.password_reset_token_expire_hours",
        "GOOGLE_CLIENT_ID": "plugins.google.client_id",
        "GOOGLE_CLIENT_SECRET": "plugins.google.client_secret",
        "GOOGLE_REDIRECT_URI": "plugins.google.redirect_uri",
        "SMTP_HOST": "plugins.smtp.host",
        "SMTP_PORT": "plugins.smtp.port",
        "SMTP_USER": "plugins.smtp.user",
        "SMTP_PASSWORD": "plugins.smtp.password",
        "SMTP_FROM": "plugins.smtp.from",
        "SMTP_TLS": "plugins.smtp.tls",
        "MAX_FILE_SIZE": "storage.max_file_size",
        "UPLOAD_DIR": "storage.local.upload_dir",
        "S3_ENDPOINT": "plugins.s3.endpoint",
        "S3_PUBLIC_BASE_URL": "plugins.s3.public_base_url",
        "S3_ACCESS_KEY": "plugins.s3.access_key",
        "S3_SECRET_KEY": "plugins.s3.secret_key",
        "S3_REGION": "plugins.s3.region",
        "S3_BUCKET": "plugins.s3.bucket",
        "CLAMAV_HOST": "plugins.clamav.host",
        "CLAMAV_PORT": "plugins.clamav.port",
        "JIRA_BASE_URL": "plugins.jira.base_url",
        "JIRA_EMAIL": "plugins.jira.email",
        "JIRA_API_TOKEN": "plugins.jira.api_token",
        "JIRA_PROJECT_KEY": "plugins.jira.project_key",
        "JIRA_SERVICE_DESK_ID": "plugins.jira.service_desk_id",
        "JIRA_SYNC_PAGE_SIZE": "plugins.jira.sync_page_size",
        "JIRA_WEBHOOK_SECRET": "plugins.jira.webhook_secret",
        "JIRA_KB_ENABLED": "plugins.jira.kb.enabled",
        "JIRA_KB_MAX_ISSUES": "plugins.jira.kb.max_issues",
        "JIRA_KB_MAX_COMMENTS_PER_ISSUE": "plugins.jira.kb.max_comments_per_issue",
        "JIRA_KB_TOP_MATCHES": "plugins.jira.kb.top_matches",
        "JIRA_KB_CACHE_SECONDS": "plugins.jira.kb.cache_seconds",
        "OLLAMA_BASE_URL": "plugins.ollama.base_url",
        "OLLAMA_MODEL": "plugins.ollama.model",
    }
)

# Names that older documents use, and where the option lives.
MOVED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "jira": "plugins.jira",
        "storage.s3": "plugins.s3",
        "mail.smtp": "plugins.smtp",
        "ai.ollama": "plugins.ollama",
        "auth.google": "plugins.google",
        "scanner.clamav_host": "plugins.clamav.host",
        "scanner.clamav_port": "plugins.clamav.port",
    }
)

# What switches a known plugin on: each alternative is a set of options that must all be there.
ADDRESSES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "clamav": (("host",), ("socket",)),
        "s3": (("endpoint", "bucket"),),
        "smtp": (("host",),),
        "jira": (("base_url",),),
        "ollama": (("base_url",),),
        "google": (("client_id",),),
    }
)

SAMPLE_SECRETS: Final = frozenset(
    "*** admin default demo dev development itdesk minioadmin password postgres root secret test"
    " token".split()
)
SAMPLE_MARKS: Final = tuple(
    "changeme changethis example insecure placeholder replaceme replacethis secretkey supersecret"
    " yourjwt yoursecret yourtoken".split()
)

Key = tuple[str, ...]


# --- the sections ----------------------------------------------------------------------------


def _rate(value: object) -> object:
    if isinstance(value, Rate):
        return value
    match = re.fullmatch(r"(\d{1,9})/(second|minute|hour|day)", str(value).strip())
    if match is None or int(match[1]) < 1:
        raise ValueError('must read like "120/minute" (second, minute, hour or day)')
    return Rate(int(match[1]), match[2])


@dataclass(frozen=True, slots=True)
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


def _environment(value: object) -> object:
    text = str(value).strip().lower()
    return {"prod": "production", "dev": "development"}.get(text, text)


def _log_level(value: object) -> object:
    text = str(value).strip().upper()
    return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(text, text)


def _http_url(value: str) -> str:
    text = value.strip().rstrip("/")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
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


_DRIVERS: Final = ("", "asyncpg", "psycopg", "psycopg2")


def _postgres_url(secret: SecretStr) -> SecretStr:
    scheme, found, rest = secret.get_secret_value().strip().partition("://")
    dialect, _, driver = scheme.lower().partition("+")
    if dialect == "sqlite":
        raise ValueError(
            "SQLite is not supported, itdesk needs PostgreSQL 15 or later:"
            " write postgresql://..., or leave it unset for the embedded PostgreSQL"
        )
    known = dialect in ("postgresql", "postgres") and driver in _DRIVERS
    if not found or not known:
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
    if "-----BEGIN" not in text:
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

ALLOWED_TYPES: Final = (
    "text/plain",
    "text/csv",
    "text/markdown",
    "text/xml",
    "text/x-log",
    "application/json",
    "application/xml",
    "application/pdf",
    "application/rtf",
    "image/bmp",
    "image/gif",
    "image/heic",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/webp",
    "application/msword",
    "application/vnd.ms-excel",
    "application/vnd.ms-powerpoint",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "application/vnd.oasis.opendocument.text",
    "application/vnd.oasis.opendocument.spreadsheet",
    "application/vnd.oasis.opendocument.presentation",
    "message/rfc822",
    "application/vnd.ms-outlook",
    "application/zip",
    "application/gzip",
    "application/x-tar",
    "application/x-7z-compressed",
)


class Section(BaseModel):
    """A table of the configuration file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Server(Section):
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    env: Annotated[Literal["development", "test", "production"], BeforeValidator(_environment)] = (
        "development"
    )
    cors_origins: tuple[Origin, ...] = ()
    frontend_base_url: HttpUrl = "http://localhost:3000"
    public_url: HttpUrl | None = None
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_seconds: Seconds = 20
    request_seconds: Seconds = 30
    max_body: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576


class Log(Section):
    level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_log_level)
    ] = "INFO"
    format: Literal["json", "console"] = "json"


class Database(Section):
    url: PostgresUrl | None = None
    pool_min: Annotated[int, Field(ge=1, le=1000)] = 2
    pool_max: Annotated[int, Field(ge=1, le=1000)] = 8
    acquire_seconds: Seconds = 3
    command_seconds: Seconds = 5
    connect_seconds: Seconds = 3
    migrate_on_start: bool | None = None
    migration_wait_seconds: Seconds = 120

    @property
    def dsn(self) -> str | None:
        """Return the address as asyncpg takes it; None means the embedded PostgreSQL."""
        return self.url.get_secret_value() if self.url else None


class Auth(Section):
    jwt_algorithm: Literal["RS256", "EdDSA", "HS256"] = "RS256"
    jwt_key_file: Path | None = None
    jwt_secret: SigningSecret | None = None
    access_token_expire_minutes: Annotated[int, Field(ge=1, le=1440)] = 15
    refresh_token_expire_days: Annotated[int, Field(ge=1, le=366)] = 30
    cookie_name: CookieName = "itdesk_access"
    refresh_cookie_name: CookieName = "itdesk_refresh"
    password_reset_token_expire_hours: Annotated[int, Field(ge=1, le=168)] = 2
    verification_token_expire_hours: Annotated[int, Field(ge=1, le=720)] = 24
    require_verified_email: bool | None = None
    allow_registration: bool = True
    bcrypt_cost: Annotated[int, Field(ge=4, le=16)] = 12
    password_min_length: Annotated[int, Field(ge=8, le=128)] = 8
    refresh_grace_seconds: SecondsOrOff = 10
    session_refresh_seconds: Seconds = 2


class LocalStorage(Section):
    upload_dir: Path = Path("uploads")


class Storage(Section):
    backend: Literal["local", "s3"] | None = None
    max_file_size: Annotated[int, Field(ge=1, le=5_368_709_120)] = 10_485_760
    allowed_types: tuple[MediaType, ...] = ALLOWED_TYPES
    presign_expires_seconds: Annotated[int, Field(ge=1, le=604_800)] = 900
    download_expires_seconds: Annotated[int, Field(ge=1, le=604_800)] = 60
    local: LocalStorage = LocalStorage()


class Scanner(Section):
    enabled: bool = True
    poll_seconds: Seconds = 5
    lease_seconds: Seconds = 60
    timeout_seconds: Seconds = 120
    retry_seconds: Seconds = 15
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 5
    upload_grace_seconds: Seconds = 900
    batch: Annotated[int, Field(ge=1, le=1000)] = 20
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4


class Jobs(Section):
    poll_seconds: Seconds = 5
    lease_seconds: Seconds = 30


class Scheduler(Section):
    daily_stats_seconds: SecondsOrOff = 1800
    email_seconds: SecondsOrOff = 60
    token_cleanup_seconds: SecondsOrOff = 3600
    jira_reconcile_seconds: SecondsOrOff = 0


class Mail(Section):
    plugin: str | None = None


class Ai(Section):
    plugin: str | None = None
    timeout_seconds: Seconds = 20


class Tickets(Section):
    default_project: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]{1,9}$")] = "TSK"
    first_number: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1001


class Limits(Section):
    enabled: bool = True
    default: RateLimit = Rate(120, "minute")
    auth: RateLimit = Rate(20, "minute")
    ai: RateLimit = Rate(30, "minute")


class Metrics(Section):
    token: SecretStr | None = None


class PluginHost(Section):
    directories: tuple[Path, ...] = ()


class Settings(Section):
    """Everything that can be set, as it is in effect: what was left open is decided."""

    server: Server = Server()
    log: Log = Log()
    database: Database = Database()
    auth: Auth = Auth()
    storage: Storage = Storage()
    scanner: Scanner = Scanner()
    jobs: Jobs = Jobs()
    scheduler: Scheduler = Scheduler()
    mail: Mail = Mail()
    ai: Ai = Ai()
    tickets: Tickets = Tickets()
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    plugin_host: PluginHost = PluginHost()
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict, repr=False)
    state_dir: Path = Path()
    config_path: Path | None = None
    failpoints: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()

    @property
    def embedded(self) -> bool:
        """Tell whether itdesk brings its own PostgreSQL."""
        return self.database.url is None

    @property
    def production(self) -> bool:
        """Tell whether weak secrets and development helpers are refused."""
        return self.server.env == "production"

    @property
    def jwt_key_path(self) -> Path:
        """Return where the signing key lies; unset, it is made in the state directory."""
        return self.auth.jwt_key_file or self.state_dir / "jwt-key.pem"

    def enabled_plugins(self) -> dict[str, dict[str, Any]]:
        """Return the raw section of each plugin that is on, defaults of the desk included.

        `enabled` is gone; `required` and `timeout_seconds` are there when given, for the host.
        """
        return {
            name: {key: deepcopy(value) for key, value in raw.items() if key != "enabled"}
            for name, raw in self.plugins.items()
            if raw["enabled"]
        }


def plugin_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plugin's section without the keys that are the host's."""
    return {key: value for key, value in raw.items() if key not in RESERVED_PLUGIN_KEYS}


# --- what can be set -------------------------------------------------------------------------


def _options_of(model: type[BaseModel], prefix: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _options_of(kind, (*prefix, name))
        elif prefix:
            yield (*prefix, name), info


OPTIONS: Final[Mapping[Key, FieldInfo]] = MappingProxyType(dict(_options_of(Settings)))
_TABLES: Final = frozenset(key[:size] for key in OPTIONS for size in range(1, len(key)))
_SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {
        name: info.annotation
        for name, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }
)
_SECRET_WORDS: Final = frozenset("credential key passphrase passwd password secret token".split())
_KEYS_FROM_FILES: Final = frozenset("access_key api_key secret_key signing_key".split())
_OPEN_KEYS: Final = frozenset("project_key issue_key public_key sort_key space_key".split())


def is_secret(key: Key) -> bool:
    """Tell whether an option holds a secret; in a plugin's section its name decides."""
    if key[0] != "plugins":
        return key in OPTIONS and _may_be(OPTIONS[key], SecretStr)
    name = key[-1].lower()
    if name.startswith(("max_", "min_")):
        return False
    word = name.rsplit("_", 1)[-1]
    return (word in _SECRET_WORDS or word[:-1] in _SECRET_WORDS) and name not in _OPEN_KEYS


def _may_be(info: FieldInfo, kind: type) -> bool:
    def inside(annotation: object) -> bool:
        return annotation is kind or any(inside(part) for part in get_args(annotation))

    return inside(info.annotation)


def _dotted(key: Iterable[object]) -> str:
    return ".".join(str(part) for part in key)


def _moved(key: Key) -> str | None:
    for size in range(len(key), 0, -1):
        if new := MOVED.get(_dotted(key[:size])):
            return _dotted((new, *key[size:]))
    return None


def _unknown(key: Key) -> str:
    if new := _moved(key):
        return f"is named {new} here"
    if len(key) > 1 and key[:1] not in _TABLES:
        close = difflib.get_close_matches(key[0], [*_SECTIONS, "plugins"], 1)
        return "is in an unknown section" + (f"; did you mean [{close[0]}]?" if close else "")
    elsewhere = [_dotted(option) for option in OPTIONS if option[-1] == key[-1]][:1]
    close = elsewhere or difflib.get_close_matches(_dotted(key), map(_dotted, OPTIONS), 1, 0.75)
    return "is not an option" + (f"; did you mean {close[0]}?" if close else "")


# --- collecting ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one option, and the environment variable it came from."""

    option: str
    text: str
    variable: str = ""

    def __str__(self) -> str:
        return f"{self.option}: {self.text}" + (f" (from {self.variable})" if self.variable else "")


@dataclass(frozen=True, slots=True)
class Report:
    """What `config check` found without asking anybody else."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    settings: Settings | None = None

    @property
    def ok(self) -> bool:
        """Tell whether the configuration can be used as it is."""
        return not self.problems


@dataclass(slots=True)
class _Draft:
    """The values found so far; a later layer replaces what an earlier one said."""

    credentials: Path
    values: dict[Key, object] = field(default_factory=dict)
    variables: dict[Key, str] = field(default_factory=dict)
    in_file: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, key: Iterable[object], text: str) -> None:
        """Note a problem of one option, with the variable that set it."""
        exact = tuple(str(part) for part in key)
        self.problems.append(Problem(_dotted(exact), text, self.variables.get(exact, "")))

    def add(self, layer: Mapping[Key, object], variables: Mapping[Key, str]) -> None:
        """Put a layer over those before it."""
        for key, value in layer.items():
            self.variables.pop(key, None)
            if key in variables:
                self.variables[key] = variables[key]
            target = self._secret_of(key, layer)
            if target != key:
                value = self._read(key, value)
                self.variables.pop(target, None)
                if key in variables:
                    self.variables[target] = variables[key]
                if value is None or target in layer:
                    if value is not None:
                        self.problem(key, f"and {target[-1]} are both given; keep one")
                    continue
            if self._accepts(target, value):
                self._put(target, value)

    def _put(self, key: Key, value: object) -> None:
        for other in list(self.values):
            if other[: len(key)] == key or key[: len(other)] == other:
                if other != key and value == {}:
                    return
                del self.values[other]
        self.values[key] = value

    def _secret_of(self, key: Key, layer: Mapping[Key, object]) -> Key:
        target = (*key[:-1], key[-1].removesuffix("_file"))
        if target == key or key in OPTIONS or not is_secret(target):
            return key
        if target[-1].endswith("key") and target[-1] not in _KEYS_FROM_FILES:
            return key  # the path of a TLS key, which a library reads by itself
        return target

    def _read(self, key: Key, value: object) -> str | None:
        if not isinstance(value, str) or not value:
            self.problem(key, "must be the path of a file")
            return None
        try:
            text = (self.credentials / value).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not text"
            self.problem(key, f"names a file that cannot be read: {reason}")
            return None
        if not text:
            self.problem(key, "names an empty file")
            return None
        return text

    def _accepts(self, key: Key, value: object) -> bool:
        if key in OPTIONS or (key[0] == "plugins" and len(key) > 2):
            return True
        if key[0] != "plugins" and key not in _TABLES:
            self.problem(key, _unknown(key))
        elif value != {}:
            self.problem(key, "must be a section")
        return len(key) == 2 and key[0] == "plugins" and value == {}


def find_config(config_path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file to read: the one named by flag or ITDESK_CONFIG, or else the system's."""
    if config_path is not None:
        return config_path
    if named := environ.get("ITDESK_CONFIG"):
        return Path(named)
    try:
        return SYSTEM_CONFIG if SYSTEM_CONFIG.exists() else None
    except PermissionError:
        return SYSTEM_CONFIG  # to be told, rather than to run with other settings than the daemon


def _flatten(table: Mapping[str, object], prefix: Key = ()) -> Iterator[tuple[Key, object]]:
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _read_file(draft: _Draft, path: Path) -> None:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        layer = dict(_flatten(table))
    except OSError as exc:
        draft.problem(["config"], f"cannot read {path}: {exc.strerror}")
    except UnicodeDecodeError:
        draft.problem(["config"], f"{path} is not UTF-8 text")
    except tomllib.TOMLDecodeError as exc:
        draft.problem(["config"], f"{path} is not valid TOML: {exc}")
    except RecursionError:
        draft.problem(["config"], f"{path} is nested too deeply")
    else:
        sections = table.get("plugins")
        draft.in_file.update(sections if isinstance(sections, dict) else ())
        draft.add(layer, {})


def _read_environment(draft: _Draft, environ: Mapping[str, str]) -> None:
    promised: dict[Key, object] = {}
    promised_by: dict[Key, str] = {}
    generic: dict[Key, object] = {}
    generic_by: dict[Key, str] = {}
    for name, option in ENVIRONMENT.items():
        key = tuple(option.split("."))
        _note(draft, promised, promised_by, key, name, environ.get(name))
        if is_secret(key):
            file_key = (*key[:-1], f"{key[-1]}_file")
            file_name = f"{name}_FILE"
            _note(draft, promised, promised_by, file_key, file_name, environ.get(file_name))
    for name in sorted(environ):
        # A name without "__" is not ours to judge: Kubernetes sets ITDESK_PORT for a service.
        if name.startswith("ITDESK_") and "__" in name:
            key = tuple(name.removeprefix("ITDESK_").lower().split("__"))
            if all(key):
                _note(draft, generic, generic_by, key, name, environ[name])
            else:
                draft.problems.append(Problem(name, "is not the name of an option"))
    draft.add(promised, promised_by)
    draft.add(generic, generic_by)
    if environ.get("REDIS_URL"):
        draft.warnings.append("REDIS_URL is set but not used: itdesk needs no Redis")


def _note(
    draft: _Draft,
    layer: dict[Key, object],
    variables: dict[Key, str],
    key: Key,
    name: str,
    value: str | None,
) -> None:
    if value is None or (not value.strip() and key != ("plugins", "smtp", "host")):
        return
    meant = _from_text(draft, key, name, value)
    if key in layer and layer[key] != meant:
        text = f"{variables[key]} and {name} have different values; keep one"
        draft.problems.append(Problem(_dotted(key), text))
    elif key not in layer:
        layer[key] = meant
        variables[key] = name


def _from_text(draft: _Draft, key: Key, name: str, value: str) -> object:
    if is_secret(key):
        return value
    value = value.strip()
    many = key in OPTIONS and get_origin(OPTIONS[key].annotation) is tuple
    if value[:1] in ("[", "{") and (many or key[0] == "plugins"):
        try:
            return loads(value)
        except (ValueError, RecursionError):
            if many:
                draft.problems.append(Problem(_dotted(key), "is not valid JSON", name))
                return []
    if many:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


# --- validating ------------------------------------------------------------------------------


def _nest(values: Mapping[Key, object], prefix: Key) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if key[: len(prefix)] != prefix or len(key) == len(prefix):
            continue
        node = tree
        for name in key[len(prefix) : -1]:
            node = node.setdefault(name, {})
        node[key[-1]] = deepcopy(value)
    return tree


def _sections(draft: _Draft) -> dict[str, Section]:
    for key in [key for key in draft.values if key[0] != "plugins"]:
        value, info = draft.values[key], OPTIONS[key]
        if value == "" and _may_be(info, type(None)):
            del draft.values[key]
        elif isinstance(value, bool) and info.annotation is int:
            draft.problem(key, "should be a whole number")
            del draft.values[key]
    return {name: _section(draft, name, model) for name, model in _SECTIONS.items()}


def _section(draft: _Draft, name: str, model: type[Section]) -> Section:
    try:
        return model.model_validate(_nest(draft.values, (name,)))
    except ValidationError as exc:
        for key, texts in _by_option(name, exc.errors()).items():
            draft.problem(key, "; ".join(texts))
            draft.values.pop(key, None)
    # The rest of the section still takes part in the rules that follow.
    return model.model_validate(_nest(draft.values, (name,)))


def _by_option(name: str, errors: Iterable[ErrorDetails]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for error in errors:
        loc = (name, *error["loc"])
        size = next(
            size for size in range(len(loc), 0, -1) if tuple(map(str, loc[:size])) in OPTIONS
        )
        item = [part for part in loc[size:] if isinstance(part, int)]
        where = f"item {item[0] + 1} " if item else ""
        key = tuple(str(part) for part in loc[:size])
        text = error["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
        found.setdefault(key, [])
        if where + text not in found[key]:
            found[key].append(where + text)
    return found


class _HostKeys(Section):
    """The keys of a plugin's section that the host reads."""

    enabled: bool | None = None
    required: bool = False
    timeout_seconds: Annotated[float, Field(ge=1, le=3600)] | None = None


def _plugins(draft: _Draft) -> dict[str, dict[str, Any]]:
    found = {key[1] for key in draft.values if key[0] == "plugins"}
    plugins = {name: _nest(draft.values, ("plugins", name)) for name in sorted(found)}
    for name, raw in plugins.items():
        keys = {key: raw[key] for key in RESERVED_PLUGIN_KEYS if key in raw}
        try:
            host = _HostKeys.model_validate(keys)
        except ValidationError as exc:
            for error in exc.errors():
                text = error["msg"].replace("Input should", "should", 1)
                draft.problem(("plugins", name, *error["loc"]), text)
            host = _HostKeys()
        on = _is_on(draft, name, raw, host.enabled)
        checked = {key: getattr(host, key) for key in keys}
        plugins[name] = {"enabled": on} | raw | checked | {"enabled": on}
    return plugins


def _is_on(draft: _Draft, name: str, raw: Mapping[str, Any], enabled: bool | None) -> bool:
    if enabled is False:
        return False
    ways = ADDRESSES.get(name)
    if ways is None or any(all(raw.get(option) for option in way) for way in ways):
        return True
    named = {option for way in ways for option in way}
    if any(raw.get(option) == "" for option in named):
        return False
    if enabled or (name == "clamav" and name in draft.in_file):
        return True  # clamav has a default address
    if name in draft.in_file:
        missing = " and ".join(option for option in ways[0] if not raw.get(option))
        draft.warnings.append(f"plugins.{name} is off: {missing} is not set")
    return False


def _with_defaults(
    plugins: dict[str, dict[str, Any]], storage: Storage, state_dir: Path
) -> tuple[dict[str, dict[str, Any]], Storage]:
    def on(name: str) -> bool:
        return name in plugins and bool(plugins[name]["enabled"])

    backend = storage.backend or ("s3" if on("s3") else "local")
    local = LocalStorage(upload_dir=state_dir / storage.local.upload_dir)
    plugins = dict(plugins)
    if not on("clamav"):
        plugins.setdefault("yara", {"enabled": True})
    if backend == "local":
        plugins.setdefault("filesystem", {"enabled": True})
    return plugins, storage.model_copy(update={"backend": backend, "local": local})


def _decide(settings: Settings) -> Settings:
    """Fill in what was left to itdesk."""
    on = settings.enabled_plugins()
    mail = settings.mail.plugin or ("smtp" if "smtp" in on else None)
    ai = settings.ai.plugin or ("ollama" if "ollama" in on else None)
    migrate, verified = settings.database.migrate_on_start, settings.auth.require_verified_email
    migrate = settings.embedded if migrate is None else migrate
    verified = mail is not None if verified is None else verified
    return settings.model_copy(
        update={
            "mail": settings.mail.model_copy(update={"plugin": mail}),
            "ai": settings.ai.model_copy(update={"plugin": ai}),
            "database": settings.database.model_copy(update={"migrate_on_start": migrate}),
            "auth": settings.auth.model_copy(update={"require_verified_email": verified}),
        }
    )


# --- rules over several options --------------------------------------------------------------

Finding = tuple[str, str]


def _problems_of(settings: Settings) -> Iterator[Finding]:
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
    if settings.failpoints and settings.production:
        yield "ITDESK_FAILPOINTS", "is for development and tests only"
    for name in sorted(settings.failpoints - POINTS):
        yield "ITDESK_FAILPOINTS", f"{name} is unknown; there are {', '.join(sorted(POINTS))}"
    yield from _signing_problems(settings.auth)
    if settings.production:
        yield from _production_problems(settings)


def _signing_problems(auth: Auth) -> Iterator[Finding]:
    secret = auth.jwt_secret.get_secret_value() if auth.jwt_secret else ""
    if "-----BEGIN" in secret:
        if auth.jwt_key_file:
            yield "auth.jwt_secret", "and auth.jwt_key_file are both signing keys; keep one"
        elif problem := _key_problem(secret, auth.jwt_algorithm):
            yield "auth.jwt_secret", problem
    elif auth.jwt_algorithm == "HS256":
        if not secret:
            yield "auth.jwt_secret", "is needed with HS256: `openssl rand -base64 48` makes one"
        elif len(secret.encode("utf-8", "surrogateescape")) < 32:
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


def _is_sample(secret: str) -> bool:
    plain = re.sub(r"[^a-z0-9*]", "", secret.lower())
    return plain in SAMPLE_SECRETS or any(mark in plain for mark in SAMPLE_MARKS)


def _production_problems(settings: Settings) -> Iterator[Finding]:
    if settings.embedded:
        yield (
            "database.url",
            "is not set; the embedded PostgreSQL is not for production: set DATABASE_URL",
        )
    if settings.auth.bcrypt_cost < 10:
        yield "auth.bcrypt_cost", "must be at least 10 in production"
    # Those that the operator makes up; others issue the rest, short as they may be.
    least = {"auth.jwt_secret": 32, "metrics.token": 16, "plugins.jira.webhook_secret": 16}
    for key, secret in _secrets_of(settings):
        option = _dotted(key)
        if "-----BEGIN" in secret or option == "database.url":
            continue
        if _is_sample(secret) or (option in least and len(set(secret)) < 5):
            yield option, "is easily guessed: put a random one, `openssl rand -base64 48` makes it"
        elif len(secret.encode("utf-8", "surrogateescape")) < least.get(option, 0):
            text = (
                f"has less than {least[option]} bytes: `openssl rand -base64 48` makes a good one"
            )
            yield option, text


def _warnings_of(settings: Settings) -> Iterator[str]:
    auth, server = settings.auth, settings.server
    plugins = settings.enabled_plugins()
    if auth.jwt_secret and auth.jwt_algorithm != "HS256":
        if "-----BEGIN" not in auth.jwt_secret.get_secret_value():
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


# --- what others call ------------------------------------------------------------------------


def _assemble(draft: _Draft, state_dir: Path, environ: Mapping[str, str]) -> Settings:
    sections = _sections(draft)
    storage = sections["storage"]
    assert isinstance(storage, Storage)
    plugins, sections["storage"] = _with_defaults(_plugins(draft), storage, state_dir)
    names = environ.get("ITDESK_FAILPOINTS", "").split(",")
    settings = Settings.model_validate({**sections, "plugins": plugins, "state_dir": state_dir})
    return _decide(
        settings.model_copy(
            update={"failpoints": frozenset(name.strip() for name in names if name.strip())}
        )
    )


def examine(
    *,
    config_path: Path | None = None,
    state_dir: Path,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
) -> Report:
    """Return the settings and everything that keeps the daemon from starting with them.

    `flags` maps `section.option` to a value; None means that the flag was not given. Where there
    are problems, the settings have defaults in the place of what is wrong.
    """
    path = find_config(config_path, environ)
    beside = path.parent if path else Path()
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    draft = _Draft(credentials=Path(credentials) if credentials else beside)
    if path is not None:
        _read_file(draft, path)
    _read_environment(draft, environ)
    given = {tuple(name.split(".")): value for name, value in (flags or {}).items()}
    draft.add({key: value for key, value in given.items() if value is not None}, {})
    settings = _assemble(draft, state_dir.absolute(), environ)
    wrong = {problem.option for problem in draft.problems}
    for option, text in _problems_of(settings):
        # What is wrong already, or was in a file that cannot be read, is not unset.
        if option not in wrong and "config" not in wrong:
            draft.problem(option.split("."), text)
    warnings = (*draft.warnings, *_warnings_of(settings))
    settings = settings.model_copy(update={"config_path": path, "warnings": warnings})
    return Report(tuple(draft.problems), warnings, settings)


def load(
    *,
    config_path: Path | None = None,
    state_dir: Path,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings in effect, or raise one ConfigError that lists every problem."""
    report = examine(config_path=config_path, state_dir=state_dir, environ=environ, flags=flags)
    if report.problems or report.settings is None:
        raise ConfigError(
            "\n".join(str(problem) for problem in report.problems),
            details={
                "problems": [
                    {"option": problem.option, "problem": problem.text}
                    for problem in report.problems
                ]
            },
        )
    return report.settings


def _near_misses(environ: Mapping[str, str]) -> Iterator[str]:
    known = [*ENVIRONMENT, *(f"{name}_FILE" for name in ENVIRONMENT)]
    for name in sorted(environ):
        if name.startswith(("CLAMAV_", "JIRA_", "S3_", "SMTP_")) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield f"{name} is in the environment but is not a name of itdesk's{hint}"


def check(settings: Settings, environ: Mapping[str, str]) -> Report:
    """Return what `config check` holds against settings with which the daemon would start."""
    found: list[Problem] = []
    warnings = [*settings.warnings, *_near_misses(environ)]
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


# --- showing ---------------------------------------------------------------------------------

_PASSWORD_IN_URL: Final = re.compile(
    r"(?<=://)([^/?#@:]*):([^/?#]*)(?=@)"
    r"|(?<=[?&])(\w*(?:password|secret|token|key)=)[^&#]*"
)


def _mask_url(text: str) -> str:
    return _PASSWORD_IN_URL.sub(lambda found: f"{found[3] or f'{found[1]}:'}***", text)


def _plain(value: object) -> Any:
    """Turn a value into what TOML and JSON can hold, secrets masked."""
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        return {info.alias or name: _plain(getattr(value, name)) for name, info in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float)) or value is None else str(value)


def _masked(key: Key, value: object) -> Any:
    if isinstance(value, Mapping):
        return {name: _masked((*key, str(name)), item) for name, item in value.items()}
    if is_secret(key) and value is not None and value != "" and not isinstance(value, bool):
        return "***"
    if isinstance(value, (list, tuple)):
        return [_masked((*key, "item"), item) for item in value]
    return _mask_url(value) if isinstance(value, str) else value


def _with_model(raw: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Add a plugin's defaults to its section, and mask what its model calls a secret."""
    shown = dict(raw)
    for name, info in model.model_fields.items():
        key = info.alias or name
        if key not in raw:
            if not info.is_required():
                shown[key] = _plain(info.get_default(call_default_factory=True))
        elif _may_be(info, SecretStr) and raw[key]:
            shown[key] = "***"
        elif isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            shown[key] = _with_model(raw[key], info.annotation)
    return shown


def _tree(settings: Settings, plugin_models: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Return the effective settings as plain values, secrets masked.

    A plugin that has a model is shown with its defaults, also when it is off.
    """
    shown = {name: _plain(getattr(settings, name)) for name in _SECTIONS}
    if settings.database.dsn:
        shown["database"]["url"] = _mask_url(settings.database.dsn)
    plugins = {**dict.fromkeys(plugin_models, {"enabled": False}), **settings.plugins}
    for name, raw in sorted(plugins.items()):
        full = _with_model(raw, plugin_models[name]) if name in plugin_models else raw
        shown.setdefault("plugins", {})[name] = _masked(("plugins", name), _plain(full))
    return shown


def show(
    settings: Settings,
    *,
    json: bool = False,
    plugin_models: Mapping[str, type[BaseModel]] = MappingProxyType({}),
) -> str:
    """Return the effective settings as TOML, or as JSON; secrets are masked, unset is ""."""
    shown = _tree(settings, plugin_models)
    if json:
        return dumps(shown, indent=2)
    return "\n".join(_toml(shown, ())).strip() + "\n"


def _toml(table: Mapping[str, Any], prefix: Key) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    if prefix and (len(inner) < len(table) or not table):
        yield f"\n[{'.'.join(map(_toml_key, prefix))}]"
    for key, value in table.items():
        if key not in inner and (value is not None or prefix[0] != "plugins"):
            yield f"{_toml_key(key)} = {_toml_value(value)}"
    for key, value in inner.items():
        yield from _toml(value, (*prefix, key))


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_toml_key(str(key))} = {_toml_value(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    text = str("" if value is None else value).encode("utf-8", "replace").decode()
    return dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _secrets_of(settings: Settings) -> Iterator[tuple[Key, str]]:
    for key in OPTIONS:
        value: object = settings
        for name in key:
            value = getattr(value, name)
        if isinstance(value, SecretStr):
            yield key, value.get_secret_value()
    yield from _secrets_in(("plugins",), settings.plugins)


def _secrets_in(key: Key, value: object) -> Iterator[tuple[Key, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets_in((*key, str(name)), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _secrets_in(key, item)
    elif is_secret(key) and value and not isinstance(value, bool):
        yield key, str(value)


def secret_values(settings: Settings) -> list[str]:
    """Return every text that must not appear in a log, the longest first."""
    found: set[str] = set()
    for key, secret in _secrets_of(settings):
        if key == ("database", "url"):
            found.update(_passwords_in(secret))
        else:
            found.add(secret)
    for address in _texts_in(settings.plugins):
        found.update(_passwords_in(address))
    return sorted((text for text in found if len(text) > 3), key=lambda text: (-len(text), text))


def _texts_in(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts_in(item)
    elif isinstance(value, str) and "://" in value:
        yield value


def _passwords_in(url: str) -> Iterator[str]:
    for found in _PASSWORD_IN_URL.finditer(url):
        written = found[2] or found[0].partition("=")[2]
        yield from (written, unquote(written))
