"""The scanner: keeps the quarantine empty."""

import asyncio
from collections import Counter
from collections.abc import Callable

from itdesk.config import Scanner as ScannerSettings
from itdesk.desk.scans import Scans
from itdesk.runtime.actor import Actor


class Scanner(Actor):
    """Scans whatever is claimable; a message only says when to look."""

    name = "scanner"
    critical = False

    def __init__(self, scans: Scans, settings: ScannerSettings, *, max_file_size: int) -> None:
        self.period = float(settings.poll_seconds)
        # One file's scan is bounded by itself; every finished one renews this.
        self.handle_timeout = 60 + 3.0 * settings.timeout_seconds + max_file_size / (1 << 20)
        self._scans = scans
        self._settings = settings
        self._finished = 0
        self.results: Counter[str] = Counter()
        self.on_result: Callable[[], object] = lambda: None

    def wake(self) -> None:
        """Say that a file may wait; once is enough for any number of them."""
        if not len(self.mailbox):
            self.tell("look")

    async def handle(self, message: object) -> None:
        """Scan, several files at once, until none waits."""
        await self._scans.count_backlog()
        if not await self._scans.trusted():
            return
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                group.create_task(self._work())
        await self._scans.count_backlog()

    async def _work(self) -> None:
        """Scan one file after the other until none waits, an engine is out, or we stop."""
        while not self.mailbox.closed and not self._scans.problems:
            claims = await self._scans.claim(1)
            if not claims:
                return
            try:
                outcome = await self._scans.scan(claims[0])
            except asyncio.CancelledError:
                await asyncio.shield(self._scans.release(claims[0]))
                raise
            # A reserved file that did not arrive yet is none that waits for us.
            if outcome.status is not None or outcome.reason is not None:
                self.results[outcome.status or "waits"] += 1
            self.progress()
            self.on_result()
            self._finished += 1
            if self._finished % self._settings.batch == 0:
                await self._scans.count_backlog()
