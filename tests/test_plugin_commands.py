"""`itdesk plugins`, and the safe mode for the night when a plugin breaks the start."""

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from itdesk.cli import main
from tests.support.daemon import Daemon, Live, Person, live_on, make_daemon, running
from tests.support.load import eventually
from tests.support.postgres import Server

GOOD = """
from pydantic import BaseModel, SecretStr
from itdesk.hookspecs import hookimpl

class Settings(BaseModel):
    hook: SecretStr = SecretStr("")
    count: int = 1

class Plugin:
    name, itdesk_api, Settings = "NAME", 1, Settings

    def __init__(self, settings): self.settings = settings

    @hookimpl
    def itdesk_event(self, event): ...

    @hookimpl
    def itdesk_health(self): ...
"""
README = Path(__file__).resolve().parents[1] / "README.md"
DEADLY = "import os; os._exit(7)"


@pytest.fixture
def drop_ins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins.d"
    directory.mkdir(mode=0o755)
    return directory


def _drop(directory: Path, name: str, source: str = GOOD) -> None:
    path = directory / f"{name}.py"
    path.write_text(source.replace("NAME", name))
    path.chmod(0o644)


def _config(directory: Path, *sections: str) -> str:
    path = directory.parent / "itdesk.toml"
    head = f'plugin_host.directories = ["{directory}"]\n'
    path.write_text(head + "\n".join(sections))
    return str(path)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Daemon]:
    """Commands only: nothing is started."""
    yield Daemon({}, tmp_path)


