"""S-25, S-22: files that are exchanged behind the scanner's back, and links that are bent."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from itdesk.desk.attachments import UploadLink, quarantine_key
from itdesk.desk.inventory import Orphan, Report
from itdesk.errors import Conflict, DeskError, Forbidden
from itdesk.hookspecs import Presigned, Storage
from itdesk.model import Caller, Role, Ticket
from tests.plugins.conformance import chunked, put
from tests.plugins.test_s3 import send
from tests.support.daemon import Live, Person
from tests.support.desk import Bench, bench_on
from tests.support.s3 import S3Server, s3_server
from tests.support.samples import eicar

__all__ = ["s3_server"]

FOUL = eicar()
GOOD = b"harmless words, exactly as many as the test virus has. ".ljust(len(FOUL), b".")


@dataclass
class Swapper:
    """Somebody with an upload link, and with a key to the storage as well."""

    bench: Bench
    owner: Caller
    ticket: Ticket

    @property
    def storage(self) -> Storage:
        return self.bench.desk.inventory._storage

    async def reserve(self) -> UploadLink:
        return await self.bench.desk.attachments.reserve(
            self.owner,
            self.ticket.key,
            filename="a.txt",
            mime="text/plain",
            size=len(GOOD),
            base_url="http://desk",
        )

    async def put(self, link: UploadLink, content: bytes) -> int:
        """PUT to the link as a client does; return the status."""
        if link.upload_url.startswith("http://desk/"):
            token = link.upload_url.rpartition("/")[2]
            desk = self.bench.desk.attachments
            try:
                await desk.receive(
                    token, mime="text/plain", size=len(content), chunks=chunked(content)
                )
            except DeskError as exc:
                return exc.status
            return 200
        return (await send(Presigned(link.upload_url, "PUT", link.headers), content))[0]

    async def put_again(self, link: UploadLink) -> None:
        await self.put(link, FOUL)

    async def write(self, link: UploadLink) -> None:
        await put(self.storage, quarantine_key(link.object_key), FOUL)

    async def recreate(self, link: UploadLink) -> None:
        await self.storage.delete(quarantine_key(link.object_key))
        await self.write(link)

    async def served(self, link: UploadLink) -> bytes:
        """Return what a download gives; nothing when it is refused."""
        try:
            content = await self.bench.desk.attachments.open(self.owner, link.attachment_id)
            body = b"".join([chunk async for chunk in content.chunks])
            signed = await self.bench.desk.attachments.link(
                self.owner, link.attachment_id, base_url="http://desk", ticket_ref=self.ticket.key
            )
        except (Conflict, Forbidden):
            return b""
        if not signed.download_url.startswith("http://desk/"):
            status, _, direct = await send(Presigned(signed.download_url, "GET", {}))
            assert (status, direct) == (200, body)
        return body

    async def trial(self, dice: random.Random, *, when: str = "during") -> str:
        """Exchange a file before or during its scan, and afterwards; return what it became."""
        link = await self.reserve()
        assert await self.put(link, GOOD) == 200
        swap: Callable[[UploadLink], Awaitable[None]]
        swap = dice.choice([self.put_again, self.write, self.recreate])
        turns = dice.randrange(150)
        if when == "before":
            await self.write(link)

        async def at_some_moment() -> None:
            for _ in range(turns):
                await asyncio.to_thread(os.getpid)
            if when == "during":
                await swap(link)

        async with asyncio.TaskGroup() as group:
            group.create_task(self.bench.scan())
            group.create_task(at_some_moment())
        await self.bench.expire_leases()
        await self.bench.scan()
        found = await self.bench.desk.attachments.get(self.owner, link.attachment_id)
        before = await self.served(link)
        assert before == (GOOD if found.scanned_status == "CLEAN" else b"")
        for again in (self.put_again, self.write, self.recreate):
            await again(link)
            assert await self.served(link) == before
        journal = (
            "SELECT count(*) FROM events"
            " WHERE type = 'attachment.scanned' AND data->>'attachment_id' = $1"
        )
        assert await self.bench.sql(journal, str(link.attachment_id)) == 1
        return str(found.scanned_status)


@pytest.fixture(params=["filesystem", "s3"])
async def swapper(
    request: pytest.FixtureRequest, database_url: str, clamd_env: dict[str, str]
) -> AsyncIterator[Swapper]:
    env = dict(clamd_env)
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        env |= server.env
    async with bench_on(database_url, **env) as bench:
        owner = await bench.person(Role.AGENT)
        yield Swapper(bench, owner, await bench.ticket(owner))


@pytest.mark.parametrize("trials", [20, pytest.param(200, marks=pytest.mark.slow)])
async def test_what_was_exchanged_is_never_served(swapper: Swapper, trials: int) -> None:
    """S-25: the same upload link, a direct write, delete and recreate; at any moment of the scan
    and after it, no byte that was not scanned is served; what is left over is found."""
    dice = random.Random(trials)
    assert await swapper.trial(dice, when="before") == "INFECTED"
    assert await swapper.trial(dice, when="after") == "CLEAN"
    outcomes = ["CLEAN", *[await swapper.trial(dice) for _ in range(trials)]]
    assert set(outcomes) <= {"CLEAN", "INFECTED", "FAILED"}
    print(f"\n{trials} exchanges: {Counter(outcomes)}")
    inventory, report = swapper.bench.desk.inventory, Report()
    inventory.grace = -1e9
    left = [each async for each in inventory.look(report) if isinstance(each, Orphan)]
    assert [each.why for each in left].count("left in quarantine") == outcomes.count("CLEAN")
    for each in left:
        await swapper.storage.delete(each.key)


async def test_an_upload_link_of_the_desk_is_dead_once_the_file_is_there(
    database_url: str, clamd_env: dict[str, str]
) -> None:
    """S-25: where the desk itself takes the bytes, a link works once."""
    async with bench_on(database_url, **clamd_env) as bench:
        owner = await bench.person()
        swapper = Swapper(bench, owner, await bench.ticket(owner))
        link = await swapper.reserve()
        assert await swapper.put(link, GOOD) == 200
        assert await swapper.put(link, FOUL) == 403
        await bench.scan()
        assert await swapper.put(link, FOUL) == 403
        assert await swapper.served(link) == GOOD


@pytest.mark.parametrize(
    "range_",
    ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=0-0,2-3", "bytes=9-1", "x", "bytes=" * 99],
)
async def test_a_range_opens_nothing(live: Live, range_: str) -> None:
    """S-22: not what waits, not what is infected, not what is another's."""
    alice, mallory = await live.person(), await live.person()
    ticket = (await alice.ticket())["key"]
    files: dict[str, Any] = {}
    for name, content in (("good", GOOD), ("foul", FOUL)):
        file = (await alice.upload(ticket, content)).expect(201)
        files[name] = await alice.scanned(file["id"])
    how = {"headers": {"Range": range_}}
    good, foul = (f"/attachments/{files[name]['id']}/content" for name in ("good", "foul"))
    (await alice.get(foul, **how)).refused(403, "E_ATTACHMENT_INFECTED")
    (await mallory.get(good, **how)).refused(404, "E_ATTACHMENT_NOT_FOUND")
    mine = await alice.get(good, **how)
    assert mine.status in (200, 206) and mine.raw in GOOD
    link = (await alice.get(f"/tickets/{ticket}/attachments/{files['good']['id']}/download")).json
    bent = await Person("").call("GET", link["download_url"][:-1], **how)
    bent.refused(403, "E_STORAGE_URL_INVALID")
