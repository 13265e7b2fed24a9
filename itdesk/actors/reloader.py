"""The reloader: puts changed settings into effect while the daemon works, all of them or none.

What cannot change in a running daemon is named in the log, every time, until it is restarted.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from itdesk.actors.http import HttpServer
from itdesk.config import OPTIONS, RESERVED_PLUGIN_KEYS, Settings, secret_values
from itdesk.desk import Desk
from itdesk.desk.letters import Letters
from itdesk.errors import ConfigError
from itdesk.runtime import log, systemd
from itdesk.runtime.actor import Actor

Key = tuple[str, ...]

# What can change without a restart, beside the options of plugins that take others.
LIVE: Final[frozenset[Key]] = frozenset(
    {
        ("log", "level"),
        ("mail", "templates_dir"),
        *(key for key in OPTIONS if key[0] == "limits"),
    }
)
_TLS: Final[frozenset[Key]] = frozenset({("server", "tls_cert"), ("server", "tls_key")})

_log = log.get_logger("reload")


class Reloader(Actor):
    """Reads the configuration, certificate, keys and templates again when it is told to."""

    name = "reloader"
    critical = False
    # Of several signals in a row the last one counts, and one may come while one is handled.
    mailbox_size = 1

    def __init__(self, desk: Desk, server: HttpServer, read: Callable[[], Settings]) -> None:
        self._desk = desk
        self._server = server
        self._read = read
        self._running = desk.settings

    async def handle(self, message: object) -> None:
        """Reload, and tell systemd when it begins and that it is over."""
        systemd.reloading()
        try:
            restart = await self._reload()
        except ConfigError as exc:
            problems = [line for line in exc.message.splitlines() if line]
            _log.error("nothing was reloaded: the new settings are wrong", problems=problems)
            status = "the settings on disk are wrong and not in effect: see the log"
        else:
            status = f"serving {self._server.url}"
            if restart:
                _log.warning(
                    "changed, but only a restart puts it into effect", options=", ".join(restart)
                )
                status += "; changed settings need a restart: see the log"
        systemd.notify(f"READY=1\nSTATUS={status}")

    async def _reload(self) -> list[str]:
        """Put into effect what can be; return the changed options that need a restart."""
        new = await asyncio.to_thread(self._read)
        # First everything that may turn out wrong: nothing has changed until all of it is good.
        letters = Letters(new.mail.templates_dir)
        live = LIVE | (_TLS if self._server.has_tls and new.server.tls_cert else frozenset())
        if live & _TLS:
            self._server.check_tls(new.server)
        plugins = self._desk.plugins.checked(_other_options(self._running, new))

        for secret in secret_values(new):
            log.register_secret(secret)
        log.set_level(new.log.level)
        self._desk.limits.configure(new.limits)
        self._desk.guesses.settings = new.limits
        self._desk.mail.letters = letters
        if live & _TLS:
            self._server.reload_tls(new.server)
        await self._desk.tokens.reload()
        taken = await self._desk.plugins.reload(plugins)

        changed = frozenset(
            key for key in OPTIONS if _value(self._running, key) != _value(new, key)
        )
        self._running = _with(self._running, new, live & changed, taken)
        done = sorted(".".join(key) for key in changed & live) + [f"plugins.{n}" for n in taken]
        _log.info("reloaded", changed=", ".join(done))
        left = {".".join(key) for key in changed - live}
        return sorted(left | {f"plugins.{n}" for n in _changed_plugins(self._running, new)})


def _value(settings: Settings, key: Key) -> Any:
    found: Any = settings
    for name in key:
        found = getattr(found, name)
    return found


def _changed_plugins(before: Settings, after: Settings) -> dict[str, Mapping[str, Any] | None]:
    """Return the new section of each plugin that has another one; None where it is off now."""
    old, new = before.enabled_plugins(), after.enabled_plugins()
    return {name: new.get(name) for name in {*old, *new} if old.get(name) != new.get(name)}


def _other_options(before: Settings, after: Settings) -> dict[str, Mapping[str, Any] | None]:
    """Return the changed plugins but those of which the host's own keys are others as well."""
    old = before.enabled_plugins()

    def host(raw: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in (raw or {}).items() if key in RESERVED_PLUGIN_KEYS}

    changed = _changed_plugins(before, after)
    return {name: raw for name, raw in changed.items() if host(raw) == host(old.get(name))}


def _with(running: Settings, new: Settings, live: frozenset[Key], plugins: list[str]) -> Settings:
    """Return what is in effect now."""
    sections: dict[str, Any] = {}
    for section, option in live:
        known = sections.get(section, getattr(running, section))
        sections[section] = known.model_copy(
            update={option: getattr(getattr(new, section), option)}
        )
    sections["plugins"] = running.plugins | {name: new.plugins[name] for name in plugins}
    return running.model_copy(update=sections)
