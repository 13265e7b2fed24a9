"""The directory in which an unconfigured desk keeps its data, and who may work there.

Hidden here: run by root, the embedded PostgreSQL must be another account (it refuses to be root),
so every directory on the way must let that account pass. Nothing is opened up for it but a
directory that is still empty: we say which one is closed instead.
"""

import fcntl
import os
import pwd
import stat
from collections.abc import Mapping
from pathlib import Path

from itdesk.errors import DeskError


class EmbeddedError(DeskError):
    """The embedded database cannot be had here; the message says why and what to do."""

    default_code = "E_EMBEDDED_DATABASE"


def default_state_dir(env: Mapping[str, str]) -> Path:
    """Return where this account keeps the desk's data unless told otherwise."""
    first, _, _ = env.get("STATE_DIRECTORY", "").partition(":")
    if given := env.get("ITDESK_STATE_DIR") or first:
        return Path(given)
    if state_home := env.get("XDG_STATE_HOME"):
        return Path(state_home) / "itdesk"
    home = Path(env.get("HOME") or Path.home())
    account = server_account()
    if account and closed_to(account, home):
        return Path("/var/lib/itdesk")
    return home / ".local/state/itdesk"


def become_owner(state_dir: Path) -> None:
    """As root, turn for good into the account that owns an existing state directory.

    So root may run any command beside a daemon with an account of its own, and leaves no file
    there that the daemon cannot read.
    """
    account = server_account()
    if account is None:
        return
    try:
        status = state_dir.stat()
    except OSError:
        return
    if status.st_uid in (0, account.pw_uid):
        return
    try:
        owner = pwd.getpwuid(status.st_uid)
        os.initgroups(owner.pw_name, owner.pw_gid)
        os.setgid(owner.pw_gid)
    except KeyError:  # a bare uid, as in containers
        os.setgroups([])
        os.setgid(status.st_gid)
    os.setuid(status.st_uid)
    # Libraries look below it for certificates and passwords, and root's is closed to us now.
    os.environ["HOME"] = str(state_dir)


def prepare_state_dir(path: Path) -> Path:
    """Return the state directory, made if need be such that the server's account can pass it."""
    path = path.absolute()
    account = server_account()
    try:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
        if missing or not any(path.iterdir()):
            # Ours to decide: nobody has put anything there yet, whatever umask or mkdtemp said.
            for made in missing or [path]:
                made.chmod(0o711 if account else 0o700)
    except OSError as exc:
        raise EmbeddedError(
            f"The state directory {path} cannot be used: {exc.strerror}. Name another one with "
            "--state-dir."
        ) from exc
    if account and (closed := closed_to(account, path)):
        raise EmbeddedError(
            f"The directory {closed} is closed to the account {account.pw_name!r}, as which the "
            f"embedded PostgreSQL runs when itdesk runs as root, so {path} cannot hold it. Name "
            "another directory with --state-dir (/var/lib/itdesk is a good one), or run itdesk "
            "as an ordinary user."
        )
    return path


def server_account() -> pwd.struct_passwd | None:
    """Return as whom the server must run: root may not, anybody else runs his own."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def closed_to(account: pwd.struct_passwd, path: Path) -> Path | None:
    """Return the first step on the way to `path` that the account may not enter, if any."""
    path = path.resolve()
    for step in (*reversed(path.parents), path):
        try:
            status = step.stat()
        except OSError:
            return None
        if status.st_uid == account.pw_uid:
            entry = stat.S_IXUSR
        elif status.st_gid == account.pw_gid:
            entry = stat.S_IXGRP
        else:
            entry = stat.S_IXOTH
        if not status.st_mode & entry:
            return step
    return None


class FileLock:
    """flock on a file that stays: gone with the process that held it, however it went."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def try_exclusive(self, note: str = "") -> bool:
        """Take the lock alone, now or not at all, and note who has it."""
        if not self._try(fcntl.LOCK_EX):
            return False
        assert self._fd is not None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, note.encode(), 0)
        return True

    def try_shared(self) -> bool:
        """Take the lock together with others, now or not at all."""
        return self._try(fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go; harmless when not held."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def read(self) -> str:
        """Return the last note."""
        try:
            return self._path.read_text()
        except OSError:
            return ""

    def _try(self, how: int) -> bool:
        held = self._fd is not None
        fd = (
            self._fd
            if self._fd is not None
            else os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        )
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if not held:
                os.close(fd)
            return False
        self._fd = fd
        return True
