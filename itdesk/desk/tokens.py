"""Access tokens, and refresh tokens: what we hand out and how we recognise it.

The decision hidden here: our key names the algorithm, never the token, and a token is accepted
only in the one form in which we write it. PyJWT checks the signature; all else is checked here.
"""

import asyncio
import hashlib
import json
import re
import secrets
from collections import OrderedDict
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
from jwt import PyJWS, PyJWTError

from itdesk.desk.base64url import decode
from itdesk.desk.keyfile import KeyFile
from itdesk.desk.keys import Keys
from itdesk.errors import ConfigError, ExpiredToken, InvalidToken
from itdesk.frozen import frozen
from itdesk.runtime import nesting
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

ISSUER = AUDIENCE = "itdesk"
TYPE = "at+jwt"
LONGEST_TOKEN = 4096
LONGEST_LIFETIME = timedelta(days=366)
LEEWAY = 5  # seconds that another node's clock may be ahead of ours

log = get_logger("tokens")

_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_REFRESH = re.compile(r"rt_[A-Za-z0-9_-]{43}", re.ASCII)


class UnknownKey(InvalidToken):
    """The token names a key that is not ours, or that another process made a moment ago."""


@frozen
class Claims:
    """What a good access token says; times are seconds since 1970."""

    sub: UUID
    sid: UUID
    jti: str
    iat: int
    exp: int


