"""O-06: a version goes on serving while the next one migrates, and beside it afterwards."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from itdesk.store.migrations import Migrations
from tests.store.test_migrations_together import KNOWN, three_nodes
from tests.support.daemon import Daemon, Live, Person, live_on, make_daemon, running
from tests.support.load import Call, Crew, lost_or_doubled, working
from tests.support.postgres import MIGRATIONS, Server
from tests.support.stream import following

ROOT = MIGRATIONS.parent
IDLE = "applied 0 stamped 0"


# What every request reads or writes.
HOT = frozenset(
    "users projects tickets ticket_assignees ticket_comments attachments events jobs"
    " idempotency_keys".split()
)


async def _next_version(url: str, directory: Path, *, only: frozenset[str]) -> Path:
    """Return the migrations of a version to come, which adds to every table, or to some only."""
    shutil.copytree(MIGRATIONS, directory)
    conn = await asyncpg.connect(url)
    tables = await conn.fetch(
        """SELECT relname FROM pg_class WHERE relkind = 'r' AND relname NOT LIKE '%yoyo%'
           AND relnamespace = 'public'::regnamespace ORDER BY relname"""
    )
    await conn.close()
    assert len(tables) > 30
    # A file each: several tables in one transaction would meet the locks of a request that
    # takes them the other way round, and one of the two would have to give way.
    names = {row["relname"] for row in tables}
    assert only <= names
    for name in sorted(only or names):
        (directory / f"0900-{name.replace('_', '-')}.sql").write_text(
            f"ALTER TABLE {name} ADD COLUMN IF NOT EXISTS next_note text,"
            " ADD COLUMN IF NOT EXISTS next_number int NOT NULL DEFAULT 7;\n"
        )
    (directory / "0901-more.sql").write_text(
        "CREATE TABLE IF NOT EXISTS next_things (id uuid PRIMARY KEY, ticket_id uuid NOT NULL"
        " REFERENCES tickets ON DELETE CASCADE, user_id uuid REFERENCES users);\n"
    )
    (directory / "0902-index.sql").write_text(
        "-- transactional: false\n"
        "DROP INDEX CONCURRENTLY IF EXISTS ix_tickets_next;\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_tickets_next ON tickets (next_number, id);\n"
    )
    return directory


def _p99(calls: Sequence[Call]) -> float:
    return sorted(call.seconds for call in calls)[int(0.99 * len(calls))]


def _failed(calls: Sequence[Call]) -> list[str]:
    return [
        f"{call.kind}: {call.status} {call.problem} {call.answer and call.answer.raw[:300]!r}"
        for call in calls
        if not call.acknowledged
    ]


async def _while_three_nodes_migrate(
    crew: Crew, url: str, directory: Path, expected: list[str]
) -> list[Call]:
    """Return the calls that were made while three nodes did what was expected of them."""
    first = len(crew.calls)
    assert await three_nodes(url, directory) == expected
    await crew.until(lambda call: call.acknowledged, times=10, seconds=30)
    return crew.calls[first:]


async def _reads_everything(person: Person) -> None:
    """Ask for what is read in other ways than the crew's calls do."""
    ticket = await person.ticket("read in every way")
    paths = ("", "/history", "/comments", "/attachments")
    for path in [f"/tickets/{ticket['key']}{rest}" for rest in paths]:
        (await person.get(path)).expect(200)
    for path in (
        "/tickets?q=load&sort=-priority&count=true", "/tickets/my", "/projects", "/users",
        "/assignees", "/reports/dashboard", "/reports/tickets-by-status", "/stats/daily",
        "/workflows", "/emails", "/events", "/recommendations", "/auth/me",
    ):  # fmt: skip
        (await person.get(path)).expect(200)


@pytest.mark.parametrize(
    ("clients", "rate", "ratio", "tables"),
    [
        (8, 40.0, None, HOT),
        pytest.param(32, 150.0, 2.0, frozenset(), marks=pytest.mark.slow, id="all"),
    ],
)
async def test_the_desk_serves_while_three_nodes_of_the_next_version_migrate(
    pg_server: Server,
    tmp_path: Path,
    clients: int,
    rate: float,
    ratio: float | None,
    tables: frozenset[str],
) -> None:
    """O-06: not one request fails, before, during or after, on a schema that is wider than ours.

    The calls during the migration are held against calls while three nodes find nothing to do:
    what three processes take of the machine is in both.
    """
    url, head = await pg_server.create(), await pg_server.create()
    try:
        directory = await _next_version(url, tmp_path / "next", only=tables)
        await Migrations(head, directory=directory).migrate()
        async with running(make_daemon(url, ITDESK_SCANNER__ENABLED="false")) as live:
            await _serves_on(live, directory, head, clients, rate, ratio)
    finally:
        for one in (url, head):
            await pg_server.drop(one)


