"""Mail through the real daemon: what goes to whom, what becomes of it, and who may look."""

import asyncio
import subprocess
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from itdesk.model import new_id
from tests.support.daemon import Daemon, Live, Person, serving, started
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.smtp import PASSWORD, MailServer

QUICK = {
    "ITDESK_JOBS__POLL_SECONDS": "1",
    "ITDESK_JOBS__LEASE_SECONDS": "1",
    "ITDESK_MAIL__RETRY_SECONDS": "1",
    "ITDESK_SCHEDULER__DAILY_STATS_SECONDS": "0",
    "ITDESK_SCHEDULER__TOKEN_CLEANUP_SECONDS": "0",
}


@pytest.fixture(scope="module")
def post_office() -> Iterator[MailServer]:
    """The mail server of this module's daemon."""
    server = MailServer()
    server.start()
    yield server
    server.end()


@pytest.fixture(scope="module")
def mailing(pg_server: Server, post_office: MailServer) -> Iterator[Live]:
    """One daemon that mails, for all tests here that need no own."""
    more = {
        "ITDESK_MAIL__BURST": "1000",
        "FRONTEND_BASE_URL": "https://desk.example.org/app",
        "LOG_LEVEL": "DEBUG",
    }

    def judge(log: str) -> None:
        assert "Traceback" not in log, log[-6000:]
        # What mails say, and the password, is in no line, DEBUG included.
        assert [w for w in ("nuisance", "Third floor", "Which floor", PASSWORD) if w in log] == []

    with serving(pg_server, judge, **post_office.env(**QUICK, **more)) as live:
        yield live


@dataclass
class Team:
    """People of a desk with mail, and where their mails come."""

    live: Live
    server: MailServer
    customer: Person
    agent: Person
    other: Person

    async def subjects(self, person: Person, count: int) -> list[str]:
        """Return what somebody was told, once it is so much."""
        await self.server.got(lambda server: len(server.to(person.email)) >= count)
        return [mail.text.split("\n")[0] for mail in self.server.to(person.email)]

    async def settled(self) -> None:
        """Return once nothing more will come of what was done."""
        query = "SELECT count(*) FROM jobs WHERE type LIKE 'mail.%' AND state <> 'done'"

        async def done() -> bool:
            return bool(await sql(self.live.daemon, query) == 0)

        await eventually(done, seconds=30)


@pytest.fixture
async def team(mailing: Live, post_office: MailServer) -> AsyncIterator[Team]:
    """A customer, an agent and one more, of whom only the tests' own doings are told."""
    post_office.reset()
    await sql(mailing.daemon, "UPDATE users SET is_active = (role = 'admin')")
    admin = mailing.admin
    quiet = {"ticket_created": False}
    (await admin.call("PUT", f"/api/v1/users/{admin.id}/notifications", json=quiet)).expect(200)
    people = [await mailing.person(role) for role in ("user", "agent", "agent")]
    yield Team(mailing, post_office, *people)


async def sql(daemon: Daemon, query: str, *values: object) -> Any:
    """Run a statement behind the daemon's back and return its first value."""
    conn = await asyncpg.connect(daemon.env["DATABASE_URL"])
    try:
        return await conn.fetchval(query, *values)
    finally:
        await conn.close()


async def wants(person: Person, **topics: bool) -> Any:
    path = f"/api/v1/users/{person.id}/notifications"
    return (await person.call("PUT", path, json=topics)).expect(200)


# --- who is told of what -------------------------------------------------------------------------


