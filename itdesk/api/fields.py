"""The types that bodies and queries share; what each refuses, its JSON schema says.

Patterns are Python's, linear in their input and readable by ECMA 262, so that clients, generated
tests and the desk agree. One line of text is trimmed after it was checked; `$` lets one line feed
at its very end pass, which is trimmed with it.
"""

import re
from collections.abc import Callable, Mapping
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from itdesk.model import (
    PRIORITY_ALIASES,
    ROLE_ALIASES,
    STATUS_ALIASES,
    Category,
    Priority,
    Role,
    Status,
)

E = TypeVar("E", bound=StrEnum)

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# Spaces, and what is as invisible as a space: a name made of these alone is no name.
_BLANK = r" \u00a0\u1680\u2000-\u200f\u202f\u205f\u2060\u3000\ufeff"
_SEEN = f"[^{_CONTROL}{_BLANK}]"
_ANY = f"[^{_CONTROL}]"
_TRIMMED = "".join(re.findall(f"[{_BLANK}\n]", "".join(map(chr, range(0x10000)))))

_LINE = re.compile(f"^[{_BLANK}]*{_SEEN}{_ANY}*$")
_TITLE = re.compile(f"^[{_BLANK}]*{_SEEN}{_ANY}+{_SEEN}[{_BLANK}]*$")
_TEXT = re.compile(r"^[^\x00]*$")
_PROSE = re.compile(rf"^[\t-\r{_BLANK}]*[^\x00\t-\r{_BLANK}][^\x00]*$")
_KEY = re.compile(r"^[A-Z][A-Z0-9]{1,9}$")
_URL = re.compile(rf'^https?://[^{_CONTROL}{_BLANK}"<>\\^`{{|}}]+$')

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,20})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_REST = r"(?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# The last label starts with a letter: no bare IPv4 address is a mail domain.
_EMAIL = re.compile(
    rf"^ *{_ATOM}(?:\.?{_ATOM}){{0,63}}@(?:[A-Za-z0-9]{_REST}\.)+[A-Za-z]{_REST} *$"
)


def _line(shown: str) -> AfterValidator:
    return _matching(_LINE, shown, trimmed=True)


def _matching(pattern: re.Pattern[str], shown: str, *, trimmed: bool = False) -> AfterValidator:
    """Refuse what does not match, in words that people understand."""

    def check(text: str) -> str:
        if not pattern.search(text):
            raise PydanticCustomError("text", "{shown}", {"shown": shown})
        return text.strip(_TRIMMED) if trimmed else text

    return AfterValidator(check)


def _says(pattern: re.Pattern[str]) -> dict[str, Any]:
    return {"pattern": pattern.pattern}


_ONE_LINE = "must be one line of text that is not blank"

Line = Annotated[
    str, Field(min_length=1, max_length=255, json_schema_extra=_says(_LINE)), _line(_ONE_LINE)
]
"""One line of text that shows something, trimmed."""

Name = Annotated[
    str, Field(min_length=1, max_length=100, json_schema_extra=_says(_LINE)), _line(_ONE_LINE)
]
"""What a person, project, department or rule is called."""

Title = Annotated[
    str,
    Field(min_length=3, max_length=255, json_schema_extra=_says(_TITLE)),
    _matching(_TITLE, "must be one line of at least 3 characters", trimmed=True),
]
"""A ticket's title: three characters at least, counted without the spaces around it."""

Department = Name

Text = Annotated[str, Field(pattern=_TEXT)]
"""Any text, of any number of lines, but for NUL; say the greatest length where it is used."""

Prose = Annotated[
    str,
    Field(min_length=1, max_length=65_536, json_schema_extra=_says(_PROSE)),
    _matching(_PROSE, "must be text that is not blank"),
]
"""Text of any number of lines that shows something."""

Search = Annotated[str, Field(max_length=200, pattern=_TEXT)]
"""What a list is searched for."""

