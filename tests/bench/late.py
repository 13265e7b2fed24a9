"""How late the daemon's event loop is while something goes on, as a timer inside of it sees it.

A client that asks for /ping would measure its own lateness, and its wait for a processor, as well.
"""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import late_plugin
from tests.support.daemon import Live

_PATH = "/plugins/late"


@dataclass
class Late:
    """How many milliseconds late the timers of a while were, once it is over."""

    sorted: list[float] = field(default_factory=list)

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
async def watched(live: Live) -> AsyncIterator[Late]:
    """Lend what is known after the block of how late the loop was meanwhile."""
    late = Late()
    (await live.nobody.post(f"{_PATH}/begin")).expect(200)
    try:
        yield late
    finally:
        late.sorted = (await live.nobody.post(f"{_PATH}/end")).expect(200)
