"""The clamav engine against a clamd that answers as no honest one would."""

import asyncio
import io
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from itdesk.errors import Unavailable
from itdesk.hookspecs import Verdict
from itdesk.model import ScanReason
from itdesk_plugins.clamav import Client, Engine, Plugin
from tests.support.clamd import (
    HostileClamd,
    Script,
    answers,
    answers_early,
    drips,
    hangs,
    hostile,
    keeps_open,
    never_reads,
    resets,
    resets_after,
    sips,
)

MIB = 1 << 20
Put = Callable[[bytes], Path]


def engine_for(server: HostileClamd, **settings: object) -> Engine:
    options = {"host": server.host, "port": server.port, "idle_seconds": 0.3} | settings
    return Engine(Plugin.Settings.model_validate(options))


@pytest.fixture
def file(tmp_path: Path) -> Put:
    def write(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


def size_of(path: Path) -> int:
    return path.stat().st_size


async def scan(script: Script, path: Path, *, timeout: float = 5.0, **settings: object) -> Verdict:
    async with hostile(script) as server:
        engine = engine_for(server, **settings)
        verdict: Verdict = await engine.scan(path, size=size_of(path), timeout=timeout)
        return verdict


async def test_stream_is_sent_as_clamd_reads_it(file: Put) -> None:
    content = os.urandom(600 * 1024)
    async with hostile(answers(b"stream: OK\0")) as server:
        verdict = await engine_for(server).scan(file(content), size=len(content), timeout=5)
        [heard] = server.heard
    assert heard.command == b"zINSTREAM\0"
    assert [len(chunk) for chunk in heard.chunks] == [256 * 1024, 256 * 1024, 88 * 1024]
    assert heard.body == content and heard.terminated
    assert verdict == Verdict("clamav 9.9.9/12345", clean=True)


async def test_version_is_kept_until_the_next_probe_or_some_minutes(
    file: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def name() -> str:
        verdict: Verdict = await engine.scan(path, size=1, timeout=5)
        return verdict.engine

    async with hostile(answers(b"stream: OK\0")) as server:
        engine, path = engine_for(server), file(b"x")
        assert await name() == "clamav 9.9.9/12345"
        server.version = b"ClamAV 9.9.9/12346\0"
        assert await name() == "clamav 9.9.9/12345"
        await engine.probe()
        assert await name() == "clamav 9.9.9/12346"
        server.version = b"ClamAV 9.9.9/12347\0"
        monkeypatch.setattr(engine, "_version_until", asyncio.get_running_loop().time())
        assert await name() == "clamav 9.9.9/12347"


async def test_empty_file_is_sent_as_the_terminator_alone(file: Put) -> None:
    async with hostile(answers(b"stream: OK\0")) as server:
        await engine_for(server).scan(file(b""), size=0, timeout=5)
    assert server.heard[0].terminated and not server.heard[0].chunks


@pytest.mark.parametrize(
    ("reply", "signature"),
    [
        (b"stream: Eicar-Signature FOUND\0", "Eicar-Signature"),
        (b"stream: Eicar-Signature FOUND\n", "Eicar-Signature"),
        (b"stream: stream: OK FOUND\0", "stream: OK"),
        (b"stream: Win.Trojan.OK-1(44d88612fea8a8f36de82e1278abb02f:68) FOUND\0", None),
    ],
)
async def test_found_is_infected_whatever_its_name_contains(
    file: Put, reply: bytes, signature: str | None
) -> None:
    verdict = await scan(answers(reply), file(b"x"))
    assert verdict.clean is False
    assert verdict.signature == (signature or reply[8:-7].decode())


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND\0", ScanReason.LIMITS),
        (b"stream: Heuristics.Limits.Exceeded.MaxScanTime FOUND\0", ScanReason.LIMITS),
        (b"stream: Heuristics.Encrypted.Zip FOUND\0", ScanReason.ENCRYPTED),
        (b"INSTREAM size limit exceeded. ERROR\0", ScanReason.LIMITS),
    ],
)
async def test_what_clamd_could_not_look_into_is_final_and_no_infection(
    file: Put, reply: bytes, reason: ScanReason
) -> None:
    verdict = await scan(answers(reply), file(b"x"))
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, reason, False)


