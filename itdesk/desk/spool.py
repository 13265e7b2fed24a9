"""Private copies of files under scan: fetched once, hashed on the way, never changed meanwhile."""

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from itdesk.errors import TooLarge

_CHUNK = 1 << 20


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
    async def fill(path: Path, chunks: AsyncIterator[bytes], *, limit: int) -> tuple[int, str]:
        """Write chunks into a lent file; return their size and sha256. TooLarge past the limit."""
        digest, size = hashlib.sha256(), 0

        def take(chunk: bytes) -> None:
            digest.update(chunk)
            target.write(chunk)

        # Neither truncated nor closed on the loop: on ext4 either lets close write the file out.
        target = await asyncio.to_thread(path.open, "r+b", buffering=0)
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    raise TooLarge("The stored file is larger than it was declared.")
                await asyncio.to_thread(take, chunk)
        finally:
            await asyncio.to_thread(target.close)
        return size, digest.hexdigest()

    @staticmethod
    async def chunks(path: Path) -> AsyncIterator[bytes]:
        """Yield what a lent file holds."""
        with path.open("rb", buffering=0) as source:
            while chunk := await asyncio.to_thread(os.read, source.fileno(), _CHUNK):
                yield chunk

    @staticmethod
    async def head(path: Path, size: int) -> bytes:
        """Return the first bytes of a lent file."""

        def read() -> bytes:
            with path.open("rb") as source:
                return source.read(size)

        return await asyncio.to_thread(read)
