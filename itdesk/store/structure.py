"""What a database is made of, and what our migrations would make of it.

Hidden here: the expected structure is never written down. The migrations are run into a scratch
schema inside a transaction that is rolled back, and the same server describes both schemas, so
that no difference between PostgreSQL versions can look like a difference of ours.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from uuid import uuid4

import psycopg
from psycopg import sql

from itdesk.store.catalogue import DESCRIBE, FINGERPRINT

Structure = Mapping[str, str]  # "column tickets.title" -> "text not null"


def describe(conn: psycopg.Connection) -> Structure:
    """Return the structure of the current schema."""
    return dict(conn.execute(DESCRIBE).fetchall())


def remember(conn: psycopg.Connection, head: str) -> None:
    """Write down that the schema, as it is now, is what the migrations up to `head` make."""
    (found,) = conn.execute(FINGERPRINT).fetchone() or ("",)
    statement = sql.SQL("COMMENT ON TABLE _yoyo_migration IS {}").format(f"{head} {found}")
    # Whoever may migrate without owning that table has to compare each time.
    with suppress(psycopg.errors.InsufficientPrivilege):
        conn.execute(statement)


def rehearse(conn: psycopg.Connection, migrations: Sequence[Sequence[str]]) -> list[Structure]:
    """Return the structure before the first and after each migration, leaving no trace."""
    scratch = sql.Identifier(f"itdesk_rehearsal_{uuid4().hex}")
    with conn.transaction(force_rollback=True):
        conn.execute(sql.SQL("CREATE SCHEMA {}").format(scratch))
        conn.execute(sql.SQL("SET LOCAL search_path = {}").format(scratch))
        steps = [describe(conn)]
        for statements in migrations:
            for statement in statements:
                # A transaction cannot build an index concurrently; the result is the same.
                statement = re.sub(r"\bCONCURRENTLY\b", "", statement, flags=re.IGNORECASE)
                conn.execute(statement.encode())
            steps.append(describe(conn))
    return steps


def place(live: Structure, steps: Sequence[Structure]) -> tuple[int | None, list[str]]:
    """Return after which step `live` stands, or None and how it differs from the nearest one."""
    known = {name for step in steps for name in step}
    found = [_differences(live, step, known) for step in steps]
    for index, differences in enumerate(found):
        if not differences:
            return index, []
    return None, min(reversed(found), key=len)


def _differences(live: Structure, wanted: Structure, known: set[str]) -> list[str]:
    absent = {name.split()[1] for name in wanted if name.startswith("table ") and name not in live}
    problems = [f"table {table} is missing" for table in sorted(absent)]
    for name in sorted(wanted):
        table = name.split()[1].partition(".")[0]
        if table in absent or live.get(name) == wanted[name]:
            continue
        if name not in live:
            problems.append(f"{name} is missing")
        elif name.startswith("function "):
            problems.append(f"{name} has another body")
        else:
            problems.append(f"{name} is {live[name]!r} instead of {wanted[name]!r}")
    for name in sorted(live.keys() - wanted.keys()):
        # Tables, indexes and functions of others are no concern of ours; what changes the
        # meaning of our own tables is.
        kind, owner = name.split()[0], "table " + name.split()[1].partition(".")[0]
        added = kind in ("column", "constraint", "trigger") and owner in wanted
        if name in known or added:
            problems.append(f"{name} should not be there")
    return problems
