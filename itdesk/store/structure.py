"""What a database is made of, and what our migrations would make of it.

Hidden here: the expected structure is never written down. The migrations are run into a scratch
schema inside a transaction that is rolled back, and the same server describes both schemas, so
that no difference between PostgreSQL versions can look like a difference of ours.
"""

import re
from collections.abc import Mapping, Sequence
from typing import LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql

Structure = Mapping[str, str]  # "column tickets.title" -> "text not null"

# One row an object of current_schema(). Constraints of kind n are NOT NULL, which PostgreSQL 18
# began to list: the column already says it. An index behind a constraint is the constraint.
_DESCRIBE: LiteralString = """
WITH ours AS (
    SELECT oid, relname FROM pg_class
     WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
)
SELECT 'table ' || relname, '' FROM ours
UNION ALL
SELECT 'column ' || relname || '.' || attname,
       concat_ws(' ', format_type(atttypid, atttypmod),
                 CASE WHEN attnotnull THEN 'not null' END,
                 CASE WHEN attidentity <> '' THEN 'identity ' || attidentity::text END,
                 CASE WHEN attgenerated <> '' THEN 'generated ' || attgenerated::text END,
                 'default ' || pg_get_expr(adbin, adrelid, true))
  FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL
SELECT 'constraint ' || relname || '.' || conname, pg_get_constraintdef(c.oid, true)
  FROM ours JOIN pg_constraint AS c ON conrelid = ours.oid AND contype IN ('c', 'f', 'p', 'u', 'x')
UNION ALL
SELECT 'index ' || relname || '.' || indexrelid::regclass::text,
       pg_get_indexdef(indexrelid, 0, true)
  FROM ours JOIN pg_index ON indrelid = ours.oid AND indisvalid
 WHERE NOT EXISTS (SELECT FROM pg_constraint
                   WHERE conindid = indexrelid AND contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'trigger ' || relname || '.' || tgname,
       pg_get_triggerdef(t.oid, true) || CASE tgenabled WHEN 'O' THEN '' ELSE ' (disabled)' END
  FROM ours JOIN pg_trigger AS t ON tgrelid = ours.oid AND NOT tgisinternal
UNION ALL
SELECT 'function ' || proname || '(' || pg_get_function_identity_arguments(oid) || ')',
       prorettype::regtype::text || ' ' || provolatile::text || ' ' || md5(prosrc)
  FROM pg_proc WHERE pronamespace = current_schema()::regnamespace AND prokind = 'f'
"""


def describe(conn: psycopg.Connection) -> Structure:
    """Return the structure of the current schema."""
    return dict(conn.execute(_DESCRIBE).fetchall())


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
