"""Which database there is to work on, configured or embedded and started for it; and whether it is
fit to be worked on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from itdesk.config import Settings
from itdesk.runtime.clock import Clock
from itdesk.runtime.postgres import EmbeddedPostgres
from itdesk.store import head
from itdesk.store.db import Database, Limits


@asynccontextmanager
async def database_url(settings: Settings) -> AsyncIterator[str]:
    """Lend a command the address of the database, started for it when it is the embedded one."""
    if settings.database.dsn is not None:
        yield settings.database.dsn
        return
    async with EmbeddedPostgres(settings.state_dir) as server:
        yield server.url


async def at_head(
    settings: Settings, url: str, *, patience: float, clock: Clock, may_migrate: bool = True
) -> None:
    """Return once the schema is the one that this version needs; migrate if the settings say so."""
    migrate = may_migrate and bool(settings.database.migrate_on_start)
    await head.at_head(url, patience=patience, migrate=migrate, clock=clock)


@asynccontextmanager
async def open_database(settings: Settings, url: str) -> AsyncIterator[Database]:
    """Lend the database with its pool; nothing is connected until it is needed."""
    limits = Limits(
        connections=settings.database.pool_max,
        connect_seconds=settings.database.connect_seconds,
        acquire_seconds=settings.database.acquire_seconds,
        command_seconds=settings.database.command_seconds,
    )
    db = Database(url, limits)
    try:
        yield db
    finally:
        await db.close()
