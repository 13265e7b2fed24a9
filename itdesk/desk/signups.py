"""Accounts that people open for themselves.

Where addresses must be verified, opening one answers the same whether the address had an account
or not: its owner is told by mail. Both ways hash one password, hold one person, make one link and
write one mail, so that they take as long. Elsewhere a taken address is refused.
"""

from typing import Literal

from itdesk.config import Auth
from itdesk.desk.passwords import Passwords
from itdesk.desk.proofs import Proof, Proofs, as_caller, unsent_proof
from itdesk.desk.sessions import Sessions, SignedIn
from itdesk.desk.verification import Visit
from itdesk.errors import Conflict, EmailNotVerified, Forbidden, InvalidCredentials
from itdesk.frozen import frozen
from itdesk.model import Event, Role, User, new_id
from itdesk.runtime.clock import Clock
from itdesk.store import proofs as store
from itdesk.store import users
from itdesk.store.db import Database, Transaction

Outcome = Literal["logged_in", "verification_sent", "account_created_verification_sent"]


@frozen
class SignedUp:
    """The account as it was asked for, and what was mailed to its address."""

    user: User
    proof: Proof


@frozen
class Entered:
    """What came of an address and a password."""

    outcome: Outcome
    signed_in: SignedIn | None = None


class Signups:
    """Opens accounts for whoever asks."""

    def __init__(
        self,
        db: Database,
        passwords: Passwords,
        sessions: Sessions,
        proofs: Proofs,
        settings: Auth,
        clock: Clock,
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._sessions = sessions
        self._proofs = proofs
        self._settings = settings
        self._clock = clock

    async def register(
        self, email: str, password: str, name: str, *, role: object = None
    ) -> SignedUp:
        """Open an account for whoever asks, as a plain user: a role is given, never taken."""
        if role is not None:
            raise Forbidden(
                "Nobody chooses their own role: leave role out.", details={"field": "role"}
            )
        if not self._settings.allow_registration:
            raise Forbidden(
                "Accounts are opened by the administrators here.",
                code="E_AUTH_REGISTRATION_CLOSED",
            )
        hashed = await self._passwords.hash_new(password, email, name)
        if not self._settings.require_verified_email:
            async with self._db.transaction() as tx:
                return await self._open(tx, email, name, hashed)
        async with self._db.connection() as conn:
            known = await users.account_of(conn, email)
        stored = known.password_hash if known is not None else None
        same = await self._passwords.verify(password, stored)
        async with self._db.transaction() as tx:
            return await self._open_or_tell(tx, email, name, hashed, same=same)

    async def email_login(self, email: str, password: str, visit: Visit) -> Entered:
        """Sign in whoever is verified; open an account for whoever has none, and verify it."""
        try:
            signed_in = await self._sessions.login(
                email, password, address=visit.address, user_agent=visit.user_agent
            )
        except EmailNotVerified:
            return await self._verify_first(email)
        except InvalidCredentials:
            return await self._open_by_login(email, password)
        if signed_in.user.is_verified:
            return Entered("logged_in", signed_in)
        # Other ways to sign in take an address as it is here; this one promises to verify it.
        await self._sessions.logout(signed_in.refresh_token)
        return await self._verify_first(email)

    async def _verify_first(self, email: str) -> Entered:
        async with self._db.transaction() as tx:
            account = await users.account_of(tx.conn, email, lock=True)
            if account is not None and await self._proofs.may_mail(tx, account.user):
                await self._proofs.mail_verification(tx, account.user)
        return Entered("verification_sent")

    async def _open_by_login(self, email: str, password: str) -> Entered:
        if not self._settings.allow_registration:
            raise _refused()
        verifying = self._settings.require_verified_email
        if not verifying:
            async with self._db.connection() as conn:
                if await users.account_of(conn, email) is not None:
                    raise _refused()
        name = email.partition("@")[0]
        hashed = await self._passwords.hash_new(password, email, name)
        async with self._db.transaction() as tx:
            # Whoever mistypes the password of their own account gets no other one by it.
            await self._open_or_tell(tx, email, name, hashed, same=True)
        return Entered("account_created_verification_sent")

    async def _open_or_tell(
        self, tx: Transaction, email: str, name: str, hashed: str, *, same: bool
    ) -> SignedUp:
        """Open the account, or tell the owner of the address that somebody wanted one for it."""
        try:
            return await self._open(tx, email, name, hashed)
        except Conflict:
            account = await users.account_of(tx.conn, email, lock=True)
        if account is not None:
            await self._tell(tx, account, same=same)
        now = self._clock.now()
        asked = User(new_id(), email, name, Role.USER, None, None, True, False, now, now)
        return SignedUp(asked, unsent_proof())

    async def _tell(self, tx: Transaction, account: users.Account, *, same: bool) -> None:
        user = account.user
        if not user.is_verified and not same and account.password_hash is not None:
            # Two want an address that neither has proved to be theirs: no password counts until
            # its owner sets one, or whoever came first would share the account.
            await users.update(tx.conn, user.id, {"password_hash": None}, void_proofs=True)
            await store.end_all(tx.conn, user.id)
            await self._sessions.end_all(tx, user.id)
        if await self._proofs.may_mail(tx, user):
            await self._proofs.mail_that_it_exists(tx, user)

    async def _open(self, tx: Transaction, email: str, name: str, hashed: str) -> SignedUp:
        user = await users.create(
            tx.conn,
            id=new_id(),
            email=email,
            name=name,
            role=Role.USER,
            department=None,
            password_hash=hashed,
            is_verified=False,
        )
        tx.record(Event.by(as_caller(user), "user.registered", data={"user_id": str(user.id)}))
        return SignedUp(user, await self._proofs.mail_verification(tx, user))


def _refused() -> InvalidCredentials:
    return InvalidCredentials("The address and the password do not belong together.")
