"""What the API may answer to data that its document allows, and how the caller keeps their role.

A JSON schema cannot say everything: whether a transition is possible, whether a key was used
before, whether a password is a common one. Each such refusal is listed here, with the operations
that may give it; from any other operation, or with any other code, it is a failure.
"""

import itertools
import os
import re
from dataclasses import dataclass
from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData


@dataclass(frozen=True)
class Refusal:
    """A code that operations may answer good data with; of a 422, the only fields it may name."""

    code: str
    operations: str
    why: str
    fields: frozenset[str] = frozenset()
    problem: str = ".*"


TICKET = r"(PUT|PATCH) /api/v1/tickets/\{ticket\}"
ACCOUNT = r"POST /api/v1/(auth/(register|email-login)|users)|(PUT|PATCH) /api/v1/users/\{id\}"
UPLOAD = r"POST /api/v1/(tickets/\{ticket\}/attachments(/presign)?|attachments/presigned-url)"
DECIDE = r"POST /api/v1/tickets/\{ticket\}/suggestions/\{id\}/(accept|reject|revert)"
ACCEPT = r"POST /api/v1/tickets/\{ticket\}/suggestions/\{id\}/accept"

REFUSALS = (
    Refusal(
        "E_VALIDATION_ERROR",
        r"GET /api/v1/reports/.*",
        "which projects there are, no schema says",
        frozenset({"project"}),
        "is no project.*",
    ),
    Refusal(
        "E_UNSUPPORTED_MEDIA_TYPE",
        r"POST /api/v1/integrations/jira/upsert",
        "what Jira and workflows send is read after its signature, and described by Atlassian",
    ),
    Refusal(
        "E_TICKET_INVALID_STATUS_TRANSITION",
        TICKET,
        "which way is open depends on where the ticket is",
    ),
    Refusal(
        "E_TICKET_INVALID_ASSIGNEE",
        rf"{TICKET}|POST /api/v1/tickets",
        "only some people can be given tickets",
    ),
    Refusal(
        "E_TICKET_INVALID_PROJECT",
        rf"{TICKET}|POST /api/v1/tickets",
        "only some projects number their own tickets",
    ),
    Refusal(
        "E_WORKFLOW_INVALID_RULE",
        r"POST /api/v1/workflows(/replay)?|PUT /api/v1/workflows/\{id\}",
        "which words go with a field, and who and what is there, no schema says",
    ),
    Refusal(
        "E_WORKFLOW_TARGET_NAME_EXISTS",
        r"(POST|PUT) /api/v1/workflow-targets(/\{id\})?",
        "a short name is chosen twice by chance",
    ),
    Refusal("E_WORKFLOW_TOO_MANY", r"POST /api/v1/workflow.*", "there may be so many"),
    Refusal(
        "E_VALIDATION_ERROR",
        r"(POST|PUT) /api/v1/workflow-targets(/\{id\})?",
        "an address may look like one and have no host, or one that may not be called",
        frozenset({"url"}),
    ),
    Refusal("E_TICKET_VERSION_MISMATCH", rf"{TICKET}|{ACCEPT}", "If-Match is what 412 is for"),
    Refusal("E_SUGGESTION_STATE", DECIDE, "a suggestion is decided once"),
    Refusal("E_SUGGESTION_STALE", DECIDE, "what it speaks of may be gone or changed"),
    Refusal("E_SUGGESTION_NO_TEXT", ACCEPT, "only some kinds can be said in other words"),
    Refusal(
        "E_VALIDATION_ERROR",
        ACCEPT,
        "see before_load_schema",
        frozenset({"text"}),
        "must be text that is not blank",
    ),
    Refusal(
        "E_IDEMPOTENCY_KEY_REUSED",
        r"POST /api/v1/.*",
        "a key is chosen by chance, and small ones are chosen twice",
    ),
    Refusal("E_WEBSOCKET_ONLY", r"GET /ws/\{client_id\}", "no request of a generator upgrades"),
    Refusal(
        "E_TOO_LARGE",
        r"(POST|PUT|PATCH) /api/v1/.*",
        "the longest text of the rarest letters, escaped, is more than server.max_body",
    ),
    Refusal("E_FILE_TOO_LARGE", UPLOAD, "the limit is a setting"),
    Refusal("E_FILE_TYPE_NOT_ALLOWED", UPLOAD, "what is allowed is a setting"),
    Refusal(
        "E_VALIDATION_ERROR",
        r"GET /api/v1/.*",
        "a cursor is made by the list that it belongs to",
        frozenset({"cursor"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"GET /api/v1/stats/daily",
        "the first day is not after the last",
        frozenset({"from"}),
        "is after `to`",
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        ACCOUNT,
        "a password may be long and yet common, or one's own name",
        frozenset({"password"}),
        r"(?!must have).*",
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/users",
        "only who gets no password is invited to set one",
        frozenset({"invite"}),
    ),
    Refusal(
        "E_AUTH_CODE_INVALID",
        r"POST (/api/v1/auth/.*|/verify-email|/reset-password)",
        "links and codes come by mail",
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/auth/email-login",
        "the password that signs in may open an account, and then has to be a good one",
        frozenset({"password"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/auth/totp/(enrol|disable|recovery-codes)",
        "a second factor is set up and given up with the password alone",
        frozenset({"password"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/tokens",
        "whether a token may have no end is a setting",
        frozenset({"expires_in_days"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /reset-password",
        "a password may be long and yet common",
        frozenset(),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"(PUT|PATCH) /api/v1/users/\{id\}",
        "changing one's own password needs the one before",
        frozenset({"current_password"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/tickets/\{ticket\}/comments",
        "only what a ticket or the stream has reached can have been seen",
        frozenset({"last_seen", "last_seen.epoch"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/tickets/\{ticket\}/comments",
        "see before_load_schema",
        frozenset({"body"}),
        "must be text that is not blank",
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        UPLOAD,
        "a name of dots, directories and invisible characters names no file",
        frozenset({"filename"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/attachments/presigned-url",
        "the fields come in the body or in the query: no schema spans both",
        frozenset({"", "ticket_id", "filename", "size"}),
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"(POST|PUT|PATCH) /api/v1/.*",
        "5.0 is whole for JSON Schema, and no whole number for a strict reader",
        frozenset(
            {
                "size",
                "limit",
                "days",
                "events",
                "position",
                "expires_in_days",
                "last_seen.constrained-int",
                "last_seen.StreamPosition",
                "last_seen.StreamPosition.seq",
            }
        ),
        "must be (a whole number|an object)",
    ),
    Refusal(
        "E_VALIDATION_ERROR",
        r"POST /api/v1/attachments",
        "the size must be the one that was announced",
        frozenset({"size"}),
    ),
)


_TURNS = itertools.count()


def is_expected(operation: str, body: Any) -> bool:
    """Return whether an operation's refusal is one of the list."""
    if not isinstance(body, dict) or not isinstance(body.get("details"), dict):
        return False
    fields = body["details"].get("fields", [{"path": "", "problem": body["message"]}])
    return any(
        body["error"] == refusal.code
        and re.fullmatch(refusal.operations, operation) is not None
        and (not refusal.fields or {field["path"] for field in fields} <= refusal.fields)
        and all(re.fullmatch(refusal.problem, field["problem"]) for field in fields)
        for refusal in REFUSALS
    )


@schemathesis.hook
def filter_failure(context: Any, failure: Failure, case: Any, response: Any) -> bool:
    """Keep a failure unless it is a refusal of the list."""
    operation = f"{case.method.upper()} {case.operation.path}"
    if isinstance(failure, RejectedPositiveData):
        return not is_expected(operation, _json(response))
    if isinstance(failure, AcceptedNegativeData) and response.status_code in (412, 413):
        # Refused all the same: a malformed If-Match is none of the ticket's tags (RFC 9110
        # 13.1.1), and what is too long may be too large as a whole.
        return not is_expected(operation, _json(response))
    return True


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let good data reach the business, and keep the caller in their role for the whole run."""
    operation = f"{case.method.upper()} {case.operation.path}"
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _spare(case)
    own = (case.path_parameters or {}).get("id") == os.environ.get("ITDESK_FUZZ_SELF", "-")
    if own and operation in ("PUT /api/v1/users/{id}", "PATCH /api/v1/users/{id}"):
        # An administrator may step down, once there is another one.
        if isinstance(case.body, dict):
            case.body.pop("role", None)
            case.body.pop("is_active", None)


def _spare(case: Any) -> None:
    """Take away what chance cannot guess: another answer's cursor, version or unused key."""
    if case.query:
        case.query.pop("cursor", None)
    if case.headers:
        # Every other time, so that stale versions are tried as well.
        if next(_TURNS) % 2:
            case.headers.pop("If-Match", None)
        if "Idempotency-Key" in case.headers and next(_TURNS) % 4:
            case.headers["Idempotency-Key"] = f"key-{next(_TURNS)}-{os.getpid()}"
    if isinstance(case.body, dict):
        password = case.body.get("password")
        if isinstance(password, str) and next(_TURNS) % 4:
            # 00000000 is what everybody starts with, and the most common of all.
            case.body["password"] = f"q7 {password}"[:200]
        if case.operation.path == "/api/v1/attachments/presigned-url" and case.query:
            case.query.clear()


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Spare the generator the patterns of texts of 100,000 characters.

    It cannot make those, sends 0 instead and calls that good. What the patterns demand (no NUL,
    not blank) is tried by tests/test_hostile_input.py and tests/api/test_fields.py.
    """
    todo: list[Any] = [raw_schema]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            if node.get("type") == "string" and node.get("maxLength", 0) > 10_000:
                node.pop("pattern", None)
            todo += node.values()
        elif isinstance(node, list):
            todo += node


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
