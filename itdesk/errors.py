"""What can go wrong, one class per distinct reaction of a caller.

Every error carries the stable code of the API (`E_...`), the HTTP status it is answered with, and
details that are safe to show. The class of a code (`NOT_FOUND`, `CONFLICT` ...) follows from the
status unless the subclass names another.
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class DeskError(Exception):
    """Something the caller can act on; rendered as the one error body."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "INTERNAL"
    default_code: ClassVar[str] = "E_INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.details = dict(details or {})
        self.retry_after = retry_after


class BadRequest(DeskError):
    """The request cannot be read, or asks for what the object's state forbids."""

    status, kind, default_code = 400, "BAD_REQUEST", "E_BAD_REQUEST"


class Unauthenticated(DeskError):
    """Nobody in particular is asking: sign in first."""

    status, kind, default_code = 401, "INVALID_TOKEN", "E_AUTH_TOKEN_MISSING"


class InvalidCredentials(Unauthenticated):
    """The address and password do not belong together."""

    kind, default_code = "INVALID_CREDENTIALS", "E_AUTH_INVALID_CREDENTIALS"


class SecondFactorRequired(Unauthenticated):
    """The password was right: answer the challenge in the details with a code."""

    kind, default_code = "SECOND_FACTOR_REQUIRED", "E_AUTH_SECOND_FACTOR_REQUIRED"


class InvalidCode(Unauthenticated):
    """The code is not, or no longer, a right one."""

    kind, default_code = "INVALID_CREDENTIALS", "E_AUTH_SECOND_FACTOR_INVALID"


class InvalidToken(Unauthenticated):
    """The token is not one of ours, or was revoked: sign in again."""

    kind, default_code = "INVALID_TOKEN", "E_AUTH_TOKEN_INVALID"


class ExpiredToken(Unauthenticated):
    """The token was good but its time is over: refresh it."""

    kind, default_code = "EXPIRED_TOKEN", "E_AUTH_TOKEN_EXPIRED"


class Forbidden(DeskError):
    """The caller is known and may not do this."""

    status, kind, default_code = 403, "FORBIDDEN", "E_AUTH_INSUFFICIENT_PERMISSIONS"


class EmailNotVerified(Forbidden):
    """The account exists but its address was never confirmed."""

    kind, default_code = "EMAIL_NOT_VERIFIED", "E_AUTH_EMAIL_NOT_VERIFIED"


class InsufficientScope(Forbidden):
    """The API token may not do this, whatever its owner may: make one with the named scope."""

    kind, default_code = "FORBIDDEN", "E_AUTH_INSUFFICIENT_SCOPE"


class SessionRequired(Forbidden):
    """Only who signed in may do this, never an API token."""

    kind, default_code = "FORBIDDEN", "E_AUTH_SESSION_REQUIRED"


class EnrolmentRequired(Forbidden):
    """Nothing else may be done before a second factor is set up."""

    kind, default_code = "SECOND_FACTOR_REQUIRED", "E_AUTH_ENROLMENT_REQUIRED"


class NotFound(DeskError):
    """There is no such object, or the caller may not know of it."""

    status, kind, default_code = 404, "NOT_FOUND", "E_NOT_FOUND"

    @classmethod
    def of(cls, noun: str) -> "NotFound":
        """Return the error for a missing object of one kind: `ticket` gives E_TICKET_NOT_FOUND."""
        return cls(f"There is no such {noun}.", code=f"E_{noun.upper()}_NOT_FOUND")


class MethodNotAllowed(DeskError):
    """The path exists, the method does not."""

    status, kind, default_code = 405, "METHOD_NOT_ALLOWED", "E_METHOD_NOT_ALLOWED"


class Conflict(DeskError):
    """The object is not in a state in which this can be done."""

    status, kind, default_code = 409, "CONFLICT", "E_CONFLICT"


class PreconditionFailed(DeskError):
    """Somebody changed the object meanwhile: look again, then decide."""

    status, kind, default_code = 412, "PRECONDITION_FAILED", "E_PRECONDITION_FAILED"


class TooLarge(DeskError):
    """More bytes than are accepted here."""

    status, kind, default_code = 413, "TOO_LARGE", "E_TOO_LARGE"


class UnsupportedMedia(DeskError):
    """Content of a type that is not accepted here."""

    status, kind, default_code = 415, "UNSUPPORTED_MEDIA", "E_UNSUPPORTED_MEDIA_TYPE"


class Invalid(DeskError):
    """The request can be read but says something impossible; all problems are listed at once."""

    status, kind, default_code = 422, "VALIDATION", "E_VALIDATION_ERROR"

    @classmethod
    def field(cls, path: str, problem: str, *, code: str | None = None) -> "Invalid":
        """Return the error for one wrong field."""
        return cls(
            f"{path}: {problem}",
            code=code,
            details={"fields": [{"path": path, "problem": problem}]},
        )


class RateLimited(DeskError):
    """Too many requests: come back after `retry_after` seconds."""

    status, kind, default_code = 429, "RATE_LIMIT", "E_RATE_LIMITED"


class UpstreamFailed(DeskError):
    """A remote service answered with nonsense; its text is never relayed."""

    status, kind, default_code = 502, "UPSTREAM", "E_UPSTREAM"


class Unavailable(DeskError):
    """Something we depend on is out for now: try again after `retry_after` seconds."""

    status, kind, default_code = 503, "UNAVAILABLE", "E_UNAVAILABLE"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        details: Mapping[str, Any] | None = None,
        retry_after: int | None = 5,
    ) -> None:
        super().__init__(message, code=code, details=details, retry_after=retry_after)


class StorageFull(DeskError):
    """The file storage has no room left."""

    status, kind, default_code = 507, "UNAVAILABLE", "E_STORAGE_FULL"


class ConfigError(DeskError):
    """The configuration is wrong; the message names every section.option at once."""

    default_code = "E_CONFIG"


class SchemaError(DeskError):
    """The database schema is not the one this version needs; the message says what to run."""

    default_code = "E_SCHEMA"
