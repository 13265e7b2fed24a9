"""The command line: parse arguments, call, print; what it prints on stdout is meant to be read."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from itdesk import __version__
from itdesk.commands import (
    accounts,
    backups,
    database,
    diagnose,
    jobs,
    keys,
    mail,
    manual,
    operation,
    people,
    samples,
    scan,
    storage,
)
from itdesk.commands import plugins as plugin_commands
from itdesk.commands.context import Context, run
from itdesk.desk.discovery import discover
from itdesk.desk.plugins import Plugins
from itdesk.errors import ConfigError
from itdesk.runtime.metrics import Metrics
from itdesk.runtime.statedir import default_state_dir


class Program(click.Group):
    """The commands of itdesk, and below a plugin's name those that the plugin brings."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command by its name; plugins are only asked for what is not ours."""
        command = super().get_command(ctx, name)
        return command or _plugin_group(_context(ctx.params), name)


def _context(given: Mapping[str, Any]) -> Context:
    state_dir = given["state_dir"] or default_state_dir(os.environ)
    return Context(given["config"], state_dir.absolute())


def _plugin_group(context: Context, name: str) -> click.Group | None:
    settings = context.settings()
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


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
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
    ctx.obj = _context(ctx.params)


for module in (
    operation,
    plugin_commands,
    diagnose,
    people,
    scan,
    database,
    backups,
    accounts,
    keys,
    jobs,
    mail,
    storage,
    samples,
    manual,
):
    for command in module.COMMANDS:
        main.add_command(command)
