"""A server with one table of things, for what only real transactions and real deaths can show."""

import asyncio
import sys
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from itdesk.api import idempotency
from itdesk.api.route import Body, Call, Reply, Route, Who
from itdesk.errors import BadRequest
from itdesk.model import Role
from itdesk.runtime import failpoints
from itdesk.store.db import Database, Limits
from itdesk.store.failures import Contention
from tests.support.small_desk import SmallDesk, serving

ALICE, BOB = UUID(int=1), UUID(int=2)
TABLE = "CREATE TABLE thing (id uuid PRIMARY KEY, title text NOT NULL)"


class NewThing(Body):
    """A thing to be made."""

    title: str


class Things:
    """Makes things; `hold` keeps those in the making until a test lets them go on."""

    def __init__(self) -> None:
        self.hold = asyncio.Event()
        self.hold.set()
        self.runs = 0
        self.losses = 0

    async def create(self, call: Call) -> Reply:
        """Make a thing."""
        return await self._create(call, call.body.title)

    async def upload(self, call: Call) -> Reply:
        """Make a thing of a body that the handler reads by itself."""
        raw = await call.request.read()
        mark = idempotency.fingerprint(call, raw)
        return await idempotency.once(call, mark, lambda: self._create(call, raw.decode()))

    async def _create(self, call: Call, title: str) -> Reply:
        self.runs += 1
        thing = uuid4()
        async with call.desk.db.transaction() as tx:
            await tx.conn.execute("INSERT INTO thing (id, title) VALUES ($1, $2)", thing, title)
            await self.hold.wait()
            if self.runs <= self.losses:
                raise Contention("Another was faster.", retry_after=1)
            if title == "wrong":
                raise BadRequest("Not this.")
            if title == "crash":
                raise ValueError("secret")
        headers = {"Location": f"/api/v1/things/{thing}", "ETag": '"1"'}
        return Reply({"id": thing, "title": title}, 201, headers)

    def routes(self) -> list[Route]:
        """Return what is served."""
        fields: dict[str, Any] = {
            "method": "POST",
            "who": Who.USER,
            "tag": "things",
            "status": 201,
            "idempotent": True,
        }
        return [
            Route(id="I1", path="/things", handler=self.create, body=NewThing, **fields),
            Route(id="I2", path="/others", handler=self.create, body=NewThing, **fields),
            Route(id="I3", path="/of/{kind}", handler=self.create, body=NewThing, **fields),
            Route(id="I4", path="/files", handler=self.upload, body_media="text/plain", **fields),
        ]


def desk_of(url: str) -> SmallDesk:
    """Return a desk on a database, with two people who may sign in."""
    desk = SmallDesk(db=Database(url, Limits(acquire_seconds=10)))
    desk.accounts.add(Role.USER, ALICE)
    desk.accounts.add(Role.USER, BOB)
    return desk


async def main(url: str, armed: str) -> None:
    """Serve until killed; print the port."""
    failpoints.arm(armed)
    async with serving(desk_of(url), Things().routes()) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


async def prepare(url: str) -> None:
    """Make the table."""
    conn = await asyncpg.connect(url)
    await conn.execute(TABLE)
    await conn.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
