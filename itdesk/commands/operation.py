"""Running the desk: serve, set up, check."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import click
import orjson

from itdesk import assembly, daemon
from itdesk.api import ROUTES
from itdesk.api.openapi import routes_table
from itdesk.commands.context import Context, examples, fail, run
from itdesk.commands.exits import FAILURE, USAGE
from itdesk.commands.plugins import foreign_models
from itdesk.config import SYSTEM_CONFIG, Settings, examine, find_config, show
from itdesk.config import check as check_settings
from itdesk.desk import doctor as doctors
from itdesk.desk.keyfile import KeyFile
from itdesk.errors import ConfigError
from itdesk.runtime import log, systemd
from itdesk_plugins.clamav import ClamavSettings


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


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command(
    "show", epilog=examples("itdesk config show", "itdesk config show --json | jq .server")
)
@click.option("--json", "as_json", is_flag=True, help="As JSON instead of TOML.")
@click.pass_obj
def show_config(context: Context, as_json: bool) -> None:
    """Print the effective settings, defaults included, secrets masked."""
    settings = context.settings()
    click.echo(_shown(settings, as_json=as_json))


@config.command(
    epilog=examples("itdesk config check >/dev/null     # the problems alone, on stderr")
)
@click.pass_obj
def check(context: Context) -> None:
    """Check the settings and try what they name; every problem at once."""
    report = examine(config_path=context.config, state_dir=context.state_dir, environ=os.environ)
    problems = [str(problem) for problem in report.problems]
    warnings = list(report.warnings)
    click.echo(_shown(report.settings, as_json=False))
    checked = check_settings(report.settings, os.environ)
    problems += [str(problem) for problem in checked.problems]
    warnings += [warning for warning in checked.warnings if warning not in warnings]
    if not problems:
        problems += run(_unwell(context, context.settings()))
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(USAGE)
    click.echo("# the settings are good", err=True)


async def _unwell(context: Context, settings: Settings) -> list[str]:
    found = [finding async for finding in findings(context, settings)]
    return [f"{f.part}: {f.said}: {f.remedy}" for f in found if not f.ok]


@click.command(epilog=examples("itdesk doctor"))
@click.pass_obj
def doctor(context: Context) -> None:
    """Try each configured part for real, and say what fails and how to mend it."""
    settings = context.settings()

    async def work() -> bool:
        well = True
        async for finding in findings(context, settings):
            mark = "ok  " if finding.ok else "FAIL"
            click.echo(f"{mark} {finding.part}: {finding.said}")
            if not finding.ok:
                click.echo(f"     -> {finding.remedy}")
            well = well and finding.ok
        return well

    if not run(work()):
        sys.exit(FAILURE)


async def findings(context: Context, settings: Settings) -> AsyncIterator[doctors.Finding]:
    """Try every configured part for real; the desk only when its database is well."""
    async with assembly.database_url(settings) as url:
        well = True
        findings = doctors.examine_database(url, production=settings.production)
        async for finding in findings:
            well = well and (finding.ok or finding.part == "accounts")
            yield finding
        if well:
            async with assembly.open_desk(settings, url) as desk:
                async for finding in doctors.examine(desk):
                    yield finding


@click.command(epilog=examples("itdesk routes | grep attachments", "itdesk routes --json"))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def routes(as_json: bool) -> None:
    """Print the table of routes with who may call what."""
    table = routes_table(ROUTES)
    if as_json:
        click.echo(orjson.dumps(table, option=orjson.OPT_INDENT_2))
        return
    for row in table:
        click.echo(f"{row['id']:<4} {row['method']:<7} {row['path']:<55} {row['who']:<9} "
                   f"{row['summary']}")  # fmt: skip


def _shown(settings: Settings, *, as_json: bool) -> str:
    # Operators look here for where clamd is looked for, switched on or not.
    models = {"clamav": ClamavSettings, **foreign_models(settings)}
    return show(settings, json=as_json, plugin_models=models)


COMMANDS: list[click.Command] = [serve, init, config, doctor, routes]
