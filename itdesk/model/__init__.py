"""The vocabulary of the desk: tickets, people, files, events, and who is asking.

Everything here is a plain frozen dataclass or enum without behaviour beyond its own rules; the
same objects go to plugins and, encoded field by field, out as the JSON of the API.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from itdesk.errors import Forbidden
from itdesk.frozen import frozen
from itdesk.model.words import (
    PRIORITY_ALIASES as PRIORITY_ALIASES,
)
from itdesk.model.words import (
    ROLE_ALIASES as ROLE_ALIASES,
)
from itdesk.model.words import (
    STATUS_ALIASES as STATUS_ALIASES,
)
from itdesk.model.words import (
    TRANSITIONS as TRANSITIONS,
)
from itdesk.model.words import (
    Category as Category,
)
from itdesk.model.words import (
    Grant as Grant,
)
from itdesk.model.words import (
    MailKind as MailKind,
)
from itdesk.model.words import (
    MailStatus as MailStatus,
)
from itdesk.model.words import (
    Priority as Priority,
)
from itdesk.model.words import (
    Role as Role,
)
from itdesk.model.words import (
    ScanReason as ScanReason,
)
from itdesk.model.words import (
    ScanStatus as ScanStatus,
)
from itdesk.model.words import (
    Source as Source,
)
from itdesk.model.words import (
    Status as Status,
)
from itdesk.model.words import (
    Topic as Topic,
)


def new_id() -> UUID:
    """Return a new time-ordered id (UUIDv7, RFC 9562 section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


@frozen
class Caller:
    """Who asks for something, and from where.

    `session_id` is the session, or the API token, that vouches for it; `grant` is what that token
    may do, None in a session. Who `must_enrol` may do no more than set up their second factor.
    """

    user_id: UUID | None
    name: str
    role: Role
    source: Source = Source.API
    email: str = ""
    session_id: UUID | None = None
    request_id: str | None = None
    cause_id: UUID | None = None
    grant: Grant | None = None
    must_enrol: bool = False

    def has(self, role: Role) -> bool:
        """Return whether the caller holds this role or a higher one."""
        return self.role.rank >= role.rank

    def require(self, role: Role, doing: str = "do this") -> None:
        """Raise Forbidden unless the caller holds this role or a higher one."""
        if not self.has(role):
            raise Forbidden(f"Only {_HOLDERS[role]} may {doing}.")

    @property
    def scope(self) -> UUID | None:
        """Return the user whose own tickets are all that this caller sees, or None for all."""
        return None if self.has(Role.AGENT) else self.user_id


_HOLDERS = {
    Role.USER: "signed-in people",
    Role.AGENT: "agents, managers and administrators",
    Role.MANAGER: "managers and administrators",
    Role.ADMIN: "administrators",
}

SYSTEM = Caller(user_id=None, name="itdesk", role=Role.ADMIN, source=Source.SYSTEM)


@frozen
class User:
    """A person with an account."""

    id: UUID
    email: str
    name: str
    role: Role
    department: str | None
    avatar_url: str | None
    is_active: bool
    is_verified: bool
    created_at: datetime
    updated_at: datetime


@frozen
class ApiToken:
    """A token for scripts, without its secret; the last use is at most a minute late."""

    id: UUID
    name: str
    scope: Grant
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_ip: str | None
    created_at: datetime


@frozen
class SecondFactor:
    """Whether a code is asked for beside the password, and what there is instead of one."""

    enabled: bool
    required: bool
    confirmed_at: datetime | None
    recovery_codes_left: int


@frozen
class Assignee:
    """A person who can be given tickets, and how many open ones they have."""

    id: UUID
    name: str
    role: Role
    department: str | None
    open_tickets: int


@frozen
class Project:
    """A numbered series of tickets."""

    id: UUID
    key: str
    name: str
    description: str | None
    source: Literal["local", "jira"]
    created_at: datetime
    updated_at: datetime


@frozen
class External:
    """The remote issue that a ticket mirrors; its next newer update wins over local edits."""

    source: str
    id: str
    assignee: str | None
    updated_at: datetime | None
    last_synced_at: datetime | None


@frozen
class Ticket:
    """A request for help and what became of it."""

    id: UUID
    number: int
    key: str
    project_id: UUID
    project: str
    title: str
    description: str
    status: Status
    priority: Priority
    category: Category | None
    department: str | None
    tags: list[str]
    reporter_id: UUID | None
    reporter_name: str
    assignee_id: UUID | None
    assignee_ids: list[UUID]
    resolution: str | None
    predicted_priority: Priority | None
    predicted_category: Category | None
    external: External | None
    first_action_at: datetime | None
    closed_at: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime


@frozen
class Comment:
    """Something said on a ticket; an internal one is seen by agents and above only."""

    id: UUID
    ticket_id: UUID
    user_id: UUID | None
    author_name: str
    body: str
    internal: bool
    created_at: datetime
    updated_at: datetime


@frozen
class Attachment:
    """A file on a ticket and what the virus scan says of it."""

    id: UUID
    ticket_id: UUID
    uploaded_by: UUID | None
    original_filename: str
    object_key: str
    mime: str
    size: int
    sha256: str | None
    scanned_status: ScanStatus
    scan_reason: str | None
    scan_engine: str | None
    scan_signature: str | None
    scanned_at: datetime | None
    uploaded_at: datetime | None
    created_at: datetime


@frozen
class Change:
    """One field of a ticket before and after."""

    field: str
    old: Any
    new: Any


@frozen
class Event:
    """One row of the journal: who did what to which ticket, and why."""

    type: str
    actor_id: UUID | None
    actor_name: str
    source: Source
    ticket_id: UUID | None = None
    ticket_version: int | None = None
    changes: tuple[Change, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    cause_id: UUID | None = None
    id: UUID = field(default_factory=new_id)

    @classmethod
    def by(cls, caller: Caller, type: str, **fields: Any) -> "Event":
        """Return an event that this caller causes."""
        return cls(
            type=type,
            actor_id=caller.user_id,
            actor_name=caller.name,
            source=caller.source,
            request_id=caller.request_id,
            cause_id=caller.cause_id,
            **fields,
        )


@frozen
class LinkedIdentity:
    """An account elsewhere by which a person signs in here."""

    id: UUID
    provider: str
    issuer: str
    subject: str
    email: str
    created_at: datetime
    last_used_at: datetime | None


@frozen
class Position:
    """How far somebody has read the journal; another epoch makes every older seq meaningless."""

    epoch: UUID
    seq: int


@frozen
class Entry:
    """One numbered row of the journal: an event, when it was written, and its place."""

    seq: int
    event: Event
    created_at: datetime


@frozen
class Unseen:
    """What happened on a ticket after somebody looked: a public comment, or another status."""

    version: int
    type: str
    user_id: UUID | None
    user_name: str
    created_at: datetime
    comment_id: UUID | None
    body: str | None
    old_status: str | None
    new_status: str | None


@frozen
class Email:
    """A mail as operators see it; what it says stays unseen, for it may hold a way in."""

    id: UUID
    to_address: str
    subject: str
    kind: MailKind
    status: MailStatus
    attempts: int
    last_error: str | None
    next_attempt_at: datetime | None
    message_id: str | None
    ticket_id: UUID | None
    created_at: datetime
    sent_at: datetime | None


@frozen
class NotificationSettings:
    """Which mails about tickets somebody wants."""

    ticket_created: bool
    ticket_assigned: bool
    status_changed: bool
    comment_added: bool
    file_recalled: bool


@frozen
class HistoryEntry:
    """One line of a ticket's history."""

    id: str
    ticket_id: UUID
    user_id: UUID | None
    user_name: str
    action: str
    old_value: str | None
    new_value: str | None
    created_at: datetime


@frozen(kw_only=True)
class Passage:
    """A few lines that may help with a question: `source` and `url` say where they are from.

    `title` names what they were said about; `score` is above 0, and higher the better they fit.
    """

    source: str
    title: str
    text: str
    score: float
    url: str | None = None
