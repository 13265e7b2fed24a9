"""The schema: is it there, is it ours, is it new enough; and the steps that make it so.

Hidden here: yoyo applies the files, but under our own advisory lock, each file in one transaction
with its mark, and only onto a structure that was compared with what the files produce.
"""

import asyncio
import importlib.resources
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import asyncpg
import psycopg
from psycopg.conninfo import conninfo_to_dict
from yoyo.migrations import Migration, read_sql_migration

from itdesk.errors import SchemaError, Unavailable
from itdesk.store.atomic_yoyo import AtomicBackend
from itdesk.store.structure import Structure, describe, place, rehearse

Stamp = Literal["auto", "never", "only"]
_T = TypeVar("_T")

_LOCK = 0x69746465736B  # "itdesk"; advisory locks are per database
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


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """Which migrations a database has seen, and which this program knows."""

    current: str | None
    expected: str | None
    pending: tuple[str, ...]
    unknown: tuple[str, ...]

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


@dataclass(frozen=True, slots=True)
class Verification:
    """Current and expected head, and every difference between the schema and the migrations."""

    status: SchemaStatus
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Return whether the schema is exactly the one expected."""
        return self.status.at_head and not self.differences


@dataclass(frozen=True, slots=True)
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
        return self._status({row[0] for row in rows})

    async def migrate(self, stamp: Stamp = "auto") -> Migrated:
        """Bring the schema to head, or raise and leave it as it was before the failed step."""
        return await _aside(self._migrate, stamp)

    async def verify(self) -> Verification:
        """Compare the database with the migrations: what is marked, and what is really there."""
        return await _aside(self._verify)

    async def downgrade(self, to: str) -> tuple[str, ...]:
        """Roll back every migration after `to` (an id, its number, or `base`), newest first."""
        return await _aside(self._downgrade, to)

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

    # Everything below runs in a worker thread: yoyo knows no asyncio.

    def _migrate(self, stamp: Stamp) -> Migrated:
        with self._locked() as conn:
            marked = _marked(conn)
            status = self._status(marked or set())
            if status.unknown:
                status.require()
            reached = self._reached(conn, marked or set())
            present = self.known[:reached]
            if stamp == "only":
                stamps = tuple(name for name in present if name in status.pending)
                if not present:
                    raise SchemaDrift(
                        "There is nothing to stamp: the database has no table of itdesk. "
                        "Run `itdesk db migrate` to create them."
                    )
            elif marked is None and present:
                if stamp == "never":
                    raise SchemaDrift(
                        f"The database has the tables of {present[-1]} but no record of its "
                        "migrations, and --stamp never forbids to write one. Nothing was "
                        "changed. Run `itdesk db migrate` to record and complete them."
                    )
                stamps = present
            else:
                stamps = ()
            left = tuple(name for name in status.pending if name not in stamps)
            apply = () if stamp == "only" else left
            if stamps or apply:
                with self._backend() as backend:
                    if stamps:
                        backend.mark_migrations([self._load(name) for name in stamps])
                    for name in apply:
                        with _explained(name):
                            backend.apply_one(self._load(name))
            return Migrated(stamps, apply, () if apply else left)

    def _verify(self) -> Verification:
        with self._connection() as conn:
            status = self._status(_marked(conn) or set())
            _, differences = place(describe(conn), self._rehearse(conn)[-1:])
            return Verification(status, tuple(differences))

    def _downgrade(self, to: str) -> tuple[str, ...]:
        keep = self._position(to)
        with self._locked() as conn:
            marked = _marked(conn) or set()
            status = self._status(marked)
            if status.unknown:
                status.require()
            undo = tuple(name for name in reversed(self.known[keep:]) if name in marked)
            if undo:
                with self._backend() as backend:
                    for name in undo:
                        with _explained(name):
                            backend.rollback_one(self._load(name))
            return undo

    def _position(self, to: str) -> int:
        if to in ("base", "0", "0000"):
            return 0
        for index, name in enumerate(self.known, 1):
            if to in (name, name[:4]):
                return index
        raise SchemaError(f"There is no migration {to!r}. Known are base, {', '.join(self.known)}.")

    def _reached(self, conn: psycopg.Connection, marked: set[str]) -> int:
        """Return how many migrations the schema really has, or refuse a schema that is none."""
        recorded = max((i for i, name in enumerate(self.known, 1) if name in marked), default=0)
        reached, differences = place(describe(conn), self._rehearse(conn)[recorded:])
        if reached is None:
            raise SchemaDrift(
                "The schema is not what any version of itdesk makes; nothing was changed:\n  "
                + "\n  ".join(differences)
                + "\nRestore a backup, or repair these by hand and run `itdesk db migrate` again.",
                details={"differences": differences},
            )
        return recorded + reached

    def _rehearse(self, conn: psycopg.Connection) -> list[Structure]:
        try:
            return rehearse(conn, [read_sql_migration(str(path))[2] for path in self._files])
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SchemaError(
                "The database user may not create the temporary schema in which the migrations "
                "are rehearsed. Run `GRANT CREATE ON DATABASE ... TO ...` as the owner."
            ) from exc

    def _status(self, marked: set[str]) -> SchemaStatus:
        return SchemaStatus(
            current=max((name for name in marked if _OURS.fullmatch(name)), default=None),
            expected=self.known[-1] if self.known else None,
            pending=tuple(name for name in self.known if name not in marked),
            unknown=tuple(sorted(n for n in marked if n not in self.known and _OURS.fullmatch(n))),
        )

    def _load(self, name: str) -> Any:
        # yoyo resolves "depends" among all the migrations that were ever built.
        built = {path.stem: Migration(path.stem, str(path), "") for path in self._files}
        return built[name]

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        try:
            conn = psycopg.connect(**self._conninfo(), autocommit=True)
        except psycopg.OperationalError as exc:
            raise Unavailable(
                f"The database cannot be reached: {str(exc).strip()}",
                code="E_DATABASE_UNAVAILABLE",
            ) from exc
        with conn:
            if conn.info.server_version < 150000:
                raise SchemaError(
                    f"PostgreSQL {conn.info.server_version // 10000} is too old: itdesk needs 15 "
                    "or later."
                )
            if conn.info.parameter_status("server_encoding") != "UTF8":
                raise SchemaError(
                    "The database is not encoded in UTF-8 and would lose text. Create it with "
                    "`createdb --template=template0 --encoding=UTF8 NAME`."
                )
            yield conn

    @contextmanager
    def _locked(self) -> Iterator[psycopg.Connection]:
        """Hold the right to migrate this database.

        Polled: a session that waits inside pg_advisory_lock holds a snapshot, and CREATE INDEX
        CONCURRENTLY of the one who migrates would wait for it for ever.
        """
        deadline = time.monotonic() + self._turn_timeout
        with self._connection() as conn:
            while conn.execute("SELECT pg_try_advisory_lock(%s)", [_LOCK]).fetchone() != (True,):
                if time.monotonic() > deadline:
                    raise SchemaBusy(
                        "Another itdesk has been migrating this database for "
                        f"{self._turn_timeout:g} s. See pg_locks (locktype advisory) for who it is."
                    )
                time.sleep(0.1)
            yield conn  # closing the connection releases the lock, as dying does

    @contextmanager
    def _backend(self) -> "Iterator[AtomicBackend]":
        backend = AtomicBackend(self._conninfo(), self._lock_timeout)
        with backend:
            backend.prepare()
            backend.break_lock()  # left by a dead runner: a live one would hold our lock
            with backend.lock():
                yield backend

    def _conninfo(self) -> dict[str, Any]:
        try:
            given = conninfo_to_dict(self._url)
        except psycopg.ProgrammingError:
            raise SchemaError(
                "The database URL cannot be read; its parts must be percent-encoded where they "
                "contain : / @ or %."
            ) from None
        return {"application_name": "itdesk-migrate", "connect_timeout": 10, **given}


def shipped() -> Path:
    """Return the directory of the migrations that are installed with this program."""
    try:
        return Path(str(importlib.resources.files("itdesk_migrations")))
    except ModuleNotFoundError as exc:
        raise SchemaError(
            "The migrations are missing: itdesk is not installed completely. Run `pip install` "
            "on its wheel, or `pip install -e .` in its sources."
        ) from exc


async def _aside(work: Callable[..., _T], *args: Any) -> _T:
    try:
        return await asyncio.to_thread(work, *args)
    except psycopg.OperationalError as exc:
        raise Unavailable(
            f"The database went away: {str(exc).strip()}. Nothing is half done; run the command "
            "again when it is back.",
            code="E_DATABASE_UNAVAILABLE",
        ) from exc


def _marked(conn: psycopg.Connection) -> set[str] | None:
    if conn.execute("SELECT to_regclass('_yoyo_migration')").fetchall() == [(None,)]:
        return None
    return {row[0] for row in conn.execute("SELECT migration_id FROM _yoyo_migration")}


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.LockNotAvailable as exc:
        raise SchemaBusy(
            f"Migration {name} waited for a lock that another session holds, and gave up so as "
            "not to hold up the desk. Nothing of it was applied; run `itdesk db migrate` again."
        ) from exc
    except psycopg.OperationalError:
        raise  # not the migration's fault
    except psycopg.Error as exc:
        raise SchemaError(
            f"Migration {name} failed and nothing of it was applied: {str(exc).strip()}"
        ) from exc
