"""One piece of work in a trace, as whoever collects traces is told of it."""

from collections.abc import Mapping
from typing import Literal

from itdesk.frozen import frozen

Value = str | int | float | bool


@frozen
class Span:
    """What was done, from when to when (nanoseconds since 1970), and whose part it is.

    Ids are those of W3C Trace Context. Neither name nor attributes hold what people wrote.
    """

    name: str
    kind: Literal["server", "consumer"]
    trace_id: str
    span_id: str
    parent_id: str | None
    started: int
    ended: int
    failed: bool
    attributes: Mapping[str, Value]
