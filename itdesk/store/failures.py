"""What PostgreSQL's failures mean to a caller: an outage, a lost race, or too much asked."""

from collections.abc import Callable

import asyncpg

from itdesk.errors import DeskError, StorageFull, Unavailable
from itdesk.runtime.log import get_logger

log = get_logger("database")


class Contention(Unavailable):
    """Another transaction was in the way three times: try again."""

    default_code = "E_DATABASE_BUSY"


class Overdue(Unavailable):
    """The server cut a statement short that took longer than it may."""

    default_code = "E_DATABASE_BUSY"


def outage(message: str) -> Unavailable:
    """Return the failure of a database that cannot be reached; try again in two seconds."""
    return Unavailable(message, code="E_DATABASE_UNAVAILABLE", retry_after=2)


_CONTENTION = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
)
_OUTAGE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    OSError,
)


def translated(exc: BaseException, complain: Callable[[str], None]) -> DeskError | None:
    """Return what a caller can act on for what asyncpg raised; None leaves it as it is."""
    if isinstance(exc, _CONTENTION):
        return Contention(
            "Several changes met at the same place. Send the request again.", retry_after=1
        )
    if isinstance(exc, asyncpg.DiskFullError):
        log.error("database disk full", problem=str(exc))
        return StorageFull("The database has no room left on its disk.", retry_after=60)
    if isinstance(exc, asyncpg.QueryCanceledError):
        return Overdue("The database took too long to answer.")
    if isinstance(exc, TimeoutError):
        complain("no answer in time")
        return outage("The database does not answer in time. Try again shortly.")
    if isinstance(exc, _OUTAGE):
        complain(type(exc).__name__)
        return outage("The database cannot be reached. Try again shortly.")
    return None
