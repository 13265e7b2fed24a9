"""One node's worker, driven by hand: as many as a test likes on one database."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest_asyncio

from itdesk.actors.worker import Worker
from itdesk.config import Jobs as JobSettings
from itdesk.desk.jobs import Jobs
from itdesk.hookspecs import JobType
from itdesk.runtime.actor import TICK
from itdesk.runtime.clock import Clock, FakeClock
from itdesk.runtime.metrics import Metrics
from itdesk.store.db import Database


class Node:
    """A daemon as far as jobs go; its clock stands still, years away from the database's."""

    def __init__(self, url: str, *types: JobType, clock: Clock | None = None) -> None:
        self.clock = clock or FakeClock()
        self.metrics = Metrics()
        self.db = Database(url)
        self.jobs = Jobs(self.db, JobSettings(), self.clock, self.metrics, dice=lambda: 1.0)
        self.jobs.register(*types)
        self.worker = Worker(self.jobs)
        self.db.jobs_of = self.jobs.of_events
        self.db.job_listeners.append(self.worker.wake)

    async def poll(self) -> None:
        """Do all that is due, as a tick would."""
        self.worker.tell(TICK)
        while len(self.worker.mailbox):
            await self.worker.step()

    async def enqueue(self, type: str, **how: Any) -> UUID:
        """Queue one job."""
        async with self.db.transaction() as tx:
            return tx.enqueue(type, how.pop("args", {}), **how)

    async def sql(self, statement: str, *values: object) -> Any:
        """Run a statement behind everybody's back and return its first value."""
        async with self.db.connection() as conn:
            return await conn.fetchval(statement, *values)

    async def rows(self, columns: str = "state") -> list[tuple[Any, ...]]:
        """Return all jobs in the order of their positions."""
        async with self.db.connection() as conn:
            found = await conn.fetch(f"SELECT {columns} FROM jobs ORDER BY position")  # noqa: S608
        return [tuple(row) for row in found]

    async def expire_leases(self) -> None:
        """Make every lease look over."""
        await self.sql("UPDATE jobs SET lease_until = now() WHERE state = 'leased'")

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


Nodes = Callable[..., Node]


@asynccontextmanager
async def nodes_on(url: str) -> AsyncIterator[Nodes]:
    """Lend a function that makes nodes on a database; all are closed afterwards."""
    made: list[Node] = []

    def make(*types: JobType, clock: Clock | None = None) -> Node:
        made.append(Node(url, *types, clock=clock))
        return made[-1]

    try:
        yield make
    finally:
        for node in made:
            await node.db.close()


@pytest_asyncio.fixture
async def nodes(database_url: str) -> AsyncIterator[Nodes]:
    """A function that makes another node on this test's database."""
    async with nodes_on(database_url) as make:
        yield make
