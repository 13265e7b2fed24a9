"""What the desk relies on in any storage, as tests: subclass it and give the `storage` fixture.

class TestS3(StorageConformance):
    @pytest.fixture
    async def storage(self): ...
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import cast
from uuid import uuid4

import pytest

from itdesk.errors import BadRequest, NotFound, TooLarge
from itdesk.hookspecs import Listed, Storage, Stored

MIB = 1 << 20

# Names that people and attackers give to files; a key is none of them.
HOSTILE = [
    "", ".", "..", "/", "//", "/etc/passwd", "../x", "a/../../x", "a/..", "a/./b", "a//b", "a/",
    "/a", "..\\x", "a\\b", "C:\\x", "C:x", "\\\\host\\share", "a\x00b", "a\x00", "\x00", "a b",
    " a", "a ", "a\n", "\na", "a\r\nSet-Cookie: x", "a\tb", "a\x7f", "\x1b[31m", "%2e%2e/x",
    "%2e%2e%2fx", "a%00", "a%2fb", "~", "~root/x", "$HOME", "`id`", "$(id)", "a;b", "a|b",
    "a&b", "a>b", "a<b", "a'b", 'a"b', "a*", "a?", "a[b]", "a{b}", "a:b", "a@b", "a=b", "a+b",
    "a,b", "a!b", "a#b", "a^b", "(a)", "file:///x", "http://x/y", "\u202egnp.exe",
    "a\u200b.png", "\u2024\u2024/x", "\uff0e\uff0e/x", "a\uff0fb", "a\u2215b", "a\u2044b",
    "\u2025/x", "\xe4", "\u0661", "\u0130", "a\u0301", "\ud800", "\ufeffa", "\xa0",
    "a/" * 600 + "a", "a" * 4096, "tickets/" + "b" * 256, "../" * 40 + "etc/passwd",
    "....//x/\u2026", "CON ", "NUL:", "COM1\xb9", "a/..\x00/b", "incoming~", "incoming~/x",
    "a/~/b",
]  # fmt: skip


async def chunked(content: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    """Yield content as a client sends it."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def content_of(storage: Storage, key: str) -> bytes:
    """Return a whole object."""
    return b"".join([chunk async for chunk in storage.read(key)])


def new_key() -> str:
    """Return a key as the desk makes them."""
    return f"tickets/{uuid4()}/{uuid4()}"


async def put(storage: Storage, key: str, content: bytes) -> Stored:
    """Store a small object."""
    return await storage.write(key, chunked(content), limit=len(content))


async def listed(storage: Storage, prefix: str) -> list[Listed]:
    """Return everything below a prefix, having looked at how it was told."""
    pages = [page async for page in storage.list(prefix)]
    assert all(len(page) <= 1000 for page in pages)
    found = [each for page in pages for each in page]
    keys = [each.key for each in found]
    assert keys == sorted(keys, key=str.encode) and len(set(keys)) == len(keys)
    return found


