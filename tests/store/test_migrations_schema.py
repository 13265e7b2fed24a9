"""What the tables themselves promise, whoever writes to them."""

import json
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio

from itdesk.store.migrations import Migrations
from tests.support.postgres import MIGRATIONS, Server

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

TICKET = """INSERT INTO tickets (key, project_id, title, description, tags)
    SELECT $1, id, $2, $3, $4 FROM projects WHERE key = 'TSK' RETURNING id"""


@pytest_asyncio.fixture
async def db(database_url: str) -> AsyncIterator[Connection]:
    conn = await asyncpg.connect(database_url)
    yield conn
    await conn.close()


async def ticket(
    db: Connection,
    key: str = "TSK-1001",
    title: str = "Printer",
    description: str = "",
    tags: tuple[str, ...] = (),
) -> object:
    return await db.fetchval(TICKET, key, title, description, list(tags))


async def comment(db: Connection, ticket_id: object, body: str, internal: bool = False) -> object:
    return await db.fetchval(
        "INSERT INTO ticket_comments (ticket_id, body, internal) VALUES ($1, $2, $3) RETURNING id",
        ticket_id,
        body,
        internal,
    )


async def found(db: Connection, words: str, vector: str = "search") -> list[str]:
    query = {
        "search": "SELECT key FROM tickets WHERE search @@ q ORDER BY key",
        "internal": "SELECT key FROM tickets WHERE search_internal @@ q ORDER BY key",
    }[vector].replace(" @@ q", " @@ websearch_to_tsquery('english', $1)")
    return [row[0] for row in await db.fetch(query, words)]


PROMISED = {
    "users": """id email password_hash name role department avatar_url google_id is_active
        is_verified auth_epoch created_at updated_at""",
    "refresh_tokens": """id user_id family_id token_hash generation used_at expires_at revoked_at
        replaced_by user_agent ip created_at""",
    "verification_tokens": "token_hash user_id code_hash attempts expires_at used_at created_at",
    "password_reset_tokens": "token_hash user_id expires_at used_at created_at",
    "projects": "id key name description source next_number created_by created_at updated_at",
    "tickets": """id number key project_id title description status priority category department
        tags reporter_id reporter_name resolution predicted_priority predicted_category
        ai_recommendations first_action_at closed_at external_source external_id external_assignee
        external_updated_at last_synced_at version search created_at updated_at""",
    "ticket_assignees": "ticket_id user_id position assigned_at",
    "events": """id seq ticket_id ticket_version type actor_id actor_name source changes data
        request_id cause_id created_at""",
    "ticket_comments": """id ticket_id user_id author_name body internal external_source
        external_comment_id external_updated_at created_at updated_at""",
    "attachments": """id ticket_id uploaded_by object_key original_filename mime size sha256
        storage storage_version scanned_status scan_reason scan_engine scan_signature scan_attempts
        scan_epoch scan_lease_until scanned_at uploaded_at created_at""",
    "workflow_rules": """id name description trigger conditions actions active position created_at
        updated_at""",
    "workflow_runs": "id rule_id ticket_id event_id matched why result error created_at",
    "daily_stats": """id date total open triaged in_progress blocked closed critical_count
        high_count medium_count low_count created_at updated_at""",
    "recommendations": """id type title description related_tickets confidence impact
        created_at""",
    "emails": """id to_address subject body_text body_html kind status attempts last_error
        next_attempt_at message_id created_at sent_at""",
    "jira_sync_state": """project_key last_synced_at last_cursor last_error last_run_at
        updated_at""",
    "jira_accounts": "user_id account_id email synced_at",
    "jira_deliveries": "delivery_id received_at",
    "jobs": """id type args lane dedupe_key state attempts epoch owner lease_until run_at
        last_error event_id created_at finished_at""",
    "periodic_runs": "name due_at owner started_at finished_at error",
    "idempotency_keys": "principal route key request_hash state status response created_at",
}


