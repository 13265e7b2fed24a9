"""The desk: everything that handlers, actors and plugins may ask of the business."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itdesk.config import Settings
    from itdesk.desk.accounts import Accounts
    from itdesk.desk.attachments import Attachments
    from itdesk.desk.health import Health
    from itdesk.desk.inventory import Inventory
    from itdesk.desk.jobs import Jobs
    from itdesk.desk.journal import Journal
    from itdesk.desk.mirror import Mirror
    from itdesk.desk.plugins import Plugins
    from itdesk.desk.projects import Projects
    from itdesk.desk.rescans import Rescans
    from itdesk.desk.scans import Scans
    from itdesk.desk.schedules import Schedules
    from itdesk.desk.sessions import Sessions
    from itdesk.desk.stats import Statistics
    from itdesk.desk.tickets import Tickets
    from itdesk.desk.tokens import Tokens
    from itdesk.hookspecs import Tracker
    from itdesk.runtime.clock import Clock
    from itdesk.runtime.metrics import Metrics
    from itdesk.store.db import Database


@dataclass(slots=True)
class Desk:
    """One desk; built by `itdesk.daemon`, and there for nobody else to build."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    db: Database
    plugins: Plugins
    tokens: Tokens
    sessions: Sessions
    accounts: Accounts
    projects: Projects
    tickets: Tickets
    journal: Journal
    mirror: Mirror
    jobs: Jobs
    schedules: Schedules
    stats: Statistics
    upload_dir: Path
    attachments: Attachments = field(init=False)
    scans: Scans = field(init=False)
    inventory: Inventory = field(init=False)
    rescans: Rescans = field(init=False)
    runtime: Health = field(init=False)
    trackers: dict[str, Tracker] = field(default_factory=dict)

    async def readiness(self) -> dict[str, Any]:
        """Return whether requests can be served, and how every part is."""
        return await self.runtime.readiness()
