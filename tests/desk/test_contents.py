"""What a file is by its bytes, against its claim and the allow-list (S2-06, S-23)."""

import codecs
from collections.abc import AsyncIterator, Collection

import pytest

from itdesk.config.model import ALLOWED_TYPES
from itdesk.desk import contents
from itdesk.desk.filenames import served_type
from itdesk.desk.spool import HEAD
from itdesk.errors import UnsupportedMedia
from tests.support import samples

OCTETS = "application/octet-stream"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0"


def kept(claim: str, head: bytes, allowed: Collection[str] = ALLOWED_TYPES) -> str:
    return contents.media_type("a.dat", claim, head[:HEAD], allowed)


@pytest.mark.parametrize(
    ("claim", "head"),
    [
        ("text/plain", b"hello"),
        ("text/plain", "grüße, 你好".encode()),
        ("text/plain", "grüße".encode("cp1252")),
        ("text/plain", codecs.BOM_UTF16_LE + "hello".encode("utf-16-le")),
        ("text/plain", ("ü" * 5000).encode()[: HEAD - 1]),
        ("text/plain", b"\x1b[31merror\x1b[0m"),
        ("text/x-log", b"2026-11-20 #! was here"),
        ("text/csv", b"a;b\n1;2\n"),
        ("application/json", b'{"a": 1}'),
        ("application/xml", b"<?xml version='1.0'?><a/>"),
        ("message/rfc822", b"From: a@example.org\r\n\r\nhi"),
        ("application/rtf", b"{\\rtf1\\ansi hi}"),
        ("application/pdf", samples.plain_pdf()),
        ("image/png", samples.png()),
        ("image/gif", b"GIF89a\1\0\1\0"),
        ("image/jpeg", JPEG),
        ("image/bmp", b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"),
        ("image/tiff", b"II*\0\x08\0\0\0\1\0"),
        ("image/webp", b"RIFF\x10\0\0\0WEBPVP8 "),
        ("image/heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        (DOCX, samples.document()),
        ("application/zip", samples.archive(("a", b"x"))),
        ("application/gzip", samples.compressed(b"x", "gz")),
        ("application/x-tar", samples.tarball(("a", b"x"))),
        ("application/x-7z-compressed", samples.encrypted_7z()),
        ("application/msword", OLE),
        ("application/vnd.ms-outlook", OLE),
        (OCTETS, bytes(5000)),
        (OCTETS, b"\x93\xfa\x01 nothing that is known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_true_claim_stays(claim: str, head: bytes) -> None:
    assert kept(claim, head) == claim


@pytest.mark.parametrize(
    ("claim", "head", "then"),
    [
        ("image/png", b"just words", "text/plain"),
        ("image/png", samples.plain_pdf(), "application/pdf"),
        ("text/plain", samples.png(), "image/png"),
        ("text/plain", samples.document(), "application/zip"),
        (OCTETS, samples.plain_pdf(), "application/pdf"),
        (OCTETS, b"just words", "text/plain"),
        ("text/plain", OLE, OCTETS),
        (DOCX, OLE, OCTETS),
        ("application/pdf", b"\x93\xfa\x01\x02 not one", OCTETS),
        ("image/jpeg", bytes(500), OCTETS),
    ],
)
def test_a_false_claim_is_replaced_by_what_the_bytes_say(
    claim: str, head: bytes, then: str
) -> None:
    """S-23: the type that is kept, and so served, is never one that the bytes contradict."""
    assert kept(claim, head) == then


RUNNABLE = {
    "windows": b"MZ\x90\0\x03",
    "linux": b"\x7fELF\x02\x01",
    "macos": b"\xcf\xfa\xed\xfe\x07",
    "fat macos or java": b"\xca\xfe\xba\xbe\0\0\0\x34",
    "android": b"dex\n035\0",
    "webassembly": b"\0asm\1\0\0\0",
    "shortcut": bytes.fromhex("4c0000000114020000000000c000000000000046"),
    "windows help": b"ITSF\x03\0\0\0",
    "debian package": b"!<arch>\ndebian-binary   ",
    "rpm package": b"\xed\xab\xee\xdb\x03\0",
    "applescript": b"FasdUAS 1.101.10",
    "shell": b"#!/bin/sh\nrm -rf ~\n",
    "shell behind a mark": codecs.BOM_UTF8 + b"#!/bin/sh\n",
    "shell behind blanks": b"\n\n  #!/usr/bin/env python3\n",
    "shell in utf-16": codecs.BOM_UTF16_LE + "#!/bin/sh\n".encode("utf-16-le"),
    "shell in latin-1": b"#!/bin/sh\n# \xfc\n",
    "php": b"<?PHP system($_GET['c']);",
    "asp": b"<%@ Page Language='C#' %>",
    "batch": b"@ECHO OFF\r\ndel *.*\r\n",
    "encoded script": b"#@~^XAAAAA==",
    "html application": b"<html><head><HTA:APPLICATION id=x></head>",
}


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.parametrize("claim", ["text/plain", "image/png", OCTETS])
def test_what_would_run_is_refused_whatever_it_is_called(name: str, claim: str) -> None:
    """S2-06: programs and scripts, by content."""
    with pytest.raises(UnsupportedMedia) as refused:
        kept(claim, RUNNABLE[name])
    assert refused.value.code == "E_FILE_TYPE_NOT_ALLOWED"
    assert "program or script" in refused.value.message


@pytest.mark.parametrize(
    ("claim", "head", "said"),
    [
        ("text/plain", b"Rar!\x1a\x07\0rest", "rar"),
        (OCTETS, b"\0\0\0\x18ftypmp42\0\0\0\0", "video/mp4"),
        ("image/png", b"OggS\0\x02" + bytes(20), "ogg"),
        ("application/zip", b"\x1aE\xdf\xa3\x01\0\0\0", "video/webm"),
        (OCTETS, b"MSCF\0\0\0\0", "cab"),
    ],
)
def test_what_is_not_on_the_list_is_refused_by_content(claim: str, head: bytes, said: str) -> None:
    with pytest.raises(UnsupportedMedia, match="by its content"):
        kept(claim, head)


def test_the_list_is_the_administrators() -> None:
    """SPEC 9: a shorter list holds for the content, `*` allows all, `image/*` a whole kind."""
    assert kept("image/png", samples.png(), ["image/*"]) == "image/png"
    assert kept(OCTETS, samples.png(), ["image/*"]) == "image/png"
    for head in (b"just words", samples.plain_pdf(), RUNNABLE["linux"]):
        with pytest.raises(UnsupportedMedia):
            kept(OCTETS, head, ["image/*"])
        assert kept("text/plain", head, ["*"]) == "text/plain"


@pytest.mark.parametrize("mime", ["text/html", "image/svg+xml", "text/xml", "text/javascript"])
def test_what_a_browser_could_run_is_never_served_as_itself(mime: str) -> None:
    """S-23: even where everything may be attached."""
    assert kept(mime, b"<svg onload=alert(1)>", ["*"]) == mime
    assert served_type(mime) == OCTETS


async def test_the_first_bytes_are_judged_before_any_goes_on() -> None:
    """However small the pieces are in which they come."""

    async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    program = RUNNABLE["linux"] + bytes(9000)
    for size in (1, 7, 4096, 10_000):
        sniffed = contents.Sniffed("a.txt", "text/plain", ALLOWED_TYPES)
        passed = 0
        with pytest.raises(UnsupportedMedia):
            async for _ in sniffed.through(pieces(program, size)):
                passed += 1
        assert passed == 0
        picture = samples.png() + bytes(9000)
        sniffed = contents.Sniffed("a.txt", "text/plain", ALLOWED_TYPES)
        whole = [piece async for piece in sniffed.through(pieces(picture, size))]
        assert b"".join(whole) == picture and sniffed.mime == "image/png"
