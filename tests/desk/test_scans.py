"""What makes a file CLEAN: claims, fences, swaps, outages; on real PostgreSQL and a real clamd."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from itdesk import daemon
from itdesk.actors.scanner import Scanner
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.scans import Outcome
from itdesk.errors import Conflict, Forbidden
from itdesk.model import SYSTEM, Attachment, ScanStatus
from itdesk.runtime.actor import TICK
from itdesk.store.attachments import Claim
from tests.support.clamd import Clamd, Heard, HostileClamd, hangs
from tests.support.desk import Bench, bench_on
from tests.support.load import eventually
from tests.support.relay import relayed
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


@dataclass
class HeldUp:
    """A desk whose scanner runs, three files at a time, on a clamd that can be held up."""

    bench: Bench
    scanner: Scanner
    relay: HostileClamd
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    held: int = 0

    async def upload(self) -> Attachment:
        """Attach a file and say so to the scanner."""
        alice = await self.bench.person()
        file = await self.bench.upload(alice, await self.bench.ticket(alice), TEXT)
        self.scanner.wake()
        return file

    async def upload_slow(self) -> Attachment:
        """Attach a file whose scan takes until `opened`; return when clamd has it."""
        forward, wanted = self.relay.script, self.held + 1

        async def hold(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Heard
        ) -> None:
            self.held += 1
            await self.opened.wait()
            await forward(reader, writer, heard)

        async def has_it() -> bool:
            return self.held == wanted

        self.relay.script = hold
        file = await self.upload()
        await eventually(has_it, seconds=10)
        self.relay.script = forward
        return file

    async def comes_to(self, file: Attachment, status: str) -> None:
        """Return when this became of the file."""

        async def has_come() -> bool:
            return (await _status(self.bench, file.id))[0] == status

        await eventually(has_come, seconds=10)

    async def idle(self) -> None:
        """Return when nothing is being scanned."""

        async def is_idle() -> bool:
            return not self.scanner.at_work

        await eventually(is_idle, seconds=10)

    async def counted(self, waiting: int) -> None:
        """Return when the metrics say that so many files wait."""

        async def is_counted() -> bool:
            return self.bench.metric("itdesk_scan_backlog") == waiting

        await eventually(is_counted, seconds=10)


@asynccontextmanager
async def held_up_on(
    database_url: str, clamd: Clamd, clamd_env: dict[str, str], *, longest: float = 600
) -> AsyncIterator[HeldUp]:
    """Lend such a desk; it has no ticks but those that a test tells it."""

    async def run() -> None:
        while await scanner.mailbox.ready():
            await scanner.step()

    async with relayed(clamd) as relay:
        three = {"CLAMAV_PORT": str(relay.port), "ITDESK_SCANNER__CONCURRENCY": "3"}
        async with bench_on(database_url, **clamd_env | three) as bench:
            scanner, _ = daemon.scanners(bench.desk)
            scanner.handle_timeout = longest
            assert await bench.desk.scans.trusted()
            async with asyncio.TaskGroup() as group:
                group.create_task(run())
                held_up = HeldUp(bench, scanner, relay)
                try:
                    yield held_up
                finally:
                    held_up.opened.set()
                    scanner.mailbox.close()


async def test_a_file_that_comes_while_others_are_slow_is_scanned_at_once(
    database_url: str, clamd: Clamd, clamd_env: dict[str, str]
) -> None:
    """One scan is held up, the other scanners found nothing: a new file wakes them, all of them."""
    async with held_up_on(database_url, clamd, clamd_env) as held_up:
        slow = [await held_up.upload_slow()]
        for _ in range(3):
            await held_up.comes_to(await held_up.upload(), "CLEAN")
        slow += [await held_up.upload_slow() for _ in range(2)]
        for file in slow:
            assert await _status(held_up.bench, file.id) == ("PENDING", None)
        held_up.opened.set()
        for file in slow:
            await held_up.comes_to(file, "CLEAN")


async def test_what_waits_is_counted_while_scans_are_slow_and_left_to_be_claimed(
    database_url: str, clamd: Clamd, clamd_env: dict[str, str]
) -> None:
    """A tick counts, however long scans take; a file beyond the busy scanners is anybody's."""
    async with held_up_on(database_url, clamd, clamd_env) as held_up:
        for _ in range(3):
            await held_up.upload_slow()
        waiting = await held_up.upload()
        held_up.scanner.tell(TICK)
        await held_up.counted(4)
        assert await held_up.bench.sql("SELECT sum(scan_epoch) FROM attachments") == 3
        held_up.opened.set()
        await held_up.comes_to(waiting, "CLEAN")
        await held_up.counted(0)


async def test_a_scan_that_hangs_is_cut_short_and_its_file_tried_again(
    database_url: str, clamd: Clamd, clamd_env: dict[str, str]
) -> None:
    """No other file notices, and the scanner does not crash."""
    async with held_up_on(database_url, clamd, clamd_env, longest=0.5) as held_up:
        slow = await held_up.upload_slow()
        await held_up.comes_to(await held_up.upload(), "CLEAN")
        await held_up.idle()
        assert await _status(held_up.bench, slow.id) == ("PENDING", None)
        await held_up.bench.expire_leases()
        held_up.scanner.wake()
        await held_up.comes_to(slow, "CLEAN")


async def test_a_scanner_that_is_cut_gives_its_files_back(
    database_url: str, clamd: Clamd, clamd_env: dict[str, str]
) -> None:
    """Another daemon need not wait for the end of the lease."""
    async with relayed(clamd) as relay:
        async with bench_on(database_url, **clamd_env | {"CLAMAV_PORT": str(relay.port)}) as bench:
            assert await bench.desk.scans.trusted()
            relay.script, before = hangs, len(relay.heard)
            alice = await bench.person()
            await bench.upload(alice, await bench.ticket(alice), TEXT)

            async def is_heard() -> bool:
                return len(relay.heard) > before

            async with asyncio.TaskGroup() as group:
                scanning = group.create_task(bench.scan())
                await eventually(is_heard, seconds=10)
                scanning.cancel()
            free = "SELECT count(*) FROM attachments WHERE scan_epoch = 1"
            assert await bench.sql(f"{free} AND scan_lease_until IS NULL") == 1


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
