"""Attachments as objects in a bucket of any S3-compatible server.

A small object is one request, a larger one a multipart upload that is completed or aborted: a
reader meets all of it or nothing. Clients upload to and download from presigned addresses, which
SigV4 ties to the host that they are sent to. So they are signed for the public host from the start
(`sign_host = "public"`), or, where a proxy restores the Host of the endpoint, signed for that and
given another beginning afterwards (`"endpoint"`), every byte from the path on kept.
"""

import asyncio
import logging
import os
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import uuid4

from aiohttp import ClientError as HttpError
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from itdesk.errors import BadRequest, DeskError, NotFound, StorageFull, TooLarge, Unavailable
from itdesk.hookspecs import Health, Listed, Presigned, Storage, Stored, hookimpl
from itdesk_plugins.s3_client import Client, S3Settings, code_of
from itdesk_plugins.s3_upload import Upload

if TYPE_CHECKING:
    from itdesk.runtime.metrics import Metrics

CHUNK: Final = 1 << 20
PART: Final = 8 << 20  # at least 5 MiB for S3, which takes 10,000 of them
PAGE: Final = 1000
# What is the desk's; a bucket may hold other things as well.
AREAS: Final = ("quarantine/", "clean/", "check/")
HEALTH_SECONDS: Final = 0.9
TRIAL_SECONDS: Final = 3.0
AGAIN_SECONDS: Final = 0.5
UNKNOWN_TYPE: Final = "application/octet-stream"

_PART = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
# Sent back under their own type; anything a browser could be tempted to run is sent as bytes.
_PASSIVE = frozenset(
    "application/json application/pdf application/zip image/bmp image/gif image/jpeg image/png"
    " image/tiff image/webp text/csv text/plain".split()
)

log = logging.getLogger("plugin.s3")


class Plugin:
    """Offers a bucket as the storage."""

    name, itdesk_api, Settings = "s3", 1, S3Settings

    def __init__(self, settings: S3Settings) -> None:
        self._storage = S3(settings)

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self) -> AsyncIterator[None]:
        # The server may be away now: then the trial says nothing, and health says it.
        async with self._storage.opened(), asyncio.TaskGroup() as group:
            trial = group.create_task(self._storage.try_public())
            yield
            trial.cancel()

    @hookimpl
    def itdesk_metrics(self, metrics: "Metrics") -> None:
        seconds = metrics.histogram(
            "itdesk_s3_seconds", "Requests to the object storage.", ["operation", "outcome"]
        )

        def observe(operation: str, outcome: str, took: float) -> None:
            seconds.labels(operation, outcome).observe(took)

        self._storage.client.observe = observe

    @hookimpl
    def itdesk_storage(self) -> Storage:
        return self._storage

    @hookimpl
    async def itdesk_health(self) -> Health:
        return await self._storage.health()


