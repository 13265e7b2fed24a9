"""Steady work on a daemon, every call of it on record, and what the database must hold afterwards.

The mix is 60 % new tickets under an Idempotency-Key, 20 % comments, 10 % status changes under
If-Match and 10 % files. A call whose answer never came, or was a 5xx, is unknown: it had its effect
once or not at all.
"""

import asyncio
import io
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
from aiohttp import ClientConnectorError, ClientError, ClientSession, FormData, TCPConnector

from tests.support.daemon import Answer, Person

REFUSED, BROKEN = "refused", "broken"
MIX = ("create", "create", "comment", "create", "status", "create", "create", "comment", "file",
       "create")  # fmt: skip
# One way round the lifecycle.
NEXT = {"open": "in_progress", "in_progress": "blocked", "blocked": "open"}


@dataclass(slots=True)
class Call:
    """One call as its client saw it."""

    kind: str
    name: str
    began: float
    seconds: float
    answer: Answer | None
    failure: str = ""
    problem: str = ""

    @property
    def status(self) -> int:
        """Return the status, 0 without an answer."""
        return self.answer.status if self.answer is not None else 0

    @property
    def acknowledged(self) -> bool:
        """Return whether the daemon said that it is done."""
        return 200 <= self.status < 300

    @property
    def ended(self) -> float:
        """Return when the client knew."""
        return self.began + self.seconds


@dataclass
class Crew:
    """Some clients that work at a steady pace, each on a connection and on tickets of its own."""

    people: Sequence[Person]
    rate: float
    calls: list[Call] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False

    async def worker(self, person: Person, pause: float) -> None:
        """Work until stopped."""
        tickets: list[dict[str, Any]] = []
        async with ClientSession(
            base_url=person.base,
            connector=TCPConnector(limit=1),
            headers={"Authorization": f"Bearer {person.token}"},
        ) as session:
            for turn in count():
                if self.stopping:
                    return
                due = time.monotonic() + pause
                kind = MIX[turn % len(MIX)] if tickets else "create"
                await self.act(session, kind, tickets)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def act(self, session: ClientSession, kind: str, tickets: list[dict[str, Any]]) -> None:
        """Make one call and remember what came of it."""
        name = f"load-{uuid4().hex}"
        if kind == "create":
            headers = {"Idempotency-Key": name}
            made = await self.call(session, kind, name, "POST", "/api/v1/tickets",
                                   json={"title": name}, headers=headers)  # fmt: skip
            if made.acknowledged and made.answer is not None:
                tickets.append(made.answer.json)
            return
        ticket = tickets[-1]
        path = f"/api/v1/tickets/{ticket['key']}"
        if kind == "comment":
            done = await self.call(session, kind, name, "POST", f"{path}/comments",
                                   json={"body": name})  # fmt: skip
            ticket["version"] += 1
        elif kind == "file":
            form = FormData()
            form.add_field("file", io.BytesIO(name.encode()), filename=f"{name}.txt",
                           content_type="text/plain")  # fmt: skip
            done = await self.call(session, kind, name, "POST", f"{path}/attachments", data=form)
            tickets.pop()  # its scan changes the version
            return
        else:
            wanted = NEXT[ticket["status"]]
            done = await self.call(session, kind, name, "PATCH", path, json={"status": wanted},
                                   headers={"If-Match": f'"{ticket["version"]}"'})  # fmt: skip
            ticket["version"] += 1
            ticket["status"] = wanted
        if not done.acknowledged:
            tickets.remove(ticket)

    async def call(
        self, session: ClientSession, kind: str, name: str, method: str, path: str, **how: Any
    ) -> Call:
        """Make one call; it is on record only when it is over."""
        began = time.monotonic()
        answer, failure, problem = None, "", ""
        try:
            async with session.request(method, path, **how) as response:
                answer = Answer(response.status, response.headers, await response.read())
        except ClientConnectorError as exc:
            failure, problem = REFUSED, repr(exc)
        except (ClientError, OSError) as exc:
            failure, problem = BROKEN, repr(exc)
        made = Call(kind, name, began, time.monotonic() - began, answer, failure, problem)
        self.calls.append(made)
        self.told.set()
        return made

    async def until(
        self, enough: Callable[[Call], bool], *, times: int = 1, seconds: float
    ) -> Call:
        """Return the call by which so many from now on are such ones; fail after `seconds`."""
        seen, found = len(self.calls), 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    while seen < len(self.calls):
                        found += enough(self.calls[seen])
                        if found >= times:
                            return self.calls[seen]
                        seen += 1
                    self.told.clear()
                    await self.told.wait()
        except TimeoutError:
            raise AssertionError(f"no such call in {seconds} s: {self.counts()}") from None

    def counts(self) -> Mapping[str, int]:
        """Return how many calls ended in which way."""
        return Counter(f"{c.kind} {c.failure or c.status}" for c in self.calls)


