"""Running the desk: set up, serve."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import click

from itdesk import daemon
from itdesk.commands.context import Context, examples, fail, run
from itdesk.config import SYSTEM_CONFIG, Settings, find_config
from itdesk.desk.keyfile import KeyFile
from itdesk.errors import ConfigError
from itdesk.runtime import log, systemd


@click.command(
    epilog=examples(
        "itdesk serve",
        "itdesk serve --port 0          # a free port, which it prints",
        "itdesk serve --safe-mode       # a plugin keeps it from starting",
    )
)
@click.option("--host", help="Address to listen on [server.host].")
@click.option("--port", type=click.IntRange(0, 65535), help="0 picks a free one [server.port].")
@click.option("--reload", is_flag=True, hidden=True)
@click.option("--safe-mode", is_flag=True, help="Leave out all plugins but itdesk's own.")
@click.pass_obj
def serve(
    context: Context, host: str | None, port: int | None, reload: bool, safe_mode: bool
) -> None:
    """Run the service desk until SIGTERM."""
    if reload:
        raise click.UsageError("--reload is not offered: restart itdesk, it takes a second.")
    flags = {"server.host": host, "server.port": port}
    if safe_mode:
        flags["plugin_host.safe_mode"] = True
    settings = context.settings(flags)
    log.set_level(settings.log.level)
    for warning in settings.warnings:
        log.get_logger("config").warning(warning)

    def ready(told: daemon.Ready) -> None:
        lines = [f"listening on {told.url}"]
        if told.first_admin is not None:
            address, password = told.first_admin
            lines.append(f"first administrator: {address} password: {password}")
        lines.append(f"API documentation: {told.url}/docs")
        lines.append(f"data: {settings.state_dir}")
        click.echo("\n".join(lines))
        sys.stdout.flush()

    again = partial(context.read, flags)
    run(daemon.serve(settings, ready, fds=systemd.listen_fds(), read=again))


@click.command(epilog=examples("itdesk init", "itdesk --config ./itdesk.toml init --force"))
@click.option("--force", is_flag=True, help="Overwrite a configuration file that is there.")
@click.pass_obj
def init(context: Context, force: bool) -> None:
    """Write a configuration file and a signing key, and create the first administrator."""
    path = find_config(context.config, os.environ) or SYSTEM_CONFIG
    with _writing(path):
        there = path.exists()
    settings = context.settings() if there else None
    if there and not force:
        click.echo(f"{path} is there already and was left as it is (--force writes it anew)")
    else:
        _write_config(path)
        click.echo(f"wrote {path}: read it, every option has a line that explains it")
        settings = Context(path, context.state_dir).settings()
    assert settings is not None
    if settings.auth.jwt_secret is None:
        _make_key(settings)
        click.echo(f"the signing key is {settings.jwt_key_path}")

    async def work() -> None:
        async with Context(path, context.state_dir).desk(settings) as desk:
            created = await daemon.first_administrator(desk)
        if created is None:
            click.echo("there are accounts already; none was created")
        else:
            click.echo(f"first administrator: {created[0]} password: {created[1]}")

    run(work())


def _write_config(path: Path) -> None:
    shipped = (files("itdesk_etc") / "itdesk.toml").read_text()
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = path.replace(path.with_name(f"{path.name}.old"))
            click.echo(f"the one before is {before}")
        path.touch(0o640)
        path.write_text(shipped)


def _make_key(settings: Settings) -> None:
    path = settings.jwt_key_path
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            KeyFile(path, settings.auth.jwt_algorithm).load_or_create()
        except ConfigError as exc:
            sys.exit(fail(exc))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise click.ClickException(f"{path} cannot be written: {exc.strerror}.") from exc


COMMANDS: list[click.Command] = [serve, init]
