"""Whom rules may call, and how: signed, with the same delivery id at every attempt.

What is sent is decided when the rule runs; it never holds an internal comment unless the target
is allowed to see them. The secret of a target is read when the request is signed, and shown never.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import orjson
from pydantic import BaseModel

import itdesk
from itdesk.desk.jobs import GiveUp, Job, JobType, RetryLater
from itdesk.errors import Conflict, Invalid, NotFound, Unavailable
from itdesk.model import Caller, Change, Event, Role, Ticket, new_id
from itdesk.runtime.addresses import Network, may_be_called, parsed
from itdesk.runtime.clock import Clock
from itdesk.store import workflow_targets, workflows
from itdesk.store.db import Database, Transaction
from itdesk.store.paging import Page, Window
from itdesk.store.workflow_targets import WorkflowTarget
from itdesk.store.workflows import WorkflowRule

if TYPE_CHECKING:
    from itdesk.runtime.outgoing import Outgoing

DELIVER: Final = "workflows.webhook"
ATTEMPTS: Final = 15
MOST_TARGETS: Final = 100
_AGAIN: Final = frozenset({408, 425, 429})
_UNSHOWN = frozenset({"predicted_priority", "predicted_category"})


class _Delivery(BaseModel):
    """What a delivery's job is told."""

    target_id: UUID
    body: dict[str, Any]


