"""Objects without a file and files without their object; on every storage that the desk has."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from itdesk.desk.attachments import quarantine_key
from itdesk.desk.inventory import DESKS, Finding, Missing, Orphan, Report
from itdesk.errors import Conflict
from itdesk.hookspecs import Storage
from itdesk.model import Attachment, Caller, Role
from itdesk_plugins.s3 import S3
from tests.plugins.conformance import content_of, put
from tests.support.desk import Bench, bench_on
from tests.support.s3 import S3Server, s3_server

__all__ = ["s3_server"]

TEXT = b"harmless words\n"
LONG_AGO = 3 * 86_400


class Stock:
    """A desk on one kind of storage, and the files in which that storage keeps its objects."""

    def __init__(self, bench: Bench, root: Path) -> None:
        self.bench, self.root = bench, root
        self.storage: Storage = bench.desk.inventory._storage

    async def file(self, data: bytes = TEXT) -> Attachment:
        """Return a new file, found clean."""
        alice = await self.bench.person()
        file = await self.bench.upload(alice, await self.bench.ticket(alice), data)
        await self.bench.scan()
        return file

    async def clean_key(self, file: Attachment) -> str:
        query = "SELECT storage_version FROM attachments WHERE id = $1"
        return str(await self.bench.sql(query, file.id))

    async def stray(self, key: str, content: bytes = b"stray", *, age: float = LONG_AGO) -> str:
        """Store an object behind the desk's back, so many seconds ago."""
        await put(self.storage, key, content)
        await self.age(key, age)
        return key

    async def age(self, key: str, seconds: float = LONG_AGO) -> None:
        """Let an object have been written so long ago."""
        path = self.root / key
        then = path.stat().st_mtime - seconds
        if isinstance(self.storage, S3):  # rclone does not see what happens behind its back
            content = await content_of(self.storage, key)
            how = {"Key": key, "Body": content, "Metadata": {"mtime": str(then)}}
            await self.storage.client.call("put_object", **how)
        else:
            os.utime(path, (then, then))

    async def look(self) -> tuple[dict[str, str], list[Any], Report]:
        """Return why which key is an orphan, which files miss their object, and the report."""
        report = Report()
        found: list[Finding] = [each async for each in self.bench.desk.inventory.look(report)]
        orphans = {each.key: each.why for each in found if isinstance(each, Orphan)}
        missing = [each.attachment_id for each in found if isinstance(each, Missing)]
        assert (report.orphans, report.missing) == (len(orphans), len(missing))
        return orphans, missing, report


@pytest.fixture(params=["filesystem", "s3"])
async def stock(
    request: pytest.FixtureRequest, database_url: str, clamd_env: dict[str, str]
) -> AsyncIterator[Stock]:
    env = dict(clamd_env)
    server: S3Server | None = None
    if request.param == "s3":
        server = request.getfixturevalue("s3_server")
        env |= server.env
    async with bench_on(database_url, **env) as bench:
        stock = Stock(bench, server.root if server else bench.desk.upload_dir)
        yield stock
        for area in ("clean/", "quarantine/", "check/", DESKS):
            for key in [e.key async for page in stock.storage.list(area) for e in page]:
                await stock.storage.delete(key)


async def test_only_what_is_surely_nobodys_is_an_orphan(stock: Stock) -> None:
    """What a row names, may come to name, or is young stays; the rest is found with its reason."""
    file, waiting = await stock.file(), await stock.file()
    key = await stock.clean_key(file)
    await stock.bench.sql(
        "UPDATE attachments SET scanned_status = 'PENDING', storage_version = NULL, sha256 = NULL"
        " WHERE id = $1",
        waiting.id,
    )
    await stock.age(key)
    gone, ticket = uuid4(), uuid4()
    kept = [
        await stock.stray(quarantine_key(waiting.object_key)),
        await stock.stray(f"clean/{waiting.object_key}.7"),
        await stock.stray(f"clean/tickets/{ticket}/{gone}.1", age=3600),
        await stock.stray("clean/somebody.elses"),
        await stock.stray(f"clean/tickets/{ticket}/{gone}.x"),
        await stock.stray("backup/of-something"),
    ]
    wanted = {
        await stock.stray(f"clean/tickets/{ticket}/{gone}.2"): "no such file",
        await stock.stray(f"quarantine/tickets/{ticket}/{gone}"): "no such file",
        await stock.stray(f"clean/{file.object_key}.99"): "of an earlier scan",
        await stock.stray(quarantine_key(file.object_key)): "left in quarantine",
        await stock.stray(f"check/{uuid4()}"): "a probe",
    }
    orphans, missing, report = await stock.look()
    assert orphans == wanted and missing == []
    assert report.foreign == 2 and report.young >= 1

    tidied = await stock.bench.desk.inventory.tidy()
    assert (tidied.removed, tidied.orphans, tidied.held_back) == (5, 0, "")
    for each in kept:
        assert await content_of(stock.storage, each) == b"stray"
    assert await content_of(stock.storage, key) == TEXT
    assert stock.bench.metric("itdesk_storage_removed_total") == 5
    assert (await stock.look())[:2] == ({}, [])


