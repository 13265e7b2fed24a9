"""How the archives that are walked look, byte by byte; nothing that they say is believed.

Zip: APPNOTE.TXT 6.3.10 by PKWARE. Tar: POSIX.1-2001 (ustar and pax) and GNU tar's additions.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from struct import Struct
from typing import IO, Any, Final, Protocol

from itdesk.frozen import frozen
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
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SEALED_OOXML: Final = "EncryptedPackage".encode("utf-16-le")
_SEALED_ODF: Final = b"encryption-data"
_ZIP_SEALED: Final = 1 | 1 << 6 | 1 << 13
_ZIP_AES: Final = 99
_ZIP_HUGE: Final = 0xFFFFFFFF

_END = Struct("<4s4HIIH")
_END64_LOCATOR = Struct("<4sIQI")
_END64 = Struct("<4sQ2H2I4Q")
_CENTRAL = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")


@frozen
class Finding:
    """Why a file was not seen whole."""

    reason: ScanReason
    detail: str


class Stop(Exception):
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


class Window:
    """The next `size` bytes of a file, which must all be there; counts what was taken."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.left = size
        self.taken = 0

    def read(self, count: int = _PIECE) -> bytes:
        data = self._file.read(min(count, self.left))
        if not data and self.left:
            raise Stop(ScanReason.UNREADABLE, "the archive is cut")
        self.left -= len(data)
        self.taken += len(data)
        return data

    def pieces(self) -> Iterator[bytes]:
        while self.left:
            yield self.read()


@frozen
class ZipEntry:
    """One line of a zip's directory."""

    name: bytes
    method: int
    flags: int
    crc: int
    packed: int
    offset: int
    next: int

    @classmethod
    def read(cls, file: IO[bytes], position: int) -> "ZipEntry":
        file.seek(position)
        (_, _, _, flags, method, _, _, crc, packed, inflated, name, extra, comment, *_, offset) = (
            _unpack(file, _CENTRAL, b"PK\x01\x02")
        )
        label = file.read(name)
        _, packed, offset = _zip64(file.read(extra), inflated, packed, offset)
        after = position + _CENTRAL.size + name + extra + comment
        return cls(label, method, flags, crc, packed, offset, after)

    def find(self, file: IO[bytes], shift: int) -> None:
        """Move a file to the packed content; refuse what cannot or must not be inflated."""
        file.seek(shift + self.offset)
        (_, _, flags, method, _, _, _, _, _, name, extra) = _unpack(file, _LOCAL, b"PK\x03\x04")
        if (flags | self.flags) & _ZIP_SEALED or _ZIP_AES in (method, self.method):
            raise Stop(ScanReason.ENCRYPTED, "a member of a zip is encrypted")
        if method != self.method or file.read(name) != self.name:
            raise Stop(ScanReason.UNREADABLE, "a zip contradicts its own directory")
        if method and method not in METHODS:
            raise Stop(ScanReason.UNREADABLE, f"zip method {method} cannot be looked into")
        file.seek(extra, 1)

    def check(self, file: IO[bytes], crc: int) -> None:
        """Refuse an inflated member that is broken or that holds a sealed ODF document."""
        if crc != self.crc:
            raise Stop(ScanReason.UNREADABLE, "a member of a zip has a wrong checksum")
        if self.name == b"META-INF/manifest.xml" and contains(file, _SEALED_ODF):
            raise Stop(ScanReason.ENCRYPTED, "an office document is encrypted")


STREAMS: Final[dict[str, Callable[[], _Decompressor]]] = {
    "gzip": lambda: _Deflate(31),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY),
}
METHODS: Final[dict[int, Callable[[], _Decompressor]]] = {
    8: lambda: _Deflate(-15),
    12: bz2.BZ2Decompressor,
}


def inflate(window: Window, make: Callable[[], _Decompressor], *, many: bool) -> Iterator[bytes]:
    """Yield inflated pieces; `many` streams may follow each other, zeros between them."""
    engine, data = make(), window.read()
    while True:
        try:
            yield engine.decompress(data, _PIECE)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as exc:
            memory = "emory usage limit" in str(exc)
            reason = ScanReason.LIMITS if memory else ScanReason.UNREADABLE
            raise Stop(reason, f"a compressed stream is broken: {exc}") from exc
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
                raise Stop(ScanReason.UNREADABLE, "a compressed stream is cut")
            data = window.read()


def recognise(file: IO[bytes]) -> str:
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
    if is_tar(head):
        return "tar"
    for kind, (offset, magic) in OPAQUE.items():
        file.seek(offset)
        if file.read(len(magic)) == magic:
            return kind
    directory = find_directory(file, file.seek(0, 2))
    if directory is not None:
        file.seek(directory[0])
        if file.read(4) == b"PK\x01\x02":
            return "zip"
    return ""


def find_directory(file: IO[bytes], size: int) -> tuple[int, int, int] | None:
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


def _unpack(file: IO[bytes], struct: Struct, signature: bytes) -> tuple[Any, ...]:
    content = file.read(struct.size)
    if len(content) < struct.size or not content.startswith(signature):
        raise Stop(ScanReason.UNREADABLE, "a zip is cut or broken")
    return struct.unpack(content)


def is_tar(header: bytes) -> bool:
    if len(header) < 512 or not header[148:156].strip(b" \0"):
        return False
    plain = header[:148] + b" " * 8 + header[156:]
    return tar_number(header[148:156]) == sum(plain)


def tar_number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def pax_size(note: bytes) -> int | None:
    found = re.search(rb"(?:^|\n)\d+ size=(\d{1,18})\n", note)
    return int(found[1]) if found else None


def contains(file: IO[bytes], needle: bytes) -> bool:
    file.seek(0)
    kept = b""
    while piece := file.read(_PIECE):
        if needle in kept + piece:
            return True
        kept = piece[-len(needle) :]
    return False
