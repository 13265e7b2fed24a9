"""Traces for OpenTelemetry: its own trace ids, told to a real socket, never waited for."""

import asyncio
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import ValidationError

from itdesk.desk import doctor
from itdesk.model.spans import Span
from itdesk.runtime.tracing import Tracing
from plugins.otel import OtelSettings, Sender
from tests.support.daemon import Live, lasting_port, make_daemon, running
from tests.support.desk import bench_on
from tests.support.load import eventually
from tests.support.otlp import Collector, Mode, collecting
from tests.support.postgres import Server
from tests.support.stream import following

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TITLE = "Very private printer"

ECHO = """
from pydantic import BaseModel
from itdesk.hookspecs import GiveUp, JobType, hookimpl

class Settings(BaseModel): ...

class Plugin:
    name, itdesk_api, Settings = "echo", 1, Settings

    def __init__(self, settings): ...

    @hookimpl
    def itdesk_jobs(self, desk):
        async def note(job):
            ticket = await desk.tickets.get(SYSTEM, job.args["ticket_id"])
            if "broken" in ticket.title:
                raise GiveUp("it is broken")
        from itdesk.model import SYSTEM
        return [JobType(name="echo.note", handle=note, on_events=("ticket.created",))]
"""


def span(**fields: Any) -> Span:
    """Return a span that a request may have."""
    known: dict[str, Any] = {
        "name": "GET /x", "kind": "server", "trace_id": TRACE, "span_id": PARENT,
        "parent_id": None, "started": 1, "ended": 2, "failed": False, "attributes": {},
    }  # fmt: skip
    return Span(**{**known, **fields})


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@contextmanager
def sending(collector: Collector, **options: Any) -> Iterator[tuple[Sender, "Counter[str]"]]:
    """Lend a sender and what it counted."""
    counts: Counter[str] = Counter()
    quick = {"every_seconds": 0.05, "send_seconds": 0.5, "endpoint": collector.url}
    settings = OtelSettings(**{**quick, **options})
    sender = Sender(settings, lambda outcome, many: counts.update({outcome: many}))
    sender.start()
    try:
        yield sender, counts
    finally:
        sender.stop(0.2)


