"""How the desk is: what lives, what can be served, and what an operator should mend."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from itdesk.desk import Desk, restoring
from itdesk.errors import DeskError

OK, DEGRADED, UNAVAILABLE = "ok", "degraded", "unavailable"

# A storage is tried for real, but not for everybody who asks.
_STORAGE_SECONDS = 10.0

# Mail that is owed for longer is told: a server that greylists takes some minutes.
LATE_MAIL_SECONDS = 900.0

Check = tuple[str, str]


class Actors(Protocol):
    """What runs: the supervisor."""

    def status(self) -> Mapping[str, Any]:
        """Say how each actor is."""

    def stale(self) -> list[str]:
        """Name the critical actors that make no progress."""


class Health:
    """Looks at every part of the desk when asked."""

    def __init__(self, desk: Desk, actors: Actors) -> None:
        self._desk = desk
        self._actors = actors
        self._stored: tuple[float, Check] | None = None
        self._ready = desk.metrics.gauge("itdesk_ready", "1 while requests can be served.")
        self._degraded = desk.metrics.gauge(
            "itdesk_degraded", "1 while this part of /readyz is not ok.", ["part"]
        )

    def alive(self) -> bool:
        """Return whether the loop and its critical actors make progress."""
        return not self._actors.stale()

    async def readiness(self) -> dict[str, Any]:
        """Return the status of the whole and of every part, with the reason for each that ails."""
        checks = {
            "database": await _tried(self._desk.db.ping, UNAVAILABLE),
            "storage": await self._storage_check(),
            "scanner": self._scanner_check(),
            "plugins": await self._plugins_check(),
            "actors": self._actors_check(),
        }
        if self._desk.assist.model is not None:
            problem = self._desk.assist.problem
            checks["assist"] = (DEGRADED, problem) if problem else (OK, "")
        kept_there = {
            "mail": self._mail_check,
            "backup": self._backup_check,
            "outbound": self._outbound_check,
        }
        # A database that hangs is waited for once, not once for each part.
        is_out = checks["database"][0] != OK
        unknown = DEGRADED, "not known while the database is away"
        for name, check in kept_there.items():
            checks[name] = unknown if is_out else await check()
        statuses = {status for status, _ in checks.values()}
        for name, (status, _) in checks.items():
            self._degraded.labels(name).set(status != OK)
        self._ready.set(UNAVAILABLE not in statuses)
        worst = next((s for s in (UNAVAILABLE, DEGRADED) if s in statuses), OK)
        return {
            "status": worst,
            "checks": {
                name: {"status": status, "reason": reason}
                for name, (status, reason) in checks.items()
            },
        }

    async def _storage_check(self) -> Check:
        now = self._desk.clock.monotonic()
        if self._stored is None or now - self._stored[0] >= _STORAGE_SECONDS:
            self._stored = now, await _tried(self._desk.attachments.check_storage, DEGRADED)
        return self._stored[1]

    def _scanner_check(self) -> Check:
        if not self._desk.settings.scanner.enabled:
            return DEGRADED, "scanner.enabled is false: no attachment can be downloaded"
        problems = self._desk.scans.problems
        if not problems:
            return OK, ""
        return DEGRADED, "; ".join(f"{name}: {'; '.join(what)}" for name, what in problems.items())

    async def _plugins_check(self) -> Check:
        required = {name for name, status in self._desk.plugins.status().items() if status.required}
        ailing = {n: h.reason for n, h in (await self._desk.plugins.health()).items() if not h.ok}
        if not ailing:
            return OK, ""
        reason = "; ".join(f"{name}: {why}" for name, why in ailing.items())
        return (UNAVAILABLE if required & ailing.keys() else DEGRADED), reason

    async def _backup_check(self) -> Check:
        try:
            problem = await self._desk.backups.problem()
        except DeskError as exc:
            problem = exc.message
        return (DEGRADED, problem) if problem else (OK, "")

    async def _outbound_check(self) -> Check:
        try:
            pause = await restoring.pause_of(self._desk.db)
        except DeskError as exc:
            return DEGRADED, exc.message
        if pause is None:
            return OK, ""
        if pause.files_at is None:
            return DEGRADED, "a restore was not finished: run `itdesk restore` once more"
        return DEGRADED, "restored from a backup: no mail or request goes out until `itdesk resume`"

    async def _mail_check(self) -> Check:
        """Mail that waits makes nobody else wait: it is told, not unavailable."""
        try:
            owed = await self._desk.mail.waiting()
        except DeskError as exc:
            return DEGRADED, exc.message
        if owed.oldest_seconds < LATE_MAIL_SECONDS:
            return OK, ""
        return DEGRADED, (
            f"{owed.count} mails wait, the oldest for {owed.oldest_seconds:.0f} s:"
            " `itdesk doctor` tries the mail server, GET /api/v1/emails?status=queued says why"
        )

    def _actors_check(self) -> Check:
        ailing = [
            f"{name} is {status.state}: {status.reason}".rstrip(": ")
            for name, status in self._actors.status().items()
            if status.state not in ("running", "starting")
        ]
        stale = self._actors.stale()
        if stale:
            return UNAVAILABLE, "no progress: " + ", ".join(stale)
        return (DEGRADED, "; ".join(ailing)) if ailing else (OK, "")


async def _tried(check: Callable[[], Awaitable[None]], otherwise: str) -> Check:
    try:
        await check()
    except DeskError as exc:
        return otherwise, exc.message
    return OK, ""
