"""The rescanner: looks at clean files again when the engines have newer signatures."""

import asyncio

from itdesk.config import Scanner as ScannerSettings
from itdesk.desk.rescans import Rescans
from itdesk.desk.scans import Scans
from itdesk.runtime.actor import Actor


class Rescanner(Actor):
    """Looks at a bounded number of files a time, one after the other, beside the scanner."""

    name = "rescanner"
    critical = False

    def __init__(
        self, rescans: Rescans, scans: Scans, settings: ScannerSettings, *, max_file_size: int
    ) -> None:
        self.period = float(settings.rescan_seconds)
        self.handle_timeout = 60 + 3.0 * settings.timeout_seconds + max_file_size / (1 << 20)
        self._rescans = rescans
        self._scans = scans
        self._settings = settings

    async def handle(self, message: object) -> None:
        """Look at up to a batch of files that were looked at with older signatures."""
        if not await self._scans.trusted():
            return
        again = await self._rescans.outdated()
        if again is None:
            return
        for _ in range(self._settings.rescan_batch):
            if self.mailbox.closed or (held := await self._rescans.claim(again)) is None:
                return
            try:
                outcome = await self._rescans.look(held)
            except asyncio.CancelledError:
                await asyncio.shield(self._rescans.release(held))
                raise
            self.progress()
            if outcome.status is None:
                return  # an engine or the storage is out: the next period is early enough
