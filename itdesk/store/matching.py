"""Which tickets are on a page, found by the way that suits the question.

A ticket is found as its id, as the transaction that wrote it last (`stamp`: whatever is shown of a
ticket is written with it) and as the value that it is sorted by.

Own tickets are merged from both ends. For words in everybody's the planner's estimate decides: few
matches are found by the index and sorted; frequent words are looked for among the newest, which
fills a page at once, and then by the index or by walking on. The ways are fixed in the statements,
so that PostgreSQL needs not plan them anew for each search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import orjson

from itdesk.frozen import frozen
from itdesk.store import narrowing, tickets, words
from itdesk.store.narrowing import Filter, Where
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor
from itdesk.store.words import Words

# The sort keys of the API, and the columns that they order by.
SORTS: Mapping[str, str] = {
    "created_at": "t.created_at",
    "updated_at": "t.updated_at",
    "priority": "t.priority_rank",
    "status": "t.status_rank",
    "number": "t.number",
}
_TIMES = frozenset({"created_at", "updated_at"})
RELEVANCE = "relevance"

# A row is looked at in 0.5 us when walking, and in 8 us when the index names it (measured at a
# million tickets). So few are found by the index before as many of the newest are looked at; after
# a rush of tickets without the words the planner believes in more than there are.
_FEW = 1000
_NEAR = 2500
# With more matches than these, walking fills a page sooner than sorting them.
_MOST_SORTED = 3000
# Words may be frequent and yet in old tickets only: then so many are sorted, after such a walk.
_FAR = 150_000
_MOST_SORTED_AT_LAST = 15_000
# So many of the newest matches are put in order of relevance.
MOST_RANKED = 500


@frozen
class Asked:
    """Some tickets of a list in an order, `last` (a sort value and an id) being before them."""

    wanted: Filter
    scope: UUID | None
    count: int
    sort: str = "-created_at"
    last: Sequence[Any] | None = None
    offset: int = 0
    words: Words | None = field(init=False, compare=False)
    """What is searched for."""

    def __post_init__(self) -> None:
        """Read what is searched for, once for all that is made of it."""
        q = self.wanted.q
        words = None if q is None else Words.read(q, planned_before=self.words_alone)
        object.__setattr__(self, "words", words)

    @classmethod
    def page(cls, wanted: Filter, scope: UUID | None, sort: str, window: Window) -> "Asked":
        """Return a page of the tickets in scope and one more, which says whether it is the last.

        Raises Invalid for a cursor of something else.
        """
        count = window.limit + 1
        if sort != RELEVANCE:
            return cls(wanted, scope, count, sort, _place(window, sort), window.offset)
        skip = window.offset
        if window.cursor is not None:
            [skip] = decode_cursor(window.cursor, RELEVANCE, (int,))
        # A cursor may hold any bigint.
        return cls(wanted, scope, count, sort, offset=min(max(0, skip), MOST_RANKED))

    @property
    def words_alone(self) -> bool:
        """Return whether words in everybody's are all that is asked for: one plan serves them."""
        return self.scope is None and self.wanted == Filter(q=self.wanted.q)

    @property
    def by_estimate(self) -> bool:
        """Return whether the way to them depends on how frequent the words are."""
        return self.wanted.q is not None and self.wanted.whose(self.scope) is None


async def find(conn: Any, asked: Asked, *, matches: int | None = None) -> Page[Any]:
    """Return one page of the tickets that are asked for, by keyset when a cursor was given.

    `matches` is what `estimate` says, if that is known.
    """
    if asked.sort == RELEVANCE:
        return await _ranked(conn, asked, matches=matches)
    found = await newest(conn, asked, matches=matches)
    return Page.cut(
        found, asked.count - 1, lambda one: encode_cursor(asked.sort, one["value"], one["name"])
    )


async def newest(conn: Any, asked: Asked, *, matches: int | None = None) -> Sequence[Any]:
    """Return the `name` (the id as text), `stamp` and `value` of the tickets asked for."""
    if asked.by_estimate:
        if matches is None:
            matches = await estimate(conn, asked.wanted)
        ways = _ways(matches)
    else:
        whose = asked.wanted.whose(asked.scope)
        few = whose is not None and await _few_assigned(conn, whose)
        ways = ["all" if whose is None else "own" if few else "own of many"]
    found: Sequence[Any] = ()
    for way in ways:
        query, values = _statement(way, asked)
        found = await conn.fetch(query, *values)
        if len(found) == asked.count:
            break
    return found


