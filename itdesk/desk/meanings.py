"""What tickets mean, as numbers that a model made of their texts in the background.

They only put tickets in order that were found by their words: a model that lies about meanings can
neither find a ticket nor show one to somebody.
"""

from collections.abc import Iterable, Sequence
from math import hypot
from typing import Final
from uuid import UUID

from itdesk.desk.assist import Assist
from itdesk.desk.jobs import Job
from itdesk.hookspecs import Schedule
from itdesk.model import SYSTEM
from itdesk.runtime.log import get_logger
from itdesk.store import embeddings
from itdesk.store.db import Database
from itdesk.store.embeddings import Stale

EMBED: Final = "assist.embed"
BATCH: Final = 32
BATCHES: Final = 20
_LARGEST: Final = 3.4e38
# Whether the model works is asked with this.
_HARMLESS: Final = "The printer is out of paper."

log = get_logger("meanings")


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
            known = await embeddings.nearness(conn, model, ticket_id, list(others))
        return {one: min(max(cosine, 0.0), 1.0) for one, cosine in known.items()}

    async def _embed(self, job: Job) -> None:
        await self.refresh()

    async def _some(self) -> int:
        """Make up to a batch of vectors; return how many."""
        model = self._assist.embedding
        if model is None or not self._assist.admits(background=True):
            return 0
        async with self._db.connection() as conn:
            found = await embeddings.stale(conn, model, limit=BATCH)
        return await self._kept(model, found) or await self._one_by_one(model, found)

    async def _one_by_one(self, model: str, found: Sequence[Stale]) -> int:
        """Make vectors of texts of which one may be at fault; that it has none is kept as well.

        Otherwise the same texts would come again and fail again, for ever.
        """
        for done, one in enumerate(found):
            if await self._kept(model, [one]):
                continue
            if await self._assist.embed(SYSTEM, [_HARMLESS], background=True) is None:
                # It is not the text: the model is out.
                return done
            log.warning("a text has no meaning to the model", ticket=str(one.id))
            await self._keep(model, [one], [[]])
        return len(found)

    async def _kept(self, model: str, found: Sequence[Stale]) -> int:
        """Make vectors and keep them, all or none; return how many."""
        if not found:
            return 0
        texts = [one.text for one in found]
        vectors = await self._assist.embed(SYSTEM, texts, background=True)
        if vectors is None or not all(map(_fits, vectors)):
            return 0
        await self._keep(model, found, [unit(vector) for vector in vectors])
        return len(found)

    async def _keep(
        self, model: str, found: Sequence[Stale], vectors: Sequence[Sequence[float]]
    ) -> None:
        async with self._db.transaction() as tx:
            await embeddings.put(tx.conn, model, found, vectors)


def _fits(vector: Sequence[float]) -> bool:
    """Return whether PostgreSQL's real can hold each number."""
    return max(map(abs, vector)) <= _LARGEST


def unit(vector: Sequence[float]) -> list[float]:
    """Return a vector of length one that points where this one does; empty when it is nowhere."""
    size = hypot(*vector)
    return [number / size for number in vector] if size else []
