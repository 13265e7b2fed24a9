"""The strict reader: what a client sends is either understood exactly or refused.

Hides how the bytes of a JSON body become a validated model. The standard library's reader is the
fast one that shows duplicate keys (orjson keeps the last, and rounds integers beyond 64 bits);
what it lets through beyond that (NaN, NUL, lone surrogates, deep nesting) is found here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin
from urllib.parse import parse_qsl

import orjson
from aiohttp import hdrs, web
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic_core import ErrorDetails

from itdesk.errors import BadRequest, Invalid, TooLarge, UnsupportedMedia

DEEPEST = 32
LARGEST_INTEGER = 2**63 - 1
MOST_PROBLEMS = 100
MOST_PARAMETERS = 100
LONGEST_PATH = 100
LONGEST_PROBLEM = 300

M = TypeVar("M", bound=BaseModel)

_TOO_DEEP = f"it is nested deeper than {DEEPEST} levels"
_CONTAINERS: frozenset[object] = frozenset({dict, list})
# Every digit as 0 and both ways to write an exponent as e: searching for plain bytes is fast.
_SHAPES = bytes.maketrans(b"123456789E", b"000000000e")
_UNPRINTABLE = re.compile("[\x00\ud800-\udfff]")


def loads(raw: bytes) -> Any:
    """Return the value that a JSON text says, or raise BadRequest E_BAD_JSON."""
    # What costs a call per number or a second look at every string is only done for texts in
    # which there could be something to find.
    shapes = raw.translate(_SHAPES)
    # 19 digits may be more than 64 bits, and only an exponent or more digits exceed a double.
    hooks = _NUMBER_HOOKS if b"0" * 19 in shapes or b"0e" in shapes else {}
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant, **hooks
        )
    except UnicodeDecodeError as exc:
        raise _unreadable("it is not UTF-8") from exc
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno} column {exc.colno}"
        raise _unreadable(f"it is not JSON, see {where}") from exc
    except RecursionError:
        raise _unreadable(_TOO_DEEP) from None
    if raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _check_depth(value)
    if b"\\u" in raw:
        _check_text(value)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _unreadable("an object has the same key twice")
    return members


def _refuse_constant(name: str) -> None:
    raise _unreadable(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    # The length first: turning thousands of digits into a number is work.
    if len(digits) > 20 or not -LARGEST_INTEGER - 1 <= (value := int(digits)) <= LARGEST_INTEGER:
        raise _unreadable("an integer does not fit into 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _unreadable("a number is too large")
    return value


_NUMBER_HOOKS: Any = {"parse_int": _integer, "parse_float": _float}


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [
            member
            for outer in level
            for member in (outer.values() if isinstance(outer, dict) else outer)
            if member.__class__ in _CONTAINERS
        ]
        if not level:
            return
    raise _unreadable(_TOO_DEEP)


def _check_text(value: Any) -> None:
    """Refuse the two things that an escape can say and a database cannot store."""
    try:
        again = orjson.dumps(value)
    except TypeError:
        raise _unreadable("a string contains half of a surrogate pair") from None
    # Without the escaped backslashes, what still looks like an escape is one.
    if b"\\u0000" in again.replace(b"\\\\", b""):
        raise _unreadable("a string contains a NUL character")


def _unreadable(why: str) -> BadRequest:
    return BadRequest(f"The body cannot be read: {why}.", code="E_BAD_JSON")


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """Return the whole body, at most `limit` bytes of it, or raise TooLarge."""
    check_length(request, limit)
    if not request.body_exists:
        return b""
    content = request.content
    first = await content.readany()
    if content.at_eof():
        chunks = [first]
    else:
        chunks, size = [first], len(first)
        while size <= limit and (chunk := await content.readany()):
            chunks.append(chunk)
            size += len(chunk)
    body = b"".join(chunks)
    if len(body) > limit:
        raise too_large(limit)
    return body


def check_encoding(request: web.BaseRequest) -> None:
    """Raise UnsupportedMedia for a compressed body: its true size is not what was announced."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() != "identity":
        raise UnsupportedMedia("Send the body without Content-Encoding.")


def check_length(request: web.BaseRequest, limit: int) -> None:
    """Raise TooLarge when the body is announced as larger than `limit` bytes."""
    if (request.content_length or 0) > limit:
        raise too_large(limit)


def too_large(limit: int) -> TooLarge:
    """Return the error for a body of more than `limit` bytes."""
    return TooLarge(f"At most {limit} bytes are accepted here.", details={"limit": limit})


def check_json_type(request: web.BaseRequest) -> None:
    """Raise UnsupportedMedia unless the body is declared as JSON in UTF-8."""
    declared = request.headers.get(hdrs.CONTENT_TYPE, "")
    if declared == "application/json":
        return
    if request.content_type != "application/json" or not declared:
        raise UnsupportedMedia("Send the body as Content-Type: application/json.")
    if (request.charset or "utf-8").lower().replace("_", "-") not in ("utf-8", "utf8"):
        raise UnsupportedMedia("Send the body in UTF-8.")