def _ways(matches: int) -> list[str]:
    """Return the ways to find words in everybody's, one after the other until a page is full."""
    if matches <= _FEW:
        return ["index"]
    if matches <= _MOST_SORTED:
        return ["near", "index"]
    if matches <= _MOST_SORTED_AT_LAST:
        return ["near", "far", "index"]
    return ["near", "far", "all"]


async def estimate(conn: Any, wanted: Filter) -> int:
    """Return about how many of everybody's tickets have the words, as the planner believes."""
    sought = Words.read(wanted.q or "")
    where = narrowing.conditions(wanted, *sought.values)
    query = f"""
        EXPLAIN (FORMAT json) SELECT FROM tickets t
        WHERE {where} AND {words.indexed(sought, internal=True)}
    """  # noqa: S608 - conditions are literals, values are parameters
    plan = orjson.loads(await conn.fetchval(query, *where.values))
    return int(plan[0]["Plan"]["Plan Rows"])


def _column(sort: str) -> str:
    return SORTS[sort.removeprefix("-")]


def _direction(sort: str) -> str:
    return "DESC" if sort.startswith("-") else "ASC"


def _place(window: Window, sort: str) -> Sequence[Any] | None:
    """Return the sort value and the id that a page begins after, if it is not the first."""
    if window.cursor is None:
        return None
    kind = datetime if sort.removeprefix("-") in _TIMES else int
    return decode_cursor(window.cursor, sort, (kind, UUID))


def _after(where: Where, asked: Asked) -> str:
    """Return the condition that a ticket comes after a place, whose values are given to `where`."""
    if asked.last is None:
        return "true"
    where.values.extend(asked.last)
    at = len(where.values)
    # A cursor may hold any bigint, a rank is smaller: the cast keeps it comparable.
    cast = "" if asked.sort.removeprefix("-") in _TIMES else "::bigint"
    beyond = "<" if asked.sort.startswith("-") else ">"
    return f"({_column(asked.sort)}, t.id) {beyond} (${at - 1:d}{cast}, ${at:d})"


async def _few_assigned(conn: Any, whose: UUID) -> bool:
    """Return whether looking at each ticket that somebody is assigned to is quick."""
    query = """
        SELECT count(*) <= $2::int FROM (
            SELECT FROM ticket_assignees WHERE user_id = $1 LIMIT $2::int + 1) AS a_few
    """
    few: bool = await conn.fetchval(query, whose, _MOST_SORTED)
    return few


async def _ranked(conn: Any, asked: Asked, *, matches: int | None) -> Page[Any]:
    """Return one page of the newest matches, the best first; its cursor counts them."""
    limit, skip = asked.count - 1, asked.offset
    of = replace(asked, count=MOST_RANKED, sort="-created_at", offset=0)
    found = await newest(conn, of, matches=matches)
    rank = words.rank(asked.words or Words(""), internal=asked.scope is None)
    where = still(asked, [one["name"] for one in found])
    query = f"""
        SELECT t.id::text AS name, t.xmin AS stamp, {rank} AS value FROM tickets t WHERE {where}
        ORDER BY value DESC, t.created_at DESC, t.id DESC
        LIMIT {asked.count:d} OFFSET {skip:d}
    """  # noqa: S608 - literals of the store
    best = await conn.fetch(query, *where.values)
    return Page.cut(best, limit, lambda _: encode_cursor(RELEVANCE, skip + limit))


def _statement(way: str, asked: Asked) -> tuple[str, list[Any]]:
    """Return the statement that finds tickets in one way, and its values."""
    if way == "near":
        return _newest_first(asked, _NEAR)
    if way == "far":
        return _newest_first(asked, _FAR)
    if way == "index":
        return _by_index(asked)
    if way == "all":
        return _walking(asked)
    return _own(asked, "a few" if way == "own" else "many")


def _where(asked: Asked) -> Where:
    return narrowing.conditions(asked.wanted, *(asked.words.values if asked.words else ()))


def _page(asked: Asked) -> str:
    """Return the order of what is found, and how much of it is asked for."""
    by = _direction(asked.sort)
    return f"ORDER BY value {by}, id {by} LIMIT {asked.count:d} OFFSET {asked.offset:d}"


def _match(asked: Asked) -> str:
    if asked.words is None:
        return "true"
    return words.indexed(asked.words, internal=asked.scope is None)


def _walked(asked: Asked) -> str:
    return words.walked(asked.words) if asked.words is not None else "true"


_FOUND = "id::text AS name, stamp, value"


