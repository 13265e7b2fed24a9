"""Second looks with newer signatures, recalls, and who is told; on a real clamd and PostgreSQL."""

import asyncio
import contextvars
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from itdesk import daemon
from itdesk.actors.worker import Worker
from itdesk.desk.attachments import quarantine_key
from itdesk.desk.rescans import WITHDRAW
from itdesk.errors import Conflict, DeskError, Forbidden, NotFound, Unavailable
from itdesk.model import SYSTEM, Attachment, Caller, Event, Role, ScanStatus
from itdesk.runtime.actor import TICK
from itdesk.store import downloads, events, rescans
from itdesk.store.events import Wanted
from tests.support.clamd import Clamd, HostileClamd
from tests.support.desk import Bench, bench_on
from tests.support.people import until_blocked
from tests.support.relay import relayed

TEXT = b"an invoice, or so it seems\n"
OLD, NEW = b"ClamAV 1.4.2/27000\0", b"ClamAV 1.4.2/27001\0"
FAST = {
    "ITDESK_SCANNER__RESCAN_SETTLE_SECONDS": "0",
    "ITDESK_PLUGINS__CLAMAV__VERSION_SECONDS": "0.001",
    "ITDESK_SCANNER__RETRY_SECONDS": "1",
}


@dataclass
class Scene:
    """A desk whose clamd learns new signatures."""

    bench: Bench
    clamd: Clamd
    relay: HostileClamd

    def learn(self, content: bytes, name: str = "Late.Discovery") -> None:
        """Give clamd a signature for these bytes and have it say that it has new ones."""
        line = f"{hashlib.sha256(content).hexdigest()}:{len(content)}:{name}\n"
        self.clamd.socket.with_name("db").joinpath("late.hsb").write_text(line)
        self.clamd.restart()
        self.relay.version = NEW

    async def rescan(self) -> None:
        """Let the rescanner look once, as a tick would."""
        _, rescanner = daemon.scanners(self.bench.desk)
        rescanner.tell(TICK)
        await rescanner.step()

    async def clean(self, caller: Caller, data: bytes = TEXT) -> Attachment:
        """Return a file that was found clean, on a ticket of its own."""
        file = await self.bench.upload(caller, await self.bench.ticket(caller), data)
        await self.bench.scan()
        assert (await self.seen(file)).scanned_status is ScanStatus.CLEAN
        return file

    async def seen(self, file: Attachment) -> Attachment:
        """Return what is known of a file now."""
        return await self.bench.desk.attachments.get(SYSTEM, file.id)

    async def recalls(self) -> list[Event]:
        """Return the recalls that were journaled."""
        async with self.bench.desk.db.transaction() as tx:
            await events.number_batch(tx.conn)
        async with self.bench.desk.db.connection() as conn:
            wanted = Wanted(type="attachment.recalled")
            entries = await events.journal_page(conn, wanted, after_seq=0, limit=50)
        return [entry.event for entry in entries]


@asynccontextmanager
async def scene_on(database_url: str, clamd: Clamd, **env: str) -> AsyncIterator[Scene]:
    """Lend a scene with these settings."""
    async with relayed(clamd) as relay:
        relay.version = OLD
        address = {"CLAMAV_HOST": relay.host, "CLAMAV_PORT": str(relay.port)}
        small = {"MAX_FILE_SIZE": "1000000"}
        async with bench_on(database_url, **{**address, **small, **FAST, **env}) as bench:
            yield Scene(bench, clamd, relay)


@pytest.fixture
async def scene(database_url: str) -> AsyncIterator[Scene]:
    with Clamd() as clamd:
        async with scene_on(database_url, clamd) as scene:
            yield scene


