"""What the desk knows of each plugin, and of one answer of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from itdesk.desk.contract import Late, Section
from itdesk.desk.gates import Gate
from itdesk.frozen import frozen
from itdesk.hookspecs import IdentityProvider, JobType, LanguageModel, Mailer, Schedule, Tracker

if TYPE_CHECKING:
    from itdesk.api.route import Route

# `disabled` by its section, for as long as the daemon runs; `off` by whoever switched it off.
State = Literal["loaded", "disabled", "off", "starting", "stopping", "broken", "left out"]


@frozen
class PluginStatus:
    """How one configured plugin is; a loaded one that has a reason fails at times."""

    state: State
    reason: str
    required: bool
    version: str | None


@frozen
class Answer:
    """What one plugin said to one hook, or why there is no result."""

    plugin: str
    result: Any = None
    failure: BaseException | None = None


@frozen
class Contribution:
    """What one plugin adds to a desk that works."""

    routes: Sequence["Route"] = ()
    jobs: Sequence[JobType] = ()
    schedules: Sequence[Schedule] = ()
    tracker: Tracker | None = None
    mailer: Mailer | None = None
    provider: IdentityProvider | None = None
    model: LanguageModel | None = None


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
    pending: str = ""
    """What only a restart will do about it."""
    gate: Gate = field(default_factory=Gate)
    work: set[str] = field(default_factory=set)
    """The names of its jobs and schedules."""
    metrics: list[str] = field(default_factory=list)

    @property
    def status(self) -> PluginStatus:
        """Return how it is, as others may know."""
        why = self.reason or self.pending or "; ".join(self.trouble.values())
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
