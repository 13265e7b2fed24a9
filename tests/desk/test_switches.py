"""Plugins that come and go while the desk works: what of them is in effect, and when it is not."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from itdesk.actors.scheduler import Scheduler
from itdesk.actors.switcher import Switcher
from itdesk.actors.worker import Worker
from itdesk.daemon import table
from itdesk.errors import Conflict, Forbidden, NotFound, Unavailable
from itdesk.hookspecs import RetryLater
from itdesk.model import SYSTEM, Caller, Role
from itdesk.runtime.actor import TICK
from tests.support.desk import Bench, bench_on

BUSY = '''
import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from pydantic import BaseModel
from itdesk.api.route import Reply, Route, Who
from itdesk.hookspecs import Health, JobType, Schedule, hookimpl

REPLY = "first"

class Settings(BaseModel):
    greeting: str = "hello"
    then: str = ""

class Plugin:
    name, itdesk_api, Settings = "busy", 1, Settings
    label, redirect_uri, creates_accounts = "Busy", None, None
    connected, secret = True, b""
    embedding = None

    def __init__(self, settings):
        self.settings = settings
        self.seen, self.done, self.tenancy = [], [], []
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def begin(self, attempt): ...
    async def finish(self, attempt, answer): ...
    async def check(self): ...
    async def deliver(self, mail): ...
    async def generate(self, prompt, *, schema): ...
    def stream(self, prompt, *, schema): ...
    async def embed(self, texts): ...
    async def receive(self, body, headers, *, digest, request_id): ...
    async def reconcile(self, *, since, project_key): ...

    @hookimpl
    @asynccontextmanager
    async def itdesk_lifespan(self, desk):
        LIFESPAN
        self.tenancy.append("in")
        yield
        LEAVING
        self.tenancy.append("out")

    @hookimpl
    def itdesk_metrics(self, metrics):
        self.count = metrics.counter("itdesk_busy_things_total", "Things.")
        self.count.inc(3)

    @hookimpl
    def itdesk_identity(self, desk): return self

    @hookimpl
    def itdesk_tracker(self, desk): return self

    @hookimpl
    def itdesk_mailer(self, desk): return self

    @hookimpl
    def itdesk_model(self, desk): return self

    @hookimpl
    def itdesk_jobs(self, desk):
        return [JobType(name="busy.push", handle=self.push, on_events=("ticket.created",))]

    @hookimpl
    def itdesk_schedule(self, desk):
        return [Schedule(name="busy.often", seconds=1, run=self.push)]

    @hookimpl
    def itdesk_routes(self):
        async def hello(call):
            """Greet."""
            return Reply(REPLY)
        return [Route(id="B1", method="GET", path="/hello", handler=hello, who=Who.PUBLIC,
                      tag="busy")]

    @hookimpl
    def itdesk_validate_ticket(self, after):
        return ["Not that."] if after.title == "bad" else []

    @hookimpl
    def itdesk_reload(self, settings): self.settings = settings

    @hookimpl
    async def itdesk_event(self, event): self.seen.append(event.type)

    async def push(self, job):
        self.begun.set()
        if self.settings.then == "wait":
            await self.go.wait()
        self.done.append(job.type)
'''
WHAT = {
    "crashes": "raise SystemExit(3)",
    "hangs": "await asyncio.Event().wait()",
    "yields never": "return",
}


class Rig:
    """A desk with a drop-in plugin that has everything that can come and go."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.directory = directory
        self.directory.mkdir(mode=0o755)
        self.write()

    def write(self, source: str = BUSY, *, entering: str = "pass", leaving: str = "pass") -> None:
        """Put the plugin where the desk finds it."""
        path = self.directory / "busy.py"
        path.write_text(source.replace("LIFESPAN", entering).replace("LEAVING", leaving))
        path.chmod(0o644)

    @asynccontextmanager
    async def desk(self, **env: str) -> AsyncIterator["Here"]:
        """Lend a desk that has it."""
        env = {
            "ITDESK_PLUGIN_HOST__DIRECTORIES": f'["{self.directory}"]',
            "ITDESK_PLUGINS__BUSY__TIMEOUT_SECONDS": "0.3",
            "ITDESK_PLUGINS__BUSY__THEN": "",
            "ITDESK_MAIL__PLUGIN": "busy",
            "ITDESK_AI__PLUGIN": "busy",
            **env,
        }
        async with bench_on(self.url, **env) as bench:
            await bench.desk.plugins.routes()
            yield Here(bench)


