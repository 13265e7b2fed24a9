"""OpenStack Swift with its S3 API: another, stricter S3 server, in an environment of its own."""

import fcntl
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
WANTED = "swift>=2.38,<3"
SERVERS = ("account", "container", "object")

_SERVER = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
mount_check = false
devices = {dir}/devices
swift_dir = {dir}
user = {user}
log_address = {dir}/no-syslog
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {dir}
user = {user}
log_address = {dir}/no-syslog
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache bulk s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
minimum_segment_size = 1
[filter:dlo]
use = egg:swift#dlo
"""


def environment() -> Path:
    """Return Swift's own virtual environment, made when it is not there: its needs are many."""
    venv = Path(os.environ.get("ITDESK_SWIFT_VENV", ROOT / ".venv-swift"))
    with (ROOT / ".venv-swift.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = venv / "made-from"
        if not made.exists() or made.read_text() != WANTED:
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            subprocess.run([str(venv / "bin/pip"), "install", "-q", WANTED], check=True)
            made.write_text(WANTED)
    return venv


class Swift:
    """One proxy, one replica of everything, one bucket."""

    bucket = "desk"
    access_key = "test:tester"
    secret_key = "testing"

    def __init__(self) -> None:
        self._bin = environment() / "bin"
        self._folder = Path(tempfile.mkdtemp(prefix="swift-", dir="/var/tmp"))
        self._processes: list[subprocess.Popen[bytes]] = []
        self.port = _free_port()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _start(self) -> None:
        (self._folder / "devices/one").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
        )
        for kind in SERVERS:
            port = _free_port()
            ring = str(self._folder / f"{kind}.builder")
            builder = [str(self._bin / "swift-ring-builder"), ring]
            for step in (
                ["create", "2", "1", "0"],
                ["add", f"r1z1-127.0.0.1:{port}/one", "1"],
                ["rebalance"],
            ):
                subprocess.run([*builder, *step], check=True, stdout=subprocess.DEVNULL)
            self._serve(kind, _SERVER, port)
        self._serve("proxy", _PROXY, self.port)
        end = time.monotonic() + 60
        while not self._answers():
            if any(each.poll() is not None for each in self._processes) or time.monotonic() > end:
                raise RuntimeError(f"Swift did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def _serve(self, kind: str, template: str, port: int) -> None:
        config = self._folder / f"{kind}-server.conf"
        where = {"dir": self._folder, "user": getpass.getuser()}
        config.write_text(template.format(port=port, kind=kind, **where))
        with (self._folder / "log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(self._bin / f"swift-{kind}-server"), str(config)],
                    env={**os.environ, "SWIFT_CONF": str(self._folder / "swift.conf")},
                    cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )
            )  # fmt: skip

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/healthcheck", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in self._processes:
            each.kill()
            each.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
