"""Who wants to be told of what, and whom a mail may go to now."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import NotificationSettings, Role, Topic

# A column for each topic; who never chose wants all.
_TOPICS = """
    coalesce(s.ticket_created, true) AS ticket_created,
    coalesce(s.ticket_assigned, true) AS ticket_assigned,
    coalesce(s.status_changed, true) AS status_changed,
    coalesce(s.comment_added, true) AS comment_added,
    coalesce(s.file_recalled, true) AS file_recalled
"""


@frozen
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
    """  # noqa: S608 - a literal of this module
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


async def get(conn: Any, user_id: UUID, *, lock: bool = False) -> NotificationSettings | None:
    """Read what somebody wants to be told of; None when there is no such person.

    With `lock`, nobody else changes it until the commit.
    """
    query = f"""
        SELECT {_TOPICS} FROM users u LEFT JOIN notification_settings s ON s.user_id = u.id
        WHERE u.id = $1 {"FOR NO KEY UPDATE OF u" if lock else ""}
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(query, user_id)
    return None if row is None else NotificationSettings(**dict(row))


async def put(conn: Any, user_id: UUID, wanted: NotificationSettings) -> None:
    """Set what somebody wants to be told of."""
    query = """
        INSERT INTO notification_settings (user_id, ticket_created, ticket_assigned,
                                           status_changed, comment_added, file_recalled)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (user_id) DO UPDATE SET
            ticket_created = excluded.ticket_created, ticket_assigned = excluded.ticket_assigned,
            status_changed = excluded.status_changed, comment_added = excluded.comment_added,
            file_recalled = excluded.file_recalled, updated_at = now()
    """
    topics = (getattr(wanted, topic) for topic in Topic)
    await conn.execute(query, user_id, *topics)
