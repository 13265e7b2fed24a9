"""What tickets mean, as numbers that a model made of their texts in the background.

They only put tickets in order that were found by their words: a model that lies about meanings can
neither find a ticket nor show one to somebody.
"""

from collections.abc import Iterable, Sequence
from operator import mul
from typing import Final
from uuid import UUID

from itdesk.desk.assist import Assist
from itdesk.desk.jobs import Job
from itdesk.hookspecs import Schedule
from itdesk.model import SYSTEM
from itdesk.store import embeddings
from itdesk.store.db import Database

EMBED: Final = "assist.embed"
BATCH: Final = 32
BATCHES: Final = 20


class Meanings:
    """Keeps the vectors of tickets up to date, and compares them."""

    def __init__(self, db: Database, assist: Assist, *, seconds: int) -> None:
        self._db = db
        self._assist = assist
        self._seconds = seconds

    def schedule(self) -> Schedule:
        """Return the schedule that makes vectors; it is off when no model makes any."""
        seconds = self._seconds if self._assist.embedding is not None else 0
        return Schedule(name=EMBED, seconds=seconds, run=self._embed)

    async def refresh(self) -> int:
        """Make the vectors that are missing or out of date, some of them; return how many."""
        made = 0
        for _ in range(BATCHES):
            count = await self._some()
            made += count
            if count < BATCH:
                break
        return made

    async def nearness(self, ticket_id: UUID, others: Iterable[UUID]) -> dict[UUID, float]:
        """Return how near others are to a ticket, from 0 to 1, as far as both are known."""
        model = self._assist.embedding
        if model is None:
            return {}
        async with self._db.connection() as conn:
            known = await embeddings.of(conn, model, [ticket_id, *others])
        mine = known.pop(ticket_id, None)
        if mine is None:
            return {}
        return {one: nearness(mine, vector) for one, vector in known.items()}

    async def _embed(self, job: Job) -> None:
        await self.refresh()

    async def _some(self) -> int:
        """Make up to a batch of vectors; return how many."""
        model = self._assist.embedding
        if model is None or not self._assist.available:
            return 0
        async with self._db.connection() as conn:
            found = await embeddings.stale(conn, model, limit=BATCH)
        vectors = await self._assist.embed(SYSTEM, [one.text for one in found], background=True)
        if vectors is None:
            return 0
        async with self._db.transaction() as tx:
            await embeddings.put(tx.conn, model, found, vectors)
        return len(found)


def nearness(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors, 0 where they point apart or are not comparable."""
    sizes = sum(map(mul, one, one)) * sum(map(mul, other, other))
    if len(one) != len(other) or not sizes:
        return 0.0
    cosine: float = sum(map(mul, one, other)) / sizes**0.5
    return min(max(cosine, 0.0), 1.0)
