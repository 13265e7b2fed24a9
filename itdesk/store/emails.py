"""Mails as rows: what is owed, what went out, and what failed.

All times are the database's. Whoever sends a mail counts an attempt first: from then on nothing is
added to its text.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.errors import NotFound
from itdesk.frozen import frozen
from itdesk.model import Email, MailKind, MailStatus
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

# A digest that has so many lines is full; the next one begins.
MOST_LINES = 200


@frozen(kw_only=True)
class NewEmail:
    """A mail to be, and what it is about; one with lines is a digest that more can be added to.

    After so many hours, if any, what it says is of no use: its link and code are over.
    """

    id: UUID
    to_address: str
    subject: str
    text: str
    html: str | None
    kind: MailKind
    status: MailStatus
    message_id: str
    event_id: UUID | None = None
    ticket_id: UUID | None = None
    user_id: UUID | None = None
    lines: int = 0
    seconds: float = 0.0
    hours: float | None = None


@frozen
class Begun:
    """A mail in the hands of whoever sends it, with all that it says."""

    id: UUID
    message_id: str
    to_address: str
    subject: str
    text: str
    html: str | None
    kind: MailKind
    ticket_id: UUID | None
    created_at: datetime
    over: bool


@frozen
class Waiting:
    """How much mail is owed, and for how many seconds the oldest has been due."""

    count: int
    oldest_seconds: float


_SHOWN = """
    id, to_address, subject, kind, status, attempts, last_error, next_attempt_at, message_id,
    ticket_id, created_at, sent_at
"""
_SORT = "-created_at"


def _email(row: Any) -> Email:
    known = {name: value for name, value in row.items() if name not in ("kind", "status")}
    return Email(kind=MailKind(row["kind"]), status=MailStatus(row["status"]), **known)


async def add(conn: Any, new: Sequence[NewEmail]) -> set[UUID]:
    """Write mails; one to somebody who has one of that event is left out. Return those written."""
    query = """
        INSERT INTO emails (id, to_address, subject, body_text, body_html, kind, status,
                            message_id, event_id, ticket_id, user_id, lines, expires_at,
                            next_attempt_at)
        SELECT n.id, n.to_address, n.subject, n.body_text, n.body_html, n.kind, n.status,
               n.message_id, n.event_id, n.ticket_id, n.user_id, n.lines,
               now() + make_interval(secs => n.hours * 3600),
               CASE WHEN n.status = 'queued' THEN now() + make_interval(secs => n.seconds) END
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
                    $7::text[], $8::text[], $9::uuid[], $10::uuid[], $11::uuid[], $12::int[],
                    $13::float8[], $14::float8[])
             AS n (id, to_address, subject, body_text, body_html, kind, status, message_id,
                   event_id, ticket_id, user_id, lines, seconds, hours)
        ON CONFLICT (event_id, user_id) WHERE event_id IS NOT NULL AND user_id IS NOT NULL
        DO NOTHING RETURNING id
    """
    columns = (
        "id", "to_address", "subject", "text", "html", "kind", "status", "message_id",
        "event_id", "ticket_id", "user_id", "lines", "seconds", "hours",
    )  # fmt: skip
    rows = await conn.fetch(query, *([getattr(mail, name) for mail in new] for name in columns))
    return {row["id"] for row in rows}


async def add_lines(conn: Any, lines: Sequence[tuple[UUID, str]]) -> set[UUID]:
    """Add a line to these people's digests that wait; return whose there was one."""
    query = """
        UPDATE emails e SET body_text = e.body_text || n.line, lines = e.lines + 1
        FROM unnest($1::uuid[], $2::text[]) AS n (user_id, line),
             LATERAL (
                 SELECT o.id FROM emails o
                 WHERE o.user_id = n.user_id AND o.status = 'queued' AND o.attempts = 0
                   AND o.lines BETWEEN 1 AND $3
                   AND o.created_at > now() - interval '1 hour'
                 ORDER BY o.created_at DESC LIMIT 1
             ) AS latest
        WHERE e.id = latest.id AND e.status = 'queued' AND e.attempts = 0
        RETURNING e.user_id
    """
    people, texts = [person for person, _ in lines], [text for _, text in lines]
    return {row["user_id"] for row in await conn.fetch(query, people, texts, MOST_LINES - 1)}


