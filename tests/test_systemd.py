"""The units: what systemd says of them, and the daemon under the filters that they ask for."""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from itdesk.config import load, secret_values
from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Live, make_daemon, running
from tests.support.load import eventually
from tests.support.nginx import PROGRAM, certify
from tests.support.postgres import Server
from tests.support.sandbox import settings_of, system_calls

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "systemd"
SERVICES = ("itdesk.service", "itdesk-migrate.service")
SANDBOX = (sys.executable, str(ROOT / "tests/support/sandbox.py"))
CONFINED = (*SANDBOX, str(UNITS / "itdesk.service"))


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with an itdesk that is there."""
    folder = tmp_path / "units"
    folder.mkdir()
    itdesk = Path(sys.executable).with_name("itdesk")
    for unit in UNITS.glob("itdesk*.s*"):
        text = unit.read_text()
        (folder / unit.name).write_text(text.replace("/opt/itdesk/bin/itdesk", str(itdesk)))
    return folder


def _verify(units: Path) -> tuple[int, list[str]]:
    """Return the exit status of `systemd-analyze verify` and what it says about our units."""
    names = [str(path) for path in sorted(units.glob("itdesk*.s*"))]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, [line for line in done.stderr.splitlines() if "itdesk" in line]


def _exposure(unit: Path, threshold: int) -> tuple[int, str]:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", str(unit)],
        capture_output=True, text=True, check=False, env={**os.environ, "SYSTEMD_PAGER": "cat"},
    )  # fmt: skip
    return done.returncode, done.stdout[-300:] + done.stderr[-300:]


def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    """O-10: no key that it does not know, no program that is not there, no unit missing."""
    assert _verify(units) == (0, [])


@pytest.mark.parametrize("wrong", ["ProtectSytem=strict", "ExecStopPost=/nowhere/program"])
def test_what_is_wrong_with_a_unit_would_be_seen(units: Path, wrong: str) -> None:
    """O-10: an unknown key is only a warning to systemd, so its words count and not its status."""
    unit = units / "itdesk.service"
    unit.write_text(unit.read_text().replace("[Service]", f"[Service]\n{wrong}"))
    assert _verify(units) != (0, [])


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("change", ["", "MemoryDenyWriteExecute=no"])
def test_the_services_are_exposed_as_little_as_promised(
    units: Path, name: str, change: str
) -> None:
    """O-10: 1.2 at most, also with the drop-in for yara."""
    unit = units / name
    unit.write_text(unit.read_text() + f"\n[Service]\n{change}\n")
    status, said = _exposure(unit, 12)
    assert status == 0, said
    unit.write_text(unit.read_text() + "\n[Service]\nPrivateUsers=no\nNoNewPrivileges=no\n")
    assert _exposure(unit, 12)[0] == 1


def test_both_services_are_confined_alike() -> None:
    """O-10: the hardening and the secrets are written twice, and are the same."""
    first, second = (settings_of(UNITS / name) for name in SERVICES)
    own = {"ExecReload", "Restart", "RestartSec", "TimeoutStopSec", "WatchdogSec", "KillMode",
           "LimitNOFILE", "Requires", "StartLimitIntervalSec", "WantedBy", "Also"}  # fmt: skip
    assert set(first) - set(second) == own
    assert set(second) - set(first) == {"ExecStartPre"}
    different = {key for key in set(first) & set(second) if first[key] != second[key]}
    assert different <= {"Description", "After", "Wants", "Type", "ExecStart", "TimeoutStartSec"}
    assert (UNITS / "itdesk-yara.conf").read_text().endswith("\nMemoryDenyWriteExecute=no\n")


def test_the_unit_grants_the_time_that_the_daemon_takes() -> None:
    """S0-07, P-12: systemd kills neither a daemon that waits for its schema nor one that drains."""
    told, settings = settings_of(UNITS / "itdesk.service"), load(state_dir=Path("/x"), environ={})
    assert int(told["TimeoutStartSec"][0]) > settings.database.migration_wait_seconds
    assert int(told["TimeoutStopSec"][0]) > settings.server.drain_seconds + 10
    assert (told["Type"], told["Restart"]) == (["notify"], ["always"])
    assert "itdesk-migrate.service" in told["After"][0] and "itdesk-migrate" in told["Wants"][0]


def test_the_account_and_the_directories_are_declared(tmp_path: Path) -> None:
    """S4-04: what sysusers and tmpfiles make of the two files, in a root of their own."""
    (tmp_path / "etc").mkdir()
    for unit in SERVICES:
        assert settings_of(UNITS / unit)["User"] == ["itdesk"]
    # Without the rights to make it, only the words are read.
    root = os.geteuid() == 0
    for program, file in (("sysusers", "sysusers.conf"), ("tmpfiles", "tmpfiles.conf")):
        how = [] if root else {"sysusers": ["--dry-run"], "tmpfiles": ["--prefix=/none"]}[program]
        action = ["--create"] if program == "tmpfiles" else []
        done = subprocess.run(
            [f"systemd-{program}", f"--root={tmp_path}", *action, *how, str(UNITS / file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "ignoring" not in done.stderr.lower()
    if root:
        assert "itdesk:" in (tmp_path / "etc/passwd").read_text()
        found = (tmp_path / "etc/itdesk").stat()
        assert (found.st_uid, found.st_mode & 0o7777) == (0, 0o2750)
        assert found.st_gid == int(_field(tmp_path / "etc/group", "itdesk", 2))
        assert (tmp_path / "etc/credstore").stat().st_mode & 0o777 == 0o700


def _field(file: Path, name: str, number: int) -> str:
    (line,) = [row for row in file.read_text().splitlines() if row.startswith(f"{name}:")]
    return line.split(":")[number]


def test_every_secret_can_come_from_the_credentials_of_the_unit(tmp_path: Path) -> None:
    """S2-56: the names in the unit are those that options take, and cover every secret."""
    names = settings_of(UNITS / "itdesk.service")["LoadCredential"]
    for name in names:
        (tmp_path / name).write_text(f"postgresql://x:{name}-{'s' * 30}@/x")
    toml = tmp_path / "itdesk.toml"
    toml.write_text(
        """
        [database]
        url_file = "itdesk.database-url"
        [auth]
        jwt_algorithm = "HS256"
        jwt_secret_file = "itdesk.jwt-secret"
        [metrics]
        token_file = "itdesk.metrics-token"
        [plugins.s3]
        endpoint = "http://s3"
        bucket = "b"
        access_key_file = "itdesk.s3-access-key"
        secret_key_file = "itdesk.s3-secret-key"
        [plugins.smtp]
        host = "mail"
        password_file = "itdesk.smtp-password"
        [plugins.jira]
        base_url = "https://j.example.org"
        api_token_file = "itdesk.jira-api-token"
        webhook_secret_file = "itdesk.jira-webhook-secret"
        [plugins.google]
        client_id = "x"
        client_secret_file = "itdesk.google-client-secret"
        [plugins.oidc]
        issuer = "https://i.example.org"
        client_id = "x"
        client_secret_file = "itdesk.oidc-client-secret"
        """
    )
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "ITDESK_CONFIG": str(toml)}
    found = " ".join(secret_values(load(state_dir=tmp_path, environ=environ)))
    assert [name for name in names if name not in found] == []


def test_the_production_settings_load(tmp_path: Path) -> None:
    """S2-56, S4-04: the file that the README installs needs no more than a name."""
    settings = load(config_path=ROOT / "etc/itdesk.production.toml", state_dir=tmp_path, environ={})
    assert settings.production and not settings.embedded
    assert settings.warnings == ()


@pytest.mark.parametrize("name", ["itdesk.conf"])
def test_nginx_takes_its_example(tmp_path: Path, name: str) -> None:
    """S2-57: TLS in front, as shipped, but for where the certificate lies."""
    certify(tmp_path)
    text = (ROOT / "etc/nginx" / name).read_text()
    text = text.replace("/etc/ssl/certs/itdesk.pem", str(tmp_path / "cert.pem"))
    text = text.replace("/etc/ssl/private/itdesk.key", str(tmp_path / "key.pem"))
    text = re.sub(r"listen (\[::\]:)?(80|443)", r"listen \g<1>1\g<2>", text)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {text} }}"
    )
    done = subprocess.run(
        [PROGRAM, "-t", "-p", str(tmp_path), "-e", f"{tmp_path}/log", "-c", "nginx.conf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "warn" not in done.stderr, done.stderr


@asynccontextmanager
async def _confined(pg: Server, unit: Path, **env: str) -> AsyncIterator[Live]:
    url = await pg.create()
    daemon = make_daemon(url, **env)
    daemon.through = (*SANDBOX, str(unit))
    try:
        async with running(daemon) as live:
            yield live
    finally:
        await pg.drop(url)


async def test_the_daemon_works_under_the_filters_of_its_unit(
    pg_server: Server, clamd: Clamd, tmp_path: Path
) -> None:
    """O-10: SystemCallFilter= and MemoryDenyWriteExecute= forbid nothing that it does.

    The filters are real; what they forbid is forbidden in the process that becomes the daemon.
    """
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(path))
        systemd.setblocking(False)
        env = {"CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES}
        env |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "1000000"}
        async with _confined(pg_server, UNITS / "itdesk.service", **env) as live:
            process = live.daemon.process
            assert process is not None
            assert _field_of_status(process.pid, "Seccomp") == "2"
            alice = await live.person()
            ticket = await alice.ticket()
            file = (await alice.upload(ticket["key"], b"hello")).expect(201)
            assert (await alice.scanned(file["id"]))["scanned_status"] == "CLEAN"
            assert (await alice.get(f"/attachments/{file['id']}/content")).raw == b"hello"
            heard: list[str] = []

            async def pinged() -> bool:
                while True:
                    try:
                        heard.append(systemd.recv(1000).decode())
                    except BlockingIOError:
                        return "WATCHDOG=1" in heard

            await eventually(pinged, seconds=10)
            assert heard[0].startswith("READY=1\n") or heard[0] == "WATCHDOG=1"
            assert any(told.startswith("READY=1\n") for told in heard)
            assert await asyncio.to_thread(live.daemon.stop) == 0


def _field_of_status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name}:")]
    return line.split()[1]


async def test_yara_needs_its_drop_in_and_says_so(pg_server: Server, tmp_path: Path) -> None:
    """O-10: what yara compiles may not be executed; with the drop-in it scans."""
    async with _confined(pg_server, UNITS / "itdesk.service") as live:

        async def told() -> bool:
            parts = (await live.nobody.call("GET", "/readyz")).json["checks"]
            return "MemoryDenyWriteExecute" in str(parts)

        await eventually(told, seconds=30)
    unit = tmp_path / "itdesk.service"
    drop_in = (UNITS / "itdesk-yara.conf").read_text()
    text = (UNITS / "itdesk.service").read_text()
    unit.write_text(text.replace("MemoryDenyWriteExecute=yes\n", "") + drop_in)
    async with _confined(pg_server, unit) as live:
        file = (await live.admin.upload((await live.admin.ticket())["key"], b"x")).expect(201)
        assert (await live.admin.scanned(file["id"]))["scanned_status"] == "CLEAN"


def test_every_dependency_can_be_imported_under_the_filters() -> None:
    """O-10: those that a running daemon has not imported already."""
    names = ("aiobotocore.session aiosmtplib jwt segno yoyo psycopg cryptography.x509 "
             "itdesk_plugins.s3 itdesk_plugins.oidc itdesk_plugins.smtp")  # fmt: skip
    program = f"import importlib\nfor n in {names.split()}: importlib.import_module(n)\n"
    done = subprocess.run(
        [*CONFINED, sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_filters_of_the_tests_forbid_what_systemd_would() -> None:
    """O-10: the two tests above could not fail otherwise."""
    allowed = system_calls(settings_of(UNITS / "itdesk.service")["SystemCallFilter"])
    assert {"read", "epoll_wait", "connect", "execve"} <= allowed
    assert not {"mount", "setuid", "ptrace", "bpf", "sched_setaffinity", "reboot"} & allowed
    program = (
        "import mmap, os\n"
        "for act in (lambda: mmap.mmap(-1, 4096, prot=7), lambda: os.sched_setaffinity(0, {0}),\n"
        "            lambda: os.chroot('/')):\n"
        "    try: act()\n"
        "    except OSError as exc: print(exc.errno)\n"
    )
    done = subprocess.run(
        [*CONFINED, sys.executable, "-c", program],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "1", "1"], done.stderr
