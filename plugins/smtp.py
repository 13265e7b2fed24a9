"""Sends mail through one SMTP server.

The one decision here: what a failure means. A server that cannot be reached, or does not do what
was agreed (TLS, the password), is out, and mail waits for it. A server that says 4xx asks to come
back with this mail, one that says 5xx has refused it. Nothing is ever sent in the clear because TLS
was not to be had.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal

import aiosmtplib
from aiosmtplib.errors import (
    SMTPAuthenticationError,
    SMTPConnectResponseError,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
)
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, model_validator

from itdesk.errors import Unavailable
from itdesk.hookspecs import GiveUp, Health, Mailer, Outgoing, RetryLater, hookimpl
from itdesk.runtime.log import get_logger

from .smtp_message import Mailbox, Message, Unsayable, compose, mailbox, named_mailbox

if TYPE_CHECKING:
    from itdesk.desk import Desk

IMPLICIT_TLS_PORT: Final = 465
# Answers to MAIL that speak of who we are, not of the mail (RFC 4954, RFC 3207).
_SIGN_IN: Final = frozenset({530, 534, 535, 538})
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

log = get_logger("smtp")


class SmtpSettings(BaseModel):
    """The section [plugins.smtp]."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    host: str = Field(min_length=1, description="the mail server; empty: no mail is sent")
    port: int = Field(587, ge=1, le=65535, description="587 for STARTTLS, 465 for TLS at once")
    user: str = Field("", description="whom to sign in as; empty: nobody")
    password: SecretStr = Field(SecretStr(""), description="the password of that user")
    sender: str = Field("", alias="from", description="what mails come from; unset, it is user")
    tls: bool | Literal["starttls", "implicit"] = Field(
        True, description="true: STARTTLS, or TLS at once on port 465; false: none at all"
    )
    ca_file: FilePath | None = Field(None, description="the only CA that is believed")
    helo: str = Field("", description="the name to say EHLO with; unset, that of this machine")
    connect_seconds: float = Field(
        10.0, gt=0, le=60, description="how long connecting, TLS and sign-in may take"
    )
    send_seconds: float = Field(30.0, gt=0, le=60, description="how long sending a mail may take")
    reuse_seconds: float = Field(
        10.0, ge=0, le=300, description="how long a connection is kept for the next mail"
    )

    @model_validator(mode="after")
    def _sensible(self) -> "SmtpSettings":
        if self.user and not self.password.get_secret_value():
            raise ValueError("password is needed with user")
        if self.user and self.mode == "none" and not _is_local(self.host):
            raise ValueError("tls = false would send the password in the clear")
        for name, value in (("host", self.host), ("helo", self.helo)):
            if value and re.search(r"[\s\x00-\x1f\x7f]", value):
                raise ValueError(f"{name} has a space or control character in it")
        try:
            self.mailbox  # noqa: B018 - raises when it is none
        except Unsayable as exc:
            raise ValueError(f"from: {exc}") from exc
        return self

    @property
    def mode(self) -> Literal["starttls", "implicit", "none"]:
        """Return how the connection is protected."""
        if isinstance(self.tls, str):
            return self.tls
        if not self.tls:
            return "none"
        return "implicit" if self.port == IMPLICIT_TLS_PORT else "starttls"

    @property
    def mailbox(self) -> Mailbox:
        """Return what mails come from."""
        if self.sender:
            return named_mailbox(self.sender)
        if "@" in self.user:
            return mailbox(self.user)
        return Mailbox("itdesk", self.ehlo)

    @property
    def ehlo(self) -> str:
        """Return the name to introduce ourselves with."""
        name = self.helo or socket.gethostname()
        return name if _HOST_NAME.fullmatch(name) or name.startswith("[") else "localhost"