class Here:
    """That desk, and whether the plugin is in it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.desk = bench.desk
        self.boss = Caller(None, "Ada", Role.ADMIN)

    @property
    def plugin(self) -> Any:
        return self.desk.plugins.instance("busy")

    async def turn(self, enabled: bool) -> Any:
        return await self.desk.switchboard.turn(self.boss, "busy", enabled=enabled)

    async def work(self) -> int:
        """Do what is due, and return how many jobs that was."""
        await self.desk.schedules.start_due()
        held = await self.desk.jobs.claim({})
        for one in held:
            await self.desk.jobs.run(one)
        return len([one for one in held if one.type.startswith("busy.")])

    async def waiting(self) -> list[tuple[str, str, int]]:
        query = "SELECT type, state, attempts FROM jobs WHERE type LIKE 'busy.%' ORDER BY position"
        async with self.desk.db.connection() as conn:
            return [tuple(row) for row in await conn.fetch(query)]

    def parts(self) -> set[str]:
        """Return what of the plugin is in effect."""
        desk, served = self.desk, {route.path for route in table(self.desk)}
        there = {
            "job": desk.jobs.has("busy.push"),
            "schedule": desk.schedules.shortest == 1,
            "provider": "busy" in desk.identities.providers,
            "tracker": "busy" in desk.trackers,
            "mailer": desk.mail.mailer is not None,
            "model": desk.assist.model is not None,
            "route": "/plugins/busy/hello" in served,
            "metric": self.bench.metric("itdesk_busy_things_total") == 3,
            "hooks": bool(desk.plugins.hooks("busy")),
        }
        return {name for name, is_there in there.items() if is_there}


BAD: Any = SimpleNamespace(title="bad")
ALL = {"job", "schedule", "provider", "tracker", "mailer", "model", "route", "metric", "hooks"}


@pytest.fixture
def rig(database_url: str, tmp_path: Path) -> Rig:
    tmp_path.chmod(0o755)
    return Rig(database_url, tmp_path / "plugins.d")


async def test_all_that_a_plugin_adds_goes_and_comes_without_a_restart(rig: Rig) -> None:
    """O-05: hooks, work, routes, sign-in, mail and metrics; who did it is in the journal."""
    async with rig.desk() as here:
        desk, first = here.desk, here.plugin
        assert here.parts() == ALL
        await desk.plugins.reload(desk.plugins.checked({"busy": {"greeting": "taken"}}))
        off = await here.turn(False)
        assert (off.state, off.enabled, off.settled) == ("off", False, True)
        assert off.reason.startswith("switched off ") and "itdesk plugins enable busy" in off.reason
        assert here.parts() == set() and first.tenancy == ["in", "out"]
        health = (await desk.plugins.health())["busy"]
        assert not health.ok and health.reason == off.reason
        await here.bench.ticket(await here.bench.person())
        assert await desk.plugins.validate_ticket(SYSTEM, None, BAD) == []
        assert first.seen == [] and await here.waiting() == []

        rig.write(BUSY.replace('"first"', '"second"'))  # a drop-in is read again
        on = await here.turn(True)
        assert (on.state, on.reason, on.enabled) == ("loaded", "", True)
        assert here.parts() == ALL and here.plugin is not first
        assert here.plugin.settings.greeting == "taken"
        (route,) = [one for one in table(desk) if one.id == "B1"]
        answer: Any = await route.handler(None)  # type: ignore[arg-type]
        assert answer.body == "second"
        await here.bench.ticket(await here.bench.person())
        assert await here.work() == 2 and set(here.plugin.done) == {"busy.push", "busy.often"}
        query = "SELECT string_agg(type || ' ' || actor_name, ', ' ORDER BY id)"
        told = await here.bench.sql(f'{query} FROM events WHERE data @> \'{{"plugin": "busy"}}\'')
        assert told == "plugin.disabled Ada, plugin.enabled Ada"


async def test_queued_work_waits_while_its_plugin_is_off(rig: Rig) -> None:
    """Nothing of it fails, counts as tried or is done by anybody meanwhile; then it is done."""
    async with rig.desk() as here:
        await here.bench.ticket(await here.bench.person())
        queued = ("busy.push", "waiting", 0)
        assert await here.waiting() == [queued]
        await here.turn(False)
        assert await here.work() == 0 and await here.waiting() == [queued]
        await here.desk.jobs.tidy()
        assert await here.waiting() == [queued]
        await here.turn(True)
        assert await here.work() == 2 and "busy.push" in here.plugin.done


async def test_what_only_a_model_makes_worth_while_is_queued_while_there_is_one(rig: Rig) -> None:
    """Whether it was there at the start does not matter."""
    async with rig.desk() as here:
        await here.turn(False)
    async with rig.desk() as here:
        counts = []
        for enabled in (False, True, False):
            await here.turn(enabled)
            await here.bench.ticket(await here.bench.person())
            query = "SELECT count(*) FROM jobs WHERE type = 'assist.enrich'"
            counts.append(await here.bench.sql(query))
        assert counts == [0, 1, 1]


async def test_a_job_on_its_way_is_finished_or_cut_and_then_waits(rig: Rig) -> None:
    """R-08: cut after the plugin's own deadline, it was not tried; the worker goes on."""
    async with rig.desk(ITDESK_PLUGINS__BUSY__THEN="wait") as here:
        worker, first = Worker(here.desk.jobs), here.plugin
        await here.bench.ticket(await here.bench.person())
        worker.tell(TICK)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.step())
            await first.begun.wait()
            await here.turn(False)
        assert first.done == [] and first.tenancy == ["in", "out"]
        assert await here.waiting() == [("busy.push", "waiting", 0)]
        await here.turn(True)
        worker.tell(TICK)
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.step())
            await here.plugin.begun.wait()
            off = group.create_task(here.turn(False))
            here.plugin.go.set()
            second = here.plugin
            await off
        assert second.done == ["busy.push"] and (await here.waiting())[0][1] == "done"


