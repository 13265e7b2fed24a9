"""The vocabulary of the desk: tickets, people, files, events, and who is asking.

Everything here is a plain frozen dataclass or enum without behaviour beyond its own rules; the
same objects go to plugins and, encoded field by field, out as the JSON of the API.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from itdesk.errors import Forbidden


def new_id() -> UUID:
    """Return a new time-ordered id (UUIDv7, RFC 9562 section 5.7)."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


class Role(StrEnum):
    """What a person may do; each role includes the ones before it."""

    USER = "user"
    AGENT = "agent"
    MANAGER = "manager"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Return the place in the order user < agent < manager < admin."""
        return _ROLE_RANK[self]


_ROLE_RANK = {role: rank for rank, role in enumerate(Role)}


class Grant(StrEnum):
    """How much of its owner's rights an API token has; each includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: "Grant") -> bool:
        """Return whether what needs the other may be done with this one."""
        return _GRANT_RANK[self] >= _GRANT_RANK[other]

    def cap(self, role: Role) -> Role:
        """Return what is left of its owner's role: only the widest leaves an administrator one."""
        return Role.MANAGER if role is Role.ADMIN and self is not Grant.ADMIN else role


_GRANT_RANK = {grant: rank for rank, grant in enumerate(Grant)}


class Status(StrEnum):
    """Where a ticket is in its life."""

    OPEN = "open"
    TRIAGED = "triaged"
    IN_PROGRESS = "in_progress"
    BLOCKED = "blocked"
    CLOSED = "closed"


class Priority(StrEnum):
    """How urgent a ticket is."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Category(StrEnum):
    """What a ticket is about."""

    INFRASTRUCTURE = "infrastructure"
    NETWORK = "network"
    SECURITY = "security"
    APPLICATION = "application"
    SERVICE_REQUEST = "service_request"
    HARDWARE = "hardware"
    EMAIL = "email"
    PROBLEM = "problem"


class ScanStatus(StrEnum):
    """What is known of an attachment's content; only CLEAN is ever served."""

    PENDING = "PENDING"
    CLEAN = "CLEAN"
    INFECTED = "INFECTED"
    FAILED = "FAILED"


class ScanReason(StrEnum):
    """Why an attachment waits or was not found clean."""

    LIMITS = "limits"
    ENCRYPTED = "encrypted"
    TIMEOUT = "timeout"
    ENGINE_DOWN = "engine_down"
    MISSING = "missing"
    CHANGED = "changed"
    UNREADABLE = "unreadable"
    TYPE = "type"


class Source(StrEnum):
    """Where a change came from."""

    API = "api"
    WORKFLOW = "workflow"
    JIRA = "jira"
    MAIL = "mail"
    CLI = "cli"
    AI = "ai"
    SYSTEM = "system"


class MailKind(StrEnum):
    """What a mail is for; all but notifications carry something that only its reader may have."""

    VERIFICATION = "verification"
    WELCOME = "welcome"
    PASSWORD_RESET = "password_reset"
    NOTIFICATION = "notification"

    @property
    def secret(self) -> bool:
        """Return whether its body is to be gone once it was sent, and shown to nobody."""
        return self is not MailKind.NOTIFICATION


class MailStatus(StrEnum):
    """What became of a mail; `skipped` ones were written while no plugin could send them."""

    QUEUED = "queued"
    SENT = "sent"
    FAILED = "failed"
    SKIPPED = "skipped"


class Topic(StrEnum):
    """What of a ticket people are told by mail, each on or off for each of them."""

    TICKET_CREATED = "ticket_created"
    TICKET_ASSIGNED = "ticket_assigned"
    STATUS_CHANGED = "status_changed"
    COMMENT_ADDED = "comment_added"
    FILE_RECALLED = "file_recalled"


TRANSITIONS: Mapping[Status, tuple[Status, ...]] = {
    Status.OPEN: (Status.TRIAGED, Status.IN_PROGRESS, Status.CLOSED),
    Status.TRIAGED: (Status.OPEN, Status.IN_PROGRESS, Status.CLOSED),
    Status.IN_PROGRESS: (Status.OPEN, Status.CLOSED, Status.BLOCKED),
    Status.BLOCKED: (Status.IN_PROGRESS, Status.OPEN),
    Status.CLOSED: (Status.OPEN, Status.IN_PROGRESS),
}

# Words that other desks use for ours; read on input, never written.
ROLE_ALIASES: Mapping[str, Role] = {
    "reporter": Role.USER,
    "viewer": Role.USER,
    "client": Role.USER,
    "maintainer": Role.AGENT,
    "support": Role.AGENT,
}
STATUS_ALIASES: Mapping[str, Status] = {
    "done": Status.CLOSED,
    "resolved": Status.CLOSED,
    "pending": Status.BLOCKED,
    "waiting": Status.BLOCKED,
}
PRIORITY_ALIASES: Mapping[str, Priority] = {"med": Priority.MEDIUM}


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token for scripts, without its secret; the last use is at most a minute late."""

    id: UUID
    name: str
    scope: Grant
    expires_at: datetime | None
    last_used_at: datetime | None
    last_used_ip: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SecondFactor:
    """Whether a code is asked for beside the password, and what there is instead of one."""

    enabled: bool
    required: bool
    confirmed_at: datetime | None
    recovery_codes_left: int


@dataclass(frozen=True, slots=True)
class Assignee:
    """A person who can be given tickets, and how many open ones they have."""

    id: UUID
    name: str
    role: Role
    department: str | None
    open_tickets: int


@dataclass(frozen=True, slots=True)
class Project:
    """A numbered series of tickets."""

    id: UUID
    key: str
    name: str
    description: str | None
    source: Literal["local", "jira"]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class External:
    """The remote issue that a ticket mirrors; its next newer update wins over local edits."""

    source: str
    id: str
    assignee: str | None
    updated_at: datetime | None
    last_synced_at: datetime | None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a ticket before and after."""

    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Position:
    """How far somebody has read the journal; another epoch makes every older seq meaningless."""

    epoch: UUID
    seq: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One numbered row of the journal: an event, when it was written, and its place."""

    seq: int
    event: Event
    created_at: datetime


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class NotificationSettings:
    """Which mails about tickets somebody wants."""

    ticket_created: bool
    ticket_assigned: bool
    status_changed: bool
    comment_added: bool
    file_recalled: bool


@dataclass(frozen=True, slots=True)
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
