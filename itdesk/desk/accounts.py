"""People: who has an account, what they are called, and what they may do.

The rule that there is always an active administrator is decided here, with all of them held, so
that two who demote each other at once cannot both succeed.
"""

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any
from uuid import UUID

from itdesk.desk.guesses import Guesses, of_change
from itdesk.desk.passwords import Passwords
from itdesk.desk.proofs import Proofs
from itdesk.desk.sessions import Sessions
from itdesk.errors import Conflict, Forbidden, Invalid, NotFound, SessionRequired
from itdesk.frozen import frozen
from itdesk.model import Assignee, Caller, Change, Event, Role, User, new_id
from itdesk.store import proofs as links
from itdesk.store import users
from itdesk.store.db import Database, Transaction
from itdesk.store.paging import Page, Window

_OWN_FIELDS = frozenset({"name", "avatar_url", "password", "current_password"})
_FIELDS = _OWN_FIELDS | {"email", "role", "is_active", "department"}
# What the journal tells with both values; addresses and passwords outlive nobody there.
_TOLD = ("name", "role", "department", "avatar_url", "is_active")


@frozen
class NewUser:
    """Somebody to get an account; without a password they cannot sign in by one yet.

    Who is invited sets it by a link that is mailed to them, which also verifies their address.
    """

    email: str
    name: str
    role: Role = Role.USER
    password: str | None = field(default=None, repr=False)
    department: str | None = None
    invite: bool = False


class Accounts:
    """Opening, reading, changing and closing accounts, on behalf of a caller."""

    def __init__(
        self,
        db: Database,
        passwords: Passwords,
        guesses: Guesses,
        sessions: Sessions,
        proofs: Proofs,
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._guesses = guesses
        self._sessions = sessions
        self._proofs = proofs

    async def create(self, caller: Caller, new: NewUser) -> User:
        """Open an account for somebody else: invited, or the administrator vouches for them."""
        caller.require(Role.ADMIN, "open accounts for others")
        hashed = None
        if new.password is not None:
            if new.invite:
                raise Invalid.field("invite", "is for somebody who gets no password")
            hashed = await self._passwords.hash_new(new.password, new.email, new.name)
        async with self._db.transaction() as tx:
            user = await users.create(
                tx.conn,
                id=new_id(),
                email=new.email,
                name=new.name,
                role=new.role,
                department=new.department,
                password_hash=hashed,
                is_verified=not new.invite,
            )
            about = {"user_id": str(user.id), "name": user.name, "role": user.role}
            tx.record(Event.by(caller, "user.created", data=about))
            if new.invite:
                await self._proofs.mail_invitation(tx, caller, user)
        return user

    async def invite(self, caller: Caller, ref: str | UUID) -> User:
        """Mail somebody without a password another link by which they set one."""
        caller.require(Role.ADMIN, "invite people")
        user_id = _subject(caller, ref, "invite people")
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, user_id, lock=True)
            if not account.user.is_active:
                raise Conflict("This account is switched off: switch it on first.")
            if account.password_hash is not None:
                raise Conflict(
                    "This person has a password: they sign in by it, or ask for a new one.",
                    code="E_USER_HAS_PASSWORD",
                )
            await self._proofs.mail_invitation(tx, caller, account.user)
        return account.user

    async def list(
        self, caller: Caller, *, role: Role | None, q: str | None, window: Window
    ) -> Page[User]:
        """Return one page of the people whose name or address contains the words."""
        caller.require(Role.ADMIN, "list people")
        async with self._db.connection() as conn:
            page = await users.list_page(conn, role=role, q=q, window=window)
            total = await users.count(conn, role=role, q=q) if window.count else None
        return replace(page, total=total)

    async def assignees(self, window: Window) -> Page[Assignee]:
        """Return one page of the active agents, managers and administrators."""
        async with self._db.connection() as conn:
            page = await users.assignees_page(conn, window)
            total = await users.count_assignees(conn) if window.count else None
        return replace(page, total=total)

    async def get(self, caller: Caller, ref: str | UUID) -> User:
        """Return a person, to themselves and to administrators."""
        user_id = _subject(caller, ref, "see other people's accounts")
        async with self._db.connection() as conn:
            return await users.get(conn, user_id)

    async def find(self, email: str) -> User:
        """Return whoever has this address, in any case."""
        async with self._db.connection() as conn:
            account = await users.account_of(conn, email)
        if account is None:
            raise NotFound.of("user")
        return account.user

    async def update(self, caller: Caller, ref: str | UUID, wanted: Mapping[str, Any]) -> User:
        """Change some fields of a person; what is the same already changes nothing."""
        user_id = _subject(caller, ref, "change other people's accounts")
        _require_allowed(caller, wanted)
        columns = {name: wanted[name] for name in _FIELDS - {"password", "current_password"}
                   if name in wanted}  # fmt: skip
        proved = await self._new_hash(caller, user_id, wanted)
        async with self._db.transaction() as tx:
            if user_id != caller.user_id or columns.keys() & {"role", "is_active"}:
                await require_another_admin(tx, caller, user_id, columns)
            before = await users.account(tx.conn, user_id, lock=True)
            changed = {n: v for n, v in columns.items() if getattr(before.user, n) != v}
            if proved is not None:
                if before.password_hash != proved.old:
                    raise Conflict("The password was changed meanwhile.")
                changed["password_hash"] = proved.new
                if user_id != caller.user_id:
                    changed["is_verified"] = True  # handed over by who vouches for them
            if not changed:
                return before.user
            ends = proved is not None or changed.get("is_active") is False
            after = await users.update(tx.conn, user_id, changed, void_proofs=ends)
            if ends:
                keep = caller.session_id if after.is_active else None
                await self._sessions.end_all(tx, user_id, keep=keep)
            if ends or "email" in changed:
                await links.end_all(tx.conn, user_id)
            if proved is not None:
                await self._proofs.mail_password_changed(tx, after)
            if proved is not None:
                await self._guesses.lift(tx, caller, user_id, after.email)
            self._sessions.refresh_state(tx, user_id)
            tx.record(_updated(caller, before.user, after, changed))
        return after

    async def unlock(self, caller: Caller, ref: str | UUID) -> bool:
        """Let somebody sign in again after too many wrong passwords; False when they could."""
        caller.require(Role.ADMIN, "unlock accounts")
        user_id = _subject(caller, ref, "unlock accounts")
        async with self._db.transaction() as tx:
            user = await users.get(tx.conn, user_id)
            return await self._guesses.lift(tx, caller, user_id, user.email)

    async def delete(self, caller: Caller, ref: str | UUID) -> None:
        """Close an account for good: nobody signs in by it, and history keeps the name."""
        caller.require(Role.ADMIN, "delete accounts")
        user_id = _subject(caller, ref, "delete accounts")
        async with self._db.transaction() as tx:
            await require_another_admin(tx, caller, user_id, {"is_active": False})
            await users.hold_assigned(tx.conn, user_id)
            user = await users.hold(tx.conn, user_id)
            if user_id == caller.user_id:
                raise Conflict("Nobody can delete their own account.", code="E_USER_SELF")
            about = {"user_id": str(user.id), "name": user.name, "role": user.role}
            deleted = Event.by(caller, "user.deleted", data=about)
            because = replace(caller, cause_id=deleted.id)
            tx.record(deleted, *await users.unassign_everywhere(tx.conn, because, user_id))
            await users.delete(tx.conn, user_id)
            self._sessions.refresh_state(tx, user_id)

    async def _new_hash(
        self, caller: Caller, user_id: UUID, wanted: Mapping[str, Any]
    ) -> "_NewHash | None":
        """Hash the wanted password, outside of any transaction, once the old one was proved."""
        password, current = wanted.get("password"), wanted.get("current_password")
        if password is None:
            if current is not None:
                raise Invalid.field("current_password", "is only needed to change the password")
            return None
        async with self._db.connection() as conn:
            account = await users.account(conn, user_id)
        if caller.user_id == user_id:
            if current is None:
                raise Invalid.field("current_password", "is required to change the password")
            async with self._guesses.guessing(of_change(user_id)) as guess:
                if not await self._passwords.verify(current, account.password_hash):
                    raise Invalid.field("current_password", "is not the current password")
                await guess.right()
        context = (account.user.email, account.user.name, wanted.get("name", ""))
        return _NewHash(account.password_hash, await self._passwords.hash_new(password, *context))


