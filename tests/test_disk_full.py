"""R-27: the disk that holds the files is full, and has room again."""

import asyncio
import io
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import FormData

from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Answer, Person, started
from tests.support.postgres import Server

MIB = 1 << 20
SIZE = 12 * MIB


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """Return a folder on a file system of its own, with room for 12 MiB.

    Where nothing may be mounted (no root, no user namespace) a folder whose free room is only
    looked at: then `min_free_bytes` is what makes the disk full.
    """
    folder = Path(tempfile.mkdtemp(prefix="itdesk-disk-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=200,mode=0755", "tmpfs",
         str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def _fill(folder: Path, leave: int) -> Path:
    """Use up all room but so much."""
    path = folder / "ballast"
    with path.open("wb") as ballast:
        while (free := _free(folder)) > leave:
            ballast.write(bytes(min(MIB, free - leave)))
            ballast.flush()
    return path


def _use_up_inodes(folder: Path) -> int:
    """Make empty files until no more can be made; return how many."""
    folder.mkdir()
    for number in range(10_000):
        try:
            (folder / str(number)).touch()
        except OSError:
            return number
    raise AssertionError("there is no end of inodes")


def _free(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


async def _upload(person: Person, ticket: str, content: bytes) -> Answer:
    form = FormData()
    form.add_field("file", io.BytesIO(content), filename="a.txt", content_type="text/plain")
    return await person.call("POST", f"/api/v1/tickets/{ticket}/attachments", data=form)


def _objects(uploads: Path) -> list[str]:
    found = (path for path in uploads.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(uploads)) for path in found)


@pytest.mark.parametrize("reserve", [0, pytest.param(2 * MIB, marks=pytest.mark.slow)])
async def test_a_full_disk_is_507_and_recovers_by_itself(
    pg_server: Server, clamd: Clamd, small_disk: Path, reserve: int
) -> None:
    """R-27: by ENOSPC itself and by `min_free_bytes`: no half object, nothing CLEAN, no restart."""
    if not os.path.ismount(small_disk):
        reserve = _free(small_disk) - SIZE
    uploads = small_disk / "uploads"
    env = {
        **SMALL_FILES,
        "CLAMAV_HOST": clamd.host,
        "CLAMAV_PORT": str(clamd.port),
        "UPLOAD_DIR": str(uploads),
        "ITDESK_PLUGINS__FILESYSTEM__MIN_FREE_BYTES": str(reserve),
        "ITDESK_SCANNER__RETRY_SECONDS": "1",
    }
    async with started(pg_server, **env) as live:
        alice = await live.person()
        ticket = (await alice.ticket())["key"]
        kept = (await _upload(alice, ticket, b"a" * 1000)).expect(201)
        assert (await alice.scanned(kept["id"]))["scanned_status"] == "CLEAN"
        asked = {"original_filename": "b.txt", "mime": "text/plain", "size": 2 * MIB}
        link = (await alice.post(f"/tickets/{ticket}/attachments/presign", asked)).expect(201)
        before = _objects(uploads)

        ballast = await asyncio.to_thread(_fill, small_disk, reserve + MIB)
        for content in (b"b" * 2 * MIB, b"b" * 3 * MIB):
            (await _upload(alice, ticket, content)).refused(507, "E_STORAGE_FULL")
        answer = await Person("").call(
            "PUT", link["upload_url"], data=io.BytesIO(b"b" * 2 * MIB), headers=link["headers"]
        )
        answer.refused(507, "E_STORAGE_FULL")
        assert [name for name in _objects(uploads) if name not in before] == []
        listed = (await alice.get(f"/tickets/{ticket}/attachments")).expect(200)
        assert [file["id"] for file in listed] == [kept["id"]]
        served = await alice.get(f"/attachments/{kept['id']}/content")
        assert served.status == 200 and served.raw == b"a" * 1000
        (await alice.get("/tickets")).expect(200)
        (await live.nobody.call("GET", "/healthz")).expect(200)

        await asyncio.to_thread(ballast.unlink)
        if os.path.ismount(small_disk):  # bytes enough, and no more files: ENOSPC out of the blue
            names = await asyncio.to_thread(_use_up_inodes, small_disk / "many")
            (await _upload(alice, ticket, b"b" * 1000)).refused(507, "E_STORAGE_FULL")
            assert names > 100 and _objects(uploads) == before
            await asyncio.to_thread(shutil.rmtree, small_disk / "many")

        # Room for the upload, not for its clean copy as well: the file waits.
        await asyncio.to_thread(_fill, small_disk, reserve + 3 * MIB)
        waits = (await _upload(alice, ticket, b"w" * 2 * MIB)).expect(201)
        async with asyncio.timeout(30):
            while True:
                found = (await alice.get(f"/attachments/{waits['id']}")).expect(200)
                assert found["scanned_status"] == "PENDING", found
                if found["scan_reason"] == "engine_down":
                    break
        assert not [name for name in _objects(uploads / "clean") if waits["id"] in name]

        await asyncio.to_thread(ballast.unlink)
        assert (await alice.scanned(waits["id"]))["scanned_status"] == "CLEAN"
        again = await Person("").call(
            "PUT", link["upload_url"], data=io.BytesIO(b"b" * 2 * MIB), headers=link["headers"]
        )
        assert again.status == 200
        found = await alice.scanned(link["attachment_id"])
        assert found["scanned_status"] == "CLEAN"
        served = await alice.get(f"/attachments/{waits['id']}/content")
        assert served.status == 200 and served.raw == b"w" * 2 * MIB
