import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from itdesk.runtime import systemd

# What systemd does before it starts us: the socket at 3, the pid of the very process.
LISTENER = """
from itdesk.runtime import systemd
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="http")
sockets = systemd.listen_fds()
print([s.getsockname()[1] for s in sockets], [os.get_inheritable(s.fileno()) for s in sockets],
      [s.getblocking() for s in sockets], systemd.listen_fds(), "LISTEN_FDS" in os.environ)
"""


def _receiver(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(address)
    receiver.setblocking(False)
    return receiver


def test_a_notification_reaches_a_socket_with_a_path(tmp_path: Path) -> None:
    with _receiver(str(tmp_path / "s")) as receiver:
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "s")})
        assert receiver.recv(100) == b"READY=1"


def test_a_notification_reaches_an_abstract_socket() -> None:
    name = f"itdesk-test-{os.getpid()}"
    with _receiver("\0" + name) as receiver:
        assert systemd.notify("STOPPING=1", {"NOTIFY_SOCKET": "@" + name})
        assert receiver.recv(100) == b"STOPPING=1"


def test_nobody_listening_is_no_error() -> None:
    assert not systemd.notify("READY=1", {})
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": "/nonexistent/socket"})


def test_a_listener_that_does_not_read_never_blocks_us(tmp_path: Path) -> None:
    with _receiver(str(tmp_path / "s")):
        told = [systemd.notify("X=1", {"NOTIFY_SOCKET": str(tmp_path / "s")}) for _ in range(2000)]
    assert told[0] and not told[-1]


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_pings_come_at_half_of_what_systemd_allows(
    environ: dict[str, str], interval: float | None
) -> None:
    assert systemd.watchdog_interval(environ) == interval


def test_sockets_passed_by_systemd_are_taken_over_once_and_kept_from_children() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, fd = server.getsockname()[1], server.fileno()
        command = [sys.executable, "-c", LISTENER, str(fd)]
        done = subprocess.run(command, pass_fds=(fd,), capture_output=True, text=True)
    assert done.stdout.strip() == f"[{port}] [False] [False] [] False", done.stderr


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    assert systemd.listen_fds({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert systemd.listen_fds({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}) == []