async def test_a_job_that_was_claimed_before_its_plugin_went_is_given_back(rig: Rig) -> None:
    async with rig.desk() as here:
        await here.bench.ticket(await here.bench.person())
        (held,) = [one for one in await here.desk.jobs.claim({}) if one.type == "busy.push"]
        handle = here.desk.jobs._types["busy.push"].handle
        await here.turn(False)
        await here.desk.jobs.run(held)
        assert await here.waiting() == [("busy.push", "waiting", 0)]
        with pytest.raises(RetryLater) as caught:
            await handle(None)  # type: ignore[arg-type]
        assert not caught.value.counted


async def test_a_request_on_its_way_gets_503_and_the_next_404(rig: Rig) -> None:
    async with rig.desk() as here:
        (route,) = [one for one in table(here.desk) if one.id == "B1"]
        await here.turn(False)
        with pytest.raises(Unavailable) as caught:
            await route.handler(None)  # type: ignore[arg-type]
        assert caught.value.code == "E_PLUGIN_OFF"


@pytest.mark.parametrize("how", WHAT)
async def test_a_plugin_that_fails_to_start_leaves_the_desk_as_it_was(rig: Rig, how: str) -> None:
    """O-05: nothing of it is in effect, why is told, and enabling it tries once more."""
    async with rig.desk() as here:
        await here.turn(False)
        rig.write(entering=WHAT[how])
        broken = await here.turn(True)
        assert broken.state == "broken" and broken.enabled
        assert broken.reason.startswith("itdesk_lifespan: ")
        assert here.parts() == set()
        await here.bench.ticket(await here.bench.person())
        rig.write()
        assert (await here.turn(True)).state == "loaded" and here.parts() == ALL


