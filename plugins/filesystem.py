"""Attachments as files below one directory.

An object becomes visible by a rename, after its bytes are on the disk: a reader, a crash or a full
disk meets all of it or nothing. Until then it is a file in `incoming~`, a name that no key can
spell. Every path is walked from the root, folder by folder, without following symbolic links, so
that no key and nobody who may write into the root leads out of it. The disk is touched in threads
of its own, a mebibyte at a time: written and hashed in one step.
"""

import asyncio
import errno
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from pydantic import BaseModel, Field

from itdesk.errors import BadRequest, DeskError, StorageFull, TooLarge, Unavailable
from itdesk.hookspecs import Health, Listed, Presigned, Storage, Stored, hookimpl
from itdesk_plugins.filesystem_files import (
    ABSENT,
    BATCH,
    FOLDER,
    INCOMING,
    NEW,
    Download,
    Upload,
    free_of,
    parts_of,
)

if TYPE_CHECKING:
    from itdesk.desk import Desk

PAGE = 1000

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

T = TypeVar("T")
log = logging.getLogger("plugin.filesystem")


class FilesystemSettings(BaseModel):
    """Where the files lie and how safely."""

    directory: Path | None = Field(None, description="Default: [storage.local] upload_dir.")
    fsync: bool = Field(True, description="Acknowledge a file only when the disk has it.")
    min_free_bytes: int = Field(64 << 20, ge=0, description="Room that is never used up.")
    leftover_seconds: float = Field(3600, ge=0, description="When leftovers of a crash go.")
    threads: int = Field(8, ge=1, le=64)


class Plugin:
    """Offers a directory as the storage."""

    name, itdesk_api, Settings = "filesystem", 1, FilesystemSettings

    def __init__(self, settings: FilesystemSettings) -> None:
        self._settings = settings
        self._storage: Filesystem | None = None

    def _of(self, desk: "Desk") -> "Filesystem":
        root = self._settings.directory or desk.upload_dir
        self._storage = self._storage or Filesystem(root, self._settings)
        return self._storage

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        storage = self._of(desk)
        await storage.begin()
        try:
            yield
        finally:
            storage.close()

    @hookimpl
    def itdesk_storage(self, desk: "Desk") -> Storage:
        return self._of(desk)

    @hookimpl
    async def itdesk_health(self) -> Health | None:
        return await self._storage.health() if self._storage else None