# --- what a collector is told by a daemon ---------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(pg_server: Server, tmp_path_factory: Any) -> AsyncIterator[tuple[Live, Collector]]:
    """A daemon that tells a collector of everything."""
    directory: Path = tmp_path_factory.mktemp("plugins.d")
    directory.chmod(0o755)
    (directory / "echo.py").write_text(ECHO)
    (directory / "echo.py").chmod(0o644)
    url = await pg_server.create()
    try:
        async with collecting() as collector:
            daemon = make_daemon(
                url,
                ITDESK_PLUGIN_HOST__DIRECTORIES=f'["{directory}"]',
                ITDESK_PLUGINS__ECHO__TIMEOUT_SECONDS="5",
                ITDESK_PLUGINS__OTEL__ENDPOINT=collector.url,
                ITDESK_PLUGINS__OTEL__TOKEN="otel-token-123",
                ITDESK_PLUGINS__OTEL__EVERY_SECONDS="0.05",
                ITDESK_PLUGINS__OTEL__QUEUE="32",
                ITDESK_PLUGINS__OTEL__SEND_SECONDS="1",
            )
            async with running(daemon) as live:
                yield live, collector
    finally:
        await pg_server.drop(url)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_and_its_jobs_are_one_trace(desk: tuple[Live, Collector]) -> None:
    """S2-58: the caller's trace, its span above ours, ours above that of the job."""
    live, collector = desk
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    made = await live.admin.post("/tickets?", {"title": TITLE}, headers=given)
    made.expect(201)

    async def is_whole() -> bool:
        return TRACE in {one.trace_id for one in collector.named("job echo.note")}

    await eventually(is_whole, seconds=20)
    (request,) = [one for one in collector.spans if one.trace_id == TRACE and one.kind == 2]
    (job,) = [one for one in collector.named("job echo.note") if one.trace_id == TRACE]
    assert request.name == "POST /api/v1/tickets" and request.parent_id == PARENT
    assert job.parent_id == request.span_id and job.kind == 5
    assert request.attributes == {
        "http.request.method": "POST", "http.route": "/api/v1/tickets",
        "http.response.status_code": 201, "itdesk.request_id": made.headers["X-Request-ID"],
    }  # fmt: skip
    assert job.attributes["itdesk.job.outcome"] == "done"
    assert set(job.attributes) == {
        f"itdesk.job.{name}" for name in ("type", "id", "attempt", "outcome")
    }
    assert (request.failed, job.failed, request.service) == (False, False, "itdesk")
    assert 0 < request.ended - request.started < 60 * 10**9 and job.started > request.started
    lines = [line for line in live.daemon.lines() if line.get("trace_id") == TRACE]
    assert {"access"} <= {line["logger"] for line in lines}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_without_a_trace_begins_one(desk: tuple[Live, Collector]) -> None:
    """Its log lines carry it as well; a job that is given up is marked as failed."""
    live, collector = desk
    made = await live.admin.post("/tickets", {"title": f"{TITLE}, broken"})
    made.expect(201)

    async def is_told() -> bool:
        return any(one.failed for one in collector.named("job echo.note"))

    await eventually(is_told, seconds=20)
    (job,) = [one for one in collector.named("job echo.note") if one.failed]
    (request,) = [one for one in collector.spans if one.span_id == job.parent_id]
    assert job.attributes["itdesk.job.outcome"] == "failed"
    assert request.parent_id == "" and request.trace_id == job.trace_id != TRACE
    request_id = made.headers["X-Request-ID"]
    assert request.attributes["itdesk.request_id"] == request_id

    async def is_logged() -> bool:
        lines = [x for x in live.daemon.lines() if x.get("request_id") == request_id]
        return any(line.get("trace_id") == job.trace_id for line in lines)

    await eventually(is_logged, seconds=10)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_trace_that_is_not_sampled_is_left_out_whole(
    desk: tuple[Live, Collector],
) -> None:
    live, collector = desk
    other = "1" * 32
    given = {"traceparent": f"00-{other}-{PARENT}-00"}
    (await live.admin.post("/tickets", {"title": TITLE}, headers=given)).expect(201)
    (await live.admin.get("/never/there")).expect(404)

    async def is_later() -> bool:
        return bool(collector.named("GET unmatched"))

    await eventually(is_later, seconds=20)

    async def is_done() -> bool:
        jobs = (await live.admin.get("/jobs?type=echo.note")).expect(200)
        return {job["state"] for job in jobs} <= {"done", "failed"}

    await eventually(is_done, seconds=20)
    assert other not in {one.trace_id for one in collector.spans}


@pytest.mark.asyncio(loop_scope="module")
async def test_each_chat_of_a_websocket_is_a_span(desk: tuple[Live, Collector]) -> None:
    """Below what the websocket came with, as the websocket itself would be: it may last for days.

    Its log line belongs to the same trace.
    """
    live, collector = desk
    other = "2" * 32
    given = {"traceparent": f"00-{other}-{PARENT}-01"}
    said = [{"role": "user", "content": TITLE}]
    async with following(live.admin, subscribe=False, headers=given) as stream:
        for number in ("1", "2"):
            await stream.send(type="chat", id=number, messages=said)
            await stream.until("chat.done")
        request_id = stream.ws._response.headers["X-Request-ID"]
    async with following(live.admin, subscribe=False) as stream:
        await stream.send(type="chat", id="3", messages=said)
        await stream.until("chat.done")

    async def are_told() -> bool:
        return len(collector.named("chat")) == 3

    await eventually(are_told, seconds=20)
    chats = collector.named("chat")
    below = [one for one in chats if one.trace_id == other]
    (alone,) = [one for one in chats if one not in below]
    assert {one.parent_id for one in below} == {PARENT} and alone.parent_id == ""
    assert len({one.span_id for one in chats}) == 3 and {one.kind for one in chats} == {2}
    assert below[0].attributes == {
        "itdesk.chat.outcome": "done", "itdesk.request_id": request_id
    }  # fmt: skip
    assert not any(one.failed for one in chats)
    assert not collector.named("GET /ws/{client_id}")

    async def are_logged() -> bool:
        lines = [x for x in live.daemon.lines() if x.get("event") == "chat ended"]
        return [x.get("trace_id") for x in lines] == [other, other, alone.trace_id]

    await eventually(are_logged, seconds=10)