class StorageConformance:
    """What holds for every storage."""

    @pytest.mark.parametrize("size", [0, 1, 65536, MIB - 1, MIB, MIB + 1, 5 * MIB + 7, 12 * MIB])
    async def test_what_was_written_is_read(self, storage: Storage, size: int) -> None:
        key, content = new_key(), os.urandom(size)
        stored = await storage.write(key, chunked(content), limit=size)
        assert stored == Stored(size, hashlib.sha256(content).hexdigest())
        assert await content_of(storage, key) == content
        found = await storage.stat(key)
        assert found is not None and found.size == size
        assert found.sha256 in (None, stored.sha256)

    async def test_chunks_of_any_size_are_taken(self, storage: Storage) -> None:
        async def uneven() -> AsyncIterator[bytes]:
            for chunk in (b"", b"a", b"", bytes(3 * MIB), b"z" * 17, b""):
                yield chunk

        stored = await storage.write("uneven/object", uneven(), limit=4 * MIB)
        assert stored.size == 3 * MIB + 18

    async def test_chunks_read_are_at_most_a_mebibyte(self, storage: Storage) -> None:
        key = new_key()
        await put(storage, key, bytes(3 * MIB + 5))
        sizes = [len(chunk) async for chunk in storage.read(key)]
        assert sum(sizes) == 3 * MIB + 5 and 0 < min(sizes) and max(sizes) <= MIB

    async def test_a_missing_object_is_none(self, storage: Storage) -> None:
        key = new_key()
        assert await storage.stat(key) is None
        with pytest.raises(NotFound):
            await content_of(storage, key)
        await storage.delete(key)

    async def test_a_folder_is_no_object(self, storage: Storage) -> None:
        key = new_key()
        await put(storage, key, b"x")
        folder = key.rsplit("/", 1)[0]
        assert await storage.stat(folder) is None
        with pytest.raises(NotFound):
            await content_of(storage, folder)
        await storage.delete(folder)
        assert await content_of(storage, key) == b"x"

    async def test_below_an_object_is_nothing(self, storage: Storage) -> None:
        key = new_key()
        await put(storage, key, b"x")
        assert await storage.stat(f"{key}/below") is None
        with pytest.raises(NotFound):
            await content_of(storage, f"{key}/below")
        await storage.delete(f"{key}/below")

    async def test_a_deleted_object_is_gone_and_its_neighbours_are_not(
        self, storage: Storage
    ) -> None:
        ticket = f"tickets/{uuid4()}"
        await put(storage, f"{ticket}/a", b"a")
        await put(storage, f"{ticket}/b", b"b")
        await storage.delete(f"{ticket}/a")
        await storage.delete(f"{ticket}/a")
        assert await storage.stat(f"{ticket}/a") is None
        assert await content_of(storage, f"{ticket}/b") == b"b"

    async def test_a_later_write_replaces_an_earlier_one(self, storage: Storage) -> None:
        key = new_key()
        await put(storage, key, b"a long first one")
        await put(storage, key, b"second")
        assert await content_of(storage, key) == b"second"

    @pytest.mark.parametrize("size", [11, 2 * MIB, 8 * MIB])
    async def test_an_object_over_the_limit_is_cut_while_it_comes(
        self, storage: Storage, size: int
    ) -> None:
        key, seen = new_key(), 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal seen
            while True:
                seen += 65536
                yield bytes(65536)

        with pytest.raises(TooLarge):
            await storage.write(key, endless(), limit=size)
        assert seen <= size + 65536
        assert await storage.stat(key) is None

    async def test_a_client_that_breaks_off_leaves_the_older_object(self, storage: Storage) -> None:
        class Gone(OSError):
            """The client hung up."""

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(3 * MIB)
            raise Gone

        key = new_key()
        await put(storage, key, b"older")
        with pytest.raises(Gone):
            await storage.write(key, broken(), limit=9 * MIB)
        assert await content_of(storage, key) == b"older"

    async def test_a_cancelled_write_leaves_nothing(self, storage: Storage) -> None:
        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(3 * MIB)
            await asyncio.Event().wait()

        key = new_key()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await storage.write(key, stuck(), limit=9 * MIB)
        assert await storage.stat(key) is None

    async def test_of_concurrent_writers_one_wins_whole(self, storage: Storage) -> None:
        key = new_key()
        contents = [bytes([n]) * (MIB + n) for n in range(8)]
        await asyncio.gather(*(put(storage, key, content) for content in contents))
        assert await content_of(storage, key) in contents

    async def test_a_reader_sees_one_whole_object_while_it_is_replaced(
        self, storage: Storage
    ) -> None:
        key = new_key()
        contents = [bytes([n]) * (2 * MIB + n) for n in range(6)]
        await put(storage, key, contents[0])

        async def replace() -> None:
            for content in contents:
                await put(storage, key, content)

        async def look() -> None:
            for _ in range(12):
                assert await content_of(storage, key) in contents

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(replace())
            tasks.create_task(look())
            tasks.create_task(look())

    async def test_writes_and_deletes_of_one_ticket_do_not_disturb_each_other(
        self, storage: Storage
    ) -> None:
        ticket = f"tickets/{uuid4()}"

        async def churn(name: int) -> None:
            for _ in range(25):
                await put(storage, f"{ticket}/{name}", b"x")
                assert await content_of(storage, f"{ticket}/{name}") == b"x"
                await storage.delete(f"{ticket}/{name}")

        await asyncio.gather(*(churn(name) for name in range(8)))

    async def test_a_reader_may_stop_early(self, storage: Storage) -> None:
        key = new_key()
        await put(storage, key, bytes(5 * MIB))
        reading = cast(AsyncGenerator[bytes], storage.read(key))
        assert await anext(reading)
        await reading.aclose()
        await storage.delete(key)

    async def test_a_listing_tells_what_is_there_and_how_old(self, storage: Storage) -> None:
        area = f"clean/{uuid4()}"
        # In an order in which folders come between files of similar names.
        keys = [f"{area}/{name}" for name in ("a-b", "a.1", "a/0", "a/b/c", "a0", "b.10", "b.9")]
        for size, key in enumerate(reversed(keys)):
            await put(storage, key, bytes(size))
        await put(storage, f"{area}x/other", b"another folder")
        found = await listed(storage, f"{area}/")
        assert [each.key for each in found] == keys
        assert [each.size for each in found] == list(reversed(range(len(keys))))
        assert all(-2 < each.age < 600 for each in found)
        await storage.delete(keys[0])
        assert [each.key for each in await listed(storage, f"{area}/")] == keys[1:]
        assert [each.key for each in await listed(storage, f"{area}/a/")] == keys[2:4]
        assert await listed(storage, f"{area}/nothing/") == []

    async def test_a_long_listing_comes_in_pages(self, storage: Storage) -> None:
        area = f"clean/{uuid4()}"
        keys = {f"{area}/{number % 7}/{number}" for number in range(1030)}
        few = asyncio.Semaphore(16)

        async def add(key: str) -> None:
            async with few:
                await put(storage, key, b"")

        await asyncio.gather(*map(add, keys))
        assert {each.key for each in await listed(storage, f"{area}/")} == keys

    @pytest.mark.parametrize("prefix", ["", "/", "clean", "../", "clean//", "a b/", "clean/../"])
    async def test_what_is_no_folder_is_not_listed(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(BadRequest) as caught:
            await listed(storage, prefix)
        assert caught.value.code == "E_STORAGE_KEY"

    async def test_a_sweep_spares_what_is_whole_or_on_its_way(self, storage: Storage) -> None:
        key, on = f"clean/{uuid4()}", asyncio.Event()
        await put(storage, f"{key}.1", b"whole")

        async def slowly() -> AsyncIterator[bytes]:
            yield bytes(9 * MIB)
            await on.wait()
            yield b"the end"

        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(storage.write(f"{key}.2", slowly(), limit=10 * MIB))
            await storage.sweep(older_than=3600)
            on.set()
        assert writing.result().size == 9 * MIB + 7
        assert [each.key for each in await listed(storage, "clean/") if each.key.startswith(key)]
        assert await content_of(storage, f"{key}.1") == b"whole"

    @pytest.mark.parametrize("key", HOSTILE, ids=range(len(HOSTILE)))
    async def test_what_is_no_key_is_refused_by_every_method(
        self, storage: Storage, key: str
    ) -> None:
        for attempt in (
            storage.write(key, chunked(b"x"), limit=1),
            content_of(storage, key),
            storage.stat(key),
            storage.delete(key),
        ):
            with pytest.raises(BadRequest) as caught:
                await attempt
            assert caught.value.code == "E_STORAGE_KEY"

    async def test_a_check_passes_and_may_be_repeated(self, storage: Storage) -> None:
        await storage.check()
        await asyncio.gather(*(storage.check() for _ in range(4)))
