"""What people type into a search box, and the conditions that find it.

Words are read as a web search is: quotes keep words together, -word leaves out, `or` is either.
The last one may be the beginning of a word, and a whole search the beginning of a ticket's key.
A statement only says what was asked for, so that one plan serves all searches of its kind.
Statements that use these conditions have `values` as their first parameters.
"""

import re

from itdesk.frozen import frozen

# Letters only: numbers, serials and host names are searched whole.
_LAST = re.compile(r"(?:^|\s)([^\W\d_]{2,40})$")
_KEY = re.compile(r"\s*([A-Za-z][A-Za-z0-9]{1,9}-[0-9]{0,18})\s*", re.ASCII)
_EITHER = re.compile(r"\bor\b", re.IGNORECASE)


@frozen
class Words:
    """A search: its whole words, the one that may go on, and the beginning of a key."""

    whole: str
    last: str = ""
    key: str = ""
    planned_before: bool = False
    """Whether the statement is planned before its values are known."""

    @classmethod
    def read(cls, typed: str, *, planned_before: bool = False) -> "Words":
        """Return what was typed as a search; a space at the end makes the last word a whole one."""
        key = _KEY.fullmatch(typed)
        beginning = key[1].upper() if key else ""
        last = _LAST.search(typed)
        if last is None or typed.count('"') % 2 or _EITHER.search(typed):
            return cls(typed, "", beginning, planned_before)
        return cls(typed[: last.start(1)], last[1], beginning, planned_before)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return what `query` names as $1 and $2."""
        return tuple(text for text in (self.whole, self.last) if text) or ("",)

    @property
    def values(self) -> tuple[str, ...]:
        """Return what the conditions name as $1, $2 ..."""
        return (*self.texts, self.key) if self.key else self.texts


def query(sought: Words) -> str:
    """Return the words as PostgreSQL's text search reads them, as SQL."""
    whole = "websearch_to_tsquery('english', $1::text)"
    n = f"${len(sought.texts)}::text"
    last = f"(websearch_to_tsquery('english', {n}) || to_tsquery('english', {n} || ':*'))"
    both = f"({whole} && {last})" if sought.whole else last
    read = both if sought.last else whole
    # Planned without the values they would be read for each row; with them the planner must see.
    return f"(SELECT {read})" if sought.planned_before else read


def vector(*, internal: bool) -> str:
    """Return what is searched: whoever reads internal comments searches them too."""
    return "(t.search || t.search_internal)" if internal else "t.search"


def indexed(sought: Words, *, internal: bool) -> str:
    """Return the condition that an index finds."""
    return f"({vector(internal=internal)} @@ {query(sought)}{_or_key(sought)})"


def walked(sought: Words) -> str:
    """Return the same with what is internal, row by row: no index fits, most have one vector."""
    return f"""(CASE WHEN t.search_internal = ''::tsvector THEN t.search @@ {query(sought)}
        ELSE (t.search || t.search_internal) @@ {query(sought)} END{_or_key(sought)})"""


def rank(sought: Words, *, internal: bool) -> str:
    """Return how well a ticket fits; the one whose key was typed fits best."""
    fits = f"ts_rank({vector(internal=internal)}, {query(sought)})"
    if not sought.key:
        return fits
    return f"{fits} + ({_key_begins(sought)})::int + (t.key = ${len(sought.values)})::int"


def _or_key(sought: Words) -> str:
    return f" OR {_key_begins(sought)}" if sought.key else ""


def _key_begins(sought: Words) -> str:
    # LIKE finds no index for a value that is not known when the statement is planned. Byte by
    # byte, no character of a key comes after a tilde.
    n = f"${len(sought.values)}::text"
    return f"t.key ~>=~ {n} AND t.key ~<~ ({n} || '~')"
