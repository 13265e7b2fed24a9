"""Waits for a database that is on its way, and tells at once of one that never comes.

A server that is down, starting or not yet migrated is waited for: whoever starts everything at
once after a power cut shall not have to care for the order. A server that refuses us will refuse
us again, and a newer schema does not grow older.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from itdesk.errors import DeskError, SchemaError, Unavailable
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.store.migrations import Migrations, SchemaTooNew

_LOOK_SECONDS = 5.0
_TELL_SECONDS = 5.0
_PATIENT_SECONDS = 1.0
_PAUSE_SECONDS = 0.25

# What waiting does not mend: the address or the rights are wrong.
_REFUSALS = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.exceptions.ClientConfigurationError,
    ssl.SSLError,
)
FAILURES = (*_REFUSALS, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = get_logger("database")


class DatabaseRefused(DeskError):
    """The server answers, and does not let us in: correct database.url or the server's rights."""

    default_code = "E_DATABASE_REFUSED"


def describe(failure: BaseException) -> str:
    """Say in one line why a connection failed."""
    if isinstance(failure, TimeoutError):
        return "no answer in time"
    if isinstance(failure, OSError) and failure.strerror and not isinstance(failure, ssl.SSLError):
        return failure.strerror
    return " ".join(str(failure).split()) or type(failure).__name__


async def at_head(url: str, *, patience: float, migrate: bool, clock: Clock) -> None:
    """Return once the schema is the one that this version needs; bring it there if told to.

    Raises at once what waiting does not mend, and else what is still missing after `patience`.
    """
    migrations = Migrations(url)
    deadline = clock.monotonic() + patience
    tell_at = clock.monotonic() + _PATIENT_SECONDS
    while True:
        left = max(0.1, deadline - clock.monotonic())
        try:
            await _advance(migrations, url, seconds=min(left, _LOOK_SECONDS), migrate=migrate)
            return
        except (Unavailable, SchemaError) as missing:
            hopeless = SchemaError if migrate else SchemaTooNew
            if isinstance(missing, hopeless) or left <= _PAUSE_SECONDS:
                raise
            if clock.monotonic() >= tell_at:
                tell_at = clock.monotonic() + _TELL_SECONDS
                log.warning("waiting", missing=missing.message, seconds_left=round(left))
        await clock.sleep(_PAUSE_SECONDS)


async def _advance(migrations: Migrations, url: str, *, seconds: float, migrate: bool) -> None:
    """Return when the schema is at head, or raise what is missing."""
    async with _connected(url, seconds) as conn:
        status = await migrations.status(conn)
        if not migrate:
            status.require()
            return
        if status.at_head and await migrations.unchanged(conn):
            return
    # What is marked as at head is compared with what it should be.
    done = await migrations.migrate()
    if done.applied or done.stamped:
        log.info("schema migrated", applied=done.applied, stamped=done.stamped)


@asynccontextmanager
async def _connected(
    url: str, seconds: float
) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    try:
        conn = await asyncpg.connect(url, timeout=seconds, command_timeout=seconds)
        try:
            yield conn
        finally:
            await conn.close(timeout=seconds)
    except _REFUSALS as exc:
        raise DatabaseRefused(f"The database refuses the connection: {describe(exc)}.") from exc
    except FAILURES as exc:
        raise Unavailable(f"The database does not answer: {describe(exc)}.") from exc
