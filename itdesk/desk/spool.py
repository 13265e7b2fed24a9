"""Private copies of files under scan: fetched once, hashed on the way, never changed meanwhile."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from itdesk.errors import TooLarge

_CHUNK = 1 << 20
HEAD = 4096
"""How many first bytes of a file are kept to tell what it is."""


class Spool:
    """A directory of files that live no longer than one scan."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[Path]:
        """Lend a private file; deleting a large one takes long, so the loop does not do it."""
        file, name = await asyncio.to_thread(tempfile.mkstemp, dir=self.directory, prefix="scan-")
        os.close(file)
        try:
            yield Path(name)
        finally:
            await asyncio.to_thread(os.unlink, name)

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
            if not copying.closed:
                await asyncio.to_thread(copying.close)

    @staticmethod
    async def chunks(path: Path, size: int) -> AsyncIterator[bytes]:
        """Yield what a lent file of this size holds."""
        with path.open("rb", buffering=0) as source:
            while size > 0 and (chunk := await asyncio.to_thread(os.read, source.fileno(), _CHUNK)):
                size -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class Copy:
    """What was written into a lent file: its size, its sha256 and its first bytes."""

    size: int
    sha256: str
    head: bytes


class _Copying:
    """The file side of a copy; every method blocks, and is called from one thread at a time.

    It is neither truncated nor closed on the loop: on ext4 either lets close write the file out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._target: FileIO | None = None
        self._digest = hashlib.sha256()
        self._size = 0
        self._head = b""
        self.closed = True

    def take(self, batch: list[bytes]) -> None:
        if self._target is None:
            self._target, self.closed = FileIO(self._path, "r+b"), False
        for chunk in batch:
            self._digest.update(chunk)
            self._head += chunk[: HEAD - len(self._head)]
            self._size += len(chunk)
            left = memoryview(chunk)
            while left:
                left = left[self._target.write(left) :]

    def finish(self, batch: list[bytes]) -> Copy:
        self.take(batch)
        self.close()
        return Copy(self._size, self._digest.hexdigest(), self._head)

    def close(self) -> None:
        if self._target is not None:
            self._target.close()
        self.closed = True
