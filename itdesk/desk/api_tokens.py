"""API tokens: what a script signs in by, for as much as its owner allows and no longer than agreed.

How the last use is kept is decided here: in memory first, written down together, and for one
token no more often than once a minute, so that no request waits for it.
"""

from collections import OrderedDict
from dataclasses import field
from datetime import datetime, timedelta
from uuid import UUID

from itdesk.config import Auth
from itdesk.desk.opaque import API_TOKEN
from itdesk.desk.sessions import Sessions
from itdesk.errors import Conflict, Forbidden, Invalid, NotFound
from itdesk.frozen import frozen
from itdesk.model import ApiToken, Caller, Event, Grant, Role, new_id
from itdesk.runtime.clock import Clock
from itdesk.store import api_tokens, users
from itdesk.store.db import Database

MOST_TOKENS = 50
LONGEST_DAYS = 366
WRITTEN_EVERY_SECONDS = 60
REMEMBERED = 10_000


@frozen
class NewToken:
    """What somebody wants a token for; `days` is None for one that never expires."""

    name: str
    scope: Grant
    days: int | None


@frozen
class MadeToken:
    """A new token, whose text is shown this once."""

    token: str = field(repr=False)
    id: UUID
    name: str
    scope: Grant
    expires_at: datetime | None
    created_at: datetime


class ApiTokens:
    """Makes, lists and revokes API tokens, and notes when each was used."""

    def __init__(self, db: Database, sessions: Sessions, settings: Auth, clock: Clock) -> None:
        self._db = db
        self._sessions = sessions
        self._settings = settings
        self._clock = clock
        self._written: OrderedDict[UUID, float] = OrderedDict()
        self._used: dict[UUID, tuple[datetime, str]] = {}

    async def create(
        self, caller: Caller, new: NewToken, *, owner: UUID | None = None
    ) -> MadeToken:
        """Make a token for oneself; an operator makes it for its owner."""
        owner = owner or caller.user_id
        assert owner is not None, "somebody without an account needs to name an owner"
        if new.days is None and not self._settings.api_tokens_without_end:
            raise Invalid.field(
                "expires_in_days", "is required: tokens without an end are not allowed here"
            )
        token, digest = API_TOKEN.new()
        now = self._clock.now()
        async with self._db.transaction() as tx:
            # Held, so that two at once cannot both be the last that is allowed.
            user = (await users.account(tx.conn, owner, lock=True)).user
            if new.scope is Grant.ADMIN and user.role is not Role.ADMIN:
                raise Forbidden(
                    "Only administrators have tokens with the scope admin.",
                    details={"field": "scope"},
                )
            if await api_tokens.count(tx.conn, owner) >= MOST_TOKENS:
                raise Conflict(
                    f"Nobody has more than {MOST_TOKENS} tokens: revoke one first.",
                    code="E_TOKEN_LIMIT",
                )
            made = await api_tokens.add(
                tx.conn,
                id=new_id(),
                user_id=owner,
                name=new.name,
                scope=new.scope,
                token_hash=digest,
                now=now,
                expires_at=now + timedelta(days=new.days) if new.days is not None else None,
            )
            about = {
                "user_id": str(owner),
                "token_id": str(made.id),
                "name": made.name,
                "scope": made.scope,
                "expires_at": made.expires_at.isoformat() if made.expires_at else None,
            }
            tx.record(Event.by(caller, "auth.token_created", data=about))
        return MadeToken(token, made.id, made.name, made.scope, made.expires_at, made.created_at)

    async def list(self, caller: Caller, owner: str | UUID | None = None) -> list[ApiToken]:
        """Return one's own tokens, or to administrators those of somebody else."""
        if owner is not None:
            caller.require(Role.ADMIN, "see other people's tokens")
        async with self._db.connection() as conn:
            user_id = _id(owner or caller.user_id, "user")
            if owner is not None:
                await users.get(conn, user_id)
            return await api_tokens.list_all(conn, user_id)

    async def revoke(self, caller: Caller, ref: str | UUID) -> None:
        """Void a token of one's own; administrators void anybody's."""
        owner = None if caller.has(Role.ADMIN) else caller.user_id
        async with self._db.transaction() as tx:
            token_id = _id(ref, "token")
            user_id, name, digest = await api_tokens.delete(tx.conn, token_id, owner=owner)
            about = {"user_id": str(user_id), "token_id": str(token_id), "name": name}
            tx.record(Event.by(caller, "auth.token_revoked", data=about))
            self._sessions.admission.forget_token(tx, digest)

    async def revoke_all(self, caller: Caller, owner: str | UUID) -> None:
        """Void all tokens of a person."""
        caller.require(Role.ADMIN, "revoke other people's tokens")
        async with self._db.transaction() as tx:
            user = await users.get(tx.conn, _id(owner, "user"))
            names = await api_tokens.delete_all(tx.conn, user.id)
            if names:
                about = {"user_id": str(user.id), "names": names}
                tx.record(Event.by(caller, "auth.token_revoked", data=about))
            self._sessions.refresh_state(tx, user.id)

    def note_use(self, token_id: UUID, address: str) -> None:
        """Remember when and from where a token was used; writing it down comes later."""
        now = self._clock.monotonic()
        written = self._written.get(token_id)
        if written is not None and now - written < WRITTEN_EVERY_SECONDS:
            return
        self._written[token_id] = now
        self._written.move_to_end(token_id)
        if len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
        self._used[token_id] = self._clock.now(), address

    async def write_uses(self) -> None:
        """Write down the uses that were noted, all in one statement."""
        used, self._used = self._used, {}
        if not used:
            return
        times = [at for at, _ in used.values()]
        addresses = [address for _, address in used.values()]
        try:
            async with self._db.connection() as conn:
                await api_tokens.note_uses(conn, list(used), times, addresses)
        except BaseException:
            self._used = {**used, **self._used}
            raise


def _id(ref: str | UUID | None, noun: str) -> UUID:
    try:
        if ref is not None:
            return ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        pass
    raise NotFound.of(noun)
