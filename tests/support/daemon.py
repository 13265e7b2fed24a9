"""The real daemon as a process of its own, and people who talk to it over real sockets."""

import asyncio
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import orjson
import pytest
from aiohttp import ClientSession, FormData

from tests.support.clamd import Clamd
from tests.support.postgres import Server

T = TypeVar("T")

PASSWORD = "correct horse battery"
# What the clamd of the tests scans whole.
SMALL_FILES = {"MAX_FILE_SIZE": "4000000"}


def wait(work: Awaitable[T]) -> T:
    """Run something asynchronous from a fixture that outlives the tests' event loops."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@dataclass
class Daemon:
    """`itdesk serve` with settings of a test; started, stopped, killed and started again."""

    env: dict[str, str]
    state_dir: Path
    options: tuple[str, ...] = ()
    # What starts it in its place: a sandbox, or somebody who passes a socket.
    through: tuple[str, ...] = ()
    pass_fds: tuple[int, ...] = ()
    process: "subprocess.Popen[str] | None" = None
    url: str = ""
    first_admin: tuple[str, str] | None = None
    port: int = 0
    said: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Where the daemon's log lines go."""
        return self.state_dir / "daemon.log"

    def environ(self) -> dict[str, str]:
        """Return the environment that the daemon and its commands run in."""
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**keep, "PYTHONUNBUFFERED": "1", **self.env}

    def start(self, *, ready: bool = True) -> None:
        """Start the process; with `ready`, return when it listens, and say why if it does not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.through, sys.executable, "-m", "itdesk", "--state-dir", str(self.state_dir),
                 "serve", "--port", str(self.port), *self.options],
                env=self.environ(), stdout=subprocess.PIPE, stderr=log, text=True,
                pass_fds=self.pass_fds,
            )  # fmt: skip
        if not ready:
            return
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if match := re.match(r"listening on (http\S+)", line):
                self.url = match[1]
            if match := re.match(r"first administrator: (\S+) password: (\S+)", line):
                self.first_admin = match[1], match[2]
            if line.startswith("data: "):
                return
        raise AssertionError(f"the daemon did not start: {self.log.read_text()[-3000:]}")

    def stop(self, how: signal.Signals = signal.SIGTERM, *, seconds: float = 40.0) -> int:
        """Send a signal and return the exit status."""
        self.tell(how)
        return self.ended(seconds=seconds)

    def tell(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(how)

    def ended(self, *, seconds: float = 40.0) -> int:
        """Wait for the end and return the exit status."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def run(
        self, *arguments: str, stdin: str | None = None, seconds: float = 120.0
    ) -> "subprocess.CompletedProcess[str]":
        """Run another itdesk command on the same state directory and settings."""
        return subprocess.run(
            [sys.executable, "-m", "itdesk", "--state-dir", str(self.state_dir), *arguments],
            env=self.environ(), input=stdin, capture_output=True, text=True, timeout=seconds,
            check=False,
        )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        """Return the log so far, every line of which is JSON."""
        return [orjson.loads(line) for line in self.log.read_bytes().splitlines()]


