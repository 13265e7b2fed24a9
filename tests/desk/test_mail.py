"""Mail inside the desk: what is kept of it, and what becomes of one that nobody can deliver."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest

from itdesk.actors.worker import Worker
from itdesk.desk.mail import Mail
from itdesk.errors import Conflict
from itdesk.hookspecs import Outgoing
from itdesk.model import SYSTEM, MailKind, MailStatus, Role, new_id
from itdesk.runtime.actor import TICK
from itdesk.store.paging import Window
from tests.support.desk import Bench, bench_on
from tests.support.smtp import MailServer

# A connection is closed by its loop some time after we let go of it.
pytestmark = pytest.mark.asyncio(loop_scope="module")

VALUES = {"name": "Jo", "link": "https://x.org/reset?token=s3cr3t-t0k3n", "hours": 2, "code": "1"}


@asynccontextmanager
async def posting(database_url: str, server: MailServer | None, **env: str) -> AsyncIterator[Bench]:
    off = {"ITDESK_SCHEDULER__TOKEN_CLEANUP_SECONDS": "0"}
    known = server.env() if server else {}
    async with bench_on(database_url, **{**off, **known, **env}) as bench:
        yield bench


async def work(bench: Bench) -> None:
    """Do all that is due."""
    worker = Worker(bench.desk.jobs)
    worker.tell(TICK)
    while len(worker.mailbox):
        await worker.step()


async def queued(
    bench: Bench, kind: MailKind = MailKind.PASSWORD_RESET, to: str = "jo@example.org"
) -> UUID:
    async with bench.desk.db.transaction() as tx:
        return await bench.desk.mail.queue(tx, kind.value, to, VALUES, kind=kind)


async def row(bench: Bench, id: UUID, columns: str = "status") -> Any:
    async with bench.desk.db.connection() as conn:
        found = await conn.fetchrow(f"SELECT {columns} FROM emails WHERE id = $1", id)  # noqa: S608
    return tuple(found)


async def test_without_a_plugin_a_mail_is_skipped_and_its_link_kept_nowhere(
    database_url: str,
) -> None:
    """S4-12: recorded as skipped, nothing fails, no job is queued."""
    async with posting(database_url, None) as bench:
        id = await queued(bench)
        assert await row(bench, id, "status, body_text, body_html") == ("skipped", "", None)
        assert await bench.sql("SELECT count(*) FROM jobs WHERE type LIKE 'mail.%'") == 0
        with pytest.raises(Conflict, match="forgotten"):
            await bench.desk.mail.retry(SYSTEM, id)
        await bench.ticket(await bench.person())
        assert await bench.sql("SELECT count(*) FROM jobs WHERE type LIKE 'mail.%'") == 0


async def test_a_mail_with_a_link_is_emptied_when_it_was_sent(
    database_url: str, mail_server: MailServer
) -> None:
    """T15, S4-11: the reader gets the link; the row, the job and the list keep nothing of it."""
    base = {"FRONTEND_BASE_URL": "https://front.example.org/"}
    async with posting(database_url, mail_server, **base) as bench:
        assert bench.desk.mail.link("/reset", token="a&b") == (
            "https://front.example.org/reset?token=a%26b"
        )
        id = await queued(bench)
        assert "s3cr3t" in (await row(bench, id, "body_text"))[0]
        await work(bench)
        assert "s3cr3t-t0k3n" in mail_server.mails[0].text
        assert mail_server.mails[0].message["Subject"] == "Reset your password for itdesk"
        assert await row(bench, id, "status, body_text, body_html") == ("sent", "", None)
        for table in ("emails", "jobs", "events"):
            text = await bench.sql(f"SELECT string_agg(t::text, '') FROM {table} t")  # noqa: S608
            assert "s3cr3t" not in str(text)
        page = await bench.desk.mail.list(SYSTEM, Window(), status=MailStatus.SENT, to=None)
        assert "s3cr3t" not in repr(page)


async def test_links_start_with_the_daemons_address_without_a_frontend(database_url: str) -> None:
    """S4-11: public_url takes the place of a FRONTEND_BASE_URL that was not set."""
    env = {"ITDESK_SERVER__PUBLIC_URL": "https://desk.example.org"}
    async with posting(database_url, None, **env) as bench:
        assert bench.desk.mail.link("x") == "https://desk.example.org/x"


async def test_a_link_that_is_over_is_not_sent(database_url: str, mail_server: MailServer) -> None:
    """After an outage of a day nobody gets a reset link of yesterday."""
    async with posting(database_url, mail_server) as bench:
        old, young, endless = [await queued(bench) for _ in range(3)]
        lasts = "SELECT bool_and(expires_at = created_at + interval '2 hours') FROM emails"
        assert await bench.sql(lasts) is True
        await bench.sql("UPDATE emails SET expires_at = NULL WHERE id = $1", endless)
        await bench.sql("UPDATE emails SET expires_at = now() - interval '1 minute' WHERE id = $1",
                        old)  # fmt: skip
        await work(bench)
        assert [(await row(bench, id))[0] for id in (old, young, endless)] == [
            "failed", "sent", "sent",
        ]  # fmt: skip
        assert len(mail_server.mails) == 2


async def test_mail_without_a_job_gets_one_and_one_given_up_fails(
    database_url: str, mail_server: MailServer
) -> None:
    """The sweep: whatever happened to its job, a mail is sent or visibly failed."""
    async with posting(database_url, mail_server) as bench:
        lost, dead, busy = [await queued(bench) for _ in range(3)]
        await bench.sql("DELETE FROM jobs WHERE args ->> 'email_id' = $1", str(lost))
        await bench.sql(
            "UPDATE jobs SET state = 'failed', finished_at = now(), last_error = 'it never came'"
            " WHERE args ->> 'email_id' = $1", str(dead),
        )  # fmt: skip
        await bench.sql("UPDATE jobs SET run_at = now() + interval '1 hour'")
        await bench.sql("UPDATE emails SET next_attempt_at = now() - interval '2 minutes'")
        async with bench.desk.db.transaction() as tx:
            tx.enqueue("mail.sweep", {})
        await bench.sql("UPDATE jobs SET args = '{\"due_at\": \"2026-01-01T00:00:00Z\"}'"
                        " WHERE type = 'mail.sweep'")  # fmt: skip
        await work(bench)
        await work(bench)
        assert await row(bench, lost) == ("sent",)
        assert await row(bench, dead, "status, last_error") == ("failed", "it never came")
        assert await row(bench, busy) == ("queued",)


class Broken:
    """A mailer of a third party that breaks at one address."""

    name = "broken"

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def deliver(self, mail: Outgoing) -> None:
        if mail.to_address == "poison@example.org":
            raise KeyError("no idea")
        self.sent.append(mail.to_address)

    async def check(self) -> str:
        return "fine"


async def test_a_poison_mail_holds_up_no_other(database_url: str, mail_server: MailServer) -> None:
    """A mailer with a bug: the others go, and the one stays owed until its attempts are used up."""
    env = {"ITDESK_MAIL__CONCURRENCY": "1", "ITDESK_MAIL__MAX_ATTEMPTS": "2"}
    async with posting(database_url, mail_server, **env) as bench:
        mailer = bench.desk.mail.mailer = Broken()
        poison = await queued(bench, to="poison@example.org")
        for n in range(3):
            await queued(bench, to=f"{n}@example.org")
        await work(bench)
        assert mailer.sent == ["0@example.org", "1@example.org", "2@example.org"]
        assert await row(bench, poison) == ("queued",)
        await bench.sql("UPDATE jobs SET run_at = now()")
        await work(bench)
        assert await bench.sql("SELECT state FROM jobs WHERE state <> 'done'") == "failed"


async def test_a_plugin_that_did_not_start_makes_mail_wait(
    database_url: str, mail_server: MailServer
) -> None:
    """Not skipped, not failed: it is configured, so it is owed."""
    async with posting(database_url, mail_server) as bench:
        bench.desk.mail.mailer = None
        id = await queued(bench)
        await work(bench)
        status, attempts, why = await row(bench, id, "status, attempts, last_error")
        assert (status, attempts) == ("queued", 0) and "plugin smtp" in why


async def test_an_event_looked_at_twice_is_one_mail(
    database_url: str, mail_server: MailServer
) -> None:
    """Its job may run again after a crash, or be retried by an operator."""
    async with posting(database_url, mail_server) as bench:
        agent = await bench.person(Role.AGENT)
        await bench.ticket(await bench.person())
        await work(bench)
        query = "INSERT INTO jobs (type, event_id) SELECT type, event_id FROM jobs WHERE type = $1"
        await bench.sql(query, "mail.notify")
        await work(bench)
        assert len(mail_server.to(agent.email)) == 1
        assert await bench.sql("SELECT count(*) FROM jobs WHERE state <> 'done'") == 0


async def test_what_concerns_nobodys_mail_queues_no_job(
    database_url: str, mail_server: MailServer
) -> None:
    """Most updates of tickets are none of mail's business."""
    async with posting(database_url, mail_server) as bench:
        agent = await bench.person(Role.AGENT)
        ticket = await bench.ticket(agent)
        await bench.desk.tickets.update(agent, ticket.key, {"title": "Another title"})
        assert await bench.sql("SELECT count(*) FROM jobs WHERE type = 'mail.notify'") == 1


