"""Scans with yara-x rules in one worker process that may hang, crash or be killed at any time.

The one decision here: whatever happens to the worker costs one verdict (to be tried again) and
never an answer that belongs to another file: a worker whose answer was not read is killed.
"""

import asyncio
import contextlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from itdesk.errors import Unavailable
from itdesk.hookspecs import Health, ScanEngine, Verdict, hookimpl
from itdesk.model import ScanReason

from .eicar import eicar

_SHIPPED = Path(str(files("itdesk_etc"))) / "yara"

# The worker reads hostile files: it gets none of the daemon's secrets.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL", "TMPDIR")


class YaraSettings(BaseModel):
    """The section [plugins.yara]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[Path] = Field(
        default_factory=list,
        description="rule files, or directories of *.yar; none: the rules that come with itdesk",
    )
    start_seconds: float = Field(60.0, gt=0, description="how long compiling may take")


class Worker:
    """One process with compiled rules; one question at a time."""

    def __init__(self, process: asyncio.subprocess.Process, version: str) -> None:
        self._process = process
        self.version = version

    @classmethod
    async def start(cls, settings: YaraSettings) -> "Worker":
        """Start a process; raise Unavailable with the reason when its rules are of no use."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "itdesk_plugins.yara_worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        worker = cls(process, "")
        rules = [str(path) for path in settings.rules or [_SHIPPED]]
        try:
            async with asyncio.timeout(settings.start_seconds):
                hello = await worker.ask({"rules": rules})
        except TimeoutError as exc:
            raise Unavailable("The yara rules took too long to compile.") from exc
        if "version" not in hello:
            await worker.kill()
            raise Unavailable(hello.get("unusable", "The yara worker did not start."))
        worker.version = hello["version"]
        return worker

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self._process.pid

    async def ask(self, question: dict[str, Any]) -> dict[str, str]:
        """Return its answer, empty words when it died; kill it when nobody waits any more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            await self._process.stdin.drain()
            answer: dict[str, str] = json.loads(await self._process.stdout.readline())
        except (OSError, ValueError):
            await self.kill()
            return {"failure": "the yara worker died"}
        except BaseException:
            await self.kill()
            raise
        return answer

    async def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    @property
    def alive(self) -> bool:
        """Return whether it still can be asked."""
        return self._process.returncode is None


class Engine:
    """The scan engine that this plugin provides."""

    name = "yara"
    unpacks = False

    def __init__(self, settings: YaraSettings) -> None:
        self._settings = settings
        self._worker: Worker | None = None
        self._turn = asyncio.Lock()
        self._version = ""
        self._trouble = ""
        self.max_file_size: int | None = None

    @property
    def health(self) -> Health:
        """Return what the last start, probe and scan said."""
        return Health(ok=not self._trouble, reason=self._trouble)

    async def scan(self, path: Path, *, size: int, timeout: float) -> Verdict:
        """Scan a private local file that does not change meanwhile, and what is packed in it."""
        end = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(end), self._turn:
                worker = await self._ready()
                left = end - asyncio.get_running_loop().time()
                answer = await worker.ask({"path": str(path), "seconds": left})
        except TimeoutError:
            return self._not_scanned(ScanReason.TIMEOUT, "no verdict in time", retry=True)
        return self._judge(answer)

    async def probe(self) -> list[str]:
        """Try the marker, bare and packed; return what is wrong with the rules."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as writer:
            writer.writestr("marker.com", eicar())
        with tempfile.TemporaryDirectory(prefix="itdesk-yara-") as folder:
            for content in (eicar(), packed.getvalue()):
                path = Path(folder, "probe")
                await asyncio.to_thread(path.write_bytes, content)
                verdict = await self.scan(path, size=len(content), timeout=60.0)
                if verdict.retry:
                    raise Unavailable(f"yara gave no verdict: {verdict.detail}.")
                if verdict.clean is not False:
                    self._trouble = (
                        "The yara rules do not know the EICAR test file: add the rules that "
                        "come with itdesk (etc/yara) to plugins.yara.rules."
                    )
                    return [self._trouble]
        return []

    async def signatures(self) -> str:
        """Return the engine with what its rules hash to."""
        async with self._turn:
            await self._ready()
        return self._signed

    async def close(self) -> None:
        """End the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.kill()

    async def _ready(self) -> Worker:
        if self._worker is None or not self._worker.alive:
            try:
                self._worker = await Worker.start(self._settings)
            except Unavailable as exc:
                self._trouble = exc.message
                raise
            self._version = self._worker.version
            self._trouble = ""
        return self._worker

    def _judge(self, answer: dict[str, str]) -> Verdict:
        if "rule" in answer:
            return Verdict(self._signed, clean=False, signature=answer["rule"])
        if "reason" in answer:
            reason = ScanReason(answer["reason"])
            return self._not_scanned(reason, answer["detail"], retry=reason is ScanReason.TIMEOUT)
        if answer:
            return self._not_scanned(ScanReason.ENGINE_DOWN, answer["failure"], retry=True)
        return Verdict(self._signed, clean=True)

    def _not_scanned(self, reason: ScanReason, detail: str, *, retry: bool = False) -> Verdict:
        return Verdict(self._signed, clean=None, reason=reason, retry=retry, detail=detail)

    @property
    def _signed(self) -> str:
        return f"yara {self._version}".rstrip()


class Plugin:
    """Offers yara rules as a scan engine."""

    name, itdesk_api, Settings = "yara", 1, YaraSettings

    def __init__(self, settings: YaraSettings) -> None:
        self._engine = Engine(settings)

    @hookimpl
    @contextlib.asynccontextmanager
    async def itdesk_lifespan(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._engine.close()

    @hookimpl
    def itdesk_scan_engine(self) -> ScanEngine:
        return self._engine

    @hookimpl
    def itdesk_health(self) -> Health:
        return self._engine.health
