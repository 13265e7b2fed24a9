"""The limit of a fan-out: one prepared websocket frame, written to every client, in slices."""

import asyncio
from typing import cast

import uvloop
from aiohttp import WSMsgType, web

SLICE = 250


def _frame(size: int) -> bytes:
    """Return a text frame with so many bytes in all (RFC 6455 section 5.2)."""
    payload = b"x" * (size - 4)
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


def build() -> web.Application:
    """Return the application: /ws/{id} takes clients, /broadcast sends frames to all of them."""
    clients: dict[web.WebSocketResponse, asyncio.Transport] = {}

    async def follow(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False, protocols=("itdesk.v1",))
        await ws.prepare(request)
        transport = cast(asyncio.Transport, request.transport)
        await ws.send_str("welcome")
        clients[ws] = transport
        try:
            async for message in ws:
                if message.type is not WSMsgType.TEXT:
                    break
        finally:
            del clients[ws]
        return ws

    async def broadcast(request: web.Request) -> web.Response:
        frame = _frame(int(request.query["size"]))
        for _ in range(int(request.query["count"])):
            for number, transport in enumerate(tuple(clients.values()), 1):
                transport.write(frame)
                if number % SLICE == 0:
                    await asyncio.sleep(0)
        return web.Response()

    app = web.Application()
    app.router.add_get("/ws/{id}", follow)
    app.router.add_post("/broadcast", broadcast)
    return app


async def main() -> None:
    """Serve until killed; the first line of the output is the address."""
    runner = web.AppRunner(build(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
