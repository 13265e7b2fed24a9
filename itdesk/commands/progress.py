"""How far long work is: a line that moves on a terminal, nothing where nobody looks."""

import sys
from types import TracebackType

import click

_WIDTH = 30


class Bar:
    """A progress bar on stderr; in a script or a log it stays silent."""

    def __init__(self) -> None:
        self._shown = ""
        self._live = sys.stderr.isatty()

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
        """Say how far a step is; of one whose end is unknown, how much was done."""
        if not self._live:
            return
        if total:
            part = min(1.0, done / total)
            full = round(part * _WIDTH)
            line = f"{step:<10} [{'#' * full}{'.' * (_WIDTH - full)}] {part:4.0%}"
        else:
            line = f"{step:<10} {done >> 20} MiB"
        if line != self._shown:
            self._shown = line
            click.echo(f"\r{line:<60}", nl=False, err=True)
