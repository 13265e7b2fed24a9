"""The numbers of each day."""

from pydantic import Field

from itdesk.api.fields import Day
from itdesk.api.route import Call, Query, Reply, Route, Who
from itdesk.store.stats import DailyStats


class DailyQuery(Query):
    """Which days, both ends included; all when none is named."""

    since: Day | None = Field(None, alias="from", description="The first day, as 2026-01-31.")
    until: Day | None = Field(None, alias="to", description="The last day.")


async def daily(call: Call) -> Reply:
    """Return how many tickets there were on each day (UTC), by status and by priority."""
    query: DailyQuery = call.query
    days = await call.desk.stats.days(call.caller, since=query.since, until=query.until)
    return Reply(days)


ROUTES: list[Route] = [
    Route(
        id="R61",
        method="GET",
        path="/stats/daily",
        handler=daily,
        who=Who.AGENT,
        tag="reports",
        query=DailyQuery,
        response=list[DailyStats],
    ),
]
