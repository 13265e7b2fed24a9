"""Signing in and staying signed in: who holds which proof, and until when.

A session is a family of refresh tokens; its id is the `sid` of the access tokens. Whether it still
lives, and with which role, is asked of the database once in `session_refresh_seconds` and
remembered in between, so that a revocation is immediate here and seconds late elsewhere.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from itdesk.config import Auth
from itdesk.desk.passwords import Passwords
from itdesk.desk.tokens import Tokens, hash_refresh_token, new_refresh_token
from itdesk.errors import (
    DeskError,
    EmailNotVerified,
    ExpiredToken,
    Forbidden,
    InvalidCredentials,
    InvalidToken,
)
from itdesk.model import Caller, Event, Source, User, new_id
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.store import sessions, users
from itdesk.store.db import Database, Transaction

REMEMBERED = 10_000
LONGEST_AGENT = 300

log = get_logger("sessions")


@dataclass(frozen=True, slots=True)
class SignedIn:
    """What somebody gets who signed in; times are in seconds from now."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    token_type: Literal["bearer"]
    expires_in: int
    refresh_expires_in: int
    user: User


@dataclass(frozen=True, slots=True)
class _Known:
    """What the database said of a session, and when it was asked; None: it is over."""

    session: sessions.Session | None
    asked_at: float


