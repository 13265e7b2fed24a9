"""Jira's two ways to write text, as the plain text that tickets hold, and back.

Version 3 of the REST interface speaks the Atlassian document format, a tree; version 2 and all
webhooks speak wiki markup, a string.
"""

import re
from collections.abc import Iterator
from typing import Any

DEEPEST = 40
LONGEST = 32_767

_LINES = frozenset({"paragraph", "heading", "codeBlock", "caption", "decisionItem", "taskItem"})


def text_of(value: Any) -> str | None:
    """Return the plain text of a document or of wiki markup, or None when it is neither."""
    if isinstance(value, str):
        return wiki_text(value)
    if isinstance(value, dict):
        lines = "".join(_pieces(value, 0))
        return re.sub(r"\n{3,}", "\n\n", lines).strip("\n")
    return None


def document(text: str) -> dict[str, Any]:
    """Return a plain text as a document: blank lines part its paragraphs."""
    content: list[dict[str, Any]] = []
    for block in re.split(r"\n{2,}", text.strip("\n").replace("\r\n", "\n")):
        inline: list[dict[str, Any]] = []
        for number, line in enumerate(block.split("\n")):
            if number:
                inline.append({"type": "hardBreak"})
            if line:
                inline.append({"type": "text", "text": line})
        content.append({"type": "paragraph", "content": inline})
    return {"type": "doc", "version": 1, "content": content}


def _pieces(node: Any, depth: int) -> Iterator[str]:
    """Yield the text of a node; what nests deeper than any real document is left out."""
    if not isinstance(node, dict) or depth > DEEPEST:
        return
    kind = node.get("type")
    attributes = node.get("attrs")
    attributes = attributes if isinstance(attributes, dict) else {}
    children = node.get("content")
    children = children if isinstance(children, list) else []
    if kind == "text":
        yield _said(node.get("text")) + _target(node)
    elif kind == "hardBreak":
        yield "\n"
    elif kind in ("mention", "status"):
        yield _said(attributes.get("text"))
    elif kind == "emoji":
        yield _said(attributes.get("text")) or _said(attributes.get("shortName"))
    elif kind in ("inlineCard", "blockCard", "embedCard"):
        yield _said(attributes.get("url"))
    elif kind == "rule":
        yield "\n----\n"
    elif kind in ("bulletList", "orderedList"):
        for number, child in enumerate(children, 1):
            mark = f"{number}. " if kind == "orderedList" else "- "
            yield mark + "".join(_pieces(child, depth + 1)).strip("\n") + "\n"
    elif kind == "tableRow":
        cells = ("".join(_pieces(child, depth + 1)).strip("\n") for child in children)
        yield " | ".join(cell.replace("\n", " ") for cell in cells) + "\n"
    else:
        for child in children:
            yield from _pieces(child, depth + 1)
        if kind in _LINES:
            yield "\n\n" if kind in ("paragraph", "heading") and depth <= 1 else "\n"


def _target(node: dict[str, Any]) -> str:
    """Return where a link leads, unless its text says so already."""
    marks = node.get("marks")
    for mark in marks if isinstance(marks, list) else ():
        if isinstance(mark, dict) and mark.get("type") == "link":
            attributes = mark.get("attrs")
            href = attributes.get("href") if isinstance(attributes, dict) else None
            if isinstance(href, str) and href != node.get("text"):
                return f" ({href})"
    return ""


def _said(value: Any) -> str:
    return value if isinstance(value, str) else ""


_BLOCK = re.compile(r"\{(code|noformat|quote|panel|color)(?::[^{}\n]{0,200})?\}")
_HEADING = re.compile(r"^(?:h[1-6]|bq)\. ", re.MULTILINE)
_BULLET = re.compile(r"^([*#]{1,9}|-) +(?=\S)", re.MULTILINE)
_LINK = re.compile(r"\[([^\[\]|\n]{1,500})\|([^\[\]|\n]{1,2000})(?:\|[^\[\]\n]{0,100})?\]")
_BARE_LINK = re.compile(r"\[((?:https?|mailto):[^\[\]|\n]{1,2000})\]")
_MENTION = re.compile(r"\[~(?:accountid:)?([^\[\]\n]{1,200})\]")
# A mark opens after and closes before something that is no word: 2*3*4 and a_b_c are no markup.
_MARKED = re.compile(
    r"(?<![\w*+_{])(?:([*+_])(?=\S)([^\n*+_{}]{1,500})(?<=\S)\1|\{\{([^\n{}]{1,500})\}\})(?!\w)"
)
# What a backslash takes the meaning from is kept out of the way meanwhile, in a private plane.
_SPECIAL = "*+_{}[]|#-~^?!\\"
_ESCAPED = re.compile(r"\\([" + re.escape(_SPECIAL) + "])")
_HIDDEN = {char: chr(0xF0000 + ord(char)) for char in _SPECIAL}
_SHOWN = str.maketrans({hidden: char for char, hidden in _HIDDEN.items()})


def wiki_text(text: str) -> str:
    """Return wiki markup as plain text: words are kept, marks that only decorate are not."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _ESCAPED.sub(lambda match: _HIDDEN[match[1]], text)
    text = _BLOCK.sub("", text)
    text = _HEADING.sub("", text)
    text = _BULLET.sub(lambda match: "  " * (len(match[1]) - 1) + "- ", text)
    text = _LINK.sub(r"\1 (\2)", text)
    text = _BARE_LINK.sub(r"\1", text)
    text = _MENTION.sub(r"@\1", text)
    text = _MARKED.sub(lambda match: match[2] or match[3], text)
    return text.strip("\n").translate(_SHOWN)


def markup(text: str) -> str:
    """Return plain text as wiki markup that means just it: `wiki_text` gives it back."""
    return re.sub(f"([{re.escape(_SPECIAL)}])", r"\\\1", text.replace("\r\n", "\n"))
