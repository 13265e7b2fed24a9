"""A real SMTP server (aiosmtpd) with STARTTLS, sign-in and a CA of its own; it may turn hostile.

It lives in a thread, so that it outlasts the event loops of tests.
"""

import asyncio
import ssl
import tempfile
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "desk@example.org", "mail-password-7Qx"
Mode = Literal["starttls", "implicit", "none"]


@dataclass(frozen=True)
class Received:
    """One mail as the server got it: envelope, bytes, and how it came."""

    sender: str
    recipients: list[str]
    raw: bytes
    tls: bool
    user: str | None
    connection: int

    @property
    def message(self) -> EmailMessage:
        """Return it as a mail program reads it."""
        parsed = message_from_bytes(self.raw, policy=default)
        assert isinstance(parsed, EmailMessage)
        return parsed

    @property
    def id(self) -> str:
        """Return its Message-ID."""
        return str(self.message["Message-ID"])

    @property
    def text(self) -> str:
        """Return its plain text."""
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content()).replace("\r\n", "\n")


class _Handler:
    """Takes mails and answers as its server was told to."""

    def __init__(self, server: "MailServer") -> None:
        self.server = server

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        answers = self.server.on_rcpt.get(address.lower()) or self.server.on_rcpt.get("*")
        if answers:
            return answers.popleft()
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        answer = self.server.on_data.popleft() if self.server.on_data else "250 OK"
        if answer[0] not in "2d":
            return answer
        signed_in = session.auth_data
        self.server.mails.append(
            Received(
                envelope.mail_from or "",
                [str(to) for to in envelope.rcpt_tos],
                envelope.original_content or b"",
                session.ssl is not None or self.server.mode == "implicit",
                signed_in.login.decode() if isinstance(signed_in, LoginPassword) else None,
                id(session),
            )
        )
        if answer == "drop":
            transport = server.transport
            assert isinstance(transport, asyncio.WriteTransport)
            transport.abort()
        return answer


class MailServer:
    """One server on a free port; `on_rcpt` and `on_data` are what it will say to the next ones."""

    def __init__(self, mode: Mode = "starttls", *, sign_in: bool = True) -> None:
        self.mode, self.sign_in = mode, sign_in
        self.mails: list[Received] = []
        self.on_rcpt: dict[str, deque[str]] = {}
        self.on_data: deque[str] = deque()
        self.connections = 0
        self.port = 0
        self.directory = Path(tempfile.mkdtemp(prefix="itdesk-smtp-", dir="/tmp"))
        self.directory.chmod(0o755)
        self.ca_file = self.directory / "ca.pem"
        self._context = _certified(self.directory)
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, on the port that it had before if it had one."""
        if not self._thread.is_alive():
            self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """Listen no more; what is connected stays."""
        self._run(self._close())

    def end(self) -> None:
        """Be gone."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        for file in self.directory.iterdir():
            file.unlink()
        self.directory.rmdir()

    def reset(self) -> None:
        """Forget all mails and all instructions."""
        self.mails.clear()
        self.on_rcpt.clear()
        self.on_data.clear()

    def _run(self, work: Awaitable[Any]) -> Any:
        async def whole() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self._loop).result(10)

    async def _listen(self) -> None:
        context = self._context if self.mode == "implicit" else None
        self._server = await self._loop.create_server(
            self._protocol, "127.0.0.1", self.port, ssl=context
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _protocol(self) -> SMTP:
        self.connections += 1
        starttls = self.mode == "starttls"
        return SMTP(
            _Handler(self),
            hostname="mail.test",
            enable_SMTPUTF8=True,
            tls_context=self._context if starttls else None,
            require_starttls=starttls,
            auth_required=self.sign_in,
            auth_require_tls=starttls,
            authenticator=_authenticate if self.sign_in else None,
            loop=self._loop,
        )

    # --- what came -------------------------------------------------------------------------

    def to(self, address: str) -> list[Received]:
        """Return the mails to an address."""
        return [mail for mail in list(self.mails) if mail.recipients == [address]]

    async def got(self, wanted: Callable[["MailServer"], bool], *, seconds: float = 30.0) -> None:
        """Return as soon as something is so; fail with what came if it never is."""
        deadline = time.monotonic() + seconds
        while not wanted(self):
            came = [(mail.recipients, mail.message["Subject"]) for mail in self.mails]
            assert time.monotonic() < deadline, f"still not so; there came {came}"
            await asyncio.sleep(0.02)

    def env(self, **more: str) -> dict[str, str]:
        """Return the settings that name this server."""
        signed = {"SMTP_USER": USER, "SMTP_PASSWORD": PASSWORD} if self.sign_in else {}
        return {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self.port),
            "SMTP_FROM": "The Desk <desk@example.org>",
            "SMTP_TLS": "false" if self.mode == "none" else "true",
            "ITDESK_PLUGINS__SMTP__CA_FILE": str(self.ca_file),
            "ITDESK_AUTH__REQUIRE_VERIFIED_EMAIL": "false",
            **signed,
            **more,
        }


def _authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
) -> AuthResult:
    good = (
        isinstance(data, LoginPassword)
        and data.login == USER.encode()
        and data.password == PASSWORD.encode()
    )
    # Without handled=False a refusal is never said, and the client waits for ever.
    return AuthResult(success=good, handled=False, auth_data=data if good else None)


def _certified(directory: Path) -> ssl.SSLContext:
    """Make a CA and a certificate of it for 127.0.0.1; return the server's side of TLS."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = _certificate("Test CA", ca_key, "Test CA", ca_key, ca=True)
    own = _certificate("mail.test", key, "Test CA", ca_key, ca=False)
    pem = serialization.Encoding.PEM
    (directory / "ca.pem").write_bytes(ca.public_bytes(pem))
    (directory / "server.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + own.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    alternatives = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@dataclass
class Silent:
    """A server that takes connections and says what it is told to, by default nothing."""

    says: bytes = b""
    port: int = 0
    heard: list[bytes] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _open: list[asyncio.StreamWriter] = field(default_factory=list)

    async def __aenter__(self) -> "Silent":
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        writer.write(self.says)
        while line := await reader.readline():
            self.heard.append(line)


@pytest.fixture(scope="session")
def _mail_server() -> Iterator[MailServer]:
    server = MailServer()
    server.start()
    yield server
    server.end()


@pytest.fixture
def mail_server(_mail_server: MailServer) -> MailServer:
    """The mail server with STARTTLS and sign-in, as if nothing had been said to it."""
    _mail_server.reset()
    return _mail_server
