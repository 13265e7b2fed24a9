"""schemathesis asks the running daemon, as each role, all that its OpenAPI document promises.

Every check, every phase and every operation; what good data may be refused for, and why, is in
tests/fuzz/refusals.py. The administrator comes last: they may delete what the others work with.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon import Live, Person, started
from tests.support.postgres import Server

SCRIPT = Path(__file__).parent / "fuzz" / "run_schemathesis"
# Two at once, as there are processors; the administrator alone.
ROUNDS = (("anonymous", "user"), ("agent", "manager"), ("admin",))
# The phase `coverage` asks each role some five thousand times: that is for the long form.
SHORT = (
    "--max-examples", "3", "--seed", "1", "--no-shrink",
    "--phases", "examples,fuzzing,stateful",
)  # fmt: skip
SETTINGS = {"ACCESS_TOKEN_EXPIRE_MINUTES": "600"}


@dataclass(frozen=True)
class Ran:
    """One run: who asked, whether all was well, and what was said."""

    role: str
    status: int
    said: str


async def run(live: Live, person: Person, role: str, *options: str) -> Ran:
    """Let schemathesis ask everything as one person."""
    process = await asyncio.create_subprocess_exec(
        SCRIPT, live.url, person.token, *options,
        env={**os.environ, "ITDESK_FUZZ_SELF": person.id},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    return Ran(role, process.returncode or 0, said.decode(errors="replace"))


async def as_everybody(
    live: Live, *options: str, rounds: Sequence[Sequence[str]] = ROUNDS
) -> list[Ran]:
    """Run as each role, and see that each still had their role when the run was over."""
    ran: list[Ran] = []
    for roles in rounds:
        people = {
            role: live.nobody if role == "anonymous" else await live.person(role)
            for role in roles
            if role != "admin"
        }
        if "admin" in roles:
            people["admin"] = live.admin
        ran += await asyncio.gather(
            *(run(live, person, role, *options) for role, person in people.items())
        )
        for role, person in people.items():
            if person.token:
                assert (await person.get("/auth/me")).expect(200)["role"] == role
    return ran


def _short(said: str) -> str:
    """Return what was said, its endless lines cut, from the first failure on."""
    lines = said.partition("= FAILURES =")[2] or said
    return "\n".join(line[:400] for line in lines.splitlines())[:8000]


def _well(live: Live, ran: list[Ran]) -> None:
    wrong = [f"--- as {one.role}: {one.status}\n{_short(one.said)}" for one in ran if one.status]
    assert not wrong, "\n".join(wrong)
    for one in ran:
        assert "Tested: " in one.said and " passed" in one.said, one.said
    crashes = [line for line in live.daemon.lines() if line["level"] in ("error", "critical")]
    assert not crashes, crashes[:3]
    failed = [line for line in live.daemon.lines() if line.get("status") == 500]
    assert not failed, failed[:3]


async def _made() -> None:
    """Make schemathesis's environment when there is none yet."""
    process = await asyncio.create_subprocess_exec(SCRIPT)
    assert await process.wait() == 0


async def test_the_document_is_true_for_everybody(pg_server: Server) -> None:
    """S-40, S2-02: a short run with one seed, as those who may least and the one who may all."""
    await _made()
    async with started(pg_server, **SETTINGS) as live:
        ran = await as_everybody(live, *SHORT, rounds=(("anonymous", "user"), ("admin",)))
        _well(live, ran)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_document_is_true_at_length(pg_server: Server, seed: int) -> None:
    """S-40: 50 examples for each operation and phase, as each role, with three seeds."""
    await _made()
    async with started(pg_server, **SETTINGS) as live:
        ran = await as_everybody(live, "--max-examples", "50", "--seed", str(seed))
        _well(live, ran)
