"""Reports and recommendations over REST."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from itdesk.api.fields import Day, Key
from itdesk.api.paging import page_reply, window
from itdesk.api.route import Call, ListQuery, Query, Reply, Route, Who
from itdesk.api.table import MEDIA, table, wants_csv
from itdesk.desk.reports import (
    ActivityReport,
    Dashboard,
    DepartmentCount,
    DepartmentReport,
    PriorityCount,
    PriorityReport,
    Range,
    StatusCount,
    StatusReport,
    TrendReport,
)
from itdesk.desk.suggestions import PrecisionReport
from itdesk.store.recommendations import Impact, Recommendation, RecommendationType
from itdesk.store.reports import Trend, UserActivity
from itdesk.store.suggestions import Precision


class ReportQuery(Query):
    """As what a report is answered."""

    format: Literal["json", "csv"] | None = Field(
        None, description="csv answers a table, as Accept: text/csv does."
    )


class RangeQuery(ReportQuery):
    """Which tickets are counted: opened on these days (UTC), both included, of one project."""

    since: Day | None = Field(None, alias="from", description="The first day, as 2026-01-31.")
    until: Day | None = Field(None, alias="to", description="The last day.")
    project: Key | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError("from is after to")
        return self

    def range(self) -> Range:
        """Return it in the desk's own words."""
        return Range(self.since, self.until, self.project)


class ActivityQuery(ReportQuery):
    """How far back."""

    days: int = Field(30, ge=1, le=366, description="So many days, today included.")


class PrecisionQuery(ReportQuery):
    """How far back."""

    days: int = Field(90, ge=1, le=366, description="Decided within so many days.")


class RecommendationQuery(ListQuery):
    """Which recommendations."""

    type: RecommendationType | None = None
    impact: Impact | None = None


async def dashboard(call: Call) -> Reply:
    """Return the desk at a glance; users see their own tickets counted, agents everybody's."""
    return Reply(await call.desk.reports.dashboard(call.caller))


async def by_status(call: Call) -> Reply:
    """Return how many tickets are in each status."""
    report = await call.desk.reports.by_status(call.caller, call.query.range())
    return _answer(call, "tickets-by-status", StatusCount, report)


async def by_priority(call: Call) -> Reply:
    """Return how many tickets have each priority."""
    report = await call.desk.reports.by_priority(call.caller, call.query.range())
    return _answer(call, "tickets-by-priority", PriorityCount, report)


async def by_department(call: Call) -> Reply:
    """Return how many tickets each department has; those without one are Unassigned."""
    report = await call.desk.reports.by_department(call.caller, call.query.range())
    return _answer(call, "tickets-by-department", DepartmentCount, report)


async def user_activity(call: Call) -> Reply:
    """Return what each person reported, closed and said, those who reported most first."""
    report = await call.desk.reports.user_activity(call.caller, call.query.days)
    return _answer(call, "user-activity", UserActivity, report)


async def trends(call: Call) -> Reply:
    """Return day by day what was opened, closed and open, and how long it took."""
    report = await call.desk.reports.trends(call.caller, call.query.range())
    return _answer(call, "trends", Trend, report)


async def suggestions(call: Call) -> Reply:
    """Return how often what the desk suggested was right, by kind and category."""
    report = await call.desk.suggestions.report(call.caller, call.query.days)
    return _answer(call, "suggestions", Precision, report)


async def list_recommendations(call: Call) -> Reply:
    """List what would be worth doing, as far as it rests on tickets that the caller may see."""
    query: RecommendationQuery = call.query
    page = await call.desk.recommendations.list(
        call.caller, window(query), type=query.type, impact=query.impact
    )
    return page_reply(call, page)


def _answer(call: Call, name: str, kind: type, report: Any) -> Reply:
    rows: Sequence[Any] = report.data
    if wants_csv(call):
        return table(name, kind, rows)
    return Reply(report, 200, {"Vary": "Accept"})


def _report(id: str, name: str, handler: Any, query: type[Query], response: Any) -> Route:
    return Route(
        id=id,
        method="GET",
        path=f"/reports/{name}",
        handler=handler,
        who=Who.MANAGER,
        tag="reports",
        query=query,
        response=response,
        other_media=(MEDIA,),
        errors={"E_REPORT_TOO_BROAD": 503},
    )


def _dashboard(id: str, path: str) -> Route:
    return Route(
        id=id, method="GET", path=path, handler=dashboard, who=Who.USER, tag="reports",
        response=Dashboard, errors={"E_REPORT_TOO_BROAD": 503},
    )  # fmt: skip


ROUTES: list[Route] = [
    _dashboard("R55", "/reports/dashboard"),
    _report("R56", "tickets-by-status", by_status, RangeQuery, StatusReport),
    _report("R57", "tickets-by-priority", by_priority, RangeQuery, PriorityReport),
    _report("R58", "tickets-by-department", by_department, RangeQuery, DepartmentReport),
    _report("R59", "user-activity", user_activity, ActivityQuery, ActivityReport),
    _report("R59", "trends", trends, RangeQuery, TrendReport),
    _report("G9", "suggestions", suggestions, PrecisionQuery, PrecisionReport),
    _dashboard("R60", "/stats/dashboard"),
    Route(
        id="R64",
        method="GET",
        path="/recommendations",
        handler=list_recommendations,
        who=Who.USER,
        tag="recommendations",
        query=RecommendationQuery,
        response=list[Recommendation],
    ),
]
