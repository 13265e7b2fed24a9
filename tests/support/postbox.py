"""The mail of a test's mail server, as whoever gets it reads it: links, tokens, codes."""

import re
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import parse_qs, urlsplit

from tests.support.smtp import MailServer


@dataclass
class Postbox:
    """Everything that was delivered to a server, in order."""

    server: MailServer

    def of(self, address: str, subject: str = "") -> list[EmailMessage]:
        """Return what was sent to an address so far, with these words in the subject."""
        messages = [mail.message for mail in self.server.to(address)]
        return [message for message in messages if subject in str(message["Subject"])]

    async def next(self, address: str, subject: str, *, count: int = 1) -> EmailMessage:
        """Return the mail that is the so-manieth of its kind to this address, once it is there."""
        await self.server.got(lambda _: len(self.of(address, subject)) >= count)
        return self.of(address, subject)[count - 1]


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
