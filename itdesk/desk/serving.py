"""Stored bytes on their way out: only those that were scanned.

Whoever can write to the storage itself can replace what was found clean. So the bytes are hashed
as they are served, and what would complete a replaced file is held back: a small one is not begun,
of a larger one the end never comes.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from itdesk.errors import Conflict, NotFound
from itdesk.hookspecs import Storage
from itdesk.model import SYSTEM, Attachment, Event
from itdesk.runtime.log import get_logger
from itdesk.store.db import Database

log = get_logger("attachments")

# Files up to this size are known to be whole before their first byte is sent.
SMALL = 1 << 20


class Changed(Conflict):
    """The stored bytes are not those that were scanned, or there are none."""

    default_code = "E_ATTACHMENT_SCAN_FAILED"

    @classmethod
    def because(cls, reason: str) -> "Changed":
        """Return the error for bytes that are `missing` or `changed`."""
        said = "are gone from" if reason == "missing" else "were replaced in"
        return cls(
            f"The bytes of this file {said} the storage, and it is not given out; tell an"
            " administrator, whose log names it.",
            details={"scan_reason": reason},
        )


async def scanned_bytes(
    db: Database, storage: Storage, file: Attachment, key: str
) -> AsyncIterator[bytes]:
    """Return the bytes of a clean file, the first of them being there already.

    Changed when they are not those that were scanned, now or while they are read: that is logged,
    and a replacement is in the journal as well.
    """
    chunks = _watched(db, file, _verified(storage.read(key), file))
    first = await anext(chunks)

    async def all_of_them() -> AsyncIterator[bytes]:
        async with aclosing(cast(Any, chunks)):
            yield first
            async for chunk in chunks:
                yield chunk

    return all_of_them()


async def _verified(chunks: AsyncIterator[bytes], file: Attachment) -> AsyncIterator[bytes]:
    loop, digest, size = asyncio.get_running_loop(), hashlib.sha256(), 0
    held: list[bytes] = []
    try:
        async with aclosing(cast(Any, chunks)):
            async for chunk in chunks:
                size += len(chunk)
                if size > file.size:
                    raise Changed.because("changed")
                # Beside the sending of what came before: the digest is of use only at the end.
                hashing = loop.run_in_executor(None, digest.update, chunk)
                try:
                    if file.size > SMALL:
                        for ready in held:
                            yield ready
                        held.clear()
                finally:
                    await hashing
                held.append(chunk)
    except NotFound as exc:
        raise Changed.because("missing") from exc
    if size != file.size or digest.hexdigest() != file.sha256:
        raise Changed.because("changed")
    for ready in held:
        yield ready


async def _watched(
    db: Database, file: Attachment, chunks: AsyncIterator[bytes]
) -> AsyncIterator[bytes]:
    try:
        async with aclosing(cast(Any, chunks)):
            async for chunk in chunks:
                yield chunk
    except Changed as exc:
        reason = exc.details["scan_reason"]
        log.error("stored bytes are not the scanned ones", attachment=file.id, reason=reason)
        if reason == "changed":
            told = {"attachment_id": str(file.id), "object_key": file.object_key}
            async with db.transaction() as tx:
                tx.record(Event.by(SYSTEM, "attachment.changed", data=told))
        raise
