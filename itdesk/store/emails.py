"""Mails as rows: what is owed, what went out, and what failed."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from itdesk.model import Email, MailKind, MailStatus


@dataclass(frozen=True, slots=True)
class NewEmail:
    """A mail to be, and what it is about."""

    id: UUID
    to_address: str
    subject: str
    text: str
    html: str | None
    kind: MailKind
    status: MailStatus
    message_id: str
    problem: str | None = None
    event_id: UUID | None = None
    ticket_id: UUID | None = None
    user_id: UUID | None = None


_SHOWN = """
    id, to_address, subject, kind, status, attempts, last_error, next_attempt_at, message_id,
    ticket_id, created_at, sent_at
"""
_SORT = "-created_at"


def _email(row: Any) -> Email:
    known = {name: value for name, value in row.items() if name not in ("kind", "status")}
    return Email(kind=MailKind(row["kind"]), status=MailStatus(row["status"]), **known)


async def add(conn: Any, new: NewEmail) -> None:
    """Write a mail."""
    query = """
        INSERT INTO emails (id, to_address, subject, body_text, body_html, kind, status,
                            message_id, last_error, event_id, ticket_id, user_id, next_attempt_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
                CASE WHEN $7 = 'queued' THEN now() END)
    """
    await conn.execute(
        query,
        new.id,
        new.to_address,
        new.subject,
        new.text,
        new.html,
        new.kind,
        new.status,
        new.message_id,
        new.problem,
        new.event_id,
        new.ticket_id,
        new.user_id,
    )
