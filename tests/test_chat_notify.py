"""A plugin as a third party writes it, end to end: the drop-in that tells a chat."""

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.support.daemon import Live, make_daemon, running
from tests.support.load import eventually
from tests.support.postgres import Server
from tests.support.sink import Sink, sinking

DROP_IN = Path(__file__).resolve().parents[1] / "etc/plugins.d/chat_notify.py"
SECRET = "hook-9f8e7d6c5b4a"
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chat() -> AsyncIterator[Sink]:
    async with sinking() as sink:
        yield sink


@asynccontextmanager
async def _told(pg_server: Server, url: str, directory: Path) -> AsyncIterator[Live]:
    directory.mkdir(mode=0o755)
    shutil.copy(DROP_IN, directory)
    (directory / DROP_IN.name).chmod(0o644)
    database = await pg_server.create()
    settings = {
        "ITDESK_PLUGIN_HOST__DIRECTORIES": f'["{directory}"]',
        "ITDESK_PLUGINS__CHAT_NOTIFY__URL": f"{url}/{SECRET}",
        "ITDESK_JOBS__POLL_SECONDS": "1",
        "ITDESK_JOBS__RETRY_SECONDS": "1",
    }
    try:
        async with running(make_daemon(database, **settings)) as live:
            yield live
    finally:
        await pg_server.drop(database)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(
    pg_server: Server, chat: Sink, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Live]:
    directory = tmp_path_factory.mktemp("chat") / "plugins.d"
    async with _told(pg_server, chat.url, directory) as live:
        yield live


@pytest.fixture(autouse=True)
def forgetful(chat: Sink) -> None:
    chat.told.clear()


async def test_a_message_is_sent_until_it_arrives_with_one_delivery_id(
    live: Live, chat: Sink
) -> None:
    """O-05, I5: two refusals, then it is taken; nobody is called, no markup survives."""
    chat.answers[:] = [(503, {}), (429, {"Retry-After": "0"})]
    trace = uuid4().hex
    headers = {"Traceparent": f"00-{trace}-{'1' * 16}-01"}
    title = "Printer <b>on fire</b> @all & <!channel>"
    answer = await live.admin.post("/tickets", {"title": title}, headers=headers)
    key = answer.expect(201)["key"]
    told = await chat.hears(3)
    assert len({one.delivery for one in told}) == 1 and told[0].raw == told[2].raw
    text: str = told[0].body["text"]
    assert text.startswith(f"ticket created: {key} Printer &lt;b&gt;on fire")
    assert "@all" not in text and "<" not in text and f"/tickets/{key}" in text
    assert told[0].body["username"] == "itdesk"

    async def said() -> bool:
        """S2-58: the job's lines belong to the trace of the request."""
        events = [line for line in live.daemon.lines() if line.get("trace_id") == trace]
        return [line["event"] for line in events if line["logger"] != "access"] == [
            "job attempt failed", "job tried again later", "job tried again later", "chat told",
        ]  # fmt: skip

    await eventually(said, seconds=10)


async def test_changes_come_in_order_and_comments_stay_inside(live: Live, chat: Sink) -> None:
    """One line for each change of a ticket, each with an id of its own; the rest is not told."""
    ticket = await live.admin.ticket("Slow network")
    path = f"/tickets/{ticket['key']}"
    chat.answers[:] = [(500, {})]
    (await live.admin.post(f"{path}/comments", {"body": "hush", "internal": True})).expect(201)
    (await live.admin.patch(path, {"status": "in_progress"})).expect(200)
    (await live.admin.patch(path, {"priority": "high"})).expect(200)
    told = await chat.hears(4)
    lines = [one.body["text"].partition("\n")[0] for one in told]
    assert lines[0] == lines[1]
    assert ["created" in lines[1], "status in_progress" in lines[2], "priority high" in lines[3]]
    assert re.search(r"\(status in_progress\), by Admin", lines[2])
    assert len({one.delivery for one in told}) == 3
    assert not any("hush" in line for line in lines)


async def test_a_hook_that_is_gone_is_given_up_and_its_address_told_to_nobody(
    live: Live, chat: Sink
) -> None:
    """S-34: operators read the reason; the address is a key and nowhere to be seen."""
    chat.answers[:] = [(404, {})]
    await live.admin.ticket("To nobody")

    async def failed() -> bool:
        jobs = (await live.admin.get("/jobs?state=failed")).expect(200)
        return [job["last_error"] for job in jobs] == [
            "the chat answers 404: is plugins.chat_notify.url still right?"
        ]

    await eventually(failed, seconds=10)
    assert len(chat.told) == 1
    shown = live.daemon.run("config", "show")
    assert shown.returncode == 0 and "chat_notify" in shown.stdout
    everything = shown.stdout + shown.stderr + live.daemon.log.read_text()
    everything += (await live.nobody.call("GET", "/metrics")).raw.decode()
    everything += (await live.nobody.call("GET", "/readyz")).raw.decode()
    assert SECRET not in everything


async def test_a_chat_that_is_away_harms_nobody(pg_server: Server, tmp_path: Path) -> None:
    """O-05: nobody listens there; tickets are opened, and the message waits."""
    async with _told(pg_server, "http://127.0.0.1:9/hook", tmp_path / "plugins.d") as live:
        await live.admin.ticket()
        found: list[Any] = []

        async def waits() -> bool:
            found[:] = (await live.admin.get("/jobs?state=waiting")).expect(200)
            return bool(found and found[0]["last_error"])

        await eventually(waits, seconds=10)
        assert found[0]["last_error"].startswith("the chat cannot be reached: Client")
        assert SECRET not in live.daemon.log.read_text()
