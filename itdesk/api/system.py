"""What monitors, load balancers and Prometheus ask."""

from collections.abc import Mapping
from typing import Any

from itdesk.api.route import Call, Handler, Reply, Route, Who
from itdesk.runtime.metrics import CONTENT_TYPE

_PONG = b'{"status":"ok"}'


async def ping(call: Call) -> Reply:
    """Answer that the daemon answers."""
    return Reply(_PONG)


async def live(call: Call) -> Reply:
    """Tell whether the event loop and its actors live, whatever the database does."""
    alive = call.desk.runtime.alive()
    reason = "" if alive else "an actor does not live any more"
    check = {"status": "ok" if alive else "unavailable", "reason": reason}
    body = {"status": check["status"], "checks": {"actors": check}}
    return Reply(body, 200 if alive else 503, {} if alive else {"Retry-After": "5"})


async def ready(call: Call) -> Reply:
    """Tell whether requests can be served, and how every part is."""
    health = await call.desk.readiness()
    if health["status"] == "unavailable":
        return Reply(health, 503, {"Retry-After": "5"})
    return Reply(health)


async def metrics(call: Call) -> Reply:
    """Return all metrics as Prometheus text."""
    return Reply(await call.desk.metrics.render())


_HEALTH = {"enum": ["ok", "degraded", "unavailable"]}
HEALTH: Mapping[str, Any] = {
    "type": "object",
    "required": ["status", "checks"],
    "properties": {
        "status": _HEALTH,
        "checks": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["status"],
                "properties": {"status": _HEALTH, "reason": {"type": ["string", "null"]}},
            },
        },
    },
}
PONG: Mapping[str, Any] = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"const": "ok"}},
    "additionalProperties": False,
}


def _get(id: str, path: str, handler: Handler, response: Any, **fields: Any) -> Route:
    fields = {"who": Who.PUBLIC, "root": True, **fields}
    return Route(
        id=id,
        method="GET",
        path=path,
        handler=handler,
        tag="system",
        response=response,
        rate="none",
        **fields,
    )


ROUTES: list[Route] = [
    _get("R1", "/ping", ping, PONG),
    _get("R1", "/ping", ping, PONG, root=False),
    _get("R2", "/healthz", live, HEALTH, also={503: HEALTH}),
    _get("R2", "/readyz", ready, HEALTH, also={503: HEALTH}),
    _get("R2", "/health", ready, HEALTH, also={503: HEALTH}),
    _get("R3", "/metrics", metrics, str, who=Who.OPERATOR, response_media=CONTENT_TYPE),
]
