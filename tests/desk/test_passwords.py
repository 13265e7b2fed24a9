"""Passwords (S-18, P-08, S-05, S2-60)."""

import asyncio
import base64
import hashlib
import threading
import time
import unicodedata
from collections.abc import Iterator
from typing import Any

import bcrypt
import pytest

from itdesk.desk.passwords import Passwords, common_passwords, random_password
from itdesk.errors import Invalid, Unavailable
from itdesk.runtime.clock import FakeClock

GOOD = "violet-tractor-9"


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords(4)
    yield made
    made.close()


class Gate:
    """Stands in for bcrypt and holds its threads until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.ran = 0
        monkeypatch.setattr(bcrypt, "checkpw", self._check)

    def _check(self, password: bytes, stored: bytes) -> bool:
        self.ran += 1
        self.entered.release()
        assert self.opened.wait(10), "nobody opened the gate: the loop was held"
        return True


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


STORED = bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode()


# What is stored


async def test_a_password_is_verified_by_its_hash(passwords: Passwords) -> None:
    stored = await passwords.hash(GOOD)
    assert await passwords.verify(GOOD, stored)
    assert not await passwords.verify(GOOD + "x", stored)
    assert not await passwords.verify(GOOD.upper(), stored)
    assert not await passwords.verify("", stored)


async def test_hashes_are_bcrypt_and_salted(passwords: Passwords) -> None:
    """S2-60: `$2b$`, and the same password twice gives two hashes."""
    first, second = await passwords.hash(GOOD), await passwords.hash(GOOD)
    assert first.startswith("$2b$04$")
    assert first != second
    digest = base64.b64encode(hashlib.sha256(GOOD.encode()).digest())
    assert bcrypt.checkpw(digest, first.encode())


async def test_the_default_cost_is_twelve() -> None:
    """S-18: bcrypt cost 12."""
    passwords = Passwords()
    try:
        assert passwords.needs_rehash(STORED.replace("$04$", "$11$"))
        assert not passwords.needs_rehash(STORED.replace("$04$", "$12$"))
    finally:
        passwords.close()


async def test_nothing_is_cut(passwords: Passwords) -> None:
    """S-18, S2-60: 72 shared bytes differ in the 73rd; so do 199 characters in the 200th."""
    for shared in (71, 72, 199):
        stored = await passwords.hash("a" * shared + "1")
        assert await passwords.verify("a" * shared + "1", stored)
        assert not await passwords.verify("a" * shared + "2", stored)
        assert not await passwords.verify("a" * shared, stored)
    umlauts = "\u00e4" * 40 + "1"
    assert not await passwords.verify("\u00e4" * 40 + "2", await passwords.hash(umlauts))


async def test_the_pre_hash_may_contain_a_nul_byte(passwords: Passwords) -> None:
    """bcrypt stops at NUL: raw digests would make these two passwords equal."""
    found: dict[bytes, str] = {}
    number = 0
    while True:
        digest = hashlib.sha256(f"candidate {number}".encode()).digest()
        if digest[1] == 0:
            if digest[:1] in found:
                break
            found[digest[:1]] = f"candidate {number}"
        number += 1
    stored = await passwords.hash(found[digest[:1]])
    assert not await passwords.verify(f"candidate {number}", stored)


async def test_one_password_in_two_normal_forms_is_one(passwords: Passwords) -> None:
    """S-18: Unicode NFC and NFD, and the compatibility forms (NFKC)."""
    text = "Z\u00fcrich \u00e9t\u00e9 \ufb01n 9"
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")]
    assert len(set(forms)) == 4
    stored = await passwords.hash(forms[0])
    for form in forms:
        assert not passwords.check_acceptable(form)
        assert await passwords.verify(form, stored)
    assert not await passwords.verify("Zurich ete fin 9", stored)


@pytest.mark.parametrize(
    "password", ["good enough\0", "\0" * 8, "bad \ud800 text", "\udfff" * 9, "a" * 201, "a" * 10**6]
)
async def test_unusable_passwords_are_refused_everywhere(
    passwords: Passwords, password: str
) -> None:
    """S-18: NUL, lone surrogates, over 200 characters: 422 and never 500."""
    assert len(passwords.check_acceptable(password)) == 1
    with pytest.raises(Invalid) as refused:
        await passwords.hash(password)
    assert refused.value.details["fields"][0]["path"] == "password"
    assert not await passwords.verify(password, STORED)
    assert not await passwords.verify(password, None)


async def test_an_endless_password_is_not_even_normalised(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-18: a megabyte of combining marks costs nothing."""
    lengths = []
    real = unicodedata.normalize

    def spy(form: Any, text: str) -> str:
        lengths.append(len(text))
        return real(form, text)

    monkeypatch.setattr(unicodedata, "normalize", spy)
    assert passwords.check_acceptable("\u0301" * 10**6)
    assert not await passwords.verify("\u0301" * 10**6, STORED)
    assert not lengths


# Who is unknown


