"""What a rule may say: the grammar of its conditions and actions, as JSON.

Conditions are an object of fields that must all be equal, or `{"all": [...]}` and `{"any": [...]}`
of comparisons, nested. Actions are an object with one entry for each kind, done in the order of
`ORDER`, or `{"steps": [...]}` of such entries, done in the order given. What only the desk can know
(people, projects, targets) is checked elsewhere.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StrictBool,
    StrictStr,
    Tag,
    TypeAdapter,
)

from itdesk.model import PRIORITY_ALIASES, STATUS_ALIASES, Category, Priority, Role, Status

MOST_COMPARISONS: Final = 50
MOST_STEPS: Final = 20
DEEPEST: Final = 5

FieldName = Literal[
    "key", "title", "description", "status", "priority", "category", "department", "project",
    "tags", "reporter_id", "reporter_name", "assignee_id", "assignee_ids", "resolution",
    "created_at", "updated_at", "first_action_at", "closed_at", "actor.id", "actor.name",
    "actor.role", "event.type", "event.source", "event.internal", "event.comment",
]  # fmt: skip
FIELD_NAMES: Final[tuple[str, ...]] = get_args(FieldName)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _one_line(text: str) -> str:
    if _CONTROL.search(text) or not text.strip():
        raise ValueError("must be one line of text that is not blank")
    return text.strip()


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must be text that is not blank")
    return text


def _word(aliases: Mapping[str, Any]) -> BeforeValidator:
    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return aliases.get(value.lower(), value.lower())

    return BeforeValidator(read)


def _absent() -> Any:
    """Return the default of a field that may be left out but not be null."""
    return Field(default_factory=lambda: None)


Word = Annotated[StrictStr, Field(max_length=255)]
Value = Word | StrictBool | None | Annotated[list[Word], Field(max_length=50)]
Entries = Annotated[list[Word | None], Field(min_length=1, max_length=50)]
Line = Annotated[StrictStr, Field(min_length=1, max_length=100), AfterValidator(_one_line)]
TagText = Annotated[StrictStr, Field(min_length=1, max_length=64), AfterValidator(_one_line)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=10_000), AfterValidator(_not_blank)]
Hours = Annotated[float, Field(gt=0, le=87_600, strict=True)]


# Built when the first rule is read: at the start it is time that everybody waits.
_LATER = ConfigDict(defer_build=True)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


# --- conditions ---------------------------------------------------------------------------------


class Equal(_Part):
    """The field has this value; a list has these entries, in any order."""

    field: FieldName
    op: Literal["eq"]
    value: Value


class Not(_Part):
    """The field has another value."""

    field: FieldName
    op: Literal["not"]
    value: Value


class In(_Part):
    """The field has one of these values; a list has at least one of them."""

    field: FieldName
    op: Literal["in"]
    value: Entries


class Contains(_Part):
    """The text contains these words, in small or capital letters; the list has this entry."""

    field: FieldName
    op: Literal["contains"]
    value: Annotated[StrictStr, Field(min_length=1, max_length=255)]


class Changed(_Part):
    """The event changed the field."""

    field: FieldName
    op: Literal["changed"]


class ChangedFrom(_Part):
    """The event changed the field, which had this value."""

    field: FieldName
    op: Literal["changed_from"]
    value: Value


class ChangedTo(_Part):
    """The event changed the field, which has this value since."""

    field: FieldName
    op: Literal["changed_to"]
    value: Value


class OlderThan(_Part):
    """The time lies more than so many hours back; a time that never came does not."""

    field: FieldName
    op: Literal["older_than"]
    hours: Hours


Comparison = Equal | Not | In | Contains | Changed | ChangedFrom | ChangedTo | OlderThan
_Comparison = Annotated[Comparison, Field(discriminator="op")]


class All(_Part):
    """Every one of these holds."""

    all: Annotated[list["Node"], Field(min_length=1, max_length=MOST_COMPARISONS)]


class AnyOf(_Part):
    """At least one of these holds."""

    any: Annotated[list["Node"], Field(min_length=1, max_length=MOST_COMPARISONS)]


class Equals(RootModel[dict[FieldName, Value]]):
    """The short form: all of these fields have these values; an empty object always holds."""

    model_config = ConfigDict(
        frozen=True, json_schema_extra={"examples": [{"priority": "critical", "category": None}]}
    )
    root: Annotated[dict[FieldName, Value], Field(max_length=len(FIELD_NAMES))]


def _shape(value: Any) -> str | None:
    keys = value.keys() if isinstance(value, dict) else value.model_fields_set
    for name in ("all", "any"):
        if name in keys:
            return f"<{name}>"
    return "<one>" if "op" in keys or "field" in keys else "<short>"


def _inner(value: Any) -> str | None:
    if not isinstance(value, dict | BaseModel):
        return None
    shape = _shape(value)
    return "<one>" if shape == "<short>" else shape


def _outer(value: Any) -> str | None:
    if isinstance(value, Equals):
        return "<short>"
    return _shape(value) if isinstance(value, dict | BaseModel) else None


Node = Annotated[
    Annotated[All, Tag("<all>")]
    | Annotated[AnyOf, Tag("<any>")]
    | Annotated[_Comparison, Tag("<one>")],
    Discriminator(_inner),
]
Conditions = Annotated[
    Annotated[Equals, Tag("<short>")]
    | Annotated[All, Tag("<all>")]
    | Annotated[AnyOf, Tag("<any>")]
    | Annotated[_Comparison, Tag("<one>")],
    Discriminator(_outer),
    Field(
        examples=[
            {"priority": "critical"},
            {"all": [
                {"field": "priority", "op": "in", "value": ["high", "critical"]},
                {"any": [
                    {"field": "title", "op": "contains", "value": "vpn"},
                    {"field": "tags", "op": "contains", "value": "vpn"},
                ]},
                {"field": "actor.role", "op": "not", "value": "admin"},
            ]},
        ]
    ),
]  # fmt: skip
CONDITIONS: Final[TypeAdapter[Any]] = TypeAdapter(Conditions, config=_LATER)


def comparisons(node: Any, path: str = "conditions") -> Iterator[tuple[str, Comparison]]:
    """Yield every comparison of conditions with its path; the short form's are equalities."""
    if isinstance(node, Equals):
        for name, value in node.root.items():
            yield f"{path}.{name}", Equal(field=name, op="eq", value=value)
    elif isinstance(node, All | AnyOf):
        word, parts = ("all", node.all) if isinstance(node, All) else ("any", node.any)
        for place, part in enumerate(parts):
            yield from comparisons(part, f"{path}.{word}.{place}")
    else:
        yield path, node


