"""Which tickets are on a page: their ids in order, found by the way that suits the question.

Own tickets are merged from both ends. Words in everybody's are looked for among the newest first,
which finds frequent ones at once; else the planner's estimate decides between the index (few
matches, to be sorted) and walking on (many, so that the page is soon full).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from itdesk.store import narrowing, words
from itdesk.store.narrowing import Filter
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
TIMES = frozenset({"created_at", "updated_at"})
RELEVANCE = "relevance"

# A row is looked at in 0.5 us when walking, and in 8 us when the index names it (measured at a
# million tickets). So many of the newest are looked at before anything else is considered.
_NEAR = 2500
# With more matches than these, walking fills a page sooner than sorting them.
_MOST_SORTED = 3000
# Words may be frequent and yet in old tickets only: then so many are sorted, after such a walk.
_FAR = 150_000
_MOST_SORTED_AT_LAST = 15_000
# So many of the newest matches are put in order of relevance.
MOST_RANKED = 500


@dataclass(frozen=True, slots=True)
class Found:
    """A ticket on a page, and the value that it is sorted by."""

    id: UUID
    value: Any


def audience(scope: UUID | None) -> str:
    """Return which of the vectors a reader searches."""
    return "internal" if scope is None else "public"


async def find(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    sort: str = "-created_at",
    window: Window,
) -> Page[Found]:
    """Return one page of the tickets in scope, by keyset when a cursor is given."""
    if sort == RELEVANCE:
        return await _ranked(conn, wanted, scope=scope, window=window)
    last = None
    name = sort.removeprefix("-")
    if window.cursor is not None:
        kind = datetime if name in TIMES else int
        last = decode_cursor(window.cursor, sort, (kind, UUID))
    found = await newest(
        conn, wanted, scope=scope, sort=sort, last=last, count=window.limit + 1,
        offset=window.offset,
    )  # fmt: skip
    return Page.cut(found, window.limit, lambda one: encode_cursor(sort, one.value, one.id))


async def newest(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    count: int,
    sort: str = "-created_at",
    last: Sequence[Any] | None = None,
    offset: int = 0,
) -> list[Found]:
    """Return the first tickets in an order, after `last` (a sort value and an id) if given."""
    whose = wanted.whose(scope)
    if whose is not None:
        plan = "own" if await _few_assigned(conn, whose) else "own of many"
    elif wanted.q is None:
        plan = "all"
    else:
        return await _newest_with_words(conn, wanted, scope, sort, last, count, offset)
    query, values = _statement(plan, wanted, scope, sort, last, count, offset)
    return [Found(*row) for row in await conn.fetch(query, *values)]


async def _newest_with_words(
    conn: Any,
    wanted: Filter,
    scope: UUID | None,
    sort: str,
    last: Sequence[Any] | None,
    count: int,
    offset: int,
) -> list[Found]:
    found: list[Any] = []
    matches: int | None = None
    for plan, enough in (("near", None), ("index", _MOST_SORTED), ("far", None),
                         ("index", _MOST_SORTED_AT_LAST), ("walk", None)):  # fmt: skip
        if plan == "index" and matches is None:
            matches = await estimate(conn, wanted, scope=scope)
        if enough is not None and matches is not None and matches > enough:
            continue
        query, values = _statement(plan, wanted, scope, sort, last, count, offset)
        found = await conn.fetch(query, *values)
        if len(found) == count or plan == "index":
            break
    return [Found(*row) for row in found]


async def estimate(conn: Any, wanted: Filter, *, scope: UUID | None) -> int:
    """Return about how many of everybody's tickets there are, as the planner believes."""
    where = narrowing.conditions(wanted, *_words(wanted))
    match = words.INDEXED[audience(scope)]
    query = f"""
        EXPLAIN (FORMAT json) SELECT FROM tickets t WHERE {where} AND {match}
    """  # noqa: S608 - conditions are literals, values are parameters
    plan = orjson.loads(await conn.fetchval(query, *where.values))
    return int(plan[0]["Plan"]["Plan Rows"])


async def _few_assigned(conn: Any, whose: UUID) -> bool:
    """Return whether looking at each ticket that somebody is assigned to is quick."""
    query = """
        SELECT count(*) <= $2::int FROM (
            SELECT FROM ticket_assignees WHERE user_id = $1 LIMIT $2::int + 1) AS a_few
    """
    few: bool = await conn.fetchval(query, whose, _MOST_SORTED)
    return few