async def test_a_file_condemned_by_new_signatures_is_recalled(scene: Scene) -> None:
    """R-14: CLEAN today, INFECTED by tomorrow's signatures: nobody gets it any more, its bytes are
    kept in quarantine, one event with one version says so and names who had it."""
    bench = scene.bench
    alice, robin = await bench.person(), await bench.person(Role.AGENT)
    file, other = await scene.clean(alice), await scene.clean(alice, b"harmless\n")
    for reader in (robin, alice, robin):
        assert await bench.served(reader, file) == TEXT
    await scene.rescan()
    assert (await scene.seen(file)).scanned_status is ScanStatus.CLEAN
    before = await bench.desk.tickets.get(SYSTEM, str(file.ticket_id))
    scene.learn(TEXT)
    await scene.rescan()
    found = await scene.seen(file)
    assert found.scanned_status is ScanStatus.INFECTED
    assert found.scan_signature == "Late.Discovery.UNOFFICIAL"
    assert found.scan_engine == "clamav 1.4.2/27001"
    for reader in (alice, robin):
        with pytest.raises(Forbidden) as refused:
            await bench.served(reader, file)
        assert refused.value.code == "E_ATTACHMENT_INFECTED"
    (recall,) = await scene.recalls()
    assert recall.ticket_id == file.ticket_id and recall.ticket_version == before.version + 1
    assert {k: recall.data[k] for k in ("attachment_id", "old", "new", "signature", "engine")} == {
        "attachment_id": str(file.id),
        "old": "CLEAN",
        "new": "INFECTED",
        "signature": "Late.Discovery.UNOFFICIAL",
        "engine": "clamav 1.4.2/27001",
    }
    assert recall.data["downloaded_by"] == [str(robin.user_id), str(alice.user_id)]
    assert recall.data["sha256"] == hashlib.sha256(TEXT).hexdigest()
    (kept,) = bench.objects("quarantine")
    assert kept.read_bytes() == TEXT
    assert len(bench.objects("clean")) == 1
    assert await bench.served(robin, other) == b"harmless\n"
    assert (await scene.seen(other)).scan_engine == "clamav 1.4.2/27001"
    assert bench.metric("itdesk_scan_rescans_total", outcome="recalled") == 1
    history = await bench.sql("SELECT count(*) FROM events WHERE ticket_id = $1", file.ticket_id)
    assert history == (await bench.desk.tickets.get(SYSTEM, str(file.ticket_id))).version


async def test_unchanged_signatures_cause_no_second_look(scene: Scene) -> None:
    """A look is taken once for each set of signatures, and a clean one raises no version."""
    bench = scene.bench
    alice = await bench.person()
    file = await scene.clean(alice)
    await scene.rescan()
    first = len(scene.relay.heard)
    await scene.rescan()
    assert len(scene.relay.heard) == first
    version = (await bench.desk.tickets.get(alice, str(file.ticket_id))).version
    scene.relay.version = NEW
    await scene.rescan()
    assert len(scene.relay.heard) == first + 1
    # Another daemon's clamd is behind: that is nothing new.
    scene.relay.version = OLD
    await scene.rescan()
    assert len(scene.relay.heard) == first + 1
    assert (await bench.desk.tickets.get(alice, str(file.ticket_id))).version == version


async def test_signatures_have_to_settle_before_files_are_looked_at(database_url: str) -> None:
    """clamd names signatures that it has not loaded yet: what is scanned meanwhile is outdated."""
    env = {"ITDESK_SCANNER__RESCAN_SETTLE_SECONDS": "600"}
    with Clamd() as clamd:
        async with scene_on(database_url, clamd, **env) as scene:
            await scene.rescan()
            await scene.clean(await scene.bench.person())
            heard = len(scene.relay.heard)
            for named, looked, looks in (
                (1, 0, 0),
                (590, 300, 0),
                (660, 30, 0),
                (660, 90, 1),
            ):
                await scene.bench.sql(
                    "UPDATE scan_signatures SET seen_at = now() - make_interval(secs => $1)", named
                )
                await scene.bench.sql(
                    "UPDATE attachments SET checked_at = now() - make_interval(secs => $1)", looked
                )
                await scene.rescan()
                assert len(scene.relay.heard) == heard + looks


async def test_only_recent_files_and_only_a_batch_at_a_time(database_url: str) -> None:
    """scanner.rescan_days and rescan_batch bound what new signatures cost."""
    env = {"ITDESK_SCANNER__RESCAN_DAYS": "2", "ITDESK_SCANNER__RESCAN_BATCH": "3"}
    with Clamd() as clamd:
        async with scene_on(database_url, clamd, **env) as scene:
            alice = await scene.bench.person()
            files = [await scene.clean(alice, b"file %d" % n) for n in range(6)]
            old = files[0]
            await scene.bench.sql(
                "UPDATE attachments SET uploaded_at = now() - interval '3 days' WHERE id = $1",
                old.id,
            )
            scene.relay.version = NEW
            for expected in (3, 5, 5):
                await scene.rescan()
                done = "SELECT count(*) FROM attachments WHERE scan_engine LIKE '%27001'"
                assert await scene.bench.sql(done) == expected
            assert str((await scene.seen(old)).scan_engine).endswith("27000")


