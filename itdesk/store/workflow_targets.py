"""Addresses that rules may call, as rows; a secret is written, and read only to sign with."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.errors import Conflict, NotFound
from itdesk.frozen import frozen
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor


@frozen
class WorkflowTarget:
    """An address that rules may call; its secret is never shown."""

    id: UUID
    name: str
    url: str
    internal_comments: bool
    created_at: datetime
    updated_at: datetime


_TARGET = "id, name, url, internal_comments, created_at, updated_at"


def _target(row: Any) -> WorkflowTarget:
    return WorkflowTarget(**{name: row[name] for name in WorkflowTarget.__match_args__})


def _name_taken() -> Conflict:
    return Conflict(
        "There is a target with this name already.", code="E_WORKFLOW_TARGET_NAME_EXISTS"
    )


async def list_page(conn: Any, window: Window) -> Page[WorkflowTarget]:
    """Return one page of the targets, by name."""
    (after,) = (
        decode_cursor(window.cursor, "targets", (str,)) if window.cursor is not None else (None,)
    )
    query = f"""
        SELECT {_TARGET} FROM workflow_targets WHERE $1::text IS NULL OR name > $1
        ORDER BY name LIMIT $2 OFFSET $3
    """  # noqa: S608 - a literal of this module
    found = [
        _target(row) for row in await conn.fetch(query, after, window.limit + 1, window.offset)
    ]
    return Page.cut(found, window.limit, lambda target: encode_cursor("targets", target.name))


async def count(conn: Any) -> int:
    """Return how many targets there are."""
    total: int = await conn.fetchval("SELECT count(*) FROM workflow_targets")
    return total


async def get(conn: Any, target_id: UUID, *, lock: bool = False) -> WorkflowTarget:
    """Read a target; with `lock`, hold its row until the commit."""
    query = f"""
        SELECT {_TARGET} FROM workflow_targets WHERE id = $1 {"FOR UPDATE" if lock else ""}
    """  # noqa: S608 - literals of this module
    row = await conn.fetchrow(query, target_id)
    if row is None:
        raise NotFound("There is no such target.", code="E_WORKFLOW_TARGET_NOT_FOUND")
    return _target(row)


async def secret_of(conn: Any, target_id: UUID) -> str:
    """Return what calls of a target are signed with."""
    found: str = await conn.fetchval("SELECT secret FROM workflow_targets WHERE id = $1", target_id)
    return found


async def create(
    conn: Any, *, id: UUID, name: str, url: str, secret: str, internal_comments: bool
) -> WorkflowTarget:
    """Add a target; Conflict when the name is taken."""
    query = f"""
        INSERT INTO workflow_targets (id, name, url, secret, internal_comments)
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING RETURNING {_TARGET}
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(query, id, name, url, secret, internal_comments)
    if row is None:
        raise _name_taken()
    return _target(row)


_SETTABLE = frozenset({"name", "url", "secret", "internal_comments"})


async def update(conn: Any, target_id: UUID, fields: Mapping[str, Any]) -> WorkflowTarget:
    """Set these columns; Conflict when the name is taken."""
    values: list[Any] = [target_id]
    sets = ["updated_at = now()"]
    for column, value in fields.items():
        if column not in _SETTABLE:
            raise ValueError(f"workflow_targets.{column} is not set this way")
        values.append(value)
        sets.append(f"{column} = ${len(values)}")
    query = f"""
        UPDATE workflow_targets SET {", ".join(sets)} WHERE id = $1 RETURNING {_TARGET}
    """  # noqa: S608 - columns come from the list above, values are parameters
    try:
        return _target(await conn.fetchrow(query, *values))
    except asyncpg.UniqueViolationError as exc:
        raise _name_taken() from exc


async def delete(conn: Any, target_id: UUID) -> None:
    """Remove a target."""
    await conn.execute("DELETE FROM workflow_targets WHERE id = $1", target_id)


async def rules_calling(conn: Any, target_id: UUID) -> list[str]:
    """Return the names of the rules that call a target."""
    query = """
        SELECT name FROM workflow_rules
        WHERE jsonb_path_exists(actions, 'strict $.**.call_webhook ? (@ == $id)',
                                jsonb_build_object('id', $1::text), true)
        ORDER BY position, id LIMIT 20
    """
    return [row["name"] for row in await conn.fetch(query, str(target_id))]


async def find(conn: Any, refs: Sequence[str]) -> dict[str, UUID]:
    """Return the targets named by id or name."""
    query = """
        SELECT wanted.ref, t.id FROM unnest($1::text[]) AS wanted (ref)
        JOIN workflow_targets t ON t.id::text = lower(wanted.ref) OR t.name = wanted.ref
    """
    return {row["ref"]: row["id"] for row in await conn.fetch(query, list(refs))}
