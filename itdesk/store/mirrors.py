"""What ties tickets to a remote tracker, as rows: each function is one statement."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Category, Priority, Status
from itdesk.remote import RemotePerson, SyncState


@frozen
class KnownComment:
    """A comment that came from the remote side, as it is kept."""

    id: UUID
    author_name: str
    body: str
    internal: bool
    updated_at: datetime | None


@frozen
class LocalPerson:
    """Who somebody over there is here, and whether tickets may be given to them."""

    id: UUID
    assignable: bool


async def lock(conn: Any, name: str) -> None:
    """Let nobody else tell of the same issue until the transaction ends."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 17))", name)


async def first_time(conn: Any, delivery_ids: Sequence[str]) -> bool:
    """Remember a delivery by all its names; return whether none of them was ever seen."""
    query = """
        INSERT INTO jira_deliveries (delivery_id)
        SELECT name FROM unnest($1::text[]) AS name ORDER BY name
        ON CONFLICT DO NOTHING
    """
    result: str = await conn.execute(query, list(delivery_ids))
    return int(result.rpartition(" ")[2]) == len(set(delivery_ids))


async def seen_before(conn: Any, delivery_ids: Sequence[str]) -> bool:
    """Return whether a delivery was written under any of its names."""
    query = "SELECT EXISTS (SELECT 1 FROM jira_deliveries WHERE delivery_id = ANY ($1::text[]))"
    seen: bool = await conn.fetchval(query, list(delivery_ids))
    return seen


async def forget_deliveries(conn: Any, limit: int, *, days: int) -> int:
    """Delete deliveries older than so many days, a batch at a time; return how many."""
    query = """
        DELETE FROM jira_deliveries WHERE delivery_id IN (
            SELECT delivery_id FROM jira_deliveries
            WHERE received_at < now() - make_interval(days => $1) ORDER BY received_at LIMIT $2
        )
    """
    result: str = await conn.execute(query, days, limit)
    return int(result.rpartition(" ")[2])


async def deleted(conn: Any, names: Sequence[str]) -> set[str]:
    """Return which of these were deleted over there."""
    query = "SELECT name FROM jira_deleted WHERE name = ANY ($1::text[])"
    return {row["name"] for row in await conn.fetch(query, list(names))}


async def bury(conn: Any, names: Sequence[str]) -> None:
    """Remember that these were deleted over there."""
    query = """
        INSERT INTO jira_deleted (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING
    """
    await conn.execute(query, sorted(names))


async def find(conn: Any, *, source: str, key: str, number: str | None) -> UUID | None:
    """Return the ticket of an issue: by the id that never changes, else by its key."""
    query = """
        SELECT ticket_id FROM (
            SELECT ticket_id, 1 AS rank FROM jira_issues WHERE issue_id = $3
            UNION ALL
            SELECT id, 2 FROM tickets WHERE external_source = $1 AND external_id = $2
        ) AS found ORDER BY rank LIMIT 1
    """
    found: UUID | None = await conn.fetchval(query, source, key, number)
    return found


async def name_issue(conn: Any, ticket_id: UUID, number: str) -> None:
    """Note by which id the remote side knows a ticket for good."""
    query = """
        INSERT INTO jira_issues (issue_id, ticket_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
    """
    await conn.execute(query, number, ticket_id)


async def ensure_project(conn: Any, *, id: UUID, key: str, name: str) -> bool:
    """Add a project that mirrors a remote one, unless the key is taken; return whether it was."""
    query = """
        INSERT INTO projects (id, key, name, source) VALUES ($1, $2, $3, 'jira')
        ON CONFLICT (key) DO NOTHING
    """
    result: str = await conn.execute(query, id, key, name)
    return result == "INSERT 0 1"


async def project_id(conn: Any, key: str) -> UUID | None:
    """Return the mirror project with this key; None when the key is a local project's."""
    query = "SELECT id FROM projects WHERE key = $1 AND source = 'jira'"
    found: UUID | None = await conn.fetchval(query, key)
    return found


