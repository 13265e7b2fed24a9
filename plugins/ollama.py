"""Asks a language model that Ollama serves, on this machine or another.

Ollama is believed as little as what it runs: an answer has a greatest size, a redirect is not
followed, an error in the midst of a stream and a stream without its last line are failures. How
long and how often it is asked is the desk's to say.
"""

import asyncio
import logging
import ssl
from asyncio import TaskGroup
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson
from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from pydantic import BaseModel, ConfigDict, Field, field_validator

from itdesk.errors import Unavailable
from itdesk.hookspecs import Health, LanguageModel, hookimpl
from itdesk.language import Prompt
from itdesk.runtime.clock import Clock

if TYPE_CHECKING:
    from itdesk.desk import Desk
    from itdesk.runtime.metrics import Metrics

LARGEST_ANSWER: Final = 1 << 20
MOST_DIMENSIONS: Final = 8192
# So many bytes has a number of 32 bits with its comma; and what is said around the vectors.
_A_NUMBER: Final = 17
_AROUND: Final = 1 << 12
LONGEST_LINE: Final = 1 << 16
PROBE_SECONDS: Final = 5.0

log = logging.getLogger("plugin.ollama")


class OllamaSettings(BaseModel):
    """The section [plugins.ollama]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field("", description="where Ollama is; empty: it is not asked")
    model: str = Field("llama3.2", min_length=1, description="the model that answers")
    embedding_model: str = Field("", description="the model that compares texts; empty: none")
    context: int = Field(8192, ge=2048, le=1_048_576, description="tokens that it reads at most")
    longest_answer: int = Field(1024, ge=64, le=65_536, description="tokens that it writes at most")
    connect_seconds: float = Field(2.0, gt=0, description="how long connecting may take")
    probe_seconds: float = Field(60.0, ge=1, description="pause between looks whether it is there")
    ca_file: Path | None = Field(None, description="certificates that sign Ollama's, as PEM")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("must be an address such as http://localhost:11434")
        if parts.username or parts.password:
            raise ValueError("must not hold an account")
        return value.rstrip("/")


class Plugin:
    """The section [plugins.ollama]."""

    name, itdesk_api, Settings = "ollama", 1, OllamaSettings

    def __init__(self, settings: OllamaSettings) -> None:
        self._settings = settings
        self._clock = Clock()
        self._session: ClientSession | None = None
        self._problem = ""
        self.embedding: str | None = settings.embedding_model or None

    # --- the model -------------------------------------------------------------------------

    async def generate(self, prompt: Prompt, *, schema: Mapping[str, Any]) -> str:
        """Return what the model writes, bound to a JSON schema."""
        body = self._question(prompt, schema, stream=False)
        async with self._asked("generate", "POST", "/api/generate", body) as response:
            said = _decoded(await _read(response, LARGEST_ANSWER))
        if not isinstance(said.get("response"), str) or said.get("done") is not True:
            raise Unavailable("Ollama answers something else than was asked.")
        text: str = said["response"]
        return text

    async def stream(self, prompt: Prompt, *, schema: Mapping[str, Any]) -> AsyncIterator[str]:
        """Yield what the model writes as it does."""
        body = self._question(prompt, schema, stream=True)
        async with self._asked("stream", "POST", "/api/generate", body) as response:
            async for line in self._lines(response, LARGEST_ANSWER):
                said = _decoded(line)
                if "error" in said:
                    raise Unavailable("Ollama broke off with an error of its own.")
                if not isinstance(said.get("response"), str):
                    raise Unavailable("Ollama answers something else than was asked.")
                if said["response"]:
                    yield said["response"]
                if said.get("done") is True:
                    return
            raise Unavailable("Ollama broke off in the midst of an answer.")

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""
        body = {"model": self._settings.embedding_model, "input": list(texts), "truncate": True}
        async with self._asked("embed", "POST", "/api/embed", body) as response:
            most = len(texts) * MOST_DIMENSIONS * _A_NUMBER + _AROUND
            return await asyncio.to_thread(_vectors, await _read(response, most), len(texts))

    async def check(self) -> str:
        """Ask for the models that are there."""
        async with (
            self._clock.deadline(PROBE_SECONDS),
            self._asked("tags", "GET", "/api/tags", None) as response,
        ):
            said = _decoded(await _read(response, LARGEST_ANSWER))
        models = said.get("models")
        entries = models if isinstance(models, list) else []
        there = {one.get("name") for one in entries if isinstance(one, dict)}
        wanted = [self._settings.model, *filter(None, [self._settings.embedding_model])]
        for name in wanted:
            if (name if ":" in name else f"{name}:latest") not in there:
                raise Unavailable(f"Ollama does not have {name}: run `ollama pull {name}` there.")
        return f"Ollama has {' and '.join(wanted)}"

    # --- hooks -----------------------------------------------------------------------------

    @hookimpl
    def itdesk_metrics(self, metrics: "Metrics") -> None:
        """Time what Ollama is asked."""
        self._requests = metrics.histogram(
            "itdesk_ollama_request_seconds",
            "Time that Ollama takes to answer.",
            ["operation", "outcome"],
        )
        self._up = metrics.gauge(
            "itdesk_ollama_up", "1 while Ollama answers and has the model, as far as was asked."
        )

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Hold the connections to Ollama, and look now and then whether it is there."""
        self._clock = desk.clock
        settings = self._settings
        trusted = True if settings.ca_file is None else ssl.create_default_context(
            cafile=settings.ca_file
        )  # fmt: skip
        connector = TCPConnector(ssl=trusted, limit=0)
        # How long an answer may take is up to whoever asks: they cancel it.
        patience = ClientTimeout(total=None, sock_connect=settings.connect_seconds)
        async with (
            ClientSession(
                connector=connector,
                timeout=patience,
                cookie_jar=DummyCookieJar(),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,
                trust_env=False,
            ) as session,
            TaskGroup() as group,
        ):
            self._session = session
            watch = group.create_task(self._watch()) if settings.base_url else None
            try:
                yield
            finally:
                self._session = None
                if watch is not None:
                    watch.cancel()

    @hookimpl
    def itdesk_model(self, desk: "Desk") -> LanguageModel | None:
        """Return the model, unless nobody said where it is."""
        return self if self._settings.base_url else None

    @hookimpl
    def itdesk_health(self) -> Health | None:
        """Say what was last wrong with Ollama; rules answer in its place."""
        return Health(not self._problem, self._problem) if self._settings.base_url else None

    # --- asking ----------------------------------------------------------------------------

    def _question(
        self, prompt: Prompt, schema: Mapping[str, Any], *, stream: bool
    ) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "system": prompt.instruction,
            "prompt": prompt.material,
            "format": schema,
            "stream": stream,
            "options": {
                "temperature": 0.1,
                "num_ctx": self._settings.context,
                "num_predict": self._settings.longest_answer,
            },
        }

    @asynccontextmanager
    async def _asked(
        self, operation: str, method: str, path: str, body: Mapping[str, Any] | None
    ) -> AsyncIterator[ClientResponse]:
        """Lend Ollama's answer, good so far; Unavailable says what is wrong with it."""
        if self._session is None:
            raise Unavailable("Ollama cannot be asked: the desk is starting or stopping.")
        started, outcome = self._clock.monotonic(), "cancelled"
        host = urlsplit(self._settings.base_url).hostname
        try:
            async with self._session.request(
                method,
                f"{self._settings.base_url}{path}",
                data=None if body is None else orjson.dumps(body),
                headers={"Content-Type": "application/json"} if body is not None else None,
                allow_redirects=False,
            ) as response:
                self._judge(response, body)
                yield response
            outcome, self._problem = "ok", ""
        except Unavailable as exc:
            outcome, self._problem = "error", exc.message
            raise
        except ClientConnectorCertificateError as exc:
            outcome, self._problem = "error", (
                f"The certificate of {host} is not trusted: give the one that signs it as"
                " plugins.ollama.ca_file."
            )  # fmt: skip
            raise Unavailable(self._problem) from exc
        except (ClientConnectorError, TimeoutError) as exc:
            outcome, self._problem = "unreachable", f"Ollama at {host} cannot be reached."
            raise Unavailable(self._problem) from exc
        except ClientError as exc:
            outcome, self._problem = "error", f"Ollama at {host} broke the connection off."
            raise Unavailable(self._problem) from exc
        finally:
            self._requests.labels(operation, outcome).observe(self._clock.monotonic() - started)
            if outcome != "cancelled":
                self._up.set(outcome == "ok")

    @staticmethod
    def _judge(response: ClientResponse, body: Mapping[str, Any] | None) -> None:
        if response.status == 404 and body is not None:
            name = body["model"]
            raise Unavailable(f"Ollama does not have {name}: run `ollama pull {name}` there.")
        if 300 <= response.status < 400:
            raise Unavailable(
                "Ollama answers with a redirect: plugins.ollama.base_url is not its own address."
            )
        if response.status != 200:
            raise Unavailable(f"Ollama answers {response.status}.")

    async def _lines(self, response: ClientResponse, most: int) -> AsyncIterator[bytes]:
        """Yield the lines of an answer, everybody else having a turn now and then."""
        rest, size = b"", 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            if size > most or len(rest) > LONGEST_LINE:
                raise Unavailable("Ollama's answer or a line of it is too long.")
            for line in filter(None, lines):
                yield line
            await self._clock.sleep(0)
        if rest.strip():
            yield rest

    async def _watch(self) -> None:
        """Look whether Ollama is there, so that what is wrong shows before somebody asks."""
        while True:
            try:
                await self.check()
            except (Unavailable, TimeoutError) as exc:
                self._problem = self._problem or "Ollama does not answer in time."
                if isinstance(exc, Unavailable):
                    self._problem = exc.message
                self._up.set(0)
                log.warning("ollama is not usable: %s", self._problem)
            await self._clock.sleep(self._settings.probe_seconds)


async def _read(response: ClientResponse, most: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.content.iter_chunked(1 << 16):
        size += len(chunk)
        if size > most:
            raise Unavailable(f"Ollama's answer has more than {most} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


def _decoded(raw: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(raw)
    except ValueError as exc:
        raise Unavailable("Something else than Ollama answers there.") from exc
    if not isinstance(said, dict):
        raise Unavailable("Something else than Ollama answers there.")
    return said


def _vectors(raw: bytes, count: int) -> list[list[float]]:
    """Return so many vectors; meant for a thread, where what takes long stops nobody."""
    # Decoding stops everybody in a thread as well: what would take long is told beforehand.
    objects = raw.count(b"[") + raw.count(b"{")
    if raw.count(b",") > count * MOST_DIMENSIONS + _AROUND or objects > count + _AROUND:
        raise Unavailable("Ollama answers more than was asked.")
    vectors = _decoded(raw).get("embeddings")
    if not isinstance(vectors, list) or len(vectors) != count or not all(map(_is_vector, vectors)):
        raise Unavailable("Ollama answers something else than was asked.")
    return vectors


def _is_vector(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_DIMENSIONS
        and all(type(one) in (int, float) for one in value)
    )
