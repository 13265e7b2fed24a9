"""How code of plugins is run: it may raise, hang, block, or not mind being cancelled.

What it raises is returned, SystemExit and KeyboardInterrupt included: a plugin that wants to end
the process is a broken plugin. Only the cancellation of the caller's own task passes. An awaitable
runs in a task of its own, since one that swallows its cancellation would otherwise hold the caller
for ever. A plain function that blocks cannot be stopped, only named in the log.
"""

import asyncio
import types
from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import wraps
from time import perf_counter
from typing import Any, TypeVar

import pluggy
from prometheus_client import Counter

from itdesk.desk.contract import Late
from itdesk.runtime.log import get_logger

STALL_SECONDS = 0.1
# How long an awaitable may take to give up after it was cancelled, before it is abandoned.
GRACE_SECONDS = 1.0

A = TypeVar("A")
R = TypeVar("R")
Outcome = tuple[Any, BaseException | None]

log = get_logger("plugin")


class Isolation:
    """Runs plugins' functions and awaitables, and says which of them blocked the event loop."""

    def __init__(self, stalls: Counter) -> None:
        self._stalls = stalls
        self._abandoned: set[asyncio.Task[Any]] = set()

    def run(self, impl: pluggy.HookImpl, hook: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call the function, with those of the arguments that it takes."""
        started = perf_counter()
        try:
            return invoke(impl, arguments), None
        except BaseException as exc:  # noqa: BLE001 - it is returned
            return None, exc
        finally:
            self._blame(impl.plugin_name, hook, perf_counter() - started)

    async def bounded(
        self, name: str, hook: str, awaitable: Awaitable[Any], seconds: float
    ) -> Outcome:
        """Await what a hook returned, for no longer than its deadline."""
        task = self.spawn(name, hook, awaitable)
        try:
            await asyncio.wait({task}, timeout=seconds)
            return task.result() if task.done() else (None, Late(f"no answer in {seconds:g} s"))
        finally:
            await self.give_up(name, hook, task)

    def spawn(self, name: str, hook: str, awaitable: Awaitable[Any]) -> asyncio.Task[Outcome]:
        """Start a task that ends with an outcome, whatever happens in it."""
        steps = _stepwise(awaitable, lambda seconds: self._blame(name, hook, seconds))
        return asyncio.get_running_loop().create_task(_outcome(steps), name=f"{name}.{hook}")

    def watched(
        self, name: str, what: str, function: Callable[[A], Awaitable[R]]
    ) -> Callable[[A], Awaitable[R]]:
        """Return the same function, of which each step that holds the event loop is noticed."""

        @wraps(function)
        async def run(argument: A) -> R:
            async def call() -> R:
                return await function(argument)

            result: R = await _stepwise(call(), lambda seconds: self._blame(name, what, seconds))
            return result

        return run

    async def give_up(self, name: str, hook: str, task: asyncio.Task[Any]) -> None:
        """Cancel a plugin's task unless it is done, and abandon it if it does not mind."""
        if task.done():
            return
        task.cancel()
        try:
            await asyncio.wait({task}, timeout=GRACE_SECONDS)
        finally:
            if not task.done():
                self.abandon(task)
                log.error("plugin ignores its cancellation", plugin=name, hook=hook)

    def abandon(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task and wait for it no longer."""
        if not task.done():
            self._abandoned.add(task)  # the loop itself holds tasks weakly
            task.add_done_callback(self._abandoned.discard)
            task.cancel()

    def _blame(self, name: str, hook: str, seconds: float) -> None:
        if seconds > STALL_SECONDS:
            self._stalls.labels(name).inc()
            # While it starts nobody waits for the loop; afterwards everybody does.
            say = log.info if hook == "itdesk_lifespan" else log.warning
            say("plugin blocked the event loop", plugin=name, hook=hook, seconds=seconds)


def invoke(impl: pluggy.HookImpl, arguments: Mapping[str, Any]) -> Any:
    """Call a hook's implementation with those of the arguments that it takes."""
    return impl.function(*(arguments[name] for name in impl.argnames))


async def _outcome(awaitable: Awaitable[Any]) -> Outcome:
    """Await, and return what was raised: a task that ends with SystemExit stops the loop."""
    try:
        return await awaitable, None
    except BaseException as exc:  # noqa: BLE001 - it is returned
        return None, exc


@types.coroutine
def _stepwise(
    awaitable: Awaitable[Any], report: Callable[[float], None]
) -> Generator[Any, Any, Any]:
    """Await, and report how long each step held the event loop."""

    async def steps() -> Any:
        return await awaitable

    coroutine = steps()
    resume: Callable[[Any], Any] = coroutine.send
    argument: Any = None
    while True:
        started = perf_counter()
        try:
            waited_for = resume(argument)
        except StopIteration as stop:
            return stop.value
        finally:
            report(perf_counter() - started)
        try:
            argument = yield waited_for
            resume = coroutine.send
        except BaseException as exc:  # noqa: BLE001 - it is the plugin's to handle
            resume, argument = coroutine.throw, exc
