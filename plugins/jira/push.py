"""Sends changes of mirrored tickets to Jira: fields, the status by a transition, and comments.

Each change is a job in its issue's lane. A job looks first: what Jira changed meanwhile is not
overwritten unless the field's rule says so, and what is there already is not sent again. What is
about to be sent is noted before, so that its echo is known as one, and so that a comment whose
sending was cut is looked for instead of sent twice.
"""

import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from pydantic import BaseModel

from itdesk.errors import NotFound
from itdesk.hookspecs import GiveUp, JobType, RetryLater
from itdesk.model import SYSTEM, Event, Source, Status, Ticket
from itdesk.remote import RemoteIssue, Rules, Shadow, Winner, fingerprint, mark_of
from itdesk.runtime.log import get_logger

from . import mapping, wording
from .client import Client
from .failures import JiraFailure, Missing, RateLimited, Refused, Unauthorized, Unavailable
from .people import Account, People
from .settings import JiraSettings

if TYPE_CHECKING:
    from itdesk.desk import Desk
    from itdesk.desk.jobs import Job

PUSH: Final = "jira.push"
_FIELDS: Final = {
    "title": "title",
    # It is part of the summary.
    "key": "title",
    "description": "description",
    "status": "status",
    "priority": "priority",
    "tags": "tags",
    "assignee_ids": "assignee",
}
_WINNERS: Final = {
    "jira": Winner.REMOTE,
    "itdesk": Winner.LOCAL,
    "last_writer": Winner.LAST_WRITER,
}

log = get_logger("jira")


class Push(BaseModel):
    """What a job is told."""

    ticket_id: UUID
    fields: list[str] = []
    comment_id: UUID | None = None


def rules(settings: JiraSettings) -> Rules:
    """Return how the mirror settles what both sides say."""
    return Rules(
        winner=lambda project, name: _WINNERS[settings.word(project, name)],
        worded=wording.worded,
        said=wording.said,
        push=PUSH if settings.connected and settings.push.enabled else None,
    )


