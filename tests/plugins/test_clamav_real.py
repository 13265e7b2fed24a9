"""The clamav engine and the archive walk against a real clamd (S-24, R-10, R-12)."""

import asyncio
import functools
import io
import os
import select
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Coroutine, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from itdesk import archives
from itdesk.errors import Unavailable
from itdesk.hookspecs import ScanEngine, Verdict
from itdesk.model import ScanReason
from itdesk.runtime import log
from itdesk_plugins import clamav_probe
from itdesk_plugins.clamav import Engine, Plugin
from tests.support import samples
from tests.support.clamd import Clamd

MIB = 1 << 20
Put = Callable[[bytes], Path]
BIGGEST = 8 * MIB  # what the fixture's clamd is set to

type_of = {True: "clean", False: "infected"}


def engine_for(clamd: Clamd, *, tcp: bool = False, **settings: object) -> Engine:
    address = {"host": clamd.host, "port": clamd.port} if tcp else {"socket": clamd.socket}
    options = address | {"max_file_size": BIGGEST} | settings
    return Engine(Plugin.Settings.model_validate(options))


def engine_says(
    engine: ScanEngine, path: Path, *, timeout: float = 30
) -> Coroutine[Any, Any, Verdict]:
    return engine.scan(path, size=path.stat().st_size, timeout=timeout)


async def verdict_of(engine: Engine, path: Path) -> str:
    """Judge a file as the scanner does: the walk first, then the engine."""
    limits = archives.Limits(member_bytes=BIGGEST)
    finding = await asyncio.to_thread(archives.walk, path, limits)
    if finding is not None:
        return finding.reason
    verdict = await engine_says(engine, path)
    return type_of[verdict.clean] if verdict.clean is not None else verdict.reason or "?"


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def own_clamd() -> Iterator[Clamd]:
    with Clamd() as daemon:
        yield daemon


MARKER = samples.eicar()
SAMPLES: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "marker": (samples.eicar, {"infected"}),
    "marker behind 5 MB": (lambda: bytes(5_000_000) + MARKER, {"infected"}),
    "zip": (lambda: samples.nested(1), {"infected"}),
    "zip behind another head": (lambda: b"GIF89a" + samples.nested(1), {"infected"}),
    "nested 3": (lambda: samples.nested(3), {"infected"}),
    "nested 4": (lambda: samples.nested(4), {"limits"}),
    "nested 10": (lambda: samples.nested(10), {"limits"}),
    "nested 25": (lambda: samples.nested(25), {"limits"}),
    "encrypted zip": (lambda: samples.encrypted_zip(MARKER), {"encrypted"}),
    "encrypted harmless zip": (lambda: samples.encrypted_zip(b"hi"), {"encrypted"}),
    "encrypted zip in a zip": (
        lambda: samples.archive(("a.zip", samples.encrypted_zip(MARKER))),
        {"encrypted"},
    ),
    "encrypted 7z": (samples.encrypted_7z, {"encrypted"}),
    "hidden 7z": (lambda: samples.encrypted_7z(hidden=True), {"encrypted"}),
    "encrypted pdf": (samples.encrypted_pdf, {"encrypted"}),
    "27 KB docx": (lambda: samples.inflating_document(27_000_000), {"limits"}),
    "103 KB zip": (lambda: samples.inflating(105_000_000), {"limits"}),
    "member just past MaxFileSize": (lambda: samples.inflating(BIGGEST), {"limits"}),
    "10,050 members": (lambda: samples.crowd(10_050), {"limits"}),
    "10,050 harmless members": (lambda: samples.crowd(10_050, last=b""), {"limits"}),
    "beyond the stream's limit": (lambda: bytes(BIGGEST) + MARKER, {"limits"}),
    "tar": (lambda: samples.tarball(("a.com", MARKER)), {"infected"}),
    "tar.gz": (lambda: samples.tarball(("a.com", MARKER), compression="gz"), {"infected"}),
    "tar.bz2": (lambda: samples.tarball(("a.com", MARKER), compression="bz2"), {"infected"}),
    "tar.xz": (lambda: samples.tarball(("a.com", MARKER), compression="xz"), {"infected"}),
    "gz": (lambda: samples.compressed(MARKER, "gz"), {"infected"}),
    "eml": (lambda: samples.mail("a.com", MARKER), {"infected"}),
    "zip in eml": (lambda: samples.mail("a.zip", samples.nested(1)), {"infected"}),
    "docx": (lambda: samples.document(MARKER.decode()), {"infected"}),
    "empty": (lambda: b"", {"unreadable"}),
    "cut zip": (lambda: samples.archive(("a.com", MARKER * 99))[:90], {"unreadable"}),
    "cut gz": (lambda: samples.compressed(os.urandom(999) + MARKER, "gz")[:500], {"unreadable"}),
    "clean docx": (samples.document, {"clean"}),
    "clean picture": (samples.png, {"clean"}),
    "clean pdf": (samples.plain_pdf, {"clean"}),
    "clean tar.gz": (lambda: samples.tarball(("a", b"hi"), compression="gz"), {"clean"}),
    "clean and as large as allowed": (lambda: bytes(BIGGEST), {"clean"}),
}


