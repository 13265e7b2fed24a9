"""The two cookies of a browser's session: what they are called, and who may use them.

Over https the names carry the prefixes that browsers guard: no page of a sibling domain and no
plain-http answer can plant a `__Host-` cookie. The plain names are not looked at there, so that
nobody is led back to them.
"""

from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from multidict import CIMultiDict

from itdesk.api.origin import Peer

if TYPE_CHECKING:
    from itdesk.config import Auth, Settings
    from itdesk.desk.sessions import SignedIn

# Where the refresh token is taken, by today's path and by the one that older clients know. The
# browser sends it nowhere else.
REFRESH_PATHS = ("/api/auth", "/api/v1/auth")


class Cookies:
    """Sets, reads and clears the cookies of one configuration."""

    def __init__(self, settings: "Auth") -> None:
        access, refresh = settings.cookie_name, settings.refresh_cookie_name
        self._access = {False: access, True: f"__Host-{access}"}
        self._refresh = {False: refresh, True: f"__Secure-{refresh}"}

    def access_name(self, *, secure: bool) -> str:
        """Return the name of the access token's cookie, over https or not."""
        return self._access[secure]

    def access(self, request: web.BaseRequest, peer: Peer) -> str | None:
        """Return the access token that a browser sent along, or None."""
        if hdrs.COOKIE not in request.headers:
            return None
        return request.cookies.get(self._access[peer.secure]) or None

    def refresh(self, request: web.BaseRequest, peer: Peer) -> str | None:
        """Return the refresh token that a browser sent along, or None."""
        return request.cookies.get(self._refresh[peer.secure]) or None

    def given(self, signed: "SignedIn", *, secure: bool) -> CIMultiDict[str]:
        """Return the headers that give a browser its tokens."""
        return self._headers(
            (signed.access_token, signed.expires_in),
            (signed.refresh_token, signed.refresh_expires_in),
            secure=secure,
        )

    def cleared(self, *, secure: bool) -> CIMultiDict[str]:
        """Return the headers that take a browser's tokens away."""
        return self._headers(("", 0), ("", 0), secure=secure)

    def _headers(
        self, access: tuple[str, int], refresh: tuple[str, int], *, secure: bool
    ) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        wanted = [(self._access[secure], access, "/")]
        wanted += [(self._refresh[secure], refresh, path) for path in REFRESH_PATHS]
        end = "; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
        for name, (value, seconds), path in wanted:
            headers.add("Set-Cookie", f"{name}={value}; Max-Age={seconds}; Path={path}{end}")
        return headers


def documented_cookie(settings: "Settings") -> str:
    """Return the name of the access token's cookie as far as the settings alone tell."""
    server = settings.server
    secure = server.tls_cert is not None or (server.public_url or "").startswith("https://")
    return Cookies(settings.auth).access_name(secure=secure)
