"""What is asked all day reads what it needs and never a whole table (T6).

PostgreSQL counts by itself which rows it read by walking over a table: that is what is asked here,
and not what a plan says that it would do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from itdesk.desk.tickets import NewTicket
from itdesk.model import Caller, Role
from itdesk.store import (
    attachments,
    emails,
    embeddings,
    events,
    jobs,
    matching,
    resolutions,
    suggestions,
)
from itdesk.store.db import Database
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Window
from tests.bench.data import Filled, fill
from tests.support.desk import Bench, bench_on
from tests.support.postgres import Server

# What grows with the years.
LARGE = (
    "tickets",
    "ticket_assignees",
    "ticket_comments",
    "attachments",
    "events",
    "jobs",
    "emails",
    "suggestions",
    "ticket_embeddings",
)
PAGE = Window(limit=25)
# An index of all that are open is a whole table as well: those of the days asked for are enough.
FETCHED = "suggestions, by an index"
MOST_FETCHED = 2_000
# What one searches in may be little, and the words in a third of everybody's tickets.
LOOKED_AT = "tickets, by an index"

_REST = """
    INSERT INTO ticket_comments (ticket_id, user_id, author_name, body)
        SELECT id, reporter_id, 'Somebody', 'It happened again today.' FROM tickets;
    INSERT INTO attachments (ticket_id, uploaded_by, object_key, original_filename, size, sha256,
                             scanned_status, scan_engine, scanned_at, uploaded_at, confirmed_at)
        SELECT id, reporter_id, id::text, 'a.txt', 1, repeat('0', 64), 'CLEAN', 'clamav', now(),
               now(), now()
        FROM tickets WHERE number % 4 = 0;
    INSERT INTO events (seq, ticket_id, ticket_version, type, actor_id)
        SELECT row_number() OVER (), id, version, 'ticket.created', reporter_id FROM tickets;
    UPDATE journal_head SET last_seq = (SELECT max(seq) FROM events);
    INSERT INTO jobs (type, state, finished_at)
        SELECT 'mail.deliver', 'done', now() FROM tickets;
    INSERT INTO emails (to_address, subject, kind, status)
        SELECT 'a@example.org', 'A ticket', 'notification', 'sent' FROM tickets;
    INSERT INTO suggestions (ticket_id, kind, proposal, source, category, state, decided_at,
                             created_at)
        SELECT t.id, k.kind, 'network', 'rules', 'network', k.state,
               CASE WHEN k.state IN ('accepted', 'applied') THEN t.created_at END, t.created_at
        FROM tickets t, (VALUES ('category', 'accepted'), ('priority', 'open'),
                                ('reply', 'superseded'), ('category', 'applied')) AS k (kind, state)
        WHERE t.number % 2 = 0;
    UPDATE suggestions SET created_at = created_at - interval '120 days',
                           decided_at = decided_at - interval '120 days' WHERE random() < 0.98;
    INSERT INTO ticket_embeddings (ticket_id, model, vector, digest)
        SELECT id, 'm', array_fill(0.1, ARRAY[64]), md5(title || E'\\n' || left(description, 4000))
        FROM tickets;
    UPDATE tickets SET resolution = 'It was restarted.' WHERE status = 'closed';
    VACUUM ANALYZE;
