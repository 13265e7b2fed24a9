"""What a file is by its bytes, held against what it was claimed to be and what may be attached.

The signatures are those of puremagic; what they cannot tell (text, and formats that are packed in
another one) is decided here. A claim that the bytes contradict is replaced, not believed.
"""

import codecs
import re
from collections.abc import AsyncIterator, Collection
from typing import Final

from itdesk.desk.filenames import UNKNOWN_TYPE, refused
from itdesk.desk.spool import HEAD

# Programs of Windows, Linux, macOS, Java, Android and the web; shortcuts, packages and helps that
# run something when they are opened.
_PROGRAMS: Final = (
    b"MZ",
    b"\x7fELF",
    b"\xca\xfe\xba\xbe",
    b"\xfe\xed\xfa\xce",
    b"\xfe\xed\xfa\xcf",
    b"\xce\xfa\xed\xfe",
    b"\xcf\xfa\xed\xfe",
    b"dex\n",
    b"\0asm",
    b"L\0\0\0\x01\x14\x02\0",
    b"ITSF",
    b"!<arch>\ndebian",
    b"\xed\xab\xee\xdb",
    b"FasdUAS ",
)
_SCRIPTS: Final = ("#!", "<?php", "<?=", "<%", "@echo off", "#@~^", "<hta:")
_HTML_PROGRAM: Final = "<hta:application"

_OFFICE_XML: Final = "application/vnd.openxmlformats-officedocument."
_OPEN_DOCUMENT: Final = "application/vnd.oasis.opendocument."
_ZIP: Final = frozenset(
    {
        "application/zip",
        f"{_OFFICE_XML}wordprocessingml.document",
        f"{_OFFICE_XML}spreadsheetml.sheet",
        f"{_OFFICE_XML}presentationml.presentation",
        *(f"{_OPEN_DOCUMENT}{kind}" for kind in ("text", "spreadsheet", "presentation")),
    }
)
_OLE: Final = frozenset(
    {
        "application/msword",
        "application/vnd.ms-excel",
        "application/vnd.ms-powerpoint",
        "application/vnd.ms-outlook",
    }
)
_CONTAINERS: Final = {
    b"PK\x03\x04": _ZIP,
    b"PK\x05\x06": _ZIP,
    b"PK\x07\x08": _ZIP,
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _OLE,
}
# These begin in one way only: without it, the claim is false.
_SIGNED: Final = frozenset(
    {
        "application/gzip", "application/pdf", "application/rtf", "application/x-7z-compressed",
        "image/gif", "image/jpeg", "image/png", "image/tiff", "image/webp", *_ZIP, *_OLE,
    }
)  # fmt: skip
_TEXTS: Final = frozenset(
    {
        "application/json", "application/x-ndjson", "application/x-sh", "application/xml",
        "application/yaml", "image/svg+xml", "message/rfc822",
    }
)  # fmt: skip
# Text that is a format of its own.
_SPOKEN: Final = {"%pdf-": "application/pdf", "{\\rtf": "application/rtf"}
_ALIASES: Final = {
    "application/x-gzip": "application/gzip",
    "image/heif": "image/heic",
    "image/x-ms-bmp": "image/bmp",
    "image/x-png": "image/png",
    "text/rtf": "application/rtf",
}
_SHORTEST: Final = 3
# All but those that texts and terminals use.
_CONTROLS: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f-\x9f]")


def media_type(name: str, claimed: str | None, head: bytes, allowed: Collection[str]) -> str:
    """Return the media type to keep for a file that begins so; UnsupportedMedia to refuse it.

    A claim that agrees with the bytes stays. Otherwise the bytes decide, and what they say has to
    be allowed; programs and scripts never are, unless `allowed` holds `*`.
    """
    mime = claimed or UNKNOWN_TYPE
    if {"*", "*/*"} & set(allowed):
        return mime
    text = _text(head)
    if head.startswith(_PROGRAMS) or _is_script(head, text):
        raise refused(f"{name} is a program or script")
    likely = _likely(head, text)
    if not likely:
        if text is None or not text:
            return UNKNOWN_TYPE if mime in _SIGNED else mime
        return _of_text(name, mime, allowed)
    if mime in likely:
        return mime
    fitting = sorted(kind for kind in likely if is_allowed(kind, allowed))
    if not fitting:
        raise refused(f"{name} is {min(likely)} by its content")
    if "application/zip" in fitting:
        return "application/zip"
    return fitting[0] if len(fitting) == 1 else UNKNOWN_TYPE


def is_allowed(mime: str, allowed: Collection[str]) -> bool:
    """Return whether a list of media types, `text/*` among them, holds this one."""
    return mime in allowed or f"{mime.partition('/')[0]}/*" in allowed


class Sniffed:
    """Looks at the first bytes of an upload as they pass; `mime` is then what is to be kept."""

    def __init__(self, name: str, mime: str, allowed: Collection[str]) -> None:
        self.mime = mime
        self._name = name
        self._allowed = allowed

    async def through(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the chunks, the first ones only once they were found acceptable."""
        kept: list[bytes] | None = []
        async for chunk in chunks:
            if kept is None:
                yield chunk
                continue
            kept.append(chunk)
            if sum(map(len, kept)) >= HEAD:
                head, kept = self._accepted(kept), None
                yield head
        if kept:
            yield self._accepted(kept)

    def _accepted(self, kept: list[bytes]) -> bytes:
        head = b"".join(kept)
        self.mime = media_type(self._name, self.mime, head[:HEAD], self._allowed)
        return head


def _of_text(name: str, mime: str, allowed: Collection[str]) -> str:
    if mime.startswith("text/") or mime in _TEXTS:
        return mime
    if not is_allowed("text/plain", allowed):
        raise refused(f"{name} is text by its content")
    return mime if mime not in _SIGNED and mime != UNKNOWN_TYPE else "text/plain"


def _likely(head: bytes, text: str | None) -> frozenset[str]:
    """Return the media types that begin in this way, by the longest signature that has a name."""
    if text is not None:
        start = text.lstrip("\ufeff \t\r\n")[:5].lower()
        return frozenset({_SPOKEN[start]}) if start in _SPOKEN else frozenset()
    for start_of, family in _CONTAINERS.items():
        if head.startswith(start_of):
            return family
    # Imported here: its table of signatures is a MiB, and the first file may be long in coming.
    import puremagic

    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return frozenset()
    named = [m for m in found if m.mime_type and len(m.byte_match) >= _SHORTEST]
    longest = max((len(m.byte_match) for m in named), default=0)
    kinds = {m.mime_type.lower() for m in named if len(m.byte_match) == longest}
    return frozenset(_ALIASES.get(kind, kind) for kind in kinds)


def _text(head: bytes) -> str | None:
    """Return the first bytes as text, or None when they are none."""
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None
    return None if _CONTROLS.search(text) else text


def _is_script(head: bytes, text: str | None) -> bool:
    # Old encodings are no text here, but their scripts begin in ASCII all the same.
    said = (text if text is not None else head.decode("latin-1")).lower()
    return said.lstrip("\ufeff \t\r\n").startswith(_SCRIPTS) or _HTML_PROGRAM in said