def depth(node: Any) -> int:
    """Return how deep conditions are nested; a single comparison is not."""
    if isinstance(node, All | AnyOf):
        return 1 + max(map(depth, node.all if isinstance(node, All) else node.any))
    return 0


# --- actions ------------------------------------------------------------------------------------

Person = Annotated[
    Word, Field(min_length=1, description="A person's id or e-mail address.", examples=["jo@x.org"])
]


class LeastLoaded(_Part):
    """Who is asked: people of this role or above, and of this department."""

    role: Annotated[Literal[Role.AGENT, Role.MANAGER, Role.ADMIN], _word({})] = Role.AGENT
    department: Line | None = None


class Fields(_Part):
    """Fields of the ticket and what they become; those left out stay."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    title: Annotated[StrictStr, Field(min_length=3, max_length=255), AfterValidator(_one_line)] = (
        _absent()
    )
    description: Annotated[StrictStr, Field(max_length=10_000)] = _absent()
    priority: Annotated[Priority, _word(PRIORITY_ALIASES)] = _absent()
    category: Annotated[Category, _word({})] | None = None
    department: Line | None = None
    project: Annotated[StrictStr, Field(pattern=r"^[A-Z][A-Z0-9]{1,9}$")] = _absent()
    resolution: Text | None = None


class CommentText(_Part):
    """What is said, and whether only agents and above see it."""

    body: Text
    internal: StrictBool = False


_TO = r"^(reporter|assignees|role:(agent|manager|admin)|user:\S{3,254})$"


class Notice(_Part):
    """A mail: whom it goes to and what it says; the ticket's key, title and link are added."""

    to: Annotated[
        list[Annotated[StrictStr, Field(pattern=_TO)]], Field(min_length=1, max_length=10)
    ] = Field(
        description="reporter, assignees, role:<role> or user:<id or e-mail address>.",
        examples=[["reporter", "role:manager"]],
    )
    message: Text


