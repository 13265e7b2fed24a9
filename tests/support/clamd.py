"""A real clamd of our own, and a scripted one that answers as no honest clamd would.

`Clamd` starts /usr/sbin/clamd with three one-line signatures of the EICAR test file, on a free
TCP port and a unix socket below a short /tmp path. It is a direct child that dies with the
thread that started it. As root the child becomes `nobody` before it runs, not by clamd's own
`User` line: a change of user afterwards would clear the parent-death signal.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.samples import eicar

PROGRAM = shutil.which("clamd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1

# What etc/clamd.conf promises, smaller, so that a test exceeds it with little effort.
SAFE: dict[str, str] = {
    "AlertExceedsMax": "yes",
    "AlertEncrypted": "yes",
    "StreamMaxLength": "8M",
    "MaxFileSize": "8M",
    "MaxScanSize": "40M",
    "MaxRecursion": "17",
    "MaxFiles": "10000",
    "MaxThreads": "10",
    "ReadTimeout": "60",
    "DisableCache": "yes",
}


class Clamd:
    """One clamd process; `options` are lines of its configuration, None leaves a line out."""

    def __init__(self, **options: str | None) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="clamd-", dir="/tmp"))
        self.host = "127.0.0.1"
        self.port = _free_port()
        self.socket = self._folder / "s"
        self.log = self._folder / "log"
        self._user = pwd.getpwnam("nobody") if os.getuid() == 0 else None
        database = self._folder / "db"
        database.mkdir()
        _write_signatures(database)
        self._give_away()

    @property
    def pid(self) -> int:
        """Return the process id of the running daemon."""
        assert self._process is not None, "clamd is not running"
        return self._process.pid

    def start(self, *, seconds: float = 20.0) -> None:
        """Start it and return when it answers PING."""
        assert self._process is None, "clamd is running already"
        self._write_config()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM or "clamd", f"--config-file={self._folder / 'conf'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                user=self._user and self._user.pw_uid,
                group=self._user and self._user.pw_gid,
                extra_groups=[] if self._user else None,
                preexec_fn=_die_with_parent,
            )
        end = time.monotonic() + seconds
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"clamd did not start:\n{self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it in an orderly way; a stopped one is woken first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def restart(self, **options: str | None) -> None:
        """Stop it and start it again at the same addresses, with these options changed."""
        self.stop()
        self._options |= options
        self.start()

    def pause(self) -> None:
        """Make it hang: connections are still accepted by the kernel, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a hanging one go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def _write_config(self) -> None:
        own = {
            "DatabaseDirectory": str(self._folder / "db"),
            "TemporaryDirectory": str(self._folder),
            "LocalSocket": str(self.socket),
            "LocalSocketMode": "666",
            "FixStaleSocket": "yes",
            "TCPAddr": self.host,
            "TCPSocket": str(self.port),
            "Foreground": "yes",
        }
        lines = [f"{key} {value}" for key, value in (own | SAFE | self._options).items() if value]
        (self._folder / "conf").write_text("\n".join(lines) + "\n")
        self._give_away()

    def _give_away(self) -> None:
        if self._user:
            for path in (self._folder, *self._folder.rglob("*")):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as conn:
                conn.sendall(b"zPING\0")
                return conn.recv(16) == b"PONG\0"
        except OSError:
            return False


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _write_signatures(folder: Path) -> None:
    marker = eicar()
    md5 = hashlib.md5(marker, usedforsecurity=False).hexdigest()
    sha256 = hashlib.sha256(marker).hexdigest()
    (folder / "marker.hdb").write_text(f"{md5}:{len(marker)}:Eicar-Md5\n")
    (folder / "marker.hsb").write_text(f"{sha256}:{len(marker)}:Eicar-Sha256\n")
    (folder / "marker.ndb").write_text(f"Eicar-Marker:0:*:{marker.hex()}\n")


@dataclass
class Heard:
    """What one client said to the scripted clamd."""

    command: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    terminated: bool = False

    @property
    def body(self) -> bytes:
        """Return the streamed file."""
        return b"".join(self.chunks)


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Heard], Awaitable[None]]


