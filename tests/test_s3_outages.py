"""R-13: an S3 server on whose wire everything goes wrong, under the real daemon."""

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import FormData

from itdesk.errors import Unavailable
from itdesk_plugins.s3 import S3, S3Settings
from itdesk_plugins.s3_upload import ABORT_SECONDS
from tests.plugins.conformance import chunked, content_of, put
from tests.support.daemon import Answer, Live, Person, started
from tests.support.desk import bench_on
from tests.support.hostile_s3 import FAULTS, HostileS3, hostile_s3, silent_port
from tests.support.postgres import Server
from tests.support.s3 import S3Server, s3_server

__all__ = ["s3_server"]

MIB = 1 << 20
# Only the one deadline for all tries ends a request in time.
QUICK = {"CONNECT_SECONDS": "6", "READ_SECONDS": "6", "REQUEST_SECONDS": "1"}
# What a 500 does differently from a 503 is little.
USUAL = [fault for fault in FAULTS if fault != "500"]


@dataclass
class Trouble:
    """A daemon behind a hostile wire, and somebody who knows every byte that was sent."""

    live: Live
    wire: HostileS3
    alice: Person
    seconds: float
    sent: dict[str, bytes] = field(default_factory=dict)
    statuses: set[int] = field(default_factory=set)

    async def ask(self, work: Awaitable[Answer]) -> Answer:
        """Make one request: it is over in time and never a 500."""
        began = time.monotonic()
        answer = await work
        took = time.monotonic() - began
        assert took <= self.seconds, f"{took:.1f} s: {self.wire.fault} {answer.status}"
        if answer.status >= 500:
            answer.refused(503, "E_UNAVAILABLE")
            assert "Retry-After" in answer.headers
        self.statuses.add(answer.status)
        return answer

    async def upload(self, key: str, size: int) -> None:
        content = os.urandom(size)
        form = FormData()
        form.add_field("file", io.BytesIO(content), filename="a.txt", content_type="text/plain")
        path = f"/api/v1/tickets/{key}/attachments"
        answer = await self.ask(self.alice.call("POST", path, data=form))
        assert answer.status in (201, 503)
        if answer.status == 201:
            self.sent[answer.json["id"]] = content

    async def clean_files(self, key: str, size: int, count: int) -> list[str]:
        """Return new files, found clean."""
        before = set(self.sent)
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self.upload(key, size))
        files = sorted(set(self.sent) - before)
        for file in files:
            assert (await self.alice.scanned(file))["scanned_status"] == "CLEAN"
        return files

    async def download(self, file: str) -> None:
        """Get the whole file or a refusal; half an answer ends in a broken connection."""
        began = time.monotonic()
        try:
            answer = await self.alice.get(f"/attachments/{file}/content")
        except (OSError, asyncio.IncompleteReadError, Exception) as exc:  # noqa: BLE001
            assert "payload" in type(exc).__name__.lower() or isinstance(exc, OSError), exc
        else:
            assert answer.status in (200, 503), answer.raw
            assert answer.status == 503 or answer.raw == self.sent[file]
        assert time.monotonic() - began <= self.seconds

    async def suffer_all(self, faults: Sequence[str]) -> None:
        """Suffer one fault after the other."""
        ticket = (await self.alice.ticket())["key"]
        (file,) = await self.clean_files(ticket, 300_000, 1)
        deleted = await self.clean_files(ticket, 1000, len(faults))
        for fault, gone in zip(faults, deleted, strict=True):
            doomed = (await self.alice.ticket())["key"]
            await self.upload(doomed, 1000)
            await self.suffer(fault, ticket, file, gone, doomed)

    async def suffer(self, fault: str, ticket: str, file: str, gone: str, doomed: str) -> None:
        """Do everything at once while the wire has a fault; then all is well again."""
        asked = {"original_filename": "r.txt", "mime": "text/plain", "size": 10}
        link = (await self.alice.post(f"/tickets/{ticket}/attachments/presign", asked)).expect(201)
        confirm = {"attachment_id": link["attachment_id"]}

        self.wire.fault = fault
        async with asyncio.TaskGroup() as group:
            for work in (
                self.upload(ticket, 1000),
                self.upload(ticket, 9 * MIB),
                self.download(file),
                self.ask(self.alice.post("/attachments", confirm)),
                self.ask(self.alice.delete(f"/attachments/{gone}")),
                self.ask(self.live.admin.delete(f"/tickets/{doomed}")),
                self.ask(self.alice.get(f"/tickets/{ticket}")),
                self.ask(self.alice.get(f"/tickets/{ticket}/attachments")),
            ):
                group.create_task(work)
        assert self.wire.met[fault] > 0
        self.wire.behave()
        (await self.alice.get(f"/attachments/{gone}")).refused(404, "E_ATTACHMENT_NOT_FOUND")
        (await self.alice.get(f"/tickets/{doomed}")).refused(404, "E_TICKET_NOT_FOUND")
        await self.download(file)

    async def account(self) -> None:
        """Nothing half is CLEAN, whatever happened: what is served is what was sent."""
        for file, content in self.sent.items():
            answer = await self.alice.get(f"/attachments/{file}")
            if answer.status == 404:
                continue
            assert (await self.alice.scanned(file))["scanned_status"] == "CLEAN"
            served = await self.alice.get(f"/attachments/{file}/content")
            assert served.status == 200 and served.raw == content


