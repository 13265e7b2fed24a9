"""Free memory goes back to the system."""

import os
import platform
from pathlib import Path

import pytest

from itdesk.runtime.actor import TICK
from itdesk.runtime.memory import MemoryReturn

ROOM = 32 * 2**20
# Below what the C library gets from the system, and gives back to it, one by one.
PIECE = 64 * 1024


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it")
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
