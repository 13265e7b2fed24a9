"""The database: a fair pool of bounded connections, and the one way to change anything.

Hides how connections are kept and how PostgreSQL's failures are told apart: an outage is
`Unavailable`, a lost race is `Contention`, and neither ever lasts longer than its deadline.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from itdesk.errors import Unavailable
from itdesk.frozen import frozen
from itdesk.model import Event
from itdesk.runtime import failpoints
from itdesk.runtime.log import get_logger
from itdesk.store import jobs as queue
from itdesk.store.failures import outage, translated
from itdesk.store.jobs import NewJob

Connection = asyncpg.Connection
Listener = Callable[[Sequence[Event]], None]
Write = Callable[[Any, Sequence[Event], Sequence[NewJob]], Awaitable[int]]

# A server that listens hangs up within milliseconds of being told.
HANG_UP_SECONDS = 0.5
# Then it is asked again: the end of a job waits to be written.
LEFT_ALONE_SECONDS = 4.0

log = get_logger("database")


@frozen
class Limits:
    """How many connections, and how many seconds each step may take."""

    connections: int = 8
    connect_seconds: float = 2.0
    acquire_seconds: float = 1.0
    command_seconds: float = 3.0


@dataclass(slots=True)
class Transaction:
    """A change in the making: its connection, its events, and what to do once it is durable."""

    conn: Any
    events: list[Event] = field(default_factory=list)
    jobs: list[NewJob] = field(default_factory=list)
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def record(self, *events: Event) -> None:
        """Write these into the journal when the transaction commits, in this order."""
        self.events.extend(events)

    def forget(self, ticket_id: UUID) -> None:
        """Write nothing of what was recorded about a ticket: its history ends with it."""
        self.events[:] = [event for event in self.events if event.ticket_id != ticket_id]

    def enqueue(
        self,
        type: str,
        args: Mapping[str, Any],
        *,
        lane: str | None = None,
        dedupe: str | None = None,
        seconds: float = 0.0,
        event_id: UUID | None = None,
    ) -> UUID:
        """Queue a job when the transaction commits, to be done after so many seconds.

        It is left out when a job with the same dedupe key is unfinished then.
        """
        job = NewJob.of(
            type, args, lane=lane, dedupe_key=dedupe, seconds=seconds, event_id=event_id
        )
        self.jobs.append(job)
        return job.id

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call this once the change is durable; it must neither wait nor raise."""
        self.callbacks.append(callback)


_ambient: ContextVar[Transaction | None] = ContextVar("itdesk_transaction", default=None)


