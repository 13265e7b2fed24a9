"""The limit: what aiohttp, uvloop and PostgreSQL can do when nothing else is asked of them.

The same SQL results over a small pool of prepared connections, without sign-in, scope, validation,
journal listeners, metrics and log. A server that does all of that is measured beside this one.
"""

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
import uvloop
from aiohttp import web

CONNECTIONS = 8

TICKET = """
    SELECT t.id::text, t.number, t.key, t.project_id::text, p.key AS project, t.title,
           t.description, t.status, t.priority, t.category, t.department, t.tags,
           t.reporter_id::text, t.reporter_name, t.resolution, t.predicted_priority,
           t.predicted_category, t.first_action_at, t.closed_at, t.version, t.created_at,
           t.updated_at, ARRAY(SELECT a.user_id::text FROM ticket_assignees a
                               WHERE a.ticket_id = t.id ORDER BY a.position) AS assignee_ids
    FROM tickets t JOIN projects p ON p.id = t.project_id
"""
READ = f"{TICKET} WHERE t.id = $1"
LIST = f"{TICKET} WHERE t.status = 'open' ORDER BY t.created_at DESC, t.id DESC LIMIT 50"
LISTS = f"""{TICKET} WHERE t.department = $1
            ORDER BY t.created_at DESC, t.id DESC LIMIT 50"""
SEARCH = f"""{TICKET} WHERE t.search @@ websearch_to_tsquery('english', $1)
             ORDER BY t.created_at DESC, t.id DESC LIMIT 25"""
CREATE = """
    WITH p AS (
        UPDATE projects SET next_number = next_number + 1 WHERE key = 'LIMIT'
        RETURNING id, key, next_number - 1 AS n
    ), t AS (
        INSERT INTO tickets (id, key, project_id, title, description, reporter_name)
        SELECT $1, p.key || '-' || p.n, p.id, $2, $3, 'limit' FROM p RETURNING *
    ), e AS (
        INSERT INTO events (id, ticket_id, ticket_version, type, actor_name)
        SELECT $4, $1, 1, 'ticket.created', 'limit'
    ), j AS (
        INSERT INTO jobs (id, type, args, event_id) SELECT $5, 'bench.nothing', '{}', $4
    )
    SELECT t.id::text, t.key, t.number, t.title, t.description, t.status, t.priority, t.version,
           t.created_at, t.updated_at FROM t
"""


class Pool:
    """Connections with kept statements: the last one used first, handed over to who waits."""

    def __init__(self, connections: list[Any]) -> None:
        self._idle = connections
        self._waiting: deque[asyncio.Future[Any]] = deque()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Any]:
        """Lend a connection with its prepared statements."""
        if self._idle:
            one = self._idle.pop()
        else:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            one = await waiter
        try:
            yield one
        finally:
            if self._waiting:
                self._waiting.popleft().set_result(one)
            else:
                self._idle.append(one)


async def _connection(url: str) -> Any:
    conn = await asyncpg.connect(url, server_settings={"jit": "off"})
    return {
        name: await conn.prepare(query)
        for name, query in (
            ("read", READ),
            ("list", LIST),
            ("lists", LISTS),
            ("search", SEARCH),
            ("create", CREATE),
        )
    }


def _answer(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def build(pool: Pool) -> web.Application:
    """Return the application."""

    async def ping(request: web.Request) -> web.Response:
        return _answer({"status": "ok"})

    async def read(request: web.Request) -> web.Response:
        async with pool.lent() as statements:
            row = await statements["read"].fetchrow(request.match_info["id"])
        return _answer(dict(row))

    async def latest(request: web.Request) -> web.Response:
        department = request.query.get("department")
        async with pool.lent() as statements:
            if department is None:
                rows = await statements["list"].fetch()
            else:
                rows = await statements["lists"].fetch(department)
        return _answer([dict(row) for row in rows])

    async def search(request: web.Request) -> web.Response:
        async with pool.lent() as statements:
            rows = await statements["search"].fetch(request.query["q"])
        return _answer([dict(row) for row in rows])

    async def create(request: web.Request) -> web.Response:
        new = orjson.loads(await request.read())
        async with pool.lent() as statements:
            row = await statements["create"].fetchrow(
                uuid4(), new["title"], new["description"], uuid4(), uuid4()
            )
        return _answer(dict(row))

    app = web.Application()
    app.router.add_get("/ping", ping)
    app.router.add_get("/tickets/search", search)
    app.router.add_get("/tickets/{id}", read)
    app.router.add_get("/tickets", latest)
    app.router.add_post("/tickets", create)
    return app


async def main(url: str) -> None:
    """Serve until killed; the first line of the output is the address."""
    pool = Pool([await _connection(url) for _ in range(CONNECTIONS)])
    runner = web.AppRunner(build(pool), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"listening on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
