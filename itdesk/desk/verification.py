"""That an address is its owner's: proved by the link or the code that was mailed there.

What an address is worth (unknown, verified, switched off) nobody learns by asking: a new mail is
a job's work, whatever there is to do, and a refused code takes as long for every address.
"""

import asyncio
from dataclasses import replace
from uuid import UUID

from pydantic import BaseModel

from itdesk.desk.jobs import Job
from itdesk.desk.proofs import (
    ABREAST,
    Proofs,
    as_caller,
    at_some_moment,
    hash_of_link,
    not_valid,
    require_code,
)
from itdesk.desk.sessions import Sessions, SignedIn
from itdesk.frozen import frozen
from itdesk.hookspecs import JobType
from itdesk.model import Event, User
from itdesk.runtime.clock import Clock
from itdesk.store import proofs as store
from itdesk.store import users
from itdesk.store.db import Database, Transaction

RESEND = "auth.resend"
# Longer than looking any code up takes.
REFUSAL_SECONDS = 0.05


@frozen
class Visit:
    """Where somebody comes from, and as whom their browser is signed in already, if at all."""

    address: str = ""
    user_agent: str = ""
    user_id: UUID | None = None


@frozen
class Verified:
    """Whose address was verified, and their session where one could be opened."""

    user: User
    signed_in: SignedIn | None


class MailTo(BaseModel):
    """What a job is told that mails to an address, should it have an account."""

    email: str


class Verification:
    """Sends and takes the proofs that verify addresses."""

    def __init__(self, db: Database, sessions: Sessions, proofs: Proofs, clock: Clock) -> None:
        self._db = db
        self._sessions = sessions
        self._proofs = proofs
        self._clock = clock

    async def verify(self, token: str, visit: Visit) -> Verified:
        """Verify the address that a link was mailed to, and sign its owner in."""
        async with self._db.transaction() as tx:
            account = await self._take(tx, token)
            return await self._enter(tx, account, visit)

    async def confirm(self, token: str) -> User:
        """Verify the address that a link was mailed to, and sign nobody in."""
        async with self._db.transaction() as tx:
            return (await self._take(tx, token)).user

    async def verify_code(self, email: str, code: str, visit: Visit) -> Verified:
        """Verify an address by the code that was mailed there, and sign its owner in."""
        require_code(code)
        # Begun before the work: what is slept for afterwards, timers round, and that can be told.
        over = asyncio.Event()
        pause = asyncio.get_running_loop().call_later(REFUSAL_SECONDS, over.set)
        try:
            async with self._db.transaction() as tx:
                account = await users.account_of(tx.conn, email, lock=True)
                if account is not None and account.user.is_active:
                    digest = self._proofs.hash_of_code(account.user.id, code)
                    if await store.try_code(tx.conn, account.user.id, digest):
                        account = await self._confirm(tx, account)
                        return await self._enter(tx, account, visit)
            await over.wait()
        finally:
            pause.cancel()
        # Only here: raised inside, it would undo the count of wrong tries.
        raise not_valid()

    async def resend(self, email: str) -> None:
        """Mail a new link and code, if the address has an account that waits for them."""
        async with self._db.transaction() as tx:
            tx.enqueue(RESEND, {"email": email})

    def jobs(self) -> tuple[JobType, ...]:
        """Return the kinds of jobs that mail links."""
        return (JobType(name=RESEND, handle=self._resend, concurrency=ABREAST, outbound=False),)

    async def _resend(self, job: Job) -> None:
        email = job.read(MailTo).email
        await at_some_moment(self._clock)
        async with job.transaction() as tx:
            account = await users.account_of(tx.conn, email, lock=True)
            if account is None or not account.user.is_active or account.user.is_verified:
                return
            if await self._proofs.may_mail(tx, account.user):
                await self._proofs.mail_verification(tx, account.user)

    async def _take(self, tx: Transaction, token: str) -> users.Account:
        digest = hash_of_link(token)
        owner = await store.verification_owner(tx.conn, digest)
        if owner is None:
            raise not_valid()
        # The person before their links, as everybody holds them.
        account = await users.account(tx.conn, owner, lock=True)
        if not account.user.is_active or not await store.use_verification(tx.conn, digest):
            raise not_valid()
        return await self._confirm(tx, account)

    async def _confirm(self, tx: Transaction, account: users.Account) -> users.Account:
        if account.user.is_verified:
            return account
        user = await users.update(tx.conn, account.user.id, {"is_verified": True})
        tx.record(Event.by(as_caller(user), "user.verified", data={"user_id": str(user.id)}))
        await self._proofs.mail_welcome(tx, user)
        return replace(account, user=user)

    async def _enter(self, tx: Transaction, account: users.Account, visit: Visit) -> Verified:
        if visit.user_id not in (None, account.user.id):
            # The browser is somebody else's now: their session stays.
            return Verified(account.user, None)
        entered = await self._sessions.open(
            tx, account, address=visit.address, user_agent=visit.user_agent
        )
        # Who has a second factor signs in with it; the link proves the address alone.
        return Verified(account.user, entered if isinstance(entered, SignedIn) else None)
