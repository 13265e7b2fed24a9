import ast
import asyncio
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from itdesk import hookspecs
from itdesk.desk import plugins as plugins_module
from itdesk.desk.plugins import Plugins
from itdesk.errors import ConfigError, Unavailable
from itdesk.hookspecs import Health
from itdesk.model import SYSTEM, Event, Priority, Status, Ticket, new_id
from itdesk.runtime import log
from itdesk.runtime.metrics import Metrics

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TICKET = Ticket(
    id=new_id(), number=1, key="TSK-1", project_id=new_id(), project="TSK", title="Printer",
    description="", status=Status.OPEN, priority=Priority.LOW, category=None, department=None,
    tags=[], reporter_id=None, reporter_name="", assignee_id=None, assignee_ids=[],
    resolution=None, predicted_priority=None, predicted_category=None, external=None,
    first_action_at=None, closed_at=None, version=1, created_at=NOW, updated_at=NOW,
)  # fmt: skip
EVENT = Event.by(SYSTEM, "ticket.created")

PLUGIN = """
import asyncio, os, sys, time
from contextlib import asynccontextmanager
from pydantic import BaseModel, ConfigDict
from itdesk.hookspecs import Health, hookimpl
from itdesk.errors import Unavailable

class Settings(BaseModel):
{settings}

class Plugin:
    name, itdesk_api, Settings = {name!r}, 1, Settings

    def __init__(self, settings):
        self.settings = settings

{body}
"""
TELLS = """
@hookimpl
async def itdesk_event(self, desk, event):
    desk.told.append((self.name, event.type))
"""


class Rig:
    """A directory of real plugin files, and the desk that they are given."""

    def __init__(self, path: Path) -> None:
        self.directory = path / "plugins.d"
        self.directory.mkdir(mode=0o755)
        self.metrics = Metrics()
        self.desk: Any = SimpleNamespace(told=[])

    def drop(self, name: str, body: str = TELLS, *, settings: str = "pass") -> Path:
        """Write a plugin with these methods."""
        methods, options = indent(dedent(body), "    "), indent(dedent(settings), "    ")
        return self.write(name, PLUGIN.format(name=name, body=methods, settings=options))

    def write(self, name: str, source: str) -> Path:
        path = self.directory / f"{name}.py"
        path.write_text(source)
        path.chmod(0o644)
        return path

    def load(self, **sections: dict[str, Any]) -> Plugins:
        return Plugins.load(sections, directories=[self.directory], metrics=self.metrics)

    def count(self, plugin: str, hook: str, outcome: str) -> float:
        labels = {"plugin": plugin, "hook": hook, "outcome": outcome}
        return self.value("itdesk_plugin_seconds_count", **labels)

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    path = tmp_path / "log"
    with path.open("wb") as file:
        undo = log.configure("info", "json", fd=file.fileno())

        def read() -> list[dict[str, Any]]:
            log.flush()
            return [orjson.loads(line) for line in path.read_bytes().splitlines()]

        yield read
        undo()


@pytest.fixture(autouse=True)
async def nothing_is_left() -> Any:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- O-05: a plugin that is broken is isolated ---------------------------------------------------

