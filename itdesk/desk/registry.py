"""The plugins that there are: found, checked, built, registered; and taken out when they break.

pluggy registers and checks here; what the hooks are called by is `itdesk.desk.plugins`.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pluggy

from itdesk import hookspecs
from itdesk.desk.contract import (
    Late,
    Section,
    checked_class,
    choice,
    config_error,
    hide,
    problem_at,
    reason,
    refuse_unmarked,
    validated,
)
from itdesk.desk.discovery import Found, Refused, discover
from itdesk.desk.plugin_records import Record, State
from itdesk.errors import ConfigError, Unavailable
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics

Raw = Mapping[str, Any]

log = get_logger("plugin")


class Registry:
    """The plugins that the configuration names, in its order."""

    def __init__(
        self,
        sections: Mapping[str, Raw],
        directories: Sequence[Path],
        metrics: Metrics,
        *,
        safe_mode: bool,
    ) -> None:
        self.records: dict[str, Record] = {}
        # Options that a plugin took while it worked.
        self.taken: dict[str, Raw] = {}
        self._sections = sections
        self._directories = directories
        self._safe_mode = safe_mode
        self._metrics = metrics
        self.manager = pluggy.PluginManager("itdesk")
        self.manager.add_hookspecs(hookspecs)

    def load(self, off: Mapping[str, str]) -> None:
        """Import, check, build and register all but those that are off, and why they are.

        Raises ConfigError that lists every wrong option of every section.
        """
        found = discover(self._directories)
        problems: list[Mapping[str, str]] = []
        built: dict[str, object] = {}
        for name, raw in self._sections.items():
            try:
                one = self._chosen(name, raw, found, off.get(name))
                plugin = None if one is None else self._built(name, raw, one)
            except ConfigError as exc:
                problems += exc.details.get("problems") or problem_at(
                    f"plugins.{name}", exc.message
                )
            else:
                if plugin is not None:
                    built[name] = plugin
        if problems:
            raise config_error(problems)
        # pluggy puts the last registered first. Registered backwards, the order is that of the
        # configuration, and tryfirst and trylast still mean what they say.
        for name in reversed(built):
            self._register(name, built[name])
        self.demand()

    async def load_again(self, name: str) -> bool:
        """Build and register one plugin anew; False when it is off, left out or broken.

        A drop-in file is read again, a package is not: Python keeps what it imported.
        """
        raw = self._sections[name]
        try:
            found = await _apart(partial(discover, self._directories), Section().start_seconds)
            one = self._chosen(name, raw, found, None)
            if one is None:
                return False
            self.records[name].state = "starting"
            seconds = self.records[name].section.start_seconds
            plugin_class = await _apart(one.load, seconds)
        except BaseException as exc:  # noqa: BLE001 - a stranger's import may raise anything
            if isinstance(exc, asyncio.CancelledError):
                raise
            self.take_out(name, "load", exc)
            return False
        try:
            plugin = self._built(name, raw, one, plugin_class)
        except ConfigError as exc:
            self.take_out(name, "load", exc)
            return False
        if plugin is None:
            return False
        self._register(name, plugin)
        self._put_in_order()
        return self.records[name].state == "starting"

    def take_out(self, name: str, step: str, exc: BaseException) -> None:
        """Take a broken plugin out, and say so where operators look."""
        record = self.records[name]
        trace = None if step in record.trouble else exc
        record.state, record.reason = "broken", f"{step}: {reason(exc)}"
        log.error("plugin broken", plugin=name, reason=record.reason, exc_info=trace)
        self.unregister(name)

    def unregister(self, name: str) -> None:
        """Call a plugin no more."""
        if self.manager.has_plugin(name):
            self.manager.unregister(name=name)

    def forget(self, name: str, state: State, why: str) -> None:
        """Unregister a plugin, take its metrics away, and remember no more than why it is out."""
        self.unregister(name)
        record = self.records[name]
        self._metrics.forget(record.metrics)
        self._metrics.breaker_open.remove(f"plugin.{name}")
        self.records[name] = Record(record.section, record.version, state, why)

    def demand(self) -> None:
        """Raise Unavailable when a required plugin is broken."""
        broken = {
            name: record.reason
            for name, record in self.records.items()
            if record.state == "broken" and record.section.required
        }
        if broken:
            raise Unavailable(
                "; ".join(f"plugins.{name} is required: {why}" for name, why in broken.items()),
                code="E_PLUGIN_REQUIRED",
                details={"plugins": broken},
            )

    def implementations(self, hook: str, only: str | None = None) -> list[pluggy.HookImpl]:
        """Return who has this hook, in order: of those that work, or of one that starts."""
        caller: pluggy.HookCaller = getattr(self.manager.hook, hook)
        found = caller.get_hookimpls()[::-1]
        if only is not None:
            return [impl for impl in found if impl.plugin_name == only]
        return [impl for impl in found if self.records[impl.plugin_name].state == "loaded"]

    def hooks(self, name: str) -> list[str]:
        """Return the names of the hooks that a plugin has."""
        plugin = self.manager.get_plugin(name)
        callers = self.manager.get_hookcallers(plugin) if plugin is not None else None
        return sorted(caller.name for caller in callers or ())

    def _chosen(
        self, name: str, raw: Raw, found: Mapping[str, Sequence[Found]], off: str | None
    ) -> Found | None:
        """Return what to load, or None when it is off; ConfigError for its section."""
        reserved = {key: value for key, value in raw.items() if key in Section.model_fields}
        section = validated(Section, reserved, name)
        if not section.enabled:
            self.records[name] = Record(section, None, "disabled", "switched off by its section")
            return None
        candidates = found.get(name, ())
        if self._safe_mode:
            candidates = [one for one in candidates if one.own]
        if self._safe_mode and not candidates:
            self.records[name] = Record(Section(), None, "left out", "left out by the safe mode")
            log.warning("plugin left out by the safe mode", plugin=name)
            return None
        if off is not None and not section.required:
            self.records[name] = Record(section, None, "off", off)
            log.warning("plugin is off", plugin=name, reason=off)
            return None
        if len(candidates) != 1:
            raise ConfigError(choice(candidates, found))
        self.records[name] = Record(section, candidates[0].version)
        return candidates[0]

    def _built(self, name: str, raw: Raw, one: Found, plugin_class: Any = None) -> object | None:
        """Return the plugin, or None when it is broken; ConfigError for its options."""
        options = {key: value for key, value in raw.items() if key not in Section.model_fields}
        try:
            plugin_class = checked_class(plugin_class or one.load(), name)
            settings = validated(plugin_class.Settings, self.taken.get(name, options), name)
            hide(settings)
            plugin: object = plugin_class(settings)
        except ConfigError:
            raise
        except BaseException as exc:  # noqa: BLE001 - see itdesk.desk.isolation
            self.take_out(name, "load", exc)
            return None
        return plugin

    def _register(self, name: str, plugin: object) -> None:
        try:
            refuse_unmarked(plugin)
            self.manager.register(plugin, name)
            self.manager.check_pending()
            for caller in self.manager.get_hookcallers(plugin) or ():
                own = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
                if any(impl.hookwrapper or impl.wrapper for impl in own):
                    raise Refused(f"{caller.name}: hook wrappers are not supported")
                self.records[name].is_auditor |= caller.name == "itdesk_validate_ticket"
                if caller.name == "itdesk_event":
                    paused = self._metrics.breaker_open.labels(f"plugin.{name}")
                    paused.set_function(partial(getattr, self.records[name], "paused"))
        except BaseException as exc:  # noqa: BLE001 - see itdesk.desk.isolation
            self.take_out(name, "register", exc)

    def _put_in_order(self) -> None:
        """Let a plugin that came later stand where the configuration names it."""
        there = {name: self.manager.get_plugin(name) for name in self._sections}
        known = {name: plugin for name, plugin in there.items() if plugin is not None}
        for name in known:
            self.manager.unregister(name=name)
        for name in reversed(known):
            self.manager.register(known[name], name)


async def _apart(work: Any, seconds: float) -> Any:
    """Return what a function returns that may block: in a thread that nobody has to wait for."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def tell(outcome: tuple[Any, BaseException | None]) -> None:
        if not answer.done():
            answer.set_result(outcome)

    def run() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = work(), None
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            outcome = None, exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="plugin-import", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            result, failure = await answer
    except TimeoutError:
        raise Late(f"not imported in {seconds:g} s") from None
    if isinstance(failure, asyncio.CancelledError):
        raise Refused("its import was cancelled")  # by itself: nobody cancelled us
    if failure is not None:
        raise failure
    return result
