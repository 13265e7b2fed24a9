"""How it begins: what is waited for, what is refused, and what the operator reads about it.

O-04 in short: each dependency missing, a wrong password, an old or newer schema, a bad
configuration, a taken port.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress

import asyncpg
import jwt
import orjson
import pytest

from itdesk.store.migrations import Migrations
from tests.support.daemon import Daemon, Person, running
from tests.support.load import eventually
from tests.support.postgres import Server

AT_ONCE = 10.0
NewDaemon = Callable[..., Daemon]

NOWHERE = "postgresql://itdesk@127.0.0.1:1/itdesk"


def _spoken(daemon: Daemon) -> list[str]:
    """Return what the daemon said to people on stderr, beside its log lines."""
    return [line for line in daemon.log.read_text().splitlines() if not line.startswith("{")]


def _logged(daemon: Daemon) -> list[dict[str, object]]:
    lines = daemon.log.read_text().splitlines() if daemon.log.exists() else []
    return [orjson.loads(line) for line in lines if line.startswith("{")]


def _waits(daemon: Daemon) -> Callable[[], Awaitable[bool]]:
    async def waits() -> bool:
        return any(line["event"] == "waiting" for line in _logged(daemon))

    return waits


async def _refused(daemon: Daemon, *, seconds: float = AT_ONCE) -> tuple[int, list[str]]:
    """Start a daemon that cannot start; return its status and what it said, within the time."""
    began = time.monotonic()
    daemon.start(ready=False)
    status = await asyncio.to_thread(daemon.ended)
    assert time.monotonic() - began < seconds
    assert "Traceback" not in daemon.log.read_text()
    return status, _spoken(daemon)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _guarded(server: Server) -> AsyncIterator[str]:
    """Lend the name of a database that only one user with a password may enter, over TCP."""
    url = await server.create()
    name = url.partition("?")[0].rpartition("/")[2]
    conn = await asyncpg.connect(url)
    await conn.execute("CREATE ROLE desk LOGIN PASSWORD 'the right one'")
    await conn.execute("CREATE ROLE stranger LOGIN PASSWORD 'the right one'")
    (server.state_dir / "postgres/data/pg_hba.conf").write_text(
        "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )
    await conn.execute("SELECT pg_reload_conf()")
    await conn.close()
    yield name


async def test_what_waiting_does_not_mend_is_told_at_once(
    own_pg_server: Server, new_daemon: NewDaemon
) -> None:
    """O-04: a wrong password, database or right is one line and status 1, not two minutes."""
    async with _guarded(own_pg_server) as name:
        at = f"127.0.0.1:{own_pg_server.port}"
        urls = [
            f"postgresql://desk:the%20wrong%20one@{at}/{name}",
            f"postgresql://desk:the%20right%20one@{at}/elsewhere",
            f"postgresql://stranger:the%20right%20one@{at}/{name}",
        ]
        told = await asyncio.gather(*(_refused(new_daemon(url)) for url in urls))
    assert [status for status, _ in told] == [1, 1, 1]
    said = [line for _, lines in told for line in lines]
    assert said == [
        'The database refuses the connection: password authentication failed for user "desk".',
        'The database refuses the connection: database "elsewhere" does not exist.',
        "The database refuses the connection: permission denied for table _yoyo_migration.",
    ]


async def test_a_database_that_does_not_come_is_given_up(new_daemon: NewDaemon) -> None:
    """O-04: it is waited for as long as `database.migration_wait_seconds` says."""
    daemon = new_daemon(NOWHERE, ITDESK_DATABASE__MIGRATION_WAIT_SECONDS="2")
    status, said = await _refused(daemon)
    assert (status, said) == (1, ["The database does not answer: Connection refused."])
    assert [line["logger"] for line in _logged(daemon)] == ["database"]


async def test_a_database_that_comes_later_is_waited_for(
    own_pg_server: Server, new_daemon: NewDaemon
) -> None:
    """O-04: after a power cut everything may start at once; a frozen server is only slow."""
    daemon = new_daemon(await own_pg_server.create())
    await own_pg_server.stop()
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(asyncio.to_thread(daemon.start))
        await eventually(_waits(daemon), seconds=10)
        assert not starting.done()
        await own_pg_server.start()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert daemon.first_admin is not None
    assert await asyncio.to_thread(daemon.stop) == 0


async def test_no_port_opens_before_the_schema_is_there(
    pg_server: Server, empty_database_url: str, new_daemon: NewDaemon
) -> None:
    """S0-12: serve waits for somebody else's `db migrate`."""
    port = _free_port()
    daemon = new_daemon(empty_database_url)
    daemon.options = ("--port", str(port))
    async with asyncio.TaskGroup() as group:
        starting = group.create_task(asyncio.to_thread(daemon.start))
        await eventually(_waits(daemon), seconds=10)
        assert not await _listens(port)
        migrated = await asyncio.to_thread(daemon.run, "db", "migrate")
        assert migrated.returncode == 0, migrated.stderr
        await starting
    assert await _listens(port)
    assert await asyncio.to_thread(daemon.stop) == 0


