"""What makes a file CLEAN: claims, fences, swaps, outages; on real PostgreSQL and a real clamd."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import asyncpg
import pytest

from itdesk import daemon
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.scans import Outcome
from itdesk.errors import Conflict, Forbidden
from itdesk.model import SYSTEM, ScanStatus
from itdesk.store.attachments import Claim
from tests.support.clamd import Clamd
from tests.support.desk import Bench, bench_on
from tests.support.load import eventually
from tests.support.samples import eicar, encrypted_zip, inflating_document

TEXT = b"harmless words\n"


@pytest.fixture
async def bench(database_url: str, clamd_env: dict[str, str]) -> AsyncIterator[Bench]:
    async with bench_on(database_url, **clamd_env) as bench:
        yield bench


async def _status(bench: Bench, file_id: object) -> tuple[str, str | None]:
    async with bench.desk.db.connection() as conn:
        row = await conn.fetchrow(
            "SELECT scanned_status, scan_reason FROM attachments WHERE id = $1", file_id
        )
    return row["scanned_status"], row["scan_reason"]


async def test_a_clean_file_leaves_quarantine_and_is_served(bench: Bench) -> None:
    """S0-36: scanned by the desk itself; the spool and the quarantine are empty afterwards."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    assert len(bench.objects("quarantine")) == 1
    await bench.scan()
    assert await bench.served(alice, file) == TEXT
    assert bench.objects("quarantine") == [] and len(bench.objects("clean")) == 1
    assert list((bench.state_dir / "spool").iterdir()) == []
    assert bench.metric("itdesk_scan_verdicts_total", verdict="CLEAN") == 1


async def test_an_overtaken_scanner_writes_nothing(bench: Bench) -> None:
    """R-14: the fence is the epoch; the late verdict changes no row and its object is removed."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    assert await bench.desk.scans.trusted()
    (late,) = await bench.desk.scans.claim(1)
    assert await bench.desk.scans.claim(1) == []
    await bench.expire_leases()
    (current,) = await bench.desk.scans.claim(1)
    assert current.epoch == late.epoch + 1
    outcome = await bench.desk.scans.scan(current)
    assert outcome.status is ScanStatus.CLEAN
    version = await bench.sql("SELECT version FROM tickets")
    assert (await bench.desk.scans.scan(late)).status is None
    assert await bench.sql("SELECT version FROM tickets") == version
    assert bench.metric("itdesk_scan_stale_verdicts_total") == 1
    assert len(bench.objects("clean")) == 1
    assert await bench.served(alice, file) == TEXT
    assert await bench.sql("SELECT count(*) FROM events WHERE type = 'attachment.scanned'") == 1


async def test_a_verdict_about_older_bytes_does_not_bless_newer_ones(bench: Bench) -> None:
    """R-14: the late scanner saw clean bytes, the current one others; the current one's count."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    assert await bench.desk.scans.trusted()
    (late,) = await bench.desk.scans.claim(1)
    await bench.expire_leases()
    (current,) = await bench.desk.scans.claim(1)
    foul = eicar()
    await bench.sql("UPDATE attachments SET size = $1 WHERE id = $2", len(foul), file.id)
    (stored,) = bench.objects("quarantine")
    await asyncio.to_thread(stored.write_bytes, foul)
    found = await bench.desk.scans._examine(current)
    assert found.status is ScanStatus.FAILED  # not the size that was announced
    stale = await bench.desk.scans.scan(late)
    assert stale.status is None
    assert (await _status(bench, file.id))[0] == "PENDING"


async def test_a_swap_in_quarantine_never_reaches_a_reader(bench: Bench) -> None:
    """The bytes served are the bytes scanned, whenever the quarantined object is replaced."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    await bench.scan()
    stored = bench.desk.upload_dir / quarantine_key(file.object_key)
    await asyncio.to_thread(stored.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(stored.write_bytes, eicar())
    assert await bench.served(alice, file) == TEXT


async def test_a_crash_before_the_verdict_leaves_the_file_unscanned(bench: Bench) -> None:
    """R-14: the clean object alone makes nothing downloadable; the next scan starts over."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    assert await bench.desk.scans.trusted()
    (held,) = await bench.desk.scans.claim(1)
    outcome = await bench.desk.scans._examine(held)
    assert outcome.clean_key is not None and len(bench.objects("clean")) == 1
    with pytest.raises(Conflict):
        await bench.served(alice, file)
    await bench.expire_leases()
    await bench.scan()
    assert await bench.served(alice, file) == TEXT


