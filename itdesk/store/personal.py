"""What rows know about one person: found for those who ask, made nameless for those who go.

Somebody whose account is gone already is known by what the journal kept of them. Statements here
may look at much: they have deadlines of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson

from itdesk.frozen import frozen

PAGE = 1000
_SECONDS = 120.0

# One statement each, $1 the person, $2 all addresses they had, in small letters; no secret and no
# hash of one is among the columns. Each has a column `id` to go on from, which is $3. Of what was
# suggested about their tickets all but summaries, which tell what others said internally, and the
# keys of others' tickets.
_SECTIONS: Mapping[str, str] = {
    "account": """
        SELECT u.id, u.email, u.name, u.role, u.department, u.avatar_url, u.is_active,
               u.is_verified, u.google_id, u.created_at, u.updated_at
        FROM users u WHERE u.id = $1""",
    "sessions": """
        SELECT t.id, t.family_id, t.user_agent, t.ip, t.used_at, t.revoked_at, t.expires_at,
               t.created_at
        FROM refresh_tokens t WHERE t.user_id = $1""",
    "api_tokens": """
        SELECT t.id, t.name, t.scope, t.expires_at, t.last_used_at, t.last_used_ip, t.created_at
        FROM api_tokens t WHERE t.user_id = $1""",
    "second_factor": """
        SELECT f.user_id AS id, f.confirmed_at, f.created_at
        FROM second_factors f WHERE f.user_id = $1""",
    "notification_settings": """
        SELECT n.user_id AS id, to_jsonb(n) - 'user_id' AS wanted
        FROM notification_settings n WHERE n.user_id = $1""",
    "jira_account": """
        SELECT j.user_id AS id, j.account_id, j.email, j.synced_at
        FROM jira_accounts j WHERE j.user_id = $1""",
    "tickets": """
        SELECT t.id, t.key, t.title, t.description, t.status, t.priority, t.category, t.department,
               t.tags, t.resolution, t.predicted_priority, t.predicted_category,
               t.ai_recommendations, t.reporter_name, t.reporter_id = $1 AS reported,
               EXISTS (SELECT 1 FROM ticket_assignees a
                       WHERE a.ticket_id = t.id AND a.user_id = $1) AS assigned,
               t.created_at, t.updated_at, t.closed_at
        FROM tickets t
        WHERE t.reporter_id = $1
           OR t.id IN (SELECT a.ticket_id FROM ticket_assignees a WHERE a.user_id = $1)""",
    "comments": """
        SELECT c.id, c.ticket_id, c.author_name, c.body, c.internal, c.created_at, c.updated_at
        FROM ticket_comments c WHERE c.user_id = $1""",
    "attachments": """
        SELECT f.id, f.ticket_id, f.original_filename, f.mime, f.size, f.sha256, f.scanned_status,
               f.scan_reason, f.uploaded_at, f.created_at
        FROM attachments f WHERE f.uploaded_by = $1""",
    "downloads": """
        SELECT d.attachment_id AS id, d.times, d.first_at, d.last_at
        FROM attachment_downloads d WHERE d.user_id = $1""",
    "identities": """
        SELECT i.id, i.provider, i.issuer, i.subject, i.email, i.created_at, i.last_used_at
        FROM user_identities i WHERE i.user_id = $1""",
    "suggestions": """
        SELECT s.id, s.ticket_id, s.kind, s.proposal, s.state, s.decided_at
        FROM suggestions s
        WHERE s.decided_by = $1 OR s.kind = 'assignee' AND s.proposal = $1::uuid::text
           OR s.kind IN ('reply', 'priority', 'category') AND s.ticket_id IN (
               SELECT id FROM tickets WHERE reporter_id = $1)""",
    "mails": """
        SELECT m.id, m.to_address, m.subject, m.body_text, m.kind, m.status, m.created_at, m.sent_at
        FROM emails m WHERE m.user_id = $1 OR lower(m.to_address) = ANY ($2::text[])""",
    "journal": """
        SELECT e.id, e.seq, e.ticket_id, e.type, e.actor_id, e.actor_name, e.source, e.changes,
               e.data, e.created_at
        FROM events e
        WHERE e.actor_id = $1 OR e.data ? 'user_id' AND e.data ->> 'user_id' = $1::text""",
}  # fmt: skip


@frozen
class Known:
    """A person as the desk knows them: whether there is an account, all names, all addresses."""

    id: UUID
    has_account: bool
    names: tuple[str, ...]
    emails: tuple[str, ...]


@frozen
class CleanFile:
    """A file that somebody uploaded and that may be given out."""

    id: UUID
    key: str
    filename: str
    size: int


async def known(conn: Any, user_id: UUID) -> Known | None:
    """Return how a person is and was called; None when nobody ever had this id."""
    query = """
        SELECT 'name' AS what, name AS said, true AS now FROM users WHERE id = $1
        UNION ALL SELECT 'email', email, true FROM users WHERE id = $1
        UNION ALL SELECT 'email', to_address, false FROM emails WHERE user_id = $1
        UNION ALL SELECT 'name', actor_name, false FROM events WHERE actor_id = $1
        UNION ALL
        SELECT said.key, said.value, false
        FROM events e, jsonb_each_text(e.data) AS said
        WHERE e.data ? 'user_id' AND e.data ->> 'user_id' = $1::text
          AND e.type LIKE 'user.%' AND said.key IN ('name', 'email')
        UNION ALL
        SELECT c ->> 'field', told.value, false
        FROM events e, jsonb_array_elements(e.changes) AS c,
             LATERAL (VALUES (c ->> 'old'), (c ->> 'new')) AS told (value)
        WHERE e.data ? 'user_id' AND e.data ->> 'user_id' = $1::text
          AND e.type = 'user.updated' AND c ->> 'field' IN ('name', 'email')
    """
    rows = await conn.fetch(query, user_id, timeout=_SECONDS)
    if not rows:
        return None
    said = {what: {r["said"] for r in rows if r["what"] == what and r["said"]}
            for what in ("name", "email")}  # fmt: skip
    emails = tuple(sorted({email.lower() for email in said["email"]}))
    here = any(row["now"] for row in rows)
    return Known(user_id, here, tuple(sorted(said["name"])), emails)


def kinds(tables: Sequence[str]) -> list[str]:
    """Return what there may be about a person, given the tables that there are."""
    later = {"identities": "user_identities", "suggestions": "suggestions"}
    return [name for name in _SECTIONS if later.get(name, "users") in tables]


async def page(conn: Any, person: Known, kind: str, *, after: UUID) -> list[dict[str, Any]]:
    """Return the next rows of one kind about a person, in the order of their ids."""
    query = f"""
        SELECT * FROM ({_SECTIONS[kind]}) AS found
        WHERE id > $3 AND $1::uuid IS NOT NULL AND $2::text[] IS NOT NULL
        ORDER BY id LIMIT {PAGE:d}
    """  # noqa: S608 - literals of this module
    values = (person.id, list(person.emails), after)
    return [dict(row) for row in await conn.fetch(query, *values, timeout=_SECONDS)]


async def clean_files(conn: Any, user_id: UUID, *, after: UUID) -> list[CleanFile]:
    """Return the next files of a person that may be given out."""
    query = """
        SELECT id, storage_version AS key, original_filename AS filename, size FROM attachments
        WHERE uploaded_by = $1 AND scanned_status = 'CLEAN' AND id > $2 ORDER BY id LIMIT 100
    """
    rows = await conn.fetch(query, user_id, after, timeout=_SECONDS)
    return [CleanFile(**dict(row)) for row in rows]


async def unname_work(conn: Any, person: Known, name: str) -> None:
    """Take a person's name off their tickets and comments, which stay."""
    query = """
        UPDATE tickets SET reporter_name = $2
        WHERE reporter_id = $1 OR reporter_id IS NULL AND id IN (
            SELECT ticket_id FROM events WHERE actor_id = $1 AND type = 'ticket.created')
    """
    await conn.execute(query, person.id, name, timeout=_SECONDS)
    query = """
        UPDATE ticket_comments SET author_name = $2
        WHERE user_id = $1 OR user_id IS NULL AND id IN (
            SELECT (data ->> 'comment_id')::uuid FROM events
            WHERE actor_id = $1 AND type = 'comment.added')
    """
    await conn.execute(query, person.id, name, timeout=_SECONDS)


