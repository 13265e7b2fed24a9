import asyncio
import os
import threading
import time
from collections.abc import Iterator

import pytest

from itdesk.runtime.lines import LineWriter


def _notice(lost: int) -> bytes:
    return b"lost %d" % lost


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def _read(reader: int) -> bytes:
    parts = []
    try:
        while part := os.read(reader, 1 << 20):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def test_a_written_line_is_there_at_once_and_an_appended_one_with_the_next_flush(
    pipe: tuple[int, int],
) -> None:
    writer = LineWriter(pipe[1], _notice)
    writer.append(b"one")
    assert _read(pipe[0]) == b""
    writer.write(b"two")
    assert _read(pipe[0]) == b"one\ntwo\n"
    writer.append(b"three")
    writer.flush()
    assert _read(pipe[0]) == b"three\n"


def test_appended_lines_do_not_wait_for_ever_at_volume(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], _notice)
    for _ in range(700):
        writer.append(b"x" * 99)
    assert len(_read(pipe[0])) > 60_000


def test_a_full_pipe_neither_blocks_nor_grows_and_the_loss_is_told(
    pipe: tuple[int, int],
) -> None:
    writer = LineWriter(pipe[1], _notice, limit=100_000)
    began = time.monotonic()
    for number in range(20_000):
        writer.write(b"%099d" % number)
    assert time.monotonic() - began < 30
    assert writer.buffered <= 100_000
    assert writer.dropped > 15_000
    got = b""
    while part := _read(pipe[0]):
        got += part
        writer.flush()
    writer.write(b"after")
    got += _read(pipe[0])
    lines = got.splitlines()
    assert lines[-2:] == [b"lost %d" % writer.dropped, b"after"]
    assert [int(line) for line in lines[:-2]] == list(range(20_000 - writer.dropped))


def test_patience_with_a_reader_that_never_reads_is_bounded(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], _notice)
    for _ in range(2_000):
        writer.write(b"x" * 99)
    began = time.monotonic()
    writer.flush(0.05)
    assert 0.04 < time.monotonic() - began < 30
    assert writer.buffered


def test_a_reader_that_is_gone_costs_the_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], _notice)
    os.close(pipe[0])
    for _ in range(10):
        writer.write(b"into the void")
    assert writer.dropped >= 10
    assert writer.buffered < 1000


def test_a_descriptor_that_is_closed_costs_the_lines_and_nothing_else(
    pipe: tuple[int, int],
) -> None:
    writer = LineWriter(pipe[1], _notice)
    os.close(pipe[1])
    writer.write(b"into the void")
    assert writer.dropped == 1


async def test_lines_of_several_threads_are_never_torn(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], _notice)
    begin = threading.Barrier(4)

    def work(letter: bytes) -> None:
        begin.wait()
        for _ in range(50):
            writer.write(letter * 300)

    await asyncio.gather(*(asyncio.to_thread(work, letter) for letter in (b"a", b"b", b"c", b"d")))
    first = _read(pipe[0])
    writer.flush()
    lines = (first + _read(pipe[0])).splitlines()
    assert len(lines) == 200
    assert {line for line in lines} == {letter * 300 for letter in (b"a", b"b", b"c", b"d")}
