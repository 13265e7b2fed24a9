"""The migration runner: what an operator's commands do to a database, and refuse to do (S1-00)."""

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from yoyo.backends.base import DatabaseBackend

from itdesk.errors import SchemaError, Unavailable
from itdesk.runtime.clock import Clock
from itdesk.store import head
from itdesk.store.migrations import (
    Migrations,
    SchemaBusy,
    SchemaDrift,
    SchemaTooNew,
    Stamp,
    plain_url,
    shipped,
)
from tests.support.postgres import MIGRATIONS, Server

KNOWN = sorted(p.stem for p in MIGRATIONS.glob("*.sql") if ".rollback" not in p.name)
HEAD, COUNT = KNOWN[-1], len(KNOWN)

FORGET_HEAD = f"DELETE FROM _yoyo_migration WHERE migration_id = '{HEAD}'"  # noqa: S608


def migrations(url: str, directory: Path = MIGRATIONS, **options: float) -> Migrations:
    return Migrations(url, directory=directory, **options)


@asynccontextmanager
async def connected(url: str) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    conn = await asyncpg.connect(url)
    try:
        yield conn
    finally:
        await conn.close()


async def execute(url: str, statement: str) -> None:
    async with connected(url) as conn:
        await conn.execute(statement)


async def value(url: str, query: str) -> object:
    async with connected(url) as conn:
        return await conn.fetchval(query)


async def tables(url: str) -> set[str]:
    async with connected(url) as conn:
        rows = await conn.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {row[0] for row in rows}


@pytest.fixture
def more_migrations(tmp_path: Path) -> Path:
    """A copy of the migrations to which a test may add its own."""
    directory = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, directory)
    return directory


async def test_migrate_creates_every_table_and_a_second_run_changes_nothing(
    pg_server: Server, empty_database_url: str
) -> None:
    """S0-06, S0-13: three runs in a row, schema dump identical."""
    url = empty_database_url
    first = await migrations(url).migrate()
    assert first.applied[-1] == HEAD and not first.stamped
    expected = """users refresh_tokens verification_tokens password_reset_tokens projects tickets
        ticket_assignees events ticket_comments attachments workflow_rules workflow_runs
        daily_stats recommendations emails jira_sync_state jira_accounts jira_deliveries jobs
        periodic_runs idempotency_keys _yoyo_migration"""
    assert set(expected.split()) <= await tables(url)
    dump = await pg_server.dump(url)
    for _ in range(2):
        again = await migrations(url).migrate()
        assert (again.applied, again.stamped) == ((), ())
        assert await pg_server.dump(url) == dump


async def test_every_statement_may_be_run_again(database_url: str, pg_server: Server) -> None:
    """S0-13: even if every mark is lost, applying all over again changes no structure or data."""
    dump = await pg_server.dump(database_url)
    await execute(database_url, "UPDATE projects SET next_number = 1234 WHERE key = 'TSK'")
    await execute(database_url, "DELETE FROM _yoyo_migration")
    assert (await migrations(database_url).migrate()).applied[-1] == HEAD
    assert await pg_server.dump(database_url) == dump
    assert await value(database_url, "SELECT next_number FROM projects") == 1234


async def test_wait_times_out_while_the_server_is_down_and_returns_when_it_comes(
    own_pg_server: Server,
) -> None:
    """S0-09."""
    loop = asyncio.get_running_loop()
    await own_pg_server.stop()
    waiting = migrations(own_pg_server.url())
    start = loop.time()
    problem = await waiting.wait(0.5)
    assert problem and loop.time() - start < 1.5
    async with asyncio.TaskGroup() as group:
        waiter = group.create_task(waiting.wait(60))
        await own_pg_server.start()
    assert waiter.result() is None


