"""Measure this daemon beside its limits and beside a plain FastAPI back end, in one run.

    python -m tests.bench                     requests: read, list, lists, search, create
    python -m tests.bench stream              websocket fan-out and the way of an event to a client
    python -m tests.bench start               seconds until ready, memory at rest
    python -m tests.bench memory              memory after loads, websockets and sieges
    python -m tests.bench database            the same questions at --tickets and at --large tickets
    python -m tests.bench --short             for CI: a minute, and room for a noisy machine

With --json FILE everything is written into a file as well.

Needs wrk (apt-get install wrk) and the packages of the extra [dev]. Ratios are what counts; the
exit status is 1 when a target was missed.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from tests.bench import database, load, memory, requests, start, stream
from tests.bench.report import Figure, Samples, as_json, machine
from tests.bench.servers import world

# What the short form asks of each target: what is slower than this is slower on any machine.
ROOM = 0.6


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", default=[], metavar="PART",
                        help="requests, stream, start, memory, database")  # fmt: skip
    parser.add_argument("--cases", default=",".join(load.CASES), help="of the requests")
    parser.add_argument("--tickets", type=int, default=10_000)
    parser.add_argument("--large", type=int, default=1_000_000, help="of the part database")
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
    parts = wanted.parts or ["requests", "stream"]
    if wanted.short:
        parts, wanted.rounds, wanted.seconds, wanted.no_peer = ["requests"], 3, 1, True
    samples, figures, small = Samples(), list[Figure](), dict[str, float]()
    if "start" in parts:
        figures += await start.measure(rounds=wanted.rounds)
    if parts == ["start"]:
        return _told(wanted, samples, figures)
    async with world(wanted.tickets, peer=not wanted.no_peer and "requests" in parts) as servers:
        if "requests" in parts:
            samples = requests.measure(
                servers, wanted.cases.split(","), seconds=wanted.seconds, rounds=wanted.rounds
            )
            figures += requests.figures(samples, room=ROOM if wanted.short else 1.0)
        if "database" in parts:
            small = await database.measure(servers)
        if "memory" in parts:
            figures += [
                figure
                async for figure in memory.measure(
                    servers, cases=wanted.cases.split(","), clients=wanted.clients,
                    seconds=wanted.seconds, rounds=wanted.rounds,
                )
            ]  # fmt: skip
        if "stream" in parts:
            figures += await stream.measure(servers, clients=wanted.clients, rounds=wanted.rounds)
    if "database" in parts:
        async with world(wanted.large, peer=False) as servers:
            figures += database.figures(small, await database.measure(servers))
    return _told(wanted, samples, figures)


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
