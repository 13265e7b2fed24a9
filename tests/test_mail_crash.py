"""Killed around a mail: none is missing, and one that comes twice is known as one (R-03)."""

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from itdesk.model import new_id
from tests.support.daemon import Daemon, make_daemon, running, started
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.smtp import MailServer

QUICK = {
    "ITDESK_JOBS__POLL_SECONDS": "1",
    "ITDESK_JOBS__LEASE_SECONDS": "1",
    "ITDESK_MAIL__RETRY_SECONDS": "1",
    "ITDESK_SCHEDULER__DAILY_STATS_SECONDS": "0",
    "ITDESK_SCHEDULER__TOKEN_CLEANUP_SECONDS": "0",
    "ITDESK_SCHEDULER__EMAIL_SECONDS": "0",
    # Else a run of it may be the job at whose end the daemon dies.
    "ITDESK_SCHEDULER__WORKFLOW_SECONDS": "0",
}


async def sql(url: str, query: str, *values: object) -> Any:
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetchval(query, *values)
    finally:
        await conn.close()


async def owe(url: str, to: str) -> UUID:
    """Write a mail and its job as a transaction of the desk would."""
    id = new_id()
    query = """
        WITH mail AS (
            INSERT INTO emails (id, to_address, subject, body_text, kind, message_id,
                                next_attempt_at)
            VALUES ($1, $2, 'Reset', 'a link', 'password_reset', $3, now())
        )
        INSERT INTO jobs (type, args, dedupe_key)
        VALUES ('mail.deliver', jsonb_build_object('email_id', $1::text), 'mail:' || $1::text)
    """
    await sql(url, query, id, to, f"<{id}@x>")
    return id


async def _ended(daemon: Daemon) -> int:
    return await asyncio.to_thread(daemon.ended)


async def test_kills_around_sending_lose_no_mail_and_repeat_it_under_its_id(
    database_url: str, mail_server: MailServer
) -> None:
    """R-03: one duplicate a kill at most, all with equal Message-ID, none missing; T15: blanked."""
    id = await owe(database_url, "jo@example.org")
    daemon = make_daemon(database_url, **mail_server.env(**QUICK))
    sent = []
    for point in ("before_send", "after_send", "before_mark"):
        daemon.env["ITDESK_FAILPOINTS"] = point
        await asyncio.to_thread(daemon.start)
        assert await _ended(daemon) == -signal.SIGKILL
        sent.append(len(mail_server.mails))
    assert sent == [0, 1, 2]
    del daemon.env["ITDESK_FAILPOINTS"]
    await asyncio.to_thread(daemon.start)
    try:

        async def settled() -> bool:
            status = await sql(database_url, "SELECT status FROM emails WHERE id = $1", id)
            return bool(status == "sent")

        await eventually(settled, seconds=20)
    finally:
        assert await asyncio.to_thread(daemon.stop) == 0
    assert [mail.id for mail in mail_server.mails] == [f"<{id}@x>"] * 3
    assert len({mail.raw for mail in mail_server.mails}) == 1
    assert await sql(database_url, "SELECT body_text FROM emails") == ""
    shutil.rmtree(daemon.state_dir)


QUEUE = """
import asyncio, os, sys
from pathlib import Path
from itdesk import assembly, daemon
from itdesk.config import load
from itdesk.model import MailKind
from itdesk.runtime import failpoints

async def main(state_dir, point):
    settings = load(state_dir=Path(state_dir), environ=os.environ)
    async with assembly.open_desk(settings, os.environ["DATABASE_URL"]) as desk:
        failpoints.arm(point)
        async with desk.db.transaction() as tx:
            values = {"name": "Jo", "link": "https://x.org", "hours": 2}
            await desk.mail.queue(tx, "password_reset", "jo@example.org", values,
                                  kind=MailKind.PASSWORD_RESET)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_kill_around_the_commit_leaves_the_mail_or_nothing_of_it(
    database_url: str, mail_server: MailServer
) -> None:
    """R-03: a mail is owed exactly when what it tells of is true."""
    daemon = make_daemon(database_url, **mail_server.env(**QUICK))
    owed = []
    for point in ("before_commit", "after_commit"):
        killed = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", QUEUE, str(daemon.state_dir), point],
            env=daemon.environ(), capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        owed.append(await sql(database_url, "SELECT count(*) FROM emails"))
    assert owed == [0, 1]
    async with running(daemon):
        await mail_server.got(lambda server: len(server.to("jo@example.org")) == 1)


@pytest.mark.slow
async def test_twenty_kills_under_load_lose_no_mail(
    pg_server: Server, mail_server: MailServer
) -> None:
    """R-03: at random moments; every mail there, a duplicate a kill and slot at most."""
    dice = random.Random(20)
    async with started(pg_server, **mail_server.env(**QUICK)) as live:
        url = live.daemon.env["DATABASE_URL"]
        wanted = []
        for kill in range(20):
            for n in range(25):
                wanted.append(await owe(url, f"m{kill}-{n}@example.org"))
            until = len({mail.id for mail in mail_server.mails}) + dice.randrange(1, 20)
            until = min(until, len(wanted))
            await mail_server.got(
                lambda server, until=until: len({m.id for m in server.mails}) >= until  # type: ignore[misc]
            )
            await asyncio.to_thread(live.daemon.stop, signal.SIGKILL)
            await asyncio.to_thread(live.daemon.start)

        async def settled() -> bool:
            owed = await sql(url, "SELECT count(*) FROM emails WHERE status <> 'sent'")
            return bool(owed == 0)

        await eventually(settled, seconds=60)
    copies = Counter(mail.id for mail in mail_server.mails)
    assert set(copies) == {f"<{id}@x>" for id in wanted}
    # Four are on their way at a time.
    assert sum(copies.values()) - len(copies) <= 20 * 4
    print(f"\n{len(copies)} mails, {sum(copies.values()) - len(copies)} duplicates in 20 kills")
