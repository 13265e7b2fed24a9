"""What the README says works when it is pasted."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

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
    (settings,) = _blocks("Plugins", "toml")
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