@pytest.mark.parametrize("table", PROMISED)
async def test_every_promised_column_is_there(db: Connection, table: str) -> None:
    """S0-16, S2-35, S2-36, S2-38, S3-50."""
    rows = await db.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = $1", table
    )
    assert set(PROMISED[table].split()) <= {row[0] for row in rows}


async def test_ids_and_times_have_the_same_types_everywhere(db: Connection) -> None:
    rows = await db.fetch(
        """SELECT table_name || '.' || column_name AS name, data_type, column_default
           FROM information_schema.columns
           WHERE table_schema = 'public' AND table_name NOT LIKE '%yoyo%'"""
    )
    ids = [row for row in rows if row["name"].endswith(".id")]
    assert {(r["data_type"], r["column_default"]) for r in ids} == {("uuid", "gen_random_uuid()")}
    times = [row for row in rows if row["name"].endswith(("_at", "_until"))]
    assert {row["data_type"] for row in times} == {"timestamp with time zone"}
    assert not [row["name"] for row in rows if row["data_type"] == "character varying"]


async def test_no_extension_is_needed(db: Connection) -> None:
    assert await db.fetchval("SELECT array_agg(extname::text) FROM pg_extension") == ["plpgsql"]


async def test_the_default_project_exists_from_the_first_migration_on(db: Connection) -> None:
    rows = await db.fetch("SELECT key, source, next_number FROM projects")
    assert [tuple(row) for row in rows] == [("TSK", "local", 1001)]


async def test_one_account_per_address_whatever_the_case(db: Connection) -> None:
    """S2-35."""
    await db.execute("INSERT INTO users (email, name) VALUES ('Ann@Example.com', 'Ann')")
    with pytest.raises(asyncpg.UniqueViolationError, match="ux_users_email"):
        await db.execute("INSERT INTO users (email, name) VALUES ('ann@example.COM', 'Ann')")


ATTACHMENT = """INSERT INTO attachments
    (ticket_id, object_key, original_filename, size, scanned_status, sha256, scan_engine,
     scanned_at) VALUES ($1, $2, 'a.txt', $3, $4, $5, 'clamav', now())"""


async def test_scanned_status_is_one_of_four(db: Connection) -> None:
    """S0-19."""
    owner = await ticket(db)
    for status in ("PENDING", "CLEAN", "INFECTED", "FAILED"):
        await db.execute(ATTACHMENT, owner, status, 1, status, "00")
    with pytest.raises(asyncpg.CheckViolationError, match="ck_attachments_scanned_status_vals"):
        await db.execute(ATTACHMENT, owner, "x", 1, "WEIRD", "00")
    await db.execute(
        """INSERT INTO attachments (ticket_id, object_key, original_filename, size)
           SELECT id, 'plain', 'b.txt', 1 FROM tickets"""
    )
    query = "SELECT scanned_status FROM attachments WHERE object_key = 'plain'"
    assert await db.fetchval(query) == "PENDING"


async def test_clean_needs_its_proof(db: Connection) -> None:
    owner = await ticket(db)
    with pytest.raises(asyncpg.CheckViolationError, match="clean_is_proved"):
        await db.execute(ATTACHMENT, owner, "x", 1, "CLEAN", None)
    with pytest.raises(asyncpg.CheckViolationError, match="ck_attachments_size"):
        await db.execute(ATTACHMENT, owner, "x", 0, "PENDING", None)


async def test_attachment_indexes_have_the_promised_names(db: Connection) -> None:
    """S0-20."""
    rows = await db.fetch("SELECT indexname FROM pg_indexes WHERE tablename = 'attachments'")
    promised = {
        "idx_attachments_ticket_id",
        "ux_attachments_object_key",
        "idx_attachments_scanned_status",
    }
    assert promised <= {row[0] for row in rows}
    owner = await ticket(db)
    await db.execute(ATTACHMENT, owner, "same", 1, "PENDING", None)
    with pytest.raises(asyncpg.UniqueViolationError, match="ux_attachments_object_key"):
        await db.execute(ATTACHMENT, owner, "same", 1, "PENDING", None)


