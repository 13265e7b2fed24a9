"""Where a request really comes from: whom to believe about addresses, schemes and origins."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import hdrs, web

from itdesk.errors import Forbidden

if TYPE_CHECKING:
    from itdesk.config import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOCAL = "local"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


class Peer(NamedTuple):
    """The client as seen through trusted proxies: its address, and by what URL base it asks."""

    address: str
    base_url: str
    secure: bool = False


class Origins:
    """Decides which proxies are believed and which web origins may send credentials."""

    def __init__(self, settings: "Settings") -> None:
        server = settings.server
        self._networks: Sequence[Network] = server.trusted_proxies
        self._public_url = server.public_url
        self._default_host = f"{server.host}:{server.port}"
        self._listed = frozenset(server.cors_origins)
        self._trusted = lru_cache(maxsize=1024)(self._is_trusted)

    @property
    def any_listed(self) -> bool:
        """Return whether some foreign origin may read answers, so that they vary by origin."""
        return bool(self._listed)

    def may_read(self, origin: str) -> bool:
        """Return whether pages of this origin may read answers with credentials."""
        return origin in self._listed

    def peer(self, request: web.BaseRequest) -> Peer:
        """Return the client's address and base URL; only trusted proxies may name others."""
        address = self.address(request)
        # Whoever may open our UNIX socket is a proxy on this machine.
        local = address == LOCAL
        scheme = "https" if request.protocol.ssl_context else "http"
        headers = request.headers
        host = headers.get(hdrs.HOST, "")
        if local or (self._networks and self._trusted(address)):
            address = self._client(request, address)
            scheme = _last(headers.get("X-Forwarded-Proto")) or scheme
            host = _last(headers.get("X-Forwarded-Host")) or host
            if scheme not in ("http", "https"):
                scheme = "http"
        base_url = self._public_url or _base_url(scheme, host, self._default_host)
        return Peer(address, base_url, scheme == "https" or base_url.startswith("https://"))

    @staticmethod
    def address(request: web.BaseRequest) -> str:
        """Return the address at the other end of the connection, be it the client or a proxy."""
        name = request.protocol.peername
        return str(name[0]) if isinstance(name, tuple) else LOCAL

    def same_site(self, request: web.BaseRequest, peer: Peer) -> bool:
        """Return whether a browser says that our own or a listed page sent this request."""
        origin = request.headers.get("Origin")
        if origin is not None:
            return origin == _origin_of(peer.base_url) or origin in self._listed
        return request.headers.get("Sec-Fetch-Site") in ("same-origin", "none")

    def check_cookie_use(self, request: web.BaseRequest, peer: Peer) -> None:
        """Raise Forbidden when a cookie would let a foreign page change something."""
        if request.method not in SAFE_METHODS and not self.same_site(request, peer):
            raise Forbidden(
                "A request that changes something and is signed in by cookie must come from a"
                " page of this desk or of a listed origin.",
                code="E_AUTH_CROSS_SITE",
            )

    def check_page(self, request: web.BaseRequest, peer: Peer) -> None:
        """Raise Forbidden when a foreign page asks for a change without a sign-in, as browsers say.

        Such a page could sign people in as somebody else, or use that they are inside a network.
        """
        headers = request.headers
        said = "Origin" in headers or "Sec-Fetch-Site" in headers
        if said and request.method not in SAFE_METHODS and not self.same_site(request, peer):
            raise Forbidden(
                "A request that changes something must come from a page of this desk or of a"
                " listed origin, or from a program.",
                code="E_AUTH_CROSS_SITE",
            )

    def check_upgrade(self, request: web.BaseRequest, peer: Peer, *, by_cookie: bool) -> None:
        """Raise Forbidden when a foreign page asks for a websocket, with or without a cookie."""
        foreign = "Origin" in request.headers or by_cookie
        if foreign and not self.same_site(request, peer):
            raise Forbidden(
                "A websocket is opened by a page of this desk or of a listed origin, or by a"
                " program that sends neither Origin nor cookies.",
                code="E_AUTH_CROSS_SITE",
            )

    def _client(self, request: web.BaseRequest, address: str) -> str:
        """Walk X-Forwarded-For from the nearest hop as long as each hop is trusted."""
        hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
        for hop in reversed(hops):
            named = _parse(hop.strip())
            if named is None:
                break
            address = str(named)
            if not self._trusted(address):
                break
        return address

    def _is_trusted(self, address: str) -> bool:
        parsed = _parse(address)
        return parsed is not None and any(
            parsed in network for network in self._networks if network.version == parsed.version
        )


def address_class(address: str) -> str:
    """Return what a client's address counts as: an IPv6 client has a whole /64 to itself."""
    if ":" not in address:
        return address
    return _prefix(address)


def offered_token(request: web.BaseRequest) -> str | None:
    """Return the token among the subprotocols that a websocket offers: what browsers can send."""
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", ())).split(",")
    tokens = [name.strip()[7:] for name in offered if name.strip().startswith("bearer.")]
    return tokens[0] if tokens else None


def _parse(text: str) -> Address | None:
    """Return an address as proxies write it, with or without a port."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return _parse_address(text)


def _parse_address(text: str) -> Address | None:
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        return parsed.ipv4_mapped or parsed
    return parsed


@lru_cache(maxsize=1024)
def _prefix(address: str) -> str:
    parsed = _parse_address(address)
    if not isinstance(parsed, IPv6Address):
        return str(parsed or address)
    return str(IPv6Network((int(parsed) >> 64 << 64, 64)))


def _last(value: str | None) -> str:
    return value.rpartition(",")[2].strip() if value else ""


@lru_cache(maxsize=1024)
def _base_url(scheme: str, host: str, default_host: str) -> str:
    return f"{scheme}://{host if _HOST.fullmatch(host) else default_host}"


@lru_cache(maxsize=1024)
def _origin_of(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0].lower()
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return f"{scheme}://{host.removesuffix(default)}"
