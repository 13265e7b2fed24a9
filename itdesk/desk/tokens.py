"""What we sign and how we recognise it: access tokens, our own URLs, refresh tokens.

The decision hidden here: our key names the algorithm, never the token, and a token is accepted
only in the one form in which we write it. PyJWT checks the signature; all else is checked here.
"""

import base64
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import orjson
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt import PyJWS, PyJWTError
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from itdesk.errors import ConfigError, ExpiredToken, Forbidden, InvalidToken
from itdesk.runtime.clock import Clock

ISSUER = AUDIENCE = "itdesk"
TYPE = "at+jwt"
LONGEST_TOKEN = 4096
LONGEST_LIFETIME = timedelta(days=366)
LEEWAY = 5  # seconds that another node's clock may be ahead of ours
RSA_BITS = 2048
SECRET_BYTES = 32

PrivateKey = RSAPrivateKey | Ed25519PrivateKey | bytes
PublicKey = RSAPublicKey | Ed25519PublicKey | bytes

_SEGMENT = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_TOKEN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_REFRESH = re.compile(r"rt_[A-Za-z0-9_-]{43}", re.ASCII)
_PEM_MARK = "-----BEGIN"
_RETIRED_MARK = b"not-after: "


@dataclass(frozen=True, slots=True)
class Claims:
    """What a good access token says; times are seconds since 1970."""

    sub: UUID
    sid: UUID
    jti: str
    iat: int
    exp: int


@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies; `not_after` ends the overlap of one that no longer signs."""

    kid: str
    algorithm: str
    public: PublicKey = field(repr=False)
    not_after: float = float("inf")

    @classmethod
    def of(cls, public: PublicKey, *, not_after: float = float("inf")) -> "Key":
        """Return the key with the algorithm its kind implies and its RFC 7638 thumbprint."""
        if isinstance(public, bytes):
            # The thumbprint of a secret would be a hash of it, published in every token.
            return cls(_encode(_hkdf(public, b"itdesk key id")), "HS256", public, not_after)
        algorithm = "RS256" if isinstance(public, RSAPublicKey) else "EdDSA"
        members = json.dumps(_jwk(public), sort_keys=True, separators=(",", ":"))
        thumbprint = _encode(hashlib.sha256(members.encode()).digest())
        return cls(thumbprint, algorithm, public, not_after)


class Keys:
    """The key that signs, those that still verify, and the secrets derived from the first."""

    def __init__(self, private: PrivateKey, *, retired: Iterable[Key] = ()) -> None:
        if isinstance(private, RSAPrivateKey) and private.key_size < RSA_BITS:
            raise ConfigError(f"auth: an RSA signing key needs {RSA_BITS} bits or more")
        if isinstance(private, bytes) and len(private) < SECRET_BYTES:
            raise ConfigError(f"auth.jwt_secret: HS256 needs {SECRET_BYTES} bytes or more")
        self.private = private
        self.signing = Key.of(private if isinstance(private, bytes) else private.public_key())
        others = {key.kid: key for key in retired}
        self._verifying: dict[str, Key] = {**others, self.signing.kid: self.signing}

    @classmethod
    def configured(cls, *, algorithm: str, secret: str | None, path: Path) -> Self:
        """Return the keys of the settings: a PEM secret or an HS256 secret, else the key file."""
        if secret and (algorithm == "HS256" or _PEM_MARK in secret):
            return cls.from_secret(secret, algorithm=algorithm)
        return cls.load_or_create(path, algorithm=algorithm)

    @classmethod
    def from_secret(cls, secret: str, *, algorithm: str = "RS256") -> Self:
        """Return the keys of a secret: a PEM private key signs by itself, other text by HS256."""
        if _PEM_MARK not in secret:
            keys = cls(secret.encode())
        else:
            # An environment file holds one line: there, newlines are written as \n.
            pem = secret.replace("\\n", "\n").encode()
            keys = cls(_private("auth.jwt_secret", pem))
        keys._require_algorithm("auth.jwt_secret", algorithm)
        return keys

    @classmethod
    def load_or_create(cls, path: Path, *, algorithm: str = "RS256") -> Self:
        """Return the keys of a file, made on first use; all processes get the same."""
        content = _read(path)
        if content is None:
            with _locked(path):
                # Somebody else may have made it while we waited for the lock.
                content = _read(path) or _write(path, _generated(algorithm))
        where = f"auth.jwt_key_file {path}"
        pem, _, retired = content.partition(_RETIRED_MARK)
        keys = cls(_private(where, pem), retired=_retired(where, retired))
        keys._require_algorithm(where, algorithm)
        return keys

    @classmethod
    def rotate(cls, path: Path, *, not_after: datetime, algorithm: str = "RS256") -> Self:
        """Replace the key of a file; the one before (and no older one) verifies until then."""
        with _locked(path):
            content = _generated(algorithm)
            if old := _read(path):
                pem = old.partition(_RETIRED_MARK)[0]
                public = _private(f"auth.jwt_key_file {path}", pem).public_key()
                # In one file, so that no crash can part the two.
                encoding, form = serialization.Encoding.PEM, serialization.PublicFormat
                content += _RETIRED_MARK + b"%d\n" % not_after.timestamp()
                content += public.public_bytes(encoding, form.SubjectPublicKeyInfo)
            _write(path, content)
        return cls.load_or_create(path, algorithm=algorithm)

    def find(self, kid: object) -> Key | None:
        """Return our key of that id, if any."""
        return self._verifying.get(kid) if isinstance(kid, str) else None

    def jwks(self, now: datetime) -> dict[str, list[dict[str, str]]]:
        """Return the JWK set of the keys that verify now; a secret is never in it."""
        keys = sorted(self._verifying.values(), key=lambda key: key is not self.signing)
        return {
            "keys": [
                {**_jwk(key.public), "alg": key.algorithm, "use": "sig", "kid": key.kid}
                for key in keys
                if not isinstance(key.public, bytes) and now.timestamp() < key.not_after
            ]
        }

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes for one purpose, the same wherever this key signs."""
        seed = self.private
        if not isinstance(seed, bytes):
            encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
            seed = seed.private_bytes(encoding, form, serialization.NoEncryption())
        return _hkdf(seed, b"itdesk secret for " + purpose.encode())

    def _require_algorithm(self, where: str, algorithm: str) -> None:
        if self.signing.algorithm != algorithm:
            ours = self.signing.algorithm
            raise ConfigError(f"{where}: a key for {ours}, but auth.jwt_algorithm is {algorithm}")


