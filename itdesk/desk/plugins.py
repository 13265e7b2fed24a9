"""Plugins: how they are checked, called, and kept from taking the desk down with them.

pluggy registers and checks; it never calls. Its own calls are synchronous, stop at the first
exception and do not tell whose result is whose. Every hook goes through `Plugins._call` instead.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from itdesk import hookspecs
from itdesk.config import plugin_options
from itdesk.desk.contract import Late, checked_result, reason, validated
from itdesk.desk.discovery import Refused
from itdesk.desk.isolation import Isolation
from itdesk.desk.plugin_records import Answer, Contribution, PluginStatus, State, kind
from itdesk.desk.registry import Registry
from itdesk.desk.stays import Stays
from itdesk.errors import Unavailable
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
# What is woven into the desk when it starts, and cannot be exchanged under its hands.
FIXED: Mapping[str, str] = {"itdesk_storage": "a storage", "itdesk_scan_engine": "a virus scanner"}

OFF_SECONDS = 30

R = TypeVar("R")
Refusal = Callable[[str], Exception]

log = get_logger("plugin")


class Plugins:
    """The plugins that the configuration names, in its order."""

    def __init__(self, registry: Registry, metrics: Metrics) -> None:
        self.registry = registry
        self.served: dict[str, list[Route]] = {}
        """The routes that are served for plugins now, by plugin."""
        self._metrics = metrics
        self._offered: dict[str, dict[str, Any]] = {}
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
        self._isolation = Isolation(stalls)
        self._stays = Stays(registry, self._isolation, self._seconds, self._note)

    @classmethod
    def load(
        cls,
        sections: Mapping[str, Mapping[str, Any]],
        *,
        directories: Sequence[Path] = (),
        metrics: Metrics,
        safe_mode: bool = False,
        off: Mapping[str, str] | None = None,
    ) -> "Plugins":
        """Import, check and build the plugins that have a section and are not switched off.

        In safe mode only itdesk's own: no line of any other plugin runs. `off` are those that were
        switched off while the desk worked, and by whom.

        Raises ConfigError that lists every wrong option of every section, and Unavailable when a
        plugin is broken that its section calls required.
        """
        registry = Registry(sections, directories, metrics, safe_mode=safe_mode)
        self = cls(registry, metrics)
        registry.load(off or {})
        return self

    def status(self) -> dict[str, PluginStatus]:
        """Return how every plugin of the configuration is, by name."""
        return {name: record.status for name, record in self.registry.records.items()}

    def instance(self, name: str) -> Any:
        """Return the plugin itself, or None when it is out: for tests of plugins."""
        return self.registry.manager.get_plugin(name)

    def hooks(self, name: str) -> list[str]:
        """Return the names of the hooks that a plugin has."""
        return self.registry.hooks(name)

    @property
    def patience(self) -> float:
        """Return the longest time that any plugin may take to start."""
        sections = [record.section for record in self.registry.records.values()]
        return max((section.start_seconds for section in sections), default=0.0)

    @asynccontextmanager
    async def lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Enter the plugins' contexts in order; leave them in reverse order at the end.

        A plugin that cannot be entered is broken, and fatal only when required. Each context lives
        in a task of its own, so that a task group in it cannot cancel the desk.
        """
        try:
            for impl in self.registry.implementations("itdesk_lifespan"):
                await self._stays.enter(impl, desk)
                self.registry.demand()
            yield
        finally:
            await self._stays.leave_all()

    # --- one plugin, while the desk works ----------------------------------------------------

    async def start(self, desk: "Desk", name: str) -> Contribution | None:
        """Build and enter one plugin that is out; None when it stays out, as its status says.

        It is asked for nothing yet but for what it adds: `admit` lets it in.
        """
        if not await self.registry.load_again(name):
            return None
        record = self.registry.records[name]
        if fixed := self.fixed(name):
            self.registry.unregister(name)
            record.state, record.reason = "off", f"is on, but {fixed} takes a restart"
            return None
        await self.metrics(self._metrics, only=name)
        for impl in self.registry.implementations("itdesk_lifespan", name):
            if record.state == "starting":
                await self._stays.enter(impl, desk)
        routes, jobs = await self.routes(only=name), await self.jobs(desk, only=name)
        schedules = await self.schedules(desk, only=name)
        added = Contribution(
            routes.get(name, ()),
            jobs.get(name, ()),
            schedules.get(name, ()),
            (await self.trackers(desk, only=name)).get(name),
            (await self.mailers(desk, only=name)).get(name),
            (await self.identity_providers(desk, only=name)).get(name),
            (await self.models(desk, only=name)).get(name),
        )
        if record.state != "starting":
            await self.stop(name, why=record.reason, state="broken")
            return None
        return added

    def admit(self, name: str) -> None:
        """Let a plugin that was started be called from now on."""
        self.registry.records[name].state = "loaded"
        log.info("plugin is on", plugin=name)

    async def stop(self, name: str, *, why: str, state: State = "off") -> None:
        """Call a plugin no more, wait for what runs of it or cut it, leave it and forget it."""
        record = self.registry.records[name]
        record.state = "stopping"
        seconds = record.section.hook_seconds
        if not await record.gate.shut(seconds):
            log.error("plugin goes on though it was cut", plugin=name)
        await self._stays.leave(name)
        self.served.pop(name, None)
        self.registry.forget(name, state, why)
        log.info("plugin is off", plugin=name, reason=why)

    async def inside(self, name: str, work: Callable[[], Awaitable[R]]) -> R:
        """Let what a plugin gave do its work: switching the plugin off waits for that, or cuts it.

        Raises Unavailable E_PLUGIN_OFF when it is switched off.
        """
        gate = self.registry.records[name].gate
        return await gate.guarded(lambda _: work(), partial(_closed, name))(None)

    def fixed(self, name: str) -> str:
        """Return what of a plugin only a restart takes out, or nothing."""
        return " and ".join(sorted(FIXED[hook] for hook in FIXED.keys() & set(self.hooks(name))))

    # --- what plugins are asked for ------------------------------------------------------------

    async def storages(self, desk: "Desk") -> dict[str, hookspecs.Storage]:
        """Return the storages that plugins provide, by plugin."""
        return await self._start("itdesk_storage", desk=desk)

    async def scan_engines(self, desk: "Desk") -> dict[str, hookspecs.ScanEngine]:
        """Return the virus scanners that plugins provide, by plugin."""
        return await self._start("itdesk_scan_engine", desk=desk)

    async def trackers(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, hookspecs.Tracker]:
        """Return the remote issue trackers that plugins mirror, by plugin."""
        return await self._start("itdesk_tracker", only, desk=desk)

    async def models(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, hookspecs.LanguageModel]:
        """Return the language models that plugins provide, by plugin."""
        return await self._start("itdesk_model", only, desk=desk)

    async def mailers(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, hookspecs.Mailer]:
        """Return what sends mail, by plugin."""
        return await self._start("itdesk_mailer", only, desk=desk)

    async def identity_providers(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, hookspecs.IdentityProvider]:
        """Return who else knows people, by plugin; a provider is called as its plugin."""
        return await self._start("itdesk_identity", only, desk=desk)

    async def routes(self, *, only: str | None = None) -> dict[str, list["Route"]]:
        """Return the routes that plugins ask to be served, by plugin and with paths below it."""
        found = self._watched("handler", "path", await self._start("itdesk_routes", only), _closed)
        self.served |= found
        return found

    async def jobs(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, list[hookspecs.JobType]]:
        """Return the kinds of durable work that plugins do, by plugin."""
        found = self._named("itdesk_jobs", only, await self._start("itdesk_jobs", only, desk=desk))
        return self._watched("handle", "name", found, _put_off)

    async def schedules(
        self, desk: "Desk", *, only: str | None = None
    ) -> dict[str, list[hookspecs.Schedule]]:
        """Return what plugins do periodically, by plugin."""
        found = self._named(
            "itdesk_schedule", only, await self._start("itdesk_schedule", only, desk=desk)
        )
        return self._watched("run", "name", found, _put_off)

    async def metrics(self, metrics: Metrics, *, only: str | None = None) -> None:
        """Let the plugins create their metrics."""
        await self._start("itdesk_metrics", only, metrics=metrics)

    async def commands(self) -> dict[str, list[Any]]:
        """Return the click commands that plugins add, by plugin."""
        return await self._start("itdesk_cli")

    def checked(self, sections: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
        """Return new settings of those that take them while they work; ConfigError if wrong."""
        takers: list[Any] = self.registry.implementations("itdesk_reload")
        models = {impl.plugin_name: impl.plugin.Settings for impl in takers}
        self._offered = {
            name: plugin_options(raw)
            for name, raw in sections.items()
            if raw is not None and name in models
        }
        return {name: validated(models[name], raw, name) for name, raw in self._offered.items()}

    async def reload(self, settings: Mapping[str, Any]) -> list[str]:
        """Hand plugins their `checked` settings; return the names of those that took them."""
        asks = [
            self._ask("itdesk_reload", impl, {"settings": settings[impl.plugin_name]})
            for impl in self.registry.implementations("itdesk_reload")
            if impl.plugin_name in settings
        ]
        took = [answer.plugin for answer in await asyncio.gather(*asks) if answer.failure is None]
        self.registry.taken |= {name: self._offered[name] for name in took}
        return took

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
        records = self.registry.records
        silent |= {n for n, r in records.items() if r.is_auditor and r.state == "broken"}
        if any(records[name].section.required for name in silent):
            raise Unavailable(
                "This change cannot be checked at the moment; try again later.",
                code="E_PLUGIN_UNAVAILABLE",
            )
        return [problem for answer in answers for problem in answer.result or ()]

    async def event(self, desk: "Desk", event: Event) -> None:
        """Tell all reactors of a committed change."""
        await self._call("itdesk_event", desk=desk, event=event)

    async def knowledge(self, desk: "Desk", caller: Caller, query: str) -> list[hookspecs.Passage]:
        """Return what plugins know about a query and the caller may see, in no order of worth."""
        # A score may be anything: whoever looks at the passages one by one puts them in order.
        answers = await self._call("itdesk_knowledge", desk=desk, caller=caller, query=query)
        return [passage for answer in answers for passage in answer.result or ()]

    # --- calling ---------------------------------------------------------------------------

    async def _start(self, hook: str, only: str | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a hook of the start, which no plugin survives failing in."""
        impls = self.registry.implementations(hook, only)
        asks = [self._ask(hook, one, self._lent(one.plugin_name, arguments)) for one in impls]
        answers = await asyncio.gather(*asks)
        for answer in answers:
            if answer.failure is not None:
                self.registry.take_out(answer.plugin, hook, answer.failure)
        if only is None:
            self.registry.demand()
        return {answer.plugin: answer.result for answer in answers if answer.result is not None}

    def _lent(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the arguments, of which the metrics remember what this plugin makes."""
        if "metrics" not in arguments:
            return arguments
        made = self.registry.records[name].metrics
        return {**arguments, "metrics": arguments["metrics"].lent(made)}

    def _named(self, hook: str, only: str | None, found: dict[str, Any]) -> dict[str, Any]:
        """Break the plugins that return things without their own name, which could clash."""
        for name, entries in list(found.items()):
            if strange := [one.name for one in entries if not one.name.startswith(f"{name}.")]:
                failure = Refused(f"{strange[0]} does not begin with {name}.")
                self.registry.take_out(name, hook, failure)
                del found[name]
        if only is None:
            self.registry.demand()
        for name, entries in found.items():
            self.registry.records[name].work |= {one.name for one in entries}
        return found

    def _watched(
        self, function: str, label: str, found: dict[str, Any], refusal: Refusal
    ) -> dict[str, Any]:
        """Let what plugins are called by later be as accountable as their hooks, and end as they.

        Once its plugin is switched off, it raises this refusal.
        """

        def watched(name: str, one: Any) -> Any:
            own = self._isolation.watched(name, getattr(one, label), getattr(one, function))
            gate = self.registry.records[name].gate
            return replace(one, **{function: gate.guarded(own, partial(refusal, name))})

        return {name: [watched(name, one) for one in ones] for name, ones in found.items()}

    async def _call(self, hook: str, **arguments: Any) -> list[Answer]:
        """Ask every plugin that has this hook, side by side; the answers are in plugin order."""
        asks = [self._ask(hook, impl, arguments) for impl in self.registry.implementations(hook)]
        return list(await asyncio.gather(*asks)) if asks else []

    async def _ask(self, hook: str, impl: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Answer:
        name = impl.plugin_name
        record = self.registry.records[name]
        started, outcome = perf_counter(), "cancelled"
        if hook == "itdesk_event" and record.paused:
            self._seconds.labels(name, hook, "skipped").observe(0.0)
            return Answer(name, failure=Late("paused"))
        try:
            with record.gate.counted():
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
        record = self.registry.records[name]
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


def _put_off(name: str) -> Exception:
    """Let a job wait, as if it had not been tried, until its plugin is on again."""
    return hookspecs.RetryLater(0, f"the plugin {name} is off", counted=False)


def _closed(name: str) -> Exception:
    return Unavailable(
        f"The plugin {name} was switched off.", code="E_PLUGIN_OFF", retry_after=OFF_SECONDS
    )