class Filesystem:
    """The storage: one directory, its files 0600 and its folders 0700."""

    name = "filesystem"
    takes_uploads = False

    def __init__(self, root: Path, settings: FilesystemSettings) -> None:
        self.root = root.absolute()
        self.settings = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="filesystem")

    def close(self) -> None:
        """Let the threads end when they have nothing more to do."""
        self._threads.shutdown(wait=False)

    async def write(self, key: str, chunks: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Store an object under a key, replacing an older one; TooLarge past `limit` bytes."""
        upload = Upload(self, parts_of(key))
        batch = bytearray()
        total = 0
        try:
            async for chunk in chunks:
                total += len(chunk)
                if total > limit:
                    raise TooLarge(f"The file is over {limit} bytes.", details={"limit": limit})
                batch += chunk
                if len(batch) >= BATCH:
                    await self._run(upload.append, batch)
                    batch = bytearray()
            return await self._run(upload.commit, batch)
        except BaseException:
            upload.given_up = True
            await self._clean(upload.discard)
            raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield an object's bytes in chunks of at most 1 MiB; NotFound when there is none."""
        download = Download(self, parts_of(key))
        try:
            while not download.ended and (chunk := await self._run(download.next)):
                yield chunk
        finally:
            if not download.ended:
                await self._clean(download.close)

    async def stat(self, key: str) -> Stored | None:
        """Return what is stored under a key, or None."""
        return await self._run(self._stat, parts_of(key))

    async def delete(self, key: str) -> None:
        """Forget an object; a missing one is no error."""
        await self._run(self._delete, parts_of(key))

    def presign_put(self, key: str, *, size: int, mime: str, expires_in: int) -> Presigned | None:
        """Return None: files are taken by the desk."""
        return None

    def presign_get(
        self, key: str, *, filename: str, mime: str, expires_in: int
    ) -> Presigned | None:
        """Return None: files are served by the desk."""
        return None

    async def check(self) -> None:
        """Write, read and delete a probe; raise a DeskError that says what to mend."""
        key, probe = f"check/{uuid4()}", os.urandom(16)
        try:
            await self._run(self._prepare)
            await self.write(key, _once(probe), limit=len(probe))
            found = b"".join([chunk async for chunk in self.read(key)])
            await self.delete(key)
        except StorageFull as exc:
            raise StorageFull(f"{self.root}: {self._shortage()}") from exc
        except DeskError as exc:
            raise Unavailable(f"{self.root}: {_advice(exc.__cause__)}") from exc
        if found != probe:
            raise Unavailable(f"{self.root}: a file read back differs from what was written")

    async def health(self) -> Health:
        """Return whether there is room; asked often, so nothing is written."""
        try:
            free = await self._run(self.free)
        except DeskError as exc:
            return Health(False, f"{self.root}: {_advice(exc.__cause__)}")
        if free is not None and free < self.settings.min_free_bytes:
            return Health(False, f"{self.root}: {self._shortage()}")
        return Health(True)

    async def begin(self) -> None:
        """Remove what crashes left half written; a failure is logged, `check` will tell it."""
        try:
            await self._run(self._prepare)
            await self.sweep(older_than=self.settings.leftover_seconds)
        except DeskError as exc:
            fields = {"path": str(self.root), "problem": exc.message}
            log.warning("leftovers not removed", extra=fields)

    async def sweep(self, *, older_than: float) -> int:
        """Remove what writes that never ended left so many seconds ago; return how many."""
        return await self._run(self._sweep, older_than)

    async def list(self, prefix: str) -> AsyncIterator[Sequence[Listed]]:
        """Yield what lies below a prefix, in pages and in the order of keys."""
        if not prefix.endswith("/"):
            raise BadRequest("This is no folder of files.", code="E_STORAGE_KEY")
        found = self._walk(parts_of(prefix[:-1]), await self._run(self._now))
        while page := await self._run(_take, found, PAGE):
            yield page

    # What follows runs in the threads.

    @contextmanager
    def folder(self, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
        """Give the descriptor of a folder below the root; OSError when there is none."""
        try:
            here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise _out(exc) from exc
        try:
            for part in parts:
                if create:
                    self._make(part, here)
                below = os.open(part, FOLDER, dir_fd=here)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _make(self, name: str, parent: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            self.sync(parent)

    def sync(self, descriptor: int) -> None:
        """Wait until the disk has it, unless the settings say not to."""
        if self.settings.fsync:
            os.fsync(descriptor)

    def free(self) -> int | None:
        """Return the bytes that may be used, or None where the file system does not say."""
        free: int | None = free_of(os.statvfs(self.root))
        return free

    def _shortage(self) -> str:
        least = self.settings.min_free_bytes
        return f"no room: less than min_free_bytes ({least}) is free, or a quota is used up"

    def _prepare(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(self.root, 0o700)

    def _sweep(self, older_than: float) -> int:
        removed = 0
        with self.folder([INCOMING], create=True) as folder:
            now = _time_of(folder)
            for name in os.listdir(folder):
                with suppress(OSError):
                    age = now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                    if age > older_than:
                        os.unlink(name, dir_fd=folder)
                        removed += 1
                        log.info("leftover removed", extra={"file": name, "age": age})
        return removed

    def _now(self) -> float:
        with self.folder([INCOMING], create=True) as folder:
            return _time_of(folder)

    def _walk(self, parts: Sequence[str], now: float) -> Iterator[Listed]:
        """Yield the files below a folder in the order of their keys; what vanishes is left out."""
        try:
            with self.folder(parts) as folder:
                found = {
                    name + "/" * stat.S_ISDIR(status.st_mode): status
                    for name, status in _statuses(folder)
                }
        except OSError as exc:
            if exc.errno in ABSENT:
                return
            raise
        for name in sorted(found):
            status = found.pop(name)
            if stat.S_ISREG(status.st_mode):
                yield Listed("/".join([*parts, name]), status.st_size, now - status.st_mtime)
            elif stat.S_ISDIR(status.st_mode):
                yield from self._walk([*parts, name[:-1]], now)

    def _stat(self, parts: Sequence[str]) -> Stored | None:
        try:
            with self.folder(parts[:-1]) as folder:
                status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in ABSENT:
                return None
            raise
        return Stored(status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _delete(self, parts: Sequence[str]) -> None:
        try:
            with self.folder(parts[:-1]) as folder:
                os.unlink(parts[-1], dir_fd=folder)
                self.sync(folder)
        except OSError as exc:
            if exc.errno in ABSENT | {errno.EISDIR}:
                return
            raise
        with suppress(OSError):  # a folder that is not empty ends it
            for depth in range(len(parts) - 1, 0, -1):
                with self.folder(parts[: depth - 1]) as parent:
                    os.rmdir(parts[depth - 1], dir_fd=parent)

    # What follows is how the loop gets there and back.

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, function, *arguments)
        except OSError as exc:
            raise _out(exc) from exc

    async def _clean(self, function: Callable[[], None]) -> None:
        """Run a clean-up to its end, even when the caller is cancelled again or all is closed."""
        try:
            done = asyncio.get_running_loop().run_in_executor(self._threads, function)
        except RuntimeError:
            function()
        else:
            await asyncio.shield(done)


def _out(exc: OSError) -> DeskError:
    """Return what callers are told; the path and the reason are for the log."""
    log.error("file storage failed", extra={"problem": str(exc)})
    if exc.errno in _NO_ROOM:
        return StorageFull("The file storage is full.")
    return Unavailable("The file storage does not work at the moment.")


def _advice(exc: BaseException | None) -> str:
    """Return what is wrong with the directory and what to do."""
    elsewhere = "or set [plugins.filesystem] directory (UPLOAD_DIR) elsewhere"
    match exc.errno if isinstance(exc, OSError) else None:
        case errno.ENOENT:
            return f"its parent directory does not exist: create it {elsewhere}"
        case errno.ENOTDIR | errno.EEXIST:
            return f"it is not a directory: move what is in its way {elsewhere}"
        case errno.EROFS:
            return f"it is mounted read-only: mount it for writing {elsewhere}"
        case errno.EACCES | errno.EPERM:
            return f"user {os.geteuid()} may not write there: give it to that user {elsewhere}"
    return f"it does not work ({exc}): mend it {elsewhere}"


def _time_of(folder: int) -> float:
    """Return the time by the clock that stamps the files, which may be another machine's."""
    name = uuid4().hex
    file = os.open(name, NEW, 0o600, dir_fd=folder)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        os.unlink(name, dir_fd=folder)


def _statuses(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            yield name, os.stat(name, dir_fd=folder, follow_symlinks=False)


def _take(found: Iterator[T], limit: int) -> list[T]:
    return list(islice(found, limit))


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
