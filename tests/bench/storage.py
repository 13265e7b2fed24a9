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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from tests.bench import late
from tests.bench.late import Late
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
class Up:
    """Files that went up at a time: MB/s of all together, and how late the loop was meanwhile."""

    rate: float
    late: Late


@dataclass(frozen=True)
class Sample:
    """One file that went up and came down, and then several up at a time; MB/s."""

    up: Up
    down: float
    several: Up
    # MiB that each of the several made the process grow by.
    grown: float = 0.0


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
        """Upload a file through a link, wait for its scan, download it; then upload several."""
        up, down = await self.alone(mib)
        links = [await self._link(mib) for _ in range(UPLOADS)]
        before = self._clear()
        several = await self._up(links, mib)
        grown = (self._most() - before) / UPLOADS
        for link in links:
            await self._remove(link)
        return Sample(up, down, several, grown)

    async def alone(self, mib: int) -> tuple[Up, float]:
        """Upload a file through a link, wait for its scan, download it."""
        link = await self._link(mib)
        up = await self._up([link], mib)
        await self.person.scanned(link["attachment_id"], seconds=900)
        url = f"{self.person.base}/api/v1/attachments/{link['attachment_id']}/content"
        down = await _get(self.http, url, mib, {"Authorization": f"Bearer {self.person.token}"})
        await self._remove(link)
        return up, down

    async def peak(self, mib: int) -> float:
        """Return the most memory, in MiB, that one file of a size makes the daemon hold."""
        self._clear()
        await self.alone(mib)
        return self._most()

    async def _link(self, mib: int) -> Any:
        asked = {"original_filename": "big.txt", "mime": "text/plain", "size": mib * MIB}
        path = f"/tickets/{self.ticket}/attachments/presign"
        return (await self.person.post(path, asked)).expect(201)

    async def _up(self, links: Sequence[Any], mib: int) -> Up:
        to = [(link["upload_url"], link["headers"]) for link in links]
        return await _up(self.http, self.person, to, mib)

    async def _remove(self, link: Any) -> None:
        found = await self.person.scanned(link["attachment_id"], seconds=900)
        assert found["scanned_status"] == "CLEAN", found
        (await self.person.delete(f"/attachments/{link['attachment_id']}")).expect(204)

    def _clear(self) -> float:
        """Forget the most memory that the daemon held; return what it holds now, in MiB."""
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        return rss(self._pid) / MIB

    def _most(self) -> float:
        """Return the most MiB that it held since."""
        status = Path(f"/proc/{self._pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024


async def bare(http: ClientSession, url: str, mib: int) -> Sample:
    """Do the same with the limit."""
    server, to = Person(url), [(f"{url}/file{n}", dict[str, str]()) for n in range(UPLOADS)]
    up = await _up(http, server, to[:1], mib)
    down = await _get(http, to[0][0], mib, {})
    return Sample(up, down, await _up(http, server, to, mib))


async def _up(
    http: ClientSession, server: Person, to: Sequence[tuple[str, Mapping[str, str]]], mib: int
) -> Up:
    """Upload as many files at a time as there are places to send them to."""
    async with late.watched(server) as loop:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for url, headers in to:
                group.create_task(_put(http, url, mib, headers))
        rate = len(to) * mib * MIB / 1e6 / (time.perf_counter() - began)
    return Up(rate, loop)


async def _blocks(mib: int) -> AsyncIterator[bytes]:
    for _ in range(mib):
        yield BLOCK


async def _put(http: ClientSession, url: str, mib: int, headers: Mapping[str, str]) -> None:
    sized = {**headers, "Content-Length": str(mib * MIB)}
    async with http.put(url, data=_blocks(mib), headers=sized) as answer:
        assert answer.status == 200, await answer.text()


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
    figures: list[Figure] = []
    try:
        async with desk(max(mib, largest)) as ours:
            with process("tests.bench.file_server", str(folder)) as server:
                assert server.stdout is not None
                url = (await asyncio.to_thread(server.stdout.readline)).split()[-1]
                for _ in range(rounds):
                    taken["limit"].append(await bare(ours.http, url, mib))
                    taken["itdesk"].append(await ours.sample(mib))
            figures += _figures(mib, taken["itdesk"], taken["limit"])
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


def _figures(mib: int, ours: list[Sample], limit: list[Sample]) -> Iterator[Figure]:
    """Yield rates, ratios, and what everybody else feels of uploads (T13)."""
    ways: Mapping[str, Callable[[Sample], float]] = {
        f"up {mib} MiB": lambda one: one.up.rate,
        f"up {UPLOADS} of {mib} MiB at a time": lambda one: one.several.rate,
        f"down {mib} MiB": lambda one: one.down,
    }
    asked = min(UP, UP_OF_LIMIT * median(one.up.rate for one in limit))
    for name, rate in ways.items():
        least = asked if name == f"up {mib} MiB" else None
        yield Figure(f"{name}, limit", median(map(rate, limit)), "MB/s")
        yield Figure(f"{name}, itdesk", median(map(rate, ours)), "MB/s", at_least=least)
        pairs = zip(ours, limit, strict=True)
        yield Figure(f"{name}, itdesk / limit", median(rate(a) / rate(b) for a, b in pairs))
    for name, samples, most in (("itdesk", ours, LATE_MS), ("limit", limit, None)):
        lag = Late.together(one.up.late for one in samples).p99
        yield Figure(f"up {mib} MiB: loop lag, p99, {name}", lag, "ms", at_most=most)
        lag = Late.together(one.several.late for one in samples).p99
        yield Figure(f"up {UPLOADS} at a time: loop lag, p99, {name}", lag, "ms")
    grown = median(one.grown for one in ours)
    yield Figure(f"up {UPLOADS} at a time: memory of each", grown, "MiB", at_most=GROWN_MIB)


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
