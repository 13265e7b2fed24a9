"""How many requests each caller may send: so many of a class in a period, on all daemons together.

A period slides: of the one before, the part counts that a period ending now still covers. The
class of everyday requests is counted in memory and settled with the database in the background,
so that it costs no statement; the classes whose work is dear are counted in the database, exactly.
Without the database each daemon counts for itself.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from itdesk.config import Limits as LimitSettings
from itdesk.config import Rate
from itdesk.errors import DeskError, RateLimited
from itdesk.frozen import frozen
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.runtime.metrics import Metrics
from itdesk.store import limits as store
from itdesk.store.db import Database

# The classes that a route may name; "none" is never limited.
CLASSES: Final = frozenset({"default", "auth", "ai", "none"})
# Whose requests cost far more than a statement.
EXACT: Final = frozenset({"auth", "ai"})
REMEMBERED = 20_000
# The part of a limit that one daemon may use up before it tells the others at once.
UNTOLD = 20

Who = UUID | str

log = get_logger("limits")


@dataclass(slots=True)
class _Bucket:
    """One caller's requests: in this period by all, before it, and those not yet told."""

    subject: str
    number: int
    used: int
    before: int
    untold: int = 0


@frozen
class _Rule:
    """One class's limit, and how many of its requests may stay untold for a second."""

    name: str
    count: int
    seconds: int
    exact: bool
    untold: int

    def subject(self, who: Who) -> str:
        """Return the name of a caller's row; a limit with another period has other rows."""
        return f"{self.name}/{self.seconds}:{who}"

    def wait(self, used: int, before: int, part: float) -> float:
        """Return the seconds until one more fits, this far into a period; 0 when it fits now."""
        left = self.count - used - 1
        if left >= 0:
            # floor(before * (1 - part)) <= left
            return max(0.0, 1 - (left + 1) / before - part) * self.seconds if before > left else 0.0
        # All of it was used in this period: the next one begins with it as what came before.
        return (1 - part + max(0.0, 1 - self.count / used)) * self.seconds


