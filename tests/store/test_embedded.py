"""The embedded server: owned, shared, killed, brought back; and where it may live."""

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from itdesk.runtime.postgres import EmbeddedPostgres, Role
from itdesk.runtime.statedir import (
    EmbeddedError,
    become_owner,
    default_state_dir,
    prepare_state_dir,
    server_account,
)
from tests.support.postgres import FAST_DIR

ROOT = Path(__file__).resolve().parents[2]
BINDIR = Path(os.environ["ITDESK_TEST_PG_BIN"]) if "ITDESK_TEST_PG_BIN" in os.environ else None

# Says its URL, and again whether it shares; then works until its stdin ends.
_PROCESS = """
import asyncio, pathlib, sys
from itdesk.runtime.postgres import EmbeddedPostgres

async def main():
    state, role, bindir = sys.argv[1:]
    bindir = pathlib.Path(bindir) if bindir else None
    async with EmbeddedPostgres(pathlib.Path(state), role=role, bindir=bindir) as server:
        print(server.url, server.shared, server.pid, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""

Spawn = Callable[[Role], Awaitable["Other"]]


class Other:
    """Another itdesk process at work on the same state directory."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url, self.shared, self.pid = "", False, 0

    async def ready(self) -> "Other":
        assert self.process.stdout
        line = (await self.process.stdout.readline()).decode().split()
        self.url, self.shared, self.pid = line[0], line[1] == "True", int(line[2])
        return self

    def leave(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")

    async def end(self) -> None:
        self.leave()
        assert await self.process.wait() == 0


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A directory as mkdtemp makes it (0700), under a short path."""
    path = Path(tempfile.mkdtemp(prefix="itdesk-embedded-", dir=FAST_DIR))
    yield path
    while path.exists():  # a server whose owner was killed may still be tidying up
        shutil.rmtree(path, ignore_errors=True)


@pytest_asyncio.fixture
async def spawn(state_dir: Path) -> AsyncIterator[Spawn]:
    """A function that starts another process on the state directory; `ready` waits for it."""
    others: list[Other] = []

    async def start(role: Role) -> Other:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _PROCESS, str(state_dir), role, str(BINDIR or "")),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        others.append(Other(process))
        return others[-1]

    yield start
    for other in others:
        if other.process.returncode is None:
            other.process.kill()
        await other.process.communicate()


def embedded(state_dir: Path, role: Role = "command", durable: bool = False) -> EmbeddedPostgres:
    return EmbeddedPostgres(state_dir, role=role, durable=durable, bindir=BINDIR)


async def ask(url: str, query: str) -> object:
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


async def refused(url: str) -> bool:
    try:
        await ask(url, "SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return True
    return False


def as_server() -> dict[str, Any]:
    """Return how to start a process as the server's account."""
    account = server_account()
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": "/"}


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def names(path: Path, pattern: str) -> list[str]:
    return [found.name for found in path.glob(pattern)]


def socket_dir(url: str) -> Path:
    return Path(url.partition("host=")[2].partition("&")[0])


def runs(server: EmbeddedPostgres) -> bool:
    return server.alive


async def until(condition: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 30
    while not condition():
        assert loop.time() < deadline, "waited in vain"
        await asyncio.to_thread(os.sched_yield)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def test_a_first_start_makes_a_database_that_later_starts_find_again(
    state_dir: Path,
) -> None:
    async with embedded(state_dir) as server:
        assert not server.shared and runs(server)
        assert await ask(server.url, "SHOW server_encoding") == "UTF8"
        locale = "SELECT datctype FROM pg_database WHERE datname = 'itdesk'"
        assert await ask(server.url, locale) == "C.UTF-8"
        await ask(server.url, "CREATE TABLE kept (id int)")
        url, pid = server.url, server.pid
    assert pid and gone(pid) and not runs(server)
    assert await refused(url)
    async with embedded(state_dir) as server:
        assert server.url == url, "pools and other processes go on with the URL they have"
        assert await ask(server.url, "SELECT count(*) FROM kept") == 0


async def test_what_a_user_keeps_is_durable(state_dir: Path) -> None:
    """fsync stays on for a user's data and is off only in tests."""
    async with embedded(state_dir, durable=True) as server:
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            assert await ask(server.url, f"SHOW {setting}") == "on"
    async with embedded(state_dir) as server:
        assert await ask(server.url, "SHOW fsync") == "off"


async def test_only_this_account_can_connect(state_dir: Path) -> None:
    async with embedded(state_dir) as server:
        assert await ask(server.url, "SHOW listen_addresses") == ""
        home = socket_dir(server.url)
        account = server_account()
        assert mode(home) == 0o700
        assert os.stat(home).st_uid == (account.pw_uid if account else os.getuid())


async def test_the_environment_does_not_lead_elsewhere(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("PGUSER", "stranger")
    monkeypatch.setenv("PGDATA", "/nowhere")
    async with embedded(state_dir) as server:
        assert await ask(server.url, "SELECT current_user") == "itdesk"


async def test_a_killed_owner_takes_its_server_along_and_the_next_recovers(
    state_dir: Path, spawn: Spawn
) -> None:
    """kill -9 of the owner: no server stays behind, no committed row is lost."""
    owner = await (await spawn("daemon")).ready()
    await ask(owner.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    owner.process.kill()
    await owner.process.wait()
    async with embedded(state_dir) as server:
        assert gone(owner.pid) and server.pid != owner.pid and not server.shared
        assert await ask(server.url, "SELECT answer FROM kept") == 42
    again = await (await spawn("daemon")).ready()
    again.process.kill()
    await until(lambda: gone(again.pid))


async def test_a_killed_server_is_brought_back_at_the_same_url(state_dir: Path) -> None:
    async with embedded(state_dir, durable=True) as server:
        url = server.url
        await ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server.pid
        assert pid
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert not runs(server)
        await server.start()
        assert runs(server) and server.url == url
        assert await ask(url, "SELECT answer FROM kept") == 42
        await server.start()  # harmless when it runs


async def test_a_command_beside_a_daemon_uses_its_database_and_leaves_it_running(
    state_dir: Path, spawn: Spawn
) -> None:
    daemon = await (await spawn("daemon")).ready()
    async with embedded(state_dir) as server:
        assert server.shared and (server.url, server.pid) == (daemon.url, daemon.pid)
    assert not await refused(daemon.url)
    await daemon.end()
    assert await refused(daemon.url)


async def test_a_daemon_does_not_wait_for_the_commands_beside_it(
    state_dir: Path, spawn: Spawn
) -> None:
    daemon = await (await spawn("daemon")).ready()
    async with embedded(state_dir) as server:
        await daemon.end()
        assert not runs(server)
        await server.start()
        assert not server.shared and await ask(server.url, "SELECT 1") == 1


async def test_a_command_waits_for_those_who_use_its_server(state_dir: Path, spawn: Spawn) -> None:
    async with embedded(state_dir) as server:
        guest = await (await spawn("command")).ready()
        assert guest.shared
        leaving = asyncio.ensure_future(server.stop())
        done, _ = await asyncio.wait([leaving], timeout=0.2)
        assert not done and await ask(guest.url, "SELECT 1") == 1
        await guest.end()
        await leaving
    assert await refused(guest.url)


async def test_a_daemon_waits_for_a_command_and_then_has_a_server_of_its_own(
    state_dir: Path, spawn: Spawn
) -> None:
    """A command's server would end under it."""
    async with embedded(state_dir):
        daemon = await spawn("daemon")
        waiting = asyncio.ensure_future(daemon.ready())
        done, _ = await asyncio.wait([waiting], timeout=0.5)
        if done:
            daemon.process.kill()
        assert not done
    await waiting
    assert not daemon.shared
    await daemon.end()


async def test_two_daemons_share(state_dir: Path, spawn: Spawn) -> None:
    one = await (await spawn("daemon")).ready()
    two = await (await spawn("daemon")).ready()
    assert (one.shared, two.shared, one.pid) == (False, True, two.pid)
    await two.end()
    assert not await refused(one.url)


@pytest.mark.parametrize("role", ["command", "daemon"])
async def test_of_several_starters_one_owns(role: Role, spawn: Spawn) -> None:
    """Even on the very first start, when all find nothing."""
    others = [await spawn(role) for _ in range(3)]
    for other in others:
        await other.ready()
    assert sorted(other.shared for other in others) == [False, True, True]
    assert len({other.pid for other in others}) == 1
    for other in others:
        other.leave()
    for other in others:
        assert await other.process.wait() == 0


async def test_whoever_waits_too_long_is_told_for_whom(state_dir: Path, spawn: Spawn) -> None:
    command = await (await spawn("command")).ready()
    server = EmbeddedPostgres(state_dir, role="daemon", bindir=BINDIR, patience=0.2)
    with pytest.raises(EmbeddedError, match=f"{command.process.pid} command.*--state-dir"):
        await server.start()


async def test_a_pid_file_that_names_a_stranger_is_no_obstacle(state_dir: Path) -> None:
    """After a power cut the old number belongs to another process, of the same account even."""
    async with embedded(state_dir) as server:
        pid_file = state_dir / "postgres/data/postmaster.pid"
        left = pid_file.read_text().splitlines()
    stranger = await asyncio.create_subprocess_exec("sleep", "60", **as_server())
    try:
        pid_file.write_text("\n".join([str(stranger.pid), *left[1:]]) + "\n")
        async with embedded(state_dir) as server:
            assert not server.shared and await ask(server.url, "SELECT 1") == 1
        assert stranger.returncode is None
    finally:
        stranger.kill()
        await stranger.wait()


async def test_an_orphaned_server_is_ended_first(state_dir: Path, spawn: Spawn) -> None:
    """Nobody holds the lock and yet a server runs, started by hand for example."""
    async with embedded(state_dir) as server:
        data = state_dir / "postgres/data"
    orphan = await asyncio.create_subprocess_exec(
        server.bindir / "postgres",
        *("-D", str(data), "-k", str(data.parent / "socket"), "-c", "listen_addresses="),
        stderr=subprocess.DEVNULL,
        **as_server(),
    )
    await until(lambda: any("ready" in (data / name).read_text() for name in names(data, "*.pid")))
    async with embedded(state_dir) as server:
        assert not server.shared and await ask(server.url, "SELECT 1") == 1
    await orphan.wait()


async def test_a_first_start_that_was_cut_off_is_begun_again(state_dir: Path, spawn: Spawn) -> None:
    """kill -9 in the middle of initdb: half a directory never becomes the database."""
    first = await spawn("command")
    await until(lambda: names(state_dir, "postgres/data.*.new/*") != [])
    first.process.kill()
    await first.process.wait()
    assert not (state_dir / "postgres/data").exists()
    async with embedded(state_dir) as server:
        assert await ask(server.url, "SELECT 1") == 1
    assert names(state_dir, "postgres/data*") == ["data"]


async def test_a_cancelled_start_leaves_no_server(state_dir: Path) -> None:
    server = embedded(state_dir)
    starting = asyncio.ensure_future(server.start())
    while not (state_dir / "postgres/data/postmaster.pid").exists():
        await asyncio.wait([starting], timeout=0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    async with embedded(state_dir) as other:
        assert not other.shared and await ask(other.url, "SELECT 1") == 1


async def test_a_server_that_does_not_start_says_why_and_lets_go(state_dir: Path) -> None:
    bad = EmbeddedPostgres(state_dir, bindir=BINDIR, settings={"shared_buffers": "none"})
    with pytest.raises(EmbeddedError, match=r"did not start.*shared_buffers"):
        await bad.start()
    async with embedded(state_dir) as server:
        assert runs(server)


async def test_under_a_long_path_the_socket_goes_to_tmp_and_away_again(state_dir: Path) -> None:
    """A socket's path holds 107 bytes."""
    deep = prepare_state_dir(state_dir) / ("d" * 100)
    async with embedded(deep) as server:
        home = socket_dir(server.url)
        assert home.parent == Path("/tmp") and await ask(server.url, "SELECT 1") == 1
        async with embedded(deep) as guest:
            assert guest.shared and guest.url == server.url
    assert names(home.parent, home.name) == []


async def test_a_growing_log_is_turned_over(state_dir: Path) -> None:
    async with embedded(state_dir):
        pass
    log = state_dir / "postgres/log"
    log.write_bytes(b"x" * (1 << 20) + b"y")
    async with embedded(state_dir):
        assert log.stat().st_size < 1 << 20 and log.with_name("log.1").exists()


async def test_no_server_installed_is_one_clear_line(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"DATABASE_URL.*itdesk\[embedded\]"):
        await EmbeddedPostgres(state_dir).start()


@pytest.fixture
def games(state_dir: Path) -> Callable[[str, str], str]:
    """A function that runs the script in a Python of Debian's, on a directory of user games."""
    if (
        os.geteuid()
        or sys.version_info[:2] != (3, 11)
        or not os.access("/usr/bin/python3", os.X_OK)
    ):
        pytest.skip("needs root, and a Python that others may run")
    account = pwd.getpwnam("games")
    home = state_dir / "home"
    home.mkdir(mode=0o700)
    os.chown(home, account.pw_uid, account.pw_gid)
    state_dir.chmod(0o711)

    def run(user: str, script: str) -> str:
        done = subprocess.run(
            ["/usr/bin/python3", "-c", script, str(home), "command", str(BINDIR or "")],
            check=True,
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            user=user,
            group=pwd.getpwnam(user).pw_gid,
            extra_groups=[],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{Path(asyncpg.__file__).parents[1]}"},
        )
        return done.stdout.decode()

    return run


def owners(path: Path) -> set[str]:
    return {found.owner() for found in path.rglob("*")}


def test_an_ordinary_user_runs_his_own_server(
    state_dir: Path, games: Callable[[str, str], str]
) -> None:
    """Everything else here ran as root; this runs as somebody else, in a closed home."""
    assert games("games", _PROCESS).startswith("postgresql://itdesk@/itdesk?host=")
    assert owners(state_dir / "home") == {"games"}
    assert mode(state_dir / "home") == 0o700


def test_root_works_for_the_owner_of_the_state_directory(
    state_dir: Path, games: Callable[[str, str], str]
) -> None:
    """`sudo itdesk user create` beside a daemon that runs as an account of its own."""
    script = _PROCESS.replace(
        "    bindir =",
        "    from itdesk.runtime.statedir import become_owner\n"
        "    become_owner(pathlib.Path(state))\n"
        "    assert __import__('os').environ['HOME'] == state\n"
        "    bindir =",
    )
    assert games("root", script).split()[:2] == games("games", _PROCESS).split()[:2]
    assert owners(state_dir / "home") == {"games"}


# Where the data live.


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"ITDESK_STATE_DIR": "/a", "STATE_DIRECTORY": "/b", "XDG_STATE_HOME": "/c"}, "/a"),
        ({"STATE_DIRECTORY": "/b:/b2", "XDG_STATE_HOME": "/c"}, "/b"),
        ({"ITDESK_STATE_DIR": "", "STATE_DIRECTORY": "", "XDG_STATE_HOME": "/c"}, "/c/itdesk"),
        ({"HOME": "/"}, "/.local/state/itdesk"),
    ],
)
def test_the_state_directory_is_the_first_one_named(env: dict[str, str], expected: str) -> None:
    """The order in which the state directory is looked for."""
    assert default_state_dir(env) == Path(expected)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as nobody")


@as_root
def test_root_with_a_closed_home_keeps_its_data_in_var_lib(state_dir: Path) -> None:
    assert default_state_dir({"HOME": str(state_dir)}) == Path("/var/lib/itdesk")
    state_dir.chmod(0o711)
    assert default_state_dir({"HOME": str(state_dir)}) == state_dir / ".local/state/itdesk"


@as_root
async def test_a_closed_directory_is_named_and_not_opened(state_dir: Path) -> None:
    (state_dir / "something").touch()
    with pytest.raises(EmbeddedError) as refusal:
        await embedded(state_dir / "inner/state").start()
    message = refusal.value.message
    assert f"The directory {state_dir} is closed to the account 'nobody'" in message
    assert "--state-dir" in message and "\n" not in message
    with pytest.raises(EmbeddedError, match="closed to the account"):
        await embedded(state_dir).start()
    assert mode(state_dir) == 0o700


@as_root
async def test_a_closed_installation_is_named(state_dir: Path, tmp_path: Path) -> None:
    bindir = tmp_path / "closed/bin"
    bindir.mkdir(parents=True)
    (bindir / "postgres").touch()
    closed = next(p for p in (*reversed(bindir.parents), bindir) if not p.stat().st_mode & 1)
    with pytest.raises(EmbeddedError, match=f"^{closed} is closed to the account 'nobody'"):
        await EmbeddedPostgres(state_dir, bindir=bindir).start()


@as_root
def test_an_empty_directory_is_ours_to_open_and_a_made_one_is_open(state_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        made = prepare_state_dir(prepare_state_dir(state_dir) / "a/b")
    finally:
        os.umask(before)
    assert {mode(path) for path in (state_dir, made, made.parent)} == {0o711}


@as_root
async def test_a_database_of_another_account_is_left_alone(state_dir: Path) -> None:
    async with embedded(state_dir):
        pass
    os.chown(state_dir / "postgres/data", 5, 5)
    with pytest.raises(EmbeddedError, match="belongs to uid 5"):
        await embedded(state_dir).start()


@as_root
def test_root_stays_root_where_nobody_else_is_at_home(state_dir: Path) -> None:
    become_owner(state_dir)
    become_owner(state_dir / "missing")
    os.chown(state_dir, 65534, 65534)
    become_owner(state_dir)
    assert os.geteuid() == 0


async def test_a_state_directory_that_cannot_be_made_is_named(state_dir: Path) -> None:
    (state_dir / "file").touch()
    with pytest.raises(EmbeddedError, match="file/state cannot be used: Not a directory"):
        await embedded(state_dir / "file/state").start()