async def test_wait_keeps_its_deadline_when_the_server_accepts_and_says_nothing() -> None:
    """S0-09: a frozen server, or a firewall that swallows everything."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = loop.time()
        url = f"postgresql://x@127.0.0.1:{mute.getsockname()[1]}/x"
        assert await migrations(url).wait(0.4)
        assert loop.time() - start < 1.4


async def test_a_lost_version_table_is_stamped_and_data_stay(
    pg_server: Server, database_url: str
) -> None:
    """S0-10: drop T19 only (yoyo's own log and version tables stay), run migrate."""
    dump = await pg_server.dump(database_url)
    await execute(database_url, "INSERT INTO users (email, name) VALUES ('a@b.c', 'A')")
    await execute(database_url, "DROP TABLE _yoyo_migration")
    done = await migrations(database_url).migrate()
    assert done.stamped[-1] == HEAD and not done.applied
    assert (await migrations(database_url).verify()).equal
    assert await value(database_url, "SELECT count(*) FROM users") == 1
    assert await pg_server.dump(database_url) == dump


@pytest.mark.parametrize("lost", ["_yoyo_version", "_yoyo_log", "yoyo_lock"])
async def test_any_lost_table_of_the_tool_is_made_again(database_url: str, lost: str) -> None:
    """S0-10."""
    await execute(database_url, f"DROP TABLE {lost}, _yoyo_migration")
    await migrations(database_url).migrate()
    assert lost in await tables(database_url)
    assert (await migrations(database_url).verify()).equal


async def test_an_older_unversioned_schema_is_stamped_where_it_stands_then_upgraded(
    pg_server: Server, database_url: str
) -> None:
    """S0-10: "existing schema without version table is stamped, otherwise upgraded"."""
    dump = await pg_server.dump(database_url)
    await migrations(database_url).downgrade("0004")
    await execute(database_url, "DROP TABLE _yoyo_migration")
    done = await migrations(database_url).migrate()
    assert done.stamped[-1] == "0004-comments-and-search"
    assert (done.applied[0], done.applied[-1]) == ("0005-attachments", HEAD)
    assert await pg_server.dump(database_url) == dump


async def test_verify_tells_current_and_expected_head(database_url: str) -> None:
    """S0-11."""
    verified = await migrations(database_url).verify()
    assert verified.equal
    assert (verified.status.current, verified.status.expected) == (HEAD, HEAD)
    await execute(database_url, FORGET_HEAD)
    verified = await migrations(database_url).verify()
    assert not verified.equal
    assert (verified.status.current, verified.status.pending) == (KNOWN[-2], (HEAD,))
    assert verified.differences == ()


async def test_verify_sees_what_the_version_table_does_not(database_url: str) -> None:
    """S0-11: at head by its marks, but a column is gone."""
    await execute(database_url, "ALTER TABLE emails DROP COLUMN sent_at")
    verified = await migrations(database_url).verify()
    assert verified.status.at_head and not verified.equal
    assert verified.differences == ("column emails.sent_at is missing",)


async def test_verify_leaves_an_empty_database_empty(empty_database_url: str) -> None:
    assert not (await migrations(empty_database_url).verify()).equal
    assert await tables(empty_database_url) == set()


async def test_status_is_one_select(database_url: str, empty_database_url: str) -> None:
    async with connected(database_url) as conn:
        queries: list[str] = []
        conn.add_query_logger(lambda record: queries.append(record.query))
        status = await migrations(database_url).status(conn)
    assert status.at_head and len(queries) == 1
    status.require()
    async with connected(empty_database_url) as conn:
        status = await migrations(empty_database_url).status(conn)
    assert (status.current, len(status.pending)) == (None, COUNT)
    with pytest.raises(SchemaError, match="itdesk db migrate"):
        status.require()


async def test_a_newer_unknown_migration_is_refused(database_url: str) -> None:
    await execute(
        database_url, "INSERT INTO _yoyo_migration VALUES ('x', '9999-from-the-future', now())"
    )
    async with connected(database_url) as conn:
        status = await migrations(database_url).status(conn)
    assert status.unknown == ("9999-from-the-future",) and not status.at_head
    for refused in (migrations(database_url).migrate(), migrations(database_url).downgrade("base")):
        with pytest.raises(SchemaTooNew, match="9999-from-the-future"):
            await refused


async def test_stamp_never_refuses_an_unversioned_schema_and_leaves_it_untouched(
    pg_server: Server, database_url: str
) -> None:
    """S0-15."""
    await execute(database_url, "DROP TABLE _yoyo_migration, _yoyo_log, _yoyo_version, yoyo_lock")
    dump = await pg_server.dump(database_url)
    with pytest.raises(SchemaDrift, match="--stamp never"):
        await migrations(database_url).migrate("never")
    assert await pg_server.dump(database_url) == dump


async def test_stamp_never_migrates_what_is_empty_or_versioned(empty_database_url: str) -> None:
    """S0-15."""
    assert len((await migrations(empty_database_url).migrate("never")).applied) == COUNT
    await migrations(empty_database_url).downgrade("0007")
    assert len((await migrations(empty_database_url).migrate("never")).applied) == COUNT - 7


async def test_stamp_only_marks_what_is_there_and_makes_nothing(
    pg_server: Server, database_url: str
) -> None:
    """S0-15: on head, on an older schema, on an empty database."""
    await execute(database_url, "DROP TABLE _yoyo_migration")
    done = await migrations(database_url).migrate("only")
    assert done.stamped[-1] == HEAD and (done.applied, done.pending) == ((), ())
    await migrations(database_url).downgrade("0006")
    await execute(database_url, "DROP TABLE _yoyo_migration")
    before = await tables(database_url)
    done = await migrations(database_url).migrate("only")
    assert done.stamped[-1] == "0006-jobs"
    assert (done.applied, done.pending[-1]) == ((), HEAD)
    assert await tables(database_url) == before | {"_yoyo_migration"}


async def test_stamp_only_has_nothing_to_stamp_in_an_empty_database(
    empty_database_url: str,
) -> None:
    """S0-15."""
    with pytest.raises(SchemaDrift, match="nothing to stamp"):
        await migrations(empty_database_url).migrate("only")
    assert await tables(empty_database_url) == set()


DRIFT = {
    "DROP TABLE jobs": "table jobs is missing",
    "ALTER TABLE tickets DROP COLUMN resolution": "column tickets.resolution is missing",
    "ALTER TABLE emails ALTER attempts TYPE bigint": (
        "column emails.attempts is 'bigint not null default 0' "
        "instead of 'integer not null default 0'"
    ),
    "ALTER TABLE users ALTER name DROP NOT NULL": "column users.name is 'text'",
    "ALTER TABLE users ADD COLUMN age int": "column users.age should not be there",
    "ALTER TABLE attachments DROP CONSTRAINT ck_attachments_size": (
        "constraint attachments.ck_attachments_size is missing"
    ),
    "DROP INDEX ux_attachments_object_key": (
        "index attachments.ux_attachments_object_key is missing"
    ),
    "DROP TRIGGER events_never_deleted ON events": (
        "trigger events.events_never_deleted is missing"
    ),
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_jobs_lane'::regclass": (
        "index jobs.ix_jobs_lane is missing"
    ),
    "ALTER TABLE events DISABLE TRIGGER events_append_only": "(disabled)",
    "CREATE OR REPLACE FUNCTION events_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "'BEGIN RETURN NEW; END'": "function events_refuse() has another body",
}