async def recent(conn: Any, user_ids: Sequence[UUID], *, seconds: float) -> dict[UUID, int]:
    """Return how many notifications these people were written within so many seconds."""
    query = """
        SELECT user_id, count(*) AS mails FROM emails
        WHERE user_id = ANY ($1::uuid[]) AND kind = 'notification' AND lines = 0
          AND created_at > now() - make_interval(secs => $2)
        GROUP BY user_id
    """
    return {row["user_id"]: row["mails"] for row in await conn.fetch(query, user_ids, seconds)}


async def begin(conn: Any, email_id: UUID) -> Begun | None:
    """Count an attempt and return the mail, or None when it is not to be sent any more."""
    query = """
        UPDATE emails SET attempts = attempts + 1 WHERE id = $1 AND status = 'queued'
        RETURNING id, message_id, to_address, subject, body_text, body_html, kind, ticket_id,
                  created_at, coalesce(expires_at < now(), false) AS over
    """
    row = await conn.fetchrow(query, email_id)
    if row is None:
        return None
    return Begun(
        id=row["id"],
        message_id=row["message_id"],
        to_address=row["to_address"],
        subject=row["subject"],
        text=row["body_text"],
        html=row["body_html"],
        kind=MailKind(row["kind"]),
        ticket_id=row["ticket_id"],
        created_at=row["created_at"],
        over=row["over"],
    )


async def mark_sent(conn: Any, email_id: UUID, *, blank: bool) -> None:
    """Say that a mail went out; with `blank`, what it said is forgotten."""
    query = """
        UPDATE emails
        SET status = 'sent', sent_at = now(), last_error = NULL, next_attempt_at = NULL,
            body_text = CASE WHEN $2 THEN '' ELSE body_text END,
            body_html = CASE WHEN $2 THEN NULL ELSE body_html END
        WHERE id = $1
    """
    await conn.execute(query, email_id, blank)


async def mark_failed(conn: Any, email_id: UUID, *, reason: str) -> None:
    """Say that a mail was given up, and why."""
    query = """
        UPDATE emails SET status = 'failed', last_error = $2, next_attempt_at = NULL
        WHERE id = $1 AND status = 'queued'
    """
    await conn.execute(query, email_id, reason)


async def mark_later(
    conn: Any, email_id: UUID, *, seconds: float, reason: str, counted: bool
) -> None:
    """Say when a mail is tried again, and why it could not be sent now."""
    query = """
        UPDATE emails
        SET last_error = $3, next_attempt_at = now() + make_interval(secs => $2),
            attempts = attempts - (NOT $4)::int
        WHERE id = $1 AND status = 'queued'
    """
    await conn.execute(query, email_id, seconds, reason, counted)


