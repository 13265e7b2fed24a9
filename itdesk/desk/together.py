"""Questions that are asked at the same moment, answered by one statement.

While a statement is under way, whoever asks next in its lane waits, and the first of them then
asks for all. No statement begins before the questions in it were asked: an answer is as fresh as
one's own. Lanes do not wait for each other.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from itdesk.store.db import Database

MOST: Final = 100

L = TypeVar("L", bound=Hashable)
Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A")
Read = Callable[[Any, L, Sequence[Q]], Awaitable[Mapping[Q, A]]]


class Together(Generic[L, Q, A]):
    """Asks for many at once what each asks for alone.

    `read` answers the questions of a lane, as many as it can, with a connection. Answers are
    shared: they are for reading only.
    """

    def __init__(self, db: Database, read: "Read[L, Q, A]") -> None:
        self._db = db
        self._read = read
        # Who waits for the next statement of a lane; one without a statement is not there.
        self._lanes: dict[L, list[tuple[Q, asyncio.Future[Mapping[Q, A] | None]]]] = {}

    async def ask(self, lane: L, question: Q) -> A | None:
        """Return the answer, None if there is none; raises what `read` raises."""
        if self._db.in_transaction:
            # It sees what nobody else may see yet.
            async with self._db.connection() as conn:
                return (await self._read(conn, lane, [question])).get(question)
        if lane in self._lanes:
            answers = await self._turn(lane, question)
            if answers is not None:
                return answers.get(question)
        else:
            self._lanes[lane] = []
        return (await self._ask_for_all(lane, question)).get(question)

    async def _turn(self, lane: L, question: Q) -> Mapping[Q, A] | None:
        """Wait for the answers to a statement that holds this question; None: ask yourself."""
        waiter: asyncio.Future[Mapping[Q, A] | None] = asyncio.get_running_loop().create_future()
        self._lanes[lane].append((question, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been told in the same moment.
            told = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if told and waiter.result() is None:
                self._pass_on(lane)
            raise

    async def _ask_for_all(self, lane: L, question: Q) -> Mapping[Q, A]:
        waiting = self._lanes[lane]
        others, waiting[:] = waiting[: MOST - 1], waiting[MOST - 1 :]
        asked = list({question: None, **{other: None for other, _ in others}})
        try:
            async with self._db.connection() as conn:
                answers = await self._read(conn, lane, asked)
        except Exception as exc:
            # All who wait are told, for they would fail one after the other.
            for _, waiter in (*others, *waiting):
                if not waiter.done():
                    waiter.set_exception(exc)
            raise
        except BaseException:
            # Only this one gave up.
            waiting[:0] = others
            raise
        else:
            for _, waiter in others:
                if not waiter.done():
                    waiter.set_result(answers)
            return answers
        finally:
            self._pass_on(lane)

    def _pass_on(self, lane: L) -> None:
        """Let the one who has waited longest ask next."""
        waiting = self._lanes[lane]
        while waiting:
            _, waiter = waiting.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return
        del self._lanes[lane]
