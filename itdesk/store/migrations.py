"""The schema: is it there, is it ours, is it new enough; `migrator` has the steps to make it so."""

import asyncio
import importlib.resources
import re
import time
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import asyncpg

from itdesk.errors import SchemaError
from itdesk.frozen import frozen
from itdesk.store import catalogue

if TYPE_CHECKING:
    from itdesk.store.migrator import Migrator

Stamp = Literal["auto", "never", "only"]

_OURS = re.compile(r"\d{4}-[a-z0-9-]+")  # yoyo by hand also marks __init__: not one of ours


class SchemaDrift(SchemaError):
    """The schema is not what the migrations make: repair it by hand; nothing was changed."""

    default_code = "E_SCHEMA_DRIFT"


class SchemaBusy(SchemaError):
    """Somebody else holds what the migration needs: try again, nothing is half done."""

    default_code = "E_SCHEMA_BUSY"


class SchemaTooNew(SchemaError):
    """A newer itdesk has been here: run that one, or downgrade with it first."""

    default_code = "E_SCHEMA_TOO_NEW"


@frozen
class SchemaStatus:
    """Which migrations a database has seen, and which this program knows."""

    current: str | None
    expected: str | None
    pending: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, marked: Set[str], known: tuple[str, ...]) -> "SchemaStatus":
        """Return where a database stands that has these marks."""
        return cls(
            current=max((name for name in marked if _OURS.fullmatch(name)), default=None),
            expected=known[-1] if known else None,
            pending=tuple(name for name in known if name not in marked),
            unknown=tuple(sorted(n for n in marked if n not in known and _OURS.fullmatch(n))),
        )

    @property
    def at_head(self) -> bool:
        """Return whether this program can work with this database."""
        return not self.pending and not self.unknown

    def require(self) -> None:
        """Raise what stands between this program and this database, if anything."""
        if self.unknown:
            raise SchemaTooNew(
                f"The database has been migrated by a newer itdesk ({', '.join(self.unknown)}); "
                f"this one knows up to {self.expected}. Install the newer itdesk again, or run "
                "its `itdesk db downgrade` before going back."
            )
        if self.pending:
            raise SchemaError(
                f"The database schema is at {self.current or 'nothing'}, this itdesk needs "
                f"{self.expected}. Run `itdesk db migrate`."
            )


@frozen
class Verification:
    """Current and expected head, and every difference between the schema and the migrations."""

    status: SchemaStatus
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Return whether the schema is exactly the one expected."""
        return self.status.at_head and not self.differences


@frozen
class Migrated:
    """What one run of `migrate` did, and what it left undone."""

    stamped: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


def plain_url(url: str) -> str:
    """Return a PostgreSQL URL without a driver's name, as asyncpg and libpq read it."""
    plain, found = re.subn(r"\Apostgres(ql)?(\+\w+)?://", "postgresql://", url)
    if not found:
        scheme = url.partition(":")[0] if "://" in url else "nothing"
        raise SchemaError(
            f"The database URL must begin with postgresql://, it begins with {scheme}. "
            "itdesk keeps its data in PostgreSQL 15 or later and nowhere else."
        )
    return plain


class Migrations:
    """The migrations shipped with this program and the database they are for."""

    def __init__(
        self,
        url: str,
        *,
        directory: Path | None = None,
        turn_timeout: float = 120,
        lock_timeout: float = 5,
    ) -> None:
        self._url = plain_url(url)
        self._directory = directory or shipped()
        self._turn_timeout = turn_timeout
        self._lock_timeout = lock_timeout
        self._files = sorted(
            path
            for path in self._directory.glob("*.sql")
            if not path.name.endswith(".rollback.sql")
        )
        self.known = tuple(path.stem for path in self._files)

    async def wait(self, timeout: float) -> str | None:
        """Return None as soon as the server accepts connections, or why it does not in time."""
        deadline = time.monotonic() + timeout
        problem = "no attempt was made"
        while (left := deadline - time.monotonic()) > 0:
            try:
                conn = await asyncpg.connect(self._url, timeout=left)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
                problem = str(exc).strip() or type(exc).__name__
            else:
                await conn.close()
                return None
            await asyncio.to_thread(time.sleep, max(0.0, min(0.2, deadline - time.monotonic())))
        return problem

    async def status(self, conn: "asyncpg.Connection[asyncpg.Record]") -> SchemaStatus:
        """Return where the database stands, by one SELECT."""
        try:
            rows = await conn.fetch("SELECT migration_id FROM _yoyo_migration")
        except asyncpg.UndefinedTableError:
            rows = []
        return SchemaStatus.of({row[0] for row in rows}, self.known)

    async def unchanged(self, conn: "asyncpg.Connection[asyncpg.Record]") -> bool:
        """Return whether all is as it was when `migrate` last found it to be what it should be."""
        return bool(self.known and await catalogue.unchanged(conn, self.known[-1]))

    # In these three the migrator is made in the thread: importing it takes a tenth of a second.

    async def migrate(self, stamp: Stamp = "auto") -> Migrated:
        """Bring the schema to head, or raise and leave it as it was before the failed step."""
        return await asyncio.to_thread(lambda: self._migrator().migrate(stamp))

    async def verify(self) -> Verification:
        """Compare the database with the migrations: what is marked, and what is really there."""
        return await asyncio.to_thread(lambda: self._migrator().verify())

    async def downgrade(self, to: str) -> tuple[str, ...]:
        """Roll back every migration after `to` (an id, its number, or `base`), newest first."""
        return await asyncio.to_thread(lambda: self._migrator().downgrade(to))

    def new(self, name: str) -> Path:
        """Return the path of a new, empty migration; its rollback lies beside it."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if not slug:
            raise SchemaError(f"{name!r} has no letter or digit that could name a migration.")
        number = int(self.known[-1][:4]) + 1 if self.known else 1
        path = self._directory / f"{number:04}-{slug}.sql"
        depends = f"-- depends: {self.known[-1]}\n" if self.known else ""
        with path.open("x") as file:
            file.write(f"-- Say in one sentence what the tables are for.\n{depends}\n")
        path.with_suffix(".rollback.sql").touch(exist_ok=False)
        return path

    def _migrator(self) -> "Migrator":
        # Imported here: psycopg and yoyo are 10 MiB, and a schema at head needs neither.
        from itdesk.store.migrator import Migrator

        return Migrator(
            self._url,
            self._files,
            turn_timeout=self._turn_timeout,
            lock_timeout=self._lock_timeout,
        )


def shipped() -> Path:
    """Return the directory of the migrations that are installed with this program."""
    try:
        return Path(str(importlib.resources.files("itdesk_migrations")))
    except ModuleNotFoundError as exc:
        raise SchemaError(
            "The migrations are missing: itdesk is not installed completely. Run `pip install` "
            "on its wheel, or `pip install -e .` in its sources."
        ) from exc
