"""The words of the desk: roles, states and kinds, and what other desks call them."""

from collections.abc import Mapping
from enum import StrEnum


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


class SignInProblem(StrEnum):
    """Why a sign-in by an account elsewhere failed, as browsers are told by `?oauth_error=`."""

    NOT_CONFIGURED = "oauth_not_configured"
    DENIED = "oauth_denied"
    STATE = "oauth_state_invalid"
    ANSWER = "oauth_response_invalid"
    CODE = "oauth_code_invalid"
    TOKEN = "oauth_token_invalid"  # noqa: S105 - a word, not a token
    EMAIL = "oauth_email_not_verified"
    DOMAIN = "oauth_domain_not_allowed"
    REFUSED = "oauth_sign_in_refused"
    UNAVAILABLE = "oauth_unavailable"
    SECOND_FACTOR = "oauth_second_factor_required"


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
