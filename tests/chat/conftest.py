"""The desk that is chatted with, and its model."""

from collections.abc import Iterator

import pytest

from tests.support.chats import PATIENT, REPLY, settings
from tests.support.daemon import Live, serving
from tests.support.ollama import FakeOllama
from tests.support.postgres import Server


@pytest.fixture(scope="module")
def desk(pg_server: Server, ollama: FakeOllama) -> Iterator[Live]:
    """A desk that waits for its model: what ends here early was ended."""
    patience = {"ITDESK_AI__TIMEOUT_SECONDS": str(PATIENT)}
    with serving(pg_server, **settings(ollama), **patience) as live:
        yield live


@pytest.fixture
def model(ollama: FakeOllama) -> Iterator[FakeOllama]:
    """The model, honest and with nothing asked."""
    ollama.reset()
    ollama.says = lambda prompt, schema: {"reply": REPLY, "action": None}
    yield ollama
    ollama.reset()