# Tickets that a person opened or had a part in, $1 the person.
_PART_IN = """
    SELECT id FROM tickets WHERE reporter_id = $1
    UNION ALL SELECT ticket_id FROM ticket_comments WHERE user_id = $1
    UNION ALL SELECT ticket_id FROM events WHERE actor_id = $1 AND ticket_id IS NOT NULL
"""


async def unname_suggestions(conn: Any, person: Known) -> None:
    """Delete what the desk wrote that may name a person: about their words, or they as helper."""
    query = f"""
        DELETE FROM suggestions s
        WHERE s.kind = 'assignee' AND s.proposal = $1::uuid::text
           OR s.kind IN ('reply', 'summary') AND s.ticket_id IN ({_PART_IN})
    """  # noqa: S608 - a literal of this module
    await conn.execute(query, person.id, timeout=_SECONDS)
    query = f"""
        UPDATE tickets SET ai_recommendations = NULL
        WHERE ai_recommendations IS NOT NULL AND id IN ({_PART_IN})
    """  # noqa: S608 - a literal of this module
    await conn.execute(query, person.id, timeout=_SECONDS)


async def unname_mail(conn: Any, person: Known) -> None:
    """Delete the mails to a person, and forget what mails said that tell of their doings."""
    query = "DELETE FROM emails WHERE user_id = $1 OR lower(to_address) = ANY ($2::text[])"
    await conn.execute(query, person.id, list(person.emails), timeout=_SECONDS)
    query = """
        UPDATE emails SET body_text = '', body_html = NULL
        WHERE status <> 'queued' AND body_text <> ''
          AND event_id IN (SELECT id FROM events WHERE actor_id = $1)
    """
    await conn.execute(query, person.id, timeout=_SECONDS)
    await conn.execute("DELETE FROM idempotency_keys WHERE principal = $1", str(person.id))


