"""The scanner: keeps the quarantine empty."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from itdesk.actors.crew import Crew
from itdesk.config import Scanner as ScannerSettings
from itdesk.desk.scans import Scans
from itdesk.runtime.log import get_logger
from itdesk.store.attachments import Claim

log = get_logger("scanner")


class Scanner(Crew[Claim]):
    """Scans whatever is claimable, several files at once."""

    name = "scanner"

    def __init__(self, scans: Scans, settings: ScannerSettings, *, max_file_size: int) -> None:
        super().__init__()
        self.period = float(settings.poll_seconds)
        # No file may take longer either; every tick renews it for the others.
        self.handle_timeout = 60 + 3.0 * settings.timeout_seconds + max_file_size / (1 << 20)
        self._scans = scans
        self._settings = settings
        self.results: Counter[str] = Counter()
        self.on_result: Callable[[], object] = lambda: None

    async def take(self, *, ticked: bool) -> Sequence[Claim]:
        """Return a file for everyone who is idle; none while an engine is out or we stop."""
        if ticked or not self.at_work:
            await self._scans.count_backlog()
            await self._scans.trusted()
        idle = self._settings.concurrency - len(self.at_work)
        if not idle or self.mailbox.closed or not self._scans.proved:
            return []
        return await self._scans.claim(idle)

    async def work(self, one: Claim) -> None:
        """Scan one file; what takes too long waits for the end of its lease."""
        try:
            async with asyncio.timeout(self.handle_timeout) as deadline:
                outcome = await self._scans.scan(one)
        except asyncio.CancelledError:
            await asyncio.shield(self._scans.release(one))
            raise
        except TimeoutError:
            if not deadline.expired():
                raise
            log.error("scan cut short, it is tried again", attachment=one.id, size=one.size)
            return
        # A reserved file that did not arrive yet is none that waits for us.
        if outcome.status is not None or outcome.reason is not None:
            self.results[outcome.status or "waits"] += 1
        self.on_result()
