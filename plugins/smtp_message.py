"""Mails as bytes: one header set, one address, and no line end that two servers read differently.

Whatever a person chose (a name, a subject, an address) is in here by the time it is a value; what
cannot be said in RFC 5322 is refused, never cut into shape. The same mail gives the same bytes.
"""

import re
import unicodedata
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import format_datetime
from typing import Final

from itdesk.hookspecs import Outgoing

_BARE_END: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_ATOM: Final = re.compile(r'[\s"(),:;<>@\[\]\\]')
_NAMED: Final = re.compile(r' *(?P<name>"(?:[^"\\]|\\.)*"|[^"<>]*?) *<(?P<address>[^<>]*)> *')
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
LONGEST_ADDRESS: Final = 254
LONGEST_LOCAL: Final = 64


class Unsayable(ValueError):
    """The mail cannot be put into the words of RFC 5321 and 5322; the message says why."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One address, with its domain in ASCII."""

    local: str
    domain: str
    name: str = ""

    @property
    def address(self) -> str:
        """Return it as the envelope has it."""
        return f"{self.local}@{self.domain}"

    @property
    def ascii(self) -> bool:
        """Return whether every server understands it; others must announce SMTPUTF8."""
        return self.local.isascii()

    @property
    def header(self) -> Address:
        """Return it as the headers have it."""
        return Address(self.name, self.local, self.domain)


@dataclass(frozen=True, slots=True)
class Message:
    """A mail as it goes over the wire."""

    sender: Mailbox
    to: Mailbox
    raw: bytes

    @property
    def utf8(self) -> bool:
        """Return whether the server must understand addresses beyond ASCII."""
        return not (self.sender.ascii and self.to.ascii)


def mailbox(text: str) -> Mailbox:
    """Return the one address that a text is; Unsayable when it is none, or more than one."""
    if _UNFIT.search(text):
        raise Unsayable("the address has a control character in it")
    local, at, domain = text.strip(" ").rpartition("@")
    if not at or not local or not domain:
        raise Unsayable("the address is none")
    # A quoted local part could hide a second address from one reader and not from another.
    if _NO_ATOM.search(local) or local[0] == "." or local[-1] == "." or ".." in local:
        raise Unsayable("the address has something before its @ that mail servers do not agree on")
    if len(local.encode()) > LONGEST_LOCAL:
        raise Unsayable("the address is too long before its @")
    found = Mailbox(unicodedata.normalize("NFC", local), _ascii_domain(domain))
    if len(found.address.encode()) > LONGEST_ADDRESS:
        raise Unsayable("the address is too long")
    return found


def named_mailbox(text: str) -> Mailbox:
    """Return an address as operators write it: alone, or `Name <address>`."""
    if _UNFIT.search(text):
        raise Unsayable("the address has a control character in it")
    parts = _NAMED.fullmatch(text)
    if parts is None:
        return mailbox(text)
    found = mailbox(parts["address"])
    name = parts["name"]
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return Mailbox(found.local, found.domain, name)


def _ascii_domain(domain: str) -> str:
    try:
        found = domain.encode("ascii").decode() if domain.isascii() else _idna(domain)
    except UnicodeError as exc:
        raise Unsayable("the address has a domain that cannot be") from exc
    if not all(_LABEL.fullmatch(label) for label in found.split(".")) or len(found) > 253:
        raise Unsayable("the address has a domain that cannot be")
    return found


def _idna(domain: str) -> str:
    return domain.encode("idna").decode()


def compose(mail: Outgoing, sender: Mailbox) -> Message:
    """Return a mail as it goes over the wire, the same at every attempt; Unsayable if it cannot."""
    to = mailbox(mail.to_address)
    for value in (mail.subject, mail.message_id, mail.thread or ""):
        if _UNFIT.search(value):
            raise Unsayable("a header has a control character in it")
    ascii = sender.ascii and to.ascii
    message = EmailMessage(policy=SMTP if ascii else SMTPUTF8)
    message["From"] = sender.header
    message["To"] = to.header
    message["Subject"] = _literal(mail.subject)
    message["Date"] = format_datetime(mail.created_at)
    message["Message-ID"] = mail.message_id
    if mail.thread is not None:
        message["In-Reply-To"] = mail.thread
        message["References"] = mail.thread
    # RFC 3834: no robot answers, no holiday notice comes back.
    message["Auto-Submitted"] = "auto-generated"
    message["Precedence"] = "bulk"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content(_lines(mail.text), cte="quoted-printable")
    if mail.html is not None:
        html = _lines(mail.html)
        message.add_alternative(html, subtype="html", cte="quoted-printable")
        message.set_boundary(f"itdesk-{mail.id.hex}")
    raw = message.as_bytes()
    if _BARE_END.search(raw):
        raise Unsayable("the mail has a line end that servers do not agree on")
    return Message(sender, to, raw)


def _literal(text: str) -> str:
    """Return a text that no reader takes for an encoded word (RFC 2047 section 2).

    Python's own would decode it on the way out, and older ones (CVE-2024-6923) write the line
    ends that it may hide into the header.
    """
    return text.replace("=?", "= ?")


def _lines(text: str) -> str:
    """Return a text with one kind of line end, and nothing that ends lines elsewhere."""
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", "", plain)