AddTag = TagText | Annotated[list[TagText], Field(min_length=1, max_length=20)]
Target = Annotated[Word, Field(min_length=1, description="A target's id or name.")]


class Keyed(_Part):
    """One action of each kind, done in the order in which they are listed here."""

    model_config = ConfigDict(
        json_schema_extra={
            "minProperties": 1,
            "examples": [{"assign_least_loaded": {"role": "agent"}, "change_status": "triaged"}],
        }
    )

    assign_user: Person = _absent()
    assign_least_loaded: LeastLoaded = _absent()
    set_field: Fields = _absent()
    add_tag: AddTag = _absent()
    change_status: Annotated[Status, _word(STATUS_ALIASES)] = _absent()
    add_comment: Text | CommentText = _absent()
    send_notification: Notice = _absent()
    call_webhook: Target = _absent()


ORDER: Final = tuple(Keyed.model_fields)


class AssignUserStep(_Part):
    """Make this person the assignee."""

    assign_user: Person


class AssignLeastLoadedStep(_Part):
    """Make the person with the fewest unclosed tickets the assignee."""

    assign_least_loaded: LeastLoaded


class SetFieldStep(_Part):
    """Set fields."""

    set_field: Fields


class AddTagStep(_Part):
    """Add tags."""

    add_tag: AddTag


class ChangeStatusStep(_Part):
    """Move the ticket along its lifecycle."""

    change_status: Annotated[Status, _word(STATUS_ALIASES)]


class AddCommentStep(_Part):
    """Say something, as the desk."""

    add_comment: Text | CommentText


class SendNotificationStep(_Part):
    """Send a mail."""

    send_notification: Notice


class CallWebhookStep(_Part):
    """Call a target."""

    call_webhook: Target


def _kind(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        value = value.model_fields_set
    return f"<{next(iter(value))}>" if isinstance(value, dict | set) and len(value) == 1 else None


Step = Annotated[
    Annotated[AssignUserStep, Tag("<assign_user>")]
    | Annotated[AssignLeastLoadedStep, Tag("<assign_least_loaded>")]
    | Annotated[SetFieldStep, Tag("<set_field>")]
    | Annotated[AddTagStep, Tag("<add_tag>")]
    | Annotated[ChangeStatusStep, Tag("<change_status>")]
    | Annotated[AddCommentStep, Tag("<add_comment>")]
    | Annotated[SendNotificationStep, Tag("<send_notification>")]
    | Annotated[CallWebhookStep, Tag("<call_webhook>")],
    Discriminator(_kind),
]


class Steps(_Part):
    """Actions in the order in which they are done; a kind may come more than once."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=MOST_STEPS)] = Field(
        examples=[[{"add_tag": "vpn"}, {"call_webhook": "pager"}]]
    )


def _form(value: Any) -> str | None:
    if isinstance(value, Steps) or (isinstance(value, dict) and "steps" in value):
        return "<steps>"
    return "<keyed>" if isinstance(value, dict | Keyed) else None


Actions = Annotated[
    Annotated[Keyed, Tag("<keyed>")] | Annotated[Steps, Tag("<steps>")], Discriminator(_form)
]
ACTIONS: Final[TypeAdapter[Any]] = TypeAdapter(Actions, config=_LATER)


def steps(actions: Any) -> list[tuple[str, str, Any]]:
    """Return the path, kind and value of each action, in the order in which they are done."""
    if isinstance(actions, Steps):
        found = []
        for place, step in enumerate(actions.steps):
            (kind,) = step.model_fields_set
            found.append((f"actions.steps.{place}.{kind}", kind, getattr(step, kind)))
        return found
    return [
        (f"actions.{kind}", kind, getattr(actions, kind))
        for kind in ORDER
        if kind in actions.model_fields_set
    ]


class Unchanged(_Part):
    """For the trigger unchanged_for: how long a ticket has stayed unchanged in which status."""

    hours: Annotated[float, Field(ge=0.25, le=87_600, strict=True)]
    status: Annotated[Status, _word(STATUS_ALIASES)]


UNCHANGED: Final[TypeAdapter[Any]] = TypeAdapter(Unchanged)
