"""What the README says works when it is pasted."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from itdesk.workbench import Workbench
from tests.support.daemon import Live, live_on, make_daemon, started
from tests.support.postgres import Server

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _blocks(heading: str, language: str) -> list[str]:
    section = re.split(r"^##+ ", README, flags=re.M)
    (text,) = [part for part in section if part.startswith(heading)]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


async def test_the_api_examples_work_as_written(
    pg_server: Server, clamd_env: dict[str, str], tmp_path: Path
) -> None:
    """Every curl line of the README, in order, in one shell, within the limits of a new desk."""
    async with started(pg_server, ITDESK_LIMITS__ENABLED="true", **clamd_env) as live:
        await asyncio.to_thread(_run_the_examples, live, tmp_path)


def _run_the_examples(live: Live, tmp_path: Path) -> None:
    lines = [*_blocks("The API by example", "sh"), *_blocks("Large files", "sh")]
    lines += _blocks("Scripts", "sh")
    assert len(lines) == 3
    bin_dir = Path(sys.executable).parent
    env = {
        **live.daemon.environ(),
        "URL": live.url,
        "ITDESK_STATE_DIR": str(live.daemon.state_dir),
        "PATH": f"{bin_dir}:{live.daemon.environ()['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "connection refused" in done.stdout and "Same cable" in done.stdout


async def test_the_plugin_example_works_as_written(pg_server: Server, tmp_path: Path) -> None:
    """O-05: the drop-in file of the README is loaded and hears of a new ticket."""
    directory = tmp_path / "plugins.d"
    directory.mkdir(mode=0o755)
    (code,) = _blocks("Plugins", "python")
    (directory / "hello.py").write_text(code)
    (directory / "hello.py").chmod(0o644)
    settings, _ = _blocks("Plugins", "toml")
    config = tmp_path / "itdesk.toml"
    config.write_text(settings.replace("/etc/itdesk/plugins.d", str(directory)))
    async with started(pg_server, ITDESK_CONFIG=str(config)) as live:
        await live.admin.ticket()
        process = live.daemon.process
        assert process is not None and process.stdout is not None
        for line in process.stdout:
            if line.startswith("Good morning"):
                assert line.split()[-1].count(".") == 1
                break


def _install_lines() -> list[str]:
    (text,) = _blocks("Install it", "sh")
    return text.splitlines()


def test_the_installation_is_ten_lines_about_files_that_are_there() -> None:
    """S4-04: besides the apt-get one, nothing is fetched and everything named is shipped."""
    lines = _install_lines()
    assert len(lines) == 10
    named = re.findall(r"(?<![/\w])(?:systemd|etc)/[\w./-]+", "\n".join(lines))
    assert len(named) == 9
    assert [name for name in named if not (ROOT / name).is_file()] == []
    done = subprocess.run(["bash", "-n", "-c", "\n".join(lines)], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_the_installation_gives_a_desk(own_pg_server: Server, tmp_path: Path) -> None:
    """S0-07, S4-04: the lines that need no booted systemd, run below a root of their own.

    What they leave is what the units start: the daemon reads the settings that were installed,
    on a database that was made by the line that makes it.
    """
    root = tmp_path / "root"
    # What the packages of the line before bring.
    for folder in ("etc/nginx/conf.d", "etc/ssl/private", "etc/ssl/certs", "etc/systemd/system",
                   "etc/clamav"):  # fmt: skip
        (root / folder).mkdir(parents=True)
    wanted = ("cp systemd/", "systemd-sysusers", "openssl", "sed ", "cp etc/clamd")
    lines = [line for line in _install_lines() if line.startswith(wanted)]
    assert len(lines) == 5
    # Of the line that installs the package, what it does once that is there.
    (page,) = [line.rpartition(" && ")[2] for line in _install_lines() if "manual" in line]
    script = "\n".join(["HOST=help.example.net", *lines, page])
    script = re.sub(r" (>?)/(etc|usr)/", rf" \1{root}/\2/", script)
    for word in ("systemd-sysusers", "systemd-tmpfiles", "systemctl", "nginx"):
        script = re.sub(rf"(^|&& ){word}[^&\n]*", r"\1true", script, flags=re.M)
    done = await asyncio.to_thread(
        subprocess.run, ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "help.example.net" in (root / "etc/nginx/conf.d/itdesk.conf").read_text()
    assert "desk.example.org" not in (root / "etc/itdesk/itdesk.toml").read_text()
    assert (root / "etc/itdesk/itdesk.toml").stat().st_mode & 0o777 == 0o640
    assert (root / "etc/ssl/certs/itdesk.pem").is_file()
    assert (root / "usr/local/share/man/man1/itdesk.1").read_text().startswith(".TH ITDESK 1")
    settings = (root / "etc/itdesk/itdesk.toml").read_text()
    url = await own_pg_server.create()
    config = tmp_path / "itdesk.toml"
    config.write_text(re.sub(r'^url = ".*"$', f'url = "{url}"', settings, flags=re.M))
    daemon = make_daemon(None, ITDESK_CONFIG=str(config), ITDESK_DATABASE__MIGRATE_ON_START="true")
    daemon.env["ITDESK_AUTH__BCRYPT_COST"] = "10"
    try:
        await asyncio.to_thread(daemon.start)
        made = await asyncio.to_thread(daemon.run, "init")
        assert made.returncode == 0, made.stderr
        told = re.search(r"first administrator: (\S+) password: (\S+)", made.stdout)
        assert told is not None
        daemon.first_admin = told[1], told[2]
        assert (await (await live_on(daemon)).admin.ticket())["key"] == "TSK-1001"
    finally:
        await asyncio.to_thread(daemon.stop)
        shutil.rmtree(daemon.state_dir)


async def test_a_new_plugin_passes_its_own_test_as_written(pg_server: Server) -> None:
    """The tutorial of the README: `plugins new`, then pytest; on a database of the tests."""
    url = await pg_server.create()
    try:
        await asyncio.to_thread(_run_the_tutorial, ITDESK_WORKBENCH_DATABASE=url)
    finally:
        await pg_server.drop(url)


def test_the_test_kit_is_described_whole() -> None:
    """Whatever a workbench has is in the README's table, and nothing else."""
    (section,) = [part for part in re.split(r"^## ", README, flags=re.M) if part[:7] == "Plugins"]
    told = set(re.findall(r"`bench\.(\w+)", section))
    has = {name for name in (*dir(Workbench), "desk") if not name.startswith("_")}
    assert told == has


@pytest.mark.slow
async def test_a_new_plugin_brings_its_own_database_to_its_test() -> None:
    """The same with nothing but the package: on the embedded database."""
    await asyncio.to_thread(_run_the_tutorial)


def _run_the_tutorial(**env: str) -> None:
    with tempfile.TemporaryDirectory(prefix="itdesk-tutorial-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        lines, _switching = _blocks("Plugins", "sh")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines], cwd=folder, text=True, timeout=120,
            env={**os.environ, "PATH": path, "ITDESK_STATE_DIR": folder, **env},
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "1 passed" in done.stdout