@pytest.mark.parametrize("damage", DRIFT)
async def test_a_drifted_schema_is_refused_naming_the_difference(
    pg_server: Server, database_url: str, damage: str
) -> None:
    """O-06."""
    await execute(database_url, damage)
    dump = await pg_server.dump(database_url)
    with pytest.raises(SchemaDrift) as refusal:
        await migrations(database_url).migrate()
    assert DRIFT[damage] in refusal.value.message
    assert len(refusal.value.details["differences"]) == 1
    assert await pg_server.dump(database_url) == dump


async def unchanged(url: str) -> bool:
    async with connected(url) as conn:
        return await migrations(url).unchanged(conn)


@pytest.mark.parametrize("damage", DRIFT)
async def test_a_drift_is_seen_without_a_comparison(database_url: str, damage: str) -> None:
    """O-06: so that a start at head need not compare, which takes it a quarter of a second."""
    assert await unchanged(database_url)
    await execute(database_url, damage)
    assert not await unchanged(database_url)


async def test_what_was_never_compared_is_once_and_then_known(database_url: str) -> None:
    """As after an upgrade from a version that wrote nothing down, or of PostgreSQL."""
    await execute(database_url, "COMMENT ON TABLE _yoyo_migration IS NULL")
    assert not await unchanged(database_url)
    await head.at_head(database_url, patience=5, migrate=True, clock=Clock())
    assert await unchanged(database_url)


