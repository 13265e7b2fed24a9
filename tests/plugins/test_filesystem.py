import asyncio
import hashlib
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from itdesk.desk.plugins import Plugins
from itdesk.errors import DeskError, NotFound, StorageFull, TooLarge, Unavailable
from itdesk.runtime.metrics import Metrics
from itdesk_plugins.filesystem import Filesystem, FilesystemSettings
from itdesk_plugins.filesystem_files import INCOMING, Download
from tests.plugins.conformance import MIB, StorageConformance, chunked, content_of, new_key, put

IS_ROOT = os.geteuid() == 0


def storage_in(root: Path, **options: Any) -> Filesystem:
    return Filesystem(root, FilesystemSettings(**{"min_free_bytes": 0, **options}))


def files_below(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir())


def modes_below(root: Path) -> dict[str, int]:
    found = {str(p.relative_to(root)): p for p in (root, *root.rglob("*"))}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the project importable."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
    return subprocess.run(
        [*wrapper, sys.executable, "-c", f"{head}\n{code}"],
        check=False,
        capture_output=True,
        text=True,
    )


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
async def storage(root: Path) -> AsyncIterator[Filesystem]:
    """A storage that must neither leave files half written nor descriptors open."""
    before = descriptors()
    storage = storage_in(root)
    await storage.begin()
    yield storage
    storage.close()
    assert [p.name for p in (root / INCOMING).iterdir() if not p.name.startswith("kept")] == []
    assert descriptors() <= before + 1  # the loop may have opened one


class TestFilesystem(StorageConformance):
    """The filesystem as a storage like any other."""


# --- S-20: nothing outside the root --------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    return outside


@pytest.fixture(params=["folder", "object", "incoming"])
def link(request: pytest.FixtureRequest, root: Path, outside: Path) -> str:
    """What below the root leads out of it."""
    root.mkdir()
    if request.param == "folder":
        (root / "tickets").symlink_to(outside)
    elif request.param == "object":
        (root / "tickets").mkdir()
        (root / "tickets" / "secret").symlink_to(outside / "secret")
    else:
        (root / INCOMING).symlink_to(outside)
    return str(request.param)


async def test_a_link_below_the_root_is_not_followed_out_of_it(
    root: Path, outside: Path, link: str
) -> None:
    storage = storage_in(root)
    await storage.begin()
    assert await storage.stat("tickets/secret") is None
    with pytest.raises(NotFound):
        await content_of(storage, "tickets/secret")
    try:
        await put(storage, "tickets/secret", b"new")
    except DeskError as exc:
        assert isinstance(exc, Unavailable) and link != "object"
    else:
        assert await content_of(storage, "tickets/secret") == b"new"
    await storage.delete("tickets/secret")
    assert (outside / "secret").read_bytes() == b"secret"
    assert files_below(outside) == ["secret"]
    storage.close()


async def test_what_is_no_regular_file_is_no_object(storage: Filesystem, root: Path) -> None:
    (root / "tickets").mkdir()
    os.mkfifo(root / "tickets" / "pipe")
    assert await storage.stat("tickets/pipe") is None
    async with asyncio.timeout(2):
        with pytest.raises(NotFound):
            await content_of(storage, "tickets/pipe")


async def test_files_and_folders_are_the_daemons_alone(storage: Filesystem, root: Path) -> None:
    before = os.umask(0)
    try:
        await put(storage, "tickets/1/a", b"x")
    finally:
        os.umask(before)
    folders = dict.fromkeys([".", INCOMING, "tickets", "tickets/1"], 0o700)
    assert modes_below(root) == {**folders, "tickets/1/a": 0o600}


async def test_a_root_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "uploads").symlink_to(tmp_path / "disk")
    storage = storage_in(tmp_path / "uploads")
    await storage.check()
    storage.close()


# --- whole or nothing ----------------------------------------------------------------------------


async def test_an_object_is_invisible_until_it_is_whole(storage: Filesystem, root: Path) -> None:
    seen: list[list[str]] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(MIB)
            seen.append([name.split("/")[0] for name in files_below(root)])

    await storage.write("tickets/1/a", chunks(), limit=3 * MIB)
    assert seen == [[INCOMING]] * 3
    assert files_below(root) == ["tickets/1/a"]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace shows what reaches the disk")
