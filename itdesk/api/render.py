"""How answers look: objects as JSON, failures as the one error body."""

from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import hdrs, web
from pydantic import BaseModel

from itdesk.api.route import Reply
from itdesk.errors import DeskError, MethodNotAllowed, Unauthenticated

JSON = "application/json"
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC


def _encodable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError


def encode(value: Any) -> bytes:
    """Return a value as JSON: times in UTC with Z, dataclasses and models as objects."""
    return orjson.dumps(value, _encodable, _OPTIONS)


def response(reply: Reply, media: str = JSON) -> web.Response:
    """Return a handler's reply as an HTTP response; bytes go out as they are."""
    body = reply.body
    if body is None:
        return web.Response(status=reply.status, headers=reply.headers)
    if not isinstance(body, bytes):
        body = encode(body)
    answer = web.Response(body=body, status=reply.status, headers=reply.headers)
    answer.headers.setdefault(hdrs.CONTENT_TYPE, media)
    return answer


def failure(error: DeskError, request_id: str) -> web.Response:
    """Return an error as the one error body, with the headers that belong to it."""
    headers = {"Content-Type": JSON}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(0, error.retry_after))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.details.get("allow", ()))
    body = encode(problem(error, request_id))
    return web.Response(body=body, status=error.status, headers=headers)


def problem(error: DeskError, request_id: str) -> dict[str, Any]:
    """Return what a client is told of an error."""
    return {
        "error": error.code,
        "message": error.message,
        "error_code": error.kind,
        "details": error.details,
        "request_id": request_id,
    }