async def test_an_unmigrated_database_is_given_up(
    empty_database_url: str, new_daemon: NewDaemon
) -> None:
    """S0-12: non-zero after `database.migration_wait_seconds`, saying what to run."""
    daemon = new_daemon(empty_database_url, ITDESK_DATABASE__MIGRATION_WAIT_SECONDS="1")
    status, said = await _refused(daemon)
    assert status == 1
    assert len(said) == 1
    assert "`itdesk db migrate`" in said[0]


async def test_an_old_schema_is_migrated_before_the_port_opens(
    database_url: str, new_daemon: NewDaemon
) -> None:
    """S0-08: with `database.migrate_on_start`."""
    migrations = Migrations(database_url)
    await migrations.downgrade(migrations.known[-3])
    async with running(new_daemon(database_url, ITDESK_DATABASE__MIGRATE_ON_START="true")) as live:
        assert (await migrations.verify()).equal
        events = [line["event"] for line in live.daemon.lines()]
        assert events.index("schema migrated") < events.index("listening")


async def test_a_schema_altered_beneath_its_marks_is_refused_by_name(
    database_url: str, new_daemon: NewDaemon
) -> None:
    """O-06: with `database.migrate_on_start`."""
    conn = await asyncpg.connect(database_url)
    await conn.execute("ALTER TABLE emails DROP COLUMN sent_at")
    await conn.close()
    daemon = new_daemon(database_url, ITDESK_DATABASE__MIGRATE_ON_START="true")
    status, said = await _refused(daemon)
    assert status == 1
    assert "  column emails.sent_at is missing" in said


async def test_a_newer_schema_is_refused_at_once(database_url: str, new_daemon: NewDaemon) -> None:
    """O-04: an older itdesk must not write into what it does not know."""
    conn = await asyncpg.connect(database_url)
    await conn.execute(
        "INSERT INTO _yoyo_migration (migration_hash, migration_id, applied_at_utc)"
        " VALUES ('x', '9999-from-the-future', now())"
    )
    await conn.close()
    status, said = await _refused(new_daemon(database_url))
    assert status == 1
    assert len(said) == 1
    assert "9999-from-the-future" in said[0]


async def test_a_taken_port_is_one_line_and_costs_no_password(
    database_url: str, new_daemon: NewDaemon
) -> None:
    """O-04: the first administrator's password is made only when it can be told."""
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        daemon = new_daemon(database_url)
        daemon.options = ("--port", str(port))
        status, said = await _refused(daemon)
    assert (status, said) == (
        2,
        [f"server.port: cannot listen on 127.0.0.1:{port}: another program listens there already."],
    )
    async with running(new_daemon(database_url)) as live:
        assert live.daemon.first_admin is not None


