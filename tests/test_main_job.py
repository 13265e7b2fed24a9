"""The whole main job, over real HTTP against the real process (S0-18, S3-49)."""

import asyncio
from pathlib import Path

from tests.support.clamd import Clamd
from tests.support.daemon import Live, Person, make_daemon, running, started
from tests.support.postgres import Server
from tests.support.samples import eicar


async def _presigned(person: Person, ticket: str, data: bytes, name: str) -> str:
    asked = {"original_filename": name, "mime": "text/plain", "size": len(data)}
    link = (await person.post(f"/tickets/{ticket}/attachments/presign", asked)).expect(201)
    sent = await Person("").call(
        link["method"], link["upload_url"], data=data, headers=link["headers"]
    )
    assert sent.status == 200, sent.raw
    confirmed = await person.post("/attachments", {"attachment_id": link["attachment_id"]})
    return str(confirmed.expect(201)["id"])


async def _all_there(alice: Person, ticket: str, clean: list[str], foul: list[str]) -> None:
    """Check that the ticket, its comment, files and history are as they were made."""
    assert (await alice.get(f"/tickets/{ticket}")).expect(200)["status"] == "open"
    said = (await alice.get(f"/tickets/{ticket}/comments")).expect(200)
    assert [comment["body"] for comment in said] == ["It is still down."]
    for attachment in clean:
        served = await alice.get(f"/attachments/{attachment}/content")
        assert served.status == 200
        assert served.raw == b"just a log line\n"
    for attachment in foul:
        refused = await alice.get(f"/attachments/{attachment}/content")
        refused.refused(403, "E_ATTACHMENT_INFECTED")
        link = await alice.get(f"/tickets/{ticket}/attachments/{attachment}/download")
        link.refused(403, "E_ATTACHMENT_INFECTED")
    history = (await alice.get(f"/tickets/{ticket}/history")).expect(200)
    actions = [line["action"] for line in history]
    assert actions[:2] == ["created", "comment_added"]
    assert actions.count("attachment_added") == 4
    assert actions.count("attachment_scanned") == 4
    verdicts = sorted(line["new_value"] for line in history if "scanned" in line["action"])
    assert verdicts == ["CLEAN", "CLEAN", "INFECTED", "INFECTED"]


async def test_a_ticket_with_scanned_files_survives_a_restart(
    pg_server: Server, clamd: Clamd
) -> None:
    """S0-01, S0-21, S0-25, S0-28, S0-34, S0-35, S3-01: register, upload, scan, serve, restart."""
    env = {
        "CLAMAV_HOST": "127.0.0.1",
        "CLAMAV_PORT": str(clamd.port),
        "MAX_FILE_SIZE": "4000000",
        "ITDESK_PLUGINS__CLAMAV__MAX_FILE_SIZE": "4000000",
    }
    async with started(pg_server, **env) as live:
        alice = await _registered(live)
        ticket = (await alice.ticket("The VPN is down"))["key"]
        (await alice.post(f"/tickets/{ticket}/comments", {"body": "It is still down."})).expect(201)

        clean, foul = b"just a log line\n", eicar()
        direct = (await alice.upload(ticket, clean)).expect(201)
        assert direct["scanned_status"] == "PENDING"
        bad = (await alice.upload(ticket, foul, "bad.txt")).expect(201)
        files = [
            direct["id"],
            await _presigned(alice, ticket, clean, "log.txt"),
            bad["id"],
            await _presigned(alice, ticket, foul, "bad2.txt"),
        ]
        scanned = [await alice.scanned(file) for file in files]
        assert [file["scanned_status"] for file in scanned] == [
            "CLEAN", "CLEAN", "INFECTED", "INFECTED",
        ]  # fmt: skip
        assert all("Eicar" in file["scan_signature"] for file in scanned[2:])
        link = (await alice.get(f"/tickets/{ticket}/attachments/{files[1]}/download")).expect(200)
        assert (await Person("").call("GET", link["download_url"])).raw == clean
        await _all_there(alice, ticket, files[:2], files[2:])

        assert await asyncio.to_thread(live.daemon.stop) == 0
        await asyncio.to_thread(live.daemon.start)
        alice.base = live.daemon.url
        await _all_there(alice, ticket, files[:2], files[2:])
        assert not list(Path(live.daemon.state_dir / "spool").iterdir())


async def test_an_empty_database_is_ready_without_a_manual_step(pg_server: Server) -> None:
    """S0-07, S3-51: the command that the unit starts brings schema and all up by itself."""
    url = await pg_server.create(migrated=False)
    daemon = make_daemon(url, ITDESK_DATABASE__MIGRATE_ON_START="true")
    try:
        async with running(daemon) as live:
            ready = await live.nobody.call("GET", "/readyz")
            assert ready.status == 200 and ready.json["checks"]["database"]["status"] == "ok"
            assert (await live.admin.ticket())["key"] == "TSK-1001"
    finally:
        await pg_server.drop(url)


async def test_a_pending_file_is_refused(pg_server: Server) -> None:
    """S0-34: while the engine is away nothing is served, and the answer says to wait."""
    async with started(pg_server, CLAMAV_HOST="127.0.0.1", CLAMAV_PORT="1") as live:
        alice = await live.person()
        ticket = (await alice.ticket())["key"]
        file = (await alice.upload(ticket, b"harmless")).expect(201)["id"]
        refused = await alice.get(f"/attachments/{file}/content")
        refused.refused(409, "E_ATTACHMENT_SCAN_PENDING")
        link = await alice.get(f"/tickets/{ticket}/attachments/{file}/download")
        link.refused(409, "E_ATTACHMENT_SCAN_PENDING")


async def _registered(live: Live) -> Person:
    body = {"email": "alice@example.org", "password": "a long enough one", "name": "Alice"}
    (await live.nobody.post("/auth/register", body)).expect(201)
    return await live.sign_in("alice@example.org", "a long enough one")