async def test_a_new_ticket_is_told_to_agents_and_its_assignee_once(team: Team) -> None:
    """S3-65: the assignee of a new ticket gets a mail, every other agent one, its maker none."""
    new = {"title": "Printer, “on fire”", "description": "Third floor.\r\n.\r\nHelp"}
    fields = {**new, "assignee_ids": [team.other.id]}
    maker = await team.live.person("manager")
    ticket = (await maker.post("/tickets", fields)).expect(201)
    assert await team.subjects(team.other, 1) == ["A manager gave you a new ticket."]
    assert await team.subjects(team.agent, 1) == ["A manager opened a ticket."]
    await team.settled()
    assert len(team.server.mails) == 2
    (mail,) = team.server.to(team.agent.email)
    assert mail.message["Subject"] == f"[{ticket['key']}] {new['title']}"
    assert "Third floor." in mail.text
    assert f"https://desk.example.org/app/tickets/{ticket['key']}" in mail.text
    assert "new tickets are told to all agents" in mail.text
    html = mail.message.get_body(("html",))
    link = f'<a href="https://desk.example.org/app/tickets/{ticket["key"]}">'
    assert html is not None and link in html.get_content()


async def test_mails_of_a_ticket_hang_together(team: Team) -> None:
    """In-Reply-To and References are the ticket's, each Message-ID is its own."""
    ticket = await team.customer.ticket()
    await team.subjects(team.agent, 1)
    path = f"/tickets/{ticket['key']}"
    (await team.agent.patch(path, {"status": "triaged"})).expect(200)
    (await team.agent.post(f"{path}/comments", {"body": "Have a look"})).expect(201)
    await team.subjects(team.customer, 2)
    mails = [*team.server.to(team.customer.email), *team.server.to(team.agent.email)]
    threads = {str(mail.message[name]) for mail in mails for name in ("In-Reply-To", "References")}
    assert threads == {f"<ticket.{ticket['id']}@desk.example.org>"}
    assert len({mail.id for mail in mails}) == len(mails) == 3
    assert len({str(mail.message["Subject"]) for mail in mails}) == 1


async def test_assignment_status_and_comments_reach_those_concerned(team: Team) -> None:
    """The new assignee; reporter and assignees; never whoever did it; at most one mail each."""
    ticket = await team.customer.ticket()
    path = f"/tickets/{ticket['key']}"
    both = {"status": "in_progress", "assignee_ids": [team.other.id]}
    (await team.agent.patch(path, both)).expect(200)
    (await team.other.post(f"{path}/comments", {"body": "Which floor?"})).expect(201)
    (await team.customer.post(f"{path}/comments", {"body": "The third."})).expect(201)
    (await team.agent.patch(path, {"priority": "high"})).expect(200)
    await team.settled()
    told = {p.email: await team.subjects(p, 0) for p in (team.customer, team.agent, team.other)}
    assert sorted(told[team.customer.email]) == [
        "A agent changed the status from open to in_progress.",
        "A agent commented.",
    ]
    assert told[team.agent.email] == ["A user opened a ticket."]
    assert sorted(told[team.other.email]) == [
        "A agent gave you this ticket.",
        "A user commented.",
        "A user opened a ticket.",
    ]
    texts = "\n".join(mail.text for mail in team.server.mails)
    assert "Which floor?" in texts and "The third." in texts


async def test_what_is_said_internally_never_reaches_a_customer(team: Team) -> None:
    """Neither its words nor that it was said: assignees of the desk only."""
    ticket = await team.customer.ticket()
    path = f"/tickets/{ticket['key']}"
    (await team.agent.patch(path, {"assignee_ids": [team.other.id]})).expect(200)
    body = {"body": "the customer is a nuisance", "internal": True}
    (await team.agent.post(f"{path}/comments", body)).expect(201)
    await team.settled()
    assert team.server.to(team.customer.email) == []
    said = [mail.text for mail in team.server.to(team.other.email) if "nuisance" in mail.text]
    assert len(said) == 1 and said[0].startswith("A agent commented internally.")


