"""How late an event loop is while something goes on, as timers inside of it see it.

A client that asks for /ping would measure its own lateness, and its wait for a processor, as well.
"""

import shutil
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Self

from tests.bench import late_plugin
from tests.support.daemon import Person

_PATH = "/plugins/late"


@dataclass
class Late:
    """How many milliseconds late the timers of a while were, once it is over."""

    sorted: list[float] = field(default_factory=list)

    @classmethod
    def together(cls, lates: Iterable[Self]) -> Self:
        """Return several of these as one."""
        return cls(sorted(chain.from_iterable(one.sorted for one in lates)))

    @property
    def p99(self) -> float:
        """Return what 99 of 100 timers were at most late."""
        return self.sorted[int(len(self.sorted) * 0.99)]

    @property
    def most(self) -> float:
        """Return how late the latest was: so long the loop was held."""
        return self.sorted[-1]


def installed(state_dir: Path) -> Mapping[str, str]:
    """Put the plugin that measures into a folder of a daemon's; return the settings for it."""
    folder = state_dir / "late"
    folder.mkdir(mode=0o755)
    copy = shutil.copyfile(late_plugin.__file__, folder / "late.py")
    Path(copy).chmod(0o644)
    return {
        "ITDESK_PLUGIN_HOST__DIRECTORIES": f'["{folder}"]',
        "ITDESK_PLUGINS__LATE__ENABLED": "true",
    }


@asynccontextmanager
async def watched(server: Person) -> AsyncIterator[Late]:
    """Lend what is known after the block of how late a server's loop was meanwhile."""
    late = Late()
    (await server.post(f"{_PATH}/begin")).expect(200)
    try:
        yield late
    finally:
        late.sorted = (await server.post(f"{_PATH}/end")).expect(200)
