"""Runs all actors side by side: one may fail, and no other notices."""

import asyncio
from collections.abc import Callable

from itdesk.runtime.actor import Actor
from itdesk.runtime.clock import Clock
from itdesk.runtime.keeper import ActorStatus, Ended, Escalated, Keeper, State
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics

__all__ = ["ActorStatus", "Escalated", "State", "Supervisor", "Watchdog"]

log = get_logger("supervisor")


class Supervisor:
    """Starts actors in order, keeps each alive on its own, stops them in reverse order."""

    def __init__(
        self,
        clock: Clock,
        metrics: Metrics,
        notify: Callable[[str], object],
        *,
        outages: tuple[type[BaseException], ...] = (OSError, TimeoutError),
        drain_timeout: float = 30.0,
        watchdog: float | None = None,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._notify = notify
        # A handler cut at its deadline raises TimeoutError; that never ends the process.
        self._outages = (*outages, TimeoutError)
        self._drain_timeout = drain_timeout
        self._keepers: dict[str, Keeper] = {}
        self._halt = asyncio.Event()
        self._closing = False
        self._escalated: Escalated | None = None
        if watchdog is not None:
            # First in, so last out: a long drain is alive too.
            self.add(Watchdog(self.stale, notify, watchdog))

    def add(self, actor: Actor) -> None:
        """Take an actor in; all are started by `run`, in this order."""
        if actor.name in self._keepers:
            raise ValueError(f"there are two actors named {actor.name}")
        self._keepers[actor.name] = Keeper(
            actor, self._clock, self._metrics, outages=self._outages, escalate=self._escalate
        )

    def status(self) -> dict[str, ActorStatus]:
        """Say how each actor is, for readiness."""
        return {name: keeper.status() for name, keeper in self._keepers.items()}

    def stale(self) -> list[str]:
        """Name the critical actors that make no progress although they should, for liveness."""
        return [n for n, k in self._keepers.items() if k.actor.critical and not k.fresh()]

    def abandoned(self) -> list[str]:
        """Name the actors left behind still running, because they ignored their cancellation."""
        return [name for name, keeper in self._keepers.items() if keeper.abandoned]

    async def run(self, stop: asyncio.Event, force: asyncio.Event | None = None) -> None:
        """Run until `stop` and then end in order, or at once on `force`; raises Escalated."""
        async with asyncio.TaskGroup() as group:
            try:
                tasks = {
                    keeper: group.create_task(self._keep(keeper), name=f"keeper:{name}")
                    for name, keeper in self._keepers.items()
                }
                relays = [group.create_task(self._relay(stop, self._halt.set))]
                if force is not None:
                    relays.append(group.create_task(self._relay(force, self._force)))
                await self._halt.wait()
                await self._wind_down(tasks)
                for relay in relays:
                    relay.cancel()
            finally:
                self._closing = True
        if self._escalated is not None:
            raise self._escalated

    async def _wind_down(self, tasks: dict[Keeper, asyncio.Task[None]]) -> None:
        self._notify("STOPPING=1")
        by = self._clock.monotonic() + self._drain_timeout
        for keeper, task in reversed(tasks.items()):
            keeper.stop(by)
            await asyncio.wait({task})

    async def _keep(self, keeper: Keeper) -> None:
        """Run a keeper again whenever it ends without being asked: nobody else would notice."""
        while not keeper.finished:
            try:
                await keeper.run()
            except asyncio.CancelledError as exc:
                if self._closing:
                    await keeper.cut_short()
                    raise
                keeper.ended_early(Ended("the keeper was cancelled"))
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                log.error("keeper cancelled", actor=keeper.actor.name, exc_info=exc)
            except Exception as exc:  # noqa: BLE001 - a TaskGroup would end all other actors
                keeper.ended_early(exc)
                log.error("keeper failed", actor=keeper.actor.name, exc_info=exc)

    async def _relay(self, event: asyncio.Event, act: Callable[[], None]) -> None:
        await event.wait()
        act()

    def _force(self) -> None:
        log.warning("forced to stop at once")
        for keeper in self._keepers.values():
            keeper.force()
        self._halt.set()

    def _escalate(self, failure: Escalated) -> None:
        if not self._halt.is_set():
            self._escalated = failure
            self._halt.set()


class Watchdog(Actor):
    """Tells systemd that we make progress, as long as it is true; it never asks the database."""

    name = "watchdog"

    def __init__(
        self, stale: Callable[[], list[str]], notify: Callable[[str], object], interval: float
    ) -> None:
        self._stale = stale
        self._notify = notify
        self.period = interval

    async def handle(self, message: object) -> None:
        """Ping, or say in the log who keeps us from it."""
        if stale := self._stale():
            log.error("keep-alive withheld", actors=stale)
        else:
            self._notify("WATCHDOG=1")
