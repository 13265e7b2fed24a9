"""The process in which yara-x runs: it holds the interpreter's lock while it scans.

`python -m itdesk_plugins.yara_worker` takes the settings as its first line of JSON and says
whether the rules compile; then each line asks for one file and gets one line back. It ends with
its input, so it never outlives the daemon.
"""

import hashlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from itdesk.archives import walk


class Unusable(Exception):
    """There is no scanning with these rules; the message says what to mend."""


class Infected(Exception):
    """A rule hit; the message is its name."""


class Scanner:
    """Compiled rules and how to apply them to a file and to what is packed in it."""

    def __init__(self, rules: list[Path]) -> None:
        try:
            import yara_x
        except ImportError as exc:
            raise Unusable("yara-x is not installed: pip install 'itdesk[embedded]'.") from exc
        compiler, digest = yara_x.Compiler(), hashlib.sha256()
        compiler.enable_includes(False)
        for path in sorted(_files(rules)):
            try:
                source = path.read_bytes()
                compiler.new_namespace(path.name)
                compiler.add_source(source.decode(), origin=str(path))
            except (OSError, UnicodeDecodeError) as exc:
                raise Unusable(f"yara rules cannot be read: {path}: {exc}.") from exc
            except yara_x.CompileError as exc:
                error = compiler.errors()[-1]
                place = f"{path}:{error['line']}"
                raise Unusable(f"yara rules do not compile: {place}: {error['title']}.") from exc
            digest.update(source)
        self.version = digest.hexdigest()[:12]
        self._scanner = yara_x.Scanner(_built(compiler))
        self._late: type[Exception] = yara_x.TimeoutError

    def scan(self, path: Path, *, seconds: float) -> dict[str, str]:
        """Return what was found in a file: nothing, a rule's name, or why it was not scanned."""
        self._scanner.set_timeout(max(1, int(seconds)))
        try:
            self._look_at(path)
            finding = walk(path, seconds=seconds, on_member=self._look_at)
        except Infected as infected:
            return {"rule": str(infected)}
        except self._late:
            return {"reason": "timeout", "detail": "the rules took too long"}
        return {"reason": finding.reason, "detail": finding.detail} if finding else {}

    def _look_at(self, path: Path) -> None:
        for rule in self._scanner.scan_file(str(path)).matching_rules:
            raise Infected(rule.identifier)


def main() -> None:
    """Serve one daemon until it closes our input."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = iter(sys.stdin.buffer.readline, b"")
    settings = json.loads(next(lines))
    try:
        scanner = Scanner([Path(rule) for rule in settings["rules"]])
    except Unusable as exc:
        return _say({"unusable": str(exc)})
    _say({"version": scanner.version})
    for line in lines:
        _say(_answer(scanner.scan, json.loads(line)))


def _answer(scan: Callable[..., dict[str, str]], asked: dict[str, Any]) -> dict[str, str]:
    try:
        return scan(Path(asked["path"]), seconds=asked["seconds"])
    except Exception as exc:  # noqa: BLE001 the daemon has to hear of it, whatever it is
        return {"failure": f"{type(exc).__name__}: {exc}"}


def _built(compiler: Any) -> Any:
    try:
        return compiler.build()
    except BaseException as exc:
        # A panic of yara-x, which is no Exception.
        if "memory executable" not in str(exc):
            raise
        raise Unusable(
            "yara may not execute what it compiles: it needs MemoryDenyWriteExecute=no"
            " (systemd/itdesk-yara.conf)."
        ) from exc


def _files(rules: list[Path]) -> Iterator[Path]:
    for place in rules:
        found = sorted(place.glob("*.yar*")) if place.is_dir() else [place]
        if not found:
            raise Unusable(f"yara rules are missing: {place} holds no *.yar file.")
        yield from found


def _say(words: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
