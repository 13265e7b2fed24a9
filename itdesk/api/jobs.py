"""Work that waits, runs or was given up, for administrators."""

from typing import Annotated

from pydantic import Field

from itdesk.api.paging import page_reply, window
from itdesk.api.route import Call, ListQuery, Reply, Route, Who
from itdesk.store.jobs import JobState, QueuedJob


class JobQuery(ListQuery):
    """Which jobs to list."""

    state: JobState | None = Field(None, description="Only jobs in this state.")
    type: Annotated[str, Field(max_length=200, pattern=r"^[a-z0-9_.]*$")] | None = Field(
        None, description="Only jobs of this type."
    )


async def list_jobs(call: Call) -> Reply:
    """List jobs, the newest first."""
    query: JobQuery = call.query
    page = await call.desk.jobs.list(call.caller, window(query), state=query.state, type=query.type)
    return page_reply(call, page)


async def retry(call: Call) -> Reply:
    """Let a job that was given up begin anew, behind what waits in its lane."""
    return Reply(await call.desk.jobs.retry(call.caller, call.path["id"]))


async def cancel(call: Call) -> Reply:
    """Give up a job that waits."""
    return Reply(await call.desk.jobs.cancel(call.caller, call.path["id"]))


_ERRORS = {"E_JOB_NOT_FOUND": 404, "E_JOB_STATE": 409}

ROUTES: list[Route] = [
    Route(
        id="J1",
        method="GET",
        path="/jobs",
        handler=list_jobs,
        who=Who.ADMIN,
        tag="operation",
        query=JobQuery,
        response=list[QueuedJob],
    ),
    Route(
        id="J2",
        method="POST",
        path="/jobs/{id}/retry",
        handler=retry,
        who=Who.ADMIN,
        tag="operation",
        response=QueuedJob,
        errors={**_ERRORS, "E_JOB_QUEUED_AGAIN": 409},
    ),
    Route(
        id="J3",
        method="POST",
        path="/jobs/{id}/cancel",
        handler=cancel,
        who=Who.ADMIN,
        tag="operation",
        response=QueuedJob,
        errors=_ERRORS,
    ),
]