class S3:
    """The storage: one bucket, in which the desk's keys are the keys."""

    name = "s3"
    takes_uploads = True

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.client = Client(settings)
        self._public_problem = ""
        self._tried = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["S3"]:
        """Lend the storage with its connections; nothing is sent yet."""
        async with self.client.opened():
            yield self

    async def write(self, key: str, chunks: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Store an object under a key, replacing an older one; TooLarge past `limit` bytes."""
        upload = Upload(self.client.call, _checked(key))
        batch = bytearray()
        total = 0
        try:
            async for chunk in chunks:
                total += len(chunk)
                if total > limit:
                    raise TooLarge(f"The file is over {limit} bytes.", details={"limit": limit})
                batch += chunk
                if len(batch) >= PART:
                    await upload.append(bytes(batch))
                    batch.clear()
            stored: Stored = await upload.commit(bytes(batch))
            return stored
        except BaseException:
            await upload.discard()
            raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield an object's bytes in chunks of at most 1 MiB; NotFound when there is none."""
        opened, chunk = await self.client.open(_checked(key), CHUNK)
        async with opened as body:
            while chunk:
                yield chunk
                chunk = await self.client.next(body, CHUNK)

    async def stat(self, key: str) -> Stored | None:
        """Return what is stored under a key, or None."""
        try:
            found = await self.client.call("head_object", Key=_checked(key))
        except NotFound:
            return None
        return Stored(found["ContentLength"])

    async def delete(self, key: str) -> None:
        """Forget an object; a missing one is no error."""
        with suppress(NotFound):
            await self.client.call("delete_object", Key=_checked(key))

    def presign_put(self, key: str, *, size: int, mime: str, expires_in: int) -> Presigned | None:
        """Return an upload request that takes exactly this size and type."""
        exactly = {"ContentType": mime, "ContentLength": size}
        url = self.client.presign("put_object", _checked(key), expires_in, exactly)
        return Presigned(url, "PUT", {"Content-Type": mime})

    def presign_get(
        self, key: str, *, filename: str, mime: str, expires_in: int
    ) -> Presigned | None:
        """Return a download request that saves the object under its user's name for it."""
        saved = {
            "ResponseContentDisposition": _disposition(filename),
            "ResponseContentType": mime if mime in _PASSIVE else UNKNOWN_TYPE,
        }
        url = self.client.presign("get_object", _checked(key), expires_in, saved)
        return Presigned(url, "GET", {})

    async def list(self, prefix: str) -> AsyncIterator[Sequence[Listed]]:
        """Yield what lies below a prefix, in pages and in the order of keys."""
        more: dict[str, Any] = {}
        while True:
            found = await self.client.call(
                "list_objects_v2", Prefix=_folder(prefix), MaxKeys=PAGE, **more
            )
            now = _date(found)
            yield [
                Listed(each["Key"], each["Size"], (now - each["LastModified"]).total_seconds())
                for each in found.get("Contents", ())
            ]
            if not found.get("IsTruncated"):
                return
            more = {"ContinuationToken": found["NextContinuationToken"]}

    async def sweep(self, *, older_than: float) -> int:
        """Remove the parts of uploads that broke off so many seconds ago; return how many."""
        more: dict[str, Any] = {}
        removed = 0
        while True:
            try:
                found = await self.client.call("list_multipart_uploads", MaxUploads=PAGE, **more)
            except DeskError as exc:
                if code_of(exc.__cause__) == "NoSuchUpload":  # so some servers say that of none
                    return removed
                raise
            now = _date(found)
            for each in found.get("Uploads", ()):
                age = (now - each["Initiated"]).total_seconds()
                if age >= older_than and each["Key"].startswith(AREAS):
                    named = {"Key": each["Key"], "UploadId": each["UploadId"]}
                    removed += await self._abort(named)
            if not found.get("IsTruncated"):
                return removed
            more = {
                "KeyMarker": found["NextKeyMarker"],
                "UploadIdMarker": found["NextUploadIdMarker"],
            }

    async def _abort(self, upload: dict[str, str]) -> bool:
        """Remove the parts of an upload; False when it ended meanwhile."""
        try:
            await self.client.call("abort_multipart_upload", **upload)
        except DeskError as exc:
            if isinstance(exc, NotFound) or code_of(exc.__cause__) == "NoSuchUpload":
                return False
            raise
        log.info("parts removed", extra={"key": upload["Key"]})
        return True

    async def check(self) -> None:
        """Write, read and delete a probe; raise a DeskError that says what to mend."""
        key, probe = f"check/{uuid4()}", os.urandom(16)
        try:
            await self.write(key, _once(probe), limit=len(probe))
            found = b"".join([chunk async for chunk in self.read(key)])
            await self.delete(key)
            await self.stat(key)  # without the right to list, what is missing is forbidden
        except StorageFull as exc:
            raise StorageFull(f"{self.settings.endpoint}: no room; a quota may be used up") from exc
        except DeskError as exc:
            raise Unavailable(self.client.advice(exc)) from exc
        if found != probe:
            raise Unavailable(f"{self.settings.endpoint}: a probe read back is another")
        await self.try_public()

    async def health(self) -> Health:
        """Return whether the bucket is there and clients' addresses work, within a second."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self.client.call("head_bucket")
                if self._public_problem or not self._tried:
                    self._tried = True  # once more, now that the server itself answers
                    with suppress(TimeoutError):
                        async with asyncio.timeout(AGAIN_SECONDS):
                            await self.try_public()
        except TimeoutError:
            return Health(False, self._public_problem or f"{self.settings.endpoint}: no answer")
        except DeskError as exc:
            return Health(False, self.client.advice(exc))
        return Health(not self._public_problem, self._public_problem)

    async def try_public(self) -> None:
        """Upload and download a probe as a client does, and keep what is wrong for `health`.

        When the public address cannot be reached from here, nothing is known of it.
        """
        key, probe = f"check/{uuid4()}", os.urandom(16)
        put = self.presign_put(key, size=len(probe), mime=UNKNOWN_TYPE, expires_in=60)
        get = self.presign_get(key, filename="probe", mime=UNKNOWN_TYPE, expires_in=60)
        assert put is not None and get is not None
        try:
            async with (
                asyncio.timeout(TRIAL_SECONDS),
                ClientSession(connector=_trusting(self.settings)) as http,
            ):
                status, _ = await _send(http, put, probe)
                if status < 300:
                    try:
                        status, found = await _send(http, get)
                    finally:
                        with suppress(DeskError):
                            await self.delete(key)
                    if status < 300 and found != probe:
                        status = 0
        except (HttpError, OSError, ValueError) as exc:
            log.info("public address not tried", extra={"problem": type(exc).__name__})
            return
        if status in (500, 502, 503, 504):
            return
        self._tried = True
        self._public_problem = "" if 0 < status < 300 else self._public_advice(status)

    def _public_advice(self, status: int) -> str:
        base = self.settings.public_base_url or self.settings.endpoint
        what = f"refuses signed requests ({status})" if status else "is another storage"
        return (
            f"{base} {what}: mend [plugins.s3] public_base_url (S3_PUBLIC_BASE_URL), and let its"
            " proxy keep the Host of clients with sign_host = public, or send that of the endpoint"
            " with sign_host = endpoint"
        )


def _checked(key: str) -> str:
    """Return a key of the desk's; BadRequest for anything else."""
    if len(key) > 1024 or not all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part) <= 255
        for part in key.split("/")
    ):
        raise BadRequest("This is no key of a file.", code="E_STORAGE_KEY")
    return key


