"""What systemd and the daemon say to each other: readiness, keep-alive pings, passed sockets."""

import os
import socket
import time
from collections.abc import Mapping, MutableMapping

FIRST_FD = 3


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd something like READY=1; False when nobody listens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(state.encode(), address)
    except OSError:
        return False
    return True


def reloading(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd that the configuration is being read again; READY=1 says that it is over."""
    return notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", environ)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds between two pings, half of what systemd allows, or None without a dog."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    allowed = environ.get("WATCHDOG_USEC", "")
    if not allowed.isdecimal() or int(allowed) == 0:
        return None
    return int(allowed) / 2_000_000


def listen_fds(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Take over the listening sockets that systemd opened for this process, once."""
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        # A child (the embedded database) must not hold the port open after we are gone.
        os.set_inheritable(fd, False)
        passed = socket.socket(fileno=fd)
        passed.setblocking(False)
        sockets.append(passed)
    return sockets
