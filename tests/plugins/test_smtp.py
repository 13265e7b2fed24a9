"""The smtp plugin against a real SMTP server, and against servers that misbehave."""

import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import ValidationError

from itdesk.errors import Unavailable
from itdesk.hookspecs import GiveUp, Mailer, Outgoing, RetryLater
from itdesk.model import new_id
from itdesk_plugins.smtp import Plugin, Smtp, SmtpSettings
from itdesk_plugins.smtp_message import Unsayable, compose, mailbox, named_mailbox
from tests.support.smtp import PASSWORD, USER, MailServer, Silent

# A connection is closed by its loop some time after we let go of it.
pytestmark = pytest.mark.asyncio(loop_scope="module")

WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def outgoing(to: str = "jo@example.org", **fields: Any) -> Outgoing:
    id = fields.pop("id", new_id())
    known = {
        "id": id,
        "message_id": f"<{id}@desk.example.org>",
        "to_address": to,
        "subject": "A subject",
        "text": "Some text\n",
        "html": "<p>Some text</p>\n",
        "thread": None,
        "created_at": WHEN,
    }
    return Outgoing(**{**known, **fields})


def settings_of(server: MailServer, **options: Any) -> SmtpSettings:
    known: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": server.port,
        "from": "The Desk <desk@example.org>",
        "ca_file": server.ca_file,
        "tls": "implicit" if server.mode == "implicit" else server.mode != "none",
    }
    if server.sign_in:
        known |= {"user": USER, "password": PASSWORD}
    return SmtpSettings.model_validate({**known, **options})


@pytest_asyncio.fixture(loop_scope="module")
async def smtp(mail_server: MailServer) -> AsyncIterator[Smtp]:
    async with Smtp(settings_of(mail_server)).opened() as opened:
        yield opened


def plain_server() -> Iterator[MailServer]:
    server = MailServer("none", sign_in=False)
    server.start()
    yield server
    server.end()


plain = pytest.fixture(plain_server, name="plain")


async def test_a_mail_arrives_over_starttls_signed_in_and_whole(
    smtp: Smtp, mail_server: MailServer
) -> None:
    """S4-12: STARTTLS and sign-in; every header that RFC 5322 and 3834 ask for, once."""
    assert isinstance(smtp, Mailer)
    thread = "<ticket.1@desk.example.org>"
    mail = outgoing(subject="Grüße, “TSK-1”", text="Zeile äöü\n.\n\nEnde\n", thread=thread)
    await smtp.deliver(mail)
    (got,) = mail_server.mails
    assert (got.sender, got.recipients) == ("desk@example.org", ["jo@example.org"])
    assert got.tls and got.user == USER
    assert got.id == mail.message_id and got.text == "Zeile äöü\n.\n\nEnde\n"
    html = got.message.get_body(("html",))
    assert html is not None and html.get_content().strip() == "<p>Some text</p>"
    said = {name: got.message.get_all(name) for name in got.message}
    assert {name: values for name, values in said.items() if len(values or ()) != 1} == {}
    assert str(got.message["Subject"]) == "Grüße, “TSK-1”"
    assert got.message["From"].addresses[0].display_name == "The Desk"
    assert got.message["Date"].datetime == WHEN
    for name, value in {
        "Auto-Submitted": "auto-generated",
        "Precedence": "bulk",
        "In-Reply-To": thread,
        "References": thread,
    }.items():
        assert got.message[name] == value


async def test_the_same_mail_is_the_same_bytes_at_every_attempt() -> None:
    """R-03: whoever gets it twice can tell."""
    mail, sender = outgoing(), mailbox("desk@example.org")
    assert compose(mail, sender).raw == compose(mail, sender).raw


async def test_a_burst_goes_over_one_connection(smtp: Smtp, mail_server: MailServer) -> None:
    """A connection is kept for the next mail, whatever the last one met."""
    before = mail_server.connections
    mail_server.on_rcpt["bad@example.org"] = deque(["550 5.1.1 nobody here"])
    for _ in range(5):
        await smtp.deliver(outgoing())
    with pytest.raises(GiveUp):
        await smtp.deliver(outgoing("bad@example.org"))
    await smtp.deliver(outgoing())
    assert len(mail_server.mails) == 6
    assert mail_server.connections - before == 1


