"""What a run found: medians, ratios to the limit and to the peer, and the machine it ran on."""

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

from tests.bench.load import Sample

_PACKAGES = ("aiohttp", "asyncpg", "uvloop", "orjson", "fastapi", "sqlalchemy")


@dataclass(frozen=True)
class Figure:
    """One thing measured: a value with its unit, and what it has to be, if anything."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def reached(self) -> bool | None:
        """Return whether the target was reached; None when there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    def line(self) -> str:
        """Return this figure as a line of text."""
        target = ""
        if self.at_least is not None:
            target = f">= {self.at_least:g}"
        if self.at_most is not None:
            target = f"<= {self.at_most:g}"
        verdict = {None: "", True: "reached", False: "MISSED"}[self.reached]
        return f"{self.name:<52} {self.value:>12,.2f} {self.unit:<6} {target:<12} {verdict}"


@dataclass
class Samples:
    """All samples of a run, by case and server."""

    taken: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)

    def add(self, case: str, server: str, sample: Sample) -> None:
        """Keep one sample."""
        self.taken.setdefault(case, {}).setdefault(server, []).append(sample)

    def rate(self, case: str, server: str) -> float:
        """Return the median requests a second."""
        return median(sample.rate for sample in self.taken[case][server])

    def ratio(self, case: str, server: str, base: str) -> float:
        """Return the median of the ratios of samples that were taken side by side."""
        pairs = zip(self.taken[case][server], self.taken[case][base], strict=True)
        return median(one.rate / other.rate for one, other in pairs)

    def lines(self) -> Iterable[str]:
        """Yield a table: requests a second and the p50 and p99 in milliseconds."""
        for case, servers in self.taken.items():
            for server, samples in servers.items():
                p50 = median(sample.p50 for sample in samples)
                p99 = median(sample.p99 for sample in samples)
                rate = self.rate(case, server)
                yield f"{case:<14} {server:<8} {rate:>10,.0f}/s  p50 {p50:>7.2f}  p99 {p99:>7.2f}"


def machine() -> Mapping[str, str]:
    """Return what it ran on."""
    found = {"cpus": str(os.cpu_count()), "python": platform.python_version()}
    return {**found, **{name: version(name) for name in _PACKAGES}}


def as_json(
    samples: Samples, figures: Iterable[Figure], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything as one object."""
    return {
        "machine": dict(machine()),
        "about": dict(about),
        "figures": [{**asdict(figure), "reached": figure.reached} for figure in figures],
        "samples": {
            case: {server: [asdict(one) for one in taken] for server, taken in servers.items()}
            for case, servers in samples.taken.items()
        },
    }
