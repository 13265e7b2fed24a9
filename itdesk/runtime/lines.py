"""Whole lines to a descriptor, never waiting for whoever reads it."""

import os
import select
import threading
import time
from collections.abc import Callable

# A pipe or socket that is ready to write takes this much without making us wait (PIPE_BUF).
_ATOMIC = 4096
_ENOUGH = 64 * 1024


class LineWriter:
    """A bounded buffer in front of a descriptor; lines that do not fit are counted, not kept."""

    def __init__(
        self, fd: int, notice: Callable[[int], bytes], *, limit: int = 4 * 1024 * 1024
    ) -> None:
        self.dropped = 0
        self._fd = fd
        self._notice = notice
        self._limit = limit
        self._unreported = 0
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        # Reentrant: a finaliser may log while this very thread is writing a line.
        self._lock = threading.RLock()
        self._writing = False

    @property
    def buffered(self) -> int:
        """Bytes that wait to be written."""
        return len(self._buffer)

    def write(self, line: bytes) -> None:
        """Write a line now, or keep it while the reader is slow."""
        with self._lock:
            self._add(line)
            self.flush()

    def append(self, line: bytes) -> None:
        """Keep a line for the next flush."""
        with self._lock:
            self._add(line)
            if len(self._buffer) >= _ENOUGH:
                self.flush()

    def flush(self, patience: float = 0.0) -> None:
        """Write what is kept; give up when the reader takes nothing for `patience` seconds."""
        with self._lock:
            if self._writing:
                return
            self._writing = True
            try:
                self._pour(time.monotonic() + patience)
            except OSError:
                # The reader is gone for good, and there is nobody left to tell.
                self._lose(self._buffer.count(b"\n"))
                self._buffer.clear()
            finally:
                self._writing = False

    def _pour(self, until: float) -> None:
        while self._buffer:
            wait = max(0.0, until - time.monotonic())
            if not self._poll.poll(wait * 1000):
                return
            written = os.write(self._fd, bytes(self._buffer[:_ATOMIC]))
            del self._buffer[:written]

    def _add(self, line: bytes) -> None:
        if len(self._buffer) + len(line) >= self._limit:
            self._lose(1)
            return
        if self._unreported:
            self._buffer += self._notice(self._unreported) + b"\n"
            self._unreported = 0
        self._buffer += line + b"\n"

    def _lose(self, lines: int) -> None:
        self.dropped += lines
        self._unreported += lines
