"""Tickets about the same thing: who comes into question, and which words they have in common.

Candidates are few whatever the desk's size: the newest tickets with all words of a title, then
with two of the most telling ones, then with any. A statement that takes too long finds nothing.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import combinations
from typing import Any
from uuid import UUID

import asyncpg

from itdesk.frozen import frozen
from itdesk.model import Category, Status
from itdesk.store import matching
from itdesk.store.matching import Asked
from itdesk.store.narrowing import Filter

# How many candidates each way of asking may give, and how few are too few to stop.
_EACH = (40, 120, 60)
_ENOUGH = 20
_MOST_WORDS = 6
_WORD = re.compile(r"(?<![^\W_])[^\W_]{3,40}(?![^\W_])")
# Frequent in every request for help, in English and German: they tell nothing apart.
_DULL = frozenset(
    """
    and are but can cannot could does doesn for from get had has have help her his how into isn
    issue its just need new not now off one our out please problem she should some that the their
    then there they this ticket try use user using very was wasn what when where which who why
    will with won work working would you your
    aber auf aus bei bin bitte das dass dem den der des die ein eine einem einen einer eines
    funktioniert geht hat habe haben ich ihr ist kann kein keine mein meine mich mir mit nach nicht
    noch nur oder sich sie sind und uns unser von war was wenn wer wie wir wird zum zur über
    """.split()
)


@frozen
class Likeness:
    """A ticket that comes into question: its title's words, and those shared with all of ours."""

    id: UUID
    key: str
    title: str
    status: Status
    category: Category | None
    resolution: str | None
    created_at: datetime
    words: frozenset[str]
    shared: frozenset[str]


@frozen
class Wording:
    """The words of one ticket as the search knows them: of its title, and of all it asks."""

    title: frozenset[str]
    all: frozenset[str]


def telling(title: str, description: str) -> list[str]:
    """Return the words worth looking for, those of the title first and long ones before short."""
    words: list[str] = []
    for text in (title, description[:1000]):
        found = dict.fromkeys(word for word in _WORD.findall(text.lower()) if word not in _DULL)
        words += sorted((word for word in found if word not in words), key=len, reverse=True)
        if len(words) >= _MOST_WORDS // 2:
            break
    return words[:_MOST_WORDS]


async def candidates(
    conn: Any,
    words: Sequence[str],
    *,
    scope: UUID | None,
    but: UUID | None = None,
    before: tuple[datetime, UUID] | None = None,
) -> list[UUID]:
    """Return the tickets in scope that have some of these words, the likeliest first.

    With `before`, the time and id of a ticket, only those opened before it that are not closed.
    """
    status = () if before is None else tuple(one for one in Status if one is not Status.CLOSED)
    found: dict[UUID, None] = {}
    for q, count in zip(_questions(words), _EACH, strict=False):
        try:
            asked = Asked(Filter(q=q, status=status), scope, count, last=before)
            page = await matching.newest(conn, asked)
        except asyncpg.QueryCanceledError:
            continue
        ids = (UUID(one["name"]) for one in page)
        found.update((id, None) for id in ids if id != but)
        if len(found) >= _ENOUGH:
            break
    return list(found)


def _questions(words: Sequence[str]) -> Iterator[str]:
    """Yield searches, each wider than the one before; they are read as people's are."""
    if not words:
        return
    # The blank says that the last word is a whole one.
    yield " ".join(words) + " "
    if len(words) > 2:
        yield " or ".join(f"{one} {other}" for one, other in combinations(words, 2))
    if len(words) > 1:
        yield " or ".join(words)


# A title's words without its key, which the search knows as a part of it.
_TITLE = """tsvector_to_array(ts_delete(ts_filter(t.search, '{a}'), tsvector_to_array(
    to_tsvector('english', t.key || ' ' || split_part(t.key, '-', 2)))))"""
_ASKED = "tsvector_to_array(ts_filter(t.search, '{a,c}'))"


async def wording(conn: Any, ticket_id: UUID) -> Wording:
    """Return a ticket's own words."""
    query = f"SELECT {_TITLE} AS title, {_ASKED} AS asked FROM tickets t WHERE t.id = $1"  # noqa: S608
    row = await conn.fetchrow(query, ticket_id)
    if row is None:
        return Wording(frozenset(), frozenset())
    title = frozenset(row["title"])
    return Wording(title, title | frozenset(row["asked"][:400]))


async def likenesses(conn: Any, ids: Sequence[UUID], mine: Wording) -> list[Likeness]:
    """Return what these tickets have in common with a wording; comments are not looked at."""
    query = f"""
        SELECT t.id, t.key, t.title, t.status, t.category, t.resolution, t.created_at,
               {_TITLE} AS words,
               ARRAY(SELECT unnest({_ASKED}) INTERSECT SELECT unnest($2::text[])) AS shared
        FROM tickets t WHERE t.id = ANY ($1::uuid[])
    """  # noqa: S608 - literals of this module
    return [
        Likeness(
            id=row["id"],
            key=row["key"],
            title=row["title"],
            status=Status(row["status"]),
            category=Category(row["category"]) if row["category"] is not None else None,
            resolution=row["resolution"],
            created_at=row["created_at"],
            words=frozenset(row["words"]),
            shared=frozenset(row["shared"]),
        )
        for row in await conn.fetch(query, list(ids), list(mine.all))
    ]
