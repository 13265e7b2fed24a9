"""The command line: parse arguments, call, print; what it prints on stdout is meant to be read."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from itdesk import __version__, daemon
from itdesk.config import Settings, load, secret_values
from itdesk.errors import ConfigError, DeskError
from itdesk.runtime import log, systemd
from itdesk.runtime.statedir import default_state_dir
from itdesk.runtime.supervisor import Escalated

T = TypeVar("T")

FAILURE, USAGE = 1, 2


@dataclass(frozen=True, slots=True)
class Context:
    """The options that stand before the command."""

    config: Path | None
    state_dir: Path

    def settings(self, **flags: object) -> Settings:
        """Read the settings, or end with all their problems and status 2."""
        named = {name.replace("__", "."): value for name, value in flags.items()}
        try:
            settings = load(
                config_path=self.config,
                state_dir=self.state_dir,
                environ=os.environ,
                flags=named,
            )
        except ConfigError as exc:
            click.echo(exc.message, err=True)
            sys.exit(USAGE)
        log.configure(settings.log.level, settings.log.format)
        for secret in secret_values(settings):
            log.register_secret(secret)
        return settings


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a command's work; what goes wrong is one line and status 1, or 2 for the settings."""
    try:
        return uvloop.run(work())
    except DeskError as exc:
        click.echo(exc.message, err=True)
        sys.exit(USAGE if isinstance(exc, ConfigError) else FAILURE)
    except Escalated as exc:
        click.echo(f"itdesk gave up: {exc}", err=True)
        sys.exit(FAILURE)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
    finally:
        log.flush(patience=1.0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="itdesk")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Configuration file [ITDESK_CONFIG, /etc/itdesk/itdesk.toml].",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the embedded database, keys and files live [ITDESK_STATE_DIR].",
)
@click.pass_context
def main(ctx: click.Context, config: Path | None, state_dir: Path | None) -> None:
    """itdesk: an IT service desk in one process."""
    ctx.obj = Context(config, (state_dir or default_state_dir(os.environ)).absolute())


@main.command()
@click.option("--host", help="Address to listen on [server.host].")
@click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one [server.port].")
@click.option("--reload", is_flag=True, hidden=True)
@click.pass_obj
def serve(context: Context, host: str | None, port: int | None, reload: bool) -> None:
    """Run the service desk until SIGTERM."""
    if reload:
        raise click.UsageError(
            "--reload is not offered: restart itdesk, it is back within a second."
        )
    settings = context.settings(server__host=host, server__port=port)

    def ready(told: daemon.Ready) -> None:
        lines = [f"listening on {told.url}"]
        if told.first_admin is not None:
            address, password = told.first_admin
            lines.append(f"first administrator: {address} password: {password}")
        lines.append(f"API documentation: {told.url}/docs")
        click.echo("\n".join(lines))
        sys.stdout.flush()

    run(lambda: daemon.serve(settings, ready, fds=systemd.listen_fds()))
