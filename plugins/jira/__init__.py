"""Mirrors Jira's issues as tickets: by its webhooks, and by walking through what changed.

What changes here is sent there, job by job; and what is said there helps those who ask here.
"""

import re
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from itdesk.errors import Conflict, Invalid, NotFound, Unavailable
from itdesk.hookspecs import Health, JobType, Passage, RetryLater, Schedule, hookimpl
from itdesk.model import Caller
from itdesk.remote import SHARED, Mirrored, Reconciled
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

from . import commands
from .client import Client
from .failures import JiraFailure
from .inbound import Inbound
from .knowledge import Knowledge
from .push import Pusher, rules
from .reconcile import Reconciler
from .settings import PROJECT_KEY, JiraSettings

if TYPE_CHECKING:
    from itdesk.desk import Desk
    from itdesk.desk.jobs import Job
    from itdesk.runtime.metrics import Metrics

CHECK_SECONDS = 300.0

log = get_logger("jira")


class Plugin:
    """The section [plugins.jira]."""

    name, itdesk_api, Settings = "jira", 1, JiraSettings

    def __init__(self, settings: JiraSettings) -> None:
        self.connected = settings.connected
        self.secret = settings.webhook_secret.get_secret_value().encode()
        self._settings = settings
        self._clock = Clock()
        self._client: Client | None = None
        self._inbound: Inbound | None = None
        self._reconciler: Reconciler | None = None
        self._pusher: Pusher | None = None
        self._knowledge: Knowledge | None = None
        self._mismatch = ""

    # --- the tracker -----------------------------------------------------------------------

    async def receive(
        self, body: Any, headers: Mapping[str, str], *, digest: str, request_id: str | None
    ) -> Mirrored:
        """Write a webhook into its ticket."""
        if self._inbound is None:
            raise Unavailable("The mirror of Jira is just starting.")
        outcome = "refused"
        try:
            became = await self._inbound.receive(
                body, headers, digest=digest, request_id=request_id
            )
            outcome = _outcome(became)
        finally:
            self._deliveries.labels(outcome).inc()
        return became

    async def reconcile(self, *, since: datetime | None, project_key: str | None) -> Reconciled:
        """Compare the mirror with Jira, once at a time for all daemons."""
        if project_key is not None and not re.fullmatch(PROJECT_KEY, project_key):
            raise Invalid.field("project_key", "must be the key of a project, such as ITSM")
        if self._reconciler is None:
            raise Unavailable("The mirror of Jira is just starting.")
        if not self.connected:
            raise NotFound(
                "Jira is only listened to here: set JIRA_BASE_URL, JIRA_EMAIL and JIRA_API_TOKEN.",
                code="E_JIRA_NOT_CONFIGURED",
            )
        done = await self._reconciler.reconcile(since=since, project_key=project_key)
        for outcome in ("created", "updated", "unchanged"):
            self._reconciled.labels(outcome).inc(getattr(done, outcome))
        self._reconciled.labels("failed").inc(len(done.errors))
        self._last_walk.set(self._clock.now().timestamp())
        for name in SHARED:
            self._drift.labels(name).set(self._reconciler.drift.get(name, 0))
        return done

    # --- hooks -----------------------------------------------------------------------------

    @hookimpl
    def itdesk_metrics(self, metrics: "Metrics") -> None:
        """Count what comes from Jira and what it is asked."""
        self._requests = metrics.histogram(
            "itdesk_jira_request_seconds", "Time that Jira takes to answer.", ["outcome"]
        )
        self._deliveries = metrics.counter(
            "itdesk_jira_deliveries_total",
            "Webhooks, by what became of them.",
            ["outcome"],
        )
        self._reconciled = metrics.counter(
            "itdesk_jira_reconciled_total", "Issues compared, by what became of them.", ["outcome"]
        )
        self._last_walk = metrics.gauge(
            "itdesk_jira_last_reconcile_timestamp_seconds",
            "When a comparison last ended well.",
        )
        self._drift = metrics.gauge(
            "itdesk_jira_drift",
            "Tickets in which this field was not what Jira said, at the last comparison.",
            ["field"],
        )
        self._pushes = metrics.counter(
            "itdesk_jira_pushes_total",
            "Changes sent to Jira, by what became of them: sent, unchanged, conflict, refused.",
            ["outcome"],
        )
        self._unfinished = metrics.gauge(
            "itdesk_jira_unfinished_imports",
            "Tickets whose import was begun over an hour ago and cut: run the import again.",
        )
        self._refused = metrics.gauge(
            "itdesk_jira_account_refused", "1 while Jira does not accept the account."
        )
        self._up = metrics.gauge(
            "itdesk_jira_up", "1 while Jira answers and accepts the account, as far as was asked."
        )

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Hold the connections to Jira, and look now and then whether it is there."""
        self._clock = desk.clock
        self._client = Client(self._settings, desk.clock, self._observe)
        self._inbound = Inbound(self._client, desk.mirror)
        self._reconciler = Reconciler(self._client, desk.mirror, desk.clock)
        self._pusher = Pusher(self._client, desk, self._pushes)
        self._knowledge = Knowledge(self._client, desk.mirror.outbound, desk.clock)
        desk.mirror.follow(self.name, rules(self._settings))
        is_open = partial(getattr, self._client.breaker, "is_open")
        desk.metrics.breaker_open.labels(self.name).set_function(is_open)
        try:
            async with self._client.session(), self._knowledge.opened(), TaskGroup() as group:
                watch = (
                    group.create_task(self._watch(self._client, desk)) if self.connected else None
                )
                yield
                if watch is not None:
                    watch.cancel()
        finally:
            desk.mirror.unfollow(self.name)
            desk.metrics.breaker_open.remove(self.name)

    @hookimpl
    def itdesk_tracker(self, desk: "Desk") -> "Plugin":
        """Return the mirror itself."""
        return self

    @hookimpl
    def itdesk_jobs(self, desk: "Desk") -> Sequence[JobType]:
        """Return what is to be done after changes here."""
        return [self._pusher.job_type()] if self._pusher is not None else []

    @hookimpl
    def itdesk_schedule(self, desk: "Desk") -> Sequence[Schedule]:
        """Compare with Jira every scheduler.jira_reconcile_seconds, when it can be asked."""
        seconds = desk.settings.scheduler.jira_reconcile_seconds if self.connected else 0
        return [
            Schedule(
                name="jira.reconcile",
                seconds=seconds,
                run=self._scheduled,
                timeout_seconds=3600,
                # A restored desk leaves Jira alone until `itdesk resume`.
                outbound=True,
            )
        ]

    @hookimpl
    async def itdesk_knowledge(self, caller: Caller, query: str) -> Sequence[Passage]:
        """Return what was said in Jira that fits a query."""
        return await self._knowledge.find(caller, query) if self._knowledge is not None else []

    # --- for its commands ------------------------------------------------------------------

    @property
    def settings(self) -> JiraSettings:
        """Return its section."""
        return self._settings

    @property
    def client(self) -> Client:
        """Return what talks to Jira."""
        if self._client is None:
            raise Unavailable("The mirror of Jira is just starting.")
        return self._client

    @property
    def pusher(self) -> Pusher:
        """Return what sends changes."""
        if self._pusher is None:
            raise Unavailable("The mirror of Jira is just starting.")
        return self._pusher

    @hookimpl
    def itdesk_cli(self) -> Sequence[click.Command]:
        """Return the commands below `itdesk jira`."""
        return commands.COMMANDS

    @hookimpl
    def itdesk_health(self) -> Health | None:
        """Say what was last wrong with Jira; webhooks are taken all the same."""
        if self._client is None or not self.connected:
            return None
        problem = self._mismatch or self._client.problem
        return Health(not problem, problem)

    # --- by itself -------------------------------------------------------------------------

    async def _scheduled(self, job: "Job") -> None:
        try:
            await self.reconcile(since=None, project_key=None)
        except Conflict:
            log.info("somebody else compares with Jira already")
        except JiraFailure as exc:
            # Jira may be out for hours: that is no reason to give up.
            pause = exc.retry_after or self._settings.probe_seconds
            raise RetryLater(pause, exc.message, counted=False) from exc

    async def _watch(self, client: Client, desk: "Desk") -> None:
        """Ask Jira who it is, so that what is wrong shows before somebody needs it."""
        while True:
            try:
                self._unfinished.set(await desk.mirror.outbound.unfinished())
                await self._check(client)
                pause = CHECK_SECONDS
            except JiraFailure as exc:
                log.warning("jira not reached", problem=exc.message, said=exc.said)
                pause = self._settings.probe_seconds
            except Exception as exc:  # noqa: BLE001 - a look at Jira is no reason to leave
                log.error("jira not looked at", exc_info=exc)
                pause = self._settings.probe_seconds
            await self._clock.sleep(pause)

    async def _check(self, client: Client) -> None:
        said = await client.server()
        really = "cloud" if said.get("deploymentType") == "Cloud" else "datacenter"
        spoken = await client.dialect()
        self._mismatch = ""
        if spoken != really:
            self._mismatch = (
                f'Jira is {really}: set plugins.jira.dialect = "{really}", or leave it out.'
            )
            log.error("jira speaks another dialect", configured=spoken, really=really)
        await client.myself()

    def _observe(self, outcome: str, seconds: float) -> None:
        self._requests.labels(outcome).observe(seconds)
        client = self._client
        self._up.set(0 if client is not None and client.problem else 1)
        self._refused.set(1 if client is not None and client.refused else 0)


def _outcome(became: Mirrored) -> str:
    if became.status != "ok":
        return became.status
    if became.created:
        return "created"
    return "updated" if became.updated else "unchanged"
