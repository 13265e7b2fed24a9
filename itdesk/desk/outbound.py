"""What was sent to a remote tracker and which of its things are ours: the memory of pushes.

Written before and after each request, so that whoever is killed in between finds out what
became of it instead of doing it twice.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

from itdesk.errors import Conflict
from itdesk.model import SYSTEM, Caller, Comment, Event, Ticket
from itdesk.remote import SHARED, RemoteIssue, Shadow
from itdesk.runtime import failpoints
from itdesk.store import backups, mirrors, pushes, tickets
from itdesk.store.db import Database
from itdesk.store.pushes import Agent, Candidate

from .merging import changed_since


class Outbound:
    """The memory of what was sent, for the plugins that send it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def shadow(self, ticket_id: UUID) -> Shadow:
        """Return what is known of the remote side of a ticket."""
        async with self._db.connection() as conn:
            return await pushes.shadow(conn, ticket_id)

    async def sending(
        self, ticket_id: UUID, sent: Mapping[str, str], *, meant: Sequence[str] = ()
    ) -> None:
        """Note what is about to be sent, and which of it somebody meant just now."""
        async with self._db.transaction() as tx:
            await pushes.note_sending(tx.conn, ticket_id, sent, meant=meant)

    async def not_sent(self, ticket_id: UUID, names: Sequence[str]) -> None:
        """Forget that these were sent: the remote side did not take them."""
        async with self._db.transaction() as tx:
            await pushes.note_unsent(tx.conn, ticket_id, names)

    async def is_gone(self, key: str) -> bool:
        """Return whether an issue was deleted over there."""
        async with self._db.connection() as conn:
            return bool(await mirrors.deleted(conn, [f"key/{key}"]))

    async def paused(self) -> bool:
        """Return whether this desk was restored and must not send anything yet."""
        async with self._db.connection() as conn:
            return await backups.pause(conn) is not None

    # --- comments --------------------------------------------------------------------------

    async def comment(self, comment_id: UUID) -> tuple[Comment, str | None] | None:
        """Return a comment and its id over there; None when it is gone."""
        async with self._db.connection() as conn:
            return await pushes.comment(conn, comment_id)

    async def unsent_comments(
        self, ticket_id: UUID, limit: int, *, internal: bool = False
    ) -> list[Comment]:
        """Return those of the last so many comments that were not sent, the oldest first."""
        async with self._db.connection() as conn:
            return await pushes.unsent_comments(conn, ticket_id, limit, internal=internal)

    async def tie_comment(
        self, ticket_id: UUID, comment_id: UUID, *, source: str, key: str, remote_id: str,
        updated_at: datetime | None,
    ) -> None:  # fmt: skip
        """Note which comment over there one of ours is; what was made of it here goes away."""
        async with self._db.transaction() as tx:
            # As a telling does: first the issue, then the ticket.
            await mirrors.lock(tx.conn, f"{source}:{key}")
            await tickets.find(tx.conn, str(ticket_id), scope=None, lock=True)
            twin = await pushes.twin(tx.conn, ticket_id, source, remote_id, comment_id)
            if twin is not None:
                await mirrors.delete_comment(tx.conn, twin)
                version = await tickets.touch(tx.conn, ticket_id)
                told = {"comment_id": str(twin), "internal": False}
                tx.record(
                    Event.by(
                        SYSTEM,
                        "comment.deleted",
                        ticket_id=ticket_id,
                        ticket_version=version,
                        data=told,
                    )  # fmt: skip
                )
            await pushes.tie_comment(tx.conn, comment_id, source, remote_id, updated_at)
            await pushes.note_unsent(tx.conn, ticket_id, [f"comment/{comment_id}"])

    async def pass_over(self, remote_id: str) -> None:
        """Let a comment over there never be one here: it only says what the ticket says itself."""
        async with self._db.transaction() as tx:
            await mirrors.bury(tx.conn, [f"comment/{remote_id}"])

    # --- issues of our own -----------------------------------------------------------------

    async def local_tickets(self) -> list[Candidate]:
        """Return the tickets of local projects, the oldest first."""
        async with self._db.connection() as conn:
            return await pushes.local_tickets(conn)

    async def opening(self, ticket_id: UUID) -> float | None:
        """Note that an issue may be opened for a ticket from now on.

        Returns None at the first time, else how many seconds ago it was begun: then one may be
        there already.
        """
        async with self._db.transaction() as tx:
            return await pushes.begin_creating(tx.conn, ticket_id)

    async def opening_again(self, ticket_id: UUID) -> None:
        """Note that the issue of an earlier attempt is not there, and another attempt is made."""
        async with self._db.transaction() as tx:
            await pushes.restart_creating(tx.conn, ticket_id)

    async def not_opened(self, ticket_id: UUID) -> None:
        """Note that no issue was opened for a ticket, for sure."""
        async with self._db.transaction() as tx:
            await pushes.end_creating(tx.conn, ticket_id)

    @staticmethod
    @asynccontextmanager
    async def request() -> AsyncIterator[None]:
        """Surround the one request that opens an issue, as `Job.sending` does those of jobs."""
        failpoints.hit("before_send")
        yield
        failpoints.hit("after_send")

    async def linked(
        self, ticket: Ticket, issue: RemoteIssue, *, made: bool, push: str | None
    ) -> None:
        """Let a ticket stand for an issue that was `made` from it just now, or is found again.

        What changed here since `ticket` was read is left to a job of the kind `push`; of an issue
        that is found nobody knows, so that all is compared.
        """
        async with self._db.transaction() as tx:
            lane = f"{issue.source}:{issue.key}"
            await mirrors.lock(tx.conn, lane)
            now = await tickets.find(tx.conn, str(ticket.id), scope=None, lock=True)
            if not await pushes.link(tx.conn, ticket.id, issue.source, issue.key, None):
                raise Conflict(
                    f"The ticket stands for another issue than {issue.key}.", code="E_TICKET_LINKED"
                )
            if issue.id is not None:
                await mirrors.name_issue(tx.conn, ticket.id, issue.id)
            names = changed_since(ticket, now) if made else _all_of(now)
            if names and push is not None:
                args = {"ticket_id": str(ticket.id), "fields": names, "comment_id": None}
                tx.enqueue(push, args, lane=lane)

    async def opened(self, ticket_id: UUID) -> None:
        """Note that all is said of a ticket that belongs to its new issue."""
        async with self._db.transaction() as tx:
            failpoints.hit("before_mark")
            await pushes.end_creating(tx.conn, ticket_id)

    async def unfinished(self) -> int:
        """Return for how many tickets an issue began to be opened over an hour ago, and no more."""
        async with self._db.connection() as conn:
            return await pushes.unfinished_openings(conn)

    # --- people ----------------------------------------------------------------------------

    async def agents(self, only: UUID | None = None) -> list[Agent]:
        """Return who may be given tickets, with their accounts and how much they have to do."""
        async with self._db.connection() as conn:
            return await pushes.agents(conn, only)

    async def accounts(self, user_ids: Sequence[UUID]) -> dict[UUID, str]:
        """Return the accounts over there of these people, as far as they are known."""
        async with self._db.connection() as conn:
            return await pushes.accounts(conn, user_ids)

    async def tie_account(self, user_id: UUID, account: str, email: str | None) -> None:
        """Note which account over there somebody has."""
        async with self._db.transaction() as tx:
            await pushes.free_account(tx.conn, user_id, account)
            await pushes.tie_account(tx.conn, user_id, account, email)

    async def visible(self, caller: Caller, source: str, keys: Sequence[str]) -> set[str]:
        """Return which of these issues the caller may read about."""
        if caller.scope is None:
            return set(keys)
        async with self._db.connection() as conn:
            return await pushes.visible(conn, source, keys, caller.scope)


def _all_of(ticket: Ticket) -> list[str]:
    """Return the shared fields that a ticket has a word about."""
    return [name for name in SHARED if name != "assignee" or ticket.assignee_ids]
