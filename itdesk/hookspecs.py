"""The plugin contract: everything a plugin can be asked for, and what it is given.

A plugin is a class built as `Plugin(settings)`. It has a `name`, `itdesk_api = 1` and a pydantic
model `Settings` for its section `[plugins.<name>]`. An entry point of the group `itdesk`, or a
drop-in file, names it `Plugin` in its module. It marks its methods with `hookimpl`; each of them
may be `def` or `async def`, and may leave out arguments that it does not need:

    from itdesk.hookspecs import hookimpl

    class Plugin:
        name, itdesk_api, Settings = "hello", 1, HelloSettings

        def __init__(self, settings: HelloSettings) -> None: ...

        @hookimpl
        async def itdesk_event(self, desk, event): ...

A hook that raises, returns something else than promised or exceeds its time (`timeout_seconds`,
5) is logged and counted with the plugin's name and never reaches the desk or another plugin. When
that happens at the start the plugin is out until it is enabled, and shown by /readyz. A section may
say `required = true`: then the desk does not start without the plugin. A plain `def` runs on the
event loop: what takes longer than a few milliseconds belongs into a thread.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import pluggy

from itdesk.frozen import frozen
from itdesk.language import LanguageModel as LanguageModel
from itdesk.mailing import Mailer as Mailer
from itdesk.mailing import Outgoing as Outgoing
from itdesk.model import Caller, Event, Role, ScanReason, Ticket
from itdesk.model import Passage as Passage
from itdesk.model.words import SignInProblem as SignInProblem
from itdesk.remote import Tracker as Tracker

if TYPE_CHECKING:
    from itdesk.api.route import Route
    from itdesk.desk import Desk
    from itdesk.desk.jobs import Job
    from itdesk.runtime.metrics import Metrics

hookspec = pluggy.HookspecMarker("itdesk")
hookimpl = pluggy.HookimplMarker("itdesk")


@frozen
class Stored:
    """An object that a storage holds: its size in bytes, and its sha256 when it was computed."""

    size: int
    sha256: str | None = None


@frozen
class Listed:
    """An object in a listing: its size in bytes, and its age in seconds by the storage's clock."""

    key: str
    size: int
    age: float


@frozen
class Presigned:
    """A request that a client may make by itself until it expires."""

    url: str
    method: str
    headers: Mapping[str, str]