async def test_a_lost_or_changed_object_is_failed_never_clean(bench: Bench) -> None:
    """A missing object is MISSING, one of another size CHANGED; the ticket stays readable."""
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    gone = await bench.upload(alice, ticket, TEXT)
    (bench.desk.upload_dir / quarantine_key(gone.object_key)).unlink()
    changed = [await bench.upload(alice, ticket, TEXT) for _ in range(3)]
    for file, content in zip(changed, (TEXT + b"more", TEXT[:-1], TEXT.upper()), strict=True):
        (bench.desk.upload_dir / quarantine_key(file.object_key)).write_bytes(content)
    announced = hashlib.sha256(TEXT).hexdigest()
    await bench.sql("UPDATE attachments SET sha256 = $1 WHERE id = $2", announced, changed[2].id)
    await bench.scan()
    assert await _status(bench, gone.id) == ("FAILED", "missing")
    for file in changed:
        assert await _status(bench, file.id) == ("FAILED", "changed")
        with pytest.raises(Conflict) as refused:
            await bench.served(alice, file)
        assert refused.value.code == "E_ATTACHMENT_SCAN_FAILED"
    assert (await bench.desk.tickets.get(alice, ticket.key)).version == 9


@pytest.mark.parametrize("gone", ["file", "ticket"])
async def test_what_is_deleted_during_its_scan_leaves_nothing_behind(
    bench: Bench, gone: str
) -> None:
    """S2-32, S2-29: the verdict comes too late, and the clean object goes as well."""
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    file = await bench.upload(alice, ticket, TEXT)
    assert await bench.desk.scans.trusted()
    (held,) = await bench.desk.scans.claim(1)
    examine = bench.desk.scans._examine

    async def then_delete(claim: Claim) -> Outcome:
        outcome = await examine(claim)
        if gone == "file":
            await bench.desk.attachments.delete(alice, file.id)
        else:
            await bench.desk.tickets.delete(SYSTEM, ticket.key)
        return outcome

    bench.desk.scans._examine = then_delete  # type: ignore[assignment]
    assert (await bench.desk.scans.scan(held)).status is None
    assert bench.objects("clean") == bench.objects("quarantine") == []


async def test_a_reserved_file_waits_until_its_time_is_over(bench: Bench) -> None:
    """Object missing: PENDING until the link's expiry and the grace, then FAILED missing."""
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    link = await bench.desk.attachments.reserve(
        alice, ticket.key, filename="a.txt", mime="text/plain", size=5, base_url=""
    )
    await bench.scan()
    assert await _status(bench, link.attachment_id) == ("PENDING", None)
    await bench.sql("UPDATE attachments SET reserved_until = now() - interval '1 day'")
    await bench.scan()
    assert await _status(bench, link.attachment_id) == ("FAILED", "missing")


