"""What comes from other systems: signed by them, from this machine, or from an agent.

A signature is checked over the bytes as they came, before anything reads them.
"""

import hashlib
import hmac
import re
from functools import partial
from ipaddress import ip_address
from typing import Any

from aiohttp import hdrs
from pydantic import AwareDatetime

from itdesk.api import payload
from itdesk.api.origin import LOCAL
from itdesk.api.proofs import check_proof
from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.desk.plugins import OFF_SECONDS
from itdesk.errors import InvalidToken, NotFound, Unauthenticated, Unavailable
from itdesk.hookspecs import Tracker
from itdesk.model import Role
from itdesk.remote import Reconciled

JIRA = "jira"
SIGNATURES = ("X-Signature", "X-Hub-Signature")
_SIGNATURE = re.compile(r"(?:sha256=)?([0-9a-f]{64})", re.ASCII)
# A walk through thousands of issues takes its time.
RECEIVE_SECONDS, RECONCILE_SECONDS = 60.0, 600.0


class InvalidSignature(InvalidToken):
    """The body was not signed with the secret that both sides know, or not at all."""

    kind, default_code = "INVALID_SIGNATURE", "E_SIGNATURE_INVALID"


class Reconcile(Body):
    """What to compare: since the last time and in the configured project unless said otherwise."""

    since: AwareDatetime | None = None
    project_key: str | None = None


async def upsert(call: Call) -> Reply:
    """Take an issue as Jira's webhook or a workflow tells it."""
    raw = await _admitted(call)
    payload.check_json_type(call.request)
    body = payload.loads(raw)
    receive = partial(
        _tracker(call).receive,
        body,
        call.request.headers,
        digest=hashlib.sha256(raw).hexdigest(),
        request_id=call.caller.request_id,
    )
    became = await call.desk.plugins.inside(JIRA, receive)
    return Reply(
        {
            "status": became.status,
            "jira_key": became.key or None,
            "ticket_id": became.ticket_id,
            "created": became.created,
            "updated": became.updated,
        }
    )


async def reconcile(call: Call) -> Reply:
    """Compare the mirrored tickets with Jira now."""
    raw = await _admitted(call)
    wanted = Reconcile()
    if raw.strip():
        payload.check_json_type(call.request)
        wanted = payload.parse(Reconcile, raw)
    walk = partial(_tracker(call).reconcile, since=wanted.since, project_key=wanted.project_key)
    return Reply(await call.desk.plugins.inside(JIRA, walk))


async def status(call: Call) -> Reply:
    """Tell whether Jira is configured, how far its mirror has come, and how large it is."""
    tracker, mirror = call.desk.trackers.get(JIRA), call.desk.mirror
    return Reply(
        {
            "configured": tracker is not None and tracker.connected,
            "projects": await mirror.states(),
            "mirrored_tickets": await mirror.count(JIRA),
        }
    )


def _tracker(call: Call) -> Tracker:
    tracker = call.desk.trackers.get(JIRA)
    if tracker is None:
        raise NotFound(
            "Jira is not configured here: set JIRA_BASE_URL and start itdesk again.",
            code="E_JIRA_NOT_CONFIGURED",
        )
    return tracker


def _require_on(call: Call) -> None:
    """Refuse for now what could be heard if the plugin were not out: it alone knows the secret."""
    status = call.desk.plugins.status().get(JIRA)
    if status is not None and status.state not in ("loaded", "disabled"):
        raise Unavailable(
            "The plugin jira is switched off or broken: itdesk plugins list.",
            code="E_PLUGIN_OFF",
            retry_after=OFF_SECONDS,
        )


async def _admitted(call: Call) -> bytes:
    """Return the body of a request that may be believed; see SPEC X9."""
    raw = await payload.read_body(call.request, call.desk.settings.server.max_body)
    _require_on(call)
    tracker = call.desk.trackers.get(JIRA)
    headers = call.request.headers
    given = [value for name in SIGNATURES for value in headers.getall(name, ())]
    if given:
        _check_signature(tracker.secret if tracker is not None else b"", given, raw)
    elif hdrs.AUTHORIZATION in headers:
        await _check_agent(call)
    elif tracker is not None and tracker.secret:
        raise InvalidSignature(
            "Sign the body: X-Signature is the hex HMAC-SHA256 of its bytes with"
            " JIRA_WEBHOOK_SECRET. Or send an agent's bearer token."
        )
    elif not _is_local(call):
        raise Unauthenticated(
            "Without JIRA_WEBHOOK_SECRET only this machine, or an agent's bearer token, is heard."
        )
    return raw


def _check_signature(secret: bytes, given: list[str], raw: bytes) -> None:
    match = _SIGNATURE.fullmatch(given[0])
    expected = hmac.new(secret, raw, hashlib.sha256).hexdigest()
    # Compared whether or not it can be right, so that time tells nothing of the secret.
    right = hmac.compare_digest(expected, match[1] if match else "0" * 64)
    if not secret or len(given) != 1 or match is None or not right:
        raise InvalidSignature(
            "The signature is not the hex HMAC-SHA256 of these bytes with JIRA_WEBHOOK_SECRET."
        )


