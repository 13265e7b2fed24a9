"""Plugins: how they are checked, called, and kept from taking the desk down with them.

pluggy registers and checks; it never calls. Its own calls are synchronous, stop at the first
exception and do not tell whose result is whose. Every hook goes through `Plugins._call` instead.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pluggy

from itdesk import hookspecs
from itdesk.config import plugin_options
from itdesk.desk.contract import (
    Late,
    Section,
    checked_class,
    checked_result,
    choice,
    config_error,
    hide,
    problem_at,
    reason,
    refuse_unmarked,
    validated,
)
from itdesk.desk.discovery import Found, Refused, discover
from itdesk.desk.isolation import Isolation
from itdesk.desk.plugin_records import Answer, PluginStatus, Record, demand, kind
from itdesk.desk.stays import Stay, ended
from itdesk.errors import ConfigError, Unavailable
from itdesk.model import Caller, Event, Ticket
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics

if TYPE_CHECKING:
    from itdesk.api.route import Route
    from itdesk.desk import Desk

HEALTH_SECONDS = 1.0
# A reactor this often late in a row is left out for this many of its deadlines: events come one
# after the other, so a hanging plugin would slow those of all others down to its own deadline.
LATE_IN_A_ROW = 3
PAUSE_DEADLINES = 12

log = get_logger("plugin")


class Plugins:
    """The plugins that the configuration names, in its order."""

    def __init__(self, metrics: Metrics, *, safe_mode: bool = False) -> None:
        self._safe_mode = safe_mode
        self._manager = pluggy.PluginManager("itdesk")
        self._manager.add_hookspecs(hookspecs)
        self._records: dict[str, Record] = {}
        self._seconds = metrics.histogram(
            "itdesk_plugin_seconds",
            "Time that plugins take for a hook.",
            ["plugin", "hook", "outcome"],
        )
        stalls = metrics.counter(
            "itdesk_plugin_stalls_total",
            "Times that a plugin blocked the event loop for over 100 ms.",
            ["plugin"],
        )
        self._breaker = metrics.breaker_open
        self._isolation = Isolation(stalls)

    @classmethod
    def load(
        cls,
        sections: Mapping[str, Mapping[str, Any]],
        *,
        directories: Sequence[Path] = (),
        metrics: Metrics,
        safe_mode: bool = False,
    ) -> "Plugins":
        """Import, check and build the plugins that have a section and are not switched off.

        In safe mode only itdesk's own: no line of any other plugin runs.

        Raises ConfigError that lists every wrong option of every section, and Unavailable when a
        plugin is broken that its section calls required.
        """
        self = cls(metrics, safe_mode=safe_mode)
        found = discover(directories)
        problems: list[Mapping[str, str]] = []
        built: dict[str, object] = {}
        for name, raw in sections.items():
            try:
                plugin = self._build(name, raw, found)
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
        self._demand()
        return self

    def status(self) -> dict[str, PluginStatus]:
        """Return how every plugin of the configuration is, by name."""
        return {name: record.status for name, record in self._records.items()}

    def instance(self, name: str) -> Any:
        """Return the plugin itself, or None when it is out: for tests of plugins."""
        return self._manager.get_plugin(name)

    def hooks(self, name: str) -> list[str]:
        """Return the names of the hooks that a plugin has."""
        plugin = self._manager.get_plugin(name)
        callers = self._manager.get_hookcallers(plugin) if plugin is not None else None
        return sorted(caller.name for caller in callers or ())

    @asynccontextmanager
    async def lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Enter the plugins' contexts in order; leave them in reverse order at the end.

        A plugin that cannot be entered is broken, and fatal only when required. Each context lives
        in a task of its own, so that a task group in it cannot cancel the desk.
        """
        stays: list[Stay] = []
        try:
            for impl in self._implementations("itdesk_lifespan"):
                stay = Stay(self._isolation, impl, desk)
                stays.append(stay)
                await self._enter(stay)
                self._demand()
            yield
        finally:
            try:
                while stays:
                    await self._leave(stays[-1])
                    stays.pop()
            finally:
                for stay in stays:
                    stay.leave.set()
                    self._isolation.abandon(stay.task)

    async def storages(self, desk: "Desk") -> dict[str, hookspecs.Storage]:
        """Return the storages that plugins provide, by plugin."""
        return await self._start("itdesk_storage", desk=desk)

    async def scan_engines(self, desk: "Desk") -> dict[str, hookspecs.ScanEngine]:
        """Return the virus scanners that plugins provide, by plugin."""
        return await self._start("itdesk_scan_engine", desk=desk)

    async def trackers(self, desk: "Desk") -> dict[str, hookspecs.Tracker]:
        """Return the remote issue trackers that plugins mirror, by plugin."""
        return await self._start("itdesk_tracker", desk=desk)

    async def models(self, desk: "Desk") -> dict[str, hookspecs.LanguageModel]:
        """Return the language models that plugins provide, by plugin."""
        return await self._start("itdesk_model", desk=desk)

    async def mailers(self, desk: "Desk") -> dict[str, hookspecs.Mailer]:
        """Return what sends mail, by plugin."""
        return await self._start("itdesk_mailer", desk=desk)

    async def identity_providers(self, desk: "Desk") -> dict[str, hookspecs.IdentityProvider]:
        """Return who else knows people, by plugin; a provider is called as its plugin."""
        return await self._start("itdesk_identity", desk=desk)

    async def routes(self) -> dict[str, list["Route"]]:
        """Return the routes that plugins ask to be served, by plugin and with paths below it."""
        return self._watched("handler", "path", await self._start("itdesk_routes"))

    async def jobs(self, desk: "Desk") -> dict[str, list[hookspecs.JobType]]:
        """Return the kinds of durable work that plugins do, by plugin."""
        found = self._named("itdesk_jobs", await self._start("itdesk_jobs", desk=desk))
        return self._watched("handle", "name", found)

    async def schedules(self, desk: "Desk") -> dict[str, list[hookspecs.Schedule]]:
        """Return what plugins do periodically, by plugin."""
        found = self._named("itdesk_schedule", await self._start("itdesk_schedule", desk=desk))
        return self._watched("run", "name", found)

    async def metrics(self, metrics: Metrics) -> None:
        """Let the plugins create their metrics."""
        await self._start("itdesk_metrics", metrics=metrics)

    async def commands(self) -> dict[str, list[Any]]:
        """Return the click commands that plugins add, by plugin."""
        return await self._start("itdesk_cli")

    def checked(self, sections: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
        """Return new settings of those that take them while they work; ConfigError if wrong."""
        takers: list[Any] = self._implementations("itdesk_reload")
        models = {impl.plugin_name: impl.plugin.Settings for impl in takers}
        return {
            name: validated(models[name], plugin_options(raw), name)
            for name, raw in sections.items()
            if raw is not None and name in models
        }

    async def reload(self, settings: Mapping[str, Any]) -> list[str]:
        """Hand plugins their `checked` settings; return the names of those that took them."""
        asks = [
            self._ask("itdesk_reload", impl, {"settings": settings[impl.plugin_name]})
            for impl in self._implementations("itdesk_reload")
            if impl.plugin_name in settings
        ]
        return [answer.plugin for answer in await asyncio.gather(*asks) if answer.failure is None]

    async def health(self) -> dict[str, hookspecs.Health]:
        """Return how every enabled plugin is: broken, failing, or what it says of itself."""
        said = {answer.plugin: answer.result for answer in await self._call("itdesk_health")}
        health: dict[str, hookspecs.Health] = {}
        for name, status in self.status().items():
            own = said.get(name)
            if own is not None and not own.ok:
                health[name] = own
            elif status.state != "disabled":
                health[name] = hookspecs.Health(not status.reason, status.reason)
        return health

    async def validate_ticket(
        self, caller: Caller, before: Ticket | None, after: Ticket
    ) -> list[str]:
        """Return what all auditors have against this change.

        An auditor that fails is passed over with a log line, unless its plugin is required: then
        the change is refused with Unavailable, since nobody said that it is allowed.
        """
        answers = await self._call(
            "itdesk_validate_ticket", caller=caller, before=before, after=after
        )
        silent = {answer.plugin for answer in answers if answer.failure is not None}
        silent |= {n for n, r in self._records.items() if r.is_auditor and r.state == "broken"}
        if any(self._records[name].section.required for name in silent):
            raise Unavailable(
                "This change cannot be checked at the moment; try again later.",
                code="E_PLUGIN_UNAVAILABLE",
            )
        return [problem for answer in answers for problem in answer.result or ()]

    async def event(self, desk: "Desk", event: Event) -> None:
        """Tell all reactors of a committed change."""
        await self._call("itdesk_event", desk=desk, event=event)

    async def knowledge(self, desk: "Desk", caller: Caller, query: str) -> list[hookspecs.Passage]:
        """Return what plugins know about a query and the caller may see, best first."""
        answers = await self._call("itdesk_knowledge", desk=desk, caller=caller, query=query)
        found = [passage for answer in answers for passage in answer.result or ()]
        return sorted(found, key=lambda passage: -passage.score)

    # --- loading ---------------------------------------------------------------------------

    def _build(
        self, name: str, raw: Mapping[str, Any], found: Mapping[str, Sequence[Found]]
    ) -> object | None:
        """Return the plugin, or None when it is off or broken; ConfigError for its section."""
        reserved = {key: value for key, value in raw.items() if key in Section.model_fields}
        options = {key: value for key, value in raw.items() if key not in reserved}
        section = validated(Section, reserved, name)
        if not section.enabled:
            self._records[name] = Record(section, None, "disabled", "switched off by its section")
            return None
        candidates = found.get(name, ())
        if self._safe_mode:
            candidates = [one for one in candidates if one.own]
        if self._safe_mode and not candidates:
            self._records[name] = Record(Section(), None, "left out", "left out by the safe mode")
            log.warning("plugin left out by the safe mode", plugin=name)
            return None
        if len(candidates) != 1:
            raise ConfigError(choice(candidates, found))
        self._records[name] = Record(section, candidates[0].version)
        try:
            plugin_class = checked_class(candidates[0].load(), name)
            settings = validated(plugin_class.Settings, options, name)
            hide(settings)
            plugin: object = plugin_class(settings)
        except ConfigError:
            raise
        except BaseException as exc:  # noqa: BLE001 - see the module
            self._break(name, "load", exc)
            return None
        return plugin

    def _register(self, name: str, plugin: object) -> None:
        try:
            refuse_unmarked(plugin)
            self._manager.register(plugin, name)
            self._manager.check_pending()
            for caller in self._manager.get_hookcallers(plugin) or ():
                own = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
                if any(impl.hookwrapper or impl.wrapper for impl in own):
                    raise Refused(f"{caller.name}: hook wrappers are not supported")
                self._records[name].is_auditor |= caller.name == "itdesk_validate_ticket"
                if caller.name == "itdesk_event":
                    paused = self._breaker.labels(f"plugin.{name}")
                    paused.set_function(partial(getattr, self._records[name], "paused"))
        except BaseException as exc:  # noqa: BLE001 - see the module
            self._break(name, "register", exc)

    def _break(self, name: str, step: str, exc: BaseException) -> None:
        """Take a plugin out for good, and say so where operators look."""
        record = self._records[name]
        trace = None if step in record.trouble else exc
        record.state, record.reason = "broken", f"{step}: {reason(exc)}"
        log.error("plugin broken", plugin=name, reason=record.reason, exc_info=trace)
        if self._manager.has_plugin(name):
            self._manager.unregister(name=name)

    def _demand(self) -> None:
        """Raise Unavailable when a required plugin is broken."""
        demand(self._records)

    # --- lifespan --------------------------------------------------------------------------

    async def _enter(self, stay: "Stay") -> None:
        """Wait until a plugin is entered; one that fails or is late is broken."""
        seconds = self._records[stay.name].section.start_seconds
        started, outcome = perf_counter(), "cancelled"
        try:
            either: set[asyncio.Future[Any]] = {stay.task, stay.entered}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            failure: BaseException | None = None
            if not stay.entered.done():
                failure = ended(stay.task) or Late(f"not entered in {seconds:g} s")
            outcome = kind(failure)
        finally:
            self._seconds.labels(stay.name, stay.hook, outcome).observe(perf_counter() - started)
            if not stay.entered.done():
                await self._isolation.give_up(stay.name, stay.hook, stay.task)
        if failure is not None:
            stay.leave.set()  # in case that it enters after all
            self._break(stay.name, stay.hook, failure)
        else:
            stay.task.add_done_callback(lambda task: self._watch(stay))

    def _watch(self, stay: "Stay") -> None:
        """Break a plugin whose context ended before it was asked to."""
        if not stay.leave.is_set():
            self._break(stay.name, stay.hook, ended(stay.task) or Refused("it ended by itself"))

    async def _leave(self, stay: "Stay") -> None:
        if stay.task.done() or not stay.entered.done():
            return
        seconds = self._records[stay.name].section.hook_seconds
        started, outcome = perf_counter(), "cancelled"
        try:
            stay.leave.set()
            await asyncio.wait({stay.task}, timeout=seconds)
            failure = ended(stay.task) if stay.task.done() else Late(f"not left in {seconds:g} s")
            outcome = kind(failure)
        finally:
            self._seconds.labels(stay.name, stay.hook, outcome).observe(perf_counter() - started)
        await self._isolation.give_up(stay.name, stay.hook, stay.task)
        self._note(stay.name, stay.hook, failure)

    # --- calling ---------------------------------------------------------------------------

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()[::-1]

    async def _start(self, hook: str, **arguments: Any) -> dict[str, Any]:
        """Call a hook of the start, which no plugin survives failing in."""
        answers = await self._call(hook, **arguments)
        for answer in answers:
            if answer.failure is not None:
                self._break(answer.plugin, hook, answer.failure)
        self._demand()
        return {answer.plugin: answer.result for answer in answers if answer.result is not None}

    def _named(self, hook: str, found: dict[str, Any]) -> dict[str, Any]:
        """Break the plugins that return things without their own name, which could clash."""
        for name, entries in list(found.items()):
            if strange := [one.name for one in entries if not one.name.startswith(f"{name}.")]:
                self._break(name, hook, Refused(f"{strange[0]} does not begin with {name}."))
                del found[name]
        self._demand()
        return found

    def _watched(self, function: str, label: str, found: dict[str, Any]) -> dict[str, Any]:
        """Let what plugins are called by later be as accountable as their hooks."""

        def watched(name: str, one: Any) -> Any:
            own = self._isolation.watched(name, getattr(one, label), getattr(one, function))
            return replace(one, **{function: own})

        return {name: [watched(name, one) for one in ones] for name, ones in found.items()}

    async def _call(self, hook: str, **arguments: Any) -> list[Answer]:
        """Ask every plugin that has this hook, side by side; the answers are in plugin order."""
        asks = [self._ask(hook, impl, arguments) for impl in self._implementations(hook)]
        return list(await asyncio.gather(*asks)) if asks else []

    async def _ask(self, hook: str, impl: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Answer:
        name = impl.plugin_name
        record = self._records[name]
        started, outcome = perf_counter(), "cancelled"
        if hook == "itdesk_event" and record.paused:
            self._seconds.labels(name, hook, "skipped").observe(0.0)
            return Answer(name, failure=Late("paused"))
        try:
            result, failure = self._isolation.run(impl, hook, arguments)
            if inspect.isawaitable(result):
                seconds = record.section.hook_seconds
                if hook == "itdesk_health":
                    seconds = min(seconds, HEALTH_SECONDS)
                result, failure = await self._isolation.bounded(name, hook, result, seconds)
            if failure is None:
                result, failure = checked_result(hook, result)
            outcome = kind(failure)
        finally:
            self._seconds.labels(name, hook, outcome).observe(perf_counter() - started)
        self._note(name, hook, failure)
        return Answer(name, result, failure)

    def _note(self, name: str, hook: str, failure: BaseException | None) -> None:
        """Remember and log how a call went, with the trace only the first time in a row."""
        record = self._records[name]
        is_event = hook == "itdesk_event"
        if failure is None:
            record.trouble.pop(hook, None)
            record.late = 0 if is_event else record.late
            return
        late = isinstance(failure, Late)
        trace = None if late or hook in record.trouble else failure
        why = record.trouble[hook] = f"{hook}: {reason(failure)}"
        log.error("plugin hook failed", plugin=name, hook=hook, reason=why, exc_info=trace)
        record.late += late and is_event
        if record.late >= LATE_IN_A_ROW and is_event:
            pause = PAUSE_DEADLINES * record.section.hook_seconds
            record.paused_until = perf_counter() + pause
            log.error("plugin gets no events for a while", plugin=name, seconds=pause)
