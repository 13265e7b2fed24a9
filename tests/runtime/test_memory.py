"""Free memory goes back to the system."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from itdesk.runtime.actor import TICK
from itdesk.runtime.memory import MemoryReturn

ROOM = 32 * 2**20
# Below what the C library gets from the system, and gives back to it, one by one.
PIECE = 64 * 1024

# Each thread twice: with the first buffer that it gives back, the C library learns to keep them.
THREADS = """
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from itdesk.runtime import memory

memory.share_one_arena()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
together = Barrier(12)

def fill():
    for _ in range(2):
        buffer = bytes([1]) * 2**20
        together.wait()
        del buffer
        together.wait()

with ThreadPoolExecutor(12) as pool:
    before = resident()
    for done in [pool.submit(fill) for _ in range(12)]:
        done.result()
    memory._malloc_trim(0)
    print(resident() - before)
"""
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@needs_glibc
async def test_what_a_rush_took_goes_back_to_the_system() -> None:
    """T9: although something that stays lies above and between it."""
    pieces, staying = list[bytes](), list[bytes]()
    for number in range(ROOM // PIECE):
        pieces.append(bytes([number % 255 + 1]) * PIECE)
        staying.append(bytes(1024))
    full = _resident()
    pieces.clear()
    kept = _resident()
    assert full - kept < ROOM / 2
    await MemoryReturn().handle(TICK)
    assert kept - _resident() > ROOM / 2
    assert len(staying) == ROOM // PIECE


@needs_glibc
def test_no_thread_keeps_the_buffers_that_it_had() -> None:
    """T9: of twelve threads with a MiB each, less than a third stays."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 4 * 2**20
