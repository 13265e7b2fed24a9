"""What is known already: solved tickets of this desk, and what plugins know from elsewhere.

Only what the reader of the answer may see is ever looked at, and it comes back as plain text with
its source. A source that is slow or out is left out: knowing less is better than waiting.
"""

import re
from asyncio import TaskGroup
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from math import isfinite
from typing import Final

from itdesk.desk.plaintext import cut, plain, plain_line
from itdesk.desk.reads import Reads
from itdesk.desk.wordlists import tokens
from itdesk.errors import DeskError
from itdesk.model import Caller, Passage
from itdesk.runtime.clock import Clock
from itdesk.runtime.log import get_logger
from itdesk.store import resolutions

Ask = Callable[[Caller, str], Awaitable[Sequence[Passage]]]

LONGEST_QUERY: Final = 2000
LONGEST_PASSAGE: Final = 600
MOST_WORDS: Final = 24
CANDIDATES: Final = 40
# A passage that shares less with a question than this says nothing about it.
LEAST_SCORE: Final = 0.15

# A client may make a link of it: nothing that runs, and nothing that is not an address.
_ADDRESS = re.compile(r"(?:https?://|/)[^\s<>\"'\\\x00-\x1f]{1,2000}")

log = get_logger("knowledge")


class Knowledge:
    """Finds passages that help with a question."""

    def __init__(self, reads: Reads, clock: Clock, ask_plugins: Ask, *, most: int) -> None:
        self._reads = reads
        self._clock = clock
        self._ask_plugins = ask_plugins
        self._most = most

    async def find(self, caller: Caller, query: str, *, seconds: float) -> list[Passage]:
        """Return the passages that fit best, at most so many as the settings say, in time."""
        query = query[:LONGEST_QUERY]
        if not self._most or not tokens(query):
            return []
        found: list[Passage] = []

        async def collect(ask: Ask) -> None:
            try:
                async with self._clock.deadline(seconds):
                    passages = await ask(caller, query)
                found.extend(_usable(passages))
            except TimeoutError:
                log.info("knowledge came too late")
            except DeskError as exc:
                log.info("knowledge is left out", problem=exc.message)
            except Exception:  # noqa: BLE001 - passages come from plugins and may hold anything
                log.exception("knowledge is left out")

        async with TaskGroup() as group:
            group.create_task(collect(self._solved))
            group.create_task(collect(self._ask_plugins))
        good = [one for one in found if one.text and isfinite(one.score) and one.score > 0]
        return sorted(good, key=lambda one: -one.score)[: self._most]

    async def _solved(self, caller: Caller, query: str) -> list[Passage]:
        """Return the resolutions of closed tickets, as far as the caller may read them."""
        words = _telling(query)
        if not words:
            return []
        async with self._reads.searching() as conn:
            rows = await resolutions.find(conn, words, scope=caller.scope, most=CANDIDATES)
        return [
            Passage(
                source=row.key,
                title=row.title,
                text=row.resolution,
                score=score,
                url=f"/api/v1/tickets/{row.key}",
            )
            for row in rows
            if (score := closeness(query, f"{row.title} {row.resolution}")) >= LEAST_SCORE
        ]


def closeness(query: str, text: str) -> float:
    """Return how much two texts have in common: 1 when one's words are all in the other."""
    asked, there = set(_telling(query)), set(_telling(text, most=400))
    if not asked or not there:
        return 0.0
    # Of few words each one counts for more than it says.
    return len(asked & there) / max(min(len(asked), len(there)), 3)


def _telling(text: str, *, most: int = MOST_WORDS) -> list[str]:
    """Return the words of a text that say something, each once."""
    long = (word for word in tokens(text) if len(word) > 2 and word not in _EMPTY)
    return list(dict.fromkeys(long))[:most]


_EMPTY: Final = frozenset(
    "all and any are but can cannot did does for from get had has have her him his how its just may"
    " not now our out please she since some that the their them then there they this too until was"
    " were what when where which who why will with would you your aber als auch auf aus bei bin"
    " bitte das dass dem den der des die ein eine einem einen einer für geht habe haben hat ich ihr"
    " immer ist kann kein keine mein meine mich mir mit nach nicht noch oder seit sich sie sind"
    " und uns von vom war was wenn wie wir wird zum zur".split()
)


def _usable(passages: Iterable[Passage]) -> Iterator[Passage]:
    """Yield those that are what they should be."""
    for passage in passages:
        try:
            yield _shown(passage)
        except (TypeError, ValueError, OverflowError):
            log.warning("a passage is left out: it does not hold what it should")


def _shown(passage: Passage) -> Passage:
    """Return a passage as plain text of bearable length."""
    return Passage(
        source=cut(plain_line(passage.source), 100),
        title=cut(plain_line(passage.title), 200),
        text=cut(plain(passage.text), LONGEST_PASSAGE),
        score=float(passage.score),
        url=passage.url if passage.url and _ADDRESS.fullmatch(passage.url) else None,
    )