@pytest.mark.parametrize("fsync", [True, False])
async def test_an_acknowledged_file_is_on_the_disk(root: Path, fsync: bool, tmp_path: Path) -> None:
    code = f"""
import asyncio
from pathlib import Path
from itdesk_plugins.filesystem import Filesystem, FilesystemSettings
from tests.plugins.conformance import put
storage = Filesystem(Path({str(root)!r}), FilesystemSettings(min_free_bytes=0, fsync={fsync}))
async def main():
    await storage.begin()
    await put(storage, "tickets/1/a", b"x" * 100)
    await put(storage, "tickets/1/b", b"x" * 100)
    await storage.delete("tickets/1/b")
asyncio.run(main())
"""
    trace = tmp_path / "trace"
    calls = "trace=fsync,rename,renameat,renameat2"
    ran = run_python(code, "strace", "-f", "-y", "-e", calls, "-o", str(trace))
    assert ran.returncode == 0, ran.stderr
    found = re.findall(
        rf"(fsync|rename)[at2]*\(\d+<{re.escape(str(root))}(/?[^>]*)>", trace.read_text()
    )
    steps = [(call, re.sub("[0-9a-f]{32}", "*", place)) for call, place in found]
    synced = [
        ("fsync", ""),  # the root, which has got incoming~
        ("fsync", f"/{INCOMING}/*"),
        ("fsync", ""),  # the root, which has got tickets
        ("fsync", "/tickets"),  # which has got 1
        ("rename", f"/{INCOMING}"),
        ("fsync", "/tickets/1"),
    ]
    again = [synced[1], *synced[-2:], ("fsync", "/tickets/1")]  # the last for what is deleted
    assert steps == ([*synced, *again] if fsync else [("rename", f"/{INCOMING}")] * 2)


async def test_a_crash_leaves_only_what_the_next_start_sweeps(root: Path) -> None:
    code = f"""
import asyncio, os, signal
from pathlib import Path
from itdesk_plugins.filesystem import Filesystem, FilesystemSettings
storage = Filesystem(Path({str(root)!r}), FilesystemSettings(min_free_bytes=0))
async def chunks():
    for _ in range(3):
        yield bytes(1 << 20)
    os.kill(os.getpid(), signal.SIGKILL)
async def main():
    await storage.begin()
    await storage.write("tickets/1/a", chunks(), limit=1 << 30)
asyncio.run(main())
"""
    assert run_python(code).returncode == -signal.SIGKILL
    [left] = files_below(root)
    assert left.startswith(f"{INCOMING}/")
    storage = storage_in(root)
    assert await storage.stat("tickets/1/a") is None
    await storage.begin()
    assert files_below(root) == [left]
    past = (root / left).stat().st_mtime - 3700
    os.utime(root / left, (past, past))
    await storage.begin()
    assert files_below(root) == []
    storage.close()


async def test_a_write_that_is_cancelled_at_any_moment_leaves_no_half(
    storage: Filesystem, root: Path
) -> None:
    content = os.urandom(6 * MIB)
    outcomes = set()
    for moment in range(60):
        key = f"tickets/{moment}/a"
        writing = asyncio.ensure_future(storage.write(key, chunked(content), limit=len(content)))
        await asyncio.wait({writing}, timeout=moment / 2000)
        writing.cancel()
        await asyncio.wait({writing})
        outcomes.add(writing.cancelled())
        found = await storage.stat(key)
        assert found is None or await content_of(storage, key) == content
        assert writing.cancelled() or found is not None
        assert [*(root / INCOMING).iterdir()] == []
    assert True in outcomes


