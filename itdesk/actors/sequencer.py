"""The sequencer: gives committed events their numbers, so that a reader can never miss one.

Ids and times are taken before the commit and so become visible out of order; a number given after
it cannot. Any daemon may number; a lock in the database lets one at a time.
"""

from collections.abc import Sequence

from itdesk.model import Event
from itdesk.runtime.actor import TICK, Actor
from itdesk.runtime.metrics import Metrics
from itdesk.store import events
from itdesk.store.db import Database

BATCH = 500
# How soon to try again when another daemon is numbering: its batch may not hold our events.
AGAIN_SECONDS = 0.01


class Sequencer(Actor):
    """Numbers what was committed: at once when we committed it, by poll when others did."""

    name = "sequencer"
    period = 1.0

    def __init__(self, db: Database, metrics: Metrics) -> None:
        self._db = db
        self._lag = metrics.gauge(
            "itdesk_journal_lag_seconds", "Age of the oldest event that has no number yet."
        )
        db.listeners.append(self._committed)

    async def handle(self, message: object) -> None:
        """Number all that waits."""
        while True:
            async with self._db.transaction() as tx:
                numbered = await events.number_batch(tx.conn, BATCH)
            if numbered is None:
                self.clock.call_later(AGAIN_SECONDS, self._again)
                break
            self.progress()
            if numbered[0] < BATCH:
                break
        if message is TICK:
            async with self._db.connection() as conn:
                self._lag.set(await events.lag_seconds(conn))

    def _committed(self, committed: Sequence[Event]) -> None:
        self._again()

    def _again(self) -> None:
        # One message is enough, however much was committed meanwhile.
        if not len(self.mailbox):
            self.tell("committed")
