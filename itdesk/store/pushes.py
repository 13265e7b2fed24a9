"""What was sent to a remote tracker and what it said, as rows: each function is one statement."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Comment, Role
from itdesk.remote import Shadow


@frozen
class Unfinished:
    """A field that waits to be sent, since when, and whether an attempt has failed already."""

    field: str
    since: datetime
    failing: bool


@frozen
class Agent:
    """Somebody who may be given tickets, their account over there, and their open tickets."""

    id: UUID
    name: str
    email: str
    account: str | None
    load: int


@frozen
class Candidate:
    """A local ticket, the issue that it stands for, and whether one is being opened for it."""

    id: UUID
    issue: str | None
    creating: bool


async def shadow(conn: Any, ticket_id: UUID) -> Shadow:
    """Return what is known of the remote side of a ticket."""
    query = """
        SELECT known, sent, countered, creating_since IS NOT NULL AS creating
        FROM jira_pushes WHERE ticket_id = $1
    """
    row = await conn.fetchrow(query, ticket_id)
    return Shadow(**dict(row)) if row is not None else Shadow()


async def note_told(
    conn: Any, ticket_id: UUID, known: Mapping[str, str], *, theirs: Sequence[str]
) -> None:
    """Note what the remote side says now; of these fields it is not what was sent any more."""
    query = """
        INSERT INTO jira_pushes AS p (ticket_id, known) VALUES ($1, $2)
        ON CONFLICT (ticket_id) DO UPDATE SET known = p.known || excluded.known,
            sent = p.sent - $3::text[], updated_at = now()
    """
    await conn.execute(query, ticket_id, dict(known), list(theirs))


async def note_sending(
    conn: Any, ticket_id: UUID, sent: Mapping[str, str], *, meant: Sequence[str]
) -> None:
    """Note what is about to be sent; these fields are meant anew, whatever was countered."""
    query = """
        INSERT INTO jira_pushes AS p (ticket_id, sent) VALUES ($1, $2)
        ON CONFLICT (ticket_id) DO UPDATE SET sent = p.sent || excluded.sent,
            countered = p.countered - $3::text[], updated_at = now()
    """
    await conn.execute(query, ticket_id, dict(sent), list(meant))


async def note_unsent(conn: Any, ticket_id: UUID, names: Sequence[str]) -> None:
    """Forget that these were sent: the remote side did not take them."""
    query = (
        "UPDATE jira_pushes SET sent = sent - $2::text[], updated_at = now() WHERE ticket_id = $1"
    )
    await conn.execute(query, ticket_id, list(names))


async def note_countered(conn: Any, ticket_id: UUID, countered: Mapping[str, str]) -> None:
    """Note what was answered by sending our own again."""
    query = """
        INSERT INTO jira_pushes AS p (ticket_id, countered) VALUES ($1, $2)
        ON CONFLICT (ticket_id) DO UPDATE
        SET countered = p.countered || excluded.countered, updated_at = now()
    """
    await conn.execute(query, ticket_id, dict(countered))


async def unfinished(conn: Any, kind: str, lanes: Sequence[str]) -> list[Unfinished]:
    """Return the fields that wait in these lanes to be sent."""
    query = """
        SELECT name, min(j.since) AS since, bool_or(j.failing) AS failing
        FROM (SELECT q.args, coalesce(e.created_at, q.created_at) AS since,
                     bool_or(q.last_error IS NOT NULL) OVER () AS failing
              FROM jobs q LEFT JOIN events e ON e.id = q.event_id
              WHERE q.lane = ANY ($2::text[]) AND q.type = $1
                AND q.state IN ('waiting', 'leased')) AS j,
             jsonb_array_elements_text(j.args -> 'fields') AS name
        GROUP BY name
    """
    return [Unfinished(*row.values()) for row in await conn.fetch(query, kind, list(lanes))]


# --- comments ------------------------------------------------------------------------------


async def comment(conn: Any, comment_id: UUID) -> tuple[Comment, str | None] | None:
    """Return a comment and its id over there; None when it is gone."""
    query = """
        SELECT id, ticket_id, user_id, author_name, body, internal, created_at, updated_at,
               external_comment_id
        FROM ticket_comments WHERE id = $1
    """
    row = await conn.fetchrow(query, comment_id)
    if row is None:
        return None
    *own, remote = row.values()
    return Comment(*own), remote


async def unsent_comments(
    conn: Any, ticket_id: UUID, limit: int, *, internal: bool
) -> list[Comment]:
    """Return those of a ticket's last comments that were not sent, the oldest first."""
    query = """
        SELECT id, ticket_id, user_id, author_name, body, internal, created_at, updated_at
        FROM (
            SELECT * FROM ticket_comments WHERE ticket_id = $1 AND (NOT internal OR $3)
            ORDER BY created_at DESC, id DESC LIMIT $2
        ) AS last
        WHERE external_source IS NULL ORDER BY created_at, id
    """
    return [Comment(*row.values()) for row in await conn.fetch(query, ticket_id, limit, internal)]


async def tie_comment(
    conn: Any, comment_id: UUID, source: str, remote_id: str, updated_at: datetime | None
) -> bool:
    """Note which comment over there one of ours is; False when that is known already."""
    query = """
        UPDATE ticket_comments
        SET external_source = $2, external_comment_id = $3, external_updated_at = $4
        WHERE id = $1 AND external_source IS NULL RETURNING true
    """
    return await conn.fetchval(query, comment_id, source, remote_id, updated_at) is not None


async def twin(
    conn: Any, ticket_id: UUID, source: str, remote_id: str, comment_id: UUID
) -> UUID | None:
    """Return the comment that was made here of one that is ours."""
    query = """
        SELECT id FROM ticket_comments
        WHERE ticket_id = $1 AND external_source = $2 AND external_comment_id = $3 AND id <> $4
    """
    found: UUID | None = await conn.fetchval(query, ticket_id, source, remote_id, comment_id)
    return found


