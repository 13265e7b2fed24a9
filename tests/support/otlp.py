"""A collector as plugins.otel sees one: OTLP over HTTP at a real socket, read by its protobuf."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

Mode = Literal["good", "hangs", "refuses", "fails", "redirects"]
_STATUS = {"good": 200, "refuses": 401, "fails": 500, "redirects": 302}


@dataclass(frozen=True)
class Told:
    """One span as it arrived."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    started: int
    ended: int
    failed: bool
    attributes: dict[str, Any]
    service: str


@dataclass
class Collector:
    """What it was told, and how it behaves."""

    port: int = 0
    mode: Mode = "good"
    spans: list[Told] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[Told]:
        """Return the spans of this name."""
        return [span for span in self.spans if span.name == name]

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """Take what is exported, as the mode says."""
        self.paths.append(request.path)
        self.headers.append(dict(request.headers))
        body = await request.read()  # aiohttp has unpacked it
        if self.mode == "hangs":
            await self.released.wait()
        status = _STATUS.get(self.mode, 503)
        if status != 200:
            headers = {"Location": f"{self.url}/elsewhere"} if status == 302 else {}
            return web.Response(status=status, headers=headers, text="token=hush")
        self.raw.append(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        message = ExportTraceServiceRequest.FromString(self.raw[-1])
        for resource in message.resource_spans:
            about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [_told(span, about["service.name"]) for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


def _told(span: Any, service: str) -> Told:
    values = {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }
    return Told(
        span.name, span.kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, span.status.code == 2, values, service,
    )  # fmt: skip


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """Lend a collector that listens."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/{tail:.*}", collector.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    collector.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield collector
    finally:
        collector.released.set()
        await runner.cleanup()
