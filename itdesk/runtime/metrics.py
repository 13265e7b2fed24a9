"""The daemon's metrics, in a registry of its own so that one process may hold many daemons."""

import asyncio
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

M = TypeVar("M", Counter, Gauge, Histogram)


class OwnProcess(ProcessCollector):
    """What the process uses; also where /proc holds processes alone (systemd's ProcSubset=pid)."""

    def _boot_time(self) -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


class Metrics:
    """Makes metrics, each name once, and renders them all."""

    def __init__(self) -> None:
        # One *_created series beside every child doubles the page and no rule reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        OwnProcess(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._noted: list[str] | None = None
        self._made: dict[str, tuple[type, tuple[str, ...], Counter | Gauge | Histogram]] = {}
        self.actor_restarts = self.counter(
            "itdesk_actor_restarts_total", "Restarts after a crash or an outage.", ["actor"]
        )
        self.actor_dropped = self.counter(
            "itdesk_actor_mailbox_dropped_total", "Messages refused by a full mailbox.", ["actor"]
        )
        self.actor_up = self.gauge("itdesk_actor_up", "1 while the actor runs.", ["actor"])
        self.breaker_open = self.gauge(
            "itdesk_breaker_open", "1 while this part is left alone because it failed.", ["part"]
        )
        self.loop_lag = self.histogram(
            "itdesk_loop_lag_seconds", "How late the event loop ran a timer."
        )
        self.http_request_seconds = self.histogram(
            "itdesk_http_request_seconds", "Time to answer.", ["method", "route", "status"]
        )

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """Return the counter of that name, made on first use."""
        return self._once(
            Counter, name, labels, lambda: Counter(name, doc, labels, registry=self.registry)
        )

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        """Return the gauge of that name, made on first use."""
        return self._once(
            Gauge, name, labels, lambda: Gauge(name, doc, labels, registry=self.registry)
        )

    def histogram(
        self,
        name: str,
        doc: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = SECONDS,
    ) -> Histogram:
        """Return the histogram of that name, made on first use."""
        return self._once(
            Histogram,
            name,
            labels,
            lambda: Histogram(name, doc, labels, registry=self.registry, buckets=buckets),
        )

    def lent(self, made: list[str]) -> "Metrics":
        """Return the same metrics for somebody else; `made` gets the names of what they make."""
        lent = copy(self)
        lent._noted = made
        return lent

    def forget(self, names: Sequence[str]) -> None:
        """Take metrics away, by the names that were noted."""
        for name in names:
            known = self._made.pop(name, None)
            if known is not None:
                self.registry.unregister(known[2])

    async def render(self) -> bytes:
        """Return everything as Prometheus text, built beside the event loop."""
        return await asyncio.to_thread(generate_latest, self.registry)

    def _once(self, kind: type[M], name: str, labels: Sequence[str], make: Callable[[], M]) -> M:
        name = name.removesuffix("_total")
        known = self._made.get(name)
        if known is None:
            metric = make()
            self._made[name] = (kind, tuple(labels), metric)
            if self._noted is not None:
                self._noted.append(name)
            return metric
        _, names, existing = known
        if not isinstance(existing, kind) or names != tuple(labels):
            raise ValueError(f"metric {name} exists with another type or other labels")
        return existing
