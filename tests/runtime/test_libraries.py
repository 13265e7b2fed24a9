"""The pages of libraries that only the start read go back to the system, and nothing else does."""

import ctypes
import platform
import subprocess
import sys

import orjson
import pytest

from itdesk.runtime.libraries import _has_text_relocations, _Segment

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.architecture()[0] != "64bit", reason="only 64-bit Linux"
)

# Everything that the daemon maps; afterwards each of them is used.
PROGRAM = """
import bz2, decimal, hashlib, json, lzma, re, ssl, zlib
import itdesk.daemon, orjson
from cryptography.hazmat.primitives.asymmetric import rsa
from itdesk.runtime.libraries import forget_libraries
from pydantic import TypeAdapter

def kib():
    found = dict.fromkeys(("Rss", "Anonymous"), 0)
    for line in open("/proc/self/smaps"):
        if new := re.match("[0-9a-f]+-[0-9a-f]+ .*", line):
            library = ".so" in new[0]
        name, _, size = line.partition(":")
        if library and name in found:
            found[name] += int(size.split()[0])
    return found

before = kib()
forget_libraries()
after = kib()
rsa.generate_private_key(65537, 1024)
ssl.create_default_context()
for module in bz2, lzma, zlib:
    assert module.decompress(module.compress(b"desk")) == b"desk"
assert orjson.loads(orjson.dumps({"a": 1})) == TypeAdapter(dict[str, int]).validate_json('{"a":1}')
assert hashlib.sha512(b"").hexdigest()[:6] == "cf83e1" and decimal.Decimal("0.1") * 3 < 1
print(json.dumps([before, after]))
"""


def test_what_the_start_read_of_libraries_goes_and_what_was_written_stays() -> None:
    """T9: less than half is left; a lost page of the loader's would be a crash sooner or later."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    before, after = orjson.loads(done.stdout)
    assert after["Anonymous"] >= before["Anonymous"] > 0
    assert after["Rss"] - after["Anonymous"] < (before["Rss"] - before["Anonymous"]) / 2


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([(22, 0)], True),
        ([(30, 8 | 4)], True),
        ([(30, 8)], False),
        ([(5, 22), (4, 30)], False),
    ],
    ids=["by its tag", "by its flag", "other flags", "values are no tags"],
)
def test_code_that_the_loader_wrote_to_is_recognised(
    entries: list[tuple[int, int]], found: bool
) -> None:
    words = [word for entry in [*entries, (0, 0)] for word in entry]
    table = (ctypes.c_uint64 * len(words))(*words)
    dynamic = _Segment(address=ctypes.addressof(table), memory=ctypes.sizeof(table))
    assert _has_text_relocations(0, dynamic) is found
