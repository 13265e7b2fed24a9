"""Many websocket clients in a process of their own that only count what they are sent.

Reads commands from its standard input, answers each with one line: `expect N` returns once N more
frames came, with the times of the first and the last of them and their size on average.
"""

import asyncio
import base64
import os
import sys
import time
from functools import partial
from typing import cast

import uvloop

OPENING = 50
_SUBSCRIBE = b'{"type": "subscribe"}'
SUBSCRIBE = bytes((0x81, 0x80 | len(_SUBSCRIBE), 0, 0, 0, 0)) + _SUBSCRIBE


class Listener(asyncio.Protocol):
    """One client: its handshake, then nothing but counting (RFC 6455 section 5.2)."""

    def __init__(self, crowd: "Crowd", request: bytes) -> None:
        self._crowd = crowd
        self._request = request
        self._rest = b""
        self._upgraded = False
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count whole frames."""
        data = self._rest + data if self._rest else data
        if not self._upgraded:
            head, found, data = data.partition(b"\r\n\r\n")
            if not found:
                self._rest = head
                return
            if b" 101 " not in head.split(b"\r\n")[0]:
                self.opened.set_exception(ConnectionError(head.decode(errors="replace")))
                return
            self._upgraded = True
            self._transport.write(SUBSCRIBE)
        at, end, count = 0, len(data), 0
        while at + 2 <= end:
            size = data[at + 1]
            head_size = 2
            if size == 126:
                if at + 4 > end:
                    break
                size, head_size = data[at + 2] << 8 | data[at + 3], 4
            elif size == 127:
                if at + 10 > end:
                    break
                size, head_size = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if at + head_size + size > end:
                break
            # Pings and the welcome are no events: they are short.
            count += size > 150
            at += head_size + size
        self._rest = data[at:]
        if at and not self.opened.done():
            self.opened.set_result(None)
        if count:
            self._crowd.count(count, at)

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so when a client was closed: then nothing was measured."""
        self._crowd.lost += 1


class Crowd:
    """All clients together."""

    def __init__(self) -> None:
        self.frames = self.octets = self.lost = self._target = 0
        self._first = self._last = 0.0
        self._done: asyncio.Future[None] | None = None

    def count(self, frames: int, octets: int) -> None:
        """Take note of frames that came."""
        if not self.frames:
            self._first = time.time()
        self.frames += frames
        self.octets += octets
        if self._done is not None and self.frames >= self._target and not self._done.done():
            self._last = time.time()
            self._done.set_result(None)

    async def expect(self, frames: int) -> str:
        """Return when so many frames came: their first and last time and mean size."""
        self._target = frames
        if self.frames >= frames:
            self._last = time.time()
        else:
            self._done = asyncio.get_running_loop().create_future()
            async with asyncio.timeout(120):
                await self._done
        told = f"{self._first:.6f} {self._last:.6f} {self.octets / self.frames:.1f} {self.lost}"
        self.frames = self.octets = 0
        self._done = None
        return told


def _request(host: str, port: int, number: int, token: str) -> bytes:
    lines = [
        f"GET /ws/bench-{number} HTTP/1.1",
        f"Host: {host}:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: itdesk.v1, bearer.{token}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _same(listener: Listener) -> Listener:
    return listener


async def main(host: str, port: int, clients: int) -> None:
    """Connect everybody, then obey the standard input."""
    loop, crowd = asyncio.get_running_loop(), Crowd()
    token = sys.stdin.readline().strip()
    for start in range(0, clients, OPENING):
        made = []
        for number in range(start, min(clients, start + OPENING)):
            listener = Listener(crowd, _request(host, port, number, token))
            await loop.create_connection(partial(_same, listener), host, port)
            made.append(listener)
        await asyncio.gather(*(one.opened for one in made))
    print("open", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(await crowd.expect(int(line.split()[1])), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