Email = Annotated[
    str,
    Field(min_length=5, max_length=254, json_schema_extra=_says(_EMAIL)),
    _matching(_EMAIL, "must be an e-mail address such as jo@example.org", trimmed=True),
]
"""An e-mail address in ASCII (an international domain in its xn-- form), trimmed."""

Key = Annotated[
    str,
    Field(min_length=2, max_length=10, json_schema_extra=_says(_KEY)),
    _matching(_KEY, "must be 2 to 10 capital letters and digits, a letter first", trimmed=True),
]
"""A project's key."""

WebAddress = Annotated[
    str,
    Field(min_length=9, max_length=2000, json_schema_extra=_says(_URL)),
    _matching(_URL, "must be an http or https address", trimmed=True),
]
"""An http or https address to show, never to fetch."""


def _written(pattern: re.Pattern[str], kind: str, shown: str) -> BeforeValidator:
    """Refuse numbers, which pydantic takes for seconds since 1970, and other ways to write."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and not pattern.fullmatch(value):
            raise PydanticCustomError(f"{kind}_parsing", "{shown}", {"shown": shown})
        return value

    return BeforeValidator(check)


Moment = Annotated[AwareDatetime, _written(_TIME, "datetime", "must be a time")]
"""A time as RFC 3339 writes it, with its zone."""

Day = Annotated[date, _written(_DAY, "date", "must be a date")]
"""A date as RFC 3339 writes it."""

Secret = Annotated[str, Field(min_length=1, max_length=1000)]
"""A password or token as somebody types it; wrong ones fail where they are compared."""

NewPassword = Annotated[str, Field(min_length=8, max_length=200)]
"""A password to be; common ones, and those built on the name or address, are refused too."""

Flag = Annotated[bool, Field(strict=True)]
"""true or false in a body, and no word or number instead of them."""


def _word(kind: type[E], aliases: Mapping[str, E]) -> Callable[[Any], E]:
    known: dict[str, E] = {member.value: member for member in kind} | dict(aliases)

    def read(value: Any) -> E:
        member = known.get(value.lower()) if isinstance(value, str) else None
        if member is None:
            raise PydanticCustomError(
                "enum", "must be one of {expected}", {"expected": ", ".join(kind)}
            )
        return member

    return read


def _words(kind: type[E], aliases: Mapping[str, E]) -> dict[str, Any]:
    read = "".join(f"; {word} means {member.value}" for word, member in aliases.items())
    return {
        "type": "string",
        "enum": [*(member.value for member in kind), *aliases],
        "description": f"In small or capital letters{read}.",
    }


RoleIn = Annotated[
    Role,
    PlainValidator(_word(Role, ROLE_ALIASES)),
    WithJsonSchema(_words(Role, ROLE_ALIASES)),
]
StatusIn = Annotated[
    Status,
    PlainValidator(_word(Status, STATUS_ALIASES)),
    WithJsonSchema(_words(Status, STATUS_ALIASES)),
]
PriorityIn = Annotated[
    Priority,
    PlainValidator(_word(Priority, PRIORITY_ALIASES)),
    WithJsonSchema(_words(Priority, PRIORITY_ALIASES)),
]
CategoryIn = Annotated[
    Category,
    PlainValidator(_word(Category, {})),
    WithJsonSchema(_words(Category, {})),
]


def _distinct(tags: list[str]) -> list[str]:
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    return list(first.values())


Tag = Annotated[
    str, Field(min_length=1, max_length=64, json_schema_extra=_says(_LINE)), _line(_ONE_LINE)
]
Tags = Annotated[list[Tag], Field(max_length=20), AfterValidator(_distinct)]
"""At most 20 tags in the order given; one that only differs by case is dropped."""


def absent(**more: Any) -> Any:
    """Return the default of a field that may be left out but not be null."""
    return Field(default_factory=lambda: None, **more)
