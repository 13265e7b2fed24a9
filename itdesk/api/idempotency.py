"""A repeated request has one effect: the answer is kept under the client's Idempotency-Key.

The row is written in the transaction that has the effect, so that neither can exist without the
other, whatever kills the daemon. A failure undoes both and leaves the key unused.
"""

import hashlib
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from itdesk.api import render
from itdesk.api.route import Call, Reply
from itdesk.errors import Conflict, Invalid
from itdesk.store import idempotency as store

LONGEST_KEY = 255

Act = Callable[[], Awaitable[Reply | web.StreamResponse]]


def fingerprint(call: Call, body: bytes) -> bytes:
    """Return a hash of all that a request asks for."""
    pairs = sorted(parse_qsl(call.request.rel_url.raw_query_string, keep_blank_values=True))
    path = "\n".join(f"{key}={value}" for key, value in sorted(call.path.items()))
    digest = hashlib.sha256()
    for part in (_name(call).encode(), path.encode(), urlencode(pairs).encode(), body):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


async def once(call: Call, fingerprint: bytes, act: Act) -> Reply:
    """Act and keep the answer under the request's Idempotency-Key, or replay the kept answer.

    Without the header it just acts. Raises Conflict while a twin is still being worked on and
    Invalid when the key was used for something else.
    """
    key = call.request.headers.get("Idempotency-Key")
    if key is None:
        return _replyable(await act())
    _check(key)
    route = _name(call)
    principal = str(call.caller.user_id)
    async with call.desk.db.transaction() as tx:
        if not await store.try_lock(tx.conn, _lock_number(principal, route, key)):
            raise Conflict(
                "A request with this Idempotency-Key is still being worked on.",
                code="E_IDEMPOTENCY_IN_FLIGHT",
                retry_after=1,
            )
        kept = await store.find(tx.conn, principal, route, key)
        if kept is not None:
            if kept.request_hash != fingerprint:
                raise Invalid(
                    "This Idempotency-Key was used for another request.",
                    code="E_IDEMPOTENCY_KEY_REUSED",
                )
            return _replay(kept)
        reply = _encoded(_replyable(await act()))
        kept = store.Kept(
            request_hash=fingerprint,
            status=reply.status,
            response=reply.body,
            content_type=reply.headers.get("Content-Type"),
            location=reply.headers.get("Location"),
            etag=reply.headers.get("ETag"),
        )
        await store.keep(tx.conn, principal, route, key, kept)
    return reply


def _name(call: Call) -> str:
    assert call.route is not None
    return f"{call.route.method} {call.route.full_path}"


def _check(key: str) -> None:
    if not 1 <= len(key) <= LONGEST_KEY or not all("!" <= char <= "~" for char in key):
        raise Invalid.field(
            "Idempotency-Key", f"must have 1 to {LONGEST_KEY} visible ASCII characters"
        )


def _lock_number(principal: str, route: str, key: str) -> int:
    digest = hashlib.sha256("\n".join((principal, route, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _replyable(reply: Reply | web.StreamResponse) -> Reply:
    assert isinstance(reply, Reply), "an idempotent route answers with a Reply"
    return reply


def _encoded(reply: Reply) -> Reply:
    """Return the reply as the very bytes that go out, for they are what is kept."""
    if reply.body is None or isinstance(reply.body, bytes):
        return reply
    headers = {"Content-Type": render.JSON, **reply.headers}
    return Reply(render.encode(reply.body), reply.status, headers)


def _replay(kept: store.Kept) -> Reply:
    headers = {
        "Content-Type": kept.content_type,
        "Location": kept.location,
        "ETag": kept.etag,
        "Idempotency-Replayed": "true",
    }
    return Reply(
        kept.response,
        kept.status,
        {name: value for name, value in headers.items() if value is not None},
    )