async def test_a_mark_set_by_hand_is_not_taken_for_the_migration(
    database_url: str, more_migrations: Path
) -> None:
    """O-06: what was compared was the schema of an older version."""
    await migrations(database_url).downgrade(KNOWN[-2])
    (more_migrations / f"{HEAD}.sql").unlink()
    await migrations(database_url, more_migrations).migrate()
    async with connected(database_url) as conn:
        assert await migrations(database_url, more_migrations).unchanged(conn)
        await conn.execute("INSERT INTO _yoyo_migration VALUES ('x', $1, now())", HEAD)
        assert (await migrations(database_url).status(conn)).at_head
        assert not await migrations(database_url).unchanged(conn)


@pytest.mark.parametrize("stamp", ["auto", "only", "never"])
async def test_a_drifted_schema_is_never_stamped(
    pg_server: Server, database_url: str, stamp: Stamp
) -> None:
    """O-06, S0-10: "stamp only if every table and column of that version is really there"."""
    await execute(
        database_url, "ALTER TABLE tickets DROP COLUMN resolution; DROP TABLE _yoyo_migration"
    )
    dump = await pg_server.dump(database_url)
    with pytest.raises(SchemaDrift, match="column tickets.resolution is missing"):
        await migrations(database_url).migrate(stamp)
    assert await pg_server.dump(database_url) == dump


async def test_somebody_elses_table_of_the_same_name_is_refused(empty_database_url: str) -> None:
    """`CREATE TABLE IF NOT EXISTS` would silently take it for ours."""
    await execute(empty_database_url, "CREATE TABLE users (login text)")
    with pytest.raises(SchemaDrift, match="table users should not be there"):
        await migrations(empty_database_url).migrate()
    assert await tables(empty_database_url) == {"users"}


async def test_what_others_keep_beside_our_tables_does_not_matter(database_url: str) -> None:
    await execute(
        database_url,
        """CREATE TABLE notes_of_the_dba (id int);
           CREATE INDEX helps_the_dba ON tickets (title);
           DELETE FROM _yoyo_migration WHERE migration_id > '0005'""",
    )
    assert (await migrations(database_url).verify()).differences == ()
    assert (await migrations(database_url).migrate()).applied[-1] == HEAD


async def test_half_of_a_migration_done_by_hand_is_refused(empty_database_url: str) -> None:
    """O-06: half-migrated, with and without the version table."""
    url = empty_database_url
    first = (MIGRATIONS / "0001-accounts.sql").read_text().partition("CREATE TABLE IF NOT EXISTS v")
    await execute(url, first[0])
    with pytest.raises(SchemaDrift, match="table password_reset_tokens is missing"):
        await migrations(url).migrate()
    await execute(url, "DROP TABLE refresh_tokens, users")
    await migrations(url).migrate()
    await migrations(url).downgrade("0005")
    await execute(url, "CREATE TABLE jobs (id uuid)")
    with pytest.raises(SchemaDrift, match="table jobs should not be there"):
        await migrations(url).migrate()
    async with connected(url) as conn:
        assert (await migrations(url).status(conn)).current == "0005-attachments"


async def test_a_migration_applied_but_not_marked_heals(
    pg_server: Server, database_url: str
) -> None:
    """O-06: yoyo by hand dies between its commit and its mark."""
    dump = await pg_server.dump(database_url)
    await execute(database_url, FORGET_HEAD)
    assert (await migrations(database_url).migrate()).applied == (HEAD,)
    assert await pg_server.dump(database_url) == dump


async def test_a_failing_migration_leaves_nothing_of_itself(
    pg_server: Server, database_url: str, more_migrations: Path
) -> None:
    """The rehearsal cannot see what depends on data; the transaction takes it all back."""
    bad = more_migrations / "0900-bad.sql"
    bad.write_text(
        "CREATE TABLE IF NOT EXISTS half (id int);\n"
        "INSERT INTO half SELECT 1 / (count(*) - 1) FROM users;\n"
        "CREATE TABLE IF NOT EXISTS other_half (id int);\n"
    )
    await execute(database_url, "INSERT INTO users (email, name) VALUES ('a@b.c', 'A')")
    dump = await pg_server.dump(database_url)
    with pytest.raises(SchemaError, match="0900-bad failed and nothing of it.*division by zero"):
        await migrations(database_url, more_migrations).migrate()
    assert await pg_server.dump(database_url) == dump
    bad.write_text(bad.read_text().replace("- 1)", "+ 1)"))
    assert (await migrations(database_url, more_migrations).migrate()).applied == ("0900-bad",)


