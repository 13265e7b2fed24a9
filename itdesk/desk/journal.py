"""The journal as an audit log: what happened on this desk, in the order of its numbers."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Caller, Change, Entry, Role, Source
from itdesk.store import events
from itdesk.store.db import Database
from itdesk.store.events import Wanted
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

# What is read from the database at once while exporting.
_STRIDE = 1_000
_BEFORE_ALL, _BEYOND_ALL = 0, 2**63 - 1


@frozen
class JournalRow:
    """One event of the journal with its number."""

    seq: int
    id: UUID
    type: str
    created_at: datetime
    actor_id: UUID | None
    actor_name: str
    source: Source
    ticket_id: UUID | None
    ticket_version: int | None
    changes: list[Change]
    data: dict[str, Any]
    request_id: str | None
    cause_id: UUID | None


class Journal:
    """Reads the journal on behalf of an administrator."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def list(
        self, caller: Caller, wanted: Wanted, window: Window, *, newest_first: bool
    ) -> Page[JournalRow]:
        """Return one page of the events that are asked for."""
        caller.require(Role.ADMIN, "read the journal")
        sort = "-seq" if newest_first else "seq"
        start = _BEYOND_ALL if newest_first else _BEFORE_ALL
        if window.cursor is not None:
            (start,) = decode_cursor(window.cursor, sort, (int,))
        async with self._db.connection() as conn:
            found = await events.journal_page(
                conn, wanted, after_seq=start, limit=window.limit + 1, newest_first=newest_first
            )
        page = Page.cut(found, window.limit, lambda entry: encode_cursor(sort, entry.seq))
        return Page([_row(entry) for entry in page.items], page.next_cursor)

    async def export(self, caller: Caller, wanted: Wanted) -> AsyncIterator[JournalRow]:
        """Yield all events that are asked for, oldest first, in constant memory.

        Everything numbered before the first row was read is among them.
        """
        caller.require(Role.ADMIN, "read the journal")
        seq = _BEFORE_ALL
        while True:
            async with self._db.connection() as conn:
                found = await events.journal_page(conn, wanted, after_seq=seq, limit=_STRIDE)
            for entry in found:
                yield _row(entry)
            if len(found) < _STRIDE:
                return
            seq = found[-1].seq


def _row(entry: Entry) -> JournalRow:
    event = entry.event
    return JournalRow(
        seq=entry.seq,
        id=event.id,
        type=event.type,
        created_at=entry.created_at,
        actor_id=event.actor_id,
        actor_name=event.actor_name,
        source=event.source,
        ticket_id=event.ticket_id,
        ticket_version=event.ticket_version,
        changes=list(event.changes),
        data=dict(event.data),
        request_id=event.request_id,
        cause_id=event.cause_id,
    )
