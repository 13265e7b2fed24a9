"""The REST interface: routes declared once, everything else derived from them."""

from itdesk.api import attachments, auth, docs, journal, projects, system, tickets, users
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
)