class Database:
    """PostgreSQL as the desk sees it; safe to use from any number of tasks."""

    def __init__(
        self, url: str, limits: Limits | None = None, *, settings: Mapping[str, str] | None = None
    ) -> None:
        self.url = url
        self.limits = limits or Limits()
        self.listeners: list[Listener] = []
        self.jobs_of: Callable[[Sequence[Event]], Sequence[NewJob]] = _no_jobs
        self.job_listeners: list[Callable[[], None]] = []
        self._idle: list[Any] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._open = 0
        self._closed = False
        self._ending = False
        self._silent_until = 0.0
        self._complained_at: float | None = None
        self._unsynced: Database | None = None
        self._settings: Mapping[str, str] = settings or {}

    def last_calls(self) -> None:
        """From now on leave a server that did not answer alone for a while: it holds up the end."""
        self._ending = True
        if self._unsynced is not None:
            self._unsynced.last_calls()

    async def close(self) -> None:
        """Close every idle connection; those in use are closed as they come back."""
        self._closed = True
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(outage("The database is being closed."))
        # Side by side: a server that does not answer shall hold up the end only once.
        async with asyncio.TaskGroup() as group:
            if self._unsynced is not None:
                group.create_task(self._unsynced.close())
            while self._idle:
                group.create_task(_close(self._idle.pop()))

    @property
    def in_use(self) -> int:
        """Return how many connections are lent out now."""
        return self._open - len(self._idle)

    @property
    def waiting(self) -> int:
        """Return how many tasks wait for a connection now."""
        return len(self._waiting)

    @property
    def in_transaction(self) -> bool:
        """Return whether the caller has a transaction open here."""
        return _ambient.get() is not None

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """Lend a connection for reading; inside a transaction it is the transaction's own."""
        ambient = _ambient.get()
        return _Loan(self) if ambient is None else nullcontext(ambient.conn)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open a transaction, or join the one that the caller already opened.

        What is recorded becomes journal rows of the same transaction, and what follows from it
        job rows; the listeners are told after the commit. Raises Contention when another
        transaction won a race.
        """
        ambient = _ambient.get()
        if ambient is not None:
            yield ambient
            return
        async with _Loan(self) as conn:
            await conn.execute("BEGIN")
            transaction = Transaction(conn)
            token = _ambient.set(transaction)
            try:
                yield transaction
                jobs = [*transaction.jobs, *self.jobs_of(transaction.events)]
                queued = 0
                if transaction.events or jobs:
                    queued = await queue.append(conn, transaction.events, jobs)
                failpoints.hit("before_commit")
                await conn.execute("COMMIT")
            except BaseException as exc:
                # A server that did not answer is not asked again: its connection is dropped,
                # which ends the transaction as well.
                if _is_settled(conn, exc):
                    await conn.execute("ROLLBACK")
                raise
            finally:
                _ambient.reset(token)
        failpoints.hit("after_commit")
        for callback in transaction.callbacks:
            callback()
        self._tell(transaction.events, queued)

    async def at_once(self, write: Write, *events: Event) -> None:
        """Make a change that is one statement together with its events and the jobs they lead to.

        It needs no transaction around it, and so waits for the server once. `write` runs the
        statement for a connection, events and jobs, and returns how many jobs it queued. Inside a
        transaction it is a part of that.
        """
        ambient = _ambient.get()
        if ambient is not None:
            await write(ambient.conn, (), ())
            ambient.record(*events)
            return
        async with _Loan(self) as conn:
            failpoints.hit("before_commit")
            queued = await write(conn, events, self.jobs_of(events))
        failpoints.hit("after_commit")
        self._tell(events, queued)

    def _tell(self, events: Sequence[Event], queued: int) -> None:
        """Tell who waits for it what was committed."""
        if events:
            for listener in self.listeners:
                listener(events)
        if queued:
            for wake in self.job_listeners:
                wake()

    @asynccontextmanager
    async def unsynced(self) -> AsyncIterator[Any]:
        """Lend the one connection whose statements, each a transaction, wait for no disk.

        What it writes may be lost with the server, but not if a later change survived: the log of
        PostgreSQL is written in order. It is for short locks that everybody waits for, as on the
        next number of a project: held until a disk has written, they would make it the pace.
        """
        if self._unsynced is None:
            limits = replace(self.limits, connections=1)
            self._unsynced = Database(self.url, limits, settings={"synchronous_commit": "off"})
        async with _Loan(self._unsynced) as conn:
            yield conn

    async def warm(self, count: int) -> None:
        """Open so many connections, so that the first requests need not wait for theirs."""
        async with AsyncExitStack() as stack:
            for _ in range(min(count, self.limits.connections)):
                await stack.enter_async_context(_Loan(self))

    async def ping(self) -> None:
        """Return when the database answers; raise Unavailable when it does not."""
        async with _Loan(self) as conn:
            await conn.fetchval("SELECT 1")

    def _complain(self, problem: str) -> None:
        """Log an outage once a second: under load each request meets it."""
        now = asyncio.get_running_loop().time()
        if self._complained_at is None or now >= self._complained_at + 1.0:
            self._complained_at = now
            log.warning("database unavailable", problem=problem)

    def _relieve(self) -> None:
        if self._complained_at is not None:
            self._complained_at = None
            log.info("database reached again")

    def _unanswered(self) -> None:
        """Take note that the server let a deadline pass; those who wait need not find out."""
        if not self._ending:
            return
        self._silent_until = asyncio.get_running_loop().time() + LEFT_ALONE_SECONDS
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_given_up())

    async def _acquire(self) -> Any:
        if self._ending and asyncio.get_running_loop().time() < self._silent_until:
            raise _given_up()
        while self._idle:
            conn = self._idle.pop()
            if not conn.is_closed():
                return conn
            self._open -= 1
        if self._open < self.limits.connections and not self._closed:
            return await self._connect()
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(self.limits.acquire_seconds, _give_up, waiter)
        try:
            conn = await waiter
        except BaseException:
            with suppress(ValueError):
                self._waiting.remove(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_over(waiter.result())
            raise
        finally:
            timer.cancel()
        return conn if conn is not None else await self._connect()

    async def _connect(self) -> Any:
        self._open += 1
        try:
            conn = await asyncpg.connect(
                self.url,
                timeout=self.limits.connect_seconds,
                command_timeout=self.limits.command_seconds,
                server_settings={
                    "application_name": "itdesk",
                    "jit": "off",
                    "idle_in_transaction_session_timeout": "60000",
                    **self._settings,
                },
            )
            try:
                async with asyncio.timeout(self.limits.connect_seconds):
                    await _prepare(conn)
                if logging.getLogger().isEnabledFor(logging.DEBUG):
                    conn.add_query_logger(_timed)
            except BaseException:
                conn.terminate()
                raise
        except BaseException as exc:
            if isinstance(exc, TimeoutError):
                self._unanswered()
            self._forget()
            raise
        return conn

    def _release(self, conn: Any, *, usable: bool) -> None:
        if usable and not self._closed:
            self._hand_over(conn)
        else:
            conn.terminate()
            self._forget()

    def _hand_over(self, conn: Any) -> None:
        """Give a connection to the oldest waiter, so that none starves, or keep it."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(conn)
                return
        if conn is None:
            return
        self._idle.append(conn)

    def _forget(self) -> None:
        """Count one connection less and let the oldest waiter open another."""
        self._open -= 1
        if self._open < self.limits.connections:
            self._hand_over(None)


