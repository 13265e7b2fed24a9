"""What the commands say of themselves: help, manual page, exit statuses, completion, progress."""

import asyncio
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import chain
from pathlib import Path
from unittest import mock

import click
import pytest
from click.testing import CliRunner, Result

from itdesk.cli import main
from itdesk.commands import exits, manual
from itdesk.commands.program import Program
from itdesk.desk.discovery import discover
from tests.support.daemon import Daemon
from tests.support.desk import bench_on
from tests.test_readme import README, _blocks
from tests.test_storage_verify import stray

NewDaemon = Callable[..., Daemon]
ENTRIES = list(manual.entries(main))
NOWHERE = "postgresql://itdesk@127.0.0.1:1/itdesk"
SHELL = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp"}


# --- help ----------------------------------------------------------------------------------------


def _examples(entry: manual.Entry) -> list[str]:
    title, _, lines = (entry.command.epilog or "").removeprefix("\b\n").partition("\n")
    assert title in ("Example:", "Examples:"), f"itdesk {entry.words} has no example"
    return [line.strip() for line in lines.splitlines()]


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.words for entry in ENTRIES])
def test_every_command_explains_itself_with_examples_that_it_takes(entry: manual.Entry) -> None:
    """S2-54: what --help shows can be typed; each option says what it is for."""
    assert entry.command.help
    options = [param for param in entry.command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not (option.help or option.hidden)] == []
    for line in _examples(entry):
        words = shlex.split(line, comments=True)
        words = words[words.index("itdesk") + 1 :]
        end = next((n for n, word in enumerate(words) if word in "|| && >/dev/null"), len(words))
        words = [word for word in words[:end] if not word.startswith(">")]
        assert _taken(words) == entry.command.name, line


def test_every_command_line_of_the_readme_is_one_that_itdesk_takes() -> None:
    """S2-54, S4-04: in every block for a shell, whatever else the block needs."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.M | re.S)
    text = re.sub(r"\s#.*$", "", "\n".join(blocks).replace("\\\n", " "), flags=re.M)
    # What another command prints goes to a line of its own; an id, or a path, is in its place.
    text = text.replace('"$(', "0198c0de-0000-7000-8000-000000000000\n")
    lines = re.findall(r"(?<![\w./-])itdesk (?=[a-z])([^|;&>)\n]+)", text)
    assert len(lines) > 20
    for line in lines:
        assert _taken(shlex.split(line)), line


def _taken(words: list[str]) -> str | None:
    """Let click read a command line as far as calling what it names, and return its name."""
    context = main.make_context("itdesk", words)
    command: click.Command = main
    while isinstance(command, click.Group):
        words = [*context._protected_args, *context.args]
        name, rest = words[0], words[1:]
        known = command.loaded() if isinstance(command, Program) else command.commands
        command = {**known, **manual.shipped_groups()}[name]
        context = command.make_context(name, rest, parent=context)
    return command.name


def test_the_list_of_commands_says_of_each_what_its_own_help_says() -> None:
    """It is written twice, so that the list need not import them all."""
    for name, command in main.loaded().items():
        assert main.commands[name].help == command.get_short_help_str(limit=1000), name


def test_help_shows_the_examples() -> None:
    """Line by line, as they are written."""
    entry = next(entry for entry in ENTRIES if entry.words == "scan")
    said = CliRunner().invoke(main, ["scan", "--help"])
    assert said.exit_code == 0
    assert [line for line in _examples(entry) if f"\n    {line}\n" not in f"{said.output}\n"] == []


# --- the manual page -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return manual.page(main)


def _linted(page: str) -> str:
    done = subprocess.run(
        ["mandoc", "-T", "lint"], input=page, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_the_manual_page_is_well_formed(page: str) -> None:
    """mandoc finds nothing, not even bad style; it would find what is wrong."""
    assert _linted(page) == ""
    assert "unknown macro" in _linted(page.replace(".SH NAME", ".SHH NAME"))


def test_the_manual_page_has_every_command_option_example_and_status(page: str) -> None:
    shown = subprocess.run(
        ["mandoc", "-T", "ascii", "-O", "width=500"], input=page, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    text = " ".join(re.sub(r".\x08", "", shown).split())
    for entry in ENTRIES:
        assert f" itdesk {entry.words} " in text
        for param in entry.command.params:
            names = [] if getattr(param, "hidden", False) else param.opts
            assert [name for name in names if name.startswith("-") and name not in text] == []
        assert [x for x in _examples(entry) if " ".join(x.split()) not in text] == []
    for status, said in chain(exits.EVERY.items(), *(own.items() for own in exits.OF.values())):
        assert f" {status} {said}" in text


def test_the_command_prints_it(page: str) -> None:
    said = CliRunner().invoke(main, ["manual"])
    assert (said.exit_code, said.output) == (0, page)


def test_the_manual_page_knows_the_commands_of_our_plugins() -> None:
    found = {
        name
        for name, candidates in discover(()).items()
        for one in candidates
        if one.own and hasattr(one.load(), "itdesk_cli")
    }
    assert found == set(manual.shipped_groups())


def test_the_table_of_the_readme_names_every_command() -> None:
    operation = README.partition("## Operation")[2]
    (table,) = re.findall(r"^\| command \| does \|\n((?:\|.*\n)+)", operation, flags=re.M)
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    named = {
        " ".join((*group, name))
        for cell in cells
        for group, names in _named(cell)
        for name in names
    }
    wanted = {entry.words.replace("backup make", "backup") for entry in ENTRIES}
    assert named == wanted


def _named(cell: str) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the groups and commands in "`itdesk db wait, verify`, `token issue`"."""
    for quoted in re.findall(r"`([^`]+)`", cell):
        words = re.sub(r"\[.*\]|--\S+|\b[A-Z]+\b", "", quoted).removeprefix("itdesk ").split(",")
        *group, first = words[0].split()
        yield group, [first, *(word.strip() for word in words[1:])]


