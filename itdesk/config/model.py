"""What can be set: each section with its options and their defaults."""

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr
from pydantic.fields import FieldInfo

from itdesk.config.fields import (
    CookieName,
    Environment,
    HttpUrl,
    LogLevel,
    MediaType,
    Origin,
    Port,
    PostgresUrl,
    Rate,
    RateLimit,
    Seconds,
    SecondsOrOff,
    SigningSecret,
)
from itdesk.model import Role

Key = tuple[str, ...]

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
    env: Environment = "development"
    cors_origins: tuple[Origin, ...] = ()
    frontend_base_url: HttpUrl = "http://localhost:3000"
    public_url: HttpUrl | None = None
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    drain_seconds: Seconds = 20
    request_seconds: Seconds = 30
    max_body: Annotated[int, Field(ge=1024, le=67_108_864)] = 1_048_576

    @property
    def link_base(self) -> str:
        """Return what links in mails start with: the frontend, or this daemon without one."""
        base = self.frontend_base_url
        # As it is in the file that `itdesk init` writes, it names no frontend of anybody's.
        if self.public_url and base == type(self).model_fields["frontend_base_url"].default:
            base = self.public_url
        return base.rstrip("/")


class Log(Section):
    level: LogLevel = "INFO"
    format: Literal["json", "console"] = "json"


class Database(Section):
    url: PostgresUrl | None = None
    pool_min: Annotated[int, Field(ge=1, le=1000)] = 2
    pool_max: Annotated[int, Field(ge=1, le=1000)] = 8
    acquire_seconds: Seconds = 1
    command_seconds: Seconds = 3
    connect_seconds: Seconds = 2
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
    invitation_expire_hours: Annotated[int, Field(ge=1, le=720)] = 72
    require_verified_email: bool | None = None
    allow_registration: bool = True
    bcrypt_cost: Annotated[int, Field(ge=4, le=16)] = 12
    password_min_length: Annotated[int, Field(ge=8, le=128)] = 8
    refresh_grace_seconds: SecondsOrOff = 10
    session_refresh_seconds: Seconds = 2
    api_token_expire_days: Annotated[int, Field(ge=1, le=366)] = 90
    api_tokens_without_end: bool = False
    totp_required_roles: tuple[Role, ...] = ()
    totp_issuer: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")] = "itdesk"
    challenge_seconds: Seconds = 300


class LocalStorage(Section):
    upload_dir: Path = Path("uploads")


class Storage(Section):
    backend: Literal["local", "s3"] | None = None
    max_file_size: Annotated[int, Field(ge=1, le=5_368_709_120)] = 10_485_760
    allowed_types: tuple[MediaType, ...] = ALLOWED_TYPES
    presign_expires_seconds: Annotated[int, Field(ge=1, le=604_800)] = 900
    download_expires_seconds: Annotated[int, Field(ge=1, le=604_800)] = 60
    orphan_seconds: Seconds = 86_400
    local: LocalStorage = LocalStorage()


class Scanner(Section):
    enabled: bool = True
    poll_seconds: Seconds = 5
    lease_seconds: Seconds = 60
    timeout_seconds: Seconds = 120
    retry_seconds: Seconds = 15
    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 5
    upload_grace_seconds: Seconds = 900
    concurrency: Annotated[int, Field(ge=1, le=64)] = 6
    rescan_days: Annotated[int, Field(ge=0, le=3650)] = 14
    rescan_seconds: Seconds = 60
    rescan_batch: Annotated[int, Field(ge=1, le=10_000)] = 100
    rescan_settle_seconds: SecondsOrOff = 900


class Jobs(Section):
    poll_seconds: Seconds = 5
    lease_seconds: Seconds = 30
    retry_seconds: Seconds = 10
    keep_days: Annotated[int, Field(ge=1, le=3650)] = 30


class Scheduler(Section):
    daily_stats_seconds: SecondsOrOff = 1800
    email_seconds: SecondsOrOff = 60
    token_cleanup_seconds: SecondsOrOff = 3600
    storage_verify_seconds: SecondsOrOff = 43_200
    jira_reconcile_seconds: SecondsOrOff = 0
    recommendations_seconds: SecondsOrOff = 3600
    ticket_counts_seconds: SecondsOrOff = 300
    workflow_seconds: SecondsOrOff = 60


class Workflows(Section):
    keep_days: Annotated[int, Field(ge=1, le=3650)] = 90
    webhook_seconds: Seconds = 10
    target_networks: tuple[IPvAnyNetwork, ...] = ()


class Backup(Section):
    directory: Path | None = None
    seconds: SecondsOrOff = 86_400
    keep: Annotated[int, Field(ge=1, le=10_000)] = 14


Days = Annotated[int, Field(ge=0, le=36_500)]


