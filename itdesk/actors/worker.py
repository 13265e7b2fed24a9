"""The worker: does jobs as long as any is due, each kind beside the others."""

import asyncio
from collections import Counter

from itdesk.desk.jobs import Jobs
from itdesk.errors import DeskError
from itdesk.runtime import trace
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.log import get_logger
from itdesk.store.jobs import Held

log = get_logger("jobs")


class Worker(Actor):
    """Claims and runs whatever is due; a message only says when to look."""

    name = "worker"
    critical = False
    handle_timeout = 60.0

    def __init__(self, jobs: Jobs) -> None:
        self.period = float(jobs.settings.poll_seconds)
        # Every tick renews this, however long a job takes.
        self.handle_timeout = max(self.handle_timeout, 4 * self.period)
        self._jobs = jobs
        self._running: Counter[str] = Counter()
        self._suspects = 0
        self._look = asyncio.Event()
        self._ticked = False

    def wake(self) -> None:
        """Say that a job may be due; once is enough for any number of them."""
        if not len(self.mailbox):
            self.tell("look")

    async def handle(self, message: object) -> None:
        """Run jobs until none is due and none runs; what comes meanwhile is taken at once."""
        self._ticked |= message is TICK
        async with asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen())
            try:
                while True:
                    self._look.clear()
                    held = await self._claim()
                    for one in held:
                        self._start(group, one)
                    self.progress()
                    if not held and not self._running.total() and not self._look.is_set():
                        break
                    await self._look.wait()
            finally:
                listening.cancel()

    async def teardown(self) -> None:
        """Give back what was claimed and not finished; a stop is no fault of a job."""
        await self._jobs.release(counted=not self.mailbox.closed)

    async def _listen(self) -> None:
        """Take the messages that come while jobs run: a long job must not keep others waiting."""
        while await self.mailbox.ready():
            while len(self.mailbox):
                self._ticked |= self.mailbox.take() is TICK
            self._look.set()
        self._look.set()

    async def _claim(self) -> list[Held]:
        """Take what is due; while jobs run, a database that is out does not cut them short."""
        if self.mailbox.closed:
            return []
        try:
            if self._ticked:
                await self._jobs.tidy()
                self._ticked = False
            return await self._jobs.claim(self._running, suspects=not self._suspects)
        except DeskError as exc:
            if not self._running.total():
                raise
            log.warning("no jobs can be claimed now", problem=exc.message)
            return []

    def _start(self, group: asyncio.TaskGroup, held: Held) -> None:
        self._running[held.type] += 1
        self._suspects += self._jobs.is_suspect(held)
        group.create_task(self._work(held), name=f"job:{held.type}")

    async def _work(self, held: Held) -> None:
        try:
            with trace.resumed(held.trace):
                await self._jobs.run(held)
        finally:
            self._running[held.type] -= 1
            self._suspects -= self._jobs.is_suspect(held)
            self._look.set()