async def test_a_migration_gives_way_to_live_traffic(
    database_url: str, more_migrations: Path
) -> None:
    """O-06: it waits for a lock no longer than lock_timeout, and whoever queued behind it goes on.

    5 s is the default; the test takes less.
    """
    assert migrations(database_url)._lock_timeout == 5
    (more_migrations / "0900-more.sql").write_text(
        "ALTER TABLE tickets ADD COLUMN IF NOT EXISTS more int;"
    )
    runner = migrations(database_url, more_migrations, lock_timeout=0.2)
    async with connected(database_url) as reader:
        async with reader.transaction():
            await reader.fetch("SELECT FROM tickets")
            start = asyncio.get_running_loop().time()
            with pytest.raises(SchemaBusy, match="0900-more waited for a lock"):
                await runner.migrate()
            assert asyncio.get_running_loop().time() - start < 5
        assert (await runner.migrate()).applied == ("0900-more",)


async def test_a_dead_runners_lock_row_is_swept_away(database_url: str) -> None:
    """yoyo by itself would refuse for ever after a kill -9."""
    await execute(database_url, "INSERT INTO yoyo_lock VALUES (1, now(), 4711)")
    await execute(database_url, FORGET_HEAD)
    start = asyncio.get_running_loop().time()
    assert (await migrations(database_url).migrate()).applied == (HEAD,)
    assert asyncio.get_running_loop().time() - start < 5


async def test_whoever_does_not_get_his_turn_is_told_so(database_url: str) -> None:
    async with connected(database_url) as other:
        await other.execute("SELECT pg_advisory_lock(x'69746465736b'::bigint)")
        with pytest.raises(SchemaBusy, match="Another itdesk"):
            await migrations(database_url, turn_timeout=0.2).migrate()


async def test_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], database_url: str, more_migrations: Path
) -> None:
    """yoyo prints the rows of every SELECT: `token issue` and others own stdout."""
    (more_migrations / "0900-select.sql").write_text("SELECT key FROM projects;")
    await migrations(database_url, more_migrations).migrate()
    assert capfd.readouterr() == ("", "")


async def test_an_account_without_a_name_can_migrate(
    monkeypatch: pytest.MonkeyPatch, empty_database_url: str
) -> None:
    """A bare uid in a container: no passwd entry, no LOGNAME."""

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert len((await migrations(empty_database_url).migrate()).applied) == COUNT


EVERY_STEP = (*reversed(KNOWN[:-1]), "base")
# Those that may still change, those around 0005-attachments, and all at once.
STEPS = (*EVERY_STEP[:3], KNOWN[4], KNOWN[3], "base")


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(STEPS, id="newest, attachments, base"),
        pytest.param(EVERY_STEP, id="every", marks=pytest.mark.slow),
    ],
)
async def test_downgrade_and_migrate_give_the_same_schema_at_each_step(
    pg_server: Server, database_url: str, steps: Sequence[str]
) -> None:
    """S2-55; S0-17: 0005-attachments alone makes and removes `attachments`."""
    known = migrations(database_url).known
    dump = await pg_server.dump(database_url)
    for to in steps:
        undone = await migrations(database_url).downgrade(to)
        assert undone == tuple(reversed(known[known.index(to) + 1 if to in known else 0 :]))
        assert ("attachments" in await tables(database_url)) == (to != "base" and to >= "0005")
        await migrations(database_url).migrate()
        assert await pg_server.dump(database_url) == dump


async def test_downgrade_to_the_base_leaves_nothing_but_the_tools_tables(
    database_url: str,
) -> None:
    """S2-55."""
    await migrations(database_url).downgrade("base")
    assert {name for name in await tables(database_url) if "yoyo" not in name} == set()
    functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    assert await value(database_url, functions) == 0


async def test_a_downgrade_to_nowhere_is_refused(database_url: str) -> None:
    with pytest.raises(SchemaError, match="no migration '0042'"):
        await migrations(database_url).downgrade("0042")