async def test_off_is_off(database_url: str) -> None:
    """scanner.rescan_days = 0: signatures are not even asked for."""
    with Clamd() as clamd:
        async with scene_on(database_url, clamd, ITDESK_SCANNER__RESCAN_DAYS="0") as scene:
            await scene.clean(await scene.bench.person())
            scene.relay.version = NEW
            await scene.rescan()
            assert await scene.bench.sql("SELECT count(*) FROM scan_signatures") == 0


async def test_clean_bytes_that_were_exchanged_are_recalled(scene: Scene) -> None:
    """S-25: an object written past the desk is not the one that was scanned, virus or not."""
    bench = scene.bench
    alice = await bench.person()
    file = await scene.clean(alice)
    (stored,) = bench.objects("clean")
    stored.write_bytes(TEXT.upper())
    scene.relay.version = NEW
    await scene.rescan()
    found = await scene.seen(file)
    assert (found.scanned_status, found.scan_reason) == (ScanStatus.FAILED, "changed")
    with pytest.raises(Conflict):
        await bench.served(alice, file)
    (recall,) = await scene.recalls()
    assert recall.data["new"] == "FAILED" and recall.data["reason"] == "changed"
    assert recall.data["sha256"] == hashlib.sha256(TEXT).hexdigest()


async def test_a_missing_object_is_not_taken_for_a_verdict(scene: Scene) -> None:
    """A storage that lost, or hides, a clean object: nothing is recalled, the look waits."""
    file = await scene.clean(await scene.bench.person())
    (stored,) = scene.bench.objects("clean")
    stored.unlink()
    scene.relay.version = NEW
    await scene.rescan()
    assert (await scene.seen(file)).scanned_status is ScanStatus.CLEAN
    assert await scene.recalls() == []
    assert await scene.bench.sql("SELECT scan_lease_until > now() FROM attachments") is True


async def test_an_engine_that_is_out_changes_no_verdict(scene: Scene) -> None:
    """R-10: without clamd a second look waits; clean files stay clean and are served."""
    alice = await scene.bench.person()
    file = await scene.clean(alice)
    scene.relay.version = NEW
    await scene.bench.desk.rescans.outdated()
    scene.clamd.stop()
    await scene.rescan()
    assert await scene.bench.served(alice, file) == TEXT
    assert str((await scene.seen(file)).scan_engine).endswith("27000")
    scene.clamd.start()
    await scene.bench.expire_leases()
    await scene.rescan()
    assert str((await scene.seen(file)).scan_engine).endswith("27001")


async def test_two_rescanners_and_a_deletion_do_not_disturb_each_other(scene: Scene) -> None:
    """R-14: one look at a time; the overtaken one writes nothing, nor does one that comes late."""
    bench, alice = scene.bench, await scene.bench.person()
    file = await scene.clean(alice)
    scene.learn(TEXT)
    rescans = bench.desk.rescans
    again = await rescans.outdated()
    assert again is not None
    late = await rescans.claim(again)
    assert late is not None and await rescans.claim(again) is None
    await bench.expire_leases()
    current = await rescans.claim(again)
    assert current is not None and current.epoch == late.epoch + 1
    assert (await rescans.look(late)).status is None
    assert (await scene.seen(file)).scanned_status is ScanStatus.CLEAN
    assert (await rescans.look(current)).status is ScanStatus.INFECTED
    assert (await rescans.look(current)).status is None
    assert len(await scene.recalls()) == 1

    gone = await scene.clean(alice, b"soon deleted")
    again = await rescans.everything(None)
    held = await rescans.claim(again)
    assert held is not None and held.id == gone.id
    await bench.desk.attachments.delete(alice, gone.id)
    assert (await rescans.look(held)).status is None


