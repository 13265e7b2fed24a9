"""Mail: written in the transaction of what it tells of, delivered by a job, looked after by admins.

A mail's Message-ID is made with its row and never changes: a server that gets it twice, because a
process died between sending and saying so, can tell.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from itdesk.config import Settings
from itdesk.desk.letters import Letters, one_line
from itdesk.model import MailKind, MailStatus, new_id
from itdesk.store import emails
from itdesk.store.db import Database, Transaction
from itdesk.store.emails import NewEmail

DELIVER: Final = "mail.deliver"


class Mail:
    """The desk's outgoing mail."""

    def __init__(self, db: Database, settings: Settings) -> None:
        self._db = db
        self._settings = settings
        self._letters = Letters(settings.mail.templates_dir)
        self._domain = settings.server.link_base.partition("://")[2].partition("/")[0]

    @property
    def on(self) -> bool:
        """Return whether a plugin is there to send mail."""
        return self._settings.mail.plugin is not None

    def link(self, path: str, **query: str) -> str:
        """Return an address to put into a mail: a path of the frontend, or of this daemon."""
        tail = f"?{urlencode(query)}" if query else ""
        return f"{self._settings.server.link_base}/{path.lstrip('/')}{tail}"

    async def queue(
        self,
        tx: Transaction,
        template: str,
        to: str,
        values: Mapping[str, object],
        *,
        kind: MailKind,
        event_id: UUID | None = None,
    ) -> UUID:
        """Write a mail and queue its delivery, both with the transaction; return the mail's id.

        `desk`, the desk's name, is a value by itself. While no plugin sends mail it is `skipped`.
        """
        letter = self._letters.write(template, {"desk": self._settings.mail.desk_name, **values})
        id, blank = new_id(), kind.secret and not self.on
        mail = NewEmail(
            id=id,
            to_address=one_line(to),
            subject=letter.subject,
            text="" if blank else letter.text,
            html=None if blank else letter.html,
            kind=kind,
            status=MailStatus.QUEUED if self.on else MailStatus.SKIPPED,
            message_id=f"<{id}@{self._domain}>",
            event_id=event_id,
        )
        await emails.add(tx.conn, mail)
        if self.on:
            tx.enqueue(DELIVER, {"email_id": str(id)}, dedupe=f"mail:{id}", event_id=event_id)
        return id
