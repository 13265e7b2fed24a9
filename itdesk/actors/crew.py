"""Several things done side by side by one actor, and what comes meanwhile begun at once."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Generic, TypeVar

from itdesk.errors import DeskError
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.log import get_logger

log = get_logger("crew")

Work = TypeVar("Work")


class Crew(Actor, Generic[Work]):
    """Does whatever is due; a message only says when to look."""

    critical = False

    def __init__(self) -> None:
        self.at_work: list[Work] = []
        self._look = asyncio.Event()
        self._ticked = False

    async def take(self, *, ticked: bool) -> Sequence[Work]:
        """Return what is due and has room beside `at_work`; `ticked`, if a tick came since."""
        raise NotImplementedError

    async def work(self, one: Work) -> None:
        """Do one thing that was taken."""
        raise NotImplementedError

    async def handle(self, message: object) -> None:
        """Work until nothing is due and nothing runs; what comes meanwhile is taken at once."""
        self._ticked |= message is TICK
        try:
            async with asyncio.TaskGroup() as group:
                listening = group.create_task(self._listen())
                try:
                    while await self._begin(group) or self._look.is_set():
                        await self._look.wait()
                finally:
                    listening.cancel()
        except ExceptionGroup as failed:
            if len(failed.exceptions) > 1:
                raise
            raise failed.exceptions[0] from None

    async def _listen(self) -> None:
        """Take the messages that come while we work: a long piece must not keep others waiting."""
        while await self.mailbox.ready():
            while len(self.mailbox):
                self._ticked |= self.mailbox.take() is TICK
            self._look.set()
        self._look.set()

    async def _begin(self, group: asyncio.TaskGroup) -> bool:
        """Begin what is due; return whether anything runs."""
        self._look.clear()
        ticked, self._ticked = self._ticked, False
        try:
            taken = await self.take(ticked=ticked)
        except DeskError as exc:
            # What runs is not cut short because the database is out.
            if not self.at_work:
                raise
            log.warning("nothing can be taken now", actor=self.name, problem=exc.message)
            taken = ()
        for one in taken:
            self.at_work.append(one)
            task = group.create_task(self.work(one), name=f"{self.name}:work")
            # No `finally`, which a task that is cancelled before it began never comes to.
            task.add_done_callback(partial(self._done, one))
        self.progress()
        return bool(self.at_work)

    def _done(self, one: Work, _: object) -> None:
        self.at_work.remove(one)
        self._look.set()
