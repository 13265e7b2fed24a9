"""What options are called: in the environment, in older documents, and by mistake."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from itdesk.config.model import OPTIONS, SECTIONS, Key, dotted
from itdesk.config.secrecy import is_secret

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

# Options of earlier versions that files may still hold, and why nothing reads them.
UNUSED: Final[Mapping[str, str]] = MappingProxyType(
    {"scanner.batch": "what waits is counted every scanner.poll_seconds"}
)


def _variables() -> Iterator[tuple[str, Key]]:
    for name, option in ENVIRONMENT.items():
        key = tuple(option.split("."))
        yield name, key
        if is_secret(key):
            yield f"{name}_FILE", (*key[:-1], f"{key[-1]}_file")


# The names above, and those of the files in which secrets are.
VARIABLES: Final[Mapping[str, Key]] = MappingProxyType(dict(_variables()))


def _hint(close: Sequence[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""


def unknown(key: Key) -> str:
    """Return what to say of an option that does not exist."""
    for size in range(len(key), 0, -1):
        if new := MOVED.get(dotted(key[:size])):
            return f"is named {dotted((new, *key[size:]))} here"
    if len(key) > 1 and key[0] not in SECTIONS:
        close = difflib.get_close_matches(key[0], [*SECTIONS, "plugins"], 1)
        return "is in an unknown section" + _hint([f"[{name}]" for name in close])
    elsewhere = [dotted(option) for option in OPTIONS if option[-1] == key[-1]]
    close = difflib.get_close_matches(dotted(key), map(dotted, OPTIONS), 1, 0.75)
    return "is not an option" + _hint(elsewhere or close)


def near_misses(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable that looks like one of ours and is none."""
    for name in sorted(environ):
        if name.startswith(("CLAMAV_", "JIRA_", "S3_", "SMTP_")) and name not in VARIABLES:
            close = difflib.get_close_matches(name, VARIABLES, 1)
            yield f"{name} is in the environment but is not a name of itdesk's{_hint(close)}"
