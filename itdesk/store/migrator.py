"""The steps that make the schema, as yoyo takes them: in a thread, for it knows no asyncio.

Hidden here: yoyo applies the files, but under our own advisory lock, each file in one transaction
with its mark, and only onto a structure that was compared with what the files produce.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from yoyo.migrations import Migration, read_sql_migration

from itdesk.errors import SchemaError, Unavailable
from itdesk.store.atomic_yoyo import AtomicBackend
from itdesk.store.migrations import (
    Migrated,
    SchemaBusy,
    SchemaDrift,
    SchemaStatus,
    Stamp,
    Verification,
)
from itdesk.store.structure import Structure, describe, place, rehearse, remember

_LOCK = 0x69746465736B  # "itdesk"; advisory locks are per database


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as exc:
        raise Unavailable(
            f"The database went away: {str(exc).strip()}. Nothing is half done; run the command "
            "again when it is back.",
            code="E_DATABASE_UNAVAILABLE",
        ) from exc


class Migrator:
    """Whoever migrates one database, with these files."""

    def __init__(
        self, url: str, files: Sequence[Path], *, turn_timeout: float, lock_timeout: float
    ) -> None:
        self._url = url
        self._files = files
        self._known = tuple(path.stem for path in files)
        self._turn_timeout = turn_timeout
        self._lock_timeout = lock_timeout

    @_reachable()
    def migrate(self, stamp: Stamp) -> Migrated:
        """Bring the schema to head, or raise and leave it as it was before the failed step."""
        with self._locked() as conn:
            marked = _marked(conn)
            status = SchemaStatus.of(marked or set(), self._known)
            if status.unknown:
                status.require()
            steps = self._rehearse(conn)
            reached = self._reached(conn, marked or set(), steps)
            present = self._known[:reached]
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
            if self._known and place(describe(conn), steps[-1:])[0] is not None:
                remember(conn, self._known[-1])
            return Migrated(stamps, apply, () if apply else left)

    @_reachable()
    def verify(self) -> Verification:
        """Compare what is marked, and what is really there, with the migrations."""
        with self._connection() as conn:
            status = SchemaStatus.of(_marked(conn) or set(), self._known)
            _, differences = place(describe(conn), self._rehearse(conn)[-1:])
            return Verification(status, tuple(differences))

    @_reachable()
    def downgrade(self, to: str) -> tuple[str, ...]:
        """Roll back every migration after `to`, newest first."""
        keep = self._position(to)
        with self._locked() as conn:
            marked = _marked(conn) or set()
            status = SchemaStatus.of(marked, self._known)
            if status.unknown:
                status.require()
            undo = tuple(name for name in reversed(self._known[keep:]) if name in marked)
            if undo:
                with self._backend() as backend:
                    for name in undo:
                        with _explained(name):
                            backend.rollback_one(self._load(name))
            return undo

    def _position(self, to: str) -> int:
        if to in ("base", "0", "0000"):
            return 0
        for index, name in enumerate(self._known, 1):
            if to in (name, name[:4]):
                return index
        raise SchemaError(
            f"There is no migration {to!r}. Known are base, {', '.join(self._known)}."
        )

    def _reached(
        self, conn: psycopg.Connection, marked: set[str], steps: Sequence[Structure]
    ) -> int:
        """Return how many migrations the schema really has, or refuse a schema that is none."""
        recorded = max((i for i, name in enumerate(self._known, 1) if name in marked), default=0)
        reached, differences = place(describe(conn), steps[recorded:])
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
