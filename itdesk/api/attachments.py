"""Files of tickets over REST: uploaded directly or through a link, served once found clean."""

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import orjson
from aiohttp import BodyPartReader, MultipartReader, web
from pydantic import ConfigDict, Field, model_validator

from itdesk.api import idempotency, payload
from itdesk.api.fields import Line
from itdesk.api.paging import page_reply, window
from itdesk.api.route import NO_CONTENT, Body, Call, ListQuery, Query, Reply, Route, Who, created
from itdesk.desk.attachments import Content, DownloadLink, UploadLink
from itdesk.desk.filenames import disposition, served_type
from itdesk.errors import (
    BadRequest,
    DeskError,
    Invalid,
    NotFound,
    Unavailable,
    UnsupportedMedia,
)
from itdesk.model import Attachment

_CHUNK = 1 << 18
# What a multipart body may have around the file: boundaries and the part's own headers.
_ENVELOPE = 64 << 10
_SLOW_UPLOAD = 3600.0

Filename = Annotated[str, Field(min_length=1, max_length=1020)]
Size = Annotated[int, Field(ge=1, le=2**53)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$", description="sha256, in hex.")]


class PresignBody(Body):
    """A file that the caller wants to upload by itself."""

    original_filename: Filename
    mime: Line | None = None
    size: Size
    checksum: Checksum | None = None


class PresignForTicket(Body):
    """As above, naming the ticket in the body or the query."""

    ticket_id: Line
    filename: Filename
    content_type: Line | None = None
    size: Size


class PresignQuery(Query):
    """The same fields as parameters, for clients that send no body."""

    ticket_id: Line | None = None
    filename: Filename | None = None
    content_type: Line | None = None
    size: Size | None = None


class ConfirmBody(Body):
    """The upload that is to be confirmed, by the id or the key that presigning gave.

    The name and type are those of the presigning; clients that repeat them are not refused.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("attachment_id", "file_key")
            ]
        }
    )

    attachment_id: UUID | None = None
    file_key: Line | None = None
    ticket_id: Line | None = None
    filename: Filename | None = None
    content_type: Line | None = None
    size: Size | None = None

    @model_validator(mode="after")
    def _named(self) -> "ConfirmBody":
        if (self.attachment_id is None) == (self.file_key is None):
            raise ValueError("give attachment_id or file_key")
        return self


async def presign(call: Call) -> Reply:
    """Keep a place for a file and return the request that uploads it."""
    body: PresignBody = call.body
    link = await call.desk.attachments.reserve(
        call.caller,
        call.path["ticket"],
        filename=body.original_filename,
        mime=body.mime,
        size=body.size,
        checksum=body.checksum,
        base_url=call.base_url,
    )
    return created(link, f"/api/v1/attachments/{link.attachment_id}")


async def presign_for_ticket(call: Call) -> Reply:
    """Keep a place for a file, the ticket being named in the body or in the query."""
    asked = call.query.model_dump(exclude_none=True)
    if call.body is not None and asked:
        raise Invalid("Give the fields in the body or in the query, not in both.")
    body = call.body or payload.parse(PresignForTicket, orjson.dumps(asked))
    link = await call.desk.attachments.reserve(
        call.caller,
        body.ticket_id,
        filename=body.filename,
        mime=body.content_type,
        size=body.size,
        base_url=call.base_url,
    )
    return created(link, f"/api/v1/attachments/{link.attachment_id}")


async def confirm(call: Call) -> Reply:
    """Confirm that a file was uploaded; it then waits for its scan."""
    body: ConfirmBody = call.body
    named = body.attachment_id or body.file_key or ""
    record = await call.desk.attachments.confirm(
        call.caller, named, ticket_ref=body.ticket_id, size=body.size
    )
    return created(record, f"/api/v1/attachments/{record.id}")


async def upload(call: Call) -> Reply:
    """Attach a file, sent as the field `file` of a form; it then waits for its scan."""
    length = call.request.content_length
    if length is not None and length > _ENVELOPE:
        call.desk.attachments.require_size(length - _ENVELOPE)
    form, part = await _file_part(call.request)
    stashed = await call.desk.attachments.stash(
        call.caller,
        call.path["ticket"],
        filename=part.filename or "",
        mime=part.headers.get("Content-Type"),
        chunks=_chunks(form, part),
    )

    async def act() -> Reply:
        attached = await call.desk.attachments.attach(call.caller, stashed)
        return created(attached, f"/api/v1/attachments/{attached.id}")

    asked = f"{stashed.filename}\n{stashed.mime}\n{stashed.sha256}".encode()
    try:
        reply = await idempotency.once(call, idempotency.fingerprint(call, asked), act)
    except DeskError as exc:
        # After an outage nobody knows whether the file was attached: then its bytes stay.
        if not isinstance(exc, Unavailable):
            await call.desk.attachments.drop(stashed)
        raise
    if "Idempotency-Replayed" in reply.headers:
        await call.desk.attachments.drop(stashed)
    return reply


async def read(call: Call) -> Reply:
    """Return what is known of a file."""
    return Reply(await call.desk.attachments.get(call.caller, _id(call)))


async def list_of_ticket(call: Call) -> Reply:
    """List a ticket's files in upload order."""
    page = await call.desk.attachments.list(call.caller, call.path["ticket"], window(call.query))
    return page_reply(call, page)


async def delete(call: Call) -> Reply:
    """Delete a file and its bytes."""
    await call.desk.attachments.delete(call.caller, _id(call))
    return NO_CONTENT


async def download_link(call: Call) -> Reply:
    """Return a short-lived link to a clean file."""
    return Reply(
        await call.desk.attachments.link(
            call.caller, _id(call), base_url=call.base_url, ticket_ref=call.path["ticket"]
        )
    )


async def content(call: Call) -> web.StreamResponse:
    """Return a clean file's bytes."""
    return await _send(call, await call.desk.attachments.open(call.caller, _id(call)))


async def signed_upload(call: Call) -> Reply:
    """Take the bytes that an upload link was made for."""
    request = call.request
    await call.desk.attachments.receive(
        call.path["signed"],
        mime=request.headers.get("Content-Type"),
        size=request.content_length,
        chunks=request.content.iter_chunked(_CHUNK),
    )
    return Reply(None, 200)


async def signed_download(call: Call) -> web.StreamResponse:
    """Return the bytes that a download link was made for."""
    return await _send(call, await call.desk.attachments.open_link(call.path["signed"]))


def _id(call: Call) -> UUID:
    try:
        return UUID(call.path["id"])
    except ValueError:
        raise NotFound.of("attachment") from None


async def _file_part(request: web.BaseRequest) -> tuple[MultipartReader, BodyPartReader]:
    if not request.content_type.startswith("multipart/"):
        raise UnsupportedMedia("Send the file as multipart/form-data, in the field `file`.")
    try:
        form = await request.multipart()
        part = await form.next()
    except ValueError as exc:
        raise BadRequest("The multipart body cannot be read.") from exc
    if not isinstance(part, BodyPartReader) or part.name != "file":
        raise Invalid.field("file", "must be the first and only field of the form")
    if not part.filename:
        raise Invalid.field("file", "must carry a filename")
    return form, part


async def _chunks(form: MultipartReader, part: BodyPartReader) -> AsyncIterator[bytes]:
    try:
        while chunk := await part.read_chunk(_CHUNK):
            yield chunk
        # Only the closing boundary says that the file is whole.
        if await form.next() is not None:
            raise Invalid.field("file", "must be the first and only field of the form")
    except ValueError as exc:
        raise BadRequest("The multipart body ends in the middle.") from exc


async def _send(call: Call, file: Content) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": served_type(file.attachment.mime),
            "Content-Disposition": disposition(file.attachment.original_filename),
            "Content-Length": str(file.attachment.size),
            "Content-Security-Policy": "default-src 'none'; sandbox",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-store",
        }
    )
    await response.prepare(call.request)
    if call.request.method != "HEAD":
        # aiohttp would send it: the client took these bytes for the head of its next answer.
        async for chunk in file.chunks:
            await response.write(chunk)
    await response.write_eof()
    return response


