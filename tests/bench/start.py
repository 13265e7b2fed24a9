"""The start and the rest: seconds from exec to ready, and what the idle daemon keeps in memory.

Beside the limit: an interpreter that imports the libraries the daemon stands on, and waits.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.report import Figure
from tests.bench.servers import cpu_seconds, rss
from tests.support.daemon import make_daemon
from tests.support.postgres import Server

READY_SECONDS, IDLE_MIB = 0.8, 75
# Until what the actors do at first is done.
SETTLED_SECONDS = 3.0
LIMIT = """
import aiohttp.web, asyncpg, orjson, pydantic, uvloop
class Model(pydantic.BaseModel): ...
print("listening", flush=True)
input()
"""


@dataclass(frozen=True)
class Start:
    """One start: wall and CPU seconds until ready, and MiB of memory at rest."""

    ready: float
    cpu: float
    mib: float


def _started(command: list[str], environ: Mapping[str, str], log: Path) -> Start:
    began = time.monotonic()
    with log.open("ab") as errors, subprocess.Popen(
        command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        if not process.stdout.readline().startswith("listening"):
            raise AssertionError(log.read_text()[-3000:])
        ready, cpu = time.monotonic() - began, cpu_seconds(process.pid)
        time.sleep(SETTLED_SECONDS)
        found = Start(ready, cpu, rss(process.pid) / 2**20)
        process.terminate()
    return found


async def measure(*, rounds: int) -> Iterator[Figure]:
    """Start the daemon and the limit in turn, on a schema at head and without plugins that are off.

    The first start of each is not counted: it makes the accounts, and compiles what was not yet.
    """
    server = Server()
    daemon = None
    try:
        await server.start()
        daemon = make_daemon(await server.create())
        commands = {
            "itdesk": [sys.executable, "-m", "itdesk", "--state-dir", str(daemon.state_dir),
                       "serve", "--port", "0"],
            "limit": [sys.executable, "-c", LIMIT],
        }  # fmt: skip
        taken: dict[str, list[Start]] = {name: [] for name in commands}
        for _ in range(rounds + 1):
            for name, command in commands.items():
                taken[name].append(_started(command, daemon.environ(), daemon.log))
        help_cpu = [_help_cpu() for _ in range(rounds + 1)]
    finally:
        if daemon is not None:
            shutil.rmtree(daemon.state_dir, ignore_errors=True)
        await server.stop()
        server.remove()
    ours, limit = taken["itdesk"][1:], taken["limit"][1:]
    return _figures(ours, limit, median(help_cpu[1:]))


def _help_cpu() -> float:
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "itdesk", "--help"], stdout=subprocess.DEVNULL, check=True
    )
    after = os.times()
    return (
        after.children_user
        + after.children_system
        - (before.children_user + before.children_system)
    )


def _figures(ours: list[Start], limit: list[Start], help_cpu: float) -> Iterator[Figure]:
    ready = median(start.ready for start in ours)
    yield Figure("start: ready after exec", ready, "s", at_most=READY_SECONDS)
    yield Figure("start: CPU until ready", median(start.cpu for start in ours), "s")
    ratios = [one.cpu / other.cpu for one, other in zip(ours, limit, strict=True)]
    yield Figure("start: CPU, of the limit's", median(ratios), "x")
    yield Figure("start: CPU of itdesk --help", help_cpu, "s")
    idle = median(start.mib for start in ours)
    yield Figure("idle: resident memory", idle, "MiB", at_most=IDLE_MIB)
    least = median(start.mib for start in limit)
    yield Figure("idle: resident memory of the limit", least, "MiB")
    yield Figure("idle: resident memory, of the limit's", idle / least, "x")
