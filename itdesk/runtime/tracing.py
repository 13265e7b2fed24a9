"""Spans of what the daemon does, for plugins that collect them; while none does, there are none.

A span belongs to the trace that came with the request, or begins one. What follows from the work
(a job, and the jobs of that) is told whose part it is by the same `traceparent` that it keeps.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from itdesk.frozen import frozen
from itdesk.model.spans import Span, Value
from itdesk.runtime.log import get_logger

Listener = Callable[[Span], None]

_SAMPLED = 1

log = get_logger("tracing")


@frozen
class Begun:
    """A span on its way; one that is not `sampled` is told to nobody, nor are those below it."""

    trace_id: str
    span_id: str
    parent_id: str | None
    sampled: bool
    started: int
    clock: int

    @property
    def traceparent(self) -> str:
        """Return what work that follows from this belongs to."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    @property
    def above(self) -> str | None:
        """Return what this itself belongs to, if it began no trace."""
        parent = self.parent_id
        return f"00-{self.trace_id}-{parent}-{int(self.sampled):02x}" if parent else None


class Tracing:
    """Who is told of spans."""

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self.on = False
        self._dice = dice
        self._listeners: dict[Listener, float] = {}

    @contextmanager
    def told(self, listener: Listener, *, share: float = 1.0) -> Iterator[None]:
        """Tell somebody of every span that ends meanwhile; of new traces, of this share.

        It is called on the event loop and must return at once. One that raises is told no more.
        """
        self._listeners[listener] = share
        self.on = True
        try:
            yield
        finally:
            self._forget(listener)

    def begin(self, parent: str | None) -> Begun:
        """Begin a span below this traceparent, or a trace."""
        span_id = f"{random.getrandbits(64) or 1:016x}"
        now, clock = time.time_ns(), time.perf_counter_ns()
        if parent is not None:
            sampled = bool(int(parent[53:55], 16) & _SAMPLED)
            return Begun(parent[3:35], span_id, parent[36:52], sampled, now, clock)
        sampled = self._dice() < max(self._listeners.values(), default=0.0)
        trace_id = f"{random.getrandbits(128) or 1:032x}"
        return Begun(trace_id, span_id, None, sampled, now, clock)

    def end(
        self,
        begun: Begun,
        name: str,
        kind: Literal["server", "consumer"],
        attributes: Mapping[str, Value],
        *,
        failed: bool,
    ) -> None:
        """End a span and tell whoever listens."""
        if not begun.sampled:
            return
        ended = begun.started + time.perf_counter_ns() - begun.clock
        ids = begun.trace_id, begun.span_id, begun.parent_id
        span = Span(name, kind, *ids, begun.started, ended, failed, attributes)
        for listener in tuple(self._listeners):
            try:
                listener(span)
            except Exception as exc:  # noqa: BLE001 - a plugin's
                log.error("who was told of spans failed and is told no more", exc_info=exc)
                self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        self._listeners.pop(listener, None)
        self.on = bool(self._listeners)
