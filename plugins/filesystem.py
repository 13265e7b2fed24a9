"""Attachments as files below one directory.

An object becomes visible by a rename, after its bytes are on the disk: a reader, a crash or a full
disk meets all of it or nothing. Until then it is a file in `incoming~`, a name that no key can
spell. Every path is walked from the root, folder by folder, without following symbolic links, so
that no key and nobody who may write into the root leads out of it. The disk is touched in threads
of its own, a mebibyte at a time: written and hashed in one step.
"""

import asyncio
import errno
import hashlib
import logging
import os
import re
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from pydantic import BaseModel, Field

from itdesk.errors import BadRequest, DeskError, NotFound, StorageFull, TooLarge, Unavailable
from itdesk.hookspecs import Health, Presigned, Storage, Stored, hookimpl

if TYPE_CHECKING:
    from itdesk.desk import Desk

BATCH = 1 << 20
INCOMING = "incoming~"
LONGEST_KEY = 1024
LONGEST_PART = 255

_PART = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# NONBLOCK, since opening a named pipe would otherwise wait for its other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A folder that a delete removes while a write is on its way into it is made again.
_RACES = 20

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
        await storage.sweep()
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
        upload = _Upload(self, _parts(key))
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
        download = _Download(self, _parts(key))
        try:
            await self._run(download.open)
            while chunk := await self._run(download.next):
                yield chunk
        finally:
            await self._clean(download.close)

    async def stat(self, key: str) -> Stored | None:
        """Return what is stored under a key, or None."""
        return await self._run(self._stat, _parts(key))

    async def delete(self, key: str) -> None:
        """Forget an object; a missing one is no error."""
        await self._run(self._delete, _parts(key))

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

    async def sweep(self) -> None:
        """Remove what crashes left half written; a failure is logged, `check` will tell it."""
        try:
            await self._run(self._prepare)
            await self._run(self._sweep)
        except DeskError as exc:
            fields = {"path": str(self.root), "problem": exc.message}
            log.warning("leftovers not removed", extra=fields)

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
                below = os.open(part, _FOLDER, dir_fd=here)
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
        return _free(os.statvfs(self.root))

    def _shortage(self) -> str:
        least = self.settings.min_free_bytes
        return f"no room: less than min_free_bytes ({least}) is free, or a quota is used up"

    def _prepare(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(self.root, 0o700)

    def _sweep(self) -> None:
        with self.folder([INCOMING], create=True) as folder:
            now = _time_of(folder)
            for name in os.listdir(folder):
                with suppress(OSError):
                    age = now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
                    if age > self.settings.leftover_seconds:
                        os.unlink(name, dir_fd=folder)
                        log.info("leftover removed", extra={"file": name, "age": age})

    def _stat(self, parts: Sequence[str]) -> Stored | None:
        try:
            with self.folder(parts[:-1]) as folder:
                status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in _ABSENT:
                return None
            raise
        return Stored(status.st_size) if stat.S_ISREG(status.st_mode) else None

    def _delete(self, parts: Sequence[str]) -> None:
        try:
            with self.folder(parts[:-1]) as folder:
                os.unlink(parts[-1], dir_fd=folder)
                self.sync(folder)
        except OSError as exc:
            if exc.errno in _ABSENT | {errno.EISDIR}:
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


class _Upload:
    """One object on its way: a file in `incoming~` until it is whole.

    A cancelled step goes on in its thread, so each holds the lock while it uses the descriptor.
    """

    def __init__(self, storage: Filesystem, parts: Sequence[str]) -> None:
        self.given_up = False
        self._storage = storage
        self._parts = parts
        self._name = uuid4().hex
        self._lock = threading.Lock()
        self._file: int | None = None
        self._size = 0
        self._hash = hashlib.sha256()

    def append(self, batch: bytearray) -> None:
        """Hash and write."""
        with self._lock:
            self._append(batch)

    def _append(self, batch: bytearray) -> int:
        if self._file is None:
            with self._storage.folder([INCOMING], create=True) as folder:
                self._file = os.open(self._name, _NEW, 0o600, dir_fd=folder)
        free = _free(os.fstatvfs(self._file))
        if free is not None and free - len(batch) < self._storage.settings.min_free_bytes:
            raise StorageFull("The file storage is full.")
        self._size += len(batch)
        self._hash.update(batch)
        with memoryview(batch) as rest:
            written = 0
            while written < len(rest):
                written += os.write(self._file, rest[written:])
        return self._file

    def commit(self, batch: bytearray) -> Stored:
        """Write the rest and make the whole visible, once the disk has it."""
        with self._lock:
            file = self._append(batch)
            self._storage.sync(file)
            self._file = None
            os.close(file)
            self._place()
            return Stored(self._size, self._hash.hexdigest())

    def _place(self) -> None:
        storage, folders, name = self._storage, self._parts[:-1], self._parts[-1]
        for tries_left in reversed(range(_RACES)):
            try:
                with (
                    storage.folder([INCOMING]) as incoming,
                    storage.folder(folders, create=True) as folder,
                ):
                    if not self.given_up:
                        os.rename(self._name, name, src_dir_fd=incoming, dst_dir_fd=folder)
                        storage.sync(folder)
                return
            except FileNotFoundError:
                if not tries_left:
                    raise

    def discard(self) -> None:
        """Leave nothing behind."""
        with self._lock, suppress(OSError, DeskError):
            if self._file is not None:
                os.close(self._file)
                self._file = None
            with self._storage.folder([INCOMING]) as incoming:
                os.unlink(self._name, dir_fd=incoming)


class _Download:
    """One object being read; see _Upload for the lock."""

    def __init__(self, storage: Filesystem, parts: Sequence[str]) -> None:
        self._storage = storage
        self._parts = parts
        self._lock = threading.Lock()
        self._file: int | None = None
        self._closed = False

    def open(self) -> None:
        """Open a regular file, or raise NotFound."""
        with self._lock:
            if self._closed:
                return
            try:
                with self._storage.folder(self._parts[:-1]) as folder:
                    self._file = os.open(self._parts[-1], _READ, dir_fd=folder)
            except OSError as exc:
                if exc.errno in _ABSENT:
                    raise NotFound.of("file") from exc
                raise
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise NotFound.of("file")

    def next(self) -> bytes:
        """Return the next bytes, or none at the end."""
        with self._lock:
            return os.read(self._file, BATCH) if self._file is not None else b""

    def close(self) -> None:
        """Close, whatever came before."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                os.close(self._file)
                self._file = None


def _parts(key: str) -> list[str]:
    """Return the folders and the name that a key spells; BadRequest for anything else."""
    parts = key.split("/")
    if len(key) > LONGEST_KEY or not all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part) <= LONGEST_PART
        for part in parts
    ):
        raise BadRequest("This is no key of a file.", code="E_STORAGE_KEY")
    return parts


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


def _free(status: os.statvfs_result) -> int | None:
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def _time_of(folder: int) -> float:
    """Return the time by the clock that stamps the files, which may be another machine's."""
    name = uuid4().hex
    file = os.open(name, _NEW, 0o600, dir_fd=folder)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)
        os.unlink(name, dir_fd=folder)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