def _is_local(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass(slots=True, eq=False)
class _Idle:
    """A connection that waits for the next mail, and what ends its wait."""

    client: aiosmtplib.SMTP
    timer: asyncio.TimerHandle | None = None

    def leave(self) -> None:
        """Say goodbye without waiting for the answer."""
        self.hold()
        transport = self.client.transport
        if isinstance(transport, asyncio.WriteTransport) and not transport.is_closing():
            transport.write(b"QUIT\r\n")
        self.client.close()

    def hold(self) -> None:
        """Let its wait not end by itself."""
        if self.timer is not None:
            self.timer.cancel()


class Smtp:
    """The mail server as the desk sees it."""

    name = "smtp"

    def __init__(self, settings: SmtpSettings) -> None:
        self._idle: list[_Idle] = []
        self._closed = False
        self.configure(settings)

    def configure(self, settings: SmtpSettings) -> None:
        """Work with these settings from the next mail on."""
        context: ssl.SSLContext | None = None
        if settings.mode != "none":
            ca = settings.ca_file
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.settings, self._context, self.problem = settings, context, ""
        self._leave_idle()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Smtp"]:
        """Lend the server; its connections are closed at the end."""
        try:
            yield self
        finally:
            self._closed = True
            self._leave_idle()

    async def deliver(self, mail: Outgoing) -> None:
        """Send a mail; see `itdesk.hookspecs.Mailer`."""
        settings = self.settings
        try:
            message = compose(mail, settings.mailbox)
        except Unsayable as exc:
            raise GiveUp(str(exc)) from exc
        if idle := self._taken():
            try:
                return await self._exchange(idle, message, settings)
            except _NotBegun:
                log.debug("kept connection was closed by the server")
        try:
            await self._exchange(await self._connect(), message, settings)
        except _NotBegun as exc:
            raise RetryLater(0, str(exc)) from exc

    async def check(self) -> str:
        """Connect, agree on TLS, sign in and leave; Unavailable says what to mend."""
        client = await self._connect()
        try:
            async with asyncio.timeout(self.settings.connect_seconds):
                await client.quit()
        except (SMTPException, OSError):
            log.debug("the server did not say goodbye")
        finally:
            client.close()
        how = {"starttls": "STARTTLS", "implicit": "TLS", "none": "no TLS"}[self.settings.mode]
        who = f"signed in as {self.settings.user}" if self.settings.user else "without a sign-in"
        return f"{self} answers, {how}, {who}"

    def __str__(self) -> str:
        return f"{self.settings.host}:{self.settings.port}"

    # --- connections -----------------------------------------------------------------------

    async def _connect(self) -> aiosmtplib.SMTP:
        """Return a connection that a mail can be sent on; Unavailable says why there is none."""
        settings = self.settings
        client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            local_hostname=settings.ehlo,
            timeout=settings.connect_seconds,
            use_tls=settings.mode == "implicit",
            start_tls=settings.mode == "starttls",
            tls_context=self._context,
        )
        try:
            async with asyncio.timeout(settings.connect_seconds):
                await client.connect()
                await client.ehlo()
                if settings.user:
                    await client.login(settings.user, settings.password.get_secret_value())
        except BaseException as exc:
            client.close()
            if not isinstance(exc, SMTPException | OSError | ValueError):
                raise
            self.problem = f"the mail server {self} cannot be used: {self._why(exc)}"
            raise Unavailable(self.problem, code="E_MAIL_SERVER") from exc
        self.problem = ""
        return client

    def _why(self, exc: BaseException) -> str:
        """Return what is wrong with the way to the server, and what to do."""
        cause: BaseException | None = exc
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return f"its certificate is not believed ({cause.verify_message}); see ca_file"
            if isinstance(cause, ssl.SSLError):
                return f"no TLS could be agreed on ({cause.reason}); see port and tls"
            cause = cause.__cause__ or cause.__context__
        if isinstance(exc, SMTPAuthenticationError):
            return f"it refuses the sign-in ({exc.code}); see user and password"
        if isinstance(exc, SMTPConnectResponseError | SMTPResponseException):
            return f"it says {exc.code} {_short(exc.message)}"
        if isinstance(exc, TimeoutError):
            return f"no answer in {self.settings.connect_seconds:g} s; see host and port"
        if isinstance(exc, SMTPException) and "STARTTLS" in str(exc):
            return "it does not offer STARTTLS, and nothing is sent without; see port and tls"
        if isinstance(exc, SMTPException) and "AUTH" in str(exc).upper():
            return f"it offers no sign-in that fits: {_short(str(exc))}"
        if isinstance(exc, SMTPServerDisconnected):
            return "it closed the connection"
        return _short(str(exc)) or type(exc).__name__

    def _taken(self) -> aiosmtplib.SMTP | None:
        while self._idle:
            idle = self._idle.pop()
            idle.hold()
            if idle.client.is_connected:
                return idle.client
            idle.client.close()
        return None

    def _leave_idle(self) -> None:
        while self._idle:
            self._idle.pop().leave()

    def _keep(self, client: aiosmtplib.SMTP, settings: SmtpSettings) -> None:
        """Keep a connection for the next mail of a burst."""
        idle = _Idle(client)
        # One that was made with other settings may lead to another server.
        if self._closed or not settings.reuse_seconds or settings is not self.settings:
            idle.leave()
            return
        loop = asyncio.get_running_loop()
        idle.timer = loop.call_later(self.settings.reuse_seconds, self._expire, idle)
        self._idle.append(idle)

    def _expire(self, idle: _Idle) -> None:
        if idle in self._idle:
            self._idle.remove(idle)
            idle.leave()

    # --- one mail --------------------------------------------------------------------------

    async def _exchange(
        self, client: aiosmtplib.SMTP, message: Message, settings: SmtpSettings
    ) -> None:
        """Send one mail on a connection, and keep the connection if it is still good."""
        good = False
        try:
            async with asyncio.timeout(settings.send_seconds):
                with _judged():
                    await _send(client, message)
            good = True
        except (GiveUp, RetryLater):
            good = await self._reset(client)
            raise
        except Unavailable as exc:
            self.problem = exc.message
            raise
        except TimeoutError as exc:
            why = f"no answer in {self.settings.send_seconds:g} s; it may have arrived"
            raise RetryLater(0, why) from exc
        finally:
            if good:
                self._keep(client, settings)
            else:
                client.close()

    async def _reset(self, client: aiosmtplib.SMTP) -> bool:
        """Return whether the connection is fit for another mail."""
        if not client.is_connected:
            return False
        try:
            async with asyncio.timeout(self.settings.connect_seconds):
                await client.rset()
        except (SMTPException, OSError):
            return False
        return True