def test_the_list_says_how_each_plugin_is(shell: Daemon, drop_ins: Path) -> None:
    """O-05: version, source, state, why it is out, and hooks; one that is broken hides no other."""
    for name in ("good", "off", "idle", "wrong"):
        _drop(drop_ins, name)
    _drop(drop_ins, "broken", "import nowhere")
    shell.env["ITDESK_CONFIG"] = _config(
        drop_ins, "[plugins.good]", "[plugins.off]\nenabled = false", "[plugins.missing]",
        "[plugins.broken]\nrequired = true", '[plugins.wrong]\ncount = "many"',
    )  # fmt: skip
    done = shell.run("plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    rows: dict[str, Any] = {row["name"]: row for row in json.loads(done.stdout)}
    states = {name: row["state"] for name, row in rows.items()}
    assert {"smtp", "s3", "clamav", "yara"} <= set(states)
    wanted = {
        "good": "loaded", "off": "switched off", "idle": "no section", "broken": "broken",
        "missing": "wrong", "wrong": "wrong",
    }  # fmt: skip
    assert wanted.items() <= states.items()
    assert rows["good"]["hooks"] == ["itdesk_event", "itdesk_health"]
    assert rows["good"]["source"] == f"the file {drop_ins}/good.py"
    assert rows["filesystem"]["version"] and rows["filesystem"]["state"] == "loaded"
    assert "No module named 'nowhere'" in rows["broken"]["reason"]
    assert "plugins.wrong.count" in rows["wrong"]["reason"]
    assert "no such plugin" in rows["missing"]["reason"]
    shown = shell.run("plugins", "list").stdout
    assert "-> load: ModuleNotFoundError" in shown and "itdesk_event, itdesk_health" in shown


def test_what_a_stranger_calls_secret_is_not_shown(shell: Daemon, drop_ins: Path) -> None:
    """S-34: an option whose name tells nothing, but whose type is SecretStr."""
    _drop(drop_ins, "good")
    shell.env["ITDESK_CONFIG"] = _config(drop_ins, "[plugins.good]\nhook = 'https://x/key-123'")
    shown = shell.run("config", "show")
    assert 'hook = "***"' in shown.stdout and "key-123" not in shown.stdout + shown.stderr
    assert "count = 1" in shown.stdout
    _drop(drop_ins, "good", "raise SystemExit(3)")
    shown = shell.run("config", "show")
    assert shown.returncode == 0 and "cannot be loaded: SystemExit" in shown.stderr
    assert 'hook = "***"' in shown.stdout and "key-123" not in shown.stdout + shown.stderr


def test_a_new_plugin_overwrites_nothing_and_has_a_good_name(tmp_path: Path) -> None:
    def new(name: str) -> Result:
        return CliRunner().invoke(main, ["plugins", "new", name, str(tmp_path)])

    assert new("fresh").exit_code == 0
    (tmp_path / "fresh.py").write_text("mine")
    again = new("fresh")
    assert again.exit_code == 1 and "is there already" in again.stderr
    assert (tmp_path / "fresh.py").read_text() == "mine"
    for bad in ("Fresh", "../x", "a-b", "smtp"):
        assert new(bad).exit_code == 2
    assert sorted(p.name for p in tmp_path.glob("*.py")) == ["fresh.py", "test_fresh.py"]


async def test_the_safe_mode_starts_in_spite_of_a_plugin_that_does_not_let_it(
    pg_server: Server, drop_ins: Path
) -> None:
    """O-05: not one line of it runs, not even of one that takes the name of a plugin of ours."""
    _drop(drop_ins, "deadly", DEADLY)
    _drop(drop_ins, "filesystem", DEADLY)
    url = await pg_server.create()
    daemon = make_daemon(url, ITDESK_CONFIG=_config(drop_ins, "[plugins.deadly]\nrequired = true"))
    try:
        daemon.start(ready=False)
        assert await asyncio.to_thread(daemon.ended) != 0
        daemon.options = ("--safe-mode",)
        async with running(daemon) as live:
            await live.admin.ticket()
            answer = await live.nobody.call("GET", "/readyz")
            check = answer.expect(200)["checks"]["plugins"]
            assert check == {
                "status": "degraded",
                "reason": "deadly: left out by the safe mode",
            }
            assert (await live_on(daemon)).admin.token
    finally:
        await pg_server.drop(url)


HELLO = (
    GOOD
    + """
    @hookimpl
    def itdesk_routes(self):
        from itdesk.api.route import Reply, Route, Who
        async def hello(call):
            '''Greet.'''
            return Reply({"hello": self.settings.count})
        return [Route(id="H1", method="GET", path="/hello", handler=hello, who=Who.PUBLIC,
                      tag="good")]
"""
)
HELLO_PATH = "/api/v1/plugins/good/hello"


async def _settled(live: Live, state: str, reason: str = "") -> dict[str, Any]:
    """Return how the plugin is at a daemon, once it is so."""
    found: dict[str, Any] = {}

    async def is_so() -> bool:
        found.update((await live.admin.get("/plugin-switches/good")).expect(200))
        return bool(found["settled"] and found["state"] == state and reason in found["reason"])

    await eventually(is_so, seconds=20)
    return found


@pytest.mark.parametrize("daemons", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_a_plugin_is_switched_off_and_on_at_every_daemon_without_a_restart(
    pg_server: Server, drop_ins: Path, daemons: int
) -> None:
    """O-05: by the route and from the shell; how it went is told, and who did it is kept.

    That daemons hear of each other's switches has a short form in tests/desk/test_switches.py.
    """
    _drop(drop_ins, "good", HELLO)
    url = await pg_server.create()
    one, two = (make_daemon(url, ITDESK_CONFIG=_config(drop_ins, "[plugins.good]")) for _ in "12")
    two.env["ITDESK_AUTH__JWT_KEY_FILE"] = str(one.state_dir / "jwt-key.pem")
    try:
        async with running(one) as here:
            if daemons == 1:
                await _comes_and_goes(here, here, drop_ins)
                return
            await asyncio.to_thread(two.start)
            there = Live(two, Person(two.url, here.admin.token))
            await _comes_and_goes(here, there, drop_ins)
            assert await asyncio.to_thread(two.stop) == 0
    finally:
        if two.process is not None and two.process.poll() is None:
            two.process.kill()
        shutil.rmtree(two.state_dir, ignore_errors=True)
        await pg_server.drop(url)


async def _comes_and_goes(here: Live, there: Live, drop_ins: Path) -> None:
    async def turn(enabled: bool) -> Any:
        body = {"enabled": enabled}
        path = "/api/v1/plugin-switches/good"
        return (await here.admin.call("PUT", path, json=body)).expect(200)

    # The very lines of the README.
    plugins = README.read_text().partition("\n## Plugins\n")[2].partition("\n## ")[0]
    disable, enable = re.findall(r"^itdesk plugins (\w+) hello$", plugins, flags=re.M)

    async def shell(*arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(here.daemon.run, "plugins", *arguments)
        return done.returncode, done.stdout, done.stderr

    for live in (here, there):
        assert (await live.nobody.call("GET", HELLO_PATH)).expect(200) == {"hello": 1}
    off = await turn(False)
    assert (off["state"], off["enabled"], off["settled"]) == ("off", False, True)
    assert off["changed_by"] == "Administrator"
    await _settled(there, "off")
    for live in (here, there):
        (await live.nobody.call("GET", HELLO_PATH)).refused(404, "E_NOT_FOUND")
        assert HELLO_PATH not in (await live.nobody.call("GET", "/openapi.json")).raw.decode()
        ready = (await live.nobody.call("GET", "/readyz")).expect(200)["checks"]["plugins"]
        assert ready["status"] == "degraded" and "good: switched off" in ready["reason"]
        assert "Administrator" not in ready["reason"]
    _drop(drop_ins, "good", f"{HELLO}\n1 / 0\n")
    status, said, wrong = await shell(enable, "good")
    assert (status, wrong) == (0, "") and said.startswith("good is switched on.\n")
    for live in (here, there):
        broken = await _settled(live, "broken", "load: ZeroDivisionError")
        assert broken["enabled"] and broken["changed_by"] is None
        await live.admin.ticket()
    _drop(drop_ins, "good", HELLO.replace("count: int = 1", "count: int = 2"))
    assert (await turn(True))["state"] == "loaded"
    await _settled(there, "loaded")
    for live in (here, there):
        assert (await live.nobody.call("GET", HELLO_PATH)).expect(200) == {"hello": 2}
        assert HELLO_PATH in (await live.nobody.call("GET", "/openapi.json")).raw.decode()
        assert "good" not in (await live.nobody.call("GET", "/readyz")).raw.decode()
    _drop(drop_ins, "good", DEADLY)
    # None of its lines runs for this, here or there.
    assert (await shell(disable, "good"))[::2] == (0, "")
    for live in (here, there):
        await _settled(live, "off")
    status, said, wrong = await shell("list")
    assert (status, wrong) == (0, "") and "enable good (by a shell of the host)" in said
    journal = (await here.admin.get("/events?limit=200")).expect(200)
    told = [(e["type"], e["actor_name"]) for e in journal if e["type"].startswith("plugin.")]
    assert sorted(told) == [
        ("plugin.disabled", "Administrator"), ("plugin.disabled", "itdesk"),
        ("plugin.enabled", "Administrator"), ("plugin.enabled", "itdesk"),
    ]  # fmt: skip


async def test_the_list_says_when_nobody_can_know_what_is_off(shell: Daemon) -> None:
    """The night when the database is away: the rest is told all the same."""
    shell.env["DATABASE_URL"] = "postgresql://itdesk@127.0.0.1:1/itdesk"
    done = shell.run("plugins", "list")
    assert done.returncode == 0 and "filesystem" in done.stdout
    assert done.stderr.startswith("warning: whether any is switched off is not known: ")
