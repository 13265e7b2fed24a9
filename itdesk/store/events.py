"""The journal: every accepted change, written in the transaction that made it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from itdesk.frozen import frozen
from itdesk.model import Change, Entry, Event, HistoryEntry, Position, Source, Unseen
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor

# JSON goes as text: asyncpg would take a list of lists for an array of more dimensions.
INSERT = """
    INSERT INTO events (id, ticket_id, ticket_version, type, actor_id, actor_name, source,
                        changes, data, request_id, cause_id)
    SELECT id, ticket_id, version, type, actor_id, actor_name, source, changes::jsonb,
           data::jsonb, request_id, cause_id
    FROM unnest($1::uuid[], $2::uuid[], $3::int[], $4::text[], $5::uuid[], $6::text[],
                $7::text[], $8::text[], $9::text[], $10::text[], $11::uuid[])
         AS e (id, ticket_id, version, type, actor_id, actor_name, source, changes, data,
               request_id, cause_id)
"""


async def append(conn: Any, events: Sequence[Event]) -> None:
    """Add events to the journal, in order, in one statement."""
    await conn.execute(INSERT, *columns(events))


def columns(events: Sequence[Event]) -> tuple[list[Any], ...]:
    """Return the parameters of INSERT: one list a column."""
    return (
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


CHANNEL = "itdesk_journal"


async def number_batch(conn: Any, limit: int = 500) -> tuple[int, int] | None:
    """Number the oldest events without a number; return how many, and the last number given.

    None means that another sequencer is at it. Runs inside a transaction: numbers become visible,
    listeners on CHANNEL are told once, and the lock is free, when it ends. Numbers are dense.
    Within a ticket they follow its version: whoever began first may have waited for the ticket
    and so come later, which is why a version never sorts before a lower one.
    """
    lock = "SELECT pg_try_advisory_xact_lock(hashtextextended('itdesk.sequencer', 0))"
    if not await conn.fetchval(lock):
        return None
    query = """
        WITH waiting AS MATERIALIZED (
            SELECT id, ticket_id, ticket_version,
                   max(created_at) OVER (
                       PARTITION BY coalesce(ticket_id, id) ORDER BY ticket_version, id
                   ) AS due
            FROM events WHERE seq IS NULL
        ), batch AS MATERIALIZED (
            SELECT id, row_number() OVER (ORDER BY due, ticket_id, ticket_version, id) AS place
            FROM waiting ORDER BY place LIMIT $1
        ), size AS MATERIALIZED (
            SELECT count(*) AS n FROM batch
        ), head AS (
            UPDATE journal_head SET last_seq = last_seq + n FROM size WHERE n > 0
            RETURNING last_seq, last_seq - n AS before, n
        ), numbered AS (
            UPDATE events SET seq = head.before + batch.place FROM batch, head
            WHERE events.id = batch.id
        )
        SELECT n, last_seq, pg_notify($2, last_seq::text) FROM head
    """
    row = await conn.fetchrow(query, limit, CHANNEL)
    return (row["n"], row["last_seq"]) if row is not None else (0, 0)


async def lag_seconds(conn: Any) -> float:
    """Return for how long the oldest unnumbered event has been waiting."""
    query = """
        SELECT coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
        FROM events WHERE seq IS NULL
    """
    lag: float = await conn.fetchval(query)
    return max(0.0, lag)


async def head(conn: Any) -> Position:
    """Return the last number given, and the epoch that it belongs to."""
    row = await conn.fetchrow("SELECT epoch, last_seq FROM journal_head")
    return Position(row["epoch"], row["last_seq"])


async def oldest(conn: Any) -> int:
    """Return the smallest number still in the journal, or 0 when there is none."""
    found: int | None = await conn.fetchval("SELECT min(seq) FROM events WHERE seq IS NOT NULL")
    return found or 0


ENTRY = """
    e.seq, e.id, e.ticket_id, e.ticket_version, e.type, e.actor_id, e.actor_name, e.source,
    e.changes, e.data, e.request_id, e.cause_id, e.created_at
"""


def entry(row: Any) -> Entry:
    """Return a row of ENTRY as an event with its place; 0 while it has none."""
    event = Event(
        id=row["id"],
        type=row["type"],
        actor_id=row["actor_id"],
        actor_name=row["actor_name"],
        source=Source(row["source"]),
        ticket_id=row["ticket_id"],
        ticket_version=row["ticket_version"],
        changes=tuple(Change(c["field"], c["old"], c["new"]) for c in row["changes"]),
        data=row["data"],
        request_id=row["request_id"],
        cause_id=row["cause_id"],
    )
    return Entry(row["seq"] or 0, event, row["created_at"])


async def get(conn: Any, event_id: UUID) -> Entry | None:
    """Read an event; None when it was erased with its ticket."""
    query = f"SELECT {ENTRY} FROM events e WHERE e.id = $1"  # noqa: S608 - a literal above
    row = await conn.fetchrow(query, event_id)
    return entry(row) if row is not None else None


async def by_id(conn: Any, event_id: UUID) -> Event | None:
    """Read an event, numbered or not; None when it is gone with its ticket."""
    query = f"SELECT {ENTRY} FROM events e WHERE e.id = $1"  # noqa: S608 - a literal
    row = await conn.fetchrow(query, event_id)
    return None if row is None else entry(row).event


async def lock_catching_up(conn: Any) -> None:
    """Let nobody else look for events without a job until the transaction ends."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('itdesk.catching-up', 0))")


