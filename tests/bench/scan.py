"""How fast files are scanned, beside `clamdscan --stream` on the same files and the same clamd.

    python -m tests.bench.scan [--rounds 5] [--least 0.8]

Each round times, in turns: clamdscan; the clamav plugin, which does the same work; and the whole
way of a file from PENDING to CLEAN, which does far more (claim, private copy, hash, archive walk,
clamd, durable clean copy, journaled verdict). Exits with 1 when either of these two is slower than
asked.
"""

import argparse
import asyncio
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from itdesk_plugins.clamav import Engine, Plugin
from tests.support import samples
from tests.support.clamd import Clamd
from tests.support.desk import Bench, bench_on
from tests.support.postgres import Server

MIB = 1 << 20
LIMIT = 10 * MIB
ROOMY: dict[str, str | None] = {
    "StreamMaxLength": "64M", "MaxFileSize": "256M", "MaxScanSize": "256M",
}  # fmt: skip


def files(dice: random.Random) -> list[bytes]:
    """Return what a desk gets: many small documents, some logs and pictures, a few large ones."""
    line = b"2026-11-20T11:00:00Z host app[%d]: request took %d ms\n"
    log = b"".join(line % (n, dice.randrange(5000)) for n in range(60_000))
    small = [samples.document(f"Quarterly report {n}", padding=20_000) for n in range(60)]
    words = [log[: dice.randrange(20_000, 400_000)] for _ in range(40)]
    pictures = [samples.png() + dice.randbytes(dice.randrange(MIB)) for _ in range(20)]
    large = [log, dice.randbytes(9 * MIB), dice.randbytes(9 * MIB)]
    return [*small, *words, *pictures, *large]


def days(count: int) -> list[bytes]:
    """Return the files of so many days in the order of chance: the last ones weigh little then."""
    dice = random.Random(7)
    found = [file for _ in range(count) for file in files(dice)]
    dice.shuffle(found)
    return found


@dataclass
class Rates:
    """MiB per second of each way, a figure a round."""

    of: dict[str, list[float]] = field(default_factory=dict)

    async def time(self, name: str, size: int, work: Callable[[], Awaitable[object]]) -> None:
        """Do the work and note its rate."""
        began = time.perf_counter()
        await work()
        self.of.setdefault(name, []).append(size / MIB / (time.perf_counter() - began))

    def ratio(self, name: str) -> float:
        """Return the median of the rounds' ratios to clamdscan."""
        pairs = zip(self.of[name], self.of["clamdscan"], strict=True)
        return statistics.median(own / theirs for own, theirs in pairs)

    def table(self) -> str:
        """Return the figures for people to read."""
        return "\n".join(
            f"{name:<24} {statistics.median(rates):7.1f} MiB/s  x {self.ratio(name):.2f}"
            f"  ({min(rates):.1f} .. {max(rates):.1f})"
            for name, rates in self.of.items()
        )


async def clamdscan(config: Path, folder: Path) -> None:
    """Scan a folder as an administrator would by hand."""
    command = ["clamdscan", f"--config-file={config}", "--stream", "--no-summary", str(folder)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"clamdscan failed: {done.stdout}{done.stderr}")


async def drained(bench: Bench, expected: int) -> None:
    """Scan all that waits."""
    await bench.scan()
    clean = await bench.sql("SELECT count(*) FROM attachments WHERE scanned_status = 'CLEAN'")
    if clean != expected:
        raise SystemExit(f"{clean} of {expected} files were found clean")


async def plugin_alone(engine: Engine, paths: Sequence[Path]) -> None:
    """Stream each file to clamd and nothing else."""
    for path in paths:
        verdict = await engine.scan(path, size=path.stat().st_size, timeout=60)
        if verdict.clean is not True:
            raise SystemExit(f"{path} was not found clean: {verdict}")


async def whole_way(rates: Rates, server: Server, clamd: Clamd, contents: Sequence[bytes]) -> None:
    """Time a desk of its own that scans all files."""
    url = await server.create()
    env = {
        "ITDESK_PLUGINS__CLAMAV__SOCKET": str(clamd.socket),
        "ITDESK_PLUGINS__CLAMAV__ENABLED": "true",
        "ITDESK_PLUGINS__YARA__ENABLED": "false",
        "MAX_FILE_SIZE": str(LIMIT),
    }
    async with bench_on(url, **env) as bench:
        alice = await bench.person()
        if not await bench.desk.scans.trusted():
            raise SystemExit(str(bench.desk.scans.problems))
        for number, content in enumerate(contents):
            if number % 3 == 0:
                ticket = await bench.ticket(alice)
            await bench.upload(alice, ticket, content)
        # What the uploads left to be written is not the scan's.
        await asyncio.to_thread(os.sync)
        size = sum(map(len, contents))
        await rates.time("whole way", size, lambda: drained(bench, len(contents)))
    await server.drop(url)


async def one_round(
    rates: Rates, server: Server, clamd: Clamd, contents: Sequence[bytes], folder: Path
) -> None:
    """Time every way once, one after the other."""
    size, config = sum(map(len, contents)), clamd.socket.with_name("conf")
    engine = Engine(Plugin.Settings.model_validate({"socket": clamd.socket}))
    await rates.time("clamdscan", size, lambda: clamdscan(config, folder))
    paths = sorted(folder.iterdir())
    await rates.time("plugin alone", size, lambda: plugin_alone(engine, paths))
    await whole_way(rates, server, clamd, contents)


async def measure(rounds: int) -> Rates:
    """Run all ways in turns on the same files."""
    rates, contents = Rates(), days(4)
    folder = Path(tempfile.mkdtemp(prefix="itdesk-bench-files-", dir="/tmp"))
    folder.chmod(0o755)
    server = Server()
    await server.start()
    try:
        for number, content in enumerate(contents):
            (folder / f"{number}").write_bytes(content)
        with Clamd(**ROOMY) as clamd:
            for number in range(rounds):
                await one_round(rates, server, clamd, contents, folder)
                print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    finally:
        await server.stop()
        server.remove()
        shutil.rmtree(folder)
    return rates


def main() -> None:
    """Measure, print, and fail when it is too slow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.8)
    asked = parser.parse_args()
    rates = uvloop.run(measure(asked.rounds))
    print(rates.table())
    slow = [n for n in ("plugin alone", "whole way") if rates.ratio(n) < asked.least]
    if slow:
        raise SystemExit(f"slower than {asked.least} of clamdscan: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
