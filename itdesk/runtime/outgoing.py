"""Requests to addresses that an administrator chose: none is redirected, none reaches further.

An address is checked when it is connected to, not when its name was first looked up: a name that
means something else the next time gains nothing. Answers are not read beyond their headers.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

from itdesk.errors import Unavailable
from itdesk.frozen import frozen
from itdesk.runtime.addresses import Network, may_be_called, parsed


class AddressRefused(OSError):
    """The address is in none of the networks that may be called."""


@frozen
class Answered:
    """What a server answered: its status, and for how many seconds it wants to be left alone."""

    status: int
    retry_after: float | None


class _Checked(AbstractResolver):
    """Looks names up and leaves out what may not be called."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._resolver = ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
        found = await self._resolver.resolve(host, port, family)
        allowed = []
        for entry in found:
            address = parsed(entry["host"])
            if address is not None and may_be_called(address, self._networks):
                allowed.append(entry)
        if found and not allowed:
            raise AddressRefused
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


class Outgoing:
    """A client for such requests; close it at the end."""

    def __init__(self, networks: Sequence[Network], *, seconds: float, at_once: int = 20) -> None:
        self._networks = tuple(networks)
        self._timeout = aiohttp.ClientTimeout(total=seconds, connect=min(5.0, seconds))
        self._at_once = at_once
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answered:
        """Send a body and return what was answered; Unavailable when nothing was.

        AddressRefused when the address is not one that may be called.
        """
        literal = parsed(urlsplit(url).hostname or "")
        if literal is not None and not may_be_called(literal, self._networks):
            raise AddressRefused
        try:
            async with self._opened().post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return Answered(response.status, _seconds(response.headers.get("Retry-After")))
        except aiohttp.ClientConnectorError as exc:
            if isinstance(exc.os_error, AddressRefused):
                raise AddressRefused from exc
            raise Unavailable(f"no connection ({type(exc.os_error).__name__})") from exc
        except (TimeoutError, aiohttp.ClientError, OSError) as exc:
            raise Unavailable(f"no answer ({type(exc).__name__})") from exc

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_Checked(self._networks), use_dns_cache=False, limit=self._at_once
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            )
        return self._session


def _seconds(text: str | None) -> float | None:
    """Return a Retry-After in seconds; a date, or more than a day, is left to our own pauses."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 5:
        return None
    return min(float(text), 86_400.0)