@pytest.mark.asyncio(loop_scope="module")
async def test_neither_secrets_nor_what_people_wrote_leave_the_desk(
    desk: tuple[Live, Collector],
) -> None:
    """S-34: of a request the route, never its path, query, body, headers or caller."""
    live, collector = desk
    before = len(collector.spans)
    ticket = await live.admin.ticket(TITLE)
    (await live.admin.get(f"/tickets/{ticket['key']}?fields=x&q=hidden-words")).expect(422)
    (await live.admin.get(f"/tickets/{ticket['key']}")).expect(200)
    bad = {"email": "mallory@example.org", "password": "a guess of hers"}
    (await live.nobody.post("/auth/login", bad)).expect(401)

    async def is_told() -> bool:
        return len(collector.spans) >= before + 5

    await eventually(is_told, seconds=20)
    told = b"".join(collector.raw)
    secrets = (
        TITLE, ticket["key"], ticket["id"], "hidden-words", "mallory", "a guess of hers",
        live.admin.token, "otel-token-123", "postgresql:", live.admin.id, "127.0.0.1",
    )  # fmt: skip
    assert b"/api/v1/tickets/{ticket}" in told
    assert [secret for secret in secrets if secret and secret.encode() in told] == []
    assert {headers["Authorization"] for headers in collector.headers} == {"Bearer otel-token-123"}
    assert "otel-token-123" not in live.daemon.log.read_text()
    assert set(collector.paths) == {"/v1/traces"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_collector_that_hangs_costs_spans_and_nothing_else(
    desk: tuple[Live, Collector],
) -> None:
    """Requests are answered; what does not fit is dropped and counted; readiness tells of it."""
    live, collector = desk

    async def counted(outcome: str) -> float:
        page = (await live.nobody.call("GET", "/metrics")).raw.decode()
        (line,) = [x for x in page.splitlines() if f'_spans_total{{outcome="{outcome}"}}' in x]
        return float(line.split()[1])

    async def is_well() -> bool:
        ready = (await live.nobody.call("GET", "/readyz")).expect(200)
        return bool(ready["checks"]["plugins"]["status"] == "ok")

    assert await is_well() and await counted("dropped") == 0
    collector.mode = "hangs"
    async with asyncio.timeout(30):
        while not (await counted("dropped") and await counted("failed")):
            assert (await live.nobody.call("GET", "/ping")).status == 200
    ready = (await live.nobody.call("GET", "/readyz")).expect(200)["checks"]["plugins"]
    assert ready["status"] == "degraded" and "takes no spans: no answer in time" in ready["reason"]
    collector.mode = "good"
    collector.released.set()
    await eventually(is_well, seconds=20)

    body = {"enabled": False}
    path = "/api/v1/plugin-switches/otel"
    assert (await live.admin.call("PUT", path, json=body)).expect(200)["state"] == "off"
    at = len(collector.raw)
    (await live.admin.ticket(TITLE))["id"]
    on = (await live.admin.call("PUT", path, json={"enabled": True})).expect(200)
    assert on["state"] == "loaded" and len(collector.raw) <= at + 2  # the probe of the new one
    (await live.nobody.call("GET", "/api/v1/after")).expect(404)

    async def is_told() -> bool:
        return len(collector.raw) > at and await counted("sent") > 0

    await eventually(is_told, seconds=20)


# --- how they are sent ----------------------------------------------------------------------------


REFUSALS: dict[Mode, str] = {
    "refuses": "it answers 401", "fails": "it answers 500", "redirects": "it answers 302",
    "hangs": "no answer in time",
}  # fmt: skip


@pytest.mark.parametrize("mode", REFUSALS)
async def test_what_a_collector_does_not_take_is_counted_and_told(
    collector: Collector, mode: Mode
) -> None:
    """Nothing is sent elsewhere, and nothing that it says is repeated; then it goes on."""
    collector.mode = mode
    with sending(collector) as (sender, counts):
        sender.add(span())

        async def is_lost() -> bool:
            return counts["failed"] == 1

        await eventually(is_lost, seconds=10)
        assert sender.problem == f"127.0.0.1:{collector.port} takes no spans: {REFUSALS[mode]}"
        collector.mode = "good"
        collector.released.set()
        sender.add(span())

        async def is_sent() -> bool:
            return counts["sent"] == 1

        await eventually(is_sent, seconds=10)
        assert sender.problem == ""
    assert set(collector.paths) == {"/v1/traces"}


async def test_what_does_not_fit_is_dropped_and_nobody_waits(collector: Collector) -> None:
    collector.mode = "hangs"
    with sending(collector, queue=10, batch=5, send_seconds=30) as (sender, counts):
        for _ in range(100):
            sender.add(span())
        assert counts["dropped"] >= 80
        # Left while it hangs, it is over at once.
        async with asyncio.timeout(5):
            await asyncio.to_thread(sender.stop, 0.1)
    assert 95 <= counts["dropped"] <= 100


async def test_what_waits_is_sent_when_the_desk_stops(collector: Collector) -> None:
    with sending(collector, every_seconds=60, batch=4) as (sender, counts):
        await asyncio.to_thread(sender.tried.wait, 5)
        for _ in range(10):
            sender.add(span())
        await asyncio.to_thread(sender.stop, 5)
    assert (len(collector.spans), counts["sent"], counts["dropped"]) == (10, 10, 0)
    assert max(raw.count(b"GET /x") for raw in collector.raw) == 4
    assert {headers["Content-Encoding"] for headers in collector.headers} == {"gzip"}


def test_settings_are_checked_and_complete_an_address() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text()
    (example,) = re.findall(r"```toml\n(\[plugins\.otel\]\n.*?)```", readme, flags=re.S)
    given = tomllib.loads(example)["plugins"]["otel"]
    assert OtelSettings(**given).endpoint == "http://127.0.0.1:4318/v1/traces"
    section = readme.partition("\n### Traces\n")[2].partition("\n## ")[0]
    options = set(OtelSettings.model_fields) - {"endpoint"}
    assert {name for name in options if f"`{name}`" not in section} == set()
    assert OtelSettings(endpoint="http://c:4318").endpoint == "http://c:4318/v1/traces"
    whole = OtelSettings(endpoint="https://c/x?key=hush")
    assert (whole.endpoint, whole.place) == ("https://c/x?key=hush", "c:443")
    for token, header, sent in (
        ("abc", "authorization", {"authorization": "Bearer abc"}),
        ("Basic YTpi", "authorization", {"authorization": "Basic YTpi"}),
        ("abc", "api-key", {"api-key": "abc"}),
        ("", "api-key", {}),
    ):
        given = OtelSettings(endpoint="http://c", token=token, header=header)
        assert given.headers == sent
    for wrong in ({"endpoint": "c:4318"}, {"endpoint": "ftp://c"}, {"header": "a b"}):
        with pytest.raises(ValidationError):
            OtelSettings(**{"endpoint": "http://c", **wrong})


async def test_the_doctor_says_what_is_wrong_with_the_collector(database_url: str) -> None:
    port = lasting_port()
    env = {"ITDESK_PLUGINS__OTEL__ENDPOINT": f"http://127.0.0.1:{port}"}
    async with bench_on(database_url, **env) as bench:
        found = {one.part: one async for one in doctor.examine(bench.desk)}
    finding = found["plugin otel"]
    assert not finding.ok and "plugins.otel" in finding.remedy
    assert finding.said == f"127.0.0.1:{port} takes no spans: no connection"


# --- off, it is not there -------------------------------------------------------------------------


def test_nothing_of_it_is_imported_unless_it_is_configured() -> None:
    program = (
        "import sys, itdesk.cli, itdesk.daemon\n"
        "print([name for name in ('opentelemetry', 'requests') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_while_nobody_listens_there_are_no_spans() -> None:
    """And who listens but fails is told no more; the work goes on."""
    tracing, told = Tracing(dice=lambda: 0.5), list[Span]()

    def fails(span: Span) -> None:
        raise ValueError

    states = [tracing.on]
    with tracing.told(told.append), tracing.told(fails):
        states.append(tracing.on)
        for _ in range(2):
            tracing.end(tracing.begin(None), "x", "server", {}, failed=False)
        assert len(told) == 2 and len(tracing._listeners) == 1
    assert [*states, tracing.on] == [False, True, False]
    for share, sampled in ((0.4, False), (0.6, True)):
        with tracing.told(told.append, share=share):
            begun = tracing.begin(None)
            assert (begun.sampled, begun.traceparent[-2:]) == (sampled, f"0{int(sampled)}")
            below = tracing.begin(begun.traceparent)
            assert below.sampled is sampled and below.parent_id == begun.span_id
