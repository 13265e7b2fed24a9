"""The OpenAPI 3.1 document, derived from the table of routes and from nothing else."""

import asyncio
import inspect
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson

import itdesk
from itdesk.api.aliases import twins
from itdesk.api.origin import SAFE_METHODS
from itdesk.api.route import ListQuery, Route, Who
from itdesk.api.schemas import REF, Json, Schemas

_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_KEY = "[A-Z][A-Z0-9]{1,9}-[1-9][0-9]{0,17}"

PATH_PARAMETERS: Mapping[str, Json] = {
    "ticket": {
        "description": "A ticket's id, key or number.",
        "schema": {"type": "string", "pattern": f"^({_UUID}|{_KEY}|[1-9][0-9]{{0,17}})$"},
    },
    "key": {
        "description": "A ticket's key, such as TSK-1001.",
        "schema": {"type": "string", "pattern": f"^{_KEY}$"},
    },
    "id": {"schema": {"type": "string", "format": "uuid"}},
    "signed": {
        "description": "A signed reference, from a presigned URL.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 2000},
    },
}

ERROR: Json = {
    "type": "object",
    "description": "The one body of every failure.",
    "required": ["error", "message", "error_code", "details", "request_id"],
    "additionalProperties": False,
    "properties": {
        "error": {"type": "string", "pattern": "^E_[A-Z0-9_]+$", "description": "What it is."},
        "message": {"type": "string", "description": "What it is, for people."},
        "error_code": {"type": "string", "description": "The class that it belongs to."},
        "details": {
            "type": "object",
            "description": "What can be told about it; for a 422: fields with path and problem.",
        },
        "request_id": {"type": "string", "description": "What to quote when asking for help."},
    },
}

HEADERS: Mapping[str, Json] = {
    "X-Request-ID": {
        "description": "The id of this request in the logs.",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "The ticket's version, to be sent back as If-Match.",
        "schema": {"type": "string"},
    },
    "Location": {"description": "Where the new object is.", "schema": {"type": "string"}},
    "Link": {
        "description": 'The next page, as rel="next"; absent on the last one.',
        "schema": {"type": "string"},
    },
    "X-Total-Count": {
        "description": "How many there are in all, when asked by count=true.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Retry-After": {
        "description": "How many seconds to wait before trying again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Idempotency-Replayed": {
        "description": "true when this is the kept answer to an earlier twin.",
        "schema": {"const": "true"},
    },
    "WWW-Authenticate": {"description": "How to sign in.", "schema": {"type": "string"}},
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
}

REQUEST_HEADERS: Mapping[str, Json] = {
    "Idempotency-Key": {
        "description": "Chosen by the client, so that repeating the request has no second effect.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    "If-Match": {
        "description": "The ETag that the change is based on; 412 when it is no longer current.",
        "schema": {"type": "string", "minLength": 1},
    },
}


class Document:
    """The document of a table of routes, made when it is first asked for and kept as bytes."""

    def __init__(self, routes: Sequence[Route], cookie: str) -> None:
        self._routes = routes
        self._cookie = cookie
        self._content: bytes | None = None
        self._making = asyncio.Lock()

    def describe(self, routes: Sequence[Route]) -> None:
        """Describe these from now on."""
        self._routes, self._content = routes, None

    async def content(self) -> bytes:
        """Return the document as JSON; making it takes a while, so that a thread does it."""
        while (content := self._content) is None:
            # Once, however many ask at the beginning: it takes a processor for a second.
            async with self._making:
                routes = self._routes
                if self._content is None:
                    made = await asyncio.to_thread(self._make, routes)
                    if routes is self._routes:
                        self._content = made
        return content

    def _make(self, routes: Sequence[Route]) -> bytes:
        return orjson.dumps(document(routes, self._cookie))


def document(routes: Sequence[Route], cookie: str) -> Json:
    """Return the OpenAPI document of these routes."""
    schemas = Schemas(routes)
    ids = _operation_ids(routes)
    paths: dict[str, Json] = {}
    for route in routes:
        operation = _operation(route, ids, routes, schemas)
        paths.setdefault(route.full_path, {})[route.method.lower()] = operation
    tags = dict.fromkeys(route.tag for route in routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "itdesk",
            "version": itdesk.__version__,
            "description": "An on-prem IT service desk: tickets, scanned attachments, plugins."
            " The live stream is described by [/asyncapi.json](/asyncapi.json).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR, **schemas.components},
            "headers": dict(HEADERS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                "cookie": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": cookie,
                    "description": "Set by the sign-in. Over https its name begins with __Host-.",
                },
            },
        },
    }