async def test_an_assignee_who_is_no_agent_any_more_reads_nothing_internal(team: Team) -> None:
    """What somebody may read is asked when the mail is written."""
    ticket = await team.customer.ticket()
    path = f"/tickets/{ticket['key']}"
    (await team.agent.patch(path, {"assignee_ids": [team.other.id]})).expect(200)
    await team.settled()
    await sql(team.live.daemon, "UPDATE users SET role = 'user' WHERE id = $1", team.other.id)
    before = len(team.server.to(team.other.email))
    for internal in (True, False):
        said = {"body": f"internal {internal}", "internal": internal}
        (await team.agent.post(f"{path}/comments", said)).expect(201)
    await team.settled()
    (mail,) = team.server.to(team.other.email)[before:]
    assert "internal False" in mail.text


async def test_nobody_is_told_who_left_or_does_not_want_to_be(team: Team) -> None:
    """Inactive people get nothing, others what they did not turn off."""
    ticket = await team.customer.ticket()
    path = f"/tickets/{ticket['key']}"
    await team.settled()
    team.server.reset()
    assert await wants(team.customer, status_changed=False) == {
        "ticket_created": True, "ticket_assigned": True, "status_changed": False,
        "comment_added": True, "file_recalled": True,
    }  # fmt: skip
    (await team.agent.patch(path, {"status": "triaged"})).expect(200)
    (await team.agent.post(f"{path}/comments", {"body": "One"})).expect(201)
    await team.settled()
    assert await team.subjects(team.customer, 0) == ["A agent commented."]
    gone = {"is_active": False}
    (await team.live.admin.patch(f"/users/{team.customer.id}", gone)).expect(200)
    (await team.agent.post(f"{path}/comments", {"body": "Two"})).expect(201)
    await team.settled()
    assert len(team.server.mails) == 1


async def test_a_ticket_that_is_gone_is_told_to_nobody(team: Team) -> None:
    """Deleted before its mails were written: there is nothing to read any more."""
    await sql(team.live.daemon, "INSERT INTO jobs (type, event_id) VALUES ('mail.notify', $1)",
              new_id())  # fmt: skip
    await team.settled()
    assert team.server.mails == []


async def test_settings_are_ones_own_and_strict(team: Team) -> None:
    """N1, N2: only the topics that there are, true or false, and nobody else's."""
    path = f"/api/v1/users/{team.customer.id}/notifications"
    wrong: list[Any] = [{"weather": True}, {"comment_added": "yes"}, {"comment_added": None}, []]
    for body in wrong:
        answer = await team.customer.call("PUT", path, json=body)
        assert answer.status in (400, 422), answer.raw
    assert all((await team.customer.call("GET", path)).expect(200).values())
    (await team.agent.call("GET", path)).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    missing = f"/users/{new_id()}/notifications"
    (await team.live.admin.get(missing)).refused(404, "E_USER_NOT_FOUND")


# --- what becomes of a mail ----------------------------------------------------------------------


async def _mails(person: Person, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await person.get(f"/emails{query}")).expect(200)
    return found


async def test_4xx_is_tried_again_5xx_is_final_and_neither_holds_up_others(team: Team) -> None:
    """R-23, S4-46: greylisted, busy, dropped and refused mails beside one that just goes."""
    people = {name: await team.live.person() for name in ("grey", "busy", "bad", "good")}
    team.server.on_rcpt = {
        people["grey"].email: deque(["450 4.2.0 greylisted", "450 4.2.0 greylisted"]),
        people["busy"].email: deque(["421 4.7.0 too many"] * 2),
        people["bad"].email: deque(["550 5.1.1 nobody of that name"] * 9),
    }
    for person in people.values():
        key = (await person.ticket())["key"]
        (await team.agent.post(f"/tickets/{key}/comments", {"body": "Hello"})).expect(201)
    for name in ("grey", "busy", "good"):
        email = people[name].email
        await team.server.got(lambda server, to=email: len(server.to(to)) == 1)  # type: ignore[misc]
    await team.settled()
    (failed,) = await _mails(team.live.admin, f"?to={people['bad'].email.upper()}")
    assert (failed["status"], failed["attempts"], failed["sent_at"]) == ("failed", 1, None)
    assert "550 5.1.1 nobody of that name" in failed["last_error"]
    (grey,) = await _mails(team.live.admin, f"?to={people['grey'].email}&status=sent")
    assert grey["attempts"] == 3 and grey["last_error"] is None and grey["sent_at"]
    # An operator mended it.
    team.server.on_rcpt.clear()
    path = f"/emails/{failed['id']}/retry"
    again = (await team.live.admin.post(path)).expect(200)
    assert again["status"] == "queued"
    await team.server.got(lambda server: len(server.to(people["bad"].email)) == 1)
    assert team.server.to(people["bad"].email)[0].id == failed["message_id"]
    await team.settled()
    (await team.live.admin.post(path)).refused(409, "E_EMAIL_STATE")