# --- exit statuses -------------------------------------------------------------------------------


def test_the_readme_has_every_exit_status() -> None:
    """One place says how commands end; the README repeats it word for word."""
    (table,) = re.findall(r"^\| status \| of \| says \|\n((?:\|.*\n)+)", README, flags=re.M)
    rows = {tuple(c.strip() for c in row.split("|")[1:-1]) for row in table.splitlines()[1:]}
    wanted = {(str(status), "every command", said) for status, said in exits.EVERY.items()}
    for command, own in exits.OF.items():
        name = "backup DIR" if command == "backup make" else command
        wanted |= {(str(status), f"`itdesk {name}`", said) for status, said in own.items()}
    assert rows == wanted
    assert set(exits.OF) <= {entry.words for entry in ENTRIES}


def _typed(daemon: Daemon, line: str) -> Result:
    """Run a command in this process: what it imports is here already."""
    words = ["--state-dir", str(daemon.state_dir), *shlex.split(line)]
    done = CliRunner().invoke(main, words, env=daemon.env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.output, line
    return done


def _statuses(daemon: Daemon, *lines: str) -> list[int]:
    return [_typed(daemon, line).exit_code for line in lines]


def test_commands_end_as_documented_where_there_is_no_database(new_daemon: NewDaemon) -> None:
    """0, 1, 2 and 3; what they say is never nothing."""
    away = new_daemon(NOWHERE)
    assert _statuses(away, "--version", "db wait --timeout 0.1", "doctor") == [0, 1, 1]
    assert _statuses(away, "db wat", "config check") == [2, 2]
    assert _statuses(new_daemon(None), "db wait", "db verify") == [2, 3]


async def test_ctrl_c_ends_a_command_with_130(new_daemon: NewDaemon) -> None:
    """And without a traceback, while it waits for a server that does not answer."""
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        daemon = new_daemon(f"postgresql://itdesk@127.0.0.1:{port}/itdesk")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "itdesk", "--state-dir", str(daemon.state_dir), "db", "wait",
            env=daemon.environ(), stderr=asyncio.subprocess.PIPE,
            # A run in the background of a shell ignores it, and so would whom it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        await came.wait()
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert (process.returncode, said) == (exits.INTERRUPTED, b"")


async def test_commands_end_as_documented_where_something_is_missing(
    database_url: str,
    empty_database_url: str,
    clamd_env: dict[str, str],
    new_daemon: NewDaemon,
    tmp_path: Path,
) -> None:
    """S2-59: a backup with a lost file is one (3), is verified and restored as one; a broken one
    is not (1). Nothing is thrown away for it. S0-11: 4 for another schema, and for orphans."""
    uploads = tmp_path / "uploads"
    desk = new_daemon(database_url, UPLOAD_DIR=str(uploads))
    other = new_daemon(empty_database_url, UPLOAD_DIR=str(tmp_path / "others"))
    async with bench_on(database_url, UPLOAD_DIR=str(uploads), **clamd_env) as bench:
        alice = await bench.person()
        file = await bench.upload(alice, await bench.ticket(alice), b"soon gone\n")
        await bench.scan()
        key = await bench.sql("SELECT storage_version FROM attachments WHERE id = $1", file.id)
    (uploads / str(key)).unlink()
    stray(uploads, f"clean/tickets/{file.ticket_id}/{file.id}.9")
    await asyncio.to_thread(_missing, desk, other, tmp_path / "backups", str(file.id))


def _missing(desk: Daemon, other: Daemon, backups: Path, file: str) -> None:
    away = Daemon({**desk.env, "CLAMAV_HOST": "127.0.0.1", "CLAMAV_PORT": "1",
                   "JIRA_BASE_URL": "http://127.0.0.1:1", "JIRA_EMAIL": "a@example.org",
                   "JIRA_API_TOKEN": "x" * 20}, desk.state_dir)  # fmt: skip
    assert _statuses(away, "scan --once", "jira reconcile") == [exits.FAILURE, exits.FAILURE]
    assert _statuses(desk, "storage verify") == [exits.DIFFERENT]
    assert _statuses(other, "db verify") == [exits.DIFFERENT]

    for _ in range(2):
        made = _typed(desk, f"backup {backups} --keep 1")
        assert made.exit_code == exits.INCOMPLETE and file in made.stderr, made.stderr
    kept = sorted(path for path in backups.iterdir() if path.is_dir())
    assert len(kept) == 2
    for daemon, command in ((desk, "backup verify"), (other, "restore")):
        done = _typed(daemon, f"{command} {kept[1]}")
        assert done.exit_code == exits.INCOMPLETE and file in done.stderr, done.stderr
    dump = max((path for path in kept[0].iterdir() if path.is_file()), key=_size)
    with dump.open("r+b") as damaged:
        damaged.seek(100)
        damaged.write(b"\0" * 20)
    assert _statuses(desk, f"backup verify {kept[0]}") == [exits.FAILURE]


def _size(path: Path) -> int:
    return path.stat().st_size


# --- completion ----------------------------------------------------------------------------------

# How each shell is asked what it would offer, once it has read what itdesk wrote for it.
ASKED = {
    "bash": "source {0}/_itdesk\nCOMP_WORDS=(itdesk db mig) COMP_CWORD=2\n"
            '_itdesk_completion itdesk\necho "${{COMPREPLY[@]}}"',
    # As zsh does it: the file is a function that is loaded when it is first asked.
    "zsh": "_describe() {{ print -l ${{(P)3}} }}\ncompadd() {{ print -l ${{(P)argv[-1]}} }}\n"
           "fpath=({0} $fpath)\nautoload -U _itdesk\nwords=(itdesk db mig) CURRENT=3\n_itdesk",
    "fish": 'source {0}/_itdesk\ncomplete --do-complete "itdesk db mig"',
}  # fmt: skip


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(shell, marks=pytest.mark.slow) for shell in ("zsh", "fish"))]
)
def test_the_completion_lines_complete(shell: str, tmp_path: Path) -> None:
    """Pasted, then asked in a shell that has read what it wrote."""
    (block,) = [block for block in _blocks("Operation", "sh") if "_COMPLETE=" in block]
    (line,) = [line for line in block.splitlines() if f"{shell}_source" in line]
    line = re.sub(r">\S+$", f">{tmp_path}/_itdesk", line)
    done = subprocess.run(
        [shell, "-c", f"{line.replace('_ITDESK', 'env _ITDESK')}\n{ASKED[shell].format(tmp_path)}"],
        capture_output=True, text=True, check=False, env={**SHELL, "HOME": str(tmp_path)},
    )  # fmt: skip
    offered = done.stdout.replace(":", " ").split()
    assert (offered[:1], done.returncode) == (["migrate"], 0), done.stdout + done.stderr


