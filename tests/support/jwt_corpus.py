"""Hostile access tokens (S-10): each is a good token with one thing wrong.

`corpus()` needs the signing key, because most of these are signed by it: they must be refused
for what they say, not for a bad signature. The claims name a live user and session when the
corpus is aimed at a running daemon, so that nothing but the flaw stands between it and a 200.
`control()` is built the same way without a flaw and must be accepted.
"""

import base64
import hashlib
import hmac
import json
import random
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512

from itdesk.desk.keys import Keys
from itdesk.desk.opaque import API_TOKEN, CHALLENGE

Named = tuple[str, str]
Json = Mapping[str, Any]
Sign = Callable[[bytes], bytes]

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def b64(raw: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def dump(value: object) -> bytes:
    """Return compact JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


def sign_with(private: object, data: bytes) -> bytes:
    """Return the signature that this kind of key makes in our tokens."""
    if isinstance(private, bytes):
        return hmac.digest(private, data, "sha256")
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(data, padding.PKCS1v15(), SHA256())
    assert isinstance(private, ed25519.Ed25519PrivateKey)
    return private.sign(data)


def mac_with(secret: bytes, digest: str = "sha256") -> Sign:
    """Return an HMAC signature function."""
    return lambda data: hmac.digest(secret, data, digest)


def unsigned(data: bytes) -> bytes:
    """Return no signature at all."""
    return b""


def respelled(segment: str) -> str:
    """Return other text that a careless decoder reads as the same bytes."""
    assert len(segment) % 4, "the last character carries unused bits"
    return segment[:-1] + _ALPHABET[_ALPHABET.index(segment[-1]) ^ 1]


@dataclass
class Forge:
    """Makes tokens from parts, signed by our own key unless told otherwise."""

    keys: Keys
    sub: UUID = field(default_factory=uuid4)
    sid: UUID = field(default_factory=uuid4)
    now: int = field(default_factory=lambda: int(time.time()))

    @property
    def header(self) -> dict[str, Any]:
        """The header of a good token."""
        return {"alg": self.keys.signing.algorithm, "kid": self.keys.signing.kid, "typ": "at+jwt"}

    @property
    def claims(self) -> dict[str, Any]:
        """The claims of a good token."""
        return {
            "iss": "itdesk",
            "aud": "itdesk",
            "sub": str(self.sub),
            "sid": str(self.sid),
            "jti": uuid4().hex,
            "iat": self.now,
            "exp": self.now + 900,
        }

    def join(self, header: bytes, payload: bytes, sign: Sign | None = None) -> str:
        """Return the compact form of raw parts."""
        return self.seal(f"{b64(header)}.{b64(payload)}", sign)

    def seal(self, start: str, sign: Sign | None = None) -> str:
        """Return two segments, whatever they are, with their signature."""
        raw = start.encode()
        return f"{start}.{b64(sign(raw) if sign else sign_with(self.keys.private, raw))}"

    def token(
        self,
        header: Json | None = None,
        claims: Json | None = None,
        sign: Sign | None = None,
    ) -> str:
        """Return a good token with some header members and claims replaced; None removes one."""
        return self.join(
            dump(_merged(self.header, header)), dump(_merged(self.claims, claims)), sign
        )


class Null:
    """Stands for JSON null where None means absent."""


def _merged(good: dict[str, Any], changes: Json | None) -> dict[str, Any]:
    merged = {**good, **(changes or {})}
    return {
        name: None if value is Null else value
        for name, value in merged.items()
        if value is not None
    }


def control(
    keys: Keys, *, sub: UUID | None = None, sid: UUID | None = None, now: int | None = None
) -> str:
    """Return a token without a flaw, made as the hostile ones are."""
    return _forge(keys, sub, sid, now).token()


def corpus(
    keys: Keys, *, sub: UUID | None = None, sid: UUID | None = None, now: int | None = None
) -> list[Named]:
    """Return the hostile tokens, each with the name of its flaw; none may be accepted."""
    forge = _forge(keys, sub, sid, now)
    parts = (
        _algorithms,
        _confusions,
        _other_keys,
        _headers,
        _purposes,
        _audiences,
        _times,
        _identities,
        _json_tricks,
        _shapes,
        _signatures,
    )
    tokens = [named for part in parts for named in part(forge)]
    names = [name for name, _ in tokens]
    assert len(set(names)) == len(names), "names are unique"
    return tokens


def sendable(token: str) -> bool:
    """Tell whether a token fits into an HTTP header at all (the rest tests the verifier alone)."""
    return token.isascii() and token.isprintable() and token == token.strip() and len(token) < 8000


def _forge(keys: Keys, sub: UUID | None, sid: UUID | None, now: int | None) -> Forge:
    return Forge(keys, sub or uuid4(), sid or uuid4(), int(time.time()) if now is None else now)


def _algorithms(forge: Forge) -> Iterator[Named]:
    for name in ("none", "None", "NONE", "nOnE", "", " none"):
        yield f"alg {name!r}, no signature", forge.token({"alg": name}, sign=unsigned)
        yield f"alg {name!r}, our signature", forge.token({"alg": name})
    yield "alg missing", forge.token({"alg": None})
    yield "alg null", forge.token({"alg": Null})
    yield "alg array", forge.token({"alg": [forge.header["alg"]]})
    yield "alg number", forge.token({"alg": 256})
    yield "alg lower case", forge.token({"alg": forge.header["alg"].lower()})
    yield "alg unknown", forge.token({"alg": "RS257"})
    yield "empty signature", forge.token(sign=unsigned)
    for name in ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "ES256", "EdDSA"):
        if name != forge.header["alg"]:
            yield f"alg {name}, our signature", forge.token({"alg": name})
            yield f"alg {name}, no signature", forge.token({"alg": name}, sign=unsigned)


def _confusions(forge: Forge) -> Iterator[Named]:
    """What everybody can read of us, used as an HMAC secret."""
    for label, secret in _public_forms(forge.keys).items():
        for digest in ("sha256", "sha384", "sha512"):
            alg = f"HS{digest[3:]}"
            token = forge.token({"alg": alg}, sign=mac_with(secret, digest))
            yield f"{alg} with {label}", token
        yield f"our alg, HMAC with {label}", forge.token(sign=mac_with(secret))
    private = forge.keys.private
    if isinstance(private, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(SHA256()), 32)
        longer: list[tuple[str, Sign]] = [
            ("RS384", lambda data: private.sign(data, padding.PKCS1v15(), SHA384())),
            ("RS512", lambda data: private.sign(data, padding.PKCS1v15(), SHA512())),
            ("PS256", lambda data: private.sign(data, pss, SHA256())),
        ]
        for alg, sign in longer:
            yield f"{alg} by our key", forge.token({"alg": alg}, sign=sign)
            yield f"{alg} by our key, called RS256", forge.token(sign=sign)


def _public_forms(keys: Keys) -> dict[str, bytes]:
    forms = {"the empty secret": b"", "our kid": keys.signing.kid.encode(), "'itdesk'": b"itdesk"}
    public = keys.signing.public
    if isinstance(public, bytes):
        return forms
    encoding, form = serialization.Encoding, serialization.PublicFormat
    pem = public.public_bytes(encoding.PEM, form.SubjectPublicKeyInfo)
    body = b"".join(pem.splitlines()[1:-1])
    wide = b"\n".join(body[at : at + 76] for at in range(0, len(body), 76))
    mark = (b"-----BEGIN PUBLIC KEY-----\n", b"\n-----END PUBLIC KEY-----\n")
    forms |= {
        "the public PEM": pem,
        "the public PEM, no last newline": pem.rstrip(b"\n"),
        "the public PEM, CRLF": pem.replace(b"\n", b"\r\n"),
        "the public PEM, re-wrapped at 76": wide.join(mark),
        "the public PEM, on one line": body.join(mark),
        "the public PEM's base64": body,
        "the public DER": public.public_bytes(encoding.DER, form.SubjectPublicKeyInfo),
        "the JWK": dump(_jwk(keys)),
    }
    if isinstance(public, rsa.RSAPublicKey):
        forms["the PKCS#1 PEM"] = public.public_bytes(encoding.PEM, form.PKCS1)
        forms["the modulus"] = public.public_numbers().n.to_bytes(public.key_size // 8, "big")
    return forms


def _jwk(keys: Keys) -> dict[str, Any]:
    public = keys.signing.public
    if isinstance(public, rsa.RSAPublicKey):
        numbers = public.public_numbers()
        n = numbers.n.to_bytes(public.key_size // 8, "big")
        return {"kty": "RSA", "n": b64(n), "e": "AQAB"}
    if isinstance(public, ed25519.Ed25519PublicKey):
        return {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
    return {"kty": "oct", "k": b64(b"x" * 32)}


def _other_keys(forge: Forge) -> Iterator[Named]:
    """Attacker's keys, with every way to talk the verifier into using them."""
    theirs = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = theirs.public_key().public_numbers()
    jwk = {"kty": "RSA", "n": b64(numbers.n.to_bytes(256, "big")), "e": "AQAB"}
    kid = b64(hashlib.sha256(dump({"e": "AQAB", "kty": "RSA", "n": jwk["n"]})).digest())

    def sign(data: bytes) -> bytes:
        return theirs.sign(data, padding.PKCS1v15(), SHA256())

    url = "https://evil.example/keys.json"
    rs256 = {"alg": "RS256"}
    yield "other key under our kid", forge.token(sign=sign)
    yield "other key as RS256 under our kid", forge.token(rs256, sign=sign)
    yield "other key under its own kid", forge.token({**rs256, "kid": kid}, sign=sign)
    yield "other key, no kid", forge.token({**rs256, "kid": None}, sign=sign)
    pointers: dict[str, dict[str, object]] = {
        "embedded jwk": {"jwk": jwk},
        "jku": {"jku": url},
        "x5u": {"x5u": url},
        "x5c": {"x5c": [b64(b"certificate")]},
    }
    for label, extra in pointers.items():
        yield f"other key, {label}", forge.token({**rs256, **extra}, sign=sign)
        yield f"other key, {label}, its kid", forge.token({**rs256, **extra, "kid": kid}, sign=sign)
    edwards = ed25519.Ed25519PrivateKey.generate()
    yield "other Ed25519 key", forge.token({"alg": "EdDSA"}, sign=edwards.sign)
    curve = ec.generate_private_key(ec.SECP256R1())

    def sign_es256(data: bytes) -> bytes:
        r, s = decode_dss_signature(curve.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    yield "other P-256 key", forge.token({"alg": "ES256"}, sign=sign_es256)
    yield "ES256 of zeros (r = s = 0)", forge.token({"alg": "ES256"}, sign=lambda data: bytes(64))


def _headers(forge: Forge) -> Iterator[Named]:
    """Signed by us, with a header that is not exactly ours."""
    extras: dict[str, Json] = {
        "crit unknown": {"crit": ["exp"], "exp": forge.now + 900},
        "crit empty": {"crit": []},
        "crit string": {"crit": "b64"},
        "crit null": {"crit": Null},
        "crit with typ": {"crit": ["typ"]},
        "b64 false": {"b64": False, "crit": ["b64"]},
        "b64 false without crit": {"b64": False},
        "b64 true": {"b64": True},
        "zip DEF": {"zip": "DEF"},
        "our own key as jwk": {"jwk": _jwk(forge.keys)},
        "jku": {"jku": "https://evil.example/keys.json"},
        "jku at loopback": {"jku": "http://127.0.0.1/jwks"},
        "x5u": {"x5u": "https://evil.example/c.pem"},
        "x5c": {"x5c": []},
        "x5t": {"x5t": "AAAA"},
        "cty JWT": {"cty": "JWT"},
        "enc": {"enc": "A256GCM"},
        "unknown member": {"x": 1},
        "kid missing": {"kid": None},
        "kid null": {"kid": Null},
        "kid empty": {"kid": ""},
        "kid array": {"kid": [forge.header["kid"]]},
        "kid object": {"kid": {"kid": forge.header["kid"]}},
        "kid number": {"kid": 0},
        "kid true": {"kid": True},
        "kid unknown": {"kid": "unknown"},
        "kid path": {"kid": "../../../../dev/null"},
        "kid path, NUL": {"kid": "/etc/passwd\0"},
        "kid URL": {"kid": "file:///dev/null"},
        "kid SQL": {"kid": "x' UNION SELECT 'secret' --"},
        "kid shell": {"kid": "key; sleep 10"},
        "kid with a space": {"kid": forge.header["kid"] + " "},
        "kid upper case": {"kid": forge.header["kid"].upper()},
        "kid lone surrogate": {"kid": "\ud800"},
        "typ missing": {"typ": None},
        "typ null": {"typ": Null},
        "typ JWT": {"typ": "JWT"},
        "typ upper case": {"typ": "AT+JWT"},
        "typ with a parameter": {"typ": "at+jwt;v=1"},
        "typ array": {"typ": ["at+jwt"]},
        "typ logout+jwt": {"typ": "logout+jwt"},
    }
    for label, header in extras.items():
        yield f"header: {label}", forge.token(header)
    for alg in ("HS256", "none"):
        for kid in ("/dev/null", "../../../../dev/null"):
            sign = mac_with(b"") if alg == "HS256" else unsigned
            token = forge.token({"alg": alg, "kid": kid}, sign=sign)
            yield f"header: {alg} with the empty file {kid} as key", token
    packed = zlib.compress(dump(forge.claims))[2:-4]
    deflated = forge.join(dump({**forge.header, "zip": "DEF"}), packed)
    yield "header: zip DEF, really deflated", deflated
    yield "payload deflated, header ours", forge.join(dump(forge.header), packed)
    unencoded = b64(dump({**forge.header, "b64": False, "crit": ["b64"]}))
    signature = sign_with(forge.keys.private, unencoded.encode() + b"." + dump(forge.claims))
    yield "header: b64 false, detached payload", f"{unencoded}..{b64(signature)}"
    yield (
        "header: b64 false, raw payload",
        (f"{unencoded}.{dump(forge.claims).decode()}.{b64(signature)}"),
    )


def _purposes(forge: Forge) -> Iterator[Named]:
    """Other things that we or others hand out, offered as access tokens."""
    yield "refresh token", "rt_" + b64(hashlib.sha256(b"refresh").digest())
    yield "refresh token in three parts", "rt_a.b.c"
    for ours in (CHALLENGE, API_TOKEN):
        token = ours.new()[0]
        yield f"{ours.noun} that nobody has", token
        yield f"{ours.noun} in three parts", ".".join((token[:20], token[20:40], token[40:]))
        yield f"{ours.noun} as the payload", forge.seal(f"{b64(token.encode())}.{b64(b'{}')}")
    yield "verification or reset link", secrets.token_urlsafe(32)
    for kind in ("challenge+jwt", "2fa+jwt", "pat+jwt"):
        yield f"{kind} by our key", forge.token({"typ": kind})
    yield "six digits", "123456"
    yield "session cookie text", "s%3A" + b64(b"session") + ".sig"
    for kind in ("rt+jwt", "refresh", "verify+jwt", "reset+jwt", "id_token"):
        yield f"{kind} by our key", forge.token({"typ": kind})
    yield (
        "refresh JWT: typ JWT and a use claim",
        forge.token({"typ": "JWT"}, {"use": "refresh", "type": "refresh"}),
    )
    yield "verification JWT", forge.token({"typ": "JWT"}, {"purpose": "verify", "sid": None})
    yield "reset JWT", forge.token({"typ": "JWT"}, {"purpose": "reset", "sid": None})
    google = {
        "iss": "https://accounts.google.com",
        "aud": "1234.apps.googleusercontent.com",
        "sub": "110169484474386276334",
        "email": "a@example.com",
        "email_verified": True,
        "nonce": "n",
        "sid": None,
    }
    yield "id_token of Google's claims by our key", forge.token({"typ": "JWT"}, google)
    yield "id_token of Google's claims, our typ", forge.token(None, google)
    url = b64(dump([forge.now + 900, {"key": "x"}]))
    mac = b64(mac_with(forge.keys.derive("url"))(url.encode()))
    yield "signed URL of ours", f"{url}.{mac}"
    yield (
        "access token signed with a derived secret",
        forge.token(sign=mac_with(forge.keys.derive("url"))),
    )


def opaque_forms(token: str) -> Iterator[Named]:
    """Other spellings of a good token that says nothing: none of them may be taken for it."""
    yield "cut by one", token[:-1]
    yield "cut at its checksum", token[:-6]
    yield "without its prefix", token.rpartition("_")[2]
    yield "prefix alone", token[: token.rindex("_") + 1]
    yield "longer by one", token + "0"
    yield "twice", token * 2
    yield "lower case", token.lower()
    yield "upper case", token.upper()
    yield "swapped case", token.swapcase()
    yield "prefix in capitals", token.replace("itdesk", "ITDESK")
    yield "of another kind", re.sub("_(pat|2fa)_", lambda m: {"pat": "_2fa_", "2fa": "_pat_"}[m[1]],
                                    token)  # fmt: skip
    for place in (11, 30, len(token) - 7, len(token) - 1):
        other = "1" if token[place] == "0" else "0"
        yield f"character {place} changed", token[:place] + other + token[place + 1 :]
    at = next(n for n in range(20, len(token) - 1) if token[n] != token[n + 1])
    swapped = token[at + 1] + token[at]
    yield "two characters swapped", token[:at] + swapped + token[at + 2 :]
    yield "as base64", b64(token.encode())
    yield "in three parts", ".".join((token[:20], token[20:40], token[40:]))


def _audiences(forge: Forge) -> Iterator[Named]:
    for name in ("iss", "aud"):
        wrong: dict[str, object] = {
            "missing": None,
            "null": Null,
            "empty": "",
            "other": "other",
            "array": ["itdesk"],
            "array of two": ["itdesk", "other"],
            "object": {"itdesk": True},
            "true": True,
            "prefix": "itdes",
            "longer": "itdesk.evil.example",
            "upper case": "ITDESK",
            "with a space": "itdesk ",
            "with a slash": "itdesk/",
            "URL": "https://itdesk",
            "look-alike": "itd\u0435sk",
            "wildcard": "*",
        }
        for label, value in wrong.items():
            yield f"{name} {label}", forge.token(None, {name: value})


def _times(forge: Forge) -> Iterator[Named]:
    now = forge.now
    shapes: dict[str, object] = {
        "missing": None,
        "null": Null,
        "true": True,
        "array": [now + 900],
        "object": {},
        "string": str(now + 900),
        "date string": "2099-01-01T00:00:00Z",
        "float": now + 900.5,
        "integral float": float(now + 900),
        "zero": 0,
        "negative": -1,
        "in milliseconds": (now + 900) * 1000,
        "in 100 years": now + 100 * 365 * 86400,
        "2**31": 2**31,
        "2**63": 2**63,
        "2**64": 2**64,
        "10**300": 10**300,
        "infinite": float("inf"),
        "not a number": float("nan"),
    }
    for label, value in shapes.items():
        yield f"exp {label}", forge.token(None, {"exp": value})
    yield (
        "exp 1e400",
        forge.join(
            dump(forge.header),
            dump(forge.claims).replace(b'"exp":%d' % (now + 900), b'"exp":1e400'),
        ),
    )
    yield "exp 1 s ago", forge.token(None, {"iat": now - 900, "exp": now - 1})
    yield "exp now", forge.token(None, {"iat": now - 900, "exp": now})
    yield "exp a year ago", forge.token(None, {"iat": now - 31536900, "exp": now - 31536000})
    yield "exp before iat", forge.token(None, {"exp": now - 10})
    yield "exp equal to iat", forge.token(None, {"iat": now + 3, "exp": now + 3})
    for label, value in shapes.items():
        yield f"iat {label}", forge.token(None, {"iat": value})
    yield "iat as a float of now", forge.token(None, {"iat": float(now)})
    yield "iat as text of now", forge.token(None, {"iat": str(now)})
    yield "iat in 1 h", forge.token(None, {"iat": now + 3600, "exp": now + 4500})
    yield "iat in 60 s", forge.token(None, {"iat": now + 60, "exp": now + 960})
    yield "nbf in 1 h", forge.token(None, {"nbf": now + 3600})
    yield "nbf in 1 min", forge.token(None, {"nbf": now + 60})
    starts: dict[str, object] = {"string": str(now), "float": float(now), "null": Null}
    starts |= {"true": True, "false": False, "array": [], "object": {}, "infinite": float("-inf")}
    for label, value in starts.items():
        yield f"nbf {label}", forge.token(None, {"nbf": value})


def _identities(forge: Forge) -> Iterator[Named]:
    for name, good in (("sub", forge.sub), ("sid", forge.sid)):
        wrong: dict[str, object] = {
            "missing": None,
            "null": Null,
            "empty": "",
            "number": 1,
            "array": [str(good)],
            "object": {"id": str(good)},
            "not a UUID": "admin",
            "e-mail": "admin@example.com",
            "upper case": str(good).upper(),
            "without dashes": good.hex,
            "in braces": f"{{{good}}}",
            "URN": good.urn,
            "with a newline": f"{good}\n",
            "with NUL": f"{good}\0",
            "SQL": f"{good}' OR '1'='1",
        }
        for label, value in wrong.items():
            if value != str(good):
                yield f"{name} {label}", forge.token(None, {name: value})
    for label, value in {
        "missing": None,
        "null": Null,
        "empty": "",
        "number": 7,
        "array": ["x"],
        "too long": "x" * 65,
        "lone surrogate": "\ud800",
        "NUL": "x\0",
        "newline": "x\n",
    }.items():
        yield f"jti {label}", forge.token(None, {"jti": value})


def _json_tricks(forge: Forge) -> Iterator[Named]:
    header, claims = dump(forge.header), dump(forge.claims)
    other = b'"sub":"%s",' % str(uuid4()).encode()

    def signed(payload: bytes) -> str:
        return forge.join(header, payload)

    yield "claim twice, ours last", signed(b"{" + other + claims[1:])
    yield "claim twice, theirs last", signed(claims[:-1] + b"," + other[:-1] + b"}")
    yield "exp twice", signed(claims[:-1] + b',"exp":%d}' % (forge.now + 800))
    yield "claim twice, one escaped", signed(claims[:-1] + b',"s\\u0075b":"x"}')
    yield "claim twice, nested", signed(claims[:-1] + b',"x":{"a":1,"a":2}}')
    yield "header member twice", forge.join(b'{"alg":"none",' + header[1:], claims)
    yield "kid twice", forge.join(header[:-1] + b',"kid":"x"}', claims)
    yield "payload is an array", signed(b"[" + claims + b"]")
    yield "payload is a string", signed(dump(claims.decode()))
    yield "payload is null", signed(b"null")
    yield "payload is a number", signed(b"1")
    yield "payload is no JSON", signed(b"hello")
    yield "payload is an empty object", signed(b"{}")
    yield "payload with a byte-order mark", signed(b"\xef\xbb\xbf" + claims)
    yield "payload in UTF-16", signed(claims.decode().encode("utf-16"))
    yield "payload in Latin-1", signed(claims[:-1] + b',"name":"\xe9"}')
    yield "payload with trailing data", signed(claims + b"x")
    yield "payload twice", signed(claims + claims)
    yield "payload with a comment", signed(b"/**/" + claims)
    yield "payload with a trailing comma", signed(claims[:-1] + b",}")
    yield "payload with NaN", signed(claims[:-1] + b',"x":NaN}')
    yield "payload with NUL", signed(claims + b"\0")
    yield "payload 1,100 arrays deep", signed(claims[:-1] + b',"x":' + b"[" * 1100)
    yield "header 1,400 arrays deep", forge.join(b"[" * 1400, claims)
    yield "header 400 objects deep", forge.join(b'{"":' * 400 + b"1" + b"}" * 400, claims)
    yield "header is an array", forge.join(b"[" + header + b"]", claims)
    yield "header is null", forge.join(b"null", claims)
    yield "header is empty", forge.join(b"{}", claims)
    yield "header is no JSON", forge.join(b"\xff\xfe", claims)
    yield (
        "header with a 1,000-digit number",
        forge.join(header[:-1] + b',"x":' + b"9" * 1000 + b"}", claims),
    )


def _shapes(forge: Forge) -> Iterator[Named]:
    good = forge.token()
    header, payload, signature = good.split(".")
    flat = {"payload": payload, "protected": header, "signature": signature}
    general = {
        "payload": payload,
        "signatures": [{"protected": header, "signature": signature}],
    }
    yield "empty", ""
    yield "one dot", "."
    yield "two dots", ".."
    yield "three dots", "..."
    yield "no header", f".{payload}.{signature}"
    yield "no payload", f"{header}..{signature}"
    yield "no signature", f"{header}.{payload}."
    yield "two segments", f"{header}.{payload}"
    yield "four segments", f"{good}.{signature}"
    yield "five segments (JWE)", f"{header}.{payload}.{signature}.{payload}.{signature}"
    yield "trailing dot", f"{good}."
    yield "leading dot", f".{good}"
    yield "trailing data", f"{good}AAAA"
    yield "trailing NUL", f"{good}\0"
    yield "trailing newline", f"{good}\n"
    yield "trailing space", f"{good} "
    yield "leading space", f" {good}"
    yield "space inside", f"{header}. {payload}.{signature}"
    yield "newline inside", f"{header}.{payload[:8]}\n{payload[8:]}.{signature}"
    yield "tab inside", f"{header}.{payload}\t.{signature}"
    yield "padded", ".".join(part + "=" * (-len(part) % 4 or 4) for part in good.split("."))
    yield "padded signature", f"{good}=="
    yield "padded header", f"{header}=.{payload}.{signature}"
    yield "dot escaped", good.replace(".", "%2E")
    yield "quoted", f'"{good}"'
    yield "with its scheme", f"Bearer {good}"
    yield "twice, comma", f"{good},{good}"
    yield "twice", f"{good}{good}"
    yield "full-width dot", good.replace(".", "\uff0e")
    yield "full-width letter", "\uff45" + good[1:]
    yield "lone surrogate", good + "\ud800"
    yield "1 MiB of letters", "A" * 2**20
    yield "1 MiB of dots", "." * 2**20
    yield "1 MiB header", "A" * 2**20 + f".{payload}.{signature}"
    yield "1 MiB payload, signed", forge.token(None, {"x": "y" * 2**20})
    yield "5 KiB payload, signed", forge.token(None, {"x": "y" * 5000})
    yield "1 MiB signature", f"{header}.{payload}." + "A" * 2**20
    yield "flattened JSON serialisation", dump(flat).decode()
    yield "general JSON serialisation", dump(general).decode()
    yield "JSON serialisation in base64", b64(dump(flat))


def _signatures(forge: Forge) -> Iterator[Named]:
    good = forge.token()
    header, payload, signature = good.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    start = f"{header}.{payload}"
    yield "truncated by a character", good[:-1]
    yield "truncated by half the signature", good[: -len(signature) // 2]
    yield "signature of zeros", f"{start}.{b64(bytes(len(raw)))}"
    yield "signature of ones", f"{start}.{b64(bytes([255]) * len(raw))}"
    yield "signature reversed", f"{start}.{b64(raw[::-1])}"
    yield "signature longer", f"{start}.{b64(raw + bytes(1))}"
    yield "signature with a leading zero", f"{start}.{b64(bytes(1) + raw)}"
    yield "signature of one byte", f"{start}.{b64(b'x')}"
    yield "signature of another token", f"{start}.{forge.token().rpartition('.')[2]}"
    yield "payload exchanged", f"{header}.{b64(dump({**forge.claims, 'x': 1}))}.{signature}"
    yield "signature in standard base64", _standard(forge)
    spaced = dump(forge.header)
    while len(b64(spaced)) % 4 == 0:
        spaced += b" "
    head = respelled(b64(spaced))
    yield "header, other spelling of the same bytes", forge.seal(f"{head}.{payload}")
    spaced = dump(forge.claims)
    while len(b64(spaced)) % 4 == 0:
        spaced += b" "
    body = respelled(b64(spaced))
    yield "payload, other spelling of the same bytes", forge.seal(f"{header}.{body}")
    if len(signature) % 4:
        yield "signature, other spelling of the same bytes", f"{start}.{respelled(signature)}"
    dice = random.Random(10)  # the same flips each run
    for number in range(8):
        at, bit = dice.randrange(len(raw)), 1 << dice.randrange(8)
        flipped = raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :]
        yield f"signature with a bit flipped ({number})", f"{start}.{b64(flipped)}"


def _standard(forge: Forge) -> str:
    """Return a token whose signature has a + or / where we write - or _."""
    while True:
        start, _, signature = forge.token().rpartition(".")
        if "-" in signature or "_" in signature:
            return f"{start}.{signature.replace('-', '+').replace('_', '/')}"
