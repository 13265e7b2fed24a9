"""The journal: every accepted change, written in the transaction that made it."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson

from itdesk.model import Event, HistoryEntry
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor


async def append(conn: Any, events: Sequence[Event]) -> None:
    """Add events to the journal, in order, in one statement."""
    # JSON goes as text: asyncpg would take a list of lists for an array of more dimensions.
    query = """
        INSERT INTO events (id, ticket_id, ticket_version, type, actor_id, actor_name, source,
                            changes, data, request_id, cause_id)
        SELECT id, ticket_id, version, type, actor_id, actor_name, source, changes::jsonb,
               data::jsonb, request_id, cause_id
        FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::uuid[], $6::text[],
                    $7::text[], $8::text[], $9::text[], $10::text[], $11::uuid[])
             AS e (id, ticket_id, version, type, actor_id, actor_name, source, changes, data,
                   request_id, cause_id)
    """
    await conn.execute(
        query,
        [e.id for e in events],
        [e.ticket_id for e in events],
        [e.ticket_version for e in events],
        [e.type for e in events],
        [e.actor_id for e in events],
        [e.actor_name for e in events],
        [e.source for e in events],
        [orjson.dumps(e.changes).decode() for e in events],
        [orjson.dumps(dict(e.data)).decode() for e in events],
        [e.request_id for e in events],
        [e.cause_id for e in events],
    )


_SORT = "version"

# One line per changed field; an event that changes no field is one line by itself.
_LINES = """
    FROM events e
    LEFT JOIN LATERAL jsonb_array_elements(
        CASE WHEN e.type = 'ticket.updated' THEN e.changes ELSE '[]' END
    ) WITH ORDINALITY AS change (what, place) ON true
    WHERE e.ticket_id = $1 AND ($2 OR NOT coalesce((e.data ->> 'internal')::bool, false))
"""


async def history_page(
    conn: Any,
    ticket_id: UUID,
    window: Window,
    *,
    internal: bool,
) -> Page[HistoryEntry]:
    """Return one page of a ticket's history, oldest first; internal doings only when asked."""
    version, place = (
        decode_cursor(window.cursor, _SORT, (int, int)) if window.cursor is not None else (0, 0)
    )
    query = f"""
        SELECT e.id, e.ticket_id, e.ticket_version, e.type, e.actor_id, e.actor_name, e.data,
               e.created_at, change.what, coalesce(change.place, 0) AS place
        {_LINES} AND (e.ticket_version, coalesce(change.place, 0)) > ($3::bigint, $4::bigint)
        ORDER BY e.ticket_version, place LIMIT $5 OFFSET $6
    """  # noqa: S608 - a literal of this module
    rows = await conn.fetch(
        query, ticket_id, internal, version, place, window.limit + 1, window.offset
    )
    page = Page.cut(
        rows, window.limit, lambda row: encode_cursor(_SORT, row["ticket_version"], row["place"])
    )
    return Page([_line(row) for row in page.items], page.next_cursor)


async def count_history(conn: Any, ticket_id: UUID, *, internal: bool) -> int:
    """Return how many lines a ticket's history has in all."""
    query = f"SELECT count(*) {_LINES}"  # noqa: S608 - a literal of this module
    total: int = await conn.fetchval(query, ticket_id, internal)
    return total


async def erase_ticket(conn: Any, ticket_id: UUID) -> None:
    """Delete a ticket's events, which the journal only lets go of with its ticket."""
    await conn.execute("SET LOCAL itdesk.erase = 'on'")
    await conn.execute("DELETE FROM events WHERE ticket_id = $1", ticket_id)
    await conn.execute("SET LOCAL itdesk.erase = 'off'")


_ACTIONS = {
    "ticket.created": "created",
    "comment.added": "comment_added",
    "attachment.added": "attachment_added",
    "attachment.scanned": "attachment_scanned",
    "attachment.deleted": "attachment_deleted",
    "attachment.recalled": "attachment_recalled",
}


def _line(row: Any) -> HistoryEntry:
    if row["what"] is not None:
        change = row["what"]
        action = f"updated_{change['field']}"
        old, new = change["old"], change["new"]
    else:
        action = _ACTIONS.get(row["type"], row["type"].replace(".", "_"))
        old, new = row["data"].get("old"), row["data"].get("new")
    return HistoryEntry(
        id=f"{row['id']}.{row['place']}",
        ticket_id=row["ticket_id"],
        user_id=row["actor_id"],
        user_name=row["actor_name"],
        action=action,
        old_value=_text(old),
        new_value=_text(new),
        created_at=row["created_at"],
    )


def _text(value: Any) -> str | None:
    """Return a journaled value as history shows it: a list as its entries with commas."""
    if value is None:
        return None
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value)
    return str(value)
