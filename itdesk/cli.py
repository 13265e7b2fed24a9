"""The command line: parse arguments, call, print; what it prints on stdout is meant to be read."""

import os
from pathlib import Path

import click

from itdesk import __version__
from itdesk.commands.program import Later, Program

# Before aiohttp is imported: compiled, its lists bring the C++ library, a MiB, and no request uses
# them.
os.environ.setdefault("FROZENLIST_NO_EXTENSIONS", "1")


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
    from itdesk.commands.context import Context  # imported here: it reads settings, --help none

    ctx.obj = Context.of(ctx.params)


for command in (
    Later("backup", "backups", "Make a backup in a new directory below DIR: `itdesk backup DIR`."),
    Later("config", "settings", "Look at the settings."),
    Later("db", "database", "Wait for, migrate and check the database."),
    Later(
        "diagnose",
        "diagnose",
        "Write FILE (a tar.gz) with all that helps to find a fault: send it to whoever helps you.",
    ),
    Later(
        "doctor",
        "doctor",
        "Try each configured part for real, and say what fails and how to mend it.",
    ),
    Later(
        "init",
        "operation",
        "Write a configuration file and a signing key, and create the first administrator.",
    ),
    Later("jobs", "jobs", "Look after work that waits or was given up."),
    Later("keys", "keys", "List, replace and retire the keys that sign access tokens."),
    Later("mail", "mail", "Look after outgoing mail."),
    Later("manual", "manual", "Print the manual page of all commands, for man."),
    Later("plugins", "plugins", "Look at plugins, begin a new one."),
    Later(
        "restore",
        "backups",
        "Restore the backup DIRECTORY into the configured database and storage, both empty.",
    ),
    Later(
        "resume",
        "backups",
        "After a restore: let mail, webhooks and other requests to the outside go out again.",
    ),
    Later("routes", "routes", "Print the table of routes with who may call what."),
    Later("scan", "scan", "Scan attachments that wait, beside the daemon or without it."),
    Later(
        "seed",
        "samples",
        "Add recommendations, and with --demo a whole desk to play with; refused in production.",
    ),
    Later("serve", "operation", "Run the service desk until SIGTERM."),
    Later("stats", "jobs", "Statistics of the day."),
    Later("storage", "storage", "Look after what is stored."),
    Later("ticket", "accounts", "Open tickets."),
    Later("token", "accounts", "Issue access tokens, and API tokens for scripts."),
    Later("user", "people", "Open and unlock accounts, and help who lost a second factor."),
):
    main.add_command(command)
