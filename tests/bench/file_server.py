"""The limit for files: aiohttp that writes what comes to a disk, and sends it back."""

import asyncio
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from tests.bench.late_plugin import Watch

CHUNK = 1 << 18
BATCH = 1 << 20


def build(folder: Path) -> web.Application:
    """Return the application: no sign-in, no hash, no scan, no rename, no sync."""

    async def put(request: web.Request) -> web.Response:
        with (folder / request.match_info["name"]).open("wb", buffering=0) as target:
            batch = bytearray()
            async for chunk in request.content.iter_chunked(CHUNK):
                batch += chunk
                if len(batch) >= BATCH:
                    await asyncio.to_thread(target.write, batch)
                    batch = bytearray()
            await asyncio.to_thread(target.write, batch)
        return web.Response()

    async def get(request: web.Request) -> web.StreamResponse:
        path = folder / request.match_info["name"]
        size = path.stat().st_size
        response = web.StreamResponse(headers={"Content-Length": str(size)})
        await response.prepare(request)
        with path.open("rb", buffering=0) as source:
            while chunk := await asyncio.to_thread(source.read, BATCH):
                await response.write(chunk)
        await response.write_eof()
        return response

    watch = Watch()

    async def begin(request: web.Request) -> web.Response:
        watch.begin()
        return web.Response()

    async def end(request: web.Request) -> web.Response:
        return web.json_response(watch.end())

    app = web.Application(client_max_size=1 << 40)
    app.router.add_post("/api/v1/plugins/late/begin", begin)
    app.router.add_post("/api/v1/plugins/late/end", end)
    app.router.add_put("/{name}", put)
    app.router.add_get("/{name}", get)
    return app


async def main(folder: Path) -> None:
    """Serve until killed; the first line of the output is the address."""
    runner = web.AppRunner(build(folder), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1])))
