"""A person's data over REST: everything as one archive, or their name gone for good."""

from collections.abc import AsyncIterator

from aiohttp import web

from itdesk.api.route import NO_CONTENT, Call, Reply, Route, Who
from itdesk.desk.people import Part

# Of tar.
_BLOCK = 512


async def export(call: Call) -> web.StreamResponse:
    """Stream everything that the desk holds about a person, as a tar of JSON and their files."""
    parts = call.desk.people.export(call.caller, call.path["id"])
    # Before the answer begins: afterwards a failure could only tear it.
    first = await anext(parts)
    name = f'attachment; filename="user-{call.path["id"]}.tar"'
    response = web.StreamResponse(
        headers={"Content-Type": "application/x-tar", "Content-Disposition": name}
    )
    await response.prepare(call.request)
    if call.request.method != "HEAD":
        async for piece in _tar(first):
            await response.write(piece)
        async for part in parts:
            async for piece in _tar(part):
                await response.write(piece)
        await response.write(bytes(2 * _BLOCK))
    await response.write_eof()
    return response


async def _tar(part: Part) -> AsyncIterator[bytes]:
    """Yield a part as tar has it: a header, its bytes, and zeroes up to a whole block."""
    import tarfile  # imported here: few desks are ever asked for somebody's data

    info = tarfile.TarInfo(part.name)
    info.size, info.mode = part.size, 0o600
    yield info.tobuf(tarfile.PAX_FORMAT)
    async for chunk in part.chunks:
        yield chunk
    yield bytes(-part.size % _BLOCK)


async def erase(call: Call) -> Reply:
    """Close an account and take the person's name and addresses off all that stays."""
    await call.desk.people.erase(call.caller, call.path["id"])
    return NO_CONTENT


ROUTES: list[Route] = [
    Route(
        id="D1",
        method="GET",
        path="/users/{id}/export",
        handler=export,
        who=Who.ADMIN,
        tag="users",
        response=bytes,
        response_media="application/x-tar",
        errors={"E_USER_NOT_FOUND": 404},
        seconds=3600.0,
    ),
    Route(
        id="D2",
        method="POST",
        path="/users/{id}/erase",
        handler=erase,
        who=Who.ADMIN,
        tag="users",
        status=204,
        errors={"E_USER_NOT_FOUND": 404, "E_USER_LAST_ADMIN": 409, "E_USER_SELF": 409},
    ),
]
