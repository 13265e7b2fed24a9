"""What is in the wheel, and that it is all that a machine without the sources needs."""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _run(*command: object, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    keep = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**keep, **env}, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    """The wheel, built from a copy of what goes into it."""
    with tempfile.TemporaryDirectory(prefix="itdesk-wheel-") as folder:
        sources = Path(folder, "sources")
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in ("itdesk", "plugins", "migrations", "etc", "tests"):
            shutil.copytree(ROOT / name, sources / name, ignore=ignored)
        for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, sources / name)
        # With a setuptools that will do already here, the network is not needed.
        isolated = int(version("setuptools").partition(".")[0]) < 77
        built = _run(
            sys.executable, "-m", "pip", "wheel", "--no-deps", "--disable-pip-version-check",
            *([] if isolated else ["--no-build-isolation"]), "-w", folder, sources,
            cwd=Path(folder),
        )  # fmt: skip
        assert built.returncode == 0, built.stdout + built.stderr
        (path,) = Path(folder).glob("*.whl")
        yield path


def _tracked(folder: str, suffix: str) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob(f"*{suffix}")}


def test_the_wheel_holds_the_product_and_nothing_else(wheel: Path) -> None:
    """S0-02, O-11: code, plugins, migrations and data; no tests, no secrets, no leftovers."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    inside = {name.partition("/")[0] for name in names}
    (info,) = {name for name in inside if name.endswith(".dist-info")}
    assert inside == {"itdesk", "itdesk_plugins", "itdesk_migrations", "itdesk_etc", info}

    for folder, package in (("itdesk", "itdesk"), ("plugins", "itdesk_plugins")):
        code = {name.replace(folder, package, 1) for name in _tracked(folder, ".py")}
        assert code == {
            name for name in names if name.startswith(f"{package}/") and name[-3:] == ".py"
        }
    sql = {
        name.replace("migrations", "itdesk_migrations", 1)
        for name in _tracked("migrations", ".sql")
    }
    assert sql and sql <= names
    data = {
        "itdesk/py.typed",
        "itdesk_etc/itdesk.toml",
        "itdesk_etc/itdesk.env.example",
        "itdesk_etc/common-passwords.txt",
        "itdesk_etc/clamd.conf",
        "itdesk_etc/prometheus-rules.yml",
        "itdesk_etc/grafana-dashboard.json",
        "itdesk_etc/plugin_template/checks.py",
        *(name.replace("etc", "itdesk_etc", 1) for name in _tracked("etc", ".yar")),
        *(name.replace("etc", "itdesk_etc", 1) for name in _tracked("etc/mail", ".txt")),
    }
    assert data <= names
    assert f"{info}/licenses/LICENSE" in names
    unwanted = (".pyc", ".pem", ".key", ".crt", ".env", ".log", ".orig", ".rej", "~")
    assert not [name for name in names if name.endswith(unwanted) or "__pycache__" in name]
    assert not [name for name in names if "/test" in name or "conftest" in name]


def test_the_wheel_says_what_it_needs(wheel: Path) -> None:
    """S0-02, S0-03, S2-10, S3-09: Python 3.11, one command, plugins, and the extras by name."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        said = Parser().parsestr(archive.read(metadata).decode())
        points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
        private = [
            name
            for name in archive.namelist()
            if b"PRIVATE KEY-----" in archive.read(name) and not name.endswith(".py")
        ]
    assert said["Requires-Python"] == ">=3.11"
    assert {"embedded", "dev"} <= set(said.get_all("Provides-Extra", []))
    wanted = " ".join(said.get_all("Requires-Dist", []))
    for name in ("pytest", "ruff", "mypy"):
        assert f"{name}>=" in wanted
    assert "itdesk = itdesk.__main__:run" in points
    assert "clamav = itdesk_plugins.clamav" in points
    assert private == []


def test_the_installed_wheel_runs_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    """S0-02, S0-36: unpacked elsewhere it finds its data, migrations and plugins by itself."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import itdesk, itdesk_plugins, itdesk_migrations, itdesk_etc\n"
        "assert all(p.__file__.startswith(sys.path[0]) for p in"
        " (itdesk, itdesk_plugins, itdesk_migrations, itdesk_etc))\n"
        "from itdesk.cli import main; main()"
    )
    command = (sys.executable, "-c", program, site)
    told = _run(*command, "--version", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("itdesk")
    state = tmp_path / "state"
    state.mkdir()
    shown = _run(*command, "--state-dir", state, "config", "check", cwd=tmp_path)
    assert shown.stderr.startswith("database.url: is not set"), shown.stderr
    verify = _run(
        *command, "--state-dir", state, "db", "verify", cwd=tmp_path,
        DATABASE_URL="postgresql://itdesk@127.0.0.1:1/itdesk",
    )  # fmt: skip
    assert "cannot be reached" in verify.stderr


@pytest.mark.slow
def test_a_fresh_environment_installs_and_runs_it(wheel: Path, tmp_path: Path) -> None:
    """S0-02, S0-03, S3-09: `pip install` in a new venv, with nothing of ours around."""
    venv = tmp_path / "venv"
    made = _run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    extra = f"{wheel}[dev]"
    done = _run(
        venv / "bin/pip", "install", "-q", "--disable-pip-version-check", extra, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert _run(venv / "bin/pip", "check", cwd=tmp_path).returncode == 0
    told = _run(venv / "bin/itdesk", "--version", cwd=tmp_path)
    assert (told.returncode, told.stdout) == (0, "itdesk, version 1.0.0\n")
    for tool in ("pytest", "ruff", "mypy"):
        assert (venv / "bin" / tool).exists()