@pytest.mark.parametrize("name", SAMPLES)
async def test_only_what_was_seen_whole_and_harmless_is_clean(
    clamd: Clamd, put: Put, name: str
) -> None:
    build, expected = SAMPLES[name]
    assert await verdict_of(engine_for(clamd), put(build())) in expected


@pytest.mark.parametrize("name", ["marker", "clean docx", "encrypted pdf"])
async def test_tcp_says_the_same(clamd: Clamd, put: Put, name: str) -> None:
    build, expected = SAMPLES[name]
    assert await verdict_of(engine_for(clamd, tcp=True), put(build())) in expected


@pytest.mark.parametrize("name", ["27 KB docx", "103 KB zip", "member just past MaxFileSize"])
async def test_clamd_alone_would_pass_them_in_silence(clamd: Clamd, put: Put, name: str) -> None:
    verdict = await engine_says(engine_for(clamd), put(SAMPLES[name][0]()))
    assert verdict.clean, "this clamd sees them: the walk's limits may be reconsidered"


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_stream_beyond_the_limit_is_too_long_every_time(
    clamd: Clamd, put: Put, tcp: bool
) -> None:
    engine, path = engine_for(clamd, tcp=tcp), put(bytes(32 * MIB))
    for _ in range(15):
        verdict = await engine_says(engine, path)
        assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.LIMITS, False)


async def test_ping_and_version(clamd: Clamd) -> None:
    engine = engine_for(clamd)
    await engine._client.ping()
    assert (await engine._client.version()).startswith("1.")
    assert await engine.probe() == []
    assert engine.health.ok


# --- the probe ------------------------------------------------------------------------------

WEAK: dict[str, tuple[dict[str, str | None], str]] = {
    "AlertExceedsMax": ({"AlertExceedsMax": None}, "AlertExceedsMax yes"),
    "AlertExceedsMax, deep": (
        {"AlertExceedsMax": None, "MaxRecursion": "500"},
        "AlertExceedsMax yes",
    ),
    "AlertEncrypted": ({"AlertEncrypted": None}, "AlertEncrypted yes"),
    "AlertEncryptedDoc": (
        {"AlertEncrypted": None, "AlertEncryptedArchive": "yes"},
        "AlertEncrypted yes",
    ),
    "AlertEncryptedArchive": (
        {"AlertEncrypted": None, "AlertEncryptedDoc": "yes"},
        "AlertEncrypted yes",
    ),
    "ScanArchive": ({"ScanArchive": "no"}, "ScanArchive yes"),
    "ScanMail": ({"ScanMail": "no"}, "ScanMail yes"),
    "ScanPDF": ({"ScanPDF": "no"}, "ScanPDF yes"),
    "StreamMaxLength": ({"StreamMaxLength": "7M"}, "StreamMaxLength"),
    "MaxFileSize": ({"MaxFileSize": "7M"}, "MaxFileSize"),
    "MaxScanSize": ({"MaxScanSize": "7M"}, "MaxScanSize"),
    "MaxFileSize, members": ({"MaxFileSize": str(BIGGEST - 1)}, "archives with a member of"),
}


@pytest.mark.parametrize("name", WEAK)
async def test_probe_names_the_weak_line(name: str) -> None:
    options, line = WEAK[name]
    with Clamd(**options) as daemon:
        engine = engine_for(daemon)
        problems = await engine.probe()
    assert any(line in problem for problem in problems)
    assert not engine.health.ok and line in engine.health.reason


@pytest.mark.parametrize(("threads", "warned"), [("6", True), ("7", False)])
async def test_probe_warns_of_fewer_threads_than_scans(
    threads: str, warned: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """It costs time and no verdict: clamd is believed all the same."""
    with Clamd(MaxThreads=threads) as daemon:
        engine = engine_for(daemon)
        engine.require(BIGGEST, at_once=6)
        assert await engine.probe() == [] and engine.health.ok
    log.flush()
    said = capfd.readouterr().err
    assert ("clamd has too few threads" in said) == warned
    assert ("set `MaxThreads` in clamd.conf above scanner.concurrency" in said) == warned


async def test_probe_names_missing_signatures(own_clamd: Clamd) -> None:
    for path in (own_clamd.socket.parent / "db").iterdir():
        path.unlink()
    own_clamd.socket.with_name("db").joinpath("x.hdb").write_text(f"{'0' * 32}:68:Other\n")
    own_clamd.restart()
    problems = await engine_for(own_clamd).probe()
    assert "DatabaseDirectory" in problems[0]


@pytest.mark.parametrize("size", [8 * MIB - 1, 8 * MIB, 8 * MIB + 1])
def test_probe_samples_are_of_exactly_the_size_they_are_for(size: int) -> None:
    whole, packed = io.BytesIO(), io.BytesIO()
    clamav_probe._full_zip(whole, size)
    clamav_probe._inflating_zip(packed, size)
    with zipfile.ZipFile(packed) as reader:
        [member] = reader.infolist()
    assert member.file_size == size and size - 4 < whole.tell() <= size


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ({}, 8 * MIB),
        ({"MaxFileSize": "20M", "MaxScanSize": "200M"}, 16 * MIB),
        ({"MaxFileSize": "100M", "MaxScanSize": "400M"}, 64 * MIB),
    ],
)
async def test_probe_finds_the_largest_member_that_is_not_passed_in_silence(
    options: dict[str, str | None], largest: int
) -> None:
    with Clamd(**options) as daemon:
        engine = engine_for(daemon)
        assert await engine.probe() == []
    assert engine.max_member_size == largest