class Retention(Section):
    mail_bodies_days: Days = 0
    audit_days: Days = 0
    closed_attachments_days: Days = 0


class Mail(Section):
    plugin: str | None = None
    desk_name: Annotated[str, Field(min_length=1, max_length=60)] = "itdesk"
    templates_dir: Path | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] = 4
    retry_seconds: Seconds = 10
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 24
    notify_new_tickets: bool = True
    burst: Annotated[int, Field(ge=1, le=10_000)] = 10
    digest_seconds: Seconds = 60
    keep_days: Annotated[int, Field(ge=1, le=3650)] = 90


class Ai(Section):
    plugin: str | None = None
    timeout_seconds: Annotated[float, Field(ge=0.05, le=600)] = 3
    background_seconds: Seconds = 60
    concurrency: Annotated[int, Field(ge=1, le=64)] = 2
    queue: Annotated[int, Field(ge=1, le=10_000)] = 32
    breaker_seconds: Seconds = 30
    top_matches: Annotated[int, Field(ge=0, le=20)] = 5
    words_dir: Path | None = None
    enrich: bool | None = None
    auto_apply: tuple[Literal["priority", "category"], ...] = ()
    auto_apply_precision: Annotated[float, Field(gt=0.5, le=1)] = 0.95
    auto_apply_decisions: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    auto_apply_days: Annotated[int, Field(ge=1, le=366)] = 90
    embedding_seconds: SecondsOrOff = 60


class Tickets(Section):
    default_project: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9]{1,9}$")] = "TSK"
    first_number: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1001
    search_milliseconds: Annotated[int, Field(ge=1, le=60_000)] = 200
    report_seconds: Seconds = 5
    views_per_person: Annotated[int, Field(ge=1, le=500)] = 50


class Hub(Section):
    outbox_messages: Annotated[int, Field(ge=1, le=100_000)] = 256
    outbox_bytes: Annotated[int, Field(ge=1024, le=1_073_741_824)] = 1_048_576
    auth_seconds: Seconds = 5
    ping_seconds: Seconds = 30
    recheck_seconds: Seconds = 3
    presence_seconds: Seconds = 15
    sockets_per_user: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    frames_per_second: Annotated[int, Field(ge=1, le=100_000)] = 50
    tickets_per_socket: Annotated[int, Field(ge=1, le=10_000)] = 200


class Limits(Section):
    enabled: bool = True
    default: RateLimit = Rate(120, "minute")
    auth: RateLimit = Rate(20, "minute")
    ai: RateLimit = Rate(30, "minute")
    sign_in_failures: Annotated[int, Field(ge=1, le=100)] = 10
    sign_in_failures_most: Annotated[int, Field(ge=1, le=100)] = 100
    sign_in_wait_seconds: Seconds = 900


class Metrics(Section):
    token: SecretStr | None = None


class PluginHost(Section):
    directories: tuple[Path, ...] = ()
    safe_mode: bool = False


class HostKeys(Section):
    """The keys that every `[plugins.<name>]` may have; the host reads them, not the plugin."""

    enabled: bool | None = None
    required: bool = False
    timeout_seconds: Annotated[float, Field(gt=0)] | None = None


RESERVED_PLUGIN_KEYS: Final = frozenset(HostKeys.model_fields)


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
    backup: Backup = Backup()
    retention: Retention = Retention()
    workflows: Workflows = Workflows()
    mail: Mail = Mail()
    ai: Ai = Ai()
    tickets: Tickets = Tickets()
    hub: Hub = Hub()
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
        """Return the section of each plugin that is on, the host's keys but `enabled` included."""
        return {
            name: {key: deepcopy(value) for key, value in raw.items() if key != "enabled"}
            for name, raw in self.plugins.items()
            if raw["enabled"]
        }


def plugin_options(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plugin's section without the keys that are the host's."""
    return {key: value for key, value in raw.items() if key not in RESERVED_PLUGIN_KEYS}


def _options_of(model: type[Section], prefix: Key) -> Iterator[tuple[Key, FieldInfo]]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _options_of(kind, (*prefix, name))
        else:
            yield (*prefix, name), info


SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {
        name: info.annotation
        for name, info in Settings.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section)
    }
)
OPTIONS: Final[Mapping[Key, FieldInfo]] = MappingProxyType(
    {key: info for name, section in SECTIONS.items() for key, info in _options_of(section, (name,))}
)


def dotted(key: Iterable[object]) -> str:
    """Return an option's name as people write it."""
    return ".".join(str(part) for part in key)


def may_be(info: FieldInfo, kind: type) -> bool:
    """Tell whether a field's type is, or somewhere contains, this one."""

    def inside(annotation: object) -> bool:
        return annotation is kind or any(inside(part) for part in get_args(annotation))

    return inside(info.annotation)