@asynccontextmanager
async def trouble(
    pg_server: Server, server: S3Server, *, seconds: float, **env: str
) -> AsyncIterator[Trouble]:
    """Lend a daemon whose way to its storage is hostile."""
    async with hostile_s3("127.0.0.1", server.port) as wire:
        env = {
            **server.env,
            "S3_ENDPOINT": wire.endpoint,
            "MAX_FILE_SIZE": str(12 * MIB),
            "ITDESK_SCANNER__RETRY_SECONDS": "1",
            **env,
        }
        async with started(pg_server, **env) as live:
            yield Trouble(live, wire, await live.person(), seconds)


async def _no_parts_left(server: S3Server) -> None:
    async with S3(_settings(server.endpoint, server)).opened() as storage:
        await storage.sweep(older_than=0)
        assert await storage.sweep(older_than=0) == 0


def _settings(endpoint: str, server: S3Server, **more: Any) -> S3Settings:
    return S3Settings(
        endpoint=endpoint,
        bucket=server.bucket,
        access_key=server.access_key,
        secret_key=server.secret_key,
        **more,
    )


async def test_whatever_the_storage_does_requests_end_in_time_and_files_are_whole(
    pg_server: Server, s3_server: S3Server
) -> None:
    """R-13, at deadlines that are a fifth of the usual: each fault under every request at once."""
    env = {f"ITDESK_PLUGINS__S3__{name}": value for name, value in QUICK.items()}
    seconds = float(QUICK["REQUEST_SECONDS"]) + ABORT_SECONDS + 3
    async with trouble(pg_server, s3_server, seconds=seconds, **env) as ordeal:
        await ordeal.suffer_all(USUAL)
        await ordeal.account()
        assert 503 in ordeal.statuses
    await _no_parts_left(s3_server)


@pytest.mark.slow
async def test_at_the_usual_deadlines_no_request_takes_ten_seconds(
    pg_server: Server, s3_server: S3Server
) -> None:
    """R-13: as an operator gets it; the server stalls for as long as nobody gives up."""
    async with trouble(pg_server, s3_server, seconds=10) as ordeal:
        await ordeal.suffer_all(FAULTS)
        await ordeal.account()
        assert 503 in ordeal.statuses
    await _no_parts_left(s3_server)


@pytest.fixture
def quick() -> Iterator[dict[str, float]]:
    yield {name.lower(): float(value) for name, value in QUICK.items()}


async def test_a_server_that_cannot_be_connected_to_is_given_up_in_time(
    s3_server: S3Server, quick: dict[str, float]
) -> None:
    """R-13: no answer to the SYN at all; all tries together have the one deadline."""
    async with (
        silent_port() as nowhere,
        S3(_settings(nowhere, s3_server, **quick)).opened() as storage,
    ):
        async with asyncio.timeout(quick["request_seconds"] + ABORT_SECONDS + 3):
            outcomes = await asyncio.gather(
                storage.stat("a/b"),
                storage.delete("a/b"),
                put(storage, "a/b", b"x"),
                content_of(storage, "a/b"),
                storage.write("a/b", chunked(bytes(9 * MIB)), limit=9 * MIB),
                return_exceptions=True,
            )
        assert {type(each) for each in outcomes} == {Unavailable}


@pytest.mark.parametrize("fault", ["503", "stall"])
async def test_parts_that_could_not_be_removed_at_once_are_swept(
    s3_server: S3Server, quick: dict[str, float], fault: str
) -> None:
    """R-13: the abort fails as well; the next sweep finds the parts, and only old ones."""
    async with hostile_s3("127.0.0.1", s3_server.port) as wire:
        wire.when = lambda asked: "partNumber=2" in asked.path or asked.method == "DELETE"
        wire.fault = fault
        async with S3(_settings(wire.endpoint, s3_server, **quick)).opened() as storage:
            key = f"clean/tickets/parts.{fault}"
            with pytest.raises(Unavailable):
                await storage.write(key, chunked(bytes(17 * MIB), MIB), limit=20 * MIB)
            wire.behave()
            assert await storage.stat(key) is None
            assert await storage.sweep(older_than=3600) == 0
            found = await storage.client.call("list_multipart_uploads")
            assert [each["Key"] for each in found["Uploads"]] == [key]
            assert await storage.sweep(older_than=0) == 1
            assert await storage.sweep(older_than=0) == 0


async def test_a_whole_of_another_size_than_its_parts_is_none(
    s3_server: S3Server, quick: dict[str, float]
) -> None:
    """A server that answers well and kept something else: the object is removed, not believed."""
    async with hostile_s3("127.0.0.1", s3_server.port) as wire:
        original = wire._pass_on

        async def lie(head: bytes, body: bytes) -> bytes:
            answer = await original(head, body)
            if head.startswith(b"HEAD"):
                return answer.replace(b"Content-Length: 9437184", b"Content-Length: 9437183")
            return answer

        wire._pass_on = lie  # type: ignore[method-assign]
        async with S3(_settings(wire.endpoint, s3_server, **quick)).opened() as storage:
            with pytest.raises(Unavailable):
                await storage.write("clean/lie", chunked(bytes(9 * MIB)), limit=9 * MIB)
            assert await storage.stat("clean/lie") is None


async def test_deleting_many_files_does_not_wait_for_a_storage_that_is_out(
    database_url: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R-13: their rows are gone; what cannot be deleted in time is left for storage verify."""
    monkeypatch.setattr("itdesk.desk.attachments.FORGET_SECONDS", 0.3)
    async with hostile_s3("127.0.0.1", s3_server.port) as wire:
        env = {**s3_server.env, "S3_ENDPOINT": wire.endpoint}
        async with bench_on(database_url, **env) as bench:
            wire.fault = "stall"
            async with asyncio.timeout(7):  # one request alone is given 8
                await bench.desk.attachments.forget([(f"a/{n}", f"clean/{n}") for n in range(50)])
            assert wire.met["stall"] > 0
