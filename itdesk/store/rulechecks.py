"""What rules refer to, as rows: people and projects by the names that a rule gives them."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Role


@frozen
class Named:
    """A person, where to write to, and whether they can be given tickets now."""

    id: UUID
    name: str
    email: str
    assignable: bool


async def people(conn: Any, refs: Sequence[str]) -> dict[str, Named]:
    """Return the people named by id or e-mail address; those that are gone are left out."""
    query = """
        SELECT wanted.ref, u.id, u.name, u.email, u.is_active AND u.role <> $2 AS assignable
        FROM unnest($1::text[]) AS wanted (ref)
        JOIN users u ON lower(u.email) = lower(wanted.ref)
        UNION ALL
        SELECT wanted.ref, u.id, u.name, u.email, u.is_active AND u.role <> $2
        FROM unnest($1::text[]) AS wanted (ref)
        JOIN users u ON u.id = CASE
            WHEN wanted.ref ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN wanted.ref::uuid
        END
    """
    rows = await conn.fetch(query, list(refs), Role.USER)
    return {row["ref"]: Named(row["id"], row["name"], row["email"], row["assignable"])
            for row in rows}  # fmt: skip


async def projects(conn: Any, keys: Sequence[str]) -> dict[str, bool]:
    """Return which of these projects there are, and whether they number their own tickets."""
    query = "SELECT key, source = 'local' AS local FROM projects WHERE key = ANY ($1::text[])"
    return {row["key"]: row["local"] for row in await conn.fetch(query, list(keys))}


async def least_loaded(conn: Any, roles: Sequence[str], department: str | None) -> UUID | None:
    """Return who has the fewest unclosed tickets among those who can be given some."""
    query = """
        SELECT u.id FROM users u
        WHERE u.is_active AND u.role = ANY ($1::text[])
          AND ($2::text IS NULL OR u.department = $2)
        ORDER BY (SELECT count(*) FROM ticket_assignees a JOIN tickets t ON t.id = a.ticket_id
                  WHERE a.user_id = u.id AND t.status <> 'closed'),
                 (SELECT max(a.assigned_at) FROM ticket_assignees a WHERE a.user_id = u.id)
                     NULLS FIRST, u.id
        LIMIT 1
    """
    found: UUID | None = await conn.fetchval(query, [str(role) for role in roles], department)
    return found


async def addresses(
    conn: Any, *, user_ids: Sequence[UUID], roles: Sequence[str], limit: int
) -> list[Named]:
    """Return these people and those of these roles, as far as they are active, by address."""
    query = """
        SELECT u.id, u.name, u.email FROM users u
        WHERE u.is_active AND (u.id = ANY ($1::uuid[]) OR u.role = ANY ($2::text[]))
        ORDER BY u.email LIMIT $3
    """
    rows = await conn.fetch(query, list(user_ids), [str(role) for role in roles], limit)
    return [Named(row["id"], row["name"], row["email"], True) for row in rows]
