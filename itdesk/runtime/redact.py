"""What must never be logged, found by the name of a field, by known value and by shape."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote, quote_plus

import orjson

MASK = "***"
SHORTEST_SECRET = 6
_DEPTH = 6
_MOST_ITEMS = 100
_HEAD = 6_000
_TAIL = 4_000
_SEARCHED = 100_000

_STEMS = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "apikey",
    "signature",
    "credential",
    "privatekey",
    "accesskey",
    "signingkey",
    "hmac",
    "recoverycode",
    "otpauth",
)
_NAMES = frozenset({"pwd", "jwt", "otp", "totp", "pin"})
_SEPARATORS = str.maketrans("", "", "-_. ")

# Prefixes and repetitions are bounded, so that hostile text costs no more than linear time.
_NAME = (
    r"(?:password|passwd|passphrase|pwd|secret|token|authorization|cookie|api[-_]?key"
    r"|signature|credentials?|private[-_]?key|hmac|pass(?![a-z])|input_value)"
)
_ASSIGNED = re.compile(
    rf"({_NAME}[\w-]{{0,40}}\\?[\"']?\s{{0,3}}(?:=|:(?=\s{{0,3}}b?\\?[\"']))\s{{0,3}})"
    r"(?:b?\\?\"[^\"]*\"?|b?\\?'[^']*'?|[^\s&,;\"']+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"((?:authorization|cookie|x-[\w-]{0,40}?(?:token|key|signature))\\?[\"']?\s{0,3}:\s{0,3})"
    r"[^\r\n]+",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"\b(bearer|basic)\s{1,3}[\w.~+/=-]{6,}", re.IGNORECASE)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}\.[\w-]+(?:\.[\w-]*)?")
# Ours, whatever they are for: API tokens, and sign-ins that wait for a code.
_OURS = re.compile(r"(?<![0-9A-Za-z])itdesk_[a-z0-9]{3}_[0-9A-Za-z]{6,}")
_USERINFO = re.compile(r"(://[^\s/?#:@]*:)[^\s/?#]*@")
# What a text must contain, in lower case, for any of these to match.
_HINTS = (
    *(
        "itdesk_",
        "eyj",
        "://",
        "bearer",
        "basic",
        "-key",
        "_key",
        "apikey",
        "privatekey",
        "input_value",
    ),
    *("pass", "pwd", "secret", "token", "authorization", "cookie", "signature", "credential"),
    *("hmac", '"jwt"', '"otp"', '"pin"'),
)

Text = Callable[[str], str]


@lru_cache(maxsize=4096)
def sensitive(name: str) -> bool:
    """Tell whether a field of that name holds a secret."""
    name = name.lower().translate(_SEPARATORS)
    return name in _NAMES or name.endswith("pass") or any(stem in name for stem in _STEMS)


def clip(text: str) -> str:
    """Return text that any encoder accepts, its middle cut out when it is very long."""
    if len(text) > _HEAD + _TAIL:
        cut = len(text) - _HEAD - _TAIL
        text = f"{text[:_HEAD]} ... {cut} characters ... {text[-_TAIL:]}"
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: object, text: Text, depth: int = _DEPTH) -> object:
    """Return a copy made of JSON types only, fields with sensitive names masked."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(str(value))
    if isinstance(value, (int, float)):
        return _number(value, text)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        fields = list(value.items())[:_MOST_ITEMS]
        return {text(_show(k)): _field(_show(k), v, text, depth - 1) for k, v in fields}
    if isinstance(value, (list, tuple, set, frozenset)):
        return _items(list(value)[:_MOST_ITEMS], text, depth - 1)
    return text(_show(value))


