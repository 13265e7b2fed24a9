"""What the current schema is made of, asked of the server's catalogue, whoever asks it.

A comparison with the migrations takes the server half a second. Its result stays with the table of
their marks, as a comment: the head, and a fingerprint of all that was there. Another version of the
server may put the same things in other words; then one compares again.
"""

from typing import LiteralString

import asyncpg

# One row an object of current_schema(). Constraints of kind n are NOT NULL, which PostgreSQL 18
# began to list: the column already says it. An index behind a constraint is the constraint.
DESCRIBE: LiteralString = """
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

FINGERPRINT: LiteralString = f"""
SELECT md5(string_agg(name || chr(10) || what, chr(10) ORDER BY name COLLATE "C"))
  FROM ({DESCRIBE}) AS described (name, what)
"""  # noqa: S608 - of literals only


async def unchanged(conn: "asyncpg.Connection[asyncpg.Record]", head: str) -> bool:
    """Return whether all is as it was when it was last found to be what `head` makes."""
    remembered = "SELECT obj_description(to_regclass('_yoyo_migration'), 'pg_class')"
    found: str = await conn.fetchval(FINGERPRINT)
    return bool(await conn.fetchval(remembered) == f"{head} {found}")
