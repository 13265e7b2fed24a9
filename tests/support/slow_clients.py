"""Clients that keep a connection and give or take next to nothing, each in a way of its own."""

import asyncio
import select
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from tests.support.daemon import Person

PAUSE = 5.0
# So many answers do not fit into what two kernels keep for a connection.
_ANSWERS = 3

Way = Callable[[socket.socket, Person], Awaitable[None]]


async def silent(sock: socket.socket, person: Person) -> None:
    """Say nothing at all."""


async def trickles_headers(sock: socket.socket, person: Person) -> None:
    """Send a byte of a header now and then."""
    await _say(sock, b"GET /ping HTTP/1.1\r\nHost: a\r\nX-Slow: ")
    await _drip(sock)


async def trickles_body(sock: socket.socket, person: Person) -> None:
    """Promise a ticket of some size and send a byte of it now and then."""
    head = (
        "POST /api/v1/tickets HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {person.token}\r\nContent-Length: 60000\r\n\r\n"
    )
    await _say(sock, head.encode())
    await _drip(sock)


async def never_reads(sock: socket.socket, person: Person) -> None:
    """Ask for more than fits on the way, and read none of it."""
    await _say(sock, b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * _ANSWERS)


WAYS: tuple[Way, ...] = (silent, trickles_headers, trickles_body, never_reads)


async def _say(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def _drip(sock: socket.socket) -> None:
    while True:
        await asyncio.sleep(PAUSE)
        await _say(sock, b" ")


async def endure(person: Person, way: Way) -> float:
    """Connect, behave so, and return after how many seconds the server had enough."""
    host, _, port = person.base.removeprefix("http://").partition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        began = time.monotonic()
        behaving = asyncio.ensure_future(way(sock, person))
        try:
            await _end(sock)
            return time.monotonic() - began
        finally:
            behaving.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await behaving


async def _end(sock: socket.socket) -> None:
    """Return when the server has closed or reset a connection; nothing is read from it."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    with select.epoll() as watch:
        watch.register(sock, select.EPOLLRDHUP)  # of an error it tells by itself
        loop.add_reader(watch, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(watch)
