"""Tells an OpenTelemetry collector of requests and jobs, by OTLP over HTTP.

The one decision here: the desk never waits for it. Spans go into a bounded queue, and one that does
not fit is dropped and counted; a thread of its own sends them. A collector that is away, refuses or
hangs costs spans and nothing else.
"""

import asyncio
import logging
import queue
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode
from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, field_validator

from itdesk.hookspecs import Health, hookimpl
from itdesk.model.spans import Span
from itdesk.runtime.log import get_logger

if TYPE_CHECKING:
    from itdesk.desk import Desk
    from itdesk.runtime.metrics import Metrics

PATH = "/v1/traces"
# How long whoever asks how it is waits for the first answer of the collector.
FIRST_SECONDS = 0.8
# How long the last spans may take when the plugin is left.
LAST_SECONDS = 1.0
KINDS = {"server": SpanKind.SERVER, "consumer": SpanKind.CONSUMER}

log = get_logger("otel")


class OtelSettings(BaseModel):
    """The section [plugins.otel]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: str = Field(description="the collector, such as http://127.0.0.1:4318")
    token: SecretStr = Field(SecretStr(""), description="what the collector asks for, if it does")
    header: str = Field(
        "authorization",
        pattern=r"^[A-Za-z0-9-]{1,64}$",
        description="the header that carries the token; authorization: as a Bearer",
    )
    ca_file: FilePath | None = Field(None, description="the only CA that is believed")
    service: str = Field("itdesk", min_length=1, max_length=100, description="service.name")
    share: float = Field(1.0, ge=0, le=1, description="how many of the traces that begin here")
    queue: int = Field(2048, ge=1, le=100_000, description="how many spans may wait")
    batch: int = Field(256, ge=1, le=4096, description="how many spans one request has at most")
    every_seconds: float = Field(2.0, ge=0.05, le=60, description="how long spans are gathered")
    send_seconds: float = Field(10.0, gt=0, le=60, description="how long sending may take")

    @field_validator("endpoint")
    @classmethod
    def _whole(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is not an http(s) address")
        if parts.path in ("", "/"):
            parts = parts._replace(path=PATH)
        return urlunsplit(parts)

    @property
    def place(self) -> str:
        """Return host and port, which may be told; the rest of an address may be a secret."""
        parts = urlsplit(self.endpoint)
        return f"{parts.hostname}:{parts.port or {'http': 80, 'https': 443}[parts.scheme]}"

    @property
    def authorities(self) -> str | None:
        """Return whose certificates are believed: by itself the exporter asks no system."""
        system = ssl.get_default_verify_paths()
        return str(self.ca_file) if self.ca_file else system.cafile or system.capath

    @property
    def headers(self) -> dict[str, str]:
        """Return what every request carries."""
        token = self.token.get_secret_value()
        if not token:
            return {}
        is_bare = self.header.lower() == "authorization" and " " not in token
        return {self.header: f"Bearer {token}" if is_bare else token}


class Session(requests.Session):
    """Goes to no other place than the one configured, and remembers what was said there."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = threading.Event()
        self.wrong = ""

    def send(self, request: requests.PreparedRequest, **how: Any) -> requests.Response:
        """Send a request, following no redirection."""
        how["allow_redirects"] = False
        wrong = "no connection"
        try:
            answer = super().send(request, **how)
            wrong = "" if answer.status_code < 300 else f"it answers {answer.status_code}"
        except requests.Timeout:
            wrong = "no answer in time"
            raise
        except requests.exceptions.SSLError:
            wrong = "no TLS that is believed could be agreed on; see ca_file"
            raise
        finally:
            self.wrong = wrong
            self.tried.set()
        if 300 <= answer.status_code < 400:
            # The exporter would take it for a success.
            raise requests.TooManyRedirects(wrong)
        return answer


