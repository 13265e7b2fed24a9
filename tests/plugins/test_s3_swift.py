"""The s3 storage against a stricter server than rclone: Swift's S3 API."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from itdesk_plugins.s3 import PART, S3, S3Settings
from tests.plugins.conformance import MIB, StorageConformance, chunked, content_of, new_key, put
from tests.plugins.test_s3 import download_of, send, upload_of
from tests.support.swift import Swift

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def swift() -> Iterator[Swift]:
    """Return a running Swift."""
    with Swift() as swift:
        yield swift


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(swift: Swift) -> AsyncIterator[S3]:
    settings = S3Settings(
        endpoint=swift.endpoint,
        bucket=swift.bucket,
        access_key=swift.access_key,
        secret_key=swift.secret_key,
        read_seconds=60,
        request_seconds=60,
    )
    async with S3(settings).opened() as opened:
        await opened.client.call("create_bucket")
        yield opened


@pytest.fixture
def storage(shared: S3) -> S3:
    return shared


class TestConformance(StorageConformance):
    """What the desk relies on in any storage."""


async def test_an_expired_or_changed_address_is_forbidden(storage: S3) -> None:
    """S-22: 403 and no byte."""
    key = new_key()
    await put(storage, key, b"mine")
    asked = download_of(storage, key, expires_in=1)
    async with asyncio.timeout(30):
        while (answer := await send(asked))[0] == 200:
            pass
    assert answer[0] == 403 and b"mine" not in answer[2]
    other = new_key()
    await put(storage, other, b"another's")
    asked = download_of(storage, key)
    status, _, body = await send(type(asked)(asked.url.replace(key, other), "GET", {}))
    assert status == 403 and b"another's" not in body


async def test_a_range_of_what_was_signed_is_that_range(storage: S3) -> None:
    """S-22: 206 and no more than was asked for; a range does not open another object."""
    key = new_key()
    await put(storage, key, b"0123456789")
    status, headers, body = await send(download_of(storage, key), Range="bytes=2-4")
    assert (status, body) == (206, b"234")
    assert headers["Content-Range"] == "bytes 2-4/10"


async def test_a_link_still_answers_conditional_requests(storage: S3) -> None:
    key = new_key()
    await put(storage, key, b"0123456789")
    asked = download_of(storage, key)
    _, headers, _ = await send(asked)
    (tag,) = [value for name, value in headers.items() if name.lower() == "etag"]
    again = await send(asked, None, **{"If-None-Match": tag})
    assert (again[0], again[2]) == (304, b"")


async def test_an_upload_takes_only_the_size_and_type_it_was_made_for(storage: S3) -> None:
    key = new_key()
    asked = upload_of(storage, key, 5)
    assert (await send(asked, b"longer than that"))[0] == 403
    assert (await send(asked, b"hello", **{"Content-Type": "text/html"}))[0] == 403
    assert await storage.stat(key) is None
    assert (await send(asked, b"hello"))[0] == 200


async def test_broken_off_parts_are_swept(storage: S3) -> None:
    """R-13: what a crash leaves of a multipart upload is found and removed, old ones only."""
    key = f"clean/{new_key()}"
    begun = await storage.client.call("create_multipart_upload", Key=key)
    part = {"UploadId": begun["UploadId"], "PartNumber": 1, "Body": bytes(PART)}
    await storage.client.call("upload_part", Key=key, **part)
    assert await storage.sweep(older_than=3600) == 0
    # Swift rounds up: what was begun just now is said to begin in a moment.
    assert await storage.sweep(older_than=-2) == 1
    assert await storage.sweep(older_than=0) == 0
    stored = await storage.write(key, chunked(bytes(PART + MIB)), limit=2 * PART)
    assert stored.size == PART + MIB and len(await content_of(storage, key)) == PART + MIB
