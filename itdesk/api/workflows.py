"""Workflow rules, their trials and runs, and the targets that they may call, for administrators."""

from typing import Annotated, Any
from uuid import UUID

from pydantic import Field, WithJsonSchema

from itdesk.api.fields import Flag, Name, Text, WebAddress, absent
from itdesk.api.paging import page_reply, window
from itdesk.api.route import (
    NO_CONTENT,
    Body,
    Call,
    ListQuery,
    Reply,
    Route,
    Who,
    created,
)
from itdesk.desk import rules
from itdesk.desk.replay import Replayed, draft_of
from itdesk.desk.workflows import Tried
from itdesk.store.workflow_runs import WorkflowRun
from itdesk.store.workflow_targets import WorkflowTarget
from itdesk.store.workflows import Trigger, WorkflowRule


class _Shown:
    """Documents a value by a grammar; what does not fit is refused by the desk, all at once."""

    def __init__(self, grammar: Any) -> None:
        self._grammar = grammar

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Return the schema of the grammar, its parts shared with the document."""
        return handler(self._grammar.core_schema)


_TRIGGERS = {"type": "string", "enum": list(Trigger)}
TriggerIn = Annotated[str, Field(max_length=40), WithJsonSchema(_TRIGGERS)]
Object = dict[str, Any]
ConditionsIn = Annotated[Object, _Shown(rules.CONDITIONS)]
ActionsIn = Annotated[Object, _Shown(rules.ACTIONS)]
UnchangedIn = Annotated[Object, _Shown(rules.UNCHANGED)]
Place = Annotated[int, Field(ge=0, le=1_000_000)]
Description = Annotated[Text, Field(max_length=4000)]
_EXAMPLE: dict[str, Any] = {
    "name": "Critical at night",
    "trigger": "ticket_created",
    "conditions": {"priority": "critical"},
    "actions": {
        "assign_least_loaded": {"role": "agent"},
        "add_comment": {"body": "Critical: please look at once.", "internal": True},
    },
}


class RuleProposal(Body):
    """What a rule looks at and does."""

    trigger: TriggerIn
    unchanged_for: UnchangedIn | None = Field(
        None, description="Required by the trigger unchanged_for, and only there."
    )
    conditions: ConditionsIn = {}
    actions: ActionsIn


class RuleOpening(RuleProposal):
    """A rule to be."""

    model_config = {"json_schema_extra": {"examples": [_EXAMPLE]}}

    name: Name
    description: Description = ""
    active: Flag = True
    position: Place | None = Field(None, description="Lower ones run first; last when left out.")


class RuleChange(Body):
    """What to change on a rule; a field that is left out stays as it is."""

    name: Name = absent()
    description: Description = absent()
    trigger: TriggerIn = absent()
    unchanged_for: UnchangedIn | None = None
    conditions: ConditionsIn = absent()
    actions: ActionsIn = absent()
    active: Flag = absent()
    position: Place = absent()


class Trial(Body):
    """Which ticket to try a rule on."""

    ticket: Annotated[str, Field(min_length=1, max_length=40, description="Id, key or number.")]


class Rerun(Body):
    """A proposed rule, and which part of the journal to try it on."""

    rule: RuleProposal
    days: Annotated[int, Field(ge=1, le=366)] = 7
    limit: int = Field(100, ge=1, le=500, description="How many matching events to show at most.")
    events: int = Field(
        5_000, ge=1, le=20_000, description="How many journal rows to look through at most."
    )


class Order(Body):
    """Rules in the order in which they shall run; the others come behind them as they were."""

    ids: Annotated[
        list[UUID], Field(min_length=1, max_length=200, json_schema_extra={"uniqueItems": True})
    ]


class RunQuery(ListQuery):
    """Which runs of a rule."""

    ticket: Annotated[str, Field(max_length=40)] | None = Field(
        None, description="Only runs about this ticket: its id, key or number."
    )
    matched: bool | None = Field(None, description="Only runs whose conditions held, or did not.")


SigningSecret = Annotated[
    str, Field(min_length=16, max_length=200, pattern=r"^[!-~]+$", description="Never shown.")
]


class TargetOpening(Body):
    """An address that rules may call."""

    name: Name
    url: WebAddress
    secret: SigningSecret
    internal_comments: Flag = Field(False, description="Whether internal comments are sent too.")


class TargetChange(Body):
    """What to change on a target."""

    name: Name = absent()
    url: WebAddress = absent()
    secret: SigningSecret = absent()
    internal_comments: Flag = absent()


async def list_rules(call: Call) -> Reply:
    """List the rules, in the order in which they run."""
    return page_reply(call, await call.desk.workflows.list(call.caller, window(call.query)))


async def create(call: Call) -> Reply:
    """Add a rule; it acts on what happens from now on."""
    rule = await call.desk.workflows.create(call.caller, call.body.model_dump())
    return created(rule, f"/api/v1/workflows/{rule.id}")


async def get(call: Call) -> Reply:
    """Return a rule."""
    return Reply(await call.desk.workflows.get(call.caller, call.path["id"]))


async def update(call: Call) -> Reply:
    """Change the fields of a rule that are sent; active=false stops it at once."""
    wanted = call.body.model_dump(exclude_unset=True)
    return Reply(await call.desk.workflows.update(call.caller, call.path["id"], wanted))


async def delete(call: Call) -> Reply:
    """Remove a rule."""
    await call.desk.workflows.delete(call.caller, call.path["id"])
    return NO_CONTENT


async def reorder(call: Call) -> Reply:
    """Put rules into an order; return all of them in theirs."""
    return Reply(await call.desk.workflows.reorder(call.caller, call.body.ids))


async def try_out(call: Call) -> Reply:
    """Tell what a rule would do to a ticket now, without doing it."""
    return Reply(await call.desk.workflows.try_out(call.caller, call.path["id"], call.body.ticket))


async def replay(call: Call) -> Reply:
    """Tell what a proposed rule would have done in the last days, the newest first."""
    body: Rerun = call.body
    found = await call.desk.replay.replay(
        call.caller,
        draft_of(body.rule.model_dump()),
        days=body.days,
        most_events=body.events,
        most_touched=body.limit,
    )
    return Reply(found)


async def list_runs(call: Call) -> Reply:
    """List what a rule looked at and did, and why, the newest first."""
    query: RunQuery = call.query
    page = await call.desk.workflows.runs(
        call.caller, call.path["id"], window(query), ticket=query.ticket, matched=query.matched
    )
    return page_reply(call, page)


async def list_targets(call: Call) -> Reply:
    """List the targets that rules may call, by name."""
    return page_reply(call, await call.desk.webhooks.list(call.caller, window(call.query)))


async def create_target(call: Call) -> Reply:
    """Let rules call an address."""
    target = await call.desk.webhooks.create(call.caller, call.body.model_dump())
    return created(target, f"/api/v1/workflow-targets/{target.id}")


async def get_target(call: Call) -> Reply:
    """Return a target; its secret is never shown."""
    return Reply(await call.desk.webhooks.get(call.caller, call.path["id"]))


async def update_target(call: Call) -> Reply:
    """Change the fields of a target that are sent."""
    wanted = call.body.model_dump(exclude_unset=True)
    return Reply(await call.desk.webhooks.update(call.caller, call.path["id"], wanted))


async def delete_target(call: Call) -> Reply:
    """Let rules no longer call an address; not while one does."""
    await call.desk.webhooks.delete(call.caller, call.path["id"])
    return NO_CONTENT


_MISSING = {"E_WORKFLOW_NOT_FOUND": 404}
_INVALID = {"E_WORKFLOW_INVALID_RULE": 422}
_NO_TARGET = {"E_WORKFLOW_TARGET_NOT_FOUND": 404}
_TAKEN = {"E_WORKFLOW_TARGET_NAME_EXISTS": 409}


def _route(id: str, method: str, path: str, handler: Any, **more: Any) -> Route:
    return Route(
        id=id, method=method, path=path, handler=handler, who=Who.ADMIN, tag="workflows", **more
    )


ROUTES: list[Route] = [
    _route("R50", "GET", "/workflows", list_rules, query=ListQuery, response=list[WorkflowRule]),
    _route(
        "R51", "POST", "/workflows", create, body=RuleOpening, response=WorkflowRule, status=201,
        errors={**_INVALID, "E_WORKFLOW_TOO_MANY": 409}, idempotent=True,
    ),
    _route(
        "W1", "PUT", "/workflows/order", reorder, body=Order, response=list[WorkflowRule],
        errors=_MISSING,
    ),
    _route(
        "W2", "POST", "/workflows/replay", replay, body=Rerun, response=Replayed, errors=_INVALID
    ),
    _route("R52", "GET", "/workflows/{id}", get, response=WorkflowRule, errors=_MISSING),
    _route(
        "R53", "PUT", "/workflows/{id}", update, body=RuleChange, response=WorkflowRule,
        errors={**_MISSING, **_INVALID},
    ),
    _route("R54", "DELETE", "/workflows/{id}", delete, status=204, errors=_MISSING),
    _route(
        "W3", "POST", "/workflows/{id}/dry-run", try_out, body=Trial, response=Tried,
        errors={**_MISSING, "E_TICKET_NOT_FOUND": 404},
    ),
    _route(
        "W4", "GET", "/workflows/{id}/runs", list_runs, query=RunQuery,
        response=list[WorkflowRun], errors={**_MISSING, "E_TICKET_NOT_FOUND": 404},
    ),
    _route(
        "W5", "GET", "/workflow-targets", list_targets, query=ListQuery,
        response=list[WorkflowTarget],
    ),
    _route(
        "W6", "POST", "/workflow-targets", create_target, body=TargetOpening,
        response=WorkflowTarget, status=201,
        errors={**_TAKEN, "E_WORKFLOW_TOO_MANY": 409}, idempotent=True,
    ),
    _route(
        "W7", "GET", "/workflow-targets/{id}", get_target, response=WorkflowTarget,
        errors=_NO_TARGET,
    ),
    _route(
        "W8", "PUT", "/workflow-targets/{id}", update_target, body=TargetChange,
        response=WorkflowTarget, errors={**_NO_TARGET, **_TAKEN},
    ),
    _route(
        "W9", "DELETE", "/workflow-targets/{id}", delete_target, status=204,
        errors={**_NO_TARGET, "E_WORKFLOW_TARGET_IN_USE": 409},
    ),
]  # fmt: skip
