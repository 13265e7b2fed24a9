"""Of the libraries a start reads far more than what follows: those pages need not stay with us.

They are the system's, which keeps the files in its cache as long as it likes; what is read again
comes back from there. Only what the loader left as the file has it is given back: anything else
would be lost.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

# Of elf.h and mman.h.
_LOADED, _DYNAMIC = 1, 2
_WRITABLE = 2
_TEXT_RELOCATIONS, _FLAGS, _FLAG_OF_THEM = 22, 30, 4
_DONTNEED = 4


class _Segment(ctypes.Structure):
    """Elf64_Phdr."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("physical", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("memory", ctypes.c_uint64),
        ("align", ctypes.c_uint64),
    ]


class _Library(ctypes.Structure):
    """The beginning of dl_phdr_info, which has the same in all versions."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
        ("segments", ctypes.POINTER(_Segment)),
        ("count", ctypes.c_uint16),
    ]


_Each = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Library), ctypes.c_size_t, ctypes.c_void_p)


def forget_libraries() -> None:
    """Give back the pages of the libraries that nobody wrote to."""
    # Python's lock is held meanwhile, for a thread that had it and loads a library would wait for
    # the loader's lock, which we have. With that one nothing is loaded or unloaded under us.
    loader: Any = ctypes.PyDLL(None)
    if sys.platform != "linux" or sys.maxsize < 2**63 - 1 or not hasattr(loader, "madvise"):
        return

    def forget(library: Any, size: int, nothing: object) -> int:
        for begin, end in _unwritten(library.contents):
            loader.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)
        return 0

    # Older versions of libffi need for a callback what a hardened service is denied.
    with suppress(MemoryError):
        loader.dl_iterate_phdr(_Each(forget), None)


def _unwritten(library: Any) -> Iterator[tuple[int, int]]:
    segments = [library.segments[number] for number in range(library.count)]
    if any(_has_text_relocations(library.base, one) for one in segments if one.type == _DYNAMIC):
        return
    for one in segments:
        if one.type == _LOADED and not one.flags & _WRITABLE:
            begin, page = library.base + one.address, mmap.PAGESIZE
            # Whole pages only: what lies beside may be another's.
            yield -(-begin // page) * page, (begin + one.size) // page * page


def _has_text_relocations(base: int, dynamic: Any) -> bool:
    words = (ctypes.c_uint64 * (dynamic.memory // 8)).from_address(base + dynamic.address)
    pairs = zip(words[::2], words[1::2], strict=False)
    return any(
        tag == _TEXT_RELOCATIONS or (tag == _FLAGS and value & _FLAG_OF_THEM)
        for tag, value in pairs
    )
