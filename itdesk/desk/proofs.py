"""What is mailed to prove that somebody reads a mailbox: how it is made, hashed and written to.

A link holds 256 random bits and is stored as their hash. A code has six digits, which a plain hash
would not hide, so it is stored under a key of its own that is derived from the signing key. Those
who mail anything here hold the person first.
"""

import hashlib
import hmac
import random
import re
import secrets
from collections.abc import Mapping
from dataclasses import field
from uuid import UUID

from itdesk.config import Settings
from itdesk.desk.mail import Mail
from itdesk.errors import BadRequest
from itdesk.frozen import frozen
from itdesk.model import Caller, Event, MailKind, Role, Source, User
from itdesk.runtime.clock import Clock
from itdesk.store import proofs
from itdesk.store.db import Transaction

# Paths of a frontend; itdesk has pages of its own at the same.
VERIFY_PATH = "verify-email"
RESET_PATH = "reset-password"
FORGOT_PATH = "forgot-password"

# Mails with links that one person gets within an hour, however many ask for them: nobody's mailbox
# is flooded, and nobody gets many codes to guess at.
MOST_AN_HOUR = 5

# Links that are asked for are made at some moment within these: the little that it costs when there
# is an account shall not be felt by whatever is asked next.
SCATTER_SECONDS = 0.5
# So many of them may wait for that moment, of each kind.
ABREAST = 16

# Whoever asked for a mail did not say who they are.
SOMEBODY = Caller(user_id=None, name="somebody", role=Role.USER, source=Source.API)

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_CODE = re.compile(r"\d{6}", re.ASCII)
# What mail programs make a link of: the name in this mail was given by anybody.
_LIKE_A_LINK = re.compile(r"[/:@<>\\]|\w\.\w{2,}")


@frozen
class Proof:
    """What was mailed to verify an address."""

    token: str = field(repr=False)
    code: str = field(repr=False)


class Proofs:
    """Makes links and codes, and writes the mails that bring them."""

    def __init__(self, mail: Mail, settings: Settings, secret: bytes) -> None:
        self._mail = mail
        self._hours = settings.auth
        self._capped = settings.limits.enabled
        self._secret = secret

    async def may_mail(self, tx: Transaction, user: User) -> bool:
        """Tell whether a person may be sent another link; too many in an hour are not sent."""
        return not self._capped or await proofs.issued_lately(tx.conn, user.id) < MOST_AN_HOUR

    async def mail_verification(self, tx: Transaction, user: User) -> Proof:
        """Mail a link and a code that verify a person's address; older ones end."""
        token, code = secrets.token_urlsafe(32), f"{secrets.randbelow(1_000_000):06d}"
        hours = self._hours.verification_token_expire_hours
        await proofs.issue_verification(
            tx.conn,
            user.id,
            token_hash=_hashed(token),
            code_hash=self.hash_of_code(user.id, code),
            hours=hours,
        )
        event = Event.by(SOMEBODY, "auth.verification_sent", data=_about(user))
        values = {
            "name": _greeting(user),
            "email": user.email,
            "link": self._mail.link(VERIFY_PATH, token=token),
            "code": code,
            "hours": hours,
        }
        await self._queue(tx, "verification", user, values, MailKind.VERIFICATION, event)
        return Proof(token, code)

    async def mail_reset(self, tx: Transaction, user: User) -> None:
        """Mail a link that sets a person's password."""
        event = Event.by(SOMEBODY, "auth.password_reset_sent", data=_about(user))
        hours = self._hours.password_reset_token_expire_hours
        await self._mail_setting(tx, "password_reset", user, event, hours)

    async def mail_that_it_exists(self, tx: Transaction, user: User) -> None:
        """Tell the owner of an address that somebody wanted an account for it."""
        event = Event.by(SOMEBODY, "auth.account_asked_for_again", data=_about(user))
        hours = self._hours.password_reset_token_expire_hours
        await self._mail_setting(tx, "account_exists", user, event, hours)

    async def mail_invitation(self, tx: Transaction, caller: Caller, user: User) -> None:
        """Mail a link by which somebody with a new account sets their first password."""
        event = Event.by(caller, "user.invited", data=_about(user))
        hours = self._hours.invitation_expire_hours
        await self._mail_setting(tx, "invitation", user, event, hours)

    async def mail_welcome(self, tx: Transaction, user: User) -> None:
        """Tell somebody that their account is ready."""
        values = {"name": user.name, "email": user.email, "link": self._mail.link("")}
        await self._queue(tx, "welcome", user, values, MailKind.WELCOME)

    async def mail_password_changed(self, tx: Transaction, user: User) -> None:
        """Tell somebody that their password is another now, in case it was not them."""
        values = {"name": user.name, "email": user.email, "link": self._mail.link(FORGOT_PATH)}
        await self._queue(tx, "password_changed", user, values, MailKind.NOTIFICATION)

    def hash_of_code(self, user_id: UUID, code: str) -> bytes:
        """Return the hash under which a person's code is stored."""
        return hmac.digest(self._secret, user_id.bytes + code.encode(), "sha256")

    async def _mail_setting(
        self, tx: Transaction, template: str, user: User, event: Event, hours: int
    ) -> None:
        token = secrets.token_urlsafe(32)
        await proofs.issue_reset(tx.conn, user.id, token_hash=_hashed(token), hours=hours)
        link = self._mail.link(RESET_PATH, token=token)
        values = {"name": user.name, "email": user.email, "link": link, "hours": hours}
        await self._queue(tx, template, user, values, MailKind.PASSWORD_RESET, event)

    async def _queue(
        self,
        tx: Transaction,
        template: str,
        user: User,
        values: Mapping[str, object],
        kind: MailKind,
        event: Event | None = None,
    ) -> None:
        if event is not None:
            tx.record(event)
        await self._mail.queue(
            tx, template, user.email, values, kind=kind, event_id=event.id if event else None
        )


async def at_some_moment(clock: Clock) -> None:
    """Return within SCATTER_SECONDS."""
    await clock.sleep(random.uniform(0, SCATTER_SECONDS))


def require_code(code: str) -> None:
    """Raise BadRequest for what cannot be a code."""
    if not _CODE.fullmatch(code):
        raise not_valid()


def hash_of_link(token: str) -> bytes:
    """Return the hash under which a link's token is stored; BadRequest if it cannot be one."""
    if not _TOKEN.fullmatch(token):
        raise not_valid()
    return _hashed(token)


def not_valid() -> BadRequest:
    """Return the one refusal of links and codes: which of the reasons it is, nobody is told."""
    return BadRequest(
        "This link or code is not valid: it was mistyped, used, replaced by a newer one, or its"
        " time is over. Ask for a new one.",
        code="E_AUTH_CODE_INVALID",
    )


def unsent_proof() -> Proof:
    """Return what looks like a link and a code, and is none."""
    return Proof(secrets.token_urlsafe(32), f"{secrets.randbelow(1_000_000):06d}")


def as_caller(user: User) -> Caller:
    """Return a person as who does something to their own account without being signed in."""
    return Caller(user.id, user.name, user.role, Source.API, user.email)


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _about(user: User) -> dict[str, str]:
    return {"user_id": str(user.id)}


def _greeting(user: User) -> str:
    return user.email.partition("@")[0] if _LIKE_A_LINK.search(user.name) else user.name
