"""Looks into archives by really inflating them, and trusts nothing that an archive says of itself.

`walk` answers whether everything in a file was reached: what is encrypted, too much, too deep or
broken is a finding, because a scanner may have skipped it in silence. It blocks; run it in a
thread or a worker process. It holds a few MiB (an xz up to 32) and one spooled member a level.

Walked: zip (so OOXML, ODF, jar; also behind a foreign head), tar, gzip, bzip2, xz, lzma.
Not walked: what `OPAQUE` lists, mails, and PDF streams. clamd unpacks most of those.
"""

import bz2
import lzma
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, Protocol

from itdesk.model import ScanReason

OPAQUE: Final = {
    "7z": (0, b"7z\xbc\xaf\x27\x1c"),
    "rar": (0, b"Rar!\x1a\x07"),
    "cab": (0, b"MSCF\0\0\0\0"),
    "zstd": (0, b"\x28\xb5\x2f\xfd"),
    "lz4": (0, b"\x04\x22\x4d\x18"),
    "lzip": (0, b"LZIP\x01"),
    "lzma": (0, b"]\0\0\x80\0"),
    "compress": (0, b"\x1f\x9d\x90"),
    "arj": (0, b"\x60\xea"),
    "lha": (2, b"-lh"),
    "ace": (7, b"**ACE**"),
    "xar": (0, b"xar!\0\x1c"),
    "ar": (0, b"!<arch>\n"),
    "cpio": (0, b"07070"),
    "iso": (0x8001, b"CD001"),
}

_PIECE: Final = 64 * 1024
_LZMA_MEMORY: Final = 32 << 20
_RATIO_FROM: Final = 8 << 20
_NOTE_LIMIT: Final = 1 << 20
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_SEALED_OOXML: Final = "EncryptedPackage".encode("utf-16-le")
_SEALED_ODF: Final = b"encryption-data"
_ZIP_SEALED: Final = 1 | 1 << 6 | 1 << 13
_ZIP_AES: Final = 99
_ZIP_HUGE: Final = 0xFFFFFFFF
_TAR_NOTES: Final = (b"x", b"X", b"g", b"L", b"K", b"N")
_TAR_EMPTY: Final = (b"1", b"2", b"3", b"4", b"5", b"6")

_END = Struct("<4s4HIIH")
_END64_LOCATOR = Struct("<4sIQI")
_END64 = Struct("<4sQ2H2I4Q")
_CENTRAL = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a file was not seen whole."""

    reason: ScanReason
    detail: str


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
    with tempfile.TemporaryDirectory(prefix="itdesk-walk-") as folder:
        walker = _Walker(limits or Limits(), time.monotonic() + seconds, on_member, Path(folder))
        try:
            if path.stat().st_size == 0:
                raise _Stop(ScanReason.UNREADABLE, "the file is empty")
            walker.look_into(path, depth=1)
        except _Stop as stop:
            return stop.finding
    return None


class _Stop(Exception):
    def __init__(self, reason: ScanReason, detail: str) -> None:
        super().__init__(detail)
        self.finding = Finding(reason, detail)


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Deflate:
    """zlib with the manners of bz2 and lzma."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(out) < max_length
        return out