async def test_a_kept_connection_that_the_server_closed_is_no_failure(
    mail_server: MailServer,
) -> None:
    """421 in the place of an answer to MAIL, or a connection that is gone: a new one is made."""
    async with Smtp(settings_of(mail_server)).opened() as smtp:
        await smtp.deliver(outgoing())
        mail_server.on_rcpt["jo@example.org"] = deque(["421 too long idle"])
        await smtp.deliver(outgoing())
        assert len(mail_server.mails) == 2


async def test_other_settings_count_from_the_next_mail_on(
    mail_server: MailServer, plain: MailServer
) -> None:
    """S2-65: a kept connection to the server of before is not used any more."""
    plugin = Plugin(settings_of(mail_server))
    async with plugin.smtp.opened():
        await plugin.smtp.deliver(outgoing())
        plugin.itdesk_reload(settings_of(plain, **{"from": "New <new@example.org>"}))
        await plugin.smtp.deliver(outgoing())
        await plugin.smtp.deliver(outgoing())
        assert [mail.sender for mail in mail_server.mails] == ["desk@example.org"]
        assert [mail.sender for mail in plain.mails] == ["new@example.org"] * 2
        with pytest.raises(OSError):
            plugin.itdesk_reload(settings_of(mail_server).model_copy(update={"ca_file": "/none"}))
        assert plugin.smtp.settings.port == plain.port


async def test_implicit_tls_works(mail_server: MailServer) -> None:
    server = MailServer("implicit", sign_in=False)
    server.start()
    try:
        async with Smtp(settings_of(server)).opened() as smtp:
            assert "TLS" in await smtp.check()
            await smtp.deliver(outgoing())
        assert [mail.tls for mail in server.mails] == [True]
    finally:
        server.end()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("450 4.2.0 greylisted", RetryLater),
        ("451 4.3.0 later", RetryLater),
        ("421 4.7.0 too many", RetryLater),
        ("550 5.1.1 nobody here", GiveUp),
        ("552 5.2.2 full", GiveUp),
        ("530 5.7.0 sign in", Unavailable),
    ],
)
async def test_what_an_answer_to_the_address_means(
    smtp: Smtp, mail_server: MailServer, answer: str, expected: type[Exception]
) -> None:
    """R-23: 4xx may go later, 5xx never, and one that is about us waits for an operator."""
    mail_server.on_rcpt["jo@example.org"] = deque([answer] * 2)
    with pytest.raises(expected, match=answer[:3]):
        await smtp.deliver(outgoing())
    assert mail_server.mails == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("451 4.3.0 later", RetryLater), ("554 5.7.1 spam", GiveUp), ("552 too big", GiveUp)],
)
async def test_what_an_answer_to_the_content_means(
    smtp: Smtp, mail_server: MailServer, answer: str, expected: type[Exception]
) -> None:
    """R-23: also once the whole mail was said."""
    mail_server.on_data.append(answer)
    with pytest.raises(expected, match=answer[:3]):
        await smtp.deliver(outgoing())


async def test_a_drop_after_the_content_is_tried_again_with_the_same_id(
    smtp: Smtp, mail_server: MailServer
) -> None:
    """R-23: the mail arrived, and nobody said so."""
    mail_server.on_data.append("drop")
    mail = outgoing()
    with pytest.raises(RetryLater, match="may have arrived"):
        await smtp.deliver(mail)
    await smtp.deliver(mail)
    assert [got.id for got in mail_server.mails] == [mail.message_id] * 2


async def test_nothing_is_sent_in_the_clear_when_tls_is_not_offered(plain: MailServer) -> None:
    """R-23: STARTTLS was stripped: neither the mail nor the password leaves."""
    options = {"tls": True, "user": USER, "password": PASSWORD}
    async with Smtp(settings_of(plain, **options)).opened() as smtp:
        with pytest.raises(Unavailable, match="does not offer STARTTLS"):
            await smtp.deliver(outgoing())
        assert "STARTTLS" in smtp.problem
    assert plain.mails == []


async def test_a_starttls_that_is_refused_is_not_gone_on_without() -> None:
    """A server that offers STARTTLS and then says no hears nothing more of us."""
    says = b"220 x ESMTP\r\n250-x\r\n250 STARTTLS\r\n454 no TLS now\r\n250 OK\r\n250 OK\r\n"
    async with Silent(says) as server:
        settings = SmtpSettings(host="127.0.0.1", port=server.port, connect_seconds=2)
        async with Smtp(settings).opened() as smtp:
            with pytest.raises(Unavailable):
                await smtp.deliver(outgoing())
        assert not [line for line in server.heard if line.startswith((b"MAIL", b"AUTH"))]


