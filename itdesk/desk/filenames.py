"""What people call their files: kept for show, never used as a path, never believed."""

import mimetypes
import unicodedata
from collections.abc import Collection
from urllib.parse import quote

from itdesk.errors import Invalid, UnsupportedMedia

LONGEST_NAME = 255
UNKNOWN_TYPE = "application/octet-stream"

# Refused by name whatever type is claimed: what a double click would run.
_RUNNABLE = frozenset(
    "app apk bat bin cmd cpl deb dll dmg elf exe gadget hta inf ins iso jar js jse lnk msc msi msp"
    " mst pif pl ps1 ps1xml ps2 psm1 py pyc rb reg rpm scf scr sct sh so sys vb vbe vbs vhd vhdx"
    " workflow ws wsc wsf wsh".split()
)
# Sent back under their own type; anything a browser could be tempted to run is sent as bytes.
_PASSIVE = frozenset(
    {
        "application/json", "application/pdf", "application/zip", "image/bmp", "image/gif",
        "image/jpeg", "image/png", "image/tiff", "image/webp", "text/csv", "text/plain",
    }
)  # fmt: skip


def shown_name(name: str) -> str:
    """Return the last part of a file name without anything that lies to the eye or breaks a line.

    Directories, control, direction and other invisible characters are dropped; raises Invalid
    when nothing is left or the name is longer than 255 characters.
    """
    if len(name) > 4 * LONGEST_NAME:
        raise Invalid.field("filename", f"must have at most {LONGEST_NAME} characters")
    plain = unicodedata.normalize("NFKC", name).replace("\\", "/").rsplit("/", 1)[-1]
    seen = "".join(c for c in plain if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"})
    shown = " ".join(seen.split()).strip(" .")
    if not shown:
        raise Invalid.field("filename", "must name a file")
    if len(shown) > LONGEST_NAME:
        raise Invalid.field("filename", f"must have at most {LONGEST_NAME} characters")
    return shown


def accepted_type(name: str, claimed: str | None, allowed: Collection[str]) -> str:
    """Return the media type to keep for a file; UnsupportedMedia when it is not accepted here.

    `application/octet-stream` claims nothing: then the name decides, and an unknown name is kept
    as plain bytes. A list that holds `*` accepts everything.
    """
    mime = (claimed or "").partition(";")[0].strip().lower() or UNKNOWN_TYPE
    if mime == UNKNOWN_TYPE:
        mime = mimetypes.guess_type(name, strict=False)[0] or UNKNOWN_TYPE
    if "*" in allowed or "*/*" in allowed:
        return mime
    ending = name.rpartition(".")[2].lower()
    known = mime == UNKNOWN_TYPE or mime in allowed or f"{mime.partition('/')[0]}/*" in allowed
    if ending in _RUNNABLE or not known:
        raise refused(mime if not known else f".{ending}")
    return mime


def served_type(mime: str) -> str:
    """Return the media type that a download is sent under."""
    return mime if mime in _PASSIVE else UNKNOWN_TYPE


def disposition(name: str) -> str:
    """Return the Content-Disposition that saves a file under its name (RFC 6266, RFC 8187)."""
    fallback = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()") else "_" for c in name)
    return f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{quote(name, safe='')}"


def refused(what: str) -> UnsupportedMedia:
    """Return the error that says what is not accepted here."""
    return UnsupportedMedia(
        f"Files of this kind are not accepted here: {what}.", code="E_FILE_TYPE_NOT_ALLOWED"
    )
