"""Projects as rows: each function is one statement."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import Conflict, NotFound
from itdesk.model import Project
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

_COLUMNS = "id, key, name, description, source, created_at, updated_at"


def _project(row: Any) -> Project:
    return Project(
        id=row["id"],
        key=row["key"],
        name=row["name"],
        description=row["description"],
        source=row["source"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _key_exists() -> Conflict:
    return Conflict("There is a project with this key already.", code="E_PROJECT_KEY_EXISTS")


async def get(conn: Any, project_id: UUID, *, lock: bool = False) -> Project:
    """Read a project; with `lock`, nobody takes a number of it until the transaction ends."""
    query = f"""
        SELECT {_COLUMNS} FROM projects WHERE id = $1 {"FOR UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, project_id)
    if row is None:
        raise NotFound.of("project")
    return _project(row)


async def create(
    conn: Any, *, id: UUID, key: str, name: str, description: str, created_by: UUID | None
) -> Project:
    """Add a project that numbers its own tickets; Conflict when the key is taken."""
    query = f"""
        INSERT INTO projects (id, key, name, description, created_by)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (key) DO NOTHING
        RETURNING {_COLUMNS}
    """  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, id, key, name, description, created_by)
    if row is None:
        raise _key_exists()
    return _project(row)


async def ensure(conn: Any, *, id: UUID, key: str, first_number: int) -> None:
    """Add a local project unless there is one; one that never gave a number starts as asked."""
    # The first migration brings a project that starts at 1001; numbers are never given twice.
    query = """
        INSERT INTO projects (id, key, name, next_number) VALUES ($1, $2, $2, $3)
        ON CONFLICT (key) DO UPDATE SET next_number = excluded.next_number
        WHERE projects.source = 'local'
          AND NOT EXISTS (SELECT 1 FROM tickets WHERE project_id = projects.id)
          AND (projects.next_number < excluded.next_number
               OR projects.id = '01900000-0000-7000-8000-000000000001'
                  AND projects.next_number = 1001)
    """
    await conn.execute(query, id, key, first_number)


_SETTABLE = frozenset({"key", "name", "description"})


async def update(conn: Any, project_id: UUID, fields: Mapping[str, Any]) -> Project:
    """Set these columns; Conflict when the key is taken."""
    values: list[Any] = [project_id]
    sets = ["updated_at = now()"]
    for column, value in fields.items():
        if column not in _SETTABLE:
            raise ValueError(f"projects.{column} is not set this way")
        values.append(value)
        sets.append(f"{column} = ${len(values)}")
    query = f"""
        UPDATE projects SET {", ".join(sets)} WHERE id = $1 RETURNING {_COLUMNS}
    """  # noqa: S608 - columns come from the list above, values are parameters
    try:
        row = await conn.fetchrow(query, *values)
    except asyncpg.UniqueViolationError as exc:
        raise _key_exists() from exc
    if row is None:
        raise NotFound.of("project")
    return _project(row)


async def exists(conn: Any, key: str) -> bool:
    """Return whether there is a project with this key."""
    found: bool = await conn.fetchval("SELECT EXISTS (SELECT FROM projects WHERE key = $1)", key)
    return found


async def has_tickets(conn: Any, project_id: UUID) -> bool:
    """Return whether a project has tickets."""
    query = "SELECT EXISTS (SELECT 1 FROM tickets WHERE project_id = $1)"
    found: bool = await conn.fetchval(query, project_id)
    return found


async def delete(conn: Any, project_id: UUID) -> None:
    """Remove a project without tickets."""
    await conn.execute("DELETE FROM projects WHERE id = $1", project_id)


async def list_page(conn: Any, window: Window) -> Page[Project]:
    """Return one page of the projects, in the order of their keys."""
    after, values = "true", list[Any]()
    if window.cursor is not None:
        values += decode_cursor(window.cursor, "projects", (str,))
        after = "key > $1"
    query = f"""
        SELECT {_COLUMNS} FROM projects WHERE {after}
        ORDER BY key LIMIT {window.limit + 1:d} OFFSET {window.offset:d}
    """  # noqa: S608 - literals of this function, values are parameters
    found = [_project(row) for row in await conn.fetch(query, *values)]
    return Page.cut(found, window.limit, lambda project: encode_cursor("projects", project.key))


async def count(conn: Any) -> int:
    """Return how many projects there are."""
    total: int = await conn.fetchval("SELECT count(*) FROM projects")
    return total