# --- opening issues ------------------------------------------------------------------------


async def begin_creating(conn: Any, ticket_id: UUID) -> float | None:
    """Note that an issue may be opened for a ticket from now on; return since when, in seconds.

    None when this is the first time.
    """
    query = """
        INSERT INTO jira_pushes AS p (ticket_id, creating_since) VALUES ($1, now())
        ON CONFLICT (ticket_id) DO UPDATE
        SET creating_since = coalesce(p.creating_since, now()), updated_at = now()
        RETURNING nullif(extract(epoch FROM now() - p.creating_since)::float8, 0)
    """
    age: float | None = await conn.fetchval(query, ticket_id)
    return age


async def restart_creating(conn: Any, ticket_id: UUID) -> None:
    """Count the time of an opening anew: it is tried once more."""
    query = "UPDATE jira_pushes SET creating_since = now() WHERE ticket_id = $1"
    await conn.execute(query, ticket_id)


async def end_creating(conn: Any, ticket_id: UUID) -> None:
    """Note that no issue is being opened for a ticket any more."""
    query = "UPDATE jira_pushes SET creating_since = NULL, updated_at = now() WHERE ticket_id = $1"
    await conn.execute(query, ticket_id)


async def unfinished_openings(conn: Any) -> int:
    """Return how many openings of issues were begun over an hour ago and never ended."""
    query = "SELECT count(*) FROM jira_pushes WHERE creating_since < now() - interval '1 hour'"
    found: int = await conn.fetchval(query)
    return found


async def being_created(conn: Any, origin: UUID | None, key: str | None) -> UUID | None:
    """Return the ticket that an issue was opened for: by its id or key, if one is being opened."""
    query = """
        SELECT t.id FROM tickets t JOIN jira_pushes p ON p.ticket_id = t.id
        WHERE p.creating_since IS NOT NULL AND t.external_source IS NULL
          AND (t.id = $1 OR t.key = $2) LIMIT 1
    """
    found: UUID | None = await conn.fetchval(query, origin, key)
    return found


async def link(
    conn: Any, ticket_id: UUID, source: str, key: str, updated_at: datetime | None
) -> bool:
    """Let a ticket stand for an issue; False when it stands for another one, or is gone."""
    query = """
        UPDATE tickets SET external_source = $2, external_id = $3, last_synced_at = now(),
               external_updated_at = coalesce(greatest($4, external_updated_at), $4)
        WHERE id = $1 AND (external_source IS NULL OR (external_source, external_id) = ($2, $3))
        RETURNING true
    """
    return await conn.fetchval(query, ticket_id, source, key, updated_at) is not None


async def local_tickets(conn: Any) -> list[Candidate]:
    """Return the tickets of local projects, the oldest first."""
    query = """
        SELECT t.id, t.external_id, coalesce(j.creating_since IS NOT NULL, false)
        FROM tickets t JOIN projects p ON p.id = t.project_id
             LEFT JOIN jira_pushes j ON j.ticket_id = t.id
        WHERE p.source = 'local' ORDER BY t.created_at, t.id
    """
    return [Candidate(*row.values()) for row in await conn.fetch(query)]


# --- people --------------------------------------------------------------------------------


async def agents(conn: Any, only: UUID | None) -> list[Agent]:
    """Return who may be given tickets, or `only` one of them: their accounts and open tickets."""
    query = """
        SELECT u.id, u.name, u.email, a.account_id,
               (SELECT count(*) FROM ticket_assignees x JOIN tickets t ON t.id = x.ticket_id
                WHERE x.user_id = u.id AND t.status <> 'closed') AS load
        FROM users u LEFT JOIN jira_accounts a ON a.user_id = u.id
        WHERE u.is_active AND u.role <> $1 AND ($2::uuid IS NULL OR u.id = $2)
        ORDER BY u.name, u.id
    """
    return [Agent(*row.values()) for row in await conn.fetch(query, Role.USER, only)]


async def accounts(conn: Any, user_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Return the accounts over there of these people, as far as they are known."""
    query = "SELECT user_id, account_id FROM jira_accounts WHERE user_id = ANY ($1::uuid[])"
    return {row["user_id"]: row["account_id"] for row in await conn.fetch(query, list(user_ids))}


async def free_account(conn: Any, user_id: UUID, account: str) -> None:
    """Take an account over there away from everybody else: it is one person's."""
    query = "DELETE FROM jira_accounts WHERE account_id = $2 AND user_id <> $1"
    await conn.execute(query, user_id, account)


async def tie_account(conn: Any, user_id: UUID, account: str, email: str | None) -> None:
    """Note which account over there somebody has."""
    query = """
        INSERT INTO jira_accounts (user_id, account_id, email) VALUES ($1, $2, $3)
        ON CONFLICT (user_id) DO UPDATE
        SET account_id = excluded.account_id, email = excluded.email, synced_at = now()
    """
    await conn.execute(query, user_id, account, email)


async def visible(conn: Any, source: str, keys: Sequence[str], user_id: UUID) -> set[str]:
    """Return which of these issues somebody may see, because their ticket is their own."""
    query = """
        SELECT t.external_id FROM tickets t
        WHERE t.external_source = $1 AND t.external_id = ANY ($2::text[])
          AND (t.reporter_id = $3 OR EXISTS (
              SELECT 1 FROM ticket_assignees a WHERE a.ticket_id = t.id AND a.user_id = $3))
    """
    return {row["external_id"] for row in await conn.fetch(query, source, list(keys), user_id)}
