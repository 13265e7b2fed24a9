"""Codes that change with time (RFC 6238), and the ones on paper that stand in for them.

What a code is made from is stored sealed, with a key that is not in the database: whoever gets a
copy of the tables can answer for nobody.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

DIGITS, STEP_SECONDS, DRIFT = 6, 30, 1
SECRET_BYTES = 20
RECOVERY_CODES = 10
_NONCE_BYTES = 12
_CODE = re.compile(r"[0-9]{6}", re.ASCII)


class Seal:
    """Closes secrets for one person each, and opens them again."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def close(self, user_id: UUID, secret: bytes) -> bytes:
        """Return what may be stored."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, secret, user_id.bytes)

    def open(self, user_id: UUID, sealed: bytes) -> bytes | None:
        """Return the secret, or None when another key or person sealed it."""
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, text, user_id.bytes)
        except (InvalidTag, ValueError):
            return None


def new_secret() -> bytes:
    """Return what somebody's codes will be made from."""
    return secrets.token_bytes(SECRET_BYTES)


def shown(secret: bytes) -> str:
    """Return a secret as people type it into their authenticator."""
    return base64.b32encode(secret).decode()


def uri(secret: bytes, *, account: str, issuer: str) -> str:
    """Return the address that an authenticator reads as a QR code."""
    # Authenticators show a + as it stands.
    return _totp(secret).get_provisioning_uri(account, issuer).replace("+", "%20")


def is_code(text: str) -> bool:
    """Tell a code of an authenticator from a recovery code."""
    return _CODE.fullmatch(text) is not None


def matching_step(secret: bytes, code: str, *, now: float, after: int) -> int | None:
    """Return the time step of a code, one before or after this one at most, None if it is wrong.

    A step that was used, and every one before it, is over.
    """
    totp, current = _totp(secret), int(now // STEP_SECONDS)
    found = None
    for step in range(current - DRIFT, current + DRIFT + 1):
        right = totp.generate(step * STEP_SECONDS)
        if hmac.compare_digest(right, code.encode()) and step > after:
            found = step
    return found


def new_recovery_codes() -> list[str]:
    """Return codes of 80 bits each, to be printed."""
    return [_recovery_code() for _ in range(RECOVERY_CODES)]


def recovery_hash(code: str) -> bytes:
    """Return the hash under which a recovery code is stored, however it was typed."""
    plain = code.translate(_TYPED).upper()
    return hashlib.sha256(b"itdesk recovery code " + plain.encode("utf-8", "replace")).digest()


_TYPED = str.maketrans("", "", "- ")


def _recovery_code() -> str:
    text = base64.b32encode(secrets.token_bytes(10)).decode()
    return "-".join(text[start : start + 4] for start in range(0, 16, 4))


def _totp(secret: bytes) -> TOTP:
    return TOTP(secret, DIGITS, SHA1(), STEP_SECONDS)