class Webhooks:
    """The targets of webhooks, and the calls of them."""

    def __init__(
        self, db: Database, outgoing: "Outgoing", clock: Clock, *, networks: Sequence[Network]
    ) -> None:
        self._db = db
        self._outgoing = outgoing
        self._clock = clock
        self._networks = tuple(networks)

    # --- whom -----------------------------------------------------------------------------

    async def list(self, caller: Caller, window: Window) -> Page[WorkflowTarget]:
        """Return one page of the targets, by name."""
        caller.require(Role.ADMIN, "look at targets")
        async with self._db.connection() as conn:
            page = await workflow_targets.list_page(conn, window)
            total = await workflow_targets.count(conn) if window.count else None
        return replace(page, total=total)

    async def get(self, caller: Caller, ref: str) -> WorkflowTarget:
        """Return a target."""
        caller.require(Role.ADMIN, "look at targets")
        async with self._db.connection() as conn:
            return await workflow_targets.get(conn, _id(ref))

    async def create(self, caller: Caller, wanted: Mapping[str, Any]) -> WorkflowTarget:
        """Let rules call an address."""
        caller.require(Role.ADMIN, "name targets")
        self._check_url(wanted["url"])
        async with self._db.transaction() as tx:
            await workflows.lock_all(tx.conn)
            if await workflow_targets.count(tx.conn) >= MOST_TARGETS:
                raise Conflict(
                    f"There are {MOST_TARGETS} targets already: delete one first.",
                    code="E_WORKFLOW_TOO_MANY",
                )
            target = await workflow_targets.create(tx.conn, id=new_id(), **wanted)
            tx.record(Event.by(caller, "workflow.target_created", data=_about(target)))
        return target

    async def update(self, caller: Caller, ref: str, wanted: Mapping[str, Any]) -> WorkflowTarget:
        """Change a target; that the secret changed is told, what it was and is never."""
        caller.require(Role.ADMIN, "change targets")
        if "url" in wanted:
            self._check_url(wanted["url"])
        async with self._db.transaction() as tx:
            before = await workflow_targets.get(tx.conn, _id(ref), lock=True)
            changed = {
                name: value
                for name, value in wanted.items()
                if name == "secret" or getattr(before, name) != value
            }
            if not changed:
                return before
            after = await workflow_targets.update(tx.conn, before.id, changed)
            changes = tuple(
                Change(name, None, None)
                if name == "secret"
                else Change(name, getattr(before, name), getattr(after, name))
                for name in changed
            )
            event = Event.by(caller, "workflow.target_updated", changes=changes, data=_about(after))
            tx.record(event)
        return after

    async def delete(self, caller: Caller, ref: str) -> None:
        """Let nobody call an address any more; not while a rule does."""
        caller.require(Role.ADMIN, "delete targets")
        async with self._db.transaction() as tx:
            await workflows.lock_all(tx.conn)
            target = await workflow_targets.get(tx.conn, _id(ref), lock=True)
            if rules := await workflow_targets.rules_calling(tx.conn, target.id):
                raise Conflict(
                    f"Rules call this target: {', '.join(rules)}. Change them first.",
                    code="E_WORKFLOW_TARGET_IN_USE",
                    details={"rules": rules},
                )
            await workflow_targets.delete(tx.conn, target.id)
            tx.record(Event.by(caller, "workflow.target_deleted", data=_about(target)))

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Invalid.field("url", "must be an http or https address") from None
        if not host or "@" in parts.netloc or parts.fragment:
            raise Invalid.field("url", "must have a host, no user name or password, and no #")
        literal = parsed(host)
        if literal is not None and not may_be_called(literal, self._networks):
            raise Invalid.field("url", _REFUSED)

    # --- how ------------------------------------------------------------------------------

    async def queue(
        self, tx: Transaction, target_id: UUID, rule: WorkflowRule, event: Event,
        ticket: Ticket, comment: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        """Queue a call with the transaction; return whom it goes to and what it says."""
        target = await workflow_targets.get(tx.conn, target_id)
        body = payload(rule, event, ticket, comment, internal=target.internal_comments)
        delivery = tx.enqueue(
            DELIVER,
            {"target_id": target.id, "body": body},
            lane=f"webhook:{target.id}:{ticket.id}",
            event_id=event.id,
        )
        return {"target": target.name, "delivery": str(delivery), "body": body}

    def job_type(self) -> JobType:
        """Return the kind of job that a call is."""
        return JobType(
            name=DELIVER, handle=self._deliver, concurrency=4, attempts=ATTEMPTS,
            timeout_seconds=120,
        )  # fmt: skip

    async def _deliver(self, job: Job) -> None:
        told = job.read(_Delivery)
        try:
            async with self._db.connection() as conn:
                target = await workflow_targets.get(conn, told.target_id)
                secret = await workflow_targets.secret_of(conn, told.target_id)
        except NotFound as exc:
            raise GiveUp("its target was deleted") from exc
        async with job.sending() as delivery:
            body = orjson.dumps({"delivery": delivery, **told.body})
            headers = self._signed(delivery, secret, told.body["event"]["type"], body)
            try:
                answered = await self._outgoing.post(target.url, body, headers)
            except Unavailable:
                raise
            except OSError as exc:
                raise GiveUp(f"target {target.name}: {_REFUSED}") from exc
        if answered.status in _AGAIN or answered.status >= 500:
            reason = f"target {target.name} answered {answered.status}"
            if answered.retry_after is not None:
                raise RetryLater(answered.retry_after, reason)
            raise Unavailable(reason)
        if not 200 <= answered.status < 300:
            what = "a redirect, which is not followed" if answered.status < 400 else "a refusal"
            raise GiveUp(f"target {target.name} answered {answered.status}: {what}")

    def _signed(self, delivery: str, secret: str, type: str, body: bytes) -> dict[str, str]:
        at = str(int(self._clock.now().timestamp()))
        return {
            "Content-Type": "application/json",
            "User-Agent": f"itdesk/{itdesk.__version__}",
            "X-Itdesk-Delivery": delivery,
            "X-Itdesk-Event": type,
            "X-Itdesk-Timestamp": at,
            "X-Itdesk-Signature": "sha256=" + signature(secret, at, body),
        }


_REFUSED = (
    "is not a public address; workflows.target_networks in the configuration lists the networks"
    " that may be called beside them"
)


def signature(secret: str, at: str, body: bytes) -> str:
    """Return the HMAC-SHA256 of `<timestamp>.<body>`, in hexadecimal."""
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()


def payload(
    rule: WorkflowRule, event: Event, ticket: Ticket, comment: str | None, *, internal: bool
) -> dict[str, Any]:
    """Return what a target is told; of an internal comment only that there was one, unless it may.

    `internal` says whether the target may see internal comments.
    """
    hidden = bool(event.data.get("internal")) and not internal
    shown = {name: getattr(ticket, name) for name in Ticket.__match_args__ if name not in _UNSHOWN}
    said: dict[str, Any] = orjson.loads(
        orjson.dumps(
            {
                "rule": {"id": rule.id, "name": rule.name},
                "event": {
                    "id": event.id,
                    "type": event.type,
                    "source": event.source,
                    "actor": {"id": event.actor_id, "name": event.actor_name},
                    "changes": event.changes,
                    "internal": bool(event.data.get("internal", False)),
                    "comment": None if hidden else comment,
                },
                "ticket": shown,
            }
        )
    )
    return said


def _about(target: WorkflowTarget) -> dict[str, Any]:
    host = urlsplit(target.url).hostname
    return {"target_id": str(target.id), "name": target.name, "host": host}


def _id(ref: str) -> UUID:
    try:
        return UUID(ref)
    except ValueError:
        raise NotFound("There is no such target.", code="E_WORKFLOW_TARGET_NOT_FOUND") from None
