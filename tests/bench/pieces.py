"""What sign-in and the access log take of a request: these pieces alone, beside whole requests.

The pieces are run in a loop, which is kinder to them than a request is. What a whole request takes
of the daemon's processor is measured under load, in the same run.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from statistics import median

from aiohttp.test_utils import make_mocked_request

from itdesk.api import ROUTES
from itdesk.api.dispatch import Dispatcher
from itdesk.api.matching import Router
from itdesk.runtime import log
from tests.bench import load
from tests.bench.report import Figure
from tests.bench.requests import cost
from tests.bench.servers import World
from tests.support.desk import Bench, bench_on

TIMES, LOOPS = 5_000, 7
# The most that a piece may take of a whole request.
SIGN_IN, LOG_OF_READ, LOG_OF_PING = 0.05, 0.05, 0.15
AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


async def _best(piece: Callable[[], Awaitable[object]]) -> float:
    """Return the CPU microseconds of one run, in the best loop of several."""
    best = float("inf")
    for _ in range(LOOPS):
        began = time.process_time()
        for _ in range(TIMES):
            await piece()
        best = min(best, (time.process_time() - began) / TIMES * 1e6)
    return best


async def _nothing() -> None:
    pass


async def _sign_in(bench: Bench) -> float:
    """Return what it takes to know who asks, from a token that was seen before."""
    person = await bench.person()
    assert person.user_id is not None
    user = await bench.desk.accounts.get(person, person.user_id)
    token = (await bench.desk.sessions.issue_for(user)).access_token

    async def authenticate() -> None:
        await bench.desk.sessions.authenticate(token)

    return await _best(authenticate)


async def _access_line(bench: Bench) -> float:
    """Return what a read's line takes until it is in a file: the book's close but metrics."""
    dispatcher = Dispatcher(bench.desk, ROUTES)
    path = f"/api/v1/tickets/{(await bench.ticket(await bench.person())).id}"
    headers = {"Host": "desk.example.org", "User-Agent": AGENT}
    request = make_mocked_request("GET", path, headers=headers)
    exchange = dispatcher.exchanges.open(request)
    exchange.route, _ = Router(ROUTES).match("GET", path)
    exchange.caller = await bench.person()

    async def close() -> None:
        dispatcher.exchanges.close(request, exchange, 200, 812, 0.0021)

    observe = bench.desk.metrics.http_request_seconds.labels("GET", path, "200").observe

    async def count() -> None:
        observe(0.0021)

    return await _best(close) - await _best(count)


async def _pieces(url: str) -> tuple[float, float]:
    with tempfile.TemporaryFile() as file:
        undo = log.configure("info", fd=file.fileno())
        try:
            async with bench_on(url) as bench:
                return await _sign_in(bench) - await _best(_nothing), await _access_line(bench)
        finally:
            undo()


async def measure(world: World, *, seconds: int, rounds: int) -> Iterator[Figure]:
    """Return what sign-in and the access log are of a read and of a ping (T12, T14)."""
    whole: dict[str, list[float]] = {"read": [], "ping": []}
    for turn in range(rounds + 1):
        for case, costs in whole.items():
            asked = load.paths(case, world.itdesk, world.filled, Random(turn))
            taken = await asyncio.to_thread(cost, world, asked, seconds=seconds, seed=turn)
            costs.append(taken.server)
    # The first round warms up.
    read, ping = (median(costs[1:]) for costs in whole.values())
    sign_in, line = await _pieces(await world.database.create())
    return iter(
        (
            Figure("read: CPU of the daemon", read, "us"),
            Figure("ping: CPU of the daemon", ping, "us"),
            Figure("sign-in by a known token", sign_in, "us"),
            Figure("sign-in by a known token, of a read", sign_in / read, at_most=SIGN_IN),
            Figure("access log", line, "us"),
            Figure("access log, of a read", line / read, at_most=LOG_OF_READ),
            Figure("access log, of a ping", line / ping, at_most=LOG_OF_PING),
        )
    )
