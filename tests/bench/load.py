"""Load: wrk in a process of its own, and what it measured."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.bench.data import Filled
from tests.bench.servers import Target

CASES = ("read", "list", "lists", "search", "create")

# wrk calls request() for each request and done() at the end; times are microseconds.
_SCRIPT = """
local paths, method, body = {paths}, "{method}", {body}
local headers = {headers}
local count = 0
math.randomseed({seed})
function request()
  count = count + 1
  return wrk.format(method, paths[math.random(#paths)], headers, body)
end
function done(summary, latency, requests)
  local e = summary.errors
  io.stderr:write(string.format(
    '{{"requests":%d,"microseconds":%d,"p50":%d,"p99":%d,"failed":%d}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status + e.connect + e.read + e.write + e.timeout))
end
"""
_BODY = json.dumps(
    {
        "title": "The printer in room 311 does not print",
        "description": "Since this morning it says that a tray is open, and none is. " * 4,
    }
)


class LoadError(Exception):
    """The load could not be made, or some requests failed: nothing was measured."""


@dataclass(frozen=True)
class Sample:
    """One run: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float
    requests: int


def paths(case: str, target: Target, filled: Filled, dice: Random) -> Sequence[str]:
    """Return what to ask for."""
    prefix = target.prefix
    match case:
        case "read":
            return [f"{prefix}/tickets/{id}" for id in dice.sample(filled.ids, 2000)]
        case "list":
            return [f"{prefix}/tickets?status=open&limit=50" if prefix else "/tickets"]
        case "lists":
            # Lists that not everybody looks at at the same moment: of 20 departments.
            size = "limit=50&" if prefix else ""
            return [f"{prefix}/tickets?{size}department=Department%20{n}" for n in range(20)]
        case "create":
            return [f"{prefix}/tickets"]
        case "ping":
            return ["/ping"]
    kind = case.partition("-")[2] or "middle"
    return [f"{prefix}{target.searches}{filled.word(kind, dice)}" for _ in range(200)]


def run(
    target: Target, case: str, filled: Filled, *, seconds: int, connections: int, seed: int
) -> Sample:
    """Load one server with one case; LoadError when a request failed."""
    asked = paths(case, target, filled, Random(seed))
    return ask(
        target, asked, seconds=seconds, connections=connections, seed=seed, post=case == "create"
    )


def ask(
    target: Target,
    asked: Sequence[str],
    *,
    seconds: int,
    connections: int,
    seed: int,
    post: bool = False,
) -> Sample:
    """Ask one server for these paths in any order, again and again."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not installed: apt-get install wrk")
    what = f"{target.name} {asked[0]}"
    headers = {**target.headers, **({"Content-Type": "application/json"} if post else {})}
    script = _SCRIPT.format(
        paths=_lua(asked),
        method="POST" if post else "GET",
        body=json.dumps(_BODY) if post else "nil",
        headers="{" + ",".join(f'["{k}"]={json.dumps(v)}' for k, v in headers.items()) + "}",
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "load.lua"
        file.write_text(script)
        done = subprocess.run(
            # The peer's slowest answers take seconds; wrk would count them as failed after two.
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
             "-s", str(file), target.url],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode or not done.stderr.strip():
        raise LoadError(
            f"{target.name} {asked[0]}: wrk ended with {done.returncode}: {done.stderr}"
        )
    told = json.loads(done.stderr)
    if told["failed"]:
        raise LoadError(f"{what}: {told['failed']} of {told['requests']} failed")
    return Sample(
        rate=told["requests"] / (told["microseconds"] / 1e6),
        p50=told["p50"] / 1000,
        p99=told["p99"] / 1000,
        requests=told["requests"],
    )


def _lua(items: Sequence[str]) -> str:
    return "{" + ",".join(json.dumps(item) for item in items) + "}"
