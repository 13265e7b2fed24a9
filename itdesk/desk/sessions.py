"""Signing in and staying signed in: who holds which proof, and until when.

A session is a family of refresh tokens; its id is the `sid` of the access tokens. There is one
door to it, `Sessions.open`, which knows of the second factor, whatever the first one was.
"""

from contextlib import suppress
from dataclasses import field, replace
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from itdesk.config import Auth
from itdesk.desk.admission import Admission
from itdesk.desk.factors import Factors
from itdesk.desk.guesses import Guess, Guesses, of_account
from itdesk.desk.opaque import CHALLENGE
from itdesk.desk.passwords import Passwords
from itdesk.desk.tokens import Tokens, hash_refresh_token, new_refresh_token
from itdesk.errors import (
    EmailNotVerified,
    ExpiredToken,
    Forbidden,
    InvalidCode,
    InvalidCredentials,
    InvalidToken,
    NotFound,
    SecondFactorRequired,
)
from itdesk.frozen import frozen
from itdesk.model import SYSTEM, Caller, Event, Source, User, new_id
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.store import factors as factor_rows
from itdesk.store import sessions, users
from itdesk.store.db import Database, Transaction

REMEMBERED = 10_000
LONGEST_AGENT = 300
# Wrong answers to one challenge; then the password is asked for again.
MOST_ATTEMPTS = 5

log = get_logger("sessions")


