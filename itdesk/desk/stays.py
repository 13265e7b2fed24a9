"""A plugin's context: entered before the desk serves and left after it stopped.

Each lives in a task of its own, so that a task group in it cannot cancel the desk.
"""

import asyncio
import inspect
from typing import TYPE_CHECKING

import pluggy

from itdesk.desk.isolation import Isolation, Outcome, invoke

if TYPE_CHECKING:
    from itdesk.desk import Desk


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