async def _ranked(conn: Any, wanted: Filter, *, scope: UUID | None, window: Window) -> Page[Found]:
    """Return one page of the newest matches, the best first; its cursor counts them."""
    skip = window.offset
    if window.cursor is not None:
        [skip] = decode_cursor(window.cursor, RELEVANCE, (int,))
    matches = await newest(conn, wanted, scope=scope, count=MOST_RANKED)
    vector = words.VECTOR[audience(scope)]
    query = f"""
        SELECT t.id, ts_rank({vector}, {words.QUERY}) + ($3::text <> '' AND t.key LIKE $3)::int
                     + (t.key || '%' = $3)::int AS rank
        FROM tickets t WHERE t.id = ANY ($4::uuid[])
        ORDER BY rank DESC, t.created_at DESC, t.id DESC
    """  # noqa: S608 - a literal of this module
    ids = [one.id for one in matches]
    rows = await conn.fetch(query, *_words(wanted), ids)
    some = [Found(*row) for row in rows[max(0, skip) : max(0, skip) + window.limit + 1]]
    return Page.cut(some, window.limit, lambda _: encode_cursor(RELEVANCE, skip + window.limit))


def _words(wanted: Filter) -> tuple[str, ...]:
    if wanted.q is None:
        return ()
    read = Words.read(wanted.q)
    return read.whole, read.last, read.key


def _statement(
    plan: str,
    wanted: Filter,
    scope: UUID | None,
    sort: str,
    last: Sequence[Any] | None,
    count: int,
    offset: int,
) -> tuple[str, list[Any]]:
    """Return the statement that finds a page in one way, and its values."""
    name = sort.removeprefix("-")
    column = SORTS[name]
    direction, beyond = ("DESC", "<") if sort.startswith("-") else ("ASC", ">")
    where = narrowing.conditions(wanted, *_words(wanted))
    after = "true"
    if last is not None:
        # A cursor may hold any bigint, a rank is smaller: the cast keeps it comparable.
        cast = "" if name in TIMES else "::bigint"
        where.values.extend(last)
        at = len(where.values)
        after = f"({column}, t.id) {beyond} (${at - 1:d}{cast}, ${at:d})"
    readers = audience(scope)
    match = "true" if wanted.q is None else words.INDEXED[readers]
    walked = "true" if wanted.q is None else words.WALKED[readers]
    order = f"ORDER BY value {direction}, id {direction}"
    page = f"LIMIT {count:d} OFFSET {offset:d}"
    if plan in ("near", "far"):
        reach = f"{_NEAR:d}" if plan == "near" else f"{_FAR:d}"
        query = f"""
            SELECT id, value FROM (
                SELECT t.*, {column} AS value FROM tickets t WHERE {after} {order} LIMIT {reach}
            ) AS t WHERE {where} AND {walked} {order} {page}
        """  # noqa: S608 - conditions are literals, values are parameters
    elif plan == "index":
        query = f"""
            WITH hits AS MATERIALIZED (
                SELECT t.id, {column} AS value FROM tickets t
                WHERE {after} AND {where} AND {match}
            ) SELECT id, value FROM hits {order} {page}
        """  # noqa: S608 - as above
    elif plan.startswith("own"):
        where.values.append(wanted.whose(scope))
        whose = f"${len(where.values)}"
        conditions = f"{after} AND {where} AND {match}"
        # Each side gives as many as the page could need of it.
        each = f"{order} LIMIT {offset + count:d}"
        # The inner LIMIT keeps the planner from walking over everybody's for somebody's few.
        assigned = (
            "JOIN tickets t ON t.id = o.ticket_id"
            if plan == "own of many"
            else ("CROSS JOIN LATERAL (SELECT * FROM tickets WHERE id = o.ticket_id LIMIT 1) AS t")
        )
        query = f"""
            SELECT id, value FROM (
                (SELECT t.id, {column} AS value FROM tickets t
                 WHERE t.reporter_id = {whose} AND {conditions} {each})
                UNION
                (SELECT t.id, {column} AS value FROM ticket_assignees o {assigned}
                 WHERE o.user_id = {whose} AND {conditions} {each})
            ) AS own {order} {page}
        """  # noqa: S608 - as above
    else:
        query = f"""
            SELECT t.id, {column} AS value FROM tickets t
            WHERE {after} AND {where} AND {walked} {order} {page}
        """  # noqa: S608 - as above
    return query, where.values


async def count(conn: Any, wanted: Filter, *, scope: UUID | None) -> int:
    """Return how many tickets a list has in all; costly on large desks, so only when asked."""
    where = narrowing.conditions(wanted, *_words(wanted))
    if wanted.q is not None:
        where.add(words.INDEXED[audience(scope)])
    whose = wanted.whose(scope)
    if whose is not None:
        where.add(narrowing.OWN, whose)
    query = f"SELECT count(*) FROM tickets t WHERE {where}"  # noqa: S608 - as above
    total: int = await conn.fetchval(query, *where.values)
    return total
