"""Signing up, in and out; browsers get their tokens as cookies as well."""

from typing import Annotated, Any, Literal

from multidict import CIMultiDict
from pydantic import AfterValidator, Field, WithJsonSchema

from itdesk.api.cookies import Cookies
from itdesk.api.fields import Email, Name, NewPassword, Secret
from itdesk.api.origin import Origins, Peer
from itdesk.api.route import Body, Call, Reply, Route, Who, created
from itdesk.desk.sessions import SignedIn
from itdesk.desk.signups import SignedUp
from itdesk.errors import Unauthenticated
from itdesk.frozen import frozen
from itdesk.model import User

# Looser than what a new account may have: whatever is stored can sign in.
Address = Annotated[str, Field(min_length=1, max_length=320), AfterValidator(str.strip)]


class Registration(Body):
    """Who wants an account."""

    email: Email
    password: NewPassword
    name: Name
    role: Annotated[Any, WithJsonSchema({"type": ["string", "null"]})] = Field(
        None, description="Refused with 403: a role is given, never taken."
    )


class Credentials(Body):
    """What somebody signs in by."""

    email: Address
    password: Secret
    totp: Secret | None = Field(
        None, description="Code or recovery code of the second factor, for who has one."
    )


class Renewal(Body):
    """The refresh token to exchange."""

    refresh_token: Secret


class OptionalRenewal(Body):
    """The refresh token, unless a cookie brings it."""

    refresh_token: Secret | None = None


@frozen
class Registered:
    """A new account and what to do next; what was mailed is shown to developers only."""

    message: str
    user: User


@frozen
class RegisteredInDevelopment(Registered):
    """The same, with what the mail holds."""

    verification_token: str
    verification_code: str


@frozen
class Message:
    """What was done, for people."""

    message: str


@frozen
class Renewed:
    """What a browser is told of its new cookies: a script that reads this learns no token."""

    token_type: Literal["bearer"]
    expires_in: int
    refresh_expires_in: int
    user: User


async def register(call: Call) -> Reply:
    """Open an account for oneself."""
    new = call.body
    made = await call.desk.signups.register(new.email, new.password, new.name, role=new.role)
    return created(_registered(call, made), f"/api/v1/users/{made.user.id}")


async def login(call: Call) -> Reply:
    """Sign in by address and password; the tokens come as cookies as well."""
    return with_cookies(call, await _login(call))


async def token(call: Call) -> Reply:
    """Sign in by address and password, for clients that keep tokens themselves."""
    return Reply(await _login(call))


async def refresh(call: Call) -> Reply:
    """Exchange the refresh token of the body for a pair there, or the cookie's for new cookies."""
    if given := _given(call):
        return Reply(await _refresh(call, given))
    signed = await _refresh(call, _own(call, _cookies(call).refresh(call.request, peer_of(call))))
    told = Renewed(signed.token_type, signed.expires_in, signed.refresh_expires_in, signed.user)
    return with_cookies(call, signed, told=told)


async def token_refresh(call: Call) -> Reply:
    """Exchange a refresh token for a new pair, for clients that keep tokens themselves."""
    return Reply(await _refresh(call, call.body.refresh_token))


async def logout(call: Call) -> Reply:
    """End the session of the refresh token, cookie or bearer token that comes along."""
    cookies, peer = _cookies(call), peer_of(call)
    refresh_token = _given(call) or _own(call, cookies.refresh(call.request, peer))
    access_token = _bearer(call) or _own(call, cookies.access(call.request, peer))
    await call.desk.sessions.logout(refresh_token, access_token=access_token)
    return Reply(Message("You are signed out."), 200, cookies.cleared(secure=call.secure))


async def me(call: Call) -> Reply:
    """Return one's own account."""
    return Reply(await call.desk.accounts.get(call.caller, str(call.caller.user_id)))


def _registered(call: Call, made: SignedUp) -> Registered:
    settings, message = call.desk.settings, "Welcome. You can sign in now."
    if settings.auth.require_verified_email:
        message = "Confirm your address: open the link, or enter the code, that we mailed to it."
    if settings.server.env != "development":
        return Registered(message, made.user)
    return RegisteredInDevelopment(message, made.user, made.proof.token, made.proof.code)


async def _login(call: Call) -> SignedIn:
    return await call.desk.sessions.login(
        call.body.email,
        call.body.password,
        code=call.body.totp,
        address=call.address,
        user_agent=agent(call),
    )


