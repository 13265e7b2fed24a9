"""The clients of the live stream in the README work when they are pasted."""

import asyncio
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.daemon import Live, Person, started
from tests.support.ollama import ollama_beside
from tests.support.postgres import Server
from tests.test_readme import _blocks

PATIENCE = 30.0
NODE = ("--experimental-websocket",)  # without a meaning since version 22
# What a page would do with the example: show each change.
PAGE = """
follow(process.env.URL, process.env.TOKEN, (frame) =>
  console.log(frame ? [frame.type, frame.key, frame.version].join(" ") : "read the list"));
"""


def _has_websockets() -> bool:
    node = shutil.which("node")
    if node is None:
        return False
    asked = [node, *NODE, "-p", "typeof WebSocket"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "function"


@asynccontextmanager
async def running(live: Live, who: Person, *command: str) -> AsyncIterator[Process]:
    """Run an example until the test has seen enough."""
    env = {**live.daemon.environ(), "URL": live.url, "TOKEN": who.token}
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, env=env)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: Process, wanted: str) -> str:
    """Return the first line that begins so."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        async for line in process.stdout:
            if line.decode().startswith(wanted):
                return line.decode().strip()
    raise AssertionError(f"the example ended without {wanted}")


async def change_until_seen(process: Process, who: Person) -> None:
    """Change a ticket over and over, until the example is connected and says so."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        first = group.create_task(process.stdout.readline())
        while not first.done():
            await who.ticket("Is anybody there?")
            await asyncio.wait({first}, timeout=0.2)
        assert first.result()


async def test_the_python_client_works_as_written(live: Live, tmp_path: Path) -> None:
    """S2-05: it tells of a new ticket and of what is said on it."""
    (code, _) = _blocks("Live updates", "python")
    (tmp_path / "follow.py").write_text(code)
    agent = await live.person("agent")
    async with running(live, agent, sys.executable, str(tmp_path / "follow.py")) as process:
        await change_until_seen(process, agent)
        ticket = await agent.ticket()
        await said(process, f"ticket.created {ticket['key']} 1")
        (await agent.post(f"/tickets/{ticket['key']}/comments", {"body": "Yes"})).expect(201)
        await said(process, f"comment.added {ticket['key']} 2")


async def test_the_python_client_of_the_chat_works_as_written(
    pg_server: Server, tmp_path: Path
) -> None:
    """R63 on the websocket: it shows pieces of a reply, then the answer; or why there is none."""
    (_, code) = _blocks("Live updates", "python")
    (tmp_path / "ask.py").write_text(code)
    command = (sys.executable, str(tmp_path / "ask.py"), "My gadget is odd")
    reply = "Turn it off, count to ten and turn it on again. " * 4
    with ollama_beside() as model:
        model.mode, model.seconds_a_token = "slow", 0.01
        model.says = lambda prompt, schema: {"reply": reply.strip(), "action": None}
        async with started(pg_server, OLLAMA_BASE_URL=model.url) as live:
            async with running(live, live.admin, *command) as process:
                out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            preview, answer = out.decode().splitlines()
            assert preview and reply.startswith(preview)
            assert answer == f"Answer: {reply.strip()}"
            async with running(live, Person(live.url, "nonsense"), *command) as process:
                assert await asyncio.wait_for(process.wait(), PATIENCE) == 1


@pytest.mark.skipif(not _has_websockets(), reason="needs node 20.10 or later")
async def test_the_browser_client_works_as_written(live: Live, tmp_path: Path) -> None:
    """S2-05: the same in JavaScript, with the token as a subprotocol."""
    (code,) = _blocks("Live updates", "javascript")
    (tmp_path / "follow.js").write_text(code + PAGE)
    agent = await live.person("agent")
    async with running(live, agent, "node", *NODE, str(tmp_path / "follow.js")) as process:
        await said(process, "read the list")
        ticket = await agent.ticket()
        await said(process, f"ticket.created {ticket['key']} 1")
