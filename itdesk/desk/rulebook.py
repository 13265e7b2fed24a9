"""Puts together what workflows are made of, and gives it to the desk."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from itdesk.desk import Desk
from itdesk.desk.actions import Actions
from itdesk.desk.automation import Automation
from itdesk.desk.replay import Replay
from itdesk.desk.webhooks import Webhooks
from itdesk.desk.workflows import Workflows
from itdesk.runtime.outgoing import Outgoing


@asynccontextmanager
async def opened_rules(desk: Desk) -> AsyncIterator[None]:
    """Give the desk its rules, their work, and the client that calls their targets."""
    settings = desk.settings.workflows
    networks = settings.target_networks
    outgoing = Outgoing(networks, seconds=settings.webhook_seconds)
    desk.webhooks = Webhooks(desk.db, outgoing, desk.clock, networks=networks)
    actions = Actions(desk.tickets, desk.mail, desk.webhooks)
    desk.workflows = Workflows(desk.db, actions)
    desk.replay = Replay(desk.db)
    desk.automation = Automation(
        desk.db, actions, look_seconds=desk.settings.scheduler.workflow_seconds
    )
    desk.jobs.register(*desk.automation.job_types(), desk.webhooks.job_type())
    desk.schedules.register(desk.automation.schedule())
    try:
        yield
    finally:
        await outgoing.close()
