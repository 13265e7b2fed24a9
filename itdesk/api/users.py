"""People's accounts, and who can be given tickets."""

from pydantic import Field

from itdesk.api.fields import (
    Department,
    Email,
    Flag,
    Name,
    NewPassword,
    RoleIn,
    Search,
    Secret,
    WebAddress,
)
from itdesk.api.paging import page_reply, window
from itdesk.api.route import NO_CONTENT, Body, Call, ListQuery, Reply, Route, Who, created
from itdesk.desk.accounts import NewUser
from itdesk.model import Assignee, Role, User


class UserQuery(ListQuery):
    """Which people to list."""

    role: RoleIn | None = Field(None, description="Only people with this role.")
    q: Search | None = Field(None, description="Words that the name or address contains.")


class UserOpening(Body):
    """Somebody to get an account."""

    email: Email
    name: Name
    password: NewPassword | None = None
    role: RoleIn = Role.USER
    department: Department | None = None
    invite: Flag | None = Field(
        None,
        description="Whether to mail a link by which they set their password; if left out, that is"
        " done when no password is given.",
    )


class UserChange(Body):
    """What to change; role, email, is_active and department are the administrators'."""

    # The factories are never asked: what was not sent is not read.
    name: Name = Field(default_factory=str)
    avatar_url: WebAddress | None = None
    password: NewPassword = Field(default_factory=str)
    current_password: Secret = Field(
        default_factory=str, description="Needed to change one's own password."
    )
    email: Email = Field(default_factory=str)
    role: RoleIn = Field(default_factory=lambda: Role.USER)
    is_active: Flag = Field(default_factory=bool)
    department: Department | None = None


async def list_users(call: Call) -> Reply:
    """List people, by address."""
    query: UserQuery = call.query
    page = await call.desk.accounts.list(
        call.caller, role=query.role, q=query.q, window=window(query)
    )
    return page_reply(call, page)


async def create(call: Call) -> Reply:
    """Open an account for somebody; without a password they are invited to set one."""
    user = await call.desk.accounts.create(call.caller, _new_user(call.body))
    return created(user, f"/api/v1/users/{user.id}")


def _new_user(body: UserOpening) -> NewUser:
    fields = body.model_dump(exclude={"invite"})
    return NewUser(**fields, invite=body.password is None if body.invite is None else body.invite)


async def get(call: Call) -> Reply:
    """Return a person's account."""
    return Reply(await call.desk.accounts.get(call.caller, call.path["id"]))


async def update(call: Call) -> Reply:
    """Change the fields of a person's account that are sent."""
    wanted = call.body.model_dump(exclude_unset=True)
    return Reply(await call.desk.accounts.update(call.caller, call.path["id"], wanted))


async def delete(call: Call) -> Reply:
    """Close an account for good; history keeps the name."""
    await call.desk.accounts.delete(call.caller, call.path["id"])
    return NO_CONTENT


async def unlock(call: Call) -> Reply:
    """Let somebody sign in again at once after too many wrong passwords."""
    await call.desk.accounts.unlock(call.caller, call.path["id"])
    return NO_CONTENT


async def assignees(call: Call) -> Reply:
    """List who can be given tickets, by name, with how many open ones they have."""
    return page_reply(call, await call.desk.accounts.assignees(window(call.query)))


_MISSING = {"E_USER_NOT_FOUND": 404}
_CHANGE_ERRORS = {
    **_MISSING,
    "E_CONFLICT": 409,
    "E_USER_EMAIL_EXISTS": 409,
    "E_USER_LAST_ADMIN": 409,
    "E_BUSY": 503,
}


def _update(method: str) -> Route:
    return Route(
        id="R23",
        method=method,
        path="/users/{id}",
        handler=update,
        who=Who.SELF,
        tag="users",
        body=UserChange,
        response=User,
        errors=_CHANGE_ERRORS,
    )


ROUTES: list[Route] = [
    Route(
        id="R20",
        method="GET",
        path="/users",
        handler=list_users,
        who=Who.ADMIN,
        tag="users",
        query=UserQuery,
        response=list[User],
    ),
    Route(
        id="R21",
        method="POST",
        path="/users",
        handler=create,
        who=Who.ADMIN,
        tag="users",
        body=UserOpening,
        response=User,
        status=201,
        errors={"E_USER_EMAIL_EXISTS": 409, "E_BUSY": 503},
        idempotent=True,
    ),
    Route(
        id="R22",
        method="GET",
        path="/users/{id}",
        handler=get,
        who=Who.SELF,
        tag="users",
        response=User,
        errors=_MISSING,
    ),
    _update("PUT"),
    _update("PATCH"),
    Route(
        id="R24",
        method="DELETE",
        path="/users/{id}",
        handler=delete,
        who=Who.ADMIN,
        tag="users",
        status=204,
        errors={**_MISSING, "E_USER_LAST_ADMIN": 409, "E_USER_SELF": 409},
    ),
    Route(
        id="R24",
        method="POST",
        path="/users/{id}/unlock",
        handler=unlock,
        who=Who.ADMIN,
        tag="users",
        status=204,
        errors=_MISSING,
    ),
    Route(
        id="R25",
        method="GET",
        path="/assignees",
        handler=assignees,
        who=Who.USER,
        tag="users",
        query=ListQuery,
        response=list[Assignee],
    ),
]
