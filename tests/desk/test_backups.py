"""What a backup is, what is none, and what a restored desk does and does not do."""

import asyncio
import fcntl
import math
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio

from itdesk.desk import manifest as on_disk
from itdesk.desk import restoring
from itdesk.desk.backups import BackupFailed, Backups
from itdesk.desk.jobs import Job
from itdesk.desk.manifest import BackupBroken, silent
from itdesk.errors import Conflict, DeskError, NotFound
from itdesk.hookspecs import JobType
from itdesk.model import Caller, Role
from itdesk.runtime.clock import Clock
from itdesk.store import backups
from tests.desk.test_mail import queued, work
from tests.support.desk import Bench, bench_on
from tests.support.smtp import MailServer


@pytest.fixture
def target() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="itdesk-backups-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def bench(database_url: str) -> AsyncIterator[Bench]:
    async with bench_on(database_url) as bench:
        yield bench


async def _with_file(bench: Bench, *, scanned: bool = True) -> tuple[Caller, Any]:
    agent = await bench.person(Role.AGENT)
    file = await bench.upload(agent, await bench.ticket(agent), b"some words", "a.txt")
    if scanned:
        await bench.scan()
    return agent, file


async def test_a_backup_is_private_whole_and_proved_by_a_scratch_restore(
    bench: Bench, target: Path, empty_database_url: str
) -> None:
    """O-09: counts, journal, hashes and invariants are compared after a real restore."""
    await _with_file(bench)
    path, made = await bench.desk.backups.make(target)

    assert on_disk.whole_backups(target) == [path]
    assert {stat.st_mode & 0o077 for stat in (p.stat() for p in [path, *path.rglob("*")])} == {0}
    assert len(made.objects) == 1 and made.failures == []
    await on_disk.check(path, on_disk.read(path), silent)
    await restoring.restore_database(empty_database_url, path, made, silent)
    assert await restoring.differences(empty_database_url, made) == []

    conn = await asyncpg.connect(empty_database_url)
    await conn.execute("DELETE FROM ticket_assignees; UPDATE tickets SET version = version + 1")
    await conn.execute("UPDATE journal_head SET last_seq = last_seq + 1")
    await conn.close()
    wrong = await restoring.differences(empty_database_url, made)
    assert any("last_seq" in line for line in wrong)
    assert any("does not end with their version" in line for line in wrong)