def _one(asked: Asked) -> str:
    """Return the columns of a ticket `t` that `_FOUND` and `_page` need."""
    return f"t.id, t.xmin AS stamp, {_column(asked.sort)} AS value"


# What the conditions on a ticket look at: to bring all of each row is a quarter of such a search.
_LOOKED_AT = """t.id, t.key, t.project_id, t.status, t.priority, t.category, t.department, t.tags,
    t.reporter_id, t.created_at, t.search, t.search_internal"""


def _newest_first(asked: Asked, reach: int) -> tuple[str, list[Any]]:
    """Look at so many, in their order."""
    where, by = _where(asked), _direction(asked.sort)
    there = _after(where, asked)
    query = f"""
        SELECT {_FOUND} FROM (
            SELECT {_LOOKED_AT}, t.xmin AS stamp, {_column(asked.sort)} AS value
            FROM tickets t WHERE {there}
            ORDER BY value {by}, id {by} LIMIT {reach:d}
        ) AS t WHERE {where} AND {_walked(asked)} {_page(asked)}
    """  # noqa: S608 - conditions are literals, values are parameters
    return query, where.values


def _by_index(asked: Asked) -> tuple[str, list[Any]]:
    """Sort all that an index finds."""
    where = _where(asked)
    there = _after(where, asked)
    query = f"""
        WITH hits AS MATERIALIZED (
            SELECT {_one(asked)} FROM tickets t WHERE {there} AND {where} AND {_match(asked)}
        ) SELECT {_FOUND} FROM hits {_page(asked)}
    """  # noqa: S608 - as above
    return query, where.values


def _walking(asked: Asked) -> tuple[str, list[Any]]:
    """Look at all, in their order, until there are enough."""
    where = _where(asked)
    there = _after(where, asked)
    query = f"""
        SELECT {_FOUND} FROM (
            SELECT {_one(asked)} FROM tickets t
            WHERE {there} AND {where} AND {_walked(asked)} {_page(asked)}
        ) AS found
    """  # noqa: S608 - as above
    return query, where.values


# The LIMIT keeps the planner from walking over everybody's for somebody's few.
_ASSIGNED = {
    "a few": """CROSS JOIN LATERAL (
        SELECT *, xmin FROM tickets WHERE id = o.ticket_id LIMIT 1) AS t""",
    "many": "JOIN tickets t ON t.id = o.ticket_id",
}


def _own(asked: Asked, assigned: Literal["a few", "many"]) -> tuple[str, list[Any]]:
    """Merge what somebody reported and what is assigned to them."""
    where, by = _where(asked), _direction(asked.sort)
    there = _after(where, asked)
    where.values.append(asked.wanted.whose(asked.scope))
    whose = f"${len(where.values)}"
    conditions = f"{there} AND {where} AND {_match(asked)}"
    # Each side gives as many as the page could need of it.
    each = f"ORDER BY value {by}, id {by} LIMIT {asked.offset + asked.count:d}"
    query = f"""
        SELECT {_FOUND} FROM (
            (SELECT {_one(asked)} FROM tickets t
             WHERE t.reporter_id = {whose} AND {conditions} {each})
            UNION
            (SELECT {_one(asked)} FROM ticket_assignees o {_ASSIGNED[assigned]}
             WHERE o.user_id = {whose} AND {conditions} {each})
        ) AS own {_page(asked)}
    """  # noqa: S608 - as above
    return query, where.values


def still(asked: Asked, names: Sequence[str]) -> Where:
    """Return the condition that tickets which were found are still those that are asked for.

    A statement about them sees another moment than the one that found them. The words of the
    search are its first values.
    """
    where = _where(asked)
    where.add("t.id = ANY ((SELECT {0}::text[])::uuid[])", names)
    # Ticket by ticket, and by no index: who owns or finds most of the desk asks about a page.
    where.add(_walked(asked) if asked.scope is None else _match(asked))
    whose = asked.wanted.whose(asked.scope)
    if whose is not None:
        where.add(tickets.OWN.format(n="{0}"), whose)
    return where


async def count(conn: Any, asked: Asked) -> int:
    """Return how many tickets a list has in all; costly on large desks, so only when asked."""
    where = _where(asked)
    where.add(_match(asked))
    whose = asked.wanted.whose(asked.scope)
    if whose is not None:
        where.add(narrowing.OWN, whose)
    query = f"SELECT count(*) FROM tickets t WHERE {where}"  # noqa: S608 - as above
    total: int = await conn.fetchval(query, *where.values)
    return total
