"""Files that try a virus scanner, built at run time so that this repository is never flagged."""

import base64
import bz2
import functools
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from email.message import EmailMessage

Member = tuple[str, bytes]

# Made once with py7zr 1.0: one member, password "secret"; the second also hides its header.
_ENCRYPTED_7Z = (
    "N3q8ryccAASO3zkHwwAAAAAAAAAUAAAAAAAAAG7Byl59+33SONFVWaMfRdo+ny55jX092paZdp7bxUh77Ns5twuj2uwe"
    "dqkm97mT9n7U9e+4YASi7NHDS/KJoonzAJ5I/KVNtgrMjt4Vx6rajmmNsQEAbgEEBgABCVAKASh1sKEABwsBAAIkBvEH"
    "ARJTD1ymxQby6VLKycqfjwCZNNMhIQEYAQAMSEQACAoBPM9RaAAABQERFwByAGUAcABvAHIAdAAuAHQAeAB0AAAAFAoB"
    "ALA2gQLGeN0BFQYBACCAgIEAAAAXBlABCXMABwsBAAEhIQEYDG8AAA=="
)
_HIDDEN_7Z = (
    "N3q8ryccAASNXvcuwAAAAAAAAAAoAAAAAAAAAFV+pZrYF50KJ1rJ01jRLhhdUGZnlKvFRgdKLE9Tpd5mtvZGuYP5LIq4"
    "4TrqQMLi8fLADvRLxVoscNtSsS2szseJvix+xGzMlmCmX2UIIlrlWjITnZr8WTznYislTAvU3NZ8i1DE8nFXTMT4QfaaX"
    "SJ+is/A/1LcPkCyUTI2MRmJ55qBF9STLt8LYsKtlk8RzGG42IaTQFpBhuxAu3qLmK0677WGwuNwrEG9GTY4RBZjNP5lQS"
    "3HD5RvR06rs6KjivOir4sXBlABCXAABwsBAAEkBvEHARJTDxCb0wUMHyq7x9Iz7TUYY2MMbwAA"
)


def eicar() -> bytes:
    """Return the harmless 68-byte file that every scanner calls a virus."""
    return b"X5O!P%@AP[4\\PZX54(P^)7CC)7}" + b"$EICAR-STANDARD" + b"-ANTIVIRUS-TEST-FILE!$H+H*"


def archive(*members: Member, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as writer:
        for name, content in members:
            writer.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def nested(depth: int, content: bytes | None = None) -> bytes:
    """Return a file inside `depth` zips."""
    content = eicar() if content is None else content
    name = "marker.com"
    for level in range(depth):
        content, name = archive((name, content)), f"level{level}.zip"
    return content


def encrypted_zip(
    content: bytes, *, name: str = "report.txt", password: bytes = b"secret"
) -> bytes:
    """Return a zip whose one stored member is encrypted the old PKWARE way."""
    check = zlib.crc32(content)
    sealed = _zipcrypto(struct.pack("<11xB", check >> 24) + content, password)
    raw = name.encode()
    common = struct.pack(
        "<HHHHHIIIHH", 20, 1, 0, 0, 0x21, check, len(sealed), len(content), len(raw), 0
    )
    local = b"PK\x03\x04" + common + raw + sealed
    central = b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", *[0] * 5) + raw
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + end


def encrypted_7z(*, hidden: bool = False) -> bytes:
    """Return a 7z with an encrypted marker; `hidden` encrypts its list of members too."""
    return base64.b64decode(_HIDDEN_7Z if hidden else _ENCRYPTED_7Z)


def encrypted_pdf() -> bytes:
    """Return a PDF that cannot be opened without its password (standard handler, revision 3)."""
    owner, user = hashlib.sha256(b"owner").digest(), hashlib.sha256(b"user").digest()
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] /Contents 4 0 R >>",
            b"<< /Length 32 >>\nstream\n" + hashlib.sha256(b"text").digest() + b"\nendstream",
            b"<< /Filter /Standard /V 2 /R 3 /Length 128 /P -3904\n"
            b"/O <" + owner.hex().encode() + b">\n/U <" + user.hex().encode() + b"> >>",
        ],
        trailer=b"/Encrypt 5 0 R /ID [<" + b"ab" * 16 + b"> <" + b"ab" * 16 + b">]",
    )