async def test_what_goes_with_a_ticket_and_what_stays(db: Connection) -> None:
    """S0-16, S2-29: files, comments, assignees cascade; the journal is the service's to erase."""
    owner = await ticket(db)
    user = await db.fetchval("INSERT INTO users (email, name) VALUES ('a@b', 'A') RETURNING id")
    await db.execute(ATTACHMENT, owner, "x", 1, "PENDING", None)
    await comment(db, owner, "hello")
    await db.execute("INSERT INTO ticket_assignees VALUES ($1, $2)", owner, user)
    await db.execute(
        "INSERT INTO events (ticket_id, ticket_version, type) VALUES ($1, 1, 'ticket.created')",
        owner,
    )
    await db.execute("DELETE FROM tickets")
    for table in ("attachments", "ticket_comments", "ticket_assignees"):
        assert await db.fetchval(f"SELECT count(*) FROM {table}") == 0  # noqa: S608
    assert await db.fetchval("SELECT count(*) FROM events") == 1


async def test_a_deleted_user_leaves_tickets_comments_and_files(db: Connection) -> None:
    """S3-21."""
    owner = await ticket(db)
    await db.execute("INSERT INTO users (email, name) VALUES ('a@b', 'A')")
    await db.execute(
        """UPDATE tickets SET reporter_id = users.id, reporter_name = users.name FROM users"""
    )
    await comment(db, owner, "hello")
    await db.execute(ATTACHMENT, owner, "x", 1, "PENDING", None)
    await db.execute("UPDATE ticket_comments SET user_id = users.id FROM users")
    await db.execute("UPDATE attachments SET uploaded_by = users.id FROM users")
    await db.execute("INSERT INTO ticket_assignees SELECT tickets.id, users.id FROM tickets, users")
    await db.execute("DELETE FROM users")
    row = await db.fetchrow(
        """SELECT reporter_id, reporter_name, user_id, uploaded_by,
                  (SELECT count(*) FROM ticket_assignees)
           FROM tickets, ticket_comments, attachments"""
    )
    assert row is not None and tuple(row) == (None, "A", None, None, 0)


async def test_a_project_with_tickets_cannot_be_deleted(db: Connection) -> None:
    """S3-33."""
    await ticket(db)
    with pytest.raises(asyncpg.PostgresError, match="fk_tickets_project_id"):
        await db.execute("DELETE FROM projects")


async def test_rank_columns_follow_the_words(db: Connection) -> None:
    await ticket(db)
    for column, rank, words in (
        ("status", "status_rank", ("open", "triaged", "in_progress", "blocked", "closed")),
        ("priority", "priority_rank", ("low", "medium", "high", "critical")),
    ):
        ranks = [
            await db.fetchval(f"UPDATE tickets SET {column} = $1 RETURNING {rank}", word)  # noqa: S608
            for word in words
        ]
        assert ranks == sorted(set(ranks))


SORTS = ("created_at", "updated_at", "priority_rank", "status_rank", "number")
FILTERS = ("status", "priority", "category", "department", "project_id", "reporter_id")


