"""The command line: parse arguments, call, print; what it prints on stdout is meant to be read."""

import os
from pathlib import Path

import click

from itdesk import __version__
from itdesk.commands import accounts, database, jobs, operation, samples
from itdesk.commands.context import Context
from itdesk.runtime.statedir import default_state_dir


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


for module in (operation, database, accounts, jobs, samples):
    for command in module.COMMANDS:
        main.add_command(command)
