"""The keys that sign access tokens, those that still verify, and the secrets derived from them.

The decision hidden here: a key names its algorithm and its own id, and what was derived from the
first key of a desk stays the same however often the key that signs is replaced.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import field
from datetime import datetime
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from itdesk.desk.base64url import encode
from itdesk.errors import ConfigError
from itdesk.frozen import frozen

RSA_BITS = 2048
SECRET_BYTES = 32
PEM_MARK = "-----BEGIN"

PrivateKey = RSAPrivateKey | Ed25519PrivateKey | bytes
PublicKey = RSAPublicKey | Ed25519PublicKey | bytes


@frozen
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
            return cls(encode(_expand(_extract(public), b"itdesk key id")), "HS256", public,
                       not_after)  # fmt: skip
        algorithm = "RS256" if isinstance(public, RSAPublicKey) else "EdDSA"
        members = json.dumps(_jwk(public), sort_keys=True, separators=(",", ":"))
        thumbprint = encode(hashlib.sha256(members.encode()).digest())
        return cls(thumbprint, algorithm, public, not_after)


class Keys:
    """The key that signs, those that still verify, and the root of all derived secrets.

    Without a root of its own, the key that signs is the root: so it is until the first rotation.
    """

    def __init__(
        self, private: PrivateKey, *, retired: Iterable[Key] = (), root: bytes | None = None
    ) -> None:
        if isinstance(private, RSAPrivateKey) and private.key_size < RSA_BITS:
            raise ConfigError(f"auth: an RSA signing key needs {RSA_BITS} bits or more")
        if isinstance(private, bytes) and len(private) < SECRET_BYTES:
            raise ConfigError(f"auth.jwt_secret: HS256 needs {SECRET_BYTES} bytes or more")
        self.private = private
        self.root = root or _root_of(private)
        self.signing = Key.of(private if isinstance(private, bytes) else private.public_key())
        others = {key.kid: key for key in retired}
        self._verifying: dict[str, Key] = {**others, self.signing.kid: self.signing}

    @property
    def retired(self) -> tuple[Key, ...]:
        """Return the keys that sign no more, the one that was replaced last first."""
        return tuple(key for key in self._verifying.values() if key.kid != self.signing.kid)

    @classmethod
    def from_secret(cls, secret: str, *, algorithm: str = "RS256") -> "Keys":
        """Return the keys of a secret: a PEM private key signs by itself, other text by HS256."""
        if PEM_MARK not in secret:
            keys = cls(secret.encode())
        else:
            # An environment file holds one line: there, newlines are written as \n.
            pem = secret.replace("\\n", "\n").encode()
            keys = cls(private_key("auth.jwt_secret", pem))
        keys.require_algorithm("auth.jwt_secret", algorithm)
        return keys

    def find(self, kid: object) -> Key | None:
        """Return our key of that id, if any."""
        return self._verifying.get(kid) if isinstance(kid, str) else None

    def jwks(self, now: datetime) -> dict[str, list[dict[str, str]]]:
        """Return the JWK set of the keys that verify now; a secret is never in it."""
        return {
            "keys": [
                {**_jwk(key.public), "alg": key.algorithm, "use": "sig", "kid": key.kid}
                for key in (self.signing, *self.retired)
                if not isinstance(key.public, bytes) and now.timestamp() < key.not_after
            ]
        }

    def published(self) -> list[tuple[str, float]]:
        """Return the ids of all keys and until when each verifies: equal sets, equal keys."""
        return [(key.kid, key.not_after) for key in (self.signing, *self.retired)]

    def derive(self, purpose: str) -> bytes:
        """Return a secret of 32 bytes for one purpose; a rotation does not change it."""
        return _expand(self.root, b"itdesk secret for " + purpose.encode())

    def require_algorithm(self, where: str, algorithm: str) -> None:
        """Raise ConfigError unless the key that signs is one for this algorithm."""
        if self.signing.algorithm != algorithm:
            ours = self.signing.algorithm
            raise ConfigError(f"{where}: a key for {ours}, but auth.jwt_algorithm is {algorithm}")


def private_key(where: str, pem: bytes) -> RSAPrivateKey | Ed25519PrivateKey:
    """Return the private key of a PEM text; ConfigError says where it stands otherwise."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{where}: not an unencrypted PEM private key") from exc
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise ConfigError(f"{where}: only RSA and Ed25519 keys can sign")
    return key


def _root_of(private: PrivateKey) -> bytes:
    if isinstance(private, bytes):
        return _extract(private)
    encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
    return _extract(private.private_bytes(encoding, form, serialization.NoEncryption()))


def _extract(secret: bytes) -> bytes:
    """Return the first half of HKDF: all that may be asked of a secret, and not the secret."""
    return HKDF.extract(hashes.SHA256(), None, secret)


def _expand(root: bytes, info: bytes) -> bytes:
    return HKDFExpand(algorithm=hashes.SHA256(), length=32, info=info).derive(root)


def _jwk(public: Any) -> dict[str, str]:
    """Return the members that a thumbprint covers."""
    form: Any = RSAAlgorithm if isinstance(public, RSAPublicKey) else OKPAlgorithm
    jwk = form.to_jwk(public, as_dict=True)
    return {name: jwk[name] for name in ("crv", "e", "kty", "n", "x") if name in jwk}