async def test_every_sort_and_filter_of_the_list_has_its_index(db: Connection) -> None:
    """R26: keyset pages by (column, id); filters in the default order; nothing is sorted."""
    await db.execute("SET enable_seqscan = off")
    await db.execute("SET enable_bitmapscan = off")
    queries = [
        f"SELECT * FROM tickets WHERE ({s}, id) < ($1, $2) ORDER BY {s} DESC, id DESC LIMIT 50"  # noqa: S608
        for s in SORTS
        if s != "number"
    ]
    queries += ["SELECT * FROM tickets WHERE number < $1 ORDER BY number DESC LIMIT 50"]
    queries += [
        f"SELECT * FROM tickets WHERE {f} = $1 ORDER BY created_at DESC, id DESC LIMIT 50"  # noqa: S608
        for f in FILTERS
    ]
    queries += [
        "SELECT * FROM tickets WHERE status <> 'closed' ORDER BY created_at DESC, id DESC LIMIT 50"
    ]
    for query in queries:
        await db.execute("SET plan_cache_mode = force_generic_plan")
        await db.execute(f"PREPARE p AS {query}")
        arguments = ", ".join(["NULL"] * (("$1" in query) + ("$2" in query)))
        execute = f"EXECUTE p({arguments})" if arguments else "EXECUTE p"
        plan = "\n".join(row[0] for row in await db.fetch(f"EXPLAIN {execute}"))
        await db.execute("DEALLOCATE p")
        assert "Index" in plan and "Sort" not in plan and "Seq Scan" not in plan, (query, plan)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("tags @> '{a}'", "ix_tickets_tags"),
        ("search @@ websearch_to_tsquery('english', 'a printer')", "ix_tickets_search"),
        ("search_internal @@ to_tsquery('english', 'x')", "ix_tickets_search_internal"),
    ],
)
async def test_tags_and_words_are_looked_up(db: Connection, query: str, index: str) -> None:
    await db.execute("SET enable_seqscan = off")
    plan = await db.fetch(f"EXPLAIN SELECT key FROM tickets WHERE {query}")  # noqa: S608
    assert any(f"on {index} " in row[0] for row in plan)


# The journal.

EVENT = """INSERT INTO events (ticket_id, ticket_version, type)
    VALUES ('00000000-0000-0000-0000-000000000001', $1, 'ticket.updated') RETURNING id"""


async def test_the_journal_is_append_only(db: Connection) -> None:
    event = await db.fetchval(EVENT, 1)
    columns = await db.fetch(
        """SELECT column_name FROM information_schema.columns
           WHERE table_name = 'events' AND column_name <> 'seq'"""
    )
    assert len(columns) == 12
    for (column,) in columns:
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await db.execute(f"UPDATE events SET {column} = {column}")  # noqa: S608
    for statement in ("DELETE FROM events", "TRUNCATE events"):
        with pytest.raises(asyncpg.RestrictViolationError, match="append-only"):
            await db.execute(statement)
    await db.execute("UPDATE events SET seq = 7 WHERE id = $1", event)
    with pytest.raises(asyncpg.RestrictViolationError):
        await db.execute("UPDATE events SET seq = 8")
    assert await db.fetchval("SELECT seq FROM events") == 7


async def test_a_transaction_that_says_so_may_erase_events(db: Connection) -> None:
    """S2-29: the history of a deleted ticket goes with it."""
    await db.fetchval(EVENT, 1)
    async with db.transaction():
        await db.execute("SET LOCAL itdesk.erase = 'on'")
        assert await db.execute("DELETE FROM events") == "DELETE 1"
        with pytest.raises(asyncpg.RestrictViolationError):
            async with db.transaction():
                await db.fetchval(EVENT, 2)
                await db.execute("UPDATE events SET type = 'forged'")
    await db.fetchval(EVENT, 3)
    with pytest.raises(asyncpg.RestrictViolationError):
        await db.execute("DELETE FROM events")


async def test_one_version_is_one_event(db: Connection) -> None:
    await db.fetchval(EVENT, 1)
    with pytest.raises(asyncpg.UniqueViolationError, match="ux_events_ticket_version"):
        await db.fetchval(EVENT, 1)
    await db.fetchval(EVENT, None)
    await db.fetchval(EVENT, None)


async def test_a_number_is_given_once(db: Connection) -> None:
    await db.fetchval(EVENT, 1)
    await db.fetchval(EVENT, 2)
    with pytest.raises(asyncpg.UniqueViolationError, match="ux_events_seq"):
        await db.execute("UPDATE events SET seq = 1")


