"""A desk with rules, inside the test's process, on a real database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from itdesk.actors.sequencer import Sequencer
from itdesk.actors.worker import Worker
from itdesk.desk import Desk
from itdesk.desk.tickets import NewTicket
from itdesk.model import Caller, Role, Ticket
from itdesk.runtime.actor import TICK
from itdesk.store.paging import Window
from itdesk.store.workflow_runs import WorkflowRun
from itdesk.store.workflows import WorkflowRule
from tests.support.desk import Bench, bench_on


@dataclass
class Ruled:
    """A desk and what tests of its rules do over and over."""

    bench: Bench
    admin: Caller
    agent: Caller
    user: Caller

    @property
    def desk(self) -> Desk:
        return self.bench.desk

    async def rule(self, trigger: str, actions: Any, **more: Any) -> WorkflowRule:
        """Make a rule."""
        wanted: dict[str, Any] = {
            "name": "A rule", "description": "", "active": True, "position": None,
            "unchanged_for": None, "conditions": {}, **more,
        }  # fmt: skip
        return await self.desk.workflows.create(
            self.admin, {**wanted, "trigger": trigger, "actions": actions}
        )

    async def ticket(self, title: str = "VPN is down", **fields: Any) -> Ticket:
        """Open a ticket as the user."""
        return await self.desk.tickets.create(self.user, NewTicket(title, **fields))

    async def now(self, ticket: Ticket) -> Ticket:
        """Return a ticket as it is now."""
        return await self.desk.tickets.get(self.admin, str(ticket.id))

    async def work(self) -> None:
        """Do all jobs that are due, and those that follow."""
        worker = Worker(self.desk.jobs)
        for _ in range(100):
            if not await self.sql("SELECT count(*) FROM jobs WHERE state = 'waiting'"
                                  " AND run_at <= now() AND type LIKE 'workflows.%'"):  # fmt: skip
                return
            worker.tell(TICK)
            while len(worker.mailbox):
                await worker.step()
        raise AssertionError("the rules never came to rest")

    async def runs(self, rule: WorkflowRule, **how: Any) -> list[WorkflowRun]:
        """Return a rule's runs, the oldest first."""
        how = {"ticket": None, "matched": None, **how}
        page = await self.desk.workflows.runs(self.admin, str(rule.id), Window(limit=200), **how)
        return page.items[::-1]

    async def comments(self, ticket: Ticket) -> list[Any]:
        """Return what was said on a ticket."""
        window = Window(limit=200)
        return (await self.desk.tickets.comments(self.admin, str(ticket.id), window)).items

    async def events(self, ticket: Ticket) -> list[Any]:
        """Return the journal of a ticket."""
        async with self.desk.db.connection() as conn:
            return list(
                await conn.fetch(
                    "SELECT * FROM events WHERE ticket_id = $1 ORDER BY ticket_version", ticket.id
                )
            )

    async def number(self) -> None:
        """Let the sequencer number what there is."""
        sequencer = Sequencer(self.desk.db, self.desk.metrics)
        sequencer.tell(TICK)
        while len(sequencer.mailbox):
            await sequencer.step()

    async def sql(self, statement: str, *values: Any) -> Any:
        """Run a statement behind the desk's back and return its first value."""
        return await self.bench.sql(statement, *values)


@asynccontextmanager
async def ruled_on(url: str, **env: str) -> AsyncIterator[Ruled]:
    """Lend such a desk on a database."""
    async with bench_on(url, **env) as bench:
        await bench.desk.projects.ensure_default("TSK", 1001)
        yield Ruled(
            bench,
            await bench.person(Role.ADMIN),
            await bench.person(Role.AGENT),
            await bench.person(),
        )