@asynccontextmanager
async def working(people: Sequence[Person], *, clients: int, rate: float) -> AsyncIterator[Crew]:
    """Lend a crew that works while the block runs and finishes its last calls."""
    crew = Crew(people, rate)
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(crew.worker(people[number % len(people)], clients / rate))
        try:
            yield crew
        finally:
            crew.stopping = True


async def eventually(check: Callable[[], Awaitable[bool]], *, seconds: float) -> float:
    """Return after how many seconds a check came true; fail when it does not in time."""
    began = time.monotonic()
    while not await check():
        assert time.monotonic() < began + seconds, f"never came true in {seconds} s"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def lost_or_doubled(url: str, crew: Crew) -> list[str]:
    """Return what the database says against the record: nothing, when all is well."""
    conn = await asyncpg.connect(url)
    try:
        tickets = await conn.fetch("SELECT title, count(*) FROM tickets GROUP BY title")
        comments = await conn.fetch("SELECT body, count(*) FROM ticket_comments GROUP BY body")
        files = await conn.fetch(
            "SELECT original_filename, count(*) FROM attachments GROUP BY original_filename"
        )
        torn = await conn.fetch(
            """SELECT key, version, array_agg(e.ticket_version ORDER BY e.ticket_version) AS steps
               FROM tickets t LEFT JOIN events e ON e.ticket_id = t.id GROUP BY t.id
               HAVING array_agg(e.ticket_version ORDER BY e.ticket_version)
                      IS DISTINCT FROM ARRAY(SELECT generate_series(1, t.version))"""
        )
    finally:
        await conn.close()
    there = {
        "create": dict(map(tuple, tickets)),
        "comment": dict(map(tuple, comments)),
        "file": {name.removesuffix(".txt"): times for name, times in files},
    }
    wrong = [f"versions of {row['key']}: {row['steps']} but {row['version']}" for row in torn]
    for call in crew.calls:
        times = there.get(call.kind, {}).get(call.name, 0)
        if call.kind != "status" and (times > 1 or (call.acknowledged and times != 1)):
            wrong.append(f"{call.kind} {call.name} answered {call.status}: {times} times there")
    return wrong


def misbehaved(calls: Sequence[Call], *, seconds: float) -> list[str]:
    """Return the calls that were too slow, or failed otherwise than an outage may fail."""
    wrong = []
    for call in calls:
        if call.seconds > seconds:
            wrong.append(f"{call.kind}: {call.seconds:.2f} s, {call.status}")
        if call.failure:
            wrong.append(f"{call.kind}: {call.problem}")
        elif not call.acknowledged:
            assert call.answer is not None
            body = orjson.loads(call.answer.raw)
            shape = {"error", "message", "error_code", "details", "request_id"}
            good = call.status == 503 and "Retry-After" in call.answer.headers
            if not good or set(body) != shape or body["error_code"] != "UNAVAILABLE":
                wrong.append(f"{call.kind}: {call.status} {call.answer.raw[:200]!r}")
    return wrong
