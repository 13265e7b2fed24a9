"""How the s3 plugin reaches its server: settings, connections, deadlines, and what refusals mean.

Every request has one deadline that its repetitions share, so that nobody who asks the desk waits
longer than that for a server that hangs. What the server says never reaches a caller: it may hold
keys and addresses.
"""

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from aiohttp import ClientError as HttpError
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from itdesk.errors import ConfigError, DeskError, NotFound, StorageFull, Unavailable

NOT_INSTALLED: Final = "The client for S3 is not installed: pip install 'itdesk[s3]'."

_ABSENT = {"NoSuchKey", "NotFound", "404"}
_NO_ROOM = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}

Observe = Callable[[str, str, float], None]

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
    connect_seconds: float = Field(2.0, gt=0, description="how long connecting may take")
    read_seconds: float = Field(6.0, gt=0, description="how long nothing may arrive")
    request_seconds: float = Field(
        8.0, gt=0, description="how long one request may take, all its tries and 8 MiB included"
    )
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


class Client:
    """The connections to one server, and the requests that are made on them."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.observe: Observe | None = None
        self._client: Any = None
        self._signer: Any = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold the connections; nothing is sent yet. ConfigError when the client is missing."""
        session = await asyncio.to_thread(self._prepare)
        async with session.create_client("s3", **self._options(self.settings.endpoint)) as client:
            self._client = client
            try:
                yield
            finally:
                self._client = self._signer = None

    def _prepare(self) -> Any:
        """Import the client and read its descriptions of S3, which takes a while."""
        try:
            import aiobotocore.session
            import botocore.session
        except ImportError as exc:
            raise ConfigError(NOT_INSTALLED) from exc

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

    async def call(self, operation: str, **parameters: Any) -> Any:
        """Ask the server; raise NotFound, StorageFull or Unavailable when it does not do it."""
        if self._client is None:
            raise Unavailable("The file storage is not open.")
        asked = getattr(self._client, operation)
        with self._observed(operation), failures():
            async with asyncio.timeout(self.settings.request_seconds):
                return await asked(Bucket=self.settings.bucket, **parameters)

    async def open(self, key: str, chunk: int) -> tuple[Any, bytes]:
        """Return the body of an object, to be closed, and the first bytes read from it."""
        with failures():
            async with asyncio.timeout(self.settings.request_seconds):
                body = (await self.call("get_object", Key=key))["Body"]
                try:
                    return body, await body.read(chunk)
                except BaseException:
                    body.close()
                    raise

    async def next(self, body: Any, chunk: int) -> bytes:
        """Return more of a body that was opened; nothing at its end."""
        with self._observed("read"), failures():
            async with asyncio.timeout(self.settings.read_seconds):
                more: bytes = await body.read(chunk)
                return more

    def presign(self, operation: str, key: str, expires_in: int, more: dict[str, Any]) -> str:
        """Return the address at which whoever holds it may do this until it expires."""
        if self._signer is None:
            raise Unavailable("The file storage is not open.")
        asked = {"Bucket": self.settings.bucket, "Key": key, **more}
        url: str = self._signer.generate_presigned_url(operation, asked, expires_in)
        base = self.settings.public_base_url
        if base and self.settings.sign_host == "endpoint":
            # A slice, since taking apart and putting together again could change what was signed.
            return base + url[url.index("/", url.index("://") + 3) :]
        return url

    @contextmanager
    def _observed(self, operation: str) -> Iterator[None]:
        started, outcome = perf_counter(), "ok"
        try:
            yield
        except NotFound:
            outcome = "absent"
            raise
        except BaseException as exc:
            outcome = "failed" if isinstance(exc, DeskError) else "cancelled"
            raise
        finally:
            if self.observe is not None:
                self.observe(operation, outcome, perf_counter() - started)

    def advice(self, exc: DeskError) -> str:
        """Return what is wrong and which option to mend."""
        settings, cause = self.settings, exc.__cause__
        match code_of(cause):
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


@contextmanager
def failures() -> Iterator[None]:
    """Turn what the client raises into what callers are told; the reason is for the log."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, HttpError, OSError) as exc:
        code = code_of(exc)
        if code in _ABSENT:
            raise NotFound.of("file") from exc
        log.error("object storage failed", extra={"problem": type(exc).__name__, "code": code})
        if code in _NO_ROOM:
            raise StorageFull("The file storage is full.") from exc
        raise Unavailable("The file storage does not work at the moment.") from exc


def code_of(exc: BaseException | None) -> str:
    """Return the server's code for a refusal; empty when it did not answer."""
    answer = getattr(exc, "response", None)
    code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
    return code if re.fullmatch(r"\w{1,64}", code, re.ASCII) else ""
