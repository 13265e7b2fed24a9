"""Memory that is free goes back to the system, so that no load leaves a large process behind.

The C library keeps what was freed below something that is still in use: after one great rush that
may be most of the process, for good.
"""

import asyncio
import ctypes
from collections.abc import Callable

from itdesk.runtime.actor import Actor

PERIOD_SECONDS = 10.0

# Only glibc has it; the others give back by themselves, or have nothing to ask for it.
_malloc_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)


class MemoryReturn(Actor):
    """Gives the system now and then what nobody uses."""

    name = "memory-return"
    period = PERIOD_SECONDS
    critical = False

    async def handle(self, message: object) -> None:
        """Give back, in a thread: after a rush that is many pages."""
        if _malloc_trim is not None:
            await asyncio.to_thread(_malloc_trim, 0)
