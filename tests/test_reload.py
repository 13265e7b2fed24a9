"""SIGHUP: what changes while the daemon works, what needs a restart, and what is refused whole."""

import asyncio
import re
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.activation import Manager
from tests.support.daemon import Answer, Daemon, Live, Person, make_daemon
from tests.support.load import eventually
from tests.support.nginx import certify
from tests.support.postgres import Server

TAKER = """
from itdesk.hookspecs import Health, hookimpl
from pydantic import BaseModel


class Settings(BaseModel):
    word: str = "one"


class Plugin:
    name, itdesk_api, Settings = "taker", 1, Settings

    def __init__(self, settings):
        self.settings = settings

    @hookimpl
    def itdesk_health(self):
        return Health(False, f"the word is {self.settings.word}")
"""
TAKES = """
    @hookimpl
    def itdesk_reload(self, settings):
        self.settings = settings
"""

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Desk:
    """A daemon whose configuration file is changed under it."""

    def __init__(self, live: Live, manager: Manager, folder: Path) -> None:
        self.live = live
        self.folder = folder
        self._manager = manager
        self.reloads = 0

    async def reload(self, **tables: dict[str, Any]) -> list[dict[str, Any]]:
        """Write these tables over the ones of the start, say SIGHUP, and return what was logged."""
        write(self.folder, **tables)
        before = len(self.live.daemon.lines())
        self.live.daemon.tell(signal.SIGHUP)
        self.reloads += 1
        # One READY=1 is of the start.
        await self._manager.hears("READY=1", times=self.reloads + 1)
        await self._logged("reload", before)
        return [line for line in self.live.daemon.lines()[before:] if line["logger"] == "reload"]

    async def call(self, method: str, path: str, **how: Any) -> Answer:
        """Send one request to a daemon whose certificate vouches for itself."""
        return await Person(self.live.url).call(method, path, ssl=False, **how)

    async def sign_ins(self, times: int) -> list[int]:
        """Return the answers to so many wrong passwords."""
        body = {"email": "nobody@example.org", "password": "wrong wrong wrong"}
        answers = [await self.call("POST", "/api/v1/auth/login", json=body) for _ in range(times)]
        return [answer.status for answer in answers]

    async def word_of(self, plugin: str) -> str:
        """Return with which settings a plugin works."""
        said = str((await self.call("GET", "/readyz")).json)
        found = re.search(rf"{plugin}: the word is (\w+)", said)
        assert found is not None, said
        return found[1]

    async def serial(self) -> bytes:
        """Return the certificate that a new connection gets."""
        port = int(self.live.url.rpartition(":")[2])
        pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
        return pem.encode()

    async def _logged(self, logger: str, before: int) -> None:
        async def there() -> bool:
            return any(line["logger"] == logger for line in self.live.daemon.lines()[before:])

        await eventually(there, seconds=10)

    @property
    def heard(self) -> list[str]:
        """Return what systemd was told."""
        return self._manager.heard()