class Redactor:
    """Knows the secrets of this process and takes them out of text."""

    def __init__(self) -> None:
        self._secrets: tuple[str, ...] = ()
        self._encoded: tuple[str, ...] = ()
        # What `text` returns for what is said over and over.
        self.known = lru_cache(maxsize=1024)(self.text)

    def register(self, value: str) -> None:
        """Mask this value from now on; one too short to be told from ordinary text is ignored."""
        lines = (line.strip() for line in value.splitlines() if not line.startswith("-----"))
        forms = {form for part in (value, *lines) for form in _forms(part)}
        forms = {form for form in forms if len(form) >= SHORTEST_SECRET}
        # Longest first: a secret that contains another must not survive in part.
        self._secrets = tuple(sorted(forms.union(self._secrets), key=lambda s: (-len(s), s)))
        self._encoded = tuple(orjson.dumps(clip(s)).decode()[1:-1] for s in self._secrets)
        self.known.cache_clear()

    def suspicious(self, line: str) -> bool:
        """Tell, cheaply, whether a rendered line may hold something that `text` would mask."""
        return _holds(line, self._encoded)

    def masks(self, text: str) -> bool:
        """Tell, as cheaply, whether `text` may mask something of a text that is not rendered."""
        return _holds(text, self._secrets)

    def quick(self, text: str) -> str:
        """Return the text fit for any encoder, masked only where clipping could split a secret."""
        return clip(text) if len(text) <= _HEAD + _TAIL else self.text(text)

    def text(self, text: str) -> str:
        """Return the text with every known or recognisable secret masked, fit for any encoder."""
        if len(text) > 2 * _SEARCHED:
            # The seam lies in what clip takes out.
            text = text[:_SEARCHED] + text[-_SEARCHED:]
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        lowered = text.lower()
        if any(hint in lowered for hint in _HINTS):
            text = _USERINFO.sub(rf"\1{MASK}@", text)
            text = _JWT.sub(MASK, text)
            text = _OURS.sub(MASK, text)
            text = _SCHEME.sub(rf"\1 {MASK}", text)
            text = _HEADER.sub(rf"\1{MASK}", text)
            text = _ASSIGNED.sub(rf"\1{MASK}", text)
        return clip(text)


def _holds(text: str, secrets: Sequence[str]) -> bool:
    # Two plain loops: this runs for every line, and generators would double its cost.
    lowered = text.lower()
    for hint in _HINTS:
        if hint in lowered:
            return True
    for secret in secrets:
        if secret in text:
            return True
    return False


def _forms(secret: str) -> Iterable[str]:
    if len(secret) < SHORTEST_SECRET:
        return ()
    printed = repr(secret)[1:-1]
    encoded = orjson.dumps(clip(secret)).decode()[1:-1]
    quotable = secret.encode("utf-8", "backslashreplace")
    return (secret, printed, encoded, quote(quotable, safe=""), quote_plus(quotable))


def _field(name: str, value: object, text: Text, depth: int) -> object:
    # Whether a secret is there is worth knowing, so None and booleans stay.
    if value is None or isinstance(value, bool) or not sensitive(name):
        return plain(value, text, depth)
    return MASK


def _items(items: list[object], text: Text, depth: int) -> list[object]:
    # Headers and query strings travel as (name, value) pairs.
    if len(items) == 2 and isinstance(items[0], str):
        return [text(items[0]), _field(items[0], items[1], text, depth)]
    return [plain(item, text, depth) for item in items]


def _number(value: int | float, text: Text) -> object:
    # A PIN may be a number; and JSON readers agree on 64 bits and on finite numbers only.
    try:
        shown = str(value)
    except ValueError:
        return "a number of thousands of digits"
    masked = text(shown)
    exact = math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**64
    if masked != shown or not exact:
        return masked
    return int(value) if isinstance(value, int) else float(value)


def _show(value: object) -> str:
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value).decode("utf-8", "backslashreplace")
        if isinstance(value, BaseException):
            return f"{type(value).__name__}: {value}"
        return str(value)
    except Exception:  # noqa: BLE001 - a value that cannot be shown must not stop the line
        return f"<{type(value).__name__} that cannot be shown>"
