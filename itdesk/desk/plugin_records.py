"""What the desk knows of each plugin, and of one answer of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from itdesk.desk.contract import Late, Section
from itdesk.errors import Unavailable

State = Literal["loaded", "disabled", "broken", "left out"]


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """How one configured plugin is; a loaded one that has a reason fails at times."""

    state: State
    reason: str
    required: bool
    version: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one plugin said to one hook, or why there is no result."""

    plugin: str
    result: Any = None
    failure: BaseException | None = None


@dataclass(slots=True)
class Record:
    """What is known of one configured plugin."""

    section: Section
    version: str | None = None
    state: State = "loaded"
    reason: str = ""
    trouble: dict[str, str] = field(default_factory=dict)
    is_auditor: bool = False
    late: int = 0
    paused_until: float = 0.0

    @property
    def status(self) -> PluginStatus:
        """Return how it is, as others may know."""
        why = self.reason or "; ".join(self.trouble.values())
        return PluginStatus(self.state, why, self.section.required, self.version)

    @property
    def paused(self) -> bool:
        """Return whether it gets no events now, because it was late again and again."""
        return self.paused_until > perf_counter()


def kind(failure: BaseException | None) -> str:
    """Return what a call came to, in the word of the metrics."""
    if failure is None:
        return "ok"
    return "timeout" if isinstance(failure, Late) else "error"


def demand(records: Mapping[str, Record]) -> None:
    """Raise Unavailable when a required plugin is broken."""
    broken = {
        name: record.reason
        for name, record in records.items()
        if record.state == "broken" and record.section.required
    }
    if broken:
        raise Unavailable(
            "; ".join(f"plugins.{name} is required: {why}" for name, why in broken.items()),
            code="E_PLUGIN_REQUIRED",
            details={"plugins": broken},
        )
