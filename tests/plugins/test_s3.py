"""The s3 storage against a real S3 server that checks signatures."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import pytest
import pytest_asyncio
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError
from yarl import URL

from itdesk.errors import NotFound, TooLarge, Unavailable
from itdesk.hookspecs import Presigned, Storage
from itdesk_plugins.s3 import PART, S3, Plugin, S3Settings
from tests.plugins.conformance import MIB, StorageConformance, chunked, content_of, new_key, put
from tests.support.s3 import S3Server, s3_server

__all__ = ["s3_server"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMES = ["a b.txt", "a+b.txt", "a%2Fb.txt", "Übersicht – 概要.txt", "a\"b;c'd&e=f?.txt", "~.txt"]


def settings_of(server: S3Server, **options: Any) -> S3Settings:
    known = {
        "endpoint": server.endpoint,
        "bucket": server.bucket,
        "access_key": server.access_key,
        "secret_key": server.secret_key,
        "attempts": 1,
        "connect_seconds": 1,
        "read_seconds": 1,
    }
    return S3Settings(**{**known, **options})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(s3_server: S3Server) -> AsyncIterator[S3]:
    # Tried again as in earnest: rclone answers 500 when a folder is emptied while a file comes.
    settings = settings_of(s3_server, read_seconds=30, request_seconds=30, attempts=6)
    async with S3(settings).opened() as opened:
        yield opened


@pytest.fixture
def storage(shared: S3) -> S3:
    return shared


async def send(
    asked: Presigned, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Do what a client does with a presigned request, its address taken as it is."""
    async with (
        ClientSession() as http,
        http.request(
            asked.method,
            URL(asked.url, encoded=True),
            data=body,
            headers={**asked.headers, **headers},
        ) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.read()


def upload_of(storage: S3, key: str, size: int, **how: Any) -> Presigned:
    asked = {"size": size, "mime": "text/plain", "expires_in": 60, **how}
    signed: Presigned | None = storage.presign_put(key, **asked)
    assert signed is not None
    return signed


def download_of(storage: S3, key: str, name: str = "note.txt", **how: Any) -> Presigned:
    asked = {"filename": name, "mime": "text/plain", "expires_in": 60, **how}
    signed: Presigned | None = storage.presign_get(key, **asked)
    assert signed is not None
    return signed


class TestConformance(StorageConformance):
    """What the desk relies on in any storage."""

    async def test_a_folder_is_no_object(self, storage: Storage) -> None:
        """As everywhere, but for deleting one: rclone's are real, and it answers 500 to that."""
        key = new_key()
        await put(storage, key, b"x")
        folder = key.rsplit("/", 1)[0]
        assert await storage.stat(folder) is None
        with pytest.raises(NotFound):
            await content_of(storage, folder)

    async def test_writes_and_deletes_of_one_ticket_do_not_disturb_each_other(
        self, storage: Storage
    ) -> None:
        """As everywhere, beside a file that stays: rclone loses what comes as a folder empties."""
        ticket = f"tickets/{uuid4()}"
        await put(storage, f"{ticket}/stays", b"x")

        async def churn(name: int) -> None:
            for _ in range(25):
                await put(storage, f"{ticket}/{name}", b"x")
                assert await content_of(storage, f"{ticket}/{name}") == b"x"
                await storage.delete(f"{ticket}/{name}")

        await asyncio.gather(*(churn(name) for name in range(8)))

    # rclone sends a replaced file under its older length; S3 itself does not, nor does Swift.
    test_a_reader_sees_one_whole_object_while_it_is_replaced = None  # type: ignore[assignment]


class TestAddresses:
    """Presigned requests: where they lead, and what they allow."""

    async def test_without_a_public_base_they_lead_to_the_endpoint(
        self, storage: S3, s3_server: S3Server
    ) -> None:
        """S0-30, S0-37: untouched, and usable inside the network."""
        key = new_key()
        for asked in (upload_of(storage, key, 5), download_of(storage, key)):
            assert urlsplit(asked.url).netloc == urlsplit(s3_server.endpoint).netloc
            assert asked.url.startswith(f"{s3_server.endpoint}/desk/{key}?")
        assert (await send(upload_of(storage, key, 5), b"hello"))[0] == 200
        status, headers, body = await send(download_of(storage, key))
        assert (status, body) == (200, b"hello")
        assert headers["Content-Disposition"].startswith("attachment;")

    @pytest.mark.parametrize("sign_host", ["public", "endpoint"])
    async def test_they_carry_the_public_scheme_and_host(
        self, s3_server: S3Server, sign_host: str
    ) -> None:
        """S0-31, S0-32: https without a port, http with one."""
        for base in ("https://files.myorg.edu", "http://localhost:9000", "https://a.b:8443/"):
            settings = settings_of(s3_server, public_base_url=base, sign_host=sign_host)
            async with S3(settings).opened() as storage:
                for asked in (upload_of(storage, "a/b", 1), download_of(storage, "a/b")):
                    assert asked.url.startswith(f"{base.rstrip('/')}/desk/a/b?")

    async def test_what_is_set_for_other_programs_changes_nothing(
        self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody's")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another's")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "moon-1")
        async with S3(settings_of(s3_server)).opened() as storage:
            await storage.check()
            assert (await storage.health()).ok
            assert (await send(upload_of(storage, new_key(), 1), b"x"))[0] == 200

    async def test_an_empty_public_base_is_none(self, s3_server: S3Server) -> None:
        """S0-37: S3_PUBLIC_BASE_URL may be there and empty."""
        assert settings_of(s3_server, public_base_url="").public_base_url is None

    async def test_the_server_takes_what_was_signed_for_its_public_host(
        self, s3_server: S3Server
    ) -> None:
        """S0-33: any name goes through, and comes back as it was."""
        base = f"http://localhost:{s3_server.port}"
        async with S3(settings_of(s3_server, public_base_url=base)).opened() as storage:
            key = new_key()
            assert (await send(upload_of(storage, key, 5), b"hello"))[0] == 200
            for name in NAMES:
                asked = download_of(storage, key, name)
                assert asked.url.startswith(base)
                status, headers, body = await send(asked)
                assert (status, body) == (200, b"hello"), name
                saved = headers["Content-Disposition"]
                assert saved.endswith(f"filename*=UTF-8''{quote(name, safe='')}")
                assert saved.isascii() and saved.count('"') == 2

    async def test_the_rewrite_keeps_every_byte_from_the_path_on(
        self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """S0-33: the string that was signed, behind another beginning."""
        base = "https://files.myorg.edu/some/prefix"
        settings = settings_of(s3_server, public_base_url=base, sign_host="endpoint")
        async with S3(settings).opened() as storage:
            signed: list[str] = []
            original = storage.client._signer.generate_presigned_url

            def listen(*arguments: Any) -> str:
                signed.append(original(*arguments))
                return signed[-1]

            monkeypatch.setattr(storage.client._signer, "generate_presigned_url", listen)
            for name in NAMES:
                asked = download_of(storage, "a/b", name)
                rest = signed[-1].removeprefix(s3_server.endpoint)
                assert rest.startswith("/desk/a/b?") and asked.url == base + rest
                (saved,) = parse_qs(urlsplit(asked.url).query)["response-content-disposition"]
                assert saved.endswith(quote(name, safe=""))

    async def test_a_rewritten_address_works_behind_a_proxy_that_restores_the_host(
        self, s3_server: S3Server
    ) -> None:
        """S0-33, X10: and one that keeps the clients' Host is found out by the trial."""
        inside = urlsplit(s3_server.endpoint).netloc
        before = set(s3_server.objects())
        restores = True

        async def pass_on(request: web.Request) -> web.Response:
            path = request.raw_path.removeprefix("/s3")
            headers = {"Host": inside if restores else request.host}
            if request.content_type and request.body_exists:
                headers["Content-Type"] = request.headers["Content-Type"]
            async with (
                ClientSession() as http,
                http.request(
                    request.method,
                    URL(s3_server.endpoint + path, encoded=True),
                    headers=headers,
                    data=await request.read() or None,
                ) as answer,
            ):
                return web.Response(status=answer.status, body=await answer.read())

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", pass_on)
        async with TestServer(app) as proxy:
            base = f"http://{proxy.host}:{proxy.port}/s3"
            settings = settings_of(s3_server, public_base_url=base, sign_host="endpoint")
            async with S3(settings).opened() as storage:
                key = new_key()
                assert (await send(upload_of(storage, key, 5), b"hello"))[0] == 200
                assert (await send(download_of(storage, key, NAMES[0])))[2] == b"hello"
                await storage.check()
                assert (await storage.health()).ok

                restores = False
                await storage.check()
                health = await storage.health()
                assert not health.ok and "sign_host = endpoint" in health.reason
                assert f"{base} refuses signed requests (403)" in health.reason
                restores = True
                assert (await storage.health()).ok
        left = set(s3_server.objects()) - before
        assert not [key for key in left if key.startswith("check/")]

    async def test_a_path_in_the_public_base_cannot_be_signed_for(
        self, s3_server: S3Server
    ) -> None:
        with pytest.raises(ValidationError, match='only with sign_host = "endpoint"'):
            settings_of(s3_server, public_base_url="https://files.myorg.edu/s3")

    @pytest.mark.parametrize(
        "address",
        ["", "minio:9000", "ftp://x", "http://", "http://u:p@x", "http://x?y", "http://x#y",
         "http://x y", "http://x:99999", "http://x:port"],
    )  # fmt: skip
    async def test_what_is_no_address_is_refused(self, s3_server: S3Server, address: str) -> None:
        with pytest.raises(ValidationError):
            settings_of(s3_server, endpoint=address)

    async def test_an_upload_takes_only_the_size_and_type_it_was_made_for(
        self, storage: S3
    ) -> None:
        key = new_key()
        asked = upload_of(storage, key, 5)
        assert (await send(asked, b"longer than that"))[0] == 403
        assert (await send(asked, b"hello", **{"Content-Type": "text/html"}))[0] == 403
        assert await storage.stat(key) is None
        assert (await send(asked, b"hello"))[0] == 200

    async def test_a_changed_address_is_refused(self, storage: S3) -> None:
        key, other = new_key(), new_key()
        await put(storage, key, b"mine")
        await put(storage, other, b"another's")
        asked = download_of(storage, key)
        for url in (
            asked.url.replace(key, other),
            asked.url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
            asked.url[:-1] + ("0" if asked.url[-1] != "0" else "1"),  # of the signature
            asked.url.replace("note.txt", "note.exe"),
            asked.url.replace("text%2Fplain", "text%2Fhtml"),
        ):
            assert url != asked.url
            status, _, body = await send(Presigned(url, "GET", {}))
            assert status == 403 and b"another's" not in body
        for method in ("PUT", "DELETE"):
            assert (await send(Presigned(asked.url, method, {}), b"x"))[0] == 403
        assert await content_of(storage, key) == b"mine"

    async def test_an_expired_address_is_refused(self, storage: S3) -> None:
        key = new_key()
        await put(storage, key, b"mine")
        asked = download_of(storage, key, expires_in=1)
        async with asyncio.timeout(5):
            while (status := (await send(asked))[0]) == 200:
                pass
        assert status in (400, 403)

    async def test_what_a_browser_could_run_is_sent_as_bytes(self, storage: S3) -> None:
        for mime, sent in (("text/html", "application/octet-stream"), ("image/png", "image/png")):
            query = parse_qs(urlsplit(download_of(storage, "a/b", mime=mime).url).query)
            assert query["response-content-type"] == [sent]


class TestFailures:
    """A server that is away, full of refusals, or not set up."""

    async def test_what_breaks_off_leaves_no_object_and_no_parts(
        self, storage: S3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The multipart upload itself is gone as well, whatever ended it."""
        calls: list[str] = []
        original = storage.client.call

        async def listen(operation: str, **parameters: Any) -> Any:
            calls.append(operation)
            return await original(operation, **parameters)

        monkeypatch.setattr(storage.client, "call", listen)

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(PART + 1)
            raise ConnectionResetError

        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(PART)
            await asyncio.Event().wait()

        key = new_key()
        with pytest.raises(TooLarge):
            await storage.write(key, chunked(bytes(2 * PART), MIB), limit=2 * PART - 1)
        with pytest.raises(ConnectionResetError):
            await storage.write(key, broken(), limit=2 * PART)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await storage.write(key, stuck(), limit=2 * PART)
        assert calls == ["create_multipart_upload", "upload_part", "abort_multipart_upload"] * 3
        assert await storage.stat(key) is None
        assert "Uploads" not in await original("list_multipart_uploads")

    async def test_a_server_that_is_down_is_unavailable(self) -> None:
        with S3Server() as server:
            async with S3(settings_of(server)).opened() as storage:
                await put(storage, "a/b", b"x")
                await storage.check()
                assert (await storage.health()).ok
                server.stop()
                for attempt in (
                    put(storage, "a/b", b"y"), put(storage, "a/b", bytes(PART + 1)),
                    content_of(storage, "a/b"), storage.stat("a/b"), storage.delete("a/b"),
                ):  # fmt: skip
                    with pytest.raises(Unavailable) as caught:
                        await attempt
                    assert server.endpoint not in caught.value.message
                with pytest.raises(Unavailable, match="S3_ENDPOINT"):
                    await storage.check()
                assert not (await storage.health()).ok
                assert upload_of(storage, "a/b", 1).url.startswith(server.endpoint)
                server.start()
                assert await content_of(storage, "a/b") == b"x"
                assert (await storage.health()).ok

                server.pause()
                with pytest.raises(Unavailable):
                    await storage.stat("a/b")
                health = await storage.health()
                assert not health.ok and health.reason.endswith("no answer")
                server.resume()
                assert (await storage.health()).ok

    async def test_a_start_without_the_server_is_a_start(self) -> None:
        """The plugin is entered and left; only its health says it."""
        with S3Server() as server:
            server.stop()
            plugin = Plugin(settings_of(server))
            async with plugin.itdesk_lifespan():
                assert not (await plugin.itdesk_health()).ok
            with pytest.raises(Unavailable):
                await plugin.itdesk_storage().stat("a/b")

    @pytest.mark.parametrize(
        ("wrong", "advice"),
        [
            ({"bucket": "nowhere"}, "S3_BUCKET"),
            ({"access_key": "AKINOBODY"}, "S3_ACCESS_KEY"),
            ({"secret_key": "another secret"}, "S3_SECRET_KEY"),
        ],
    )
    async def test_a_check_names_the_option_to_mend(
        self, s3_server: S3Server, wrong: dict[str, str], advice: str
    ) -> None:
        """And a missing bucket is no missing object: files would be given up for it."""
        async with S3(settings_of(s3_server, **wrong)).opened() as storage:
            with pytest.raises(Unavailable, match=advice) as caught:
                await storage.check()
            assert "another secret" not in caught.value.message
            health = await storage.health()
            assert not health.ok and "S3_" in health.reason
            with pytest.raises(Unavailable):
                await content_of(storage, "a/b")

    @pytest.mark.parametrize(
        ("status", "code", "error"),
        [(503, "SlowDown", Unavailable), (500, "InternalError", Unavailable),
         (403, "AccessDenied", Unavailable), (507, "XMinioStorageFull", "StorageFull"),
         (404, "NoSuchKey", NotFound), (200, "<not xml", Unavailable)],
    )  # fmt: skip
    async def test_what_the_server_says_is_not_relayed(
        self, s3_server: S3Server, status: int, code: str, error: Any
    ) -> None:
        async def refuse(request: web.Request) -> web.Response:
            await request.read()
            said = "secret-of-the-server"
            xml = f"<Error><Code>{code}</Code><Message>{said}</Message></Error>"
            return web.Response(status=status, text=xml, content_type="application/xml")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", refuse)
        async with TestServer(app) as server:
            settings = settings_of(s3_server, endpoint=f"http://{server.host}:{server.port}")
            async with S3(settings).opened() as storage:
                with pytest.raises(Exception, match=r"^(?!.*secret-of-the-server)") as caught:
                    await storage.write("a/b", chunked(bytes(PART + 1)), limit=2 * PART)
                wanted = error if isinstance(error, str) else error.__name__
                assert type(caught.value).__name__ == wanted
                if status == 403:
                    with pytest.raises(Unavailable, match="may not list"):
                        await storage.check()

    async def test_a_download_that_breaks_off_is_not_whole(self, s3_server: S3Server) -> None:
        async def half(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse(headers={"Content-Length": "1000"})
            await answer.prepare(request)
            await answer.write(bytes(500))
            assert request.transport is not None
            request.transport.close()
            return answer

        app = web.Application()
        app.router.add_get("/{path:.*}", half)
        async with TestServer(app) as server:
            settings = settings_of(s3_server, endpoint=f"http://{server.host}:{server.port}")
            async with S3(settings).opened() as storage:
                with pytest.raises(Unavailable):
                    await content_of(storage, "a/b")