async def test_bytes_that_could_not_be_moved_at_once_are_moved_by_the_job(scene: Scene) -> None:
    """The recall holds though the storage is out at that moment; a durable job finishes it."""
    bench = scene.bench
    alice = await bench.person()
    file = await scene.clean(alice)
    scene.learn(TEXT)
    storage, rescans = bench.desk.attachments._storage, bench.desk.rescans

    class Out:
        """The storage, which takes nothing at the moment."""

        def __getattr__(self, name: str) -> object:
            return getattr(storage, name)

        async def write(self, *args: object, **how: object) -> object:
            raise Unavailable("The storage is out.")

    rescans._storage = Out()  # type: ignore[assignment]
    await scene.rescan()
    with pytest.raises(Forbidden):
        await bench.served(alice, file)
    assert bench.objects("quarantine") == [] and len(bench.objects("clean")) == 1
    rescans._storage = storage
    queued = "SELECT count(*) FROM jobs WHERE type = $1 AND state = 'waiting'"
    assert await bench.sql(queued, WITHDRAW) == 1
    await bench.sql("UPDATE jobs SET run_at = now()")
    await _work(bench)
    (kept,) = bench.objects("quarantine")
    assert kept.read_bytes() == TEXT and bench.objects("clean") == []


async def test_a_download_that_meets_a_recall_is_told_or_refused(scene: Scene) -> None:
    """Whoever got the file is named, whatever the moment; nobody gets it and stays unnamed."""
    bench = scene.bench
    alice = await bench.person()
    file = await scene.clean(alice)
    readers = [await bench.person(Role.AGENT) for _ in range(30)]
    scene.learn(TEXT)
    again = await bench.desk.rescans.outdated()
    assert again is not None
    held = await bench.desk.rescans.claim(again)
    assert held is not None
    got: list[str] = []

    async def read(reader: Caller) -> None:
        try:
            await bench.desk.attachments.open(reader, file.id)
        except (Forbidden, Conflict):
            return
        got.append(str(reader.user_id))

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(bench.desk.rescans.look(held))
        for reader in readers:
            await asyncio.wait([group.create_task(read(reader))])
    assert looking.result().status is ScanStatus.INFECTED
    (recall,) = await scene.recalls()
    assert sorted(recall.data["downloaded_by"]) == sorted(got)


async def test_a_recall_waits_for_the_download_that_came_first(scene: Scene) -> None:
    """Its reader was not told otherwise: noted a moment before the recall, and named by it."""
    bench, robin = scene.bench, await scene.bench.person(Role.AGENT)
    file = await scene.clean(await bench.person())
    scene.learn(TEXT)
    held = await bench.desk.rescans.claim(await bench.desk.rescans.everything(None))
    assert held is not None
    async with watching(bench) as watcher, asyncio.TaskGroup() as group:
        async with bench.desk.db.transaction() as tx:
            assert await downloads.note(tx.conn, file.id, robin.user_id) is not None
            context = contextvars.Context()
            looking = group.create_task(bench.desk.rescans.look(held), context=context)
            await until_blocked(watcher)
    assert looking.result().status is ScanStatus.INFECTED
    (recall,) = await scene.recalls()
    assert recall.data["downloaded_by"] == [str(robin.user_id)]


async def test_a_download_waits_for_the_recall_that_came_first(scene: Scene) -> None:
    """What was read a moment before does not count: it is refused, and not noted."""
    bench, robin = scene.bench, await scene.bench.person(Role.AGENT)
    file = await scene.clean(await bench.person())
    held = await bench.desk.rescans.claim(await bench.desk.rescans.everything(None))
    assert held is not None
    async with watching(bench) as watcher, asyncio.TaskGroup() as group:
        async with bench.desk.db.transaction() as tx:
            assert await rescans.withdraw(
                tx.conn, held, status=ScanStatus.INFECTED, reason=None, engine="x", signature="y"
            )
            context = contextvars.Context()
            opening = bench.desk.attachments.open(robin, file.id)
            reading = group.create_task(refusal(opening), context=context)
            await until_blocked(watcher)
    assert isinstance(reading.result(), Conflict | Forbidden)
    assert await bench.sql("SELECT count(*) FROM attachment_downloads") == 0


async def refusal(work: Awaitable[object]) -> DeskError | None:
    """Return what a work was refused with."""
    try:
        await work
    except DeskError as exc:
        return exc
    return None


