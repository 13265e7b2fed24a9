"""The evaluator against a second, naive one, on conditions and tickets that nobody thought of."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from itdesk.desk import rules
from itdesk.desk.conditions import MEANINGS, Facts, Kind, evaluate
from itdesk.model import Category, Change, Event, Priority, Role, Source, Status, Ticket

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PEOPLE = [UUID(int=n) for n in range(1, 4)]
WORDS = ["vpn", "VPN is down", "Straße", "", "a"]
TAGS = ["vpn", "VPN", "hw", "vip"]


@st.composite
def facts(draw: Any) -> Facts:
    people = draw(st.lists(st.sampled_from(PEOPLE), unique=True, max_size=2))
    status = draw(st.sampled_from(Status))
    ages = st.integers(0, 100).map(lambda hours: NOW - timedelta(hours=hours))
    ticket = Ticket(
        id=UUID(int=9), number=1, key="TSK-1", project_id=UUID(int=8), project="TSK",
        title=draw(st.sampled_from(WORDS)), description=draw(st.sampled_from(WORDS)),
        status=status, priority=draw(st.sampled_from(Priority)),
        category=draw(st.none() | st.sampled_from(Category)),
        department=draw(st.none() | st.sampled_from(WORDS)),
        tags=draw(st.lists(st.sampled_from(TAGS), unique_by=str.casefold, max_size=3)),
        reporter_id=draw(st.none() | st.sampled_from(PEOPLE)), reporter_name="Jo",
        assignee_id=people[0] if people else None, assignee_ids=people, resolution=None,
        predicted_priority=None, predicted_category=None, external=None,
        first_action_at=draw(st.none() | ages), closed_at=draw(st.none() | ages), version=2,
        created_at=draw(ages), updated_at=draw(ages),
    )  # fmt: skip
    changes = [
        Change("status", str(draw(st.sampled_from(Status))), str(status)),
        Change("tags", draw(st.lists(st.sampled_from(TAGS), max_size=2)), list(ticket.tags)),
        Change("assignee_ids", [str(draw(st.sampled_from(PEOPLE)))], [str(p) for p in people]),
    ]
    event = Event(
        type="ticket.updated", actor_id=draw(st.none() | st.sampled_from(PEOPLE)),
        actor_name="Jo", source=draw(st.sampled_from(Source)), ticket_id=ticket.id,
        ticket_version=2, changes=tuple(draw(st.lists(st.sampled_from(changes), unique_by=id))),
        data=draw(st.sampled_from([{}, {"internal": True}, {"internal": False}])),
    )  # fmt: skip
    role = draw(st.none() | st.sampled_from(Role))
    return Facts(ticket, event, NOW, role, draw(st.none() | st.sampled_from(WORDS)))


def _words_of(name: str) -> Any:
    known = MEANINGS[name]
    if known.words:
        return st.sampled_from(known.words)
    match known.kind:
        case Kind.PERSON | Kind.PEOPLE:
            return st.sampled_from([str(person) for person in PEOPLE])
        case Kind.TAGS:
            return st.sampled_from([*TAGS, "none"])
        case Kind.PROJECT:
            return st.sampled_from(["TSK", "OPS"])
    return st.sampled_from([*WORDS, "DOWN", "TSK-1", "Jo"])


@st.composite
def comparisons(draw: Any) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(MEANINGS)))
    known = MEANINGS[name]
    if known.kind is Kind.TIME:
        return {"field": name, "op": "older_than", "hours": draw(st.integers(1, 90))}
    if known.kind is Kind.FLAG:
        return {
            "field": name,
            "op": draw(st.sampled_from(["eq", "not"])),
            "value": draw(st.booleans()),
        }
    ops = ["eq", "not", "in"]
    listed = known.kind in (Kind.TAGS, Kind.PEOPLE)
    if known.kind is Kind.TEXT or listed:
        ops.append("contains")
    if known.changes:
        ops += ["changed", "changed_from", "changed_to"]
    op = draw(st.sampled_from(ops))
    one = _words_of(name)
    match op:
        case "changed":
            return {"field": name, "op": op}
        case "in":
            return {"field": name, "op": op, "value": draw(st.lists(one, min_size=1, max_size=3))}
        case "contains":
            return {"field": name, "op": op, "value": draw(one.filter(bool))}
    value = draw(st.lists(one, max_size=3) if listed else one | st.none())
    return {"field": name, "op": op, "value": value}


SHORT = st.dictionaries(
    st.sampled_from(["status", "priority", "category", "title"]),
    st.sampled_from(["open", "closed", "high", "vpn", None]), max_size=3,
)  # fmt: skip
NODES = st.recursive(
    comparisons(),
    lambda inner: st.lists(inner, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([{"all": parts}, {"any": parts}])
    ),
    max_leaves=8,
)


def naive(node: dict[str, Any], found: Facts) -> bool:
    """Decide the same in another way: on JSON, with short cuts, and written from the README."""
    if "all" in node:
        return all(naive(part, found) for part in node["all"])
    if "any" in node:
        return any(naive(part, found) for part in node["any"])
    if "op" not in node:
        return all(
            naive({"field": name, "op": "eq", "value": value}, found)
            for name, value in node.items()
        )
    name, op = node["field"], node["op"]
    value: Any = node.get("value")
    if op.startswith("changed"):
        old, new, changed = _moved(name, found)
        if op == "changed" or not changed:
            return changed
        return _same(old if op == "changed_from" else new, value)
    actual = _look_up(name, found)
    if op == "eq":
        return _same(actual, value)
    if op == "not":
        return not _same(actual, value)
    if op == "older_than":
        return actual is not None and (NOW - actual).total_seconds() > node["hours"] * 3600
    if op == "in":
        if isinstance(actual, list):
            return bool({x.casefold() for x in actual} & {x.casefold() for x in value})
        return any(actual == one for one in value)
    if isinstance(actual, list):
        return any(one.casefold() == value.casefold() for one in actual)
    return actual is not None and actual.casefold().find(value.casefold()) >= 0


def _look_up(name: str, found: Facts) -> Any:
    table: dict[str, Any] = {
        "actor.id": found.event.actor_id,
        "actor.name": found.event.actor_name,
        "actor.role": found.actor_role,
        "event.type": found.event.type,
        "event.source": found.event.source,
        "event.internal": found.event.data.get("internal") is True,
        "event.comment": found.comment,
    }
    value = table[name] if name in table else getattr(found.ticket, name)
    if isinstance(value, list):
        return [str(one) for one in value]
    plain = value is None or isinstance(value, bool | datetime)
    return value if plain else str(value)


def _moved(name: str, found: Facts) -> tuple[Any, Any, bool]:
    for change in found.event.changes:
        if change.field == name:
            return change.old, change.new, True
        if name == "assignee_id" and change.field == "assignee_ids":
            old, new = [*change.old, None][0], [*change.new, None][0]
            return old, new, old != new
    return None, None, False


def _same(actual: Any, wanted: Any) -> bool:
    if isinstance(actual, list):
        return sorted({x.casefold() for x in actual}) == sorted({x.casefold() for x in wanted})
    return bool(actual == wanted)


@settings(max_examples=400, deadline=None)
@given(node=NODES | SHORT, found=facts())
def test_two_implementations_agree(node: dict[str, Any], found: Facts) -> None:
    """S3 "conditions all keys equal", and ours beyond it: all, any and every operator."""
    parsed = rules.CONDITIONS.validate_python(node)
    verdict = evaluate(parsed, found)
    assert verdict.matched is naive(node, found), verdict.why
    assert len(verdict.why) == len(list(rules.comparisons(parsed)))
    assert rules.CONDITIONS.dump_python(parsed, mode="json", exclude_unset=True) == node
