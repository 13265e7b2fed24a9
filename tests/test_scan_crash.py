"""kill -9 beside a verdict: what is served was scanned, and it was judged once (R-14)."""

import asyncio
import signal
from dataclasses import replace

import pytest

from tests.support.clamd import Clamd
from tests.support.daemon import SMALL_FILES, Person, make_daemon, running
from tests.support.postgres import Server

TEXT = b"What the printer says"


@pytest.mark.parametrize("point", ["before_verdict", "after_verdict"])
async def test_a_scanner_killed_beside_its_verdict_leaves_one_of_these_very_bytes(
    pg_server: Server, clamd: Clamd, point: str
) -> None:
    """R-14: the copy of the scan that got no verdict is served to nobody, and removed."""
    url = await pg_server.create()
    env = {
        "CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": str(clamd.port), **SMALL_FILES,
        "ITDESK_SCANNER__POLL_SECONDS": "1", "ITDESK_SCANNER__LEASE_SECONDS": "2",
    }  # fmt: skip
    daemon = make_daemon(url, **env, ITDESK_FAILPOINTS=point)
    async with running(daemon) as live:
        ticket = await live.admin.ticket()
        file = (await live.admin.upload(ticket["key"], TEXT)).expect(201)
        assert await asyncio.to_thread(daemon.ended) == -signal.SIGKILL
        daemon.env.pop("ITDESK_FAILPOINTS")
        await asyncio.to_thread(daemon.start)
        admin = replace(live.admin, base=daemon.url)
        assert (await admin.scanned(file["id"]))["scanned_status"] == "CLEAN"
        path = f"/tickets/{ticket['key']}/attachments/{file['id']}/download"
        link = (await admin.get(path)).expect(200)
        assert (await Person("").call("GET", link["download_url"])).raw == TEXT
        verdicts = (await admin.get("/events?type=attachment.scanned")).expect(200)
        assert [event["data"]["new"] for event in verdicts] == ["CLEAN"]
    await pg_server.drop(url)