@frozen
class _NewHash:
    """What to store, and what must still be stored until then."""

    old: str | None = field(repr=False)
    new: str = field(repr=False)


def _subject(caller: Caller, ref: str | UUID, doing: str) -> UUID:
    """Return whom a path speaks of; to others than administrators only they themselves exist."""
    try:
        user_id = ref if isinstance(ref, UUID) else UUID(ref)
    except ValueError:
        user_id = None
    if user_id is None or user_id != caller.user_id:
        caller.require(Role.ADMIN, doing)
    if user_id is None:
        raise NotFound.of("user")
    return user_id


def _require_allowed(caller: Caller, wanted: Mapping[str, Any]) -> None:
    for name in wanted:
        if name not in _FIELDS:
            raise Invalid.field(name, "is not known here")
        if name == "password" and caller.grant is not None:
            raise SessionRequired("An API token changes no passwords: sign in.")
        if name not in _OWN_FIELDS and not caller.has(Role.ADMIN):
            raise Forbidden(f"Only administrators may set {name}.", details={"field": name})


async def require_another_admin(
    tx: Transaction, caller: Caller, user_id: UUID, wanted: Mapping[str, Any]
) -> None:
    """Hold all administrators, and raise Conflict if this change takes the last one away."""
    admins = await users.hold_admins(tx.conn)
    if caller.user_id is not None and caller.user_id not in admins:
        # Demoted or switched off a moment ago, by somebody who was faster.
        raise Forbidden("Only administrators may do this.")
    stays = wanted.get("role", Role.ADMIN) is Role.ADMIN and wanted.get("is_active", True)
    if not stays and admins == {user_id}:
        raise Conflict(
            "This is the last active administrator: make somebody else one first.",
            code="E_USER_LAST_ADMIN",
        )


def _updated(caller: Caller, before: User, after: User, changed: Mapping[str, Any]) -> Event:
    changes = tuple(
        Change(name, getattr(before, name), getattr(after, name))
        for name in _TOLD
        if name in changed
    )
    fields = sorted("password" if name == "password_hash" else name for name in changed)
    about = {"user_id": str(after.id), "fields": fields}
    return Event.by(caller, "user.updated", changes=changes, data=about)
