"""Reports over REST: their keys, their tables, and what is refused."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.support.daemon import Live, Person, started
from tests.support.postgres import Server

FORMULA = '=HYPERLINK("http://x";"a,b")'
TABLES = {
    "tickets-by-status": ["status", "count", "query"],
    "tickets-by-priority": ["priority", "count", "query"],
    "tickets-by-department": ["department", "count", "query"],
    "user-activity": ["user_id", "user_name", "tickets_created", "tickets_closed", "comments",
                      "query"],
    "trends": ["date", "created", "closed", "open", "median_seconds_to_first_action",
               "median_seconds_to_close"],
    "suggestions": ["kind", "category", "accepted", "rejected", "decided", "precision", "applied",
                    "open"],
}  # fmt: skip
DASHBOARD = {
    "total_tickets", "open_tickets", "triaged_tickets", "in_progress_tickets", "blocked_tickets",
    "closed_tickets", "critical_tickets", "tickets_by_status", "tickets_by_priority",
    "tickets_by_department", "recent_activity", "generated_at",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(pg_server: Server) -> AsyncIterator[tuple[Live, dict[str, Person]]]:
    """A desk with a known data set: three tickets of alice's, one of bob's."""
    async with started(pg_server, ITDESK_SCHEDULER__DAILY_STATS_SECONDS="1") as live:
        people = {
            "alice": await live.person(name=FORMULA), "bob": await live.person(),
            "agent": await live.person("agent"), "manager": await live.person("manager"),
        }  # fmt: skip
        await people["alice"].ticket("One", department=FORMULA, priority="critical")
        await people["alice"].ticket("Two", department="Sales")
        closed = await people["alice"].ticket("Three")
        await people["bob"].ticket("Four", priority="low")
        path = f"/tickets/{closed['key']}"
        (await people["agent"].post(f"{path}/comments", {"body": "Done"})).expect(201)
        (await people["agent"].patch(path, {"status": "closed"})).expect(200)
        yield live, people


pytestmark = pytest.mark.asyncio(loop_scope="module")
Known = tuple[Live, dict[str, Person]]


async def test_the_dashboard_has_its_keys_and_the_readers_numbers(known: Known) -> None:
    """S3-07, S3-44, S2-33: the same object at both places, scoped to own tickets for a user."""
    _, people = known
    for path in ("/reports/dashboard", "/stats/dashboard"):
        numbers = {}
        for name, person in people.items():
            seen = (await person.get(path)).expect(200)
            assert set(seen) >= DASHBOARD
            names = ("total_tickets", "closed_tickets", "critical_tickets")
            numbers[name] = (*(seen[key] for key in names), seen["tickets_by_priority"]["low"])
            assert len(seen["recent_activity"]) <= 10
        assert numbers == {"alice": (3, 1, 1, 0), "bob": (1, 0, 0, 1), "agent": (4, 1, 1, 1),
                           "manager": (4, 1, 1, 1)}  # fmt: skip


async def test_reports_have_data_and_metadata(known: Known) -> None:
    """S3-45 to S3-48: the promised keys, right counts, and lists that show them."""
    _, people = known
    manager = people["manager"]
    reports: dict[str, Any] = {
        name: (await manager.get(f"/reports/{name}")).expect(200) for name in TABLES
    }
    for name, report in reports.items():
        assert set(report) == {"data", "metadata"} and "generated_at" in report["metadata"]
        for row in report["data"]:
            assert list(row) == TABLES[name]
            if "query" in row:
                listed = (await manager.get(f"/tickets?{row['query']}")).expect(200)
                assert len(listed) == row.get("count", row.get("tickets_created"))
    status = {row["status"]: row["count"] for row in reports["tickets-by-status"]["data"]}
    assert status == {"open": 3, "triaged": 0, "in_progress": 0, "blocked": 0, "closed": 1}
    departments = {r["department"]: r["count"] for r in reports["tickets-by-department"]["data"]}
    assert departments == {"Unassigned": 2, "Sales": 1, FORMULA: 1}
    assert reports["tickets-by-status"]["metadata"]["total_tickets"] == 4
    people_did = [
        (r["user_id"], r["tickets_created"], r["tickets_closed"], r["comments"])
        for r in reports["user-activity"]["data"]
    ]
    assert people_did == [(people["alice"].id, 3, 0, 0), (people["bob"].id, 1, 0, 0),
                          (people["agent"].id, 0, 1, 1)]  # fmt: skip
    assert reports["user-activity"]["metadata"]["period_days"] == 30
    today = reports["trends"]["data"][-1]
    assert (today["created"], today["closed"], today["open"]) == (4, 1, 3)
    assert today["median_seconds_to_close"] > 0 and today["median_seconds_to_first_action"] > 0


@pytest.mark.parametrize("name", TABLES)
async def test_a_report_is_a_table_when_it_is_asked_for_as_one(known: Known, name: str) -> None:
    """RFC 4180 by Accept or by format, the same rows as in JSON, and no cell is a formula."""
    _, people = known
    manager, path = people["manager"], f"/reports/{name}"
    report = (await manager.get(path)).expect(200)["data"]
    for how in ({"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}):
        answer = await manager.get(path, **how)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}.csv"'
        text = answer.raw.decode()
        assert text.endswith("\r\n") and text.count("\n") == text.count("\r\n")
        rows = list(csv.reader(io.StringIO(text, newline="")))
        assert rows[0] == TABLES[name] and len(rows) == len(report) + 1
        for cells, row in zip(rows[1:], report, strict=True):
            for cell, value in zip(cells, row.values(), strict=True):
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
                assert cell.removeprefix("'") == ("" if value is None else str(value))
        assert ("'" + FORMULA in [cell for row in rows for cell in row]) is (
            name in ("tickets-by-department", "user-activity")
        )
    for accept in ("application/json, text/csv", "*/*", "application/json"):
        answer = await manager.get(path, headers={"Accept": accept})
        assert answer.headers["Content-Type"] == "application/json"
    json = await manager.get(path, params={"format": "json"}, headers={"Accept": "text/csv"})
    assert json.headers["Content-Type"] == "application/json"


async def test_a_report_that_cannot_be_is_refused(known: Known) -> None:
    _, people = known
    for path in (
        "tickets-by-status?from=2026-01-02&to=2026-01-01", "tickets-by-status?from=yesterday",
        "tickets-by-priority?project=NONE", "tickets-by-priority?project=x'y",
        "trends?project=NONE",
        "trends?from=2020-01-01&to=2026-01-01", "user-activity?days=0", "user-activity?days=367",
        "tickets-by-department?format=xml", "tickets-by-department?unknown=1",
    ):  # fmt: skip
        answer = await people["manager"].get(f"/reports/{path}")
        answer.refused(422, "E_VALIDATION_ERROR")


async def test_todays_row_of_the_daily_statistics_is_what_the_reports_say(known: Known) -> None:
    """S2-48, S2-49: by status and by priority."""
    _, people = known
    manager = people["manager"]
    status = (await manager.get("/reports/tickets-by-status")).expect(200)["data"]
    priority = (await manager.get("/reports/tickets-by-priority")).expect(200)["data"]
    wanted = {row["status"]: row["count"] for row in status}
    wanted |= {f"{row['priority']}_count": row["count"] for row in priority}
    live, _ = known
    live.daemon.run("stats", "aggregate")
    [row] = (await manager.get("/stats/daily")).expect(200)[-1:]
    assert {name: row[name] for name in wanted} == wanted and row["total"] == 4
