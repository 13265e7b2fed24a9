"""Base64url as RFC 7515 writes it: no padding, and one spelling for the same bytes."""

import base64
import re

_TEXT = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def encode(raw: bytes) -> str:
    """Return the text for these bytes."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes of a text; ValueError when we would not have written it so."""
    if not _TEXT.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode(raw) != text:
        raise ValueError("another spelling of the same bytes")
    return raw