async def test_a_drop_after_the_content_is_one_mail_more_with_the_same_id(team: Team) -> None:
    """R-23: unknown whether it arrived: it is sent again, and can be told."""
    await wants(team.other, ticket_created=False)
    team.server.on_data = deque(["drop"])
    await team.live.admin.ticket(assignee_ids=[team.agent.id])
    await team.server.got(lambda server: len(server.to(team.agent.email)) == 2)
    await team.settled()
    assert len({mail.id for mail in team.server.to(team.agent.email)}) == 1


async def test_the_list_is_the_newest_first_without_what_mails_say(team: Team) -> None:
    """S4-46: admin sees every mail by pages; others none; nobody reads a mail here."""
    await team.customer.ticket("Secret title 4711")
    await team.settled()
    first = await team.live.admin.get("/emails?limit=1&count=true")
    newest = first.expect(200)[0]
    assert int(first.headers["X-Total-Count"]) >= 2
    assert set(newest) == {
        "id", "to_address", "subject", "kind", "status", "attempts", "last_error",
        "next_attempt_at", "message_id", "ticket_id", "created_at", "sent_at",
    }  # fmt: skip
    following = first.headers["Link"].partition("<")[2].partition(">")[0]
    second = (await team.live.admin.call("GET", following)).expect(200)[0]
    assert second["id"] != newest["id"] and second["created_at"] <= newest["created_at"]
    (await team.agent.get("/emails")).refused(403, "E_AUTH_INSUFFICIENT_PERMISSIONS")
    (await team.live.admin.get("/emails?status=lost")).refused(422, "E_VALIDATION_ERROR")
    (await team.live.admin.post(f"/emails/{new_id()}/retry")).refused(404, "E_EMAIL_NOT_FOUND")
    (await team.live.admin.post("/emails/x/retry")).refused(404, "E_EMAIL_NOT_FOUND")


async def test_metrics_and_health_tell_of_mail(team: Team) -> None:
    """What is owed, since when, what was settled; late mail degrades and makes nothing fail."""
    await team.customer.ticket()
    await team.settled()
    text = (await team.live.nobody.call("GET", "/metrics")).raw.decode()
    for name in ('finished_total{outcome="sent"}', "queued ", "oldest_seconds ", "retries_total "):
        assert f"itdesk_mail_{name}" in text
    ready = (await team.live.nobody.call("GET", "/readyz")).expect(200)
    assert ready["checks"]["mail"]["status"] == "ok"
    insert = """INSERT INTO emails (to_address, subject, kind, next_attempt_at, created_at)
        VALUES ('x@example.org', 'x', 'notification', now() - interval '1 hour', now() - interval
        '1 hour') RETURNING id"""
    # A job that waits keeps the sweep from sending it.
    held = await sql(team.live.daemon, insert)
    job = "INSERT INTO jobs (type, dedupe_key) VALUES ('matrix.none', 'mail:' || $1::text)"
    await sql(team.live.daemon, job, str(held))
    late = (await team.live.nobody.call("GET", "/readyz")).expect(200)
    assert late["status"] == "degraded" and "1 mails wait" in late["checks"]["mail"]["reason"]
    await sql(team.live.daemon, "DELETE FROM emails WHERE id = $1", held)
    await sql(team.live.daemon, "DELETE FROM jobs WHERE type = 'matrix.none'")


