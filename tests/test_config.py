"""Settings: where they come from, what is refused, and that no secret is ever shown."""

import re
import tomllib
from collections.abc import Callable, Mapping
from json import loads
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from itdesk import config
from itdesk.config import Settings
from itdesk.errors import ConfigError

ETC = Path(__file__).parent.parent / "etc"
URL = "postgresql://itdesk:hunter2@db.example.org:5432/itdesk"
STRONG = "kJ8vQz1rWm5TtYb3XcNf7LpHs2Dg9Ae4"
CANARY = "cAnArY-0815-never-to-be-seen-4711"

Load = Callable[..., Settings]


@pytest.fixture(autouse=True)
def no_system_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "SYSTEM_CONFIG", tmp_path / "nowhere" / "itdesk.toml")


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load from the environment given by keywords, a TOML text and flags."""

    def load(toml: str | None = None, flags: Mapping[str, object] | None = None, **env: str) -> Any:
        path = None
        if toml is not None:
            path = tmp_path / "itdesk.toml"
            path.write_text(toml)
        return config.load(config_path=path, state_dir=tmp_path / "state", environ=env, flags=flags)

    return load


def production(**env: str) -> dict[str, str]:
    return {"ENV": "production", "DATABASE_URL": URL, "CLAMAV_HOST": "clamd"} | env


def refused(load: Load, *args: Any, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **env)
    return str(caught.value).splitlines()


def pem(key: Any, encryption: KeySerializationEncryption | None = None) -> str:
    encryption = encryption or NoEncryption()
    encoded: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return encoded.decode()


@pytest.fixture(scope="module")
def rsa_pem() -> str:
    return pem(rsa.generate_private_key(65537, 2048))


# --- order -----------------------------------------------------------------------------------


def test_nothing_configured_is_the_embedded_desk(load: Load, tmp_path: Path) -> None:
    found = load()
    assert found.embedded and found.database.migrate_on_start is True
    assert found.server.env == "development" and not found.production  # S4-05
    assert found.server.host == "127.0.0.1" and found.server.port == 8000
    assert found.enabled_plugins() == {"yara": {}, "filesystem": {}}
    assert found.storage.backend == "local"
    assert found.storage.local.upload_dir == tmp_path / "state" / "uploads"
    assert found.jwt_key_path.parent == tmp_path / "state"
    assert found.auth.require_verified_email is False
    assert found.warnings == ()


def test_flag_beats_environment_beats_file_beats_default(load: Load) -> None:
    toml = "[server]\nport = 1\nhost = '10.0.0.1'\n[log]\nlevel = 'ERROR'"
    found = load(
        toml, {"server.port": 3, "server.host": None}, ITDESK_SERVER__PORT="2", LOG_LEVEL="debug"
    )
    assert (found.server.port, found.server.host, found.log.level) == (3, "10.0.0.1", "DEBUG")


def test_database_url_of_the_environment_overrides_the_file_s0_14(load: Load) -> None:
    found = load("[database]\nurl = 'postgresql://file/x'", DATABASE_URL="postgresql://env/y")
    assert found.database.dsn == "postgresql://env/y"
    assert not found.embedded and found.database.migrate_on_start is False


def test_generic_name_beats_a_short_one(load: Load) -> None:
    found = load(LOG_LEVEL="ERROR", ITDESK_LOG__LEVEL="DEBUG")
    assert found.log.level == "DEBUG"


def test_empty_environment_value_counts_as_unset(load: Load) -> None:
    found = load("[log]\nlevel = 'ERROR'", LOG_LEVEL="", DATABASE_URL=" ", JWT_SECRET="")
    assert found.log.level == "ERROR" and found.embedded and found.auth.jwt_secret is None


def test_empty_text_in_the_file_counts_as_unset(load: Load) -> None:
    found = load("[database]\nurl = ''\n[server]\npublic_url = ''\ntls_key = ''\n[mail]\nplugin=''")
    assert found.embedded and found.server.public_url is None and found.server.tls_key is None


def test_file_is_found_by_flag_then_variable_then_system_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = tmp_path / "system.toml"
    monkeypatch.setattr(config, "SYSTEM_CONFIG", system)
    assert config.find_config(None, {}) is None
    system.touch()
    assert config.find_config(None, {"ITDESK_CONFIG": ""}) == system
    assert config.find_config(None, {"ITDESK_CONFIG": "/x"}) == Path("/x")
    assert config.find_config(Path("/y"), {"ITDESK_CONFIG": "/x"}) == Path("/y")


def test_settings_are_frozen(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(load().server, "port", 1)  # noqa: B010 - a plain assignment is mypy's to refuse


# --- names -----------------------------------------------------------------------------------

# Section 4 of the specification, as its origin documents promise them.
PROMISED = """
ENV=production CORS_ORIGINS=https://a.example.org FRONTEND_BASE_URL=https://f.example.org
LOG_LEVEL=ERROR DATABASE_URL=postgresql://u@h/d
JWT_SECRET_KEY=kJ8vQz1rWm5TtYb3XcNf7LpHs2Dg9Ae4 JWT_SECRET=kJ8vQz1rWm5TtYb3XcNf7LpHs2Dg9Ae4
SECRET_KEY=kJ8vQz1rWm5TtYb3XcNf7LpHs2Dg9Ae4
ACCESS_TOKEN_EXPIRE_MINUTES=16 REFRESH_TOKEN_EXPIRE_DAYS=31 COOKIE_NAME=c1 REFRESH_COOKIE_NAME=c2
PASSWORD_RESET_TOKEN_EXPIRE_HOURS=3 GOOGLE_CLIENT_ID=gid GOOGLE_CLIENT_SECRET=g-s
GOOGLE_REDIRECT_URI=https://r.example.org SMTP_HOST=m SMTP_PORT=25 SMTP_USER=u SMTP_PASSWORD=s-p-w-1
SMTP_FROM=f@example.org SMTP_TLS=false MAX_FILE_SIZE=77 UPLOAD_DIR=/srv/up S3_ENDPOINT=http://s3
S3_PUBLIC_BASE_URL=https://p S3_ACCESS_KEY=ak-12345 S3_SECRET_KEY=sk-12345 S3_REGION=r S3_BUCKET=b
CLAMAV_HOST=clamd CLAMAV_PORT=3311 JIRA_BASE_URL=https://j JIRA_EMAIL=e JIRA_API_TOKEN=jt-12345
JIRA_PROJECT_KEY=ITSM JIRA_SERVICE_DESK_ID=7 JIRA_SYNC_PAGE_SIZE=51
JIRA_WEBHOOK_SECRET=webhook-4711-0815-xyz JIRA_KB_ENABLED=false
JIRA_KB_MAX_ISSUES=61 JIRA_KB_MAX_COMMENTS_PER_ISSUE=6 JIRA_KB_TOP_MATCHES=7
JIRA_KB_CACHE_SECONDS=301 OLLAMA_BASE_URL=http://o OLLAMA_MODEL=m1
"""
ALL = dict(pair.split("=", 1) for pair in PROMISED.split())


def test_every_promised_environment_name_is_known() -> None:
    assert set(config.ENVIRONMENT) == set(ALL)
    for option in config.ENVIRONMENT.values():
        assert option.startswith("plugins.") or tuple(option.split(".")) in config.OPTIONS


def test_every_promised_environment_name_reaches_its_option(load: Load) -> None:
    found = load(**ALL)
    for name, option in config.ENVIRONMENT.items():
        value: Any = found.plugins if option.startswith("plugins.") else found
        for part in option.removeprefix("plugins.").split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        text = value[0] if isinstance(value, tuple) else value
        assert str(text) == ALL[name], name
    assert set(found.enabled_plugins()) == {"google", "smtp", "s3", "clamav", "jira", "ollama"}


@pytest.mark.parametrize("name", ["JWT_SECRET_KEY", "JWT_SECRET", "SECRET_KEY"])
def test_signing_secret_has_three_names_s2_17_s3_54_s4_07(load: Load, name: str) -> None:
    found = load(**{name: STRONG}, ITDESK_AUTH__JWT_ALGORITHM="HS256")
    assert found.auth.jwt_secret and found.auth.jwt_secret.get_secret_value() == STRONG


def test_two_names_with_different_secrets_are_refused_x5(load: Load) -> None:
    lines = refused(load, JWT_SECRET=STRONG, SECRET_KEY=STRONG + "x")
    assert lines == ["auth.jwt_secret: JWT_SECRET and SECRET_KEY have different values; keep one"]
    load(JWT_SECRET=STRONG, SECRET_KEY=STRONG)


def test_any_option_has_a_generic_environment_name(load: Load) -> None:
    found = load(
        ITDESK_SCANNER__POLL_SECONDS="1",
        ITDESK_STORAGE__LOCAL__UPLOAD_DIR="/srv/x",
        ITDESK_PLUGINS__CLAMAV__HOST="clamd",
        ITDESK_PLUGINS__HELLO__WORDS='["a", "b"]',
        ITDESK_PLUGINS__HELLO__BIND="[::1]:80",
        ITDESK_LIMITS__ENABLED="off",
    )
    assert found.scanner.poll_seconds == 1 and found.limits.enabled is False
    assert found.storage.local.upload_dir == Path("/srv/x")
    assert found.enabled_plugins()["clamav"] == {"host": "clamd"}
    assert found.enabled_plugins()["hello"] == {"words": ["a", "b"], "bind": "[::1]:80"}


def test_unknown_generic_name_is_named_with_a_proposal(load: Load) -> None:
    assert refused(load, ITDESK_SCANNER__POL_SECONDS="1") == [
        "scanner.pol_seconds: is not an option; did you mean scanner.poll_seconds?"
        " (from ITDESK_SCANNER__POL_SECONDS)"
    ]


def test_names_without_a_section_are_left_to_others(load: Load) -> None:
    load(ITDESK_PORT="tcp://10.0.0.1:80", ITDESK_STATE_DIR="/x", ITDESK_SERVICE_HOST="h")


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("[scaner]\npoll_seconds = 1", "scaner.poll_seconds: is in an unknown section; did you"),
        ("[scanner]\npoll_second = 1", "scanner.poll_second: is not an option; did you mean scan"),
        (
            "[server]\njwt_secret = 'x'",
            "server.jwt_secret: is not an option; did you mean auth.jwt",
        ),
        ("port = 1", "port: is not an option; did you mean server.port?"),
        ("server = 1", "server: must be a section"),
        ("plugins = 1", "plugins: must be a section"),
        ("[plugins]\nclamav = 'host'", "plugins.clamav: must be a section"),
        ("[nonsense]", "nonsense: is not an option"),
        ("[server.port]\nx = 1", "server.port.x: is not an option; did you mean server.port?"),
        ("[jira]\nbase_url = 'x'", "jira.base_url: is named plugins.jira.base_url here"),
        ("[jira.kb]\nenabled = true", "jira.kb.enabled: is named plugins.jira.kb.enabled here"),
        ("[storage.s3]\nbucket = 'x'", "storage.s3.bucket: is named plugins.s3.bucket here"),
        ("[mail.smtp]\nhost = 'x'", "mail.smtp.host: is named plugins.smtp.host here"),
        ("[ai.ollama]\nmodel = 'x'", "ai.ollama.model: is named plugins.ollama.model here"),
        ("[auth.google]\nclient_id = ''", "auth.google.client_id: is named plugins.google.client"),
        ("[scanner]\nclamav_port = 1", "scanner.clamav_port: is named plugins.clamav.port here"),
    ],
)
def test_what_stands_in_the_wrong_place_is_told_the_right_one(
    load: Load, toml: str, line: str
) -> None:
    lines = refused(load, toml)
    assert len(lines) == 1 and lines[0].startswith(line)


# --- values ----------------------------------------------------------------------------------


def test_all_problems_are_told_at_once_with_their_variables(load: Load) -> None:
    lines = refused(
        load,
        "[server]\nport = 'x'\nhost = ''\n[log]\nformat = 'xml'\n[nope]\na = 1",
        ENV="staging",
        ITDESK_DATABASE__POOL_MIN="9",
        MAX_FILE_SIZE="ten",
    )
    options = [line.split(":")[0] for line in lines]
    assert sorted(options) == [
        "database.pool_min",
        "log.format",
        "nope.a",
        "server.env",
        "server.host",
        "server.port",
        "storage.max_file_size",
    ]
    by_option = dict(line.split(":", 1) for line in lines)
    assert by_option["server.env"].endswith("(from ENV)")
    assert by_option["storage.max_file_size"].endswith("(from MAX_FILE_SIZE)")
    assert by_option["database.pool_min"].endswith("(from ITDESK_DATABASE__POOL_MIN)")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("server.port", "65536"),
        ("server.port", "-1"),
        ("server.cors_origins", "*"),
        ("server.cors_origins", "https://a.example.org/path"),
        ("server.cors_origins", "a.example.org"),
        ("server.public_url", "ftp://x"),
        ("server.public_url", "https://user:pw@x"),
        ("server.public_url", "http://[x"),
        ("server.trusted_proxies", "10.0.0.1/8"),
        ("server.trusted_proxies", "[not json"),
        ("server.drain_seconds", "0"),
        ("auth.bcrypt_cost", "3"),
        ("auth.cookie_name", "a b"),
        ("auth.cookie_name", "itdesk_refresh"),
        ("auth.password_min_length", "7"),
        ("storage.allowed_types", "exe"),
        ("storage.presign_expires_seconds", "604801"),
        ("tickets.default_project", "tsk"),
        ("limits.auth", "20"),
        ("limits.auth", "0/minute"),
        ("limits.auth", "20/fortnight"),
        ("database.pool_max", "1"),
        ("mail.plugin", "pigeon"),
        ("storage.backend", "s3"),
        ("plugins.filesystem.enabled", "false"),
        ("plugins.yara.timeout_seconds", "0"),
        ("plugins.yara.required", "perhaps"),
    ],
)
def test_impossible_value_is_refused_by_name(load: Load, option: str, value: str) -> None:
    name = "ITDESK_" + option.replace(".", "__").upper()
    lines = refused(load, **{name: value})
    section = option.split(".")[0]
    assert len(lines) == 1 and lines[0].startswith(f"{section}."), lines


@pytest.mark.parametrize(("given", "missing"), [("cert", "key"), ("key", "cert")])
def test_certificate_and_key_come_together(load: Load, given: str, missing: str) -> None:
    (line,) = refused(load, f"[server]\ntls_{given} = '/x'")
    assert line == f"server.tls_{missing}: is needed with server.tls_{given}"


def test_true_is_no_number(load: Load) -> None:
    assert refused(load, "[server]\nport = true") == ["server.port: should be a whole number"]


def test_every_interval_goes_down_to_one_second(load: Load) -> None:
    names = [key for key in config.OPTIONS if key[-1].endswith("_seconds")]
    found = load(**{f"ITDESK_{'__'.join(key).upper()}": "1" for key in names})
    for key in names:
        assert getattr(getattr(found, key[0]), key[1]) == 1
    assert len(names) > 20


def test_schedules_can_be_switched_off(load: Load) -> None:
    assert load(ITDESK_SCHEDULER__DAILY_STATS_SECONDS="0").scheduler.daily_stats_seconds == 0


def test_origins_are_separated_by_commas_s4_02(load: Load) -> None:
    found = load(CORS_ORIGINS="https://A.example.org/, http://localhost:5173,")
    assert found.server.cors_origins == ("https://a.example.org", "http://localhost:5173")


def test_limits_read_as_count_per_period(load: Load) -> None:
    found = load("[limits]\nauth = '5/hour'")
    assert (found.limits.auth.count, found.limits.auth.seconds) == (5, 3600)
    assert str(found.limits.default) == "120/minute" and str(found.limits.ai) == "30/minute"


@pytest.mark.parametrize("suffix", ["", "+psycopg2", "+asyncpg", "+psycopg"])
@pytest.mark.parametrize("dialect", ["postgresql", "postgres"])
def test_database_url_with_a_driver_is_accepted_s2_16(
    load: Load, dialect: str, suffix: str
) -> None:
    found = load(DATABASE_URL=f"{dialect}{suffix}://u:p%40w@h:5432/d?sslmode=require")
    assert found.database.dsn == "postgresql://u:p%40w@h:5432/d?sslmode=require"


@pytest.mark.parametrize("url", ["postgresql:///d?host=/run/pg", "postgresql://h1:1,h2:2/d"])
def test_database_url_may_name_a_socket_or_several_hosts(load: Load, url: str) -> None:
    assert load(DATABASE_URL=url).database.dsn == url


@pytest.mark.parametrize("url", ["sqlite:///x.db", "sqlite+aiosqlite://"])
def test_sqlite_is_refused_with_a_clear_text_x21(load: Load, url: str) -> None:
    (line,) = refused(load, DATABASE_URL=url)
    assert "database.url: SQLite is not supported" in line and "PostgreSQL" in line


@pytest.mark.parametrize(
    "url", ["mysql://h/d", "h/d", "postgresql+pg8000://h/d", "postgresql://h:x/d", "postgresql:h"]
)
def test_other_databases_are_refused_without_showing_the_address(load: Load, url: str) -> None:
    (line,) = refused(load, DATABASE_URL=url)
    assert line.startswith("database.url: ") and url not in line


def test_raw_slash_in_a_database_password_is_told_and_not_shown(load: Load) -> None:
    (line,) = refused(load, DATABASE_URL="postgresql://u:12/34@h/d")
    assert "%2F" in line and "34" not in line


# --- the file itself -------------------------------------------------------------------------


def test_syntax_error_names_the_line(load: Load, tmp_path: Path) -> None:
    (line,) = refused(load, f"[server]\nport 8000 {CANARY}")
    assert "itdesk.toml is not valid TOML" in line and "line 2" in line and CANARY not in line


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml: No such file"):
        config.load(config_path=tmp_path / "none.toml", state_dir=tmp_path, environ={})


def test_file_that_is_no_text_is_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "itdesk.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(config_path=path, state_dir=tmp_path, environ={})


def test_unreadable_file_is_the_only_thing_told(load: Load) -> None:
    (line,) = refused(load, "[database", ENV="production", LOG_LEVEL="INFO")
    assert line.startswith("config: ")


def test_system_file_that_may_not_be_looked_at_is_told_not_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exists(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", exists)
    assert config.find_config(None, {}) == config.SYSTEM_CONFIG


# --- plugins ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"CLAMAV_HOST": "h"}, "clamav"),
        ({"S3_ENDPOINT": "http://s3", "S3_BUCKET": "b"}, "s3"),
        ({"SMTP_HOST": "h"}, "smtp"),
        ({"JIRA_BASE_URL": "https://j"}, "jira"),
        ({"JIRA_WEBHOOK_SECRET": "webhook-4711-0815-xyz"}, "jira"),
        ({"OLLAMA_BASE_URL": "http://o"}, "ollama"),
        ({"GOOGLE_CLIENT_ID": "id"}, "google"),
    ],
)
def test_an_address_switches_its_plugin_on(load: Load, env: dict[str, str], name: str) -> None:
    assert name not in load().enabled_plugins()
    assert name in load(**env).enabled_plugins()


def test_the_other_options_do_not_switch_a_plugin_on(load: Load) -> None:
    found = load(CLAMAV_PORT="3311", SMTP_PORT="25", JIRA_KB_ENABLED="true", S3_REGION="r")
    assert set(found.enabled_plugins()) == {"yara", "filesystem"}
    assert found.warnings == ()


def test_clamav_takes_the_place_of_yara_unless_yara_is_configured(load: Load) -> None:
    assert set(load(CLAMAV_HOST="h").enabled_plugins()) == {"clamav", "filesystem"}
    found = load("[plugins.yara]", CLAMAV_HOST="h")
    assert set(found.enabled_plugins()) == {"clamav", "yara", "filesystem"}
    assert set(load("[plugins.clamav]").enabled_plugins()) == {"clamav", "filesystem"}
    off = load("[plugins.yara]\nenabled = false\n[plugins.clamav]\nenabled = false\nhost = 'h'")
    assert set(off.enabled_plugins()) == {"filesystem"}


def test_s3_becomes_the_backend_and_needs_a_bucket(load: Load) -> None:
    found = load(S3_ENDPOINT="http://s3", S3_BUCKET="b")
    assert found.storage.backend == "s3" and "filesystem" not in found.enabled_plugins()
    (line,) = refused(load, S3_ENDPOINT="http://s3")
    assert line.startswith("plugins.s3.bucket: is needed")
    both = load("[storage]\nbackend = 'local'", S3_ENDPOINT="http://s3", S3_BUCKET="b")
    assert both.storage.backend == "local"
    assert set(both.enabled_plugins()) == {"s3", "filesystem", "yara"}


def test_empty_smtp_host_switches_mail_off_s4_12(load: Load) -> None:
    toml = "[plugins.smtp]\nhost = 'mail'\n"
    assert load(toml).mail.plugin == "smtp"
    found = load(toml, SMTP_HOST="")
    assert found.mail.plugin is None and "smtp" not in found.enabled_plugins()


def test_section_without_an_address_is_off_and_says_so(load: Load) -> None:
    found = load("[plugins.smtp]\nport = 25\n[plugins.hello]\n")
    assert "smtp" not in found.enabled_plugins() and "hello" in found.enabled_plugins()
    assert found.warnings == ("plugins.smtp is off: host is not set",)


def test_mail_asks_for_verified_addresses_x8(load: Load) -> None:
    assert load(SMTP_HOST="h").auth.require_verified_email is True
    assert load("[auth]\nrequire_verified_email = false", SMTP_HOST="h").auth == load().auth


def test_keys_of_the_host_are_checked_and_kept_apart(load: Load) -> None:
    found = load(
        "[plugins.hello]\nenabled = true\nrequired = 'yes'\ntimeout_seconds = '2'\nword = 'x'"
    )
    raw = found.enabled_plugins()["hello"]
    assert raw == {"required": True, "timeout_seconds": 2.0, "word": "x"}
    assert config.plugin_options(raw) == {"word": "x"}


def test_what_a_caller_does_to_a_section_stays_with_him(load: Load) -> None:
    found = load("[plugins.hello]\nwords = ['a']")
    found.enabled_plugins()["hello"]["words"].append("b")
    assert found.enabled_plugins()["hello"]["words"] == ["a"]


def test_redis_is_accepted_and_named_as_unused_s2_15(load: Load) -> None:
    (warning,) = load(REDIS_URL=f"redis://:{CANARY}@h").warnings
    assert "REDIS_URL" in warning and "not used" in warning and CANARY not in warning


def test_an_option_of_an_earlier_version_is_accepted_and_named_as_unused(load: Load) -> None:
    (warning,) = load("[scanner]\nbatch = 20").warnings
    assert warning == (
        "scanner.batch is set but not used: what waits is counted every scanner.poll_seconds;"
        " take it out"
    )
    (warning,) = load(ITDESK_SCANNER__BATCH="20").warnings
    assert warning.startswith("ITDESK_SCANNER__BATCH is set but not used")


def test_failpoints_are_for_development_only(load: Load) -> None:
    names = "before_commit, after_send"
    assert load(ITDESK_FAILPOINTS=names).failpoints == {"before_commit", "after_send"}
    assert refused(load, ITDESK_FAILPOINTS="lunch")[0].startswith("ITDESK_FAILPOINTS: lunch is")
    assert refused(load, **production(ITDESK_FAILPOINTS="before_commit"))


# --- secrets ---------------------------------------------------------------------------------


def test_any_secret_may_come_from_a_file(load: Load, tmp_path: Path) -> None:
    for name, text in {"db": URL, "jwt": STRONG, "smtp": "s-m-t-p", "s3": "s-3"}.items():
        (tmp_path / name).write_text(f"{text}\n")
    found = load(
        "[database]\nurl_file = 'db'\n[plugins.smtp]\nhost = 'h'\npassword_file = 'smtp'\n"
        "key_file = 'tls.pem'\nclient_key_file = 'tls.pem'",
        JWT_SECRET_KEY_FILE=str(tmp_path / "jwt"),
        S3_SECRET_KEY_FILE=str(tmp_path / "s3"),
    )
    assert found.database.dsn == URL
    assert found.auth.jwt_secret and found.auth.jwt_secret.get_secret_value() == STRONG
    assert found.plugins["s3"]["secret_key"] == "s-3"
    assert found.enabled_plugins()["smtp"] == {
        "host": "h",
        "password": "s-m-t-p",
        "key_file": "tls.pem",
        "client_key_file": "tls.pem",
    }


def test_secret_files_of_systemd_are_found_by_name(load: Load, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "token").write_text(STRONG)
    found = load("[metrics]\ntoken_file = 'token'", CREDENTIALS_DIRECTORY=str(credentials))
    assert found.metrics.token and found.metrics.token.get_secret_value() == STRONG


def test_missing_or_empty_secret_file_names_the_option(load: Load, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    lines = refused(
        load,
        "[metrics]\ntoken_file = 'empty'\n[plugins.jira]\napi_token_file = 7",
        JWT_SECRET_FILE="/nowhere/x",
    )
    assert lines == [
        "metrics.token_file: names an empty file",
        "plugins.jira.api_token_file: must be the path of a file",
        "auth.jwt_secret_file: names a file that cannot be read: No such file or directory"
        " (from JWT_SECRET_FILE)",
    ]


def test_secret_and_its_file_together_are_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x")
    (line,) = refused(load, "[metrics]\ntoken = 'a'\ntoken_file = 't'")
    assert line == "metrics.token_file: and token are both given; keep one"
    found = load("[metrics]\ntoken_file = 't'", ITDESK_METRICS__TOKEN="environment")
    assert found.metrics.token and found.metrics.token.get_secret_value() == "environment"


@pytest.mark.parametrize(
    "secret",
    ["changeme", "change-me-please-change-me-please-1", "short", "a" * 64, "secret", "***"]
    + ["your-secret-key-here-0123456789-abcdef", "dev"],
)
def test_production_refuses_weak_signing_secrets_s2_17(load: Load, secret: str) -> None:
    load(SECRET_KEY=secret, DATABASE_URL=URL)
    (line,) = refused(load, **production(SECRET_KEY=secret))
    assert line.startswith("auth.jwt_secret: ") and "openssl rand" in line
    assert line.endswith("(from SECRET_KEY)")
    assert secret not in line.replace("auth.jwt_secret", "")


def test_production_accepts_a_strong_secret_and_needs_none(load: Load) -> None:
    found = load(**production(SECRET_KEY=STRONG, ITDESK_AUTH__JWT_ALGORITHM="HS256"))
    assert found.production and load(**production()).auth.jwt_secret is None


def test_production_refuses_known_secrets_of_plugins(load: Load) -> None:
    env = {"S3_ENDPOINT": "http://s3", "S3_BUCKET": "b", "S3_SECRET_KEY": "minioadmin"}
    (line,) = refused(load, **production(**env))
    assert line.startswith("plugins.s3.secret_key: is easily guessed")


def test_production_needs_its_own_database_and_slow_hashes(load: Load) -> None:
    lines = refused(load, ENV="production", ITDESK_AUTH__BCRYPT_COST="4")
    assert [line.split(":")[0] for line in lines] == ["database.url", "auth.bcrypt_cost"]
    assert load(ITDESK_AUTH__BCRYPT_COST="4").auth.bcrypt_cost == 4


def test_production_warns_of_yara_alone(load: Load) -> None:
    env = production(FRONTEND_BASE_URL="https://f.example.org")
    assert load(**env).warnings == ()
    (warning,) = load(**env | {"CLAMAV_HOST": ""}).warnings
    assert "clamav is off" in warning


def test_hs256_always_needs_32_bytes(load: Load) -> None:
    toml = "[auth]\njwt_algorithm = 'HS256'"
    assert "is needed with HS256" in refused(load, toml)[0]
    assert "less than 32 bytes" in refused(load, toml, JWT_SECRET="s" * 31)[0]
    load(toml, JWT_SECRET=STRONG)


def test_plain_secret_is_unused_with_rs256_and_says_so_x5(load: Load) -> None:
    found = load(JWT_SECRET=STRONG)
    assert found.auth.jwt_algorithm == "RS256" and "HS256" in found.warnings[0]


def test_pem_key_inside_the_secret_is_the_signing_key_x5(load: Load, rsa_pem: str) -> None:
    one_line = rsa_pem.replace("\n", "\\n")
    for text in (rsa_pem, one_line):
        found = load(**production(JWT_SECRET_KEY=text))
        assert found.auth.jwt_secret and found.auth.jwt_secret.get_secret_value() == rsa_pem
    lines = refused(load, "[auth]\njwt_key_file = '/k'", JWT_SECRET_KEY=rsa_pem)
    assert "both signing keys" in lines[0]
    assert (
        "holds a key for RS256"
        in refused(load, "[auth]\njwt_algorithm = 'EdDSA'", JWT_SECRET_KEY=rsa_pem)[0]
    )


def test_unfit_pem_keys_are_refused_without_showing_them(load: Load, rsa_pem: str) -> None:
    edwards = pem(ed25519.Ed25519PrivateKey.generate())
    assert load("[auth]\njwt_algorithm = 'EdDSA'", JWT_SECRET=edwards).auth.jwt_secret
    unfit = {
        edwards: 'set auth.jwt_algorithm = "EdDSA"',
        pem(ec.generate_private_key(ec.SECP256R1())): "neither RSA nor Ed25519",
        rsa_pem[:200]: "is no PEM private key",
        pem(ed25519.Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")): "passphrase",
    }
    for text, problem in unfit.items():
        (line,) = refused(load, JWT_SECRET=text)
        assert problem in line and text.splitlines()[1][:20] not in line


# --- showing ---------------------------------------------------------------------------------


class HelloSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    port: int = 99
    pin: SecretStr | None = None
    sender: str = Field("x@example.org", alias="from")
    ca: Path | None = None


def test_show_is_toml_with_defaults_that_loads_again(load: Load, tmp_path: Path) -> None:
    found = load(**ALL | {"ITDESK_PLUGINS__HELLO__NOTE": 'quote " back \\ tab \t del \x7f é 😀'})
    shown = config.show(found)
    tables = tomllib.loads(shown)
    assert tables["plugins"]["hello"]["note"] == 'quote " back \\ tab \t del \x7f é 😀'
    assert tables["scheduler"]["daily_stats_seconds"] == 1800  # S2-47
    assert tables["limits"]["auth"] == "20/minute"
    assert tables["auth"]["jwt_secret"] == tables["plugins"]["smtp"]["password"] == "***"
    assert tables["plugins"]["jira"]["project_key"] == "ITSM"
    again = load(shown.replace('"production"', '"development"').replace("***", STRONG))
    assert (
        again.model_copy(
            update={"config_path": None, "server": found.server, "warnings": ()}
        ).storage
        == found.storage
    )
    assert set(again.enabled_plugins()) == set(found.enabled_plugins())


def test_show_of_the_embedded_desk_loads_again_to_the_same(load: Load) -> None:
    found = load()
    again = load(config.show(found))
    assert again.model_copy(update={"config_path": None}) == found


def test_show_as_json_says_the_same(load: Load) -> None:
    found = load(**ALL)
    assert (
        loads(config.show(found, json=True))["plugins"]
        == tomllib.loads(config.show(found))["plugins"]
    )


def test_show_adds_the_defaults_of_plugins_that_have_a_model_s0_24(load: Load) -> None:
    models = {"hello": HelloSettings}
    off = tomllib.loads(config.show(load(), plugin_models=models))["plugins"]["hello"]
    assert off == {"enabled": False, "port": 99, "from": "x@example.org"}
    found = load("[plugins.hello]\nhost = 'h'\npin = '1234'\nrequired = true")
    on = tomllib.loads(config.show(found, plugin_models=models))["plugins"]["hello"]
    assert on == off | {"enabled": True, "host": "h", "pin": "***", "required": True}


def test_no_secret_is_ever_shown(load: Load) -> None:
    secrets = {
        name: f"{CANARY}-{number}"
        for number, name in enumerate(config.ENVIRONMENT)
        if config.is_secret(tuple(config.ENVIRONMENT[name].split(".")))
    }
    secrets.pop("JWT_SECRET"), secrets.pop("SECRET_KEY")
    assert len(secrets) == 8
    secrets["DATABASE_URL"] = f"postgresql://u:{CANARY}@h/d?password={CANARY}"
    secrets["ITDESK_METRICS__TOKEN"] = CANARY
    secrets["ITDESK_PLUGINS__HELLO__PASSPHRASE"] = CANARY
    secrets["ITDESK_PLUGINS__HELLO__TOKENS"] = f'["{CANARY}"]'
    secrets["ITDESK_PLUGINS__HELLO__DEEP__API_KEY"] = CANARY
    secrets["ITDESK_PLUGINS__HELLO__URL"] = f"amqp://u:{CANARY}@h/?token={CANARY}"
    found = load(**secrets)
    for text in (config.show(found), config.show(found, json=True), repr(found), str(found)):
        assert CANARY not in text
    assert "postgresql://u:***@h/d?password=***" in config.show(found)
    hidden = config.secret_values(found)
    assert CANARY in hidden and secrets["SMTP_PASSWORD"] in hidden
    assert secrets["DATABASE_URL"] not in hidden


def test_no_value_is_shown_in_problems(load: Load) -> None:
    env = {f"ITDESK_{'__'.join(key).upper()}": f"{CANARY} {CANARY}" for key in config.OPTIONS}
    env |= {"JWT_SECRET": CANARY, "SECRET_KEY": CANARY + "x", "ITDESK_NO__WHERE": CANARY}
    lines = refused(load, f"[nowhere]\nx = '{CANARY}'\n[plugins]\nsmtp = '{CANARY}'", **env)
    assert len(lines) > 40 and CANARY not in "\n".join(lines)


def test_models_do_not_quote_what_they_refuse() -> None:
    with pytest.raises(ValueError, match="port") as caught:
        config.Server.model_validate({"port": CANARY})
    assert CANARY not in str(caught.value)


def test_numbers_and_names_that_only_sound_secret_are_shown(load: Load) -> None:
    toml = (
        "[plugins.hello]\nmax_tokens = 512\nproject_key = 'ITSM'\ntoken_seconds = 9\npassword = 7"
    )
    shown = tomllib.loads(config.show(load(toml)))["plugins"]["hello"]
    assert shown["max_tokens"] == 512 and shown["token_seconds"] == 9
    assert shown["project_key"] == "ITSM" and shown["password"] == "***"


def test_passwords_to_redact_are_known_in_both_writings(load: Load) -> None:
    found = load(DATABASE_URL="postgresql://u:p%40ssw0rd@h/d", JIRA_API_TOKEN="tok-123456")
    assert config.secret_values(found) == ["p%40ssw0rd", "tok-123456", "p@ssw0rd"]


# --- config check ----------------------------------------------------------------------------


def check(load: Load, *args: Any, **env: str) -> tuple[list[str], tuple[str, ...]]:
    report = config.check(load(*args, **env), env)
    return [str(problem) for problem in report.problems], report.warnings


def test_check_without_any_configuration_names_database_url_s0_14(load: Load) -> None:
    (problem,), _ = check(load)
    assert problem.startswith("database.url: is not set") and "DATABASE_URL" in problem
    assert check(load, DATABASE_URL=URL) == ([], ())


def test_check_takes_a_file_without_database_url_for_a_choice(load: Load) -> None:
    problems, (warning,) = check(load, "[log]\nlevel = 'INFO'")
    assert problems == [] and "database.url is not set" in warning


def test_check_asks_for_the_webhook_secret_in_production_x9(load: Load) -> None:
    env = production(JIRA_BASE_URL="https://j", FRONTEND_BASE_URL="https://f.example.org")
    problems, warnings = check(load, **env)
    assert problems == [
        "plugins.jira.webhook_secret: is needed in production: set JIRA_WEBHOOK_SECRET"
    ]
    assert any("webhook_secret" in warning for warning in warnings)
    assert check(load, **env, JIRA_WEBHOOK_SECRET="webhook-4711-0815-xyz") == ([], ())


def test_check_names_files_that_are_not_there(load: Load) -> None:
    toml = "[server]\ntls_cert = '/no/c'\ntls_key = '/no/k'\n[auth]\njwt_key_file = '/no/j'"
    problems, _ = check(load, toml)
    assert [line.split(":")[0] for line in problems] == [
        "server.tls_cert",
        "server.tls_key",
        "auth.jwt_key_file",
    ]


def test_check_wonders_about_names_that_are_nearly_right(load: Load) -> None:
    _, (warning,) = check(load, DATABASE_URL=URL, JIRA_BASEURL="x")
    assert "JIRA_BASEURL" in warning and "JIRA_BASE_URL" in warning


def test_examine_returns_settings_beside_the_problems(tmp_path: Path) -> None:
    report = config.examine(state_dir=tmp_path, environ={"LOG_LEVEL": "loud", "ENV": "test"})
    assert not report.ok and report.settings is not None
    assert report.settings.log.level == "INFO" and report.settings.server.env == "test"


# --- what ships ------------------------------------------------------------------------------


def options_of_the_file() -> dict[str, tuple[str, str, bool]]:
    """Return for each option its text, the line above it, and whether it is commented out."""
    found: dict[str, tuple[str, str, bool]] = {}
    section, above = "", ""
    for line in (ETC / "itdesk.toml").read_text().splitlines():
        if heading := re.fullmatch(r"#?\[([a-z0-9_.]+)\].*", line):
            section = heading[1]
        elif option := re.fullmatch(r"(#?)([a-z][a-z0-9_]*) = (.*)", line):
            found[f"{section}.{option[2]}"] = (option[3], above, bool(option[1]))
        above = line
    return found


def test_shipped_file_has_every_option_with_its_default_and_a_comment() -> None:
    shipped = options_of_the_file()
    values = tomllib.loads((ETC / "itdesk.toml").read_text())
    defaults = config.show(Settings(), json=True)
    core = {name for name in shipped if not name.startswith("plugins.")}
    assert core == {".".join(key) for key in config.OPTIONS}
    for key in config.OPTIONS:
        default: Any = loads(defaults)
        value: Any = values
        for part in key:
            default, value = default[part], value.get(part) if value else None
        _, above, commented = shipped[".".join(key)]
        assert commented == (default is None), key
        assert value == default, key
        assert re.match(r"# \S.*[.;]?$", above), f"{key} has no comment"


def test_shipped_file_has_every_promised_option_of_plugins() -> None:
    promised = {option for option in config.ENVIRONMENT.values() if option.startswith("plugins.")}
    assert promised <= set(options_of_the_file())


def test_shipped_file_loads_unchanged_to_the_defaults_s2_11(load: Load) -> None:
    found = load((ETC / "itdesk.toml").read_text())
    assert found.model_copy(update={"config_path": None}) == load()
    assert config.check(found, {}).ok


def test_shipped_file_loads_with_every_option_uncommented(load: Load) -> None:
    text = re.sub(r"(?m)^#(?=[\[a-z])", "", (ETC / "itdesk.toml").read_text())
    text = text.replace('jwt_key_file = "/etc/itdesk/jwt-key.pem"', "")
    found = load(text)
    assert {"clamav", "yara", "s3", "smtp", "jira", "ollama"} <= set(found.enabled_plugins())


def test_shipped_environment_is_accepted_untouched_s2_11(load: Load) -> None:
    text = (ETC / "itdesk.env.example").read_text()
    names = set(re.findall(r"(?m)^#?([A-Z0-9_]+)=", text))
    assert names == {*config.ENVIRONMENT, "REDIS_URL"}
    env = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z0-9_]+=", line))
    found = load(**env)
    assert found.warnings == () and config.check(found, env) == config.Report((), (), found)
    assert set(found.enabled_plugins()) == {"yara", "filesystem"}


# --- whatever comes --------------------------------------------------------------------------

NAMES = sorted(
    [*config.ENVIRONMENT, "ITDESK_PLUGINS__HELLO__X", "ITDESK_PLUGINS__HELLO__X__Y"]
    + [f"ITDESK_{'__'.join(key).upper()}" for key in config.OPTIONS]
)
TEXT = st.text(st.characters(exclude_characters="\x00"), max_size=20) | st.sampled_from(
    ["1", "true", "[", "{}", "[1]", "https://x", "http://[", "postgresql://u:p@h/d", "1/minute"]
)


@given(st.dictionaries(st.sampled_from(NAMES), TEXT, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_environment_gives_settings_or_problems(env: dict[str, str]) -> None:
    report = config.examine(config_path=Path("/dev/null"), state_dir=Path("/x"), environ=env)
    assert report.settings is not None
    tomllib.loads(config.show(report.settings))
    loads(config.show(report.settings, json=True))
    config.secret_values(report.settings)


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_section_of_a_plugin_is_shown_as_valid_toml(section: dict[str, Any]) -> None:
    found = Settings(plugins={"hello": {"enabled": True, "options": section}})
    shown = tomllib.loads(config.show(found))
    assert set(shown["plugins"]["hello"].get("options", {})) == set(section)
    loads(config.show(found, json=True))
    config.secret_values(found)
