"""Chats on the live stream: what is asked there, what comes back, and that nothing is left."""

from typing import Any

from tests.support.assist import chat, metric
from tests.support.daemon import Live
from tests.support.load import eventually
from tests.support.ollama import FakeOllama
from tests.support.stream import Frame, Stream

# Far beyond what any test waits for.
PATIENT = 24.0
QUESTION = "My gadget is odd"
REPLY = 'Turn it off, count to "ten" \\ and turn it on again. Grüße \U0001f600 and good luck!'


def settings(ollama: FakeOllama) -> dict[str, str]:
    """Return what makes a desk with one turn at this model."""
    return {
        "ITDESK_SCANNER__ENABLED": "false",
        "ITDESK_AI__ENRICH": "false",
        "ITDESK_AI__CONCURRENCY": "1",
        "ITDESK_AI__BREAKER_SECONDS": "1",
        "OLLAMA_BASE_URL": ollama.url,
    }


async def ask(stream: Stream, id: str, *said: str, **more: Any) -> None:
    """Ask something under an id."""
    messages = [{"role": "user", "content": one} for one in said or (QUESTION,)]
    await stream.send(type="chat", id=id, messages=messages, **more)


async def outcome(stream: Stream, id: str) -> Frame:
    """Return the frame that a chat ends with."""
    return await stream.until(
        lambda f: f.get("id") == id and f["type"] in ("chat.done", "chat.failed")
    )


async def answer(stream: Stream, id: str) -> Any:
    """Return what a chat is answered."""
    last = await outcome(stream, id)
    assert set(last) == {"type", "id", "answer"}, last
    return last["answer"]


async def failure(stream: Stream, id: str) -> Frame:
    """Return why a chat has no answer."""
    last = await outcome(stream, id)
    assert set(last) == {
        "type", "id", "error", "message", "error_code", "details", "request_id", "retry_after",
    }, last  # fmt: skip
    return last


def preview(stream: Stream, id: str) -> list[str]:
    """Return the pieces of a reply that came so far."""
    return [f["text"] for f in stream.frames if f["type"] == "chat.delta" and f["id"] == id]


async def asked_and_held(stream: Stream, model: FakeOllama, id: str = "1") -> None:
    """Ask something of a model that writes half of it, and return once that is here."""
    model.mode = "stall_in_stream"
    await ask(stream, id)
    await stream.until("chat.delta")


async def is_left_alone(desk: Live, model: FakeOllama) -> None:
    """Return once the model writes for nobody and nobody waits for it, long before it would end."""

    async def is_free() -> bool:
        waiting = await metric(desk, "itdesk_assist_waiting")
        return model.at_once == 0 and waiting == 0

    await eventually(is_free, seconds=5)
    model.mode = "ok"
    assert (await chat(desk.admin, QUESTION))["source"] == "ollama"