async def test_nothing_becomes_clean_while_the_engine_is_weak(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """S-24: clamd with wrong limits passes its probe samples: files wait, readiness says why."""
    with Clamd(AlertExceedsMax=None) as weak:
        env = {**clamd_env, "CLAMAV_PORT": str(weak.port)}
        async with bench_on(database_url, **env) as bench:
            alice = await bench.person()
            file = await bench.upload(alice, await bench.ticket(alice), TEXT)
            await bench.scan()
            assert await _status(bench, file.id) == ("PENDING", "engine_down")
            assert "AlertExceedsMax" in str(bench.desk.scans.problems)


async def test_an_outage_costs_no_attempt_and_drains_by_itself(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """R-10: clamd goes away under a trusted scanner; files wait and are scanned when it is back."""
    with Clamd() as own:
        env = {
            **clamd_env,
            "CLAMAV_PORT": str(own.port),
            "ITDESK_SCANNER__RETRY_SECONDS": "1",
            "ITDESK_SCANNER__CONCURRENCY": "2",
        }
        async with bench_on(database_url, **env) as bench:
            alice = await bench.person()
            ticket = await bench.ticket(alice)
            await bench.scan()
            own.stop()
            files = [await bench.upload(alice, ticket, TEXT) for _ in range(5)]
            for _ in range(8):
                await bench.scan()
                await bench.expire_leases()
            tried = await bench.sql("SELECT sum(scan_epoch) FROM attachments")
            assert tried == 2, "an engine that is out is not asked about every file"
            for file in files:
                assert await _status(bench, file.id) == ("PENDING", "engine_down")
            assert await bench.sql("SELECT max(scan_attempts) FROM attachments") == 0
            own.start()
            await bench.scan()
            for file in files:
                assert await bench.served(alice, file) == TEXT


async def test_no_file_waits_for_the_slowest_of_a_batch(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """The scanner goes on, and counts what is left, while the verdict of one file is held up."""
    env = {**clamd_env, "ITDESK_SCANNER__CONCURRENCY": "2", "ITDESK_SCANNER__BATCH": "1"}
    async with bench_on(database_url, **env) as bench:
        alice = await bench.person()
        held_up = await bench.ticket(alice)
        slow = await bench.upload(alice, held_up, TEXT)
        others = await bench.ticket(alice)
        files = [await bench.upload(alice, others, TEXT) for _ in range(5)]
        assert await bench.desk.scans.trusted()

        async def others_counted() -> bool:
            return bench.metric("itdesk_scan_backlog") == 1

        lock = await asyncpg.connect(database_url)
        await lock.execute("BEGIN")
        await lock.execute("SELECT 1 FROM tickets WHERE id = $1 FOR UPDATE", held_up.id)
        async with asyncio.TaskGroup() as group:
            group.create_task(bench.scan())
            try:
                await eventually(others_counted, seconds=2)
                for file in files:
                    assert await bench.served(alice, file) == TEXT
                assert (await _status(bench, slow.id))[0] == "PENDING"
            finally:
                await lock.close()
        assert await bench.served(alice, slow) == TEXT


async def test_many_files_fill_no_mailbox(bench: Bench) -> None:
    """A scanner that is busy is told once that there is more."""
    scanner, _ = daemon.scanners(bench.desk)
    for _ in range(1000):
        scanner.wake()
    assert len(scanner.mailbox) == 1 and scanner.mailbox.dropped == 0


async def test_all_engines_must_agree(database_url: str, clamd_env: dict[str, str]) -> None:
    """clamav and yara together: what only one of them finds is INFECTED."""
    env = {**clamd_env, "ITDESK_PLUGINS__YARA__ENABLED": "true"}
    async with bench_on(database_url, **env) as bench:
        assert sorted(bench.desk.scans.engines) == ["clamav", "yara"]
        alice = await bench.person()
        ticket = await bench.ticket(alice)
        good = await bench.upload(alice, ticket, TEXT)
        shell = (
            b"seen on our page: <?php eval(base64_decode($_POST['x'])); system($_GET['cmd']); ?>"
        )
        bad = await bench.upload(alice, ticket, shell, "shell.txt")
        await bench.scan()
        assert await bench.served(alice, good) == TEXT
        assert (await _status(bench, bad.id))[0] == "INFECTED"
        with pytest.raises(Forbidden):
            await bench.served(alice, bad)
        found = await bench.desk.attachments.get(alice, good.id)
        assert "clamav" in str(found.scan_engine) and "yara" in str(found.scan_engine)


async def test_what_clamd_would_pass_unseen_is_failed(bench: Bench) -> None:
    """S-24: a document whose member inflates past clamd's MaxFileSize: clamd alone says OK."""
    alice = await bench.person()
    content = inflating_document(20 << 20)
    assert len(content) < 64 << 10
    file = await bench.upload(alice, await bench.ticket(alice), content, "a.docx")
    await bench.scan()
    assert await _status(bench, file.id) == ("FAILED", "limits")


async def test_an_administrator_sees_why_a_file_failed(bench: Bench) -> None:
    """An encrypted archive is FAILED encrypted: not clean, and not called infected."""
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), encrypted_zip(TEXT), "a.zip")
    await bench.scan()
    assert await _status(bench, file.id) == ("FAILED", "encrypted")