async def list_page(
    conn: Any, window: Window, *, status: MailStatus | None, to: str | None
) -> Page[Email]:
    """Return one page of the mails, the newest first; `to` is a whole address in any case."""
    before, last = (
        decode_cursor(window.cursor, _SORT, (datetime, UUID))
        if window.cursor is not None
        else (None, None)
    )
    query = f"""
        SELECT {_SHOWN} FROM emails
        WHERE ($1::text IS NULL OR status = $1)
          AND ($2::text IS NULL OR lower(to_address) = lower($2))
          AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4))
        ORDER BY created_at DESC, id DESC LIMIT $5 OFFSET $6
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(query, status, to, before, last, window.limit + 1, window.offset)
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(_SORT, row["created_at"], row["id"])
    )
    return Page([_email(row) for row in page.items], page.next_cursor)


async def count(conn: Any, *, status: MailStatus | None, to: str | None) -> int:
    """Return how many mails there are."""
    query = """
        SELECT count(*) FROM emails
        WHERE ($1::text IS NULL OR status = $1)
          AND ($2::text IS NULL OR lower(to_address) = lower($2))
    """
    total: int = await conn.fetchval(query, status, to)
    return total


async def get(conn: Any, email_id: UUID, *, lock: bool = False) -> Email:
    """Read a mail; with `lock`, hold its row until the commit."""
    query = f"SELECT {_SHOWN} FROM emails WHERE id = $1 {'FOR UPDATE' if lock else ''}"  # noqa: S608
    row = await conn.fetchrow(query, email_id)
    if row is None:
        raise NotFound.of("email")
    return _email(row)


async def requeue(conn: Any, email_id: UUID) -> Email | None:
    """Let a mail be sent after all; None when what it said is forgotten."""
    query = f"""
        UPDATE emails
        SET status = 'queued', attempts = 0, next_attempt_at = now(), sent_at = NULL
        WHERE id = $1 AND body_text <> '' RETURNING {_SHOWN}
    """  # noqa: S608 - a literal of this module
    row = await conn.fetchrow(query, email_id)
    return None if row is None else _email(row)


async def waiting(conn: Any) -> Waiting:
    """Return how much mail is owed."""
    query = """
        SELECT count(*) AS mails,
               coalesce(extract(epoch FROM now() - min(
                   CASE WHEN attempts > 0 OR last_error IS NOT NULL THEN created_at
                        ELSE next_attempt_at END)), 0)::float8 AS seconds
        FROM emails WHERE status = 'queued'
    """
    row = await conn.fetchrow(query)
    return Waiting(row["mails"], max(row["seconds"], 0.0))


async def stranded(conn: Any, limit: int, *, type: str) -> list[UUID]:
    """Return mails that are owed while no job is there to deliver them, for a minute at least."""
    query = """
        SELECT e.id FROM emails e
        WHERE e.status = 'queued' AND e.next_attempt_at < now() - interval '1 minute'
          AND NOT EXISTS (
              SELECT 1 FROM jobs j
              WHERE j.dedupe_key = $2 || ':' || e.id AND j.state IN ('waiting', 'leased'))
        ORDER BY e.next_attempt_at LIMIT $1
    """
    return [row["id"] for row in await conn.fetch(query, limit, type)]


async def fail_abandoned(conn: Any, limit: int, *, type: str) -> int:
    """Fail mails whose job was given up since they were last queued; return how many."""
    query = """
        UPDATE emails e SET status = 'failed', next_attempt_at = NULL,
               last_error = coalesce(gone.last_error, 'its delivery was given up')
        FROM (
            SELECT m.id, j.last_error FROM emails m
            JOIN jobs j ON j.dedupe_key = $2 || ':' || m.id AND j.state = 'failed'
            WHERE m.status = 'queued' AND j.finished_at >= m.next_attempt_at
            LIMIT $1
        ) AS gone
        WHERE e.id = gone.id AND e.status = 'queued'
          AND NOT EXISTS (
              SELECT 1 FROM jobs j
              WHERE j.dedupe_key = $2 || ':' || e.id AND j.state IN ('waiting', 'leased'))
    """
    result: str = await conn.execute(query, limit, type)
    return int(result.rpartition(" ")[2])


async def forget_secrets(conn: Any, limit: int) -> int:
    """Forget what mails said whose links and codes are over; return of how many."""
    query = """
        UPDATE emails SET body_text = '', body_html = NULL WHERE id IN (
            SELECT id FROM emails
            WHERE status <> 'queued' AND body_text <> '' AND expires_at < now()
            ORDER BY expires_at LIMIT $1
        )
    """
    result: str = await conn.execute(query, limit)
    return int(result.rpartition(" ")[2])


async def delete_old(conn: Any, limit: int, *, days: int) -> int:
    """Delete up to so many mails that were settled and are older than so many days."""
    query = """
        DELETE FROM emails WHERE id IN (
            SELECT id FROM emails
            WHERE status <> 'queued' AND created_at < now() - make_interval(days => $1)
            ORDER BY created_at LIMIT $2
        )
    """
    result: str = await conn.execute(query, days, limit)
    return int(result.rpartition(" ")[2])


async def now(conn: Any) -> datetime:
    """Return the database's time."""
    moment: datetime = await conn.fetchval("SELECT now()")
    return moment
