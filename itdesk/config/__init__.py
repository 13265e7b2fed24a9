"""Where a setting comes from, and what production refuses.

Order: flag, environment, TOML file, default. Every problem is found before the first one is told,
and none shows a value: it may be a secret. `etc/itdesk.toml` says what each option means.

Decisions:
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

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from itdesk.config.effective import ADDRESSES, settle
from itdesk.config.fields import Rate
from itdesk.config.layers import Problem, collect
from itdesk.config.model import (
    OPTIONS,
    RESERVED_PLUGIN_KEYS,
    Ai,
    Auth,
    Backup,
    Database,
    Jobs,
    Limits,
    LocalStorage,
    Log,
    Mail,
    Metrics,
    PluginHost,
    Retention,
    Scanner,
    Scheduler,
    Section,
    Server,
    Settings,
    Storage,
    Tickets,
    plugin_options,
)
from itdesk.config.names import ENVIRONMENT, MOVED
from itdesk.config.rules import Report, check, problems_of, warnings_of
from itdesk.config.secrecy import is_secret, mask_url, secret_values
from itdesk.config.showing import show
from itdesk.errors import ConfigError

__all__ = [
    "ADDRESSES",
    "Ai",
    "Auth",
    "Backup",
    "Database",
    "ENVIRONMENT",
    "Jobs",
    "Limits",
    "LocalStorage",
    "Log",
    "MOVED",
    "Mail",
    "Metrics",
    "OPTIONS",
    "PluginHost",
    "Problem",
    "RESERVED_PLUGIN_KEYS",
    "Rate",
    "Report",
    "Retention",
    "SYSTEM_CONFIG",
    "Scanner",
    "Scheduler",
    "Section",
    "Server",
    "Settings",
    "Storage",
    "Tickets",
    "check",
    "examine",
    "find_config",
    "is_secret",
    "load",
    "mask_url",
    "plugin_options",
    "secret_values",
    "show",
]

SYSTEM_CONFIG: Final = Path("/etc/itdesk/itdesk.toml")


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


def examine(
    *,
    config_path: Path | None = None,
    state_dir: Path,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
) -> Report:
    """Return the settings, with defaults for what is wrong, and every problem that there is."""
    path = find_config(config_path, environ)
    draft = collect(path, environ, flags or {})
    points = (name.strip() for name in environ.get("ITDESK_FAILPOINTS", "").split(","))
    settings = settle(draft, state_dir.absolute(), frozenset(filter(None, points)))
    wrong = {problem.option for problem in draft.problems}
    for option, text in problems_of(settings):
        # What is wrong already, or was in a file that cannot be read, is not unset.
        if option not in wrong and "config" not in wrong:
            draft.problem(option.split("."), text)
    warnings = (*draft.warnings, *warnings_of(settings))
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
    if report.problems:
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
