"""The switches of plugins put into effect in one daemon: what a plugin adds comes and goes.

Each plugin is brought in whole or not at all. What goes wrong with it while it is entered or left
is its own trouble: the desk is as it was without it.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from itdesk.desk.contract import reason
from itdesk.desk.discovery import Refused
from itdesk.desk.missed import catch_up
from itdesk.desk.plugin_records import Contribution, PluginStatus
from itdesk.desk.switches import Switches, told, unknown
from itdesk.frozen import frozen
from itdesk.model import Caller, Role
from itdesk.runtime.log import get_logger
from itdesk.store.switches import Switch

if TYPE_CHECKING:
    from itdesk.desk import Desk

# How long whoever switches a plugin waits for what comes of it here.
ANSWER_SECONDS = 10.0

_DISABLED = PluginStatus("disabled", "switched off by its section", False, None)

log = get_logger("plugin")


@frozen
class PluginState:
    """How one plugin is at the daemon that was asked, and what was said of it last.

    `settled` is false while the daemon has not acted on that yet.
    """

    name: str
    state: str
    reason: str
    version: str | None
    required: bool
    hooks: list[str]
    enabled: bool
    settled: bool
    changed_by: str | None
    changed_at: datetime | None


class Switchboard:
    """Does in this daemon what the switches say."""

    def __init__(self, desk: "Desk", switches: Switches, begun: Mapping[str, Switch]) -> None:
        self.switches = switches
        self.wake: Callable[[], object] | None = None
        """Tells who will apply what changed; without anybody, who switches does it."""
        self.reroute: Callable[[], None] | None = None
        """Serves the routes of plugins as they are now; may refuse them with ValueError."""
        self._desk = desk
        self._plugins = desk.plugins
        self._applied = {name: switch.turn for name, switch in begun.items()}
        self._off_since = {n: one.changed_at for n, one in begun.items() if not one.enabled}
        self._failed: dict[str, int] = {}
        self._one = asyncio.Lock()
        self._moved = asyncio.Event()

    async def list(self, caller: Caller) -> list[PluginState]:
        """Return how every plugin of the configuration is here."""
        caller.require(Role.ADMIN, "look at plugins")
        switches = await self.switches.read()
        return [self._state(name, switches.get(name)) for name in self._desk.settings.plugins]

    async def look(self, caller: Caller, name: str) -> PluginState:
        """Return how one plugin is here."""
        for state in await self.list(caller):
            if state.name == name:
                return state
        raise unknown()

    async def turn(self, caller: Caller, name: str, *, enabled: bool) -> PluginState:
        """Switch a plugin for all daemons, and return what came of it at this one."""
        number = await self.switches.turn(caller, name, enabled=enabled)
        if self.wake is None:
            await self.apply()
        elif number is not None:
            self.wake()
            await self._reached(name, number)
        return await self.look(caller, name)

    async def apply(self) -> None:
        """Do what the switches say that was not done yet.

        One that is cut short or fails is done again, at the next time.
        """
        async with self._one:
            for name, switch in (await self.switches.read()).items():
                if self._applied.get(name, 0) == switch.turn:
                    continue
                try:
                    await self._apply(name, switch)
                except Exception as exc:  # noqa: BLE001 - the others are switched all the same
                    trace = None if self._failed.get(name) == switch.turn else exc
                    self._failed[name] = switch.turn
                    log.error(
                        "plugin not switched", plugin=name, reason=reason(exc), exc_info=trace
                    )
                    continue
                self._applied[name] = switch.turn
                self._moved.set()
                self._moved = asyncio.Event()

    async def _apply(self, name: str, switch: Switch) -> None:
        record = self._plugins.registry.records.get(name)
        if record is None or record.state in ("disabled", "left out"):
            return  # its section, or the safe mode, has the last word
        if record.state == "loaded" and (fixed := self._plugins.fixed(name)):
            record.pending = "" if switch.enabled else f"{told(switch)}; {fixed} takes a restart"
        elif not switch.enabled and record.section.required:
            log.warning("plugin stays on: it is required", plugin=name)  # said before it was
        elif not switch.enabled:
            self._off_since.setdefault(name, switch.changed_at)
            await self._out(name, told(switch))
        elif record.state != "loaded":
            await self._in(name)

    async def _in(self, name: str) -> None:
        """Bring a plugin in, whole or not at all: who is cut short in it begins anew."""
        if self._plugins.registry.records[name].state != "off":
            await self._out(name, "begun anew")
        added = await self._plugins.start(self._desk, name)
        if added is None:
            return
        try:
            self._require_free(added)
            if self.reroute is not None and added.routes:
                self.reroute()
        except Exception as exc:  # noqa: BLE001 - what it declares may be anything
            log.error("plugin does not fit in", plugin=name, exc_info=exc)
            # Those names may be somebody else's.
            self._plugins.registry.records[name].work.clear()
            await self._out(name, f"does not fit in: {reason(exc)}", broken=True)
            return
        self._desk.jobs.register(*added.jobs)
        await self._catch_up(name, added)
        self._add(name, added)

    async def _catch_up(self, name: str, added: Contribution) -> None:
        """Queue what was missed, before a tracker tells anything that would overwrite it."""
        kinds = [kind for kind in added.jobs if kind.catches_up]
        if name in self._off_since:
            await catch_up(self._desk.db, self._desk.jobs, kinds, self._off_since[name])
            del self._off_since[name]

    def _require_free(self, added: Contribution) -> None:
        names = [one.name for one in added.jobs] + [one.name for one in added.schedules]
        if taken := [name for name in names if names.count(name) > 1 or self._desk.jobs.has(name)]:
            raise Refused(f"there is a job or schedule named {taken[0]} already")

    def _add(self, name: str, added: Contribution) -> None:
        desk = self._desk
        desk.schedules.register(*added.schedules)
        if added.tracker is not None:
            desk.trackers[name] = added.tracker
        if added.provider is not None:
            desk.identities.providers[name] = added.provider
        if added.mailer is not None and name == desk.settings.mail.plugin:
            desk.mail.mailer = added.mailer
        if added.model is not None and name == desk.settings.ai.plugin:
            desk.assist.model = added.model
        self._plugins.admit(name)
        # What waited for it may be due.
        for wake in desk.db.job_listeners:
            wake()

    async def _out(self, name: str, why: str, *, broken: bool = False) -> None:
        """Take a plugin out, or what is left of it: first all that leads to it."""
        desk = self._desk
        desk.schedules.withdraw(self._plugins.registry.records[name].work)
        desk.trackers.pop(name, None)
        desk.identities.providers.pop(name, None)
        if name == desk.settings.mail.plugin:
            desk.mail.mailer = None
        if name == desk.settings.ai.plugin:
            desk.assist.model = None
        if self._plugins.served.pop(name, None) and self.reroute is not None:
            self.reroute()
        await self._plugins.stop(name, why=why, state="broken" if broken else "off")

    async def _reached(self, name: str, number: int) -> None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while self._applied.get(name, 0) < number:
                    await self._moved.wait()
        except TimeoutError:
            log.warning("plugin takes its time", plugin=name)

    def _state(self, name: str, switch: Switch | None) -> PluginState:
        status = self._plugins.status().get(name, _DISABLED)
        return PluginState(
            name=name,
            state=status.state,
            reason=status.reason,
            version=status.version,
            required=status.required,
            hooks=self._plugins.hooks(name),
            enabled=switch is None or switch.enabled,
            settled=switch is None or self._applied.get(name, 0) >= switch.turn,
            changed_by=switch.changed_by if switch else None,
            changed_at=switch.changed_at if switch else None,
        )
