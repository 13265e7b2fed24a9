"""The settings from the shell: what they come to, and whether they are good."""

import os
import sys
from typing import Any

import click
from pydantic import BaseModel, SecretStr, create_model

from itdesk.commands.context import Context, examples, run
from itdesk.commands.exits import USAGE
from itdesk.config import Settings, examine, plugin_options, show
from itdesk.config import check as check_settings
from itdesk.desk.discovery import discover
from itdesk_plugins.clamav import ClamavSettings


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
    # Imported here: to try the parts takes the whole desk, to read the settings does not.
    from itdesk.commands.doctor import findings

    found = [finding async for finding in findings(context, settings)]
    return [f"{f.part}: {f.said}: {f.remedy}" for f in found if not f.ok]


def _shown(settings: Settings, *, as_json: bool) -> str:
    # Operators look here for where clamd is looked for, switched on or not.
    models = {"clamav": ClamavSettings, **foreign_models(settings)}
    return show(settings, json=as_json, plugin_models=models)


def foreign_models(settings: Settings) -> dict[str, type[BaseModel]]:
    """Return the settings of other people's plugins that are on, which say what is secret.

    Of a plugin that is not there or cannot be loaded nobody knows: there, everything is.
    """
    found = discover(settings.plugin_host.directories)
    models: dict[str, type[BaseModel]] = {}
    for name in settings.enabled_plugins():
        candidates = found.get(name, [])
        if any(one.own for one in candidates):
            continue
        options: dict[str, Any] = {
            key: (SecretStr, ...) for key in plugin_options(settings.plugins[name])
        }
        models[name] = create_model(name, **options)
        if len(candidates) == 1 and not settings.plugin_host.safe_mode:
            try:
                models[name] = candidates[0].load().Settings
            except BaseException as exc:  # noqa: BLE001 - a stranger's code
                why = f"{type(exc).__name__}: itdesk plugins list"
                click.echo(f"warning: plugins.{name} cannot be loaded: {why}", err=True)
    return models


COMMANDS: list[click.Command] = [config]