def write(folder: Path, **tables: dict[str, Any]) -> None:
    """Write a configuration file: what the start needs, and these tables in its place."""
    own: dict[str, dict[str, Any]] = {
        "server": {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")},
        "plugin_host": {"directories": [str(folder / "plugins")]},
        "plugins.taker": {"word": "one"},
        "plugins.stubborn": {"word": "one"},
    }
    lines = []
    for name, table in {**own, **{key.replace("__", "."): t for key, t in tables.items()}}.items():
        lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    (folder / "itdesk.toml").write_text("\n".join(lines))


def _toml(value: Any) -> str:
    return repr(value).lower() if isinstance(value, bool) else repr(value)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(pg_server: Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    """One daemon with TLS for all tests here, each of which begins with what it writes."""
    folder = tmp_path_factory.mktemp("reload")
    certify(folder)
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o755)
    (plugins / "taker.py").write_text(TAKER + TAKES)
    (plugins / "stubborn.py").write_text(TAKER.replace('"taker"', '"stubborn"'))
    for file in plugins.iterdir():
        file.chmod(0o644)
    write(folder)
    url = await pg_server.create()
    daemon = make_daemon(url, ITDESK_CONFIG=str(folder / "itdesk.toml"))
    del daemon.env["ITDESK_LIMITS__ENABLED"]
    with Manager(listen=False) as manager:
        manager.adopt(daemon)
        await asyncio.to_thread(daemon.start)
        try:
            yield Desk(Live(daemon, Person(daemon.url)), manager, folder)
        finally:
            status = await asyncio.to_thread(daemon.stop)
            await pg_server.drop(url)
            log = daemon.log.read_text()
            shutil.rmtree(daemon.state_dir)
            assert status == 0, log[-3000:]


async def test_level_limits_and_certificate_change_while_it_works(desk: Desk) -> None:
    """S2-57, S2-65: at once, for what comes from now on; systemd hears begin and end."""
    assert await desk.sign_ins(4) == [401, 401, 401, 401]
    first = await desk.serial()
    certify(desk.folder)
    # At this level only the warning of what needs a restart is seen.
    before = len(desk.live.daemon.lines())
    (line,) = await desk.reload(
        log={"level": "WARNING"}, limits={"auth": "2/hour"}, jobs={"poll_seconds": 7}
    )
    assert line["options"] == "jobs.poll_seconds"
    assert await desk.sign_ins(4) == [401, 401, 429, 429]
    second = await desk.serial()
    assert second != first and second == (desk.folder / "cert.pem").read_bytes()
    # The lines of requests are of level info; those of before may come late.
    info = [x for x in desk.live.daemon.lines()[before:] if x.get("status") == 429]
    assert info == []
    begun = [told for told in desk.heard if told.startswith("RELOADING=1")]
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", begun[-1])

    (line,) = await desk.reload(limits={"enabled": False})
    assert line["changed"] == "limits.auth, limits.enabled, log.level"
    assert desk.heard[-1] == f"READY=1\nSTATUS=serving {desk.live.url}"
    assert await desk.sign_ins(4) == [401, 401, 401, 401]


async def test_what_needs_a_restart_is_named_until_it_is_restarted(desk: Desk) -> None:
    """S2-65: nothing is silently not in effect."""
    await desk.reload()
    for _ in range(2):
        told, needs = await desk.reload(jobs={"poll_seconds": 7}, auth={"cookie_name": "other"})
        assert told["changed"] == ""
        assert needs["event"] == "changed, but only a restart puts it into effect"
        assert (needs["level"], needs["options"]) == (
            "warning",
            "auth.cookie_name, jobs.poll_seconds",
        )
        assert desk.heard[-1].endswith("; changed settings need a restart: see the log")
    assert len(await desk.reload()) == 1


async def test_plugins_that_declare_it_take_other_settings(desk: Desk) -> None:
    """O-05: `itdesk_reload` gets them checked; who does not have it needs a restart."""
    await desk.reload()
    both = {"plugins__taker": {"word": "two"}, "plugins__stubborn": {"word": "two"}}
    told, needs = await desk.reload(**both)
    assert (told["changed"], needs["options"]) == ("plugins.taker", "plugins.stubborn")
    assert [await desk.word_of(name) for name in ("taker", "stubborn")] == ["two", "one"]
    # What the host keeps of a section is not the plugin's to take.
    told, needs = await desk.reload(plugins__taker={"word": "three", "timeout_seconds": 3})
    assert (told["changed"], needs["options"]) == ("", "plugins.taker")
    assert await desk.word_of("taker") == "two"
    await desk.reload()
    assert await desk.word_of("taker") == "one"


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"limits": {"auth": "often"}}, "limits.auth: "),
        ({"jobs": {"poll_seconds": 0}}, "jobs.poll_seconds: "),
        ({"plugins__taker": {"word": "four", "wrod": "x"}}, "plugins.taker.wrod: "),
        ({"mail": {"templates_dir": "bad"}}, "mail.templates_dir"),
        ({"server": {"tls_cert": "/nowhere", "tls_key": "/nowhere"}}, "server.tls_cert"),
    ],
)
async def test_wrong_settings_change_nothing_and_say_why(
    desk: Desk, wrong: dict[str, Any], problem: str
) -> None:
    """O-04: what is good in them is not in effect either."""
    await desk.reload(limits={"enabled": False})
    if "mail" in wrong:
        bad = desk.folder / "bad"
        bad.mkdir()
        (bad / "trial.txt").write_text("no subject")
        wrong = {"mail": {"templates_dir": str(bad)}}
    certificate = await desk.serial()
    certify(desk.folder)
    good = {
        "log": {"level": "ERROR"},
        "limits": {"auth": "1/hour"},
        "plugins__taker": {"word": "9"},
    }
    (line,) = await desk.reload(**{**good, **wrong})
    assert (line["level"], line["event"]) == (
        "error",
        "nothing was reloaded: the new settings are wrong",
    )
    assert any(problem in told for told in line["problems"]), line
    assert await desk.sign_ins(3) == [401, 401, 401]
    assert await desk.word_of("taker") == "one"
    assert await desk.serial() == certificate
    assert desk.heard[-1].startswith("READY=1\nSTATUS=the settings on disk are wrong")
    (line,) = await desk.reload(limits={"enabled": False})
    assert line["changed"] == ""


async def test_mail_templates_are_read_again(desk: Desk) -> None:
    """S2-65: those of the directory that is named now."""
    await desk.reload()
    templates = desk.folder / "mail"
    templates.mkdir()
    (templates / "trial.txt").write_text("Subject: Other\n\nOther words, $desk.\n")
    (line,) = await desk.reload(mail={"templates_dir": str(templates)})
    assert line["changed"] == "mail.templates_dir"
    (templates / "trial.txt").write_text("Subject: Other\n\n$unknown\n")
    (line,) = await desk.reload(mail={"templates_dir": str(templates)})
    assert "unknown" in str(line["problems"])
    await desk.reload()


async def test_sighup_before_it_serves_is_no_reason_to_die(
    new_daemon: Callable[..., Daemon],
) -> None:
    """O-04: a daemon that waits for its database goes on waiting."""
    daemon = new_daemon("postgresql://itdesk@127.0.0.1:1/itdesk")
    daemon.through = ("setsid",)
    daemon.start(ready=False)

    async def waits() -> bool:
        return any(line["event"] == "waiting" for line in daemon.lines())

    await eventually(waits, seconds=20)
    daemon.tell(signal.SIGHUP)
    assert await asyncio.to_thread(daemon.stop) == 0
    assert "rror" not in daemon.log.read_text()
