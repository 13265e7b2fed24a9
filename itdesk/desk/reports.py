"""Reports: numbers scoped to who asks, and beside each the query that lists its tickets."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode

from itdesk.desk.reads import Reads
from itdesk.errors import Invalid
from itdesk.frozen import frozen
from itdesk.model import Caller, Priority, Role, Status
from itdesk.store import projects, reports
from itdesk.store.narrowing import NO_DEPARTMENT, Filter
from itdesk.store.reports import Activity, Counted, Trend, UserActivity

MOST_DAYS: Final = 366


@frozen
class DepartmentCount:
    """How many tickets a department has; those without one are counted as Unassigned."""

    department: str
    count: int
    query: str


@frozen
class StatusCount:
    """How many tickets are in a status."""

    status: Status
    count: int
    query: str


@frozen
class PriorityCount:
    """How many tickets have a priority."""

    priority: Priority
    count: int
    query: str


@frozen
class Dashboard:
    """The desk at a glance, as far as the reader sees it.

    `queries` has for each number the query of GET /tickets that lists what was counted.
    """

    total_tickets: int
    open_tickets: int
    triaged_tickets: int
    in_progress_tickets: int
    blocked_tickets: int
    closed_tickets: int
    critical_tickets: int
    tickets_by_status: dict[str, int]
    tickets_by_priority: dict[str, int]
    tickets_by_department: list[DepartmentCount]
    recent_activity: list[Activity]
    queries: dict[str, str]
    generated_at: datetime


@frozen
class Metadata:
    """What a report counted, and when."""

    total_tickets: int
    generated_at: datetime
    query: str


@frozen
class StatusReport:
    """Tickets by status, in the order of the lifecycle."""

    data: list[StatusCount]
    metadata: Metadata


@frozen
class PriorityReport:
    """Tickets by priority, the most urgent first."""

    data: list[PriorityCount]
    metadata: Metadata


@frozen
class DepartmentReport:
    """Tickets by department, the busiest first."""

    data: list[DepartmentCount]
    metadata: Metadata


@frozen
class Period:
    """Which days a report is of, both included, and when it was made."""

    period_days: int
    date_from: date
    date_to: date
    generated_at: datetime


@frozen
class ActivityReport:
    """What people did, those who reported most first."""

    data: list[UserActivity]
    metadata: Period


@frozen
class TrendReport:
    """Day by day."""

    data: list[Trend]
    metadata: Period


@frozen
class Range:
    """What a report is about: tickets opened on these days, both included, of one project."""

    since: date | None = None
    until: date | None = None
    project: str | None = None

    def filter(self) -> Filter:
        """Return it as a list is narrowed."""
        return Filter(project=self.project, created_from=self.since, created_to=self.until)

    def query(self, **more: str) -> str:
        """Return the query of GET /tickets that lists what is counted."""
        said = {"project": self.project, "created_from": self.since, "created_to": self.until}
        return urlencode({k: v for k, v in {**more, **said}.items() if v is not None})


class Reports:
    """Counts tickets on behalf of a caller."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads

    async def dashboard(self, caller: Caller) -> Dashboard:
        """Return the desk at a glance: a user's own tickets, everybody's for agents and above."""
        whose = caller.scope
        async with self._reads.reporting() as conn:
            found = await reports.counted(conn, Filter(), whose=whose)
            recent = await reports.recent_activity(
                conn, whose=whose, internal=caller.has(Role.AGENT)
            )
            moment = await reports.now(conn)
        by_status = _by(Status, ((one.status, one.count) for one in found))
        by_priority = _by(Priority, ((one.priority, one.count) for one in found))
        return Dashboard(
            total_tickets=sum(by_status.values()),
            **{f"{status}_tickets": by_status[status] for status in Status},
            critical_tickets=by_priority[Priority.CRITICAL],
            tickets_by_status=by_status,
            tickets_by_priority=by_priority,
            tickets_by_department=_departments(found, Range()),
            recent_activity=list(recent),
            queries={
                "total_tickets": "",
                **{f"{status}_tickets": f"status={status}" for status in Status},
                "critical_tickets": "priority=critical",
                **{f"tickets_by_status.{status}": f"status={status}" for status in Status},
                **{f"tickets_by_priority.{name}": f"priority={name}" for name in Priority},
            },
            generated_at=moment,
        )

    async def by_status(self, caller: Caller, about: Range) -> StatusReport:
        """Return how many tickets are in each status."""
        found, metadata = await self._counted(caller, about)
        numbers = _by(Status, ((one.status, one.count) for one in found))
        data = [StatusCount(s, numbers[s], about.query(status=s)) for s in Status]
        return StatusReport(data, metadata)

    async def by_priority(self, caller: Caller, about: Range) -> PriorityReport:
        """Return how many tickets have each priority."""
        found, metadata = await self._counted(caller, about)
        numbers = _by(Priority, ((one.priority, one.count) for one in found))
        data = [PriorityCount(p, numbers[p], about.query(priority=p)) for p in reversed(Priority)]
        return PriorityReport(data, metadata)

    async def by_department(self, caller: Caller, about: Range) -> DepartmentReport:
        """Return how many tickets each department has."""
        found, metadata = await self._counted(caller, about)
        return DepartmentReport(_departments(found, about), metadata)

    async def user_activity(self, caller: Caller, days: int) -> ActivityReport:
        """Return what each person did in the last days, today included."""
        caller.require(Role.MANAGER, "see reports")
        async with self._reads.reporting() as conn:
            moment = await reports.now(conn)
            until = moment.date()
            since = until - timedelta(days=days - 1)
            people = await reports.user_activity(conn, since, until)
        window = Range(since, until)
        data = [replace(one, query=window.query(reporter_id=str(one.user_id))) for one in people]
        return ActivityReport(data, Period(days, since, until, moment))

    async def trends(self, caller: Caller, about: Range) -> TrendReport:
        """Return each day's numbers, of the last 30 days unless others are named."""
        caller.require(Role.MANAGER, "see reports")
        async with self._reads.reporting() as conn:
            moment = await reports.now(conn)
            until = about.until or max(moment.date(), about.since or moment.date())
            # asyncpg reads the ends of Python's calendar as infinity.
            if date.min in (about.since, until) or date.max in (about.since, until):
                raise Invalid.field("from", "and `to` must be days of ordinary years")
            since = about.since or date.fromordinal(max(2, until.toordinal() - 29))
            days = (until - since).days + 1
            if not 1 <= days <= MOST_DAYS:
                raise Invalid.field("from", f"must be at most {MOST_DAYS} days before `to`")
            await _require_project(conn, about.project)
            data = await reports.trends(conn, since, until, project=about.project)
        return TrendReport(data, Period(days, since, until, moment))

    async def _counted(self, caller: Caller, about: Range) -> tuple[Sequence[Counted], Metadata]:
        caller.require(Role.MANAGER, "see reports")
        if about.since is not None and about.until is not None and about.since > about.until:
            raise Invalid.field("from", "is after `to`")
        async with self._reads.reporting() as conn:
            await _require_project(conn, about.project)
            found = await reports.counted(conn, about.filter(), whose=None)
            moment = await reports.now(conn)
        return found, Metadata(sum(one.count for one in found), moment, about.query())


async def _require_project(conn: Any, key: str | None) -> None:
    if key is not None and not await projects.exists(conn, key):
        raise Invalid.field("project", "is no project; GET /api/v1/projects lists them")


def _by(kind: Iterable[str], found: Iterable[tuple[str, int]]) -> dict[str, int]:
    numbers: Mapping[str, int] = _sum(found)
    return {str(one): numbers.get(one, 0) for one in kind}


def _sum(found: Iterable[tuple[str, int]]) -> Counter[str]:
    numbers: Counter[str] = Counter()
    for name, count in found:
        numbers[name] += count
    return numbers


def _departments(found: Sequence[Counted], about: Range) -> list[DepartmentCount]:
    numbers = _sum((one.department, one.count) for one in found)
    ordered = sorted(numbers.items(), key=lambda one: (-one[1], one[0] == NO_DEPARTMENT, one[0]))
    return [DepartmentCount(name, n, about.query(department=name)) for name, n in ordered]
