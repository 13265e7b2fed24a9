"""Somebody who follows the live stream over a real websocket, and can be slow, rude or cut off."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
from aiohttp import ClientSession, ClientWebSocketResponse, TCPConnector, WSMsgType

from itdesk.desk.keyfile import KeyFile
from itdesk.desk.tokens import Tokens
from itdesk.runtime.clock import Clock
from tests.support.daemon import Live, Person

PATIENCE = 15.0
Frame = dict[str, Any]


class Closed(Exception):  # noqa: N818 - it is what a test waits for
    """The server has closed the websocket."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


@dataclass(eq=False)
class Stream:
    """One websocket and what came over it."""

    ws: ClientWebSocketResponse
    frames: list[Frame] = field(default_factory=list)
    epoch: str = ""
    seq: int = 0

    async def send(self, **message: Any) -> None:
        """Send a message."""
        await self.ws.send_str(orjson.dumps(message).decode())

    async def receive(self, *, seconds: float = PATIENCE) -> Frame:
        """Return the next frame and remember its position; raise Closed at the end."""
        async with asyncio.timeout(seconds):
            message = await self.ws.receive()
        if message.type is not WSMsgType.TEXT:
            raise Closed(self.ws.close_code)
        frame: Frame = orjson.loads(message.data)
        self.epoch = frame.get("epoch", self.epoch)
        self.seq = frame.get("seq", self.seq)
        self.frames.append(frame)
        return frame

    async def until(
        self, wanted: str | Callable[[Frame], bool], *, seconds: float = PATIENCE
    ) -> Frame:
        """Return the next frame of a type, or for which something holds."""
        deadline = time.monotonic() + seconds
        while True:
            frame = await self.receive(seconds=deadline - time.monotonic())
            if frame["type"] == wanted if isinstance(wanted, str) else wanted(frame):
                return frame

    async def event(self, ticket: Mapping[str, Any], version: int) -> Frame:
        """Return the event that made this version of a ticket."""
        return await self.until(
            lambda f: f.get("ticket") == ticket["id"] and f.get("version") == version
        )

    async def subscribe(self, **how: Any) -> Frame:
        """Subscribe and return the welcome."""
        await self.send(type="subscribe", **how)
        return await self.until("welcome")

    async def resume(self, other: "Stream") -> Frame:
        """Go on where another websocket ended."""
        return await self.subscribe(since={"epoch": other.epoch, "seq": other.seq})

    async def end(self, *, seconds: float = PATIENCE) -> int | None:
        """Read to the end and return the close code."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                await self.receive(seconds=deadline - time.monotonic())
            except Closed as closed:
                return closed.code

    async def quiet(self) -> list[Frame]:
        """Return the frames up to the answer to a ping: what was on its way by now."""
        await self.send(type="ping")
        before = len(self.frames)
        await self.until("pong")
        return self.frames[before:-1]

    @property
    def transport(self) -> Any:
        """Return the client's end of the connection."""
        connection = self.ws._response.connection
        return connection.transport if connection is not None else None

    def write(self, opcode: int, body: bytes, *, fin: bool = True) -> None:
        """Send one frame as it is, be it nonsense."""
        size, mask = len(body), b"\0\0\0\0"
        head = bytes((opcode | (0x80 if fin else 0),))
        if size < 126:
            head += bytes((0x80 | size,))
        elif size < 65536:
            head += bytes((0x80 | 126,)) + size.to_bytes(2, "big")
        else:
            head += bytes((0x80 | 127,)) + size.to_bytes(8, "big")
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(head + mask + body)

    def stop_reading(self) -> None:
        """Take nothing any more."""
        self.transport.pause_reading()

    def read_on(self) -> None:
        """Take what comes again."""
        self.transport.resume_reading()

    def cut(self) -> None:
        """Break the connection without a word."""
        if self.transport is not None:
            self.transport.abort()


@asynccontextmanager
async def connected(
    url: str, *, path: str = "/ws/test", session: ClientSession | None = None, **how: Any
) -> AsyncIterator[Stream]:
    """Lend a websocket that has not said who it is."""
    own = session or ClientSession(connector=TCPConnector(limit=0))
    try:
        async with own.ws_connect(url + path, max_msg_size=0, **how) as ws:
            yield Stream(ws)
    finally:
        if session is None:
            await own.close()


@asynccontextmanager
async def following(person: Person, **how: Any) -> AsyncIterator[Stream]:
    """Lend an authenticated websocket; `subscribe=False` leaves it silent."""
    subscribe = how.pop("subscribe", True)
    async with connected(person.base, **how) as stream:
        await stream.send(type="auth", token=person.token)
        if subscribe:
            await stream.subscribe()
        yield stream


def token_of(live: Live, person: Person, *, seconds: float) -> str:
    """Return a token of a person's session that is good for so long."""
    path = live.daemon.state_dir / "jwt-key.pem"
    keys = KeyFile(path).load_or_create()
    tokens = Tokens(keys, Clock())
    claims = tokens.verify(person.token)
    token, _ = tokens.issue(claims.sub, claims.sid, lifetime=timedelta(seconds=seconds))
    return token
