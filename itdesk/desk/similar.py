"""Similar and duplicate tickets: found by the words that people used, and said why.

It works without any model; where one tells what texts mean, that counts for half of the likeness of
those that the words found. Whoever asks is shown only tickets that they may read, and the words
compared are those of titles and descriptions: what was said internally decides nothing.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final
from uuid import UUID

from itdesk.desk.meanings import Meanings
from itdesk.desk.reads import Reads
from itdesk.frozen import frozen
from itdesk.model import Caller, Category, Status, Ticket
from itdesk.store import similar, tickets
from itdesk.store.db import Database
from itdesk.store.similar import Likeness, Wording

LEAST_SCORE: Final = 0.15
# From here on it is said to be the same request, not only a similar one.
DUPLICATE_SCORE: Final = 0.75
_TITLE_WEIGHT: Final = 0.6
_SAME_CATEGORY: Final = 0.05
_MOST_WORDS: Final = 6
_NEAR: Final = 0.8
MOST_COMPARED: Final = 50
_LATER: Final = "Ask again later."


@frozen
class Similar:
    """A ticket about the same thing: how much so, from 0 to 1, and why."""

    id: UUID
    key: str
    title: str
    status: Status
    category: Category | None
    resolution: str | None
    created_at: datetime
    score: float
    duplicate: bool
    reason: str


class Similarity:
    """Finds tickets that are about the same thing as another, on behalf of a caller."""

    def __init__(self, db: Database, reads: Reads, meanings: Meanings) -> None:
        self._db = db
        self._reads = reads
        self._meanings = meanings

    async def of(
        self, caller: Caller, ref: str, *, limit: int, earlier: bool = False
    ) -> list[Similar]:
        """Return the tickets most similar to one, among those that the caller may read.

        With `earlier`, only of those that were there before it and are still to be done.
        """
        async with self._db.connection() as conn:
            ticket = await tickets.find(conn, ref, scope=caller.scope)
        words = similar.telling(ticket.title, ticket.description)
        async with self._reads.searching(advice=_LATER) as conn:
            found = await similar.candidates(
                conn,
                words,
                scope=caller.scope,
                but=ticket.id,
                before=(ticket.created_at, ticket.id) if earlier else None,
            )
            mine = await similar.wording(conn, ticket.id)
            likenesses = await similar.likenesses(conn, found, mine)
        scored = ranked(ticket, mine, likenesses)[:MOST_COMPARED]
        near = await self._meanings.nearness(ticket.id, [one.id for _, one in scored])
        shown = [_shown(ticket, mine, value, one, near.get(one.id)) for value, one in scored]
        shown = [one for one in shown if one.score >= LEAST_SCORE]
        shown.sort(key=lambda one: (one.score, one.created_at, one.id), reverse=True)
        return shown[:limit]


def ranked(
    ticket: Ticket, mine: Wording, found: Iterable[Likeness]
) -> list[tuple[float, Likeness]]:
    """Return those that have something in common, the most similar first, newer before older."""
    scored = [(score(ticket, mine, one), one) for one in found]
    scored = [pair for pair in scored if pair[0] > 0]
    scored.sort(key=lambda pair: (pair[0], pair[1].created_at, pair[1].id), reverse=True)
    return scored


def score(ticket: Ticket, mine: Wording, other: Likeness) -> float:
    """Return how much two tickets are about the same thing, from 0 to 1."""
    either = mine.title | other.words
    titles = len(mine.title & other.words) / len(either) if either else 0.0
    asked = len(other.shared & mine.all) / len(mine.all) if mine.all else 0.0
    value = _TITLE_WEIGHT * titles + (1 - _TITLE_WEIGHT) * asked
    if value and ticket.category is not None and ticket.category == other.category:
        value += _SAME_CATEGORY
    return round(min(value, 1.0), 3)


def _shown(
    ticket: Ticket, mine: Wording, value: float, other: Likeness, near: float | None
) -> Similar:
    if near is not None:
        value = round((value + near) / 2, 3)
    return Similar(
        id=other.id,
        key=other.key,
        title=other.title,
        status=other.status,
        category=other.category,
        resolution=other.resolution,
        created_at=other.created_at,
        score=value,
        duplicate=value >= DUPLICATE_SCORE,
        reason=_reason(ticket, mine, other, near),
    )


def _reason(ticket: Ticket, mine: Wording, other: Likeness, near: float | None) -> str:
    titles = mine.title & other.words
    parts = []
    if titles and titles == mine.title == other.words:
        parts.append("The titles have the same words")
    elif titles:
        parts.append(f"The titles share {_listed(titles)}")
    if rest := other.shared - titles:
        parts.append(f"{'the texts' if parts else 'The texts'} share {_listed(rest)}")
    if ticket.category is not None and ticket.category == other.category:
        parts.append(f"both are about {ticket.category.replace('_', ' ')}")
    if near is not None and near >= _NEAR:
        parts.append("they mean much the same")
    return "; ".join(parts) + "."


def _listed(words: Iterable[str]) -> str:
    """Return words as the search knows them, the longest first."""
    some = sorted(words, key=lambda word: (-len(word), word))
    more = f" and {len(some) - _MOST_WORDS} more" if len(some) > _MOST_WORDS else ""
    return ", ".join(some[:_MOST_WORDS]) + more
