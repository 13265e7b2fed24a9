"""R-02: a repeated request has one effect, on real PostgreSQL, killed daemons included."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from aiohttp import ClientConnectionError, ClientSession

from itdesk.desk.schedules import ANSWER_HOURS
from itdesk.store import cleanup
from tests.support.small_desk import Answer, Server, serving
from tests.support.thing_server import Things, desk_of, prepare

ALICE = {"Authorization": "Bearer token-0"}
BOB = {"Authorization": "Bearer token-1"}


@pytest_asyncio.fixture(name="database")
async def _database(database_url: str) -> str:
    await prepare(database_url)
    return database_url


@pytest.fixture(name="things")
def _things() -> Things:
    return Things()


@pytest_asyncio.fixture(name="server")
async def _server(database: str, things: Things) -> AsyncIterator[Server]:
    desk = desk_of(database)
    async with serving(desk, things.routes()) as server:
        yield server
    await desk.db.close()


async def post(
    server: Server,
    key: str | None,
    *,
    path: str = "/things",
    title: str = "a thing",
    who: dict[str, str] = ALICE,
) -> Answer:
    headers = dict(who) if key is None else {**who, "Idempotency-Key": key}
    return await server.ask("POST", f"/api/v1{path}", json={"title": title}, headers=headers)


async def count(url: str, table: str = "thing") -> int:
    conn = await asyncpg.connect(url)
    try:
        rows: int = await conn.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
        return rows
    finally:
        await conn.close()


def error(answer: Answer) -> Any:
    return answer.status, answer.json()["error"]


def same(first: Answer, second: Answer) -> bool:
    kept = ("Content-Type", "Location", "ETag")
    return (first.status, first.raw, *(first.headers.get(name) for name in kept)) == (
        second.status,
        second.raw,
        *(second.headers.get(name) for name in kept),
    )


async def test_twin_gets_the_very_same_answer(server: Server, database: str) -> None:
    first = await post(server, "k1")
    second = await post(server, "k1")
    assert first.status == 201 and same(first, second)
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert await count(database) == 1


async def test_without_a_key_each_request_counts(server: Server, database: str) -> None:
    assert {(await post(server, None)).status for _ in range(2)} == {201}
    assert await count(database) == 2
    assert await count(database, "idempotency_keys") == 0


async def test_64_parallel_twins_have_one_effect(server: Server, database: str) -> None:
    answers = await asyncio.gather(*(post(server, "k1") for _ in range(64)))
    made = [answer for answer in answers if answer.status == 201]
    busy = [answer for answer in answers if answer.status == 409]
    assert len(made) + len(busy) == 64 and made
    assert all(same(answer, made[0]) for answer in made)
    assert all(error(answer) == (409, "E_IDEMPOTENCY_IN_FLIGHT") for answer in busy)
    assert all(answer.headers["Retry-After"] == "1" for answer in busy)
    assert len([answer for answer in made if "Idempotency-Replayed" not in answer.headers]) == 1
    assert await count(database) == 1
    assert same(await post(server, "k1"), made[0])


async def test_twins_of_one_in_flight_are_409(
    server: Server, things: Things, database: str
) -> None:
    things.hold.clear()
    first = asyncio.ensure_future(post(server, "k1"))
    while not things.runs:
        await server.desk.clock.sleep(0.01)
    twins = await asyncio.gather(*(post(server, "k1") for _ in range(63)))
    assert {error(twin) for twin in twins} == {(409, "E_IDEMPOTENCY_IN_FLIGHT")}
    things.hold.set()
    assert (await first).status == 201
    assert await count(database) == 1 and things.runs == 1


async def test_key_of_another_request_is_422(server: Server, database: str) -> None:
    await post(server, "k1")
    assert error(await post(server, "k1", title="other")) == (422, "E_IDEMPOTENCY_KEY_REUSED")
    await post(server, "k2", path="/of/a")
    assert error(await post(server, "k2", path="/of/b")) == (422, "E_IDEMPOTENCY_KEY_REUSED")
    assert await count(database) == 2


async def test_other_people_and_other_routes_are_independent(server: Server, database: str) -> None:
    answers = [
        await post(server, "k1"),
        await post(server, "k1", who=BOB, title="bob's"),
        await post(server, "k1", path="/others", title="another route"),
    ]
    assert [answer.status for answer in answers] == [201, 201, 201]
    assert await count(database) == 3
    assert same(await post(server, "k1", who=BOB, title="bob's"), answers[1])


@pytest.mark.parametrize("title", ["wrong", "crash"])
async def test_failure_leaves_the_key_unused(server: Server, database: str, title: str) -> None:
    assert (await post(server, "k1", title=title)).status in (400, 500)
    assert await count(database) == await count(database, "idempotency_keys") == 0
    assert (await post(server, "k1")).status == 201
    assert await count(database) == 1


async def test_failed_validation_leaves_the_key_unused(server: Server, database: str) -> None:
    headers = {**ALICE, "Idempotency-Key": "k1"}
    answer = await server.ask("POST", "/api/v1/things", json={"name": 1}, headers=headers)
    assert answer.status == 422
    assert (await post(server, "k1")).status == 201


@pytest.mark.parametrize("key", ["k" * 256, "a b", "caf\u00e9", ""])
async def test_key_that_is_no_key_is_422(server: Server, database: str, key: str) -> None:
    answer = await post(server, key)
    assert error(answer) == (422, "E_VALIDATION_ERROR")
    assert answer.json()["details"]["fields"][0]["path"] == "Idempotency-Key"
    assert await count(database) == 0


async def test_key_of_255_characters_is_fine(server: Server) -> None:
    assert (await post(server, "!" + "~" * 254)).status == 201


async def test_lost_race_is_run_again_in_a_new_transaction(
    server: Server, things: Things, database: str
) -> None:
    things.losses = 2
    assert (await post(server, "k1")).status == 201
    assert things.runs == 3
    assert await count(database) == await count(database, "idempotency_keys") == 1


async def test_route_that_reads_its_own_body(server: Server, database: str) -> None:
    async def send(body: bytes, key: str = "k1") -> Answer:
        headers = {**ALICE, "Idempotency-Key": key}
        return await server.ask("POST", "/api/v1/files", data=body, headers=headers)

    first = await send(b"one")
    assert first.status == 201 and same(first, await send(b"one"))
    assert error(await send(b"two")) == (422, "E_IDEMPOTENCY_KEY_REUSED")
    assert await count(database) == 1


async def test_client_that_hangs_up_finds_its_answer_later(
    server: Server, things: Things, database: str
) -> None:
    things.hold.clear()
    first = asyncio.ensure_future(post(server, "k1"))
    while not things.runs:
        await server.desk.clock.sleep(0.01)
    first.cancel()
    things.hold.set()
    while (again := await post(server, "k1")).status == 409:
        await server.desk.clock.sleep(0.01)
    assert again.status == 201
    assert await count(database) == 1


async def _spawn(url: str, armed: str) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.thing_server",
        url,
        armed,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    port = (await process.stdout.readline()).decode().strip()
    return process, f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(("armed", "rows"), [("before_commit", 0), ("after_commit", 1)])
async def test_retry_after_a_kill_has_one_effect(database: str, armed: str, rows: int) -> None:
    request: dict[str, Any] = {
        "json": {"title": "a thing"},
        "headers": {**ALICE, "Idempotency-Key": "k1"},
    }
    process, url = await _spawn(database, armed)
    async with ClientSession(url) as client:
        with pytest.raises(ClientConnectionError):
            await client.post("/api/v1/things", **request)
    assert await process.wait() == -9
    assert await count(database) == await count(database, "idempotency_keys") == rows

    process, url = await _spawn(database, "")
    try:
        async with ClientSession(url) as client, client.post("/api/v1/things", **request) as again:
            assert again.status == 201
            assert again.headers["Location"].endswith((await again.json())["id"])
            assert ("Idempotency-Replayed" in again.headers) == bool(rows)
    finally:
        process.kill()
        await process.wait()
    assert await count(database) == 1


async def test_answers_are_kept_for_a_day(server: Server, database: str) -> None:
    """R-02: retention of 24 hours at least; what is older goes."""
    assert ANSWER_HOURS >= 24
    await post(server, "k1")
    conn = await asyncpg.connect(database)
    try:
        age = "UPDATE idempotency_keys SET created_at = now() - make_interval(hours => $1)"
        await conn.execute(age, ANSWER_HOURS - 1)
        assert await cleanup.delete_old_answers(conn, 10, hours=ANSWER_HOURS) == 0
        await conn.execute(age, ANSWER_HOURS + 1)
        assert await cleanup.delete_old_answers(conn, 10, hours=ANSWER_HOURS) == 1
    finally:
        await conn.close()
