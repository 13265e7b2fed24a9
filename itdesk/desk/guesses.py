"""How often a password may be guessed wrong: freely at first, then ever more slowly, then not.

A guess is counted before it is looked at, so that many at once get no more than one after the
other, and for addresses without an account as for others. Only guessing is slowed down: sessions
that live go on, and whoever has one may change the password, which is counted by itself.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

from itdesk.config import Limits
from itdesk.desk.limits import too_many
from itdesk.errors import RateLimited, Unavailable
from itdesk.frozen import frozen
from itdesk.model import Caller, Event
from itdesk.runtime.log import get_logger
from itdesk.store import guesses as store
from itdesk.store.db import Database, Transaction

log = get_logger("guesses")


@frozen
class Subject:
    """What is guessed, of whom; only a digest of it is kept."""

    digest: bytes

    @classmethod
    def of(cls, purpose: str, whose: object) -> "Subject":
        """Return the subject of guessing one kind of secret of somebody."""
        text = f"{purpose}:{whose}".encode("utf-8", "surrogatepass")
        return cls(hashlib.sha256(text).digest())


def of_account(email: str) -> Subject:
    """Return the subject of signing in by this address, whether it has an account or not."""
    return Subject.of("sign-in", email.strip().lower())


def of_change(user_id: UUID) -> Subject:
    """Return the subject of proving one's current password while being signed in."""
    return Subject.of("change", user_id)


class Guesses:
    """Counts wrong guesses in the database, for all daemons; `settings` may be replaced."""

    def __init__(self, db: Database, settings: Limits) -> None:
        self._db = db
        self.settings = settings

    @asynccontextmanager
    async def guessing(self, subject: Subject) -> AsyncIterator["Guess"]:
        """Give leave for one guess, or raise RateLimited; it counts unless `right` is called.

        What could not be compared at all does not count.
        """
        settings = self.settings
        if not settings.enabled:
            yield Guess(None, subject)
            return
        async with self._db.connection() as conn:
            claimed = await store.claim(
                conn,
                subject.digest,
                free=settings.sign_in_failures,
                most=settings.sign_in_failures_most,
                wait=settings.sign_in_wait_seconds,
            )
        if not claimed.admitted:
            raise _patience(claimed, settings)
        try:
            yield Guess(self._db, subject, claimed.failures)
        except Unavailable:
            async with self._db.connection() as conn:
                await store.give_back(conn, subject.digest, claimed.failures)
            raise

    def slows_after(self, failures: int) -> bool:
        """Tell whether this many wrong guesses are where waiting begins, or the end of it."""
        settings = self.settings
        return failures in (settings.sign_in_failures, settings.sign_in_failures_most)

    async def lift(self, tx: Transaction, caller: Caller, user_id: UUID, email: str) -> bool:
        """Let an account be signed in to again at once; False when nothing was in the way."""
        failures = await store.forget(tx.conn, of_account(email).digest)
        failures = max(failures, await store.forget(tx.conn, of_change(user_id).digest))
        locked = failures >= self.settings.sign_in_failures
        if locked:
            about = {"user_id": str(user_id), "failures": failures}
            tx.record(Event.by(caller, "auth.unlocked", data=about))
        return locked


@dataclass(slots=True)
class Guess:
    """One guess that there was leave for."""

    db: Database | None
    subject: Subject
    failures: int = 0

    async def right(self) -> None:
        """Forget this guess and those before it, in the caller's transaction if there is one."""
        if self.db is not None:
            async with self.db.connection() as conn:
                await store.forget(conn, self.subject.digest)


def _patience(claimed: store.Guess, settings: Limits) -> RateLimited:
    refusal = too_many(claimed.seconds)
    if claimed.failures >= settings.sign_in_failures_most:
        refusal.message = (
            "There were too many wrong passwords in a row. Reset the password, or ask an"
            " administrator to unlock the account."
        )
    return refusal