def routes_table(routes: Iterable[Route]) -> list[Json]:
    """Return what `itdesk routes` prints: every route, who may call it, and its aliases."""
    return [
        {
            "id": route.id,
            "method": route.method,
            "path": route.full_path,
            "who": str(route.who),
            "role": str(route.who.role) if route.who.role else None,
            "tag": route.tag,
            "rate": route.rate,
            "idempotent": route.idempotent,
            "summary": _summary(route),
            "aliases": list(twins(route.method, route.full_path)),
        }
        for route in routes
    ]


def _operation(
    route: Route, ids: Mapping[int, str], routes: Sequence[Route], schemas: Schemas
) -> Json:
    operation: Json = {
        "operationId": ids[id(route)],
        "summary": _summary(route),
        "tags": [route.tag],
        "x-itdesk-id": route.id,
        "x-itdesk-who": str(route.who),
        "security": _security(route),
    }
    parameters = _path_parameters(route)
    if route.query is not None:
        parameters += schemas.parameters(route.query)
    wanted = [
        name
        for name, used in (("Idempotency-Key", route.idempotent), ("If-Match", route.if_match))
        if used
    ]
    parameters += [{"name": name, "in": "header", **REQUEST_HEADERS[name]} for name in wanted]
    if parameters:
        operation["parameters"] = parameters
    body = _request_body(route, schemas)
    if body:
        operation["requestBody"] = body
    operation["responses"] = _responses(route, ids, routes, schemas)
    return operation


def _summary(route: Route) -> str:
    text = inspect.getdoc(route.handler) or ""
    return text.partition("\n")[0].rstrip(".")


def _security(route: Route) -> list[Json]:
    if route.who is Who.OPERATOR:
        return [{}, {"bearer": []}]
    return [] if route.who.role is None else [{"bearer": []}, {"cookie": []}]