async def test_the_journal_has_one_head(db: Connection) -> None:
    rows = await db.fetch("SELECT epoch, last_seq FROM journal_head")
    assert [row["last_seq"] for row in rows] == [0]
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.execute("INSERT INTO journal_head DEFAULT VALUES")


async def test_one_unfinished_job_per_dedupe_key(db: Connection) -> None:
    job = "INSERT INTO jobs (type, dedupe_key) VALUES ('t', 'k')"
    await db.execute(job)
    with pytest.raises(asyncpg.UniqueViolationError, match="ux_jobs_dedupe_key"):
        await db.execute(job)
    await db.execute("UPDATE jobs SET state = 'done', finished_at = now()")
    await db.execute(job)


async def test_a_restored_dump_is_a_working_database(
    db: Connection, pg_server: Server, database_url: str
) -> None:
    """S2-59: triggers, identities and generated columns do not stand in the way of a restore."""
    one = await ticket(db)
    await comment(db, one, "toner")
    await db.execute("UPDATE events SET seq = 1 WHERE id = $1", await db.fetchval(EVENT, 1))
    async with pg_server.database(migrated=False) as restored_url:
        await pg_server.copy(database_url, restored_url)
        assert (await Migrations(restored_url, directory=MIGRATIONS).verify()).equal
        restored = await asyncpg.connect(restored_url)
        try:
            assert await found(restored, "toner") == ["TSK-1001"]
            assert await restored.fetchval("SELECT seq FROM events") == 1
            await ticket(restored, "TSK-1002")
            assert await restored.fetchval("SELECT max(number) FROM tickets") == 2
        finally:
            await restored.close()


# Search.


async def test_a_ticket_is_found_by_all_its_words(db: Connection) -> None:
    one = await ticket(db, "TSK-1001", "Printers are jammed", "smoke and NOISE", ("urgent-floor",))
    await ticket(db, "TSK-1002", "Something else")
    await comment(db, one, "we bought toner")
    for words in (
        "printer",
        "jamming",
        "smoke",
        "noises",
        "urgent-floor",
        "floor",
        "toner",
        '"are jammed"',
        "TSK-1001",
        "tsk-1001",
        "1001",
        "printer -something",
        "printer TSK-1001",
    ):
        assert await found(db, words) == ["TSK-1001"], words
    for words in ("printer else", "TSK-100", "-printer -else"):
        assert await found(db, words) == [], words


async def test_the_weights_put_the_title_first(db: Connection) -> None:
    """Title and key A, tags B, description C, comments D."""
    low = await ticket(db, "TSK-1", "none", "none")
    await ticket(db, "TSK-2", "none", "wombat")
    await ticket(db, "TSK-3", "none", "none", ("wombat",))
    await ticket(db, "TSK-4", "wombat", "none")
    await comment(db, low, "wombat")
    rows = await db.fetch(
        """SELECT key FROM tickets, websearch_to_tsquery('english', 'wombat') AS q
           WHERE search @@ q ORDER BY ts_rank(search, q) DESC"""
    )
    assert [row[0] for row in rows] == ["TSK-4", "TSK-3", "TSK-2", "TSK-1"]


async def test_internal_comments_are_kept_apart(db: Connection) -> None:
    """X16: a word of an internal comment must not betray anything to a user's search."""
    one = await ticket(db)
    internal = await comment(db, one, "suspected wombat", internal=True)
    assert (await found(db, "wombat"), await found(db, "wombat", "internal")) == ([], ["TSK-1001"])
    await db.execute("UPDATE ticket_comments SET internal = false WHERE id = $1", internal)
    assert (await found(db, "wombat"), await found(db, "wombat", "internal")) == (["TSK-1001"], [])


