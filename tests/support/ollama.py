"""An Ollama on a socket: true to its protocol as documented, and hostile when told to be.

It refuses what Ollama would not understand, so that a client's mistake shows. `says` is the model:
it is given the prompt and the schema and returns what the model writes, a value for JSON or a text
as it is. `mode` is how the server behaves. `asked` holds every request.
"""

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import pytest
from aiohttp import web

Mode = Literal[
    "ok", "stall", "stall_in_stream", "slow", "garbage", "html", "error", "missing", "huge",
    "huge_line", "error_in_stream", "cut", "redirect", "empty",
]  # fmt: skip

MEBIBYTE = 1 << 20
_OPTIONS = {"temperature", "num_ctx", "num_predict", "seed", "stop", "top_k", "top_p"}
_GENERATE = {
    "model", "prompt", "system", "format", "stream", "options", "keep_alive", "think", "raw",
    "suffix", "images", "template",
}  # fmt: skip
_EMBED = {"model", "input", "truncate", "dimensions", "options", "keep_alive"}


@dataclass(frozen=True)
class Request:
    """One request that came: its path and its JSON body."""

    path: str
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """Return everything that the model was given to read."""
        return f"{self.body.get('system', '')}\n{self.body.get('prompt', '')}"


def sample(schema: dict[str, Any]) -> Any:
    """Return a small value that a JSON schema allows, as a model bound by a grammar would."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return sample(schema[either][0])
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: sample(one) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [sample(schema["items"]) for _ in range(max(1, schema.get("minItems", 0)))]
    if kind == "string":
        return "A sample of an answer"[: schema.get("maxLength", 100)]
    return {"integer": schema.get("minimum", 1), "number": 0.5, "boolean": True}.get(kind)


def vector(text: str) -> list[float]:
    """Return what the fake's model of embeddings makes of a text: similar words, near vectors."""
    found = [0.0] * 64
    for word in text.casefold().split():
        found[sum(word.encode()) % 64] += 1.0
    size = sum(number * number for number in found) ** 0.5 or 1.0
    return [number / size for number in found]