BROKEN = {
    "does not import": ("import nowhere", "load: "),
    "exits": ("raise SystemExit(1)", "load: SystemExit"),
    "is cancelled": ("import asyncio\nraise asyncio.CancelledError", "load: its import"),
    "never ends": ("import threading; threading.Event().wait()", "load: not imported in 0.3 s"),
    "wants other settings": (BUSY.replace("then: str", "must: int\n    then: str"), "load: "),
    "makes no metrics": (BUSY.replace("self.count.inc(3)", "raise ValueError"), "itdesk_metrics: "),
    "names its jobs wrongly": (BUSY.replace('"busy.push"', '"mail.push"'), "itdesk_jobs: "),
    "has two jobs of a name": (BUSY.replace('"busy.often"', '"busy.push"'), "does not fit in: "),
    "is gone": ("", "load: "),
}  # fmt: skip


async def test_whatever_is_wrong_with_a_plugin_it_is_out_whole(rig: Rig) -> None:
    """O-05: each way of being broken, one after the other in one desk that goes on working."""
    async with rig.desk() as here:
        for case, (source, told) in BROKEN.items():
            await here.turn(False)
            if case == "is gone":
                (rig.directory / "busy.py").unlink()
            else:
                rig.write(source)
            state = await here.turn(True)
            assert state.state == "broken" and state.reason.startswith(told), (case, state.reason)
            assert here.parts() == set(), case
            assert here.desk.schedules.shortest != 1
        rig.write()
        assert (await here.turn(True)).state == "loaded" and here.parts() == ALL


@pytest.mark.parametrize("how", ["raise ValueError", "await asyncio.Event().wait()"])
async def test_a_plugin_that_fails_to_stop_is_out_all_the_same(rig: Rig, how: str) -> None:
    rig.write(leaving=how)
    async with rig.desk() as here:
        state = await here.turn(False)
        assert state.state == "off" and here.parts() == set()
        rig.write()
        assert (await here.turn(True)).state == "loaded" and here.parts() == ALL


async def test_a_route_that_does_not_fit_keeps_the_table_as_it_was(rig: Rig) -> None:
    """What the dispatcher refuses breaks the plugin, and takes no name that is another's."""
    async with rig.desk() as here:
        await here.turn(False)
        served: list[set[str]] = []

        def reroute() -> None:
            routes = table(here.desk)
            if "B1" in {route.id for route in routes}:
                raise ValueError("B1 is declared twice")
            served.append({route.id for route in routes})

        here.desk.switchboard.reroute = reroute
        state = await here.turn(True)
        assert (state.state, state.reason[:16]) == ("broken", "does not fit in:")
        assert here.parts() == set() and "B1" not in served[-1]


async def test_who_is_off_stays_off_after_a_restart(rig: Rig) -> None:
    """Not one line of it runs, and enabling it needs no other restart."""
    async with rig.desk() as here:
        await here.turn(False)
    ran = rig.directory / "ran"
    rig.write(f"open({str(ran)!r}, 'w').close()\n{BUSY}")
    async with rig.desk() as here:
        assert here.desk.plugins.status()["busy"].state == "off"
        assert here.parts() == set() and not ran.exists()
        assert (await here.turn(True)).state == "loaded"
        assert here.parts() == ALL and ran.exists()


async def test_who_became_required_after_it_was_switched_off_is_on(rig: Rig) -> None:
    """The section has the last word, at the start and when a switch arrives from elsewhere."""
    async with rig.desk() as here:
        await here.turn(False)
    async with rig.desk(ITDESK_PLUGINS__BUSY__REQUIRED="true") as here, rig.desk() as other:
        assert here.parts() == ALL and other.parts() == set()
        await other.turn(True)
        await other.turn(False)
        await here.desk.switchboard.apply()
        assert here.parts() == ALL and other.parts() == set()


