"""Which trace the current work belongs to, as W3C Trace Context names it.

A request brings it along in its `traceparent`; the jobs that follow from the request keep it, and
so do those that follow from the jobs. Every log line of that work carries the trace id.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from itdesk.runtime import log

# Version 00 is exactly this; a later version may have more behind another dash. ff is none.
_TRACEPARENT = re.compile(
    r"(?!ff)(?!00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})"
    r"-([0-9a-f]{2})(?:-.*)?"
)

_current: ContextVar[str | None] = ContextVar("itdesk_traceparent", default=None)


def understood(headers: list[str]) -> str | None:
    """Return the one traceparent as version 00, or None when there is none that can be read."""
    found = _TRACEPARENT.fullmatch(headers[0]) if len(headers) == 1 else None
    return f"00-{found[1]}-{found[2]}-{found[3]}" if found else None


def id_of(traceparent: str) -> str:
    """Return the trace id in it."""
    return traceparent[3:35]


def begin(traceparent: str) -> None:
    """Let the rest of the current task belong to a trace."""
    _current.set(traceparent)
    log.bind(trace_id=id_of(traceparent))


def current() -> str | None:
    """Return the traceparent of the current work, if it has one."""
    return _current.get()


@contextmanager
def resumed(traceparent: str | None) -> Iterator[None]:
    """Let what happens within belong to the trace of what led to it."""
    if traceparent is None:
        yield
        return
    token = _current.set(traceparent)
    try:
        with log.bound(trace_id=id_of(traceparent)):
            yield
    finally:
        _current.reset(token)
