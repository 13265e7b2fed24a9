"""What the archive walk reaches, and what it calls a finding."""

import io
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itdesk.archives import OPAQUE, Finding, Limits, walk
from itdesk.model import ScanReason
from tests.support import samples

MIB = 1 << 20
Put = Callable[[bytes], Path]
MARKER = samples.eicar()


def short(value: object) -> str:
    # Compressed noise has another length each time, and every run has to name the same tests.
    return "bytes" if isinstance(value, bytes) else ""


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return write


def reason_of(path: Path, limits: Limits | None = None) -> str | None:
    finding = walk(path, limits)
    return finding.reason.value if finding else None


def members_of(path: Path) -> list[bytes]:
    found: list[bytes] = []
    assert walk(path, on_member=lambda member: found.append(member.read_bytes())) is None
    return found


@pytest.mark.parametrize(
    ("content", "levels"),
    [
        (samples.archive(("a", MARKER)), 1),
        (samples.archive(("a", MARKER), method=zipfile.ZIP_STORED), 1),
        (samples.archive(("a", MARKER), method=zipfile.ZIP_BZIP2), 1),
        (b"MZ" + bytes(5000) + samples.archive(("a", MARKER)), 1),
        (samples.archive(("a", MARKER)) + b"\0" * 10, 1),
        (samples.nested(3), 3),
        (samples.tarball(("a", MARKER)), 1),
        (samples.tarball(("a" * 300, MARKER)), 1),
        (samples.tarball(("a", MARKER), compression="gz"), 2),
        (samples.tarball(("a", MARKER), compression="bz2"), 2),
        (samples.tarball(("a", MARKER), compression="xz"), 2),
        (samples.compressed(MARKER, "gz"), 1),
        (samples.compressed(b"", "gz") + samples.compressed(MARKER, "gz"), 1),
        (samples.compressed(MARKER, "xz") + bytes(8), 1),
        (samples.tarball(("a.zip", samples.nested(2)), compression="gz"), 4),
    ],
    ids=short,
)
def test_every_member_is_offered_as_a_file(put: Put, content: bytes, levels: int) -> None:
    found = members_of(put(content))
    assert len(found) == levels and found[-1] == MARKER


def test_all_members_of_a_document_are_offered(put: Put) -> None:
    assert len(members_of(put(samples.document()))) == 3


def test_member_is_gone_after_the_walk_and_no_file_is_left(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[Path] = []
    assert walk(put(samples.nested(3)), on_member=seen.append) is None
    assert len(seen) == 3 and not any(path.exists() for path in seen)
    assert os.listdir(tmp_path) == ["upload"]


def test_only_one_member_a_level_is_kept(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "members").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "members"))
    kept: list[int] = []
    path = put(samples.tarball(("a.zip", samples.crowd(50)), ("b.zip", samples.crowd(50))))
    assert walk(path, on_member=lambda member: kept.append(len(os.listdir(member.parent)))) is None
    assert len(kept) == 102 and max(kept) == 2


def test_what_the_callback_raises_reaches_the_caller(put: Put) -> None:
    def refuse(path: Path) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        walk(put(samples.nested(1)), on_member=refuse)


def walked_without_room(path: Path) -> subprocess.CompletedProcess[str]:
    """Walk in a process that can write no byte into any file."""
    code = (
        "import resource, signal, sys, tempfile; from pathlib import Path;"
        "from itdesk.archives import walk; tempfile.tempdir = '/tmp';"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); print(walk(Path(sys.argv[1])))"
    )
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)


def test_full_disk_is_not_taken_for_a_broken_archive(put: Put) -> None:
    done = walked_without_room(put(samples.archive(("a", bytes(2 * MIB)))))
    assert done.returncode == 1 and "OSError: [Errno 27]" in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        samples.document(),
        samples.nested(3),
        samples.archive(("a", bytes(MIB))),
        samples.tarball(*[(str(n), bytes(MIB)) for n in range(5)]),
    ],
    ids=["document", "nested", "a whole MiB", "several"],
)
def test_members_of_a_mib_are_inflated_in_memory(put: Put, content: bytes) -> None:
    done = walked_without_room(put(content))
    assert (done.stdout, done.returncode) == ("None\n", 0), done.stderr


@pytest.mark.parametrize(
    "content",
    [
        samples.encrypted_zip(b"x"),
        samples.archive(("a.zip", samples.encrypted_zip(b"x"))),
        samples.tarball(("a.zip", samples.encrypted_zip(b"x")), compression="gz"),
        samples.archive(
            ("mimetype", b"application/vnd.oasis.opendocument.text"),
            ("META-INF/manifest.xml", b"<manifest:encryption-data manifest:checksum='x'/>"),
        ),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
        + bytes(70_000)
        + "EncryptedPackage".encode("utf-16-le"),
    ],
    ids=["zip", "nested", "in-tar", "odf", "ooxml"],
)
def test_encrypted_content_is_a_finding(put: Put, content: bytes) -> None:
    assert reason_of(put(content)) == "encrypted"