async def test_a_certificate_of_a_stranger_is_not_believed(mail_server: MailServer) -> None:
    async with Smtp(settings_of(mail_server, ca_file=None)).opened() as smtp:
        with pytest.raises(Unavailable, match="certificate is not believed.*ca_file"):
            await smtp.deliver(outgoing())
    assert mail_server.mails == []


async def test_a_wrong_password_is_told_and_not_shown(mail_server: MailServer) -> None:
    settings = settings_of(mail_server, password="wrong-password-1")
    async with Smtp(settings).opened() as smtp:
        with pytest.raises(Unavailable, match="refuses the sign-in.*user and password") as told:
            await smtp.check()
    assert "wrong-password-1" not in f"{told.value.message} {settings!r}"


async def test_a_server_that_says_nothing_is_left_at_the_deadline() -> None:
    """R-23: a banner that takes 30 s is not waited for."""
    async with Silent() as server:
        settings = SmtpSettings(host="127.0.0.1", port=server.port, connect_seconds=0.3)
        async with Smtp(settings).opened() as smtp:
            with pytest.raises(Unavailable, match="no answer in 0.3 s"):
                await smtp.deliver(outgoing())


@pytest.mark.parametrize("banner", [b"421 busy\r\n", b"554 no\r\n", b"HTTP/1.1 400 Bad\r\n"])
async def test_a_server_that_does_not_want_us_is_out_and_no_mail_fails(banner: bytes) -> None:
    async with Silent(banner) as server:
        settings = SmtpSettings(host="127.0.0.1", port=server.port, connect_seconds=1)
        async with Smtp(settings).opened() as smtp:
            with pytest.raises(Unavailable):
                await smtp.deliver(outgoing())


HOSTILE_ADDRESSES = [
    "a@example.org\r\nRCPT TO:<b@example.org>", "a@example.org\nBcc: b@example.org",
    "a@example.org\0", "a@example.org,b@example.org", "a@example.org b@example.org",
    "<a@example.org>", "a@example.org>\r\nDATA", "a@b@example.org", '"a b"@example.org',
    '"a@evil.org"@example.org', "a(comment)@example.org", "a;b@example.org", "a:b@example.org",
    "@example.org", "a@", "a", "", "a@-x.org", "a@x..org", "a@[127.0.0.1]", "a@x.org\u2028b",
    "x" * 65 + "@example.org", "a@" + "x." * 130 + "org", "a\ud800@example.org", ".a@x.org",
    "a..b@x.org", "@a,@b:c@d.org",
]  # fmt: skip


@pytest.mark.parametrize("address", HOSTILE_ADDRESSES)
async def test_an_address_that_is_none_is_refused_before_anybody_hears_of_it(
    smtp: Smtp, mail_server: MailServer, address: str
) -> None:
    """S-37: CRLF, NUL, commas, quotes and comments in an address."""
    with pytest.raises(GiveUp):
        await smtp.deliver(outgoing(address))
    assert mail_server.mails == []


HOSTILE_TEXTS = [
    "line\r\n.\r\nMAIL FROM:<evil@example.org>\r\n", "line\n.\nDATA\n", "line\r.\rDATA\r",
    "line\n.\r\nDATA\r\n", "line\r\n.\nDATA\n", "line\r\r\n.\r\r\nx", "\0.\0", ".\n..\n...\n",
    "x" * 5000, "\u2028.\u2028", "\x85.\x85", "äöü" * 2000, "From me\nFrom you\n", "=0D=0A.=0D=0A",
    "\x1a\x1b[31m", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
async def test_no_text_becomes_a_second_mail(
    smtp: Smtp, mail_server: MailServer, text: str
) -> None:
    """S-37: line ends that servers read differently (SMTP smuggling), dots, long lines."""
    await smtp.deliver(outgoing(text=text, html=f"<pre>{text}</pre>"))
    (got,) = mail_server.mails
    assert got.recipients == ["jo@example.org"]
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", got.raw)
    assert max(map(len, got.raw.split(b"\r\n"))) < 998
    assert got.raw.isascii()
    kept = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "", kept)
    assert got.text.rstrip("\n") == kept.rstrip("\n")


