"""Scans with clamd, and believes it only as far as its own probe proves.

The one decision here: a file is clean when clamd, after the whole file was sent, answered exactly
`stream: OK` and closed the connection. Anything else is "not scanned", whatever it looks like.
"""

import asyncio
import contextlib
import re
import socket
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pydantic import BaseModel, ConfigDict, Field

from itdesk.errors import Unavailable
from itdesk.hookspecs import Health, ScanEngine, Verdict, hookimpl
from itdesk.model import ScanReason
from itdesk.runtime.log import get_logger

from . import clamav_probe

if TYPE_CHECKING:
    from itdesk.desk import Desk

REPLY_LIMIT: Final = 4096
_OK = re.compile(rb"stream: OK[\0\n]")
_FOUND = re.compile(rb"stream: ([^\x00-\x1f\x7f]+) FOUND[\0\n]")
_TOO_LONG = re.compile(rb"INSTREAM size limit exceeded\. ERROR[\0\n]")
_VERSION = re.compile(rb"ClamAV ([\w.+~-]{1,40})(?:/(\d{1,9}))?(?:/[^\0\n]*)?[\0\n]")
_THREADS = re.compile(rb"THREADS: live \d+ +idle \d+ max (\d{1,9}) ")

log = get_logger("clamav")


class ClamavSettings(BaseModel):
    """The section [plugins.clamav]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("clamav", description="where clamd listens (TCPAddr)")
    port: int = Field(3310, ge=1, le=65535, description="its port (TCPSocket)")
    socket: Path | None = Field(None, description="its unix socket (LocalSocket), before host")
    connect_seconds: float = Field(5.0, gt=0, description="how long connecting may take")
    idle_seconds: float = Field(30.0, gt=0, description="how long a chunk may make no progress")
    max_file_size: int = Field(
        1 << 20,
        ge=1,
        description="what clamd must scan whole; at least storage.max_file_size",
    )
    probe_seconds: float = Field(60.0, gt=0, description="how long one probe sample may take")
    version_seconds: float = Field(
        60.0, gt=0, description="how long clamd's version is remembered; freshclam changes it"
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """What clamd said to one stream, and what had happened when it said it."""

    text: bytes
    ended: bool  # by an orderly end of the connection, not by a reset
    whole: bool  # the stream was sent to its end before the first byte of the reply came
    sent: int  # bytes of the file that the kernel took


class Client:
    """Talks to clamd, one connection a command, as aioclamd does but without its threads."""

    chunk: Final = 256 * 1024

    def __init__(
        self,
        address: Path | tuple[str, int],
        *,
        connect_seconds: float = 5.0,
        idle_seconds: float = 30.0,
    ) -> None:
        self._address = address
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds

    def __str__(self) -> str:
        if isinstance(self._address, Path):
            return str(self._address)
        return f"{self._address[0]}:{self._address[1]}"

    async def ping(self) -> None:
        """Return when clamd answers; raise Unavailable when it does not."""
        reply = await self._command(b"zPING\0")
        if reply != b"PONG\0":
            raise Unavailable(f"clamd at {self} does not answer PING as clamd does.")

    async def version(self) -> str:
        """Return `<version>/<database version>`, or the version alone without a database's."""
        match = _VERSION.fullmatch(await self._command(b"zVERSION\0"))
        if match is None:
            raise Unavailable(f"clamd at {self} does not answer VERSION as clamd does.")
        return "/".join(part.decode("ascii", "replace") for part in match.groups() if part)

    async def threads(self) -> int | None:
        """Return how many files it scans at once; None when it does not say."""
        match = _THREADS.search(await self._command(b"zSTATS\0"))
        return int(match[1]) if match else None

    async def instream(self, stream: BinaryIO) -> Reply:
        """Send a file and return what came back; TimeoutError when nothing moves any more.

        How long clamd may think about a file that it has is the caller's to bound.
        """
        with await self._connect() as sock:
            async with asyncio.timeout(self._idle_seconds) as watch:
                return await _Exchange(sock, watch, idle_seconds=self._idle_seconds).run(stream)

    async def _command(self, command: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            with await self._connect() as sock:
                async with asyncio.timeout(self._idle_seconds):
                    await loop.sock_sendall(sock, command)
                    reply = b""
                    while len(reply) <= REPLY_LIMIT and (piece := await loop.sock_recv(sock, 512)):
                        reply += piece
                    return reply
        except OSError as exc:
            raise self._unavailable(exc) from exc

    async def _connect(self) -> socket.socket:
        failure = OSError("its name has no address")
        try:
            async with asyncio.timeout(self._connect_seconds):
                for family, address in await self._addresses():
                    try:
                        return await _dial(family, address)
                    except TimeoutError:
                        raise
                    except OSError as exc:
                        failure = exc
        except OSError as exc:
            failure = exc
        raise self._unavailable(failure) from failure

    async def _addresses(self) -> list[tuple[int, object]]:
        if isinstance(self._address, Path):
            return [(socket.AF_UNIX, str(self._address))]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*self._address, type=socket.SOCK_STREAM)
        return [(family, address) for family, _, _, _, address in found]

    def _unavailable(self, exc: OSError) -> Unavailable:
        why = "no answer in time" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
        return Unavailable(f"clamd at {self} cannot be reached: {why}.")