class HostileClamd:
    """A TCP server that reads or answers INSTREAM as its `script` says.

    PING and VERSION are answered well, so that only the scan itself goes wrong. `heard` lists
    the INSTREAM conversations.
    """

    def __init__(self, script: Script) -> None:
        self.script = script
        self.heard: list[Heard] = []
        self._open = 0
        self._quiet = asyncio.Event()
        self.host = "127.0.0.1"
        self.port = 0
        self.stats = b"POOLS: 1\n\nTHREADS: live 1  idle 0 max 10 idle-timeout 30\nEND\0"
        self.version = b"ClamAV 9.9.9/12345/Mon Jan  1 00:00:00 2024\0"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def quiet(self) -> None:
        """Return when no connection is left."""
        await self._quiet.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._talk(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        self._quiet.clear()
        try:
            command = await reader.readuntil(b"\0")
            if command == b"zPING\0":
                writer.write(b"PONG\0")
            elif command == b"zVERSION\0":
                writer.write(self.version)
            elif command == b"zSTATS\0":
                writer.write(self.stats)
            else:
                self.heard.append(heard := Heard(command))
                await self.script(reader, writer, heard)
            if not writer.is_closing():
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open -= 1
            if not self._open:
                self._quiet.set()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def read_stream(reader: asyncio.StreamReader, heard: Heard) -> None:
    """Read a whole INSTREAM body into `heard`."""
    while size := struct.unpack(">I", await reader.readexactly(4))[0]:
        heard.chunks.append(await reader.readexactly(size))
    heard.terminated = True


def answers(reply: bytes) -> Script:
    """Read the whole stream, answer these bytes, close."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await read_stream(reader, heard)
        writer.write(reply)

    return script


def answers_early(reply: bytes, *, after: int) -> Script:
    """Answer when `after` bytes came, read no more, close."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await reader.readexactly(after)
        writer.write(reply)

    return script


def resets_after(reply: bytes) -> Script:
    """Read the whole stream, answer, and reset the connection instead of closing it."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await read_stream(reader, heard)
        writer.write(reply)
        await writer.drain()
        _reset(writer)

    return script


def resets(*, after: int, reply: bytes = b"") -> Script:
    """Send a TCP reset when `after` bytes came, perhaps with an answer just before it."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await reader.readexactly(after)
        if reply:
            writer.write(reply)
            await writer.drain()
        _reset(writer)

    return script


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard) -> None:
    """Read the whole stream and never answer."""
    await read_stream(reader, heard)
    await reader.read()


async def never_reads(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
) -> None:
    """Leave the stream unread for ever."""
    await asyncio.Event().wait()


def drips(reply: bytes, *, seconds: float = 1.0) -> Script:
    """Read the whole stream, answer one byte each `seconds`, close."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await read_stream(reader, heard)
        for byte in reply:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(seconds)

    return script


def sips(*, seconds: float = 1.0) -> Script:
    """Read one byte each `seconds`: the stream takes for ever."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        sock = writer.get_extra_info("socket")
        while True:
            with contextlib.suppress(BlockingIOError):
                os.read(sock.fileno(), 1)
            await asyncio.sleep(seconds)

    return script


def keeps_open(reply: bytes) -> Script:
    """Read the whole stream, answer, and never close."""

    async def script(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
    ) -> None:
        await read_stream(reader, heard)
        writer.write(reply)
        await reader.read()

    return script


@contextlib.asynccontextmanager
async def hostile(script: Script) -> AsyncIterator[HostileClamd]:
    """Serve one script while the block runs."""
    async with HostileClamd(script) as server:
        yield server


@pytest.fixture(scope="session")
def clamd() -> Iterator[Clamd]:
    """Return a real clamd with safe settings, shared by the whole run."""
    if PROGRAM is None:
        pytest.fail("clamd is not installed: apt-get install clamav-daemon")
    with Clamd() as daemon:
        yield daemon
