"""Files: MB/s up and down beside bare aiohttp in turns, and how much memory a size costs.

    python -m tests.bench.storage                      ratios, then memory from 1 MiB to 1 GiB
    python -m tests.bench.storage --mib 32 --rounds 3 --largest 64

Both write to the page cache: nothing is waited for to reach the disk. Ratios are what counts; the
exit status is 1 when a target was missed.
"""

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from tests.bench import late
from tests.bench.report import Figure, machine
from tests.bench.servers import process, rss
from tests.support.daemon import Live, Person, live_on, make_daemon
from tests.support.postgres import Server

MIB = 1 << 20
BLOCK = b"0123456789abcdef" * (MIB // 16)
# What a file may cost, whatever its size: buffers of both directions.
FLAT_MIB = 32.0
# MB/s of one upload, hashed; and the part of a limit below that, which does not hash.
UP, UP_OF_LIMIT = 500.0, 0.75
# Uploads at a time, what each may make the daemon grow by, and how late the loop may be meanwhile.
UPLOADS, GROWN_MIB, LATE_MS = 4, 8.0, 5.0


@dataclass(frozen=True)
class Sample:
    """One file that went up and came down: MB/s each way."""

    up: float
    down: float


@dataclass(frozen=True)
class Together:
    """Several files that went up at a time: MB/s, MiB of memory for each, and ms of loop lag."""

    rate: float
    grown: float
    late: float


@dataclass
class Desk:
    """The daemon, and somebody who attaches files to one ticket."""

    live: Live
    person: Person
    ticket: str
    http: ClientSession

    @property
    def _pid(self) -> int:
        assert self.live.daemon.process is not None
        return self.live.daemon.process.pid

    async def sample(self, mib: int) -> Sample:
        """Upload a file through a link, wait for its scan, download it."""
        link = await self._link(mib)
        up = await _put(self.http, link["upload_url"], mib, link["headers"])
        found = await self.person.scanned(link["attachment_id"], seconds=900)
        assert found["scanned_status"] == "CLEAN", found
        url = f"{self.person.base}/api/v1/attachments/{link['attachment_id']}/content"
        down = await _get(self.http, url, mib, {"Authorization": f"Bearer {self.person.token}"})
        (await self.person.delete(f"/attachments/{link['attachment_id']}")).expect(204)
        return Sample(up, down)

    async def together(self, mib: int) -> Together:
        """Upload several files through links at a time."""
        links = [await self._link(mib) for _ in range(UPLOADS)]
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        before, began = rss(self._pid), time.perf_counter()
        async with late.watched(self.live) as loop, asyncio.TaskGroup() as group:
            for link in links:
                group.create_task(_put(self.http, link["upload_url"], mib, link["headers"]))
        rate = UPLOADS * mib * MIB / 1e6 / (time.perf_counter() - began)
        grown = (self._most_memory() - before / MIB) / UPLOADS
        for link in links:
            await self.person.scanned(link["attachment_id"], seconds=900)
            (await self.person.delete(f"/attachments/{link['attachment_id']}")).expect(204)
        return Together(rate, grown, loop.p99)

    async def _link(self, mib: int) -> Any:
        asked = {"original_filename": "big.txt", "mime": "text/plain", "size": mib * MIB}
        path = f"/tickets/{self.ticket}/attachments/presign"
        return (await self.person.post(path, asked)).expect(201)

    def _most_memory(self) -> float:
        """Return the most MiB that the daemon held since its peak was cleared."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    async def peak(self, mib: int) -> float:
        """Return the most memory, in MiB, that one file of a size makes the daemon hold."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        await self.sample(mib)
        return self._most_memory()


async def bare(http: ClientSession, url: str, mib: int) -> Sample:
    """Do the same with the limit."""
    up = await _put(http, f"{url}/file", mib, {})
    return Sample(up, await _get(http, f"{url}/file", mib, {}))


async def _blocks(mib: int) -> AsyncIterator[bytes]:
    for _ in range(mib):
        yield BLOCK


async def _put(http: ClientSession, url: str, mib: int, headers: Mapping[str, str]) -> float:
    began = time.perf_counter()
    sized = {**headers, "Content-Length": str(mib * MIB)}
    async with http.put(url, data=_blocks(mib), headers=sized) as answer:
        assert answer.status == 200, await answer.text()
    return mib * MIB / 1e6 / (time.perf_counter() - began)


async def _get(http: ClientSession, url: str, mib: int, headers: Mapping[str, str]) -> float:
    began, size = time.perf_counter(), 0
    async with http.get(url, headers=headers) as answer:
        assert answer.status == 200
        async for chunk in answer.content.iter_any():
            size += len(chunk)
    assert size == mib * MIB
    return size / 1e6 / (time.perf_counter() - began)


@asynccontextmanager
async def desk(largest: int) -> AsyncIterator[Desk]:
    """Lend a daemon that takes files of so many MiB, on a database of its own."""
    database = Server(directory="/var/tmp")
    daemon = None
    try:
        await database.start()
        daemon = make_daemon(
            await database.create(),
            MAX_FILE_SIZE=str(largest * MIB),
            ITDESK_PLUGINS__FILESYSTEM__FSYNC="false",
            ITDESK_SCANNER__TIMEOUT_SECONDS="600",
            ITDESK_LOG__LEVEL="WARNING",
        )
        daemon.env.update(late.installed(daemon.state_dir))
        daemon.start()
        live = await live_on(daemon)
        person = await live.person()
        ticket = (await person.ticket())["key"]
        async with ClientSession(timeout=ClientTimeout(total=None)) as http:
            yield Desk(live, person, ticket, http)
    finally:
        if daemon is not None:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.stop()
            shutil.rmtree(daemon.state_dir, ignore_errors=True)
        await database.stop()
        database.remove()


async def measure(mib: int, rounds: int, largest: int) -> list[Figure]:
    """Return MB/s, ratios and memory; the two servers take turns."""
    folder = Path(tempfile.mkdtemp(prefix="itdesk-files-", dir="/tmp"))
    taken: dict[str, list[Sample]] = {"limit": [], "itdesk": []}
    figures, together = [], list[Together]()
    try:
        async with desk(max(mib, largest)) as ours:
            with process("tests.bench.file_server", str(folder)) as server:
                assert server.stdout is not None
                url = (await asyncio.to_thread(server.stdout.readline)).split()[-1]
                for _ in range(rounds):
                    taken["limit"].append(await bare(ours.http, url, mib))
                    taken["itdesk"].append(await ours.sample(mib))
                    together.append(await ours.together(mib))
            for way in ("up", "down"):
                rates = {name: [getattr(s, way) for s in each] for name, each in taken.items()}
                asked = {"itdesk": _least(median(rates["limit"]))} if way == "up" else {}
                for name, each in rates.items():
                    figures.append(
                        Figure(f"{way} {mib} MiB, {name}", median(each), "MB/s",
                               at_least=asked.get(name))
                    )  # fmt: skip
                ratio = median(a / b for a, b in zip(rates["itdesk"], rates["limit"], strict=True))
                figures.append(Figure(f"{way} {mib} MiB, itdesk / limit", ratio))
            figures += _together(mib, together)
            sizes = [size for size in (1, 16, 128, 1024) if size <= largest]
            await ours.peak(16)
            peaks = [await ours.peak(size) for size in sizes]
            for size, peak in zip(sizes, peaks, strict=True):
                figures.append(Figure(f"peak memory with {size} MiB", peak, "MiB"))
            grown = max(peaks) - peaks[0]
            figures.append(Figure("growth by size", grown, "MiB", at_most=FLAT_MIB))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def _least(limit: float) -> float:
    """Return how fast uploads must be: slower machines are asked for a part of their limit."""
    return min(UP, UP_OF_LIMIT * limit)


def _together(mib: int, taken: list[Together]) -> Iterator[Figure]:
    name = f"{UPLOADS} uploads of {mib} MiB at a time"
    yield Figure(name, median(one.rate for one in taken), "MB/s")
    grown = median(one.grown for one in taken)
    yield Figure(f"{name}: memory of each", grown, "MiB", at_most=GROWN_MIB)
    lag = median(one.late for one in taken)
    yield Figure(f"{name}: loop lag, p99", lag, "ms", at_most=LATE_MS)


def main() -> int:
    """Measure as told; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.storage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mib", type=int, default=128, help="size of the files that take turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=1024, help="MiB, of the memory samples")
    wanted = parser.parse_args()
    figures = asyncio.run(measure(wanted.mib, wanted.rounds, wanted.largest))
    print(" ".join(f"{name} {value}" for name, value in machine().items()))
    for figure in figures:
        print(figure.line())
    return 1 if any(figure.reached is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
