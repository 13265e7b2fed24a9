"""What every command shares: the settings, the database, and how it ends when something fails."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from itdesk import daemon
from itdesk.config import Settings, load, secret_values
from itdesk.desk import Desk
from itdesk.errors import ConfigError, DeskError
from itdesk.runtime import log
from itdesk.runtime.supervisor import Escalated

T = TypeVar("T")

FAILURE, USAGE, INTERRUPTED = 1, 2, 130


@dataclass(frozen=True, slots=True)
class Context:
    """The options that stand before the command."""

    config: Path | None
    state_dir: Path

    def settings(self, flags: Mapping[str, object] | None = None) -> Settings:
        """Return the settings, or end with all their problems and status 2."""
        try:
            settings = load(
                config_path=self.config,
                state_dir=self.state_dir,
                environ=os.environ,
                flags=flags,
            )
        except ConfigError as exc:
            sys.exit(fail(exc))
        log.configure(settings.log.level, settings.log.format)
        for secret in secret_values(settings):
            log.register_secret(secret)
        return settings

    @property
    def has_embedded_database(self) -> bool:
        """Return whether an embedded database was ever made in the state directory."""
        return (self.state_dir / "postgres" / "data").is_dir()

    @asynccontextmanager
    async def desk(self, settings: Settings) -> AsyncIterator[Desk]:
        """Lend the desk, on a database that is at head, beside a running daemon or without one."""
        async with daemon.database_url(settings) as url:
            await daemon.at_head(settings, url, patience=5)
            async with daemon.open_desk(settings, url) as desk:
                yield desk


def fail(exc: DeskError) -> int:
    """Print what is wrong, a line a problem, and return the exit status that says so."""
    click.echo(exc.message, err=True)
    for field in exc.details.get("fields", ()):
        click.echo(f"  {field['path']}: {field['problem']}", err=True)
    return USAGE if isinstance(exc, ConfigError) else FAILURE


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; what goes wrong is a line on stderr and an exit status."""
    try:
        return uvloop.run(work)
    except DeskError as exc:
        sys.exit(fail(exc))
    except Escalated as exc:
        click.echo(f"itdesk gave up: {exc}", err=True)
        sys.exit(FAILURE)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(INTERRUPTED)
    finally:
        log.flush(patience=1.0)
