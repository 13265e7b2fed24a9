"""A way to a real S3 server on which everything may happen: change its `fault`."""

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_ETAG = re.compile(rb'(etag: |<ETag>(?:"|&quot;|&#34;))"?[0-9a-f]{8}', re.I)
CUT = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Asked:
    """One request, as far as a fault may want to know."""

    method: str
    path: str
    size: int


def refusal(status: int, code: str) -> bytes:
    """Return the answer of a server that refuses."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


REFUSALS = {
    "500": refusal(500, "InternalError"),
    "503": refusal(503, "SlowDown"),
    "skew": refusal(403, "RequestTimeTooSkewed"),
}
# rst: reset in the middle of the request's body, or else of the answer; short: closed there.
FAULTS = (*REFUSALS, "rst", "short", "etag", "stall")


@dataclass
class HostileS3:
    """The proxy: `fault` names what happens to requests that `when` picks."""

    host: str
    port: int
    listening_on: int = 0
    fault: str | None = None
    when: Callable[[Asked], bool] = lambda asked: True
    met: Counter[str] = field(default_factory=Counter)
    _serving: set["asyncio.Task[None]"] = field(default_factory=set)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.listening_on}"

    def behave(self) -> None:
        """Let everything through again, and hang up on whoever was kept waiting."""
        self.fault = None
        self._released.set()
        self._released = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    await writer.drain()
        finally:
            self._serving.discard(task)
            writer.close()

    async def stop(self) -> None:
        """Hang up on everybody."""
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
        size = int(found[1]) if found else 0
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        asked = Asked(method, path, size)
        fault = self.fault if self.fault and self.when(asked) else None
        if fault:
            self.met[fault] += 1
        if re.search(rb"\r\nexpect: 100-continue", head, re.I):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = re.sub(rb"\r\nexpect: [^\r]*", b"", head, flags=re.I)
        if fault == "stall":
            await self._released.wait()
            return False
        if fault == "rst" and size > 1:
            await reader.readexactly(size // 2)
            return _reset(writer)
        body = await reader.readexactly(size)
        if fault in REFUSALS:
            writer.write(REFUSALS[fault])
            return True
        answer = await self._pass_on(head, body)
        if fault == "etag":
            answer = _ETAG.sub(rb"\1deadbeef", answer)
        if fault in ("rst", "short") and asked.method != "HEAD":
            writer.write(answer[: max(1, len(answer) // 2)])
            await writer.drain()
            return _reset(writer) if fault == "rst" else False
        if fault in ("rst", "short"):
            return False
        writer.write(answer)
        return True

    async def _pass_on(self, head: bytes, body: bytes) -> bytes:
        back, there = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        head = re.sub(rb"\r\nconnection: [^\r]*", b"", head, flags=re.I)
        there.write(head[:-2] + b"Connection: close\r\n\r\n" + body)
        try:
            answer = await back.read()
        finally:
            there.close()
        return re.sub(rb"(?i)\r\nconnection: close", b"", answer, count=1)


def _reset(writer: asyncio.StreamWriter) -> bool:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, CUT)
    writer.transport.abort()
    return False


@asynccontextmanager
async def hostile_s3(host: str, port: int) -> AsyncIterator[HostileS3]:
    """Lend a proxy in front of an S3 server."""
    proxy = HostileS3(host, port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 24)
    proxy.listening_on = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()


@asynccontextmanager
async def silent_port() -> AsyncIterator[str]:
    """Lend an address at which connections are neither accepted nor refused."""
    loop = asyncio.get_running_loop()
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                with suppress(TimeoutError, BlockingIOError):
                    async with asyncio.timeout(0.05):
                        await loop.sock_connect(sock, full.getsockname())
            yield f"http://127.0.0.1:{full.getsockname()[1]}"
        finally:
            for sock in waiting:
                sock.close()
