"""Looks into archives by really inflating them, and trusts nothing that an archive says of itself.

`walk` answers whether everything in a file was reached: what is encrypted, too much, too deep or
broken is a finding, because a scanner may have skipped it in silence. It blocks; run it in a
thread or a worker process. It holds a few MiB (an xz up to 32) and one member a level, a large one
in a file.

Walked: zip (so OOXML, ODF, jar; also behind a foreign head), tar, gzip, bzip2, xz, lzma.
Not walked: what `OPAQUE` lists, mails, and PDF streams. clamd unpacks most of those.
"""

import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final

from itdesk.archives.formats import (
    METHODS,
    OPAQUE,
    SEALED_OOXML,
    STREAMS,
    Finding,
    Stop,
    Window,
    ZipEntry,
    contains,
    find_directory,
    inflate,
    is_tar,
    pax_size,
    recognise,
    tar_number,
)
from itdesk.frozen import frozen
from itdesk.model import ScanReason

__all__ = ["OPAQUE", "Finding", "Limits", "walk"]

_IN_MEMORY: Final = 1 << 20
_RATIO_FROM: Final = 8 << 20
_NOTE_LIMIT: Final = 1 << 20
_TAR_NOTES: Final = (b"x", b"X", b"g", b"L", b"K", b"N")
_TAR_EMPTY: Final = (b"1", b"2", b"3", b"4", b"5", b"6")


@frozen
class Limits:
    """How far an archive is followed; beyond is a finding.

    A .tar.gz counts as one level. `ratio` is judged once a member exceeds 8 MiB. With `opaque`
    an archive that can only be unpacked elsewhere passes; without it is a finding too.
    """

    depth: int = 3
    members: int = 1_000
    member_bytes: int = 64 << 20
    total_bytes: int = 128 << 20
    ratio: int = 250
    opaque: bool = True


def walk(
    path: Path,
    limits: Limits | None = None,
    *,
    seconds: float = 60.0,
    on_member: Callable[[Path], None] | None = None,
) -> Finding | None:
    """Inflate everything in a file; return why that was not possible, or None.

    `on_member` gets each inflated member, nested archives too, as a file that is gone when it
    returns; what it raises ends the walk and reaches the caller.
    """
    walker = _Walker(limits or Limits(), time.monotonic() + seconds, on_member)
    with path.open("rb") as file:
        try:
            if file.seek(0, 2) == 0:
                raise Stop(ScanReason.UNREADABLE, "the file is empty")
            walker.look_into(file, depth=1)
        except Stop as stop:
            return stop.finding
    return None


class _Walker:
    def __init__(
        self, limits: Limits, end: float, on_member: Callable[[Path], None] | None
    ) -> None:
        self._limits = limits
        self._end = end
        self._on_member = on_member
        self._members = 0
        self._total = 0

    def look_into(self, file: IO[bytes], *, depth: int, packed_by: str = "") -> None:
        """Walk one file if it is an archive; `packed_by` is the compressor around it."""
        file.seek(0)
        kind = recognise(file)
        if kind in OPAQUE and not self._limits.opaque:
            raise Stop(ScanReason.UNREADABLE, f"a {kind} archive cannot be looked into")
        if kind == "ole" and contains(file, SEALED_OOXML):
            raise Stop(ScanReason.ENCRYPTED, "an office document is encrypted")
        if kind not in ("zip", "tar", *STREAMS):
            return
        if kind == "tar" and packed_by:
            depth -= 1
        if depth > self._limits.depth:
            limit = self._limits.depth
            raise Stop(ScanReason.LIMITS, f"archives are nested deeper than {limit}")
        size = file.seek(0, 2)
        file.seek(0)
        if kind == "zip":
            self._zip(file, size, depth)
        elif kind == "tar":
            self._tar(file, depth)
        else:
            window = Window(file, size)
            pieces = inflate(window, STREAMS[kind], many=True)
            self._member(pieces, window, depth, packed_by=kind)

    def _zip(self, file: IO[bytes], size: int, depth: int) -> None:
        directory = find_directory(file, size)
        if directory is None:
            raise Stop(ScanReason.UNREADABLE, "a zip has no directory: it is cut")
        position, end, shift = directory
        while position < end:
            entry = ZipEntry.read(file, position)
            position = entry.next
            if not 0 <= shift + entry.offset < size:
                raise Stop(ScanReason.UNREADABLE, "a zip points outside of itself")
            entry.find(file, shift)
            window = Window(file, entry.packed)
            pieces = window.pieces()
            if entry.method:
                pieces = inflate(window, METHODS[entry.method], many=False)
            self._member(pieces, window, depth, entry=entry)

    def _tar(self, file: IO[bytes], depth: int) -> None:
        larger: int | None = None
        while any(header := file.read(512)):
            self._check_time()
            if not is_tar(header):
                raise Stop(ScanReason.UNREADABLE, "a tar has a broken header")
            kind, size = header[156:157], tar_number(header[124:136])
            if size < 0:
                raise Stop(ScanReason.UNREADABLE, "a tar has a member of no size")
            if kind in _TAR_NOTES:
                if size > _NOTE_LIMIT:
                    raise Stop(ScanReason.LIMITS, "a tar has a header of over 1 MiB")
                note = b"".join(Window(file, size).pieces())
                larger = pax_size(note) if kind in (b"x", b"X") else larger
            elif kind in _TAR_EMPTY:
                size, larger = 0, None
            else:
                size, larger = size if larger is None else larger, None
                window = Window(file, size)
                self._member(window.pieces(), window, depth)
            file.seek(-size % 512, 1)

    def _member(
        self,
        pieces: Iterator[bytes],
        window: Window,
        depth: int,
        *,
        entry: "ZipEntry | None" = None,
        packed_by: str = "",
    ) -> None:
        """Inflate one member within all limits, show it, walk it, forget it."""
        self._members += 1
        if self._members > self._limits.members:
            raise Stop(ScanReason.LIMITS, f"more than {self._limits.members} members")
        self._check_time()
        with self._room() as member:
            crc = self._spool(pieces, window, member)
            if entry is not None:
                entry.check(member, crc)
            if self._on_member is not None:
                self._on_member(Path(member.name))
            self.look_into(member, depth=depth + 1, packed_by=packed_by)

    def _room(self) -> AbstractContextManager[IO[bytes]]:
        """Return a place for one member: a file with a name only for those who want to see it."""
        if self._on_member is not None:
            return tempfile.NamedTemporaryFile(prefix="itdesk-walk-")
        return tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)

    def _spool(self, pieces: Iterator[bytes], window: Window, out: IO[bytes]) -> int:
        limits, size, crc = self._limits, 0, 0
        for piece in pieces:
            size += len(piece)
            self._total += len(piece)
            self._check_time()
            if size > limits.member_bytes:
                raise Stop(ScanReason.LIMITS, f"a member of over {limits.member_bytes} bytes")
            if self._total > limits.total_bytes:
                raise Stop(ScanReason.LIMITS, f"over {limits.total_bytes} bytes in all")
            if size > _RATIO_FROM and size > limits.ratio * max(1, window.taken):
                raise Stop(ScanReason.LIMITS, f"a member inflates over {limits.ratio} times")
            crc = zlib.crc32(piece, crc)
            out.write(piece)
        out.flush()
        return crc

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise Stop(ScanReason.TIMEOUT, "looking into the archive took too long")
