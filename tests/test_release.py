"""What a release is held to: the lock, its bill of materials, and advisories that we know of."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "etc/requirements.lock"
RELEASE = ROOT / ".ci/release"

# The first version without an advisory that was published for the one before it.
FLOORS = {
    "aiohttp": "3.13.4",  # CVE-2026-34525, CVE-2025-69223
    "certifi": "2024.7.4",  # CVE-2024-39689
    "cryptography": "44.0.1",  # CVE-2024-12797
    "idna": "3.7",  # CVE-2024-3651
    "orjson": "3.9.15",  # CVE-2024-27454
    "protobuf": "6.31.1",  # CVE-2025-4565
    "pyjwt": "2.10.1",  # CVE-2024-53861
    "requests": "2.32.4",  # CVE-2024-47081
    "urllib3": "2.6.3",  # CVE-2026-21441, CVE-2025-66471
}


def _locked() -> dict[str, tuple[str, set[str]]]:
    """Return, by name, the version and the hashes of each package in the lock."""
    text = LOCK.read_text().replace("\\\n", " ")
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})*) *$", text,
                         flags=re.M)  # fmt: skip
    assert len(entries) == len(re.findall(r"^[^\s#]", text, flags=re.M)) > 20
    return {
        canonicalize_name(name): (version, set(re.findall(r"sha256:(\w+)", hashes)))
        for name, version, hashes in entries
    }


def _project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _run(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PYTHON": sys.executable, **env}
    return subprocess.run(
        [str(RELEASE), *arguments], env=environ, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip


def test_the_lock_holds_what_is_asked_for_and_every_part_by_its_hash() -> None:
    """O-11: each dependency, and extra that the lock is made for, in a version that fits."""
    locked, project = _locked(), _project()
    assert all(hashes for _, hashes in locked.values())
    extras = re.findall(r"--extra (\w+)", LOCK.read_text())
    assert {"embedded", "s3"} <= set(extras)
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    for line in wanted:
        asked = Requirement(line)
        version, _ = locked[canonicalize_name(asked.name)]
        assert asked.specifier.contains(version), line


def test_nothing_with_an_advisory_that_we_know_is_locked_or_allowed() -> None:
    """O-11: floors, which hold without any network; what is newer, `.ci/release audit` asks for."""
    locked, project = _locked(), _project()
    known = {name: Version(floor) for name, floor in FLOORS.items()}
    below = {
        name: version
        for name, (version, _) in locked.items()
        if name in known and Version(version) < known[name]
    }
    assert below == {}
    lines = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    named = [asked for line in lines if str((asked := Requirement(line)).name) in known]
    assert {"aiohttp", "cryptography", "pyjwt"} <= {asked.name for asked in named}
    for asked in named:
        (least,) = [s.version for s in asked.specifier if s.operator == ">="]
        assert Version(least) >= known[asked.name], asked


@pytest.mark.slow
def test_the_bill_of_materials_is_the_lock(tmp_path: Path) -> None:
    """O-11: CycloneDX, valid, of exactly these versions with these hashes; twice the same bytes."""
    done = _run("sbom", str(tmp_path))
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "itdesk-sbom.json").read_text()
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("itdesk", _project()["version"])
    listed = {
        canonicalize_name(one["name"]): (
            one["version"],
            {part["content"] for where in one["externalReferences"] for part in where["hashes"]},
        )
        for one in bill["components"]
    }
    assert listed == _locked() and len(bill["components"]) == len(listed)
    purls = {one["purl"] for one in bill["components"]}
    assert purls == {f"pkg:pypi/{name}@{version}" for name, (version, _) in listed.items()}
    assert "timestamp" not in bill["metadata"] and "serialNumber" not in bill
    assert str(tmp_path) not in text and str(ROOT) not in text


def test_an_audit_that_nobody_answers_is_none(tmp_path: Path) -> None:
    """O-11: 0 skipped counted as pass: without the network there is no release."""
    requirements = tmp_path / "one.txt"
    version, hashes = _locked()["pluggy"]
    lines = " ".join(f"--hash=sha256:{one}" for one in sorted(hashes))
    requirements.write_text(f"pluggy=={version} {lines}\n")
    nobody = "http://127.0.0.1:9"
    proxies = {name: nobody for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY")}
    done = _run("audit", str(requirements), **proxies, NO_PROXY="", no_proxy="", HOME=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not released: " in done.stderr and "No known vulnerabilities" not in done.stderr


@pytest.mark.parametrize("arguments", [(), ("sbom",), ("dist", "more"), ("--help",)])
def test_wrong_usage_makes_nothing(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert done.returncode == 2 and "usage: " in done.stderr
    assert not (ROOT / "dist").exists() or arguments != ("dist", "more")


@pytest.mark.slow
def test_the_lock_alone_installs_a_desk_that_runs(tmp_path: Path) -> None:
    """O-11: by hashes, into a new environment, with the wheel on top; `pip check` is content."""
    sources = tmp_path / "sources"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".venv*", ".git", "build")
    shutil.copytree(ROOT, sources, ignore=ignored)
    done = subprocess.run(
        [str(sources / ".ci/release"), "install", str(tmp_path / "dist")],
        env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No broken requirements found." in done.stdout
    assert "itdesk, version" in done.stdout
    assert len(list((tmp_path / "dist").glob("itdesk-*.whl"))) == 1