@dataclass(frozen=True)
class Answer:
    """What came back: the status, the headers and the body, decoded when it is JSON."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        """Return the decoded body."""
        return orjson.loads(self.raw)

    def expect(self, status: int) -> Any:
        """Return the decoded body of an answer with this status, or fail showing what came."""
        assert self.status == status, f"{self.status}: {self.raw[:500]!r}"
        return orjson.loads(self.raw) if self.raw else None

    def refused(self, status: int, code: str) -> Any:
        """Return the details of the one error body with this status and code."""
        body = self.expect(status)
        assert body["error"] == code, body
        assert set(body) == {"error", "message", "error_code", "details", "request_id"}
        return body["details"]


@dataclass
class Person:
    """Somebody who is signed in; calls the API under /api/v1."""

    base: str
    token: str = ""
    id: str = ""
    email: str = ""
    refresh_token: str = ""

    async def call(self, method: str, path: str, **how: Any) -> Answer:
        """Send one request on a connection of its own."""
        headers = dict(how.pop("headers", {}))
        if self.token:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        url = path if path.startswith("http") else f"{self.base}{path}"
        async with (
            ClientSession() as session,
            session.request(method, url, headers=headers, **how) as response,
        ):
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **how: Any) -> Answer:
        """GET below /api/v1."""
        return await self.call("GET", f"/api/v1{path}", **how)

    async def post(self, path: str, json: Any = None, **how: Any) -> Answer:
        """POST JSON below /api/v1."""
        return await self.call("POST", f"/api/v1{path}", json=json, **how)

    async def patch(self, path: str, json: Any, **how: Any) -> Answer:
        """PATCH with JSON below /api/v1."""
        return await self.call("PATCH", f"/api/v1{path}", json=json, **how)

    async def delete(self, path: str, **how: Any) -> Answer:
        """DELETE below /api/v1."""
        return await self.call("DELETE", f"/api/v1{path}", **how)

    async def ticket(self, title: str = "VPN is down", **fields: Any) -> Any:
        """Open a ticket and return it."""
        return (await self.post("/tickets", {"title": title, **fields})).expect(201)

    async def script(self, scope: str, **more: Any) -> "Person":
        """Return a script with a token of this person."""
        new = {"name": f"{scope} {uuid4().hex[:8]}", "scope": scope, **more}
        made = (await self.post("/tokens", new)).expect(201)
        assert made["scope"] == scope
        return Person(self.base, made["token"], made["id"])

    async def upload(self, ticket: str, data: bytes, name: str = "note.txt", **how: Any) -> Answer:
        """Attach a file directly."""
        form = FormData()
        mime = how.pop("mime", "text/plain")
        form.add_field("file", io.BytesIO(data), filename=name, content_type=mime)
        return await self.call("POST", f"/api/v1/tickets/{ticket}/attachments", data=form, **how)

    async def scanned(self, attachment_id: str, *, seconds: float = 60.0) -> Any:
        """Return an attachment once its scan is over."""
        deadline = time.monotonic() + seconds
        while True:
            found = (await self.get(f"/attachments/{attachment_id}")).expect(200)
            if found["scanned_status"] != "PENDING":
                return found
            assert time.monotonic() < deadline, f"never scanned: {found}"
            await asyncio.sleep(0.05)


@dataclass
class Live:
    """A running daemon and its people."""

    daemon: Daemon
    admin: Person

    @property
    def url(self) -> str:
        """Where the daemon listens now."""
        return self.daemon.url

    @property
    def nobody(self) -> Person:
        """Return somebody who is not signed in."""
        return Person(self.url)

    async def sign_in(self, email: str, password: str = PASSWORD) -> Person:
        """Return a person with a fresh session."""
        body = {"email": email, "password": password}
        pair = (await self.nobody.post("/auth/login", body)).expect(200)
        user = pair["user"]
        return Person(self.url, pair["access_token"], user["id"], email, pair["refresh_token"])

    async def person(self, role: str = "user", **fields: Any) -> Person:
        """Return a new person with this role, signed in."""
        email = f"{role}-{uuid4().hex[:12]}@example.org"
        new = {"email": email, "name": f"A {role}", "password": PASSWORD, "role": role, **fields}
        (await self.admin.post("/users", new)).expect(201)
        return await self.sign_in(email)


def lasting_port() -> int:
    """Return a free port that a daemon can have again and again.

    It is none that the kernel gives to clients: one that tries to connect to it while nobody
    listens could get it for itself, and would then talk to itself.
    """
    dice = random.SystemRandom()
    while True:
        port = dice.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def make_daemon(database_url: str | None, **env: str) -> Daemon:
    """Return a daemon with a state directory that everybody may enter; nothing is started."""
    state_dir = Path(tempfile.mkdtemp(prefix="itdesk-daemon-", dir="/tmp"))
    state_dir.chmod(0o755)
    settings = {
        "ITDESK_AUTH__BCRYPT_COST": "4",
        "ITDESK_SCANNER__POLL_SECONDS": "1",
        "ITDESK_LIMITS__ENABLED": "false",
        # A machine that runs tests may be slow without anything being wrong.
        "ITDESK_TICKETS__SEARCH_MILLISECONDS": "5000",
        **env,
    }
    if database_url is not None:
        settings["DATABASE_URL"] = database_url
    return Daemon(settings, state_dir)


@pytest.fixture
def new_daemon() -> Iterator[Callable[..., Daemon]]:
    """Return `make_daemon` for tests that start it themselves; nothing of it is left afterwards."""
    made: list[Daemon] = []

    def make(database_url: str | None, **env: str) -> Daemon:
        made.append(make_daemon(database_url, **env))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.stop(signal.SIGKILL)
        shutil.rmtree(daemon.state_dir, ignore_errors=True)


async def live_on(daemon: Daemon) -> Live:
    """Return a started daemon with its first administrator signed in."""
    assert daemon.first_admin is not None
    live = Live(daemon, Person(daemon.url))
    live.admin = await live.sign_in(*daemon.first_admin)
    return live


@contextmanager
def serving(
    pg_server: Server, judge: Callable[[str], object] | None = None, /, **env: str
) -> Iterator[Live]:
    """Lend a daemon to a fixture that outlives the tests' event loops; it has to end well.

    `judge` is shown all that it logged.
    """
    url = wait(pg_server.create())
    daemon = make_daemon(url, **env)
    try:
        daemon.start()
        yield wait(live_on(daemon))
    finally:
        status = daemon.stop()
        wait(pg_server.drop(url))
        log = daemon.log.read_text()
        shutil.rmtree(daemon.state_dir)
    assert status == 0, log[-3000:]
    if judge is not None:
        judge(log)


@pytest.fixture(scope="session")
def live(pg_server: Server, clamd: Clamd) -> Iterator[Live]:
    """One daemon for all tests that only talk to it: PostgreSQL, clamd, files on disk."""
    engine = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port)}
    with serving(pg_server, **engine, **SMALL_FILES) as live:
        yield live


@asynccontextmanager
async def running(daemon: Daemon) -> AsyncIterator[Live]:
    """Lend a daemon that is started here, and of which nothing is left afterwards."""
    try:
        await asyncio.to_thread(daemon.start)
        yield await live_on(daemon)
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        shutil.rmtree(daemon.state_dir, ignore_errors=True)


@asynccontextmanager
async def started(pg_server: Server, **env: str) -> AsyncIterator[Live]:
    """Lend a daemon on a database of its own, for tests that stop, kill or configure it."""
    url = await pg_server.create()
    try:
        async with running(make_daemon(url, **env)) as live:
            yield live
    finally:
        await pg_server.drop(url)