@frozen
class SignedIn:
    """What somebody gets who signed in; times are in seconds from now."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    token_type: Literal["bearer"]
    expires_in: int
    refresh_expires_in: int
    user: User


@frozen
class Challenge:
    """What somebody gets who proved all but the second factor; it is answered once, in time."""

    token: str = field(repr=False)
    expires_in: int

    def demand(self) -> SecondFactorRequired:
        """Return the error that hands the challenge to the client."""
        return SecondFactorRequired(
            "Send the code of your authenticator, or a recovery code, with this challenge.",
            details={"challenge": self.token, "expires_in": self.expires_in},
        )


class Sessions:
    """Opens, renews, checks and ends sessions."""

    def __init__(
        self,
        db: Database,
        tokens: Tokens,
        passwords: Passwords,
        guesses: Guesses,
        settings: Auth,
        clock: Clock,
        *,
        factors: Factors,
        remembered: int = REMEMBERED,
    ) -> None:
        self._db = db
        self._tokens = tokens
        self._passwords = passwords
        self._guesses = guesses
        self._settings = settings
        self._clock = clock
        self._factors = factors
        self.admission = Admission(db, tokens, settings, clock, remembered=remembered)

    async def login(
        self,
        email: str,
        password: str,
        *,
        code: str | None = None,
        address: str = "",
        user_agent: str = "",
    ) -> SignedIn:
        """Open a session for whoever knows the password; an unknown address fails alike.

        Who has a second factor sends its code as well, or gets SecondFactorRequired.
        Raises RateLimited when too many passwords were wrong, be this one right or not.
        """
        async with self._guesses.guessing(of_account(email)) as guess:
            async with self._db.connection() as conn:
                account = await users.account_of(conn, email)
            stored = account.password_hash if account is not None else None
            matches = await self._passwords.verify(password, stored)
            if account is None or not matches or not account.user.is_active:
                await self._note_refusal(account, guess, address)
                raise _wrong_credentials()
            if self._settings.require_verified_email and not account.user.is_verified:
                await guess.right()
                raise EmailNotVerified("Confirm your address first: follow the link in our mail.")
            better = await self._better_hash(password, stored)
            async with self._db.transaction() as tx:
                if stored is not None and better is not None:
                    await users.replace_hash(tx.conn, account.user.id, stored, better)
                await guess.right()
                entered = await self.open(tx, account, address=address, user_agent=user_agent)
        if isinstance(entered, SignedIn):
            return entered
        if code is None:
            raise entered.demand()
        return await self.answer(entered.token, code, address=address, user_agent=user_agent)

    async def open(
        self,
        tx: Transaction,
        account: users.Account,
        *,
        address: str = "",
        user_agent: str = "",
        provider: str | None = None,
    ) -> SignedIn | Challenge:
        """Let in whoever proved to be this person, by whatever means: the one door there is.

        `provider` names the identity provider that vouches for them, if one does.

        Returns a challenge instead of tokens to who has a second factor. The caller commits in
        either case, and only then hands out what it got.
        """
        if not await self._factors.are_asked_of(tx.conn, account.user.id):
            return await self._start(
                tx, account, Source.API, address, user_agent, provider=provider
            )
        token, digest = CHALLENGE.new()
        now, seconds = self._clock.now(), self._settings.challenge_seconds
        await factor_rows.challenge(
            tx.conn,
            token_hash=digest,
            user_id=account.user.id,
            auth_epoch=account.auth_epoch,
            now=now,
            expires_at=now + timedelta(seconds=seconds),
        )
        return Challenge(token, seconds)

    async def answer(
        self, challenge: str, code: str, *, address: str = "", user_agent: str = ""
    ) -> SignedIn:
        """Exchange a challenge and a code, or recovery code, for a session."""
        digest = CHALLENGE.digest(challenge)
        async with self._db.transaction() as tx:
            account = await self._challenged(tx, digest)
            if await self._factors.accepts(tx, account.user, code):
                await factor_rows.end_challenge(tx.conn, digest)
                return await self._start(tx, account, Source.API, address, user_agent)
            await factor_rows.count_attempt(tx.conn, digest)
        # Only here: raised inside, it would undo the counting.
        log.info("second factor refused", user=account.user.id, address=address)
        raise InvalidCode("The code is wrong, or was used already. Try the next one.")

    async def issue_for(self, user: User, *, source: Source = Source.CLI) -> SignedIn:
        """Open a session for somebody whom the operator vouches for."""
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user.id)
            if not account.user.is_active:
                raise Forbidden("This account is switched off.")
            return await self._start(tx, account, source, "", f"itdesk {source}")

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

    async def authenticate(self, token: str) -> Caller:
        """Return who is asking, with the role they have now; else Unauthenticated."""
        return (await self.admission.admit(token))[0]

    async def admit(self, token: str) -> tuple[Caller, datetime]:
        """Return who is asking, by an access token or an API token, and until when that holds."""
        return await self.admission.admit(token)

    async def end_all(self, tx: Transaction, user_id: UUID, *, keep: UUID | None = None) -> None:
        """End every session of a person but one, with the transaction that changes the person."""
        await sessions.revoke_all(tx.conn, user_id, self._clock.now(), keep=keep)
        self.refresh_state(tx, user_id)

    def refresh_state(self, tx: Transaction, user_id: UUID) -> None:
        """Look at a person's sessions anew once the transaction is committed."""
        self.admission.forget_person(tx, user_id)

    async def _challenged(self, tx: Transaction, digest: bytes) -> users.Account:
        """Return whose challenge this is, as they were when it was made; hold both."""
        found = await factor_rows.find_challenge(tx.conn, digest)
        if found is not None:
            # People are held before what is theirs, by everybody: nobody waits crosswise.
            with suppress(NotFound):
                account = await users.account(tx.conn, found.user_id, lock=True)
                found = await factor_rows.find_challenge(tx.conn, digest, lock=True)
                if found is not None and self._may_be_answered(found):
                    return replace(account, auth_epoch=found.auth_epoch)
        raise InvalidToken("The challenge is not, or no longer, valid. Sign in again.")

    def _may_be_answered(self, challenge: factor_rows.Challenge) -> bool:
        in_time = self._clock.now() < challenge.expires_at
        return in_time and challenge.attempts < MOST_ATTEMPTS

    async def _note_refusal(
        self, account: users.Account | None, guess: Guess, address: str
    ) -> None:
        # A line and no journal row: the world may fill the one, but not the other.
        known = account.user.id if account is not None else None
        log.info("sign-in refused", user=known, address=address)
        if known is not None and self._guesses.slows_after(guess.failures):
            about = {"user_id": str(known), "failures": guess.failures, "address": address}
            async with self._db.transaction() as tx:
                tx.record(Event.by(SYSTEM, "auth.locked", data=about))

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
        self.admission.forget_session(tx, token.family_id)
        log.warning("refresh token reused", user=user.id, **about)

    async def _end(self, tx: Transaction, session_id: UUID, user_id: UUID) -> None:
        if not await sessions.revoke(tx.conn, session_id, self._clock.now()):
            return
        caller = _as_caller(await users.get(tx.conn, user_id), Source.API, session_id)
        tx.record(Event.by(caller, "auth.logout", data={"session_id": str(session_id)}))
        self.admission.forget_session(tx, session_id)

    def _signed_in(
        self, user: User, session_id: UUID, token: str, expires_at: datetime, now: datetime
    ) -> SignedIn:
        left = int((expires_at - now).total_seconds())
        lifetime = timedelta(minutes=self._settings.access_token_expire_minutes)
        lifetime = max(timedelta(seconds=1), min(lifetime, timedelta(seconds=left)))
        access, claims = self._tokens.issue(user.id, session_id, lifetime=lifetime)
        return SignedIn(access, token, "bearer", claims.exp - claims.iat, left, user)


def _as_caller(user: User, source: Source, session_id: UUID) -> Caller:
    return Caller(user.id, user.name, user.role, source, user.email, session_id)


def _wrong_credentials() -> InvalidCredentials:
    return InvalidCredentials("The address and the password do not belong together.")


def _legible(user_agent: str) -> str:
    """Return a header that came as any bytes as text that the database takes."""
    text = user_agent[:LONGEST_AGENT].encode("utf-8", "replace").decode()
    return text.replace("\0", "")