@asynccontextmanager
async def watching(bench: Bench) -> AsyncIterator[Any]:
    """Lend a connection that is nobody's."""
    conn = await asyncpg.connect(bench.desk.db.url)
    try:
        yield conn
    finally:
        await conn.close()


async def test_a_link_counts_as_a_download_and_the_version_stays(scene: Scene) -> None:
    """Who was given a link may have used it; being noted is no change of the ticket."""
    bench = scene.bench
    alice, robin = await bench.person(), await bench.person(Role.AGENT)
    file = await scene.clean(alice)
    before = await bench.desk.tickets.get(alice, str(file.ticket_id))
    link = await bench.desk.attachments.link(
        robin, file.id, base_url="", ticket_ref=str(file.ticket_id)
    )
    await bench.desk.attachments.open_link(link.download_url.rpartition("/")[2])
    rows = await bench.sql("SELECT array_agg(user_id) FROM attachment_downloads")
    assert rows == [robin.user_id]
    assert await bench.desk.tickets.get(alice, str(file.ticket_id)) == before
    scene.learn(TEXT)
    await scene.rescan()
    with pytest.raises(DeskError):
        await bench.desk.attachments.open_link(link.download_url.rpartition("/")[2])


async def test_who_was_refused_is_not_noted(scene: Scene) -> None:
    """Only bytes that were given out count."""
    bench = scene.bench
    alice = await bench.person()
    file = await bench.upload(alice, await bench.ticket(alice), TEXT)
    stranger = await bench.person()
    for reader, refusal in ((alice, Conflict), (stranger, NotFound)):
        with pytest.raises(refusal):
            await bench.served(reader, file)
    assert await bench.sql("SELECT count(*) FROM attachment_downloads") == 0


async def test_an_administrator_lets_failed_and_infected_files_be_scanned_anew(
    scene: Scene,
) -> None:
    """X28: FAILED and INFECTED bytes are kept, and scanned again when somebody asks for it."""
    bench, rescans = scene.bench, scene.bench.desk.rescans
    alice = await bench.person()
    failed, wrong = await scene.clean(alice, b"number one"), await scene.clean(alice, b"number two")
    scene.learn(b"number two", "False.Positive")
    await scene.rescan()
    assert (await scene.seen(wrong)).scanned_status is ScanStatus.INFECTED
    quarantined = bench.desk.upload_dir / quarantine_key(failed.object_key)
    await asyncio.to_thread(quarantined.parent.mkdir, parents=True, exist_ok=True)
    await asyncio.to_thread(quarantined.write_bytes, b"number one")
    await bench.sql(
        "UPDATE attachments SET scanned_status = 'FAILED', scan_reason = 'timeout',"
        " storage_version = NULL, scan_attempts = 5 WHERE id = $1",
        failed.id,
    )
    assert await rescans.requeue([ScanStatus.FAILED], None) == 1
    await bench.scan()
    assert await bench.served(alice, failed) == b"number one"
    assert (await scene.seen(wrong)).scanned_status is ScanStatus.INFECTED
    scene.learn(b"something else")
    assert await rescans.requeue([ScanStatus.FAILED, ScanStatus.INFECTED], None) == 1
    await bench.scan()
    assert await bench.served(alice, wrong) == b"number two"
    assert bench.objects("quarantine") == []


async def test_a_quarantined_file_that_was_exchanged_is_not_blessed_by_a_rescan(
    scene: Scene,
) -> None:
    """S-25: what was condemned and is now harmless is another file, and never CLEAN."""
    bench = scene.bench
    alice = await bench.person()
    file = await scene.clean(alice)
    scene.learn(TEXT)
    await scene.rescan()
    (kept,) = bench.objects("quarantine")
    kept.write_bytes(TEXT.upper())
    await bench.desk.rescans.requeue([ScanStatus.INFECTED], None)
    await bench.scan()
    found = await scene.seen(file)
    assert (found.scanned_status, found.scan_reason) == (ScanStatus.FAILED, "changed")


async def _work(bench: Bench) -> None:
    """Do every job that is due."""
    worker = Worker(bench.desk.jobs)
    worker.tell(TICK)
    while len(worker.mailbox):
        await worker.step()
