"""The virus scanners that must agree, and whether they may be believed.

An engine's word counts only after its probe passed. One that goes out has to prove itself again,
because what comes back may be set up otherwise.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from itdesk.errors import Unavailable
from itdesk.hookspecs import ScanEngine, Verdict
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger

log = get_logger("scanner")


@dataclass(slots=True)
class _Trust:
    problems: dict[str, list[str]] = field(default_factory=dict)
    proved: bool = False
    reachable: bool = True
    tried_at: float = float("-inf")


class Engines:
    """All engines of a desk, asked together."""

    def __init__(
        self, engines: Mapping[str, ScanEngine], clock: Clock, *, retry_seconds: float
    ) -> None:
        self._engines = dict(engines)
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._trust = _Trust()

    @property
    def names(self) -> list[str]:
        """Return the names of the engines that must agree."""
        return list(self._engines)

    @property
    def proved(self) -> bool:
        """Return whether every engine passed its probe and none was out since."""
        return self._trust.proved

    @property
    def problems(self) -> dict[str, list[str]]:
        """Return, by engine, why nothing can be found clean now; empty when all is well."""
        return dict(self._trust.problems)

    async def trusted(self) -> bool:
        """Return whether every engine passed its probe; probe again when one had not.

        An engine that cannot be reached is asked again at every call, one with weak settings
        once in a while, because its probe is costly.
        """
        trust, now = self._trust, self._clock.monotonic()
        if trust.proved:
            return True
        if trust.reachable and now - trust.tried_at < self._retry_seconds:
            return False
        trust.tried_at, trust.reachable, trust.problems = now, True, {}
        if not self._engines:
            trust.problems["scanner"] = ["no virus scan engine is configured"]
        for name, engine in self._engines.items():
            try:
                weak = await engine.probe()
            except Unavailable as exc:
                trust.reachable, weak = False, [exc.message]
            if weak:
                trust.problems[name] = weak
        trust.proved = not trust.problems
        if trust.proved:
            log.info("engines trusted", engines=sorted(self._engines))
        else:
            log.warning("nothing can be found clean", problems=trust.problems)
        return trust.proved

    async def ask(self, path: Path, *, size: int, seconds: float) -> list[Verdict] | None:
        """Return what every engine says of a file, or None when one of them is out."""
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(self._one(engine, path, size, seconds))
                for engine in self._engines.values()
            ]
        verdicts = [verdict for task in asked if (verdict := task.result()) is not None]
        return verdicts if verdicts and len(verdicts) == len(asked) else None

    async def signatures(self) -> str | None:
        """Return what the engines and their signatures are called now; None when one is out."""
        try:
            said = [await engine.signatures() for engine in self._engines.values()]
        except Unavailable:
            return None
        return ", ".join(said) or None

    async def _one(
        self, engine: ScanEngine, path: Path, size: int, seconds: float
    ) -> Verdict | None:
        try:
            return await engine.scan(path, size=size, timeout=seconds)
        except Unavailable as exc:
            self._trust.proved, self._trust.reachable = False, False
            self._trust.problems = {engine.name: [exc.message]}
            return None