def _folder(prefix: str) -> str:
    """Return a prefix that ends where a folder does; BadRequest for anything else."""
    if not prefix.endswith("/"):
        raise BadRequest("This is no folder of files.", code="E_STORAGE_KEY")
    return f"{_checked(prefix[:-1])}/"


def _date(answer: Any) -> datetime:
    """Return when an answer was given, by the clock that also stamps the objects."""
    said = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    if said is None:
        raise Unavailable("The file storage does not say what time it is.")
    return parsedate_to_datetime(said)


def _disposition(name: str) -> str:
    """Return the Content-Disposition that saves a file under its name (RFC 6266, RFC 8187)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()") else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _trusting(settings: S3Settings) -> TCPConnector:
    """Return connections to the public address, which may have the endpoint's authority."""
    if not settings.verify:
        return TCPConnector(ssl=False)
    context = ssl.create_default_context()
    if settings.ca:
        context.load_verify_locations(settings.ca)
    return TCPConnector(ssl=context)


async def _send(
    http: ClientSession, asked: Presigned, body: bytes | None = None
) -> tuple[int, bytes]:
    url = URL(asked.url, encoded=True)
    async with http.request(
        asked.method, url, data=body, headers=asked.headers, allow_redirects=False
    ) as answer:
        return answer.status, await answer.content.read(CHUNK)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
