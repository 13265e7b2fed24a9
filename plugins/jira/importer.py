"""Opens an issue for each local ticket, once, whatever happens in between.

Before an issue is opened it is noted that one may be; until its end is seen, nobody opens another
one, and the webhooks of it are recognised. What a killed import left unfinished, the next one
finishes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from itdesk.errors import Conflict, DeskError
from itdesk.model import SYSTEM, Status, Ticket
from itdesk.remote import ONLY_SAID, RemoteIssue, fingerprint, mark_of
from itdesk.runtime.log import get_logger

from . import mapping, wording
from .client import Client
from .failures import JiraFailure, Missing, RateLimited, Refused, Unauthorized, Unavailable
from .patience import patient
from .plan import LONGEST_PAUSE, Options, Step, Target, labels_of
from .push import PUSH, Pusher

if TYPE_CHECKING:
    from itdesk.desk import Desk

# What comes back of a new issue as it was sent; people are named in one way and told of in another.
_AS_SENT: Final = ("summary", "description", "labels", "priority")

log = get_logger("jira")


@dataclass(slots=True)
class Summary:
    """What an import came to."""

    planned: int = 0
    created: int = 0
    updated: int = 0
    comments: int = 0
    skipped: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return " ".join(f"{name}={getattr(self, name)}" for name in self.__slots__)


class Importer:
    """Does the steps of a plan."""

    def __init__(
        self, client: Client, desk: "Desk", pusher: Pusher, options: Options, target: Target
    ) -> None:
        self._client = client
        self._desk = desk
        self._outbound = desk.mirror.outbound
        self._pusher = pusher
        self._options = options
        self._target = target

    async def run(
        self, steps: Sequence[Step], summary: Summary, tell: Callable[[Step, str], None]
    ) -> None:
        """Do all steps; `tell` hears of each, and what went wrong with it.

        A refused account ends it: every further request could get the account locked. So does a
        desk that was restored and not resumed.
        """
        if await self._outbound.paused():
            raise Conflict(
                "This desk was restored and tells nobody anything yet: run `itdesk resume` first."
            )
        for step in steps:
            problem = ""
            try:
                await self._patient(step, summary)
            except Unauthorized:
                raise
            except DeskError as exc:
                summary.failed += 1
                problem = exc.message
                said = exc.said if isinstance(exc, JiraFailure) else ""
                log.warning("ticket not imported", ticket=step.ticket.key, problem=problem,
                            said=said)  # fmt: skip
            await self._desk.clock.sleep(self._options.sleep_ms / 1000)
            tell(step, problem)

    async def _patient(self, step: Step, summary: Summary) -> None:
        """Do one step; when Jira wants a pause, make it and go on where it was."""
        await patient(self._desk.clock, partial(self._do, step, summary), longest=LONGEST_PAUSE)

    async def _do(self, step: Step, summary: Summary) -> None:
        # A plan may be hours old: what is sent is the ticket as it is now.
        now = await self._desk.tickets.get(SYSTEM, str(step.ticket.id))
        step = replace(step, ticket=now)
        if step.action == "update":
            await self._update(step)
            summary.updated += 1
            return
        key = step.issue
        if key is None and now.external is not None:
            # A pause was made in the middle, or somebody else was faster.
            key = now.external.id
        if key is None:
            key = await self._opened_before(step.ticket) or await self._open(step)
        summary.comments += await self._finish(step, key)
        summary.created += 1

    # --- opening ---------------------------------------------------------------------------

    async def _opened_before(self, ticket: Ticket) -> str | None:
        """Note that an issue may be opened now; return the one of an earlier attempt."""
        age = await self._outbound.opening(ticket.id)
        if age is None:
            return None
        found = await self._search(ticket)
        if found is not None:
            return await self._link(ticket, found, made=False)
        settle = self._client.settings.push.settle_seconds
        if age < settle:
            raise Unavailable(
                "It is not known whether Jira opened an issue for it at the last attempt; run the"
                f" import again in {settle - age:.0f} s."
            )
        await self._outbound.opening_again(ticket.id)
        return None

    async def _open(self, step: Step) -> str:
        """Open the issue and return its key."""
        ticket = step.ticket
        try:
            async with self._outbound.request():
                made = await self._sent(step)
        except Unavailable as exc:
            if not exc.sent:
                await self._outbound.not_opened(ticket.id)
                raise
            # It may be there: never twice.
            found = await self._search(ticket)
            if found is None:
                raise
            made = found
        except (Refused, Missing, RateLimited, Unauthorized):
            await self._outbound.not_opened(ticket.id)
            raise
        return await self._link(ticket, made, made=True)

    async def _sent(self, step: Step) -> Mapping[str, Any]:
        target = self._target
        cloud = await self._client.dialect() == "cloud"
        fields = self._fields(step, cloud=cloud)
        if target.request_type is not None:
            return await self._requested(step, fields)
        body = {
            "fields": {
                "project": {"key": target.project},
                "issuetype": {"name": target.type_name},
                **fields,
            },
            "properties": [{"key": wording.PROPERTY, "value": _origin(step.ticket)}],
        }
        await self._noted(step.ticket, {n: fields[n] for n in _AS_SENT if n in fields})
        try:
            return await self._client.create(body)
        except Refused as exc:
            # Nothing was opened: once more without what it complains about.
            bad = exc.fields & (fields.keys() - {"summary"})
            if not bad:
                raise
            log.warning("jira does not take it", ticket=step.ticket.key, fields=", ".join(bad),
                        said=exc.said)  # fmt: skip
            for name in bad:
                body["fields"].pop(name)  # type: ignore[attr-defined]
            ours = [name for name, theirs in wording.NAMES.items() if theirs in bad]
            await self._outbound.not_sent(step.ticket.id, ours)
            return await self._client.create(body)

    def _fields(self, step: Step, *, cloud: bool) -> dict[str, Any]:
        """Return the fields of an issue that is made from a ticket."""
        ticket, target = step.ticket, self._target
        fields: dict[str, Any] = {
            "summary": wording.summary(ticket, named=True),
            "description": wording.body(ticket.description, cloud=cloud),
            "labels": labels_of(ticket),
            **target.graded(ticket.priority),
        }
        if target.request_type is None and "priority" in target.fields:
            fields["priority"] = {"name": wording.PRIORITIES[ticket.priority]}
        if step.assignee is not None:
            fields["assignee"] = dict(step.assignee)
        return {name: value for name, value in fields.items() if value is not None}

    async def _requested(self, step: Step, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open a request of the service desk, which takes only its request type's fields."""
        target = self._target
        asked = {"summary", "description", *self._target.graded(step.ticket.priority)}
        values = {name: value for name, value in fields.items() if name in asked}
        # This interface takes plain text.
        values["description"] = wording.cut(step.ticket.description)
        if not values["description"].strip():
            del values["description"]
        body: dict[str, Any] = {
            "serviceDeskId": target.desk_id,
            "requestTypeId": target.request_type,
            "requestFieldValues": values,
        }
        reporter = step.ticket.reporter_id
        if reporter is not None:
            accounts = await self._outbound.accounts([reporter])
            if reporter in accounts:
                body["raiseOnBehalfOf"] = accounts[reporter]
        await self._noted(step.ticket, {"summary": fields["summary"]})
        made = await self._client.call("POST", "/rest/servicedeskapi/request", json=body)
        if not isinstance(made, Mapping):
            raise Unavailable("Something else than Jira answers at plugins.jira.base_url.")
        return {"key": made.get("issueKey"), "id": made.get("issueId")}

    async def _search(self, ticket: Ticket) -> Mapping[str, Any] | None:
        """Return the issue that was opened for a ticket, as far as Jira's search knows of it."""
        project = f'project = "{self._target.project}"'
        label, begin = f"itdesk_{ticket.id}", f"[{ticket.key}]"
        for clause in (f'labels = "{label}"', f'summary ~ "{ticket.key}"'):
            page, _ = await self._client.search(
                f"{project} AND {clause} ORDER BY created ASC", "summary,labels", size=50
            )
            for raw in page:
                fields = raw.get("fields")
                fields = fields if isinstance(fields, Mapping) else {}
                labels = fields.get("labels")
                origin = mapping.origin_of(labels)
                # Another desk's ticket may have the same key.
                ours = origin == ticket.id or (
                    origin is None and str(fields.get("summary", "")).startswith(begin)
                )
                if ours and mapping.is_key(raw.get("key")):
                    return raw
        return None

    async def _noted(self, ticket: Ticket, fields: Mapping[str, Any]) -> None:
        """Note what is about to be sent, as it will be read."""
        told = mapping.fields_of(fields)
        marks = {name: mark_of(name, value) for name, value in told.items()}
        await self._outbound.sending(ticket.id, marks, meant=list(marks))

    async def _link(self, ticket: Ticket, issue: Mapping[str, Any], *, made: bool) -> str:
        """Let the ticket stand for the issue from now on."""
        if not mapping.is_key(issue.get("key")):
            raise Unavailable("Something else than Jira answers at plugins.jira.base_url.")
        key, number = str(issue["key"]), issue.get("id")
        remote = RemoteIssue(
            source=mapping.SOURCE, key=key, id=str(number) if number is not None else None
        )
        push = PUSH if self._client.settings.push.enabled else None
        await self._outbound.linked(ticket, remote, made=made, push=push)
        return key

    # --- what belongs to it ----------------------------------------------------------------

    async def _finish(self, step: Step, key: str) -> int:
        """Add what an issue cannot be opened with; return how many comments were said."""
        ticket = step.ticket
        if step.issue is not None:
            await self._outbound.opening(ticket.id)
            key = await self._link(ticket, await self._client.issue(key, fields="key"), made=False)
        # How it was opened, and what was changed there since, before ours is added.
        await self._heard(key)
        noting = self._client.note(key, wording.PROPERTY, _origin(ticket))
        await self._passed(ticket, "property", noting)
        if self._target.request_type is not None or step.issue is not None:
            await self._complete(step, key)
        said = 0
        comments = self._options.max_comments
        for comment in (
            await self._outbound.unsent_comments(ticket.id, comments) if comments else ()
        ):
            saying = self._pusher.say(ticket, key, comment.id, look=step.issue is not None)
            said += await self._passed(ticket, "comment", saying) is True
        if ticket.resolution:
            saying = self._resolution(ticket, key, look=step.issue is not None)
            said += await self._passed(ticket, "resolution", saying) is True
        await self._heard(key)
        # Its status may have been changed there meanwhile.
        now = await self._desk.tickets.get(SYSTEM, str(ticket.id))
        if now.status is not Status.OPEN:
            await self._pusher.move(now, key)
            await self._heard(key)
        await self._outbound.opened(ticket.id)
        return said

    async def _heard(self, key: str) -> None:
        """Take over what an issue says."""
        await self._desk.mirror.tell(await self._pusher.heard(key))

    async def _passed(self, ticket: Ticket, what: str, sending: Awaitable[object]) -> object:
        """Send something; what Jira refuses is said in the log, and is not the end of the rest."""
        try:
            return await sending
        except (Refused, Missing) as exc:
            log.warning("jira does not take it", ticket=ticket.key, what=what, said=exc.said)
            return None

    async def _complete(self, step: Step, key: str) -> None:
        """Set what a request, or an issue of a cut import, may lack."""
        raw = await self._client.issue(key, fields="labels")
        existing = (raw.get("fields") or {}).get("labels") or []
        fields: dict[str, Any] = {
            "labels": list(dict.fromkeys([*existing, *labels_of(step.ticket)])),
            "priority": {"name": wording.PRIORITIES[step.ticket.priority]},
        }
        if step.assignee is not None:
            fields["assignee"] = dict(step.assignee)
        await self._passed(step.ticket, "fields", self._pusher.replace(step.ticket, key, fields))

    async def _resolution(self, ticket: Ticket, key: str, *, look: bool) -> bool:
        """Say how a ticket was resolved; that comment stays there and is none here."""
        text = wording.worded("Resolution", ticket.resolution or "")
        name = f"{ONLY_SAID}{fingerprint(ticket.resolution)}"
        made = await self._pusher.say_once(ticket, key, name, text, look=look)
        await self._outbound.pass_over(str(made.get("id")))
        return True

    # --- what is there already -------------------------------------------------------------

    async def _update(self, step: Step) -> None:
        """Let an issue say what its ticket says: description, assignee, urgency and impact."""
        assert step.issue is not None
        cloud = await self._client.dialect() == "cloud"
        fields = {
            "description": wording.body(step.ticket.description, cloud=cloud),
            **self._target.graded(step.ticket.priority),
        }
        if step.assignee is not None:
            fields["assignee"] = dict(step.assignee)
        await self._pusher.replace(step.ticket, step.issue, fields)


def _origin(ticket: Ticket) -> dict[str, str]:
    return {"ticket": str(ticket.id), "key": ticket.key}
