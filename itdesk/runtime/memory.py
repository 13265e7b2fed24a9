"""Memory that is free goes back to the system, so that no load leaves a large process behind.

The C library keeps what was freed below something that is still in use: after one great rush that
may be most of the process, for good.
"""

import asyncio
import ctypes
from collections.abc import Callable

from itdesk.runtime.actor import Actor
from itdesk.runtime.libraries import forget_libraries

PERIOD_SECONDS = 10.0

# Of malloc.h.
_ARENA_MAX = -8

# Only glibc has them; the others give back by themselves, or have nothing to ask for it.
_libc = ctypes.CDLL(None)
_malloc_trim: Callable[[int], int] | None = getattr(_libc, "malloc_trim", None)
_mallopt: Callable[[int, int], int] | None = getattr(_libc, "mallopt", None)


def share_one_arena() -> None:
    """Let all threads begun from now on take their memory from one place.

    What a thread has of its own keeps the largest buffers it ever had, where nothing returns them;
    and it gains nothing by it, for threads of Python take turns anyway.
    """
    if _mallopt is not None:
        _mallopt(_ARENA_MAX, 1)


class MemoryReturn(Actor):
    """Gives the system now and then what nobody uses."""

    name = "memory-return"
    period = PERIOD_SECONDS
    critical = False

    async def setup(self) -> None:
        """Give back what only the start read of the libraries."""
        forget_libraries()

    async def handle(self, message: object) -> None:
        """Give back, in a thread: after a rush that is many pages."""
        if _malloc_trim is not None:
            await asyncio.to_thread(_malloc_trim, 0)
