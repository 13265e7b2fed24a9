"""What counts as a secret, and where secrets hide in other values."""

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from pydantic import BaseModel, SecretStr

from itdesk.config.model import OPTIONS, Key, Settings, may_be

MASK: Final = "***"
_SECRET_WORDS: Final = frozenset("credential key passphrase passwd password secret token".split())
_OPEN_KEYS: Final = frozenset("project_key issue_key public_key sort_key space_key".split())
_PASSWORD_IN_URL: Final = re.compile(
    r"(?<=://)(?P<before>[^/?#@:]*:)(?P<password>[^/?#]*)(?=@)"
    r"|(?<=[?&])(?P<name>\w*(?:password|secret|token|key)=)(?P<value>[^&#]*)"
)


def is_secret(key: Key) -> bool:
    """Tell whether an option holds a secret; in a plugin's section its name decides."""
    if key[0] != "plugins":
        return key in OPTIONS and may_be(OPTIONS[key], SecretStr)
    name = key[-1].lower()
    if name.startswith(("max_", "min_")):
        return False
    word = name.rsplit("_", 1)[-1]
    return (word in _SECRET_WORDS or word[:-1] in _SECRET_WORDS) and name not in _OPEN_KEYS


def mask_url(text: str) -> str:
    """Return a text with the passwords of the address in it masked."""
    return _PASSWORD_IN_URL.sub(lambda found: f"{found['before'] or found['name']}{MASK}", text)


def secrets_of(settings: Settings) -> Iterator[tuple[Key, str]]:
    """Yield every secret with its option; that of the database is a whole address."""
    for key, value in _leaves((), settings):
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if is_secret(key) and text and not isinstance(text, bool):
            yield key, str(text)


def secret_values(settings: Settings) -> list[str]:
    """Return every text that must not appear in a log, the longest first."""
    found: set[str] = set()
    for key, secret in secrets_of(settings):
        found.update(_passwords_in(secret) if key == ("database", "url") else [secret])
    for _, value in _leaves(("plugins",), settings.plugins):
        if isinstance(value, str) and "://" in value:
            found.update(_passwords_in(value))
    return sorted((text for text in found if len(text) > 3), key=lambda text: (-len(text), text))


def _leaves(key: Key, value: object) -> Iterator[tuple[Key, object]]:
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves((*key, str(name)), item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(key, item)
    else:
        yield key, value


def _passwords_in(url: str) -> Iterator[str]:
    for found in _PASSWORD_IN_URL.finditer(url):
        written = found["password"] or found["value"] or ""
        yield from (written, unquote(written))
