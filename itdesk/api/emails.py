"""What mail is owed, went out or failed, and who wants to be told of what."""

from pydantic import Field

from itdesk.api.fields import Flag
from itdesk.api.paging import page_reply, window
from itdesk.api.route import Body, Call, ListQuery, Reply, Route, Who
from itdesk.model import Email, MailStatus, NotificationSettings, Topic


class EmailQuery(ListQuery):
    """Which mails to list."""

    status: MailStatus | None = Field(None, description="Only mails in this state.")
    to: str | None = Field(
        None, max_length=320, pattern=r"^[^\x00]*$", description="Only mails to this address."
    )


class NotificationChange(Body):
    """Which mails about tickets to get; what is not sent stays as it is."""

    # The factories are never asked: what was not sent is not read.
    ticket_created: Flag = Field(
        default_factory=bool, description="New tickets, for agents and above."
    )
    ticket_assigned: Flag = Field(default_factory=bool, description="A ticket was given to you.")
    status_changed: Flag = Field(
        default_factory=bool, description="Your ticket has another status."
    )
    comment_added: Flag = Field(default_factory=bool, description="A comment on your ticket.")
    file_recalled: Flag = Field(
        default_factory=bool, description="A file that you downloaded was withdrawn."
    )


async def list_emails(call: Call) -> Reply:
    """List mails, the newest first; what they say is not shown."""
    query: EmailQuery = call.query
    page = await call.desk.mail.list(call.caller, window(query), status=query.status, to=query.to)
    return page_reply(call, page)


async def retry(call: Call) -> Reply:
    """Let a mail that failed or was skipped be sent after all."""
    return Reply(await call.desk.mail.retry(call.caller, call.path["id"]))


async def wanted(call: Call) -> Reply:
    """Return which mails about tickets a person gets."""
    return Reply(await call.desk.notices.get(call.caller, call.path["id"]))


async def want(call: Call) -> Reply:
    """Turn mails about tickets on or off."""
    sent = call.body.model_dump(exclude_unset=True)
    topics = {Topic(name): on for name, on in sent.items()}
    return Reply(await call.desk.notices.put(call.caller, call.path["id"], topics))


ROUTES: list[Route] = [
    Route(
        id="R65",
        method="GET",
        path="/emails",
        handler=list_emails,
        who=Who.ADMIN,
        tag="operation",
        query=EmailQuery,
        response=list[Email],
    ),
    Route(
        id="R65",
        method="POST",
        path="/emails/{id}/retry",
        handler=retry,
        who=Who.ADMIN,
        tag="operation",
        response=Email,
        errors={
            "E_EMAIL_NOT_FOUND": 404,
            "E_EMAIL_STATE": 409,
            "E_EMAIL_FORGOTTEN": 409,
        },
    ),
    Route(
        id="N1",
        method="GET",
        path="/users/{id}/notifications",
        handler=wanted,
        who=Who.SELF,
        tag="users",
        response=NotificationSettings,
        errors={"E_USER_NOT_FOUND": 404},
    ),
    Route(
        id="N2",
        method="PUT",
        path="/users/{id}/notifications",
        handler=want,
        who=Who.SELF,
        tag="users",
        body=NotificationChange,
        response=NotificationSettings,
        errors={"E_USER_NOT_FOUND": 404},
    ),
]
