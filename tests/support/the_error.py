"""The one error body, held against every failure that a test comes across."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

# The class of an error code follows from the status, but for those of the sign-in.
KINDS: Mapping[int, set[str]] = {
    400: {"BAD_REQUEST"},
    401: {"INVALID_CREDENTIALS", "INVALID_TOKEN", "EXPIRED_TOKEN", "INVALID_SIGNATURE"},
    403: {"FORBIDDEN", "EMAIL_NOT_VERIFIED"},
    404: {"NOT_FOUND"},
    405: {"METHOD_NOT_ALLOWED"},
    409: {"CONFLICT"},
    412: {"PRECONDITION_FAILED"},
    413: {"TOO_LARGE"},
    415: {"UNSUPPORTED_MEDIA"},
    417: {"BAD_REQUEST"},
    422: {"VALIDATION"},
    429: {"RATE_LIMIT"},
    502: {"UPSTREAM"},
    503: {"UNAVAILABLE"},
    507: {"UNAVAILABLE"},
}
MEMBERS = {"error", "message", "error_code", "details", "request_id"}
_CODE = re.compile(r"E_[A-Z][A-Z0-9_]*")
# What only the inside of the program knows: traces, files, libraries, statements, constraints.
_INSIDE = re.compile(
    r"Traceback|File \"|\.py\b|/work/|/usr/|/home/|/tmp/|site-packages|asyncpg|psycopg|pydantic"
    r"|aiohttp|orjson|Exception\b|<class|object at 0x|SELECT |INSERT INTO|UPDATE \w+ SET"
    r"|DELETE FROM|relation \"|constraint|syntax error|duplicate key value|_fkey|_pkey|:5432"
)


def faults(status: int, headers: Mapping[str, str], raw: bytes) -> list[str]:
    """Return what is wrong with a failure as the API must answer it; empty when all is well."""
    try:
        body: Any = orjson.loads(raw)
    except ValueError:
        return [f"{status} is no JSON: {raw[:200]!r}"]
    if not isinstance(body, dict) or set(body) != MEMBERS:
        return [f"{status} is not the one error body: {raw[:200]!r}"]
    wrong = []
    if not _CODE.fullmatch(str(body["error"])):
        wrong.append(f"error is {body['error']!r}")
    if body["error_code"] not in KINDS.get(status, set()):
        wrong.append(f"{status} is called {body['error_code']}")
    if not isinstance(body["message"], str) or not body["message"].endswith((".", "?", ")", "`")):
        if status != 422:
            wrong.append(f"message is no sentence: {body['message']!r}")
    if not isinstance(body["details"], dict):
        wrong.append("details are no object")
    if not body["request_id"] or body["request_id"] != headers.get("X-Request-ID"):
        wrong.append("the request id is not that of the header")
    if headers.get("Content-Type") != "application/json":
        wrong.append(f"Content-Type is {headers.get('Content-Type')}")
    if headers.get("Cache-Control") != "no-store":
        wrong.append(f"Cache-Control is {headers.get('Cache-Control')}")
    if headers.get("X-Content-Type-Options") != "nosniff":
        wrong.append("no nosniff")
    if status == 401 and headers.get("WWW-Authenticate") != "Bearer":
        wrong.append("no WWW-Authenticate")
    if status in (429, 503) and not headers.get("Retry-After", "").isdecimal():
        wrong.append("no Retry-After")
    if status == 422:
        wrong += _unlisted(body)
    if inside := _INSIDE.search(raw.decode(errors="replace").replace('\\"', '"')):
        wrong.append(f"shows the inside: {inside[0]!r} in {raw[:300]!r}")
    return wrong


def _unlisted(body: Any) -> list[str]:
    fields = body["details"].get("fields")
    if fields is None:
        # What is wrong is not one of the fields.
        return []
    whole = isinstance(fields, list) and all(
        isinstance(field, dict) and set(field) == {"path", "problem"} for field in fields
    )
    return [] if whole and fields else [f"422 without its fields: {body}"]
