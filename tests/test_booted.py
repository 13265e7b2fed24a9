"""S0-07, O-10: a systemd that has booted runs the units as the README installs them."""

import asyncio
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.daemon import Live, Person, lasting_port, make_daemon
from tests.support.load import eventually, lost_or_doubled, working
from tests.support.postgres import Server
from tests.test_readme import _install_lines

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = ("--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--kill-child")


class Machine:
    """A machine of our own, as far as processes and files go; its network is this one's."""

    def __init__(self, pid: int) -> None:
        self._pid = str(pid)

    def run(self, script: str, *, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run lines of a shell there, as root."""
        done = subprocess.run(
            ["nsenter", "-t", self._pid, "-m", "-p", "-u", "-i", "-C", "-r", "-w",
             "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
             "bash", "-euo", "pipefail", "-c", script],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done


@asynccontextmanager
async def _booted() -> AsyncIterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="itdesk-boot-", dir="/tmp") as folder:
        process = await asyncio.create_subprocess_exec(
            "unshare", *NAMESPACES, "bash", str(ROOT / "tests/support/boot.sh"), folder,
            sysconfig.get_path("purelib"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

            async def up() -> bool:
                assert process.returncode is None, "tests/support/boot.sh failed"
                first = children.read_text().split()[:1]
                return bool(first) and _is_up(Machine(int(first[0])))

            await eventually(up, seconds=30)
            yield Machine(int(children.read_text().split()[0]))
        finally:
            process.kill()
            await process.wait()


def _is_up(machine: Machine) -> bool:
    return machine.run("systemctl is-active multi-user.target", check=False).returncode == 0


def _installed(machine: Machine, url: str, port: int) -> str:
    """Type the lines of "Install it" that are about itdesk; return what the last one printed."""
    wanted = ("cp systemd/", "systemd-sysusers", "systemctl daemon-reload")
    *first, last = [line for line in _install_lines() if line.startswith(wanted)]
    assert len(first) == 2 and last.endswith("itdesk init")
    machine.run("\n".join(["cd /opt/itdesk/src", "HOST=help.example.net", *first]))
    machine.run(
        f"sed -i 's|^url = .*|url = \"{url}\"|' /etc/itdesk/itdesk.toml\n"
        "mkdir /etc/systemd/system/itdesk.socket.d\n"
        f"printf '[Socket]\\nListenStream=\\nListenStream=127.0.0.1:{port}\\n'"
        " >/etc/systemd/system/itdesk.socket.d/port.conf"
    )
    done = machine.run(last, check=False)
    assert done.returncode == 0, _said(machine) + done.stderr
    return done.stdout


def _said(machine: Machine) -> str:
    return machine.run("journalctl -u itdesk -u itdesk-migrate -o cat | tail -c 3000").stdout


@pytest.mark.slow
async def test_the_installed_units_run_on_a_systemd_that_has_booted(pg_server: Server) -> None:
    """S0-07, S4-04, P-12: installed and enabled as written, on an empty database; confined as the
    unit says; restarted under load without one failed request; killed, and started again."""
    url, port = await pg_server.create(migrated=False, tcp=True), lasting_port()
    there = make_daemon(url)  # it is not started: systemd has one
    try:
        async with _booted() as machine:
            printed = await asyncio.to_thread(_installed, machine, url, port)
            told = re.search(r"first administrator: (\S+) password: (\S+)", printed)
            assert told is not None
            live = Live(there, Person(f"http://127.0.0.1:{port}"))
            there.url = live.admin.base
            live.admin = await live.sign_in(*told.groups())
            await _is_confined(machine)
            await _restarts_under_load(machine, live, url)
            await _comes_back(machine, live)
    finally:
        await pg_server.drop(url)
        shutil.rmtree(there.state_dir)


async def _is_confined(machine: Machine) -> None:
    state = machine.run("systemctl show itdesk -p MainPID,ActiveState,StatusText,User").stdout
    assert "ActiveState=active" in state and "User=itdesk" in state, state
    assert "StatusText=serving http://" in state
    pid = re.findall(r"MainPID=(\d+)", state)[0]
    status = machine.run(f"cat /proc/{pid}/status").stdout
    for line in (r"Seccomp:\s+2", r"NoNewPrivs:\s+1", r"CapEff:\s+0+"):
        assert re.search(rf"^{line}$", status, re.M), status
    failed = machine.run("systemctl list-units --failed --plain --no-legend").stdout
    assert failed == ""
    # The first step of an upgrade, beside the daemon.
    machine.run("systemctl start itdesk-migrate")
    assert machine.run("systemctl show itdesk-migrate -p Result").stdout == "Result=success\n"


async def _restarts_under_load(machine: Machine, live: Live, url: str) -> None:
    agents = [await live.person("agent") for _ in range(2)]
    async with working(agents, clients=8, rate=40) as crew:
        await crew.until(lambda call: call.acknowledged, times=16, seconds=30)
        for verb in ("restart", "reload", "restart"):
            await asyncio.to_thread(machine.run, f"systemctl {verb} itdesk")
            await crew.until(lambda call: call.acknowledged, times=16, seconds=30)
    assert [f"{c.kind} {c.status} {c.problem}" for c in crew.calls if not c.acknowledged] == []
    assert await lost_or_doubled(url, crew) == []
    print(f"two restarts and a reload by systemctl: {crew.counts()}")


async def _comes_back(machine: Machine, live: Live) -> None:
    """Restart=always, and the way to the end that the README names."""
    await asyncio.to_thread(machine.run, "systemctl kill --signal=KILL --kill-whom=main itdesk")
    await live.admin.ticket("by whoever comes next")
    assert machine.run("systemctl show itdesk -p NRestarts").stdout == "NRestarts=1\n"
    await asyncio.to_thread(machine.run, "systemctl stop itdesk.socket itdesk")
    state = machine.run("systemctl show itdesk -p ActiveState,Result").stdout
    assert state == "Result=success\nActiveState=inactive\n"