HOSTILE_SUBJECTS = [
    "a\r\nBcc: evil@example.org", "a\nX: y", "a\0b", "a\u2028b", "=?utf-8?q?=0D=0ABcc:_x?=",
    'quote " and, comma; <b@example.org>', "ü" * 200, "x " * 100, "\ud800", "日本語の件名" * 20,
    "a" * 300, " lead", "",
]  # fmt: skip


@pytest.mark.parametrize("subject", HOSTILE_SUBJECTS)
async def test_no_subject_becomes_a_second_header(
    smtp: Smtp, mail_server: MailServer, subject: str
) -> None:
    """S-37: it is refused, or arrives as it was, with one header set."""
    try:
        await smtp.deliver(outgoing(subject=subject))
    except GiveUp:
        assert mail_server.mails == [] and re.search(r"[\x00-\x1f\u2028\ud800]", subject)
        return
    (got,) = mail_server.mails
    assert [got.message.get_all(name) for name in ("Bcc", "X")] == [None, None]
    assert got.recipients == ["jo@example.org"]
    # What looks like an encoded word is taken apart, so that nobody decodes it.
    assert subject.replace("=?", "= ?").strip() in str(got.message["Subject"])


@pytest.mark.parametrize("name", ['A "quoted" name', "Comma, Inc.", "Bücher <b@x.org>", "日本", ""])
async def test_any_name_of_the_desk_is_one_sender(mail_server: MailServer, name: str) -> None:
    """S-37: the operator's name with quotes, commas and letters of any script."""
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    settings = settings_of(mail_server, **{"from": f'"{quoted}" <desk@example.org>'})
    async with Smtp(settings).opened() as smtp:
        await smtp.deliver(outgoing())
    (got,) = mail_server.mails
    (sender,) = got.message["From"].addresses
    assert (sender.display_name, sender.addr_spec) == (name, "desk@example.org")


async def test_addresses_beyond_ascii_arrive(smtp: Smtp, mail_server: MailServer) -> None:
    """S-37: an international domain goes in its xn-- form, a local part over SMTPUTF8."""
    await smtp.deliver(outgoing("jo@bücher.example"))
    await smtp.deliver(outgoing("jörg@example.org"))
    assert [mail.recipients for mail in mail_server.mails] == [
        ["jo@xn--bcher-kva.example"],
        ["jörg@example.org"],
    ]
    assert "jörg@example.org" in str(mail_server.mails[1].message["To"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host has a space"),
        ({"user": "u"}, "password is needed"),
        ({"user": "u", "password": "p", "tls": False}, "in the clear"),
        ({"from": "no address"}, "from"),
        ({"from": "a@example.org\r\nBcc: b@example.org"}, "from"),
        ({"ca_file": "/nowhere/ca.pem"}, "ca_file"),
        ({"tls": "sometimes"}, "tls"),
        ({"port": 0}, "port"),
        ({"hostt": "x"}, "hostt"),
    ],
)
async def test_wrong_settings_say_what_is_wrong(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        SmtpSettings.model_validate({"host": "mail.example.org", **options})


async def test_the_port_decides_between_starttls_and_tls() -> None:
    modes = [
        SmtpSettings(host="h", port=port, tls=tls).mode
        for port, tls in ((587, True), (25, True), (465, True), (25, False), (465, "starttls"))
    ]
    assert modes == ["starttls", "starttls", "implicit", "none", "starttls"]


async def test_what_mails_come_from_without_a_setting() -> None:
    signed = SmtpSettings.model_validate({"host": "h", "user": "desk@example.org", "password": "p"})
    assert signed.mailbox.address == "desk@example.org"
    assert SmtpSettings(host="h", helo="desk.lan").mailbox.address == "itdesk@desk.lan"
    assert Plugin(signed).itdesk_health().ok


async def test_an_address_is_one_or_none() -> None:
    assert mailbox("o'neil+x@example.org").address == "o'neil+x@example.org"
    assert named_mailbox("Desk <d@x.org>").name == "Desk"
    for text in ("Desk <d@x.org> <e@x.org>", "Desk <>", "a <b@x.org\n>", "<a@b.org>, c@d.org"):
        with pytest.raises(Unsayable):
            named_mailbox(text)


async def test_the_mail_of_a_uuid_fits(tmp_path: Path) -> None:
    raw = compose(outgoing(id=UUID(int=1)), mailbox("desk@example.org")).raw
    assert raw.count(b"itdesk-00000000000000000000000000000001") >= 4
