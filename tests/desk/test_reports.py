"""Reports against a second computation, in Python over what was written, on random tickets."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from itdesk.api.payload import QueryReader
from itdesk.api.tickets import TicketQuery
from itdesk.desk.reports import Range
from itdesk.errors import Forbidden, Invalid, Unavailable
from itdesk.model import Caller, Priority, Role, Status, new_id
from itdesk.store import reports
from itdesk.store.paging import Window
from tests.support.desk import Bench, bench_on

PROJECTS = ("TSK", "RPT")
DEPARTMENTS = (None, "Sales", "Unassigned", "=cmd|' /C calc'!A0")


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        await bench.sql("INSERT INTO projects (key, name) VALUES ('RPT', 'Reports')")
        yield bench


@dataclass
class Row:
    """A ticket as it was written, and nothing that the desk made of it."""

    id: UUID
    status: str
    priority: str
    department: str | None
    project: str
    reporter: UUID
    assignee: UUID | None
    created: datetime
    acted: datetime | None
    closed: datetime | None

    async def write(self, bench: Bench) -> None:
        await bench.sql(
            """INSERT INTO tickets (id, key, project_id, title, status, priority, department,
                   reporter_id, created_at, first_action_at, closed_at)
               SELECT $1, $2 || '-' || $3, id, 'T', $4, $5, $6, $7, $8, $9, $10
               FROM projects WHERE key = $2""",
            self.id, self.project, str(self.id.int % 10**17), self.status, self.priority,
            self.department, self.reporter, self.created, self.acted, self.closed,
        )  # fmt: skip
        if self.assignee is not None:
            await bench.sql(
                "INSERT INTO ticket_assignees (ticket_id, user_id) VALUES ($1, $2)",
                self.id, self.assignee,
            )  # fmt: skip


@dataclass
class Desk:
    """What the test knows of the tickets."""

    people: list[Caller]
    rows: list[Row] = field(default_factory=list)

    def of(self, caller: Caller) -> list[Row]:
        if caller.has(Role.AGENT):
            return self.rows
        return [r for r in self.rows if caller.user_id in (r.reporter, r.assignee)]


MOMENTS = st.datetimes(
    datetime(2026, 1, 1),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(2026, 1, 10, 23, 59, 59),  # noqa: DTZ001
    timezones=st.just(UTC),
)
GAPS = st.none() | st.integers(0, 5 * 86400)
TICKETS = st.lists(
    st.tuples(
        st.sampled_from(Status), st.sampled_from(Priority), st.sampled_from(DEPARTMENTS),
        st.sampled_from(PROJECTS), st.integers(0, 2), st.none() | st.integers(0, 2), MOMENTS,
        GAPS, GAPS,
    ),
    max_size=12,
)  # fmt: skip


async def _fresh(bench: Bench, people: list[Caller], drawn: list[Any]) -> Desk:
    await bench.sql("DELETE FROM tickets")
    desk = Desk(people)
    for status, priority, department, project, reporter, assignee, created, acted, closed in drawn:
        row = Row(
            new_id(), status, priority, department, project,
            people[reporter].user_id or UUID(int=0),
            people[assignee].user_id if assignee is not None else None, created,
            None if acted is None else created + timedelta(seconds=acted),
            None if closed is None or status != "closed" else created + timedelta(seconds=closed),
        )  # fmt: skip
        await row.write(bench)
        desk.rows.append(row)
    return desk


def _department(row: Row) -> str:
    return row.department or "Unassigned"


async def _listed(bench: Bench, caller: Caller, query: str) -> int:
    """Return how many tickets the list behind a number has, asked as its link asks."""
    asked = QueryReader(TicketQuery).read(query)
    window = Window(limit=200, count=True)
    page = await bench.desk.tickets.list(caller, asked.filter(), sort=asked.sort, window=window)
    assert page.total == len(page.items)
    return len(page.items)


_SETTINGS = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def known() -> dict[str, list[Caller]]:
    """People are made once for all examples."""
    return {}


async def _people(bench: Bench, known: dict[str, list[Caller]]) -> list[Caller]:
    if "all" not in known:
        roles = (Role.USER, Role.USER, Role.MANAGER)
        known["all"] = [await bench.person(role) for role in roles]
    return known["all"]


@_SETTINGS
@given(drawn=TICKETS)
async def test_the_dashboard_counts_what_its_reader_may_see(
    bench: Bench, known: dict[str, list[Caller]], drawn: list[Any]
) -> None:
    """S3-07, S3-44, S2-33: each number is that of a second count, and of its own list."""
    people = await _people(bench, known)
    desk = await _fresh(bench, people, drawn)
    for caller in people:
        mine = desk.of(caller)
        seen = await bench.desk.reports.dashboard(caller)
        assert seen.total_tickets == len(mine)
        status = Counter(row.status for row in mine)
        priority = Counter(row.priority for row in mine)
        assert seen.tickets_by_status == {s: status[s] for s in Status}
        assert seen.tickets_by_priority == {p: priority[p] for p in Priority}
        assert seen.critical_tickets == priority["critical"]
        for s in Status:
            assert getattr(seen, f"{s}_tickets") == status[s]
        found = {one.department: one.count for one in seen.tickets_by_department}
        assert found == Counter(_department(row) for row in mine)
        for name, query in seen.queries.items():
            head, _, key = name.partition(".")
            number = getattr(seen, head)
            assert await _listed(bench, caller, query) == (number[key] if key else number), name
        for one in seen.tickets_by_department:
            assert await _listed(bench, caller, one.query) == one.count


@_SETTINGS
@given(
    drawn=TICKETS,
    since=st.none() | st.dates(date(2025, 12, 30), date(2026, 1, 6)),
    length=st.none() | st.integers(0, 9),
    project=st.none() | st.sampled_from(PROJECTS),
)
async def test_reports_count_the_tickets_of_their_days_and_project(
    bench: Bench,
    known: dict[str, list[Caller]],
    drawn: list[Any],
    since: date | None,
    length: int | None,
    project: str | None,
) -> None:
    """S3-45, S3-46, S3-47: against a second count, with the list that shows each number."""
    people = await _people(bench, known)
    desk = await _fresh(bench, people, drawn)
    manager = people[2]
    until = None if length is None else (since or date(2026, 1, 1)) + timedelta(days=length)
    about = Range(since, until, project)
    mine = [
        row for row in desk.rows
        if (since is None or row.created.date() >= since)
        and (until is None or row.created.date() <= until)
        and (project is None or row.project == project)
    ]  # fmt: skip
    service = bench.desk.reports
    by_status = await service.by_status(manager, about)
    by_priority = await service.by_priority(manager, about)
    by_department = await service.by_department(manager, about)
    status = {one.status: one.count for one in by_status.data}
    priority = {one.priority: one.count for one in by_priority.data}
    departments = {one.department: one.count for one in by_department.data}
    assert status == {s: Counter(r.status for r in mine)[s] for s in Status}
    assert priority == {p: Counter(r.priority for r in mine)[p] for p in Priority}
    assert departments == Counter(_department(row) for row in mine)
    for report in (by_status, by_priority, by_department):
        assert report.metadata.total_tickets == len(mine)
        assert await _listed(bench, manager, report.metadata.query) == len(mine)
        for one in report.data:
            assert await _listed(bench, manager, one.query) == one.count


# The reporter closes it, and then an agent says something.
_ACTED_ON_LATER = (
    Status.CLOSED, Priority.LOW, DEPARTMENTS[0], PROJECTS[0], 0, None,
    datetime(2026, 1, 2, 1, tzinfo=UTC), 86_400, 3_600,
)  # fmt: skip


@_SETTINGS
@example(drawn=[_ACTED_ON_LATER], since=date(2026, 1, 3), days=1)
@given(drawn=TICKETS, since=st.dates(date(2025, 12, 30), date(2026, 1, 8)), days=st.integers(1, 9))
async def test_trends_are_those_of_a_second_computation(
    bench: Bench,
    known: dict[str, list[Caller]],
    drawn: list[Any],
    since: date,
    days: int,
) -> None:
    people = await _people(bench, known)
    desk = await _fresh(bench, people, drawn)
    until = since + timedelta(days=days - 1)
    report = await bench.desk.reports.trends(people[2], Range(since, until))
    assert [one.date for one in report.data] == [since + timedelta(days=n) for n in range(days)]
    for day in report.data:
        closed = [row for row in desk.rows if row.closed and row.closed.date() == day.date]
        acted = [row for row in desk.rows if row.acted and row.acted.date() == day.date]
        assert day.created == sum(row.created.date() == day.date for row in desk.rows)
        assert day.closed == len(closed)
        assert day.open == sum(
            row.created.date() <= day.date and (row.closed is None or row.closed.date() > day.date)
            for row in desk.rows
        )
        to_close = [(row.closed - row.created).total_seconds() for row in closed if row.closed]
        to_act = [(row.acted - row.created).total_seconds() for row in acted if row.acted]
        assert day.median_seconds_to_close == (
            pytest.approx(median(to_close)) if to_close else None
        )
        assert day.median_seconds_to_first_action == (
            pytest.approx(median(to_act)) if to_act else None
        )


CHANGES = (
    "UPDATE tickets SET status = 'closed' WHERE id = $1",
    "UPDATE tickets SET priority = 'low', title = 'x' WHERE id = $1",
    "UPDATE tickets SET department = NULL WHERE id = $1",
    "UPDATE tickets SET title = 'same', status = status WHERE id = $1",
    "UPDATE tickets SET project_id = (SELECT id FROM projects WHERE key = 'RPT') WHERE id = $1",
    "DELETE FROM tickets WHERE id = $1",
)
_DIRECT = """
    SELECT status, priority, department, count(*) FROM tickets t JOIN projects p
    ON p.id = t.project_id WHERE p.key = $1 GROUP BY 1, 2, 3
