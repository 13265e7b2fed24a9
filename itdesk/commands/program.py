"""The list of commands: each is imported when it is called, for `--help` shall not cost a desk."""

import gc
from collections.abc import Mapping
from importlib import import_module

import click


class Later(click.Command):
    """A command as the list of commands shows it, in the place of the one that a module has."""

    def __init__(self, name: str, module: str, summary: str) -> None:
        super().__init__(name, help=summary)
        self._module = module

    def load(self) -> click.Command:
        """Return the command itself."""
        commands: list[click.Command] = import_module(f"itdesk.commands.{self._module}").COMMANDS
        return next(command for command in commands if command.name == self.name)


class Program(click.Group):
    """The commands of itdesk, and below a plugin's name those that the plugin brings."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Return a command by its name; plugins are only asked for what is not ours."""
        command = super().get_command(ctx, name)
        if command is not None:
            return command
        from itdesk.commands.plugins import group_of  # imported here: as every command

        return group_of(ctx.params, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is called, imported by now."""
        try:
            name, command, rest = super().resolve_command(ctx, args)
            return name, command.load() if isinstance(command, Later) else command, rest
        finally:
            if not gc.isenabled():
                # What is there by now stays, and need not be looked through at the end either.
                gc.freeze()
                gc.enable()

    def loaded(self) -> Mapping[str, click.Command]:
        """Return all commands of itdesk's own by their names, imported."""
        return {
            name: command.load() if isinstance(command, Later) else command
            for name, command in self.commands.items()
        }
