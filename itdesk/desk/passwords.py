"""What becomes of a password: NFKC, SHA-256, base64, then bcrypt, on threads of its own.

The pre-hash lifts bcrypt's limit of 72 bytes, so nothing is ever cut. NFKC is the form of
NIST SP 800-63B (5.1.1.2): the same password typed on two keyboards has one hash.
"""

import asyncio
import base64
import hashlib
import os
import re
import secrets
import threading
import unicodedata
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ParamSpec, TypeVar

import bcrypt

from itdesk.errors import Invalid, Unavailable

LONGEST = 200
SHORTEST = 8
SERVICE = "itdesk"

# Decomposed text is longer than it counts; what exceeds this even then is not worth normalising.
_LONGEST_RAW = 4 * LONGEST
_STORED = re.compile(r"\$2b\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_LEGIBLE = "abcdefghjkmnpqrstuvwxyz23456789"
_QUEUE_PER_THREAD = 16
_NICENESS = 5

P = ParamSpec("P")
T = TypeVar("T")


class Passwords:
    """Hashes and checks passwords without ever holding the event loop."""

    def __init__(
        self,
        cost: int = 12,
        *,
        minimum: int = SHORTEST,
        threads: int | None = None,
        queue: int | None = None,
    ) -> None:
        if not 4 <= cost <= 20:
            raise ValueError("bcrypt cost must be between 4 and 20")
        if not SHORTEST <= minimum <= LONGEST:
            raise ValueError(f"the shortest password must have {SHORTEST} to {LONGEST} characters")
        self._cost = cost
        self._minimum = minimum
        self._common = common_passwords()
        # bcrypt computes a hash to compare with any well-formed one: no need to make a real one.
        self._nobody = bcrypt.gensalt(cost).decode() + "." * 31
        threads = threads or max(1, len(os.sched_getaffinity(0)) - 1)
        queue = threads * _QUEUE_PER_THREAD if queue is None else queue
        self._room = threading.BoundedSemaphore(threads + queue)
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="password", initializer=_give_way
        )
        self._closed = False

    async def hash(self, password: str) -> str:
        """Return what to store for a password; Invalid if no verifier could ever accept it."""
        if problems := _unusable(password):
            raise Invalid.field("password", problems[0])
        salt = bcrypt.gensalt(self._cost)
        return (await self._run(bcrypt.hashpw, _prehash(password), salt)).decode()

    async def verify(self, password: str, stored: str | None) -> bool:
        """Tell whether the password is the stored one; None (nobody) takes as long to refuse."""
        if _unusable(password):
            return False
        known = stored if stored is not None and _STORED.fullmatch(stored) else None
        same = await self._run(_matches, _prehash(password), (known or self._nobody).encode())
        return same and known is not None

    def needs_rehash(self, stored: str) -> bool:
        """Tell whether a verified password should be hashed anew: it cost less than today's."""
        known = _STORED.fullmatch(stored)
        return known is None or int(known[1]) < self._cost

    def check_acceptable(self, password: str, *, context: Iterable[str] = ()) -> list[str]:
        """Return what is wrong with a new password; context is the user's e-mail and names."""
        if problems := _unusable(password):
            return problems
        text = _normalised(password)
        if len(text) < self._minimum:
            problems.append(f"must have at least {self._minimum} characters")
        folded = text.casefold().strip()
        if folded in self._common:
            problems.append("is one of the most common passwords")
        elif self._built_on(folded, _words(context)):
            problems.append("is little more than your name, your address or this service's name")
        return problems

    async def hash_new(self, password: str, *context: str, path: str = "password") -> str:
        """Return what to store for a new password; Invalid with all that is wrong with it."""
        problems = self.check_acceptable(password, context=context)
        if problems:
            fields = [{"path": path, "problem": problem} for problem in problems]
            raise Invalid(f"The password {problems[0]}.", details={"fields": fields})
        return await self.hash(password)

    def close(self) -> None:
        """Stop the threads; who still waits for one gets Unavailable."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _built_on(self, folded: str, words: list[str]) -> bool:
        rest = folded
        for word in words:
            rest = rest.replace(word, "")
        if rest == folded:
            return False
        return len(rest) < self._minimum or re.sub(r"^\W+|\W+$", "", rest) in self._common

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._room.acquire(blocking=False):
            raise Unavailable("Too many people are signing in at once.", code="E_BUSY")
        try:
            future = self._pool.submit(work, *args, **kwargs)
        except RuntimeError as exc:
            raise Unavailable("The service is stopping.", code="E_BUSY") from exc
        # The place is free when the thread is, not when the caller has gone away.
        future.add_done_callback(lambda _: self._room.release())
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise Unavailable("The service is stopping.", code="E_BUSY") from None
            raise


def random_password() -> str:
    """Return a password of 29 characters (123 bits) that can be read out over the phone."""
    groups = ("".join(secrets.choice(_LEGIBLE) for _ in range(5)) for _ in range(5))
    return "-".join(groups)


@cache
def common_passwords() -> frozenset[str]:
    """Return the passwords everybody tries first, folded for comparison."""
    try:
        shipped = resources.files("itdesk_etc") / "common-passwords.txt"
    except ModuleNotFoundError:  # a checkout that was not installed
        shipped = Path(__file__).parents[2] / "etc" / "common-passwords.txt"
    lines = shipped.read_text(encoding="utf-8").splitlines()
    return frozenset(line.casefold() for line in lines if line and not line.startswith("# "))


def _give_way() -> None:
    """Let the event loop have a core before this thread: whoever signs in can wait, others not."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _unusable(password: str) -> list[str]:
    if "\0" in password:
        return ["must not contain NUL"]
    if any("\ud800" <= char <= "\udfff" for char in password[:_LONGEST_RAW]):
        return ["must be valid Unicode text"]
    if len(password) > _LONGEST_RAW or len(_normalised(password)) > LONGEST:
        return [f"must have at most {LONGEST} characters"]
    return []


def _normalised(password: str) -> str:
    return unicodedata.normalize("NFKC", password)


def _prehash(password: str) -> bytes:
    # base64 because bcrypt stops at a NUL byte, which a raw digest may contain.
    return base64.b64encode(hashlib.sha256(_normalised(password).encode()).digest())


def _matches(digest: bytes, stored: bytes) -> bool:
    try:
        return bcrypt.checkpw(digest, stored)
    except ValueError:  # well-formed, yet no salt of bcrypt's
        return False


def _words(context: Iterable[str]) -> list[str]:
    """Return the longest first, so that a whole local part goes before its pieces."""
    words = {SERVICE}
    for text in context:
        folded = _normalised(text).casefold()
        words.update(re.split(r"[\W_]+", folded))
        words.add(folded)
        words.add(folded.partition("@")[0])
        words.add(re.sub(r"[\W_]+", "", folded.partition("@")[0]))
    return sorted((word for word in words if len(word) >= 4), key=len, reverse=True)