class Tokens:
    """Issues and verifies access tokens; a token seen before costs a hash and a look-up."""

    def __init__(
        self,
        keys: Keys,
        clock: Clock,
        *,
        file: KeyFile | None = None,
        cache_size: int = 10_000,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._file = file
        self._mark: tuple[int, ...] | None = None
        self._reloading = asyncio.Lock()
        self._cache_size = cache_size
        self._verified: OrderedDict[bytes, tuple[Claims, float]] = OrderedDict()
        self._jws = PyJWS(algorithms=["RS256", "EdDSA", "HS256"])

    def issue(self, user_id: UUID, session_id: UUID, *, lifetime: timedelta) -> tuple[str, Claims]:
        """Return a signed access token and what it says."""
        if not timedelta(seconds=1) <= lifetime <= LONGEST_LIFETIME:
            raise ValueError(f"the lifetime of a token is 1 second to {LONGEST_LIFETIME.days} days")
        now = int(self._clock.now().timestamp())
        expires = now + int(lifetime.total_seconds())
        claims = Claims(sub=user_id, sid=session_id, jti=uuid4().hex, iat=now, exp=expires)
        payload = orjson.dumps({"iss": ISSUER, "aud": AUDIENCE, **asdict(claims)})
        signing = self._keys.signing
        header = {"typ": TYPE, "kid": signing.kid}
        token = self._jws.encode(payload, self._keys.private, signing.algorithm, headers=header)
        return token, claims

    def verify(self, token: str) -> Claims:
        """Return the claims of a good token; else InvalidToken, or ExpiredToken if it was good."""
        if len(token) > LONGEST_TOKEN or not token.isascii():
            raise _invalid()
        now = self._clock.now().timestamp()
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        claims, not_after = known or self._check(token, now)
        if now >= not_after or now >= claims.exp:
            self._verified.pop(digest, None)
            raise _invalid() if now >= not_after else ExpiredToken("The access token has expired.")
        if known is None:
            self._verified[digest] = claims, not_after
            if len(self._verified) > self._cache_size:
                self._verified.popitem(last=False)
        else:
            self._verified.move_to_end(digest)
        return claims

    def forget(self, token: str) -> None:
        """Verify this token from scratch next time."""
        self._verified.pop(hashlib.sha256(token.encode(errors="replace")).digest(), None)

    def replace_keys(self, keys: Keys) -> None:
        """Sign and verify with other keys from now on; what the old ones vouched for is void."""
        self._keys = keys
        self._verified.clear()

    async def reload(self) -> bool:
        """Take over the keys of the file if it was changed; True when they are others now.

        A file that cannot be read is complained of once, and the keys from before stay in use.
        """
        file = self._file
        if file is None:
            return False
        async with self._reloading:
            mark = await asyncio.to_thread(file.mark)
            if mark is None or mark == self._mark:
                return False
            # Before the reading: what is written meanwhile is looked at the next time.
            self._mark = mark
            try:
                keys = await asyncio.to_thread(file.load_or_create)
            except ConfigError as exc:
                log.error("the keys on disk are of no use, the old ones stay", problem=exc.message)
                return False
            if keys.published() == self._keys.published():
                return False
            self.replace_keys(keys)
            log.info("keys replaced", kid=keys.signing.kid, retired=len(keys.retired))
            return True

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JWK set to publish."""
        return self._keys.jwks(self._clock.now())

    def _check(self, token: str, now: float) -> tuple[Claims, float]:
        segments = token.split(".")
        if len(segments) != 3:
            raise _invalid()
        try:
            header_text, payload_text, _ = (decode(segment) for segment in segments)
        except ValueError as exc:
            raise _invalid() from exc
        header = _object(header_text)
        kid = header.get("kid")
        key = self._keys.find(kid)
        if key is None and header == {"alg": self._keys.signing.algorithm, "typ": TYPE, "kid": kid}:
            raise UnknownKey("The access token is not valid.")
        # Equality, so that crit, b64, zip, jwk, jku, x5c and whatever comes next are refused.
        if key is None or header != {"alg": key.algorithm, "typ": TYPE, "kid": key.kid}:
            raise _invalid()
        try:
            self._jws.decode(token, key.public, algorithms=[key.algorithm])
        except (PyJWTError, ValueError) as exc:
            raise _invalid() from exc
        return _claims(_object(payload_text), now), key.not_after


def new_refresh_token() -> tuple[str, bytes]:
    """Return an opaque refresh token of 256 bits and the hash to store in its place."""
    token = "rt_" + secrets.token_urlsafe(32)
    return token, hash_refresh_token(token)


def hash_refresh_token(token: str) -> bytes:
    """Return the hash under which a refresh token is stored; InvalidToken if it cannot be one."""
    if not _REFRESH.fullmatch(token):
        raise InvalidToken("The refresh token is not valid.")
    return hashlib.sha256(token.encode()).digest()


def _claims(claims: dict[str, Any], now: float) -> Claims:
    issued, expires, start = claims.get("iat"), claims.get("exp"), claims.get("nbf", 0)
    # `type is int`: a bool is an int to isinstance, and 1e9 or "1" is not what we write.
    if type(issued) is not int or type(expires) is not int or type(start) is not int:
        raise _invalid()
    if not issued < expires <= issued + LONGEST_LIFETIME.total_seconds():
        raise _invalid()
    if issued > now + LEEWAY or start > now + LEEWAY:
        raise _invalid()
    token_id = claims.get("jti")
    if not isinstance(token_id, str) or not _TOKEN_ID.fullmatch(token_id):
        raise _invalid()
    if claims.get("iss") != ISSUER or claims.get("aud") != AUDIENCE:
        raise _invalid()
    user, session = _uuid(claims.get("sub")), _uuid(claims.get("sid"))
    return Claims(sub=user, sid=session, jti=token_id, iat=issued, exp=expires)


def _uuid(text: object) -> UUID:
    try:
        value = UUID(text) if isinstance(text, str) else None
    except ValueError:
        value = None
    # UUID() also reads braces, urn:uuid: and capitals: one user, one spelling.
    if value is None or str(value) != text:
        raise _invalid()
    return value


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = nesting.bounded(raw.decode())
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except ValueError as exc:
        raise _invalid() from exc
    if not isinstance(value, dict):
        raise _invalid()
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _invalid() -> InvalidToken:
    # Which check failed is the forger's business least of all.
    return InvalidToken("The access token is not valid.")
