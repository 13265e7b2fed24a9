"""The AsyncAPI 3 document of the live stream, from the very models that read its messages."""

from typing import Any

import orjson

import itdesk
from itdesk.actors.client import Goodbye
from itdesk.actors.frames import PROTOCOL
from itdesk.api.chats import AT_ONCE
from itdesk.api.openapi import ERROR
from itdesk.api.route import Call, Reply, Route, Who
from itdesk.api.websocket import ERRORS, LARGEST_FRAME, MESSAGES

Json = dict[str, Any]

_UUID: Json = {"type": "string", "format": "uuid"}
_SEQ: Json = {"type": "integer", "minimum": 0}
_KEY: Json = {"type": "string", "examples": ["TSK-1001"]}
_OPENAPI = "/openapi.json#/components/schemas/"


def _object(type: str, /, **properties: Json) -> Json:
    return {
        "type": "object",
        "required": ["type", *properties],
        "properties": {"type": {"const": type}, **properties},
    }


def _perhaps(shape: Json, **properties: Json) -> Json:
    return {**shape, "properties": {**shape["properties"], **properties}}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_POSITION: Json = {"epoch": _UUID, "seq": _SEQ}
_CHANGE: Json = {
    "type": "object",
    "required": ["field", "old", "new"],
    "properties": {"field": {"type": "string"}, "old": {}, "new": {}},
}
_ACTOR: Json = {"type": "object", "properties": {"id": _or_null(_UUID), "name": {"type": "string"}}}
_EVENT: Json = {
    "type": "object",
    "description": "One accepted change of a ticket.",
    "required": ["type", "seq", "ticket", "key", "version", "data"],
    "properties": {
        "type": {
            "enum": [
                "ticket.created", "ticket.updated", "ticket.deleted", "comment.added",
                "comment.updated", "comment.deleted",
                "attachment.added", "attachment.scanned", "attachment.recalled",
                "attachment.deleted", "ticket.removed",
            ],
            "description": "ticket.removed: you may not read this ticket any more.",
        },
        "seq": {**_SEQ, "description": "The place in the journal; grows, not by one."},
        "ticket": _UUID,
        "key": _or_null(_KEY),
        "version": {"type": "integer", "minimum": 1},
        "data": {
            "type": "object",
            "required": ["at", "actor", "source", "changes", "details", "comment", "ticket"],
            "properties": {
                "at": _or_null({"type": "string", "format": "date-time"}),
                "actor": _or_null(_ACTOR),
                "source": _or_null({"type": "string"}),
                "changes": {"type": "array", "items": _CHANGE},
                "details": {"type": "object", "description": "What else the journal says."},
                "comment": _or_null({"$ref": f"{_OPENAPI}Comment"}),
                "ticket": {
                    **_or_null({"$ref": f"{_OPENAPI}Ticket"}),
                    "description": "The ticket as it is now, which may be beyond `version`.",
                },
            },
        },
    },
}  # fmt: skip
_PERSON: Json = {
    "type": "object",
    "required": ["id", "name", "state"],
    "properties": {
        "id": _UUID,
        "name": {"type": "string"},
        "state": {"enum": ["viewing", "typing"]},
    },
}
_CHAT_ID: Json = {"type": "string", "description": "The id that you gave the chat."}
_SECONDS: Json = {"type": "integer", "description": "Try again after so many seconds."}

