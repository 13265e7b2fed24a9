"""What others wrote, made into text that can do nothing but be read.

A model's answer, or a passage from elsewhere, may hold markup, links, control characters and
invisible ones. Tags go, links become words that no client makes clickable, and what cannot be seen
is removed. A space takes each one's place, so that nothing new comes together where something went.
"""

import re
from typing import Annotated, Final

from pydantic import AfterValidator

LONGEST: Final = 65_536

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Line feed and tab are the only control characters that text needs; the rest are those that show
# nothing, or turn around what is shown.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e0fff]"
)
_LINK = re.compile(r"!?\[([^\[\]\n]{0,500})\]\([^()\n]{0,2000}\)")
_LINK_LEFT = re.compile(r"\](?=\(|\[)")
# Only what begins like a tag is one: `5 < 6` stays.
_TAG = re.compile(r"<[A-Za-z/!?][^<>]{0,2000}>")
_TAG_LEFT = re.compile(r"<(?=[A-Za-z/!?])")
_SCHEME = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{0,30}\s?:\s?/\s?/[/\s]*"
    r"|\b(?:javascript|vbscript|data|mailto|blob)\s?:",
    re.IGNORECASE,
)
_WWW = re.compile(r"\bwww\.(?=\w)", re.IGNORECASE)
_BLANKS = re.compile(r"[^\S\n]+")
_MANY_LINES = re.compile(r"\n{3,}")


def readable(text: str) -> str:
    """Return a text without what cannot be seen; what can be, markup included, stays."""
    return _UNSEEN.sub("", _LINE_ENDS.sub("\n", text[:LONGEST]))


def plain(text: str) -> str:
    """Return a text of any number of lines without markup, links and unseen characters.

    It is never longer than what was given: one space takes the place of one character or more.
    """
    text = readable(text)
    text = _LINK_LEFT.sub(" ", _LINK.sub(r" \1 ", text))
    text = _TAG_LEFT.sub(" ", _TAG.sub(" ", text))
    text = _WWW.sub(" ", _SCHEME.sub(" ", text))
    lines = (_BLANKS.sub(" ", line).strip() for line in text.split("\n"))
    return _MANY_LINES.sub("\n\n", "\n".join(lines)).strip()


def plain_line(text: str) -> str:
    """Return the same on one line."""
    return " ".join(plain(text).split())


def cut(text: str, longest: int) -> str:
    """Return the beginning of a text, ending at a word where there is one near."""
    if longest <= 0:
        return ""
    if len(text) <= longest:
        return text
    kept = text[: longest - 1]
    space = kept.rfind(" ", longest * 2 // 3)
    return f"{kept[:space] if space > 0 else kept}…"


def shows_something(text: str) -> str:
    """Return the text; ValueError when nothing of it is left to be read."""
    if not text:
        raise ValueError("nothing is left of it")
    return text


PlainLine = Annotated[str, AfterValidator(plain_line)]
