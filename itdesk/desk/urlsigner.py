"""URLs of our own that open something for a while, whoever holds them."""

import hmac
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from itdesk.desk.base64url import decode, encode
from itdesk.errors import Forbidden
from itdesk.runtime.clock import Clock

LONGEST_TOKEN = 4096
SECRET_BYTES = 32


class UrlSigner:
    """Signs small payloads into URLs of ours, with a secret derived for that purpose alone."""

    def __init__(self, secret: bytes, clock: Clock) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"a URL secret has at least {SECRET_BYTES} bytes")
        self._secret = secret
        self._clock = clock

    def sign(self, payload: Mapping[str, Any], expires_in: timedelta) -> str:
        """Return the payload as URL-safe text that opens until it expires."""
        expires = int((self._clock.now() + expires_in).timestamp())
        text = json.dumps([expires, payload], sort_keys=True, separators=(",", ":"))
        body = encode(text.encode())
        token = f"{body}.{self._mac(body)}"
        if len(token) > LONGEST_TOKEN:
            raise ValueError("the payload is too long for a URL")
        return token

    def open(self, token: str) -> dict[str, Any]:
        """Return the payload; Forbidden with E_STORAGE_URL_INVALID or E_STORAGE_URL_EXPIRED."""
        body, _, mac = token.partition(".") if len(token) <= LONGEST_TOKEN else ("", "", "")
        if not token.isascii() or not hmac.compare_digest(mac, self._mac(body)):
            raise Forbidden("This link is not valid.", code="E_STORAGE_URL_INVALID")
        # We wrote every byte of it: canonical, and shaped as sign() shapes it.
        expires, payload = json.loads(decode(body))
        if self._clock.now().timestamp() >= expires:
            raise Forbidden("This link has expired.", code="E_STORAGE_URL_EXPIRED")
        return dict(payload)

    def _mac(self, body: str) -> str:
        return encode(hmac.digest(self._secret, body.encode(), "sha256"))