async def _check_agent(call: Call) -> None:
    scheme, _, token = call.request.headers[hdrs.AUTHORIZATION].strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("Sign in with Authorization: Bearer <access token>.")
    known = await call.desk.sessions.authenticate(token.strip())
    assert call.route is not None
    check_proof(call.route, known)
    if known.grant is not None and known.session_id is not None:
        call.desk.api_tokens.note_use(known.session_id, call.address)
    known.require(Role.AGENT, "tell of issues")


def _is_local(call: Call) -> bool:
    """Return whether a program on this machine asks, and not a web page in its browser."""
    if "Origin" in call.request.headers or "Sec-Fetch-Site" in call.request.headers:
        return False
    try:
        return call.address == LOCAL or ip_address(call.address).is_loopback
    except ValueError:
        return False


_NULLABLE_TEXT = {"type": ["string", "null"]}
UPSERTED: dict[str, Any] = {
    "type": "object",
    "required": ["status", "jira_key", "ticket_id", "created", "updated"],
    "properties": {
        "status": {"enum": ["ok", "duplicate", "ignored"]},
        "jira_key": _NULLABLE_TEXT,
        "ticket_id": {"type": ["string", "null"], "format": "uuid"},
        "created": {"type": "boolean"},
        "updated": {"type": "boolean"},
    },
    "additionalProperties": False,
}
_TIME = {"type": ["string", "null"], "format": "date-time"}
STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["configured", "projects", "mirrored_tickets"],
    "properties": {
        "configured": {"type": "boolean"},
        "mirrored_tickets": {"type": "integer"},
        "projects": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["project_key", "last_synced_at", "last_error", "last_run_at"],
                "properties": {
                    "project_key": {"type": "string"},
                    "last_synced_at": _TIME,
                    "last_cursor": _NULLABLE_TEXT,
                    "last_error": _NULLABLE_TEXT,
                    "last_run_at": _TIME,
                    "updated_at": {"type": "string", "format": "date-time"},
                },
            },
        },
    },
}
# Jira's own form, or the simpler one that workflows send; more of either is passed over.
WEBHOOK: dict[str, Any] = {
    "anyOf": [
        {
            "title": "A webhook of Jira",
            "type": "object",
            "required": ["webhookEvent"],
            "properties": {
                "webhookEvent": {"type": "string"},
                "timestamp": {"type": "integer", "description": "Milliseconds since 1970."},
                "user": {"type": "object"},
                "issue": {
                    "type": "object",
                    "properties": {
                        "id": {"type": "string"},
                        "key": {"type": "string"},
                        "fields": {"type": "object"},
                    },
                },
                "changelog": {"type": "object"},
                "comment": {"type": "object"},
            },
        },
        {
            "title": "An issue in short",
            "type": "object",
            "required": ["issueKey"],
            "properties": {
                "issueKey": {"type": "string", "examples": ["ITSM-123"]},
                "fields": {
                    "type": ["object", "null"],
                    "description": "As in Jira's REST interface, with `updated`. Without fields"
                    " Jira is asked.",
                },
                "comments": {"type": ["array", "null"], "items": {"type": "object"}},
            },
        },
    ]
}
COMPARISON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "since": {"type": ["string", "null"], "format": "date-time"},
        "project_key": _NULLABLE_TEXT,
    },
    "additionalProperties": False,
}
_ADMISSION = {
    "E_SIGNATURE_INVALID": 401,
    "E_AUTH_TOKEN_MISSING": 401,
    "E_AUTH_TOKEN_INVALID": 401,
    "E_AUTH_INSUFFICIENT_PERMISSIONS": 403,
    "E_JIRA_NOT_CONFIGURED": 404,
    "E_BAD_JSON": 400,
    "E_TOO_LARGE": 413,
    "E_UNSUPPORTED_MEDIA_TYPE": 415,
    "E_JIRA_UNAVAILABLE": 502,
    "E_PLUGIN_OFF": 503,
}

ROUTES: list[Route] = [
    Route(
        id="R66", method="POST", path="/integrations/jira/upsert", handler=upsert,
        who=Who.SIGNATURE, tag="integrations", response=UPSERTED, seconds=RECEIVE_SECONDS,
        raw_body=WEBHOOK,
        # What is dropped here comes again minutes later at best, and a bulk change is a burst.
        rate="none",
        errors={
            **_ADMISSION, "E_JIRA_PAYLOAD": 400, "E_PROJECT_KEY_EXISTS": 409,
            "E_TICKET_KEY_EXISTS": 409,
        },
    ),
    Route(
        id="R67", method="POST", path="/integrations/jira/reconcile", handler=reconcile,
        who=Who.SIGNATURE, tag="integrations", response=Reconciled, seconds=RECONCILE_SECONDS,
        raw_body=COMPARISON, body_optional=True,
        errors={**_ADMISSION, "E_RECONCILE_RUNNING": 409},
    ),
    Route(
        id="R68", method="GET", path="/integrations/jira/status", handler=status,
        who=Who.ADMIN, tag="integrations", response=STATUS,
    ),
]  # fmt: skip