class _Window:
    """The next `size` bytes of a file, which must all be there; counts what was taken."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.left = size
        self.taken = 0

    def read(self, count: int = _PIECE) -> bytes:
        data = self._file.read(min(count, self.left))
        if not data and self.left:
            raise _Stop(ScanReason.UNREADABLE, "the archive is cut")
        self.left -= len(data)
        self.taken += len(data)
        return data

    def pieces(self) -> Iterator[bytes]:
        while self.left:
            yield self.read()


class _Walker:
    def __init__(
        self,
        limits: Limits,
        end: float,
        on_member: Callable[[Path], None] | None,
        folder: Path,
    ) -> None:
        self._limits = limits
        self._end = end
        self._on_member = on_member
        self._folder = folder
        self._members = 0
        self._total = 0

    def look_into(self, path: Path, *, depth: int, packed_by: str = "") -> None:
        """Walk one file if it is an archive; `packed_by` is the compressor around it."""
        with path.open("rb") as file:
            kind = _recognise(file)
            if kind in OPAQUE and not self._limits.opaque:
                raise _Stop(ScanReason.UNREADABLE, f"a {kind} archive cannot be looked into")
            if kind == "ole" and _contains(file, _SEALED_OOXML):
                raise _Stop(ScanReason.ENCRYPTED, "an office document is encrypted")
            if kind not in ("zip", "tar", *_STREAMS):
                return
            if kind == "tar" and packed_by:
                depth -= 1
            if depth > self._limits.depth:
                limit = self._limits.depth
                raise _Stop(ScanReason.LIMITS, f"archives are nested deeper than {limit}")
            size = file.seek(0, 2)
            file.seek(0)
            if kind == "zip":
                self._zip(file, size, depth)
            elif kind == "tar":
                self._tar(file, depth)
            else:
                window = _Window(file, size)
                pieces = _inflate(window, _STREAMS[kind], many=True)
                self._member(pieces, window, depth, packed_by=kind)

    def _zip(self, file: BinaryIO, size: int, depth: int) -> None:
        directory = _find_directory(file, size)
        if directory is None:
            raise _Stop(ScanReason.UNREADABLE, "a zip has no directory: it is cut")
        position, end, shift = directory
        while position < end:
            entry = _ZipEntry.read(file, position)
            position = entry.next
            if not 0 <= shift + entry.offset < size:
                raise _Stop(ScanReason.UNREADABLE, "a zip points outside of itself")
            entry.find(file, shift)
            window = _Window(file, entry.packed)
            pieces = window.pieces()
            if entry.method:
                pieces = _inflate(window, _METHODS[entry.method], many=False)
            self._member(pieces, window, depth, entry=entry)

    def _tar(self, file: BinaryIO, depth: int) -> None:
        larger: int | None = None
        while any(header := file.read(512)):
            self._check_time()
            if not _is_tar(header):
                raise _Stop(ScanReason.UNREADABLE, "a tar has a broken header")
            kind, size = header[156:157], _tar_number(header[124:136])
            if size < 0:
                raise _Stop(ScanReason.UNREADABLE, "a tar has a member of no size")
            if kind in _TAR_NOTES:
                if size > _NOTE_LIMIT:
                    raise _Stop(ScanReason.LIMITS, "a tar has a header of over 1 MiB")
                note = b"".join(_Window(file, size).pieces())
                larger = _pax_size(note) if kind in (b"x", b"X") else larger
            elif kind in _TAR_EMPTY:
                size, larger = 0, None
            else:
                size, larger = size if larger is None else larger, None
                window = _Window(file, size)
                self._member(window.pieces(), window, depth)
            file.seek(-size % 512, 1)

    def _member(
        self,
        pieces: Iterator[bytes],
        window: _Window,
        depth: int,
        *,
        entry: "_ZipEntry | None" = None,
        packed_by: str = "",
    ) -> None:
        """Inflate one member into a file within all limits, show it, walk it, remove it."""
        self._members += 1
        if self._members > self._limits.members:
            raise _Stop(ScanReason.LIMITS, f"more than {self._limits.members} members")
        self._check_time()
        path = self._folder / f"{self._members}"
        try:
            crc = self._spool(pieces, window, path)
            if entry is not None:
                entry.check(path, crc)
            if self._on_member is not None:
                self._on_member(path)
            self.look_into(path, depth=depth + 1, packed_by=packed_by)
        finally:
            path.unlink(missing_ok=True)

    def _spool(self, pieces: Iterator[bytes], window: _Window, path: Path) -> int:
        limits, size, crc = self._limits, 0, 0
        with path.open("wb") as out:
            for piece in pieces:
                size += len(piece)
                self._total += len(piece)
                self._check_time()
                if size > limits.member_bytes:
                    raise _Stop(ScanReason.LIMITS, f"a member of over {limits.member_bytes} bytes")
                if self._total > limits.total_bytes:
                    raise _Stop(ScanReason.LIMITS, f"over {limits.total_bytes} bytes in all")
                if size > _RATIO_FROM and size > limits.ratio * max(1, window.taken):
                    raise _Stop(ScanReason.LIMITS, f"a member inflates over {limits.ratio} times")
                crc = zlib.crc32(piece, crc)
                out.write(piece)
        return crc

    def _check_time(self) -> None:
        if time.monotonic() > self._end:
            raise _Stop(ScanReason.TIMEOUT, "looking into the archive took too long")


@dataclass(frozen=True, slots=True)
class _ZipEntry:
    """One line of a zip's directory."""

    name: bytes
    method: int
    flags: int
    crc: int
    packed: int
    offset: int
    next: int

    @classmethod
    def read(cls, file: BinaryIO, position: int) -> "_ZipEntry":
        file.seek(position)
        (_, _, _, flags, method, _, _, crc, packed, inflated, name, extra, comment, *_, offset) = (
            _unpack(file, _CENTRAL, b"PK\x01\x02")
        )
        label = file.read(name)
        _, packed, offset = _zip64(file.read(extra), inflated, packed, offset)
        after = position + _CENTRAL.size + name + extra + comment
        return cls(label, method, flags, crc, packed, offset, after)

    def find(self, file: BinaryIO, shift: int) -> None:
        """Move a file to the packed content; refuse what cannot or must not be inflated."""
        file.seek(shift + self.offset)
        (_, _, flags, method, _, _, _, _, _, name, extra) = _unpack(file, _LOCAL, b"PK\x03\x04")
        if (flags | self.flags) & _ZIP_SEALED or _ZIP_AES in (method, self.method):
            raise _Stop(ScanReason.ENCRYPTED, "a member of a zip is encrypted")
        if method != self.method or file.read(name) != self.name:
            raise _Stop(ScanReason.UNREADABLE, "a zip contradicts its own directory")
        if method and method not in _METHODS:
            raise _Stop(ScanReason.UNREADABLE, f"zip method {method} cannot be looked into")
        file.seek(extra, 1)

    def check(self, path: Path, crc: int) -> None:
        """Refuse an inflated member that is broken or that holds a sealed ODF document."""
        if crc != self.crc:
            raise _Stop(ScanReason.UNREADABLE, "a member of a zip has a wrong checksum")
        if self.name == b"META-INF/manifest.xml":
            with path.open("rb") as file:
                if _contains(file, _SEALED_ODF):
                    raise _Stop(ScanReason.ENCRYPTED, "an office document is encrypted")