async def test_a_recalled_file_is_told_to_those_it_names(
    database_url: str, mail_server: MailServer
) -> None:
    """Those of them who may read the ticket now, and whatever else the event says."""
    from itdesk.model import Event

    async with posting(database_url, mail_server) as bench:
        reporter, stranger = await bench.person(), await bench.person()
        ticket = await bench.ticket(reporter)
        await work(bench)
        mail_server.reset()
        named = [str(reporter.user_id), str(stranger.user_id), "nonsense", None]
        data = {"downloaded_by": named, "filename": "bill\r\n.pdf"}
        async with bench.desk.db.transaction() as tx:
            tx.record(Event.by(SYSTEM, "attachment.recalled", ticket_id=ticket.id,
                               ticket_version=99, data=data))  # fmt: skip
        await work(bench)
        (mail,) = mail_server.mails
        assert mail.recipients == [reporter.email]
        assert "The file bill .pdf did not pass a later virus scan" in mail.text


async def test_two_mails_have_different_ids_that_last(
    database_url: str, mail_server: MailServer
) -> None:
    async with posting(database_url, mail_server) as bench:
        ids = [bench.desk.mail.new("a@x.org", "s", "t", kind=MailKind.WELCOME) for _ in range(2)]
        assert len({mail.message_id for mail in ids}) == 2
        assert isinstance(bench.desk.mail, Mail) and new_id() != new_id()