_GATE = {
    "E_ATTACHMENT_SCAN_PENDING": 409,
    "E_ATTACHMENT_SCAN_FAILED": 409,
    "E_ATTACHMENT_INFECTED": 403,
}
_TYPE = {"E_FILE_TOO_LARGE": 413, "E_FILE_TYPE_NOT_ALLOWED": 415}


def _route(id: str, method: str, path: str, handler: Any, **fields: Any) -> Route:
    fields.setdefault("who", Who.OWN)
    return Route(id=id, method=method, path=path, handler=handler, tag="attachments", **fields)


ROUTES: list[Route] = [
    _route(
        "R35", "POST", "/tickets/{ticket}/attachments/presign", presign,
        body=PresignBody, response=UploadLink, status=201, errors=_TYPE, idempotent=True,
    ),
    _route(
        "R36", "POST", "/attachments/presigned-url", presign_for_ticket,
        body=PresignForTicket, body_optional=True, query=PresignQuery, response=UploadLink,
        status=201, errors={"E_TICKET_NOT_FOUND": 404, **_TYPE}, idempotent=True,
    ),
    _route(
        "R37", "POST", "/attachments", confirm,
        body=ConfirmBody, response=Attachment, status=201, idempotent=True,
        errors={"E_ATTACHMENT_NOT_FOUND": 404, "E_ATTACHMENT_NOT_UPLOADED": 409},
    ),
    _route("R38", "GET", "/attachments/{id}", read, response=Attachment),
    _route(
        "R39", "GET", "/attachments/ticket/{ticket}", list_of_ticket,
        query=ListQuery, response=list[Attachment],
    ),
    _route(
        "R39", "GET", "/tickets/{ticket}/attachments", list_of_ticket,
        query=ListQuery, response=list[Attachment],
    ),
    _route("R40", "DELETE", "/attachments/{id}", delete, status=204),
    _route(
        "R41", "GET", "/tickets/{ticket}/attachments/{id}/download", download_link,
        response=DownloadLink, errors=_GATE,
    ),
    _route(
        "R42", "POST", "/tickets/{ticket}/attachments", upload,
        body_media="multipart/form-data", response=Attachment, status=201, idempotent=True,
        errors=_TYPE, seconds=_SLOW_UPLOAD,
    ),
    _route(
        "R43", "GET", "/attachments/{id}/content", content,
        response=bytes, response_media="application/octet-stream", errors=_GATE,
        seconds=_SLOW_UPLOAD,
    ),
    _route(
        # Whoever made the link was counted; it cannot be guessed.
        "R44", "PUT", "/storage/{signed}", signed_upload, rate="none",
        who=Who.SIGNATURE, body_media="application/octet-stream", seconds=_SLOW_UPLOAD,
        errors={"E_STORAGE_URL_INVALID": 403, "E_STORAGE_URL_EXPIRED": 403},
    ),
    _route(
        "R44", "GET", "/storage/{signed}", signed_download, rate="none",
        who=Who.SIGNATURE, response=bytes, response_media="application/octet-stream",
        errors={**_GATE, "E_STORAGE_URL_INVALID": 403, "E_STORAGE_URL_EXPIRED": 403},
        seconds=_SLOW_UPLOAD,
    ),
]  # fmt: skip