# --- progress ------------------------------------------------------------------------------------


def _on_a_terminal(daemon: Daemon, line: str) -> tuple[str, str]:
    """Run a command with a terminal as stderr; return its stdout and what was drawn."""
    ours, theirs = pty.openpty()
    words = ["--state-dir", str(daemon.state_dir), *shlex.split(line)]
    env = mock.patch.dict(os.environ, {**daemon.env, "TERM": "xterm"})
    with env, open(theirs, "w") as terminal, redirect_stderr(terminal), StringIO() as printed:
        with redirect_stdout(printed):
            main.main(words, prog_name="itdesk", standalone_mode=False)
        terminal.flush()
        os.set_blocking(ours, False)
        drawn = os.read(ours, 1 << 20).decode()
        said = printed.getvalue()
    os.close(ours)
    return said, drawn


async def test_long_work_says_how_far_it_is_on_a_terminal_only(
    database_url: str,
    empty_database_url: str,
    clamd_env: dict[str, str],
    new_daemon: NewDaemon,
    tmp_path: Path,
) -> None:
    """Backup, verify, restore, storage verify, rescan, statistics, samples, diagnosis; what is
    printed as the result is the same, and a pipe gets nothing of it."""
    uploads, backups = tmp_path / "uploads", tmp_path / "backups"
    desk = new_daemon(database_url, UPLOAD_DIR=str(uploads), **clamd_env)
    other = new_daemon(empty_database_url, UPLOAD_DIR=str(tmp_path / "others"))
    async with bench_on(database_url, UPLOAD_DIR=str(uploads), **clamd_env) as bench:
        alice = await bench.person()
        await bench.upload(alice, await bench.ticket(alice), b"words\n")
        await bench.scan()
    await asyncio.to_thread(_drawn, desk, other, backups)


def _drawn(desk: Daemon, other: Daemon, backups: Path) -> None:
    def shows(daemon: Daemon, command: str, *drawn: str) -> str:
        said, seen = _on_a_terminal(daemon, command)
        assert [one for one in drawn if f"\r{one}" not in seen] == [], seen
        assert "\r" not in said
        return said

    made = shows(desk, f"backup {backups}", "database   ", "files      [", "files      [######")
    shows(desk, f"backup verify {made.strip()}", "verifying  [")
    shows(other, f"restore {made.strip()}", "database   ", "files      [")
    shows(desk, "storage verify", "objects    1 ")
    again = shows(desk, "scan --rescan", "files      [##############################] 100% of 1")
    assert "scanned again 1: 1 clean" in again
    shows(desk, "stats aggregate", "counting the tickets ...")
    shows(desk, "seed --demo", "tickets    [", "tickets    [##############################] 100%")
    shows(desk, f"diagnose {backups}/d.tar.gz", "collected  [###")
    for quiet in ("storage verify", "scan --rescan", "stats aggregate", "seed --demo"):
        done = _typed(desk, quiet)
        assert done.exit_code == 0
        assert "\r" not in done.stdout + done.stderr and "[#" not in done.stderr, done.stderr
