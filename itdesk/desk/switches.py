"""Switching plugins off and on while the desk works: who may, what may not be, and what is kept.

A switch is a row, so that it lasts and every daemon on the database hears of it. It stands below
the configuration: a plugin that its section switches off, or the safe mode leaves out, stays out.
"""

from datetime import UTC

from itdesk.config import Settings
from itdesk.errors import Conflict, NotFound
from itdesk.model import Caller, Event, Role
from itdesk.runtime.log import get_logger
from itdesk.store import switches
from itdesk.store.db import Database
from itdesk.store.switches import Switch

log = get_logger("plugin")


class Switches:
    """The switches of the plugins that the configuration names."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings

    async def read(self) -> dict[str, Switch]:
        """Return the switches that were ever used, by plugin."""
        async with self._db.connection() as conn:
            return await switches.all_of(conn)

    async def turn(self, caller: Caller, name: str, *, enabled: bool) -> int | None:
        """Switch a plugin and return which turn that is; None when it was off already.

        One that is on is switched on again: that tries a broken one once more.
        """
        caller.require(Role.ADMIN, "switch plugins")
        self._require_possible(name, enabled=enabled)
        async with self._db.transaction() as tx:
            number = await switches.turn(tx.conn, name, enabled=enabled, by=caller.user_id)
            if number is not None:
                type = "plugin.enabled" if enabled else "plugin.disabled"
                tx.record(Event.by(caller, type, data={"plugin": name}))
        if number is not None:
            log.info("plugin switched", plugin=name, enabled=enabled, by=caller.user_id)
        return number

    def _require_possible(self, name: str, *, enabled: bool) -> None:
        section = self._settings.plugins.get(name)
        if section is None:
            raise unknown()
        if not section["enabled"]:
            raise Conflict(
                f"[plugins.{name}] itself switches it off: correct the section, then restart.",
                code="E_PLUGIN_SECTION",
            )
        if enabled:
            return
        if section.get("required"):
            raise Conflict(
                f"[plugins.{name}] says that it is required: take that out, restart, then try"
                " again.",
                code="E_PLUGIN_NEEDED",
            )
        if name == storage_plugin(self._settings):
            raise Conflict(
                f"The files are in the storage of {name} (storage.backend): without it the desk"
                " does not start.",
                code="E_PLUGIN_NEEDED",
            )


def storage_plugin(settings: Settings) -> str:
    """Return the plugin whose storage the desk uses."""
    return {"local": "filesystem", "s3": "s3"}[settings.storage.backend or "local"]


def unknown() -> NotFound:
    """Return what is said of a plugin that the configuration does not name."""
    return NotFound(
        "The configuration has no section for such a plugin; itdesk plugins list shows them.",
        code="E_PLUGIN_NOT_FOUND",
    )


def told(switch: Switch) -> str:
    """Return since when a plugin is off, and how it comes back; /readyz tells it to everybody."""
    when = switch.changed_at.astimezone(UTC)
    return f"switched off {when:%Y-%m-%d %H:%M} UTC: itdesk plugins enable {switch.name}"
