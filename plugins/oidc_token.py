"""What makes an ID token believable: its signature, whom it is for, and when.

The algorithm is ours to choose, the key the provider's: a token only names one of its keys. What
a token brings along to be checked with (`jwk`, `jku`, `x5u`) is never looked at.
"""

import hashlib
import hmac
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from itdesk.hookspecs import SignInProblem, SignInRefused

LONGEST: Final = 65_536
LEAST_RSA_BITS: Final = 2048
# Older than any sign-in takes; the nonce decides, this only keeps hoarded ones out.
OLDEST_SECONDS: Final = 900
_CURVES: Final = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1}
_UNREADABLE = (
    jwt.PyJWTError,
    UnsupportedAlgorithm,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What an ID token has to say to be for us, now."""

    issuer: str
    client_id: str
    nonce: str
    algorithms: Sequence[str]
    now: float
    skew: float


def header_of(token: str, algorithms: Sequence[str]) -> Mapping[str, Any]:
    """Return the header of a token that one of these algorithms signed, as it says."""
    if len(token) > LONGEST:
        raise _refused("it is too long")
    try:
        header = jwt.get_unverified_header(token)
    except _UNREADABLE as exc:
        raise _refused("its header cannot be read") from exc
    if header.get("alg") not in algorithms:
        raise _refused("its algorithm is none of those expected")
    if "crit" in header:
        raise _refused("it has critical extensions")
    if not isinstance(header.get("kid"), str | None):
        raise _refused("its key id is no text")
    return header


def key_for(header: Mapping[str, Any], keys: Iterable[Mapping[str, Any]]) -> Any:
    """Return the key that a token was signed with, or None when it is not among these."""
    kid, algorithm = header.get("kid"), header["alg"]
    named = [key for key in keys if kid is None or key.get("kid") == kid]
    fitting = [key for key in (_key(one, algorithm) for one in named) if key is not None]
    # Without a name there must be no choice.
    return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


def claims_of(
    token: str, header: Mapping[str, Any], key: Any, expected: Expected
) -> Mapping[str, Any]:
    """Return what a token says, once all of it is believed; SignInRefused otherwise."""
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[header["alg"]],
            audience=expected.client_id,
            issuer=expected.issuer,
            options={
                "require": ["iss", "sub", "aud", "exp", "iat", "nonce"],
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except _UNREADABLE as exc:
        raise _refused(f"it is not valid ({type(exc).__name__})") from exc
    _check_audience(claims, expected.client_id)
    _check_times(claims, expected)
    nonce, subject = claims["nonce"], claims["sub"]
    if not isinstance(nonce, str) or not hmac.compare_digest(
        nonce.encode("utf-8", "replace"), expected.nonce.encode()
    ):
        raise _refused("its nonce is not the one of this sign-in")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
        raise _refused("its subject is no text of at most 255 characters")
    return claims


def check_access_token(claims: Mapping[str, Any], algorithm: str, access_token: object) -> None:
    """Raise SignInRefused when the token speaks of another access token than the one beside it."""
    said = claims.get("at_hash")
    if said is None:
        return
    if not isinstance(said, str) or not isinstance(access_token, str):
        raise _refused("it speaks of an access token that is not there")
    size = {"256": "sha256", "384": "sha384"}.get(algorithm[2:], "sha512")
    digest = hashlib.new(size, access_token.encode("utf-8", "replace")).digest()
    half = urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=")
    if not hmac.compare_digest(said.encode("utf-8", "replace"), half):
        raise _refused("it speaks of another access token")


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience, party = claims["aud"], claims.get("azp")
    if isinstance(audience, list) and len(audience) > 1 and party is None:
        raise _refused("it is for several and does not say who asked")
    if party is not None and party != client_id:
        raise _refused("it was made for another client")


def _check_times(claims: Mapping[str, Any], expected: Expected) -> None:
    times = [claims["exp"], claims["iat"], claims.get("nbf", claims["iat"])]
    # `type`: a boolean is an integer as well.
    if any(type(one) not in (int, float) for one in times):
        raise _refused("its times are no numbers")
    exp, iat, nbf = times
    if not exp > expected.now - expected.skew:
        raise _refused("it is over")
    if not max(iat, nbf) <= expected.now + expected.skew:
        raise _refused("it is from the future")
    if not iat > expected.now - OLDEST_SECONDS - expected.skew:
        raise _refused("it was made long ago")


def _key(described: Mapping[str, Any], algorithm: str) -> Any:
    """Return a public key that can have signed by this algorithm, or None."""
    if described.get("use", "sig") != "sig" or described.get("alg", algorithm) != algorithm:
        return None
    if described.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    try:
        key = jwt.PyJWK(dict(described), algorithm).key
    except _UNREADABLE:
        return None
    return key if _fits(key, algorithm) else None


def _fits(key: Any, algorithm: str) -> bool:
    if algorithm.startswith(("RS", "PS")):
        return isinstance(key, rsa.RSAPublicKey) and key.key_size >= LEAST_RSA_BITS
    if algorithm == "EdDSA":
        return isinstance(key, ed25519.Ed25519PublicKey)
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES[algorithm])


def _refused(reason: str) -> SignInRefused:
    return SignInRefused(SignInProblem.TOKEN, f"ID token: {reason}")
