"""What a search shows beside its tickets: where the words stand, and how the matches divide.

Nothing here is HTML: a snippet is plain text with the places of the words, so that whoever shows
it escapes it as any other text.
"""

from collections.abc import Sequence
from typing import Any

from itdesk.frozen import frozen
from itdesk.store import matching, words
from itdesk.store.matching import Asked

# The newest matches that are counted, and the assignees that are named.
MOST_COUNTED = 1000
_MOST_ASSIGNEES = 20
# How much of a text, and how many of the newest comments, are looked through for the words.
_LONGEST_TEXT = 5000
_COMMENTS = 10
# Control characters that no stored text keeps after `translate`.
_OPEN, _CLOSE = "\x02", "\x03"
_MARKS = r'StartSel="\x02", StopSel="\x03"'


@frozen
class Snippet:
    """A piece of a ticket's text; `marks` are [start, length] in characters of `text`."""

    field: str
    text: str
    marks: list[list[int]]


@frozen
class Facet:
    """How many of the matches have a value; `name` is what people call it."""

    value: str
    name: str
    count: int


@frozen
class Facets:
    """How the matches divide; unless `exact`, only the newest `counted` ones are counted."""

    counted: int
    exact: bool
    status: list[Facet]
    priority: list[Facet]
    project: list[Facet]
    assignee: list[Facet]


_HEADLINE = f"""ts_headline('english',
    translate(left({{0}}, {_LONGEST_TEXT}), E'\\x02\\x03', ''), q,
    E'{_MARKS}, MaxFragments=2, MaxWords=16, MinWords=6, ShortWord=0')"""
_WHOLE = f"""ts_headline('english', translate({{0}}, E'\\x02\\x03', ''), q,
    E'{_MARKS}, HighlightAll=true')"""


async def snippets(conn: Any, asked: Asked, names: Sequence[str]) -> dict[str, list[Snippet]]:
    """Return where the words of a search stand in these tickets, as far as a reader may read."""
    sought = asked.words
    if sought is None:
        return {}
    where = matching.still(asked, names)
    where.values.append(asked.scope is None)
    query = f"""
        SELECT t.id::text AS name, {_WHOLE.format("t.title")} AS title,
               {_HEADLINE.format("t.description")} AS description,
               ARRAY(SELECT {_HEADLINE.format("c.body")} FROM (
                   SELECT body, created_at, id FROM ticket_comments
                   WHERE ticket_id = t.id AND (${len(where.values):d} OR NOT internal)
                   ORDER BY created_at DESC, id DESC LIMIT {_COMMENTS}
               ) AS c ORDER BY c.created_at DESC, c.id DESC) AS comments
        FROM tickets t CROSS JOIN (SELECT {words.query(sought)} AS q) AS asked
        WHERE {where}
    """  # noqa: S608 - literals of the store
    rows = await conn.fetch(query, *where.values)
    return {row["name"]: _of_ticket(row) for row in rows}


def _of_ticket(row: Any) -> list[Snippet]:
    said = next((text for text in row["comments"] if _OPEN in text), "")
    texts = (("title", row["title"]), ("description", row["description"]), ("comment", said))
    return [_snippet(field, text) for field, text in texts if _OPEN in text]


def _snippet(field: str, marked: str) -> Snippet:
    plain, *pieces = marked.split(_OPEN)
    marks: list[list[int]] = []
    for piece in pieces:
        word, _, rest = piece.partition(_CLOSE)
        marks.append([len(plain), len(word)])
        plain += word + rest
    return Snippet(field, plain, marks)


async def facets(conn: Any, asked: Asked, *, matches: int | None = None) -> Facets:
    """Return how the matches of a search divide; `matches` is their estimate, if known."""
    newest = Asked(asked.wanted, asked.scope, MOST_COUNTED + 1)
    found = await matching.newest(conn, newest, matches=matches)
    names = [one["name"] for one in found[:MOST_COUNTED]]
    where = matching.still(asked, names)
    query = f"""
        WITH hits AS MATERIALIZED (
            SELECT t.id, t.status, t.status_rank, t.priority, t.priority_rank, t.project_id
            FROM tickets t WHERE {where}
        )
        (SELECT 'status' AS facet, status AS value, status AS name, count(*) AS count
         FROM hits GROUP BY status, status_rank ORDER BY status_rank)
        UNION ALL
        (SELECT 'priority', priority, priority, count(*)
         FROM hits GROUP BY priority, priority_rank ORDER BY priority_rank DESC)
        UNION ALL
        (SELECT 'project', p.key, p.name, count(*)
         FROM hits JOIN projects p ON p.id = hits.project_id
         GROUP BY p.key, p.name ORDER BY 4 DESC, 2)
        UNION ALL
        (SELECT 'assignee', u.id::text, u.name, count(*)
         FROM hits JOIN ticket_assignees a ON a.ticket_id = hits.id JOIN users u ON u.id = a.user_id
         GROUP BY u.id, u.name ORDER BY 4 DESC, 3, 2 LIMIT {_MOST_ASSIGNEES})
    """  # noqa: S608 - literals of this module
    rows = await conn.fetch(query, *where.values)
    by: dict[str, list[Facet]] = {"status": [], "priority": [], "project": [], "assignee": []}
    for row in rows:
        by[row["facet"]].append(Facet(row["value"], row["name"], row["count"]))
    return Facets(counted=len(names), exact=len(found) <= MOST_COUNTED, **by)
