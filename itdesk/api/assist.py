"""Suggestions and the chat over REST; neither changes anything."""

import asyncio
from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

import orjson
from aiohttp import web
from pydantic import Field

from itdesk.api.fields import Flag, Line, Text
from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.desk.chat import Chat, Message, Replied
from itdesk.desk.triage import Classification
from itdesk.errors import DeskError
from itdesk.model import Caller

NDJSON = "application/x-ndjson"


class ClassifyBody(Body):
    """What a ticket says."""

    title: Line
    description: Annotated[Text, Field(max_length=100_000)] = ""


class MessageBody(Body):
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    content: Annotated[Text, Field(min_length=1, max_length=10_000)]


class Dialogue(Body):
    """A conversation so far, the oldest message first."""

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=40)]
    locale: Annotated[
        str | None, Field(max_length=20, pattern=r"^[A-Za-z]{2,3}([_-][A-Za-z0-9]{2,8}){0,2}$")
    ] = Field(None, description="Language to answer in, such as de or en-GB; else the text's own.")

    def said(self) -> list[Message]:
        """Return the messages in the desk's own words."""
        return [Message(one.role, one.content) for one in self.messages]


class ChatBody(Dialogue):
    """A conversation, and how it shall be answered."""

    stream: Flag = Field(
        False,
        description="Whether to answer as NDJSON: lines of {type: delta, text} as a preview of the"
        " reply while it is written, then one of {type: answer, ...}, which replaces the preview.",
    )


async def classify(call: Call) -> Reply:
    """Suggest priority, category, next steps and an assignee for what a ticket says."""
    body: ClassifyBody = call.body
    return Reply(await call.desk.triage.classify(call.caller, body.title, body.description))


async def chat(call: Call) -> Reply | web.StreamResponse:
    """Answer a conversation, perhaps with a draft of a ticket or one that is there already."""
    body: ChatBody = call.body
    if body.stream:
        return await _streamed(call, body)
    return Reply(await call.desk.chat.answer(call.caller, body.said(), locale=body.locale))


async def _streamed(call: Call, body: ChatBody) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": NDJSON, "X-Accel-Buffering": "no"})

    async def write(line: Mapping[str, Any]) -> None:
        # Not before: an outage that is met on the way could only tear what has begun.
        if not response.prepared:
            await response.prepare(call.request)
        await response.write(orjson.dumps(line) + b"\n")

    async def show(piece: str) -> None:
        await write({"type": "delta", "text": piece})

    try:
        replied = await previewed(call.desk.chat, call.caller, body, show)
        await write({"type": "answer", **_plain(replied)})
        await response.write_eof()
    except* ConnectionError:
        pass  # nobody listens any more
    return response


def _plain(replied: Replied) -> dict[str, Any]:
    plain: dict[str, Any] = orjson.loads(orjson.dumps(replied))
    return plain


async def previewed(
    chat: Chat, caller: Caller, asked: Dialogue, show: Callable[[str], Awaitable[None]]
) -> Replied:
    """Return the answer; until then, `show` is given what is new of the reply, piece by piece."""
    preview = _Preview()
    problem: DeskError | None = None
    async with TaskGroup() as group:
        shown = group.create_task(preview.tell(show))
        try:
            replied = await chat.answer(
                caller, asked.said(), locale=asked.locale, listen=preview.listen
            )
        except DeskError as exc:  # a group of it would be none that the client is told of
            problem = exc
        shown.cancel()
    if problem is not None:
        raise problem
    return replied


class _Preview:
    """The reply as far as it is written; a client that reads slowly gets more at a time."""

    def __init__(self) -> None:
        self._text = ""
        self._more = asyncio.Event()

    def listen(self, text: str) -> None:
        """Take the reply so far, unless it is not simply longer than the one before."""
        if len(text) > len(self._text) and text.startswith(self._text):
            self._text = text
            self._more.set()

    async def tell(self, show: Callable[[str], Awaitable[None]]) -> None:
        """Show what is new until it is called off."""
        sent = 0
        while True:
            await self._more.wait()
            self._more.clear()
            piece, sent = self._text[sent:], len(self._text)
            await show(piece)


CHAT = Route(
    id="R63",
    method="POST",
    path="/ai/chat",
    handler=chat,
    who=Who.USER,
    tag="assist",
    body=ChatBody,
    response=Replied,
    other_media=(NDJSON,),
    rate="ai",
)

ROUTES: list[Route] = [
    Route(
        id="R62",
        method="POST",
        path="/ai/classify",
        handler=classify,
        who=Who.USER,
        tag="assist",
        body=ClassifyBody,
        response=Classification,
        rate="ai",
    ),
    CHAT,
]