async def test_a_file_without_its_object_is_named_and_breaks_nothing(stock: Stock) -> None:
    """The ticket is read, its list as well; the download is one clear refusal; deleting works."""
    files = [await stock.file() for _ in range(3)]
    await stock.storage.delete(await stock.clean_key(files[1]))
    orphans, missing, _ = await stock.look()
    assert orphans == {} and missing == [files[1].id]
    assert stock.bench.metric("itdesk_storage_missing") == 1
    desk = stock.bench.desk
    assert files[1].uploaded_by is not None
    owner = Caller(files[1].uploaded_by, "the uploader", Role.USER)
    assert (await desk.tickets.get(owner, str(files[1].ticket_id))).id == files[1].ticket_id
    with pytest.raises(Conflict) as caught:
        await desk.attachments.open(owner, files[1].id)
    assert caught.value.code == "E_ATTACHMENT_SCAN_FAILED"
    assert caught.value.details == {"scan_reason": "missing"}
    await desk.attachments.delete(owner, files[1].id)
    assert (await stock.look())[1] == []
    assert (await desk.inventory.tidy()).missing == 0


async def test_when_all_objects_are_gone_every_file_is_named(stock: Stock) -> None:
    files = [await stock.file() for _ in range(5)]
    for file in files:
        await stock.storage.delete(await stock.clean_key(file))
    assert sorted((await stock.look())[1]) == sorted(file.id for file in files)


async def test_what_is_stored_while_we_look_is_not_missing(stock: Stock) -> None:
    """The listing is older than the row: only the storage itself says that an object is gone."""
    gone, _ = await stock.file(), await stock.file()
    await stock.storage.delete(await stock.clean_key(gone))
    report = Report()
    looking = stock.bench.desk.inventory.look(report)
    first = await anext(looking)
    assert isinstance(first, Missing) and first.attachment_id == gone.id
    await stock.file()
    assert [each async for each in looking] == []
    assert report.missing == 1


async def test_files_of_another_storage_are_counted_and_not_missing(stock: Stock) -> None:
    file = await stock.file()
    await stock.bench.sql("UPDATE attachments SET storage = 'elsewhere' WHERE id = $1", file.id)
    await stock.storage.delete(await stock.clean_key(file))
    _, missing, report = await stock.look()
    assert missing == [] and report.elsewhere == {"elsewhere": 1}


async def test_what_looks_like_a_mistake_is_not_removed_by_itself(stock: Stock) -> None:
    """An older database knows of little that is there: then a person has to say so."""
    keys = [await stock.stray(f"clean/tickets/{uuid4()}/{uuid4()}.1") for _ in range(25)]
    report = await stock.bench.desk.inventory.tidy()
    assert (report.orphans, report.removed) == (25, 0)
    assert "--delete-orphans" in report.held_back
    for key in keys:
        assert await stock.storage.stat(key) is not None
    _, _, report = await stock.look()
    await stock.bench.desk.inventory.remove(report)
    assert (report.orphans, report.removed) == (0, 25)


async def test_nothing_is_removed_from_a_storage_that_another_desk_uses(stock: Stock) -> None:
    other = await stock.stray(f"{DESKS}{uuid4()}", b"")
    key = await stock.stray(f"clean/tickets/{uuid4()}/{uuid4()}.1")
    report = await stock.bench.desk.inventory.tidy()
    assert report.removed == 0 and other in report.held_back
    _, _, report = await stock.look()
    with pytest.raises(Conflict, match=other):
        await stock.bench.desk.inventory.remove(report)
    await stock.storage.delete(other)
    assert (await stock.bench.desk.inventory.tidy()).removed == 1
    assert await stock.storage.stat(key) is None


async def test_what_gets_its_row_at_the_last_moment_stays(stock: Stock) -> None:
    """Between the look and the removal somebody came to name it."""
    file = await stock.file()
    key = await stock.clean_key(file)
    await stock.age(key)
    await stock.bench.sql(
        "UPDATE attachments SET storage_version = 'clean/x' WHERE id = $1",
        file.id,
    )
    _, _, report = await stock.look()
    assert [each.key for each in report.removable] == [key]
    await stock.bench.sql("UPDATE attachments SET storage_version = $2 WHERE id = $1", file.id, key)
    await stock.bench.desk.inventory.remove(report)
    assert report.removed == 0
    assert await content_of(stock.storage, key) == TEXT


async def test_uploads_deletes_and_scans_beside_it_lose_nothing(stock: Stock) -> None:
    """With no grace at all, a sitting beside the work removes nothing that a row names."""
    bench = stock.bench
    alice = await bench.person()
    ticket = await bench.ticket(alice)
    kept: list[Attachment] = []

    async def work() -> None:
        for number in range(8):
            file = await bench.upload(alice, ticket, TEXT)
            await bench.scan()
            if number % 3 == 2:
                await bench.desk.attachments.delete(alice, file.id)
            else:
                kept.append(file)

    async def tidy() -> None:
        for _ in range(6):
            await bench.desk.inventory.tidy()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work())
        tasks.create_task(tidy())
    for file in kept:
        assert await bench.served(alice, file) == TEXT
    assert (await stock.look())[:2] == ({}, [])


async def test_nothing_is_removed_that_may_still_be_on_its_way(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """However short the grace is set: longer than presigned addresses, leases and requests."""
    env = {
        **clamd_env,
        "ITDESK_STORAGE__ORPHAN_SECONDS": "1",
        "ITDESK_STORAGE__PRESIGN_EXPIRES_SECONDS": "5000",
    }
    async with bench_on(database_url, **env) as bench:
        settings, stock = bench.desk.settings, Stock(bench, bench.desk.upload_dir)
        assert bench.desk.inventory.grace >= (
            5000 + settings.scanner.upload_grace_seconds + settings.scanner.lease_seconds + 3600
        )
        await stock.stray(f"quarantine/tickets/{uuid4()}/{uuid4()}", age=9000)
        assert (await stock.look())[2].young == 1
