"""Attachments as objects in a bucket of any S3-compatible server.

A small object is one request, a larger one a multipart upload that is completed or aborted: a
reader meets all of it or nothing. Clients upload to and download from presigned addresses, which
SigV4 ties to the host that they are sent to. So they are signed for the public host from the start
(`sign_host = "public"`), or, where a proxy restores the Host of the endpoint, signed for that and
given another beginning afterwards (`"endpoint"`), every byte from the path on kept. What the server
says never reaches a caller: it may hold keys and addresses.
"""

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit
from uuid import uuid4

from aiohttp import ClientError as HttpError
from aiohttp import ClientSession
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from yarl import URL

from itdesk.errors import BadRequest, DeskError, NotFound, StorageFull, TooLarge, Unavailable
from itdesk.hookspecs import Health, Presigned, Storage, Stored, hookimpl

CHUNK: Final = 1 << 20
PART: Final = 8 << 20  # at least 5 MiB for S3, which takes 10,000 of them
HEALTH_SECONDS: Final = 0.9
ABORT_SECONDS: Final = 10.0
TRIAL_SECONDS: Final = 3.0
UNKNOWN_TYPE: Final = "application/octet-stream"

_PART = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_ABSENT = {"NoSuchKey", "NotFound", "404"}
_NO_ROOM = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
# Sent back under their own type; anything a browser could be tempted to run is sent as bytes.
_PASSIVE = frozenset(
    "application/json application/pdf application/zip image/bmp image/gif image/jpeg image/png"
    " image/tiff image/webp text/csv text/plain".split()
)

log = logging.getLogger("plugin.s3")


