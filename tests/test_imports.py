"""What a start imports: memory and seconds that nobody gets back, so nothing that is not used."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.daemon import Daemon, running

# Python tells of every import, on stderr.
TELLING = {"PYTHONPROFILEIMPORTTIME": "1"}
HEAVY = {"aiohttp", "asyncpg", "bcrypt", "cryptography", "psycopg", "yoyo"}
MIGRATING = {"psycopg", "yoyo"}
# What plugins need that are off, and what no part of the daemon needs at all.
UNUSED = {
    "aiobotocore", "aiosmtplib", "botocore", "opentelemetry", "requests", "tarfile", "yara_x",
}  # fmt: skip


def _imported(told: str) -> set[str]:
    """Return the top-level packages that were imported."""
    return {
        name.split(".")[0]
        for name in re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, flags=re.M)
    }


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["--help"], {*HEAVY, "pydantic", "uvloop"}),
        (["--version"], {*HEAVY, "pydantic", "uvloop"}),
        (["serve", "--help"], MIGRATING | UNUSED),
        (["db", "--help"], MIGRATING | {"aiohttp", "bcrypt", "cryptography"}),
        (["config", "show"], HEAVY),
    ],
    ids=["help", "version", "help of serve", "help of db", "config show"],
)
def test_a_command_imports_no_more_than_it_uses(
    new_daemon: Callable[..., Daemon], words: list[str], without: set[str]
) -> None:
    done = new_daemon(None, **TELLING).run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "click" in _imported(done.stderr)
    assert _imported(done.stderr) & without == set()


async def test_a_daemon_on_a_schema_at_head_imports_neither_migrations_nor_plugins_that_are_off(
    new_daemon: Callable[..., Daemon], database_url: str
) -> None:
    daemon = new_daemon(database_url, **TELLING, ITDESK_DATABASE__MIGRATE_ON_START="true")
    async with running(daemon) as live:
        await live.admin.ticket()
        told = daemon.log.read_text()
    found = _imported(told)
    assert "aiohttp" in found
    assert found & (MIGRATING | UNUSED) == set()
    # A MiB, the C++ library with it, for lists that no request reads.
    assert "frozenlist" in found
    assert "frozenlist._frozenlist" not in told


async def test_a_daemon_that_migrates_imports_what_it_takes(
    new_daemon: Callable[..., Daemon], empty_database_url: str
) -> None:
    """The test above would see it."""
    daemon = new_daemon(empty_database_url, **TELLING, ITDESK_DATABASE__MIGRATE_ON_START="true")
    async with running(daemon):
        assert _imported(daemon.log.read_text()) >= MIGRATING


def test_the_models_of_bodies_and_queries_are_built_when_they_are_read() -> None:
    """A tenth of the start, for routes that most daemons are never asked for."""
    program = """
from itdesk.api import ROUTES
models = {model for route in ROUTES for model in (route.body, route.query) if model is not None}
print(len(models), [model.__name__ for model in models if model.__pydantic_complete__])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\d\d+ \[\]\n", done.stdout)
