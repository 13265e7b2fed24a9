"""P-02: files far larger than memory should have to know about, through the real daemon."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.support.daemon import Live, Person, started
from tests.support.postgres import Server

MIB = 1 << 20
# What one block of the test file is made of; text, so that the type is accepted.
BLOCK = b"0123456789abcdef" * (MIB // 16)


def _memory(live: Live) -> int:
    """Return the most memory that the daemon ever held, in bytes."""
    assert live.daemon.process is not None
    status = Path(f"/proc/{live.daemon.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


async def _blocks(count: int) -> AsyncIterator[bytes]:
    for number in range(count):
        yield number.to_bytes(8, "big").hex().encode() + BLOCK[16:]


async def _upload(person: Person, ticket: str, count: int) -> str:
    asked = {"original_filename": "big.txt", "mime": "text/plain", "size": count * MIB}
    link = (await person.post(f"/tickets/{ticket}/attachments/presign", asked)).expect(201)
    headers = {**link["headers"], "Content-Length": str(count * MIB)}
    async with (
        ClientSession() as session,
        session.put(link["upload_url"], data=_blocks(count), headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
    return str(link["attachment_id"])


async def _download(person: Person, file: str) -> str:
    digest = hashlib.sha256()
    url = f"{person.base}/api/v1/attachments/{file}/content"
    async with (
        ClientSession(headers={"Authorization": f"Bearer {person.token}"}) as session,
        session.get(url) as response,
    ):
        assert response.status == 200
        async for chunk in response.content.iter_chunked(MIB):
            digest.update(chunk)
    return digest.hexdigest()


async def _lag(person: Person) -> float:
    """Return the share of loop turns that were late by more than 50 ms."""
    text = (await person.call("GET", "/metrics")).raw.decode()
    counts = {
        bound: float(value)
        for bound, value in re.findall(
            r'itdesk_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text
        )
    }
    within = max(value for bound, value in counts.items() if float(bound) <= 0.05)
    return 1 - within / counts["+Inf"]


@pytest.mark.parametrize("size", [96, pytest.param(1024, marks=pytest.mark.slow)])
async def test_four_large_files_at_once_cost_no_memory(pg_server: Server, size: int) -> None:
    """P-02: uploads, scans and downloads side by side; memory stays, the loop goes on."""
    env = {
        "MAX_FILE_SIZE": str(size * MIB),
        "ITDESK_SCANNER__TIMEOUT_SECONDS": "600",
        "ITDESK_LOG__LEVEL": "WARNING",
    }
    async with started(pg_server, **env) as live:
        alice = await live.person()
        ticket = (await alice.ticket())["key"]
        warm = await _upload(alice, ticket, 1)
        await alice.scanned(warm)
        await _download(alice, warm)
        before = _memory(live)
        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(_upload(alice, ticket, size)) for _ in range(4)]
        files = [task.result() for task in sent]
        for file in files:
            found = await alice.scanned(file, seconds=600)
            assert found["scanned_status"] == "CLEAN", found
        async with asyncio.TaskGroup() as group:
            got = [group.create_task(_download(alice, file)) for file in files]
        digest = hashlib.sha256()
        async for block in _blocks(size):
            digest.update(block)
        assert {task.result() for task in got} == {digest.hexdigest()}
        assert _memory(live) - before <= 64 * MIB
        late = await _lag(alice)
        assert late <= 0.1
        print(f"\n{size} MiB x 4: +{(_memory(live) - before) / MIB:.0f} MiB, late turns {late:.3%}")
        assert list((live.daemon.state_dir / "spool").iterdir()) == []
        left = [p for p in (live.daemon.state_dir / "uploads/clean").rglob("*") if p.is_file()]
        assert len(left) == 5


async def test_an_announced_excess_is_refused_before_the_body_is_read(live: Live) -> None:
    """P-02: over the limit by Content-Length: 413 at once, nothing of the body is taken."""
    alice = await live.person()
    ticket = (await alice.ticket())["key"]
    read, write = await asyncio.open_connection(*_address(live))
    write.write(
        f"POST /api/v1/tickets/{ticket}/attachments HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {alice.token}\r\nContent-Length: {10**12}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n".encode()
    )
    head = await asyncio.wait_for(read.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 413 ")
    write.close()


def _address(live: Live) -> tuple[str, int]:
    host, _, port = live.url.removeprefix("http://").partition(":")
    return host, int(port)
