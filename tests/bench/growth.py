"""What a request costs on a small and on a large desk: processor time, of PostgreSQL's as well.

Time to answer hides what grows behind a cache or on the other processor. Both desks are up and
asked in turns, each question in many different ones as well: tickets and lists that were shown
just now are known by the daemon.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from random import Random
from statistics import median

import asyncpg

from itdesk.store.paging import encode_cursor
from tests.bench import load
from tests.bench.report import Figure
from tests.bench.requests import Cost, cost
from tests.bench.servers import World

# How many times as much it may cost on the large desk. Opening tickets makes the small one grow.
GROWTH = {
    "read": 1.25, "list": 1.25, "lists": 1.25, "pages": 1.25, "search": 1.5, "create": 1.25,
}  # fmt: skip
# How many times as much as the first a page may cost that begins so far down.
DEEP, DEPTHS = 1.2, (0.1, 0.5, 0.9)
# How many different pages, and in which part of all tickets one depth has them.
PAGES, NEAR = 200, 0.02


async def pages(world: World, dice: Random, depth: float, near: float = NEAR) -> list[str]:
    """Return pages of the newest tickets that begin at a depth, or not far below it."""
    conn = await asyncpg.connect(world.url)
    query = """SELECT created_at, id FROM tickets ORDER BY created_at DESC, id DESC
               OFFSET $1 LIMIT $2"""
    count = world.filled.tickets
    try:
        rows = await conn.fetch(query, int(count * depth), max(PAGES, int(count * near)))
    finally:
        await conn.close()
    return [
        f"/api/v1/tickets?limit=50&cursor={encode_cursor('-created_at', *row)}"
        for row in dice.sample(rows, PAGES)
    ]


async def _asked(world: World, case: str, dice: Random) -> Sequence[str]:
    if case == "pages":
        return await pages(world, dice, 0.0, near=0.95)
    return load.paths(case, world.itdesk, world.filled, dice)


async def _sizes(
    small: World, large: World, *, seconds: int, rounds: int, dice: Random
) -> AsyncIterator[Figure]:
    worlds = {"small": small, "large": large}
    for case, most in GROWTH.items():
        costs: dict[str, list[Cost]] = {name: [] for name in worlds}
        for turn in range(rounds + 1):
            for name in dice.sample(list(worlds), 2):
                asked = await _asked(worlds[name], case, Random(turn))
                taken = cost(worlds[name], asked, seconds=seconds, seed=turn, post=case == "create")
                costs[name].append(taken)
        # The first round warms up.
        for figure in _growth(case, costs["small"][1:], costs["large"][1:], most):
            yield figure


def _growth(case: str, small: list[Cost], large: list[Cost], most: float) -> Iterator[Figure]:
    pairs = list(zip(small, large, strict=True))
    for name, costs in (("small", small), ("large", large)):
        whole = median(one.whole for one in costs)
        yield Figure(f"{case}: CPU of one on the {name} desk", whole, "us")
        part = median(one.database for one in costs)
        yield Figure(f"{case}: of it PostgreSQL's, on the {name} desk", part, "us")
    yield Figure(f"{case}: growth of the CPU", median(b.whole / a.whole for a, b in pairs), "x",
                 at_most=most)  # fmt: skip


async def _depths(
    world: World, *, seconds: int, rounds: int, dice: Random
) -> AsyncIterator[Figure]:
    """Yield what pages cost in the deep: many different ones, and always the same."""
    for name, count in (("different pages", PAGES), ("one page", 1)):
        costs: dict[float, list[float]] = {depth: [] for depth in (0.0, *DEPTHS)}
        asked = {depth: (await pages(world, dice, depth))[:count] for depth in costs}
        for turn in range(rounds + 1):
            for depth in dice.sample(list(costs), len(costs)):
                taken = cost(world, asked[depth], seconds=seconds, seed=turn)
                costs[depth].append(taken.whole)
        first = costs[0.0][1:]
        yield Figure(f"{name}: CPU of one among the first", median(first), "us")
        for depth in DEPTHS:
            times = median(b / a for a, b in zip(first, costs[depth][1:], strict=True))
            yield Figure(f"{name}: {depth:.0%} deep, of the first", times, "x", at_most=DEEP)


async def measure(small: World, large: World, *, seconds: int, rounds: int) -> list[Figure]:
    """Return what requests cost on both desks, and in the deep of the large one (T6)."""
    dice = Random(1)
    deep = _depths(large, seconds=seconds, rounds=rounds, dice=dice)
    sizes = _sizes(small, large, seconds=seconds, rounds=rounds, dice=dice)
    return [*[one async for one in deep], *[one async for one in sizes]]
