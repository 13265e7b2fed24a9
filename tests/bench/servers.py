"""What is measured: this daemon, the limit and the peer, as processes on one database."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import jwt

from tests.bench import late
from tests.bench.data import Filled, fill
from tests.support.daemon import Live, live_on, make_daemon
from tests.support.postgres import Server

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Target:
    """One server as the load generator sees it."""

    name: str
    url: str
    pid: int
    prefix: str
    headers: Mapping[str, str]
    searches: str

    def cpu(self) -> float:
        """Return the CPU seconds that its process has used."""
        return cpu_seconds(self.pid)

    def rss(self) -> int:
        """Return its resident memory in bytes."""
        return rss(self.pid)


@dataclass(frozen=True)
class World:
    """A filled database with all servers on it."""

    database: Server
    url: str
    filled: Filled
    live: Live
    itdesk: Target
    limit: Target
    peer: Target | None

    def targets(self) -> list[Target]:
        """Return the servers, the limit first."""
        return [self.limit, self.itdesk, *([self.peer] if self.peer is not None else [])]

    def database_cpu(self) -> float:
        """Return the CPU seconds of all processes that the database server has now."""
        data = str(self.database.state_dir / "postgres/data")
        total = 0.0
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == data:
                    total += cpu_seconds(int(entry))
            except OSError:
                continue
        return total


def rss(pid: int) -> int:
    """Return the resident memory of one process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    return int(kib) * 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds, user and system, of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def process(*command: str, **env: str) -> "Iterator[subprocess.Popen[str]]":
    """Run a module of the benchmarks beside us; it is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-m", *command], env={**os.environ, **env}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until_listening(port: int, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise


@contextmanager
def _limit(url: str) -> Iterator[Target]:
    with process("tests.bench.limit_server", url) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        yield Target("limit", address, server.pid, "", {}, "/tickets/search?q=")


@contextmanager
def _peer(url: str, user_id: UUID) -> Iterator[Target]:
    port, secret = _free_port(), secrets.token_urlsafe(40)
    sqlalchemy = url.replace("postgresql://", "postgresql+asyncpg://", 1)
    with process("tests.bench.peer_server", sqlalchemy, str(port), PEER_SECRET=secret) as server:
        _until_listening(port)
        token = jwt.encode({"sub": str(user_id)}, secret, algorithm="HS256")
        headers = {"Authorization": f"Bearer {token}"}
        yield Target(
            "peer", f"http://127.0.0.1:{port}", server.pid, "", headers, "/tickets/search?q="
        )


@asynccontextmanager
async def world(tickets: int, *, peer: bool = True, **env: str) -> AsyncIterator[World]:
    """Lend a durable database on disk with so many tickets, and the servers on it."""
    database = Server(durable=True, directory="/var/tmp", settings={"track_commit_timestamp": "on"})
    daemon = None
    try:
        await database.start()
        url = await database.create()
        daemon = make_daemon(url, ITDESK_AUTH__ACCESS_TOKEN_EXPIRE_MINUTES="600", **env)
        daemon.env.update(late.installed(daemon.state_dir))
        daemon.start()
        live = await live_on(daemon)
        admin = (await live.admin.get("/auth/me")).expect(200)["id"]
        filled = await fill(url, tickets, UUID(admin))
        assert daemon.process is not None
        headers = {"Authorization": f"Bearer {live.admin.token}"}
        itdesk = Target(
            "itdesk", daemon.url, daemon.process.pid, "/api/v1", headers, "/tickets?limit=25&q="
        )
        with _limit(url) as limit:
            if peer:
                with _peer(url, UUID(admin)) as other:
                    yield World(database, url, filled, live, itdesk, limit, other)
            else:
                yield World(database, url, filled, live, itdesk, limit, None)
    finally:
        if daemon is not None:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
            shutil.rmtree(daemon.state_dir, ignore_errors=True)
        await database.stop()
        database.remove()
