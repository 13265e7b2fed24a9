"""A plugin's context: entered before the desk serves and left after it stopped.

Each lives in a task of its own, so that a task group in it cannot cancel the desk.
"""

import asyncio
import inspect
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pluggy
from prometheus_client import Histogram

from itdesk.desk.contract import Late
from itdesk.desk.discovery import Refused
from itdesk.desk.isolation import Isolation, Outcome, invoke
from itdesk.desk.plugin_records import kind
from itdesk.desk.registry import Registry

if TYPE_CHECKING:
    from itdesk.desk import Desk

Note = Callable[[str, str, BaseException | None], None]


class Stay:
    """One plugin's context from entering to leaving, in a task of its own."""

    hook = "itdesk_lifespan"

    def __init__(self, isolation: Isolation, impl: pluggy.HookImpl, desk: "Desk") -> None:
        self.name = impl.plugin_name
        self.entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.leave = asyncio.Event()
        self.task = isolation.spawn(self.name, self.hook, self._stay(impl, desk))

    async def _stay(self, impl: pluggy.HookImpl, desk: "Desk") -> None:
        context = invoke(impl, {"desk": desk})
        if inspect.isawaitable(context):
            context = await context
        async with context:
            self.entered.set_result(None)
            await self.leave.wait()


def ended(task: asyncio.Task[Outcome]) -> BaseException | None:
    """Return what a context that is over ended by, if it was an error."""
    return task.result()[1] if task.done() and not task.cancelled() else None


class Stays:
    """The contexts that are entered now."""

    def __init__(
        self, registry: Registry, isolation: Isolation, seconds: Histogram, note: Note
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._seconds = seconds
        self._note = note
        self._entered: list[Stay] = []

    async def enter(self, impl: pluggy.HookImpl, desk: "Desk") -> None:
        """Enter a plugin's context; one that fails or is late breaks its plugin."""
        stay = Stay(self._isolation, impl, desk)
        self._entered.append(stay)
        seconds = self._registry.records[stay.name].section.start_seconds
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
            self._registry.take_out(stay.name, stay.hook, failure)
        else:
            stay.task.add_done_callback(lambda task: self._watch(stay))

    async def leave(self, name: str) -> None:
        """Leave one plugin's context."""
        for stay in [one for one in self._entered if one.name == name]:
            await self._leave(stay)
            self._entered.remove(stay)

    async def leave_all(self) -> None:
        """Leave all in the reverse order of entering; cut short, it cuts those that are left."""
        try:
            while self._entered:
                await self._leave(self._entered[-1])
                self._entered.pop()
        finally:
            for stay in self._entered:
                stay.leave.set()
                self._isolation.abandon(stay.task)

    def _watch(self, stay: Stay) -> None:
        """Break a plugin whose context ended before it was asked to."""
        if not stay.leave.is_set():
            failure = ended(stay.task) or Refused("it ended by itself")
            self._registry.take_out(stay.name, stay.hook, failure)

    async def _leave(self, stay: Stay) -> None:
        if stay.task.done() or not stay.entered.done():
            return
        seconds = self._registry.records[stay.name].section.hook_seconds
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
