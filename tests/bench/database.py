"""What a question costs on a small and on a large desk: one client, one question at a time.

The median is what a person waits for. Between the two sizes it must hardly grow: whatever walks
over all tickets would grow a hundredfold.
"""

import time
from collections.abc import Iterator, Mapping
from random import Random
from statistics import median
from urllib.parse import urlencode

from aiohttp import ClientSession

from tests.bench.report import Figure
from tests.bench.servers import World

QUESTIONS = 200
# The most that a median may grow, and the most milliseconds that it may be on the large desk.
GROWTH = {"read": 1.5, "list": 1.5, "list filtered": 1.5, "search filtered": 1.5}
MOST = {
    "search common": 2.0, "search mid": 2.0, "search rare": 15.0, "search two": 15.0,
    "dashboard": 100.0,
}  # fmt: skip


def _tickets(**query: str | int) -> str:
    return f"/api/v1/tickets?{urlencode({'limit': 25, **query})}"


def paths(world: World, dice: Random) -> Mapping[str, list[str]]:
    """Return what is asked, by case."""
    word, filled = world.filled.word, world.filled
    times = range(QUESTIONS)
    return {
        "read": [f"/api/v1/tickets/{dice.choice(filled.ids)}" for _ in times],
        "list": [_tickets(status="open") for _ in times],
        "list filtered": [
            _tickets(status="open", department=f"Department {dice.randrange(5) * 4}") for _ in times
        ],
        "search common": [_tickets(q=word("common", dice)) for _ in times],
        "search mid": [_tickets(q=word("middle", dice)) for _ in times],
        "search rare": [_tickets(q=word("rare", dice)) for _ in times],
        "search two": [_tickets(q=f"{word('middle', dice)} {word('rare', dice)}") for _ in times],
        "search filtered": [
            _tickets(q=word("common", dice), status="open", priority="low") for _ in times
        ],
        "search in a department": [
            _tickets(
                q=word("common", dice),
                department=f"Department {dice.randrange(5) * 4}",
                category="network",
                status="blocked",
            )
            for _ in times
        ],
        "search with facets": [
            f"/api/v1/tickets/search?facets=true&q={word('middle', dice)}" for _ in range(20)
        ],
        "dashboard": ["/api/v1/reports/dashboard" for _ in times],
        "by status": ["/api/v1/reports/tickets-by-status" for _ in range(20)],
    }


async def measure(world: World, seed: int = 1) -> dict[str, float]:
    """Return the median milliseconds of each case, over HTTP on one connection."""
    found: dict[str, float] = {}
    async with ClientSession(world.itdesk.url, headers=dict(world.itdesk.headers)) as http:
        for case, asked in paths(world, Random(seed)).items():
            taken = []
            # The first few warm the caches, as the people before would have.
            for path in asked[:10] + asked:
                started = time.perf_counter()
                async with http.get(path) as answer:
                    await answer.read()
                    if answer.status != 200:
                        raise RuntimeError(f"{path}: {answer.status}")
                taken.append((time.perf_counter() - started) * 1e3)
            found[case] = median(taken[10:])
    return found


def figures(small: Mapping[str, float], large: Mapping[str, float]) -> Iterator[Figure]:
    """Yield both medians and how they grew, with their targets (T5, T6)."""
    for case, before in small.items():
        after = large[case]
        yield Figure(f"{case}: p50 on the small desk", before, "ms")
        yield Figure(f"{case}: p50 on the large desk", after, "ms", at_most=MOST.get(case))
        yield Figure(f"{case}: growth", after / before, "x", at_most=GROWTH.get(case))