# What the server sends, by the name of the message: a sentence and its shape.
SENT: dict[str, tuple[str, Json]] = {
    "welcome": (
        "The stream begins behind this position; what came before belongs to an earlier one.",
        _object("welcome", **_POSITION),
    ),
    "event": ("A ticket has changed.", _EVENT),
    "resync": (
        "Your position is unknown or trimmed: read the tickets anew, then go on from here.",
        _object("resync", **_POSITION),
    ),
    "presence": (
        "Everybody who is at a ticket now; replaces what you knew of it.",
        _object("presence", ticket=_UUID, key=_KEY, people={"type": "array", "items": _PERSON}),
    ),
    "authenticated": (
        "A fresh token was accepted.",
        _object("authenticated", expires_at={"type": "string", "format": "date-time"}),
    ),
    "pong": ("The answer to a ping.", _object("pong")),
    "chat.delta": (
        "What is new of a reply while it is written: a preview, whose place the answer takes.",
        _object("chat.delta", id=_CHAT_ID, text={"type": "string"}),
    ),
    "chat.done": (
        "The end of a chat: what POST /api/v1/ai/chat answers.",
        _object("chat.done", id=_CHAT_ID, answer={"$ref": f"{_OPENAPI}Replied"}),
    ),
    "chat.failed": (
        "The end of a chat without an answer: the error that POST /api/v1/ai/chat gives, or"
        f" E_CHAT_CANCELLED, or E_CHAT_BUSY when {AT_ONCE} are running on this websocket.",
        _object("chat.failed", id=_CHAT_ID, **ERROR["properties"], retry_after=_or_null(_SECONDS)),
    ),
    "error": (
        "A message was not accepted.",
        _perhaps(
            _object("error", error={"enum": list(ERRORS)}, message={"enum": list(ERRORS.values())}),
            id={**_CHAT_ID, "description": "The chat that the message was about, if it named one."},
            details={
                "type": "object",
                "description": "With E_VALIDATION_ERROR: fields with path and problem.",
            },
        ),
    ),
}


def document() -> Json:
    """Return the document."""
    messages: Json = {}
    for name, model in MESSAGES.items():
        messages[f"client_{name}"] = {
            "name": name,
            "summary": (model.__doc__ or "").strip(),
            "payload": _inlined(model.model_json_schema()),
        }
    for name, (summary, shape) in SENT.items():
        messages[name] = {"name": name, "summary": summary, "payload": shape}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "itdesk live updates",
            "version": itdesk.__version__,
            "description": _description(),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            "stream": {
                "address": "/ws/{client_id}",
                "description": "One websocket; client_id only names it in the log.",
                "parameters": {"client_id": {"description": "Any name."}},
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": {
            "say": _operation("receive", [name for name in messages if name not in SENT]),
            "hear": _operation("send", list(SENT)),
        },
        "components": {"messages": messages},
    }


def _operation(action: str, names: list[str]) -> Json:
    return {
        "action": action,
        "channel": {"$ref": "#/channels/stream"},
        "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in names],
    }


def _inlined(schema: Json) -> Json:
    """Return a schema without $defs, so that it stands alone inside another document."""
    definitions = schema.pop("$defs", {})

    def whole(part: Any) -> Any:
        if isinstance(part, list):
            return [whole(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return whole(definitions[part["$ref"].rpartition("/")[2]])
        return {name: whole(each) for name, each in part.items()}

    inlined: Json = whole(schema)
    return inlined


def _description() -> str:
    codes = "\n".join(f"- {g.code} ({g.label}): {g.words}" for g in Goodbye)
    return (
        "Sign in by the first message, by the subprotocols"
        f' ["{PROTOCOL}", "bearer.<token>"], or by the cookie from a page of this desk.'
        " Subscribe; a welcome says where the stream begins. After a broken connection, subscribe"
        " since the last seq that you have. A chat goes on beside the events: its frames carry its"
        " id and no seq, and it ends with one chat.done or chat.failed.\n\n"
        f"Frames are JSON text of at most {LARGEST_FRAME} bytes. The server closes with:\n\n{codes}"
    )


_CONTENT = orjson.dumps(document())


async def asyncapi(call: Call) -> Reply:
    """Return the live stream as an AsyncAPI 3 document."""
    return Reply(_CONTENT, 200, {"Cache-Control": "no-cache"})


ROUTES: list[Route] = [
    Route(
        id="R69",
        method="GET",
        path="/asyncapi.json",
        handler=asyncapi,
        who=Who.PUBLIC,
        tag="documentation",
        response={"type": "object"},
        rate="none",
        root=True,
    ),
]