async def unname_journal(conn: Any, person: Known, name: str) -> int:
    """Replace a person's names and addresses in the journal; return in how many events.

    They stand in fields of their own: the actor, and the values of changes and data that are one
    of them and nothing else. The journal lets nothing else of an event change meanwhile.
    """
    query = """
        SELECT id, actor_id, actor_name, changes, data FROM events
        WHERE actor_id = $1
           OR data ? 'user_id' AND data ->> 'user_id' = $1::text
           OR (data::text ILIKE ANY ($2::text[]) OR changes::text ILIKE ANY ($2::text[]))
        ORDER BY id
    """
    patterns = [f"%{_like(orjson.dumps(email).decode())}%" for email in person.emails]
    rows = await conn.fetch(query, person.id, patterns, timeout=_SECONDS)
    changed = []
    for row in rows:
        names = {*person.names} if _about(row, person) else set()
        fresh = (
            name if row["actor_id"] == person.id else row["actor_name"],
            _unnamed(row["changes"], names, person, name),
            _unnamed(row["data"], names, person, name),
        )
        if fresh != (row["actor_name"], row["changes"], row["data"]):
            changed.append((row["id"], *fresh))
    await conn.execute("SET LOCAL itdesk.erase_person = 'on'")
    query = """
        UPDATE events e
        SET actor_name = n.actor_name, changes = n.changes::jsonb, data = n.data::jsonb
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[])
             AS n (id, actor_name, changes, data)
        WHERE e.id = n.id
    """
    for start in range(0, len(changed), PAGE):
        ids, actors, changes, data = zip(*changed[start : start + PAGE], strict=True)
        await conn.execute(
            query, list(ids), list(actors), [orjson.dumps(c).decode() for c in changes],
            [orjson.dumps(d).decode() for d in data], timeout=_SECONDS,
        )  # fmt: skip
    await conn.execute("SET LOCAL itdesk.erase_person = 'off'")
    return len(changed)


def _about(row: Any, person: Known) -> bool:
    """Return whether an event is by or about a person: only there is a name surely theirs."""
    about: bool = row["data"].get("user_id") == str(person.id)
    return about or row["actor_id"] == person.id


def _unnamed(value: Any, names: set[str], person: Known, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _unnamed(item, names, person, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_unnamed(item, names, person, name) for item in value]
    if isinstance(value, str) and (value in names or value.lower() in person.emails):
        return name
    return value


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
