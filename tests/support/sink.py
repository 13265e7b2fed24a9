"""Somebody who is told by webhooks, over a real socket, and answers as a test wants."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from itdesk.desk.webhooks import signature


@dataclass
class Told:
    """One request."""

    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """Return what it says."""
        return orjson.loads(self.raw)

    @property
    def delivery(self) -> str:
        """Return the id that repeated deliveries share."""
        return self.headers["X-Itdesk-Delivery"]

    def is_signed_with(self, secret: str) -> bool:
        """Return whether the signature is that of this secret."""
        at = self.headers["X-Itdesk-Timestamp"]
        wanted = "sha256=" + signature(secret, at, self.raw)
        return self.headers["X-Itdesk-Signature"] == wanted


@dataclass
class Sink:
    """What it was told, and with which statuses it answers next; then 204."""

    url: str = ""
    told: list[Told] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def hears(self, count: int, *, seconds: float = 30.0) -> list[Told]:
        """Return once so many requests came."""
        async with asyncio.timeout(seconds):
            while len(self.told) < count:
                self.heard.clear()
                await self.heard.wait()
        return self.told


@asynccontextmanager
async def sinking() -> AsyncIterator[Sink]:
    """Lend a server on a port of its own."""
    sink = Sink()

    async def handle(request: web.Request) -> web.Response:
        raw = await request.read()
        sink.told.append(Told(dict(request.headers), raw))
        sink.heard.set()
        status, headers = sink.answers.pop(0) if sink.answers else (204, {})
        return web.Response(status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        sink.url = f"http://{host}:{port}/hook"
        yield sink
    finally:
        await runner.cleanup()
