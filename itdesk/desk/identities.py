"""Signing in by an account elsewhere: state, linking and accounts, whoever the provider is.

A browser gets one secret; state, nonce and verifier are made from it, so that what comes back is
worth nothing in another browser and the database holds no secret. An account elsewhere is linked
by issuer and subject. The first time, the address decides, when the provider vouches for it; what
a stranger may have put into an account that never confirmed that address is void from then on.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Mapping, Sequence
from typing import NoReturn, TypeVar
from uuid import UUID

from itdesk.config import Settings
from itdesk.desk.accounts import Accounts
from itdesk.desk.sessions import Challenge, Sessions, SignedIn
from itdesk.errors import Conflict, InvalidCredentials, NotFound, Unavailable
from itdesk.frozen import frozen
from itdesk.hookspecs import (
    Identity,
    IdentityProvider,
    SignInAttempt,
    SignInProblem,
    SignInRefused,
)
from itdesk.model import SYSTEM, Caller, Change, Event, LinkedIdentity, Role, Source, new_id
from itdesk.runtime.log import get_logger
from itdesk.store import identities, users
from itdesk.store.db import Database, Transaction
from itdesk.store.failures import Contention
from itdesk.store.identities import Passage

T = TypeVar("T")

STATE_SECONDS = 600
ATTEMPTS = 4
# Promised to browsers even while no plugin of that name is there.
GOOGLE = "google"

_SECRET = re.compile(r"[0-9a-f]{64}")
# ASCII only: there are letters that become another's in lower case.
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z][A-Za-z0-9-]{1,62}"
)
_PICTURE = re.compile(r"https://[!#-;=?-\[\]_a-z~]{4,1990}")

log = get_logger("identities")


@frozen
class Offer:
    """A provider that people may sign in by: what its button says, and where it leads."""

    name: str
    label: str
    start_url: str


@frozen
class Departure:
    """Where a browser goes to sign in, and the secret that it keeps meanwhile."""

    url: str
    secret: str


@frozen
class Landing:
    """Where a browser is after signing in elsewhere: with a session, or with a problem.

    A `challenge` is what the second factor of this desk has still to answer.
    """

    next: str = "/"
    problem: str | None = None
    signed: SignedIn | None = None
    challenge: str | None = None


class Identities:
    """Sends browsers to identity providers, and signs in who comes back."""

    def __init__(
        self,
        db: Database,
        accounts: Accounts,
        sessions: Sessions,
        providers: dict[str, IdentityProvider],
        settings: Settings,
    ) -> None:
        self._db = db
        self._accounts = accounts
        self._sessions = sessions
        self._settings = settings
        self.providers = providers

    def offers(self) -> list[Offer]:
        """Return whom people may sign in by, for a login page."""
        return [
            Offer(name, provider.label, f"/api/v1/auth/{name}/start")
            for name, provider in self.providers.items()
        ]

    async def begin(self, name: str, *, next: str, base_url: str) -> Departure | Landing:
        """Begin to sign in by a provider; NotFound when there is none of that name."""
        try:
            provider = self._provider(name)
            secret = secrets.token_hex(32)
            redirect_uri = provider.redirect_uri or f"{base_url}/api/auth/{name}/callback"
            attempt = _attempt(secret, redirect_uri)
            url = await self._asked(name, provider.begin(attempt))
            async with self._db.transaction() as tx:
                digest = _digest(attempt.state)
                passage = Passage(redirect_uri, next)
                await identities.begin(tx.conn, digest, name, passage, seconds=STATE_SECONDS)
        except SignInRefused as exc:
            return _landed(name, exc)
        return Departure(url, secret)

    async def finish(
        self,
        name: str,
        answer: Mapping[str, str],
        secret: str | None,
        *,
        address: str = "",
        user_agent: str = "",
    ) -> Landing:
        """Sign in who comes back from a provider, in the browser that went there."""
        try:
            provider = self._provider(name)
            passage = await self._passage(name, answer.get("state"), secret)
            attempt = _attempt(secret or "", passage.redirect_uri)
            identity = await self._asked(name, provider.finish(attempt, answer))
            _require_sound(identity)
            entered = await self._enter(provider, name, identity, address, user_agent)
        except SignInRefused as exc:
            return _landed(name, exc)
        if isinstance(entered, Challenge):
            problem = str(SignInProblem.SECOND_FACTOR)
            return Landing(passage.next, problem, challenge=entered.token)
        return Landing(passage.next, None, entered)

    async def list(self, caller: Caller, ref: str) -> Sequence[LinkedIdentity]:
        """Return by which accounts elsewhere a person signs in, to them and to administrators."""
        user = await self._accounts.get(caller, ref)
        async with self._db.connection() as conn:
            return await identities.of_user(conn, user.id)

    async def unlink(self, caller: Caller, ref: str, identity_ref: str) -> None:
        """Forget a link and end the sessions; nobody takes their own last way in away."""
        user = await self._accounts.get(caller, ref)
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user.id, lock=True)
            linked = await identities.of_user(tx.conn, user.id)
            gone = next((one for one in linked if str(one.id) == identity_ref.lower()), None)
            if gone is None:
                raise NotFound.of("identity")
            left = [one for one in linked if one is not gone and one.provider in self.providers]
            if caller.user_id == user.id and account.password_hash is None and not left:
                raise Conflict(
                    "This is your last way to sign in: set a password first.",
                    code="E_IDENTITY_LAST",
                )
            await identities.remove(tx.conn, gone.id)
            await identities.clear_google_id(tx.conn, user.id, gone.subject)
            await self._sessions.end_all(tx, user.id, keep=caller.session_id)
            tx.record(Event.by(caller, "auth.identity_unlinked", data=_about(user.id, gone)))

    # --- the way out and back ---------------------------------------------------------------

    def _provider(self, name: str) -> IdentityProvider:
        provider = self.providers.get(name)
        if provider is None and name == GOOGLE:
            raise SignInRefused(SignInProblem.NOT_CONFIGURED, "GOOGLE_CLIENT_ID is not set")
        if provider is None:
            raise NotFound("Nobody can sign in that way here.", code="E_PROVIDER_NOT_FOUND")
        return provider

    async def _asked(self, name: str, answer: Awaitable[T]) -> T:
        """Wait for a provider; whatever else it raises is its own fault, and nobody signs in."""
        try:
            return await answer
        except SignInRefused:
            raise
        except Unavailable as exc:
            raise SignInRefused(SignInProblem.UNAVAILABLE, exc.message) from exc
        except Exception as exc:
            log.exception("identity provider failed", provider=name)
            raise SignInRefused(SignInProblem.UNAVAILABLE, type(exc).__name__) from exc

    async def _passage(self, name: str, state: str | None, secret: str | None) -> Passage:
        """Return what was begun in this browser, and use it up."""
        if secret is None or _SECRET.fullmatch(secret) is None:
            _refuse_state("the browser that comes back is not the one that was sent")
        given, expected = (state or "").encode(), _attempt(secret, "").state.encode()
        if not hmac.compare_digest(given, expected):
            _refuse_state("the state is not the one of this browser")
        async with self._db.transaction() as tx:
            passage = await identities.take(tx.conn, _digest(expected.decode()), name)
        if passage is None:
            _refuse_state("the sign-in took too long, or this is its second answer")
        return passage

    # --- who it is here ---------------------------------------------------------------------

    async def _enter(
        self,
        provider: IdentityProvider,
        name: str,
        identity: Identity,
        address: str,
        user_agent: str,
    ) -> SignedIn | Challenge:
        """Find, link or open the account and its session; begin again when a race was lost."""
        for _ in range(ATTEMPTS):
            try:
                async with self._db.transaction() as tx:
                    account = await self._account(tx, provider, name, identity)
                    return await self._sessions.open(
                        tx, account, provider=name, address=address, user_agent=user_agent
                    )
            except (Contention, Conflict, InvalidCredentials, NotFound) as exc:
                log.info("sign-in met another change", provider=name, error=exc.code)
        raise SignInRefused(SignInProblem.UNAVAILABLE, "other changes were in the way each time")

    async def _account(
        self, tx: Transaction, provider: IdentityProvider, name: str, identity: Identity
    ) -> users.Account:
        # Who changes roles holds the administrators before anybody else.
        admins = await users.hold_admins(tx.conn) if identity.role is not None else set[UUID]()
        user_id = await identities.owner(tx.conn, identity.issuer, identity.subject)
        if user_id is None:
            user_id = await self._linked(tx, provider, name, identity)
        account = await users.account(tx.conn, user_id, lock=True)
        if not account.user.is_active:
            _refuse("the account is switched off")
        issuer, subject = identity.issuer, identity.subject
        if not await identities.touch(tx.conn, user_id, issuer, subject, identity.email):
            raise Conflict("The link was removed meanwhile.")
        if identity.role not in (None, account.user.role):
            await self._give_role(tx, account, identity.role or Role.USER, name, admins)
            account = await users.account(tx.conn, user_id)
        return account

    async def _linked(
        self, tx: Transaction, provider: IdentityProvider, name: str, identity: Identity
    ) -> UUID:
        """Link an account elsewhere that was never seen to the account with its address."""
        account = await users.account_of(tx.conn, identity.email)
        if account is None:
            user_id = await self._created(tx, provider, name, identity)
            wiped = False
        else:
            user_id = account.user.id
            wiped = await self._taken_over(tx, user_id, identity)
        added = await identities.add(
            tx.conn,
            user_id,
            provider=name,
            issuer=identity.issuer,
            subject=identity.subject,
            email=identity.email,
        )
        if not added:
            raise Conflict("The same was linked meanwhile.")
        if name == GOOGLE and not await identities.set_google_id(
            tx.conn, user_id, identity.subject
        ):
            _refuse("the account belongs to another one at Google")
        caller = await _themselves(tx, user_id)
        about = {
            "user_id": str(user_id),
            "provider": name,
            "issuer": identity.issuer,
            "password_voided": wiped,
        }
        tx.record(Event.by(caller, "auth.identity_linked", data=about))
        return user_id

    async def _taken_over(self, tx: Transaction, user_id: UUID, identity: Identity) -> bool:
        """Return whether what was in an account had to be voided, before it is linked."""
        account = await users.account(tx.conn, user_id, lock=True)
        if account.user.email.lower() != identity.email.lower():
            raise Conflict("The address was changed meanwhile.")
        if not account.user.is_active:
            _refuse("the account is switched off")
        for one in await identities.of_user(tx.conn, user_id):
            if (one.issuer, one.subject) == (identity.issuer, identity.subject):
                raise Conflict("The same was linked meanwhile.")
            if one.issuer == identity.issuer:
                _refuse("the account is linked to another subject of this issuer")
        if account.user.is_verified:
            return False
        # Whoever opened it never proved to have the address: it may be a trap for who has.
        await identities.take_over(tx.conn, user_id)
        await self._sessions.end_all(tx, user_id)
        return True

    async def _created(
        self, tx: Transaction, provider: IdentityProvider, name: str, identity: Identity
    ) -> UUID:
        opens = provider.creates_accounts
        if opens is None:
            opens = self._settings.auth.allow_registration
        if not opens:
            _refuse("there is no account with this address, and none is opened")
        user = await users.create(
            tx.conn,
            id=new_id(),
            email=identity.email,
            name=_legible(identity.name) or identity.email.partition("@")[0],
            role=identity.role or Role.USER,
            department=None,
            password_hash=None,
            is_verified=True,
        )
        if identity.picture and _PICTURE.fullmatch(identity.picture):
            await users.update(tx.conn, user.id, {"avatar_url": identity.picture})
        about = {"user_id": str(user.id), "provider": name}
        tx.record(Event.by(await _themselves(tx, user.id), "user.registered", data=about))
        return user.id

    async def _give_role(
        self, tx: Transaction, account: users.Account, role: Role, name: str, admins: set[UUID]
    ) -> None:
        user = account.user
        if admins == {user.id}:
            log.warning("the last administrator keeps the role", user=user.id, provider=name)
            return
        await users.update(tx.conn, user.id, {"role": role})
        self._sessions.refresh_state(tx, user.id)
        about = {"user_id": str(user.id), "fields": ["role"], "provider": name}
        change = Change("role", user.role, role)
        tx.record(Event.by(SYSTEM, "user.updated", changes=(change,), data=about))


async def _themselves(tx: Transaction, user_id: UUID) -> Caller:
    user = await users.get(tx.conn, user_id)
    return Caller(user.id, user.name, user.role, Source.API, user.email)


def _attempt(secret: str, redirect_uri: str) -> SignInAttempt:
    """Return what is known of an attempt by whoever has its secret."""
    key = secret.encode()
    parts = (hmac.digest(key, part, "sha256") for part in (b"state", b"nonce", b"verifier"))
    state, nonce, verifier = (urlsafe_b64encode(p).rstrip(b"=").decode() for p in parts)
    return SignInAttempt(state, nonce, verifier, redirect_uri)


def _digest(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()


def _require_sound(identity: Identity) -> None:
    # `is`: some providers say "true" or 1, and some of them say it of what they never checked.
    if identity.email_verified is not True:
        raise SignInRefused(SignInProblem.EMAIL, "the provider does not vouch for the address")
    if not isinstance(identity.email, str) or len(identity.email) > 254:
        raise SignInRefused(SignInProblem.EMAIL, "the address is missing or too long")
    if _EMAIL.fullmatch(identity.email) is None:
        raise SignInRefused(SignInProblem.EMAIL, "the address is none in ASCII")


def _legible(name: str) -> str:
    """Return what a provider calls somebody as one line that the desk takes as a name."""
    shown = "".join(c if c.isprintable() else " " for c in name[:400])
    return " ".join(shown.split())[:100].strip()


def _about(user_id: UUID, linked: LinkedIdentity) -> dict[str, str]:
    return {"user_id": str(user_id), "provider": linked.provider, "issuer": linked.issuer}


def _landed(name: str, refused: SignInRefused) -> Landing:
    log.info("sign-in refused", provider=name, problem=refused.problem, reason=refused.reason)
    problem = str(refused.problem)
    if refused.problem is SignInProblem.NOT_CONFIGURED:
        problem = f"{name}_{problem}"
    return Landing(problem=problem)


def _refuse(reason: str) -> NoReturn:
    # One problem for all: whether an account exists, or is switched off, is nobody's to know.
    raise SignInRefused(SignInProblem.REFUSED, reason)


def _refuse_state(reason: str) -> NoReturn:
    raise SignInRefused(SignInProblem.STATE, reason)