class S3Settings(BaseModel):
    """The section [plugins.s3]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(min_length=1, description="where this daemon reaches it: http(s)://...")
    bucket: str = Field(min_length=1, description="it has to be there already")
    access_key: str = Field(min_length=1)
    secret_key: SecretStr = Field(min_length=1)
    region: str = Field("us-east-1", min_length=1, description="what the server calls its region")
    public_base_url: str | None = Field(None, description="where clients reach the server")
    sign_host: Literal["public", "endpoint"] = Field(
        "public", description="the Host that the server sees in clients' requests"
    )
    connect_seconds: float = Field(5.0, gt=0, description="how long connecting may take")
    read_seconds: float = Field(30.0, gt=0, description="how long nothing may arrive")
    attempts: int = Field(3, ge=1, le=10, description="how often a request is tried")
    connections: int = Field(50, ge=1, description="how many are open at most")
    verify: bool = Field(True, description="whether the server's certificate is checked")
    ca: Path | None = Field(None, description="PEM file of the authorities to trust instead")

    @field_validator("endpoint", "public_base_url", mode="after")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        if not value:
            return None
        plain = re.fullmatch(r"https?://[^\s/?#@\\]+(/[^\s?#\\]*)?", value, re.ASCII)
        if not plain or not (parts := urlsplit(value)).hostname or parts.port == 0:
            raise ValueError("must be http(s)://host[:port], without user, query or fragment")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _signable(self) -> "S3Settings":
        if self.sign_host == "public" and urlsplit(self.public_base_url or "").path:
            raise ValueError('public_base_url can have a path only with sign_host = "endpoint"')
        return self


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
        self._client: Any = None
        self._signer: Any = None
        self._public_problem = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["S3"]:
        """Lend the storage with its connections; nothing is sent yet."""
        session = await asyncio.to_thread(self._prepare)
        async with session.create_client("s3", **self._options(self.settings.endpoint)) as client:
            self._client = client
            try:
                yield self
            finally:
                self._client = self._signer = None

    def _prepare(self) -> Any:
        """Import the client and read its descriptions of S3, which takes a while."""
        import aiobotocore.session
        import botocore.session

        plain, session = botocore.session.Session(), aiobotocore.session.AioSession()
        for each in (plain, session):  # what is set for other programs is not for this one
            for name in ("profile", "config_file", "credentials_file"):
                value = None if name == "profile" else os.devnull
                each.get_component("config_store").set_config_variable(name, value)
        session.register_component("data_loader", plain.get_component("data_loader"))
        settings, signed_for = self.settings, self.settings.endpoint
        if settings.public_base_url and settings.sign_host == "public":
            signed_for = settings.public_base_url
        # Signing needs no network, and the plain client does it without a coroutine.
        self._signer = plain.create_client("s3", **self._options(signed_for))
        return session

    def _options(self, endpoint: str) -> dict[str, Any]:
        from aiobotocore.config import AioConfig

        settings = self.settings
        return {
            "endpoint_url": endpoint,
            "region_name": settings.region,
            "aws_access_key_id": settings.access_key,
            "aws_secret_access_key": settings.secret_key.get_secret_value(),
            "verify": str(settings.ca) if settings.verify and settings.ca else settings.verify,
            "config": AioConfig(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=settings.connect_seconds,
                read_timeout=settings.read_seconds,
                retries={"total_max_attempts": settings.attempts, "mode": "standard"},
                max_pool_connections=settings.connections,
            ),
        }

    async def write(self, key: str, chunks: AsyncIterator[bytes], *, limit: int) -> Stored:
        """Store an object under a key, replacing an older one; TooLarge past `limit` bytes."""
        upload = _Upload(self, _checked(key))
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
            return await upload.commit(bytes(batch))
        except BaseException:
            await upload.discard()
            raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield an object's bytes in chunks of at most 1 MiB; NotFound when there is none."""
        found = await self.call("get_object", Key=_checked(key))
        async with found["Body"] as body:
            while True:
                with _failures():
                    chunk = await body.read(CHUNK)
                if not chunk:
                    return
                yield chunk

    async def stat(self, key: str) -> Stored | None:
        """Return what is stored under a key, or None."""
        try:
            found = await self.call("head_object", Key=_checked(key))
        except NotFound:
            return None
        return Stored(found["ContentLength"])

    async def delete(self, key: str) -> None:
        """Forget an object; a missing one is no error."""
        with suppress(NotFound):
            await self.call("delete_object", Key=_checked(key))

    def presign_put(self, key: str, *, size: int, mime: str, expires_in: int) -> Presigned | None:
        """Return an upload request that takes exactly this size and type."""
        exactly = {"ContentType": mime, "ContentLength": size}
        url = self._presign("put_object", key, expires_in, exactly)
        return Presigned(url, "PUT", {"Content-Type": mime})

    def presign_get(
        self, key: str, *, filename: str, mime: str, expires_in: int
    ) -> Presigned | None:
        """Return a download request that saves the object under its user's name for it."""
        saved = {
            "ResponseContentDisposition": _disposition(filename),
            "ResponseContentType": mime if mime in _PASSIVE else UNKNOWN_TYPE,
        }
        return Presigned(self._presign("get_object", key, expires_in, saved), "GET", {})

    def _presign(self, operation: str, key: str, expires_in: int, more: dict[str, Any]) -> str:
        if self._signer is None:
            raise Unavailable("The file storage is not open.")
        asked = {"Bucket": self.settings.bucket, "Key": _checked(key), **more}
        url: str = self._signer.generate_presigned_url(operation, asked, expires_in)
        base = self.settings.public_base_url
        if base and self.settings.sign_host == "endpoint":
            # A slice, since taking apart and putting together again could change what was signed.
            return base + url[url.index("/", url.index("://") + 3) :]
        return url

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
            raise Unavailable(self._advice(exc)) from exc
        if found != probe:
            raise Unavailable(f"{self.settings.endpoint}: a probe read back is another")
        await self.try_public()

    async def health(self) -> Health:
        """Return whether the bucket is there and clients' addresses work, within a second."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                await self.call("head_bucket")
                if self._public_problem:
                    await self.try_public()
        except TimeoutError:
            return Health(False, self._public_problem or f"{self.settings.endpoint}: no answer")
        except DeskError as exc:
            return Health(False, self._advice(exc))
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
            async with asyncio.timeout(TRIAL_SECONDS), ClientSession() as http:
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
        self._public_problem = "" if 0 < status < 300 else self._public_advice(status)

    def _public_advice(self, status: int) -> str:
        base = self.settings.public_base_url or self.settings.endpoint
        what = f"refuses signed requests ({status})" if status else "is another storage"
        return (
            f"{base} {what}: mend [plugins.s3] public_base_url (S3_PUBLIC_BASE_URL), and let its"
            " proxy keep the Host of clients with sign_host = public, or send that of the endpoint"
            " with sign_host = endpoint"
        )

    async def call(self, operation: str, **parameters: Any) -> Any:
        """Ask the server; raise NotFound, StorageFull or Unavailable when it does not do it."""
        if self._client is None:
            raise Unavailable("The file storage is not open.")
        with _failures():
            return await getattr(self._client, operation)(Bucket=self.settings.bucket, **parameters)

    def _advice(self, exc: DeskError) -> str:
        """Return what is wrong and which option to mend."""
        settings, cause = self.settings, exc.__cause__
        match _code(cause):
            case "" if cause is None:
                return exc.message
            case "" if "SSL" in type(cause).__name__:
                advice = "its certificate is not trusted: name its authority in [plugins.s3] ca"
            case "":
                advice = "endpoint (S3_ENDPOINT) cannot be reached, or does not answer in time"
            case "NoSuchBucket" | "404" | "NotFound" | "NoSuchKey":
                advice = f"bucket (S3_BUCKET): there is no {settings.bucket}; create it"
            case "InvalidAccessKeyId" | "InvalidAccessKey":
                advice = "access_key (S3_ACCESS_KEY) is not known there"
            case "SignatureDoesNotMatch":
                advice = "secret_key (S3_SECRET_KEY) does not belong to access_key"
            case "AuthorizationHeaderMalformed" | "PermanentRedirect" | "301":
                advice = "region (S3_REGION) is another one there"
            case "RequestTimeTooSkewed":
                advice = "the clock of this machine or of the server is wrong"
            case "AccessDenied" | "403" | "401":
                advice = (
                    "access_key (S3_ACCESS_KEY) or secret_key (S3_SECRET_KEY) is wrong, or may not"
                    f" list, read, write and delete in {settings.bucket}"
                )
            case _:
                advice = "the server fails; its log says why"
        return f"{settings.endpoint}: {advice}"


class _Upload:
    """One object on its way: a multipart upload once there is more than one part."""

    def __init__(self, storage: S3, key: str) -> None:
        self._call = storage.call
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
        return Stored(self._size, self._hash.hexdigest())

    async def discard(self) -> None:
        """Leave no parts behind; a failure is logged, the bucket's lifecycle rule is the rest."""
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


@contextmanager
def _failures() -> Iterator[None]:
    """Turn what the client raises into what callers are told; the reason is for the log."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, HttpError, OSError) as exc:
        code = _code(exc)
        if code in _ABSENT:
            raise NotFound.of("file") from exc
        log.error("object storage failed", extra={"problem": type(exc).__name__, "code": code})
        if code in _NO_ROOM:
            raise StorageFull("The file storage is full.") from exc
        raise Unavailable("The file storage does not work at the moment.") from exc


def _code(exc: BaseException | None) -> str:
    """Return the server's code for a refusal; empty when it did not answer."""
    answer = getattr(exc, "response", None)
    code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
    return code if re.fullmatch(r"\w{1,64}", code, re.ASCII) else ""


def _checked(key: str) -> str:
    """Return a key of the desk's; BadRequest for anything else."""
    if len(key) > 1024 or not all(
        _PART.fullmatch(part) and part not in (".", "..") and len(part) <= 255
        for part in key.split("/")
    ):
        raise BadRequest("This is no key of a file.", code="E_STORAGE_KEY")
    return key


def _disposition(name: str) -> str:
    """Return the Content-Disposition that saves a file under its name (RFC 6266, RFC 8187)."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in " ._-()") else "_" for c in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


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
