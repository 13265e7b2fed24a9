"""Setting up, renewing and taking away a second factor, by its owner or by an administrator.

Whoever gains one has proved no more before than the password: every other session ends then.
"""

import asyncio
from dataclasses import field
from io import BytesIO
from uuid import UUID

from itdesk.config import Auth
from itdesk.desk import totp
from itdesk.desk.factors import Factors
from itdesk.desk.passwords import Passwords
from itdesk.desk.sessions import Sessions
from itdesk.errors import Conflict, Invalid, InvalidCode, NotFound
from itdesk.frozen import frozen
from itdesk.model import Caller, Event, Role, SecondFactor
from itdesk.store import factors as rows
from itdesk.store import users
from itdesk.store.db import Database, Transaction


@frozen
class Proposal:
    """What an authenticator has to know, shown this once; a code from it confirms it."""

    secret: str = field(repr=False)
    otpauth_uri: str = field(repr=False)
    qr_svg: str = field(repr=False)


@frozen
class RecoveryCodes:
    """Codes to print and keep, shown this once; each signs in one time without authenticator."""

    recovery_codes: list[str] = field(repr=False)


class SecondFactors:
    """What people do about their own second factor, and administrators about others'."""

    def __init__(
        self, db: Database, factors: Factors, sessions: Sessions, passwords: Passwords,
        settings: Auth,
    ) -> None:  # fmt: skip
        self._db = db
        self._factors = factors
        self._sessions = sessions
        self._passwords = passwords
        self._settings = settings

    async def status(self, caller: Caller) -> SecondFactor:
        """Return whether one's own sign-in asks for a code."""
        async with self._db.connection() as conn:
            confirmed_at, left = await rows.status(conn, _own(caller))
        required = caller.role in self._settings.totp_required_roles
        return SecondFactor(confirmed_at is not None, required, confirmed_at, left)

    async def propose(self, caller: Caller, password: str | None) -> Proposal:
        """Make a secret to be confirmed by a code; nothing is asked for until then."""
        email = await self._proved(caller, password)
        async with self._db.transaction() as tx:
            secret = await self._factors.propose(tx, _own(caller))
        if secret is None:
            raise Conflict(
                "You have a second factor already: disable it first, then set up another.",
                code="E_AUTH_SECOND_FACTOR_EXISTS",
            )
        uri = totp.uri(secret, account=email, issuer=self._settings.totp_issuer)
        # Drawing takes some milliseconds too many for the loop.
        return Proposal(totp.shown(secret), uri, await asyncio.to_thread(_drawn, uri))

    async def confirm(self, caller: Caller, code: str) -> RecoveryCodes:
        """Ask for a code from now on, and end every other session of this person."""
        user_id = _own(caller)
        codes: list[str] = []
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user_id, lock=True)
            confirmed = await self._factors.confirm(tx, account.user, code)
            if confirmed:
                codes = await self._factors.new_recovery_codes(tx, user_id)
                await self._void(tx, user_id, keep=caller.session_id)
                self._record(tx, caller, "auth.second_factor_enabled", user_id)
        if not confirmed:
            raise InvalidCode("The code is wrong. Is the clock of your authenticator right?")
        return RecoveryCodes(codes)

    async def renew_codes(self, caller: Caller, password: str | None, code: str) -> RecoveryCodes:
        """Return fresh recovery codes in place of all earlier ones."""
        user_id = _own(caller)
        await self._proved(caller, password)
        codes: list[str] = []
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user_id, lock=True)
            accepted = await self._factors.accepts(tx, account.user, code)
            if accepted:
                codes = await self._factors.new_recovery_codes(tx, user_id)
                self._record(tx, caller, "auth.recovery_codes_renewed", user_id)
        if not accepted:
            raise _wrong()
        return RecoveryCodes(codes)

    async def disable(self, caller: Caller, password: str | None, code: str) -> None:
        """Ask for no code any more, on the word of who knows both password and code."""
        user_id = _own(caller)
        await self._proved(caller, password)
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user_id, lock=True)
            accepted = await self._factors.accepts(tx, account.user, code)
            if accepted:
                await rows.remove(tx.conn, user_id)
                self._sessions.refresh_state(tx, user_id)
                self._record(tx, caller, "auth.second_factor_disabled", user_id)
        if not accepted:
            raise _wrong()

    async def reset(self, caller: Caller, ref: str | UUID) -> bool:
        """Take away somebody's factor and end their sessions; False when they had none."""
        caller.require(Role.ADMIN, "reset second factors")
        try:
            user_id = ref if isinstance(ref, UUID) else UUID(ref)
        except ValueError:
            raise NotFound.of("user") from None
        async with self._db.transaction() as tx:
            await users.account(tx.conn, user_id, lock=True)
            if user_id == caller.user_id:
                raise Conflict(
                    "Disable your own second factor by password and code.", code="E_USER_SELF"
                )
            removed = await rows.remove(tx.conn, user_id)
            if removed:
                await self._void(tx, user_id)
                self._record(tx, caller, "auth.second_factor_reset", user_id)
        return removed

    async def _void(self, tx: Transaction, user_id: UUID, *, keep: UUID | None = None) -> None:
        """End the sessions, also those that are being opened at this moment."""
        await users.update(tx.conn, user_id, {}, void_proofs=True)
        await self._sessions.end_all(tx, user_id, keep=keep)

    async def _proved(self, caller: Caller, password: str | None) -> str:
        """Return the person's address once the password was right; some have none to give."""
        async with self._db.connection() as conn:
            account = await users.account(conn, _own(caller))
        if account.password_hash is not None:
            if password is None:
                raise Invalid.field("password", "is required")
            if not await self._passwords.verify(password, account.password_hash):
                raise Invalid.field("password", "is not the current password")
        return account.user.email

    def _record(self, tx: Transaction, caller: Caller, type: str, user_id: UUID) -> None:
        tx.record(Event.by(caller, type, data={"user_id": str(user_id)}))


def _own(caller: Caller) -> UUID:
    assert caller.user_id is not None, "only people have second factors"
    return caller.user_id


def _wrong() -> InvalidCode:
    return InvalidCode("The code is wrong, or was used already. Try the next one.")


def _drawn(uri: str) -> str:
    drawing = BytesIO()
    # Imported here: people set a second factor up once.
    import segno

    segno.make(uri, micro=False, error="m").save(drawing, kind="svg", scale=4, xmldecl=False)
    return drawing.getvalue().decode().strip()