async def without_job(
    conn: Any,
    job_type: str,
    types: Sequence[str],
    since: datetime,
    *,
    after: UUID | None,
    limit: int,
) -> list[Event]:
    """Return the next events of these types since a time that no job of a type came of."""
    # An id begins with its maker's time: from a day before on, the index leads to all that count.
    query = f"""
        SELECT {ENTRY} FROM events e
        WHERE e.id > $4 AND e.created_at >= $3 AND e.type = ANY ($2::text[])
          AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.event_id = e.id AND j.type = $1)
        ORDER BY e.id LIMIT $5
    """  # noqa: S608 - a literal of this module
    first = UUID(int=int((since.timestamp() - 86_400) * 1000) << 80)
    rows = await conn.fetch(query, job_type, list(types), since, after or first, limit)
    return [entry(row).event for row in rows]


async def after(conn: Any, seq: int, *, limit: int) -> list[Entry]:
    """Return the next numbered events after a number, in order."""
    query = f"""
        SELECT {ENTRY} FROM events e WHERE e.seq > $1 ORDER BY e.seq LIMIT $2
    """  # noqa: S608 - a literal of this module
    return [entry(row) for row in await conn.fetch(query, seq, limit)]


@frozen
class Wanted:
    """Which events of the journal are asked for; None asks for all."""

    type: str | None = None
    ticket_id: UUID | None = None
    actor_id: UUID | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def journal_page(
    conn: Any, wanted: Wanted, *, after_seq: int, limit: int, newest_first: bool = False
) -> list[Entry]:
    """Return numbered events beyond a number, in its order or backwards."""
    comparison, direction = ("<", "DESC") if newest_first else (">", "ASC")
    query = f"""
        SELECT {ENTRY} FROM events e
        WHERE e.seq {comparison} $1
          AND ($2::text IS NULL OR e.type = $2 OR e.type LIKE $2 || '.%')
          AND ($3::uuid IS NULL OR e.ticket_id = $3)
          AND ($4::uuid IS NULL OR e.actor_id = $4)
          AND ($5::text IS NULL OR e.source = $5)
          AND ($6::timestamptz IS NULL OR e.created_at >= $6)
          AND ($7::timestamptz IS NULL OR e.created_at < $7)
        ORDER BY e.seq {direction} LIMIT $8
    """  # noqa: S608 - literals of this module
    rows = await conn.fetch(
        query, after_seq, wanted.type, wanted.ticket_id, wanted.actor_id, wanted.source,
        wanted.since, wanted.until, limit,
    )  # fmt: skip
    return [entry(row) for row in rows]


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


async def unseen(
    conn: Any, ticket_id: UUID, *, version: int | None, seq: int | None
) -> list[Unseen]:
    """Return the public comments and status changes beyond a version or a number, oldest first."""
    query = """
        SELECT e.ticket_version, e.type, e.actor_id, e.actor_name, e.created_at, c.id AS comment_id,
               c.body, change.what
        FROM events e
        LEFT JOIN ticket_comments c ON c.id = (e.data ->> 'comment_id')::uuid
        LEFT JOIN LATERAL (
            SELECT what FROM jsonb_array_elements(e.changes) AS what
            WHERE what ->> 'field' = 'status'
        ) AS change ON e.type = 'ticket.updated'
        WHERE e.ticket_id = $1
          AND ($2::bigint IS NULL OR e.ticket_version > $2)
          AND ($3::bigint IS NULL OR e.seq > $3 OR e.seq IS NULL)
          AND (change.what IS NOT NULL
               OR e.type = 'comment.added' AND NOT coalesce((e.data ->> 'internal')::bool, false))
        ORDER BY e.ticket_version LIMIT 100
    """
    return [
        Unseen(
            version=row["ticket_version"],
            type=row["type"],
            user_id=row["actor_id"],
            user_name=row["actor_name"],
            created_at=row["created_at"],
            comment_id=row["comment_id"],
            body=row["body"],
            old_status=row["what"] and row["what"]["old"],
            new_status=row["what"] and row["what"]["new"],
        )
        for row in await conn.fetch(query, ticket_id, version, seq)
    ]


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
