"""The journal over REST: pages for looking, a stream for keeping."""

from dataclasses import fields
from typing import Annotated, Literal
from uuid import UUID

from aiohttp import web
from pydantic import Field

from itdesk.api import render
from itdesk.api.fields import Moment
from itdesk.api.paging import page_reply
from itdesk.api.route import Call, Query, Reply, Route, Who
from itdesk.api.table import cell, line
from itdesk.desk.journal import JournalRow
from itdesk.model import Source
from itdesk.store.events import Wanted
from itdesk.store.paging import Window

# What is gathered before it is sent: many rows a packet, few bytes in memory.
_PIECE = 64 << 10

EventType = Annotated[str, Field(pattern=r"^[a-z]+(\.[a-z_]+)?$", max_length=100)]


class JournalQuery(Query):
    """Which events; a type without its second half, such as `auth`, means all of that kind."""

    type: EventType | None = None
    ticket_id: UUID | None = None
    actor_id: UUID | None = None
    source: Source | None = None
    since: Moment | None = Field(None, description="Not before this time.")
    until: Moment | None = Field(None, description="Before this time.")

    def wanted(self) -> Wanted:
        """Return what is asked for in the store's words."""
        return Wanted(self.type, self.ticket_id, self.actor_id, self.source, self.since, self.until)


class JournalPageQuery(JournalQuery):
    """As above, a page at a time."""

    limit: int = Field(50, ge=1, le=200, description="How many entries at most.")
    cursor: str | None = Field(None, max_length=500, description="From the last page's Link.")
    sort: Literal["seq", "-seq"] = "-seq"


class JournalExportQuery(JournalQuery):
    """As above, all at once."""

    format: Literal["jsonl", "csv"] = "jsonl"


async def list_events(call: Call) -> Reply:
    """List what happened on the desk, newest first unless sorted by seq."""
    query: JournalPageQuery = call.query
    page = await call.desk.journal.list(
        call.caller,
        query.wanted(),
        Window(query.limit, query.cursor),
        newest_first=query.sort == "-seq",
    )
    return page_reply(call, page)


async def export(call: Call) -> web.StreamResponse:
    """Stream all events, oldest first, as JSON lines or CSV."""
    query: JournalExportQuery = call.query
    write = _csv if query.format == "csv" else _json_line
    media = "text/csv; charset=utf-8" if query.format == "csv" else "application/jsonl"
    rows = call.desk.journal.export(call.caller, query.wanted())
    # Before the answer begins: afterwards an outage could only tear it.
    first = await anext(rows, None)
    response = web.StreamResponse(
        headers={
            "Content-Type": media,
            "Content-Disposition": f'attachment; filename="journal.{query.format}"',
        }
    )
    await response.prepare(call.request)
    if call.request.method == "HEAD":
        # aiohttp would send what is written: the client took it for the head of its next answer.
        await response.write_eof()
        return response
    piece = bytearray(line(_COLUMNS) if query.format == "csv" else b"")
    piece += write(first) if first is not None else b""
    async for row in rows:
        piece += write(row)
        if len(piece) >= _PIECE:
            await response.write(bytes(piece))
            piece.clear()
    await response.write(bytes(piece))
    await response.write_eof()
    return response


_COLUMNS = [field.name for field in fields(JournalRow)]


def _json_line(row: JournalRow) -> bytes:
    return render.encode(row) + b"\n"


def _csv(row: JournalRow) -> bytes:
    return line([cell(getattr(row, name)) for name in _COLUMNS])


ROUTES: list[Route] = [
    Route(
        id="R70",
        method="GET",
        path="/events",
        handler=list_events,
        who=Who.ADMIN,
        tag="journal",
        query=JournalPageQuery,
        response=list[JournalRow],
    ),
    Route(
        id="R71",
        method="GET",
        path="/events/export",
        handler=export,
        who=Who.ADMIN,
        tag="journal",
        query=JournalExportQuery,
        response=bytes,
        response_media="application/jsonl, text/csv; charset=utf-8",
        seconds=3600.0,
    ),
]
