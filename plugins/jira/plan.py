"""What an import would do: which tickets become which issues, in whose hands, and which are there.

Only reads. What it finds is a list of steps that a person can look at before anything is sent.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote
from uuid import UUID

from itdesk.errors import Conflict, NotFound
from itdesk.model import SYSTEM, Priority, Status, Ticket

from . import mapping, wording
from .client import Client
from .patience import patient
from .people import People, named

if TYPE_CHECKING:
    from itdesk.desk import Desk
    from itdesk.store.pushes import Agent

T = TypeVar("T")
Action = Literal["create", "finish", "update"]

_PREFERRED: Final = (
    "report an incident", "incident", "task", "service request", "story", "bug",
)  # fmt: skip
MOST_TAGS: Final = 12
# Longer than this in all, nobody waits for one answer.
LONGEST_PAUSE: Final = 120.0
URGENCY: Final[Mapping[Priority, Sequence[str]]] = {
    Priority.CRITICAL: ("Critical", "Highest", "Urgent", "High"),
    Priority.HIGH: ("High",),
    Priority.MEDIUM: ("Medium", "Normal"),
    Priority.LOW: ("Low", "Lowest"),
}
IMPACT: Final[Mapping[Priority, Sequence[str]]] = {
    Priority.CRITICAL: ("Extensive / Widespread", "Extensive", "Widespread"),
    Priority.HIGH: ("Significant / Large", "Significant", "Large"),
    Priority.MEDIUM: ("Moderate / Limited", "Moderate", "Limited"),
    Priority.LOW: ("Minor / Localized", "Minor", "Localized"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an import was asked to do."""

    project: str
    limit: int | None = None
    apply: bool = False
    update_existing: bool = False
    issue_type: str | None = None
    max_comments: int = 8
    sleep_ms: int = 80
    sync_users: bool = True
    auto_assign: bool = True


@dataclass(frozen=True, slots=True)
class Target:
    """How issues are opened: as what, and which fields there are."""

    project: str
    type_name: str
    fields: frozenset[str]
    urgency: tuple[str, Sequence[Mapping[str, Any]]] | None = None
    impact: tuple[str, Sequence[Mapping[str, Any]]] | None = None
    desk_id: str | None = None
    request_type: str | None = None

    def graded(self, priority: Priority) -> dict[str, Any]:
        """Return urgency and impact, as far as there are such fields with such values."""
        found: dict[str, Any] = {}
        for offered, words in ((self.urgency, URGENCY), (self.impact, IMPACT)):
            if offered is not None:
                chosen = wording.option(words[priority], offered[1])
                if chosen is not None:
                    found[offered[0]] = _chosen(chosen, is_request=self.request_type is not None)
        return found


@dataclass(frozen=True, slots=True)
class Step:
    """What is done with one ticket; `assignee` is how Jira names them, `who` how people do."""

    action: Action
    ticket: Ticket
    issue: str | None = None
    assignee: Mapping[str, Any] | None = None
    who: str = ""
    comments: int = 0