async def test_nobody_has_no_password(passwords: Passwords) -> None:
    for stored in (None, "", "!", "$2b$", "$2b$04$" + "!" * 53, "x" * 60, STORED + "\n", GOOD):
        assert not await passwords.verify(GOOD, stored)


async def test_a_hash_with_an_impossible_salt_matches_nothing(passwords: Passwords) -> None:
    assert not await passwords.verify(GOOD, "$2b$04$" + "z" * 53)


async def test_an_unknown_user_costs_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-05: bcrypt runs once, at the same cost, whether or not there is a user."""
    costs = []
    real = bcrypt.checkpw

    def spy(password: bytes, stored: bytes) -> bool:
        costs.append(stored[:7])
        return real(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", spy)
    passwords = Passwords(5)
    try:
        stored = await passwords.hash(GOOD)
        for known in (stored, None, "", "not a hash"):
            await passwords.verify(GOOD, known)
    finally:
        passwords.close()
    assert costs == [b"$2b$05$"] * 4


async def test_nobody_is_refused_even_if_the_dummy_matches(
    passwords: Passwords, gate: Gate
) -> None:
    gate.opened.set()
    assert await passwords.verify(GOOD, STORED)
    assert not await passwords.verify(GOOD, None)


async def test_a_rising_cost_asks_for_a_new_hash(passwords: Passwords) -> None:
    """S-18: rehash on login when the cost setting rose, not when it fell."""
    stored = await passwords.hash(GOOD)
    stronger = Passwords(5)
    try:
        assert stronger.needs_rehash(stored)
        assert await stronger.verify(GOOD, stored)
        again = await stronger.hash(GOOD)
    finally:
        stronger.close()
    assert not passwords.needs_rehash(again)
    assert not passwords.needs_rehash(stored)
    assert passwords.needs_rehash("plain")


# The threads


async def test_the_loop_runs_while_a_password_is_hashed(passwords: Passwords, gate: Gate) -> None:
    """T11: the gate opens only if the loop gets a turn while bcrypt is at work."""
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(passwords.verify(GOOD, STORED))
        await asyncio.to_thread(gate.entered.acquire)
        assert not answer.done()
        gate.opened.set()
    assert answer.result()


async def test_bcrypt_at_full_cost_does_not_hold_the_loop() -> None:
    """P-08: loop lag <= 50 ms while logins are hashed at cost 12, about 200 ms each."""
    passwords = Passwords(12, threads=1)
    loop = asyncio.get_running_loop()
    beats = [time.perf_counter()]
    done = asyncio.Event()

    def beat() -> None:
        beats.append(time.perf_counter())
        if not done.is_set():
            loop.call_later(0.002, beat)

    try:
        async with asyncio.TaskGroup() as group:
            tries = [group.create_task(passwords.verify(GOOD, None)) for _ in range(3)]
            loop.call_soon(beat)
            await asyncio.wait(tries)
            done.set()
    finally:
        passwords.close()
    gaps = sorted(later - sooner for sooner, later in zip(beats, beats[1:], strict=False))
    assert beats[-1] - beats[0] > 0.1
    assert gaps[int(len(gaps) * 0.99)] <= 0.05


async def test_the_queue_is_bounded(gate: Gate) -> None:
    """P-08: the excess gets 503 with Retry-After, at once, and the rest is served."""
    passwords = Passwords(4, threads=2, queue=3)
    try:
        async with asyncio.TaskGroup() as group:
            served = [group.create_task(passwords.verify(GOOD, STORED)) for _ in range(5)]
            for _ in range(2):
                await asyncio.to_thread(gate.entered.acquire)
            for _ in range(3):
                with pytest.raises(Unavailable) as refused:
                    await passwords.verify(GOOD, STORED)
                assert refused.value.code == "E_BUSY"
                assert refused.value.status == 503
                assert refused.value.retry_after
            with pytest.raises(Unavailable):
                await passwords.hash(GOOD)
            gate.opened.set()
        assert all(task.result() for task in served)
        assert await passwords.verify(GOOD, STORED), "the places are free again"
    finally:
        gate.opened.set()
        passwords.close()


async def test_who_goes_away_gives_his_place_back(gate: Gate) -> None:
    passwords = Passwords(4, threads=1, queue=1)
    try:
        running = asyncio.ensure_future(passwords.verify(GOOD, STORED))
        await asyncio.to_thread(gate.entered.acquire)
        waiting = asyncio.ensure_future(passwords.verify(GOOD, STORED))
        await FakeClock().settle()
        for task in (running, waiting):
            task.cancel()
        await asyncio.wait([running, waiting])
        assert running.cancelled() and waiting.cancelled()
        # The thread is still at work for the first; only the second place is free.
        third = asyncio.ensure_future(passwords.verify(GOOD, STORED))
        await FakeClock().settle()
        with pytest.raises(Unavailable):
            await passwords.verify(GOOD, STORED)
        gate.opened.set()
        assert await third
        assert gate.ran == 2, "nobody hashed for who had gone away"
    finally:
        gate.opened.set()
        passwords.close()


async def test_closing_answers_who_still_waits(gate: Gate) -> None:
    """Stopping hangs on the hash at work alone, and leaves no thread."""
    passwords = Passwords(4, threads=1, queue=5)
    tasks = [asyncio.ensure_future(passwords.verify(GOOD, STORED)) for _ in range(3)]
    await asyncio.to_thread(gate.entered.acquire)

    def close() -> bool:
        passwords.close()
        return gate.opened.is_set()

    closing = asyncio.ensure_future(asyncio.to_thread(close))
    await asyncio.wait(tasks[1:])
    assert not tasks[0].done()
    gate.opened.set()
    assert await closing, "it waited for the hash at work"
    results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [bool, Unavailable, Unavailable]
    with pytest.raises(Unavailable):
        await passwords.verify(GOOD, STORED)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("password")]


# What is acceptable


@pytest.mark.parametrize(
    "password",
    [
        "kj4fw9pq",  # 8
        "z" * 200,
        "x9" * 32,
        "lowercaseonlyplease",
        "9183746520918",
        "        spaces      ",
        "\u043f\u0430\u0440\u043e\u043b\u044c\u0434\u043b\u044f\u043c\u0435\u043d\u044f",
        "\U0001f600" * 8,
        "tab\tand\nnewline",
    ],
)
def test_no_composition_rule(passwords: Passwords, password: str) -> None:
    """S-18: 8 to 200 characters of any kind."""
    assert passwords.check_acceptable(password, context=["alice@example.com", "Alice"]) == []


def test_the_minimum_is_a_setting(passwords: Passwords) -> None:
    """S-18: 8 minimum; 15 advised. A character is a code point, in NFKC."""
    assert "8 characters" in passwords.check_acceptable("kj4fw9p")[0]
    assert passwords.check_acceptable(unicodedata.normalize("NFD", "\u00e4\u00f6\u00fc\u00e9"))
    strict = Passwords(4, minimum=15)
    try:
        assert strict.check_acceptable("kj4fw9pqkj4fw9")
        assert not strict.check_acceptable("kj4fw9pqkj4fw9x")
    finally:
        strict.close()
    for impossible in (7, 201):
        with pytest.raises(ValueError, match="shortest"):
            Passwords(4, minimum=impossible)


def test_the_length_counts_characters_not_bytes(passwords: Passwords) -> None:
    assert not passwords.check_acceptable("\U0001f600" * 200)
    assert not passwords.check_acceptable(unicodedata.normalize("NFD", "\u00e4" * 200))
    assert passwords.check_acceptable("\ufdfa" * 12), "18 characters each in NFKC"


@pytest.mark.parametrize(
    "password",
    ["password", "PassWord1", "12345678", "qwertyuiop", "P@ssw0rd", "iloveyou", "Summer2026!"]
    + ["letmein123", "Password123!", "\uff50assword", " password ", "changeme", "admin@123"],
)
def test_common_passwords_are_refused(passwords: Passwords, password: str) -> None:
    """S-18."""
    assert "common" in passwords.check_acceptable(password)[0]


@pytest.mark.parametrize(
    "password",
    [
        "itdesk2026",
        "ITdesk-itdesk",
        "alice.jones",
        "Alice1234",
        "jonesalice!",
        "alicejones99",
        "AliceJones-itdesk",
        "12345678alice",
        "alice-password",
        "example1234",
    ],
)
def test_passwords_made_of_the_context_are_refused(passwords: Passwords, password: str) -> None:
    """S-18: the address, the name and the service are not secrets."""
    context = ["alice.jones@example.com", "Alice Jones"]
    assert "your name" in passwords.check_acceptable(password, context=context)[0]


@pytest.mark.parametrize("password", ["al.jo2026", "aljo2026", "aliceinwonderland9"])
def test_local_parts_count_whole_and_without_dots(passwords: Passwords, password: str) -> None:
    context = ["al.jo@x.org", "Alice", "aliceinwonderland@x.org"]
    assert passwords.check_acceptable(password, context=context)


def test_a_long_password_may_mention_the_context(passwords: Passwords) -> None:
    password = "my itdesk login, says Alice, is long"
    assert not passwords.check_acceptable(password, context=["alice@example.com", "Alice"])
    assert not passwords.check_acceptable("kbob93jfk", context=["bob@x.org", "Bob", "", "@"])


def test_the_common_list_is_usable() -> None:
    common = common_passwords()
    assert len(common) >= 300
    assert all(len(word) >= 8 and word == word.strip() for word in common)
    assert not any(word.startswith("#") for word in common)


def test_random_passwords_are_legible_and_acceptable(passwords: Passwords) -> None:
    made = {random_password() for _ in range(200)}
    assert len(made) == 200
    for password in made:
        assert len(password) >= 20
        assert not set(password) & set("0O1lIo")
        assert not passwords.check_acceptable(password, context=["admin@example.com"])
