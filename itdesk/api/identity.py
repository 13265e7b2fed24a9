"""Accounts by mail: addresses verified, forgotten passwords set, people invited.

Whoever asks for a mail gets the same answer for every address.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from itdesk.api.auth import SECOND_FACTOR_ERRORS, Message, peer_of, session_cookies
from itdesk.api.cookies import Cookies
from itdesk.api.fields import Email, NewPassword, Secret
from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.desk.sessions import SignedIn
from itdesk.desk.signups import Outcome
from itdesk.desk.verification import Verified, Visit
from itdesk.errors import Unauthenticated
from itdesk.frozen import frozen
from itdesk.model import User

Link = Annotated[str, Field(min_length=1, max_length=200)]
Code = Annotated[str, Field(pattern=r"^[0-9]{6}$", description="The six digits of the mail.")]


class EmailCredentials(Body):
    """What somebody signs in by, or gets an account by."""

    email: Email
    password: Secret


class LinkProof(Body):
    """What the link of a mail holds."""

    token: Link


class CodeProof(Body):
    """The code of a mail, and whose it is."""

    email: Email
    code: Code


class Address(Body):
    """Whom to mail."""

    email: Email


class NewSecret(Body):
    """What the link of a mail holds, and the password to be."""

    token: Link
    new_password: NewPassword


@frozen
class Sent:
    """A mail is on its way; nobody is signed in."""

    message: Literal["verification_sent", "account_created_verification_sent"]
    requires_verification: Literal[True]


@frozen
class LoggedIn:
    """Somebody is signed in."""

    message: Literal["logged_in"]
    requires_verification: Literal[False]
    user: User
    tokens: SignedIn


@frozen
class AddressVerified:
    """Whose address was verified, and whether they are signed in by that."""

    message: str
    auto_logged_in: bool
    user: User


async def email_login(call: Call) -> Reply:
    """Sign in by a verified address and its password, or get an account and a mail."""
    visit = await visit_of(call)
    entered = await call.desk.signups.email_login(call.body.email, call.body.password, visit)
    return _entered(call, entered.outcome, entered.signed_in)


async def verify(call: Call) -> Reply:
    """Verify an address by the link that was mailed to it, and sign in."""
    visit = await visit_of(call)
    return _verified(call, await call.desk.verification.verify(call.body.token, visit))


async def verify_code(call: Call) -> Reply:
    """Verify an address by the code that was mailed to it, and sign in."""
    body, visit = call.body, await visit_of(call)
    return _verified(call, await call.desk.verification.verify_code(body.email, body.code, visit))


async def resend(call: Call) -> Reply:
    """Mail a new link and code, if this address has an account that waits for them."""
    await call.desk.verification.resend(call.body.email)
    return Reply(Message("If this address waits to be confirmed, a new mail is on its way."))


async def forgot_password(call: Call) -> Reply:
    """Mail a link that sets a new password, if this address has an account."""
    await call.desk.recovery.forgot(call.body.email)
    return Reply(Message("If this address has an account, a mail with a link is on its way."))


async def reset_password(call: Call) -> Reply:
    """Set a new password by the link that was mailed; every session ends."""
    await call.desk.recovery.reset(call.body.token, call.body.new_password)
    return Reply(Message("The new password is set. Sign in with it."))


async def invite(call: Call) -> Reply:
    """Mail somebody without a password another link by which they set one."""
    return Reply(await call.desk.accounts.invite(call.caller, call.path["id"]))


async def visit_of(call: Call) -> Visit:
    """Return where a request comes from, and who is signed in there by a cookie."""
    request, signed_in = call.request, None
    cookie = Cookies(call.desk.settings.auth).access(request, peer_of(call))
    if cookie:
        try:
            signed_in = (await call.desk.sessions.authenticate(cookie)).user_id
        except Unauthenticated:
            signed_in = None
    return Visit(call.address, request.headers.get("User-Agent", ""), signed_in)


def _entered(call: Call, outcome: Outcome, signed_in: SignedIn | None) -> Reply:
    if outcome != "logged_in" or signed_in is None:
        return Reply({"message": outcome, "requires_verification": True})
    answer = LoggedIn("logged_in", False, signed_in.user, signed_in)
    return Reply(answer, 200, session_cookies(call, signed_in))


def _verified(call: Call, verified: Verified) -> Reply:
    signed_in = verified.signed_in
    if signed_in is None:
        text = "The address is confirmed. Sign in by it to go on."
        return Reply(AddressVerified(text, False, verified.user))
    answer = AddressVerified("The address is confirmed. You are signed in.", True, verified.user)
    return Reply(answer, 200, session_cookies(call, signed_in))


_NOT_VALID = {"E_AUTH_CODE_INVALID": 400}


def _post(
    id: str,
    path: str,
    handler: Any,
    body: type[Body],
    errors: Mapping[str, int],
    response: Any = Message,
) -> Route:
    return Route(
        id=id, method="POST", path=path, handler=handler, who=Who.PUBLIC, tag="auth", body=body,
        rate="auth", response=response, errors=errors,
    )  # fmt: skip


ROUTES: list[Route] = [
    _post(
        "R12",
        "/auth/email-login",
        email_login,
        EmailCredentials,
        {"E_AUTH_INVALID_CREDENTIALS": 401, "E_BUSY": 503, **SECOND_FACTOR_ERRORS},
        LoggedIn | Sent,
    ),
    _post("R13", "/auth/verify", verify, LinkProof, _NOT_VALID, AddressVerified),
    _post("R14", "/auth/verify-code", verify_code, CodeProof, _NOT_VALID, AddressVerified),
    _post("R15", "/auth/resend", resend, Address, {}),
    _post("R16", "/auth/forgot-password", forgot_password, Address, {}),
    _post(
        "R17",
        "/auth/reset-password",
        reset_password,
        NewSecret,
        {**_NOT_VALID, "E_BUSY": 503},
    ),
    Route(
        id="R21",
        method="POST",
        path="/users/{id}/invite",
        handler=invite,
        who=Who.ADMIN,
        tag="users",
        response=User,
        errors={"E_USER_NOT_FOUND": 404, "E_CONFLICT": 409, "E_USER_HAS_PASSWORD": 409},
    ),
]
