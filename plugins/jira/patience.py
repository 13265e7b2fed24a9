"""Asks Jira again when it wants a short pause."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from itdesk.runtime.clock import Clock

from .failures import RateLimited

T = TypeVar("T")


async def patient(clock: Clock, ask: Callable[[], Awaitable[T]], *, longest: float) -> T:
    """Return what Jira answers, after the pauses that it wants, unless they are too long in all."""
    waited = 0.0
    while True:
        try:
            return await ask()
        except RateLimited as exc:
            waited += exc.seconds
            if waited > longest:
                raise
            await clock.sleep(exc.seconds)
