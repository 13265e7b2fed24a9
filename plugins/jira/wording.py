"""The desk's words as Jira's: pure functions from what a ticket holds to what Jira is sent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from itdesk.model import Priority, Status, Ticket

from . import mapping
from .adf import LONGEST, document, markup

PROPERTY: Final = "itdesk"
IMPORTED: Final = "source_local_itsm"
LONGEST_LABEL: Final = 255
# Room for what marks a text as somebody's, and for what markup adds to it.
LONGEST_TEXT: Final = LONGEST - 1_000
_CUT: Final = "\n\n[...]"

PRIORITIES: Final[Mapping[Priority, str]] = {
    Priority.CRITICAL: "Highest",
    Priority.HIGH: "High",
    Priority.MEDIUM: "Medium",
    Priority.LOW: "Low",
}
# How Jira calls a field of ours.
NAMES: Final[Mapping[str, str]] = {
    "title": "summary",
    "description": "description",
    "priority": "priority",
    "tags": "labels",
    "assignee": "assignee",
}


def summary(ticket: Ticket, *, named: bool) -> str:
    """Return a ticket's title as a summary; `named` puts its key before it."""
    title = " ".join(ticket.title.split())
    return (f"[{ticket.key}] {title}" if named else title)[: mapping.LONGEST_TITLE].rstrip()


def body(text: str, *, cloud: bool) -> Any:
    """Return a text as Jira's dialect writes it; None when it is empty."""
    text = mapping.clean(text)
    if not text.strip():
        return None
    if cloud:
        return document(cut(text))
    written = markup(cut(text))
    # Escaping may have made it too long.
    return written if len(written) <= LONGEST else markup(text[: LONGEST_TEXT // 2] + _CUT)


def cut(text: str) -> str:
    """Return as much of a text as Jira takes."""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - len(_CUT)] + _CUT


def worded(author: str, text: str) -> str:
    """Return a comment as it is written in Jira, where all of ours are of one account."""
    return cut(f"{author or 'itdesk'}:\n\n{text}")


def said(author: str, text: str) -> str:
    """Return a comment's own text, of one that may have been `worded`."""
    whose = f"{author or 'itdesk'}:"
    return text.removeprefix(whose).lstrip("\n") if text.startswith(f"{whose}\n") else text


def labels(existing: Sequence[Any], tags: Iterable[str]) -> list[str]:
    """Return labels that say these tags, and keep what is no tag here."""
    known = {tag.casefold() for tag in mapping.tags_of(existing)}
    kept = [one for one in existing if isinstance(one, str) and one.casefold() not in known]
    wanted = [label(tag) for tag in tags]
    return list(dict.fromkeys([*kept, *(one for one in wanted if one)]))


def label(text: str) -> str:
    """Return a text as one label, which has no spaces."""
    return "_".join(text.split())[:LONGEST_LABEL]


def way_to(status: Status, ways: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the transition that leads to what our status is there.

    One by the name of the target goes before one by its category.
    """
    leading = [way for way in ways if mapping.status_of(way.get("to")) is status]
    leading.sort(key=lambda way: mapping.status_of(_name(way)) is not status)
    for way in leading:
        if isinstance(way.get("id"), str | int):
            return str(way["id"])
    return None


def option(wanted: Sequence[str], offered: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the offered value that means one of these words: alike, else containing it."""
    named = [(_plain(_title(one)), one) for one in offered]
    for same in (True, False):
        for word in map(_plain, wanted):
            for name, one in named:
                if name and (name == word if same else word in name or name in word):
                    return one
    return None


def _name(way: Mapping[str, Any]) -> Any:
    target = way.get("to")
    return target.get("name") if isinstance(target, Mapping) else None


def _title(one: Mapping[str, Any]) -> str:
    found = next((one[name] for name in ("value", "label", "name") if one.get(name)), "")
    # A request type's options have their id as the value, and what people read as the label.
    shown = one.get("label")
    return str(shown if isinstance(shown, str) and shown else found)


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
