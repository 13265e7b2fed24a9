"""One attempt at a job: what its handler is given, and how its effects and its end are one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from itdesk.hookspecs import GiveUp
from itdesk.runtime import failpoints
from itdesk.store import jobs
from itdesk.store.db import Database, Transaction
from itdesk.store.jobs import Held

M = TypeVar("M", bound=BaseModel)
Closing = Callable[[Transaction], Awaitable[None]]


class LostClaim(Exception):
    """Another worker has the job now: stop, and write nothing."""


class Job:
    """One attempt at a job, as its handler sees it."""

    def __init__(self, db: Database, held: Held, args: Mapping[str, Any]) -> None:
        self.id = held.id
        self.type = held.type
        self.attempt = held.attempts
        self.event_id = held.event_id
        self.args = args
        self.finished = False
        self.closing: Closing | None = None
        self._db = db
        self._held = held

    @property
    def key(self) -> str:
        """Return what remote systems may tell repeated attempts by: the same at each."""
        return str(self.id)

    def read(self, model: type[M]) -> M:
        """Return the arguments as a pydantic model; GiveUp when they are none."""
        try:
            return model.model_validate(self.args)
        except ValidationError as exc:
            wrong = ", ".join(".".join(map(str, e["loc"])) or "all" for e in exc.errors())
            raise GiveUp(f"its arguments cannot be read: {wrong}") from exc

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Open the transaction in which the job takes effect and ends; LostClaim undoes both."""
        if self.finished:
            raise RuntimeError(f"the job {self.type} has ended already")
        async with self._db.transaction() as tx:
            yield tx
            if self.closing is not None:
                await self.closing(tx)
            failpoints.hit("before_mark")
            if not await jobs.finish(tx.conn, self._held):
                raise LostClaim
        self.finished = True

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[str]:
        """Surround the one request to a remote system; yields the key that it shall carry."""
        failpoints.hit("before_send")
        yield self.key
        failpoints.hit("after_send")
