"""The REST interface: routes declared once, everything else derived from them."""

from itdesk.api import (
    asyncapi,
    attachments,
    auth,
    docs,
    jobs,
    journal,
    projects,
    stats,
    system,
    tickets,
    users,
    websocket,
)
from itdesk.api.route import Route

ROUTES: tuple[Route, ...] = (
    *system.ROUTES,
    *docs.ROUTES,
    *auth.ROUTES,
    *users.ROUTES,
    *tickets.ROUTES,
    *projects.ROUTES,
    *attachments.ROUTES,
    *journal.ROUTES,
    *stats.ROUTES,
    *jobs.ROUTES,
    *websocket.ROUTES,
    *asyncapi.ROUTES,
)
