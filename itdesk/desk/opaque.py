"""Tokens that say nothing: 256 random bits behind a prefix that says what they are for.

Prefix and checksum let secret scanners and our own logs find them, tell a mistyped one without
asking the database, and keep one kind from ever being taken for another.
"""

import hashlib
import re
import secrets
import zlib

from itdesk.errors import InvalidToken
from itdesk.frozen import frozen

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62 ** 43 is more than 2 ** 256, and 62 ** 6 more than 2 ** 32.
_BODY, _CHECK = 43, 6
_REST = re.compile(rf"[0-9A-Za-z]{{{_BODY + _CHECK}}}", re.ASCII)


@frozen
class Kind:
    """One kind of token: its prefix, and what people call it."""

    prefix: str
    noun: str

    def new(self) -> tuple[str, bytes]:
        """Return a new token and the hash to store in its place."""
        body = self.prefix + _base62(int.from_bytes(secrets.token_bytes(32), "big"), _BODY)
        token = body + _checksum(body)
        return token, _hash(token)

    def digest(self, token: str) -> bytes:
        """Return the hash under which a token is stored; InvalidToken if it cannot be one."""
        body, rest = token[:-_CHECK], token[len(self.prefix) :]
        shaped = token.startswith(self.prefix) and _REST.fullmatch(rest)
        if not shaped or _checksum(body) != token[-_CHECK:]:
            raise InvalidToken(f"The {self.noun} is not valid.")
        return _hash(token)


API_TOKEN = Kind("itdesk_pat_", "API token")
CHALLENGE = Kind("itdesk_2fa_", "challenge")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