def _give_up(waiter: "asyncio.Future[Any]") -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


def _given_up() -> Unavailable:
    return outage("The database does not answer, and this daemon is being stopped.")


def _no_jobs(events: Sequence[Event]) -> Sequence[NewJob]:
    return ()


async def _prepare(conn: Any) -> None:
    await conn.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda raw: orjson.loads(raw[1:]),
    )
    # asyncpg's own UUID class is a subclass, which orjson does not encode.
    await conn.set_type_codec(
        "uuid",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: value.bytes,
        decoder=lambda raw: UUID(bytes=bytes(raw)),
    )


def _timed(query: Any) -> None:
    """Log a statement with its time, and never its arguments: they are people's data."""
    failed = None if query.exception is None else type(query.exception).__name__
    statement = " ".join(query.query.split())
    log.debug("sql", statement=statement, seconds=round(query.elapsed, 6), failed=failed)


def _is_settled(conn: Any, exc: BaseException | None) -> bool:
    """Return whether no answer is owed on this connection."""
    return not conn.is_closed() and not isinstance(exc, (TimeoutError, asyncio.CancelledError))


def _is_usable(conn: Any, exc: BaseException | None = None) -> bool:
    return _is_settled(conn, exc) and not conn.is_in_transaction()


async def _close(conn: Any) -> None:
    try:
        await conn.close(timeout=HANG_UP_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        conn.terminate()


class _Loan:
    """A connection that is lent for a block, and what its failures mean to the caller.

    By hand, because every request takes one: the generators of contextlib cost twice as much.
    """

    __slots__ = ("_conn", "_db")

    def __init__(self, db: Database) -> None:
        self._db = db
        self._conn: Any = None

    async def __aenter__(self) -> Any:
        try:
            self._conn = await self._db._acquire()
        except BaseException as exc:
            self._raise(exc)
            raise
        return self._conn

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: object
    ) -> None:
        # The loan is returned whatever happens; one whose state is unknown (an answer is still
        # owed, or the transaction could not be ended) is never lent again.
        if isinstance(exc, TimeoutError):
            self._db._unanswered()
        self._db._release(self._conn, usable=_is_usable(self._conn, exc))
        if exc is None:
            self._db._relieve()
        else:
            self._raise(exc)

    def _raise(self, exc: BaseException) -> None:
        meant = translated(exc, self._db._complain)
        if meant is not None:
            raise meant from exc
