"""Each migration leaves the version before it able to work: it adds, and takes nothing away."""

import asyncpg
import pytest
import sqlparse

from tests.support.postgres import MIGRATIONS

KNOWN = sorted(p.stem for p in MIGRATIONS.glob("*.sql") if ".rollback" not in p.name)
OURS = "table_schema = 'public' AND table_name NOT LIKE '%yoyo%'"

Columns = dict[tuple[str, str], tuple[str, bool, bool]]
Rules = dict[tuple[str, str], str]


async def _shape(conn: asyncpg.Connection) -> tuple[Columns, Rules]:
    """Return every column with its type and whether it may be left out, and every constraint."""
    columns = await conn.fetch(
        f"""SELECT table_name, column_name, udt_name, is_nullable = 'YES',
                   column_default IS NOT NULL OR is_identity = 'YES' OR is_generated = 'ALWAYS'
            FROM information_schema.columns WHERE {OURS}"""  # noqa: S608 - a constant
    )
    rules = await conn.fetch(
        """SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
           WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u', 'f')
           UNION ALL
           SELECT indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid)
           FROM pg_index WHERE indisunique AND NOT indisprimary
             AND indrelid::regclass::text NOT LIKE '%yoyo%' AND indrelid > 16383"""
    )
    return (
        {(table, name): (kind, free, given) for table, name, kind, free, given in columns},
        {(table, name): text for table, name, text in rules},
    )


def _broken(before: tuple[Columns, Rules], after: tuple[Columns, Rules]) -> list[str]:
    """Return what the version that knows only `before` would stumble over."""
    (old, old_rules), (new, new_rules) = before, after
    tables = {table for table, _ in old}
    problems = []
    for key, (kind, free, given) in old.items():
        name = ".".join(key)
        if key not in new:
            problems.append(f"{name} is gone")
            continue
        now_kind, now_free, now_given = new[key]
        if now_kind != kind:
            problems.append(f"{name} was {kind}, is {now_kind}")
        if (free or given) and not (now_free or now_given):
            problems.append(f"{name} must be given now")
    for key, (_, free, given) in new.items():
        if key not in old and key[0] in tables and not (free or given):
            problems.append(f"{'.'.join(key)} is new and must be given")
    for key, text in new_rules.items():
        if key[0] in tables and old_rules.get(key) != text and not _on_new(key[0], text, old):
            problems.append(f"{'.'.join(key)} forbids what was allowed: {text}")
    return problems


def _on_new(table: str, rule: str, old: Columns) -> bool:
    """Return whether a rule speaks of nothing that the version before writes."""
    known = {name for owner, name in old if owner == table}
    words = {word.strip("(),:'\"") for word in rule.replace("(", " ").split()}
    return not words & known


async def test_every_migration_leaves_the_version_before_it_working(
    empty_database_url: str,
) -> None:
    """O-06, S0-06: column by column and rule by rule, each step against the one before."""
    conn = await asyncpg.connect(empty_database_url)
    problems, before = [], None
    for name in KNOWN:
        # One by one: some of them do not run inside a transaction.
        for statement in sqlparse.split((MIGRATIONS / f"{name}.sql").read_text()):
            await conn.execute(statement)
        after = await _shape(conn)
        if before is not None:
            problems += [f"{name}: {problem}" for problem in _broken(before, after)]
        before = after
    await conn.close()
    assert problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("DROP TABLE jobs CASCADE", "jobs.id is gone"),
        ("ALTER TABLE tickets DROP COLUMN resolution", "tickets.resolution is gone"),
        ("ALTER TABLE tickets RENAME COLUMN title TO subject", "tickets.title is gone"),
        ("ALTER TABLE tickets ADD COLUMN x text NOT NULL", "tickets.x is new and must be given"),
        ("ALTER TABLE tickets ALTER resolution SET NOT NULL", "tickets.resolution must be given"),
        ("ALTER TABLE tickets ALTER resolution TYPE varchar(50)", "was text, is varchar"),
        ("ALTER TABLE tickets ADD CHECK (title <> 'x')", "forbids what was allowed"),
        ("CREATE UNIQUE INDEX one ON tickets (title)", "forbids what was allowed"),
    ],
)
async def test_what_the_version_before_stumbles_over_is_seen(
    database_url: str, change: str, problem: str
) -> None:
    """O-06: the test above could not fail otherwise."""
    conn = await asyncpg.connect(database_url)
    before = await _shape(conn)
    await conn.execute(change)
    found = _broken(before, await _shape(conn))
    await conn.close()
    assert any(problem in one for one in found), found