async def test_other_daemons_on_the_database_do_the_same(rig: Rig) -> None:
    async with rig.desk() as one, rig.desk() as two:
        switcher = Switcher(two.desk.switchboard, 1.0)
        await one.turn(False)
        assert one.parts() == set() and two.parts() == ALL
        switcher.tell(TICK)
        await switcher.step()
        assert two.parts() == set()
        await one.turn(True)
        switcher.tell(TICK)
        await switcher.step()
        assert one.parts() == two.parts() == ALL
        before = two.plugin
        switcher.tell(TICK)
        await switcher.step()
        assert two.plugin is before


async def test_what_was_cut_short_is_done_again(rig: Rig) -> None:
    """O-01: the switcher may die at any await."""
    rig.write(leaving="await asyncio.sleep(0.2)")
    async with rig.desk() as here:
        await here.desk.switchboard.switches.turn(here.boss, "busy", enabled=False)
        for seconds in (0.02, 0.05):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds):
                    await here.desk.switchboard.apply()
        await here.desk.switchboard.apply()
        assert here.desk.plugins.status()["busy"].state == "off" and here.parts() == set()
        rig.write(entering="await asyncio.sleep(0.1)")
        await here.desk.switchboard.switches.turn(here.boss, "busy", enabled=True)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.06):
                await here.desk.switchboard.apply()
        await here.desk.switchboard.apply()
        assert here.desk.plugins.status()["busy"].state == "loaded" and here.parts() == ALL


async def test_a_switch_that_fails_holds_up_no_other(rig: Rig) -> None:
    """O-01: it is done at the next time."""
    async with rig.desk(ITDESK_PLUGINS__JIRA__ENABLED="true") as here:
        board = here.desk.switchboard
        for name in ("busy", "jira"):
            await board.switches.turn(here.boss, name, enabled=False)

        def reroute() -> None:
            raise ValueError("the table of routes")

        board.reroute = reroute
        await board.apply()
        states = {one.name: one for one in await board.list(here.boss)}
        assert (states["jira"].state, states["jira"].settled) == ("off", True)
        assert (states["busy"].state, states["busy"].settled) == ("loaded", False)
        board.reroute = None
        await board.apply()
        assert (await board.look(here.boss, "busy")).settled and here.parts() == set()


async def test_the_safe_mode_has_the_last_word(rig: Rig) -> None:
    """A required plugin as well: its jobs wait, its auditors refuse nothing, readiness says so."""
    required = {"ITDESK_PLUGINS__BUSY__REQUIRED": "true"}
    async with rig.desk(**required) as here:
        await here.bench.ticket(await here.bench.person())
        assert await here.desk.plugins.validate_ticket(SYSTEM, None, BAD) == ["Not that."]
    async with rig.desk(**required, ITDESK_PLUGIN_HOST__SAFE_MODE="true") as here:
        state = await here.turn(True)
        assert (state.state, state.reason) == ("left out", "left out by the safe mode")
        assert here.parts() == set() and not (await here.desk.plugins.health())["busy"].ok
        assert await here.desk.plugins.validate_ticket(SYSTEM, None, BAD) == []
        assert await here.work() == 0 and await here.waiting() == [("busy.push", "waiting", 0)]
    async with rig.desk(**required) as here:
        assert await here.work() == 2 and "busy.push" in here.plugin.done
    async with rig.desk(ITDESK_PLUGIN_HOST__SAFE_MODE="true") as here:
        for enabled in (False, True):
            assert (await here.turn(enabled)).state == "left out"


async def test_a_storage_or_a_scanner_goes_and_comes_with_a_restart(rig: Rig) -> None:
    """What is woven in stays and says so; the plugin is out from the next start on."""
    async with rig.desk() as here:
        board = here.desk.switchboard
        state = await board.turn(here.boss, "yara", enabled=False)
        assert state.state == "loaded" and state.settled
        assert state.reason.endswith("a virus scanner takes a restart")
        assert "yara" in here.desk.scans.engines
        assert not (await here.desk.plugins.health())["yara"].ok
        state = await board.turn(here.boss, "yara", enabled=True)
        assert (state.state, state.reason) == ("loaded", "")
        await board.turn(here.boss, "yara", enabled=False)
    async with rig.desk() as here:
        board = here.desk.switchboard
        assert here.desk.plugins.status()["yara"].state == "off"
        assert "yara" not in here.desk.scans.engines
        state = await board.turn(here.boss, "yara", enabled=True)
        assert (state.state, state.reason) == ("off", "is on, but a virus scanner takes a restart")
    async with rig.desk() as here:
        assert here.desk.plugins.status()["yara"].state == "loaded"


