"""Which side's word counts about a field of a mirrored ticket: pure, from what is known of both.

What comes back of our own sending is an echo and no news. Everything else follows the rule of
the field.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Ticket
from itdesk.remote import ONLY_SAID, SHARED, Rules, Shadow, Winner, fingerprint, mark_of
from itdesk.store.pushes import Unfinished

# How the issues of tickets that are ours begin.
OWN_KEY: Final = re.compile(r"\[([A-Z][A-Z0-9]{1,9}-[0-9]{1,18})\]", re.ASCII)
# Without a plugin that says otherwise: the remote side is right, and nothing is sent there.
PASSIVE: Final = Rules(
    winner=lambda project, name: Winner.REMOTE,
    worded=lambda author, text: text,
    said=lambda author, text: text,
)


@frozen
class Settled:
    """Which told fields are not taken over, and which of them are answered by sending our own."""

    kept: set[str] = field(default_factory=set)
    countered: dict[str, str] = field(default_factory=dict)


def told_of(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return the fingerprints of what a telling says."""
    return {name: mark_of(name, fields[name]) for name in SHARED if name in fields}


def settle(
    told: Mapping[str, str],
    shadow: Shadow,
    pending: Sequence[Unfinished],
    winner: Callable[[str], Winner],
    updated_at: datetime,
) -> Settled:
    """Return what a newer telling must not change here."""
    waiting = {one.field: one for one in pending}
    settled = Settled()
    for name, mark in told.items():
        wait = waiting.get(name)
        unchanged = mark == shadow.known.get(name)
        if mark == shadow.sent.get(name):
            settled.kept.add(name)
        elif winner(name) is Winner.LOCAL:
            settled.kept.add(name)
            # The same answered twice would be answered for ever.
            if not unchanged and wait is None and shadow.countered.get(name) != mark:
                settled.countered[name] = mark
        elif winner(name) is Winner.LAST_WRITER:
            if unchanged or (wait is not None and updated_at < wait.since):
                settled.kept.add(name)
        elif unchanged and (shadow.creating or (wait is not None and not wait.failing)):
            # It is on its way there; the remote side changed something else.
            settled.kept.add(name)
    return settled


def theirs(told: Mapping[str, str], shadow: Shadow) -> list[str]:
    """Return the fields that the remote side itself changed."""
    return [
        name
        for name, mark in told.items()
        if mark not in (shadow.sent.get(name), shadow.known.get(name))
    ]


def as_opened(told: Mapping[str, str], shadow: Shadow) -> dict[str, str]:
    """Return what is heard for the first time of an issue that is being opened for a ticket.

    It is how the remote side opens issues, and nobody's word.
    """
    return {n: mark for n, mark in told.items() if n not in shadow.known and n not in shadow.sent}


def only_said(shadow: Shadow) -> set[str]:
    """Return the fingerprints of comments that are said over there and are none here."""
    return {mark for name, mark in shadow.sent.items() if name.startswith(ONLY_SAID)}


def changed_since(then: Ticket, now: Ticket) -> list[str]:
    """Return the shared fields in which a ticket is not what it was."""
    found = [name for name in SHARED if name != "assignee" and _differs(name, then, now)]
    if then.assignee_ids != now.assignee_ids:
        found.append("assignee")
    if then.key != now.key and "title" not in found:
        # It is part of the summary.
        found.append("title")
    return found


def _differs(name: str, then: Ticket, now: Ticket) -> bool:
    return bool(getattr(then, name) != getattr(now, name))


def own_title(ticket: Ticket, title: str) -> str:
    """Return a title without the key that a ticket of our own is named by over there.

    It may be an earlier one: a ticket gets another key when it is moved to another project.
    """
    if ticket.external is None or ticket.key == ticket.external.id:
        return title
    named = OWN_KEY.match(title)
    return (title[named.end() :] if named else title).strip() or ticket.title


def drift(
    ticket: Ticket, fields: Mapping[str, Any], shadow: Shadow, assignees: Sequence[UUID]
) -> tuple[str, ...]:
    """Return the fields in which a ticket is not what a telling says."""
    found = []
    for name in SHARED:
        if name not in fields or mark_of(name, fields[name]) == shadow.sent.get(name):
            continue
        if name == "assignee":
            differs = list(assignees) != ticket.assignee_ids
        elif name == "title":
            said = own_title(ticket, fields["title"])
            differs = fingerprint(said) != fingerprint(ticket.title)
        else:
            differs = mark_of(name, fields[name]) != mark_of(name, getattr(ticket, name))
        if differs:
            found.append(name)
    return tuple(found)
