"""What a start imports: memory and seconds that nobody gets back, so nothing that is not used."""

import re
from collections.abc import Callable

import pytest

from tests.support.daemon import Daemon, running

# Python tells of every import, on stderr.
TELLING = {"PYTHONPROFILEIMPORTTIME": "1"}
HEAVY = {"aiohttp", "asyncpg", "bcrypt", "cryptography", "psycopg", "yoyo"}
MIGRATING = {"psycopg", "yoyo"}
# What plugins need that are off, and what no part of the daemon needs at all.
UNUSED = {"aiobotocore", "aiosmtplib", "botocore", "opentelemetry", "requests", "yara_x"}


def _imported(told: str) -> set[str]:
    """Return the top-level packages that were imported."""
    return {
        name.split(".")[0]
        for name in re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", told, flags=re.M)
    }


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["--help"], {*HEAVY, "pydantic", "structlog", "uvloop"}),
        (["--version"], {*HEAVY, "pydantic", "structlog", "uvloop"}),
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
        found = _imported(daemon.log.read_text())
    assert "aiohttp" in found
    assert found & (MIGRATING | UNUSED) == set()


async def test_a_daemon_that_migrates_imports_what_it_takes(
    new_daemon: Callable[..., Daemon], empty_database_url: str
) -> None:
    """The test above would see it."""
    daemon = new_daemon(empty_database_url, **TELLING, ITDESK_DATABASE__MIGRATE_ON_START="true")
    async with running(daemon):
        assert _imported(daemon.log.read_text()) >= MIGRATING
