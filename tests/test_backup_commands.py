"""Backups, people's data and the diagnosis as an operator types them: as the README shows them."""

import asyncio
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from itdesk.desk import manifest as on_disk
from itdesk.desk import restoring
from itdesk.desk.manifest import silent
from itdesk.model import Role
from itdesk.store import pgtools
from itdesk.store.pgtools import ToolFailed
from tests.support.daemon import Daemon, make_daemon
from tests.support.desk import bench_on
from tests.support.s3 import S3Server, s3_server
from tests.test_readme import _blocks as blocks

__all__ = ["s3_server"]


def typed(daemon: Daemon, lines: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run lines of the README in a shell that knows the daemon's settings."""
    bin_dir = Path(sys.executable).parent
    known = {**daemon.environ(), "ITDESK_STATE_DIR": str(daemon.state_dir), **env}
    known["PATH"] = f"{bin_dir}:{known['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines.replace("/srv/backups", "backups")],
        cwd=cwd, env=known, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


async def test_the_commands_of_the_readme_work_as_written(
    fresh_database: Callable[[], Awaitable[str]], empty_database_url: str, tmp_path: Path
) -> None:
    """S2-59, C14: back up, verify, restore elsewhere, resume; export and erase somebody."""
    one, two = make_daemon(await fresh_database()), make_daemon(empty_database_url)
    one.env["ITDESK_BACKUP__DIRECTORY"] = str(tmp_path / "backups")
    try:
        await asyncio.to_thread(_typed_in_order, one, two, tmp_path)
    finally:
        for daemon in (one, two):
            shutil.rmtree(daemon.state_dir, ignore_errors=True)


def _typed_in_order(one: Daemon, two: Daemon, tmp_path: Path) -> None:
    opened = one.run("user", "create", "--email", "alice@example.org", "--name", "Alice Liddell")
    assert opened.returncode == 0, opened.stderr
    (save,), (load,), (people,) = (
        blocks(heading, "sh") for heading in ("Backups", "Restoring", "People's data")
    )
    saved = typed(one, save, tmp_path)
    assert saved.returncode == 0, saved.stderr
    (backup,) = on_disk.whole_backups(tmp_path / "backups")
    assert saved.stdout.splitlines()[0] == f"backups/{backup.name}"
    assert "all as they were" in saved.stdout
    assert "readable by you alone" in saved.stderr

    loaded = typed(two, load, tmp_path, BACKUP=str(backup))
    assert loaded.returncode == 0, loaded.stderr
    for line in ("restored: the desk is as it was", "itdesk resume --drop-mail", "resumed;"):
        assert line in loaded.stdout, loaded.stdout + loaded.stderr
    assert "waits for `itdesk resume`" in loaded.stderr
    key = "jwt-key.pem"
    assert (two.state_dir / key).read_bytes() == (one.state_dir / key).read_bytes()
    gone = typed(two, people, tmp_path)
    assert gone.returncode == 0, gone.stderr
    assert "Alice Liddell" in (tmp_path / "alice/account-0001.json").read_text()
    assert (tmp_path / "alice").stat().st_mode & 0o077 == 0
    dump = asyncio.run(_names(two.env["DATABASE_URL"]))
    assert "Liddell" not in dump


async def _names(url: str) -> str:
    conn = await asyncpg.connect(url)
    try:
        tables = ("users", "events", "tickets", "emails")
        rows = [await conn.fetch(f"SELECT t::text FROM {name} t") for name in tables]  # noqa: S608
        return str(rows)
    finally:
        await conn.close()


# Where a secret can stand; each gets one of its own.
_SECRETS = (
    "AUTH__JWT_SECRET METRICS__TOKEN PLUGINS__SMTP__PASSWORD PLUGINS__S3__SECRET_KEY"
    " PLUGINS__S3__ACCESS_KEY PLUGINS__JIRA__API_TOKEN PLUGINS__JIRA__WEBHOOK_SECRET"
    " PLUGINS__GOOGLE__CLIENT_SECRET PLUGINS__OTHER__API_KEY PLUGINS__OTHER__DB_PASSWORD"
    " PLUGINS__OTHER__HMAC_SECRET PLUGINS__OTHER__CREDENTIALS PLUGINS__OTHER__PASSPHRASE"
).split()


async def test_no_secret_is_in_a_diagnosis(database_url: str, tmp_path: Path) -> None:
    """S-34: 30 planted ones, in settings, addresses, log lines and rows; what helps is there."""
    planted = {name: f"pl4nted-{n:02d}-{'xYz9' * 9}" for n, name in enumerate(_SECRETS)}
    password = "pl4nted-database-password"
    url = database_url.replace("itdesk@", f"itdesk:{password}@")
    daemon = make_daemon(url, **{f"ITDESK_{name}": value for name, value in planted.items()})
    daemon.env |= {
        "ITDESK_AUTH__JWT_ALGORITHM": "HS256",
        "ITDESK_PLUGINS__OTHER__URL": "https://u:pl4nted-in-an-address@example.org/?token=pl4nted-q",
        "ITDESK_PLUGINS__OTHER__ENABLED": "false",
        "ITDESK_PLUGINS__SMTP__ENABLED": "false",
        "ITDESK_PLUGINS__S3__ENABLED": "false",
        "ITDESK_PLUGINS__JIRA__ENABLED": "false",
        "ITDESK_PLUGINS__GOOGLE__ENABLED": "false",
    }
    said = [
        "Authorization: Bearer pl4nted-bearer-0123456789",
        "Cookie: itdesk_access=pl4nted-cookie",
        "password=pl4nted-log-password",
        '{"refresh_token": "pl4nted-json-token"}',
        "postgresql://desk:pl4nted-dsn@db/desk",
        "smtp AUTH secret='pl4nted-smtp'",
        "X-Hub-Signature: sha256=pl4nted-signature",
        "https://s3/x?X-Amz-Signature=pl4nted-presign&X-Amz-Credential=pl4nted-cred",
        "api_key: 'pl4nted-api-key'",
        f"known: {planted['METRICS__TOKEN']} and {planted['PLUGINS__SMTP__PASSWORD']}",
    ]
    (daemon.state_dir / "postgres").mkdir()
    (daemon.state_dir / "postgres/log").write_text("\n".join(["a useful line", *said]) + "\n")
    conn = await asyncpg.connect(database_url)
    for n, line in enumerate(said):
        await conn.execute(
            "INSERT INTO jobs (type, args, state, attempts, last_error, finished_at)"
            " VALUES ($1, '{\"token\": \"pl4nted-args\"}', 'failed', 1, $2, now())",
            f"broken.{n}", line,
        )  # fmt: skip
    await conn.execute(
        "INSERT INTO workflow_targets (name, url, secret)"
        " VALUES ('t', 'https://x', 'pl4nted-target-secret')"
    )
    await conn.execute(
        "INSERT INTO tickets (key, project_id, title) SELECT 'TSK-7', id, 'pl4nted-title'"
        " FROM projects LIMIT 1"
    )
    await conn.close()
    try:
        (line,) = [block for block in blocks("Operation", "sh") if "diagnose" in block]
        done = await asyncio.to_thread(typed, daemon, line, tmp_path)
        assert done.returncode == 0, done.stderr
        bundle = tmp_path / "desk.tar.gz"
        assert bundle.stat().st_mode & 0o077 == 0
        with tarfile.open(bundle) as tar:
            parts = {
                member.name.removeprefix("itdesk-diagnose/"): file.read().decode()
                for member in tar.getmembers()
                if (file := tar.extractfile(member)) is not None
            }
    finally:
        shutil.rmtree(daemon.state_dir, ignore_errors=True)
    leaks = {name: [w for w in text.split() if "pl4nted" in w] for name, text in parts.items()}
    assert {name: found for name, found in leaks.items() if found} == {}
    assert len(planted) + len(said) + 7 >= 30
    assert "a useful line" in parts["postgres.log.txt"]
    assert '"broken.0"' in parts["database.json"] and '"at_head"' not in parts["database.json"]
    assert "jwt_algorithm" in parts["settings.toml"]
    assert "PostgreSQL" in parts["doctor.txt"] and '"aiohttp"' in parts["versions.json"]
    assert "filesystem" in parts["plugins.json"]
    assert not [n for n, text in parts.items() if text.startswith("not collected")]


async def test_files_in_s3_are_backed_up_and_restored(
    fresh_database: Callable[[], Awaitable[str]],
    empty_database_url: str,
    s3_server: S3Server,
    tmp_path: Path,
) -> None:
    """The same with objects in a bucket, restored into the file system: keys are all they share."""
    async with bench_on(await fresh_database(), **s3_server.env) as bench:
        agent = await bench.person(Role.AGENT)
        file = await bench.upload(agent, await bench.ticket(agent), b"in a bucket")
        await bench.scan()
        path, made = await bench.desk.backups.make(tmp_path)
        assert made.storage == "s3" and made.failures == [] and len(made.objects) == 1
    await restoring.restore_database(empty_database_url, path, made, silent)
    async with bench_on(empty_database_url) as other:
        await restoring.restore_files(other.desk.storage, path, made, silent)
        await restoring.finish(other.desk.db, other.desk.storage, made)
        assert await other.served(agent, file) == b"in a bucket"
        _, again = await other.desk.backups.make(tmp_path)
        assert again.lost == [] and again.objects == made.objects


async def test_too_old_programs_are_refused_with_what_to_install() -> None:
    """One clear line when no pg_dump is as new as the server."""
    with pytest.raises(ToolFailed, match=r"PostgreSQL 99 .*apt-get install postgresql-client-99"):
        await pgtools.find(99)


async def test_no_password_of_the_database_is_in_a_list_of_processes() -> None:
    """S-34: it stands in a file that only this account reads, and that is gone afterwards."""
    url = "postgresql://desk:s3cr3t%2Fpw@127.0.0.1:5/desk?sslmode=require"
    async with pgtools.service(url) as environ:
        assert "s3cr3t" not in str(environ)
        path = Path(environ["PGSERVICEFILE"])
        assert path.stat().st_mode & 0o077 == 0
        assert "password=s3cr3t/pw" in path.read_text()
        assert "sslmode=require" in path.read_text()
    assert not path.exists()