class Pusher:
    """Does the jobs that send changes."""

    def __init__(self, client: Client, desk: "Desk", count: Any) -> None:
        self._client = client
        self._desk = desk
        self._outbound = desk.mirror.outbound
        self._settings = client.settings
        self._people = People(client, desk.mirror.outbound)
        self._count = count

    def job_type(self) -> JobType:
        """Return the kind of job that sends a change."""
        return JobType(
            name=PUSH,
            handle=self.run,
            concurrency=4,
            attempts=self._settings.push.attempts,
            timeout_seconds=180.0,
            on_events=("ticket.updated", "comment.added"),
            # A restored desk leaves Jira alone until `itdesk resume`.
            outbound=True,
            catches_up=True,
            when=self._is_news,
            lane=lambda event: str(event.data["mirror"]),
            args=_told,
        )

    def _is_news(self, event: Event) -> bool:
        """Return whether Jira has to be told of an event."""
        settings = self._settings
        if not settings.connected or not settings.push.enabled or event.source is Source.JIRA:
            return False
        if not str(event.data.get("mirror", "")).startswith(f"{mapping.SOURCE}:"):
            return False
        if event.type == "comment.added":
            return settings.push.internal_comments or not event.data.get("internal")
        return bool(_told(event)["fields"])

    async def run(self, job: "Job") -> None:
        """Send one change."""
        told = job.read(Push)
        if not self._settings.push.enabled:
            return
        try:
            ticket = await self._desk.tickets.get(SYSTEM, str(told.ticket_id))
            if ticket.external is None or ticket.external.source != mapping.SOURCE:
                return
            if (await self._outbound.shadow(ticket.id)).creating:
                # Whoever opens the issue says all of the ticket there, and has not ended.
                raise RetryLater(self._pause(), "an import opens its issue", counted=False)
            if told.fields:
                await self._fields(job, ticket, told.fields)
            if told.comment_id is not None:
                await self._comment(job, ticket, told.comment_id)
        except NotFound:
            return  # deleted meanwhile
        except JiraFailure as exc:
            await self._react(told, exc)

    async def _react(self, told: Push, exc: JiraFailure) -> None:
        """Raise what the job has to do about a failure of Jira's."""
        refused_here = isinstance(exc, Unavailable) and not exc.sent
        note = log.debug if refused_here else log.info
        note("change not sent", ticket=told.ticket_id, problem=exc.message, said=exc.said)
        breaker = self._client.breaker
        if isinstance(exc, RateLimited):
            raise RetryLater(exc.seconds, exc.message, counted=False) from exc
        if isinstance(exc, Unauthorized):
            raise RetryLater(self._settings.probe_seconds, exc.message, counted=False) from exc
        if isinstance(exc, Unavailable):
            if breaker.is_open:
                # Jira is out for everybody: that is no fault of this change, and may last.
                pause = self._pause(breaker.remaining) if refused_here else breaker.remaining
                raise RetryLater(pause, exc.message, counted=False) from exc
            raise exc
        self._count.labels("refused").inc()
        await self._outbound.not_sent(told.ticket_id, told.fields)
        if isinstance(exc, Missing):
            ticket = await self._desk.tickets.get(SYSTEM, str(told.ticket_id))
            if ticket.external is None or await self._outbound.is_gone(ticket.external.id):
                return
        raise GiveUp(exc.message) from exc

    def _pause(self, least: float = 0.0) -> float:
        """Return for how long what waits for the same thing waits, each for another time."""
        return least + random.uniform(0.1, 1.0) * self._settings.probe_seconds

    # --- fields ----------------------------------------------------------------------------

    async def _fields(self, job: "Job", ticket: Ticket, names: list[str]) -> None:
        assert ticket.external is not None
        key = ticket.external.id
        raw = await self._client.issue(key, fields=mapping.FIELDS)
        fields = raw.get("fields")
        fields = fields if isinstance(fields, dict) else {}
        theirs = mapping.fields_of(fields)
        shadow = await self._outbound.shadow(ticket.id)
        changed_at = mapping.time_of(fields.get("updated"))
        ours = [
            name for name in names if self._may_send(job, key, name, theirs, shadow, changed_at)
        ]
        if len(ours) < len(names):
            self._count.labels("conflict").inc()
        payload, echo = await self._payload(ticket, [n for n in ours if n != "status"], fields)
        moves = "status" in ours and theirs.get("status") is not ticket.status
        way = await self._way(ticket, key) if moves else None
        if not payload and way is None:
            self._count.labels("unchanged").inc()
            if len(ours) < len(names):
                # Its webhook may have got lost.
                await self._desk.mirror.tell(await self._told(raw))
            return
        if way is not None:
            echo["status"] = ticket.status
        marks = {name: mark_of(name, value) for name, value in echo.items()}
        meant = [] if job.event_id is None else list(marks)
        await self._outbound.sending(ticket.id, marks, meant=meant)
        async with job.sending():
            await self._write(key, ticket, payload, way)
        self._count.labels("sent").inc()
        await self._desk.mirror.tell(await self.heard(key))

    def _may_send(
        self,
        job: "Job",
        key: str,
        name: str,
        theirs: Mapping[str, Any],
        shadow: Shadow,
        changed_at: datetime | None,
    ) -> bool:
        """Return whether ours may replace what Jira holds: it did not change it, or ours counts."""
        base = shadow.known.get(name)
        now = mark_of(name, theirs.get(name))
        if base is None or now in (base, shadow.sent.get(name)):
            return True
        word = self._settings.word(key.rpartition("-")[0], name)
        if word == "last_writer" and job.event_id is not None and changed_at is not None:
            return _moment(job.event_id) > changed_at
        return word == "itdesk"

    async def _payload(
        self, ticket: Ticket, names: list[str], fields: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what Jira has to be sent so that its issue says what the ticket says.

        And what will come back of it, read the way it will be read.
        """
        assert ticket.external is not None
        cloud = await self._client.dialect() == "cloud"
        wanted: dict[str, Any] = {}
        known: Account | None = None
        for name in names:
            if name == "title":
                wanted["summary"] = wording.summary(ticket, named=ticket.key != ticket.external.id)
            elif name == "description":
                wanted["description"] = wording.body(ticket.description, cloud=cloud)
            elif name == "priority":
                wanted["priority"] = {"name": wording.PRIORITIES[ticket.priority]}
            elif name == "tags":
                existing = fields.get("labels")
                existing = existing if isinstance(existing, list) else []
                wanted["labels"] = wording.labels(existing, ticket.tags)
            elif not ticket.assignee_ids:
                wanted["assignee"] = None
            elif (known := await self._people.of(ticket.assignee_ids[0])) is not None:
                wanted["assignee"] = known.named
        now, echo = mapping.fields_of(fields), mapping.fields_of(wanted)
        if known is not None:
            echo["assignee"] = known.person
        for name in [n for n in echo if n in now and fingerprint(now[n]) == fingerprint(echo[n])]:
            del wanted[wording.NAMES[name]], echo[name]
        return wanted, echo

    async def _way(self, ticket: Ticket, key: str) -> str | None:
        """Return the transition to the ticket's status, or None and say so."""
        found = wording.way_to(ticket.status, await self._client.transitions(key))
        if found is None:
            self._count.labels("refused").inc()
            log.warning("no transition leads to the status", ticket=ticket.key, issue=key,
                        status=ticket.status)  # fmt: skip
        return found

    async def heard(self, key: str) -> RemoteIssue:
        """Return what an issue says now."""
        return await self._told(await self._client.issue(key, fields=mapping.FIELDS))

    async def _told(self, raw: Mapping[str, Any]) -> RemoteIssue:
        """Return what an issue says, without comments of which it does not say who may read them.

        They come by their webhooks, or are compared later.
        """
        issue = mapping.issue_of(raw)
        if mapping.is_unsure(issue) and await self._client.dialect() == "datacenter":
            return replace(issue, comments=(), all_comments=False)
        return issue

    async def move(self, ticket: Ticket, key: str) -> None:
        """Let an issue go to its ticket's status, if there is a way and it is not there yet."""
        raw = await self._client.issue(key, fields="status")
        theirs = mapping.fields_of(raw.get("fields") or {})
        if theirs.get("status") is ticket.status:
            return
        if (way := await self._way(ticket, key)) is not None:
            mark = mark_of("status", ticket.status)
            await self._outbound.sending(ticket.id, {"status": mark}, meant=["status"])
            await self._transit(key, ticket, way)

    async def replace(self, ticket: Ticket, key: str, fields: Mapping[str, Any]) -> None:
        """Set fields of an issue to what they are here, whatever they are there."""
        marks = {name: mark_of(name, v) for name, v in mapping.fields_of(fields).items()}
        await self._outbound.sending(ticket.id, marks, meant=list(marks))
        await self.edit(key, ticket, fields)
        told = await self.heard(key)
        if "assignee" in marks and told.fields.get("assignee") is not None:
            # People are named in one way and told of in another.
            person = mark_of("assignee", told.fields["assignee"])
            await self._outbound.sending(ticket.id, {"assignee": person})
        await self._desk.mirror.tell(told)

    async def _write(
        self, key: str, ticket: Ticket, payload: Mapping[str, Any], way: str | None
    ) -> None:
        """Send it; a closed issue is often not to be edited, so it is closed last."""
        if way is not None and ticket.status is not Status.CLOSED:
            await self._transit(key, ticket, way)
        if payload:
            await self.edit(key, ticket, payload)
        if way is not None and ticket.status is Status.CLOSED:
            await self._transit(key, ticket, way)

    async def _transit(self, key: str, ticket: Ticket, way: str) -> None:
        try:
            await self._client.transit(key, way)
        except Refused as exc:
            await self._left_out(key, ticket, ["status"], exc)

    async def edit(self, key: str, ticket: Ticket, payload: Mapping[str, Any]) -> None:
        """Set fields; those that Jira does not want are left out, and said so."""
        try:
            await self._client.edit(key, payload)
        except Refused as exc:
            bad = exc.fields & payload.keys()
            if not bad:
                raise
            ours = [name for name, theirs in wording.NAMES.items() if theirs in bad]
            await self._left_out(key, ticket, ours, exc)
            if good := {name: value for name, value in payload.items() if name not in bad}:
                await self._client.edit(key, good)

    async def _left_out(self, key: str, ticket: Ticket, names: list[str], exc: Refused) -> None:
        self._count.labels("refused").inc()
        log.warning("jira does not take it", issue=key, fields=", ".join(names), said=exc.said)
        await self._outbound.not_sent(ticket.id, names)

    # --- comments --------------------------------------------------------------------------

    async def _comment(self, job: "Job", ticket: Ticket, comment_id: UUID) -> None:
        assert ticket.external is not None
        async with job.sending():
            said = await self.say(ticket, ticket.external.id, comment_id)
        if said:
            self._count.labels("sent").inc()

    async def say(self, ticket: Ticket, key: str, comment_id: UUID, *, look: bool = False) -> bool:
        """Say a comment in Jira, once; `look` for it there first, in any case.

        Returns False when there is nothing to say: it is gone, or there already.
        """
        found = await self._outbound.comment(comment_id)
        if found is None or found[1] is not None:
            return False
        comment = found[0]
        text = wording.worded(comment.author_name, comment.body)
        made = await self.say_once(
            ticket, key, f"comment/{comment.id}", text, internal=comment.internal, look=look
        )
        await self._outbound.tie_comment(
            ticket.id,
            comment.id,
            source=mapping.SOURCE,
            key=key,
            remote_id=str(made["id"]),
            updated_at=mapping.time_of(made.get("updated")),
        )
        return True

    async def say_once(
        self,
        ticket: Ticket,
        key: str,
        name: str,
        text: str,
        *,
        internal: bool = False,
        look: bool = False,
    ) -> Mapping[str, Any]:
        """Return what was said under this name: now, or at an attempt nobody saw the end of."""
        made: Mapping[str, Any] | None = None
        if look or name in (await self._outbound.shadow(ticket.id)).sent:
            made = await self._said_before(key, name, text)
        if made is None:
            await self._outbound.sending(ticket.id, {name: fingerprint(text)})
            properties: list[dict[str, Any]] = [{"key": wording.PROPERTY, "value": {"is": name}}]
            if internal:
                properties.append({"key": "sd.public.comment", "value": {"internal": True}})
            cloud = await self._client.dialect() == "cloud"
            sent = {"body": wording.body(text, cloud=cloud), "properties": properties}
            made = await self._client.comment(key, sent)
        if not isinstance(made.get("id"), str | int):
            raise Unavailable("Something else than Jira answers at plugins.jira.base_url.")
        return made

    async def _said_before(self, key: str, name: str, text: str) -> Mapping[str, Any] | None:
        """Return the comment of an attempt whose end nobody saw."""
        mark = fingerprint(text)
        for one in await self._client.comments(key):
            read = mapping.comment_of(one)
            own = _own_name(one)
            if own == name or (own is None and read and fingerprint(read.body) == mark):
                return one
        return None


def _told(event: Event) -> dict[str, Any]:
    changed = [change.field for change in event.changes]
    return {
        "ticket_id": str(event.ticket_id),
        "fields": list(dict.fromkeys(_FIELDS[name] for name in changed if name in _FIELDS)),
        "comment_id": event.data.get("comment_id"),
    }


def _own_name(comment: Mapping[str, Any]) -> str | None:
    listed = comment.get("properties")
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, Mapping) and one.get("key") == wording.PROPERTY:
            value = one.get("value")
            return str(value.get("is")) if isinstance(value, Mapping) else None
    return None


def _moment(event_id: UUID) -> datetime:
    """Return when an event was made: its id begins with its milliseconds."""
    return datetime.fromtimestamp((event_id.int >> 80) / 1000, UTC)
