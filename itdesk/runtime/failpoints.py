"""Named places at which a crash test may kill the process; switched on in development only."""

import os
import signal

POINTS = frozenset({
    "before_commit", "after_commit", "before_send", "after_send", "before_mark",
    "before_verdict", "after_verdict",
})  # fmt: skip
_armed: set[str] = set()


def arm(names: str) -> None:
    """Kill this process when it next reaches one of these comma-separated places."""
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in POINTS:
            raise ValueError(f"unknown failpoint {name!r}; known: {', '.join(sorted(POINTS))}")
        _armed.add(name)


def hit(name: str) -> None:
    """Die here, as by kill -9, if this place was armed."""
    if name in _armed:
        os.kill(os.getpid(), signal.SIGKILL)