@pytest.mark.parametrize(
    "reply",
    [
        b"stream: OK",
        b"stream: O",
        b"s",
        b"\0",
        b"OK\0",
        b"stream: ok\0",
        b"stream:  OK\0",
        b" stream: OK\0",
        b"1: stream: OK\0",
        b"stream: OK \0",
        b"stream: OK\0\0",
        b"stream: OK\r\n",
        b"stream: OK\0stream: OK\0",
        b"stream: OK\nstream: Eicar FOUND\n",
        b"stream: Eicar FOUND\nstream: OK\n",
        b"stream: Eicar\nstream: OK\0",
        b"stream: Eicar OK FOUN",
        b"stream: Eicar FOUND",
        b"stream: FOUND\0",
        b"stream: OK\0" + b"x" * 5000,
        b"stream: OK\0" * 1000,
        b"stream: " + b"A" * 5000 + b" FOUND\0",
        b"stream: Can't allocate memory ERROR\0",
        b"COMMAND READ TIMED OUT\n",
        b"UNKNOWN COMMAND\0",
        b"PONG\0",
    ],
)
async def test_any_other_reply_is_not_scanned_and_tried_again(file: Put, reply: bytes) -> None:
    verdict = await scan(answers(reply), file(b"x"))
    assert (verdict.clean, verdict.retry) == (None, True)
    assert verdict.signature is None and verdict.reason is ScanReason.ENGINE_DOWN


async def test_ok_before_the_stream_ended_is_not_believed(file: Put) -> None:
    verdict = await scan(answers_early(b"stream: OK\0", after=100), file(bytes(32 * MIB)))
    assert (verdict.clean, verdict.retry) == (None, True)


async def test_ok_with_a_reset_instead_of_an_end_is_not_believed(file: Put) -> None:
    verdict = await scan(resets_after(b"stream: OK\0"), file(b"x"))
    assert (verdict.clean, verdict.retry) == (None, True)


async def test_ok_without_an_end_is_not_believed(file: Put) -> None:
    verdict = await scan(keeps_open(b"stream: OK\0"), file(b"x"))
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.TIMEOUT, True)


async def test_ok_for_another_number_of_bytes_is_not_believed(file: Put) -> None:
    async with hostile(answers(b"stream: OK\0")) as server:
        verdict = await engine_for(server).scan(file(b"12345"), size=6, timeout=5)
    assert (verdict.clean, verdict.reason) == (None, ScanReason.CHANGED)


async def test_found_before_the_stream_ended_is_believed(file: Put) -> None:
    verdict = await scan(answers_early(b"stream: Eicar FOUND\0", after=9), file(bytes(32 * MIB)))
    assert verdict.clean is False


async def test_reply_is_read_though_the_connection_was_reset(file: Put) -> None:
    too_long = b"INSTREAM size limit exceeded. ERROR\0"
    path = file(bytes(32 * MIB))
    async with hostile(resets(after=100_000, reply=too_long)) as server:
        for _ in range(20):
            verdict = await engine_for(server).scan(path, size=32 * MIB, timeout=5)
            assert (verdict.reason, verdict.retry) == (ScanReason.LIMITS, False)


async def test_connection_lost_within_the_limit_is_an_outage(file: Put) -> None:
    with pytest.raises(Unavailable, match="no answer"):
        await scan(resets(after=100_000), file(bytes(32 * MIB)), max_file_size=64 * MIB)


async def test_connection_lost_beyond_the_limit_means_too_long(file: Put) -> None:
    script = resets(after=2 * MIB)
    verdict = await scan(script, file(bytes(32 * MIB)), max_file_size=MIB)
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.LIMITS, False)