class _Exchange:
    """One INSTREAM conversation: the reply is read while the file is written.

    It works on the bare socket: a transport throws an unread reply away as soon as a write
    fails, and clamd answers "size limit exceeded" while it closes.
    """

    def __init__(self, sock: socket.socket, watch: asyncio.Timeout, *, idle_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._watch = watch
        self._idle = idle_seconds
        self._sent = 0
        self._whole = False
        self._whole_before_reply = False

    async def run(self, stream: BinaryIO) -> Reply:
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send(stream))
                text, ended = await self._receive()
                sending.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return Reply(text, ended, self._whole_before_reply, self._sent)

    async def _send(self, stream: BinaryIO) -> None:
        prefix, more = b"zINSTREAM\0", True
        while more and (chunk := await asyncio.to_thread(stream.read, Client.chunk)):
            if not await self._write(prefix + struct.pack(">I", len(chunk)) + chunk):
                return
            self._sent += len(chunk)
            # A buffered file returns less than it is asked for at its end only.
            prefix, more = b"", len(chunk) == Client.chunk
        if await self._write(prefix + bytes(4)):
            self._whole = True
            self._watch.reschedule(None)

    async def _write(self, piece: bytes) -> bool:
        try:
            await self._loop.sock_sendall(self._sock, piece)
        except OSError:
            return False  # the peer closed: what it said is still to be read
        self._progress()
        return True

    async def _receive(self) -> tuple[bytes, bool]:
        reply = b""
        while len(reply) <= REPLY_LIMIT:
            try:
                piece = await self._loop.sock_recv(self._sock, REPLY_LIMIT)
            except OSError:
                return reply, False
            if not piece:
                return reply, True
            if not reply:
                self._whole_before_reply = self._whole
                self._progress()
            reply += piece
        return reply, False

    def _progress(self) -> None:
        self._watch.reschedule(self._loop.time() + self._idle)


