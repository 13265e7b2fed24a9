"""The REST interface: routes declared once, everything else derived from them."""

from itdesk.api import (
    asyncapi,
    attachments,
    auth,
    docs,
    integrations,
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

# In the order of the documentation: what people come for first, what monitors ask last.
ROUTES: tuple[Route, ...] = (
    *auth.ROUTES,
    *tickets.ROUTES,
    *attachments.ROUTES,
    *projects.ROUTES,
    *users.ROUTES,
    *websocket.ROUTES,
    *stats.ROUTES,
    *integrations.ROUTES,
    *journal.ROUTES,
    *jobs.ROUTES,
    *system.ROUTES,
    *docs.ROUTES,
    *asyncapi.ROUTES,
)
