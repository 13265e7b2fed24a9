"""Real PostgreSQL for tests: one server for the whole run, a fresh migrated database in no time.

`ITDESK_TEST_PG_BIN=/usr/lib/postgresql/15/bin` runs everything on another PostgreSQL than the
wheel's. Every server dies with the test process.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from itdesk.runtime.postgres import EmbeddedPostgres
from itdesk.store.migrations import Migrations

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
TEMPLATE = "itdesk_template"
_PREFIX = "itdesk-test-"
# In memory when there is some to spare: a database is hundreds of files, made for every test.
_SHM = "/dev/shm"
FAST_DIR = _SHM if os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free > 1 << 30 else "/tmp"


class Server:
    """A PostgreSQL server that a test may stop, kill, freeze and start again."""

    def __init__(
        self,
        *,
        durable: bool = False,
        directory: str = FAST_DIR,
        settings: Mapping[str, str] | None = None,
        seed: Path | None = None,
    ) -> None:
        # Named by its run: a server that a test has stopped for a while is nobody's leftover.
        prefix = f"{_PREFIX}{os.getpid()}-"
        self.state_dir = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
        self.state_dir.chmod(0o711)
        self.port = _free_port()
        self._seed = seed
        self._prepared = seed is not None
        options = {
            "listen_addresses": "127.0.0.1",
            "max_connections": "200",
            "port": str(self.port),
            **(settings or {}),
        }
        if not durable:
            options["autovacuum"] = "off"
        given = os.environ.get("ITDESK_TEST_PG_BIN")
        self.embedded = EmbeddedPostgres(
            self.state_dir,
            bindir=Path(given) if given else None,
            durable=durable,
            settings=options,
        )

    @property
    def data(self) -> Path:
        """Return where the server keeps everything."""
        return self.state_dir / "postgres/data"

    async def start(self) -> None:
        """Start the server, or start it again; returns when it accepts connections."""
        if self._seed is not None and not self.data.exists():
            self.data.parent.mkdir()
            # As it is, owner and all.
            copy = await asyncio.create_subprocess_exec("cp", "-a", self._seed, self.data)
            assert await copy.wait() == 0
        await self.embedded.start()

    async def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT fast, SIGQUIT immediately (recovery follows)."""
        if how is not signal.SIGINT and self.embedded.pid:
            os.kill(self.embedded.pid, how)
        await self.embedded.stop()

    async def kill(self) -> None:
        """Kill every process of the server with SIGKILL, as a power cut would."""
        self._signal(signal.SIGKILL)
        await self.embedded.stop()

    def pause(self) -> None:
        """Freeze every process of the server: connections hang and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def url(self, database: str = "itdesk", *, tcp: bool = False) -> str:
        """Return the URL of one database of this server, over its unix socket or over TCP."""
        if tcp:
            return f"postgresql://itdesk@127.0.0.1:{self.port}/{database}"
        return f"postgresql://itdesk@/{database}?{self.embedded.url.partition('?')[2]}"

    async def create(self, *, migrated: bool = True, extra: str = "", tcp: bool = False) -> str:
        """Return the URL of a new database, at head or empty."""
        if migrated:
            await self.prepare()
        name = f"t_{uuid4().hex}"
        template = TEMPLATE if migrated else "template0"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {template} {extra}")
        return self.url(name, tcp=tcp)

    async def prepare(self) -> None:
        """Make the database that those at head are copies of."""
        if not self._prepared:
            await self._execute(f"CREATE DATABASE {TEMPLATE}")
            await Migrations(self.url(TEMPLATE), directory=MIGRATIONS).migrate()
            self._prepared = True

    async def drop(self, url: str) -> None:
        """Drop a database, whoever is still connected to it."""
        name = url.partition("?")[0].rpartition("/")[2]
        await self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncIterator[str]:
        """Lend the URL of a new database, dropped afterwards."""
        url = await self.create(migrated=migrated)
        try:
            yield url
        finally:
            await self.drop(url)

    async def dump(self, url: str) -> str:
        """Return the schema of a database as pg_dump sees it."""
        output = await self._program("pg_dump", "--schema-only", "--no-owner", f"--dbname={url}")
        lines = output.decode().splitlines()
        # Newer releases fence the dump with a random word.
        return "\n".join(line for line in lines if not line.startswith(("\\restrict", "\\unres")))

    async def copy(self, source: str, target: str) -> None:
        """Restore a full dump of one database into another, as an operator would."""
        dump = await self._program("pg_dump", "--no-owner", f"--dbname={source}")
        options = ("--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--output=/dev/null")
        await self._program("psql", *options, f"--dbname={target}", stdin=dump)

    async def _program(self, name: str, *arguments: str, stdin: bytes = b"") -> bytes:
        process = await asyncio.create_subprocess_exec(
            self.embedded.bindir / name,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate(stdin)
        assert process.returncode == 0, f"{name} failed"
        return output

    async def until(self, url: str, running: str) -> None:
        """Return once some session on the database runs a statement with this text."""
        conn = await asyncpg.connect(url)
        query = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND state = 'active' AND pid <> pg_backend_pid() AND strpos(query, $1) > 0"""
        try:
            while not await conn.fetchval(query, running):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            await conn.close()

    def remove(self) -> None:
        """Delete all files of a stopped server."""
        shutil.rmtree(self.state_dir, ignore_errors=True)

    async def _execute(self, statement: str) -> None:
        conn = await asyncpg.connect(self.url("postgres"))
        try:
            await conn.execute(statement)
        finally:
            await conn.close()

    def _signal(self, how: signal.Signals) -> None:
        data = str(self.data)
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == data:
                    os.kill(int(entry), how)
            except OSError:
                continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _sweep() -> None:
    """Delete what killed test runs left: they are gone, and nobody holds the directory's lock."""
    for state_dir in Path(FAST_DIR).glob(f"{_PREFIX}*-*"):
        run = state_dir.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            if Path(f"/proc/{run}").exists():
                continue
            with (state_dir / "postgres/lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(state_dir, ignore_errors=True)
        except OSError:
            continue


def _run(work: Awaitable[None]) -> None:
    # Not asyncio.run: it would take the current event loop away from pytest-asyncio.
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@pytest.fixture(scope="session")
def pg_seed() -> Iterator[Path]:
    """The data of a server that can make databases: the others begin with a copy of it."""
    _sweep()
    server = Server()
    _run(server.start())
    try:
        _run(server.prepare())
        _run(server.stop())
        yield server.data
    finally:
        _run(server.stop())
        server.remove()


@pytest.fixture(scope="session")
def pg_server(pg_seed: Path) -> Iterator[Server]:
    """The server of this run; do not stop it: take `own_pg_server` for outages."""
    server = Server(seed=pg_seed)
    _run(server.start())
    try:
        yield server
    finally:
        _run(server.stop())
        server.remove()


@pytest_asyncio.fixture
async def database_url(pg_server: Server) -> AsyncIterator[str]:
    """The URL of a fresh database at head."""
    async with pg_server.database() as url:
        yield url


@pytest_asyncio.fixture
async def empty_database_url(pg_server: Server) -> AsyncIterator[str]:
    """The URL of a fresh database without any table."""
    async with pg_server.database(migrated=False) as url:
        yield url


@pytest_asyncio.fixture
async def fresh_database(pg_server: Server) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """A function that returns the URL of another fresh database at each call."""
    urls: list[str] = []

    async def make() -> str:
        urls.append(await pg_server.create())
        return urls[-1]

    yield make
    for url in urls:
        await pg_server.drop(url)


@asynccontextmanager
async def lent(server: Server) -> AsyncIterator[Server]:
    """Start a server that its user may treat as they like; nothing of it is left afterwards."""
    await server.start()
    try:
        yield server
    finally:
        server.resume()
        await server.stop()
        server.remove()


@pytest_asyncio.fixture
async def own_pg_server(pg_seed: Path) -> AsyncIterator[Server]:
    """A server that this test alone has, and may treat as it likes."""
    async with lent(Server(seed=pg_seed)) as server:
        yield server


@pytest_asyncio.fixture
async def durable_pg_server(pg_seed: Path) -> AsyncIterator[Server]:
    """One of a test's own that keeps what it acknowledged, as an operator's does."""
    async with lent(Server(durable=True, seed=pg_seed)) as server:
        yield server
