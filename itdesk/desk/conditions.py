"""Whether conditions hold: pure, and every comparison says what it expected and what it found.

All comparisons are made, also those that could not change the answer any more: whoever wonders
about a rule shall see all of it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from itdesk.desk.rules import (
    All,
    AnyOf,
    Changed,
    ChangedFrom,
    ChangedTo,
    Comparison,
    Contains,
    Equal,
    In,
    Not,
    OlderThan,
    comparisons,
)
from itdesk.frozen import frozen
from itdesk.model import (
    Category,
    Change,
    Event,
    Priority,
    Role,
    Source,
    Status,
    Ticket,
)

LONGEST_SHOWN: Final = 200


class Kind(StrEnum):
    """What a field holds, and so what it can be compared with."""

    TEXT = "text"
    WORD = "one of a few words"
    PROJECT = "the key of a project"
    PERSON = "the id of a person"
    PEOPLE = "ids of people"
    TAGS = "tags"
    TIME = "a time"
    FLAG = "true or false"


@frozen
class Meaning:
    """What is known of a field: its kind, its words, and whether it can be empty or change."""

    kind: Kind
    words: tuple[str, ...] = ()
    nullable: bool = False
    changes: bool = False


_EVENTS = ("ticket.created", "ticket.updated", "comment.added")
MEANINGS: Final[Mapping[str, Meaning]] = {
    "key": Meaning(Kind.TEXT, changes=True),
    "title": Meaning(Kind.TEXT, changes=True),
    "description": Meaning(Kind.TEXT, changes=True),
    "status": Meaning(Kind.WORD, tuple(Status), changes=True),
    "priority": Meaning(Kind.WORD, tuple(Priority), changes=True),
    "category": Meaning(Kind.WORD, tuple(Category), nullable=True, changes=True),
    "department": Meaning(Kind.TEXT, nullable=True, changes=True),
    "project": Meaning(Kind.PROJECT, changes=True),
    "tags": Meaning(Kind.TAGS, changes=True),
    "reporter_id": Meaning(Kind.PERSON, nullable=True),
    "reporter_name": Meaning(Kind.TEXT),
    "assignee_id": Meaning(Kind.PERSON, nullable=True, changes=True),
    "assignee_ids": Meaning(Kind.PEOPLE, changes=True),
    "resolution": Meaning(Kind.TEXT, nullable=True, changes=True),
    "created_at": Meaning(Kind.TIME),
    "updated_at": Meaning(Kind.TIME),
    "first_action_at": Meaning(Kind.TIME, nullable=True),
    "closed_at": Meaning(Kind.TIME, nullable=True),
    "actor.id": Meaning(Kind.PERSON, nullable=True),
    "actor.name": Meaning(Kind.TEXT),
    "actor.role": Meaning(Kind.WORD, tuple(Role), nullable=True),
    "event.type": Meaning(Kind.WORD, _EVENTS),
    "event.source": Meaning(Kind.WORD, tuple(Source)),
    "event.internal": Meaning(Kind.FLAG),
    "event.comment": Meaning(Kind.TEXT, nullable=True),
}


@frozen
class Facts:
    """What a rule looks at: a ticket, what happened to it, who did it, and what time it is."""

    ticket: Ticket
    event: Event
    now: datetime
    actor_role: Role | None = None
    comment: str | None = None

    def value(self, name: str) -> Any:
        """Return a field as JSON would say it; times stay times."""
        match name:
            case "actor.id":
                return _plain(self.event.actor_id)
            case "actor.name":
                return self.event.actor_name
            case "actor.role":
                return _plain(self.actor_role)
            case "event.type":
                return self.event.type
            case "event.source":
                return str(self.event.source)
            case "event.internal":
                return bool(self.event.data.get("internal", False))
            case "event.comment":
                return self.comment
        return _plain(getattr(self.ticket, name))

    def change(self, name: str) -> Change | None:
        """Return how the event changed a field, or None."""
        if name == "assignee_id":
            people = self.change("assignee_ids")
            if people is None:
                return None
            old, new = (_first(people.old), _first(people.new))
            return Change(name, old, new) if old != new else None
        return next((change for change in self.event.changes if change.field == name), None)


@frozen
class Verdict:
    """Whether conditions hold, and what each comparison expected and found."""

    matched: bool
    why: list[dict[str, Any]]


def evaluate(conditions: Any, facts: Facts) -> Verdict:
    """Return whether conditions hold for these facts, and why."""
    why = []
    met: dict[str, bool] = {}
    for path, one in comparisons(conditions):
        expected, found, holds = compare(one, facts)
        met[path] = holds
        why.append(
            {
                "path": path,
                "field": one.field,
                "op": one.op,
                "expected": _shown(expected),
                "found": _shown(found),
                "met": holds,
            }
        )
    return Verdict(_holds(conditions, met, "conditions"), why)


def _holds(node: Any, met: Mapping[str, bool], path: str) -> bool:
    if isinstance(node, All):
        return all(_holds(part, met, f"{path}.all.{at}") for at, part in enumerate(node.all))
    if isinstance(node, AnyOf):
        return any(_holds(part, met, f"{path}.any.{at}") for at, part in enumerate(node.any))
    return met[path] if path in met else all(met.values())


def compare(one: Comparison, facts: Facts) -> tuple[Any, Any, bool]:
    """Return what a comparison expects, what it finds, and whether it holds."""
    kind = MEANINGS[one.field].kind
    match one:
        case Equal():
            found = facts.value(one.field)
            return one.value, found, _equal(kind, found, one.value)
        case Not():
            found = facts.value(one.field)
            return one.value, found, not _equal(kind, found, one.value)
        case In():
            found = facts.value(one.field)
            return one.value, found, _among(kind, found, one.value)
        case Contains():
            found = facts.value(one.field)
            return one.value, found, _contains(kind, found, one.value)
        case OlderThan():
            found = facts.value(one.field)
            limit = facts.now - timedelta(hours=one.hours)
            return f"before {limit.isoformat()}", found, found is not None and found < limit
        case Changed():
            change = facts.change(one.field)
            return "a change", _told(change), change is not None
        case ChangedFrom():
            change = facts.change(one.field)
            return (
                one.value,
                _told(change),
                change is not None and _equal(kind, change.old, one.value),
            )
        case ChangedTo():
            change = facts.change(one.field)
            return (
                one.value,
                _told(change),
                change is not None and _equal(kind, change.new, one.value),
            )


def _equal(kind: Kind, found: Any, wanted: Any) -> bool:
    if kind is Kind.TAGS or kind is Kind.PEOPLE:
        return {entry.casefold() for entry in found or ()} == {
            entry.casefold() for entry in wanted or ()
        }
    return bool(found == wanted)


def _among(kind: Kind, found: Any, wanted: list[str | None]) -> bool:
    if kind is Kind.TAGS or kind is Kind.PEOPLE:
        few = {entry.casefold() for entry in wanted if entry is not None}
        return any(entry.casefold() in few for entry in found)
    return found in wanted


def _contains(kind: Kind, found: Any, wanted: str) -> bool:
    if found is None:
        return False
    if kind is Kind.TAGS or kind is Kind.PEOPLE:
        return wanted.casefold() in {entry.casefold() for entry in found}
    return wanted.casefold() in found.casefold()


def _told(change: Change | None) -> Any:
    return None if change is None else {"old": cut(change.old), "new": cut(change.new)}


def _first(people: Any) -> Any:
    return people[0] if people else None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [str(entry) for entry in value]
    return str(value) if isinstance(value, StrEnum | UUID) else value


def _shown(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else cut(value)


def cut(value: Any) -> Any:
    """Return a value with its texts cut where they are too long to be logged."""
    if isinstance(value, str) and len(value) > LONGEST_SHOWN:
        return value[: LONGEST_SHOWN - 1] + "…"
    return [cut(entry) for entry in value] if isinstance(value, list) else value
