"""Pages of a list: the cursor hides where a page ended, and only fits the list that made it.

A cursor is a client's word like any other. It is taken only in the one spelling in which
`encode_cursor` would write it, and its values have the types and ranges of the columns.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import orjson

from itdesk.errors import Invalid
from itdesk.frozen import frozen

T = TypeVar("T")

LONGEST_CURSOR = 500


@frozen
class Window:
    """Which part of a list is wanted, and whether to count all of it."""

    limit: int = 50
    cursor: str | None = None
    offset: int = 0
    count: bool = False


@frozen
class Page(Generic[T]):
    """Part of a list; `next_cursor` leads to the next part, None is the end."""

    items: list[T]
    next_cursor: str | None = None
    total: int | None = None

    @classmethod
    def cut(cls, found: Sequence[T], limit: int, cursor: Callable[[T], str]) -> "Page[T]":
        """Return the first `limit` of what was found when one more was asked for."""
        items = list(found[:limit])
        return cls(items, cursor(items[-1]) if len(found) > limit else None)


def encode_cursor(sort: str, *values: Any) -> str:
    """Return where a page ended in that order: datetimes, UUIDs, ints and texts."""
    raw = orjson.dumps([sort, *(_plain(value) for value in values)])
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_cursor(cursor: str, sort: str, types: Sequence[type]) -> tuple[Any, ...]:
    """Return the values of a cursor of that order; Invalid unless it is one.

    An int is any that PostgreSQL's bigint holds: compare it with a parameter of that type.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        said_sort, *said = orjson.loads(raw)
        values = tuple(_typed(value, kind) for value, kind in zip(said, types, strict=True))
        known = said_sort == sort and encode_cursor(sort, *values) == cursor
    except (ValueError, TypeError, OverflowError, binascii.Error) as exc:
        raise _invalid() from exc
    if not known or len(cursor) > LONGEST_CURSOR:
        raise _invalid()
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value) if isinstance(value, UUID) else value


def _typed(value: object, kind: type) -> Any:
    if kind is int and type(value) is int and -(2**63) <= value < 2**63:
        return value
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("no such value in a cursor")
    if kind is datetime:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError("a time without its zone")
        return moment
    if kind is UUID:
        return UUID(value)
    if kind is str:
        return value
    raise ValueError("no such type in a cursor")


def _invalid() -> Invalid:
    return Invalid.field("cursor", "is not a cursor of this list in this order")