def test_aes_member_is_encrypted_though_no_flag_says_so(put: Put) -> None:
    content = bytearray(samples.archive(("a", MARKER)))
    content[8:10] = content[content.index(b"PK\x01\x02") + 10 :][:2] = (99).to_bytes(2, "little")
    assert reason_of(put(bytes(content))) == "encrypted"


@pytest.mark.parametrize("where", [b"PK\x03\x04", b"PK\x01\x02"])
def test_encryption_flag_counts_in_either_header(put: Put, where: bytes) -> None:
    content = bytearray(samples.archive(("a", MARKER)))
    content[content.index(where) + (6 if where == b"PK\x03\x04" else 8)] |= 1
    assert reason_of(put(bytes(content))) == "encrypted"


@pytest.mark.parametrize(
    ("content", "limits"),
    [
        (samples.nested(4), Limits()),
        (samples.nested(25), Limits()),
        (samples.crowd(1_001), Limits()),
        (samples.crowd(10_050), Limits()),
        (samples.inflating(105_000_000), Limits()),
        (samples.inflating_document(27_000_000), Limits()),
        (samples.archive(("a", os.urandom(2000))), Limits(member_bytes=1999)),
        (samples.archive(("a", b"x" * 999), ("b", b"x" * 999)), Limits(total_bytes=1997)),
        (samples.compressed(bytes(20 * MIB), "gz"), Limits()),
        (samples.compressed(bytes(20 * MIB), "bz2"), Limits()),
        (samples.compressed(bytes(20 * MIB), "xz"), Limits()),
        (lzma.compress(b"x", preset=9), Limits()),
        (samples.tarball(*[(str(n), b"") for n in range(1001)]), Limits()),
    ],
    ids=short,
)
def test_too_much_is_a_finding(put: Put, content: bytes, limits: Limits) -> None:
    assert reason_of(put(content), limits) == "limits"


@pytest.mark.parametrize(
    ("content", "limits"),
    [
        (samples.nested(3), Limits()),
        (samples.crowd(1_000), Limits()),
        (samples.archive(("a", os.urandom(2000))), Limits(member_bytes=2000)),
        (samples.archive(("a", b"x" * 999), ("b", b"x" * 999)), Limits(total_bytes=1998)),
        (samples.archive(("a", bytes(8 * MIB))), Limits()),
        (samples.archive(("a", os.urandom(1000) * 9000)), Limits()),
    ],
    ids=short,
)
def test_limits_themselves_pass(put: Put, content: bytes, limits: Limits) -> None:
    assert walk(put(content), limits) is None


def test_declared_sizes_are_not_believed(put: Put) -> None:
    content = bytearray(samples.inflating(20 * MIB))
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = content.rindex(signature) + at
        content[place : place + 4] = (5).to_bytes(4, "little")
    assert reason_of(put(bytes(content)), Limits(ratio=10_000, member_bytes=MIB)) == "limits"


@pytest.mark.parametrize("content", [b"", os.urandom(99)], ids=short)
def test_walking_has_a_deadline(put: Put, content: bytes) -> None:
    members = [(str(number), content) for number in range(900)]
    path = put(samples.archive(*members, method=zipfile.ZIP_STORED))
    assert walk(path, seconds=0) == Finding(
        ScanReason.TIMEOUT, "looking into the archive took too long"
    )


def test_tar_without_members_has_a_deadline_too(put: Put) -> None:
    path = put(samples.tarball(("a", b"")))
    content = bytearray(path.read_bytes()[:512])
    content[156:157] = b"5"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    path.write_bytes(bytes(content) * 20_000)
    assert reason_of(path) is None
    finding = walk(path, seconds=0)
    assert finding is not None and finding.reason is ScanReason.TIMEOUT


ZIP = samples.archive(("a.com", MARKER * 9), ("b.txt", b"harmless"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        ZIP[:40],
        ZIP[:-30],
        ZIP[:-60] + ZIP[-22:],
        ZIP.replace(b"a.com", b"b.com", 1),
        samples.compressed(os.urandom(999), "gz")[:-5],
        samples.compressed(os.urandom(999), "gz")[:-8] + bytes(8),
        samples.compressed(os.urandom(999), "gz") + b"appended",
        samples.compressed(os.urandom(999), "xz")[:-20],
        samples.compressed(os.urandom(999), "bz2")[:-5],
        samples.tarball(("a", b"x" * 5000))[:3000],
        samples.tarball(("a", b"x" * 5000))[:5632] + os.urandom(512),
    ],
    ids=short,
)
def test_cut_or_contradictory_content_is_a_finding(put: Put, content: bytes) -> None:
    assert reason_of(put(content)) == "unreadable"


def test_wrong_checksum_is_a_finding(put: Put) -> None:
    content = bytearray(samples.archive(("a", b"harmless"), method=zipfile.ZIP_STORED))
    content[content.index(b"harmless")] ^= 1
    assert reason_of(put(bytes(content))) == "unreadable"


