"""What people type into a search box, and the conditions that find it.

Words are read as a web search is: quotes keep words together, -word leaves out, `or` is either.
The last one may be the beginning of a word, and a whole search the beginning of a ticket's key.
Statements that use these conditions have the three texts of `Words` as $1, $2 and $3.
"""

import re
from dataclasses import dataclass

# Letters only: numbers, serials and host names are searched whole.
_LAST = re.compile(r"(?:^|\s)([^\W\d_]{2,40})$")
_KEY = re.compile(r"\s*([A-Za-z][A-Za-z0-9]{1,9}-[0-9]{0,18})\s*", re.ASCII)
_EITHER = re.compile(r"\bor\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Words:
    """A search: its whole words, the one that may go on, and a LIKE pattern for keys."""

    whole: str
    last: str = ""
    key: str = ""

    @classmethod
    def read(cls, typed: str) -> "Words":
        """Return what was typed as a search; a space at the end makes the last word a whole one."""
        key = _KEY.fullmatch(typed)
        pattern = f"{key[1].upper()}%" if key else ""
        last = _LAST.search(typed)
        if last is None or typed.count('"') % 2 or _EITHER.search(typed):
            return cls(typed, "", pattern)
        return cls(typed[: last.start(1)], last[1], pattern)


# The search as PostgreSQL reads it. Its parts are constants when a statement is planned, so that
# what does not apply costs nothing.
QUERY = """(websearch_to_tsquery('english', $1::text) && CASE WHEN $2::text = '' THEN ''::tsquery
    ELSE websearch_to_tsquery('english', $2) || to_tsquery('english', $2 || ':*') END)"""

# Found through an index: whoever reads internal comments searches both vectors as one.
INDEXED = {
    "public": f"(t.search @@ {QUERY} OR $3::text <> '' AND t.key LIKE $3)",
    "internal": f"((t.search || t.search_internal) @@ {QUERY} OR $3::text <> '' AND t.key LIKE $3)",
}

# The same, looked for row by row: no index fits, and most rows have but one vector.
WALKED = {
    "public": f"((t.search @@ {QUERY}) IS TRUE OR $3::text <> '' AND t.key LIKE $3)",
    "internal": f"""(CASE WHEN t.search_internal = ''::tsvector THEN t.search @@ {QUERY}
        ELSE (t.search || t.search_internal) @@ {QUERY} END OR $3::text <> '' AND t.key LIKE $3)""",
}

VECTOR = {"public": "t.search", "internal": "(t.search || t.search_internal)"}
