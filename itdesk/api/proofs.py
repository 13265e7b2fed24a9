"""What a route may be called by: any proof, a session only, or also one that may only enrol."""

from itdesk.api.route import Route
from itdesk.errors import EnrolmentRequired, InsufficientScope, SessionRequired
from itdesk.model import Caller


def check_proof(route: Route, caller: Caller) -> None:
    """Raise Forbidden when this proof, whoever gave it, does not open this route."""
    if caller.must_enrol and not (route.enrolling and caller.grant is None):
        raise EnrolmentRequired(
            "Your role needs a second factor: set one up by POST /api/v1/auth/totp/enrol."
        )
    if caller.grant is None:
        return
    if route.session_only:
        raise SessionRequired("An API token may not do this: sign in.")
    if not caller.grant.includes(route.grant):
        raise InsufficientScope(
            f"This needs an API token with the scope {route.grant}; this one has {caller.grant}.",
            details={"scope": route.grant, "given": caller.grant},
        )
