"""Tickets that mirror the issues of a remote tracker, which is right about them.

Tellings come late, twice, in any order, or never. So a telling changes fields only when it is
newer over there than what was told before, what was deleted stays deleted, a delivery counts
once, and everything that one telling says happens in one transaction. A way that the lifecycle
does not have is no reason to refuse it; history shows every step.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from itdesk.desk.merging import PASSIVE
from itdesk.desk.outbound import Outbound
from itdesk.desk.telling import Telling
from itdesk.errors import Conflict
from itdesk.model import Caller, Role, Source, new_id
from itdesk.remote import Mirrored, RemoteIssue, Rules, SyncState
from itdesk.runtime.clock import Clock
from itdesk.store import mirrors
from itdesk.store.db import Database
from itdesk.store.failures import Contention

ATTEMPTS: Final = 5
MOST_AT_ONCE: Final = 4
WALK_SECONDS: Final = 300.0


@dataclass(slots=True)
class Walk:
    """The right to compare everything with the remote side, which one daemon has at a time."""

    db: Database
    owner: UUID
    seconds: float

    async def keep(self) -> None:
        """Go on having the right; Conflict when it was lost."""
        async with self.db.transaction() as tx:
            if not await mirrors.claim_walk(tx.conn, self.owner, seconds=self.seconds):
                raise _running()

    async def progress(self, project_key: str) -> tuple[datetime | None, datetime]:
        """Return how far the mirror has come, and the time now by the database's clock."""
        async with self.db.connection() as conn:
            return await mirrors.state(conn, project_key)

    async def note(self, project_key: str, synced_at: datetime | None, error: str | None) -> None:
        """Write down how far the walk came and what went wrong."""
        async with self.db.transaction() as tx:
            await mirrors.note_walk(
                tx.conn, self.owner, project_key, synced_at=synced_at, error=error
            )


class Mirror:
    """Writes what a remote tracker tells into tickets."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        # Tellings of one issue wait for each other: never with all connections of the desk.
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        self._rules: dict[str, Rules] = {}
        self.outbound = Outbound(db)

    def follow(self, source: str, rules: Rules) -> None:
        """Settle what both sides say of one tracker's issues by these rules from now on."""
        self._rules[source] = rules

    def unfollow(self, source: str) -> None:
        """Let one tracker's issues be right about everything, and send it nothing."""
        self._rules.pop(source, None)

    async def tell(
        self,
        issue: RemoteIssue,
        *,
        deliveries: Sequence[str] = (),
        actor: str = "",
        request_id: str | None = None,
    ) -> Mirrored:
        """Write one telling, in one transaction; one whose delivery was seen changes nothing."""
        caller = Caller(
            None, actor or issue.source.title(), Role.ADMIN, Source.JIRA, request_id=request_id
        )
        if deliveries and (known := await self._repeated(issue, deliveries)) is not None:
            return known
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._turns, self._db.transaction() as tx:
                    rules = self._rules.get(issue.source, PASSIVE)
                    return await Telling(tx, caller, issue, rules).write(deliveries)
            except Contention:
                if attempt == ATTEMPTS:
                    raise
                await self._clock.sleep(random.uniform(0.005, 0.03) * attempt)
        raise AssertionError("unreachable")

    async def _repeated(self, issue: RemoteIssue, deliveries: Sequence[str]) -> Mirrored | None:
        """Return the answer to a delivery that was written before; looking costs no lock."""
        async with self._db.connection() as conn:
            if not await mirrors.seen_before(conn, deliveries):
                return None
            found = await mirrors.find(conn, source=issue.source, key=issue.key, number=issue.id)
        return Mirrored(issue.key, found, status="duplicate")

    async def find(self, source: str, key: str, number: str | None = None) -> UUID | None:
        """Return the ticket that mirrors an issue, by its key or its lasting id."""
        async with self._db.connection() as conn:
            return await mirrors.find(conn, source=source, key=key, number=number)

    async def states(self) -> list[SyncState]:
        """Return how far the mirror of each project has come."""
        async with self._db.connection() as conn:
            return await mirrors.states(conn)

    async def count(self, source: str) -> int:
        """Return how many tickets mirror an issue."""
        async with self._db.connection() as conn:
            return await mirrors.mirrored(conn, source)

    @asynccontextmanager
    async def walking(self, *, seconds: float = WALK_SECONDS) -> AsyncIterator[Walk]:
        """Lend the right to walk; Conflict E_RECONCILE_RUNNING when it is lent already."""
        walk = Walk(self._db, new_id(), seconds)
        await walk.keep()
        try:
            yield walk
        finally:
            async with self._db.transaction() as tx:
                await mirrors.end_walk(tx.conn, walk.owner)


def _running() -> Conflict:
    return Conflict(
        "A reconciliation is going on already, here or in another daemon. Wait for its end.",
        code="E_RECONCILE_RUNNING",
    )