def plain_pdf() -> bytes:
    """Return a PDF of one empty page."""
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 99 99] >>",
        ],
        trailer=b"",
    )


def document(text: str = "Quarterly report", *, padding: int = 0) -> bytes:
    """Return a docx; `padding` zero bytes inflate its main part, a thousand to one."""
    types = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><Types xmlns="http://schemas.'
        'openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType='
        '"application/vnd.openxmlformats-package.relationships+xml"/><Override PartName='
        '"/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.'
        'wordprocessingml.document.main+xml"/></Types>'
    )
    relations = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><Relationships xmlns="http://'
        'schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="rId1" Type='
        '"http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument" '
        'Target="word/document.xml"/></Relationships>'
    )
    body = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><w:document xmlns:w="http://'
        'schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r><w:t>'
        f"{text}</w:t></w:r></w:p></w:body></w:document>"
    )
    return archive(
        ("[Content_Types].xml", types.encode()),
        ("_rels/.rels", relations.encode()),
        ("word/document.xml", body.encode() + bytes(padding)),
    )


def inflating_document(size: int) -> bytes:
    """Return a small docx with a part of `size` bytes that ends in the marker."""
    return archive(*_parts(document()), ("word/media/image1.bin", bytes(size) + eicar()))


def inflating(size: int, *, name: str = "big.bin") -> bytes:
    """Return a small zip whose member inflates to `size` zero bytes and the marker."""
    return archive((name, bytes(size) + eicar()))


def crowd(count: int, *, last: bytes | None = None) -> bytes:
    """Return a zip of `count` tiny members of which the last is the marker."""
    members = [(f"{number}.txt", b"%d\n" % number) for number in range(count - 1)]
    return archive(*members, ("last.com", eicar() if last is None else last))


def tarball(*members: Member, compression: str = "") -> bytes:
    """Return a tar of these members, compressed with "gz", "bz2", "xz" or not."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            writer.addfile(entry, io.BytesIO(content))
    return compressed(buffer.getvalue(), compression)


def compressed(content: bytes, how: str) -> bytes:
    """Return the content compressed with "gz", "bz2" or "xz"; "" leaves it as it is."""
    if how == "gz":
        return gzip.compress(content, mtime=0)
    if how == "bz2":
        return bz2.compress(content)
    return lzma.compress(content) if how == "xz" else content


def mail(name: str, content: bytes) -> bytes:
    """Return an e-mail with one attachment, as a mailbox stores it."""
    message = EmailMessage()
    message["From"], message["To"] = "ann@example.org", "desk@example.org"
    message["Subject"], message["Date"] = "Printer", "Mon, 01 Jan 2024 10:00:00 +0000"
    message.set_content("Please look at the attached file.\n")
    message.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return message.as_bytes()


def png() -> bytes:
    """Return a picture of one grey dot."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0\x80"))
        + chunk(b"IEND", b"")
    )


def _parts(package: bytes) -> Iterable[Member]:
    with zipfile.ZipFile(io.BytesIO(package)) as reader:
        return [(name, reader.read(name)) for name in reader.namelist()]


def _pdf(objects: list[bytes], *, trailer: bytes) -> bytes:
    out, offsets = b"%PDF-1.5\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + content + b"\nendobj\n"
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    count = len(objects) + 1
    return (
        out
        + b"xref\n0 %d\n0000000000 65535 f \n" % count
        + table
        + b"trailer\n<< /Size %d /Root 1 0 R " % count
        + trailer
        + b" >>\nstartxref\n%d\n%%%%EOF\n" % len(out)
    )


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _zipcrypto(content: bytes, password: bytes) -> bytes:
    table = _crc_table()
    keys = [0x12345678, 0x23456789, 0x34567890]

    def turn(byte: int) -> None:
        keys[0] = keys[0] >> 8 ^ table[(keys[0] ^ byte) & 0xFF]
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 0x08088405 + 1) & 0xFFFFFFFF
        keys[2] = keys[2] >> 8 ^ table[(keys[2] ^ keys[1] >> 24) & 0xFF]

    for byte in password:
        turn(byte)
    out = bytearray()
    for byte in content:
        stream = keys[2] & 0xFFFF | 2
        out.append(byte ^ (stream * (stream ^ 1) >> 8 & 0xFF))
        turn(byte)
    return bytes(out)
