"""Plugins from the shell: which there are and how they are, and a new one to begin with."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import orjson

from itdesk.commands.context import OPERATOR, Context, examples, run
from itdesk.config import Settings
from itdesk.desk.contract import choice
from itdesk.desk.discovery import discover
from itdesk.desk.plugins import Plugins
from itdesk.desk.switches import Switches, told
from itdesk.errors import ConfigError, DeskError, Unavailable
from itdesk.frozen import frozen
from itdesk.runtime.clock import Clock
from itdesk.runtime.metrics import Metrics
from itdesk.store.opening import at_head, database_url, open_database
from itdesk.store.switches import Switch

_NAME = re.compile(r"[a-z][a-z0-9_]*")


@frozen
class Row:
    """One plugin, as `itdesk plugins list` shows it."""

    name: str
    version: str | None
    source: str
    state: str
    reason: str
    hooks: list[str]


@click.group()
def plugins() -> None:
    """Look at plugins, begin a new one."""


@plugins.command("list", epilog=examples("itdesk plugins list"))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def list_plugins(context: Context, as_json: bool) -> None:
    """Print each plugin: name, version, source, state, why it is out, and its hooks.

    Each one that is on is loaded as at the start, but not entered: what fails while the daemon
    runs is told by /readyz.
    """
    settings = context.settings()
    rows = _rows(settings, _switched_off(context, settings))
    if as_json:
        click.echo(orjson.dumps([asdict(row) for row in rows], option=orjson.OPT_INDENT_2))
        return
    for row in rows:
        version = row.version or "-"
        click.echo(f"{row.name:<16} {version:<10} {row.state:<10} {row.source}")
        if row.reason:
            click.echo(f"{'':<16} -> {row.reason}")
        if row.hooks:
            click.echo(f"{'':<16} {', '.join(row.hooks)}")


def _switched_off(context: Context, settings: Settings) -> dict[str, str]:
    """Return the plugins that somebody switched off, and who; none while nobody can know."""
    if settings.database.dsn is None and not context.has_embedded_database:
        return {}

    async def read() -> dict[str, Switch]:
        async with _switches(settings, patience=1, may_migrate=False) as switches:
            return await switches.read()

    try:
        found = asyncio.run(read())
    except DeskError as exc:
        click.echo(f"warning: whether any is switched off is not known: {exc.message}", err=True)
        return {}
    return {
        name: f"{told(one)} (by {one.changed_by or 'a shell of the host'})"
        for name, one in found.items()
        if not one.enabled
    }


@asynccontextmanager
async def _switches(
    settings: Settings, *, patience: float, may_migrate: bool
) -> AsyncIterator[Switches]:
    """Lend the switches alone: no plugin is loaded, for it may be what ails."""
    async with database_url(settings) as url:
        await at_head(settings, url, patience=patience, clock=Clock(), may_migrate=may_migrate)
        async with open_database(settings, url) as db:
            yield Switches(db, settings)


def _rows(settings: Settings, off: Mapping[str, str]) -> list[Row]:
    found = discover(settings.plugin_host.directories)
    sections = settings.enabled_plugins()
    named = dict(settings.plugins)
    rows = []
    for name in sorted({*found, *named}):
        candidates = found.get(name, [])
        version = candidates[0].version if len(candidates) == 1 else None
        source = " and ".join(one.origin for one in candidates) or "nowhere"
        if name in sections and name in off:
            rows.append(Row(name, version, source, "off", off[name], []))
        elif name in sections:
            rows.append(_examined(name, sections[name], version, source, settings))
        else:
            state = "switched off" if name in named else "no section"
            reason = "" if len(candidates) == 1 else choice(candidates, found)
            rows.append(Row(name, version, source, state, reason, []))
    return rows


def _examined(
    name: str, section: Mapping[str, Any], version: str | None, source: str, settings: Settings
) -> Row:
    host = settings.plugin_host
    # What is required may be broken here: it is told, as everything else is.
    section = {**section, "required": False}
    try:
        loaded = Plugins.load(
            {name: section},
            directories=host.directories,
            metrics=Metrics(),
            safe_mode=host.safe_mode,
        )
    except (ConfigError, Unavailable) as exc:
        reason = "; ".join(exc.message.splitlines())
        return Row(name, version, source, "wrong", reason, [])
    status = loaded.status()[name]
    return Row(name, version, source, status.state, status.reason, loaded.hooks(name))


@plugins.command(epilog=examples("itdesk plugins new hello /etc/itdesk/plugins.d"))
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path())
def new(name: str, directory: Path) -> None:
    """Write NAME.py, a plugin that works, and its test into DIRECTORY (here)."""
    if not _NAME.fullmatch(name):
        raise click.UsageError("NAME is small letters, digits and _, such as chat_notify.")
    if discover(()).get(name):
        raise click.UsageError(f"There is a plugin {name} already: itdesk plugins list.")
    template = files("itdesk_etc") / "plugin_template"
    paths = {"plugin.py": directory / f"{name}.py", "checks.py": directory / f"test_{name}.py"}
    for path in paths.values():
        if path.exists():
            raise click.ClickException(f"{path} is there already and was left as it is.")
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        for source, path in paths.items():
            path.touch(0o644)
            path.chmod(0o644)
            path.write_text((template / source).read_text().replace("example", name))
    except OSError as exc:
        raise click.ClickException(f"{exc.filename} cannot be written: {exc.strerror}.") from exc
    click.echo(f"wrote {paths['plugin.py']} and {paths['checks.py']}; next:")
    click.echo(f"  {sys.executable} -m pytest {paths['checks.py']}")
    click.echo(f'  itdesk.toml: [plugin_host] directories = ["{directory.resolve()}"]')
    click.echo(f"               [plugins.{name}]")


@plugins.command(epilog=examples("itdesk plugins enable smtp"))
@click.argument("name")
@click.pass_obj
def enable(context: Context, name: str) -> None:
    """Switch the plugin NAME on again, or try one once more that broke; no restart."""
    _turn(context, name, enabled=True)


@plugins.command(epilog=examples("itdesk plugins disable smtp"))
@click.argument("name")
@click.pass_obj
def disable(context: Context, name: str) -> None:
    """Switch the plugin NAME off, at every daemon and until it is enabled; no restart.

    No line of it is run for this. Its jobs wait meanwhile, and nothing that happens leads to new
    ones; what jira missed, it catches up when a running daemon switches it on again. A storage or a
    virus scanner stays until the next restart.
    """
    _turn(context, name, enabled=False)


def _turn(context: Context, name: str, *, enabled: bool) -> None:
    settings = context.settings()

    async def work() -> int | None:
        async with _switches(settings, patience=5, may_migrate=True) as switches:
            return await switches.turn(OPERATOR, name, enabled=enabled)

    if run(work()) is None:
        click.echo(f"{name} was switched off before.")
        return
    click.echo(f"{name} is switched {'on' if enabled else 'off'}.")
    click.echo("Daemons that run do it within seconds; /readyz and their logs say how it went.")


def group_of(given: Mapping[str, Any], name: str) -> click.Group | None:
    """Return the commands of a plugin that is on, or is one of ours; `given` says the settings."""
    settings = Context.of(given).settings()
    section = settings.enabled_plugins().get(name)
    if section is None:
        if not any(one.own for one in discover(()).get(name, ())):
            return None
        # One of ours that is off says so itself, and what to set.
        section = {}

    async def found() -> list[click.Command]:
        directories = settings.plugin_host.directories
        try:
            plugins = Plugins.load({name: section}, directories=directories, metrics=Metrics())
        except ConfigError:
            if section:
                raise
            return []
        return (await plugins.commands()).get(name, [])

    commands = run(found())
    return click.Group(name, commands, help=f"Commands of the plugin {name}.") if commands else None


COMMANDS: list[click.Command] = [plugins]
