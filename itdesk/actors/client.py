"""One websocket as the hub knows it: whose it is, until when, and what it wants to hear."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

from itdesk.actors.frames import Delivery
from itdesk.actors.outbox import Outbox
from itdesk.model import Caller, Role


class Goodbye(Enum):
    """Why the server ends a conversation: the close code, the metric's label, and words."""

    TOKEN = 4401, "token", "sign in: the token is missing or not valid"
    QUERY = 4401, "query", "a token is never read from the query string"
    EXPIRED = 4401, "expired", "the access token has expired"
    ENDED = 4401, "ended", "the session has ended"
    ROLE = 4401, "role", "your role has changed"
    FACTOR = 4403, "factor", "set up your second factor first"
    TICKET = 4403, "ticket", "there is no such ticket"
    OTHER = 4403, "other", "this token is somebody else's"
    SILENT = 4408, "no_auth", "no token came in time"
    SLOW = 1013, "slow", "too slow: resume where you were"
    UNAVAILABLE = 1013, "unavailable", "try again shortly"
    GONE = 1001, "gone", "no answer to a ping"
    SHUTDOWN = 1001, "shutdown", "the desk is going down"
    FLOOD = 1008, "flood", "too many frames"
    SOCKETS = 1008, "sockets", "too many websockets"

    def __init__(self, code: int, label: str, words: str) -> None:
        self.code, self.label, self.words = code, label, words


def _nobody() -> None:
    pass


@dataclass(slots=True, eq=False)
class Client:
    """An authenticated websocket."""

    caller: Caller
    user_id: UUID
    session_id: UUID
    expires_at: datetime
    outbox: Outbox
    pinged: float
    heard: float
    is_agent: bool = field(init=False)
    tickets: frozenset[UUID] | None = None
    # The last seq that went out; what is not beyond it was sent before.
    position: int = -1
    live: bool = False
    goodbye: Goodbye | None = None
    on_goodbye: Callable[[], object] = _nobody

    def __post_init__(self) -> None:
        self.is_agent = self.caller.has(Role.AGENT)

    def close(self, goodbye: Goodbye) -> bool:
        """Send nothing more and have the websocket closed; False if that was said before."""
        if self.goodbye is not None:
            return False
        self.goodbye = goodbye
        self.outbox.stop()
        self.on_goodbye()
        return True

    def may_read(self, readers: frozenset[UUID]) -> bool:
        """Return whether a ticket with these readers is for this client."""
        return self.is_agent or self.user_id in readers

    def wants(self, delivery: Delivery) -> bool:
        """Return whether an event is for this client."""
        listed = self.tickets is None or delivery.ticket in self.tickets
        return listed and (self.may_read(delivery.readers) or self.user_id in delivery.leavers)

    def frame(self, delivery: Delivery) -> bytes:
        """Return what this client sees of an event that it wants."""
        if self.is_agent:
            return delivery.whole
        return delivery.public if self.user_id in delivery.readers else delivery.gone


@dataclass(slots=True)
class Allowance:
    """How many websockets one person has, and how many more frames they may send now."""

    left: float
    at: float
    sockets: int = 0

    def take(self, now: float, per_second: float) -> bool:
        """Count one frame; False when it is one too many."""
        self.left = min(2 * per_second, self.left + (now - self.at) * per_second)
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True