def parse(model: type[M], raw: bytes) -> M:
    """Return the body as its model, or raise BadRequest or Invalid with all problems at once."""
    loads(raw)
    try:
        # Strict as JSON is: "5" is no number and "yes" no boolean, while dates, ids and enums
        # are strings.
        return model.model_validate_json(raw, strict=True)
    except ValidationError as exc:
        raise invalid(exc) from None


class QueryReader:
    """Reads the query strings of one route."""

    def __init__(self, model: type[BaseModel] | None) -> None:
        self._model = model
        self._lists = _list_parameters(model) if model else frozenset()

    def read(self, query: str) -> Any:
        """Return the query as the route's model, None when it has none, or raise Invalid."""
        given: dict[str, Any] = {}
        problems: list[dict[str, str]] = []
        read: BaseModel | None = None
        for name, text in _pairs(query) if query else ():
            if _UNPRINTABLE.search(text) or _UNPRINTABLE.search(name):
                problems.append(_problem((name,), "contains a character that is not text"))
            elif name in self._lists:
                given.setdefault(name, []).append(text)
            elif name in given:
                problems.append(_problem((name,), "is given more than once"))
            else:
                given[name] = text
        if self._model is None:
            problems += [_problem((name,), _UNKNOWN) for name in given]
        else:
            try:
                read = self._model.model_validate(given)
            except ValidationError as exc:
                problems += _problems(exc)
        if problems:
            raise _refused(problems)
        return read


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query, keep_blank_values=True, errors="strict", max_num_fields=MOST_PARAMETERS
        )
    except UnicodeDecodeError as exc:
        raise BadRequest("The query string is not UTF-8.") from exc
    except ValueError as exc:
        raise BadRequest(f"The query string has more than {MOST_PARAMETERS} parts.") from exc


def _list_parameters(model: type[BaseModel]) -> frozenset[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        if _is_list(field.annotation):
            names.add(name)
            alias = field.validation_alias
            if isinstance(alias, str):
                names.add(alias)
            elif isinstance(alias, AliasChoices):
                names.update(choice for choice in alias.choices if isinstance(choice, str))
    return frozenset(names)


def _is_list(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin in (list, tuple, set, frozenset):
        return True
    return any(_is_list(part) for part in get_args(annotation) if not isinstance(part, str))


_UNKNOWN = "is not known here"


def invalid(exc: ValidationError) -> Invalid:
    """Return the error that lists everything that is wrong with a body or query."""
    return _refused(_problems(exc))


def _refused(problems: Sequence[Mapping[str, str]]) -> Invalid:
    details: dict[str, Any] = {"fields": list(problems[:MOST_PROBLEMS])}
    if len(problems) > MOST_PROBLEMS:
        details["more"] = len(problems) - MOST_PROBLEMS
    first = problems[0]
    message = " ".join(part for part in (first["path"], first["problem"]) if part)
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return Invalid(message, details=details)


def _problems(exc: ValidationError) -> list[dict[str, str]]:
    return [
        _problem(error["loc"], _plain(error))
        for error in exc.errors(include_url=False, include_input=False)
    ]


def _problem(path: Sequence[int | str], problem: str) -> dict[str, str]:
    shown = ".".join(map(str, path))
    shown = _UNPRINTABLE.sub("\ufffd", shown)
    if len(shown) > LONGEST_PATH:
        shown = shown[: LONGEST_PATH - 1] + "\u2026"
    return {"path": shown, "problem": problem[:LONGEST_PROBLEM]}


# pydantic's own words where they are plain; these are not, or show what was sent.
_WORDS = {
    "missing": "is required",
    "extra_forbidden": _UNKNOWN,
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "string_unicode": "must be text",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "none_required": "must be null",
    "uuid_type": "must be a UUID",
    "uuid_parsing": "must be a UUID",
    "uuid_version": "must be a UUID of version {expected_version}",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "datetime_type": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "must be a time such as 2026-01-31T12:00:00Z",
    "datetime_object_invalid": "must be a time such as 2026-01-31T12:00:00Z",
    "timezone_aware": "must say its time zone, such as Z",
    "date_type": "must be a date such as 2026-01-31",
    "date_parsing": "must be a date such as 2026-01-31",
    "date_from_datetime_parsing": "must be a date such as 2026-01-31",
    "date_from_datetime_inexact": "must be a date such as 2026-01-31",
    "json_invalid": "must be JSON",
    "recursion_loop": "must not contain itself",
}


def _plain(error: ErrorDetails) -> str:
    words = _WORDS.get(error["type"])
    if words is not None:
        return words.format(**error.get("ctx", {}))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "must be").replace("Input should", "must")
    return message.rstrip(".") or "is not valid"