class _NotBegun(Exception):
    """The connection ended before the mail was handed over: it cannot have arrived."""


async def _send(client: aiosmtplib.SMTP, message: Message) -> None:
    options, encoding = [], "ascii"
    if message.utf8:
        if not client.supports_extension("smtputf8"):
            raise GiveUp("the mail server cannot send to addresses beyond ASCII (SMTPUTF8)")
        options, encoding = ["SMTPUTF8"], "utf-8"
    if client.supports_extension("size"):
        options.append(f"SIZE={len(message.raw)}")
    try:
        sender = message.sender.address
        await client.mail(sender, options=options, encoding=encoding)
        await client.rcpt(message.to.address, encoding=encoding)
    except SMTPResponseException as exc:
        if exc.code == 421:
            raise _NotBegun(f"421 {_short(exc.message)}") from exc
        if exc.code in _SIGN_IN:
            raise Unavailable(
                f"the mail server wants a sign-in: {exc.code} {_short(exc.message)}; see user and"
                " password",
                code="E_MAIL_SERVER",
            ) from exc
        raise
    except (SMTPServerDisconnected, ConnectionError) as exc:
        raise _NotBegun("the mail server closed the connection") from exc
    await client.data(message.raw)


@contextmanager
def _judged() -> Iterator[None]:
    """Say what an answer means for the mail."""
    try:
        yield
    except SMTPResponseException as exc:
        said = f"{exc.code} {_short(exc.message)}"
        if 500 <= exc.code < 600:
            raise GiveUp(f"the mail server refuses it: {said}") from exc
        raise RetryLater(0, f"the mail server says {said}") from exc
    except TimeoutError:
        raise
    except (SMTPException, OSError) as exc:
        why = "the connection ended while the mail was sent; it may have arrived"
        raise RetryLater(0, why) from exc


def _short(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:150]


class Plugin:
    """Provides the mailer."""

    name, itdesk_api, Settings = "smtp", 1, SmtpSettings

    def __init__(self, settings: SmtpSettings) -> None:
        self.smtp = Smtp(settings)

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Close the connections at the end."""
        async with self.smtp.opened():
            yield

    @hookimpl
    def itdesk_mailer(self, desk: "Desk") -> Mailer | None:
        """Return the mail server."""
        return self.smtp

    @hookimpl
    def itdesk_reload(self, settings: SmtpSettings) -> None:
        """Send by another server, or as somebody else, from the next mail on."""
        self.smtp.configure(settings)

    @hookimpl
    def itdesk_health(self) -> Health:
        """Return what was wrong with the way to the server when it was last tried."""
        return Health(not self.smtp.problem, self.smtp.problem)