async def test_all_mistakes_of_a_configuration_are_told_at_once(new_daemon: NewDaemon) -> None:
    """O-04, S2-17: every wrong option by its name, and no secret."""
    daemon = new_daemon(
        "postgresql://itdesk:hunter2-hunter2@localhost:many/itdesk",
        ENV="production",
        SECRET_KEY="changeme",
        ITDESK_SERVER__PROT="80",
        LOG_LEVEL="loud",
        CLAMAV_PORT="0",
    )
    status, said = await _refused(daemon)
    assert status == 2
    options = sorted(line.partition(":")[0] for line in said)
    assert {"auth.jwt_secret", "database.url", "log.level", "server.prot"} <= set(options)
    assert len(options) == len(set(options))
    assert "hunter2" not in "".join(said) and "changeme" not in "".join(said)


@pytest.mark.parametrize("inside", ["/proc", "/etc/hostname"])
async def test_an_unusable_upload_directory_is_named(
    database_url: str, inside: str, new_daemon: NewDaemon
) -> None:
    """S2-52: the desk does not start to take files that it cannot keep."""
    daemon = new_daemon(database_url, UPLOAD_DIR=f"{inside}/uploads")
    status, said = await _refused(daemon)
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith(f"storage.local.upload_dir: {inside}/uploads: ")


async def test_a_state_directory_that_cannot_be_made_is_named(
    database_url: str, new_daemon: NewDaemon
) -> None:
    """O-04: for the spool of the scanner and the signing key it is needed everywhere."""
    daemon = new_daemon(database_url)
    status = await asyncio.to_thread(daemon.run, "--state-dir", "/proc/desk", "serve")
    assert status.returncode == 2
    assert status.stderr.count("\n") == 1
    assert "/proc/desk" in status.stderr


async def test_settings_of_the_environment_reach_the_daemon(
    pg_server: Server, new_daemon: NewDaemon
) -> None:
    """S2-13, S2-15, S2-16, S2-17, S2-51, S3-54, S3-55, S3-56, S4-06, S4-08."""
    secret = "Zmlyc3Qgb2YgYWxsIGl0IG11c3QgYmUgbG9uZw"
    url = await pg_server.create()
    daemon = new_daemon(
        url.replace("postgresql://", "postgresql+psycopg2://"),
        SECRET_KEY=secret,
        ITDESK_AUTH__JWT_ALGORITHM="HS256",
        ACCESS_TOKEN_EXPIRE_MINUTES="1",
        REFRESH_TOKEN_EXPIRE_DAYS="3",
        REDIS_URL="redis://localhost:6379/0",
        CLAMAV_HOST="127.0.0.1",
        CLAMAV_PORT="1",
    )
    daemon.options = ("--host", "0.0.0.0")
    async with running(daemon) as live:
        claims = jwt.decode(live.admin.token, secret, algorithms=["HS256"], audience="itdesk")
        assert claims["exp"] - claims["iat"] == 60
        assert daemon.first_admin is not None
        email, password = daemon.first_admin
        # Another address of this machine than the one that is bound by default.
        other = Person(daemon.url.replace("0.0.0.0", "127.0.0.2"))
        pair = await other.post("/auth/login", {"email": email, "password": password})
        assert pair.expect(200)["refresh_expires_in"] == 3 * 86_400
        said = [line["event"] for line in daemon.lines()]
        assert "REDIS_URL is set but not used: itdesk needs no Redis" in said
        # O-04: a virus scanner that is not there keeps files waiting, and nothing else.
        health = (await other.call("GET", "/readyz")).expect(200)
        assert health["status"] == "degraded"
        assert "clamav" in health["checks"]["scanner"]["reason"]
        daemon.tell()
        assert await asyncio.to_thread(daemon.ended) == 0
    await pg_server.drop(url)


async def test_port_8000_is_the_default(database_url: str, new_daemon: NewDaemon) -> None:
    """S0-04, S3-09: on the own machine only; shown by taking it away."""
    with closing(socket.socket()) as taken:
        with suppress(OSError):  # another program has it
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        done = await asyncio.to_thread(new_daemon(database_url).run, "serve")
    assert done.returncode == 2
    assert done.stderr.startswith("server.port: cannot listen on 127.0.0.1:8000: ")