class Sessions:
    """Opens, renews, checks and ends sessions."""

    def __init__(
        self,
        db: Database,
        tokens: Tokens,
        passwords: Passwords,
        settings: Auth,
        clock: Clock,
        *,
        remembered: int = REMEMBERED,
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._passwords = passwords
        self._settings = settings
        self._clock = clock
        self._remembered = remembered
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._asking: dict[UUID, asyncio.Future[_Known]] = {}

    async def login(
        self, email: str, password: str, *, address: str = "", user_agent: str = ""
    ) -> SignedIn:
        """Open a session for whoever knows the password; an unknown address fails alike."""
        async with self._db.connection() as conn:
            account = await users.account_of(conn, email)
        stored = account.password_hash if account is not None else None
        matches = await self._passwords.verify(password, stored)
        if account is None or not matches or not account.user.is_active:
            # A line and no journal row: the world may fill the one, but not the other.
            known = account.user.id if account is not None else None
            log.info("sign-in refused", user=known, address=address)
            raise _wrong_credentials()
        if self._settings.require_verified_email and not account.user.is_verified:
            raise EmailNotVerified("Confirm your address first: follow the link in our mail.")
        better = await self._better_hash(password, stored)
        async with self._db.transaction() as tx:
            if stored is not None and better is not None:
                await users.replace_hash(tx.conn, account.user.id, stored, better)
            return await self._start(tx, account, Source.API, address, user_agent)

    async def issue_for(self, user: User, *, source: Source = Source.CLI) -> SignedIn:
        """Open a session for somebody whom the operator vouches for."""
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user.id)
            if not account.user.is_active:
                raise Forbidden("This account is switched off.")
            return await self._start(tx, account, source, "", f"itdesk {source}")

    async def open_by(
        self,
        tx: Transaction,
        account: users.Account,
        provider: str,
        *,
        address: str = "",
        user_agent: str = "",
    ) -> SignedIn:
        """Open a session for somebody whom an identity provider vouches for."""
        return await self._start(tx, account, Source.API, address, user_agent, provider=provider)

    async def refresh(self, token: str, *, address: str = "", user_agent: str = "") -> SignedIn:
        """Exchange a refresh token for a new pair; using one twice ends its session.

        Only who repeats the newest exchange within the grace, as two tabs do, is just refused.
        """
        digest, now = hash_refresh_token(token), self._clock.now()
        async with self._db.transaction() as tx:
            await sessions.hold_family(tx.conn, digest)
            parent = await sessions.find(tx.conn, digest)
            if parent is None or parent.is_revoked:
                raise InvalidToken("The refresh token is not valid. Sign in again.")
            if now >= parent.expires_at:
                raise ExpiredToken("The session has ended. Sign in again.")
            account = await users.account(tx.conn, parent.user_id)
            if not account.user.is_active:
                raise InvalidToken("The refresh token is not valid. Sign in again.")
            if parent.used_at is None:
                return await self._renew(tx, parent, account.user, now, address, user_agent)
            if self._is_repetition(parent, now):
                raise InvalidToken("The refresh token was just used. Use the one that replaced it.")
            await self._punish_reuse(tx, parent, account.user, now, address)
        # Only here: raised inside, it would undo the revocation.
        raise InvalidToken("The refresh token was used before. Sign in again.")

    async def logout(
        self, refresh_token: str | None = None, *, access_token: str | None = None
    ) -> None:
        """End the session of each token that is good; one that is not has nothing to end."""
        async with self._db.transaction() as tx:
            if refresh_token is not None:
                with suppress(InvalidToken):
                    found = await sessions.find(tx.conn, hash_refresh_token(refresh_token))
                    if found is not None:
                        await self._end(tx, found.family_id, found.user_id)
            if access_token is not None:
                with suppress(InvalidToken, ExpiredToken):
                    claims = self._tokens.verify(access_token)
                    await self._end(tx, claims.sid, claims.sub)

    async def authenticate(self, access_token: str) -> Caller:
        """Return who is asking, with the role they have now; else Unauthenticated."""
        claims = self._tokens.verify(access_token)
        session = (await self._state(claims.sid)).session
        if session is None or session.user_id != claims.sub:
            raise InvalidToken("The session has ended. Sign in again.")
        if self._clock.now() >= session.expires_at:
            raise ExpiredToken("The session has ended. Sign in again.")
        return Caller(
            user_id=session.user_id,
            name=session.name,
            role=session.role,
            email=session.email,
            session_id=claims.sid,
        )

    async def end_all(self, tx: Transaction, user_id: UUID, *, keep: UUID | None = None) -> None:
        """End every session of a person but one, with the transaction that changes the person."""
        await sessions.revoke_all(tx.conn, user_id, self._clock.now(), keep=keep)
        self.refresh_state(tx, user_id)

    def refresh_state(self, tx: Transaction, user_id: UUID) -> None:
        """Look at a person's sessions anew once the transaction is committed."""
        tx.after_commit(lambda: self._forget(lambda known: known.user_id == user_id))

    async def _better_hash(self, password: str, stored: str | None) -> str | None:
        if stored is None or not self._passwords.needs_rehash(stored):
            return None
        return await self._passwords.hash(password)

    async def _start(
        self,
        tx: Transaction,
        account: users.Account,
        source: Source,
        address: str,
        user_agent: str,
        *,
        provider: str | None = None,
    ) -> SignedIn:
        token, digest = new_refresh_token()
        session_id, now = new_id(), self._clock.now()
        expires_at = now + timedelta(days=self._settings.refresh_token_expire_days)
        started = await sessions.start(
            tx.conn,
            id=session_id,
            user_id=account.user.id,
            auth_epoch=account.auth_epoch,
            token_hash=digest,
            now=now,
            expires_at=expires_at,
            user_agent=_legible(user_agent),
            address=address,
        )
        if not started:
            # The password was changed, or the person switched off, while we compared.
            raise _wrong_credentials()
        caller = _as_caller(account.user, source, session_id)
        about = {"session_id": str(session_id), "address": address}
        if provider is not None:
            about["provider"] = provider
        tx.record(Event.by(caller, "auth.login", data=about))
        return self._signed_in(account.user, session_id, token, expires_at, now)

    async def _renew(
        self,
        tx: Transaction,
        parent: sessions.RefreshToken,
        user: User,
        now: datetime,
        address: str,
        user_agent: str,
    ) -> SignedIn:
        token, digest = new_refresh_token()
        await sessions.replace(
            tx.conn,
            parent.id,
            id=new_id(),
            token_hash=digest,
            now=now,
            user_agent=_legible(user_agent),
            address=address,
        )
        return self._signed_in(user, parent.family_id, token, parent.expires_at, now)

    def _is_repetition(self, token: sessions.RefreshToken, now: datetime) -> bool:
        grace = timedelta(seconds=self._settings.refresh_grace_seconds)
        return token.used_at is not None and token.child_is_unused and now - token.used_at < grace

    async def _punish_reuse(
        self,
        tx: Transaction,
        token: sessions.RefreshToken,
        user: User,
        now: datetime,
        address: str,
    ) -> None:
        await sessions.revoke(tx.conn, token.family_id, now)
        caller = _as_caller(user, Source.API, token.family_id)
        about = {
            "session_id": str(token.family_id),
            "generation": token.generation,
            "address": address,
        }
        tx.record(Event.by(caller, "auth.token_reuse", data=about))
        tx.after_commit(lambda: self._forget_one(token.family_id))
        log.warning("refresh token reused", user=user.id, **about)

    async def _end(self, tx: Transaction, session_id: UUID, user_id: UUID) -> None:
        if not await sessions.revoke(tx.conn, session_id, self._clock.now()):
            return
        caller = _as_caller(await users.get(tx.conn, user_id), Source.API, session_id)
        tx.record(Event.by(caller, "auth.logout", data={"session_id": str(session_id)}))
        tx.after_commit(lambda: self._forget_one(session_id))

    def _signed_in(
        self, user: User, session_id: UUID, token: str, expires_at: datetime, now: datetime
    ) -> SignedIn:
        left = int((expires_at - now).total_seconds())
        lifetime = timedelta(minutes=self._settings.access_token_expire_minutes)
        lifetime = max(timedelta(seconds=1), min(lifetime, timedelta(seconds=left)))
        access, claims = self._tokens.issue(user.id, session_id, lifetime=lifetime)
        return SignedIn(access, token, "bearer", claims.exp - claims.iat, left, user)

    # --- what is known of sessions between two looks at the database ---

    async def _state(self, session_id: UUID) -> _Known:
        while True:
            known = self._known.get(session_id)
            if known is not None and self._is_fresh(known):
                self._known.move_to_end(session_id)
                return known
            asking = self._asking.get(session_id)
            if asking is None:
                return await self._ask(session_id)
            # One of all who come at once asks. It may be called off: then the next one does.
            try:
                return await asyncio.shield(asking)
            except asyncio.CancelledError:
                if not asking.cancelled() or _is_being_cancelled():
                    raise

    async def _ask(self, session_id: UUID) -> _Known:
        asking: asyncio.Future[_Known] = asyncio.get_running_loop().create_future()
        self._asking[session_id] = asking
        asked_at = self._clock.monotonic()
        try:
            async with self._db.connection() as conn:
                known = _Known(await sessions.live(conn, session_id), asked_at)
        except DeskError as exc:
            asking.set_exception(exc)
            asking.exception()  # seen: nobody else may be waiting
            raise
        else:
            asking.set_result(known)
            if self._asking.get(session_id) is asking:
                self._remember(session_id, known)
            return known
        finally:
            asking.cancel()
            if self._asking.get(session_id) is asking:
                del self._asking[session_id]

    def _is_fresh(self, known: _Known) -> bool:
        age = self._clock.monotonic() - known.asked_at
        return age < self._settings.session_refresh_seconds

    def _remember(self, session_id: UUID, known: _Known) -> None:
        self._known[session_id] = known
        self._known.move_to_end(session_id)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)

    def _forget_one(self, session_id: UUID) -> None:
        self._known.pop(session_id, None)
        # An answer that is on its way may be older than what we know: it is not remembered.
        self._asking.pop(session_id, None)

    def _forget(self, concerned: Callable[[sessions.Session], bool]) -> None:
        for session_id, known in list(self._known.items()):
            if known.session is not None and concerned(known.session):
                del self._known[session_id]
        self._asking.clear()


def _as_caller(user: User, source: Source, session_id: UUID) -> Caller:
    return Caller(user.id, user.name, user.role, source, user.email, session_id)


def _wrong_credentials() -> InvalidCredentials:
    return InvalidCredentials("The address and the password do not belong together.")


def _legible(user_agent: str) -> str:
    """Return a header that came as any bytes as text that the database takes."""
    text = user_agent[:LONGEST_AGENT].encode("utf-8", "replace").decode()
    return text.replace("\0", "")


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