async def _dial(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


class Engine:
    """The scan engine that this plugin provides."""

    name = "clamav"
    unpacks = True

    def __init__(self, settings: ClamavSettings) -> None:
        self._settings = settings
        self._client = Client(
            settings.socket or (settings.host, settings.port),
            connect_seconds=settings.connect_seconds,
            idle_seconds=settings.idle_seconds,
        )
        self._version = ""
        self._version_until = 0.0
        self._weak: list[str] = []
        self._at_once = 0
        self._trouble = "was not tried yet"
        self.max_file_size: int | None = settings.max_file_size
        self.max_member_size: int | None = settings.max_file_size

    def require(self, size: int, *, at_once: int = 0) -> None:
        """Have the probe make sure that files of this size are scanned whole.

        It warns of a clamd that cannot scan more than `at_once` files side by side.
        """
        self._at_once = at_once
        wanted = max(size, self._settings.max_file_size)
        self._settings = self._settings.model_copy(update={"max_file_size": wanted})
        self.max_file_size = wanted

    @property
    def health(self) -> Health:
        """Return what the last probe and the last scan said."""
        if self._trouble:
            return Health(ok=False, reason=f"clamd at {self._client} {self._trouble}")
        return Health(ok=not self._weak, reason=" ".join(self._weak))

    async def scan(self, path: Path, *, size: int, timeout: float) -> Verdict:
        """Scan a private local file that does not change meanwhile."""
        with await asyncio.to_thread(path.open, "rb") as stream:
            return await self._scan(stream, size=size, seconds=timeout)

    async def probe(self) -> list[str]:
        """Try known samples; return which lines of clamd.conf have to change.

        It also finds `max_member_size`: clamd answers OK to a zip member that inflates past
        MaxFileSize but not past MaxScanSize, whatever its alerts are set to, so archives with
        larger members have to be refused before.
        """
        self._version_until = 0.0
        needed = self._settings.max_file_size
        problems = [
            sample.remedy
            for sample in clamav_probe.samples(needed)
            if not await self._passes(sample)
        ]
        largest = 0
        for member in clamav_probe.members(needed) if not problems else ():
            if not await self._passes(member):
                problems += [] if largest else [member.remedy]
                break
            largest = member.size
        self.max_member_size = largest or self.max_member_size
        self._weak = problems
        if not problems:
            await self._count_threads()
        return problems

    async def signatures(self) -> str:
        """Return clamd's version and that of its signatures."""
        try:
            async with asyncio.timeout(self._settings.probe_seconds):
                await self._refresh_version()
        except TimeoutError as exc:
            raise Unavailable(f"clamd at {self._client} does not answer in time.") from exc
        return self._signed

    async def _count_threads(self) -> None:
        """Warn when files wait in clamd's queue, with their deadlines running; no verdict suffers.

        What STATS says is no promise of clamd's, and may be switched off: silence is all right.
        """
        with contextlib.suppress(Unavailable):
            threads = await self._client.threads()
            if threads is not None and threads <= self._at_once:
                log.warning(
                    "clamd has too few threads, files wait in its queue",
                    address=str(self._client),
                    threads=threads,
                    remedy=f"set `MaxThreads` in clamd.conf above scanner.concurrency, which is"
                    f" {self._at_once}, or lower scanner.concurrency",
                )

    async def _passes(self, sample: clamav_probe.Sample) -> bool:
        with tempfile.TemporaryFile() as file:
            await asyncio.to_thread(sample.write, file)
            size = file.seek(0, 2)
            file.seek(0)
            verdict = await self._scan(file, size=size, seconds=self._settings.probe_seconds)
        if verdict.retry:
            raise Unavailable(f"clamd at {self._client} gave no verdict: {verdict.detail}.")
        return sample.passes(verdict)

    async def _scan(self, stream: BinaryIO, *, size: int, seconds: float) -> Verdict:
        try:
            async with asyncio.timeout(seconds):
                await self._refresh_version()
                reply = await self._client.instream(stream)
        except TimeoutError:
            self._trouble = "does not answer in time"
            return self._not_scanned(ScanReason.TIMEOUT, self._trouble, retry=True)
        except Unavailable:
            self._trouble = "cannot be reached"
            raise
        return self._judge(reply, size)

    async def _refresh_version(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._version_until:
            self._version = await self._client.version()
            self._version_until = now + self._settings.version_seconds

    def _judge(self, reply: Reply, size: int) -> Verdict:
        self._trouble = ""
        if len(reply.text) > REPLY_LIMIT:
            return self._not_scanned(ScanReason.ENGINE_DOWN, "clamd talks too much", retry=True)
        if found := _FOUND.fullmatch(reply.text):
            return self._judge_name(found[1].decode("utf-8", "replace"))
        if _TOO_LONG.fullmatch(reply.text):
            return self._not_scanned(ScanReason.LIMITS, "longer than clamd's StreamMaxLength")
        if _OK.fullmatch(reply.text) and reply.ended and reply.whole:
            if reply.sent != size:
                return self._not_scanned(ScanReason.CHANGED, f"{reply.sent} of {size} bytes sent")
            return Verdict(self._signed, clean=True)
        if reply.text:
            detail = f"clamd answered {reply.text[:80]!r} after {reply.sent} bytes"
            return self._not_scanned(ScanReason.ENGINE_DOWN, detail, retry=True)
        if reply.sent > self._settings.max_file_size:
            # Over TCP a reset can overtake the answer that the stream is too long.
            return self._not_scanned(ScanReason.LIMITS, "longer than what clamd must accept")
        self._trouble = "ends connections without an answer"
        self._version_until = 0.0
        raise Unavailable(f"clamd at {self._client} gave no answer after {reply.sent} bytes.")

    def _judge_name(self, name: str) -> Verdict:
        if name.startswith("Heuristics.Limits.Exceeded"):
            return self._not_scanned(ScanReason.LIMITS, name)
        if name.startswith("Heuristics.Encrypted."):
            return self._not_scanned(ScanReason.ENCRYPTED, name)
        return Verdict(self._signed, clean=False, signature=name)

    def _not_scanned(self, reason: ScanReason, detail: str, *, retry: bool = False) -> Verdict:
        return Verdict(self._signed, clean=None, reason=reason, retry=retry, detail=detail)

    @property
    def _signed(self) -> str:
        return f"clamav {self._version}".rstrip()


class Plugin:
    """Offers clamd as a scan engine."""

    name, itdesk_api, Settings = "clamav", 1, ClamavSettings

    def __init__(self, settings: ClamavSettings) -> None:
        self._engine = Engine(settings)

    @hookimpl
    def itdesk_scan_engine(self, desk: "Desk") -> ScanEngine:
        # What may be uploaded has to be scanned whole, or nothing is.
        settings = desk.settings
        self._engine.require(settings.storage.max_file_size, at_once=settings.scanner.concurrency)
        return self._engine

    @hookimpl
    def itdesk_health(self) -> Health:
        return self._engine.health
