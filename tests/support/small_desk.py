"""The least desk that a dispatcher can serve, and a real server on a real socket around it."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import orjson
from aiohttp import ClientSession

from itdesk.actors.http import HttpServer
from itdesk.api.dispatch import Dispatcher
from itdesk.api.route import Route
from itdesk.config import Settings
from itdesk.desk.limits import RateLimits
from itdesk.errors import ExpiredToken, InvalidToken
from itdesk.model import Caller, Role
from itdesk.runtime import log
from itdesk.runtime.clock import Clock
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.tracing import Tracing

if TYPE_CHECKING:
    from itdesk.desk import Desk


@dataclass
class SmallAccounts:
    """Knows the tokens that a test gives out."""

    known: dict[str, Caller] = field(default_factory=dict)

    def add(self, role: Role = Role.USER, user_id: UUID | None = None) -> str:
        """Return a token of a new person with this role."""
        token = f"token-{len(self.known)}"
        self.known[token] = Caller(user_id or uuid4(), f"person {len(self.known)}", role)
        return token

    async def authenticate(self, token: str) -> Caller:
        """Return whose token it is."""
        if token == "expired":
            raise ExpiredToken("This token is over.")
        if token not in self.known:
            raise InvalidToken("This is no token of ours.")
        return self.known[token]


class SmallRuntime:
    """Lives until a test says otherwise."""

    living = True

    def alive(self) -> bool:
        """Tell whether everything runs."""
        return self.living


class SmallDesk:
    """Stands in for the desk where only the way of a request matters."""

    def __init__(self, db: Any = None, **sections: dict[str, Any]) -> None:
        sections = {"limits": {"enabled": False}, **sections}
        server = {"port": 0, **sections.pop("server", {})}
        self.settings = Settings.model_validate({"server": server, **sections})
        self.clock = Clock()
        self.metrics = Metrics()
        self.tracing = Tracing()
        self.accounts = self.sessions = SmallAccounts()
        self.runtime = SmallRuntime()
        self.db = db
        self.limits = RateLimits(db, self.settings.limits, self.clock, self.metrics)
        self.health: dict[str, Any] = {"status": "ok", "checks": {}}

    async def readiness(self) -> dict[str, Any]:
        """Return what a test wants it to be."""
        return self.health


class Server:
    """A served application and a client for it."""

    def __init__(
        self, desk: SmallDesk, http: HttpServer, client: ClientSession, log_fd: int
    ) -> None:
        self.desk, self.http, self.client, self.port = desk, http, client, http.port
        self._log_fd = log_fd

    def lines(self) -> list[dict[str, Any]]:
        """Return everything that was logged so far."""
        log.flush()
        text = os.pread(self._log_fd, 10_000_000, 0)
        return [orjson.loads(line) for line in text.splitlines()]

    async def ask(self, method: str, path: str, **options: Any) -> "Answer":
        """Send a request and return its whole answer."""
        role = options.pop("role", None)
        headers = dict(options.pop("headers", {}))
        if role is not None:
            headers.setdefault("Authorization", f"Bearer {self.desk.accounts.add(role)}")
        async with self.client.request(
            method, path, headers=headers, allow_redirects=False, **options
        ) as response:
            raw = await response.read()
            return Answer(response.status, response.headers, raw)

    async def raw(self, text: bytes, *, until: bytes | None = None) -> bytes:
        """Send bytes as they are and return what comes back until some text, or until the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text)
        try:
            async with asyncio.timeout(10):
                return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


@dataclass
class Answer:
    """An answer that was read to its end."""

    status: int
    headers: Any
    raw: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return orjson.loads(self.raw)


@asynccontextmanager
async def serving(desk: SmallDesk, routes: Iterable[Route]) -> AsyncIterator[Server]:
    """Serve these routes on a free port."""
    dispatcher = Dispatcher(cast("Desk", desk), routes)
    log_fd = os.memfd_create("log")
    restore = log.configure(fd=log_fd)
    http = HttpServer(dispatcher, desk.settings.server, desk.clock)
    await http.start()
    async with ClientSession(http.url, auto_decompress=False) as client:
        try:
            yield Server(desk, http, client, log_fd)
        finally:
            await http.stop()
            restore()
            os.close(log_fd)
