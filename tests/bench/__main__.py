"""Measure this daemon beside its limits and beside a plain FastAPI back end, in one run.

    python -m tests.bench                     requests: read, list, lists, search, create
    python -m tests.bench stream              websocket fan-out and the way of an event to a client
    python -m tests.bench start               seconds until ready, memory at rest
    python -m tests.bench memory              memory after loads, websockets and sieges
    python -m tests.bench database            the same questions at --tickets and at --large tickets
    python -m tests.bench growth              processor time of a request at both, and deep in lists
    python -m tests.bench login               sign-in beside bcrypt, and reads while it goes on
    python -m tests.bench pieces              what sign-in and access log take of a request
    python -m tests.bench --short             for CI: a minute, and room for a noisy machine

With --json FILE everything is written into a file as well.

Needs wrk (apt-get install wrk) and the packages of the extra [dev]. Ratios are what counts; the
exit status is 1 when a target was missed.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Collection
from pathlib import Path

from tests.bench import database, growth, load, login, memory, pieces, requests, start, stream
from tests.bench.report import Figure, Samples, as_json, machine
from tests.bench.servers import World, world

PARTS = (
    "requests", "stream", "start", "memory", "database", "growth", "login", "pieces",
)  # fmt: skip
# What the short form asks of each target: what is slower than this is slower on any machine.
ROOM = 0.6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", default=[], metavar="PART",
                        help=", ".join(PARTS))  # fmt: skip
    parser.add_argument("--cases", default=",".join(load.CASES), help="of the requests")
    parser.add_argument("--tickets", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="of database and growth")
    parser.add_argument("--clients", type=int, default=1000, help="websockets of the fan-out")
    parser.add_argument("--seconds", type=int, default=4, help="of each sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave the FastAPI back end out")
    short = "requests beside the limit, rounds of a second, lower floors"
    parser.add_argument("--short", action="store_true", help=short)
    parser.add_argument("--json", type=Path, help="write everything into this file as well")
    return parser.parse_args()


async def main() -> int:
    """Run what was asked for; return the exit status."""
    wanted = _arguments()
    if wanted.short:
        wanted.parts, wanted.rounds, wanted.seconds = ["requests"], 3, 1
        wanted.no_peer = True
    parts = set(wanted.parts or ["requests", "stream"])
    samples, figures = Samples(), list[Figure]()
    often = {"seconds": wanted.seconds, "rounds": wanted.rounds}
    if "start" in parts:
        figures += await start.measure(rounds=wanted.rounds)
    if "login" in parts:
        slowly = {"ITDESK_AUTH__BCRYPT_COST": str(login.COST)}
        async with world(wanted.tickets, peer=False, **slowly) as servers:
            figures += await login.measure(servers, **often)
    if parts - {"start", "login"}:
        peer = not wanted.no_peer and "requests" in parts
        async with world(wanted.tickets, peer=peer) as servers:
            await _on(servers, parts, wanted, samples, figures)
    return _told(wanted, samples, figures)


async def _on(
    servers: World,
    parts: Collection[str],
    wanted: argparse.Namespace,
    samples: Samples,
    figures: list[Figure],
) -> None:
    """Add what the parts find that need tickets."""
    often = {"seconds": wanted.seconds, "rounds": wanted.rounds}
    cases = wanted.cases.split(",")
    # Nothing may come before them that opens tickets.
    if "database" in parts or "growth" in parts:
        async with world(wanted.large, peer=False) as large:
            if "database" in parts:
                small = await database.measure(servers)
                figures += database.figures(small, await database.measure(large))
            if "growth" in parts:
                figures += await growth.measure(servers, large, **often)
    if "requests" in parts:
        samples.taken.update(requests.measure(servers, cases, **often).taken)
        figures += requests.figures(samples, room=ROOM if wanted.short else 1.0)
    if "pieces" in parts:
        figures += await pieces.measure(servers, **often)
    if "memory" in parts:
        figures += [
            one
            async for one in memory.measure(servers, cases=cases, clients=wanted.clients, **often)
        ]
    if "stream" in parts:
        figures += await stream.measure(servers, clients=wanted.clients, rounds=wanted.rounds)


def _told(wanted: argparse.Namespace, samples: Samples, figures: list[Figure]) -> int:
    print(" ".join(f"{name} {value}" for name, value in machine().items()))
    for line in samples.lines():
        print(line)
    for figure in figures:
        print(figure.line())
    if wanted.json is not None:
        about = {"tickets": wanted.tickets, "rounds": wanted.rounds, "seconds": wanted.seconds}
        wanted.json.write_text(json.dumps(as_json(samples, figures, about), indent=1))
    return 1 if any(figure.reached is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