async def _serves_on(
    live: Live, directory: Path, head: str, clients: int, rate: float, ratio: float | None
) -> None:
    url = live.daemon.env["DATABASE_URL"]
    agents = [await live.person("agent") for _ in range(4)]
    await _reads_everything(live.admin)
    async with working(agents, clients=clients, rate=rate) as crew:
        await crew.until(lambda call: call.acknowledged, times=clients, seconds=30)
        before = await _while_three_nodes_migrate(crew, head, directory, [IDLE] * 3)
        new = len(list(directory.glob("09*.sql")))
        applied = [IDLE, IDLE, f"applied {new} stamped 0"]
        during = await _while_three_nodes_migrate(crew, url, directory, applied)
        await _reads_everything(live.admin)
        async with following(agents[0]) as stream:
            await stream.event(await agents[0].ticket("on the wider schema"), 1)
    found = _p99(during) / _p99(before)
    print(f"p99 before {_p99(before):.3f} s ({len(before)} calls), during {_p99(during):.3f} s"
          f" ({len(during)}), ratio {found:.2f}, {crew.counts()}")  # fmt: skip
    assert _failed(crew.calls) == []
    assert await lost_or_doubled(url, crew) == []
    assert [x["event"] for x in live.daemon.lines() if x["level"] in ("error", "critical")] == []
    assert ratio is None or found <= ratio


@asynccontextmanager
async def _version_before(folder: Path) -> AsyncIterator[dict[str, str]]:
    """Lend the environment in which `python -m itdesk` is the release before the newest migration.

    It comes from the history of this clone, or is unpacked at ITDESK_TEST_PREVIOUS.
    """
    given = os.environ.get("ITDESK_TEST_PREVIOUS")
    if given is None:
        await asyncio.to_thread(_unpack, folder)
    source = Path(given) if given is not None else folder
    lib = folder / "lib"
    lib.mkdir()
    for name, package in (("itdesk", "itdesk"), ("plugins", "itdesk_plugins"),
                          ("migrations", "itdesk_migrations"), ("etc", "itdesk_etc")):  # fmt: skip
        (lib / package).symlink_to(source / name)
    assert not (lib / "itdesk_migrations" / f"{KNOWN[-1]}.sql").exists()
    # Not from the directory in which the tests run, which has a newer one.
    yield {"PYTHONPATH": str(lib), "PYTHONSAFEPATH": "1"}


def _unpack(folder: Path) -> None:
    newest = f"migrations/{KNOWN[-1]}.sql"
    log = ["git", "log", "-1", "--first-parent", "-m", "--diff-filter=A", "--format=%H", "--"]
    added = subprocess.run(
        [*log, newest], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert added, "no history here: unpack the release before at ITDESK_TEST_PREVIOUS"
    tree = subprocess.run(
        ["git", "archive", f"{added}^1"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=tree, check=True)


@pytest.mark.slow
async def test_the_version_before_and_this_one_serve_side_by_side(
    pg_server: Server, tmp_path: Path
) -> None:
    """O-06, S0-08: the real code of before, under load, while this version's schema comes and this
    version's daemon beside it; not one request fails, and each sees the other's events."""
    url = await pg_server.create(migrated=False)
    folder = tmp_path / "before"
    folder.mkdir()
    try:
        async with _version_before(folder) as code:
            env = {**code, "ITDESK_SCANNER__ENABLED": "false"}
            old = make_daemon(url, **env, ITDESK_DATABASE__MIGRATE_ON_START="true")
            async with running(old) as before:
                await _side_by_side(before, url)
            assert (await Migrations(url).verify()).equal
            refused = make_daemon(url, **code)
            done = await asyncio.to_thread(refused.run, "user", "unlock", "a@example.org")
            assert done.returncode == 1 and "migrated by a newer itdesk" in done.stderr
            shutil.rmtree(refused.state_dir)
    finally:
        await pg_server.drop(url)


async def _side_by_side(before: Live, url: str) -> None:
    agents = [await before.person("agent") for _ in range(4)]
    async with working(agents, clients=16, rate=80) as crew:
        await crew.until(lambda call: call.acknowledged, times=200, seconds=60)
        calm = list(crew.calls)
        assert (await three_nodes(url))[-1].startswith("applied ")
        await crew.until(lambda call: call.acknowledged, times=200, seconds=60)
        new = _beside(before.daemon, url)
        try:
            await asyncio.to_thread(new.start)
            after = await live_on(new)
            others = [await after.person("agent") for _ in range(4)]
            async with working(others, clients=16, rate=80) as newer:
                await newer.until(lambda call: call.acknowledged, times=300, seconds=60)
                await _hear_each_other(agents[0], others[0])
                await _reads_everything(before.admin)
                await _reads_everything(after.admin)
            assert await asyncio.to_thread(new.stop) == 0
        finally:
            if new.process is not None and new.process.poll() is None:
                await asyncio.to_thread(new.stop, signal.SIGKILL)
            shutil.rmtree(new.state_dir, ignore_errors=True)
        await crew.until(lambda call: call.acknowledged, times=50, seconds=60)
    print(f"p99 before {_p99(calm):.3f} s, beside {_p99(crew.calls[len(calm):]):.3f} s,"
          f" {crew.counts()}, {newer.counts()}")  # fmt: skip
    assert _failed([*crew.calls, *newer.calls]) == []
    assert await lost_or_doubled(url, crew) == []
    assert await lost_or_doubled(url, newer) == []


def _beside(old: Daemon, url: str) -> Daemon:
    """Return a daemon of this version that signs with the old one's key."""
    new = make_daemon(url, ITDESK_SCANNER__ENABLED="false")
    shutil.copy(old.state_dir / "jwt-key.pem", new.state_dir / "jwt-key.pem")
    new.first_admin = old.first_admin
    return new


async def _hear_each_other(older: Person, newer: Person) -> None:
    async with following(older) as there, following(newer) as here:
        for person, stream in ((newer, there), (older, here)):
            await stream.event(await person.ticket("seen from beside"), 1)