async def create(
    conn: Any,
    *,
    id: UUID,
    key: str,
    project_id: UUID,
    source: str,
    title: str,
    description: str,
    status: Status,
    priority: Priority,
    category: Category | None,
    tags: Sequence[str],
    reporter_id: UUID | None,
    reporter_name: str,
    assignee_ids: Sequence[UUID],
    external_assignee: str | None,
    created_at: datetime | None,
    updated_at: datetime | None,
) -> bool:
    """Open a ticket that bears the issue's key; return False when the key is taken."""
    query = """
        WITH t AS (
            INSERT INTO tickets (id, key, project_id, external_source, external_id, title,
                description, status, priority, category, tags, reporter_id, reporter_name,
                external_assignee, external_updated_at, last_synced_at, closed_at, created_at,
                updated_at)
            VALUES ($1, $2, $3, $4, $2, $5, $6, $7, $8, $9, $10, $11, $12, $14, $16, now(),
                CASE WHEN $7 = 'closed' THEN coalesce($16, now()) END,
                coalesce($15, now()), coalesce($16, now()))
            ON CONFLICT DO NOTHING RETURNING id
        ), a AS (
            INSERT INTO ticket_assignees (ticket_id, user_id, position)
            SELECT t.id, u.id, u.position FROM t, unnest($13::uuid[])
                WITH ORDINALITY AS u (id, position)
        )
        SELECT count(*) FROM t
    """
    made: int = await conn.fetchval(
        query, id, key, project_id, source, title, description, status, priority, category,
        list(tags), reporter_id, reporter_name, list(assignee_ids), external_assignee, created_at,
        updated_at,
    )  # fmt: skip
    return made == 1


async def seen(conn: Any, ticket_id: UUID, updated_at: datetime | None) -> None:
    """Note that a ticket was told of, and as of when over there."""
    query = """
        UPDATE tickets SET last_synced_at = now(),
               external_updated_at = coalesce(greatest($2, external_updated_at), $2)
        WHERE id = $1
    """
    await conn.execute(query, ticket_id, updated_at)


async def key_is_free(conn: Any, key: str) -> bool:
    """Return whether no ticket bears this key or stands for the issue that does."""
    query = """
        SELECT NOT EXISTS (SELECT 1 FROM tickets WHERE key = $1 OR external_id = $1)
    """
    free: bool = await conn.fetchval(query, key)
    return free


async def people(conn: Any, wanted: Sequence[RemotePerson]) -> dict[RemotePerson, LocalPerson]:
    """Return who of these is who here: by the account that was matched once, else by address.

    An address says who somebody is only when it was verified, or when an administrator gave the
    account more than a user's rights: anybody can register with anybody's address.
    """
    query = """
        SELECT u.id, u.role <> 'user' AS assignable, lower(u.email) AS email, a.account_id,
               (u.is_verified OR u.role <> 'user') AS known
        FROM users u LEFT JOIN jira_accounts a ON a.user_id = u.id
        WHERE u.is_active
          AND (a.account_id = ANY ($1::text[]) OR lower(u.email) = ANY ($2::text[]))
    """
    accounts = [person.account for person in wanted if person.account]
    emails = [person.email for person in wanted if person.email]
    if not accounts and not emails:
        return {}
    by_account, by_email = dict[str, LocalPerson](), dict[str, LocalPerson]()
    for row in await conn.fetch(query, accounts, emails):
        local = LocalPerson(row["id"], row["assignable"])
        if row["account_id"]:
            by_account[row["account_id"]] = local
        if row["known"]:
            by_email[row["email"]] = local
    found = {}
    for person in wanted:
        local_person = by_account.get(person.account or "") or by_email.get(person.email or "")
        if local_person is not None:
            found[person] = local_person
    return found


# --- comments ------------------------------------------------------------------------------


async def comments(conn: Any, ticket_id: UUID, source: str) -> dict[str, KnownComment]:
    """Return the comments of a ticket that came from the remote side, by their ids there."""
    query = """
        SELECT id, external_comment_id, author_name, body, internal, external_updated_at
        FROM ticket_comments WHERE ticket_id = $1 AND external_source = $2
    """
    return {
        row["external_comment_id"]: KnownComment(
            row["id"],
            row["author_name"],
            row["body"],
            row["internal"],
            row["external_updated_at"],
        )
        for row in await conn.fetch(query, ticket_id, source)
    }