@dataclass(slots=True)
class _Crew:
    """Who may be given issues, and how much each has to do."""

    people: dict[UUID, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    load: dict[UUID, int] = field(default_factory=dict)

    def give(self, ticket: Ticket, *, fallback: bool) -> tuple[str, dict[str, Any]] | None:
        """Return who gets a ticket's issue: its own assignee, else whoever has least to do."""
        for person in ticket.assignee_ids:
            if person in self.people:
                return self.people[person]
        if not fallback or not self.people or ticket.status is Status.CLOSED:
            return None
        least = min(self.people, key=lambda one: (self.load[one], self.people[one][0]))
        self.load[least] += 1
        return self.people[least]


class Planner:
    """Finds out what an import would do."""

    def __init__(self, client: Client, desk: "Desk", options: Options) -> None:
        self._client = client
        self._desk = desk
        self._options = options
        self._people = People(client, desk.mirror.outbound)

    async def target(self) -> Target:
        """Return as what issues are opened: through the service desk if there is one."""
        if self._client.settings.service_desk_id:
            return await self._request_target(self._client.settings.service_desk_id)
        base = f"/issue/createmeta/{quote(self._options.project, safe='')}/issuetypes"
        types = await self._patient(self._client.all_values, base, "issueTypes", "values")
        kind = self._choose([one for one in types if not one.get("subtask")])
        offered = await self._patient(
            self._client.all_values, f"{base}/{quote(str(kind['id']), safe='')}", "fields", "values"
        )
        return Target(
            project=self._options.project,
            type_name=str(kind["name"]),
            fields=frozenset(str(one.get("fieldId", one.get("key"))) for one in offered),
            urgency=_named(offered, "urgency", "allowedValues"),
            impact=_named(offered, "impact", "allowedValues"),
        )

    async def steps(self) -> tuple[list[Step], int]:
        """Return what would be done, and how many are left alone.

        The oldest ticket goes first, but those that have no issue yet before those that do: a
        limit would never let their turn come.
        """
        existing = await self._existing()
        crew = await self._crew()
        found: list[Step] = []
        tickets = await self._desk.mirror.outbound.local_tickets()
        there = [known for known in tickets if known.issue is not None and not known.creating]
        due = [known for known in tickets if known.issue is None or known.creating]
        skipped = 0 if self._options.update_existing else len(there)
        for known in [*due, *([] if skipped else there)]:
            if self._options.limit is not None and len(found) >= self._options.limit:
                break
            issue = known.issue or existing.get(known.id)
            action: Action = "create" if issue is None else "finish"
            if known.issue is not None and not known.creating:
                action = "update"
            try:
                ticket = await self._desk.tickets.get(SYSTEM, str(known.id))
            except NotFound:
                continue  # deleted meanwhile
            found.append(await self._step(action, ticket, issue, crew))
        return found, skipped

    async def _step(self, action: Action, ticket: Ticket, issue: str | None, crew: _Crew) -> Step:
        # An issue that is there may be in somebody's hands already.
        fallback = self._options.auto_assign and action == "create"
        given = crew.give(ticket, fallback=fallback)
        who, assignee = given if given is not None else ("", None)
        comments = 0
        if action != "update":
            outbound, most = self._desk.mirror.outbound, self._options.max_comments
            comments = len(await outbound.unsent_comments(ticket.id, most)) if most else 0
            comments += bool(ticket.resolution)
        return Step(action, ticket, issue, assignee, who, comments)

    async def _existing(self) -> dict[UUID, str]:
        """Return which tickets have an issue that says so, by its label; all pages of them."""
        found: dict[UUID, str] = {}
        jql = f'project = "{self._options.project}" AND labels = "{wording.IMPORTED}"'
        at: str | None = None
        while True:
            page, at = await self._patient(
                self._client.search, f"{jql} ORDER BY created ASC", "labels", size=100, at=at
            )
            for raw in page:
                fields = raw.get("fields")
                labels = fields.get("labels") if isinstance(fields, Mapping) else None
                origin = mapping.origin_of(labels)
                if origin is not None and mapping.is_key(raw.get("key")):
                    found.setdefault(origin, str(raw["key"]))
            if at is None or not page:
                return found

    async def _crew(self) -> _Crew:
        cloud = await self._patient(self._client.dialect) == "cloud"
        crew = _Crew()
        for agent in await self._desk.mirror.outbound.agents():
            name = await self._account(agent, cloud=cloud)
            if name is not None:
                crew.people[agent.id] = (agent.name, name)
                crew.load[agent.id] = agent.load
        return crew

    async def _account(self, agent: "Agent", *, cloud: bool) -> dict[str, Any] | None:
        if cloud and agent.account is not None:
            return {"accountId": agent.account}
        if not self._options.sync_users:
            return None
        found = await self._patient(self._people.find, agent, note=self._options.apply)
        return named(found, cloud=cloud)

    async def _patient(self, ask: Callable[..., Awaitable[T]], *what: Any, **how: Any) -> T:
        again = partial(ask, *what, **how)
        return await patient(self._desk.clock, again, longest=LONGEST_PAUSE)

    # --- as what ---------------------------------------------------------------------------

    async def _request_target(self, desk_id: str) -> Target:
        base = f"/rest/servicedeskapi/servicedesk/{quote(desk_id, safe='')}/requesttype"
        kinds = await self._patient(self._client.all_values, base, "values", api=False)
        kind = self._choose(kinds)
        form = f"{base}/{quote(str(kind['id']), safe='')}/field"
        said = await self._patient(self._client.call, "GET", form)
        listed = said.get("requestTypeFields") if isinstance(said, dict) else None
        offered = [one for one in listed or () if isinstance(one, dict)]
        return Target(
            project=self._options.project,
            type_name=str(kind["name"]),
            fields=frozenset(str(one.get("fieldId")) for one in offered),
            urgency=_named(offered, "urgency", "validValues"),
            impact=_named(offered, "impact", "validValues"),
            desk_id=desk_id,
            request_type=str(kind["id"]),
        )

    def _choose(self, kinds: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return the kind that was asked for, else the first of those that are preferred."""
        by_name = {" ".join(str(one.get("name", "")).lower().split()): one for one in kinds}
        asked = self._options.issue_type
        if asked is not None:
            chosen = by_name.get(" ".join(asked.lower().split()))
            if chosen is None:
                raise Conflict(
                    f"Jira has no {asked} in {self._options.project}; it has"
                    f" {', '.join(str(one['name']) for one in by_name.values()) or 'none'}.",
                    code="E_JIRA_ISSUE_TYPE",
                )
            return chosen
        for name in (*_PREFERRED, *by_name):
            if name in by_name:
                return by_name[name]
        raise Conflict(
            f"Jira lets its account open nothing in {self._options.project}: give it the"
            " permission to create issues.",
            code="E_JIRA_ISSUE_TYPE",
        )


def labels_of(ticket: Ticket) -> list[str]:
    """Return the labels that an imported issue bears."""
    told = [
        wording.IMPORTED,
        f"itdesk_{ticket.id}",
        f"status_{ticket.status}",
        f"category_{ticket.category}" if ticket.category else "",
        f"priority_{ticket.priority}",
        *map(wording.label, ticket.tags[:MOST_TAGS]),
    ]
    return list(dict.fromkeys(one for one in told if one))


def _named(
    offered: Iterable[Mapping[str, Any]], name: str, values: str
) -> tuple[str, Sequence[Mapping[str, Any]]] | None:
    for one in offered:
        if str(one.get("name", "")).strip().lower() == name:
            given = one.get(values)
            given = [v for v in given if isinstance(v, Mapping)] if isinstance(given, list) else []
            return str(one.get("fieldId", one.get("key"))), given
    return None


def _chosen(value: Mapping[str, Any], *, is_request: bool) -> dict[str, Any]:
    """Return how an offered value is named when it is chosen."""
    if is_request:
        return {"id": str(value["value"])} if "value" in value else dict(value)
    return {name: value[name] for name in ("id", "value") if name in value}
