"""What every command shares: the settings, the database, and how it ends when something fails."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from itdesk.commands.exits import FAILURE, INTERRUPTED, USAGE
from itdesk.config import Settings, load, secret_values
from itdesk.desk import Desk
from itdesk.errors import ConfigError, DeskError, Invalid, Unavailable
from itdesk.frozen import frozen
from itdesk.model import Caller, Role, Source
from itdesk.runtime import log
from itdesk.runtime.clock import Clock
from itdesk.runtime.statedir import become_owner, default_state_dir
from itdesk.runtime.supervisor import Escalated

T = TypeVar("T")

OPERATOR = Caller(user_id=None, name="itdesk", role=Role.ADMIN, source=Source.CLI)


def examples(*lines: str) -> str:
    """Return what a command's help ends with: lines that can be typed as they are."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", title, *(f"  {line}" for line in lines)])


@frozen
class Context:
    """The options that stand before the command."""

    config: Path | None
    state_dir: Path

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Context":
        """Return what the options before the command say."""
        state_dir = given["state_dir"] or default_state_dir(os.environ)
        return cls(given["config"], state_dir.absolute())

    def read(self, flags: Mapping[str, object] | None = None) -> Settings:
        """Return the settings as they are on disk now, or raise ConfigError."""
        return load(
            config_path=self.config,
            state_dir=self.state_dir,
            environ=os.environ,
            flags=flags,
        )

    def settings(self, flags: Mapping[str, object] | None = None) -> Settings:
        """Return the settings, or end with all their problems and status 2."""
        try:
            settings = self.read(flags)
        except ConfigError as exc:
            sys.exit(fail(exc))
        become_owner(settings.state_dir)
        # A person reads this: what goes well is said on stdout, once. `serve` and `scan` say more.
        quiet = settings.log.level == "INFO"
        log.configure("WARNING" if quiet else settings.log.level, settings.log.format)
        for secret in secret_values(settings):
            log.register_secret(secret)
        return settings

    @staticmethod
    def run(work: Coroutine[Any, Any, T]) -> T:
        """Run a command's work, as `run` does: plugins' commands know this object only."""
        return run(work)

    @property
    def has_embedded_database(self) -> bool:
        """Return whether an embedded database was ever made in the state directory."""
        return (self.state_dir / "postgres" / "data").is_dir()

    @asynccontextmanager
    async def desk(self, settings: Settings) -> AsyncIterator[Desk]:
        """Lend the desk, on a database that is at head, beside a running daemon or without one."""
        # Imported here: what needs no desk starts in a third of the time.
        from itdesk.assembly import open_desk
        from itdesk.store.opening import at_head, database_url

        async with database_url(settings) as url:
            await at_head(settings, url, patience=5, clock=Clock())
            async with open_desk(settings, url) as desk:
                yield desk


def fail(exc: DeskError) -> int:
    """Print what is wrong, a line a problem, and return the exit status that says so."""
    fields = exc.details.get("fields", ())
    # What a library said of an outage may have several lines.
    message = " ".join(exc.message.split()) if isinstance(exc, Unavailable) else exc.message
    for line in [f"{field['path']}: {field['problem']}" for field in fields] or [message]:
        click.echo(line, err=True)
    return USAGE if isinstance(exc, (ConfigError, Invalid)) else FAILURE


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work; what goes wrong is a line on stderr and an exit status."""
    try:
        return uvloop.run(work)
    except DeskError as exc:
        sys.exit(fail(exc))
    except OSError as exc:
        # A file or directory that cannot be used is the operator's to mend; the rest is a bug.
        if exc.filename is None:
            raise
        click.echo(f"{exc.filename}: {exc.strerror}", err=True)
        sys.exit(FAILURE)
    except BaseExceptionGroup as group:
        # Several tasks met one outage.
        matched = group.subgroup(DeskError)
        if matched is None or group.split(DeskError)[1] is not None:
            raise
        sys.exit(fail(next(_leaves(matched))))
    except Escalated as exc:
        click.echo(f"itdesk gave up: {exc}", err=True)
        sys.exit(FAILURE)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(INTERRUPTED)
    finally:
        log.flush(patience=1.0)


def _leaves(group: "BaseExceptionGroup[DeskError]") -> Iterator[DeskError]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc
