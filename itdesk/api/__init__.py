"""The REST interface: routes declared once, everything else derived from them."""

from itdesk.api import (
    asyncapi,
    attachments,
    auth,
    docs,
    emails,
    identities,
    identity,
    integrations,
    jobs,
    journal,
    pages,
    projects,
    stats,
    system,
    tickets,
    tokens,
    totp,
    users,
    websocket,
    workflows,
)
from itdesk.api.route import Route

# In the order of the documentation: what people come for first, what monitors ask last.
ROUTES: tuple[Route, ...] = (
    *auth.ROUTES,
    *identity.ROUTES,
    *totp.ROUTES,
    *tokens.ROUTES,
    *identities.ROUTES,
    *tickets.ROUTES,
    *attachments.ROUTES,
    *projects.ROUTES,
    *users.ROUTES,
    *workflows.ROUTES,
    *emails.ROUTES,
    *websocket.ROUTES,
    *stats.ROUTES,
    *integrations.ROUTES,
    *journal.ROUTES,
    *jobs.ROUTES,
    *system.ROUTES,
    *pages.ROUTES,
    *docs.ROUTES,
    *asyncapi.ROUTES,
)
