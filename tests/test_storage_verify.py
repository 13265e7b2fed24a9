"""`itdesk storage verify`, and the same done by the schedule."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from itdesk.actors.worker import Worker
from itdesk.runtime.actor import TICK
from tests.support.daemon import Daemon
from tests.support.desk import Bench, bench_on

TEXT = b"harmless words\n"


def stray(root: Path, key: str) -> str:
    """Write an object three days ago."""
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"stray")
    then = path.stat().st_mtime - 3 * 86_400
    os.utime(path, (then, then))
    return key


async def _clean_file(bench: Bench) -> tuple[str, Path]:
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    await bench.scan()
    key = await bench.sql("SELECT storage_version FROM attachments WHERE id = $1", file.id)
    return str(file.id), bench.desk.upload_dir / str(key)


@pytest.mark.slow
async def test_the_command_prints_both_lists_and_removes_when_told(
    database_url: str,
    clamd_env: dict[str, str],
    new_daemon: Callable[..., Daemon],
    tmp_path: Path,
) -> None:
    """0 when all is well, 4 when something is not, 0 again when that was mended."""
    uploads = tmp_path / "uploads"
    daemon = new_daemon(database_url, UPLOAD_DIR=str(uploads))
    async with bench_on(database_url, UPLOAD_DIR=str(uploads), **clamd_env) as bench:
        file, path = await _clean_file(bench)
    well = daemon.run("storage", "verify")
    assert (well.returncode, well.stdout) == (0, ""), well.stderr

    ticket, gone = uuid4(), uuid4()
    key = stray(uploads, f"clean/tickets/{ticket}/{gone}.1")
    path.unlink()
    found = daemon.run("storage", "verify")
    assert found.returncode == 4
    orphan, missing = sorted(found.stdout.splitlines(), reverse=True)
    assert orphan.split("\t")[:3] == ["orphan", key, "5"] and orphan.endswith("no such file")
    assert missing.split("\t")[:2] == ["missing", file] and missing.endswith("a.txt")
    assert "--delete-orphans" in found.stderr and (uploads / key).exists()

    removed = daemon.run("storage", "verify", "--delete-orphans")
    assert removed.returncode == 4 and "removed 1" in removed.stderr  # one is still missing
    assert not (uploads / key).exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(TEXT)
    assert daemon.run("storage", "verify").returncode == 0


async def test_a_storage_that_cannot_be_read_is_said_in_one_line(
    database_url: str, new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    daemon = new_daemon(database_url, UPLOAD_DIR=str(tmp_path / "file"))
    done = daemon.run("storage", "verify")
    assert done.returncode == 1
    assert "The file storage does not work at the moment." in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_schedule_removes_what_is_nobodys_and_journals_it(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """Once for all daemons; what it did is in the journal, when it did or found something."""
    async with bench_on(database_url, **clamd_env) as bench:
        desk, worker = bench.desk, Worker(bench.desk.jobs)

        async def next_night() -> None:
            await bench.sql("DELETE FROM periodic_runs")
            await desk.schedules.start_due()
            worker.tell(TICK)
            while len(worker.mailbox):
                await worker.step()
            assert await bench.sql("SELECT count(*) FROM jobs WHERE state <> 'done'") == 0

        async def told() -> object:
            return await bench.sql(
                "SELECT data FROM events WHERE type = 'storage.verified'"
                " ORDER BY created_at DESC LIMIT 1"
            )

        _, path = await _clean_file(bench)
        await next_night()
        assert await told() is None
        key = stray(desk.upload_dir, f"quarantine/tickets/{uuid4()}/{uuid4()}")
        await next_night()
        assert not (desk.upload_dir / key).exists() and path.read_bytes() == TEXT
        said = await told()
        assert isinstance(said, dict) and (said["removed"], said["missing"]) == (1, 0)
        shutil.rmtree(desk.upload_dir / "clean")
        await next_night()
        said = await told()
        assert isinstance(said, dict) and (said["removed"], said["missing"]) == (0, 1)


def test_the_extra_that_is_missing_is_named(
    database_url: str, new_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Without the client for S3: what to install, in the message that ends the start."""
    for name in ("aiobotocore", "botocore"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not installed')")
    daemon = new_daemon(
        database_url,
        PYTHONPATH=str(tmp_path),
        S3_ENDPOINT="http://127.0.0.1:9",
        S3_BUCKET="desk",
        S3_ACCESS_KEY="key",
        S3_SECRET_KEY="secret",
    )
    done = daemon.run("serve", "--port", "0")
    assert done.returncode == 2
    assert "pip install 'itdesk[s3]'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("reason", ["changed", "missing"])
async def test_bytes_that_were_not_scanned_are_not_served(
    database_url: str, clamd_env: dict[str, str], reason: str
) -> None:
    """S-25: a direct write into the clean area, small or large, never gives a whole file."""
    async with bench_on(database_url, **clamd_env) as bench:
        desk, alice = bench.desk, await bench.person()
        ticket = await bench.ticket(alice)
        for size in (100, (2 << 20) + 7):
            file = await bench.upload(alice, ticket, b"a" * size)
            await bench.scan()
            assert await bench.served(alice, file) == b"a" * size
            key = await bench.sql("SELECT storage_version FROM attachments WHERE id=$1", file.id)
            path = desk.upload_dir / str(key)
            if reason == "changed":
                path.write_bytes(b"a" * (size - 1) + b"!")
            else:
                path.unlink()
            served = b""
            with pytest.raises(Exception, match="the storage, and it is not given out"):
                content = await desk.attachments.open(alice, file.id)
                async for chunk in content.chunks:
                    served += chunk
            assert b"!" not in served and (size > 1 << 20 or served == b"")
        journalled = "SELECT count(*) FROM events WHERE type = 'attachment.changed'"
        assert await bench.sql(journalled) == (2 if reason == "changed" else 0)
