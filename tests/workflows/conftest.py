"""A desk whose rules are driven by hand: a job is done when a test says so."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.workflows.ruled import Ruled, ruled_on


@pytest_asyncio.fixture
async def ruled(database_url: str) -> AsyncIterator[Ruled]:
    """A desk on a fresh database, with an administrator, an agent and a user."""
    async with ruled_on(database_url) as ruled:
        yield ruled
