"""Attachments as people meet them: uploaded into quarantine, served only once found clean.

Object keys are opaque. What a client may write lies below `quarantine/`; what is served lies
below `clean/`, under a key that no client ever had a URL for. How one becomes the other is the
business of `desk.scans`.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

from itdesk.desk import contents
from itdesk.desk.filenames import accepted_type, shown_name
from itdesk.desk.serving import scanned_bytes
from itdesk.desk.urlsigner import UrlSigner
from itdesk.errors import Conflict, DeskError, Forbidden, Invalid, NotFound, TooLarge
from itdesk.frozen import frozen
from itdesk.hookspecs import Storage
from itdesk.model import Attachment, Caller, Event, Role, ScanStatus, new_id
from itdesk.runtime.log import get_logger
from itdesk.store import attachments, downloads, tickets
from itdesk.store.db import Database, Transaction
from itdesk.store.paging import Page, Window

log = get_logger("attachments")


# Nobody waits longer for a storage that is out: what is left, the inventory finds.
FORGET_SECONDS = 5.0
FORGET_AT_ONCE = 8

# Where the unscanned bytes of files are, and where those are that are served.
QUARANTINE, CLEAN = "quarantine/", "clean/"


def quarantine_key(object_key: str) -> str:
    """Return where the unscanned bytes of an attachment are stored."""
    return f"{QUARANTINE}{object_key}"


@frozen
class Rules:
    """What may be uploaded, and how long the links live."""

    max_file_size: int
    allowed_types: Collection[str]
    upload_seconds: int
    download_seconds: int


@frozen
class UploadLink:
    """A place kept for a file, and the request that fills it."""

    attachment_id: UUID
    object_key: str
    file_key: str
    upload_url: str
    method: str
    headers: Mapping[str, str]
    expires_in: int


@frozen
class DownloadLink:
    """A link that serves a clean file to whoever holds it, for a short while."""

    attachment_id: UUID
    download_url: str
    expires_in: int


@frozen
class Content:
    """A clean file and its bytes."""

    attachment: Attachment
    chunks: AsyncIterator[bytes]


class Attachments:
    """Files of tickets, on behalf of a caller."""

    def __init__(self, db: Database, storage: Storage, signer: UrlSigner, rules: Rules) -> None:
        self._db = db
        self._storage = storage
        self._signer = signer
        self._rules = rules

    async def reserve(
        self,
        caller: Caller,
        ticket_ref: str,
        *,
        filename: str,
        mime: str | None,
        size: int,
        base_url: str,
        checksum: str | None = None,
    ) -> UploadLink:
        """Keep a place for a file and return the request with which the client uploads it.

        A file whose bytes do not have the sha256 given as `checksum` will not be accepted.
        """
        name = shown_name(filename)
        kind = accepted_type(name, mime, self._rules.allowed_types)
        self.require_size(size)
        if size < 1:
            raise Invalid.field("size", "must be at least 1: empty files are not accepted")
        async with self._db.transaction() as tx:
            ticket = await tickets.find(tx.conn, ticket_ref, scope=caller.scope)
            file_id = new_id()
            kept = await attachments.reserve(
                tx.conn,
                id=file_id,
                ticket_id=ticket.id,
                uploaded_by=caller.user_id,
                object_key=f"tickets/{ticket.id}/{file_id}",
                original_filename=name,
                mime=kind,
                size=size,
                sha256=checksum.lower() if checksum else None,
                storage=self._storage.name,
                seconds=self._rules.upload_seconds,
            )
        return self._upload_link(kept, base_url)

    async def receive(
        self, link: str, *, mime: str | None, size: int | None, chunks: AsyncIterator[bytes]
    ) -> None:
        """Take the bytes of a reserved file, sent to the link that `reserve` gave."""
        asked = self._open_link(link, "PUT")
        if size != asked["size"] or (mime or "") != asked["mime"]:
            raise Forbidden(
                "This link takes exactly the size and Content-Type that it was made for.",
                code="E_STORAGE_URL_INVALID",
            )
        file_id = UUID(asked["id"])
        async with self._db.connection() as conn:
            kept = await _linked(conn, file_id)
        _require_awaited(kept)
        stored = await self._storage.write(
            quarantine_key(kept.object_key), chunks, limit=asked["size"]
        )
        if stored.size != asked["size"]:
            await self._storage.delete(quarantine_key(kept.object_key))
            raise Invalid.field("size", f"{stored.size} bytes arrived of {asked['size']}")
        if kept.sha256 not in (None, stored.sha256):
            await self._storage.delete(quarantine_key(kept.object_key))
            raise Invalid.field("checksum", "is not the sha256 of what arrived")
        async with self._db.transaction() as tx:
            await self._arrived(tx, await _linked(tx.conn, file_id), None)

    async def confirm(
        self,
        caller: Caller,
        file: UUID | str,
        *,
        ticket_ref: str | None = None,
        size: int | None = None,
    ) -> Attachment:
        """Confirm that a reserved file, named by id or object key, was uploaded whole."""
        async with self._db.connection() as conn:
            file_id = file if isinstance(file, UUID) else await attachments.id_of_key(conn, file)
            kept = await attachments.get(conn, file_id, scope=caller.scope)
            if ticket_ref is not None:
                ticket = await tickets.find(conn, ticket_ref, scope=caller.scope)
                if ticket.id != kept.ticket_id:
                    raise NotFound.of("attachment")
        if size is not None and size != kept.size:
            raise Invalid.field("size", f"is not the {kept.size} bytes that were announced")
        if kept.uploaded_at is None:
            stored = await self._storage.stat(quarantine_key(kept.object_key))
            if stored is None or stored.size != kept.size:
                raise Conflict(
                    "The file has not arrived yet. PUT it to its upload_url, then confirm it.",
                    code="E_ATTACHMENT_NOT_UPLOADED",
                    details={"size": kept.size, "arrived": stored.size if stored else 0},
                )
        async with self._db.transaction() as tx:
            kept = await attachments.get(tx.conn, kept.id, scope=caller.scope)
            await self._arrived(tx, kept, caller)
            await attachments.confirm(tx.conn, kept.id)
            return await attachments.get(tx.conn, kept.id, scope=caller.scope)

    async def stash(
        self,
        caller: Caller,
        ticket_ref: str,
        *,
        filename: str,
        mime: str | None,
        chunks: AsyncIterator[bytes],
    ) -> "Stashed":
        """Put a file's bytes into quarantine, to be attached by `attach` or dropped by `drop`."""
        name = shown_name(filename)
        kind = accepted_type(name, mime, self._rules.allowed_types)
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ticket_ref, scope=caller.scope)
        file_id = new_id()
        key = f"tickets/{ticket.id}/{file_id}"
        sniffed = contents.Sniffed(name, kind, self._rules.allowed_types)
        try:
            stored = await self._storage.write(
                quarantine_key(key), sniffed.through(chunks), limit=self._rules.max_file_size
            )
        except TooLarge:
            self.require_size(self._rules.max_file_size + 1)
            raise
        stashed = Stashed(
            file_id, ticket.id, key, name, sniffed.mime, stored.size, stored.sha256 or ""
        )
        if stored.size == 0:
            await self.drop(stashed)
            raise Invalid.field("file", "is empty: there is nothing to attach")
        return stashed

    async def attach(self, caller: Caller, stashed: "Stashed") -> Attachment:
        """Hang a stashed file on its ticket; it waits there for its scan."""
        async with self._db.transaction() as tx:
            ticket = await tickets.find(
                tx.conn, str(stashed.ticket_id), scope=caller.scope, lock=True
            )
            added = await attachments.add(
                tx.conn,
                id=stashed.id,
                ticket_id=ticket.id,
                uploaded_by=caller.user_id,
                object_key=stashed.object_key,
                original_filename=stashed.filename,
                mime=stashed.mime,
                size=stashed.size,
                storage=self._storage.name,
            )
            version = await tickets.touch(tx.conn, ticket.id)
            tx.record(_event(caller, "attachment.added", added, version))
        return added

    async def drop(self, stashed: "Stashed") -> None:
        """Forget a stashed file that was not attached."""
        await self._storage.delete(quarantine_key(stashed.object_key))

    async def get(self, caller: Caller, attachment_id: UUID) -> Attachment:
        """Return what is known of an attachment."""
        async with self._db.connection() as conn:
            return await attachments.get(conn, attachment_id, scope=caller.scope)

    async def list(self, caller: Caller, ticket_ref: str, window: Window) -> Page[Attachment]:
        """Return one page of a ticket's files in upload order."""
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ticket_ref, scope=caller.scope)
            page = await attachments.list_page(conn, ticket.id, window)
            total = await attachments.count(conn, ticket.id) if window.count else None
        return replace(page, total=total)

    async def link(
        self, caller: Caller, attachment_id: UUID, *, base_url: str, ticket_ref: str
    ) -> DownloadLink:
        """Return a link to a clean file that needs no sign-in while it lives."""
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ticket_ref, scope=caller.scope)
            found = await attachments.get(conn, attachment_id, scope=caller.scope)
            if found.ticket_id != ticket.id:
                raise NotFound.of("attachment")
            key = await _clean_key(conn, found, caller.user_id)
        seconds = self._rules.download_seconds
        signed = self._storage.presign_get(
            key, filename=found.original_filename, mime=found.mime, expires_in=seconds
        )
        if signed is not None:
            return DownloadLink(found.id, signed.url, seconds)
        token = self._signer.sign(
            {"method": "GET", "id": str(found.id)}, timedelta(seconds=seconds)
        )
        return DownloadLink(found.id, f"{base_url}/api/v1/storage/{token}", seconds)

    async def open(self, caller: Caller, attachment_id: UUID) -> Content:
        """Return a clean file's bytes; refuse any other, by what the scan said of it."""
        async with self._db.connection() as conn:
            found = await attachments.get(conn, attachment_id, scope=caller.scope)
            key = await _clean_key(conn, found, caller.user_id)
        return Content(found, await scanned_bytes(self._db, self._storage, found, key))

    async def open_link(self, link: str) -> Content:
        """Return the bytes of the clean file that a download link was made for."""
        file_id = UUID(self._open_link(link, "GET")["id"])
        async with self._db.connection() as conn:
            found = await _linked(conn, file_id)
            key = await _clean_key(conn, found, None)  # who got the link is noted already
        return Content(found, await scanned_bytes(self._db, self._storage, found, key))

    async def delete(self, caller: Caller, attachment_id: UUID) -> None:
        """Remove a file and its bytes; for its uploader, and for agents and above."""
        async with self._db.transaction() as tx:
            found = await attachments.get(tx.conn, attachment_id, scope=caller.scope)
            if found.uploaded_by is None or found.uploaded_by != caller.user_id:
                caller.require(Role.AGENT, "delete a file that somebody else uploaded")
            await tickets.find(tx.conn, str(found.ticket_id), scope=caller.scope, lock=True)
            clean = await attachments.delete(tx.conn, found.id)
            if found.uploaded_at is not None:
                version = await tickets.touch(tx.conn, found.ticket_id)
                tx.record(_event(caller, "attachment.deleted", found, version))
        await self.forget([(found.object_key, clean)])

    async def forget(self, files: Sequence[tuple[str, str | None]]) -> None:
        """Delete the bytes of files without rows, named by object key and clean key.

        What cannot be deleted now is a leftover, not a failure: see desk.inventory.
        """
        few = asyncio.Semaphore(FORGET_AT_ONCE)

        async def delete(key: str) -> None:
            try:
                async with few:
                    await self._storage.delete(key)
            except DeskError as exc:
                log.warning("object left behind", key=key, problem=exc.message)

        try:
            async with asyncio.timeout(FORGET_SECONDS), asyncio.TaskGroup() as group:
                for object_key, clean in files:
                    for key in filter(None, (quarantine_key(object_key), clean)):
                        group.create_task(delete(key))
        except TimeoutError:
            log.warning("objects left behind", files=len(files), problem="no answer in time")

    async def check_storage(self) -> None:
        """Raise a DeskError that says what to mend when files cannot be stored and read back."""
        await self._storage.check()

    def require_size(self, size: int) -> None:
        """Raise TooLarge when a file of so many bytes is not accepted here."""
        limit = self._rules.max_file_size
        if size > limit:
            raise TooLarge(
                f"A file may have at most {limit} bytes.",
                code="E_FILE_TOO_LARGE",
                details={"max_file_size": limit},
            )

    async def _arrived(self, tx: Transaction, kept: Attachment, caller: Caller | None) -> None:
        """Journal that a reserved file is there now, once."""
        await tickets.find(tx.conn, str(kept.ticket_id), scope=None, lock=True)
        if await attachments.mark_uploaded(tx.conn, kept.id, confirmed=caller is not None):
            version = await tickets.touch(tx.conn, kept.ticket_id)
            actor = caller or await attachments.uploader(tx.conn, kept.id)
            tx.record(_event(actor, "attachment.added", kept, version))

    def _upload_link(self, kept: Attachment, base_url: str) -> UploadLink:
        seconds = self._rules.upload_seconds
        signed = self._storage.presign_put(
            quarantine_key(kept.object_key), size=kept.size, mime=kept.mime, expires_in=seconds
        )
        if signed is not None:
            url, method, headers = signed.url, signed.method, signed.headers
        else:
            token = self._signer.sign(
                {"method": "PUT", "id": str(kept.id), "size": kept.size, "mime": kept.mime},
                timedelta(seconds=seconds),
            )
            url, method = f"{base_url}/api/v1/storage/{token}", "PUT"
            headers = {"Content-Type": kept.mime}
        return UploadLink(kept.id, kept.object_key, kept.object_key, url, method, headers, seconds)

    def _open_link(self, link: str, method: str) -> dict[str, Any]:
        asked = self._signer.open(link)
        if asked["method"] != method:
            raise Forbidden("This link is not valid.", code="E_STORAGE_URL_INVALID")
        return asked