@functools.cache
def shipped_options() -> dict[str, str | None]:
    lines = Path(str(files("itdesk_etc")), "clamd.conf").read_text().splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    options: dict[str, str | None] = {key: value for key, value in pairs}
    for key in ("LocalSocket", "LocalSocketGroup", "User", "DatabaseDirectory", "LogFile"):
        assert options.pop(key)
    return options


async def test_shipped_configuration_passes_the_probe() -> None:
    with Clamd(**shipped_options()) as daemon:
        engine = engine_for(daemon, max_file_size=25 * MIB)
        assert await engine.probe() == []
    assert engine.max_member_size == archives.Limits().member_bytes


@pytest.mark.parametrize("wrap", [lambda content: samples.mail("a.docx", content), bytes])
async def test_equal_limits_close_the_silent_pass_where_the_walk_does_not_look(
    put: Put, wrap: Callable[[bytes], bytes]
) -> None:
    equal = {"MaxFileSize": "8M", "MaxScanSize": "8M"}
    content = wrap(samples.inflating_document(27_000_000))
    with Clamd(**equal) as daemon:
        verdict = await engine_says(engine_for(daemon), put(content))
    assert (verdict.clean, verdict.reason) == (None, ScanReason.LIMITS)


def test_probe_samples_hold_the_test_file_in_pieces_only() -> None:
    source = Path(clamav_probe.__file__).read_bytes()
    assert samples.eicar() == clamav_probe.eicar() and samples.eicar() not in source


# --- outages --------------------------------------------------------------------------------


async def test_clamd_that_is_down_is_an_outage_until_it_is_back(own_clamd: Clamd, put: Put) -> None:
    engine, path = engine_for(own_clamd), put(b"harmless")
    assert (await engine_says(engine, path)).clean
    for end in (own_clamd.kill, own_clamd.stop):
        end()
        with pytest.raises(Unavailable):
            await engine_says(engine, path)
        assert not engine.health.ok
        own_clamd.start()
        assert (await engine_says(engine, path)).clean
        assert engine.health.ok


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
async def test_hanging_clamd_costs_the_deadline_and_recovers(
    own_clamd: Clamd, put: Put, tcp: bool
) -> None:
    engine, path = engine_for(own_clamd, tcp=tcp), put(bytes(BIGGEST))
    assert (await engine_says(engine, path)).clean
    own_clamd.pause()
    started = asyncio.get_running_loop().time()
    verdict = await engine_says(engine, path, timeout=0.5)
    assert asyncio.get_running_loop().time() - started < 1.5
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.TIMEOUT, True)
    own_clamd.resume()
    assert (await engine_says(engine, path)).clean


async def test_reload_and_a_full_queue_only_delay(put: Put) -> None:
    with Clamd(MaxThreads="2", MaxQueue="4") as daemon:
        engine = engine_for(daemon, tcp=True)
        clean = put(bytes(BIGGEST))
        bad = clean.with_name("bad")
        bad.write_bytes(MARKER)
        async with asyncio.TaskGroup() as tasks:
            verdicts = [tasks.create_task(engine_says(engine, path)) for path in (clean, bad) * 12]
            with socket.create_connection((daemon.host, daemon.port)) as conn:
                conn.sendall(b"zRELOAD\0")
                assert conn.recv(64) == b"RELOADING\0"
    assert [task.result().clean for task in verdicts] == [True, False] * 12


def test_clamd_of_the_tests_dies_with_its_parent() -> None:
    code = (
        "import sys, os, signal; from tests.support.clamd import Clamd; c = Clamd(); c.start();"
        "print(c.pid, c.socket.parent, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    handle = os.pidfd_open(int(pid))
    try:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
        assert select.select([handle], [], [], 5)[0], "clamd outlived its parent"
    finally:
        os.close(handle)
        subprocess.run(["rm", "-r", folder], check=True)
