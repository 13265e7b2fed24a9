"""Whether a code is right: who has a second factor, and what it answers.

Each guess is counted with the factor held, in the transaction of whoever asks, so that guesses at
many doors at once are as slow as at one. Recovery codes cannot be guessed and are never blocked.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from itdesk.desk import totp
from itdesk.errors import RateLimited
from itdesk.model import Caller, Event, Source, User
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.store import factors
from itdesk.store.db import Transaction

# After so many wrong codes in a row a pause, of a minute first, twice as long each time.
PATIENCE = 10
LONGEST_PAUSE = timedelta(days=1)

log = get_logger("factors")


class Factors:
    """The second factors of all people."""

    def __init__(self, key: bytes, clock: Clock) -> None:
        self._seal = totp.Seal(key)
        self._clock = clock

    async def are_asked_of(self, conn: Any, user_id: UUID) -> bool:
        """Return whether this person answers a challenge when signing in."""
        return await factors.is_confirmed(conn, user_id)

    async def propose(self, tx: Transaction, user_id: UUID) -> bytes | None:
        """Return a new secret to be confirmed, or None when there is a confirmed one."""
        secret = totp.new_secret()
        sealed = self._seal.close(user_id, secret)
        stored = await factors.propose(tx.conn, user_id, sealed, self._clock.now())
        return secret if stored else None

    async def confirm(self, tx: Transaction, user: User, code: str) -> bool:
        """Ask for the proposed factor from now on if the code is right; commit either way."""
        held = await factors.hold(tx.conn, user.id)
        if held is None or held.confirmed_at is not None:
            return False
        if not await self._matches(tx, user, held, code):
            return False
        await factors.confirm(tx.conn, user.id, self._clock.now())
        return True

    async def accepts(self, tx: Transaction, user: User, code: str) -> bool:
        """Tell whether a code or recovery code is right, and use it up; commit either way."""
        held = await factors.hold(tx.conn, user.id)
        if held is None or held.confirmed_at is None:
            return False
        code = code.replace(" ", "")
        if totp.is_code(code):
            return await self._matches(tx, user, held, code)
        if not await factors.use_code(tx.conn, user.id, totp.recovery_hash(code)):
            return False
        themselves = Caller(user.id, user.name, user.role, Source.API, user.email)
        tx.record(Event.by(themselves, "auth.recovery_code_used", data={"user_id": str(user.id)}))
        return True

    async def new_recovery_codes(self, tx: Transaction, user_id: UUID) -> list[str]:
        """Return fresh recovery codes; those before are void."""
        codes = totp.new_recovery_codes()
        await factors.replace_codes(tx.conn, user_id, [totp.recovery_hash(code) for code in codes])
        return codes

    async def _matches(self, tx: Transaction, user: User, held: factors.Factor, code: str) -> bool:
        now = self._clock.now()
        if held.blocked_until is not None and now < held.blocked_until:
            left = int((held.blocked_until - now).total_seconds()) + 1
            raise RateLimited(
                "Too many wrong codes: wait, or use a recovery code.", retry_after=left
            )
        secret = self._seal.open(user.id, held.secret)
        if secret is None:
            log.error(
                "a second factor cannot be read: the keys are not those that sealed it; the"
                " person needs a recovery code, or itdesk user reset-totp",
                user=user.id,
            )
            return False
        step = totp.matching_step(secret, code, now=now.timestamp(), after=held.last_step)
        if step is not None:
            await factors.note_success(tx.conn, user.id, step)
            return True
        await self._note_failure(tx, user, replace(held, failures=held.failures + 1), now)
        return False

    async def _note_failure(
        self, tx: Transaction, user: User, held: factors.Factor, now: datetime
    ) -> None:
        blocked_until = None
        if held.failures % PATIENCE == 0:
            doublings = min(held.failures // PATIENCE - 1, 20)
            blocked_until = now + min(timedelta(minutes=2**doublings), LONGEST_PAUSE)
            themselves = Caller(user.id, user.name, user.role, Source.API, user.email)
            about = {"user_id": str(user.id), "failures": held.failures}
            tx.record(Event.by(themselves, "auth.second_factor_blocked", data=about))
        await factors.note_failure(tx.conn, user.id, blocked_until)