async def _refresh(call: Call, refresh_token: str | None) -> SignedIn:
    if refresh_token is None:
        raise Unauthenticated("Send the refresh token in the body or as a cookie.")
    return await call.desk.sessions.refresh(
        refresh_token, address=call.address, user_agent=agent(call)
    )


def agent(call: Call) -> str:
    """Return what the client calls itself."""
    return call.request.headers.get("User-Agent", "")


def _given(call: Call) -> str | None:
    token: str | None = call.body.refresh_token if call.body is not None else None
    return token


def _bearer(call: Call) -> str | None:
    scheme, _, token = call.request.headers.get("Authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _cookies(call: Call) -> Cookies:
    return Cookies(call.desk.settings.auth)


def peer_of(call: Call) -> Peer:
    """Return the client of a request, as its cookies are read and given by."""
    return Peer(call.address, call.base_url, call.secure)


def _own(call: Call, cookie: str | None) -> str | None:
    """Return a cookie's value; Forbidden when a foreign page had the browser send it."""
    if cookie is not None:
        Origins(call.desk.settings).check_cookie_use(call.request, peer_of(call))
    return cookie


def with_cookies(call: Call, signed: SignedIn, *, told: Any = None) -> Reply:
    """Answer with the tokens as cookies, and in the body unless something else is told there."""
    return Reply(told or signed, 200, session_cookies(call, signed))


def session_cookies(call: Call, signed: SignedIn) -> CIMultiDict[str]:
    """Return the headers that give a browser its session."""
    return _cookies(call).given(signed, secure=call.secure)


# Of whatever signs somebody in, and of whatever else asks for a code.
SECOND_FACTOR_ERRORS = {
    "E_AUTH_SECOND_FACTOR_REQUIRED": 401,
    "E_AUTH_SECOND_FACTOR_INVALID": 401,
    "E_RATE_LIMITED": 429,
}
_LOGIN_ERRORS = {
    "E_AUTH_INVALID_CREDENTIALS": 401,
    "E_AUTH_EMAIL_NOT_VERIFIED": 403,
    **SECOND_FACTOR_ERRORS,
    "E_BUSY": 503,
}
_REFRESH_ERRORS = {
    "E_AUTH_TOKEN_MISSING": 401,
    "E_AUTH_TOKEN_INVALID": 401,
    "E_AUTH_TOKEN_EXPIRED": 401,
}


def _post(id: str, path: str, handler: Any, body: type[Body], **fields: Any) -> Route:
    fields = {"rate": "auth", **fields}
    return Route(
        id=id, method="POST", path=path, handler=handler, who=Who.PUBLIC, tag="auth", body=body,
        **fields,
    )  # fmt: skip


ROUTES: list[Route] = [
    _post(
        "R5",
        "/auth/register",
        register,
        Registration,
        response=RegisteredInDevelopment | Registered,
        status=201,
        errors={
            "E_AUTH_INSUFFICIENT_PERMISSIONS": 403,
            "E_AUTH_REGISTRATION_CLOSED": 403,
            "E_USER_EMAIL_EXISTS": 409,
            "E_BUSY": 503,
        },
    ),
    _post("R6", "/auth/login", login, Credentials, response=SignedIn, errors=_LOGIN_ERRORS),
    _post("R7", "/auth/token", token, Credentials, response=SignedIn, errors=_LOGIN_ERRORS),
    _post(
        "R8",
        "/auth/refresh",
        refresh,
        OptionalRenewal,
        body_optional=True,
        response=SignedIn | Renewed,
        rate="default",
        errors={**_REFRESH_ERRORS, "E_AUTH_CROSS_SITE": 403},
    ),
    _post(
        "R9",
        "/auth/token/refresh",
        token_refresh,
        Renewal,
        response=SignedIn,
        rate="default",
        errors=_REFRESH_ERRORS,
    ),  # fmt: skip
    _post(
        "R10",
        "/auth/logout",
        logout,
        OptionalRenewal,
        body_optional=True,
        response=Message,
        rate="default",
        errors={"E_AUTH_CROSS_SITE": 403},
    ),
    Route(
        id="R11",
        method="GET",
        path="/auth/me",
        handler=me,
        who=Who.USER,
        tag="auth",
        response=User,
        enrolling=True,
    ),
]
