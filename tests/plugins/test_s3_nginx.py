"""Presigned addresses through a real nginx, with the locations that are shipped in etc/nginx."""

import os
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from aiohttp import ClientSession, TCPConnector
from yarl import URL

from itdesk.hookspecs import Presigned
from itdesk_plugins.s3 import S3
from tests.plugins.conformance import content_of, new_key
from tests.plugins.test_s3 import NAMES, download_of, settings_of, upload_of
from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, started
from tests.support.nginx import Nginx
from tests.support.postgres import Server
from tests.support.s3 import S3Server, s3_server

__all__ = ["s3_server"]


@pytest.fixture(scope="module")
def nginx(s3_server: S3Server) -> Iterator[Nginx]:
    """Return an nginx in front of the S3 server."""
    with Nginx(s3_server.endpoint) as nginx:
        yield nginx


async def send(
    nginx: Nginx, asked: Presigned, body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Do what a client does that trusts the proxy's certificate, each address taken as is."""
    trusting = ssl.create_default_context(cafile=str(nginx.ca))
    async with (
        ClientSession(connector=TCPConnector(ssl=trusting)) as http,
        http.request(
            asked.method, URL(asked.url, encoded=True), data=body, headers=asked.headers
        ) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.read()


def settings_behind(
    s3_server: S3Server, nginx: Nginx, scheme: str, sign_host: str, **more: Any
) -> Any:
    base = nginx.base(scheme, sign_host)
    known = {"public_base_url": base, "sign_host": sign_host, "ca": nginx.ca, **more}
    return settings_of(s3_server, **known)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("sign_host", ["public", "endpoint"])
async def test_what_is_signed_is_accepted_behind_the_proxy(
    s3_server: S3Server, nginx: Nginx, scheme: str, sign_host: str
) -> None:
    """S0-31, S0-32, S0-33: both ways of signing, TLS, every name; nothing is re-encoded."""
    base = nginx.base(scheme, sign_host)
    async with S3(settings_behind(s3_server, nginx, scheme, sign_host)).opened() as storage:
        key, content = new_key(), os.urandom(300_000)
        asked = upload_of(storage, key, len(content))
        assert asked.url.startswith(f"{base}/desk/{key}?")
        assert (await send(nginx, asked, content))[0] == 200
        assert await content_of(storage, key) == content
        for name in NAMES:
            asked = download_of(storage, key, name)
            assert asked.url.startswith(base)
            status, headers, body = await send(nginx, asked)
            assert (status, body) == (200, content), name
            assert headers["Content-Disposition"].endswith(f"UTF-8''{quote(name, safe='')}")
        spoilt = Presigned(asked.url.replace("response-content-type=text", "r=text"), "GET", {})
        assert (await send(nginx, spoilt))[0] == 403
        await storage.check()
        assert (await storage.health()).ok


async def test_a_proxy_that_keeps_the_wrong_host_is_found_out(
    s3_server: S3Server, nginx: Nginx
) -> None:
    """Signed for the endpoint and sent with the clients' Host: health says which line to mend."""
    base = nginx.base("https", "public")
    settings = settings_of(s3_server, public_base_url=base, sign_host="endpoint", ca=nginx.ca)
    async with S3(settings).opened() as storage:
        await storage.try_public()
        health = await storage.health()
        assert not health.ok and f"{base} refuses signed requests (403)" in health.reason


async def test_a_wrong_proxy_is_found_out_after_a_start_without_the_server() -> None:
    """The trial at the start could say nothing; the first health check of a server that is there
    does it again."""
    with S3Server() as late:
        late.stop()
        with Nginx(late.endpoint) as proxy:
            base = proxy.base("http", "public")
            settings = settings_of(late, public_base_url=base, sign_host="endpoint")
            async with S3(settings).opened() as storage:
                await storage.try_public()
                assert not (await storage.health()).ok
                late.start()
                health = await storage.health()
                assert not health.ok and "refuses signed requests" in health.reason


async def test_a_file_goes_through_the_proxy_and_the_scanner(
    pg_server: Server, clamd: Clamd, s3_server: S3Server, nginx: Nginx
) -> None:
    """S0-22, S0-28, S0-34, S0-35, S3-62: PUT and GET through TLS, no call between but polling."""
    base = nginx.base("https", "public")
    env = {
        **s3_server.env,
        **SMALL_FILES,
        "CLAMAV_HOST": clamd.host,
        "CLAMAV_PORT": str(clamd.port),
        "S3_PUBLIC_BASE_URL": base,
        "ITDESK_PLUGINS__S3__CA": str(nginx.ca),
    }
    async with started(pg_server, **env) as live:
        alice = await live.person()
        key = (await alice.ticket())["key"]
        content, name = os.urandom(70_000), "a b+%2F – 概要.txt"
        asked = {"original_filename": name, "mime": "text/plain", "size": len(content)}
        link = (await alice.post(f"/tickets/{key}/attachments/presign", asked)).expect(201)
        assert link["upload_url"].startswith(f"{base}/desk/quarantine/tickets/")
        path = f"/tickets/{key}/attachments/{link['attachment_id']}/download"
        (await alice.get(path)).refused(409, "E_ATTACHMENT_SCAN_PENDING")
        put = Presigned(link["upload_url"], link["method"], link["headers"])
        assert (await send(nginx, put, content))[0] == 200
        assert (await alice.scanned(link["attachment_id"]))["scanned_status"] == "CLEAN"
        got = (await alice.get(path)).expect(200)
        assert 0 < got["expires_in"] <= 60
        where = urlsplit(got["download_url"])
        assert got["download_url"].startswith(f"{base}/desk/clean/tickets/") and where.query
        status, headers, body = await send(nginx, Presigned(got["download_url"], "GET", {}))
        assert (status, body) == (200, content)
        assert headers["Content-Disposition"].endswith(f"UTF-8''{quote(name, safe='')}")
        kept = [each for each in s3_server.objects() if link["attachment_id"] in each]
        assert len(kept) == 1 and kept[0].startswith("clean/")
        direct = (await alice.upload(key, b"sent through the desk")).expect(201)
        assert (await alice.scanned(direct["id"]))["scanned_status"] == "CLEAN"
        metrics = (await live.nobody.call("GET", "/metrics")).raw.decode()
        assert 'itdesk_s3_seconds_count{operation="put_object",outcome="ok"}' in metrics
        ready = (await live.nobody.call("GET", "/readyz")).expect(200)
        assert ready["status"] == "ok", ready