@dataclass
class FakeOllama:
    """A server with one model, `llama3.2`, and one for embeddings, `nomic-embed-text`."""

    url: str = ""
    mode: Mode = "ok"
    models: tuple[str, ...] = ("llama3.2:latest", "nomic-embed-text:latest")
    says: Callable[[str, dict[str, Any]], Any] = lambda prompt, schema: sample(schema)
    embeds: Callable[[list[str]], Any] = lambda texts: [vector(text) for text in texts]
    seconds_a_token: float = 1.0
    asked: list[Request] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    # How many bytes of a huge answer somebody took.
    taken: int = 0
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def calls(self, path: str = "/api/generate") -> list[Request]:
        """Return the requests for one path so far."""
        return [one for one in self.asked if one.path == path]

    def prompts(self) -> list[str]:
        """Return everything that the model was given to read, question by question."""
        return [one.text for one in self.calls()]

    def reset(self) -> None:
        """Be as new, with nothing asked."""
        self.mode, self.says = "ok", lambda prompt, schema: sample(schema)
        self.asked.clear()
        self.most_at_once = self.taken = 0
        self.seconds_a_token = 1.0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body: Any = None
        if request.method == "POST":
            try:
                body = orjson.loads(await request.read())
            except ValueError:
                return _failure(400, "invalid character")
        self.asked.append(Request(request.path, body or {}))
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            return await self._answer(request, body)
        finally:
            self.at_once -= 1

    async def _answer(self, request: web.Request, body: Any) -> web.StreamResponse:
        if self.mode == "stall":
            await self.released.wait()
        if self.mode == "redirect":
            return web.Response(status=307, headers={"Location": f"{self.url}/elsewhere"})
        if self.mode == "error":
            return _failure(500, "llama runner process has terminated: signal: killed")
        if self.mode == "html":
            return web.Response(text="<html>502 Bad Gateway</html>", content_type="text/html")
        if self.mode == "garbage":
            return web.Response(body=b'\x00\xff{"respo', content_type="application/json")
        if self.mode == "empty":
            return web.Response(content_type="application/json")
        if (request.method, request.path) == ("GET", "/api/version"):
            return web.json_response({"version": "0.12.6"})
        if (request.method, request.path) == ("GET", "/api/tags"):
            return web.json_response({"models": [self._tag(name) for name in self.models]})
        if (request.method, request.path) == ("POST", "/api/generate"):
            return await self._generate(request, body)
        if (request.method, request.path) == ("POST", "/api/embed"):
            return await self._embed(request, body)
        return web.Response(status=404, text="404 page not found")

    def _knows(self, name: Any) -> bool:
        if self.mode == "missing" or not isinstance(name, str):
            return False
        return (name if ":" in name else f"{name}:latest") in self.models

    async def _generate(self, request: web.Request, body: Any) -> web.StreamResponse:
        strange = set(body) - _GENERATE | set(body.get("options", {})) - _OPTIONS
        if strange:
            return _failure(400, f"unknown: {sorted(strange)}")
        if not self._knows(body.get("model")):
            return _failure(404, f"model '{body.get('model')}' not found")
        form = body.get("format")
        if not isinstance(body.get("prompt"), str) or not (form == "json" or _is_schema(form)):
            return _failure(400, "prompt must be a string, format a JSON schema or json")
        said = self.says(f"{body.get('system', '')}\n{body['prompt']}", form)
        text = said if isinstance(said, str) else orjson.dumps(said).decode()
        if body.get("stream", True):
            return await self._stream(request, body["model"], text)
        if self.mode == "huge":
            return await self._huge(request)
        if self.mode == "slow":
            await self._pause(len(text) // 4)
        if self.mode in ("error_in_stream", "cut", "stall_in_stream", "huge_line"):
            return _failure(500, "unexpected EOF")
        return web.json_response(_last(body["model"], text))

    async def _stream(self, request: web.Request, model: str, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        if self.mode in ("huge", "huge_line"):
            return await self._huge_stream(response, model)
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        for number, piece in enumerate(pieces):
            if self.mode == "slow" and number:
                await self._pause(1)
            if number == len(pieces) // 2:
                if self.mode == "error_in_stream":
                    # A proxy may add what it has: the answer is none all the same.
                    await response.write(orjson.dumps({"error": "an error of the model"}) + b"\n")
                if self.mode == "stall_in_stream":
                    await self.released.wait()
                if self.mode == "cut":
                    return response
            await response.write(orjson.dumps(_piece(model, piece)) + b"\n")
        await response.write(orjson.dumps(_last(model, "")) + b"\n")
        return response

    async def _huge(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"model":"llama3.2","response":"')
        for _ in range(50):
            await response.write(b"x" * MEBIBYTE)
            self.taken += MEBIBYTE
        await response.write(b'","done":true}')
        return response

    async def _huge_stream(self, response: web.StreamResponse, model: str) -> web.StreamResponse:
        line = orjson.dumps(_piece(model, "x" * 1000)) + b"\n"
        if self.mode == "huge_line":
            line = b"x" * len(line)
        for _ in range(50):
            await response.write(line * (MEBIBYTE // len(line)))
            self.taken += MEBIBYTE
        return response

    async def _pause(self, tokens: int) -> None:
        try:
            async with asyncio.timeout(tokens * self.seconds_a_token):
                await self.released.wait()
        except TimeoutError:
            pass

    async def _embed(self, request: web.Request, body: Any) -> web.StreamResponse:
        if strange := set(body) - _EMBED:
            return _failure(400, f"unknown: {sorted(strange)}")
        if not self._knows(body.get("model")):
            return _failure(404, f"model '{body.get('model')}' not found")
        if self.mode == "huge":
            return await self._huge(request)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        made = self.embeds(texts)
        if isinstance(made, bytes):
            return web.Response(body=made, content_type="application/json")
        return web.json_response(
            {
                "model": body["model"], "embeddings": made,
                "total_duration": 14143917, "load_duration": 1019500, "prompt_eval_count": 8,
            }
        )  # fmt: skip

    @staticmethod
    def _tag(name: str) -> dict[str, Any]:
        details = {
            "format": "gguf", "family": "llama", "families": ["llama"],
            "parameter_size": "3.2B", "quantization_level": "Q4_K_M",
        }  # fmt: skip
        return {
            "name": name, "model": name, "modified_at": "2026-01-01T00:00:00Z",
            "size": 2019393189, "digest": "a" * 64, "details": details,
        }  # fmt: skip


def _is_schema(form: Any) -> bool:
    return isinstance(form, dict) and form.get("type") == "object" and "$ref" not in str(form)


_STARTED = datetime(2026, 1, 1, tzinfo=UTC)
_COUNT = itertools.count()


def _piece(model: str, text: str) -> dict[str, Any]:
    return {
        "model": model, "created_at": _STARTED.isoformat(), "response": text, "done": False,
    }  # fmt: skip


def _last(model: str, text: str) -> dict[str, Any]:
    return {
        "model": model, "created_at": _STARTED.isoformat(), "response": text, "done": True,
        "done_reason": "stop", "context": [next(_COUNT)], "total_duration": 174560334,
        "load_duration": 101397084, "prompt_eval_count": 11, "prompt_eval_duration": 13074791,
        "eval_count": 18, "eval_duration": 52479709,
    }  # fmt: skip


def _failure(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


@asynccontextmanager
async def fake_ollama() -> AsyncIterator[FakeOllama]:
    """Serve a fake on a free port of this loop."""
    ollama = FakeOllama()
    app = web.Application(client_max_size=100 * MEBIBYTE)
    app.router.add_route("*", "/{tail:.*}", ollama.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    ollama.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield ollama
    finally:
        ollama.released.set()
        await runner.cleanup()


@contextmanager
def ollama_beside() -> Iterator[FakeOllama]:
    """Serve a fake in a thread of its own, for daemons that outlive a test's loop."""
    began, ended = threading.Event(), threading.Event()
    served: list[FakeOllama] = []
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        done = asyncio.Event()
        async with fake_ollama() as ollama:
            served.append(ollama)
            loops.append((asyncio.get_running_loop(), done))
            began.set()
            await done.wait()
        ended.set()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert began.wait(10)
    try:
        yield served[0]
    finally:
        loop, done = loops[0]
        loop.call_soon_threadsafe(done.set)
        assert ended.wait(10)
        thread.join(10)


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    """A model that lasts as long as the daemons of a module."""
    with ollama_beside() as ollama:
        yield ollama


@pytest.fixture
def model(ollama: FakeOllama) -> Iterator[FakeOllama]:
    """The model, honest and with nothing asked."""
    ollama.reset()
    yield ollama
    ollama.reset()
