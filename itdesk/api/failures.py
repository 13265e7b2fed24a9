"""What a client is told when something goes wrong, and what the administrator reads of it."""

from collections.abc import Mapping

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from itdesk.api.deadlines import TooLong
from itdesk.errors import (
    BadRequest,
    DeskError,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnsupportedMedia,
)
from itdesk.runtime.log import get_logger

CRASHED = DeskError("Something went wrong on our side. Quote the request id when asking for help.")

_log = get_logger("api")


def explained(exc: Exception, route: str) -> DeskError:
    """Return what a client is told of a failure; the log says more of those that are ours."""
    if isinstance(exc, TooLong):
        _log.warning("request took too long", route=route)
    if isinstance(exc, DeskError):
        if exc.status >= 500 and not isinstance(exc, Unavailable):
            _log.warning("request failed", route=route, error=exc.code, problem=exc.message)
        return exc
    if isinstance(exc, web.HTTPException):
        return _from_aiohttp(exc)
    if isinstance(exc, (web.RequestPayloadError, HttpProcessingError)):
        return BadRequest("The body of the request cannot be read.")
    _log.error("request crashed", route=route, exc_info=exc)
    return CRASHED


_BY_STATUS: Mapping[int, type[DeskError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    415: UnsupportedMedia,
    503: Unavailable,
}


def _from_aiohttp(exc: web.HTTPException) -> DeskError:
    """Translate an error that aiohttp raised by itself; its text is not ours to show."""
    if isinstance(exc, web.HTTPRequestEntityTooLarge):
        return TooLarge("The body is larger than is accepted here.")
    if isinstance(exc, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(
            "This path does not take that method.", details={"allow": sorted(exc.allowed_methods)}
        )
    error = _BY_STATUS.get(exc.status)
    if error is not None:
        return error("The request cannot be served as it is.")
    if exc.status < 500:
        return BadRequest("The request cannot be served as it is.")
    return CRASHED