@pytest.mark.parametrize("times", [1, 2])
async def test_a_write_that_is_cancelled_while_the_disk_works_never_becomes_visible(
    root: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = storage_in(root, threads=1)
    await storage.begin()
    gate, sync = threading.Event(), storage.sync

    def slow_sync(descriptor: int) -> None:
        gate.wait(5)
        sync(descriptor)

    monkeypatch.setattr(storage, "sync", slow_sync)
    writing = asyncio.ensure_future(put(storage, "tickets/1/a", b"x"))
    await asyncio.wait({writing}, timeout=0.1)
    assert len(names_in(root / INCOMING)) == 1
    for _ in range(times):
        writing.cancel()
        await asyncio.wait({writing}, timeout=0.05)
    gate.set()
    await asyncio.wait({writing})
    assert writing.cancelled()
    assert await storage.stat("tickets/1/a") is None  # one thread: the clean-up came before
    assert files_below(root) == []
    storage.close()


async def test_a_reader_that_goes_away_leaves_no_file_open(storage: Filesystem) -> None:
    await put(storage, "tickets/1/a", bytes(4 * MIB))
    before = descriptors()
    for _ in range(20):
        reading = cast(AsyncGenerator[bytes], storage.read("tickets/1/a"))
        await anext(reading)
        await reading.aclose()
        task = asyncio.ensure_future(content_of(storage, "tickets/1/a"))
        await asyncio.wait({task}, timeout=0.0005)
        task.cancel()
        await asyncio.wait({task})
    assert descriptors() <= before


async def test_a_file_is_not_closed_while_a_thread_reads_it(storage: Filesystem) -> None:
    """Its number could mean another file by the time that the thread uses it."""
    reader, writer = os.pipe()
    download = Download(storage, ["a"])
    download._file = reader
    reading = asyncio.ensure_future(asyncio.to_thread(download.next))
    await asyncio.wait({reading}, timeout=0.05)
    closing = asyncio.ensure_future(asyncio.to_thread(download.close))
    await asyncio.wait({closing}, timeout=0.05)
    assert not closing.done()
    os.write(writer, b"x")
    assert await reading == b"x"
    await closing
    os.close(writer)


async def test_deleting_the_last_file_removes_the_tickets_folder(
    storage: Filesystem, root: Path
) -> None:
    await put(storage, "tickets/1/a", b"a")
    await put(storage, "tickets/2/b", b"b")
    await storage.delete("tickets/1/a")
    assert names_in(root / "tickets") == ["2"]


async def test_leftovers_of_other_kinds_do_not_stop_the_sweep(
    storage: Filesystem, root: Path
) -> None:
    (root / INCOMING / "kept-folder").mkdir()
    os.utime(root / INCOMING / "kept-folder", (0, 0))
    (root / INCOMING / "old").touch()
    os.utime(root / INCOMING / "old", (0, 0))
    await storage.begin()
    assert names_in(root / INCOMING) == ["kept-folder"]


# --- full disks ----------------------------------------------------------------------------


@contextmanager
def mounted(place: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB and 40 files; for who may not mount, a limit on the size of files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if IS_ROOT:
        with mounted(disk, "size=1m,nr_inodes=40"):
            yield disk
    else:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
        yield disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_whole_and_recovers(small_disk: Path) -> None:
    storage = storage_in(small_disk)
    await storage.begin()
    await put(storage, "tickets/1/old", b"old")
    for _ in range(3):
        with pytest.raises(StorageFull):
            await put(storage, "tickets/1/big", bytes(3 * MIB))
        with pytest.raises(StorageFull):
            await put(storage, "tickets/1/old", bytes(3 * MIB))
    assert files_below(small_disk) == ["tickets/1/old"]
    assert await content_of(storage, "tickets/1/old") == b"old"
    await put(storage, "tickets/1/fits", bytes(MIB // 2))
    await storage.check()
    storage.close()


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount")
async def test_a_disk_without_inodes_is_full_too(small_disk: Path) -> None:
    storage = storage_in(small_disk)
    await storage.begin()
    with pytest.raises(StorageFull):
        for number in range(60):
            await put(storage, f"tickets/1/{number}", b"")
    with pytest.raises(StorageFull, match=rf"{small_disk}: no room"):
        await storage.check()
    await storage.delete("tickets/1/0")
    await storage.delete("tickets/1/1")
    await storage.delete("tickets/1/2")
    await storage.check()
    storage.close()


async def test_some_room_is_never_used_up(root: Path) -> None:
    storage = storage_in(root, min_free_bytes=1 << 60)
    await storage.begin()
    with pytest.raises(StorageFull):
        await put(storage, "tickets/1/a", b"x")
    with pytest.raises(StorageFull, match=rf"{root}: no room: .*min_free_bytes"):
        await storage.check()
    health = await storage.health()
    assert not health.ok and str(root) in health.reason
    assert files_below(root) == []
    storage.close()


# --- S2-52: a directory that cannot be used ------------------------------------------------------


async def complaint(root: Path) -> str:
    storage = storage_in(root)
    await storage.begin()
    with pytest.raises(Unavailable) as caught:
        await storage.check()
    with pytest.raises(Unavailable) as plain:
        await put(storage, new_key(), b"x")
    assert str(root) not in plain.value.message  # callers are no operators
    storage.close()
    assert caught.value.message.startswith(f"{root}: ")
    assert "UPLOAD_DIR" in caught.value.message
    return caught.value.message


@pytest.fixture
def file(root: Path) -> Path:
    root.write_bytes(b"")
    return root


@pytest.fixture
def read_only(root: Path) -> Iterator[Path]:
    root.mkdir()
    with mounted(root, "ro"):
        yield root


async def test_a_path_that_is_a_file_is_named(file: Path) -> None:
    assert "not a directory" in await complaint(file)


async def test_a_path_below_a_file_is_named(file: Path) -> None:
    assert "not a directory" in await complaint(file / "below")


async def test_a_missing_parent_is_named(root: Path) -> None:
    assert "parent directory does not exist" in await complaint(root / "below")


@pytest.mark.skipif(not IS_ROOT, reason="only root may mount")
async def test_a_read_only_mount_is_named(read_only: Path) -> None:
    assert "read-only" in await complaint(read_only)


async def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    """As root the permission bits mean nothing, so another user tries."""
    root = tmp_path / "uploads"
    root.mkdir(mode=0o555)
    code = f"""
import asyncio, os
from pathlib import Path
from itdesk_plugins.filesystem import Filesystem, FilesystemSettings
from itdesk.errors import Unavailable
if os.geteuid() == 0:
    os.seteuid(65534)
storage = Filesystem(Path({str(root)!r}), FilesystemSettings())
try:
    asyncio.run(storage.check())
except Unavailable as exc:
    print(exc.message)
"""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    ran = run_python(code)
    user = 65534 if IS_ROOT else os.geteuid()
    assert ran.stdout.startswith(f"{root}: user {user} may not write there")


async def test_a_check_leaves_nothing_behind(storage: Filesystem, root: Path) -> None:
    await storage.check()
    assert names_in(root) == [INCOMING]


# --- P-02: memory, the event loop, speed ---------------------------------------------------------


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


async def test_large_files_need_little_memory_and_leave_the_loop_free(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = storage_in(root, fsync=False)
    size, uploads = 192 * MIB, 4
    chunk = os.urandom(65536)
    peak, lags, working = 0, [0.0], True

    async def source() -> AsyncIterator[bytes]:
        for _ in range(size // len(chunk)):
            yield chunk

    async def watch() -> None:
        nonlocal peak
        loop = asyncio.get_running_loop()
        while working:
            started, woken = perf_counter(), loop.create_future()
            loop.call_later(0.005, woken.set_result, None)
            await woken
            lags.append(perf_counter() - started - 0.005)
            peak = max(peak, resident())

    await storage.begin()
    await put(storage, "warm/up", bytes(4 * MIB))
    before, started = resident(), perf_counter()
    watching = asyncio.ensure_future(watch())
    keys = [new_key() for _ in range(uploads)]
    written = await asyncio.gather(*(storage.write(k, source(), limit=size) for k in keys))
    seconds = perf_counter() - started
    digest = hashlib.sha256()
    for _ in range(size // len(chunk)):
        digest.update(chunk)
    assert {(stored.size, stored.sha256) for stored in written} == {(size, digest.hexdigest())}

    async def drain(key: str) -> int:
        return sum([len(part) async for part in storage.read(key)])

    read_started = perf_counter()
    assert await asyncio.gather(*map(drain, keys)) == [size] * uploads
    read_seconds = perf_counter() - read_started
    working = False
    await watching
    for key in keys:
        await storage.delete(key)
    storage.close()
    lags.sort()
    with capsys.disabled():
        print(
            f"\n{uploads} x {size >> 20} MiB: written {uploads * size / seconds / 1e6:.0f} MB/s,"
            f" read {uploads * size / read_seconds / 1e6:.0f} MB/s,"
            f" memory +{(peak - before) / MIB:.1f} MiB,"
            f" lag p99 {lags[int(len(lags) * 0.99)] * 1000:.1f} ms"
        )
    assert peak - before <= 64 * MIB


async def test_the_disk_is_never_touched_on_the_event_loop(storage: Filesystem) -> None:
    here, touched = threading.get_ident(), list[str]()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir"):
            if listening and threading.get_ident() == here:
                touched.append(event)

    listening = True
    sys.addaudithook(audit)
    await put(storage, "tickets/1/a", bytes(2 * MIB))
    await content_of(storage, "tickets/1/a")
    await storage.stat("tickets/1/a")
    await storage.delete("tickets/1/a")
    await storage.check()
    await storage.health()
    listening = False
    assert touched == []


# --- as a plugin ---------------------------------------------------------------------------------


async def test_the_plugin_gives_the_desks_directory_or_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site" / "files-1.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: itdesk\nVersion: 1.0.0\n")
    (site / "entry_points.txt").write_text("[itdesk]\nfilesystem = itdesk_plugins.filesystem\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    desk: Any = SimpleNamespace(upload_dir=tmp_path / "desks")
    for section, expected in (
        ({}, tmp_path / "desks"),
        ({"directory": str(tmp_path / "own")}, tmp_path / "own"),
    ):
        plugins = Plugins.load({"filesystem": section}, metrics=Metrics())
        async with plugins.lifespan(desk):
            storage = (await plugins.storages(desk))["filesystem"]
            await put(storage, "tickets/1/a", b"x")
            assert (expected / "tickets" / "1" / "a").read_bytes() == b"x"
            assert (await plugins.health())["filesystem"].ok
            assert storage.presign_put("k", size=1, mime="a/b", expires_in=1) is None
            assert storage.presign_get("k", filename="f", mime="a/b", expires_in=1) is None
        assert plugins.status()["filesystem"].reason == ""


async def test_a_limit_is_told(storage: Filesystem) -> None:
    with pytest.raises(TooLarge) as caught:
        await storage.write("a/b", chunked(bytes(11)), limit=10)
    assert caught.value.details == {"limit": 10}
