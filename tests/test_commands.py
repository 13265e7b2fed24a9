"""What operators type: the commands by hand, as a script, and with the mistakes people make."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import asyncpg
import orjson
import pytest

from itdesk.store.migrations import Migrations
from tests.support import samples
from tests.support.clamd import Clamd
from tests.support.daemon import PASSWORD, SMALL_FILES, Daemon, Live, Person, live_on, started
from tests.support.postgres import Server
from tests.support.stream import following

Done = CompletedProcess[str]
NewDaemon = Callable[..., Daemon]

NOWHERE = "postgresql://itdesk@127.0.0.1:1/itdesk"


async def _run(daemon: Daemon, *arguments: str, stdin: str | None = None) -> Done:
    done = await asyncio.to_thread(partial(daemon.run, *arguments, stdin=stdin))
    assert "Traceback" not in done.stderr, done.stderr
    return done


async def _good(daemon: Daemon, *arguments: str, stdin: str | None = None) -> str:
    """Run a command that works and return what it printed; it has nothing else to say."""
    done = await _run(daemon, *arguments, stdin=stdin)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# --- people and tickets ------------------------------------------------------------------------


async def test_a_person_and_a_token_from_the_shell(live: Live) -> None:
    """S0-26: one line on stdout, good as a bearer token; a repeat changes nothing."""
    create = ("user", "create", "--email", "Ops@Example.net", "--name", "Ops", "--role", "agent",
              "--department", "IT", "--password-stdin", "--token")  # fmt: skip
    token = await _good(live.daemon, *create, stdin=f"{PASSWORD}\n")
    assert token.count("\n") == 1
    me = (await Person(live.url, token.strip()).get("/auth/me")).expect(200)
    assert (me["email"].lower(), me["role"], me["department"]) == ("ops@example.net", "agent", "IT")
    assert (await live.sign_in("ops@example.net")).id == me["id"]

    again = await _run(live.daemon, *create[:-1], "--role", "admin", "--token", stdin="another\n")
    assert again.returncode == 2  # too short a password is told, needed or not
    again = await _run(live.daemon, *create, "--role", "admin", stdin="another one of mine\n")
    assert again.returncode == 0
    assert "was left as it is" in again.stderr
    same = (await Person(live.url, again.stdout.strip()).get("/auth/me")).expect(200)
    assert same == me
    issued = await _good(live.daemon, "token", "issue", "--email", "ops@example.net")
    assert (await Person(live.url, issued.strip()).get("/auth/me")).expect(200) == me
    assert (await live.sign_in("ops@example.net")).id == me["id"]


async def test_a_ticket_from_the_shell(live: Live) -> None:
    """S0-27: the key alone on stdout; the reporter finds it."""
    robin = await live.person()
    key = await _good(
        live.daemon, "ticket", "create", "--title", "Printer is on fire", "--priority", "high",
        "--tag", "fire", "--tag", "printer", "--reporter", robin.email,
    )  # fmt: skip
    found = (await robin.get(f"/tickets/{key.strip()}")).expect(200)
    assert found["title"] == "Printer is on fire"
    assert (found["priority"], found["tags"]) == ("high", ["fire", "printer"])


# Arguments, stdin, exit status, what the one line says.
MISTAKES: Sequence[tuple[str, str | None, int, str]] = (
    ("user create --email nobody", None, 2, "email: must"),
    ("user create --email a@b.org --role boss", None, 2, "role: must be one of user, agent"),
    ("user create --email a@b.org --password-stdin", "password123\n", 2, "most common passwords"),
    ("ticket create --title x", None, 2, "title: must have at least 3 characters"),
    ("ticket create --title Help --project NOPE", None, 1, "There is no project NOPE"),
    ("db downgrade --to 9999 --yes", None, 1, "There is no migration '9999'"),
    ("--state-dir /proc/desk ticket create --title Help", None, 2, "/proc/desk"),
)
# What click says of options; its last line is the one that counts.
USAGES = (
    ("serve --reload", "--reload is not offered"),
    ("db wait --timeout -1", "'--timeout': -1.0 is not in the range"),
    ("db downgrade --to base", "Make a backup, then add --yes"),
)


async def test_a_mistake_is_one_clear_line(live: Live) -> None:
    """S0-04: and a status that tells usage (2) from failure (1); never a traceback."""
    few = asyncio.Semaphore(2)

    async def told(typed: str, stdin: str | None) -> Done:
        async with few:
            return await _run(live.daemon, *typed.split(), stdin=stdin)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(told(typed, stdin)) for typed, stdin, _, _ in MISTAKES]
        usages = [group.create_task(told(typed, None)) for typed, _ in USAGES]
    for (typed, _, status, says), task in zip(MISTAKES, tasks, strict=True):
        done = task.result()
        assert (done.returncode, done.stdout) == (status, ""), (typed, done)
        assert done.stderr.count("\n") == 1, (typed, done.stderr)
        assert says in done.stderr, (typed, done.stderr)
    for (typed, says), task in zip(USAGES, usages, strict=True):
        done = task.result()
        assert (done.returncode, done.stdout) == (2, ""), (typed, done)
        assert says in done.stderr.splitlines()[-1], (typed, done.stderr)


WATCHED = """
import atexit, gc, sys
from itdesk.__main__ import run

atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 50_000))
sys.argv = ["itdesk", *sys.argv[1:]]
run()
"""


def test_garbage_is_looked_for_once_a_command_is_imported(tmp_path: Path) -> None:
    """And what was imported is not looked through again, not even at the end of the process."""
    for words, said in (("config show", "True True"), ("nothing-like-it", "True")):
        command = [sys.executable, "-c", WATCHED, "--state-dir", str(tmp_path), *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1].startswith(said), done


# --- the database ------------------------------------------------------------------------------


async def _execute(url: str, statement: str, *arguments: str, touched: int | None = None) -> None:
    conn = await asyncpg.connect(url)
    try:
        done = await conn.execute(statement, *arguments)
        assert touched is None or done.split()[-1] == str(touched)
    finally:
        await conn.close()


async def test_the_way_of_a_schema(
    pg_server: Server, empty_database_url: str, new_daemon: NewDaemon
) -> None:
    """Up, recorded, down and up again.

    S0-06, S0-10, S0-11, S0-13, S0-15, S0-17, S2-09, S2-55, S4-24.
    """
    url, desk = empty_database_url, new_daemon(empty_database_url)
    known = Migrations(url).known
    before = await _run(desk, "db", "verify")
    assert before.returncode == 4
    assert before.stdout.startswith(f"current:  nothing\nexpected: {known[-1]}\n")

    first = await _good(desk, "db", "migrate")
    assert first.splitlines() == [*(f"applied {name}" for name in known),
                                  "The schema is at head."]  # fmt: skip
    schema = await pg_server.dump(url)
    for _ in range(2):
        assert await _good(desk, "db", "migrate") == "The schema is at head.\n"
    assert await pg_server.dump(url) == schema
    verified = await _good(desk, "db", "verify")
    assert verified == f"current:  {known[-1]}\nexpected: {known[-1]}\n"

    await _execute(url, "UPDATE projects SET name = 'kept'")
    await _execute(url, "DROP TABLE _yoyo_migration")
    never = await _run(desk, "db", "migrate", "--stamp", "never")
    assert never.returncode == 1
    assert "--stamp never" in never.stderr
    only = await _good(desk, "db", "migrate", "--stamp", "only")
    assert only.splitlines()[:-1] == [f"recorded {name}, which was there already" for name in known]
    await _execute(url, "UPDATE projects SET name = 'kept still' WHERE name = 'kept'", touched=1)

    undone = await _good(desk, "db", "downgrade", "--to", known[-2], "--yes")
    assert undone == f"undid {known[-1]}\n"
    await _good(desk, "db", "migrate")
    assert await pg_server.dump(url) == schema
    await _execute(url, "DELETE FROM _yoyo_migration WHERE migration_id = $1", known[-1])
    assert (await _run(desk, "db", "verify")).returncode == 4


async def test_waiting_for_the_database(own_pg_server: Server, new_daemon: NewDaemon) -> None:
    """S0-09: 1 in time when it does not come, 0 when it does meanwhile, 2 without a URL."""
    desk = new_daemon(await own_pg_server.create())
    await own_pg_server.stop()
    began = time.monotonic()
    late = await _run(desk, "db", "wait", "--timeout", "2")
    # What a busy machine takes to start a program is not what it waited for.
    assert (late.returncode, time.monotonic() - began < 20) == (1, True)
    assert late.stderr.startswith("The database did not answer within 2 s: ")
    assert late.stderr.count("\n") == 1
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_run(desk, "db", "wait", "--timeout", "30"))
        await own_pg_server.start()
    assert waiting.result().returncode == 0

    nothing = new_daemon(None)
    for command, status in (("wait", 2), ("verify", 3)):
        done = await _run(nothing, "db", command)
        assert (done.returncode, done.stderr.count("\n")) == (status, 1)
        assert "database.url is not set (DATABASE_URL)" in done.stderr


async def test_commands_say_when_the_database_is_away(new_daemon: NewDaemon) -> None:
    """O-04, S2-64: one line within 10 s, whatever the command."""
    desk = new_daemon(NOWHERE)
    began = time.monotonic()
    migrate, create, check = await asyncio.gather(
        _run(desk, "db", "migrate"),
        _run(desk, "user", "create", "--email", "a@example.org"),
        _run(desk, "config", "check"),
    )
    # Ten seconds, and what a busy machine takes to start three programs.
    assert time.monotonic() - began < 30
    assert [done.returncode for done in (migrate, create, check)] == [1, 1, 2]
    for done in (migrate, create, check):
        spoken = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert len(spoken) == 1, done.stderr
        assert "Connection refused" in spoken[0]


# --- setting up --------------------------------------------------------------------------------


async def test_a_new_desk_is_set_up_on_nothing(new_daemon: NewDaemon, tmp_path: Path) -> None:
    """S0-24, S2-11, S2-12, S2-50, S3-11: init, config check, seed and serve, as the README has it.

    Sample accounts come from `seed --demo` alone, twice the same; nothing overwrites anything.
    """
    desk = new_daemon(None)
    path = tmp_path / "etc" / "itdesk.toml"
    config = ("--config", str(path))
    said = (await _good(desk, *config, "init")).splitlines()
    assert said[0].startswith(f"wrote {path}")
    assert (desk.state_dir / "jwt-key.pem").stat().st_mode & 0o777 == 0o600
    admin = re.fullmatch(r"first administrator: (\S+) password: (\S+)", said[-1])
    assert admin is not None
    checked = await _run(desk, *config, "config", "check")
    assert checked.returncode == 0, checked.stderr
    assert tomllib.loads(checked.stdout)["plugins"]["clamav"]["port"] == 3310

    path.write_text(path.read_text().replace("port = 8000", "port = 8001"))
    again = await _good(desk, *config, "init")
    assert "was left as it is" in again and "none was created" in again
    forced = await _good(desk, *config, "init", "--force")
    assert f"the one before is {path}.old" in forced
    assert "port = 8001" in path.with_name("itdesk.toml.old").read_text()

    assert await _good(desk, *config, "seed") == "8 new recommendations\n"
    desk.options = ("--port", "0")
    await asyncio.to_thread(desk.start)
    assert desk.first_admin is None
    desk.first_admin = (admin[1], admin[2])
    assert (await live_on(desk)).admin.token
    assert await asyncio.to_thread(desk.stop) == 0


async def test_seed_is_for_play_only(pg_server: Server, new_daemon: NewDaemon) -> None:
    """S2-12, S2-50, S3-11: the demo people sign in with the known password, where they were asked
    for; production refuses to have them, and `config check` finds them (S2-56)."""
    async with started(pg_server) as live:
        desk = live.daemon
        assert await _good(desk, "seed") == "8 new recommendations\n"
        for email in ("admin@example.com", "admin@company.com"):
            body = {"email": email, "password": "password"}
            assert (await live.nobody.post("/auth/login", body)).status == 401
        first = await _good(desk, "seed", "--demo")
        assert first == "7 new people\n30 new tickets\n0 new recommendations\n"
        again = await _good(desk, "seed", "--demo")
        assert again == "0 new people\n0 new tickets\n0 new recommendations\n"
        roles = {"admin@example.com": "admin", "maintainer@example.com": "agent",
                 "reporter@example.com": "user", "admin@company.com": "admin"}  # fmt: skip
        for email, role in roles.items():
            person = await live.sign_in(email, "password")
            assert (await person.get("/auth/me")).expect(200)["role"] == role
        found = (await person.get("/tickets?limit=100")).expect(200)
        tickets = found["items"] if isinstance(found, dict) else found
        assert {t["status"] for t in tickets} == {
            "open", "triaged", "in_progress", "blocked", "closed",
        }  # fmt: skip

        production = new_daemon(desk.env["DATABASE_URL"], ENV="production")
        del production.env["ITDESK_AUTH__BCRYPT_COST"]
        refused = await _run(production, "seed", "--demo")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        checked = await _run(production, "config", "check")
        assert checked.returncode == 2
        assert "accounts: demo accounts: admin@company.com, admin@example.com" in checked.stderr


async def test_config_check_asks_for_a_database(new_daemon: NewDaemon, tmp_path: Path) -> None:
    """S0-14: the environment overrides the file; without both the option is named."""
    unset = await _run(new_daemon(None), "config", "check")
    assert unset.returncode == 2
    assert unset.stderr.startswith("database.url: is not set")
    path = tmp_path / "itdesk.toml"
    path.write_text('[database]\nurl = "postgresql://a:s3cret-in-file@file-host/a"\n')
    desk = new_daemon("postgresql://b:s3cret-in-env@env-host/b", CLAMAV_HOST="av", CLAMAV_PORT="1")
    shown = await _good(desk, "--config", str(path), "config", "show")
    assert "env-host" in shown and "file-host" not in shown
    assert "s3cret" not in shown
    clamav = tomllib.loads(shown)["plugins"]["clamav"]
    assert (clamav["host"], int(clamav["port"])) == ("av", 1)


# --- looking at it -----------------------------------------------------------------------------


async def test_doctor_finds_all_well(live: Live) -> None:
    said = (await _good(live.daemon, "doctor")).splitlines()
    assert all(line.startswith("ok   ") for line in said)
    parts = [line.split()[1] for line in said]
    assert parts[:3] == ["database:", "schema:", "storage:"]
    assert "clamav:" in " ".join(said)


async def test_doctor_names_what_ails_and_the_remedy(
    database_url: str, empty_database_url: str, new_daemon: NewDaemon
) -> None:
    """O-04, S2-64, S4-64: every part is tried for real, by `config check` as well; a failure comes
    with what to do about it."""
    ails = new_daemon(
        database_url, UPLOAD_DIR="/proc/uploads", CLAMAV_HOST="127.0.0.1", CLAMAV_PORT="1"
    )
    done = await _run(ails, "doctor")
    assert done.returncode == 1
    assert "FAIL storage: /proc/uploads" in done.stdout
    assert "FAIL scan engine clamav: clamd at 127.0.0.1:1 cannot be reached" in done.stdout
    fails = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.stdout.count("     -> ") == len(fails)
    checked = await _run(ails, "config", "check")
    assert checked.returncode == 2
    for part in ("storage: /proc/uploads", "scan engine clamav: clamd at 127.0.0.1:1 cannot be"):
        assert part in checked.stderr, checked.stderr

    behind = await _run(new_daemon(empty_database_url), "doctor")
    assert behind.returncode == 1
    assert "FAIL schema: at nothing, expected" in behind.stdout
    assert "-> run `itdesk db migrate`" in behind.stdout


async def test_doctor_compares_the_tables_themselves(
    database_url: str, new_daemon: NewDaemon
) -> None:
    """O-06: the marks are well, what they stand for is not."""
    await _execute(database_url, "ALTER TABLE emails DROP COLUMN sent_at")
    done = await _run(new_daemon(database_url), "doctor")
    assert done.returncode == 1
    assert re.search(r"FAIL schema: at .*, but column emails.sent_at is missing\n", done.stdout)


async def test_an_old_postgresql_is_refused(pg_server: Server, new_daemon: NewDaemon) -> None:
    """S2-03, S4-03: `config check` against PostgreSQL 14 fails; the real one passes."""
    url = await pg_server.create(tcp=True)
    good = await _run(new_daemon(url), "config", "check")
    assert good.returncode == 0, good.stderr

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, old: bool) -> None:
        while piece := await source.read(65536):
            if old:
                piece = re.sub(rb"server_version\x00\d\d", b"server_version\x0014", piece)
            target.write(piece)
        target.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", pg_server.port)
        await asyncio.gather(pump(reader, there, False), pump(back, writer, True))

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as aged:
        port = aged.sockets[0].getsockname()[1]
        old = new_daemon(url.replace(f":{pg_server.port}/", f":{port}/"))
        checked = await _run(old, "config", "check")
        migrated = await _run(old, "db", "migrate")
    assert checked.returncode == 2
    assert "itdesk needs PostgreSQL 15 or later" in checked.stderr
    assert migrated.returncode == 1
    assert "15 or later" in migrated.stderr
    await pg_server.drop(url)


async def test_routes_are_listed_with_who_may_call_them(new_daemon: NewDaemon) -> None:
    desk = new_daemon(None)
    table = orjson.loads(await _good(desk, "routes", "--json"))
    assert {"id", "method", "path", "who"} <= set(table[0])
    assert {"R1", "R11", "R29"} <= {row["id"] for row in table}
    assert len((await _good(desk, "routes")).splitlines()) == len(table)


# --- scanning ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_files_are_scanned_beside_the_daemon(pg_server: Server, clamd: Clamd) -> None:
    """S0-36, S0-38: `scan --once` empties the queue and ends, from anywhere, without PYTHONPATH;
    `scan` goes on until SIGTERM; each file is one line of the log with its id and result."""
    env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES,
           "ITDESK_SCANNER__ENABLED": "false"}  # fmt: skip
    async with started(pg_server, **env) as live:
        alice = await live.person()
        ticket = (await alice.ticket())["key"]
        ids = [(await alice.upload(ticket, b"%d" % n)).expect(201)["id"] for n in range(25)]
        program = [str(Path(sys.executable).parent / "itdesk"), "--state-dir",
                   str(live.daemon.state_dir), "scan"]  # fmt: skip
        environ = {k: v for k, v in live.daemon.environ().items() if k != "PYTHONPATH"}
        done = await asyncio.to_thread(
            subprocess.run, [*program, "--once"], env=environ, cwd="/", capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "scanned 25: 25 CLEAN\n"), done
        assert sorted(_scanned(done.stderr)) == sorted((id, "CLEAN") for id in ids)
        for id in ids:
            assert (await alice.get(f"/attachments/{id}/content")).status == 200

        idle = await _run(live.daemon, "scan", "--once")
        assert (idle.returncode, idle.stdout, _scanned(idle.stderr)) == (0, "scanned 0\n", [])

        log = live.daemon.state_dir / "scan.log"
        with log.open("wb") as output:
            going = await asyncio.to_thread(
                partial(subprocess.Popen, program, env=environ, cwd="/", stderr=output)
            )
        try:
            late = (await alice.upload(ticket, b"late")).expect(201)["id"]
            assert (await alice.scanned(late, seconds=20))["scanned_status"] == "CLEAN"
            going.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(going.wait, 20) == 0
        finally:
            going.kill()
            going.wait()
        assert _scanned(log.read_text()) == [(late, "CLEAN")]


def _scanned(log: str) -> list[tuple[str, str]]:
    lines = [orjson.loads(line) for line in log.splitlines()]
    return [(x["attachment"], x["result"]) for x in lines if x["event"] == "attachment scanned"]


async def test_scan_says_when_nothing_can_be_scanned(pg_server: Server, live: Live) -> None:
    """R-10: with clamd away the command ends at once, non-zero, and no file is CLEAN."""
    env = {**live.daemon.env, "CLAMAV_PORT": "1"}
    away = Daemon(env, live.daemon.state_dir)
    done = await _run(away, "scan", "--once")
    assert (done.returncode, done.stdout) == (1, "")
    spoken = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert spoken == ["nothing could be scanned; `itdesk doctor` says why"]


@pytest.mark.slow
async def test_scan_again_recalls_and_lets_failed_files_have_another_try(
    pg_server: Server,
) -> None:
    """X28, C12: `scan --rescan` beside the daemon: what it says, what it changes, how it ends."""
    with Clamd() as clamd:
        env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES}
        async with started(pg_server, **env) as live:
            alice = await live.person()
            ticket = (await alice.ticket())["key"]
            kept, bad = b"harmless words", b"condemned later"
            ids = []
            for content in (kept, bad):
                ids.append((await alice.upload(ticket, content)).expect(201)["id"])
                assert (await alice.scanned(ids[-1]))["scanned_status"] == "CLEAN"
                assert (await alice.get(f"/attachments/{ids[-1]}/content")).raw == content
            sealed = (await alice.upload(ticket, samples.encrypted_zip(b"x"), "a.zip")).expect(201)
            assert (await alice.scanned(sealed["id"]))["scan_reason"] == "encrypted"
            line = f"{hashlib.sha256(bad).hexdigest()}:{len(bad)}:Late\n"
            clamd.socket.with_name("db").joinpath("late.hsb").write_text(line)
            clamd.restart()
            async with following(live.admin) as stream:
                done = await _run(live.daemon, "scan", "--rescan", "--since", "1h")
                assert done.returncode == 0, done
                said = done.stdout.splitlines()
                assert said[0] == "to be scanned anew: 1"
                assert said[1] in ("scanned 1: 1 FAILED", "scanned 0")  # the daemon may be faster
                assert said[2] == f"recalled {ids[1]} Late.UNOFFICIAL"
                assert said[3] == "scanned again 2: 1 clean, 1 recalled"
                told = await stream.until("attachment.recalled")
                assert told["data"]["details"]["attachment_id"] == ids[1]
                assert "downloaded_by" not in told["data"]["details"]
            refused = await alice.get(f"/attachments/{ids[1]}/content")
            refused.refused(403, "E_ATTACHMENT_INFECTED")
            assert (await alice.get(f"/attachments/{ids[0]}/content")).raw == kept
            recalls = (await live.admin.get("/events?type=attachment.recalled")).expect(200)
            assert [e["data"]["downloaded_by"] for e in recalls] == [[alice.id]]
            actions = (await alice.get(f"/tickets/{ticket}/history")).expect(200)
            assert "attachment_recalled" in [line["action"] for line in actions]
            again = await _run(live.daemon, "scan", "--rescan", "--infected")
            assert again.stdout.splitlines()[0] == "to be scanned anew: 2"
            wrong = await _run(live.daemon, "scan", "--rescan", "--since", "soon")
            assert wrong.returncode == 2 and "write 2026-11-01" in wrong.stderr
            clamd.stop()
            away = await _run(live.daemon, "scan", "--rescan")
            assert (away.returncode, away.stdout) == (1, "")


async def test_what_is_in_the_way_is_named(new_daemon: NewDaemon) -> None:
    """O-04: a file where a directory belongs is one line, not a traceback."""
    desk = new_daemon(None)
    (desk.state_dir / "postgres").touch()
    done = await _run(desk, "serve")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{desk.state_dir}/postgres: File exists\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take its own rights away")
async def test_a_directory_that_may_not_be_written_is_named(
    new_daemon: NewDaemon, tmp_path: Path
) -> None:
    """O-04, S2-52: the state directory of somebody else is one line, not a traceback."""
    desk = new_daemon(None)
    (desk.state_dir / "theirs").mkdir()
    os.chown(desk.state_dir, 65534, 65534)
    desk.state_dir.chmod(0o755)
    command = [sys.executable, "-m", "itdesk", "--state-dir", str(desk.state_dir), "serve"]
    done = await asyncio.to_thread(
        subprocess.run,
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all",
         *command],
        env=desk.environ(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(desk.state_dir) in done.stderr and "ermission denied" in done.stderr