async def test_the_shell_sends_a_test_lists_and_retries(team: Team) -> None:
    """`itdesk mail` and doctor: the way to the server is really gone."""
    id = await sql(team.live.daemon, """INSERT INTO emails (to_address, subject, body_text, kind,
        status, message_id) VALUES ('late@example.org', 's', 'b', 'notification', 'failed', '<1@x>')
        RETURNING id::text""")  # fmt: skip

    def run(*arguments: str) -> Awaitable["subprocess.CompletedProcess[str]"]:
        return asyncio.to_thread(team.live.daemon.run, *arguments)

    good, retried, doctor = await asyncio.gather(
        run("mail", "test", "boss@example.org"),
        run("mail", "retry", id),
        run("doctor"),
    )
    assert good.returncode == 0, good.stderr
    assert "STARTTLS, signed in as" in good.stdout and "taken over: <" in good.stdout
    assert len(team.server.to("boss@example.org")) == 1
    assert "ok   mail: 127.0.0.1:" in doctor.stdout
    assert retried.returncode == 0 and "queued" in retried.stdout, retried.stderr
    await team.server.got(lambda server: len(server.to("late@example.org")) == 1)


# --- daemons of their own ------------------------------------------------------------------------


@asynccontextmanager
async def own(pg_server: Server, server: MailServer, **env: str) -> AsyncIterator[Live]:
    """Lend a daemon whose database, and mail, is its test's alone."""
    async with started(pg_server, **server.env(**{**QUICK, **env})) as live:
        yield live


async def test_without_a_mail_server_a_mail_is_skipped(live: Live) -> None:
    """S4-12: empty host: nobody is told of tickets, and readiness has nothing against it."""
    ticket = await live.admin.ticket()
    assert ticket["key"]
    mails = "SELECT count(*) FROM emails WHERE ticket_id = $1"
    assert await sql(live.daemon, mails, ticket["id"]) == 0
    assert (await live.nobody.call("GET", "/readyz")).json["checks"]["mail"]["status"] == "ok"
    done = await asyncio.to_thread(live.daemon.run, "mail", "test", "a@example.org")
    assert done.returncode != 0 and "set SMTP_HOST" in done.stderr


async def test_an_outage_of_the_mail_server_loses_no_mail_and_fails_none(
    pg_server: Server, mail_server: MailServer
) -> None:
    """Refused connections are waited for without end; a storm becomes one mail."""
    env = {"ITDESK_MAIL__BURST": "3", "ITDESK_MAIL__DIGEST_SECONDS": "600"}
    async with own(pg_server, mail_server, **env) as live:
        agent = await live.person("agent")
        mail_server.stop()
        keys = [(await live.admin.ticket(f"Storm {n}"))["key"] for n in range(12)]
        tried = """SELECT (SELECT count(*) > 2 FROM emails WHERE last_error LIKE '%cannot be used%')
            AND NOT EXISTS (SELECT FROM jobs WHERE type = 'mail.notify' AND state <> 'done')"""

        async def all_tried() -> bool:
            return bool(await sql(live.daemon, tried))

        await eventually(all_tried, seconds=30)
        ready = (await live.nobody.call("GET", "/readyz")).expect(200)
        assert "cannot be used" in ready["checks"]["plugins"]["reason"]
        assert await sql(live.daemon, "SELECT count(*) FROM emails WHERE status <> 'queued'") == 0
        mail_server.start()
        await sql(live.daemon, "UPDATE jobs SET run_at = now() WHERE type = 'mail.deliver'")
        await mail_server.got(
            lambda server: all(
                any(key in f"{mail.message['Subject']}{mail.text}" for mail in server.mails)
                for key in keys
            )
        )
        assert len(mail_server.to(agent.email)) == 4
        subject = "itdesk: more news of your tickets"
        mails = mail_server.to(agent.email)
        (storm,) = [mail for mail in mails if mail.message["Subject"] == subject]
        assert storm.text.count("opened a ticket.") == 9
