"""A desk beside a Jira in the test's own process, whose jobs are done when the test says so."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import orjson

from itdesk.actors.worker import Worker
from itdesk.model import SYSTEM, Role, Ticket
from itdesk.remote import Mirrored, Reconciled
from itdesk.runtime.actor import TICK
from itdesk.store.paging import Window
from itdesk_plugins.jira import push
from tests.support.desk import Bench, bench_on
from tests.support.jira import Delivery, Dialect, FakeJira, Issue, fake_jira


class Scene:
    """A desk beside a Jira, and what tests do with both over and over."""

    def __init__(self, bench: Bench, jira: FakeJira) -> None:
        self.bench, self.jira = bench, jira
        self._worker = Worker(bench.desk.jobs)

    # --- inwards ---------------------------------------------------------------------------

    async def walk(self, since: datetime | None = None, project: str | None = None) -> Reconciled:
        """Reconcile; the numbers always add up (S4-56)."""
        done = await self.bench.desk.trackers["jira"].reconcile(since=since, project_key=project)
        assert done.created + done.updated + done.unchanged + len(done.errors) == done.fetched
        return done

    async def hear(self, deliveries: list[Delivery] | None = None) -> list[Mirrored]:
        """Deliver webhooks, else all that wait; return what became of each."""
        tracker = self.bench.desk.trackers["jira"]
        became = []
        for one in self.jira.take() if deliveries is None else deliveries:
            headers = one.headers(None)
            body = orjson.loads(one.body)
            became.append(
                await tracker.receive(body, headers, digest=one.identifier, request_id=None)
            )
        return became

    async def mirrored(self, summary: str = "VPN is down", **fields: Any) -> tuple[Issue, Ticket]:
        """Return a new issue and the ticket that mirrors it."""
        issue = self.jira.issue(summary, **fields)
        await self.hear()
        return issue, await self.ticket(issue.key)

    # --- outwards --------------------------------------------------------------------------

    async def work(self) -> None:
        """Do all jobs that are due."""
        self._worker.tell(TICK)
        while len(self._worker.mailbox):
            await self._worker.step()

    async def hurry(self) -> None:
        """Let what waits for another attempt be due now."""
        await self.bench.sql(
            "UPDATE jobs SET run_at = now() WHERE state = 'waiting' AND run_at > now()"
        )

    async def jobs(self) -> list[tuple[str, str | None]]:
        """Return the pushes in their order: their states and last errors."""
        query = """
            SELECT coalesce(jsonb_agg(jsonb_build_array(state, last_error) ORDER BY position), '[]')
            FROM jobs WHERE type = $1
        """
        found: Any = await self.bench.sql(query, push.PUSH)
        return [tuple(one) for one in found]

    def writes(self, path: str = "") -> list[tuple[str, str]]:
        """Return what Jira was told to change."""
        asked = self.jira.calls(None, path)
        return [(one.method, one.path) for one in asked if one.method not in ("GET", "HEAD")]

    # --- here ------------------------------------------------------------------------------

    async def switch(self, *, enabled: bool) -> None:
        """Switch the plugin off or on, for all daemons."""
        caller = await self.bench.person(Role.ADMIN)
        await self.bench.desk.switchboard.turn(caller, "jira", enabled=enabled)

    async def edit(self, ticket: Ticket, **fields: Any) -> Ticket:
        """Change a ticket as an administrator does."""
        caller = await self.bench.person(Role.ADMIN)
        return await self.bench.desk.tickets.update(caller, str(ticket.id), fields, force=True)

    async def ticket(self, key: str) -> Ticket:
        """Return a ticket."""
        return await self.bench.desk.tickets.get(SYSTEM, key)

    async def said(self, key: str) -> list[str]:
        """Return a ticket's comments."""
        page = await self.bench.desk.tickets.comments(SYSTEM, key, Window(limit=200))
        return [comment.body for comment in page.items]

    async def mark(self, project: str = "ITSM") -> datetime:
        """Return how far the mirror has come."""
        states = await self.bench.desk.mirror.states()
        (at,) = [one.last_synced_at for one in states if one.project_key == project]
        assert at is not None
        return at

    def searches(self) -> list[str]:
        """Return the JQL of all searches so far."""
        return [one.query["jql"] for one in self.jira.calls("GET", "/search")]


def connection(jira: FakeJira, **env: str) -> Mapping[str, str]:
    """Return the environment of a desk that is connected to a Jira."""
    return {
        "JIRA_BASE_URL": jira.url,
        "JIRA_EMAIL": jira.email,
        "JIRA_API_TOKEN": jira.token,
        "JIRA_PROJECT_KEY": "ITSM",
        **env,
    }


@asynccontextmanager
async def scene_on(
    database_url: str, dialect: Dialect = "cloud", **env: str
) -> AsyncIterator[Scene]:
    """Lend a desk that is connected to a Jira."""
    async with (
        fake_jira(dialect) as jira,
        bench_on(database_url, **connection(jira, **env)) as bench,
    ):
        yield Scene(bench, jira)