async def add_comment(
    conn: Any,
    *,
    id: UUID,
    ticket_id: UUID,
    source: str,
    remote_id: str,
    user_id: UUID | None,
    author_name: str,
    body: str,
    internal: bool,
    created_at: datetime | None,
    updated_at: datetime | None,
) -> None:
    """Put a comment from the remote side on a ticket."""
    query = """
        INSERT INTO ticket_comments (id, ticket_id, external_source, external_comment_id, user_id,
            author_name, body, internal, created_at, external_updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, now()), $10)
    """
    await conn.execute(
        query, id, ticket_id, source, remote_id, user_id, author_name, body, internal, created_at,
        updated_at,
    )  # fmt: skip


async def change_comment(
    conn: Any, comment_id: UUID, *, body: str, internal: bool, updated_at: datetime | None
) -> None:
    """Let a comment say what it says over there now."""
    query = """
        UPDATE ticket_comments
        SET body = $2, internal = $3, external_updated_at = $4, updated_at = now()
        WHERE id = $1
    """
    await conn.execute(query, comment_id, body, internal, updated_at)


async def delete_comment(conn: Any, comment_id: UUID) -> None:
    """Remove a comment."""
    await conn.execute("DELETE FROM ticket_comments WHERE id = $1", comment_id)


# --- walks ---------------------------------------------------------------------------------


async def claim_walk(conn: Any, owner: UUID, *, seconds: float) -> bool:
    """Take or keep the right to walk for so many seconds; False when somebody else has it."""
    query = """
        INSERT INTO jira_walks AS w (owner, lease_until)
        VALUES ($1, now() + make_interval(secs => $2))
        ON CONFLICT (only_row) DO UPDATE
        SET owner = excluded.owner, lease_until = excluded.lease_until
        WHERE w.owner = excluded.owner OR w.lease_until < now()
    """
    result: str = await conn.execute(query, owner, seconds)
    return result == "INSERT 0 1"


async def end_walk(conn: Any, owner: UUID) -> None:
    """Give the right to walk back."""
    await conn.execute("DELETE FROM jira_walks WHERE owner = $1", owner)


async def state(conn: Any, project_key: str) -> tuple[datetime | None, datetime]:
    """Return how far a project's mirror has come, if ever it was, and the time now."""
    query = """
        SELECT (SELECT last_synced_at FROM jira_sync_state WHERE project_key = $1) AS at, now()
    """
    row = await conn.fetchrow(query, project_key)
    return row["at"], row["now"]


async def note_walk(
    conn: Any, owner: UUID, project_key: str, *, synced_at: datetime | None, error: str | None
) -> None:
    """Write down how far a walk came, and what went wrong; only its holder may."""
    query = """
        INSERT INTO jira_sync_state (project_key, last_synced_at, last_error, last_run_at)
        SELECT $2, $3, $4, now() FROM jira_walks WHERE owner = $1
        ON CONFLICT (project_key) DO UPDATE
        SET last_synced_at = coalesce(excluded.last_synced_at, jira_sync_state.last_synced_at),
            last_error = excluded.last_error, last_run_at = now(), updated_at = now()
    """
    await conn.execute(query, owner, project_key, synced_at, error)


async def states(conn: Any) -> list[SyncState]:
    """Return how far the mirror of each project has come."""
    query = """
        SELECT project_key, last_synced_at, last_cursor, last_error, last_run_at, updated_at
        FROM jira_sync_state ORDER BY project_key LIMIT 1000
    """
    return [SyncState(*row.values()) for row in await conn.fetch(query)]


async def mirrored(conn: Any, source: str) -> int:
    """Return how many tickets mirror an issue of this tracker."""
    query = "SELECT count(*) FROM tickets WHERE external_source = $1"
    count: int = await conn.fetchval(query, source)
    return count
