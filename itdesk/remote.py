"""The vocabulary of mirrors: what a remote tracker says of an issue, its comments and people.

A tracker's plugin translates into it; the desk writes it into tickets. What the remote side did
not speak of is absent here, and absent never erases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol, runtime_checkable
from uuid import UUID


@dataclass(frozen=True, slots=True)
class RemotePerson:
    """Somebody over there: matched to a local user by account or address, else kept as a name."""

    name: str
    account: str | None = None
    email: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteComment:
    """A comment over there; one that not everybody may read there is internal here."""

    id: str
    body: str
    author: RemotePerson
    internal: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteIssue:
    """What is known of an issue from one telling.

    `id` names it for good, `key` may change. `fields` holds what was told, in the desk's words:
    title, description, status, priority, category, tags, and assignee and reporter as RemotePerson
    or None. Without `updated_at` the telling cannot be placed in time: such fields only open a
    ticket that is not there yet. With `all_comments` the comments are all there are, so that
    others are gone.
    """

    source: str
    key: str
    id: str | None = None
    former_key: str | None = None
    project_name: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    created_at: datetime | None = None
    updated_at: datetime | None = None
    comments: tuple[RemoteComment, ...] = ()
    all_comments: bool = False
    gone_comments: tuple[str, ...] = ()
    gone: bool = False

    @property
    def project(self) -> str:
        """Return the key of the issue's project."""
        return self.key.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Mirrored:
    """What became of a telling: the ticket, if there is one, and whether it was made or changed.

    `status` is ok, or duplicate or ignored when there was nothing to look at.
    """

    key: str
    ticket_id: UUID | None
    created: bool = False
    updated: bool = False
    status: str = "ok"


@dataclass(frozen=True, slots=True)
class SyncState:
    """How far the mirror of one remote project has come."""

    project_key: str
    last_synced_at: datetime | None
    last_cursor: str | None
    last_error: str | None
    last_run_at: datetime | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One walk through what changed over there; created, updated, unchanged and errors add up."""

    status: str
    project_key: str | None
    since: datetime
    fetched: int
    created: int
    updated: int
    unchanged: int
    errors: list[str]


@runtime_checkable
class Tracker(Protocol):
    """A remote issue tracker that the desk mirrors, at /api/v1/integrations/<name>/.

    What it learns it tells `desk.mirror`. It raises `itdesk.errors.DeskError`s only: BadRequest
    for a body that it cannot read, UpstreamFailed when the tracker is out.
    """

    name: str
    connected: bool
    """Whether the tracker can be asked, and not only listened to."""
    secret: bytes
    """What the bodies of webhooks are signed with (HMAC-SHA256), or nothing."""

    async def receive(
        self, body: Any, headers: Mapping[str, str], *, digest: str, request_id: str | None
    ) -> Mirrored:
        """Write a webhook into tickets; `digest` is the same for the same bytes."""

    async def reconcile(self, *, since: datetime | None, project_key: str | None) -> Reconciled:
        """Compare what changed over there since a time, or since the last run."""