async def test_search_follows_every_change(db: Connection) -> None:
    one = await ticket(db, title="alpha", description="beta", tags=("gamma",))
    two = await ticket(db, "TSK-1002", "other")
    said = await comment(db, one, "delta")
    for statement, gone, new in (
        ("UPDATE tickets SET title = 'epsilon' WHERE key = 'TSK-1001'", "alpha", "epsilon"),
        ("UPDATE tickets SET description = 'zeta' WHERE key = 'TSK-1001'", "beta", "zeta"),
        ("UPDATE tickets SET tags = '{eta}' WHERE key = 'TSK-1001'", "gamma", "eta"),
        ("UPDATE ticket_comments SET body = 'theta'", "delta", "theta"),
    ):
        await db.execute(statement)
        assert (await found(db, gone), await found(db, new)) == ([], ["TSK-1001"]), statement
    await db.execute("UPDATE ticket_comments SET ticket_id = $1 WHERE id = $2", two, said)
    assert await found(db, "theta") == ["TSK-1002"]
    await db.execute("DELETE FROM ticket_comments")
    assert await found(db, "theta") == []


async def test_search_cannot_be_forged_and_costs_nothing_when_no_word_changed(
    db: Connection,
) -> None:
    one = await ticket(db)
    await comment(db, one, "toner")
    before = await db.fetchval("SELECT search::text FROM tickets")
    await db.execute("UPDATE tickets SET search = to_tsvector('forged')")
    await db.execute("UPDATE tickets SET title = title, status = 'triaged', version = 2")
    assert await db.fetchval("SELECT search::text FROM tickets") == before


async def test_comments_do_not_touch_version_or_times(db: Connection) -> None:
    """The service owns them: one accepted write raises the version by exactly one."""
    one = await ticket(db)
    query = "SELECT version, updated_at FROM tickets"
    before = await db.fetchrow(query)
    await comment(db, one, "toner")
    assert await db.fetchrow(query) == before


@pytest.mark.parametrize(
    "word",
    [
        "{:06x}-{:06x} ",
        "http://a{:05x}.example.com/b{:05x} ",
        "\U00010428{:03x}\U00010429{:03x}-x ",
    ],
    ids=["hyphens", "urls", "four-byte"],
)
async def test_no_text_is_too_long_to_be_searched(db: Connection, word: str) -> None:
    """A tsvector over 1 MiB is an error, and would refuse the ticket."""
    size = 60_000
    text = "".join(word.format(n, n + size) for n in range(size))
    one = await ticket(db, title="x" * 255, description=text)
    await comment(db, one, text)
    await comment(db, one, text, internal=True)
    await comment(db, one, "newest wombat")
    assert await found(db, "wombat") == ["TSK-1001"]
    solid = "\U00010428" * 200_000
    await db.execute("UPDATE tickets SET description = $1", solid)
    assert await found(db, "wombat") == ["TSK-1001"]


async def test_a_ticket_with_very_many_comments_stays_cheap_and_keeps_the_newest(
    db: Connection,
) -> None:
    one = await ticket(db)
    await db.execute("ALTER TABLE ticket_comments DISABLE TRIGGER USER")
    await db.execute(
        """INSERT INTO ticket_comments (ticket_id, body, created_at)
           SELECT $1, 'word' || n, now() - n * interval '1 hour' FROM generate_series(1, 5000) n""",
        one,
    )
    await db.execute("ALTER TABLE ticket_comments ENABLE TRIGGER USER")
    await comment(db, one, "wombat")
    assert await found(db, "wombat word1") == ["TSK-1001"]
    assert await found(db, "word5000") == []
    plan = json.loads(
        await db.fetchval(
            """EXPLAIN (FORMAT json) SELECT body FROM ticket_comments WHERE ticket_id = $1
               ORDER BY created_at DESC, id DESC LIMIT 200""".replace("$1", f"'{one}'")
        )
    )
    assert "ix_ticket_comments_ticket_id" in json.dumps(plan)
