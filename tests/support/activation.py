"""What systemd does with a socket: it listens before the daemon and after it, and hears from it."""

import asyncio
import socket
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.daemon import Daemon

# The socket becomes descriptor 3, and the process id the one that the daemon will have.
_PASS = 'exec 3<&"$0" && LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=http exec "$@"'


class Manager:
    """Holds a listening socket for a daemon, and the other end of its NOTIFY_SOCKET.

    A daemon that is started through it has no terminal, so that SIGHUP means what it means there.
    """

    def __init__(self, *, listen: bool = True) -> None:
        self._stack = ExitStack()
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="itdesk-notify-"))
        Path(folder).chmod(0o755)
        self._path = Path(folder, "notify")
        self._notify = self._stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._notify.bind(str(self._path))
        self._notify.setblocking(False)
        self._heard: list[str] = []
        self._socket: socket.socket | None = None
        if listen:
            self._socket = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            self._socket.listen(1024)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def adopt(self, daemon: Daemon) -> Daemon:
        """Return the daemon as one that is started by us from now on."""
        daemon.env["NOTIFY_SOCKET"] = str(self._path)
        daemon.through = ("setsid",)
        if self._socket is not None:
            number = self._socket.fileno()
            daemon.through = ("setsid", "bash", "-c", _PASS, str(number))
            daemon.pass_fds = (number,)
        return daemon

    def heard(self) -> list[str]:
        """Return all that the daemon has told us so far."""
        with suppress(BlockingIOError):
            while True:
                self._heard.append(self._notify.recv(4096).decode())
        return self._heard

    async def hears(self, beginning: str, *, times: int = 1, seconds: float = 20.0) -> str:
        """Return the message by which so many begin like this; fail when they do not come."""
        end = time.monotonic() + seconds
        while True:
            found = [told for told in self.heard() if told.startswith(beginning)]
            if len(found) >= times:
                return found[times - 1]
            assert time.monotonic() < end, f"never heard {beginning!r}: {self.heard()}"
            await asyncio.sleep(0.02)