@runtime_checkable
class Storage(Protocol):
    """Where attachments' bytes live; keys are opaque and made by the desk.

    Every method raises `itdesk.errors.Unavailable` when the storage is out for now and
    `itdesk.errors.StorageFull` when it has no room, and `itdesk.errors.BadRequest` when a key is
    none. A write is whole or nothing.
    """

    name: str
    takes_uploads: bool
    """Whether clients upload to presigned addresses of its own, unseen by the desk."""

    async def write(self, key: str, chunks: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Store an object under a key, replacing an older one; TooLarge past `limit` bytes."""

    def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield an object's bytes in chunks of at most 1 MiB; NotFound when there is none."""

    async def stat(self, key: str) -> Stored | None:
        """Return what is stored under a key, or None."""

    async def delete(self, key: str) -> None:
        """Forget an object; a missing one is no error."""

    def list(self, prefix: str) -> AsyncIterator[Sequence[Listed]]:
        """Yield what lies below a prefix, which ends in `/`: pages of at most 1,000 objects.

        In the order of keys as bytes. What comes or goes meanwhile may be among them or not.
        """

    async def sweep(self, *, older_than: float) -> int:
        """Remove what writes that never ended left so many seconds ago; return how many."""

    def presign_put(self, key: str, *, size: int, mime: str, expires_in: int) -> Presigned | None:
        """Return an upload request signed by the storage, or None: the desk then takes it."""

    def presign_get(
        self, key: str, *, filename: str, mime: str, expires_in: int
    ) -> Presigned | None:
        """Return a download request signed by the storage, or None: the desk then serves it."""

    async def check(self) -> None:
        """Write, read and delete a probe; raise a DeskError that says what to mend."""


@frozen
class Verdict:
    """What one engine says of one file.

    `clean` and `signature` are None when the file was not scanned; then `reason` says why and
    `retry` whether a later try may succeed. `engine` names the engine and its signature version.
    """

    engine: str
    clean: bool | None
    signature: str | None = None
    reason: ScanReason | None = None
    retry: bool = False
    detail: str = ""


@runtime_checkable
class ScanEngine(Protocol):
    """A virus scanner; it is only believed after its start-up probe passed."""

    name: str
    max_file_size: int | None
    unpacks: bool
    """Whether it looks into archives of every usual kind by itself."""

    async def scan(self, path: Path, *, size: int, timeout: float) -> Verdict:
        """Scan a private local file that does not change meanwhile; never raises for its content.

        Raises `itdesk.errors.Unavailable` when the engine cannot be reached.
        """

    async def probe(self) -> list[str]:
        """Try known samples; return what is weak about the engine's settings (empty: trusted).

        Raises `itdesk.errors.Unavailable` when the engine cannot be reached.
        """

    async def signatures(self) -> str:
        """Return the engine and its signature version; when it changes, files are scanned again.

        Asked about once a minute. Raises `itdesk.errors.Unavailable` when the engine cannot be
        reached.
        """


class SignInRefused(Exception):
    """Nobody is signed in: the problem is for the browser, the reason for the operator's log.

    A reason says what was wrong and never quotes it: codes and tokens stay out of logs.
    """

    def __init__(self, problem: SignInProblem, reason: str):
        super().__init__(reason)
        self.problem = problem
        self.reason = reason


@frozen
class SignInAttempt:
    """What one attempt to sign in is known by; all of it comes from a secret of the browser.

    `state` is also what the provider must send back; the desk compares it. Nobody but the browser
    can tell the three from one another's value, and nobody knows them a second time.
    """

    state: str
    nonce: str = field(repr=False)
    verifier: str = field(repr=False)
    redirect_uri: str


@frozen(kw_only=True)
class Identity:
    """An account elsewhere that somebody proved to have; `role` None leaves roles to the desk.

    `email_verified` is True only when the provider vouches for the address: the desk links by it.
    """

    issuer: str
    subject: str
    email: str
    email_verified: bool
    name: str = ""
    picture: str | None = None
    role: Role | None = None


@runtime_checkable
class IdentityProvider(Protocol):
    """Somebody else who knows people: an OpenID provider, for instance.

    Both steps raise `SignInRefused`, or `itdesk.errors.Unavailable` when the provider is out, and
    keep a deadline of their own. State, linking and sessions are the desk's.
    """

    name: str
    label: str
    """What the button to it says."""
    redirect_uri: str | None
    """Where it sends browsers back to; None: /api/auth/<name>/callback of this desk."""
    creates_accounts: bool | None
    """Whether people without an account get one; None: as `auth.allow_registration` says."""

    async def begin(self, attempt: SignInAttempt) -> str:
        """Return where the browser goes to sign in."""

    async def finish(self, attempt: SignInAttempt, answer: Mapping[str, str]) -> Identity:
        """Return who came back, from what the browser brought along in the query."""

    async def check(self) -> None:
        """Try for real; raise a DeskError that says what to mend."""


class RetryLater(Exception):
    """A job could not be done yet: try it again after so many seconds, and no sooner.

    Unless `counted`, this attempt is none: what was asked is out for now, and that may last.
    """

    def __init__(self, seconds: float, reason: str = "asked to wait", *, counted: bool = True):
        super().__init__(reason)
        self.seconds = seconds
        self.reason = reason
        self.counted = counted


class GiveUp(Exception):
    """A job can never be done: fail it at once, with this reason for operators to read."""


def _no_key(event: Event) -> str | None:
    return None


def _always(event: Event) -> bool:
    return True


def _about(event: Event) -> Mapping[str, Any]:
    ticket_id = None if event.ticket_id is None else str(event.ticket_id)
    return {"type": event.type, "ticket_id": ticket_id, "ticket_version": event.ticket_version}


@frozen(kw_only=True)
class JobType:
    """A kind of work that must happen, once its cause was committed, whatever crashes meanwhile.

    Every event of the types `on_events`, if `when` is true of it, queues one job in the event's own
    transaction, with what `args`, `lane` and `dedupe` make of it: quickly, without effects and
    without waiting. Jobs of one lane run one at a time and in order, a failed attempt holding up
    those behind it. A job is left out when one with the same dedupe key is unfinished: the key must
    name the very work, with what it is about as of now (a version, an event), or newer work is lost
    behind older.

    `handle` is run at least once: a process may die right after it. What it does in
    `async with job.transaction()` happens once exactly, together with the end of the job; what it
    asks of others, `async with job.sending()`, carries `job.key`, the same at every attempt, so
    that they can tell. It is cut after `timeout_seconds`; when it raises it is tried again, up to
    `attempts` times, after growing pauses. `concurrency` is how many each daemon runs at a time.
    After a backup was restored, what is `outbound` waits until an operator resumes: say False only
    of work that tells nobody outside of the desk anything. What happens while the plugin is
    switched off leads to no jobs, unless it `catches_up`: then to the same ones, once it is on.
    """

    name: str
    handle: "Callable[[Job], Awaitable[None]]"
    concurrency: int = 1
    attempts: int = 5
    timeout_seconds: float = 60.0
    on_events: tuple[str, ...] = ()
    outbound: bool = True
    catches_up: bool = False
    when: Callable[[Event], bool] = _always
    lane: Callable[[Event], str | None] = _no_key
    args: Callable[[Event], Mapping[str, Any]] = _about
    dedupe: Callable[[Event], str | None] = _no_key


@frozen(kw_only=True)
class Schedule:
    """Work that is due once in every so many seconds, for all daemons together.

    Periods are counted from 1970 by the database's clock. After an outage the work is done once,
    not once for each period missed. `run` is a job's handler, `outbound` as there: see JobType.
    """

    name: str
    seconds: int
    run: "Callable[[Job], Awaitable[None]]"
    attempts: int = 3
    timeout_seconds: float = 300.0
    outbound: bool = True


@frozen
class Health:
    """How one part of the desk is: `ok`, and if not, why and what to do."""

    ok: bool
    reason: str = ""


@hookspec
def itdesk_lifespan(desk: "Desk") -> AbstractAsyncContextManager[None]:  # type: ignore[empty-body]
    """Return a context: entered before the daemon serves or the plugin is on, left when that ends.

    Clients and sessions belong here. Plugins are left in the reverse order of entering.
    """


@hookspec
def itdesk_storage(desk: "Desk") -> Storage | None:
    """Return the storage for attachments that this plugin provides."""


@hookspec
def itdesk_scan_engine(desk: "Desk") -> ScanEngine | None:
    """Return the virus scanner that this plugin provides; all engines must agree on CLEAN."""


@hookspec
def itdesk_tracker(desk: "Desk") -> Tracker | None:
    """Return the remote issue tracker whose issues this plugin mirrors as tickets."""


@hookspec
def itdesk_model(desk: "Desk") -> LanguageModel | None:
    """Return a language model; of several the one of the plugin that `ai.plugin` names is asked."""


@hookspec
def itdesk_mailer(desk: "Desk") -> Mailer | None:
    """Return what sends mail; of several the one of the plugin that `mail.plugin` names does."""


@hookspec
def itdesk_identity(desk: "Desk") -> IdentityProvider | None:
    """Return the provider of identities that people may sign in by; its name is the plugin's."""


@hookspec
def itdesk_routes() -> Sequence["Route"]:  # type: ignore[empty-body]
    """Return routes that the desk serves for this plugin, `/hello` as
    /api/v1/plugins/<name>/hello."""


@hookspec
def itdesk_jobs(desk: "Desk") -> Sequence[JobType]:  # type: ignore[empty-body]
    """Return kinds of durable work, named `<plugin>.<name>`: see JobType."""


@hookspec
def itdesk_schedule(desk: "Desk") -> Sequence[Schedule]:  # type: ignore[empty-body]
    """Return work to do periodically, named `<plugin>.<name>`: see Schedule."""


@hookspec
def itdesk_reload(settings: Any) -> None:
    """Work with these settings, already checked, from now on; without it they need a restart."""


@hookspec
def itdesk_health() -> Health | None:
    """Return how this plugin is; asked for /readyz, so answer from memory or within a second."""


@hookspec
def itdesk_metrics(metrics: "Metrics") -> None:
    """Create this plugin's metrics, named itdesk_<plugin>_..., before the daemon serves."""


@hookspec
def itdesk_validate_ticket(
    caller: Caller, before: Ticket | None, after: Ticket
) -> Sequence[str] | None:
    """Return problems that forbid this change (an auditor: it has no effects of its own)."""


@hookspec
def itdesk_event(desk: "Desk", event: Event) -> None:
    """React to a committed change (a reactor: told once at most, after the commit)."""


@hookspec
def itdesk_knowledge(desk: "Desk", caller: Caller, query: str) -> Sequence[Passage] | None:
    """Return what fits a query, best first and only what this caller may see: quickly, as whoever
    asks waits for it."""


@hookspec
def itdesk_cli() -> Sequence[Any] | None:
    """Return click commands to add below `itdesk <plugin>`."""
