"""Whether a rule can be what it says: its fields, words, people, projects and targets are real."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from itdesk.desk import rules
from itdesk.desk.conditions import MEANINGS, Kind, Meaning
from itdesk.errors import Invalid
from itdesk.frozen import frozen
from itdesk.store import rulechecks, workflow_targets
from itdesk.store.workflows import Trigger

MOST_PROBLEMS: Final = 100
# With these triggers an event may tell of changes.
_CHANGING = frozenset({Trigger.TICKET_UPDATED, Trigger.STATUS_CHANGED})
_TRIGGERS = frozenset(map(str, Trigger))
_LISTS = frozenset({Kind.TAGS, Kind.PEOPLE})


@dataclass(slots=True)
class Draft:
    """What somebody wants a rule to be, and all that is wrong with it."""

    trigger: str
    unchanged_for: Any
    conditions: Any
    actions: Any
    problems: list[dict[str, str]] = field(default_factory=list)

    def wrong(self, path: str, problem: str) -> None:
        """Note a problem."""
        entry = {"path": path, "problem": problem}
        if entry not in self.problems:
            self.problems.append(entry)


@frozen
class Checked:
    """A rule that can be: parsed, and as JSON with people and targets named by their ids."""

    trigger: Trigger
    unchanged_for: dict[str, Any] | None
    conditions: dict[str, Any]
    actions: dict[str, Any]
    parsed_conditions: Any
    parsed_actions: Any


async def check(conn: Any, draft: Draft) -> Checked:
    """Return the rule, or raise Invalid E_WORKFLOW_INVALID_RULE with all problems and paths."""
    if draft.trigger not in _TRIGGERS:
        draft.wrong("trigger", f"must be one of {', '.join(Trigger)}")
    unchanged = _unchanged(draft)
    conditions = _parsed(draft, rules.CONDITIONS, draft.conditions, "conditions")
    actions = _parsed(draft, rules.ACTIONS, draft.actions, "actions")
    people: dict[str, str] = {}
    projects: dict[str, str] = {}
    if conditions is not None:
        _check_conditions(draft, conditions, people, projects)
    wanted = rules.steps(actions) if actions is not None else []
    if actions is not None and not wanted:
        draft.wrong("actions", "must have at least one action")
    named = await _references(conn, draft, wanted, people, projects)
    if draft.problems:
        raise _invalid(draft.problems)
    said = rules.ACTIONS.dump_python(actions, mode="json", exclude_unset=True)
    said = _with_ids(said, named)
    return Checked(
        Trigger(draft.trigger),
        unchanged,
        rules.CONDITIONS.dump_python(conditions, mode="json", exclude_unset=True),
        said,
        conditions,
        rules.ACTIONS.validate_python(said),
    )


def _unchanged(draft: Draft) -> dict[str, Any] | None:
    if draft.trigger != Trigger.UNCHANGED_FOR:
        if draft.unchanged_for is not None:
            draft.wrong("unchanged_for", "is only for the trigger unchanged_for")
        return None
    if draft.unchanged_for is None:
        draft.wrong("unchanged_for", 'is required, such as {"hours": 48, "status": "blocked"}')
        return None
    found = _parsed(draft, rules.UNCHANGED, draft.unchanged_for, "unchanged_for")
    return found.model_dump(mode="json") if found is not None else None


def _parsed(draft: Draft, adapter: TypeAdapter[Any], value: Any, part: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False):
            draft.wrong(".".join([part, *_path(error["loc"])]), _words(error))
        return None


def _path(loc: Sequence[int | str]) -> Iterator[str]:
    """Yield what a client sent, without the names that pydantic gives to the choices."""
    skip = False
    for part in loc:
        if skip:
            skip = False
        elif part == "<one>":
            # The operator chose among the comparisons.
            skip = True
        elif isinstance(part, int):
            yield str(part)
        elif part.startswith("<") or "[" in part or "-" in part or part[:1].isupper():
            continue
        elif part not in ("str", "bool", "none"):
            yield part[:100]


def _words(error: Any) -> str:
    match error["type"]:
        case "union_tag_invalid" if error["ctx"]["discriminator"] == "'op'":
            return "op must be one of " + str(error["ctx"]["expected_tags"]).replace("'", "")
        case "union_tag_invalid":
            kinds = str(error["ctx"]["expected_tags"]).replace("'", "")
            return "must be one of " + kinds.replace("<", "").replace(">", "")
        case "union_tag_not_found":
            return "must be an object of the documented form, with one kind of entry"
        case "extra_forbidden":
            return "is not known here"
        case "missing":
            return "is required"
        case "recursion_loop":
            return "must not contain itself"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text.replace("Input should be", "must be").replace("Input should", "must")


# --- conditions ---------------------------------------------------------------------------------


def _check_conditions(
    draft: Draft, conditions: Any, people: dict[str, str], projects: dict[str, str]
) -> None:
    found = list(rules.comparisons(conditions))
    if len(found) > rules.MOST_COMPARISONS:
        draft.wrong("conditions", f"must have at most {rules.MOST_COMPARISONS} comparisons")
    if rules.depth(conditions) > rules.DEEPEST:
        draft.wrong("conditions", f"must be nested at most {rules.DEEPEST} deep")
    for path, one in found:
        known = MEANINGS[one.field]
        for problem in _misused(one, known, draft.trigger):
            draft.wrong(path, problem)
        for value in _values(one):
            if value is not None and known.kind in (Kind.PERSON, Kind.PEOPLE):
                people[path] = str(value)
            elif value is not None and known.kind is Kind.PROJECT:
                projects[path] = str(value)


def _values(one: rules.Comparison) -> list[Any]:
    value = getattr(one, "value", None)
    return value if isinstance(value, list) else [value]


def _misused(one: rules.Comparison, known: Meaning, trigger: str) -> Iterator[str]:
    """Yield what is wrong with comparing this field so, or with such a value."""
    if one.op.startswith("changed"):
        if not known.changes:
            yield f"{one.field} is not a field whose changes are told"
        elif trigger in _TRIGGERS and trigger not in _CHANGING:
            yield f"nothing changes at the trigger {trigger}"
    if (one.op == "older_than") != (known.kind is Kind.TIME):
        yield f"{one.field} is {known.kind}: it cannot be compared by {one.op}"
        return
    if one.op == "contains" and known.kind not in (Kind.TEXT, *_LISTS):
        yield f"{one.field} is {known.kind}: it contains nothing"
        return
    if isinstance(one, rules.OlderThan | rules.Changed | rules.Contains):
        return
    whole = one.op != "in" and known.kind in _LISTS
    if whole != isinstance(one.value, list) and one.op != "in":
        yield f"{one.field} is {known.kind}: the value must be {'a list' if whole else 'one value'}"
        return
    for value in _values(one):
        yield from _misfit(value, known, one.field)


def _misfit(value: Any, known: Meaning, name: str) -> Iterator[str]:
    if value is None:
        if not known.nullable:
            yield f"{name} is never null"
    elif known.kind is Kind.FLAG:
        if not isinstance(value, bool):
            yield f"{name} is true or false"
    elif isinstance(value, bool):
        yield f"{name} is {known.kind}"
    elif known.words and value not in known.words:
        yield f"must be one of {', '.join(known.words)}"


# --- what is referred to ------------------------------------------------------------------------


async def _references(
    conn: Any,
    draft: Draft,
    steps: Sequence[tuple[str, str, Any]],
    people: dict[str, str],
    projects: dict[str, str],
) -> dict[str, str]:
    """Check that whatever is named is there; return the ids of people and targets named."""
    assigned: dict[str, str] = {}
    targets: dict[str, str] = {}
    for path, kind, value in steps:
        if kind == "assign_user":
            people[path] = assigned[path] = value
        elif kind == "call_webhook":
            targets[path] = value
        elif kind == "send_notification":
            for place, who in enumerate(value.to):
                if who.startswith("user:"):
                    people[f"{path}.to.{place}"] = who.removeprefix("user:")
        elif kind == "set_field":
            if not value.model_fields_set:
                draft.wrong(path, "must name a field")
            if "project" in value.model_fields_set:
                projects[f"{path}.project"] = value.project
    known = await rulechecks.people(conn, list({*people.values()}))
    for path, ref in people.items():
        person = known.get(ref)
        if person is None:
            draft.wrong(path, "there is no such person; give an id or an e-mail address")
        elif path in assigned and not person.assignable:
            draft.wrong(path, "cannot be given tickets; GET /api/v1/assignees lists who can")
    local = await rulechecks.projects(conn, list({*projects.values()}))
    for path, key in projects.items():
        if key not in local:
            draft.wrong(path, "there is no such project")
        elif path.startswith("actions") and not local[key]:
            draft.wrong(path, "the project does not number its own tickets")
    found = await workflow_targets.find(conn, list({*targets.values()}))
    for path, ref in targets.items():
        if ref not in found:
            draft.wrong(path, "there is no such target; GET /api/v1/workflow-targets lists them")
    return {
        **{f"person {ref}": str(person.id) for ref, person in known.items()},
        **{f"target {ref}": str(id) for ref, id in found.items()},
    }


def _with_ids(actions: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """Return actions with ids for the people and targets that they name."""
    if "steps" in actions:
        return {"steps": [_with_ids(step, named) for step in actions["steps"]]}
    said = dict(actions)
    if "assign_user" in said:
        said["assign_user"] = named[f"person {said['assign_user']}"]
    if "call_webhook" in said:
        said["call_webhook"] = named[f"target {said['call_webhook']}"]
    if "send_notification" in said:
        notice = said["send_notification"]
        to = [
            f"user:{named['person ' + who[5:]]}" if who.startswith("user:") else who
            for who in notice["to"]
        ]
        said["send_notification"] = {**notice, "to": to}
    return said


def _invalid(problems: Sequence[Mapping[str, str]]) -> Invalid:
    first = problems[0]
    message = f"{first['path']}: {first['problem']}"
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return Invalid(
        message,
        code="E_WORKFLOW_INVALID_RULE",
        details={"fields": list(problems[:MOST_PROBLEMS])},
    )
