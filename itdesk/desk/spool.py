"""Private copies of files under scan: fetched once, hashed on the way, never changed meanwhile."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from uuid import uuid4

from itdesk.errors import TooLarge
from itdesk.frozen import frozen

_CHUNK = 1 << 20
HEAD = 4096
"""How many first bytes of a file are kept to tell what it is."""


class Spool:
    """A directory of files that live no longer than one scan."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Path]:
        """Lend a private file that `fill` makes; deleting a large one takes long: a thread does."""
        path = self.directory / f"scan-{uuid4().hex}"
        try:
            yield path
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    @staticmethod
    async def fill(path: Path, chunks: AsyncIterator[bytes], *, limit: int) -> "Copy":
        """Write chunks into a lent file and say what they are; TooLarge past the limit."""
        copying = _Copying(path)
        batch: list[bytes] = []
        waiting = total = 0
        try:
            async for chunk in chunks:
                total += len(chunk)
                waiting += len(chunk)
                if total > limit:
                    raise TooLarge("The stored file is larger than it was declared.")
                batch.append(chunk)
                if waiting >= _CHUNK:
                    await asyncio.to_thread(copying.take, batch)
                    batch, waiting = [], 0
            return await asyncio.to_thread(copying.finish, batch)
        finally:
            if not copying.ended:
                await asyncio.to_thread(copying.close)

    @staticmethod
    async def chunks(path: Path, size: int) -> AsyncIterator[bytes]:
        """Yield what a lent file of this size holds."""
        with path.open("rb", buffering=0) as source:
            while size > 0 and (chunk := await asyncio.to_thread(os.read, source.fileno(), _CHUNK)):
                size -= len(chunk)
                yield chunk


@frozen
class Copy:
    """What was written into a lent file: its size, its sha256 and its first bytes."""

    size: int
    sha256: str
    head: bytes


class _Copying:
    """The file side of a copy; every method blocks, and none is called after the end.

    A step whose caller was cancelled goes on in its thread: `close` waits for it. The file is not
    closed on the loop, because on ext4 that lets it be written out.
    """

    def __init__(self, path: Path) -> None:
        self.ended = False
        self._path = path
        self._lock = threading.Lock()
        self._target: FileIO | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._head = b""

    def take(self, batch: list[bytes]) -> None:
        with self._lock:
            self._take(batch)

    def finish(self, batch: list[bytes]) -> Copy:
        with self._lock:
            self._take(batch)
            self._close()
        return Copy(self._size, self._digest.hexdigest(), self._head)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _take(self, batch: list[bytes]) -> None:
        if self._target is None:
            self._target = FileIO(self._path, "xb", opener=_private)
        for chunk in batch:
            self._digest.update(chunk)
            self._head += chunk[: HEAD - len(self._head)]
            self._size += len(chunk)
            left = memoryview(chunk)
            while left:
                left = left[self._target.write(left) :]

    def _close(self) -> None:
        self.ended = True
        if self._target is not None:
            self._target.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