async def test_empty_reply_is_an_outage(file: Put) -> None:
    with pytest.raises(Unavailable, match="no answer"):
        await scan(answers(b""), file(b"x"))


@pytest.mark.parametrize(
    ("script", "idle", "timeout", "size"),
    [
        (hangs, 9.0, 0.5, 1),
        (never_reads, 9.0, 0.5, 32 * MIB),
        (never_reads, 0.3, 9.0, 32 * MIB),
        (sips(seconds=0.02), 0.3, 9.0, 32 * MIB),
        (drips(b"stream: OK\0", seconds=0.1), 9.0, 0.5, 1),
        (drips(b"stream: OK\0", seconds=0.1), 0.3, 9.0, 1),
    ],
    ids=["hangs", "never-reads", "never-reads-idle", "sips", "drips", "drips-idle"],
)
async def test_slow_clamd_costs_its_deadline_and_frees_its_connection(
    file: Put, script: Script, idle: float, timeout: float, size: int
) -> None:
    loop = asyncio.get_running_loop()
    before = len(os.listdir("/proc/self/fd"))
    async with hostile(script) as server:
        engine = engine_for(server, idle_seconds=idle)
        path, started = file(bytes(size)), loop.time()
        verdict = await engine.scan(path, size=size, timeout=timeout)
        took = loop.time() - started
    assert (verdict.clean, verdict.reason, verdict.retry) == (None, ScanReason.TIMEOUT, True)
    assert min(idle, timeout) <= took + 0.05 < 2
    assert not engine.health.ok and "in time" in engine.health.reason
    assert len(os.listdir("/proc/self/fd")) == before


async def test_slow_answer_within_the_deadline_is_waited_for(file: Put) -> None:
    async def thinks(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: object
    ) -> None:
        await answers(b"")(reader, writer, heard)  # type: ignore[arg-type]
        await thought.wait()
        writer.write(b"stream: OK\0")

    thought = asyncio.Event()
    async with hostile(thinks) as server:
        engine = engine_for(server, idle_seconds=0.1)
        asyncio.get_running_loop().call_later(0.4, thought.set)
        verdict = await engine.scan(file(b"x"), size=1, timeout=5)
    assert verdict.clean


async def test_cancelled_scan_closes_its_connection(file: Put) -> None:
    async with hostile(hangs) as server:
        engine = engine_for(server, idle_seconds=9)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await engine.scan(file(b"x"), size=1, timeout=9)
        async with asyncio.timeout(2):
            await server.quiet()


