"""What was said in Jira reaches a model's prompt: a real daemon between a Jira and an Ollama."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.daemon import Live, started
from tests.support.jira import FakeJira, fake_jira
from tests.support.ollama import FakeOllama, fake_ollama
from tests.support.postgres import Server


@asynccontextmanager
async def between(
    pg_server: Server, jira: FakeJira, ollama: FakeOllama, **env: str
) -> AsyncIterator[Live]:
    """Lend a desk that mirrors a Jira and asks a model."""
    account = {"JIRA_EMAIL": jira.email, "JIRA_API_TOKEN": jira.token, "JIRA_BASE_URL": jira.url}
    settings = {
        "ITDESK_SCANNER__ENABLED": "false",
        "ITDESK_AI__TIMEOUT_SECONDS": "10",
        # The last prompt is the one that was asked for here.
        "ITDESK_AI__ENRICH": "false",
        "OLLAMA_BASE_URL": ollama.url,
        **account,
        **env,
    }
    async with started(pg_server, **{k: v for k, v in settings.items() if v}) as desk:
        yield desk


async def classify(person: Any, title: str) -> Any:
    """Return what is suggested for a ticket."""
    return (await person.post("/ai/classify", {"title": title})).expect(200)


async def test_comments_in_jira_reach_the_prompt(pg_server: Server) -> None:
    """S4-19, S4-20, S4-21, S4-60: of the last N of an issue the best K, once per cache_seconds."""
    kb = {
        "JIRA_KB_TOP_MATCHES": "2",
        "JIRA_KB_MAX_COMMENTS_PER_ISSUE": "3",
        "JIRA_KB_CACHE_SECONDS": "300",
    }
    async with (
        fake_jira() as jira,
        fake_ollama() as ollama,
        between(pg_server, jira, ollama, **kb) as desk,
    ):
        issue = jira.issue("Tunnel is down")
        for number in range(8):
            jira.say(issue, f"tunnel client number{number}")
        jira.say(issue, "reinstall the tunnel client, then restart")
        asked = {"project_key": "ITSM", "since": "2020-01-01T00:00:00Z"}
        (await desk.admin.post("/integrations/jira/reconcile", asked)).expect(200)
        before = len(jira.calls("GET", "/search"))
        for _ in range(2):
            found = await classify(desk.admin, "Do I reinstall the tunnel client?")
        assert len(jira.calls("GET", "/search")) == before + 1
        assert found["source"] == "ollama"
        assert {one["source"] for one in found["sources"]} == {"jira"}
        prompt = ollama.prompts()[-1]
        assert prompt.count("passage ") == 2
        assert prompt.index("reinstall the tunnel client, then") < prompt.index("number7")
        assert "number5" not in prompt
        stranger = await desk.person()
        assert (await classify(stranger, "Do I reinstall the tunnel client?"))["sources"] == []
        assert "then restart" not in ollama.prompts()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"JIRA_KB_ENABLED": "false"},
        {"JIRA_BASE_URL": "", "JIRA_EMAIL": "", "JIRA_API_TOKEN": ""},
    ],
    ids=["off", "no account"],
)
async def test_switched_off_or_without_an_account_jira_is_not_asked(
    pg_server: Server, env: dict[str, str]
) -> None:
    """S4-18, S4-60: no comment is fetched on R62."""
    async with (
        fake_jira() as jira,
        fake_ollama() as ollama,
        between(
            pg_server, jira, ollama, JIRA_WEBHOOK_SECRET="webhook-4711-0815-xyz", **env
        ) as desk,
    ):
        jira.say(jira.issue("Tunnel is down"), "reinstall the tunnel client")
        found = await classify(desk.admin, "Do I reinstall the tunnel client?")
        assert found["source"] == "ollama" and found["sources"] == []
        assert jira.calls("GET", "/search") == []
        if not env.get("JIRA_BASE_URL", "set"):
            assert jira.calls() == []
