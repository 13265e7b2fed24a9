"""How far long work is: a line that moves on a terminal, nothing where nobody looks."""

import os
import sys
from types import TracebackType

import click

_WIDTH, _LINE = 30, 60


class Bar:
    """A progress bar on stderr; in a script, a pipe or a log it stays silent."""

    def __init__(self) -> None:
        self._shown = ""
        self.live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._shown:
            click.echo("", err=True)

    def tell(self, step: str, done: int, total: int) -> None:
        """Say how far a step is; of one whose end is unknown, how many bytes were done."""
        self._show(step, _part(done, total) if total else f"{done >> 20} MiB")

    def count(self, step: str, done: int, total: int = 0) -> None:
        """Say how many things of a step are done, and of how many where that is known."""
        self._show(step, f"{_part(done, total)} of {total:,}" if total else f"{done:,}")

    def say(self, step: str) -> None:
        """Say what is going on, where nothing can be counted."""
        self._show(step, "...")

    def echo(self, line: str) -> None:
        """Print a line of the result on stdout, above the bar."""
        if self._shown:
            click.echo(f"{'':<{_LINE}}\r", nl=False, err=True)
            self._shown = ""
        click.echo(line)

    def _show(self, step: str, far: str) -> None:
        if self.live and (line := f"{step:<10} {far}") != self._shown:
            self._shown = line
            # The cursor goes back to the first column: a log line then covers the bar.
            click.echo(f"\r{line:<{_LINE}}\r", nl=False, err=True)


def _part(done: int, total: int) -> str:
    part = min(1.0, done / total)
    full = round(part * _WIDTH)
    return f"[{'#' * full}{'.' * (_WIDTH - full)}] {part:4.0%}"
