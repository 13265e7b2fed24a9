"""Tells a chat of what happens to tickets: an incoming webhook of Slack, Mattermost or alike.

A drop-in plugin, built on the public contract alone. Copy it to a directory that is named in
`[plugin_host] directories`, and give it a section:

    [plugins.chat_notify]
    url = "https://chat.example.org/hooks/..."    # a secret: whoever knows it may post
    events = ["ticket.created", "ticket.updated"]

Each event is one job, queued in the event's own transaction: the message is sent once the change
is committed, at least once, each attempt with the same `X-Itdesk-Delivery`. Messages about one
ticket arrive in their order. Internal comments are never quoted, nor is any other text but titles.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout
from pydantic import BaseModel, Field, SecretStr, field_validator

from itdesk.errors import NotFound, Unavailable
from itdesk.hookspecs import GiveUp, JobType, RetryLater, hookimpl
from itdesk.model import SYSTEM
from itdesk.runtime.log import get_logger

LONGEST_TITLE = 200
LONGEST_PAUSE = 3600

log = get_logger("plugin.chat_notify")


class Settings(BaseModel):
    """The section `[plugins.chat_notify]`."""

    url: SecretStr
    events: tuple[str, ...] = ("ticket.created", "ticket.updated")
    username: str = "itdesk"
    attempts: int = Field(10, ge=1, le=50)
    seconds: float = Field(10.0, gt=0, le=60)

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("is not an http(s) address")
        return url


class Plugin:
    """Posts one line for each event."""

    name, itdesk_api, Settings = "chat_notify", 1, Settings

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http: ClientSession | None = None

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self) -> AsyncIterator[None]:
        timeout = ClientTimeout(total=self._settings.seconds)
        async with ClientSession(timeout=timeout) as self._http:
            yield

    @hookimpl
    def itdesk_jobs(self, desk: Any) -> Sequence[JobType]:
        async def tell(job: Any) -> None:
            try:
                ticket = await desk.tickets.get(SYSTEM, job.args["ticket_id"])
            except NotFound:
                return  # deleted meanwhile: there is nothing to tell any more
            await self._post(job, _line(job.args, ticket, desk.settings.server.link_base))

        return [
            JobType(
                name="chat_notify.post",
                handle=tell,
                concurrency=2,
                attempts=self._settings.attempts,
                timeout_seconds=self._settings.seconds + 5,
                on_events=self._settings.events,
                when=lambda event: event.ticket_id is not None,
                lane=lambda event: f"chat_notify:{event.ticket_id}",
                args=lambda event: {
                    "type": event.type,
                    "ticket_id": str(event.ticket_id),
                    "actor": event.actor_name,
                    "changes": {c.field: c.new for c in event.changes if c.field in _TOLD},
                },
            )
        ]

    async def _post(self, job: Any, text: str) -> None:
        assert self._http is not None
        body = {"text": text, "username": self._settings.username}
        try:
            async with (
                job.sending() as key,
                self._http.post(
                    self._settings.url.get_secret_value(),
                    json=body,
                    headers={"X-Itdesk-Delivery": key},
                    allow_redirects=False,
                ) as answer,
            ):
                status, pause = answer.status, answer.headers.get("Retry-After", "")
        except (ClientError, TimeoutError) as exc:
            # Its text would name the address, which is the secret.
            raise Unavailable(f"the chat cannot be reached: {type(exc).__name__}") from None
        if status in (408, 425, 429) or status >= 500:
            if pause.isascii() and pause.isdigit():
                raise RetryLater(min(int(pause), LONGEST_PAUSE), f"the chat answers {status}")
            raise Unavailable(f"the chat answers {status}")
        if status >= 300:
            raise GiveUp(f"the chat answers {status}: is plugins.chat_notify.url still right?")
        log.info("chat told", job=key, about=job.args["type"])


_TOLD = ("status", "priority", "assignee_id")


def _line(args: Any, ticket: Any, base: str) -> str:
    what = args["type"].replace(".", " ")
    changes = [
        f"{name} {value}" for name, value in args["changes"].items() if name != "assignee_id"
    ]
    if "assignee_id" in args["changes"]:
        changes.append("assigned" if args["changes"]["assignee_id"] else "unassigned")
    told = f" ({', '.join(changes)})" if changes else ""
    title = _plain(ticket.title[:LONGEST_TITLE])
    link = f"{base}/tickets/{ticket.key}"
    return f"{what}: {ticket.key} {title}{told}, by {_plain(args['actor'])}\n{link}"


def _plain(text: str) -> str:
    """Return text that no chat takes for markup, a link, or a call of everybody."""
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, entity)
    return " ".join(text.replace("@", "@\u200b").split())
