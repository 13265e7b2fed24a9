"""The chats on one websocket: each is answered as POST /ai/chat answers, while events go on.

Hides that every chat is a task of its own: each ends with exactly one frame, and none outlives its
websocket.
"""

from asyncio import Task, TaskGroup
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field

from itdesk.actors.client import Client
from itdesk.actors.frames import frame, text
from itdesk.api import render
from itdesk.api.assist import CHAT, Dialogue, previewed
from itdesk.api.exchange import EXCHANGE
from itdesk.api.failures import explained
from itdesk.api.route import Body, Call
from itdesk.desk.chat import Replied
from itdesk.errors import Conflict, DeskError
from itdesk.model.spans import Value
from itdesk.runtime import trace
from itdesk.runtime.log import get_logger
from itdesk.runtime.tracing import Begun

if TYPE_CHECKING:
    from itdesk.actors.hub import Hub

AT_ONCE = 2
LONGEST_ID = 64

ChatId = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_ID, description="Your name for a chat while it runs."),
]

log = get_logger("chats")


class Ask(Dialogue):
    """Ask the assistant: the conversation so far, under an id that its answer will carry."""

    type: Literal["chat"]
    id: ChatId


class Cancel(Body):
    """Give up a chat; one that is over stays as it ended."""

    type: Literal["chat.cancel"]
    id: ChatId


def named(said: Mapping[str, Any]) -> dict[str, str]:
    """Return the id of the chat that a message is about, as far as it can be told."""
    id = said.get("id")
    is_ours = said["type"] in ("chat", "chat.cancel")
    return {"id": id} if is_ours and isinstance(id, str) and 0 < len(id) <= LONGEST_ID else {}


_BUSY = Conflict(f"{AT_ONCE} chats of this websocket are running already.", code="E_CHAT_BUSY")
_CANCELLED = Conflict("The chat was given up.", code="E_CHAT_CANCELLED")


class Chats:
    """The chats that run on one websocket; the task that opens them ends them as well."""

    def __init__(self, call: Call, hub: "Hub", client: Client) -> None:
        self._call = call
        self._hub = hub
        self._client = client
        self._group = TaskGroup()
        self._exchange = call.request[EXCHANGE]
        self._running: dict[str, Task[Replied | DeskError]] = {}

    async def open(self) -> Self:
        """Be ready for chats, until `end`."""
        await self._group.__aenter__()
        return self

    def begin(self, asked: Ask) -> bool:
        """Begin a chat, whose frames name it; False if one of that name is running."""
        if asked.id in self._running:
            return False
        if len(self._running) == AT_ONCE:
            self._end(asked.id, _BUSY)
            return True
        began, span = self._call.desk.clock.monotonic(), self._span()
        with trace.resumed(span.traceparent if span is not None else None):
            task = self._running[asked.id] = self._group.create_task(self._answered(asked))
            task.add_done_callback(partial(self._over, asked.id, began, span))
        return True

    def cancel(self, id: str) -> None:
        """Give a chat up, if it is running."""
        if id in self._running:
            self._running[id].cancel()

    async def end(self) -> None:
        """Give up all that are running, and return when they are over."""
        for task in self._running.values():
            task.cancel()
        # Nothing that ends the conversation is told to the group: it would wrap it.
        await self._group.__aexit__(None, None, None)

    async def _answered(self, asked: Ask) -> Replied | DeskError:
        """Return what a chat ends with."""
        call, caller, outbox = self._call, self._client.caller, self._client.outbox

        async def show(piece: str) -> None:
            outbox.put(text({"type": "chat.delta", "id": asked.id, "text": piece}))
            await outbox.room()

        try:
            with call.dispatcher.deadline(CHAT, call.desk.clock.monotonic()):
                await call.dispatcher.admit(CHAT, caller, self._exchange)
                return await previewed(call.desk.chat, caller, asked, show)
        except Exception as exc:  # noqa: BLE001 - the other chats, and the stream, go on
            return explained(exc, CHAT.full_path)

    def _span(self) -> Begun | None:
        """Begin the span of a chat, beside its websocket's own, which is told to nobody."""
        tracing, ours = self._call.desk.tracing, self._exchange.span
        if not tracing.on:
            return None
        return tracing.begin(ours.above if ours is not None else trace.current())

    def _over(
        self, id: str, began: float, span: Begun | None, task: "Task[Replied | DeskError]"
    ) -> None:
        del self._running[id]
        # It may have been given up before it came to anything, even to its first step.
        outcome = _CANCELLED if task.cancelled() else task.result()
        how = self._end(id, outcome, self._call.desk.clock.monotonic() - began)
        if span is not None:
            said: dict[str, Value] = {
                "itdesk.chat.outcome": how,
                "itdesk.request_id": self._exchange.request_id,
            }
            failed = isinstance(outcome, DeskError) and outcome.status >= 500
            self._call.desk.tracing.end(span, "chat", "server", said, failed=failed)

    def _end(self, id: str, outcome: Replied | DeskError, seconds: float = 0.0) -> str:
        """Send the last frame of a chat, count it, write its line, and return how it ended."""
        if isinstance(outcome, DeskError):
            how, problem = outcome.code, render.problem(outcome, self._exchange.request_id)
            told = {"type": "chat.failed", "id": id, **problem, "retry_after": outcome.retry_after}
        else:
            how, told = "done", {"type": "chat.done", "id": id, "answer": outcome}
        self._client.outbox.put(frame(0x1, render.encode(told)))
        self._hub.count_chat(how)
        log.info("chat ended", user=self._client.user_id, outcome=how, seconds=round(seconds, 6))
        return how