class Tokens:
    """Issues and verifies access tokens; a token seen before costs a hash and a look-up."""

    def __init__(self, keys: Keys, clock: Clock, *, cache_size: int = 10_000) -> None:
        self._keys = keys
        self._clock = clock
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

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the JWK set to publish."""
        return self._keys.jwks(self._clock.now())

    def _check(self, token: str, now: float) -> tuple[Claims, float]:
        segments = token.split(".")
        if len(segments) != 3:
            raise _invalid()
        header_text, payload_text, _ = (_decode(segment) for segment in segments)
        header = _object(header_text)
        key = self._keys.find(header.get("kid"))
        # Equality, so that crit, b64, zip, jwk, jku, x5c and whatever comes next are refused.
        if key is None or header != {"alg": key.algorithm, "typ": TYPE, "kid": key.kid}:
            raise _invalid()
        try:
            self._jws.decode(token, key.public, algorithms=[key.algorithm])
        except (PyJWTError, ValueError) as exc:
            raise _invalid() from exc
        return _claims(_object(payload_text), now), key.not_after


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
        body = _encode(text.encode())
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
        expires, payload = json.loads(_decode(body))
        if self._clock.now().timestamp() >= expires:
            raise Forbidden("This link has expired.", code="E_STORAGE_URL_EXPIRED")
        return dict(payload)

    def _mac(self, body: str) -> str:
        return _encode(hmac.digest(self._secret, body.encode(), "sha256"))


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
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
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


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(segment: str) -> bytes:
    """Read base64url as RFC 7515 writes it: no padding, no other spelling of the same bytes."""
    if not _SEGMENT.fullmatch(segment) or len(segment) % 4 == 1:
        raise _invalid()
    raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if _encode(raw) != segment:
        raise _invalid()
    return raw


def _invalid() -> InvalidToken:
    # Which check failed is the forger's business least of all.
    return InvalidToken("The access token is not valid.")


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret)


def _jwk(public: Any) -> dict[str, str]:
    """Return the members that a thumbprint covers."""
    form: Any = RSAAlgorithm if isinstance(public, RSAPublicKey) else OKPAlgorithm
    jwk = form.to_jwk(public, as_dict=True)
    return {name: jwk[name] for name in ("crv", "e", "kty", "n", "x") if name in jwk}


def _private(where: str, pem: bytes) -> RSAPrivateKey | Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{where}: not an unencrypted PEM private key") from exc
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise ConfigError(f"{where}: only RSA and Ed25519 keys can sign")
    return key


def _generated(algorithm: str) -> bytes:
    if algorithm not in ("RS256", "EdDSA"):
        raise ConfigError(f"auth.jwt_algorithm: {algorithm} needs auth.jwt_secret to be set")
    edwards = Ed25519PrivateKey.generate() if algorithm == "EdDSA" else None
    key = edwards or rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


def _retired(where: str, text: bytes) -> list[Key]:
    if not text:
        return []
    deadline, _, pem = text.partition(b"\n")
    try:
        not_after, public = int(deadline), serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{where}: the retired key in it cannot be read") from exc
    if not isinstance(public, RSAPublicKey | Ed25519PublicKey):
        raise ConfigError(f"{where}: only RSA and Ed25519 keys can verify")
    return [Key.of(public, not_after=not_after)]


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            # A systemd credential is readable by its group, so that much is allowed.
            if os.fstat(file.fileno()).st_mode & 0o027:
                raise ConfigError(f"auth.jwt_key_file {path}: others may read it; chmod 600 it")
            return file.read(65536)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"auth.jwt_key_file {path}: {exc.strerror}") from exc


def _write(path: Path, content: bytes) -> bytes:
    """Replace a file at once, readable by us alone; to be called under the lock."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
    return content


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.touch(mode=0o600)
    except OSError as exc:
        raise ConfigError(f"auth.jwt_key_file {path}: {exc.strerror}") from exc
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
