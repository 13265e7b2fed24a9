"""Signing in by an account elsewhere: what browsers are sent to, and come back to."""

import re
from html import escape
from typing import Annotated
from urllib.parse import quote

from multidict import CIMultiDict
from pydantic import AfterValidator, ConfigDict, Field

from itdesk.api.auth import session_cookies
from itdesk.api.route import NO_CONTENT, Call, Query, Reply, Route, Who
from itdesk.config import Server
from itdesk.desk.identities import STATE_SECONDS, Departure, Landing, Offer
from itdesk.model import LinkedIdentity

_COOKIE = "itdesk_oauth"
_HTML = "text/html; charset=utf-8"
# Below the frontend, and read the same by everybody: no second slash, nothing that hides one.
_NEXT = re.compile(r"^/(?:[A-Za-z0-9._~!$&'()*+,;=:@?#-]|%[0-9A-Fa-f]{2}|/(?!/))*$")
_HIDDEN = re.compile(r"%(?:[01]|2[5EeFf]|5[Cc]|7[Ff])|/\.\.?(?:[/?#]|$)|^//")

_WORDS = {
    "oauth_not_configured": "This way to sign in is not set up here.",
    "oauth_denied": "The sign-in was called off.",
    "oauth_state_invalid": "The sign-in took too long, or began in another browser. Begin again.",
    "oauth_email_not_verified": "The provider does not vouch for your address.",
    "oauth_domain_not_allowed": "Addresses of this domain cannot sign in here.",
    "oauth_sign_in_refused": "You cannot sign in here that way. Ask your administrator.",
    "oauth_second_factor_required": "Your account asks for a second factor. Sign in by password"
    " and code.",
    "oauth_unavailable": "The provider does not answer as it should. Try again later.",
}


def _relative(text: str) -> str:
    if _NEXT.fullmatch(text) is None or _HIDDEN.search(text):
        raise ValueError("must be a path of the frontend such as /tickets/TSK-1001")
    return text


class Start(Query):
    """Where to go on afterwards."""

    next: Annotated[str, AfterValidator(_relative)] = Field(
        "/",
        max_length=500,
        json_schema_extra={"pattern": _NEXT.pattern},
        description="A path of the frontend to land at; other sites are refused.",
    )


class Answer(Query):
    """What a provider has the browser bring along; it may be more, which is left aside."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    code: str | None = Field(None, description="What the desk exchanges for the identity.")
    state: str | None = Field(None, description="What the browser was sent with.")
    iss: str | None = Field(None, description="The issuer (RFC 9207).")
    error: str | None = Field(None, description="Why the provider signed nobody in.")


async def providers(call: Call) -> Reply:
    """List who else people may sign in by, for a login page."""
    return Reply(call.desk.identities.offers())


async def start(call: Call) -> Reply:
    """Send the browser to a provider to sign in."""
    where = {"next": call.query.next, "base_url": call.base_url}
    return _leave(call, await call.desk.identities.begin(call.path["provider"], **where))


async def callback(call: Call) -> Reply:
    """Sign in who comes back from a provider, and send the browser to the frontend."""
    return _land(
        call,
        await call.desk.identities.finish(
            call.path["provider"],
            call.query.model_dump(exclude_none=True),
            call.request.cookies.get(_cookie_name(call)),
            address=call.address,
            user_agent=call.request.headers.get("User-Agent", ""),
        ),
    )


async def list_linked(call: Call) -> Reply:
    """List the accounts elsewhere that a person signs in by."""
    return Reply(await call.desk.identities.list(call.caller, call.path["id"]))


async def unlink(call: Call) -> Reply:
    """Forget an account elsewhere; other sessions of the person end."""
    path = call.path
    await call.desk.identities.unlink(call.caller, path["id"], path["identity"])
    return NO_CONTENT


def _cookie_name(call: Call) -> str:
    return f"__Host-{_COOKIE}" if call.secure else _COOKIE


def _cookie(call: Call, secret: str, seconds: int) -> str:
    secure = "; Secure" if call.secure else ""
    name = _cookie_name(call)
    return f"{name}={secret}; Max-Age={seconds}; Path=/; HttpOnly; SameSite=Lax{secure}"


def _leave(call: Call, begun: Departure | Landing) -> Reply:
    if isinstance(begun, Landing):
        return _land(call, begun)
    cookie = _cookie(call, begun.secret, STATE_SECONDS)
    return Reply(None, 302, {"Location": begun.url, "Set-Cookie": cookie})


def _land(call: Call, landing: Landing) -> Reply:
    """Send the browser to the frontend; where there is none, tell its user what happened."""
    headers: CIMultiDict[str] = CIMultiDict()
    if landing.signed is not None:
        headers = session_cookies(call, landing.signed)
    headers.add("Set-Cookie", _cookie(call, "", 0))
    server = call.desk.settings.server
    if server.env == "production" and server.frontend_base_url == Server().frontend_base_url:
        headers["Content-Type"] = _HTML
        return Reply(_page(landing), 200, headers)
    where = landing.next
    if landing.problem is not None:
        where = f"/?oauth_error={quote(landing.problem)}"
    if landing.challenge is not None:
        # A fragment stays in the browser: no server and no log on the way sees it.
        where += f"#challenge={quote(landing.challenge)}"
    headers["Location"] = server.frontend_base_url + where
    return Reply(None, 302, headers)


def _page(landing: Landing) -> bytes:
    title, words = "You are signed in", "You can close this page and go on in the application."
    if landing.problem is not None:
        title = "You are not signed in"
        key = landing.problem[landing.problem.find("oauth_") :]
        words = _WORDS.get(key, "The provider's answer cannot be trusted. Begin again.")
        words += f" ({landing.problem})"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><p>{escape(words)}</p></body></html>\n"
    ).encode()


def _public(id: str, path: str, handler: object, query: type[Query]) -> Route:
    return Route(
        id=id,
        method="GET",
        path=path,
        handler=handler,  # type: ignore[arg-type]
        who=Who.PUBLIC,
        tag="auth",
        query=query,
        status=302,
        response_media=_HTML,
        also={200: bytes},
        errors={"E_PROVIDER_NOT_FOUND": 404},
        rate="auth",
    )


_MISSING = {"E_USER_NOT_FOUND": 404}

ROUTES: list[Route] = [
    Route(
        id="R72",
        method="GET",
        path="/auth/providers",
        handler=providers,
        who=Who.PUBLIC,
        tag="auth",
        response=list[Offer],
    ),
    _public("R18", "/auth/{provider}/start", start, Start),
    _public("R19", "/auth/{provider}/callback", callback, Answer),
    Route(
        id="R73",
        method="GET",
        path="/users/{id}/identities",
        handler=list_linked,
        who=Who.SELF,
        tag="users",
        response=list[LinkedIdentity],
        errors=_MISSING,
    ),
    Route(
        id="R74",
        method="DELETE",
        path="/users/{id}/identities/{identity}",
        handler=unlink,
        who=Who.SELF,
        tag="users",
        status=204,
        errors={**_MISSING, "E_IDENTITY_NOT_FOUND": 404, "E_IDENTITY_LAST": 409},
    ),
]
