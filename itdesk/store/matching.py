"""Which tickets are on a page, found by the way that suits the question.

Own tickets are merged from both ends. For words in everybody's the planner's estimate decides: few
matches are found by the index and sorted; frequent words are looked for among the newest, which
fills a page at once, and then by the index or by walking on. The ways are fixed in the statements,
so that PostgreSQL needs not plan them anew for each search.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from itdesk.store import narrowing, rows, words
from itdesk.store.narrowing import Filter
from itdesk.store.paging import Page, Window, decode_cursor, encode_cursor
from itdesk.store.rows import Show
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
# million tickets). So few are found by the index before as many of the newest are looked at.
_FEW = 500
_NEAR = 2500
# With more matches than these, walking fills a page sooner than sorting them.
_MOST_SORTED = 3000
# Words may be frequent and yet in old tickets only: then so many are sorted, after such a walk.
_FAR = 150_000
_MOST_SORTED_AT_LAST = 15_000
# So many of the newest matches are put in order of relevance.
MOST_RANKED = 500


async def find(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    sort: str = "-created_at",
    window: Window,
    matches: int | None = None,
    show: Show = "ids",
) -> Page[Any]:
    """Return one page of the tickets in scope, by keyset when a cursor is given.

    What is shown of them are their ids and sort values, or their rows as well.
    """
    if sort == RELEVANCE:
        return await _ranked(conn, wanted, scope, window, matches, show)
    last = None
    name = sort.removeprefix("-")
    if window.cursor is not None:
        kind = datetime if name in TIMES else int
        last = decode_cursor(window.cursor, sort, (kind, UUID))
    found = await newest(
        conn, wanted, scope=scope, sort=sort, last=last, count=window.limit + 1,
        offset=window.offset, matches=matches, show=show,
    )  # fmt: skip
    return Page.cut(found, window.limit, lambda row: encode_cursor(sort, row["value"], row["id"]))


async def newest(
    conn: Any,
    wanted: Filter,
    *,
    scope: UUID | None,
    count: int,
    sort: str = "-created_at",
    last: Sequence[Any] | None = None,
    offset: int = 0,
    matches: int | None = None,
    show: Show = "ids",
) -> Sequence[Any]:
    """Return the first tickets in an order, after `last` (a sort value and an id) if given.

    `matches` is what `estimate` says, if that is known.
    """
    whose = wanted.whose(scope)
    if whose is not None:
        ways = ["own" if await _few_assigned(conn, whose) else "own of many"]
    elif wanted.q is None:
        ways = ["all"]
    else:
        if matches is None:
            matches = await estimate(conn, wanted, scope=scope)
        ways = _ways(matches)
    found: Sequence[Any] = ()
    for way in ways:
        query, values = _statement(way, wanted, scope, sort, last, count, offset)
        found = await conn.fetch(rows.SHOWN[show].format(query), *values)
        if len(found) == count:
            break
    return found


def _ways(matches: int) -> list[str]:
    """Return the ways to find words, one after the other until a page is full."""
    if matches <= _FEW:
        return ["index"]
    if matches <= _MOST_SORTED:
        return ["near", "index"]
    if matches <= _MOST_SORTED_AT_LAST:
        return ["near", "far", "index"]
    return ["near", "far", "walk"]


async def estimate(conn: Any, wanted: Filter, *, scope: UUID | None) -> int:
    """Return about how many of everybody's tickets have the words, as the planner believes."""
    read = Words.read(wanted.q or "")
    where = narrowing.conditions(wanted, *read.values)
    query = f"""
        EXPLAIN (FORMAT json) SELECT FROM tickets t
        WHERE {where} AND {words.indexed(read, internal=scope is None)}
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


async def _ranked(
    conn: Any,
    wanted: Filter,
    scope: UUID | None,
    window: Window,
    matches: int | None,
    show: Show,
) -> Page[Any]:
    """Return one page of the newest matches, the best first; its cursor counts them."""
    skip = window.offset
    if window.cursor is not None:
        [skip] = decode_cursor(window.cursor, RELEVANCE, (int,))
    # A cursor may hold any bigint.
    skip = min(max(0, skip), MOST_RANKED)
    newest_ones = await newest(conn, wanted, scope=scope, count=MOST_RANKED, matches=matches)
    read = Words.read(wanted.q or "")
    query = f"""
        SELECT t.id, {words.rank(read, internal=scope is None)} AS value
        FROM tickets t WHERE t.id = ANY (${len(read.values) + 1}::uuid[])
        ORDER BY value DESC, t.created_at DESC, t.id DESC
        LIMIT {window.limit + 1:d} OFFSET {skip:d}
    """  # noqa: S608 - literals of the store
    found = await conn.fetch(
        rows.SHOWN[show].format(query), *read.values, [row["id"] for row in newest_ones]
    )
    return Page.cut(found, window.limit, lambda _: encode_cursor(RELEVANCE, skip + window.limit))


def _statement(
    way: str,
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
    read = None if wanted.q is None else Words.read(wanted.q)
    where = narrowing.conditions(wanted, *(read.values if read else ()))
    after = "true"
    if last is not None:
        # A cursor may hold any bigint, a rank is smaller: the cast keeps it comparable.
        cast = "" if name in TIMES else "::bigint"
        where.values.extend(last)
        at = len(where.values)
        after = f"({column}, t.id) {beyond} (${at - 1:d}{cast}, ${at:d})"
    match = words.indexed(read, internal=scope is None) if read else "true"
    walked = words.walked(read, internal=scope is None) if read else "true"
    order = f"ORDER BY value {direction}, id {direction}"
    page = f"LIMIT {count:d} OFFSET {offset:d}"
    if way in ("near", "far"):
        reach = f"{_NEAR:d}" if way == "near" else f"{_FAR:d}"
        query = f"""
            SELECT id, value FROM (
                SELECT t.*, {column} AS value FROM tickets t WHERE {after} {order} LIMIT {reach}
            ) AS t WHERE {where} AND {walked} {order} {page}
        """  # noqa: S608 - conditions are literals, values are parameters
    elif way == "index":
        query = f"""
            WITH hits AS MATERIALIZED (
                SELECT t.id, {column} AS value FROM tickets t
                WHERE {after} AND {where} AND {match}
            ) SELECT id, value FROM hits {order} {page}
        """  # noqa: S608 - as above
    elif way.startswith("own"):
        where.values.append(wanted.whose(scope))
        whose = f"${len(where.values)}"
        conditions = f"{after} AND {where} AND {match}"
        # Each side gives as many as the page could need of it.
        each = f"{order} LIMIT {offset + count:d}"
        # The inner LIMIT keeps the planner from walking over everybody's for somebody's few.
        assigned = (
            "JOIN tickets t ON t.id = o.ticket_id"
            if way == "own of many"
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
    read = None if wanted.q is None else Words.read(wanted.q)
    where = narrowing.conditions(wanted, *(read.values if read else ()))
    if read is not None:
        where.add(words.indexed(read, internal=scope is None))
    whose = wanted.whose(scope)
    if whose is not None:
        where.add(narrowing.OWN, whose)
    query = f"SELECT count(*) FROM tickets t WHERE {where}"  # noqa: S608 - as above
    total: int = await conn.fetchval(query, *where.values)
    return total