class Sender:
    """A thread that gathers spans and sends them."""

    def __init__(self, settings: OtelSettings, count: Callable[[str, int], None]) -> None:
        self._settings = settings
        self._was_well = True
        self._count = count
        self._spans: queue.Queue[Span] = queue.Queue(settings.queue)
        self._stopping = threading.Event()
        self._until = 0.0
        self._session = Session()
        # Neither a proxy nor a password of the environment.
        self._session.trust_env = False
        self._exporter = OTLPSpanExporter(
            endpoint=settings.endpoint,
            certificate_file=settings.authorities,
            headers=settings.headers,
            timeout=settings.send_seconds,
            compression=Compression.Gzip,
            session=self._session,
        )
        self._resource = Resource({"service.name": settings.service})
        self._scope = InstrumentationScope("itdesk")
        self._thread = threading.Thread(target=self._work, name="otel", daemon=True)

    @property
    def problem(self) -> str:
        """Return why the collector takes no spans, or nothing."""
        wrong = self._session.wrong
        return f"{self._settings.place} takes no spans: {wrong}" if wrong else ""

    @property
    def tried(self) -> threading.Event:
        """Return what is set once the collector was asked for the first time."""
        return self._session.tried

    def start(self) -> None:
        """Begin to send; first nothing at all, to see whether the collector answers."""
        self._thread.start()

    def add(self, span: Span) -> None:
        """Take a span, or drop it when too many wait; returns at once."""
        try:
            self._spans.put_nowait(span)
        except queue.Full:
            self._count("dropped", 1)

    def stop(self, seconds: float) -> None:
        """Send what waits, for no longer than this, and end; what is left is dropped."""
        self._until = time.monotonic() + seconds
        self._stopping.set()
        if self.problem:
            self._exporter.shutdown()  # type: ignore[no-untyped-call] # it would try again and again
        self._thread.join(seconds)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        left = 0
        with suppress(queue.Empty):
            while True:
                self._spans.get_nowait()
                left += 1
        self._count("dropped", left)

    def _work(self) -> None:
        self._send([])
        while not self._stopping.is_set():
            if batch := self._gathered():
                self._send(batch)
        while time.monotonic() < self._until and (batch := self._waiting(self._settings.batch)):
            self._send(batch)

    def _gathered(self) -> list[Span]:
        """Return a full batch, or what came until it is time."""
        until = time.monotonic() + self._settings.every_seconds
        batch: list[Span] = []
        while len(batch) < self._settings.batch and not self._stopping.is_set():
            if not (more := self._waiting(self._settings.batch - len(batch))):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._stopping.wait(min(left, 0.05))
            batch += more
        return batch

    def _waiting(self, most: int) -> list[Span]:
        found: list[Span] = []
        with suppress(queue.Empty):
            while len(found) < most:
                found.append(self._spans.get_nowait())
        return found

    def _send(self, batch: Sequence[Span]) -> None:
        try:
            result = self._exporter.export([self._read(span) for span in batch])
        except Exception as exc:  # noqa: BLE001 - the thread must outlive whatever it meets
            log.warning("spans cannot be sent", exc_info=exc)
            result = SpanExportResult.FAILURE
        is_well = result is SpanExportResult.SUCCESS
        self._count("sent" if is_well else "failed", len(batch))
        if is_well and not self._was_well:
            log.info("spans are taken again")
        elif self._was_well and not is_well:
            log.warning("spans are lost", problem=self.problem)
        self._was_well = is_well

    def _read(self, span: Span) -> ReadableSpan:
        """Return a span in the words of the SDK."""
        trace_id, flags = int(span.trace_id, 16), TraceFlags(TraceFlags.SAMPLED)
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(trace_id, int(span.parent_id, 16), is_remote=True)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, int(span.span_id, 16), False, flags),
            parent=parent,
            resource=self._resource,
            attributes=dict(span.attributes),
            kind=KINDS[span.kind],
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.started,
            end_time=span.ended,
            instrumentation_scope=self._scope,
        )


class Plugin:
    """Listens to the desk's spans."""

    name, itdesk_api, Settings = "otel", 1, OtelSettings

    def __init__(self, settings: OtelSettings) -> None:
        self._settings = settings
        self._sender: Sender | None = None

    @hookimpl
    def itdesk_metrics(self, metrics: "Metrics") -> None:
        """Count what becomes of spans."""
        self._spans = metrics.counter(
            "itdesk_otel_spans_total", "Spans: sent, dropped or refused (failed).", ["outcome"]
        )
        for outcome in ("sent", "failed", "dropped"):
            self._spans.labels(outcome)

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk: "Desk") -> AsyncIterator[None]:
        """Listen for as long as the desk works."""
        # It says in the log what it could not send, address included.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        sender = self._sender = Sender(self._settings, self._noted)
        sender.start()
        try:
            with desk.tracing.told(sender.add, share=self._settings.share):
                yield
        finally:
            await asyncio.to_thread(sender.stop, LAST_SECONDS)

    @hookimpl
    async def itdesk_health(self) -> Health:
        """Return whether the collector takes spans."""
        sender = self._sender
        if sender is None:
            return Health(False, "not started")
        if not sender.tried.is_set():
            await asyncio.to_thread(sender.tried.wait, FIRST_SECONDS)
        if not sender.tried.is_set():
            return Health(False, f"{self._settings.place} does not answer yet")
        return Health(not sender.problem, sender.problem)

    def _noted(self, outcome: str, count: int) -> None:
        self._spans.labels(outcome).inc(count)