class RateLimits:
    """Admits requests or refuses them; `configure` changes the limits while it works."""

    def __init__(
        self,
        db: Database,
        settings: LimitSettings,
        clock: Clock,
        metrics: Metrics,
        *,
        remembered: int = REMEMBERED,
    ) -> None:
        self._db = db
        self._clock = clock
        self._remembered = remembered
        self._buckets: OrderedDict[tuple[str, Who], _Bucket] = OrderedDict()
        self._untold: dict[str, tuple[_Bucket, int]] = {}
        # What was used in periods that are over, or by buckets that had to go.
        self._late: OrderedDict[str, store.Spent] = OrderedDict()
        self._over: OrderedDict[str, float] = OrderedDict()
        # Until the database says what time it is, ours is good enough.
        self._offset = clock.now().timestamp() - clock.monotonic()
        self._urgent = False
        self.wake: Callable[[], object] = _nobody
        self._refused = metrics.counter(
            "itdesk_rate_limited_total", "Requests refused by a rate limit.", ["limit"]
        )
        self._rules: Mapping[str, _Rule] = {}
        self.configure(settings)

    def configure(self, settings: LimitSettings) -> None:
        """Put other limits into effect; what was used so far counts on, unless periods change."""
        rates: dict[str, Rate] = {
            "default": settings.default, "auth": settings.auth, "ai": settings.ai,
        }  # fmt: skip
        self._rules = (
            {
                name: _Rule(
                    name,
                    rate.count,
                    rate.seconds,
                    exact=name in EXACT,
                    untold=max(1, rate.count // UNTOLD),
                )
                for name, rate in rates.items()
            }
            if settings.enabled
            else {}
        )
        self._buckets.clear()
        self._over.clear()
        for bucket, seconds in self._untold.values():
            self._defer(bucket, seconds)
        self._untold.clear()

    def admits(self, limit: str, who: Who) -> bool:
        """Count a request of a caller who is remembered; False when it takes `admit` to tell.

        Raises RateLimited. This is all that most requests meet: it neither waits nor asks.
        """
        rule = self._rules.get(limit)
        if rule is None:
            return True
        bucket = self._buckets.get((limit, who))
        if bucket is None:
            return False
        if not bucket.untold:
            # Once a second is often enough to be known as busy.
            self._buckets.move_to_end((limit, who))
        self._count(rule, bucket)
        return True

    async def admit(self, limit: str, who: Who) -> None:
        """Count a request of this class, or raise RateLimited."""
        rule = self._rules.get(limit)
        if rule is None:
            return
        if rule.exact:
            await self._take(rule, who)
            return
        bucket = self._buckets.get((limit, who))
        if bucket is None:
            bucket = await self._recall(rule, who)
        self._buckets.move_to_end((limit, who))
        self._count(rule, bucket)

    async def settle(self) -> int:
        """Tell the database what was used, and learn what was used elsewhere; return of how many.

        What cannot be told now is told next time.
        """
        self._urgent = False
        late, self._late = self._late, OrderedDict()
        untold, self._untold = self._untold, {}
        told = {
            subject: store.Spent(subject, seconds, bucket.number, bucket.untold)
            for subject, (bucket, seconds) in untold.items()
        }
        for bucket, _ in untold.values():
            bucket.used, bucket.untold = bucket.used + bucket.untold, 0
        try:
            async with self._db.connection() as conn:
                if late:
                    await store.add(conn, list(late.values()))
                    late.clear()
                counts = await store.add(conn, list(told.values())) if told else []
        except BaseException:
            for spent in (*late.values(), *told.values()):
                self._keep(spent)
            raise
        for count in counts:
            self._learn(untold[count.subject][0], count)
        return len(told)

    # --- classes that are counted in memory ---

    def _count(self, rule: _Rule, bucket: _Bucket) -> None:
        part = (self._clock.monotonic() + self._offset) / rule.seconds
        number = int(part)
        if number > bucket.number:
            self._turn(rule, bucket, number)
        used = bucket.used + bucket.untold
        before = int(bucket.before * (1 - part + number)) if bucket.before else 0
        if used + before >= rule.count:
            self._refuse(rule, rule.wait(used, bucket.before, part - number))
        if not bucket.untold:
            self._untold[bucket.subject] = bucket, rule.seconds
        bucket.untold += 1
        if bucket.untold >= rule.untold and not self._urgent:
            self._urgent = True
            self.wake()

    def _turn(self, rule: _Rule, bucket: _Bucket, number: int) -> None:
        """Begin a period with what was used in the one before it."""
        if bucket.untold:
            self._defer(bucket, rule.seconds)
            del self._untold[bucket.subject]
        used = bucket.used + bucket.untold
        bucket.before = used if number == bucket.number + 1 else 0
        bucket.number, bucket.used, bucket.untold = number, 0, 0

    async def _recall(self, rule: _Rule, who: Who) -> _Bucket:
        """Return a caller's bucket, with what the database knows of it."""
        key, subject = (rule.name, who), rule.subject(who)
        bucket = _Bucket(subject, 0, 0, 0)
        try:
            async with self._db.connection() as conn:
                count = await store.read(conn, subject)
        except DeskError:
            log.debug("limits are counted here only", limit=rule.name)
        else:
            bucket.number, bucket.used, bucket.before = count.number, count.used, count.before
            self._offset = count.at - self._clock.monotonic()
        known = self._buckets.get(key)
        if known is not None:
            return known  # several asked at once
        late = self._late.get(subject)
        if late is not None and late.number == bucket.number:
            bucket.used += late.used
        self._buckets[key] = bucket
        while len(self._buckets) > self._remembered:
            self._drop(*self._buckets.popitem(last=False))
        return bucket

    def _drop(self, key: tuple[str, Who], bucket: _Bucket) -> None:
        if bucket.untold and bucket.subject in self._untold:
            self._defer(*self._untold.pop(bucket.subject))

    def _defer(self, bucket: _Bucket, seconds: int) -> None:
        self._keep(store.Spent(bucket.subject, seconds, bucket.number, bucket.untold))

    def _keep(self, spent: store.Spent) -> None:
        """Remember what to tell later; of two periods the newer one matters."""
        known = self._late.pop(spent.subject, None)
        if known is not None and known.number == spent.number:
            used = known.used + spent.used
            spent = store.Spent(spent.subject, spent.seconds, spent.number, used)
        elif known is not None and known.number > spent.number:
            spent = known
        self._late[spent.subject] = spent
        while len(self._late) > self._remembered:
            self._late.popitem(last=False)

    def _learn(self, bucket: _Bucket, count: store.Count) -> None:
        if count.number == bucket.number:
            bucket.used, bucket.before = count.used, count.before
        elif count.number == bucket.number - 1:
            bucket.before = count.used
        self._offset = count.at - self._clock.monotonic()

    # --- classes that are counted in the database ---

    async def _take(self, rule: _Rule, who: Who) -> None:
        subject, now = rule.subject(who), self._clock.monotonic()
        until = self._over.get(subject)
        if until is not None and until > now:
            # Nothing but time changes that: the database need not be asked again.
            self._refuse(rule, until - now)
        async with self._db.connection() as conn:
            count = await store.take(conn, subject, limit=rule.count, seconds=rule.seconds)
        if count.admitted:
            return
        part = count.at / rule.seconds - count.number
        wait = rule.wait(count.used, count.before, part)
        self._over[subject] = self._clock.monotonic() + wait
        self._over.move_to_end(subject)
        while len(self._over) > self._remembered:
            self._over.popitem(last=False)
        self._refuse(rule, wait)

    def _refuse(self, rule: _Rule, wait: float) -> None:
        self._refused.labels(rule.name).inc()
        raise too_many(wait, details={"limit": f"{rule.count} in {rule.seconds} s"})


def too_many(wait: float, *, details: Mapping[str, str] | None = None) -> RateLimited:
    """Return the error that asks for patience, in whole seconds that are enough."""
    seconds = max(1, math.floor(wait) + 1)
    words = "a second" if seconds == 1 else f"{seconds} seconds"
    return RateLimited(
        f"Too many requests. Try again in {words}.", details=details, retry_after=seconds
    )


def _nobody() -> None:
    pass