_STREAMS: Final[dict[str, Callable[[], _Decompressor]]] = {
    "gzip": lambda: _Deflate(31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY),
}
_METHODS: Final[dict[int, Callable[[], _Decompressor]]] = {
    8: lambda: _Deflate(-15),
    12: bz2.BZ2Decompressor,
}


def _inflate(window: _Window, make: Callable[[], _Decompressor], *, many: bool) -> Iterator[bytes]:
    """Yield inflated pieces; `many` streams may follow each other, zeros between them."""
    engine, data = make(), window.read()
    while True:
        try:
            yield engine.decompress(data, _PIECE)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as exc:
            memory = "emory usage limit" in str(exc)
            reason = ScanReason.LIMITS if memory else ScanReason.UNREADABLE
            raise _Stop(reason, f"a compressed stream is broken: {exc}") from exc
        data = b""
        if engine.eof:
            if not many:
                return
            data = engine.unused_data.lstrip(b"\0")
            while not data and window.left:
                data = window.read().lstrip(b"\0")
            if not data:
                return
            engine = make()
        elif engine.needs_input:
            if not window.left:
                raise _Stop(ScanReason.UNREADABLE, "a compressed stream is cut")
            data = window.read()


def _recognise(file: BinaryIO) -> str:
    head = file.read(512)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head.startswith(_OLE):
        return "ole"
    if _is_tar(head):
        return "tar"
    for kind, (offset, magic) in OPAQUE.items():
        file.seek(offset)
        if file.read(len(magic)) == magic:
            return kind
    directory = _find_directory(file, file.seek(0, 2))
    if directory is not None:
        file.seek(directory[0])
        if file.read(4) == b"PK\x01\x02":
            return "zip"
    return ""


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int] | None:
    """Return where a zip's directory starts and ends, and how far its offsets are shifted."""
    tail = min(size, _END.size + 0xFFFF)
    file.seek(size - tail)
    content = file.read(tail)
    at = content.rfind(b"PK\x05\x06", 0, max(0, tail - _END.size + 4))
    if at < 0:
        return None
    *_, length, offset, _ = _END.unpack_from(content, at)
    end = size - tail + at
    locator = end - _END64_LOCATOR.size
    if locator >= _END64.size:
        file.seek(locator)
        if file.read(4) == b"PK\x06\x07":
            end = locator - _END64.size
            file.seek(end)
            *_, length, offset = _unpack(file, _END64, b"PK\x06\x06")
    start = end - length
    if start < 0 or start < offset:
        return None
    return start, end, start - offset


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Return values with those that did not fit replaced from the field that holds them."""
    found = list(values)
    while len(extra) >= 4:
        kind, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        if kind == 1:
            wide = extra[4 : 4 + size]
            for index, value in enumerate(found):
                if value == _ZIP_HUGE:
                    found[index] = int.from_bytes(wide[:8], "little")
                    wide = wide[8:]
        extra = extra[4 + size :]
    return found


def _unpack(file: BinaryIO, struct: Struct, signature: bytes) -> tuple[Any, ...]:
    content = file.read(struct.size)
    if len(content) < struct.size or not content.startswith(signature):
        raise _Stop(ScanReason.UNREADABLE, "a zip is cut or broken")
    return struct.unpack(content)


def _is_tar(header: bytes) -> bool:
    if len(header) < 512 or not header[148:156].strip(b" \0"):
        return False
    plain = header[:148] + b" " * 8 + header[156:]
    return _tar_number(header[148:156]) == sum(plain)


def _tar_number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _pax_size(note: bytes) -> int | None:
    found = re.search(rb"(?:^|\n)\d+ size=(\d{1,18})\n", note)
    return int(found[1]) if found else None


def _contains(file: BinaryIO, needle: bytes) -> bool:
    file.seek(0)
    kept = b""
    while piece := file.read(_PIECE):
        if needle in kept + piece:
            return True
        kept = piece[-len(needle) :]
    return False
