"""The desk: everything that handlers, actors and plugins may ask of the business."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itdesk.config import Settings
    from itdesk.desk.accounts import Accounts
    from itdesk.desk.api_tokens import ApiTokens
    from itdesk.desk.assist import Assist
    from itdesk.desk.attachments import Attachments
    from itdesk.desk.automation import Automation
    from itdesk.desk.backups import Backups
    from itdesk.desk.chat import Chat
    from itdesk.desk.guesses import Guesses
    from itdesk.desk.health import Health
    from itdesk.desk.identities import Identities
    from itdesk.desk.inventory import Inventory
    from itdesk.desk.jobs import Jobs
    from itdesk.desk.journal import Journal
    from itdesk.desk.knowledge import Knowledge
    from itdesk.desk.limits import RateLimits
    from itdesk.desk.mail import Mail
    from itdesk.desk.meanings import Meanings
    from itdesk.desk.mirror import Mirror
    from itdesk.desk.notices import Notices
    from itdesk.desk.people import People
    from itdesk.desk.plugins import Plugins
    from itdesk.desk.projects import Projects
    from itdesk.desk.reads import Reads
    from itdesk.desk.recommendations import Recommendations
    from itdesk.desk.recovery import Recovery
    from itdesk.desk.replay import Replay
    from itdesk.desk.reports import Reports
    from itdesk.desk.rescans import Rescans
    from itdesk.desk.scans import Scans
    from itdesk.desk.schedules import Schedules
    from itdesk.desk.search import Search
    from itdesk.desk.second_factor import SecondFactors
    from itdesk.desk.sessions import Sessions
    from itdesk.desk.signups import Signups
    from itdesk.desk.similar import Similarity
    from itdesk.desk.stats import Statistics
    from itdesk.desk.suggestions import Suggestions
    from itdesk.desk.switchboard import Switchboard
    from itdesk.desk.tickets import Tickets
    from itdesk.desk.tokens import Tokens
    from itdesk.desk.triage import Triage
    from itdesk.desk.verification import Verification
    from itdesk.desk.views import Views
    from itdesk.desk.webhooks import Webhooks
    from itdesk.desk.workflows import Workflows
    from itdesk.desk.writing import Writing
    from itdesk.hookspecs import Storage, Tracker
    from itdesk.runtime.clock import Clock
    from itdesk.runtime.metrics import Metrics
    from itdesk.runtime.tracing import Tracing
    from itdesk.store.db import Database


@dataclass(slots=True)
class Desk:
    """One desk; built by `itdesk.daemon`, and there for nobody else to build."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    tracing: Tracing
    db: Database
    plugins: Plugins
    tokens: Tokens
    limits: RateLimits
    guesses: Guesses
    sessions: Sessions
    api_tokens: ApiTokens
    second_factors: SecondFactors
    accounts: Accounts
    signups: Signups
    verification: Verification
    recovery: Recovery
    projects: Projects
    tickets: Tickets
    journal: Journal
    mirror: Mirror
    jobs: Jobs
    mail: Mail
    notices: Notices
    schedules: Schedules
    stats: Statistics
    reads: Reads
    search: Search
    views: Views
    reports: Reports
    recommendations: Recommendations
    upload_dir: Path
    similar: Similarity = field(init=False)
    suggestions: Suggestions = field(init=False)
    writing: Writing = field(init=False)
    meanings: Meanings = field(init=False)
    storage: Storage = field(init=False)
    backups: Backups = field(init=False)
    people: People = field(init=False)
    attachments: Attachments = field(init=False)
    scans: Scans = field(init=False)
    inventory: Inventory = field(init=False)
    rescans: Rescans = field(init=False)
    assist: Assist = field(init=False)
    knowledge: Knowledge = field(init=False)
    triage: Triage = field(init=False)
    chat: Chat = field(init=False)
    webhooks: Webhooks = field(init=False)
    workflows: Workflows = field(init=False)
    replay: Replay = field(init=False)
    automation: Automation = field(init=False)
    identities: Identities = field(init=False)
    runtime: Health = field(init=False)
    switchboard: Switchboard = field(init=False)
    trackers: dict[str, Tracker] = field(default_factory=dict)

    async def readiness(self) -> dict[str, Any]:
        """Return whether requests can be served, and how every part is."""
        return await self.runtime.readiness()