"""


_OWN = "SELECT id FROM tickets WHERE reporter_id = $1 LIMIT 1"


@dataclass
class Office:
    """A desk with years of tickets, and who asks it."""

    bench: Bench
    agent: Caller
    user: Caller
    filled: Filled

    @property
    def db(self) -> Database:
        """Return its database."""
        return self.bench.desk.db

    async def search(self, q: str, **more: Any) -> Any:
        """Look for words as an agent."""
        return await self.bench.desk.tickets.list(
            self.agent, Filter(q=q), sort=more.pop("sort", "-created_at"), window=PAGE
        )


Ask = Callable[[Office], Awaitable[object]]


def _in_database(ask: Callable[[Any], Awaitable[object]]) -> Ask:
    async def asked(office: Office) -> None:
        async with office.db.transaction() as tx:
            await ask(tx.conn)

    return asked


def _list(sort: str = "-created_at", *, own: bool = False, **wanted: Any) -> Ask:
    async def asked(office: Office) -> None:
        caller, tickets = office.user if own else office.agent, office.bench.desk.tickets
        first = await tickets.list(caller, Filter(**wanted), sort=sort, window=PAGE)
        assert len(first.items) == PAGE.limit
        beyond = Window(limit=PAGE.limit, cursor=first.next_cursor)
        assert (await tickets.list(caller, Filter(**wanted), sort=sort, window=beyond)).items

    return asked


async def _read(office: Office) -> None:
    for ref in (*office.filled.ids[:3], "TSK-1000000003"):
        await office.bench.desk.tickets.get(office.agent, ref)
    await office.bench.desk.tickets.get(office.user, office.filled.ids[0])


async def _open_and_change(office: Office) -> None:
    tickets = office.bench.desk.tickets
    ticket = await tickets.create(office.user, NewTicket("The printer is on fire"))
    await tickets.update(office.agent, ticket.key, {"status": "triaged"})
    await tickets.comment(office.agent, ticket.key, "We are on our way.", internal=False)
    await tickets.delete(office.agent, ticket.key)


async def _around(office: Office) -> None:
    tickets, id = office.bench.desk.tickets, office.filled.ids[0]
    await tickets.history(office.agent, id, PAGE)
    await tickets.comments(office.agent, id, PAGE)
    await office.bench.desk.attachments.list(office.agent, id, PAGE)


async def _near(office: Office) -> None:
    ids = [UUID(id) for id in office.filled.ids]
    async with office.db.connection() as conn:
        assert await embeddings.nearness(conn, "m", ids[0], ids[1:50])


ASKED: dict[str, Ask] = {
    "read": _read,
    "open, change, comment and delete": _open_and_change,
    "history, comments and files of a ticket": _around,
    "all": _list(),
    "all, counted from the end": _list("created_at"),
    "open ones": _list(status=("open",)),
    "of a department": _list(status=("open",), department="Department 4"),
    "with a tag": _list(tag=("tag6",)),
    **{f"by {name}": _list(f"-{name}") for name in matching.SORTS},
    "own": _list(own=True),
    "own open ones": _list(own=True, status=("open",)),
    "a frequent word": lambda office: office.search("printer"),
    "a word": lambda office: office.search("diskerror"),
    "a rare word": lambda office: office.search("serial77"),
    "two words": lambda office: office.search("diskerror serial77"),
    "the beginning of a word": lambda office: office.search("diskerr"),
    "the beginning of a key": lambda office: office.search("TSK-10000000"),
    "best matches": lambda office: office.search("vpnslow", sort="relevance"),
    "dashboard": lambda office: office.bench.desk.reports.dashboard(office.agent),
    "the journal from its end": lambda office: office.bench.desk.journal.list(
        office.agent, events.Wanted(), PAGE, newest_first=True
    ),
    "what a stream resumes with": _in_database(lambda conn: events.after(conn, 1000, limit=100)),
    "numbers for new events": _in_database(events.number_batch),
    "lag of the journal": _in_database(events.lag_seconds),
    "files to scan": _in_database(
        lambda conn: attachments.claim(
            conn, limit=1, lease_seconds=60, grace_seconds=1, reserved=True
        )
    ),
    "backlog of files": _in_database(attachments.backlog),
    "oldest jobs": _in_database(jobs.oldest),
    "failed jobs": _in_database(jobs.count_failed),
    "jobs to do": lambda office: office.bench.desk.jobs.claim({}),
    "how often suggestions were right": _in_database(
        lambda conn: suggestions.precision(conn, days=3)
    ),
    "how often those of one kind were": _in_database(
        lambda conn: suggestions.kept(
            conn, suggestions.SuggestionKind.CATEGORY, "network", "rules", days=3
        )
    ),
    "suggestions of a ticket": lambda office: office.bench.desk.suggestions.list(
        office.agent, office.filled.ids[0], PAGE, state=None
    ),
    "texts without vectors": _in_database(lambda conn: embeddings.stale(conn, "m", limit=32)),
    "how near vectors are": _near,
    "how others were solved": _in_database(
        lambda conn: resolutions.find(conn, ["serial77", "diskerror"], scope=None, most=20)
    ),
    "how a frequent problem was solved": _in_database(
        lambda conn: resolutions.find(conn, ["printer"], scope=None, most=20)
    ),
    "similar tickets": lambda office: office.bench.desk.similar.of(
        office.agent, office.filled.ids[1], limit=5
    ),
    "what a ticket repeats": lambda office: office.bench.desk.similar.of(
        office.agent, office.filled.ids[1], limit=50, earlier=True
    ),
    "waiting mail": _in_database(emails.waiting),
}


@asynccontextmanager
async def _office(url: str, tickets: int) -> AsyncIterator[Office]:
    async with bench_on(url, ITDESK_DATABASE__POOL_MAX="2") as bench:
        agent, user = await bench.person(Role.ADMIN), await bench.person()
        assert agent.user_id is not None
        filled = await fill(url, tickets, agent.user_id)
        conn = await asyncpg.connect(url)
        try:
            whose = "UPDATE tickets SET reporter_id = $1 WHERE number % 20 = 0"
            await conn.execute(whose, user.user_id)
            filled.ids.insert(0, str(await conn.fetchval(_OWN, user.user_id)))
            for statement in _REST.split(";")[:-1]:
                await conn.execute(statement)
        finally:
            await conn.close()
        yield Office(bench, agent, user, filled)


async def _walked(office: Office) -> dict[str, int]:
    """Return how many rows of each large table were read by walking over all of it, until now.

    And how many suggestions and tickets were by any index.
    """
    reads = office.bench.desk.reads
    for db in (office.db, reads._db, reads._for_words):
        async with AsyncExitStack() as stack:
            lent = [await stack.enter_async_context(db.connection()) for _ in range(2)]
            for conn in lent:
                await conn.execute("SELECT pg_stat_force_next_flush()")
    conn = await asyncpg.connect(office.db.url)
    try:
        rows = await conn.fetch(
            "SELECT relname, seq_tup_read, idx_tup_fetch FROM pg_stat_user_tables"
            " WHERE relname = ANY ($1)",
            LARGE,
        )
    finally:
        await conn.close()
    assert len(rows) == len(LARGE)
    found = {row["relname"]: row["seq_tup_read"] for row in rows}
    for name in (FETCHED, LOOKED_AT):
        table = name.partition(",")[0]
        [found[name]] = [row["idx_tup_fetch"] for row in rows if row["relname"] == table]
    return found


def _frequent(*, own: bool = False, **wanted: Any) -> Ask:
    async def asked(office: Office) -> None:
        caller = office.user if own else office.agent
        # Often enough for PostgreSQL to settle on a plan.
        for _ in range(7):
            await office.bench.desk.tickets.list(
                caller, Filter(q="printer", **wanted), sort="-created_at", window=PAGE
            )

    return asked


LITTLE = {
    "in one's own": _frequent(own=True),
    "in a department": _frequent(department="Department 4"),
}


@pytest.mark.parametrize("tickets", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_what_is_asked_all_day_walks_over_no_whole_table(
    pg_server: Server, tickets: int
) -> None:
    """T6: at 100,000 tickets, and as many comments, events, jobs and mails."""
    url = await pg_server.create()
    try:
        async with _office(url, tickets) as office:
            walked = {}
            for name, ask in ASKED.items():
                before = await _walked(office)
                await ask(office)
                after = await _walked(office)
                more = {table: after[table] - before[table] for table in after}
                few = {FETCHED: MOST_FETCHED, LOOKED_AT: tickets}
                walked[name] = {
                    table: rows for table, rows in more.items() if rows > few.get(table, 0)
                }
            assert {name: tables for name, tables in walked.items() if tables} == {}
            for name, ask in LITTLE.items():
                before = await _walked(office)
                await ask(office)
                looked_at = (await _walked(office))[LOOKED_AT] - before[LOOKED_AT]
                assert looked_at <= 7 * tickets // 8, name
            # And what does walk is seen.
            before = await _walked(office)
            await office.bench.sql("SELECT count(*) FROM tickets WHERE description LIKE '%again'")
            assert (await _walked(office))["tickets"] - before["tickets"] >= tickets
    finally:
        await pg_server.drop(url)