def _names(path: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", path)


def _path_parameters(route: Route) -> list[Json]:
    anything: Json = {"schema": {"type": "string", "minLength": 1}}
    return [
        {"name": name, "in": "path", "required": True, **PATH_PARAMETERS.get(name, anything)}
        for name in _names(route.path)
    ]


def _request_body(route: Route, schemas: Schemas) -> Json:
    if route.body is not None:
        schema = schemas.of(route.body, "validation")
    elif route.raw_body is not None:
        schema = dict(route.raw_body)
    elif route.body_media == "multipart/form-data":
        file = {"type": "string", "format": "binary", "minLength": 1}
        schema = {
            "type": "object",
            "required": ["file"],
            "properties": {"file": file},
            "additionalProperties": False,
        }
    elif route.body_media != "application/json":
        schema = {"type": "string", "format": "binary"}
    else:
        return {}
    return {"required": not route.body_optional, "content": {route.body_media: {"schema": schema}}}


def _responses(
    route: Route, ids: Mapping[int, str], routes: Sequence[Route], schemas: Schemas
) -> Json:
    success = _answer(route, route.status, route.response, schemas)
    links = _links(route, ids, routes)
    if links:
        success["links"] = links
    responses: Json = {str(route.status): success}
    for status, kind in route.also.items():
        responses[str(status)] = _answer(route, status, kind, schemas)
    for status, codes in sorted(_failures(route).items()):
        failure = _failure(status, codes)
        if str(status) in responses:
            content = responses[str(status)]["content"]
            if "application/json" in content:
                schema = content["application/json"]
                schema["schema"] = {"anyOf": [schema["schema"], {"$ref": REF + "Error"}]}
            else:
                content |= failure["content"]
        else:
            responses[str(status)] = failure
    return responses


def _answer(route: Route, status: int, kind: Any, schemas: Schemas) -> Json:
    answer: Json = {"description": _phrase(status), "headers": _success_headers(route, status)}
    if kind is bytes:
        # What a file is, only the file knows.
        media = route.response_media.replace("application/octet-stream", "*/*")
        file = {"schema": {"type": "string", "format": "binary"}}
        answer["content"] = dict.fromkeys(media.split(", "), file)
    elif kind is not None and status not in (204, 304):
        answer["content"] = {route.response_media: {"schema": schemas.of(kind)}}
        text = {"schema": {"type": "string"}}
        answer["content"] |= dict.fromkeys(route.other_media, text)
    return answer


def _success_headers(route: Route, status: int) -> Json:
    used = {
        "X-Request-ID": True,
        "ETag": route.etag,
        "Location": status == 201 or status in range(300, 400),
        "Link": bool(route.query) and issubclass(route.query or object, ListQuery),
        "X-Total-Count": bool(route.query) and issubclass(route.query or object, ListQuery),
        "Idempotency-Replayed": route.idempotent,
    }
    return _header_refs(name for name, is_used in used.items() if is_used)


def _header_refs(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


_SCOPE = "E_AUTH_INSUFFICIENT_SCOPE"


def _failures(route: Route) -> Mapping[int, set[str]]:
    """Return the error codes by status: the route's own and those that come with what it takes."""
    codes: dict[int, set[str]] = defaultdict(set)
    for code, status in route.errors.items():
        codes[status].add(code)
    codes[400].add("E_BAD_REQUEST")
    codes[422].add("E_VALIDATION_ERROR")
    codes[503].update(("E_UNAVAILABLE", "E_TIMEOUT"))
    if route.who.role is not None or route.who is Who.OPERATOR:
        codes[401].update(("E_AUTH_TOKEN_MISSING", "E_AUTH_TOKEN_INVALID"))
    if route.who.role is not None:
        codes[401].add("E_AUTH_TOKEN_EXPIRED")
        codes[403].update(("E_AUTH_INSUFFICIENT_PERMISSIONS", "E_AUTH_CROSS_SITE"))
        codes[403].add("E_AUTH_SESSION_REQUIRED" if route.session_only else _SCOPE)
        if not route.enrolling:
            codes[403].add("E_AUTH_ENROLMENT_REQUIRED")
    elif route.who is Who.PUBLIC and route.method not in SAFE_METHODS:
        codes[403].add("E_AUTH_CROSS_SITE")
    if _names(route.path):
        codes[404].add("E_NOT_FOUND")
    if route.body is not None or route.body_media != "application/json":
        codes[400].add("E_BAD_JSON")
        codes[413].add("E_TOO_LARGE")
        codes[415].add("E_UNSUPPORTED_MEDIA_TYPE")
    if route.idempotent:
        codes[409].add("E_IDEMPOTENCY_IN_FLIGHT")
        codes[422].add("E_IDEMPOTENCY_KEY_REUSED")
    if route.if_match:
        codes[412].add("E_PRECONDITION_FAILED")
    if route.rate != "none":
        codes[429].add("E_RATE_LIMITED")
    return codes


def _failure(status: int, codes: set[str]) -> Json:
    headers = ["X-Request-ID"]
    if status in (409, 429, 503):
        headers.append("Retry-After")
    if status == 401:
        headers.append("WWW-Authenticate")
    return {
        "description": f"{_phrase(status)}: {', '.join(sorted(codes))}",
        "headers": _header_refs(headers),
        "content": {"application/json": {"schema": {"$ref": REF + "Error"}}},
    }


def _links(route: Route, ids: Mapping[int, str], routes: Sequence[Route]) -> Json:
    """Say where the id of a new object can be used, for readers and for stateful tests."""
    if route.method != "POST" or route.status != 201 or _names(route.path):
        return {}
    links = {}
    for other in routes:
        names = _names(other.full_path)
        if len(names) == 1 and other.full_path.startswith(f"{route.full_path}/{{{names[0]}}}"):
            links[ids[id(other)]] = {
                "operationId": ids[id(other)],
                "parameters": {names[0]: "$response.body#/id"},
            }
    return links


def _operation_ids(routes: Sequence[Route]) -> Mapping[int, str]:
    ids: dict[int, str] = {}
    taken: set[str] = set()
    for route in routes:
        words = re.sub(r"\{(\w+)\}", r"by_\1", route.path).replace("/", "_")
        name = re.sub(r"\W", "_", f"{route.method.lower()}{words}")
        if name in taken:
            name += "_v1"
        taken.add(name)
        ids[id(route)] = name
    return ids


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
