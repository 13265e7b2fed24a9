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
from tests.support.daemon import Daemon, make_daemon
from tests.support.postgres import Server
from tests.support.s3 import S3Server

READY_SECONDS, READY_WITH_S3_SECONDS, IDLE_MIB = 0.8, 1.0, 75
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
    """Start the daemon, the same with its files in S3, and the limit, in turn.

    On a schema at head, and otherwise without plugins that are off. The first start of each is not
    counted: it makes the accounts, and compiles what was not yet.
    """
    server = Server()
    daemons: dict[str, Daemon] = {}
    try:
        await server.start()
        with S3Server() as bucket:
            daemons["itdesk"] = make_daemon(await server.create())
            daemons["with S3"] = make_daemon(await server.create(), **bucket.env)
            taken = _in_turn(daemons, rounds + 1)
        help_cpu = [_help_cpu() for _ in range(rounds + 1)]
    finally:
        for daemon in daemons.values():
            shutil.rmtree(daemon.state_dir, ignore_errors=True)
        await server.stop()
        server.remove()
    counted = {name: starts[1:] for name, starts in taken.items()}
    return _figures(counted, median(help_cpu[1:]))


def _in_turn(daemons: Mapping[str, Daemon], rounds: int) -> Mapping[str, list[Start]]:
    taken: dict[str, list[Start]] = {name: [] for name in (*daemons, "limit")}
    for _ in range(rounds):
        for name, daemon in daemons.items():
            taken[name].append(_started(_serving(daemon), daemon.environ(), daemon.log))
        limit = [sys.executable, "-c", LIMIT]
        taken["limit"].append(_started(limit, daemon.environ(), daemon.log))
    return taken


def _serving(daemon: Daemon) -> list[str]:
    return [sys.executable, "-m", "itdesk", "--state-dir", str(daemon.state_dir),
            "serve", "--port", "0"]  # fmt: skip


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


def _figures(taken: Mapping[str, list[Start]], help_cpu: float) -> Iterator[Figure]:
    ours, limit = taken["itdesk"], taken["limit"]
    ready = median(start.ready for start in ours)
    yield Figure("start: ready after exec", ready, "s", at_most=READY_SECONDS)
    times = [one.ready / other.ready for one, other in zip(ours, limit, strict=True)]
    yield Figure("start: ready after exec, of the limit's", median(times), "x")
    with_s3 = median(start.ready for start in taken["with S3"])
    yield Figure("start: ready after exec, files in S3", with_s3, "s",
                 at_most=READY_WITH_S3_SECONDS)  # fmt: skip
    yield Figure("start: CPU until ready", median(start.cpu for start in ours), "s")
    more = median(start.cpu for start in taken["with S3"])
    yield Figure("start: CPU until ready, files in S3", more, "s")
    ratios = [one.cpu / other.cpu for one, other in zip(ours, limit, strict=True)]
    yield Figure("start: CPU, of the limit's", median(ratios), "x")
    yield Figure("start: CPU of itdesk --help", help_cpu, "s")
    idle = median(start.mib for start in ours)
    yield Figure("idle: resident memory", idle, "MiB", at_most=IDLE_MIB)
    least = median(start.mib for start in limit)
    stored = median(start.mib for start in taken["with S3"])
    yield Figure("idle: resident memory, files in S3", stored, "MiB")
    yield Figure("idle: resident memory of the limit", least, "MiB")
    yield Figure("idle: resident memory, of the limit's", idle / least, "x")
