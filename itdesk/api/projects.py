"""The series in which tickets are numbered."""

from typing import Annotated

from pydantic import Field

from itdesk.api.fields import Key, Name, Text
from itdesk.api.paging import page_reply, window
from itdesk.api.route import NO_CONTENT, Body, Call, ListQuery, Reply, Route, Who, created
from itdesk.model import Project

Description = Annotated[Text, Field(max_length=4000)]


class ProjectOpening(Body):
    """A project to be."""

    key: Key
    name: Name
    description: Description = ""


class ProjectChange(Body):
    """What to change; the key only while there are no tickets."""

    # The factories are never asked: what was not sent is not read.
    key: Key = Field(default_factory=str)
    name: Name = Field(default_factory=str)
    description: Description = Field(default_factory=str)


async def list_projects(call: Call) -> Reply:
    """List the projects, by key."""
    return page_reply(call, await call.desk.projects.list(window(call.query)))


async def create(call: Call) -> Reply:
    """Open a project; its tickets are numbered from 1."""
    project = await call.desk.projects.create(call.caller, **call.body.model_dump())
    return created(project, f"/api/v1/projects/{project.id}")


async def get(call: Call) -> Reply:
    """Return a project."""
    return Reply(await call.desk.projects.get(call.path["id"]))


async def update(call: Call) -> Reply:
    """Change the fields of a project that are sent."""
    wanted = call.body.model_dump(exclude_unset=True)
    return Reply(await call.desk.projects.update(call.caller, call.path["id"], wanted))


async def delete(call: Call) -> Reply:
    """Close a project that has no tickets."""
    await call.desk.projects.delete(call.caller, call.path["id"])
    return NO_CONTENT


_MISSING = {"E_PROJECT_NOT_FOUND": 404}
_STAYS = {
    **_MISSING,
    "E_PROJECT_NOT_EMPTY": 409,
    "E_PROJECT_IS_DEFAULT": 409,
    "E_PROJECT_IS_MIRROR": 409,
}


def _update(method: str) -> Route:
    return Route(
        id="R48",
        method=method,
        path="/projects/{id}",
        handler=update,
        who=Who.MANAGER,
        tag="projects",
        body=ProjectChange,
        response=Project,
        errors={**_STAYS, "E_PROJECT_KEY_EXISTS": 409},
    )


ROUTES: list[Route] = [
    Route(
        id="R45",
        method="GET",
        path="/projects",
        handler=list_projects,
        who=Who.USER,
        tag="projects",
        query=ListQuery,
        response=list[Project],
    ),
    Route(
        id="R46",
        method="POST",
        path="/projects",
        handler=create,
        who=Who.MANAGER,
        tag="projects",
        body=ProjectOpening,
        response=Project,
        status=201,
        errors={"E_PROJECT_KEY_EXISTS": 409},
        idempotent=True,
    ),
    Route(
        id="R47",
        method="GET",
        path="/projects/{id}",
        handler=get,
        who=Who.USER,
        tag="projects",
        response=Project,
        errors=_MISSING,
    ),
    _update("PUT"),
    _update("PATCH"),
    Route(
        id="R49",
        method="DELETE",
        path="/projects/{id}",
        handler=delete,
        who=Who.MANAGER,
        tag="projects",
        status=204,
        errors=_STAYS,
    ),
]
