"""What a list, a search, a count or a report is narrowed to, as conditions on tickets `t`.

`whose` is the user whose own tickets are meant, or None for every ticket. Own tickets are found
from both ends, reported and assigned: a condition with OR would walk over everybody's.
"""

from collections.abc import Sequence
from datetime import date
from typing import Any
from uuid import UUID

from itdesk.frozen import frozen
from itdesk.model import Category, Priority, Status

# What a missing department is called, here and in reports.
NO_DEPARTMENT = "Unassigned"


# Whose own a ticket is, for a value {0}, to find them all; `tickets.OWN` is for some at hand.
OWN = """t.id IN (SELECT id FROM tickets WHERE reporter_id = {0}
    UNION ALL SELECT ticket_id FROM ticket_assignees WHERE user_id = {0})"""


@frozen
class Filter:
    """What a list is narrowed to; an empty field narrows nothing."""

    status: tuple[Status, ...] = ()
    priority: tuple[Priority, ...] = ()
    category: tuple[Category, ...] = ()
    department: str | None = None
    project: str | None = None
    assignee_id: UUID | None = None
    reporter_id: UUID | None = None
    tag: tuple[str, ...] = ()
    q: str | None = None
    own: UUID | None = None
    created_from: date | None = None
    created_to: date | None = None

    def whose(self, scope: UUID | None) -> UUID | None:
        """Return whose own tickets are asked for, or None for everybody's."""
        return scope if scope is not None else self.own


class Where:
    """The conditions of one statement: literal SQL on one side, values on the other."""

    def __init__(self, first: Sequence[Any] = ()) -> None:
        self.sql: list[str] = []
        self.values: list[Any] = list(first)

    def add(self, sql: str, *values: Any) -> None:
        """Add a condition in which {0}, {1} ... stand for the values."""
        first = len(self.values) + 1
        self.values.extend(values)
        self.sql.append(sql.format(*(f"${first + i}" for i in range(len(values)))))

    def __str__(self) -> str:
        return " AND ".join(self.sql) or "true"


# One value keeps the order of its index, several do not.
_ONE = {
    "status": "t.status = {0}",
    "priority": "t.priority = {0}",
    "category": "t.category = {0}",
}
_MANY = {
    "status": "t.status = ANY ({0}::text[])",
    "priority": "t.priority = ANY ({0}::text[])",
    "category": "t.category = ANY ({0}::text[])",
}


def conditions(wanted: Filter, *first: Any) -> Where:
    """Return the conditions of a filter, but for whose tickets are meant and for its words.

    The values given come first, as $1, $2 ..., for the statement to use.
    """
    where = Where(first)
    for column, values in (
        ("status", wanted.status),
        ("priority", wanted.priority),
        ("category", wanted.category),
    ):
        if len(values) == 1:
            where.add(_ONE[column], values[0])
        elif values:
            where.add(_MANY[column], list(values))
    if wanted.department == NO_DEPARTMENT:
        where.add("(t.department IS NULL OR t.department = {0})", NO_DEPARTMENT)
    elif wanted.department is not None:
        where.add("t.department = {0}", wanted.department)
    if wanted.project is not None:
        where.add("t.project_id = (SELECT id FROM projects WHERE key = {0})", wanted.project)
    if wanted.assignee_id is not None:
        where.add(
            "EXISTS (SELECT 1 FROM ticket_assignees f"
            " WHERE f.ticket_id = t.id AND f.user_id = {0})",
            wanted.assignee_id,
        )
    if wanted.reporter_id is not None:
        where.add("t.reporter_id = {0}", wanted.reporter_id)
    if wanted.tag:
        where.add("t.tags @> {0}::text[]", list(wanted.tag))
    if wanted.created_from is not None:
        where.add("t.created_at >= ({0}::date::timestamp AT TIME ZONE 'UTC')", wanted.created_from)
    if wanted.created_to is not None:
        where.add(
            "t.created_at < (({0}::date + 1)::timestamp AT TIME ZONE 'UTC')", wanted.created_to
        )
    return where
