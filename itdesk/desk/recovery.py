"""Passwords set by whoever reads the account's mailbox: forgotten ones, and first ones.

Whether an address has an account, nobody learns by asking for a link: that is a job's work. A
password that is set this way ends every session and every other link.
"""

from itdesk.desk.guesses import Guesses
from itdesk.desk.jobs import Job
from itdesk.desk.passwords import Passwords
from itdesk.desk.proofs import ABREAST, Proofs, as_caller, at_some_moment, hash_of_link, not_valid
from itdesk.desk.sessions import Sessions
from itdesk.desk.verification import MailTo
from itdesk.hookspecs import JobType
from itdesk.model import Event
from itdesk.runtime.clock import Clock
from itdesk.store import proofs as store
from itdesk.store import users
from itdesk.store.db import Database

FORGOT = "auth.forgot"


class Recovery:
    """Mails links that set passwords, and takes them."""

    def __init__(
        self,
        db: Database,
        passwords: Passwords,
        guesses: Guesses,
        sessions: Sessions,
        proofs: Proofs,
        clock: Clock,
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._guesses = guesses
        self._sessions = sessions
        self._proofs = proofs
        self._clock = clock

    async def forgot(self, email: str) -> None:
        """Mail a link that sets a new password, if the address has an account."""
        async with self._db.transaction() as tx:
            tx.enqueue(FORGOT, {"email": email})

    async def reset(self, token: str, password: str) -> None:
        """Set the password of whom the link was mailed to; every session of theirs ends."""
        digest = hash_of_link(token)
        async with self._db.connection() as conn:
            owner = await store.reset_owner(conn, digest)
            if owner is None:
                raise not_valid()
            user = await users.get(conn, owner)
        hashed = await self._passwords.hash_new(
            password, user.email, user.name, path="new_password"
        )
        async with self._db.transaction() as tx:
            account = await users.account(tx.conn, owner, lock=True)
            if not account.user.is_active or not await store.use_reset(tx.conn, digest):
                raise not_valid()
            # The link came by mail: whoever has it reads the mailbox.
            fields = {"password_hash": hashed, "is_verified": True}
            after = await users.update(tx.conn, owner, fields, void_proofs=True)
            await store.end_all(tx.conn, owner)
            await self._sessions.end_all(tx, owner)
            await self._guesses.lift(tx, as_caller(after), owner, after.email)
            about = {"user_id": str(owner)}
            tx.record(Event.by(as_caller(after), "auth.password_reset", data=about))
            if account.user.is_verified:
                await self._proofs.mail_password_changed(tx, after)
            else:
                await self._proofs.mail_welcome(tx, after)

    def jobs(self) -> tuple[JobType, ...]:
        """Return the kinds of jobs that mail links."""
        return (JobType(name=FORGOT, handle=self._forgot, concurrency=ABREAST, outbound=False),)

    async def _forgot(self, job: Job) -> None:
        email = job.read(MailTo).email
        await at_some_moment(self._clock)
        async with job.transaction() as tx:
            account = await users.account_of(tx.conn, email, lock=True)
            if account is None or not account.user.is_active:
                return
            if await self._proofs.may_mail(tx, account.user):
                await self._proofs.mail_reset(tx, account.user)