"""


@_SETTINGS
@given(
    drawn=TICKETS,
    steps=st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from((*CHANGES, "sum up"))), max_size=12
    ),
)
async def test_what_changes_add_up_to_is_what_there_is(
    bench: Bench, known: dict[str, list[Caller]], drawn: list[Any], steps: list[tuple[int, str]]
) -> None:
    """Whoever writes, and however often it was summed up in between."""
    desk = await _fresh(bench, await _people(bench, known), drawn)
    for which, change in steps:
        if change == "sum up":
            await bench.desk.stats.sum_up()
        elif desk.rows:
            await bench.sql(change, desk.rows[which % len(desk.rows)].id)
    async with bench.desk.db.connection() as conn:
        for project in PROJECTS:
            summed = await reports._summed(conn, project)
            assert sorted(
                (one.status.value, one.priority.value, one.department, one.count) for one in summed
            ) == sorted(
                (r[0], r[1], r[2] or "Unassigned", r[3])
                for r in _merged(await conn.fetch(_DIRECT, project))
            )


def _merged(rows: list[Any]) -> list[Any]:
    return [tuple(row) for row in rows]


async def test_an_open_transaction_counts_when_it_commits_and_not_when_it_rolls_back(
    bench: Bench,
) -> None:
    manager = await bench.person(Role.MANAGER)
    await bench.ticket(manager)

    async def total() -> int:
        return (await bench.desk.reports.dashboard(manager)).total_tickets

    async with bench.desk.db.connection() as conn:
        for end, after in (("ROLLBACK", 1), ("COMMIT", 0)):
            await conn.execute("BEGIN")
            await conn.execute("DELETE FROM tickets")
            # Two who sum up meanwhile neither wait nor see what is not committed.
            async with asyncio.timeout(10):
                await asyncio.gather(bench.desk.stats.sum_up(), bench.desk.stats.sum_up())
            assert await total() == 1
            await conn.execute(end)
            await bench.desk.stats.sum_up()
            assert await total() == after


async def test_two_who_sum_up_at_once_lose_nothing(bench: Bench) -> None:
    manager = await bench.person(Role.MANAGER)
    for _ in range(5):
        await asyncio.gather(
            *(bench.ticket(manager) for _ in range(4)),
            *(bench.desk.stats.sum_up() for _ in range(4)),
        )
    assert (await bench.desk.reports.dashboard(manager)).total_tickets == 20
    await bench.desk.stats.sum_up()
    assert await bench.sql("SELECT count(*) FROM ticket_counts") == 1


async def test_user_activity_counts_its_window_and_sorts_by_tickets_created(bench: Bench) -> None:
    """S3-48: days=7 counts only the window, sorted by tickets_created."""
    manager, busy, idle = [await bench.person(r) for r in (Role.MANAGER, Role.AGENT, Role.USER)]
    for _ in range(3):
        await bench.ticket(busy)
    mine = await bench.ticket(idle)
    old = await bench.ticket(idle)
    await bench.sql(
        "UPDATE tickets SET created_at = now() - interval '8 days' WHERE id = $1", old.id
    )
    await bench.desk.tickets.comment(busy, mine.key, "Done")
    await bench.desk.tickets.update(busy, mine.key, {"status": Status.CLOSED})
    await bench.desk.tickets.update(busy, mine.key, {"status": Status.OPEN})
    await bench.desk.tickets.update(busy, mine.key, {"status": Status.CLOSED})
    report = await bench.desk.reports.user_activity(manager, 7)
    numbers = [
        (one.user_id, one.tickets_created, one.tickets_closed, one.comments) for one in report.data
    ]
    assert numbers == [(busy.user_id, 3, 1, 1), (idle.user_id, 1, 0, 0)]
    assert report.metadata.period_days == 7
    for one in report.data:
        assert await _listed(bench, manager, one.query) == one.tickets_created
    longer = await bench.desk.reports.user_activity(manager, 30)
    assert [one.tickets_created for one in longer.data] == [3, 2]


async def test_only_managers_and_above_see_reports(bench: Bench) -> None:
    """S3-45: user and agent are refused by the service itself."""
    service = bench.desk.reports
    for role in (Role.USER, Role.AGENT):
        caller = await bench.person(role)
        for ask in (service.by_status, service.by_priority, service.by_department, service.trends):
            with pytest.raises(Forbidden):
                await ask(caller, Range())
        with pytest.raises(Forbidden):
            await service.user_activity(caller, 7)


async def test_a_report_of_no_project_or_of_years_is_refused(bench: Bench) -> None:
    manager = await bench.person(Role.MANAGER)
    with pytest.raises(Invalid, match="project"):
        await bench.desk.reports.by_status(manager, Range(project="NONE"))
    for since, until in ((date(2020, 1, 1), None), (date(1, 1, 1), date(9999, 12, 31))):
        with pytest.raises(Invalid, match="from"):
            await bench.desk.reports.trends(manager, Range(since, until))
    for day in (date(1, 1, 1), date(9999, 12, 31)):
        with pytest.raises(Invalid, match="from"):
            await bench.desk.reports.trends(manager, Range(None, day))
        assert (await bench.desk.reports.by_status(manager, Range(day, day))).data
    for day in (date(1, 1, 2), date(9999, 12, 30)):
        assert (await bench.desk.reports.trends(manager, Range(None, day))).data


async def test_recent_activity_is_the_readers_and_hides_what_is_internal(bench: Bench) -> None:
    """S3-44: ten at most, the newest first."""
    agent, alice, bob = [await bench.person(r) for r in (Role.AGENT, Role.USER, Role.USER)]
    ticket, foreign = await bench.ticket(alice), await bench.ticket(bob)
    await bench.desk.tickets.comment(agent, ticket.key, "between us", internal=True)
    await bench.desk.tickets.comment(agent, ticket.key, "hello")
    await bench.sql(
        """UPDATE events SET seq = n FROM (
               SELECT id AS e, row_number() OVER (ORDER BY created_at, id) AS n FROM events
           ) AS numbered WHERE id = e AND seq IS NULL"""
    )
    hers = (await bench.desk.reports.dashboard(alice)).recent_activity
    assert [(one.ticket_key, one.action) for one in hers] == [
        (ticket.key, "comment_added"), (ticket.key, "created"),
    ]  # fmt: skip
    everybodys = (await bench.desk.reports.dashboard(agent)).recent_activity
    assert [(one.ticket_key, one.action) for one in everybodys] == [
        (ticket.key, "comment_added"), (ticket.key, "comment_added"), (foreign.key, "created"),
        (ticket.key, "created"),
    ]  # fmt: skip


async def test_a_report_that_takes_too_long_says_so(bench: Bench) -> None:
    """Nothing may wait for a report, and a report for nothing longer than it may."""
    manager = await bench.person(Role.MANAGER)
    bench.desk.reports._reads._report_ms = 100
    async with bench.desk.db.connection() as conn:
        await conn.execute("BEGIN")
        await conn.execute("LOCK TABLE ticket_counts IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(Unavailable) as refused:
            await bench.desk.reports.dashboard(manager)
        await conn.execute("ROLLBACK")
    assert refused.value.code == "E_REPORT_TOO_BROAD"
    assert (await bench.desk.reports.dashboard(manager)).total_tickets == 0
