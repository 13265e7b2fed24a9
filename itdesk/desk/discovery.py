"""Where plugins come from: entry points of the group `itdesk`, and files in drop-in directories.

Nothing is imported before it is asked for, and one broken distribution or file hides no other. A
drop-in runs with all rights of the daemon, so it is refused when anyone but root and the daemon
itself could have written it. It is compiled from the very bytes that were checked; the import
system would read the file again, or trust a __pycache__ beside it.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from itdesk.frozen import frozen
from itdesk.runtime.log import get_logger

GROUP = "itdesk"

log = get_logger("plugin")


class Refused(Exception):
    """A plugin that is not taken, and why, in words for the operator."""


@frozen
class Found:
    """A plugin that could be loaded: `load` imports it and returns its class."""

    name: str
    origin: str
    version: str | None
    load: Callable[[], Any]
    trusted: bool = True
    own: bool = False


def discover(directories: Sequence[Path]) -> dict[str, list[Found]]:
    """Return all plugins by name; more than one of a name means that nobody can tell which."""
    by_name: dict[str, list[Found]] = {}
    for found in (*_installed(), *_dropped_in(directories)):
        by_name.setdefault(found.name, []).append(found)
    # A file that anyone may have put there shall not be able to stand in a good one's way.
    return {
        name: [one for one in found if one.trusted] or found[:1] for name, found in by_name.items()
    }


def _installed() -> Iterator[Found]:
    seen: set[str] = set()
    for distribution in distributions():
        try:
            points = distribution.entry_points.select(group=GROUP)
            if not points or distribution.name in seen:
                continue
            seen.add(distribution.name)
            origin, version = f"the package {distribution.name}", distribution.version
        except Exception as exc:  # noqa: BLE001 - a stranger's broken metadata
            log.warning("package cannot be searched for plugins", exc_info=exc)
            continue
        for point in points:
            own = distribution.name == "itdesk"
            yield Found(point.name, origin, version, partial(_class_in, point), own=own)


def _class_in(point: EntryPoint) -> Any:
    named = point.load()
    return named.Plugin if isinstance(named, ModuleType) else named


def _dropped_in(directories: Sequence[Path]) -> Iterator[Found]:
    for directory in directories:
        try:
            paths = sorted(path for path in directory.glob("*.py") if path.is_file())
        except OSError as exc:
            log.warning("drop-in directory cannot be read", path=str(directory), exc_info=exc)
            continue
        for path in paths:
            try:
                _vouch_for(path)
                trusted = True
            except (Refused, OSError):
                trusted = False
            yield Found(path.stem, f"the file {path}", None, partial(_class_of, path), trusted)


def _class_of(path: Path) -> Any:
    _vouch_for(path)
    with path.open("rb") as file:
        _refuse_foreign(path, os.fstat(file.fileno()))
        code = compile(file.read(), path, "exec")
    module = ModuleType(f"itdesk_dropin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # pydantic resolves annotations there
    try:
        exec(code, vars(module))
        return module.Plugin
    except BaseException:
        del sys.modules[module.__name__]
        raise


def _vouch_for(path: Path) -> None:
    """Raise Refused when others can change this file or put another one in its place."""
    real = path.resolve()
    for place in (path.parent, real.parent, real):
        _refuse_foreign(place, place.stat())


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    if status.st_mode & 0o022:
        raise Refused(f"{path} can be written by others: chmod go-w it")
    if status.st_uid not in (0, os.geteuid()):
        raise Refused(f"{path} belongs to user {status.st_uid}, neither root nor the daemon's own")
