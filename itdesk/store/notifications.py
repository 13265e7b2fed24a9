"""Who wants to be told of what, and whom a mail may go to now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from itdesk.model import NotificationSettings, Role, Topic

_TOPICS = ", ".join(f"coalesce(s.{topic}, true) AS {topic}" for topic in Topic)


@dataclass(frozen=True, slots=True)
class Reader:
    """Somebody who can get mail, and what they want to be told of."""

    id: UUID
    email: str
    name: str
    role: Role
    topics: frozenset[Topic]


async def readers(
    conn: Any, user_ids: Sequence[UUID], *, agents: bool, verified: bool
) -> list[Reader]:
    """Read the active ones of these people; with `agents` all active agents and above as well.

    With `verified`, only those whose address is known to be theirs.
    """
    query = f"""
        SELECT u.id, u.email, u.name, u.role, {_TOPICS}
        FROM users u LEFT JOIN notification_settings s ON s.user_id = u.id
        WHERE u.is_active AND (u.is_verified OR NOT $3)
          AND (u.id = ANY ($1::uuid[]) OR $2 AND u.role IN ('agent', 'manager', 'admin'))
        ORDER BY u.id
    """  # noqa: S608 - the names of an enum
    return [
        Reader(
            row["id"],
            row["email"],
            row["name"],
            Role(row["role"]),
            frozenset(topic for topic in Topic if row[topic]),
        )
        for row in await conn.fetch(query, user_ids, agents, verified)
    ]


async def get(conn: Any, user_id: UUID) -> NotificationSettings | None:
    """Read what somebody wants to be told of; None when there is no such person."""
    query = f"""
        SELECT {_TOPICS} FROM users u LEFT JOIN notification_settings s ON s.user_id = u.id
        WHERE u.id = $1
    """  # noqa: S608 - the names of an enum
    row = await conn.fetchrow(query, user_id)
    return None if row is None else NotificationSettings(**dict(row))


async def put(conn: Any, user_id: UUID, wanted: Mapping[Topic, bool]) -> None:
    """Set some of what somebody wants to be told of; the rest stays as it is."""
    names = [topic for topic in Topic if topic in wanted]
    columns = ", ".join(["user_id", *names])
    values = ", ".join(f"${place}" for place in range(1, len(names) + 2))
    sets = ", ".join([*(f"{name} = excluded.{name}" for name in names), "updated_at = now()"])
    query = f"""
        INSERT INTO notification_settings ({columns}) VALUES ({values})
        ON CONFLICT (user_id) DO UPDATE SET {sets}
    """  # noqa: S608 - the names of an enum
    await conn.execute(query, user_id, *(wanted[name] for name in names))