@frozen
class Stashed:
    """A file whose bytes are in quarantine but that hangs on no ticket yet."""

    id: UUID
    ticket_id: UUID
    object_key: str
    filename: str
    mime: str
    size: int
    sha256: str


async def _linked(conn: Any, file_id: UUID) -> Attachment:
    """Read the file that a link of ours names; a link to a deleted file is no longer valid."""
    try:
        return await attachments.get(conn, file_id, scope=None)
    except NotFound:
        raise Forbidden("This link is not valid.", code="E_STORAGE_URL_INVALID") from None


def _require_awaited(kept: Attachment) -> None:
    if kept.uploaded_at is not None or kept.scanned_status is not ScanStatus.PENDING:
        raise Forbidden(
            "This link was used already: the file has arrived.", code="E_STORAGE_URL_USED"
        )


async def _clean_key(conn: Any, found: Attachment, reader: UUID | None) -> str:
    """Return where a clean file's bytes are, once it is noted who gets them."""
    if found.scanned_status is ScanStatus.INFECTED:
        raise Forbidden(
            "The virus scan found something in this file; it is not given out.",
            code="E_ATTACHMENT_INFECTED",
            details={"scan_signature": found.scan_signature},
        )
    if found.scanned_status is ScanStatus.FAILED:
        raise Conflict(
            "The file could not be scanned and is not given out; ask an administrator.",
            code="E_ATTACHMENT_SCAN_FAILED",
            details={"scan_reason": found.scan_reason},
        )
    key = await downloads.note(conn, found.id, reader)
    if found.scanned_status is not ScanStatus.CLEAN or key is None:
        raise Conflict(
            "The file is still being scanned. Ask again in a few seconds.",
            code="E_ATTACHMENT_SCAN_PENDING",
            details={"scan_reason": found.scan_reason},
            retry_after=2,
        )
    return key


def _event(caller: Caller, type: str, file: Attachment, version: int) -> Event:
    shown = "old" if type == "attachment.deleted" else "new"
    return Event.by(
        caller,
        type,
        ticket_id=file.ticket_id,
        ticket_version=version,
        data={"attachment_id": str(file.id), shown: file.original_filename, "size": file.size},
    )
