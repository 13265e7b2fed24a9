"""A mail server that keeps what it is sent, and what tests read out of it."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from urllib.parse import parse_qs, urlsplit

from aiosmtpd.controller import Controller

from tests.support.daemon import lasting_port


@dataclass
class Postbox:
    """Everything that was delivered, in order."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Take one mail."""
        mail = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    def of(self, address: str, subject: str = "") -> list[EmailMessage]:
        """Return what was sent to an address so far, with these words in the subject."""
        return [
            mail
            for mail in self.mails
            if address.lower() in str(mail["To"]).lower() and subject in str(mail["Subject"])
        ]

    async def next(self, address: str, subject: str, *, count: int = 1) -> EmailMessage:
        """Return the mail that is the so-manieth of its kind to this address, once it is there."""
        async with asyncio.timeout(20):
            while True:
                found = self.of(address, subject)
                if len(found) >= count:
                    return found[count - 1]
                await asyncio.sleep(0.01)


def text_of(mail: EmailMessage) -> str:
    """Return what a mail says as plain text."""
    part = mail.get_body(("plain",))
    assert isinstance(part, EmailMessage)
    return str(part.get_content())


def link_in(mail: EmailMessage) -> str:
    """Return the one link of a mail."""
    (link,) = re.findall(r"https?://\S+", text_of(mail))
    return str(link)


def token_in(mail: EmailMessage) -> str:
    """Return the token of a mail's link."""
    (token,) = parse_qs(urlsplit(link_in(mail)).query)["token"]
    return token


def code_in(mail: EmailMessage) -> str:
    """Return the code of a mail."""
    (code,) = re.findall(r"(?<!\S)\d{6}(?!\S)", text_of(mail))
    return str(code)


@contextmanager
def postbox() -> Iterator[Postbox]:
    """Lend a mail server on a port of its own."""
    box = Postbox(lasting_port())
    controller = Controller(box, hostname="127.0.0.1", port=box.port)
    controller.start()
    try:
        yield box
    finally:
        controller.stop()


def mail_env(box: Postbox) -> dict[str, str]:
    """Return the settings that have a daemon send its mail here."""
    return {
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(box.port),
        "SMTP_TLS": "false",
        "SMTP_FROM": "desk@example.org",
    }
