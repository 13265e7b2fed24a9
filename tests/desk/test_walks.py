"""Archives that take long to look through hold up nobody else."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from tests.support.desk import bench_on


async def test_slow_walks_leave_the_threads_of_others_alone(
    database_url: str, clamd_env: dict[str, str], tmp_path: Path
) -> None:
    """As many as there are threads for everything: the log, the metrics, other people's uploads."""
    many = min(32, (os.cpu_count() or 1) + 4)
    concurrency = {"ITDESK_SCANNER__CONCURRENCY": str(min(many, 16))}
    async with bench_on(database_url, **clamd_env, **concurrency) as bench:
        alice = await bench.person()
        await bench.upload(alice, await bench.ticket(alice), b"text", name="a.txt")
        assert await bench.desk.scans.trusted()
        [claim] = await bench.desk.scans.claim(1)
        pipes = [tmp_path / f"{n}.zip" for n in range(many)]
        for pipe in pipes:
            os.mkfifo(pipe)
        # Who opens a pipe waits in its thread for somebody who writes.
        walks = [
            asyncio.ensure_future(bench.desk.scans.judge(replace(claim, size=4), pipe))
            for pipe in pipes
        ]
        await asyncio.wait(walks, timeout=0)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(int), 10) == 0
        finally:
            for walk in walks:
                walk.cancel()
            _release(pipes)


def _release(pipes: list[Path]) -> None:
    for pipe in pipes:
        # Readers that are not there yet, or no more, are not waited for.
        os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
