"""The manual page: made from the same commands, options and examples that `--help` shows."""

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import click

from itdesk import __version__
from itdesk.commands import exits
from itdesk.commands.context import examples
from itdesk.commands.program import Program
from itdesk.runtime.clock import Clock

_ABOUT = (
    "itdesk runs an IT service desk in one process: tickets, comments, attachments that are"
    " scanned for viruses, mail, reports, and a live stream, over REST and websockets, on"
    " PostgreSQL.",
    "Without any configuration `itdesk serve` brings its own database and says where it listens."
    " Every other command works beside a running daemon and without one.",
)
_ENVIRONMENT = {
    "ITDESK_CONFIG": "The configuration file, where --config is not given.",
    "ITDESK_STATE_DIR": "The state directory, where --state-dir is not given.",
    "ITDESK_SECTION__OPTION": "Any option of the configuration file, such as"
    " ITDESK_SCANNER__POLL_SECONDS; it goes before the file.",
    "DATABASE_URL": "The same as database.url.",
    "CREDENTIALS_DIRECTORY": "Where options that end in _file look for a name without a slash.",
}
_FILES = {
    "/etc/itdesk/itdesk.toml": "The configuration; `itdesk init` writes it, each option explained.",
    "/var/lib/itdesk": "The state directory of the service, and of root: keys, files, and the"
    " embedded database where there is one. Other people's is ~/.local/state/itdesk.",
    "/etc/itdesk/plugins.d": "Plugins of one's own, one file each.",
    "/etc/credstore": "Secrets that systemd hands to the service.",
}
_SIGNALS = {
    "SIGTERM, SIGINT": "Stop accepting, answer what is in flight, end. A second one ends at once.",
    "SIGHUP": "Read the configuration again and put into effect what can be; the log names what"
    " needs a restart. In a terminal it ends itdesk.",
}


class Entry(NamedTuple):
    """One command as the manual has it: its words after `itdesk`, and what click knows of it."""

    words: str
    command: click.Command
    context: click.Context


def shipped_groups() -> dict[str, click.Group]:
    """Return the commands that plugins of ours add once they are switched on."""
    # Imported here: no other command needs the plugin.
    from itdesk_plugins.jira.commands import COMMANDS as JIRA

    return {"jira": click.Group("jira", JIRA, help="With the plugin jira switched on.")}


def entries(program: Program) -> Iterator[Entry]:
    """Yield every command that does something, in the order of the alphabet."""
    top = click.Context(program, info_name="itdesk")
    yield from _below(top, {**program.loaded(), **shipped_groups()}, "")


def _below(
    above: click.Context, commands: Mapping[str, click.Command], words: str
) -> Iterator[Entry]:
    for name, command in sorted(commands.items()):
        if command.hidden:
            continue
        context = click.Context(command, info_name=name, parent=above)
        if isinstance(command, click.Group):
            yield from _below(context, command.commands, f"{words}{name} ")
        else:
            yield Entry(f"{words}{name}", command, context)


def page(program: Program) -> str:
    """Return itdesk(1), in the macros that man(1) reads."""
    today = f"{Clock().now():%Y-%m-%d}"
    lines = [f'.TH ITDESK 1 "{today}" "itdesk {__version__}" "IT service desk"']
    lines += [".SH NAME", "itdesk \\- an IT service desk in one process"]
    lines += [".SH SYNOPSIS", ".B itdesk", "[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]"]
    lines += [".SH DESCRIPTION", *_prose("\n\n".join(_ABOUT))]
    lines += [".SH OPTIONS", "They stand before the command."]
    lines += _options(program, click.Context(program, info_name="itdesk"))
    lines += _terms({"-h, --help": "Print the commands; after a command, its options."})
    lines.append(".SH COMMANDS")
    for entry in entries(program):
        lines += _section(entry)
    lines += [".SH EXIT STATUS", *_terms({str(k): v for k, v in exits.EVERY.items()})]
    for title, terms in (
        ("ENVIRONMENT", _ENVIRONMENT),
        ("FILES", _FILES),
        ("SIGNALS", _SIGNALS),
    ):
        lines += [f".SH {title}", *_terms(terms)]
    lines += [".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1),", ".BR pg_dump (1)"]
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> Iterator[str]:
    words, command, context = entry
    usage = " ".join(command.collect_usage_pieces(context))
    yield f'.SS "itdesk {_escaped(words)} {_escaped(usage)}"'
    yield from _prose(command.help or "")
    yield from _options(command, context)
    if statuses := exits.OF.get(words):
        yield from (".PP", "Exit status:")
        yield from _terms({str(status): said for status, said in statuses.items()})
    if command.epilog:
        yield ".PP"
        yield from _prose(command.epilog)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    # --help is told once, and arguments have no words of their own.
    options = (param for param in command.params if isinstance(param, click.Option))
    records = (option.get_help_record(context) for option in options)
    yield from _terms(dict(record for record in records if record is not None))


def _terms(terms: Mapping[str, str]) -> Iterator[str]:
    for term, said in terms.items():
        yield from (".TP", f"\\fB{_escaped(term)}\\fR", *_filled(said))


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; what click shows as it stands (\\b) stands as it is here, too."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
    for number, block in enumerate(blocks):
        if number:
            yield ".PP"
        if block.startswith("\b\n"):
            yield from (".EX", *map(_escaped, block[2:].splitlines()), ".EE")
        else:
            yield from _filled(block)


def _filled(text: str) -> Iterator[str]:
    for line in textwrap.wrap(_escaped(" ".join(text.split())), 78, break_on_hyphens=False):
        # A line that begins with a dot would be a macro.
        yield f"\\&{line}" if line.startswith(".") else line


def _escaped(text: str) -> str:
    plain = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace('"', "\\(dq")
    )
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", plain)


@click.command(
    epilog=examples(
        "itdesk manual | man -l -",
        "itdesk manual >/usr/local/share/man/man1/itdesk.1    # then: man itdesk",
    )
)
@click.pass_context
def manual(ctx: click.Context) -> None:
    """Print the manual page of all commands, for man."""
    program = ctx.find_root().command
    assert isinstance(program, Program)
    click.echo(page(program), nl=False)


COMMANDS: list[click.Command] = [manual]
