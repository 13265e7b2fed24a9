"""Requests a second beside the limit and the peer, interleaved, and what a request costs."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests.bench import load
from tests.bench.report import Figure, Samples
from tests.bench.servers import World

CONNECTIONS = 16
# The least part of the limit, and the least multiple of the peer. One list that all ask for at the
# same moment is read once for them, different ones (`lists`) are read each.
TARGETS = {
    "read": (0.70, 8.0), "list": (0.75, 5.0), "lists": (0.75, 5.0),
    "create": (0.70, 5.0), "search": (0.60, 40.0),
}  # fmt: skip


def measure(
    world: World,
    cases: Sequence[str],
    *,
    seconds: int,
    rounds: int,
    seed: int = 1,
) -> Samples:
    """Load every server with every case, in turns."""
    samples, dice = Samples(), Random(seed)
    for target in world.targets():
        for case in cases:
            load.run(target, case, world.filled, seconds=1, connections=CONNECTIONS, seed=0)
    for turn in range(rounds):
        for case in cases:
            targets = world.targets()
            dice.shuffle(targets)
            for target in targets:
                sample = load.run(
                    target, case, world.filled,
                    seconds=seconds, connections=CONNECTIONS, seed=seed + turn,
                )  # fmt: skip
                samples.add(case, target.name, sample)
        print(f"round {turn + 1} of {rounds}", file=sys.stderr)
    return samples


def figures(samples: Samples, *, room: float = 1.0) -> Iterator[Figure]:
    """Yield the ratios with their targets (T1 to T4), of which `room` has to be reached."""
    for case, servers in samples.taken.items():
        least, multiple = (share * room for share in TARGETS.get(case, (0.0, 0.0)))
        yield Figure(f"{case}: part of the limit", samples.ratio(case, "itdesk", "limit"),
                     at_least=least or None)  # fmt: skip
        if "peer" in servers:
            yield Figure(f"{case}: times the peer", samples.ratio(case, "itdesk", "peer"), "x",
                         at_least=multiple or None)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """CPU microseconds of a request, of the daemon and of PostgreSQL."""

    server: float
    database: float

    @property
    def whole(self) -> float:
        """Return both together."""
        return self.server + self.database


def cost(
    world: World, asked: Sequence[str], *, seconds: int, seed: int = 1, post: bool = False
) -> Cost:
    """Return what a request to the daemon for these paths costs on average."""
    server, database = world.itdesk.cpu(), world.database_cpu()
    sample = load.ask(
        world.itdesk, asked, seconds=seconds, connections=CONNECTIONS, seed=seed, post=post
    )
    each = 1e6 / sample.requests
    return Cost((world.itdesk.cpu() - server) * each, (world.database_cpu() - database) * each)
