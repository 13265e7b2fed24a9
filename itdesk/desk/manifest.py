"""A backup as a directory: what is in it, and how a whole one is told from any other.

While it is made it is called `<name>.unfinished`; it gets its name by a rename, after everything
and then the manifest are on the disk. The manifest has the sha256 of every other file, so whoever
reads it knows whether all is there as it was written.
"""

import asyncio
import fcntl
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from itdesk.errors import DeskError

MANIFEST, DUMP, SETTINGS, KEYS, OBJECTS = (
    "manifest.json", "database.dump", "settings.toml", "secrets", "objects",
)  # fmt: skip
UNFINISHED = ".unfinished"
_LOCK = "in-progress"
_CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]


class BackupBroken(DeskError):
    """The directory is no whole backup: the message says what is missing or changed."""

    default_code = "E_BACKUP_BROKEN"


class Facts(BaseModel):
    """What the database said of itself in the snapshot that was dumped."""

    model_config = ConfigDict(frozen=True)

    migration: str
    server: int
    tool: int
    tables: dict[str, int]
    journal: dict[str, Any]
    violations: dict[str, int]
    owed: dict[str, int]


class Lost(BaseModel):
    """A file whose bytes are not in the backup, and why."""

    model_config = ConfigDict(frozen=True)

    attachment: UUID
    key: str
    why: Literal["missing", "damaged", "elsewhere", "deleted"]


class Entry(BaseModel):
    """One file of the backup."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """What a whole backup consists of; what was acknowledged before `made_at` is in it."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    id: UUID
    itdesk: str
    made_at: datetime
    finished_at: datetime
    host: str
    storage: str
    facts: Facts
    files: dict[str, Entry]
    objects: dict[str, Entry]
    lost: list[Lost]

    @property
    def bytes(self) -> int:
        """Return how large the backup is."""
        parts = (*self.files.values(), *self.objects.values())
        return sum(entry.size for entry in parts)

    @property
    def failures(self) -> list[Lost]:
        """Return what should be in the backup and is not; files deleted meanwhile need not be."""
        return [lost for lost in self.lost if lost.why != "deleted"]


def place(root: Path, key: str) -> Path:
    """Return where an object of this key lies in a backup; no key leads out of it."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts:
        raise BackupBroken(f"The key {key!r} is none that itdesk makes.")
    return root.joinpath(OBJECTS, *parts)


@contextmanager
def unfinished(directory: Path, name: str) -> Iterator[Path]:
    """Lend a private directory for a backup that is being made; nothing is left if it fails."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(directory)
    path = directory / f"{name}{UNFINISHED}"
    path.mkdir(mode=0o700)
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def complete(path: Path, manifest: Manifest) -> Path:
    """Write the manifest, bring everything to the disk, and give the backup its name."""
    (path / _LOCK).unlink(missing_ok=True)
    written = path / MANIFEST
    with written.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        file.flush()
        os.fsync(file.fileno())
    for folder, _, _ in os.walk(path):
        _sync(Path(folder))
    whole = path.with_name(path.name.removesuffix(UNFINISHED))
    path.rename(whole)
    _sync(whole.parent)
    return whole


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(directory: Path) -> None:
    """Remove what killed backups left: one that is being made is locked."""
    for left in directory.glob(f"*{UNFINISHED}"):
        with suppress(OSError), (left / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def whole_backups(directory: Path) -> list[Path]:
    """Return the whole backups in a directory, the oldest first: their names are their times."""
    try:
        there = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in there if path.suffix != UNFINISHED and (path / MANIFEST).is_file()]


def prune(directory: Path, keep: int) -> list[Path]:
    """Remove all but the newest so many whole backups; return what was removed."""
    gone = whole_backups(directory)[:-keep]
    for path in gone:
        # First out of sight: half removed, it must not look like a whole one.
        doomed = path.with_name(f"{path.name}{UNFINISHED}")
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return gone


def read(path: Path) -> Manifest:
    """Read the manifest of a whole backup, or say what the directory is instead."""
    if path.name.endswith(UNFINISHED):
        raise BackupBroken(f"{path} was never finished: it is no backup.")
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        inside = whole_backups(path)
        hint = f" In it are backups; the newest is {inside[-1]}." if inside else ""
        raise BackupBroken(f"{path} is no backup: it has no {MANIFEST}.{hint}") from None
    except NotADirectoryError:
        raise BackupBroken(f"{path} is no backup: it is no directory.") from None
    except ValidationError as exc:
        raise BackupBroken(f"{path / MANIFEST} cannot be read: it was changed or cut.") from exc


async def check(path: Path, manifest: Manifest, progress: Progress) -> None:
    """Raise BackupBroken, naming the first few, unless every file is there with its sha256."""
    wanted = {path / name: entry for name, entry in manifest.files.items()}
    wanted |= {place(path, key): entry for key, entry in manifest.objects.items()}
    total, done, wrong = manifest.bytes, 0, list[str]()
    for file, entry in wanted.items():
        problem = await asyncio.to_thread(_problem, file, entry)
        if problem:
            wrong.append(f"{file.relative_to(path)} {problem}")
        done += entry.size
        progress("verifying", done, total)
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise BackupBroken(f"The backup {path} is damaged: {shown}. Use another one.")


def _problem(path: Path, entry: Entry) -> str:
    try:
        found = described(path)
    except OSError as exc:
        return f"cannot be read ({exc.strerror})"
    if found.size != entry.size:
        return f"has {found.size} bytes instead of {entry.size}"
    return "" if found.sha256 == entry.sha256 else "has other content"


def described(path: Path) -> Entry:
    """Return the size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Entry(size=file.tell(), sha256=digest.hexdigest())


@dataclass(slots=True)
class Sink:
    """Writes one file of a backup, hashed as it comes, private, and on the disk when closed."""

    path: Path
    size: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    async def take(self, chunks: AsyncIterator[bytes]) -> Entry:
        """Write everything that comes and return what was written."""
        await asyncio.to_thread(self._make_room)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(self._write, descriptor, chunk)
            await asyncio.to_thread(os.fsync, descriptor)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return Entry(size=self.size, sha256=self._digest.hexdigest())

    def _make_room(self) -> None:
        for folder in (*reversed(self.path.parent.parents), self.path.parent):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)

    def _write(self, descriptor: int, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size += len(chunk)
        left = memoryview(chunk)
        while left:
            left = left[os.write(descriptor, left) :]


async def chunks_of(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes, read beside the loop."""
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk


async def once(data: bytes) -> AsyncIterator[bytes]:
    """Yield these bytes."""
    yield data


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what an operator can act on of several failures, or else all of them."""
    for exc in group.exceptions:
        if isinstance(exc, DeskError | OSError):
            return exc
    return group


def silent(step: str, done: int, total: int) -> None:
    """Tell nobody how far it is."""


def facts_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return journal facts as JSON has them."""
    return {name: str(value) if isinstance(value, UUID) else value for name, value in found.items()}
