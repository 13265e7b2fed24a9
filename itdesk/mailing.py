"""The vocabulary of mail: what is to be sent, and what can send it."""

from datetime import datetime
from typing import Protocol, runtime_checkable
from uuid import UUID

from itdesk.frozen import frozen


@frozen(kw_only=True)
class Outgoing:
    """A mail to one address, with the same content and Message-ID at every attempt.

    Mails of one `thread` belong together: it is what their In-Reply-To and References name.
    """

    id: UUID
    message_id: str
    to_address: str
    subject: str
    text: str
    html: str | None
    thread: str | None
    created_at: datetime


@runtime_checkable
class Mailer(Protocol):
    """What sends the desk's mail; called from several jobs at a time."""

    name: str

    async def deliver(self, mail: Outgoing) -> None:
        """Return once somebody else has taken the mail over.

        Raises GiveUp when this mail can never be delivered, RetryLater when it may be later, and
        `itdesk.errors.Unavailable` when none can be sent now: that is waited for without end.
        """

    async def check(self) -> str:
        """Do all but send a mail and return what was found; a DeskError says what to mend."""