BROKEN_FILES = {
    "raises ValueError": ("raise ValueError('token=hush')", "ValueError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "cancels": ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
    "misses a module": ("import not_installed_anywhere", "not_installed_anywhere"),
    "is no Python": ("def", "SyntaxError"),
    "has no plugin": ("Plug = 1", "AttributeError"),
    "has something else": ("Plugin = 1  # not a class Plugin", "not a class"),
    "has no settings": ("class Plugin: name, itdesk_api = 'bad', 1", "Settings"),
    "has another name": ("class Plugin: name, itdesk_api = 'other', 1", "'other', not 'bad'"),
    "speaks another api": ("class Plugin: name, itdesk_api = 'bad', 2", "itdesk_api is 2"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
async def test_a_file_that_cannot_be_loaded_breaks_only_its_own_plugin(rig: Rig, case: str) -> None:
    source, told = BROKEN_FILES[case]
    rig.write("bad", source)
    rig.drop("good")
    plugins = rig.load(bad={}, good={})
    await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == [("good", "ticket.created")]
    assert plugins.status()["bad"].state == "broken"
    assert plugins.status()["good"].state == "loaded"
    assert told in plugins.status()["bad"].reason
    assert "hush" not in plugins.status()["bad"].reason
    assert "itdesk_dropin_bad" not in sys.modules or "class Plugin" in source


BROKEN_CLASSES = {
    "raises when built": ("def __init__(self, settings): raise SystemExit", "SystemExit"),
    "has an unknown hook": ("@hookimpl\ndef itdesk_evnet(self): ...", "itdesk_evnet"),
    "takes an unknown argument": ("@hookimpl\ndef itdesk_event(self, tickets): ...", "tickets"),
    "forgets the marker": ("def itdesk_event(self, event): ...", "not marked"),
    "wraps": ("@hookimpl(wrapper=True)\ndef itdesk_event(self): yield", "wrappers"),
}


@pytest.mark.parametrize("case", BROKEN_CLASSES)
async def test_a_class_that_cannot_be_registered_breaks_only_its_own_plugin(
    rig: Rig, case: str
) -> None:
    body, told = BROKEN_CLASSES[case]
    rig.drop("bad", TELLS.replace("itdesk_event", "itdesk_health(self): ...\nasync def x") + body)
    rig.drop("good")
    plugins = rig.load(bad={}, good={})
    await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == [("good", "ticket.created")]
    assert plugins.status()["bad"].state == "broken"
    assert told in plugins.status()["bad"].reason


def test_a_required_plugin_that_is_broken_stops_the_start(rig: Rig) -> None:
    rig.write("bad", "import not_installed_anywhere")
    with pytest.raises(Unavailable, match=r"plugins\.bad is required: load: .*not_installed"):
        rig.load(bad={"required": True})


RAISES = ["ValueError('hush')", "SystemExit(1)", "KeyboardInterrupt", "asyncio.CancelledError"]


@pytest.mark.parametrize("exception", RAISES)
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_what_a_hook_raises_reaches_nobody(
    rig: Rig, kind: str, exception: str, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    body = f"@hookimpl\n{kind} itdesk_event(self, desk):\n    if desk.bad: raise {exception}"
    rig.drop("bad", body)
    rig.drop("good")
    plugins = rig.load(bad={}, good={})
    rig.desk.bad = True
    await plugins.event(rig.desk, EVENT)
    await plugins.event(rig.desk, EVENT)
    assert len(rig.desk.told) == 2
    status = plugins.status()["bad"]
    assert status.state == "loaded"
    assert status.reason.startswith("itdesk_event: ") and "hush" not in status.reason
    assert rig.count("bad", "itdesk_event", "error") == 2
    failed = [line for line in lines() if line["event"] == "plugin hook failed"]
    assert [line["plugin"] for line in failed] == ["bad", "bad"]
    assert ["exception" in line for line in failed] == [True, False]
    rig.desk.bad = False
    await plugins.event(rig.desk, EVENT)
    assert plugins.status()["bad"].reason == ""


async def test_a_hook_that_hangs_is_left_at_its_deadline(rig: Rig) -> None:
    rig.drop("slow", "@hookimpl\nasync def itdesk_event(self): await asyncio.Event().wait()")
    rig.drop("good")
    plugins = rig.load(slow={"timeout_seconds": 0.05}, good={})
    async with asyncio.timeout(1):
        await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == [("good", "ticket.created")]
    assert rig.count("slow", "itdesk_event", "timeout") == 1
    assert "no answer in 0.05 s" in plugins.status()["slow"].reason


async def test_a_hook_that_ignores_its_cancellation_is_abandoned(
    rig: Rig, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    rig.drop(
        "stubborn",
        """
        @hookimpl
        async def itdesk_event(self, desk):
            while not desk.enough.is_set():
                try:
                    await desk.enough.wait()
                except asyncio.CancelledError:
                    desk.told.append("cancelled")
        """,
    )
    plugins = rig.load(stubborn={"timeout_seconds": 0.02})
    rig.desk.enough = asyncio.Event()
    async with asyncio.timeout(3):
        await plugins.event(rig.desk, EVENT)
    assert rig.desk.told[0] == "cancelled"
    assert "plugin ignores its cancellation" in [line["event"] for line in lines()]
    rig.desk.enough.set()
    while len(asyncio.all_tasks()) > 1:
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})


async def test_a_cancelled_desk_is_cancelled_and_its_hooks_with_it(rig: Rig) -> None:
    rig.drop(
        "slow",
        """
        @hookimpl
        async def itdesk_event(self, desk):
            try:
                desk.told.append("in")
                await asyncio.Event().wait()
            finally:
                desk.told.append("out")
        """,
    )
    plugins = rig.load(slow={})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == ["in", "out"]


async def test_a_reactor_that_is_always_late_is_left_out_for_a_while(rig: Rig) -> None:
    body = """
        @hookimpl
        async def itdesk_event(self, desk):
            desk.told.append("asked")
            await asyncio.Event().wait()
        """
    rig.drop("slow", body)
    plugins = rig.load(slow={"timeout_seconds": 0.02})
    for _ in range(5):
        await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == ["asked"] * 3
    assert rig.count("slow", "itdesk_event", "skipped") == 2
    assert rig.value("itdesk_breaker_open", part="plugin.slow") == 1  # O-12
    async with asyncio.timeout(5):
        while len(rig.desk.told) == 3:
            await plugins.event(rig.desk, EVENT)
            await asyncio.to_thread(lambda: None)


@pytest.mark.parametrize(
    "body",
    [
        "@hookimpl\ndef itdesk_event(self): time.sleep(0.12)",
        "@hookimpl\nasync def itdesk_event(self): await asyncio.sleep(0); time.sleep(0.12)",
    ],
    ids=["def", "async def"],
)
async def test_who_blocks_the_event_loop_is_named(
    rig: Rig, body: str, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    rig.drop("rude", body)
    rig.drop("good", "@hookimpl\nasync def itdesk_event(self): await asyncio.sleep(0.15)")
    await rig.load(rude={}, good={}).event(rig.desk, EVENT)
    assert rig.value("itdesk_plugin_stalls_total", plugin="rude") == 1
    assert rig.value("itdesk_plugin_stalls_total", plugin="good") == 0
    blocked = [line for line in lines() if line["event"] == "plugin blocked the event loop"]
    assert [line["plugin"] for line in blocked] == ["rude"]


async def test_who_blocks_in_a_job_a_schedule_or_a_route_is_named_too(
    rig: Rig, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """O-05: whatever of a plugin runs on the loop; what it returns and raises is as ever."""
    rig.drop(
        "rude",
        """
        @hookimpl
        def itdesk_jobs(self, desk):
            from itdesk.hookspecs import JobType
            return [JobType(name="rude.push", handle=self.block)]

        @hookimpl
        def itdesk_schedule(self, desk):
            from itdesk.hookspecs import Schedule
            return [Schedule(name="rude.often", seconds=60, run=self.block)]

        @hookimpl
        def itdesk_routes(self):
            from itdesk.api.route import Route, Who
            return [Route(id="X1", method="GET", path="/rude", handler=self.block,
                          who=Who.PUBLIC, tag="x")]

        async def block(self, given):
            '''Blocks.'''
            time.sleep(0.12)
            await asyncio.sleep(0)
            if given is None:
                raise LookupError("nothing")
            return given
        """,
    )
    plugins = rig.load(rude={})
    (job,), (schedule,), (route,) = (
        (await plugins.jobs(rig.desk))["rude"],
        (await plugins.schedules(rig.desk))["rude"],
        (await plugins.routes())["rude"],
    )
    given: Any = object()
    assert await cast(Any, job.handle(given)) is given
    with pytest.raises(LookupError):
        await schedule.run(cast(Any, None))
    assert await cast(Any, route.handler(given)) is given and route.handler.__doc__ == "Blocks."
    blocked = [line for line in lines() if line["event"] == "plugin blocked the event loop"]
    # A busy machine may make others late as well.
    assert {"rude.push", "rude.often", "/rude"} <= {line["hook"] for line in blocked}
    assert rig.value("itdesk_plugin_stalls_total", plugin="rude") == len(blocked)


async def test_what_a_plugin_calls_secret_is_masked_in_its_lines(
    rig: Rig, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    """S-34: by its type, whatever the option is called."""
    secret = "__import__('pydantic').SecretStr"
    rig.drop(
        "leaky",
        """
        @hookimpl
        def itdesk_event(self):
            import logging
            logging.getLogger("plugin.leaky").warning(self.settings.hook.get_secret_value())
        """,
        settings=f"hook: {secret}",
    )
    await rig.load(leaky={"hook": "https://chat/hooks/abc123def"}).event(rig.desk, EVENT)
    assert [line["event"] for line in lines()] == ["***"]


# --- what is called, how, and in which order -----------------------------------------------------


async def test_hooks_take_the_arguments_that_they_want_and_may_be_of_either_kind(rig: Rig) -> None:
    rig.drop("one", "@hookimpl\ndef itdesk_event(self, event, desk): desk.told.append(event.type)")
    rig.drop("two", "@hookimpl\nasync def itdesk_event(self, desk): desk.told.append('two')")
    rig.drop("three", "@hookimpl\nasync def itdesk_event(self): ...")
    plugins = rig.load(one={}, two={}, three={})
    await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == ["ticket.created", "two"]
    assert rig.count("three", "itdesk_event", "ok") == 1


async def test_plugins_come_in_the_order_of_the_configuration(rig: Rig) -> None:
    for name in "abcd":
        first = "(tryfirst=True)" if name == "d" else ""
        rig.drop(
            name, f"@hookimpl{first}\ndef itdesk_event(self, desk): desk.told.append('{name}')"
        )
    await rig.load(c={}, a={}, b={}, d={}).event(rig.desk, EVENT)
    assert rig.desk.told == ["d", "c", "a", "b"]


STORAGE = """
@hookimpl
async def itdesk_storage(self, desk):
    from itdesk_plugins.filesystem import Filesystem, FilesystemSettings
    storage = Filesystem(desk.directory, FilesystemSettings())
    storage.close()
    return storage
"""
ENGINE = """
max_file_size, unpacks = None, False
async def scan(self, path, *, size, timeout): ...
async def probe(self): return []
async def signatures(self): return "none"
@hookimpl
def itdesk_scan_engine(self): return self
"""


async def test_storages_and_engines_are_given_by_plugin(rig: Rig) -> None:
    rig.drop("disk", STORAGE)
    rig.drop("none", "@hookimpl\ndef itdesk_storage(self): return None")
    rig.drop("scan", ENGINE)
    plugins = rig.load(none={}, disk={}, scan={})
    rig.desk.directory = rig.directory
    assert [*await plugins.storages(rig.desk)] == ["disk"]
    assert [*await plugins.scan_engines(rig.desk)] == ["scan"]


ROUTE = """
@hookimpl
def itdesk_routes(self):
    from itdesk.api.route import Route, Who
    async def handler(call): ...
    return [Route(id="X1", method="GET", path={path!r}, handler=handler, who=Who.PUBLIC, tag="x")]
"""


MAILER = """
async def deliver(self, mail): ...
async def check(self): ...
@hookimpl
def itdesk_mailer(self, desk): return self
"""


async def test_what_sends_mail_is_given_by_plugin(rig: Rig) -> None:
    rig.drop("post", MAILER)
    rig.drop("none", "@hookimpl\ndef itdesk_mailer(self): return None")
    assert [*await rig.load(none={}, post={}).mailers(rig.desk)] == ["post"]


MODEL = """
embedding = None
async def generate(self, prompt, *, schema): ...
def stream(self, prompt, *, schema): ...
async def embed(self, texts): ...
async def check(self): ...
@hookimpl
def itdesk_model(self, desk): return self
"""


async def test_a_language_model_is_given_by_plugin(rig: Rig) -> None:
    rig.drop("parrot", MODEL)
    rig.drop("none", "@hookimpl\ndef itdesk_model(self): return None")
    rig.drop("half", "@hookimpl\ndef itdesk_model(self): return object()")
    plugins = rig.load(none={}, parrot={}, half={})
    assert [*await plugins.models(rig.desk)] == ["parrot"]
    assert "lacks check, embed, embedding, generate" in plugins.status()["half"].reason


TRACKER = """
connected, secret = True, b""
async def receive(self, body, headers, *, digest, request_id): ...
async def reconcile(self, *, since, project_key): ...
@hookimpl
def itdesk_tracker(self, desk): return self
"""


async def test_what_is_mirrored_is_given_by_plugin(rig: Rig) -> None:
    rig.drop("issues", TRACKER)
    rig.drop("none", "@hookimpl\ndef itdesk_tracker(self): return None")
    rig.drop("half", "@hookimpl\ndef itdesk_tracker(self): return object()")
    plugins = rig.load(none={}, issues={}, half={})
    assert [*await plugins.trackers(rig.desk)] == ["issues"]
    assert "lacks" in plugins.status()["half"].reason


PROVIDER = """
label, redirect_uri, creates_accounts = "Elsewhere", None, None
async def begin(self, attempt): ...
async def finish(self, attempt, answer): ...
async def check(self): ...
@hookimpl
def itdesk_identity(self, desk): return self
"""


async def test_who_else_knows_people_is_given_by_plugin(rig: Rig) -> None:
    rig.drop("elsewhere", PROVIDER)
    rig.drop("none", "@hookimpl\ndef itdesk_identity(self): return None")
    found = await rig.load(none={}, elsewhere={}).identity_providers(rig.desk)
    assert [*found] == ["elsewhere"]


KNOWS = """
@hookimpl
async def itdesk_knowledge(self, desk, caller, query):
    from itdesk.hookspecs import Passage
    told = {{"source": "{name}", "title": caller.name, "text": query}}
    return [Passage(score=score, **told) for score in {scores}]
"""


async def test_what_plugins_know_is_told_without_the_failing(rig: Rig) -> None:
    rig.drop("wiki", KNOWS.format(name="wiki", scores=[0.9, 0.3]))
    rig.drop("issues", KNOWS.format(name="issues", scores=[0.5]))
    rig.drop("silent", "@hookimpl\ndef itdesk_knowledge(self, query): return None")
    rig.drop("rude", "@hookimpl\ndef itdesk_knowledge(self): raise ValueError")
    rig.drop("wrong", "@hookimpl\ndef itdesk_knowledge(self): return ['vpn']")
    plugins = rig.load(wiki={}, issues={}, silent={}, rude={}, wrong={})
    found = await plugins.knowledge(rig.desk, SYSTEM, "vpn")
    assert {(one.source, one.score) for one in found} == {
        ("wiki", 0.9), ("issues", 0.5), ("wiki", 0.3),
    }  # fmt: skip
    assert {(one.title, one.text, one.url) for one in found} == {("itdesk", "vpn", None)}
    assert "Passages" in plugins.status()["wrong"].reason
    assert plugins.status()["rude"].reason


async def test_routes_cannot_leave_the_plugins_own_path(rig: Rig) -> None:
    rig.drop("good", ROUTE.format(path="/hello/{id}"))
    rig.drop("bad", ROUTE.format(path="hello"))
    rig.drop("ugly", ROUTE.format(path="/a/../../tickets"))
    rig.drop("none", "@hookimpl\ndef itdesk_routes(self): return [type(self)]")
    plugins = rig.load(good={}, bad={}, ugly={}, none={})
    routes = await plugins.routes()
    assert [*routes] == ["good"]
    assert routes["good"][0].path == "/hello/{id}"
    assert {plugins.status()[name].state for name in ("bad", "ugly", "none")} == {"broken"}


UNREADABLE = """
@hookimpl
def itdesk_routes(self):
    from itdesk.api.route import Body, Query, Route, Who
    class Strange: ...
    class Asked({of}):
        one: Strange
    async def handler(call): ...
    return [Route(id="X1", method="POST", path="/x", handler=handler, who=Who.PUBLIC, tag="x",
                  {what}=Asked)]
"""


@pytest.mark.parametrize(("of", "what"), [("Body", "body"), ("Query", "query")])
async def test_a_route_whose_model_cannot_be_built_is_found_at_the_start(
    rig: Rig, of: str, what: str
) -> None:
    """Not by whoever asks first, and not by who wants to read /openapi.json."""
    rig.drop("bad", UNREADABLE.format(of=of, what=what))
    plugins = rig.load(bad={})
    assert not await plugins.routes()
    assert plugins.status()["bad"].state == "broken"


WORK = """
@hookimpl
async def itdesk_jobs(self, desk):
    from itdesk.hookspecs import JobType
    return [JobType(name=name, handle=self.do) for name in {names!r}]

@hookimpl
def itdesk_schedule(self, desk):
    from itdesk.hookspecs import Schedule
    return [Schedule(name=name, seconds=60, run=self.do) for name in {names!r}]

async def do(self, job): pass
"""


@pytest.mark.parametrize("method", ["jobs", "schedules"])
async def test_work_bears_the_name_of_its_plugin(rig: Rig, method: str) -> None:
    rig.drop("good", WORK.format(names=["good.push", "good.pull"]))
    wrong = (["good.push"], ["push"], ["bad.push", "bad.push"], ["bad.Push"], ["cleanup"])
    for number, names in enumerate(wrong):
        own = [name.replace("bad", f"bad{number}") for name in names]
        rig.drop(f"bad{number}", WORK.format(names=own))
    plugins = rig.load(good={}, **{f"bad{number}": {} for number in range(len(wrong))})
    found = await getattr(plugins, method)(rig.desk)
    assert [*found] == ["good"]
    assert [one.name for one in found["good"]] == ["good.push", "good.pull"]
    states = {status.state for name, status in plugins.status().items() if name != "good"}
    assert states == {"broken"}


async def test_plugins_make_metrics_and_commands(rig: Rig) -> None:
    rig.drop(
        "counts",
        """
        @hookimpl
        def itdesk_metrics(self, metrics):
            metrics.counter("itdesk_counts_things_total", "Things.").inc(3)

        @hookimpl
        def itdesk_cli(self):
            import click
            return (click.Command("count"),)
        """,
    )
    plugins = rig.load(counts={})
    await plugins.metrics(rig.metrics)
    assert rig.value("itdesk_counts_things_total") == 3
    assert [c.name for c in (await plugins.commands())["counts"]] == ["count"]


WRONG = {
    "itdesk_storage": ("return 'disk'", "storages", True),
    "itdesk_scan_engine": ("return object()", "scan_engines", True),
    "itdesk_model": ("return object()", "models", True),
    "itdesk_mailer": ("return object()", "mailers", True),
    "itdesk_identity": ("return object()", "identity_providers", True),
    "itdesk_routes": ("return [1]", "routes", False),
    "itdesk_jobs": ("return [1]", "jobs", True),
    "itdesk_schedule": ("return 'daily'", "schedules", True),
    "itdesk_cli": ("return 'count'", "commands", False),
    "itdesk_metrics": ("raise ValueError", "metrics", True),
}


@pytest.mark.parametrize("hook", WRONG)
async def test_a_plugin_that_fails_at_the_start_is_out(rig: Rig, hook: str) -> None:
    statement, method, takes = WRONG[hook]
    rig.drop("bad", f"@hookimpl\ndef {hook}(self): {statement}\n{TELLS}")
    plugins = rig.load(bad={})
    given = [rig.metrics if method == "metrics" else rig.desk] if takes else []
    assert not await getattr(plugins, method)(*given)
    assert plugins.status()["bad"].state == "broken"
    assert hook in plugins.status()["bad"].reason
    await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == []
    required = rig.load(bad={"required": True})
    with pytest.raises(Unavailable, match=f"bad is required: {hook}"):
        await getattr(required, method)(*given)


async def test_health_tells_the_broken_the_failing_and_the_unwell(rig: Rig) -> None:
    rig.write("broken", "import not_installed_anywhere")
    rig.drop("unwell", "@hookimpl\nasync def itdesk_health(self): return Health(False, 'a cold')")
    rig.drop("well", "@hookimpl\ndef itdesk_health(self): return Health(True)")
    rig.drop("quiet")
    rig.drop("wrong", "@hookimpl\ndef itdesk_health(self): return 'fine'")
    rig.drop("hangs", "@hookimpl\nasync def itdesk_health(self): await asyncio.Event().wait()")
    rig.drop("off")
    names = {name: dict[str, Any]() for name in ("broken", "unwell", "well", "quiet", "wrong")}
    plugins = rig.load(**names, hangs={}, off={"enabled": False})
    health = await plugins.health()
    assert "not_installed_anywhere" in health.pop("broken").reason
    assert "returned str, not Health: it lacks ok, reason" in health.pop("wrong").reason
    assert health.pop("hangs") == Health(False, "itdesk_health: no answer in 1 s")
    good = Health(True)
    assert health == {"unwell": Health(False, "a cold"), "well": good, "quiet": good}


async def test_other_settings_are_checked_first_and_handed_to_whoever_takes_them(rig: Rig) -> None:
    """S2-65: one that cannot take them keeps those that it has, and the others get theirs."""
    takes = "@hookimpl\nasync def itdesk_reload(self, settings): self.settings = settings"
    heard = "@hookimpl\ndef itdesk_health(self): return Health(False, self.settings.word)"
    word = "word: str = 'old'"
    rig.drop("takes", f"{takes}\n{heard}", settings=word)
    refuses = "@hookimpl\nasync def itdesk_reload(self, settings): raise ValueError"
    rig.drop("fails", refuses, settings=word)
    rig.drop("keeps", heard, settings=word)
    plugins = rig.load(takes={}, fails={}, keeps={})
    with pytest.raises(ConfigError, match=r"plugins\.takes\.wrod: unknown option"):
        plugins.checked({"takes": {"wrod": "new"}})
    new = plugins.checked({"fails": {"word": "new"}, "keeps": {"word": "new"}, "off": None})
    assert list(new) == ["fails"]
    new |= plugins.checked({"takes": {"word": "new", "required": True}})
    assert await plugins.reload(new) == ["takes"]
    health = {name: found.reason for name, found in (await plugins.health()).items()}
    assert (health["takes"], health["keeps"]) == ("new", "old")
    assert "ValueError" in health["fails"]
    assert await plugins.reload({}) == []


# --- auditors ------------------------------------------------------------------------------------

OBJECTS = "@hookimpl\ndef itdesk_validate_ticket(self, after): return [after.title + '?']"
BAD_AUDITORS = {
    "raises": "raise ValueError",
    "exits": "raise SystemExit",
    "hangs": "await asyncio.Event().wait()",
    "says a word": "return 'no'",
    "says a number": "return [1]",
}


async def test_all_auditors_are_heard(rig: Rig) -> None:
    rig.drop("one", OBJECTS)
    rig.drop(
        "two", "@hookimpl\nasync def itdesk_validate_ticket(self, caller): return [caller.name]"
    )
    rig.drop("content", "@hookimpl\ndef itdesk_validate_ticket(self, before): return None")
    plugins = rig.load(one={}, two={}, content={})
    assert await plugins.validate_ticket(SYSTEM, None, TICKET) == ["Printer?", "itdesk"]


@pytest.mark.parametrize("case", BAD_AUDITORS)
async def test_an_auditor_that_fails_is_passed_over_unless_it_is_required(
    rig: Rig, case: str, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    head = "@hookimpl\nasync def itdesk_validate_ticket(self): "
    rig.drop("bad", head + BAD_AUDITORS[case])
    rig.drop("good", OBJECTS)
    plugins = rig.load(bad={"timeout_seconds": 0.05}, good={})
    assert await plugins.validate_ticket(SYSTEM, None, TICKET) == ["Printer?"]
    assert ("plugin hook failed", "bad") in [(x["event"], x.get("plugin")) for x in lines()]
    plugins = rig.load(bad={"timeout_seconds": 0.05, "required": True}, good={})
    with pytest.raises(Unavailable) as caught:
        await plugins.validate_ticket(SYSTEM, None, TICKET)
    assert caught.value.code == "E_PLUGIN_UNAVAILABLE"


async def test_a_required_auditor_that_broke_meanwhile_lets_nothing_through(rig: Rig) -> None:
    rig.drop(
        "judge",
        """
        @hookimpl
        def itdesk_validate_ticket(self): return []

        @hookimpl
        @asynccontextmanager
        async def itdesk_lifespan(self, desk):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(desk.die())
                yield
        """,
    )
    doom = asyncio.Event()

    async def die() -> None:
        await doom.wait()
        raise ValueError

    rig.desk.die = die
    plugins = rig.load(judge={"required": True})
    async with plugins.lifespan(rig.desk):
        assert await plugins.validate_ticket(SYSTEM, None, TICKET) == []
        doom.set()
        async with asyncio.timeout(2):
            while plugins.status()["judge"].state == "loaded":
                await asyncio.to_thread(lambda: None)
        with pytest.raises(Unavailable):
            await plugins.validate_ticket(SYSTEM, None, TICKET)


# --- lifespan ------------------------------------------------------------------------------------

STAYS = """
@hookimpl
@asynccontextmanager
async def itdesk_lifespan(self, desk):
    desk.told.append(f"{self.name} in")
    yield
    desk.told.append(f"{self.name} out")
"""


def stays(before: str = "pass", after: str = "pass") -> str:
    body = STAYS.replace("    yield\n", f"    {before}\n    yield\n    {after}\n")
    return body.replace('    desk.told.append(f"{self.name} in")\n', "") + TELLS


async def test_plugins_are_left_in_the_reverse_order_of_entering(rig: Rig) -> None:
    for name in "abc":
        rig.drop(name, STAYS)
    async with rig.load(b={}, a={}, c={}).lifespan(rig.desk):
        assert rig.desk.told == ["b in", "a in", "c in"]
        rig.desk.told.clear()
    assert rig.desk.told == ["c out", "a out", "b out"]


BAD_ENTRIES = {
    "raises": stays("raise ValueError"),
    "exits": stays("sys.exit(1)"),
    "hangs": stays("await asyncio.Event().wait()"),
    "yields never": stays("return"),
    "is no context": "@hookimpl\ndef itdesk_lifespan(self): return 1" + TELLS,
    "is a generator": "@hookimpl\nasync def itdesk_lifespan(self): yield" + TELLS,
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
async def test_a_plugin_that_cannot_be_entered_is_out(rig: Rig, case: str) -> None:
    rig.drop("bad", BAD_ENTRIES[case])
    rig.drop("first", STAYS)
    rig.drop("last", STAYS)
    sections = {"first": {}, "bad": {"timeout_seconds": 0.05}, "last": dict[str, Any]()}
    plugins = rig.load(**sections)
    async with plugins.lifespan(rig.desk):
        await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == ["first in", "last in", "last out", "first out"]
    assert plugins.status()["bad"].state == "broken"
    assert plugins.status()["bad"].reason.startswith("itdesk_lifespan: ")
    rig.desk.told.clear()
    sections["bad"]["required"] = True
    with pytest.raises(Unavailable, match="bad is required"):
        async with rig.load(**sections).lifespan(rig.desk):
            pytest.fail("entered")
    assert rig.desk.told == ["first in", "first out"]


@pytest.mark.parametrize(
    "after", ["raise ValueError", "sys.exit(1)", "await asyncio.Event().wait()"]
)
async def test_a_plugin_that_cannot_be_left_does_not_hold_the_others(
    rig: Rig, after: str, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    rig.drop("bad", stays(after=after))
    rig.drop("first", STAYS)
    plugins = rig.load(first={}, bad={"timeout_seconds": 0.05})
    async with asyncio.timeout(3), plugins.lifespan(rig.desk):
        pass
    assert rig.desk.told == ["first in", "first out"]
    assert ("plugin hook failed", "bad") in [(x["event"], x.get("plugin")) for x in lines()]


async def test_a_plugin_that_enters_when_nobody_waits_any_more_leaves_at_once(rig: Rig) -> None:
    rig.drop(
        "stubborn",
        """
        @hookimpl
        @asynccontextmanager
        async def itdesk_lifespan(self, desk):
            while not desk.gate.is_set():
                try:
                    await desk.gate.wait()
                except asyncio.CancelledError:
                    desk.told.append("no")
            yield
            desk.told.append("out")
        """,
    )
    rig.desk.gate = asyncio.Event()
    plugins = rig.load(stubborn={"timeout_seconds": 0.02})
    async with plugins.lifespan(rig.desk):
        assert plugins.status()["stubborn"].state == "broken"
        rig.desk.gate.set()
        async with asyncio.timeout(2):
            while "out" not in rig.desk.told:
                await asyncio.to_thread(lambda: None)


async def test_a_failing_desk_still_leaves_its_plugins(rig: Rig) -> None:
    rig.drop("one", STAYS)
    with pytest.raises(LookupError):
        async with rig.load(one={}).lifespan(rig.desk):
            raise LookupError
    assert rig.desk.told == ["one in", "one out"]


async def test_a_desk_that_is_stopped_while_leaving_waits_no_longer(rig: Rig) -> None:
    rig.drop("one", stays(after="await asyncio.Event().wait()"))
    rig.drop("two", stays(after="await asyncio.Event().wait()"))
    plugins = rig.load(one={}, two={})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), plugins.lifespan(rig.desk):
            pass
    while len(asyncio.all_tasks()) > 1:
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})


async def test_a_task_group_that_fails_in_a_plugin_does_not_cancel_the_desk(rig: Rig) -> None:
    rig.drop(
        "bad",
        """
        @hookimpl
        @asynccontextmanager
        async def itdesk_lifespan(self, desk):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.die())
                yield

        async def die(self):
            await asyncio.sleep(0)
            raise SystemError
        """
        + indent(TELLS, "        "),
    )
    plugins = rig.load(bad={})
    async with plugins.lifespan(rig.desk):
        async with asyncio.timeout(2):
            while plugins.status()["bad"].state == "loaded":
                await asyncio.to_thread(lambda: None)
        await plugins.event(rig.desk, EVENT)
    assert rig.desk.told == []
    assert "ExceptionGroup" in plugins.status()["bad"].reason


# --- configuration -------------------------------------------------------------------------------


def test_all_problems_of_all_sections_are_told_at_once(rig: Rig) -> None:
    rig.drop("one", settings="host: str\nport: int = 25")
    rig.drop("two", settings="class Inner(BaseModel):\n    deep: int = 1\ninner: Inner = Inner()")
    rig.drop("three")
    with pytest.raises(ConfigError) as caught:
        rig.load(
            one={"port": "no", "hots": "x"},
            two={"inner": {"depe": 2}},
            three={"required": "perhaps", "timeout_seconds": 0},
            four={},
        )
    told = {str(p["option"]): p["problem"] for p in caught.value.details["problems"]}
    assert told.pop("plugins.one.host") == "Field required"
    assert told.pop("plugins.one.hots") == told.pop("plugins.two.inner.depe") == "unknown option"
    assert "integer" in told.pop("plugins.one.port")
    assert "greater than 0" in told.pop("plugins.three.timeout_seconds")
    assert "boolean" in told.pop("plugins.three.required")
    assert told.pop("plugins.four").startswith("no such plugin; there are ")
    assert told == {}
    assert "plugins.one.host: Field required" in caught.value.message


def test_settings_may_have_other_names_and_may_take_everything(rig: Rig) -> None:
    rig.drop("alias", settings="sender: str = __import__('pydantic').Field(alias='from')")
    rig.drop("any", settings="model_config = ConfigDict(extra='allow')")
    plugins = rig.load(alias={"from": "a@b"}, any={"what": "ever"})
    assert {status.state for status in plugins.status().values()} == {"loaded"}


def test_a_settings_error_elsewhere_is_no_configuration_error(rig: Rig) -> None:
    rig.drop("bad", "def __init__(self, settings): Settings(x=Settings.model_validate(1))")
    assert rig.load(bad={}).status()["bad"].state == "broken"


def test_a_plugin_that_is_switched_off_is_not_imported(rig: Rig) -> None:
    rig.write("off", "raise SystemExit")
    status = rig.load(off={"enabled": False}, absent={"enabled": False}).status()
    assert status["off"].state == status["absent"].state == "disabled"


def test_a_plugin_without_a_section_is_not_imported(rig: Rig) -> None:
    rig.write("stray", f"open({str(rig.directory / 'ran')!r}, 'w').close()")
    assert rig.load().status() == {}
    assert not (rig.directory / "ran").exists()


# --- where plugins come from ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(rig: Rig, mode: int) -> None:
    rig.drop("open").chmod(mode)
    status = rig.load(open={}).status()["open"]
    assert status.state == "broken" and "can be written by others" in status.reason


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_directory_that_others_may_write_is_refused(rig: Rig, mode: int) -> None:
    rig.write("open", f"open({str(rig.directory / 'ran')!r}, 'w').close()")
    rig.directory.chmod(mode)
    status = rig.load(open={}).status()["open"]
    assert status.state == "broken" and "can be written by others" in status.reason
    assert not (rig.directory / "ran").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_belongs_to_somebody_else_is_refused(rig: Rig, what: str) -> None:
    path = rig.drop("foreign")
    os.chown(path if what == "file" else rig.directory, 12345, -1)
    assert "belongs to user 12345" in rig.load(foreign={}).status()["foreign"].reason


def test_a_link_is_as_good_as_what_it_leads_to(rig: Rig, tmp_path: Path) -> None:
    real = rig.drop("linked")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    real.rename(elsewhere / "real.py")
    real.symlink_to(elsewhere / "real.py")
    assert rig.load(linked={}).status()["linked"].state == "loaded"
    elsewhere.chmod(0o777)
    assert rig.load(linked={}).status()["linked"].state == "broken"


def test_an_untrusted_file_cannot_stand_in_the_way_of_a_good_one(rig: Rig, tmp_path: Path) -> None:
    rig.drop("twice")
    other = tmp_path / "other"
    other.mkdir()
    copy = other / "twice.py"
    copy.write_bytes((rig.directory / "twice.py").read_bytes())
    directories = [other, rig.directory]
    with pytest.raises(ConfigError, match=r"plugins\.twice: two have this name: the file .* and"):
        Plugins.load({"twice": {}}, directories=directories, metrics=rig.metrics)
    copy.chmod(0o666)
    loaded = Plugins.load({"twice": {}}, directories=directories, metrics=rig.metrics)
    assert loaded.status()["twice"].state == "loaded"


def test_no_bytecode_is_written_or_believed(rig: Rig) -> None:
    rig.drop("plain")
    rig.load(plain={})
    assert [path.name for path in rig.directory.iterdir()] == ["plain.py"]


def test_a_directory_that_does_not_exist_has_no_plugins(rig: Rig, tmp_path: Path) -> None:
    loaded = Plugins.load({}, directories=[tmp_path / "nowhere"], metrics=rig.metrics)
    assert loaded.status() == {}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on sys.path with a real distribution that has plugins."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    return site


def distribute(site: Path, name: str, points: str) -> None:
    metadata = site / f"{name}-2.5.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.5\n")
    (metadata / "entry_points.txt").write_text(points)


async def test_entry_points_name_a_module_or_a_class(rig: Rig, site: Path) -> None:
    rig.drop("one").rename(site / "acme_one.py")
    rig.drop("two").rename(site / "acme_two.py")
    rig.drop("three").rename(site / "acme_three.py")
    (site / "acme_three.py").write_text("raise KeyboardInterrupt")
    points = "[itdesk]\none = acme_one\ntwo = acme_two:Plugin\nthree = acme_three\nno = acme_no\n"
    distribute(site, "acme", points)
    plugins = rig.load(one={}, two={}, three={}, no={})
    status = plugins.status()
    assert {name: status[name].state for name in status} == {
        "one": "loaded", "two": "loaded", "three": "broken", "no": "broken",
    }  # fmt: skip
    assert status["one"].version == "2.5"
    await plugins.event(rig.desk, EVENT)
    assert [name for name, _ in rig.desk.told] == ["one", "two"]


def test_a_broken_distribution_hides_no_other(rig: Rig, site: Path) -> None:
    rig.drop("one").rename(site / "acme_one.py")
    distribute(site, "aaa", "[itdesk]\nthis is no entry point\n")
    (site / "aaa-2.5.dist-info" / "entry_points.txt").write_bytes(b"[itdesk]\n\xff\xfe = x\n")
    distribute(site, "acme", "[itdesk]\none = acme_one\n")
    assert rig.load(one={}).status()["one"].state == "loaded"


# --- the contract is whole -----------------------------------------------------------------------

HOOKS = [name for name in vars(hookspecs) if name.startswith("itdesk_")]


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_is_described_called_and_tested(hook: str) -> None:
    assert inspect.getdoc(getattr(hookspecs, hook))
    source = ast.parse(inspect.getsource(plugins_module))
    [core] = [n for n in source.body if isinstance(n, ast.ClassDef) and n.name == "Plugins"]
    called = {
        call.args[0].value
        for call in ast.walk(core)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("_call", "_start", "implementations")
        and isinstance(call.args[0], ast.Constant)
    }
    assert hook in called
    assert f"def {hook}(" in Path(__file__).read_text()


def test_pluggy_never_calls_a_hook_itself() -> None:
    assert "hook.itdesk_" not in inspect.getsource(plugins_module)


# --- one that comes later ------------------------------------------------------------------------


async def test_a_plugin_that_comes_later_stands_where_the_configuration_names_it(rig: Rig) -> None:
    """And until it is let in, nobody but the start calls it."""
    for name in "abc":
        rig.drop(name, TELLS + STAYS)
    plugins = rig.load(c={}, a={}, b={})
    async with plugins.lifespan(rig.desk):
        await plugins.stop("a", why="off")
        assert plugins.status()["a"].state == "off"
        rig.desk.told.clear()
        await plugins.event(rig.desk, EVENT)
        assert [name for name, _ in rig.desk.told] == ["c", "b"]
        assert await plugins.start(rig.desk, "a") is not None
        assert rig.desk.told[2:] == ["a in"]
        rig.desk.told.clear()
        await plugins.event(rig.desk, EVENT)
        assert [name for name, _ in rig.desk.told] == ["c", "b"]
        plugins.admit("a")
        rig.desk.told.clear()
        await plugins.event(rig.desk, EVENT)
        assert [name for name, _ in rig.desk.told] == ["c", "a", "b"]
        rig.desk.told.clear()
    # Left in the reverse order of entering: who came last may stand on who was there.
    assert rig.desk.told == ["a out", "b out", "c out"]