def test_unknown_zip_method_is_a_finding(put: Put) -> None:
    content = samples.archive(("a", b"harmless" * 99), method=zipfile.ZIP_LZMA)
    assert reason_of(put(content)) == "unreadable"


@pytest.mark.parametrize(
    "content",
    [b"hello", samples.png(), samples.plain_pdf(), samples.mail("a.txt", b"x"), bytes(4096)],
    ids=short,
)
def test_other_files_are_no_finding(put: Put, content: bytes) -> None:
    assert walk(put(content)) is None


@pytest.mark.parametrize("kind", OPAQUE)
def test_archives_that_cannot_be_walked_are_a_finding_when_asked(put: Put, kind: str) -> None:
    offset, magic = OPAQUE[kind]
    path = put(bytes(offset) + magic + bytes(600))
    assert walk(path) is None
    assert reason_of(path, Limits(opaque=False)) == "unreadable"


def pax(record: bytes, *, size: int) -> bytes:
    """Return a tar whose one member has this pax record and says it has `size` bytes."""
    note, entry = tarfile.TarInfo("note"), tarfile.TarInfo("a.com")
    note.type, note.size, entry.size = b"x", len(record), size
    blocks = [note.tobuf(), record, entry.tobuf(), MARKER, bytes(1024)]
    return b"".join(block + bytes(-len(block) % 512) for block in blocks)


def test_size_in_a_pax_record_is_followed(put: Put) -> None:
    assert members_of(put(pax(b"11 size=68\n", size=0))) == [MARKER]


def test_huge_pax_record_is_a_finding(put: Put) -> None:
    assert reason_of(put(pax(b"x" * (MIB + 1), size=68))) == "limits"


def test_offset_outside_of_the_zip_is_a_finding(put: Put) -> None:
    content = bytearray(ZIP)
    place = content.index(b"PK\x01\x02") + 42
    content[place : place + 4] = (2**31).to_bytes(4, "little")
    assert reason_of(put(bytes(content))) == "unreadable"


@pytest.mark.parametrize("offset", [2**40, 2**63, 2**64 - 1])
def test_wide_offset_outside_of_the_zip_is_a_finding(put: Put, offset: int) -> None:
    start = ZIP.index(b"PK\x01\x02")
    entry = bytearray(ZIP[start : start + 51])
    entry[30:32], entry[42:46] = (12).to_bytes(2, "little"), b"\xff" * 4
    entry += b"\x01\x00\x08\x00" + offset.to_bytes(8, "little")
    end = b"PK\x05\x06" + bytes(4) + b"\1\0" * 2
    end += len(entry).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    assert reason_of(put(ZIP[:start] + bytes(entry) + end)) == "unreadable"


def test_zip64_fields_are_followed(put: Put) -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as writer,
        writer.open("a.com", "w", force_zip64=True) as member,
    ):
        member.write(MARKER)
    assert members_of(put(buffer.getvalue())) == [MARKER]


def test_streamed_zip_with_sizes_after_the_content_is_followed(put: Put) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.content = b""

        def writable(self) -> bool:
            return True

        def write(self, content: bytes) -> int:  # type: ignore[override]
            self.content += bytes(content)
            return len(content)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("a.com", MARKER)
    assert members_of(put(pipe.content)) == [MARKER]


def test_directory_of_many_lies_is_read_without_holding_it(put: Put) -> None:
    entry = ZIP[ZIP.index(b"PK\x01\x02") : ZIP.index(b"PK\x01\x02") + 51]
    many = entry * 150_000
    start = ZIP.index(b"PK\x01\x02")
    end = b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2
    end += len(many).to_bytes(4, "little") + start.to_bytes(4, "little") + bytes(2)
    path = put(ZIP[:start] + many + end)
    assert reason_of(path) == "limits"


def test_walk_holds_only_a_few_mib(put: Put) -> None:
    path = put(samples.archive(("a", os.urandom(1000) * 60_000)))
    code = (
        "import re, sys; from pathlib import Path; from itdesk.archives import walk;"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"
        "before = peak(); assert walk(Path(sys.argv[1])) is None; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert int(done.stdout) < 4 * 1024, "KiB"


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_archives_end_in_an_answer(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from(
            [
                ZIP,
                samples.document(),
                samples.tarball(("a", MARKER), ("b", b"x" * 600)),
                samples.tarball(("a", MARKER), compression="xz"),
                samples.compressed(b"x" * 3000, "gz"),
                samples.compressed(b"x" * 3000, "bz2"),
            ]
        )
    )
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    path = tmp_path / "damaged"
    path.write_bytes(bytes(content[:cut]) if data.draw(st.booleans()) else bytes(content))
    finding = walk(path, Limits(total_bytes=MIB), seconds=5)
    assert finding is None or finding.reason is not ScanReason.TIMEOUT