async def test_every_single_changed_byte_is_noticed(bench: Bench, target: Path) -> None:
    """A damaged backup is refused before anything is touched."""
    await _with_file(bench)
    path, made = await bench.desk.backups.make(target)
    for name in (*made.files, *(f"{on_disk.OBJECTS}/{key}" for key in made.objects)):
        before = (path / name).read_bytes()
        (path / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(BackupBroken, match="other content"):
            await on_disk.check(path, made, silent)
        (path / name).unlink()
        with pytest.raises(BackupBroken, match="cannot be read"):
            await on_disk.check(path, made, silent)
        (path / name).write_bytes(before)
    await on_disk.check(path, made, silent)


async def test_an_unfinished_backup_is_never_taken_for_a_whole_one(
    bench: Bench, target: Path
) -> None:
    """Cut anywhere, it has no name of its own; what a kill left is swept by the next one."""

    def cut(step: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await bench.desk.backups.make(target, progress=cut)
    assert list(target.iterdir()) == []
    assert await bench.sql("SELECT error FROM backup_runs") is not None

    killed, going = target / "2020-a.unfinished", target / "2020-b.unfinished"
    for path in (killed, going):
        path.mkdir()
        (path / "in-progress").touch()
        (path / on_disk.MANIFEST).write_text("{}")
    with (going / "in-progress").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole, _ = await bench.desk.backups.make(target)
    assert on_disk.whole_backups(target) == [whole]
    assert not killed.exists() and going.exists()
    with pytest.raises(BackupBroken, match="never finished"):
        on_disk.read(going)
    with pytest.raises(BackupBroken, match=whole.name):
        on_disk.read(target)


async def test_the_newest_backups_are_kept(bench: Bench, target: Path) -> None:
    """--keep counts whole backups only, and what is beside them stays."""
    (target / "notes.txt").write_text("mine")
    made = [(await bench.desk.backups.make(target, keep=2))[0] for _ in range(3)]
    assert [path for path in made if path.exists()] == made[1:]
    assert (target / "notes.txt").exists()


async def test_a_missing_object_is_named_and_the_backup_is_no_good_one(
    bench: Bench, target: Path
) -> None:
    """The manifest, the record of runs and readiness say it; older backups are kept."""
    _, file = await _with_file(bench)
    good, _ = await bench.desk.backups.make(target)
    shutil.rmtree(bench.desk.upload_dir / "clean")
    _, made = await bench.desk.backups.make(target, keep=1)
    assert [(lost.attachment, lost.why) for lost in made.failures] == [(file.id, "missing")]
    assert good.exists()
    assert "1 files" in str(await bench.sql("SELECT max(error) FROM backup_runs"))


async def test_an_object_with_other_bytes_than_its_row_says_is_not_backed_up_as_good(
    bench: Bench, target: Path
) -> None:
    """Rot in the storage is found while it is copied."""
    _, file = await _with_file(bench)
    (stored,) = bench.objects("clean")
    stored.write_bytes(b"other words")
    _, made = await bench.desk.backups.make(target)
    assert [(lost.attachment, lost.why) for lost in made.failures] == [(file.id, "damaged")]


async def test_a_file_that_is_scanned_or_deleted_meanwhile_does_no_harm(
    bench: Bench, target: Path, database_url: str
) -> None:
    """The snapshot knows it in quarantine; by the time of the copy it lies elsewhere or nowhere."""
    agent, moved = await _with_file(bench, scanned=False)
    gone = await bench.upload(agent, await bench.ticket(agent), b"to be deleted", "b.txt")
    loop, told = asyncio.new_event_loop(), list[str]()

    async def meanwhile() -> None:
        async with bench_on(database_url, UPLOAD_DIR=str(bench.desk.upload_dir)) as same:
            await same.scan()
            await same.desk.attachments.delete(agent, gone.id)

    def once(step: str, done: int, total: int) -> None:
        if not told:
            told.append(step)
            thread = threading.Thread(target=loop.run_until_complete, args=(meanwhile(),))
            thread.start()
            thread.join()

    try:
        path, made = await bench.desk.backups.make(target, progress=once)
    finally:
        loop.close()
    assert told == ["database"]
    key = f"quarantine/{moved.object_key}"
    assert on_disk.place(path, key).read_bytes() == b"some words"
    assert [(lost.attachment, lost.why) for lost in made.lost] == [(gone.id, "deleted")]
    assert made.failures == []


async def test_only_an_empty_host_is_restored_onto(
    bench: Bench, target: Path, fresh_database: Callable[[], Awaitable[str]]
) -> None:
    """A database or a storage with anything in it is refused, unless it shall be replaced."""
    await _with_file(bench)
    path, made = await bench.desk.backups.make(target)
    used = await fresh_database()
    with pytest.raises(Conflict, match="--replace-everything"):
        await restoring.require_empty(used, replace=False)
    conn = await asyncpg.connect(used)
    with pytest.raises(Conflict, match="Stop itdesk"):
        await restoring.require_empty(used, replace=True)
    await conn.close()
    await restoring.require_empty(used, replace=True)
    await restoring.restore_database(used, path, made, silent)
    assert await restoring.unfinished(used, made)
    async with bench_on(used) as other:
        await restoring.require_empty_storage(other.desk.storage, made)
        await restoring.restore_files(other.desk.storage, path, made, silent)
        await restoring.require_empty_storage(other.desk.storage, made)
        await restoring.finish(other.desk.db, other.desk.storage, made)
        stranger = other.desk.upload_dir / "clean/tickets/x/y"
        stranger.parent.mkdir(parents=True)
        stranger.write_bytes(b"of somebody else")
        with pytest.raises(Conflict, match="storage is not empty"):
            await restoring.require_empty_storage(other.desk.storage, made)
    assert not await restoring.unfinished(used, made)


async def test_a_restore_that_fails_leaves_the_database_as_it_was(
    bench: Bench, target: Path, fresh_database: Callable[[], Awaitable[str]]
) -> None:
    """All or nothing: a dump that breaks off, or the very last statement, destroys nothing."""
    await _with_file(bench)
    await bench.sql("DROP TABLE login_challenges")
    path, made = await bench.desk.backups.make(target)
    used = await fresh_database()
    tables = {**made.facts.tables, "login_challenges": 0}
    claims = made.model_copy(update={"facts": made.facts.model_copy(update={"tables": tables})})
    with pytest.raises(DeskError, match="psql failed.*login_challenges"):
        await restoring.restore_database(used, path, claims, silent)
    dump = path / on_disk.DUMP
    dump.write_bytes(dump.read_bytes()[: made.files[on_disk.DUMP].size * 2 // 3])
    with pytest.raises(DeskError, match="pg_restore failed"):
        await restoring.restore_database(used, path, made, silent)
    conn = await asyncpg.connect(used)
    assert await conn.fetchval("SELECT count(*) FROM projects") == 1
    assert await conn.fetchval("SELECT count(*) FROM tickets") == 0
    await conn.close()


async def test_what_goes_out_waits_after_a_restore_and_goes_on_when_resumed(bench: Bench) -> None:
    """O-09: outbound jobs are not claimed, others are; nothing is lost by waiting."""
    done: list[str] = []

    async def handle(job: Job) -> None:
        done.append(job.type)

    out, within = (
        JobType(name="test.out", handle=handle),
        JobType(name="test.within", handle=handle, outbound=False),
    )
    jobs = bench.desk.jobs
    jobs.register(out, within)
    async with bench.desk.db.transaction() as tx:
        tx.enqueue("test.out", {})
        tx.enqueue("test.within", {})
    _, made = await _settled(bench)

    async def work() -> None:
        for held in await jobs.claim({}):
            await jobs.run(held)

    await work()
    assert done == ["test.within"]
    with pytest.raises(Conflict, match="not finished"):
        await restoring.resume(bench.desk.db, drop_mail=False)
    async with bench.desk.db.transaction() as tx:
        await backups.files_restored(tx.conn)
    await restoring.resume(bench.desk.db, drop_mail=False)
    await work()
    assert sorted(done) == ["test.out", "test.within"]
    with pytest.raises(NotFound):
        await restoring.resume(bench.desk.db, drop_mail=False)


async def _settled(bench: Bench) -> tuple[Any, Any]:
    """Void what a restore voids, here."""
    async with bench.desk.db.transaction() as tx:
        names = await backups.tables(tx.conn)
        statements = backups.settling(uuid4(), bench.desk.clock.now(), tables=names)
        await tx.conn.execute(statements)
        return None, await backups.pause(tx.conn)


async def test_mail_sent_before_the_mark_is_never_sent_again_and_what_was_owed_is(
    database_url: str,
    fresh_database: Callable[[], Awaitable[str]],
    target: Path,
    mail_server: MailServer,
) -> None:
    """O-09: 0 mails resent after resume; queued ones go out then, or are dropped by --drop-mail."""
    env = {"ITDESK_SCHEDULER__TOKEN_CLEANUP_SECONDS": "0", **mail_server.env()}
    async with bench_on(database_url, **env) as bench:
        await queued(bench, to="sent@example.org")
        await work(bench)
        assert [mail.recipients for mail in mail_server.mails] == [["sent@example.org"]]
        await queued(bench, to="owed@example.org")
        path, made = await bench.desk.backups.make(target)
        assert made.facts.owed["emails"] == 1
    for drop in (False, True):
        mail_server.mails.clear()
        url = await fresh_database()
        await restoring.restore_database(url, path, made, silent)
        async with bench_on(url, **env) as bench:
            await restoring.finish(bench.desk.db, bench.desk.storage, made)
            await work(bench)
            assert mail_server.mails == []
            _, dropped = await restoring.resume(bench.desk.db, drop_mail=drop)
            assert dropped == int(drop)
            await work(bench)
            sent = [] if drop else [["owed@example.org"]]
            assert [mail.recipients for mail in mail_server.mails] == sent
            left = "SELECT count(*) FROM jobs WHERE state IN ('waiting', 'leased')"
            assert await bench.sql(f"{left} AND type = 'mail.deliver'") == 0


class _Tomorrow(Clock):
    """A clock of which each look is hours after the one before."""

    def __init__(self) -> None:
        self._hours = count()

    def monotonic(self) -> float:
        return next(self._hours) * 10_000.0


async def test_a_desk_that_never_had_a_backup_says_so_unless_none_is_expected(
    bench: Bench,
) -> None:
    """O-12: nothing is scheduled, as by default; restarts do not make it younger."""
    age = "itdesk_backup_age_seconds"
    assert math.isnan(bench.metric(age))
    await bench.sql("UPDATE _yoyo_migration SET applied_at_utc = applied_at_utc - interval '3d'")
    assert bench.desk.settings.backup.directory is None
    assert await bench.desk.backups.problem() == ""
    assert 3 * 86_400 <= bench.metric(age) < 4 * 86_400
    await bench.sql(
        "INSERT INTO backup_runs (directory, host, started_at, finished_at)"
        " VALUES ('by hand', 'here', now() - interval '1h', now())"
    )
    await bench.desk.backups.measure()
    assert 3_600 <= bench.metric(age) < 7_200
    elsewhere = bench.desk.settings.backup.model_copy(update={"seconds": 0})
    object.__setattr__(bench.desk.settings, "backup", elsewhere)
    assert await bench.desk.backups.problem() == ""
    assert math.isnan(bench.metric(age))


async def test_the_age_of_the_last_good_backup_is_told(bench: Bench, target: Path) -> None:
    """Readiness is degraded and a metric says so when none was made for too long."""
    settings = bench.desk.settings
    planned = settings.backup.model_copy(update={"directory": target, "seconds": 3600})
    object.__setattr__(settings, "backup", planned)
    assert await bench.desk.backups.problem() == ""
    late = Backups(bench.desk.db, bench.desk.storage, settings, _Tomorrow(), bench.desk.metrics)
    assert "hours old" in await late.problem()
    schedule = bench.desk.backups.schedule()
    assert (schedule.seconds, schedule.outbound) == (3600, False)
    await schedule.run(None)  # type: ignore[arg-type]
    assert len(on_disk.whole_backups(target)) == 1
    assert await bench.desk.backups.problem() == ""
    await bench.sql("UPDATE backup_runs SET started_at = now() - interval '3 hours'")
    assert "3.0 hours old" in await bench.desk.backups.problem()
    assert 10_000 < bench.metric("itdesk_backup_age_seconds") < 12_000
    target.chmod(0o500)
    shutil.rmtree(target)
    target.write_text("a file where the directory was")
    with pytest.raises(BackupFailed, match=str(target)):
        await schedule.run(None)  # type: ignore[arg-type]
    target.unlink()
    target.mkdir()
    assert "failed" in await bench.desk.backups.problem()
    assert str(target) in await bench.desk.backups.problem()


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../b", ""])
def test_no_key_leads_out_of_a_backup(key: str, tmp_path: Path) -> None:
    """A manifest that somebody changed writes nowhere else."""
    with pytest.raises(BackupBroken):
        on_disk.place(tmp_path, key)
