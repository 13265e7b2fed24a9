"""Pages for the links in mails, where no frontend has its own: small, without any script.

Opening one changes nothing, for mail programs open links by themselves: what a link is for happens
behind a button. The pages sign nobody in, so there is nothing to gain by having somebody else's
browser press it.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from html import escape
from typing import Any
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError

from itdesk.api import payload
from itdesk.api.identity import Address, LinkProof, NewSecret
from itdesk.api.route import Body, Call, Query, Reply, Route, Who
from itdesk.errors import BadRequest, DeskError, Invalid

FORM = "application/x-www-form-urlencoded"
_HTML = "text/html; charset=utf-8"
_LARGEST_FORM = 16 << 10

_STYLE = """
:root { color-scheme: light dark; font: 100%/1.5 system-ui, sans-serif }
body { margin: 0; padding: 1rem; display: grid; justify-items: center }
main { width: 100%; max-width: 26rem; margin-top: 10vh }
h1 { font-size: 1.5rem; line-height: 1.25 }
label { display: block; font-weight: 600; margin-top: 1rem }
input, button { box-sizing: border-box; width: 100%; font: inherit; padding: .6rem; \
margin-top: .25rem; border: 1px solid #767676; border-radius: .375rem }
button { margin-top: 1.25rem; background: #1a56b0; border-color: #1a56b0; color: #fff; \
font-weight: 600; cursor: pointer }
:focus-visible { outline: 3px solid #e8a200; outline-offset: 2px }
.problem { border-left: .3rem solid #c62828; padding: .1rem 0 .1rem .75rem }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Robots-Tag": "noindex",
}

Handler = Callable[[Call], Awaitable[Reply]]


class LinkQuery(Query):
    """What a link in a mail brings."""

    token: str = Field("", max_length=2000, description="What the link of the mail holds.")


def _page(title: str, inner: str, status: int = 200) -> Reply:
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} - itdesk</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{inner}</main></body></html>\n"
    )
    return Reply(html.encode(), status, _HEADERS)


def _problem(text: str) -> str:
    return f'<p class="problem" role="alert">{escape(text)}</p>' if text else ""


def _hidden(token: str) -> str:
    return f'<input type="hidden" name="token" value="{escape(token)}">'


def _verify_form(form: Mapping[str, str], problem: str = "", status: int = 200) -> Reply:
    return _page(
        "Confirm your address",
        f"{_problem(problem)}<p>Press the button to confirm that this address is yours. If you did"
        " not ask for an account, close this page.</p>"
        f'<form method="post" action="verify-email">{_hidden(form.get("token", ""))}'
        '<button type="submit">Confirm my address</button></form>',
        status,
    )


def _reset_form(form: Mapping[str, str], problem: str = "", status: int = 200) -> Reply:
    return _page(
        "Choose your password",
        f'{_problem(problem)}<form method="post" action="reset-password">'
        f"{_hidden(form.get('token', ''))}"
        '<label for="new_password">New password</label>'
        '<input id="new_password" name="new_password" type="password" required minlength="8"'
        ' maxlength="200" autocomplete="new-password" aria-describedby="rule">'
        '<p id="rule">At least 8 characters, any of them. Several words are a good password.</p>'
        '<button type="submit">Set the password</button></form>',
        status,
    )


def _forgot_form(form: Mapping[str, str], problem: str = "", status: int = 200) -> Reply:
    return _page(
        "Ask for a new password",
        f'{_problem(problem)}<form method="post" action="forgot-password">'
        '<label for="email">Your e-mail address</label>'
        '<input id="email" name="email" type="email" required maxlength="254"'
        f' autocomplete="email" value="{escape(form.get("email", ""))}">'
        '<button type="submit">Mail me a link</button></form>',
        status,
    )


async def verify_page(call: Call) -> Reply:
    """Show the button that confirms an address."""
    return _verify_form({"token": call.query.token})


async def reset_page(call: Call) -> Reply:
    """Show the form that sets a password."""
    return _reset_form({"token": call.query.token})


async def forgot_page(call: Call) -> Reply:
    """Show the form that asks for a link."""
    return _forgot_form({})


def _posted(again: Callable[..., Reply]) -> Callable[[Handler], Handler]:
    """Read a form as the route's body; what is wrong is shown to people, above the same form.

    Browsers say that they take HTML; whoever does not gets the one error body.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        async def answered(call: Call) -> Reply:
            form: dict[str, str] = {}
            try:
                form = await _read_form(call)
                call.body = _parsed(call.route, form)
                return await handler(call)
            except DeskError as exc:
                if exc.status >= 500 or "text/html" not in call.request.headers.get("Accept", ""):
                    raise
                return again(form, exc.message, exc.status)

        return answered

    return decorate


async def _read_form(call: Call) -> dict[str, str]:
    raw = await payload.read_body(call.request, _LARGEST_FORM)
    if call.request.content_type != FORM:
        raise BadRequest("Send the form as it is on the page.")
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=10)
    except ValueError as exc:
        raise BadRequest("Send the form as it is on the page.") from exc
    if any("\0" in value for _, value in pairs):
        raise BadRequest("Send the form as it is on the page.")
    return dict(pairs)


def _parsed(route: Route | None, form: Mapping[str, str]) -> Any:
    assert route is not None and route.body is not None
    try:
        return route.body.model_validate(form)
    except ValidationError as exc:
        problem = payload.invalid(exc)
        first = problem.details["fields"][0]
        if first["path"] == "token":
            raise BadRequest("Open the link of the mail again: a part of it is missing.") from None
        noun = {"new_password": "password", "email": "address"}.get(first["path"], "form")
        raise Invalid(f"The {noun} {first['problem']}.") from None


@_posted(_verify_form)
async def verify(call: Call) -> Reply:
    """Confirm an address; the browser is not signed in by that."""
    await call.desk.verification.confirm(call.body.token)
    return _page("Your address is confirmed", "<p>You can sign in now.</p>")


@_posted(_reset_form)
async def reset(call: Call) -> Reply:
    """Set a password."""
    await call.desk.recovery.reset(call.body.token, call.body.new_password)
    text = "<p>You are signed out everywhere. Sign in with the new password.</p>"
    return _page("Your password is set", text)


@_posted(_forgot_form)
async def forgot(call: Call) -> Reply:
    """Ask for a link."""
    await call.desk.recovery.forgot(call.body.email)
    text = "<p>If this address has an account, a mail with a link is on its way.</p>"
    return _page("Look into your mail", text)


def _get(id: str, path: str, handler: Handler, query: type[Query] | None = None) -> Route:
    return Route(
        id=id, method="GET", path=path, handler=handler, who=Who.PUBLIC, tag="pages",
        query=query, response=bytes, response_media=_HTML, root=True,
    )  # fmt: skip


def _post(id: str, path: str, handler: Handler, body: type[Body]) -> Route:
    return Route(
        id=id, method="POST", path=path, handler=handler, who=Who.PUBLIC, tag="pages",
        body=body, body_media=FORM, response=bytes, response_media=_HTML, rate="auth", root=True,
        also={400: bytes, 422: bytes},
    )  # fmt: skip


ROUTES: list[Route] = [
    _get("R13", "/verify-email", verify_page, LinkQuery),
    _post("R13", "/verify-email", verify, LinkProof),
    _get("R16", "/forgot-password", forgot_page),
    _post("R16", "/forgot-password", forgot, Address),
    _get("R17", "/reset-password", reset_page, LinkQuery),
    _post("R17", "/reset-password", reset, NewSecret),
]
