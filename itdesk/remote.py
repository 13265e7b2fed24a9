"""The vocabulary of mirrors: what a remote tracker says of an issue, its comments and people.

A tracker's plugin translates into it; the desk writes it into tickets. What the remote side did
not speak of is absent here, and absent never erases.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Protocol, runtime_checkable
from uuid import UUID

from itdesk.frozen import frozen

# The fields that both sides may change.
SHARED: Final = ("title", "description", "status", "priority", "tags", "assignee")

# How the names begin under which comments are sent that only say what the ticket says itself.
ONLY_SAID: Final = "resolution/"


@frozen
class RemotePerson:
    """Somebody over there: matched to a local user by account or address, else kept as a name."""

    name: str
    account: str | None = None
    email: str | None = None


@frozen
class RemoteComment:
    """A comment over there; one that not everybody may read there is internal here.

    Unless it is `sure`, nothing was told of who may read it.
    """

    id: str
    body: str
    author: RemotePerson
    internal: bool = False
    created_at: datetime | None = None
    updated_at: datetime | None = None
    sure: bool = True


@frozen(kw_only=True)
class RemoteIssue:
    """What is known of an issue from one telling.

    `id` names it for good, `key` may change. `fields` holds what was told, in the desk's words:
    title, description, status, priority, category, tags, and assignee and reporter as RemotePerson
    or None. Without `updated_at` the telling cannot be placed in time: such fields only open a
    ticket that is not there yet. With `all_comments` the comments are all there are, so that
    others are gone. `origin` is the id of the ticket here that the issue says it was made from.
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
    origin: UUID | None = None

    @property
    def project(self) -> str:
        """Return the key of the issue's project."""
        return self.key.rpartition("-")[0]


@frozen
class Mirrored:
    """What became of a telling: the ticket, if there is one, and whether it was made or changed.

    `status` is ok, or duplicate or ignored when there was nothing to look at. `drift` names the
    fields in which the ticket was not what the telling says.
    """

    key: str
    ticket_id: UUID | None
    created: bool = False
    updated: bool = False
    status: str = "ok"
    drift: tuple[str, ...] = ()


class Winner(StrEnum):
    """Whose word counts about a field that both sides changed."""

    REMOTE = "remote"
    LOCAL = "local"
    LAST_WRITER = "last_writer"


@frozen
class Rules:
    """How one tracker's mirror works in both directions.

    `winner` decides by the remote project's key and the field. `push` is the kind of job that
    sends changes, or None when nothing is sent. `worded` is how a comment is written over there,
    from its author's name and its text; `said` is the text again.
    """

    winner: Callable[[str, str], Winner]
    worded: Callable[[str, str], str]
    said: Callable[[str, str], str]
    push: str | None = None


@frozen
class Shadow:
    """What is known of the remote side of a ticket: fingerprints of its fields there.

    `known` is what it was last heard to say, `sent` what was last sent and not changed there since,
    `countered` what was last answered by sending our own again.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    sent: Mapping[str, str] = field(default_factory=dict)
    countered: Mapping[str, str] = field(default_factory=dict)
    creating: bool = False


def fingerprint(value: Any) -> str:
    """Return what contents share that differ only in how they are laid out."""
    if isinstance(value, RemotePerson):
        value = value.account or value.email or value.name
    if isinstance(value, list | tuple):
        value = "\n".join(sorted(str(entry).casefold() for entry in value))
    text = " ".join(str("" if value is None else value).split())
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:20]


def mark_of(name: str, value: Any) -> str:
    """Return the fingerprint of a field's content; long texts are their words, however marked."""
    if name == "description" and isinstance(value, str):
        return fingerprint(" ".join(re.findall(r"\w+", value)) or value)
    return fingerprint(value)


@frozen
class SyncState:
    """How far the mirror of one remote project has come."""

    project_key: str
    last_synced_at: datetime | None
    last_cursor: str | None
    last_error: str | None
    last_run_at: datetime | None
    updated_at: datetime


@frozen
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
