"""What the README says works when it is pasted."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.daemon import Live, started
from tests.support.postgres import Server

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


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


async def test_a_new_plugin_passes_its_own_test_as_written(pg_server: Server) -> None:
    """The tutorial of the README: `plugins new`, then pytest; on a database of the tests."""
    url = await pg_server.create()
    try:
        await asyncio.to_thread(_run_the_tutorial, ITDESK_WORKBENCH_DATABASE=url)
    finally:
        await pg_server.drop(url)


@pytest.mark.slow
async def test_a_new_plugin_brings_its_own_database_to_its_test() -> None:
    """The same with nothing but the package: on the embedded database."""
    await asyncio.to_thread(_run_the_tutorial)


def _run_the_tutorial(**env: str) -> None:
    with tempfile.TemporaryDirectory(prefix="itdesk-tutorial-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (lines,) = _blocks("Plugins", "sh")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", lines], cwd=folder, text=True, timeout=120,
            env={**os.environ, "PATH": path, "ITDESK_STATE_DIR": folder, **env},
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "1 passed" in done.stdout