def test_new_makes_a_numbered_pair_that_depends_on_the_last(more_migrations: Path) -> None:
    """S2-55: `db new "Add Colour"`."""
    made = migrations("postgresql:///x", more_migrations).new("Add Colour!")
    assert made.name == f"{int(HEAD[:4]) + 1:04}-add-colour.sql"
    assert f"-- depends: {HEAD}" in made.read_text()
    assert made.with_suffix("").with_suffix(".rollback.sql").exists()
    with pytest.raises(SchemaError):
        migrations("postgresql:///x", more_migrations).new("!!!")


def test_every_migration_has_a_rollback_and_follows_the_one_before() -> None:
    """The order of the names is the order of the dependencies, for yoyo by hand too."""
    known = migrations("postgresql:///x").known
    for before, name in zip(known, known[1:], strict=False):
        assert f"-- depends: {before}\n" in (MIGRATIONS / f"{name}.sql").read_text()
    for name in known:
        assert (MIGRATIONS / f"{name}.rollback.sql").read_text().strip()
    assert len({name[:4] for name in known}) == len(known)


@pytest.mark.parametrize(
    "driver", ["postgresql", "postgres", "postgresql+psycopg2", "postgresql+asyncpg"]
)
async def test_a_url_made_for_another_driver_will_do(driver: str, pg_server: Server) -> None:
    """S2-16, over TCP and over a unix socket."""
    for tcp in (True, False):
        url = await pg_server.create(migrated=False, tcp=tcp)
        odd = url.replace("postgresql://", f"{driver}://")
        assert await migrations(odd).wait(5) is None
        assert (await migrations(odd).migrate()).applied
        await pg_server.drop(url)


@pytest.mark.parametrize("url", ["sqlite:///x.db", "mysql://h/x", "", "h:5432"])
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(SchemaError, match="PostgreSQL 15"):
        plain_url(url)


async def test_no_message_carries_the_password(pg_server: Server) -> None:
    port = pg_server.port
    for url in (
        f"postgresql://itdesk:hunter2@127.0.0.1:{port}/nowhere",
        "postgresql://itdesk:hunter2@127.0.0.1:1/itdesk",
        "postgresql://itdesk:hunter2%zz@127.0.0.1:1/itdesk",
    ):
        with pytest.raises((Unavailable, SchemaError)) as refusal:
            await migrations(url).migrate()
        assert "hunter2" not in refusal.value.message
        assert "hunter2" not in str(await migrations(url).wait(0.2))


async def test_a_database_that_would_lose_text_is_refused(pg_server: Server) -> None:
    url = await pg_server.create(migrated=False, extra="ENCODING 'LATIN1' LOCALE 'C'")
    try:
        with pytest.raises(SchemaError, match="UTF-8"):
            await migrations(url).migrate()
    finally:
        await pg_server.drop(url)


async def test_a_user_who_may_not_rehearse_is_told_what_to_grant(
    database_url: str,
) -> None:
    async with connected(database_url) as conn:
        await conn.execute(
            """DO $$ BEGIN CREATE ROLE humble LOGIN; EXCEPTION WHEN duplicate_object THEN END $$;
               GRANT SELECT ON ALL TABLES IN SCHEMA public TO humble"""
        )
    with pytest.raises(SchemaError, match="GRANT CREATE ON DATABASE"):
        await migrations(database_url.replace("itdesk@", "humble@")).verify()


async def test_a_server_that_dies_in_the_middle_is_an_outage(
    own_pg_server: Server, more_migrations: Path
) -> None:
    (more_migrations / "0900-slow.sql").write_text(
        "SELECT pg_sleep(60) WHERE current_schema() = 'public';"
    )
    url = await own_pg_server.create()
    with pytest.raises(ExceptionGroup) as group:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(migrations(url, more_migrations).migrate())
            await own_pg_server.until(url, "pg_sleep")
            await own_pg_server.kill()
    assert group.group_contains(Unavailable, match="Nothing is half done")


def test_the_shipped_migrations_are_found_or_their_absence_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(name: str) -> Path:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.resources.files", lost)
    with pytest.raises(SchemaError, match="not installed completely"):
        shipped()


def test_yoyo_still_commits_before_it_marks() -> None:
    """When this fails, yoyo has changed where it counts: look at atomic_yoyo again."""
    assert {"apply_one", "rollback_one", "log_migration", "copy"} <= vars(DatabaseBackend).keys()