@pytest.mark.parametrize(
    "check",
    [
        test_stream_is_sent_as_clamd_reads_it,
        test_ok_before_the_stream_ended_is_not_believed,
        test_ok_with_a_reset_instead_of_an_end_is_not_believed,
        test_ok_without_an_end_is_not_believed,
        test_found_before_the_stream_ended_is_believed,
        test_reply_is_read_though_the_connection_was_reset,
        test_connection_lost_within_the_limit_is_an_outage,
        test_connection_lost_beyond_the_limit_means_too_long,
        test_cancelled_scan_closes_its_connection,
    ],
)
def test_holds_on_uvloop_too(file: Put, check: Callable[[Put], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(check(file))


async def test_file_is_read_outside_of_the_event_loop() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            assert threading.current_thread() is not threading.main_thread()
            return super().read(size)

    async with hostile(answers(b"stream: OK\0")) as server:
        reply = await Client((server.host, server.port)).instream(Slow(b"x" * MIB))
    assert reply.text == b"stream: OK\0" and reply.whole and reply.ended and reply.sent == MIB


async def test_disk_that_hangs_costs_the_idle_time() -> None:
    freed = threading.Event()

    class Stuck(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            freed.wait()
            return b""

    try:
        async with hostile(answers(b"stream: OK\0")) as server:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(9):
                    client = Client((server.host, server.port), idle_seconds=0.2)
                    started = asyncio.get_running_loop().time()
                    await client.instream(Stuck())
        assert asyncio.get_running_loop().time() - started < 5
    finally:
        freed.set()


async def test_error_of_the_disk_is_not_taken_for_one_of_clamd() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    async with hostile(answers(b"stream: OK\0")) as server:
        with pytest.raises(OSError, match="Input/output"):
            await Client((server.host, server.port)).instream(Broken())


@pytest.mark.parametrize("address", [("127.0.0.1", 1), Path("/tmp/no-clamd-here")])
async def test_clamd_that_is_not_there_is_an_outage(
    file: Put, address: Path | tuple[str, int]
) -> None:
    settings = {"socket": address} if isinstance(address, Path) else {"host": address[0], "port": 1}
    engine = Engine(Plugin.Settings.model_validate(settings))
    with pytest.raises(Unavailable, match=str(address if isinstance(address, Path) else ":1")):
        await engine.scan(file(b"x"), size=1, timeout=5)
    assert not engine.health.ok and "cannot be reached" in engine.health.reason
    with pytest.raises(Unavailable):
        await engine.probe()


async def test_connecting_has_its_own_deadline(file: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object, **__: object) -> list[object]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    engine = Engine(Plugin.Settings(connect_seconds=0.1))
    with pytest.raises(Unavailable, match="clamav:3310 .* no answer in time"):
        await engine.scan(file(b"x"), size=1, timeout=5)


@pytest.mark.parametrize(
    ("reply", "version"),
    [
        (b"ClamAV 1.4.6/27500/Mon Jan  1 00:00:00 2024\0", "1.4.6/27500"),
        (b"ClamAV 1.4.6\0", "1.4.6"),
        (b"ClamAV <script>\0", None),
        (b"", None),
    ],
)
async def test_version_names_the_signatures_or_nothing(reply: bytes, version: str | None) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"\0") == b"zVERSION\0"
        writer.write(reply)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with server:
        client = Client(server.sockets[0].getsockname())
        if version:
            assert await client.version() == version
        else:
            with pytest.raises(Unavailable):
                await client.version()


@pytest.mark.parametrize(
    ("stats", "threads"),
    [
        (b"POOLS: 1\n\nTHREADS: live 1  idle 0 max 10 idle-timeout 30\nQUEUE: 0 items\nEND\0", 10),
        (b"COMMAND UNAVAILABLE\0", None),
        (b"THREADS: many\0", None),
        (b"", None),
    ],
)
async def test_stats_name_the_threads_or_nothing(stats: bytes, threads: int | None) -> None:
    async with hostile(answers(b"stream: OK\0")) as server:
        server.stats = stats
        assert await Client((server.host, server.port)).threads() == threads


async def test_probe_of_a_clamd_that_always_says_ok_finds_it_weak() -> None:
    async with hostile(answers(b"stream: OK\0")) as server:
        engine = engine_for(server)
        problems = await engine.probe()
    assert len(problems) == 7
    assert not engine.health.ok and engine.health.reason == " ".join(problems)


async def test_probe_without_verdicts_is_an_outage_and_not_a_weakness() -> None:
    async with hostile(answers(b"COMMAND READ TIMED OUT\n")) as server:
        with pytest.raises(Unavailable, match="no verdict"):
            await engine_for(server).probe()


def test_defaults_are_the_documented_ones() -> None:
    settings = Plugin.Settings()
    assert (settings.host, settings.port) == ("clamav", 3310)


@pytest.mark.parametrize(("own", "desk_s", "proved"), [(MIB, 9 * MIB, 9 * MIB), (9, 7, 9)])
def test_probe_is_for_the_largest_file_that_the_desk_takes(
    own: int, desk_s: int, proved: int
) -> None:
    storage = SimpleNamespace(max_file_size=desk_s)
    scanner = SimpleNamespace(concurrency=6)
    desk: Any = SimpleNamespace(settings=SimpleNamespace(storage=storage, scanner=scanner))
    engine = Plugin(Plugin.Settings(max_file_size=own)).itdesk_scan_engine(desk)
    assert engine.max_file_size == proved
