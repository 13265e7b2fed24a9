"""What systemd's seccomp does to a service: python sandbox.py UNIT COMMAND... runs it that way.

The filters are those that systemd makes of SystemCallFilter= and MemoryDenyWriteExecute=, by the
same library, so that a unit can be tried where no systemd has booted.
"""

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

ALLOW, ERRNO = 0x7FFF0000, 0x00050000
MASKED_EQ = 7
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000
# systemd lets these through whatever a list says.
_ALWAYS = ("execve", "exit", "exit_group", "rt_sigreturn")


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]  # fmt: skip
    library.seccomp_load.argtypes = [ctypes.c_void_p]
    return library


def settings_of(unit: Path) -> dict[str, list[str]]:
    """Return every setting of a unit with its values, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def system_calls(filters: list[str]) -> set[str]:
    """Return the names of the calls that such lines of SystemCallFilter= allow."""
    allowed: set[str] = set(_ALWAYS)
    for line in filters:
        names = {name for word in line.removeprefix("~").split() for name in _expanded(word)}
        allowed = allowed - names if line.startswith("~") else allowed | names
    return allowed | set(_ALWAYS)


def _expanded(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = [line.strip() for line in listed.splitlines()[1:]]
    return {
        inner for name in names if name and not name.startswith("#") for inner in _expanded(name)
    }


def confine(unit: Path) -> None:
    """Put this process, and all that it starts, under the filters of a unit."""
    settings, library = settings_of(unit), _library()
    if settings.get("MemoryDenyWriteExecute") == ["yes"]:
        context = library.seccomp_init(ALLOW)
        for name, arg, mask in (
            ("mmap", 2, PROT_WRITE | PROT_EXEC),
            ("mprotect", 2, PROT_EXEC),
            ("pkey_mprotect", 2, PROT_EXEC),
            ("shmat", 2, SHM_EXEC),
        ):
            comparison = _Comparison(arg, MASKED_EQ, mask, mask)
            _add(library, context, ERRNO | errno.EPERM, name, comparison)
        _done(library.seccomp_load(context))
    context = library.seccomp_init(ERRNO | errno.EPERM)
    for name in sorted(system_calls(settings["SystemCallFilter"])):
        _add(library, context, ALLOW, name)
    _done(library.seccomp_load(context))


def _add(
    library: ctypes.CDLL, context: int, action: int, name: str, *comparisons: _Comparison
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return  # not of this machine's architecture
    array = (_Comparison * len(comparisons))(*comparisons)
    _done(library.seccomp_rule_add_array(context, action, number, len(comparisons), array))


def _done(status: int) -> None:
    if status != 0:
        raise OSError(-status, os.strerror(-status))


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
