"""The samples that show whether a clamd can be believed.

Every sample must come back flagged, and each goes to clamd as any attachment would. Whatever
holds the EICAR test file holds it as a member of its own, because the official signature knows
it only as a whole file. The expensive ones are built only when they are sent.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from functools import partial
from typing import IO, BinaryIO

from itdesk import archives
from itdesk.hookspecs import Verdict
from itdesk.model import ScanReason

from .eicar import eicar

MIB = 1 << 20
_DEEP = 110  # levels; clamd's own default for MaxRecursion is 17


@dataclass(frozen=True, slots=True)
class Sample:
    """A file, how clamd may answer it, and what to change when it answers otherwise."""

    write: Callable[[BinaryIO], object]
    passes: Callable[[Verdict], bool]
    remedy: str
    size: int = 0


def samples(max_file_size: int) -> Iterator[Sample]:
    """Yield what a clamd must flag that is to be believed for files up to a size."""
    yield Sample(
        lambda file: file.write(eicar()),
        _infected,
        "clamd does not know the EICAR test file: install the signature database that "
        "`DatabaseDirectory` names (freshclam does).",
    )
    yield Sample(
        lambda file: file.write(_zip(("marker.com", eicar()))),
        _infected,
        "clamd does not look into archives: set `ScanArchive yes` in clamd.conf.",
    )
    yield Sample(
        lambda file: file.write(_mail(eicar())),
        _infected,
        "clamd does not look into mails: set `ScanMail yes` in clamd.conf.",
    )
    yield Sample(
        lambda file: file.write(_encrypted_zip()),
        _encrypted,
        "clamd passes encrypted archives: set `AlertEncrypted yes` in clamd.conf.",
    )
    yield Sample(
        lambda file: file.write(_encrypted_pdf()),
        _encrypted,
        "clamd passes encrypted documents: set `AlertEncrypted yes` and `ScanPDF yes` in "
        "clamd.conf.",
    )
    yield Sample(
        lambda file: file.write(_deep_zip()),
        _limits,
        "clamd passes what exceeds its limits: set `AlertExceedsMax yes` and `MaxRecursion` below "
        "100 in clamd.conf.",
    )
    mib = -(-max_file_size // MIB)
    yield Sample(
        lambda file: _full_zip(file, max_file_size),
        _infected,
        f"clamd does not scan files of {max_file_size} bytes: set `StreamMaxLength`, "
        f"`MaxFileSize` to at least {mib + 1}M and `MaxScanSize` to at least {2 * mib + 2}M in "
        "clamd.conf.",
        size=max_file_size,
    )


def members(max_file_size: int) -> Iterator[Sample]:
    """Yield small zips with a member of growing size, up to what the archive walk lets pass.

    The first is of `max_file_size`: a clamd that passes less is of no use.
    """
    most = archives.Limits().member_bytes
    least = min(max_file_size, most)
    sizes = (least, 16 * MIB, 25 * MIB, 40 * MIB, most)
    for size in sorted({size for size in sizes if least <= size <= most}):
        yield Sample(
            partial(_inflating_zip, size=size),
            _infected_or_limits,
            f"clamd passes archives with a member of {size} bytes unscanned: set `MaxFileSize` "
            f"to at least {-(-size // MIB) + 1}M in clamd.conf.",
            size=size,
        )


def _infected(verdict: Verdict) -> bool:
    return verdict.clean is False


def _encrypted(verdict: Verdict) -> bool:
    return verdict.reason is ScanReason.ENCRYPTED


def _limits(verdict: Verdict) -> bool:
    return verdict.reason is ScanReason.LIMITS


def _infected_or_limits(verdict: Verdict) -> bool:
    return verdict.clean is False or verdict.reason is ScanReason.LIMITS


def _zip(*files: tuple[str, bytes]) -> bytes:
    """Return a zip of these files, deflated so that no scan of the raw bytes sees the marker."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in files:
            writer.writestr(name, content)
    return buffer.getvalue()


def _mail(content: bytes) -> bytes:
    message = EmailMessage()
    message["From"] = message["To"] = "probe@itdesk.invalid"
    message["Subject"], message["Date"] = "probe", "Mon, 01 Jan 2024 00:00:00 +0000"
    message.set_content("probe\n")
    message.add_attachment(content, maintype="application", subtype="octet-stream", filename="m")
    return message.as_bytes()


def _encrypted_zip() -> bytes:
    content = bytearray(_zip(("note.txt", b"nothing of interest, sealed")))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    return bytes(content)


def _encrypted_pdf() -> bytes:
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>",
        b"<< /Filter /Standard /V 2 /R 3 /Length 128 /P -3904\n/O <%s>\n/U <%s> >>"
        % (b"5a" * 32, b"a5" * 32),
    )
    out = b"%PDF-1.5\n"
    places = []
    for number, content in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"xref\n0 5\n0000000000 65535 f \n" + b"".join(places)
    trailer = b"trailer\n<< /Size 5 /Root 1 0 R /Encrypt 4 0 R /ID [<%s> <%s>] >>\n" % (
        b"ab" * 16,
        b"ab" * 16,
    )
    return out + table + trailer + b"startxref\n%d\n%%%%EOF\n" % len(out)


def _deep_zip() -> bytes:
    content, name = eicar(), "marker.com"
    for _ in range(_DEEP):
        content, name = _zip((name, content)), "deeper.zip"
    return content


def _full_zip(file: BinaryIO, size: int) -> None:
    """Write a zip of `size` bytes (or a few more, when that has no room) with the marker last."""
    around = len(_zip(("padding.bin", b""), ("marker.com", eicar())))
    padding = max(0, size - around)
    with zipfile.ZipFile(file, "w") as writer:
        with writer.open("padding.bin", "w", force_zip64=padding > zipfile.ZIP64_LIMIT) as member:
            _write_zeros(member, padding)
        writer.writestr("marker.com", eicar(), zipfile.ZIP_DEFLATED)


def _inflating_zip(file: BinaryIO, size: int) -> None:
    """Write a small zip of a tar of `size` bytes with the marker at its end.

    clamd scans what fits of a member that is too large and says nothing of the rest; many small
    files in the tar let it say nothing of them either.
    """
    padding, marker = tarfile.TarInfo("padding.bin"), tarfile.TarInfo("marker.com")
    marker.size = len(eicar())
    end = marker.tobuf() + eicar().ljust(512, b"\0") + bytes(1024)
    left = max(0, size - len(end))
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as writer,
        writer.open("member.tar", "w") as member,
    ):
        while left >= 512:
            padding.size = min(MIB // 2, left - 512) // 512 * 512
            member.write(padding.tobuf())
            _write_zeros(member, padding.size)
            left -= 512 + padding.size
        member.write(end + bytes(left))


def _write_zeros(file: IO[bytes], count: int) -> None:
    for start in range(0, count, MIB):
        file.write(bytes(min(MIB, count - start)))
