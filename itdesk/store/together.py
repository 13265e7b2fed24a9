"""Questions that are asked at the same moment, answered by one statement.

While a statement is under way, whoever asks next waits, and the first of them then asks for all.
No statement begins before the questions in it were asked: an answer is as fresh as one's own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from itdesk.store.db import Database

MOST: Final = 100

Q = TypeVar("Q", bound=Hashable)
A = TypeVar("A")
Read = Callable[[Any, Sequence[Q]], Awaitable[Mapping[Q, A]]]


class Together(Generic[Q, A]):
    """Asks for many at once what each asks for alone; `read` answers as many as it can."""

    def __init__(self, db: Database, read: "Read[Q, A]") -> None:
        self._db = db
        self._read = read
        self._asking = False
        self._waiting: list[tuple[Q, asyncio.Future[Mapping[Q, A] | None]]] = []

    async def ask(self, question: Q) -> A | None:
        """Return the answer, None if there is none; raises what `read` raises."""
        if self._db.in_transaction:
            # It sees what nobody else may see yet.
            async with self._db.connection() as conn:
                return (await self._read(conn, [question])).get(question)
        if self._asking:
            answers = await self._turn(question)
            if answers is not None:
                return answers.get(question)
        self._asking = True
        return (await self._ask_for_all(question)).get(question)

    async def _turn(self, question: Q) -> Mapping[Q, A] | None:
        """Wait for the answers to a statement that holds this question; None: ask yourself."""
        waiter: asyncio.Future[Mapping[Q, A] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            # It may have been told in the same moment.
            told = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if told and waiter.result() is None:
                self._pass_on()
            raise

    async def _ask_for_all(self, question: Q) -> Mapping[Q, A]:
        others, self._waiting = self._waiting[: MOST - 1], self._waiting[MOST - 1 :]
        asked = list({question: None, **{other: None for other, _ in others}})
        try:
            async with self._db.connection() as conn:
                answers = await self._read(conn, asked)
        except Exception as exc:
            for _, waiter in others:
                if not waiter.done():
                    waiter.set_exception(exc)
            raise
        except BaseException:
            # Only this one gave up.
            self._waiting[:0] = others
            raise
        else:
            for _, waiter in others:
                if not waiter.done():
                    waiter.set_result(answers)
            return answers
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Let the one who has waited longest ask next."""
        while self._waiting:
            _, waiter = self._waiting.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                return
        self._asking = False
