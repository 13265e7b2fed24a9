"""yoyo's PostgreSQL backend, with a migration and its mark in one transaction.

Hidden here: yoyo commits a migration on one connection and marks it on another, later. A death in
between leaves a schema that yoyo no longer understands; here there is no in between.
"""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.internalmigrations import mark_schema_version, v2
from yoyo.migrations import default_migration_table


class _Quiet(psycopg.Cursor[Any]):
    """A cursor whose rows yoyo does not print: it looks at the description first."""

    description = None


class AtomicBackend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's backend, with a migration and its mark in one transaction."""

    def __init__(self, conninfo: Mapping[str, Any], lock_timeout: float) -> None:
        self._lock_timeout = lock_timeout
        # Everything goes in as libpq's own keywords: yoyo's URL parser knows only some.
        uri = DatabaseURI("postgresql+psycopg", None, None, None, None, None, dict(conninfo))
        super().__init__(uri, default_migration_table)

    def copy(self) -> "AtomicBackend":
        """Return a backend with a connection of its own."""
        return AtomicBackend(self.uri.args, self._lock_timeout)

    def connect(self, dburi: DatabaseURI) -> Any:
        """Return a connection whose statements do not hold up the desk, nor outlive the runner."""
        conn = super().connect(dburi)
        conn.cursor_factory = _Quiet
        conn.execute(f"SET lock_timeout = {self._lock_timeout * 1000:.0f}")
        conn.execute("SET statement_timeout = 0")
        with suppress(psycopg.Error):  # a server on Windows cannot
            conn.execute("SET client_connection_check_interval = '1s'")
        return conn

    def prepare(self) -> None:
        """Create those tables of yoyo that are missing; yoyo itself survives only all or none."""
        self.create_lock_table()
        with self.transaction():
            tables = set(self.list_tables())
            for table, create in (
                (self.migration_table, v2.create_migration_table),
                (self.log_table, v2.create_log_table),
                (self.version_table, v2.create_version_table),
            ):
                if table not in tables:
                    create(self)
            if self.execute(f"SELECT FROM {self.version_table_quoted}").rowcount == 0:  # noqa: S608
                mark_schema_version(self, 2)

    def log_migration(self, migration: Any, operation: str) -> None:
        """Note what was done, without yoyo's look at the login name and the full host name.

        A bare uid in a container has no login name, and a dead resolver takes half a minute.
        """
        statement = """
            INSERT INTO _yoyo_log (id, migration_hash, migration_id, operation, username, hostname,
                                   created_at_utc)
            VALUES (:id, :hash, :name, :operation, :user, :host, now() AT TIME ZONE 'utc')"""
        values = {
            "id": str(uuid4()),
            "hash": migration.hash,
            "name": migration.id,
            "operation": operation,
            "user": f"uid {os.getuid()}",
            "host": socket.gethostname(),
        }
        self.execute(statement, values)

    def apply_one(self, migration: Any, force: bool = False, mark: bool = True) -> None:
        """Apply a migration and mark it, both or neither."""
        migration.load()
        if not migration.use_transactions:
            super().apply_one(migration, force, mark)
            return
        with self.transaction():
            migration.process_steps(self, "apply")
            self.log_migration(migration, "apply")
            self.mark_one(migration, log=False)

    def rollback_one(self, migration: Any, force: bool = False) -> None:
        """Roll a migration back and take its mark away, both or neither."""
        migration.load()
        if not migration.use_transactions:
            super().rollback_one(migration, force)
            return
        with self.transaction():
            migration.process_steps(self, "rollback")
            self.log_migration(migration, "rollback")
            self.unmark_one(migration, log=False)
