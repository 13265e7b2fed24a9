"""How deep a text is nested, told before its parser goes there.

The parsers of Python go down with a text until the stack is used up. That is an error which can be
caught; but what happens to run on such a stack, like the finalizer of an object that is collected
just then, fails as well, and nobody catches that.
"""

import re
import tomllib
from typing import Any, Final

DEEPEST: Final = 32

# Brackets, and that in which they mean nothing: strings, and the comments of TOML.
_PARTS: Final = re.compile(
    r'''"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}'''
    r"""|'''[\s\S]*?'{3,5}"""
    r'''|"(?:[^"\\\n]|\\.)*"'''
    r"""|'[^'\n]*'"""
    r"""|\#[^\n]*"""
    r"""|[\[{]|[\]}]"""
)


class TooDeep(ValueError):
    """nested too deeply"""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


def bounded(text: str) -> str:
    """Return a text of TOML or JSON as it is, or raise TooDeep."""
    depth = 0
    if text.count("[") + text.count("{") <= DEEPEST:
        return text
    for part in _PARTS.finditer(text):
        if part[0] in "[{":
            depth += 1
            if depth > DEEPEST:
                raise TooDeep
        elif part[0] in "]}":
            depth -= 1
    return text


def toml(text: str) -> dict[str, Any]:
    """Return the table in a text; raise TOMLDecodeError, or TooDeep."""
    table = tomllib.loads(bounded(text))
    # Dotted keys and headers nest without a bracket that stays open.
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [value for values in inner for value in values if isinstance(value, (dict, list))]
    if level:
        raise TooDeep
    return table