async def test_what_cannot_be_switched_is_refused_and_changes_nothing(rig: Rig) -> None:
    env = {
        "ITDESK_PLUGINS__BUSY__REQUIRED": "true",
        "ITDESK_PLUGINS__OTHER__ENABLED": "false",
    }
    async with rig.desk(**env) as here:
        turn = here.desk.switchboard.turn
        refused: list[tuple[str, bool, type[Exception], str]] = [
            ("busy", False, Conflict, "E_PLUGIN_NEEDED"),
            ("filesystem", False, Conflict, "E_PLUGIN_NEEDED"),
            ("other", True, Conflict, "E_PLUGIN_SECTION"),
            ("nobody", False, NotFound, "E_PLUGIN_NOT_FOUND"),
        ]
        for name, enabled, kind, code in refused:
            with pytest.raises(kind) as caught:
                await turn(here.boss, name, enabled=enabled)
            assert caught.value.code == code  # type: ignore[attr-defined]
        for role in (Role.USER, Role.AGENT, Role.MANAGER):
            person = await here.bench.person(role)
            with pytest.raises(Forbidden):
                await turn(person, "busy", enabled=True)
            with pytest.raises(Forbidden):
                await here.desk.switchboard.list(person)
        assert await here.bench.sql("SELECT count(*) FROM plugin_switches") == 0
        assert await here.bench.sql("SELECT count(*) FROM events WHERE type ~ '^plugin'") == 0
        states = {one.name: one.state for one in await here.desk.switchboard.list(here.boss)}
        assert states["other"] == "disabled" and states["busy"] == "loaded"


async def test_switching_off_twice_is_told_once(rig: Rig) -> None:
    async with rig.desk() as here:
        await here.turn(False)
        before = await here.bench.sql("SELECT changed_at FROM plugin_switches")
        assert (await here.turn(False)).state == "off"
        assert await here.bench.sql("SELECT changed_at FROM plugin_switches") == before
        assert await here.bench.sql("SELECT count(*) FROM events WHERE type ~ '^plugin'") == 1


async def test_a_schedule_that_came_later_is_looked_at_as_often_as_it_needs(rig: Rig) -> None:
    async with rig.desk() as here:
        await here.turn(False)
        scheduler = Scheduler(here.desk.schedules)
        assert scheduler.period == 5
        await here.turn(True)
        scheduler.tell(TICK)
        await scheduler.step()
        assert scheduler.period == 1


async def test_a_hook_that_runs_is_waited_for_before_its_plugin_is_left(rig: Rig) -> None:
    """A reactor never sees its own sessions closed under its hands."""
    body = "async def itdesk_event(self, event):"
    rig.write(BUSY.replace(body, f"{body}\n        self.begun.set(); await self.go.wait();"))
    async with rig.desk(ITDESK_PLUGINS__BUSY__TIMEOUT_SECONDS="5") as here:
        plugin = here.plugin
        event = await _any_event(here)
        async with asyncio.TaskGroup() as group:
            group.create_task(here.desk.plugins.event(here.desk, event))
            await plugin.begun.wait()
            off = group.create_task(here.turn(False))
            while here.desk.plugins.status()["busy"].state != "stopping":
                await asyncio.to_thread(lambda: None)
            assert plugin.tenancy == ["in"]
            plugin.go.set()
            await off
        assert plugin.seen == ["ticket.created"] and plugin.tenancy == ["in", "out"]


async def _any_event(here: Here) -> Any:
    told: list[Any] = []
    here.desk.db.listeners.append(told.extend)
    await here.bench.ticket(SYSTEM)
    return told[0]
