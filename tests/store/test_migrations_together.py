"""Several nodes migrate at once, and one of them is killed (O-06)."""

import asyncio
import shutil
import sys
from pathlib import Path

import asyncpg
import pytest

from itdesk.store.migrations import Migrations
from tests.support.postgres import MIGRATIONS, Server

KNOWN = sorted(p.stem for p in MIGRATIONS.glob("*.sql") if ".rollback" not in p.name)
_RUN = """
import asyncio, pathlib, sys
from itdesk.errors import SchemaError
from itdesk.store.migrations import Migrations
try:
    done = asyncio.run(Migrations(sys.argv[1], directory=pathlib.Path(sys.argv[2])).migrate())
    print("applied", len(done.applied), "stamped", len(done.stamped))
except SchemaError as exc:
    print("refused", exc.message.replace(chr(10), " "))
"""


async def node(url: str, directory: Path = MIGRATIONS) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _RUN,
        url,
        str(directory),
        cwd=MIGRATIONS.parent,
        stdout=asyncio.subprocess.PIPE,
    )


async def three_nodes(url: str, directory: Path = MIGRATIONS) -> list[str]:
    nodes = [await node(url, directory) for _ in range(3)]
    outputs = await asyncio.gather(*(process.communicate() for process in nodes))
    return sorted(out.decode().strip() for out, _ in outputs)


async def test_three_nodes_on_an_empty_database_one_applies(
    pg_server: Server, database_url: str, empty_database_url: str
) -> None:
    idle = "applied 0 stamped 0"
    assert await three_nodes(empty_database_url) == [idle, idle, f"applied {len(KNOWN)} stamped 0"]
    assert await pg_server.dump(empty_database_url) == await pg_server.dump(database_url)


async def test_three_nodes_on_the_previous_version_while_it_serves(
    pg_server: Server, database_url: str
) -> None:
    dump = await pg_server.dump(database_url)
    await Migrations(database_url, directory=MIGRATIONS).downgrade(KNOWN[-2])
    conn = await asyncpg.connect(database_url)
    serving = True

    async def serve() -> int:
        served = 0
        while serving:
            await conn.execute(
                """INSERT INTO tickets (key, project_id, title)
                   SELECT 'TSK-' || next_number, id, 'still here' FROM projects FOR UPDATE"""
            )
            await conn.execute("UPDATE projects SET next_number = next_number + 1")
            served += 1
        return served

    async with asyncio.TaskGroup() as group:
        traffic = group.create_task(serve())
        outputs = await three_nodes(database_url)
        serving = False
    await conn.close()
    assert outputs == ["applied 0 stamped 0"] * 2 + ["applied 1 stamped 0"]
    assert traffic.result() > 10
    assert await pg_server.dump(database_url) == dump


async def test_three_nodes_refuse_a_half_migrated_database(
    pg_server: Server, database_url: str
) -> None:
    conn = await asyncpg.connect(database_url)
    await conn.execute("DROP TABLE emails; DROP TABLE _yoyo_migration")
    await conn.close()
    dump = await pg_server.dump(database_url)
    outputs = await three_nodes(database_url)
    assert all(out.startswith("refused") and "table emails is missing" in out for out in outputs)
    assert await pg_server.dump(database_url) == dump


async def test_an_index_built_concurrently_neither_deadlocks_nor_stays_half_built(
    database_url: str, tmp_path: Path
) -> None:
    """Those who wait for their turn must not be waited for; what a dead one left is replaced."""
    directory = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, directory)
    (directory / "0900-index.sql").write_text(
        "-- transactional: false\n"
        "DROP INDEX CONCURRENTLY IF EXISTS ix_tickets_resolution;\n"
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS ix_tickets_resolution ON tickets (resolution);\n"
    )
    conn = await asyncpg.connect(database_url)
    await conn.execute("CREATE INDEX ix_tickets_resolution ON tickets (resolution)")
    index = "indexrelid = 'ix_tickets_resolution'::regclass"
    await conn.execute(f"UPDATE pg_index SET indisvalid = false WHERE {index}")  # noqa: S608
    outputs = await three_nodes(database_url, directory)
    valid = await conn.fetchval(f"SELECT indisvalid FROM pg_index WHERE {index}")  # noqa: S608
    await conn.close()
    assert outputs == ["applied 0 stamped 0"] * 2 + ["applied 1 stamped 0"]
    assert valid
    assert (await Migrations(database_url, directory=directory).verify()).equal


@pytest.mark.parametrize("marked", ["n-1", None], ids=["n-1", "empty"])
async def test_a_killed_migration_heals(
    pg_server: Server,
    database_url: str,
    empty_database_url: str,
    tmp_path: Path,
    marked: str | None,
) -> None:
    """kill -9 in the middle of a file: nothing of it stays, and the next run completes it."""
    url = database_url if marked else empty_database_url
    directory = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, directory)
    slow = directory / "0900-slow.sql"
    halves = [f"CREATE TABLE IF NOT EXISTS {name} (id int);\n" for name in ("one", "two")]
    slow.write_text("SELECT pg_sleep(60) WHERE current_schema() = 'public';\n".join(halves))
    process = await node(url, directory)
    await pg_server.until(url, "pg_sleep")
    process.kill()
    await process.wait()
    slow.write_text("".join(halves))
    done = await Migrations(url, directory=directory).migrate()
    assert done.applied == ("0900-slow",) and not done.stamped
    assert (await Migrations(url, directory=directory).verify()).equal
