"""One file of the filesystem plugin on its way in or out, in the plugin's threads.

A cancelled step goes on in its thread, so each holds a lock while it uses the descriptor.
"""

import errno
import hashlib
import os
import re
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from itdesk.errors import BadRequest, DeskError, NotFound, StorageFull
from itdesk.hookspecs import Stored

if TYPE_CHECKING:
    from itdesk_plugins.filesystem import Filesystem

BATCH = 1 << 20
INCOMING = "incoming~"
LONGEST_KEY = 1024
LONGEST_PART = 255
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}

_PART = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
# NONBLOCK, since opening a named pipe would otherwise wait for its other end.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# A folder that a delete removes while a write is on its way into it is made again.
_RACES = 20


class Upload:
    """One object on its way: a file in `incoming~` until it is whole."""

    def __init__(self, storage: "Filesystem", parts: Sequence[str]) -> None:
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
                self._file = os.open(self._name, NEW, 0o600, dir_fd=folder)
        free = free_of(os.fstatvfs(self._file))
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


class Download:
    """One object being read: opened with its first bytes and closed with its last.

    Each step is a change of threads, which for a small file costs more than reading it.
    """

    def __init__(self, storage: "Filesystem", parts: Sequence[str]) -> None:
        self.ended = False
        self._storage = storage
        self._parts = parts
        self._lock = threading.Lock()
        self._file: int | None = None
        self._left = 0

    def next(self) -> bytes:
        """Return the next bytes, or none at the end; NotFound when there is no such object."""
        with self._lock:
            if self.ended:
                return b""
            if self._file is None:
                self._open()
            assert self._file is not None
            chunk = os.read(self._file, BATCH)
            self._left -= len(chunk)
            if not chunk or self._left <= 0:
                self._close()
            return chunk

    def close(self) -> None:
        """Close, whatever came before."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        """Open a regular file, or raise NotFound."""
        try:
            with self._storage.folder(self._parts[:-1]) as folder:
                self._file = os.open(self._parts[-1], _READ, dir_fd=folder)
        except OSError as exc:
            if exc.errno in ABSENT:
                raise NotFound.of("file") from exc
            raise
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            raise NotFound.of("file")
        # What is stored is never changed: when this much was read there is no more.
        self._left = status.st_size

    def _close(self) -> None:
        self.ended = True
        if self._file is not None:
            os.close(self._file)
            self._file = None


def parts_of(key: str) -> list[str]:
    """Return the folders and the name that a key spells; BadRequest for anything else."""
    parts = key.split("/")
    if len(key) > LONGEST_KEY or not all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part) <= LONGEST_PART
        for part in parts
    ):
        raise BadRequest("This is no key of a file.", code="E_STORAGE_KEY")
    return parts


def free_of(status: os.statvfs_result) -> int | None:
    """Return the bytes that may be used, or None where the file system does not say."""
    return status.f_bavail * status.f_frsize if status.f_blocks else None
