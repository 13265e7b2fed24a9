"""How one object comes into a bucket: whole, or not at all."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from itdesk.errors import DeskError, NotFound, Unavailable
from itdesk.hookspecs import Stored

# Somebody may be waiting for the answer that the server is out.
ABORT_SECONDS: Final = 1.5

Call = Callable[..., Awaitable[Any]]

log = logging.getLogger("plugin.s3")


class Upload:
    """One object on its way: a multipart upload once there is more than one part."""

    def __init__(self, call: Call, key: str) -> None:
        self._call = call
        self._key = key
        self._size = 0
        self._hash = hashlib.sha256()
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []

    async def append(self, batch: bytes) -> None:
        """Hash and send a part."""
        await self._take(batch)
        if self._id is None:
            self._id = (await self._call("create_multipart_upload", Key=self._key))["UploadId"]
        number = len(self._parts) + 1
        part = {"UploadId": self._id, "PartNumber": number, "Body": batch}
        sent = await self._call("upload_part", Key=self._key, **part)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})

    async def commit(self, batch: bytes) -> Stored:
        """Send the rest and make the whole visible."""
        if self._id is None:
            await self._take(batch)
            await self._call("put_object", Key=self._key, Body=batch)
        else:
            if batch:
                await self.append(batch)
            whole = {"UploadId": self._id, "MultipartUpload": {"Parts": self._parts}}
            await self._call("complete_multipart_upload", Key=self._key, **whole)
            self._id = None
            await self._require_whole()
        return Stored(self._size, self._hash.hexdigest())

    async def _require_whole(self) -> None:
        """Refuse an object of another size than was sent: signatures only vouch for each part."""
        found = await self._call("head_object", Key=self._key)
        if found["ContentLength"] != self._size:
            await self._call("delete_object", Key=self._key)
            raise Unavailable("The file storage kept another file than it was sent.")

    async def discard(self) -> None:
        """Leave no parts behind; what is not done at once, the next sweep does."""
        if self._id is None:
            return
        try:
            async with asyncio.timeout(ABORT_SECONDS):
                await self._call("abort_multipart_upload", Key=self._key, UploadId=self._id)
        except NotFound:
            pass
        except (DeskError, TimeoutError):
            log.warning("parts left behind", extra={"key": self._key})

    async def _take(self, batch: bytes) -> None:
        self._size += len(batch)
        await asyncio.to_thread(self._hash.update, batch)
